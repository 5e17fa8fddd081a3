// When the faults of a scenario happen, and to whom: the same times and targets on the simulator and on real processes.
#ifndef WUKONG_RUNTIME_FAULT_FAULT_SCHEDULE_H_
#define WUKONG_RUNTIME_FAULT_FAULT_SCHEDULE_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/scenario.pb.h"
#include "runtime/base/random.h"

namespace wukong {

// What a target names in a scenario: the root (region -1), or in a region its aggregator (worker -1) or a worker.
struct FaultTarget {
  int region = -1;
  int worker = -1;
  bool root() const { return region < 0; }
  friend bool operator==(const FaultTarget& a, const FaultTarget& b) {
    return a.region == b.region && a.worker == b.worker;
  }
};
// INVALID_ARGUMENT says why `text` names nothing.
absl::StatusOr<std::vector<FaultTarget>> ResolveTarget(const Scenario& scenario, const std::string& text);
// "root", "beijing", "beijing/worker-1"
std::string TargetName(const Scenario& scenario, const FaultTarget& target);
// "kill"
std::string FaultName(FaultKind kind);

// Pure. Every fault draws from a random stream of its own, so that one more leaves the others as they were.
class FaultSchedule {
 public:
  // `scenario` is checked, and outlives this.
  FaultSchedule(const Scenario& scenario, uint64_t seed);

  struct Act {
    size_t number = 0;  // In the timeline.
    FaultTarget target;
    bool begins = true;  // False: what has a time is over.
  };
  // When something happens next, since the run began; infinite when nothing is planned.
  absl::Duration next() const { return acts_.empty() ? absl::InfiniteDuration() : acts_.begin()->first; }
  const std::vector<FaultTarget>& targets(size_t number) const { return targets_[number]; }
  // What happens up to `now`, in order.
  std::vector<Act> Take(absl::Duration now);
  // A fault that waits for an event of the protocol (`on`) happens now; what it does is for Take. Not after Heal.
  void Trigger(size_t number, absl::Duration now);
  // No fault begins any more, and what lasts ends now.
  void Heal(absl::Duration now);

 private:
  struct Planned {
    Act act;
    bool random = false;  // A target is to be drawn, and the next time.
  };
  void PlanRandom(size_t number, absl::Duration now);
  void Begin(size_t number, const FaultTarget& target, absl::Duration now, std::vector<Act>* acts);

  const Scenario& scenario_;
  std::vector<std::vector<FaultTarget>> targets_;  // Of each fault.
  std::vector<Random> random_;
  std::multimap<absl::Duration, Planned> acts_;
  bool healed_ = false;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_FAULT_FAULT_SCHEDULE_H_
