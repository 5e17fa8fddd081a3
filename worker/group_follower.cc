#include "worker/group_follower.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "glog/logging.h"
#include "runtime/base/clock.h"
#include "runtime/base/restart.h"
#include "worker/mailbox.h"
#include "worker/region_group.h"
#include "worker/training_step.h"

namespace wukong {
namespace {

class GroupFollower {
 public:
  GroupFollower(const Job& job, const Region& region, int rank, Trainer* trainer, const SampleReader* reader,
                const Session* session)
      : trainer_(trainer),
        reader_(reader),
        session_(session),
        step_({job.optimizer().micro_batch(), job.strategy().progress() == PROGRESS_GRADIENT,
               EmulatedSpeed(region, rank)},
              trainer, reader, [this](absl::Duration time) { mail_.WaitUntilOver(time); }) {
    MutexLock lock(mail_.mutex);
    mail_.idle = true;  // No quorum waits for it.
  }

  Mailbox* mail() { return &mail_; }

  // Obeys until the group ends.
  absl::Status Run(RegionGroup* group) {
    step_.set_group(group);
    joined_at_ = clock_.Now();
    while (true) {
      const absl::StatusOr<GroupOrder> order = group->NextOrder();
      if (!order.ok()) return order.status();
      absl::Status status;
      switch (order->kind()) {
        case GroupOrder::KIND_TRAIN:
          status = Train(*order);
          break;
        case GroupOrder::KIND_PARAMETERS:
          status = group->ShareParameters(trainer_);
          break;
        case GroupOrder::KIND_WAIT:
          status = group->AskWhoLeaves();
          break;
        case GroupOrder::KIND_FINISH:
          group->Part();
          if (order->failure().empty()) return absl::OkStatus();
          return RestartSafe(absl::AbortedError(absl::StrFormat("rank 0 of the group left: %s", order->failure())));
        default:
          return absl::InternalError(absl::StrFormat("rank 0 gave an unknown order %d", order->kind()));
      }
      if (!status.ok()) return status;
    }
  }

 private:
  absl::Status Train(const GroupOrder& order) {
    const absl::Time begin = clock_.Now();
    if (first_data_ == absl::InfiniteFuture()) first_data_ = last_step_end_ = begin;
    std::vector<LeasedRange> samples;
    for (const SampleRange& range : order.samples()) samples.push_back(RangeFromProto(range));
    step_.set_slowness(session_->damage().slow);
    const absl::StatusOr<TrainingStep::Result> result = step_.Run(samples, order.learning_rate());
    if (!result.ok()) return result.status();
    if (!result->finite) {
      trainer_->ZeroGradient();  // Rank 0 sends parameters before the next step.
      return absl::OkStatus();
    }
    const absl::Time finished = clock_.Now();
    const int64_t tokens = result->samples * reader_->context();
    StepRecord record;
    record.set_time_seconds(absl::ToDoubleSeconds(finished - joined_at_));
    record.set_step(++steps_);
    record.set_tokens(tokens);
    record.set_loss(result->loss);
    record.set_compute_seconds(result->compute_seconds);
    record.set_wait_seconds(std::max(0.0, absl::ToDoubleSeconds(finished - last_step_end_) - result->compute_seconds));
    record.set_root_base_version(order.root_base_version());
    record.set_learning_rate(order.learning_rate());
    record.set_gradient_norm(result->gradient_norm);
    last_step_end_ = finished;
    MutexLock lock(mail_.mutex);
    mail_.usage.set_wall_seconds(absl::ToDoubleSeconds(finished - first_data_));
    mail_.usage.set_compute_seconds(mail_.usage.compute_seconds() + result->compute_seconds);
    mail_.usage.set_tokens_computed(mail_.usage.tokens_computed() + tokens);
    mail_.steps.push_back(std::move(record));
    return absl::OkStatus();
  }

  const RealClock clock_;
  Mailbox mail_;
  Trainer* const trainer_;
  const SampleReader* const reader_;
  const Session* const session_;
  TrainingStep step_;
  absl::Time joined_at_;
  absl::Time first_data_ = absl::InfiniteFuture();
  absl::Time last_step_end_;
  int64_t steps_ = 0;
};

}  // namespace

absl::Status RunGroupFollower(const Job& job, const Region& region, const JoinReply& joined, Trainer* trainer,
                              const SampleReader* reader, Session* session, const StopSignal& stop) {
  GroupFollower follower(job, region, joined.rank(), trainer, reader, session);
  Mailbox* const mail = follower.mail();
  Session::Callbacks callbacks;
  callbacks.fill = [mail](HeartbeatRequest* request) { mail->Fill(request); };
  callbacks.on_reply = [mail, session](const HeartbeatReply& reply) {
    mail->TakeReply(reply);
    MutexLock lock(mail->mutex);
    mail->replies.clear();  // What is granted and asked for concerns rank 0, but for this:
    if (!reply.assert_holdings()) return;
    mail->holdings.emplace().set_term(reply.term());
    session->Kick();
  };
  callbacks.on_lost = [mail](const absl::Status& status) { mail->End(status); };
  session->StartHeartbeats({MemberId(joined.member()), Incarnation(joined.incarnation())},
                           absl::Nanoseconds(job.limits().heartbeat_ns()), CoordinatorPatience(job.limits()),
                           std::move(callbacks));
  absl::StatusOr<std::unique_ptr<RegionGroup>> group = FormRegionGroup(job, region, joined, mail, &stop);
  absl::Status outcome = group.ok() ? follower.Run(group->get()) : group.status();
  if (absl::IsCancelled(outcome)) outcome = absl::OkStatus();  // Before there was a group.
  {
    MutexLock lock(mail->mutex);
    // How the run ended says more than what followed from it.
    if (mail->over) outcome = mail->outcome;
  }
  session->StopHeartbeats(absl::Seconds(1));
  return outcome;
}

}  // namespace wukong
