#include "worker/worker.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "glog/logging.h"
#include "runtime/base/clock.h"
#include "runtime/base/random.h"
#include "runtime/data/token_dataset.h"
#include "runtime/model/trainer.h"
#include "runtime/sync/leaf_schedule.h"
#include "runtime/sync/learning_rate.h"
#include "runtime/sync/replica.h"
#include "runtime/transport/parent_link.h"
#include "worker/group_follower.h"
#include "worker/mailbox.h"
#include "worker/region_group.h"
#include "worker/session.h"
#include "worker/training_step.h"

namespace wukong {
namespace {

constexpr absl::Duration kLeaveTimeout = absl::Seconds(10);  // For the last contribution of a worker that is stopped.

class Worker {
 public:
  // `group_size` > 1: this worker leads its region's group.
  Worker(const Job& job, const Region& region, const JoinReply& joined, int group_size,
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
        schedule_(ScheduleOptions(job, group_size)),
        replica_(trainer_->parameters(), Fragments(), ReplicaOptions(job)),
        link_(LinkOptions(joined), LinkCallbacks()) {}

  absl::Status Run(const JoinReply& joined);

 private:
  static LeafSchedule::Options ScheduleOptions(const Job& job, int group_size) {
    LeafSchedule::Options options;
    options.inner_steps = job.strategy().inner_steps();
    options.scale_steps_by_speed = job.strategy().step_scaling() == STEP_SCALING_SPEED;
    options.waits = job.strategy().in_flight() == IN_FLIGHT_WAIT;
    options.in_flight_max = job.strategy().in_flight_max();
    options.step_samples = int64_t{job.optimizer().micro_batch()} * job.optimizer().accumulation() * group_size;
    options.tokens_per_sample = job.model().context();
    return options;
  }
  static Replica::Options ReplicaOptions(const Job& job) {
    Replica::Options options;
    options.codec = job.strategy().region().codec_up();
    options.mix = job.strategy().region().mix();
    options.progress = job.strategy().progress();
    return options;
  }
  std::vector<FragmentSpan> Fragments() const {
    return CutFragments(trainer_->layout().size(), job_.limits().fragment_bytes());
  }
  ParentLink::Options LinkOptions(const JoinReply& joined) const;
  ParentLink::Callbacks LinkCallbacks();
  Session::Callbacks HeartbeatCallbacks();

  // Takes what came from the other threads into the schedule. False when the run is over for this worker.
  bool TakeMail(absl::Duration wait);
  void TellHeartbeat(bool idle);
  void ReleaseRanges(const std::vector<LeasedRange>& ranges);
  void ResetToPublic();

  // The learning rate of a step of `tokens`, by the committed tokens and what is likely to come to them.
  double NextLearningRate(int64_t tokens);
  absl::Status Train(const LeafSchedule::Train& train);
  absl::Status Contribute(const LeafSchedule::Contribute& contribute);
  absl::Status Rebase();
  // Until there are parameters to begin with, and the group is formed.
  absl::Status Prepare(const JoinReply& joined);
  absl::Status TrainUntilOver();
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
  int64_t rate_tokens_ = 0;  // The learning-rate schedule's clock; only rises.
  int64_t own_tokens_ = 0;   // Trained since the clock last heard from the root.
  int64_t heard_tokens_ = 0;
  int lost_in_a_row_ = 0;
  bool leaving_ = false;
  std::unique_ptr<RegionGroup> group_;
  bool group_has_parameters_ = false;  // The others hold what this rank holds.

  ParentLink link_;  // Last: its threads use the mailbox.
};

ParentLink::Options Worker::LinkOptions(const JoinReply& joined) const {
  ParentLink::Options options;
  options.address = joined.parent_address();
  options.parent_name = "aggregator";
  options.self = {MemberId(joined.member()), Incarnation(joined.incarnation())};
  options.schema_digest = trainer_->layout().schema_digest();
  options.fragments = Fragments();
  options.rpc_timeout = absl::Nanoseconds(job_.limits().rpc_ns());
  options.seed = DeriveSeed(job_.seed(), "worker", static_cast<uint64_t>(joined.member()));
  return options;
}

ParentLink::Callbacks Worker::LinkCallbacks() {
  ParentLink::Callbacks callbacks;
  callbacks.on_version = [this] {
    MutexLock lock(mail_.mutex);
    mail_.version = true;
    mail_.changed.NotifyAll();
  };
  callbacks.on_answer = [this](Sequence sequence, Verdict verdict, const std::string& detail) {
    if (verdict != VERDICT_ACCEPTED) {
      LOG(WARNING) << "contribution " << sequence << " was refused (" << VerdictName(verdict) << "): " << detail;
    }
    MutexLock lock(mail_.mutex);
    mail_.answers.emplace_back(sequence, verdict);
    mail_.changed.NotifyAll();
  };
  callbacks.on_fatal = [this](const absl::Status& status) { mail_.End(status); };
  return callbacks;
}

Session::Callbacks Worker::HeartbeatCallbacks() {
  Session::Callbacks callbacks;
  callbacks.fill = [this](HeartbeatRequest* request) {
    mail_.Fill(request);
    request->mutable_usage()->set_payload_bytes_up(link_.payload_bytes_up());
    request->mutable_usage()->set_payload_bytes_down(link_.payload_bytes_down());
    request->mutable_usage()->set_contributions_sent(link_.contributions_sent());
  };
  callbacks.on_reply = [this](const HeartbeatReply& reply) { mail_.TakeReply(reply); };
  callbacks.on_lost = [this](const absl::Status& status) { mail_.End(status); };
  return callbacks;
}

bool Worker::TakeMail(absl::Duration wait) {
  std::vector<std::pair<Sequence, Verdict>> answers;
  std::vector<HeartbeatReply> replies;
  bool version = false;
  {
    MutexLock lock(mail_.mutex);
    if (!mail_.version && mail_.answers.empty() && mail_.replies.empty() && !mail_.over &&
        wait > absl::ZeroDuration()) {
      mail_.changed.WaitFor(mail_.mutex, wait);
    }
    if (mail_.over) return false;
    answers.swap(mail_.answers);
    replies.swap(mail_.replies);
    std::swap(version, mail_.version);
  }
  if (version) {
    const FollowedParameters::Snapshot snapshot = link_.parameters().snapshot();
    if (snapshot.version.value() > 0) {
      schedule_.VersionArrived({snapshot.version, snapshot.included, snapshot.root_version});
    }
  }
  for (const auto& [sequence, verdict] : answers) {
    const std::vector<LeasedRange> refused = schedule_.Answered(sequence, verdict);
    ReleaseRanges(refused);
    if (verdict == VERDICT_NON_FINITE) {
      ResetToPublic();
    } else if (verdict != VERDICT_ACCEPTED) {
      const absl::Status status = replica_.Drop(sequence);
      if (!status.ok()) LOG(ERROR) << status;
    }
  }
  for (const HeartbeatReply& reply : replies) {
    std::vector<LeasedRange> granted;
    for (const SampleRange& range : reply.granted()) granted.push_back(RangeFromProto(range));
    if (leaving_) {
      ReleaseRanges(granted);
      continue;
    }
    if (!granted.empty() && first_data_ == absl::InfiniteFuture()) first_data_ = last_step_end_ = clock_.Now();
    schedule_.Leased(granted, reply.exhausted());
    // Steps are what is compared, and a step of a group has more samples.
    schedule_.SpeedReference(reply.samples_per_second_reference() * group_size_);
  }
  return true;
}

void Worker::ReleaseRanges(const std::vector<LeasedRange>& ranges) {
  if (ranges.empty()) return;
  MutexLock lock(mail_.mutex);
  mail_.released.insert(mail_.released.end(), ranges.begin(), ranges.end());
}

void Worker::ResetToPublic() {
  link_.parameters().With([&](absl::Span<const float> values, const FollowedParameters::Snapshot& snapshot) {
    if (snapshot.version.value() > 0) replica_.Reset(values);
  });
  group_has_parameters_ = false;
  if (const absl::Status status = trainer_->PushParameters(); !status.ok()) mail_.End(status);
  trainer_->ZeroGradient();
  ReleaseRanges(schedule_.ProgressLost());
}

void Worker::TellHeartbeat(bool idle) {
  const absl::Duration latency = session_->round_trip() + absl::Nanoseconds(job_.limits().heartbeat_ns());
  const int64_t range_samples = int64_t{job_.optimizer().micro_batch()} * job_.optimizer().accumulation() *
                                group_size_ * job_.data().range_steps();
  const int64_t want = leaving_ ? 0 : schedule_.WantSamples(latency, range_samples);
  bool kick = false;
  {
    MutexLock lock(mail_.mutex);
    // A grant that is not in the schedule yet covers what it was asked for.
    const bool granted = std::any_of(mail_.replies.begin(), mail_.replies.end(),
                                     [](const HeartbeatReply& reply) { return reply.granted_size() > 0; });
    kick = (want > 0 && mail_.want_samples == 0 && !granted && !idle) || idle != mail_.idle;
    mail_.want_samples = granted ? 0 : want;
    mail_.idle = idle;
    mail_.samples_per_second = schedule_.samples_per_second() / group_size_;
    if (first_data_ != absl::InfiniteFuture()) {
      mail_.usage.set_wall_seconds(absl::ToDoubleSeconds(clock_.Now() - first_data_));
    }
    mail_.usage.set_compute_seconds(compute_seconds_);
    mail_.usage.set_tokens_computed(tokens_);
  }
  if (kick) session_->Kick();
}

double Worker::NextLearningRate(int64_t tokens) {
  const FollowedParameters::Snapshot snapshot = link_.parameters().snapshot();
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

absl::Status Worker::Train(const LeafSchedule::Train& train) {
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
  const absl::StatusOr<TrainingStep::Result> result = step_.Run(train.samples, rate);
  if (!result.ok()) return result.status();
  if (!result->finite) {
    LOG(WARNING) << "the loss is not finite; the step and its progress are thrown away";
    ResetToPublic();
    if (++lost_in_a_row_ >= 3) return absl::OutOfRangeError("diverged: the loss was not finite three times in a row");
    return absl::OkStatus();
  }
  lost_in_a_row_ = 0;
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

absl::Status Worker::Contribute(const LeafSchedule::Contribute& contribute) {
  absl::Status pulled = gradient_progress_ ? trainer_->PullGradient() : trainer_->PullParameters();
  if (!pulled.ok()) return pulled;
  const auto payload = gradient_progress_ ? replica_.Send(contribute.manifest.sequence, trainer_->gradient())
                                          : replica_.Send(contribute.manifest.sequence);
  if (!payload.ok()) {
    return absl::OutOfRangeError(absl::StrCat("diverged: the progress is not finite: ", payload.status().message()));
  }
  if (gradient_progress_) trainer_->ZeroGradient();
  link_.Send(contribute.manifest, *payload);
  return absl::OkStatus();
}

absl::Status Worker::Rebase() {
  absl::Status status = trainer_->PullParameters();
  if (!status.ok()) return status;
  LeafSchedule::ParentState state;
  status = link_.parameters().With(
      [&](absl::Span<const float> values, const FollowedParameters::Snapshot& snapshot) -> absl::Status {
        state = {snapshot.version, snapshot.included, snapshot.root_version};
        if (snapshot.version.value() == 0) return absl::OkStatus();  // Being fetched anew.
        const absl::StatusOr<bool> moved = replica_.Rebase(values, snapshot.included);
        if (moved.ok() && *moved) group_has_parameters_ = false;
        return moved.status();
      });
  if (!status.ok()) return status;
  schedule_.VersionArrived(state);
  schedule_.Rebased(state);
  return trainer_->PushParameters();
}

absl::Status Worker::Prepare(const JoinReply& joined) {
  if (group_size_ > 1) {
    absl::StatusOr<std::unique_ptr<RegionGroup>> group = FormRegionGroup(job_, region_, joined, &mail_, stop_);
    if (!group.ok()) return group.status();
    group_ = *std::move(group);
    step_.set_group(group_.get());
  }
  // The first parameters replace what the model was initialised with.
  const absl::Time begin = clock_.Now();
  while (link_.parameters().snapshot().version.value() == 0) {
    if (stop_->received() != 0) return absl::CancelledError("stopped by a signal");
    if (absl::Status status = KeepGroup(); !status.ok()) return status;
    MutexLock lock(mail_.mutex);
    if (mail_.over) return absl::CancelledError("the run is over");
    if (clock_.Now() - begin > absl::Nanoseconds(job_.limits().start_ns())) {
      return absl::UnavailableError(absl::StrCat("no parameters came from the aggregator at ", joined.parent_address(),
                                                 " within limits.start; is it running and reachable?"));
    }
    mail_.changed.WaitFor(mail_.mutex, absl::Milliseconds(100));
  }
  link_.parameters().With([&](absl::Span<const float> values, const FollowedParameters::Snapshot& snapshot) {
    replica_.Reset(values);
    const LeafSchedule::ParentState state = {snapshot.version, snapshot.included, snapshot.root_version};
    schedule_.VersionArrived(state);
    schedule_.Rebased(state);
  });
  return trainer_->PushParameters();
}

absl::Status Worker::KeepGroup() {
  if (group_ == nullptr || clock_.Now() - group_->last_order() < absl::Nanoseconds(job_.limits().heartbeat_ns())) {
    return absl::OkStatus();
  }
  GroupOrder order;
  order.set_kind(GroupOrder::KIND_WAIT);
  const absl::Status status = group_->Announce(order);
  return status.ok() ? group_->AskWhoLeaves() : status;
}

void Worker::EndGroup(const absl::Status& outcome) {
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

absl::Status Worker::TrainUntilOver() {
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
    const bool idle = std::holds_alternative<LeafSchedule::Idle>(action);
    if (leaving_ && (idle || clock_.Now() > leave_by)) break;
    if (const auto* train = std::get_if<LeafSchedule::Train>(&action)) {
      outcome = Train(*train);
    } else if (const auto* contribute = std::get_if<LeafSchedule::Contribute>(&action)) {
      outcome = Contribute(*contribute);
    } else if (std::holds_alternative<LeafSchedule::Rebase>(action)) {
      outcome = Rebase();
    } else {
      outcome = KeepGroup();
    }
    if (!TakeMail(absl::ZeroDuration())) break;
    TellHeartbeat(idle && schedule_.untrained_samples() == 0);
    const bool waits = idle || std::holds_alternative<LeafSchedule::Wait>(action);
    if (waits && !TakeMail(absl::Milliseconds(50))) break;
  }
  return outcome;
}

absl::Status Worker::Run(const JoinReply& joined) {
  const MemberKey self{MemberId(joined.member()), Incarnation(joined.incarnation())};
  joined_at_ = last_step_end_ = clock_.Now();
  session_->StartHeartbeats(self, absl::Nanoseconds(job_.limits().heartbeat_ns()),
                            absl::Nanoseconds(job_.limits().start_ns()), HeartbeatCallbacks());
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
  session_->StopHeartbeats(absl::Seconds(1));
  link_.Shutdown();
  return outcome;
}

}  // namespace

absl::Status RunWorker(const WorkerOptions& options, const StopSignal& stop) {
  Session session(options.coordinator, options.region);
  absl::StatusOr<GetJobReply> fetched = session.FetchJob(options.connect_timeout, stop);
  if (!fetched.ok()) return fetched.status();
  Job job = fetched->job();
  if (!options.local.model().torchscript().empty()) *job.mutable_model() = options.local.model();
  if (options.local.has_data()) {
    const int range_steps = job.data().range_steps();
    *job.mutable_data() = options.local.data();
    job.mutable_data()->set_range_steps(range_steps);
  }
  const auto region = std::find_if(job.regions().begin(), job.regions().end(),
                                   [&](const Region& candidate) { return candidate.name() == options.region; });
  if (region == job.regions().end()) {
    return absl::InternalError(absl::StrCat("the coordinator's job does not hold region ", options.region));
  }
  const absl::StatusOr<DataFiles> files = FindDataFiles(job.data());
  if (!files.ok()) return files.status();
  absl::StatusOr<std::unique_ptr<TokenFile>> file = TokenFile::Open(files->train);
  if (!file.ok()) return file.status();
  absl::StatusOr<SampleReader> reader =
      SampleReader::Make(std::shared_ptr<const TokenFile>(*std::move(file)), job.model().context(), job.seed());
  if (!reader.ok()) return reader.status();

  TrainerOptions trainer_options;
  trainer_options.precision =
      region->precision() == PRECISION_UNSPECIFIED ? job.optimizer().precision() : region->precision();
  trainer_options.device = options.device.empty() ? region->device() : options.device;
  trainer_options.threads = region->threads();
  absl::StatusOr<std::unique_ptr<Trainer>> trainer = MakeTrainer(job, trainer_options);
  if (!trainer.ok()) return trainer.status();

  JoinRequest join;
  join.set_role(ROLE_WORKER);
  join.set_name(options.name);
  if (options.rank >= 0) join.set_rank(options.rank);
  join.set_schema_digest((*trainer)->layout().schema_digest());
  const absl::StatusOr<JoinReply> joined = session.Join(join, options.connect_timeout, stop);
  if (!joined.ok()) {
    // Another model is a mistake in how this worker was started.
    return joined.status().code() == absl::StatusCode::kFailedPrecondition
               ? absl::InvalidArgumentError(joined.status().message())
               : joined.status();
  }
  LOG(INFO) << "worker " << joined->name() << " of " << options.region << " is member " << joined->member()
            << " incarnation " << joined->incarnation() << ", its aggregator is at " << joined->parent_address();
  const int group_size = region->collective() == COLLECTIVE_GLOO ? region->workers() : 1;
  if (group_size > 1 && joined->rank() >= group_size) {
    return absl::InvalidArgumentError(
        absl::StrFormat("the %d workers of %s act as one (collective), and %s would be one more (rank %d); --name "
                        "takes the place of one "
                        "that is gone, as in worker-0",
                        group_size, options.region, joined->name(), joined->rank()));
  }
  if (group_size > 1 && joined->rank() > 0) {
    return RunGroupFollower(job, *region, *joined, trainer->get(), &*reader, &session, stop);
  }
  Worker worker(job, *region, *joined, group_size, *std::move(trainer), *std::move(reader), &session, &stop);
  return worker.Run(*joined);
}

}  // namespace wukong
