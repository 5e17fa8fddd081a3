// A worker in the simulator, as worker/leaf.h has it in production: the same schedule and replica, a trainer that takes
// virtual time.
#ifndef WUKONG_RUNTIME_SIM_SIM_WORKER_H_
#define WUKONG_RUNTIME_SIM_SIM_WORKER_H_

#include <memory>
#include <string>
#include <vector>

#include "runtime/fault/active_faults.h"
#include "runtime/sim/sim_aggregator.h"
#include "runtime/sync/leaf_schedule.h"
#include "runtime/sync/wait_account.h"

namespace wukong {

class SimWorker final : public SimProcess {
 public:
  // Contributions that were sent damaged.
  struct Damaged {
    int64_t nan = 0;
    int64_t scaled = 0;
  };

  SimWorker(SimWorld* world, const Workload& workload, SimCoordinator* root, SimAggregator* aggregator,
            const ParameterLayout& layout, std::string name, double speed);
  ~SimWorker() override;

  // From now on, in this life and later ones.
  void SetDamage(const Damage& damage) { damage_ = damage; }
  const Damaged& damaged() const { return damaged_; }
  int64_t samples_trained() const { return samples_trained_; }
  double compute_seconds() const { return compute_seconds_; }
  // Since the first step of each life.
  double wall_seconds() const;
  const WaitAccount& waits() const { return waits_; }
  bool finished() const { return finished_; }

 private:
  struct Life;
  void Soon(int64_t tag) const override;
  void VerySoon(int64_t tag) const override;
  absl::Span<const char> memory() const override;
  void Begin() override;
  void End() override;
  void Joined(const JoinReply& reply);
  void Fill(HeartbeatRequest* request);
  void TakeReply(const HeartbeatReply& reply);
  void FollowParent(MemberKey parent);
  // Does what the schedule says until it waits or trains.
  void Turn();
  void TurnSoon();
  void Train(const LeafSchedule::Train& train);
  void StepDone(const LeafSchedule::Train& train, absl::Duration time);
  void Contribute(const LeafSchedule::Contribute& contribute);
  void Rebase();
  void TakeAnswers();
  void Decide(const LeafSchedule::Decision& decision);
  void ThrowProgressAway();
  void Release(const std::vector<LeasedRange>& ranges);
  void TellHeartbeat(bool idle);
  void Die(const absl::Status& status);

  SimWorld* const world_;
  const Workload workload_;
  SimCoordinator* const root_;
  SimAggregator* const aggregator_;
  const ParameterLayout& layout_;
  const double speed_;
  Damage damage_;
  Damaged damaged_;
  int64_t samples_trained_ = 0;
  double compute_seconds_ = 0;
  double wall_of_earlier_lives_ = 0;
  WaitAccount waits_;  // As wall_seconds.
  bool finished_ = false;
  Random step_random_;
  std::unique_ptr<Life> life_state_;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_SIM_WORKER_H_
