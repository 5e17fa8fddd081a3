// How a scenario with `quiesce` ends: who is whole again, and what has become of everybody else. Pure, and the same for
// one seed on the simulator and on real processes.
#ifndef WUKONG_RUNTIME_FAULT_QUIESCE_H_
#define WUKONG_RUNTIME_FAULT_QUIESCE_H_

#include <string>
#include <vector>

#include "proto/scenario.pb.h"
#include "runtime/base/random.h"
#include "runtime/fault/fault_schedule.h"

namespace wukong {

// Beside the root, by region its aggregator and link, and its workers. At least one region with one worker.
struct Core {
  std::vector<bool> regions;
  std::vector<std::vector<bool>> workers;  // Of regions that are in it.
};
Core DrawCore(const Scenario& scenario, Random* random);

// Somebody who is not in the core, for good.
struct LeftOut {
  enum class How { kDead, kFrozen, kCutOff };
  FaultTarget target;  // kCutOff: a region, with all that is in it.
  How how = How::kDead;
};
std::vector<LeftOut> DrawLeftOut(const Scenario& scenario, uint64_t seed);
// "dead", "frozen", "cut off"
std::string HowName(LeftOut::How how);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_FAULT_QUIESCE_H_
