#include "worker/leaf.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "glog/logging.h"
#include "runtime/base/random.h"
#include "runtime/base/restart.h"
#include "runtime/model/job_layout.h"
#include "runtime/sync/learning_rate.h"
#include "runtime/sync/node_options.h"
#include "runtime/sync/presets.h"
#include "worker/contribution_fault.h"

namespace wukong {
namespace {

constexpr absl::Duration kLeaveTimeout = absl::Seconds(10);  // For the last contribution of a worker that is stopped.
constexpr absl::Duration kWarnWhenAway = absl::Seconds(5);   // And again after as long.
// Of data in hand at least: longer than a coordinator that died takes to come back.
constexpr absl::Duration kPrefetch = absl::Seconds(4);

}  // namespace

Leaf::Leaf(const Job& job, const Region& region, const JoinReply& joined, int group_size,
           std::unique_ptr<Trainer> trainer, SampleReader reader, Session* session, const StopSignal* stop)
    : job_(job),
      region_(region),
      group_size_(group_size),
      stop_(stop),
      session_(session),
      trainer_(std::move(trainer)),
      reader_(std::move(reader)),
      gradient_progress_(job.strategy().progress() == PROGRESS_GRADIENT),
      step_({job.optimizer().micro_batch(), gradient_progress_, EmulatedSpeed(region, joined.rank())}, trainer_.get(),
            &reader_, [this](absl::Duration time) { mail_.WaitUntilOver(time); }),
      schedule_(LeafOptionsOf(job, group_size, kPrefetch)),
      replica_(trainer_->parameters(), Fragments(),
               ReplicaOptionsOf(job, /*parent_is_root=*/false, RegionLeaves(region))),
      parent_(LinkOptions(joined), &mail_) {
  schedule_.ExpectSpeed(joined.samples_per_second() * group_size);
  FollowParent({MemberId(joined.parent_member()), Incarnation(joined.parent_incarnation())}, joined.parent_address());
}

std::vector<FragmentSpan> Leaf::Fragments() const { return FragmentsOf(job_, trainer_->layout().size()); }

ParentLink::Options Leaf::LinkOptions(const JoinReply& joined) const {
  ParentLink::Options options;
  options.parent_name = "aggregator";
  options.self = {MemberId(joined.member()), Incarnation(joined.incarnation())};
  options.schema_digest = trainer_->layout().schema_digest();
  options.fragments = Fragments();
  options.versions_ahead = VersionsAhead(/*parent_is_root=*/false, options.fragments);
  options.rpc_timeout = absl::Nanoseconds(job_.limits().rpc_ns());
  options.seed = DeriveSeed(job_.seed(), "worker", static_cast<uint64_t>(joined.member()));
  return options;
}

double Leaf::NextLearningRate(int64_t tokens) {
  const FollowedParameters::Snapshot snapshot = parent_.snapshot();
  if (snapshot.tokens_committed > heard_tokens_) {
    heard_tokens_ = snapshot.tokens_committed;
    own_tokens_ = 0;
  }
  own_tokens_ += tokens;
  // What the root has not heard of yet is estimated by our own work times the number of workers.
  int64_t workers = 0;
  for (const Region& region : job_.regions()) workers += region.workers();
  rate_tokens_ = std::max(rate_tokens_, heard_tokens_ + own_tokens_ * workers / group_size_);
  return LearningRate(job_.optimizer(), job_.stop().tokens(), rate_tokens_);
}

absl::Status Leaf::Train(const LeafSchedule::Train& train) {
  const absl::Time begin = clock_.Now();
  int64_t step_samples = 0;
  for (const LeasedRange& range : train.samples) step_samples += range.size();
  const double rate = NextLearningRate(step_samples * reader_.context());
  if (group_ != nullptr) {
    GroupOrder order;
    if (!group_has_parameters_) {
      order.set_kind(GroupOrder::KIND_PARAMETERS);
      absl::Status status = group_->Announce(order);
      if (status.ok()) status = group_->ShareParameters(trainer_.get());
      if (!status.ok()) return status;
      group_has_parameters_ = true;
    }
    order.set_kind(GroupOrder::KIND_TRAIN);
    for (const LeasedRange& range : train.samples) *order.add_samples() = RangeToProto(range);
    order.set_learning_rate(rate);
    order.set_root_base_version(schedule_.base_root_version().value());
    if (absl::Status status = group_->Announce(order); !status.ok()) return status;
  }
  step_.set_slowness(session_->damage().slow);
  const absl::StatusOr<TrainingStep::Result> result = step_.Run(train.samples, rate);
  if (!result.ok()) return result.status();
  if (!result->finite) {
    LOG(WARNING) << "the loss or its gradient is not finite; the step and its progress are thrown away";
    ThrowProgressAway();
    if (!schedule_.StepLost()) return absl::OkStatus();
    return absl::OutOfRangeError(
        "diverged: loss or gradient were not finite three times, without a contribution between");
  }
  const absl::Time finished = clock_.Now();
  // A group is as fast as all of the step: its slowest rank and the network between them.
  schedule_.StepDone(group_ == nullptr ? result->compute_seconds : absl::ToDoubleSeconds(finished - begin));
  compute_seconds_ += result->compute_seconds;
  tokens_ += result->samples * reader_.context();
  StepRecord record;
  record.set_time_seconds(absl::ToDoubleSeconds(finished - joined_at_));
  record.set_step(++steps_);
  record.set_tokens(result->samples * reader_.context());
  record.set_loss(result->loss);
  record.set_compute_seconds(result->compute_seconds);
  record.set_wait_seconds(std::max(0.0, absl::ToDoubleSeconds(finished - last_step_end_) - result->compute_seconds));
  record.set_root_base_version(schedule_.base_root_version().value());
  record.set_learning_rate(rate);
  record.set_gradient_norm(result->gradient_norm);
  last_step_end_ = finished;
  MutexLock lock(mail_.mutex);
  mail_.steps.push_back(std::move(record));
  return absl::OkStatus();
}

void Leaf::WarnOfAnAbsentParent() {
  const absl::Duration away = parent_.away();
  if (away < kWarnWhenAway) warned_away_ = absl::ZeroDuration();
  if (away < warned_away_ + kWarnWhenAway) return;
  warned_away_ = away;
  LOG(WARNING) << "the aggregator of " << region_.name() << " at " << parent_.address() << " cannot be reached for "
               << absl::FormatDuration(absl::Floor(away, absl::Seconds(1)))
               << ": is that its address? The coordinator has it from the aggregator (wukong aggregator --advertise)";
}

absl::Status Leaf::Contribute(const LeafSchedule::Contribute& contribute) {
  absl::Status pulled = gradient_progress_ ? trainer_->PullGradient() : trainer_->PullParameters();
  if (!pulled.ok()) return pulled;
  const auto encode = [&](const Replica::Begun& begun) {
    return replica_.Send(contribute.manifest.sequence,
                         gradient_progress_ ? trainer_->gradient() : absl::Span<const float>(), contribute.whole,
                         begun);
  };
  absl::Status sent;
  if (const Spoil spoil = NextSpoil(Fragments(), session_->damage()); spoil == nullptr) {
    sent = parent_.Send(contribute.manifest, encode);
  } else {
    const auto payload = encode(nullptr);
    if (payload.ok()) parent_.Send(contribute.manifest, spoil(**payload));
    sent = payload.status();
  }
  if (!sent.ok()) {
    return absl::OutOfRangeError(absl::StrCat("diverged: the progress is not finite: ", sent.message()));
  }
  if (gradient_progress_) trainer_->ZeroGradient();
  return absl::OkStatus();
}

absl::Status Leaf::Rebase() {
  absl::Status status = trainer_->PullParameters();
  if (!status.ok()) return status;
  LeafSchedule::ParentState state;
  parent_.With([&](absl::Span<const float> values, const FollowedParameters::Snapshot& snapshot) {
    state = ParentStateOf(snapshot);
    const absl::StatusOr<bool> moved = replica_.Rebase(values, snapshot.included);
    if (moved.ok() && *moved) group_has_parameters_ = false;
    status = moved.status();
  });
  if (!status.ok()) return status;
  schedule_.VersionArrived(state);
  if (state.version.value() == 0) return absl::OkStatus();  // Being fetched anew.
  schedule_.Rebased(state);
  return trainer_->PushParameters();
}

absl::Status Leaf::Prepare(const JoinReply& joined) {
  if (group_size_ > 1) {
    absl::StatusOr<std::unique_ptr<RegionGroup>> group = FormRegionGroup(job_, region_, joined, &mail_, stop_);
    if (!group.ok()) return group.status();
    group_ = *std::move(group);
    step_.set_group(group_.get());
  }
  // The first parameters replace what the model was initialised with.
  absl::Time begin = clock_.Now();
  int64_t link = parent_.link_number();
  while (true) {
    const bool ready = parent_.With([&](absl::Span<const float> values, const FollowedParameters::Snapshot& snapshot) {
      replica_.Reset(values);
      const LeafSchedule::ParentState state = ParentStateOf(snapshot);
      schedule_.VersionArrived(state);
      schedule_.Rebased(state);
    });
    if (ready) return trainer_->PushParameters();
    if (stop_->received() != 0) return absl::CancelledError("stopped by a signal");
    if (absl::Status status = KeepGroup(); !status.ok()) return status;
    WarnOfAnAbsentParent();
    if (!TakeMail(absl::Milliseconds(100))) return absl::CancelledError("the run is over");
    if (link != parent_.link_number()) {
      link = parent_.link_number();
      begin = clock_.Now();
    }
    if (clock_.Now() - begin > absl::Nanoseconds(job_.limits().start_ns())) {
      return absl::UnavailableError(absl::StrCat("no parameters came from the aggregator of ", region_.name(),
                                                 " within limits.start; is it running and reachable?"));
    }
  }
}

absl::Status Leaf::KeepGroup() {
  if (group_ == nullptr || clock_.Now() - group_->last_order() < absl::Nanoseconds(job_.limits().heartbeat_ns())) {
    return absl::OkStatus();
  }
  GroupOrder order;
  order.set_kind(GroupOrder::KIND_WAIT);
  const absl::Status status = group_->Announce(order);
  return status.ok() ? group_->AskWhoLeaves() : status;
}

void Leaf::EndGroup(const absl::Status& outcome) {
  if (group_ == nullptr) return;
  if (group_->broken()) {
    // Nothing of this is contributed any more: others can begin with it at once.
    ReleaseRanges(schedule_.StopTraining());
    ReleaseRanges(schedule_.ProgressLost());
    return;
  }
  GroupOrder order;
  order.set_kind(GroupOrder::KIND_FINISH);
  order.set_failure(std::string(outcome.message()));
  // Who does not hear of it learns from the coordinator.
  if (const absl::Status status = group_->Announce(order); !status.ok()) {
    LOG(WARNING) << status;
  } else {
    group_->Part();
  }
}

void Leaf::AccountWait(std::optional<WaitReason> reason) {
  if (first_data_ == absl::InfiniteFuture()) return;
  if (reason.has_value()) {
    waits_.Waits(*reason, clock_.Now());
  } else {
    waits_.Works(clock_.Now());
  }
}

absl::Status Leaf::TrainUntilOver() {
  absl::Status outcome;
  absl::Time leave_by = absl::InfiniteFuture();
  while (outcome.ok()) {
    if (!leaving_ && (stop_->received() != 0 || (group_ != nullptr && group_->somebody_leaves()))) {
      LOG(INFO) << "leaving: what was trained is contributed, the rest given back";
      leaving_ = true;
      leave_by = clock_.Now() + kLeaveTimeout;
      ReleaseRanges(schedule_.StopTraining());
    }
    const LeafSchedule::Action action = schedule_.Next();
    const auto* wait = std::get_if<LeafSchedule::Wait>(&action);
    const bool idle = wait != nullptr && wait->idle;
    if (leaving_ && idle) break;
    WarnOfAnAbsentParent();
    // A coordinator that is there would have said by now that the aggregator is not. Others could train on what is
    // leased here and goes nowhere.
    if (parent_.away() > 2 * absl::Nanoseconds(job_.limits().start_ns())) {
      ReleaseRanges(schedule_.StopTraining());
      ReleaseRanges(schedule_.ProgressLost());
      return RestartSafe(absl::UnavailableError(
          absl::StrFormat("the aggregator of %s has not been reachable from here for twice limits.start, and is the "
                          "region's: is the way to it open?",
                          region_.name())));
    }
    if (clock_.Now() > leave_by) {
      ReleaseRanges(schedule_.StopTraining());
      ReleaseRanges(schedule_.ProgressLost());
      return RestartSafe(absl::CancelledError(absl::StrFormat(
          "preempted: what was trained could not be contributed within %s of the signal to stop, and others train on "
          "it again",
          absl::FormatDuration(kLeaveTimeout))));
    }
    const bool rebases = std::holds_alternative<LeafSchedule::Rebase>(action);
    if (!rebases) waits_for_data_ = wait != nullptr && wait->for_data();
    AccountWait(wait != nullptr ? std::optional(wait->reason) : std::nullopt);
    if (const auto* train = std::get_if<LeafSchedule::Train>(&action)) {
      outcome = Train(*train);
    } else if (const auto* contribute = std::get_if<LeafSchedule::Contribute>(&action)) {
      outcome = Contribute(*contribute);
    } else if (rebases) {
      outcome = Rebase();
    } else {
      outcome = KeepGroup();
    }
    if (!outcome.ok() || !TakeMail(absl::ZeroDuration())) break;
    TellHeartbeat(idle && schedule_.untrained_samples() == 0);
    if (wait != nullptr && !TakeMail(absl::Milliseconds(50))) break;
  }
  return outcome;
}

absl::Status Leaf::Run(const JoinReply& joined) {
  const MemberKey self{MemberId(joined.member()), Incarnation(joined.incarnation())};
  joined_at_ = last_step_end_ = clock_.Now();
  session_->StartHeartbeats(self, absl::Nanoseconds(job_.limits().heartbeat_ns()), CoordinatorPatience(job_.limits()),
                            HeartbeatCallbacks());
  absl::Status outcome = Prepare(joined);
  if (outcome.ok()) {
    TellHeartbeat(/*idle=*/false);
    outcome = TrainUntilOver();
  } else if (absl::IsCancelled(outcome)) {
    outcome = absl::OkStatus();
  }
  {
    // How the run ended says more than what followed from it.
    MutexLock lock(mail_.mutex);
    if (mail_.over && (outcome.ok() || (group_ != nullptr && group_->broken()))) outcome = mail_.outcome;
  }
  EndGroup(outcome);
  TellHeartbeat(/*idle=*/true);
  if (leaving_ && group_ == nullptr) {
    MutexLock lock(mail_.mutex);
    mail_.leaving = true;
  }
  session_->StopHeartbeats(absl::Seconds(1));
  parent_.Detach();
  return outcome;
}

}  // namespace wukong
