// The faults of a scenario, brought about on simulated processes, links and disks.
#ifndef WUKONG_RUNTIME_SIM_TIMELINE_H_
#define WUKONG_RUNTIME_SIM_TIMELINE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "proto/scenario.pb.h"
#include "runtime/fault/fault_schedule.h"
#include "runtime/fault/link_faults.h"
#include "runtime/fault/quiesce.h"
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

class Timeline {
 public:
  // All outlive it. Nothing happens before Begin.
  Timeline(const Scenario& scenario, uint64_t seed, SimWorld* world, const SimCast& cast);

  void Begin();
  // No fault begins from now on, and those that last end.
  void Heal();
  // After Heal. Returns those that are dead, who are not to be started again.
  std::set<const SimProcess*> LeaveOut(const std::vector<LeftOut>& left_out);
  // How often each fault of the timeline came to pass.
  std::vector<int64_t> Observed() const;

 private:
  // Does what is due, and comes back for what is next.
  void Act();
  void Strike(size_t number, const FaultTarget& target);
  void End(size_t number, const FaultTarget& target);
  void ReshapeLinks(int region);
  SimProcess* ProcessOf(const FaultTarget& target) const;
  std::string NameOf(const FaultTarget& target) const;

  const Scenario& scenario_;
  SimWorld* const world_;
  const SimCast cast_;
  FaultSchedule schedule_;
  absl::Duration planned_ = absl::InfiniteDuration();  // When Act is called next.
  std::vector<int64_t> observed_;
  std::vector<LinkShape> up_, down_;  // Of the links without faults.
  std::vector<LinkFaults> links_;     // By region.
  std::multimap<size_t, FaultTarget> lasting_;
  std::vector<bool> fired_on_place_;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_TIMELINE_H_
