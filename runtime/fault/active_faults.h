// What a member does wrong because somebody who studies faults ordered it (docs/chaos.md). The coordinator passes
// orders on only where the job allows it.
#ifndef WUKONG_RUNTIME_FAULT_ACTIVE_FAULTS_H_
#define WUKONG_RUNTIME_FAULT_ACTIVE_FAULTS_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "proto/scenario.pb.h"

namespace wukong {

constexpr double kFaultFactorMax = 1e9;  // Of one order.

// How a worker's work is damaged.
struct Damage {
  double slow = 1;   // Times that a step takes longer.
  bool nan = false;  // Contributions are not a number.
  double scale = 1;  // Contributions are times this; -1 flips their sign.
};

// Orders that were heard, and what they come to. Pure; thread-compatible.
class ActiveFaults {
 public:
  // Remembers an order that lasts, from `now` on. An order that was heard before changes nothing. Returns whether this
  // one is to be carried out at once, by the process: kill and freeze.
  bool Take(const FaultOrder& order, absl::Time now);
  Damage At(absl::Time now) const;
  // The number of the last order that was taken.
  int64_t heard() const { return heard_; }

 private:
  int64_t heard_ = 0;
  std::vector<std::pair<FaultOrder, absl::Time>> lasting_;  // With their ends.
};

// For kill and freeze: kills this process, or stops it for order.for_ns (a child process, which dies with it, wakes it
// up again). Also returns when somebody else wakes it.
void CarryOutOnThisProcess(const FaultOrder& order);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_FAULT_ACTIVE_FAULTS_H_
