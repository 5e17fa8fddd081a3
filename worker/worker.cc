#include "worker/worker.h"

#include <algorithm>
#include <cmath>
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
#include "worker/session.h"

namespace wukong {
namespace {

constexpr absl::Duration kLeaveTimeout = absl::Seconds(10);  // For the last contribution of a worker that is stopped.

// What other threads tell the training thread, and what it tells the heartbeat thread.
struct Mailbox {
  Mutex mutex;
  CondVar changed;

  // To the training thread.
  bool version ABSL_GUARDED_BY(mutex) = false;
  std::vector<std::pair<Sequence, Verdict>> answers ABSL_GUARDED_BY(mutex);
  std::vector<HeartbeatReply> replies ABSL_GUARDED_BY(mutex);
  bool over ABSL_GUARDED_BY(mutex) = false;
  absl::Status outcome ABSL_GUARDED_BY(mutex);

  // To the heartbeat thread.
  int64_t want_samples ABSL_GUARDED_BY(mutex) = 0;
  bool idle ABSL_GUARDED_BY(mutex) = false;
  double samples_per_second ABSL_GUARDED_BY(mutex) = 0;
  MemberUsage usage ABSL_GUARDED_BY(mutex);
  std::vector<LeasedRange> released ABSL_GUARDED_BY(mutex);
  std::vector<StepRecord> steps ABSL_GUARDED_BY(mutex);

  void End(const absl::Status& status) {
    MutexLock lock(mutex);
    if (!over) outcome = status;
    over = true;
    changed.NotifyAll();
  }
};

class Worker {
 public:
  Worker(const Job& job, const Region& region, const JoinReply& joined, std::unique_ptr<Trainer> trainer,
         SampleReader reader, Session* session, const StopSignal* stop)
      : job_(job),
        stop_(stop),
        session_(session),
        trainer_(std::move(trainer)),
        reader_(std::move(reader)),
        gradient_progress_(job.strategy().progress() == PROGRESS_GRADIENT),
        speed_(region.speed_size() == 0   ? 1.0
               : region.speed_size() == 1 ? region.speed(0)
                                          : region.speed(joined.rank() % region.speed_size())),
        schedule_(ScheduleOptions(job)),
        replica_(trainer_->parameters(), Fragments(), ReplicaOptions(job)),
        link_(LinkOptions(joined), LinkCallbacks()) {}

  absl::Status Run(const JoinReply& joined);

 private:
  static LeafSchedule::Options ScheduleOptions(const Job& job) {
    LeafSchedule::Options options;
    options.inner_steps = job.strategy().inner_steps();
    options.scale_steps_by_speed = job.strategy().step_scaling() == STEP_SCALING_SPEED;
    options.waits = job.strategy().in_flight() == IN_FLIGHT_WAIT;
    options.in_flight_max = job.strategy().in_flight_max();
    options.step_samples = static_cast<int64_t>(job.optimizer().micro_batch()) * job.optimizer().accumulation();
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

  absl::Status Train(const LeafSchedule::Train& train);
  absl::Status Contribute(const LeafSchedule::Contribute& contribute);
  absl::Status Rebase();

  const Job job_;
  const RealClock clock_;
  const StopSignal* const stop_;
  Session* const session_;
  Mailbox mail_;

  // The training thread's.
  const std::unique_ptr<Trainer> trainer_;
  const SampleReader reader_;
  const bool gradient_progress_;
  const double speed_;
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
    MutexLock lock(mail_.mutex);
    request->set_want_samples(mail_.want_samples);
    request->set_idle(mail_.idle);
    request->set_samples_per_second(mail_.samples_per_second);
    *request->mutable_usage() = mail_.usage;
    request->mutable_usage()->set_cpu_seconds(ProcessCpuSeconds());
    request->mutable_usage()->set_peak_memory_bytes(PeakMemoryBytes());
    request->mutable_usage()->set_payload_bytes_up(link_.payload_bytes_up());
    request->mutable_usage()->set_payload_bytes_down(link_.payload_bytes_down());
    request->mutable_usage()->set_contributions_sent(link_.contributions_sent());
    for (const LeasedRange& range : mail_.released) *request->add_released() = RangeToProto(range);
    mail_.released.clear();
    for (StepRecord& step : mail_.steps) *request->add_steps() = std::move(step);
    mail_.steps.clear();
  };
  callbacks.on_reply = [this](const HeartbeatReply& reply) {
    if (reply.finish()) {
      mail_.End(reply.finish_reason().empty()
                    ? absl::OkStatus()
                    : absl::AbortedError(absl::StrCat("the job failed: ", reply.finish_reason())));
      return;
    }
    MutexLock lock(mail_.mutex);
    if (reply.granted_size() > 0) mail_.want_samples = 0;
    mail_.replies.push_back(reply);
    mail_.changed.NotifyAll();
  };
  callbacks.on_lost = [this](const absl::Status& status) { mail_.End(status); };
  return callbacks;
}

bool Worker::TakeMail(absl::Duration wait) {
  std::vector<std::pair<Sequence, Verdict>> answers;
  std::vector<HeartbeatReply> replies;
  bool version = false;
  {
    MutexLock lock(mail_.mutex);
    if (!mail_.version && mail_.answers.empty() && mail_.replies.empty() && !mail_.over && wait > absl::ZeroDuration()) {
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
    schedule_.SpeedReference(reply.samples_per_second_reference());
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
  trainer_->ZeroGradient();
  ReleaseRanges(schedule_.ProgressLost());
}

void Worker::TellHeartbeat(bool idle) {
  const absl::Duration latency = session_->round_trip() + absl::Nanoseconds(job_.limits().heartbeat_ns());
  const int64_t range_samples =
      static_cast<int64_t>(job_.optimizer().micro_batch()) * job_.optimizer().accumulation() * job_.data().range_steps();
  const int64_t want = leaving_ ? 0 : schedule_.WantSamples(latency, range_samples);
  bool kick = false;
  {
    MutexLock lock(mail_.mutex);
    kick = (want > 0 && mail_.want_samples == 0 && mail_.replies.empty() && !idle) || idle != mail_.idle;
    // An answer that is not in the schedule yet covers what it was asked for.
    mail_.want_samples = mail_.replies.empty() ? want : 0;
    mail_.idle = idle;
    mail_.samples_per_second = schedule_.samples_per_second();
    if (first_data_ != absl::InfiniteFuture()) {
      mail_.usage.set_wall_seconds(absl::ToDoubleSeconds(clock_.Now() - first_data_));
    }
    mail_.usage.set_compute_seconds(compute_seconds_);
    mail_.usage.set_tokens_computed(tokens_);
  }
  if (kick) session_->Kick();
}

absl::Status Worker::Train(const LeafSchedule::Train& train) {
  const absl::Time begin = clock_.Now();
  std::vector<int64_t> samples;
  for (const LeasedRange& range : train.samples) {
    for (int64_t i = range.begin; i < range.end; ++i) samples.push_back(i);
  }
  const auto micro_batch = static_cast<size_t>(job_.optimizer().micro_batch());
  double loss = 0;
  for (size_t first = 0; first < samples.size(); first += micro_batch) {
    Batch batch;
    batch.context = reader_.context();
    for (size_t i = first; i < std::min(samples.size(), first + micro_batch); ++i) {
      reader_.Append(samples[i], &batch.tokens, &batch.targets);
      ++batch.samples;
    }
    const double share = static_cast<double>(batch.samples) / static_cast<double>(samples.size());
    const absl::StatusOr<double> part = trainer_->AccumulateGradient(batch, share);
    if (!part.ok()) return part.status();
    loss += share * *part;
  }
  if (!std::isfinite(loss)) {
    LOG(WARNING) << "the loss is not finite; the step and its progress are thrown away";
    ResetToPublic();
    if (++lost_in_a_row_ >= 3) return absl::OutOfRangeError("diverged: the loss was not finite three times in a row");
    return absl::OkStatus();
  }
  lost_in_a_row_ = 0;

  const FollowedParameters::Snapshot snapshot = link_.parameters().snapshot();
  if (snapshot.tokens_committed > heard_tokens_) {
    heard_tokens_ = snapshot.tokens_committed;
    own_tokens_ = 0;
  }
  const auto step_tokens = static_cast<int64_t>(samples.size()) * reader_.context();
  own_tokens_ += step_tokens;
  // What the root has not heard of yet is estimated by our own work times the number of workers.
  int64_t workers = 0;
  for (const Region& region : job_.regions()) workers += region.workers();
  rate_tokens_ = std::max(rate_tokens_, heard_tokens_ + own_tokens_ * workers);
  const double rate = LearningRate(job_.optimizer(), job_.stop().tokens(), rate_tokens_);
  double norm = 0;
  if (!gradient_progress_) {
    const absl::StatusOr<double> stepped = trainer_->OptimizerStep(rate);
    if (!stepped.ok()) return stepped.status();
    norm = *stepped;
    if (!std::isfinite(norm)) return absl::OutOfRangeError("diverged: the gradient is not finite");
  }
  if (speed_ < 1) {
    // Emulated slowness, in slices so that the end of the run is noticed.
    const absl::Time until = clock_.Now() + (clock_.Now() - begin) * (1 / speed_ - 1);
    while (clock_.Now() < until) {
      MutexLock lock(mail_.mutex);
      if (mail_.over) break;
      mail_.changed.WaitFor(mail_.mutex, std::min(until - clock_.Now(), absl::Milliseconds(100)));
    }
  }
  const absl::Time finished = clock_.Now();
  const double compute = absl::ToDoubleSeconds(finished - begin);
  schedule_.StepDone(compute);
  compute_seconds_ += compute;
  tokens_ += step_tokens;
  StepRecord record;
  record.set_time_seconds(absl::ToDoubleSeconds(finished - joined_at_));
  record.set_step(++steps_);
  record.set_tokens(step_tokens);
  record.set_loss(loss);
  record.set_compute_seconds(compute);
  record.set_wait_seconds(absl::ToDoubleSeconds(begin - last_step_end_));
  record.set_root_base_version(schedule_.base_root_version().value());
  record.set_learning_rate(rate);
  record.set_gradient_norm(norm);
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
        return replica_.Rebase(values, snapshot.included).status();
      });
  if (!status.ok()) return status;
  schedule_.VersionArrived(state);
  schedule_.Rebased(state);
  return trainer_->PushParameters();
}

absl::Status Worker::Run(const JoinReply& joined) {
  const MemberKey self{MemberId(joined.member()), Incarnation(joined.incarnation())};
  joined_at_ = last_step_end_ = clock_.Now();
  // The first parameters replace what the model was initialised with.
  while (link_.parameters().snapshot().version.value() == 0) {
    if (stop_->received() != 0) return absl::OkStatus();
    MutexLock lock(mail_.mutex);
    if (mail_.over) return mail_.outcome;
    if (clock_.Now() - joined_at_ > absl::Nanoseconds(job_.limits().start_ns())) {
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
  absl::Status outcome = trainer_->PushParameters();
  if (!outcome.ok()) return outcome;
  TellHeartbeat(/*idle=*/false);
  session_->StartHeartbeats(self, absl::Nanoseconds(job_.limits().heartbeat_ns()),
                            absl::Nanoseconds(job_.limits().start_ns()), HeartbeatCallbacks());

  absl::Time leave_by = absl::InfiniteFuture();
  while (outcome.ok()) {
    if (stop_->received() != 0 && !leaving_) {
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
    }
    TellHeartbeat(idle);
    const bool waits = idle || std::holds_alternative<LeafSchedule::Wait>(action);
    if (!TakeMail(waits ? absl::Milliseconds(50) : absl::ZeroDuration())) {
      MutexLock lock(mail_.mutex);
      outcome.Update(mail_.outcome);
      break;
    }
  }
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
  Worker worker(job, *region, *joined, *std::move(trainer), *std::move(reader), &session, &stop);
  return worker.Run(*joined);
}

}  // namespace wukong
