// The faults of a scenario, brought about on simulated processes, links and disks.
#ifndef WUKONG_RUNTIME_SIM_TIMELINE_H_
#define WUKONG_RUNTIME_SIM_TIMELINE_H_

#include <cstdint>
#include <memory>
#include <optional>
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
  // For good.
  struct LeftBehind {
    std::set<const SimProcess*> dead;    // Not to be started again.
    std::set<const SimProcess*> frozen;  // Those that are dead now: when they have been started again.
  };
  // After Heal.
  LeftBehind LeaveOut(const std::vector<LeftOut>& left_out);
  // How often each fault of the timeline came to pass.
  std::vector<int64_t> Observed() const;

 private:
  // Does what is due, and comes back for what is next.
  void Act();
  void Strike(size_t number, const FaultTarget& target);
  void End(size_t number, const FaultTarget& target);
  // What the faults of this kind that last make of the target.
  void Carry(FaultKind kind, const FaultTarget& target);
  Damage DamageOf(const FaultTarget& target) const;
  void ReshapeLinks(int region);
  // Of what such a fault does there now and then, how often it was done so far, by whichever fault; none for kinds that
  // come to pass when they begin.
  std::optional<int64_t> Effects(FaultKind kind, const FaultTarget& target) const;
  SimProcess* ProcessOf(const FaultTarget& target) const;
  std::string NameOf(const FaultTarget& target) const;

  const Scenario& scenario_;
  SimWorld* const world_;
  const SimCast cast_;
  FaultSchedule schedule_;
  absl::Duration planned_ = absl::InfiniteDuration();  // When Act is called next.
  std::vector<int64_t> observed_;                      // Without what is still lasting.
  std::vector<LinkShape> up_, down_;                   // Of the links without faults.
  std::vector<LinkFaults> links_;                      // By region.
  struct Lasting {
    size_t number = 0;
    FaultTarget target;
    std::optional<int64_t> life;  // Of the target then; none where it was dead.
    int64_t effects = 0;          // By then.
  };
  std::vector<Lasting> lasting_;  // In the order in which they began.
  std::vector<bool> fired_on_place_;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_TIMELINE_H_
