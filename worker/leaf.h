// A leaf of the tree in its process: trains, contributes, takes newer parameters, and keeps on when its aggregator or
// the coordinator is away.
#ifndef WUKONG_WORKER_LEAF_H_
#define WUKONG_WORKER_LEAF_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/job.pb.h"
#include "proto/wire.pb.h"
#include "runtime/base/clock.h"
#include "runtime/base/stop_signal.h"
#include "runtime/data/token_dataset.h"
#include "runtime/model/trainer.h"
#include "runtime/sync/leaf_schedule.h"
#include "runtime/sync/replica.h"
#include "runtime/sync/wait_account.h"
#include "worker/attachment.h"
#include "worker/mailbox.h"
#include "worker/region_group.h"
#include "worker/session.h"
#include "worker/training_step.h"

namespace wukong {

class Leaf {
 public:
  // `group_size` > 1: this leaf leads its region's group. `session` and `stop` outlive it.
  Leaf(const Job& job, const Region& region, const JoinReply& joined, int group_size, std::unique_ptr<Trainer> trainer,
       SampleReader reader, Session* session, const StopSignal* stop);

  // As RunWorker (worker/worker.h), once the process is a member.
  absl::Status Run(const JoinReply& joined);

 private:
  std::vector<FragmentSpan> Fragments() const;
  ParentLink::Options LinkOptions(const JoinReply& joined) const;
  Session::Callbacks HeartbeatCallbacks();

  // Takes what came from the other threads into the schedule. False when the run is over for this worker.
  bool TakeMail(absl::Duration wait);
  void TakeAnswer(Sequence sequence, Verdict verdict);
  void TakeReply(const Mailbox::Reply& reply);
  // Says what this worker holds when the coordinator `asks`, or the last word on that has not gone yet and is old.
  void SayHoldings(bool asks);
  void TellHeartbeat(bool idle);
  void ReleaseRanges(const std::vector<LeasedRange>& ranges);

  // The coordinator names the aggregator; where it is another one, or none, the one before it is fenced.
  void FollowParent(MemberKey parent, const std::string& address);
  void Decide(const LeafSchedule::Decision& decision);
  // Runs `change`, which moves theta.
  void ChangeTheta(const std::function<absl::Status()>& change);
  void ThrowProgressAway();

  // The learning rate of a step of `tokens`, by the committed tokens and what is likely to come to them.
  double NextLearningRate(int64_t tokens);
  absl::Status Train(const LeafSchedule::Train& train);
  // To whoever reads the log, now and then while the aggregator is not reached.
  void WarnOfAnAbsentParent();
  absl::Status Contribute(const LeafSchedule::Contribute& contribute);
  absl::Status Rebase();
  // Until there are parameters to begin with, and the group is formed.
  absl::Status Prepare(const JoinReply& joined);
  absl::Status TrainUntilOver();
  void AccountWait(std::optional<WaitReason> reason);
  // While there is nothing to train: the others hear of this rank, and this rank of who wants to leave.
  absl::Status KeepGroup();
  void EndGroup(const absl::Status& outcome);

  const Job job_;
  const Region region_;
  const int group_size_;
  const RealClock clock_;
  const StopSignal* const stop_;
  Session* const session_;
  Mailbox mail_;

  // The training thread's.
  const std::unique_ptr<Trainer> trainer_;
  const SampleReader reader_;
  const bool gradient_progress_;
  TrainingStep step_;
  LeafSchedule schedule_;
  Replica replica_;
  absl::Time joined_at_;
  absl::Time first_data_ = absl::InfiniteFuture();
  absl::Time last_step_end_;
  int64_t steps_ = 0;
  int64_t tokens_ = 0;
  double compute_seconds_ = 0;
  bool waits_for_data_ = false;
  WaitAccount waits_;        // Since the first data came.
  int64_t rate_tokens_ = 0;  // The learning-rate schedule's clock; only rises.
  int64_t own_tokens_ = 0;   // Trained since the clock last heard from the root.
  int64_t heard_tokens_ = 0;
  bool leaving_ = false;
  absl::Duration warned_away_;  // How long the aggregator had been away.
  std::unique_ptr<RegionGroup> group_;
  bool group_has_parameters_ = false;  // The others hold what this rank holds.
  int64_t term_ = 0;                   // The coordinator's, as it last said.

  Attachment parent_;  // Last: its threads use the mailbox.
};

}  // namespace wukong

#endif  // WUKONG_WORKER_LEAF_H_
