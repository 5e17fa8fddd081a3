// The faults of a scenario, brought about on simulated processes, links and disks.
#ifndef WUKONG_RUNTIME_SIM_TIMELINE_H_
#define WUKONG_RUNTIME_SIM_TIMELINE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/scenario.pb.h"
#include "runtime/base/random.h"
#include "runtime/sim/sim_aggregator.h"
#include "runtime/sim/sim_coordinator.h"
#include "runtime/sim/sim_worker.h"

namespace wukong {

// Everybody in a simulation.
struct SimCast {
  SimCoordinator* root = nullptr;
  std::vector<SimAggregator*> aggregators;       // By region.
  std::vector<std::vector<SimWorker*>> workers;  // By region.
};

// What a target names in a scenario: the root (region -1), or in a region its aggregator (worker -1) or a worker.
struct FaultTarget {
  int region = -1;
  int worker = -1;
  bool root() const { return region < 0; }
};
// INVALID_ARGUMENT says why `text` names nothing.
absl::StatusOr<std::vector<FaultTarget>> ResolveTarget(const Scenario& scenario, const std::string& text);

// Who is whole again at the end of a scenario: beside the root, by region its aggregator and link, and its workers. At
// least one region with one worker.
struct SimCore {
  std::vector<bool> regions;
  std::vector<std::vector<bool>> workers;  // Of regions that are in it.
};
SimCore DrawCore(const Scenario& scenario, Random* random);

class Timeline {
 public:
  // All outlive it. Nothing happens before Begin.
  Timeline(const Scenario& scenario, uint64_t seed, SimWorld* world, const SimCast& cast);

  void Begin();
  // No fault begins from now on, and those that last end.
  void Heal();
  // After Heal: who is not in the core is from now on dead, frozen or cut off from the root, for good. Returns those
  // that are dead, who are not to be started again.
  std::set<const SimProcess*> LeaveOut(const SimCore& core, Random* random);
  // How often each fault of the timeline came to pass.
  std::vector<int64_t> Observed() const;

 private:
  struct Active {  // What a link suffers from, by the number of the fault.
    const Fault* fault = nullptr;
    bool up = false, down = false;
  };
  void PlanRandom(size_t number);
  void Happen(size_t number);
  void Strike(size_t number, const FaultTarget& target);
  void End(size_t number, const FaultTarget& target);
  void ReshapeLinks(int region);
  SimProcess* ProcessOf(const FaultTarget& target) const;
  std::string NameOf(const FaultTarget& target) const;

  const Scenario& scenario_;
  SimWorld* const world_;
  const SimCast cast_;
  std::vector<std::vector<FaultTarget>> targets_;  // Of each fault.
  std::vector<Random> random_;                     // Of each fault, so that another fault does not change it.
  std::vector<int64_t> observed_;
  std::vector<LinkShape> up_, down_;                    // Of the links without faults.
  std::vector<std::multimap<size_t, Active>> on_link_;  // By region.
  std::multimap<size_t, FaultTarget> lasting_;
  std::vector<bool> fired_on_place_;
  bool healed_ = false;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_TIMELINE_H_
