#include "coordinator/coordinator.h"

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "coordinator/coordinator_core.h"
#include "coordinator/coordinator_service.h"
#include "coordinator/root_faults.h"
#include "coordinator/root_log.h"
#include "coordinator/root_recovery.h"
#include "coordinator/run_report.h"
#include "coordinator/validation.h"
#include "glog/logging.h"
#include "nlohmann/json.hpp"
#include "proto/wire.grpc.pb.h"
#include "runtime/base/clock.h"
#include "runtime/base/digest.h"
#include "runtime/base/executor.h"
#include "runtime/base/fault_point.h"
#include "runtime/base/file.h"
#include "runtime/base/mutex.h"
#include "runtime/base/process_info.h"
#include "runtime/base/random.h"
#include "runtime/fault/active_faults.h"
#include "runtime/model/trainer.h"
#include "runtime/storage/checkpoint.h"
#include "runtime/storage/faulty_disk.h"
#include "runtime/storage/file_system.h"
#include "runtime/sync/learning_rate.h"
#include "runtime/sync/node_options.h"
#include "runtime/transport/can_bind.h"
#include "runtime/transport/grpc_options.h"
#include "runtime/transport/parameter_server.h"
#include "runtime/transport/tls.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

constexpr absl::Duration kTick = absl::Milliseconds(50);
// The root learns of everything else as it happens: only quarantines end by the clock, and what a grace waits for.
constexpr int kTicksOfQuarantine = 10;
// Of CoordinatorOptions::on_progress.
constexpr absl::Duration kFirstProgress = absl::Seconds(2);
constexpr absl::Duration kProgressEvery = absl::Minutes(1);
constexpr absl::Duration kPortOfTheDead = absl::Seconds(5);
constexpr absl::Duration kRoomRetry = absl::Milliseconds(200);  // As often as the log tries.

std::filesystem::file_time_type LastWrite(const std::string& path) {
  std::error_code error;
  return std::filesystem::last_write_time(path, error);  // The earliest of all where there is no file.
}

// Null: there is nothing left to do for this standby.
absl::StatusOr<std::unique_ptr<FileLock>> LockRunDirectory(FileSystem* files, const CoordinatorOptions& options,
                                                           const StopSignal& stop) {
  const std::string& run_dir = options.run_dir;
  const std::string path = run_dir + "/lock";
  const std::string owner = absl::StrFormat("pid %d on %s\n", ::getpid(), HostName());
  if (!options.standby) {
    absl::StatusOr<std::unique_ptr<FileLock>> lock = files->Lock(path, owner);
    if (!absl::IsFailedPrecondition(lock.status())) return lock;
    return absl::InvalidArgumentError(
        absl::StrCat("another coordinator works in run directory ", run_dir, ": ", lock.status().message()));
  }
  const std::string report = run_dir + "/report.json";
  std::filesystem::file_time_type signed_at = std::filesystem::file_time_type::min();
  absl::StatusOr<std::unique_ptr<FileLock>> lock = files->Lock(path, owner);
  if (absl::IsFailedPrecondition(lock.status())) {
    signed_at = LastWrite(path);
    LOG(INFO) << "ready as the standby of the coordinator in " << run_dir;
    lock = files->WaitForLock(path, owner, stop);
  }
  if (absl::IsCancelled(lock.status())) return nullptr;
  // Whoever had the lock may not have come to removing what an earlier part of the run had left. A report of its own
  // says how the run ended.
  if (lock.ok() && files->Size(report).ok() && LastWrite(report) >= signed_at) {
    LOG(INFO) << "the run in " << run_dir << " is over, as its report.json says; without --standby, --resume goes on";
    return nullptr;
  }
  LOG_IF(INFO, lock.ok()) << "the coordinator in " << run_dir << " is gone: its standby takes over";
  return lock;
}

bool IsComplete(const std::string& run_dir) {
  const Json report = Json::parse(ReadFile(run_dir + "/report.json").value_or(""), nullptr, /*allow_exceptions=*/false);
  return report.is_object() && report.value("completed", Json()) == true;
}

// One life of a run's coordinator: each step needs those before it, and what comes last is destroyed first.
class CoordinatorLife {
 public:
  CoordinatorLife(const CoordinatorOptions& options, const StopSignal& stop)
      : options_(options), job_(options.job), stop_(stop), began_(clock_.Now()) {}

  // A server waits for its calls, and a call that follows the root for the root.
  ~CoordinatorLife() {
    if (root_ != nullptr) root_->Shutdown();
  }
  CoordinatorLife(const CoordinatorLife&) = delete;
  CoordinatorLife& operator=(const CoordinatorLife&) = delete;

  absl::Status Run() {
    if (absl::Status status = Prepare(); !status.ok()) return status;
    // A standby has everything ready when its turn comes; others learn at once whether the directory is theirs.
    if (options_.standby) {
      if (absl::Status status = LoadModel(); !status.ok()) return status;
    }
    const absl::StatusOr<bool> mine = TakeRunDirectory();
    if (!mine.ok() || !*mine) return mine.status();
    if (!options_.standby) {
      if (absl::Status status = LoadModel(); !status.ok()) return status;
    }
    const absl::StatusOr<bool> begun = BeginTerm();
    if (!begun.ok() || !*begun) return begun.status();
    if (absl::Status status = Serve(); !status.ok()) return status;
    if (absl::Status status = JudgeTheStart(); !status.ok()) return status;
    return Finish(AwaitTheEnd());
  }

 private:
  absl::Status Prepare();
  // And the data that it is judged by.
  absl::Status LoadModel();
  // Locks the run directory; one that holds a run is refused to who does not resume. False: there is nothing left to do
  // for this standby.
  absl::StatusOr<bool> TakeRunDirectory();
  // From the log or anew: what this life begins with, up to the root. False: the run is complete.
  absl::StatusOr<bool> BeginTerm();
  absl::StatusOr<RecoveredRoot> NewOrRecovered();
  // `attempt`, of a run that goes on again and again until there is room on the disk: it would not have ended for want
  // of that either. CANCELLED: a signal came.
  absl::Status WithRoom(const std::function<absl::Status()>& attempt);
  void MakeRoot(ParameterServer::Restored restored);
  ParameterServer::Hooks RootHooks();
  absl::Status Serve();
  // The loss that the run begins with.
  absl::Status JudgeTheStart();
  // Has the root copied, then the copy written, each on its own thread.
  void PostSnapshot();
  // No snapshot is in memory or on its way there.
  void AwaitSnapshots();
  // Until the budget is committed (OK), the run has failed or a signal came.
  absl::Status AwaitTheEnd();
  // The last validation and snapshot, the farewell and the report.
  absl::Status Finish(absl::Status outcome);
  // For members to hear that the run is over.
  void Farewell();
  absl::Status Fatal() const {
    MutexLock hold(fatal_mutex_);
    return fatal_;
  }

  const CoordinatorOptions& options_;
  const Job& job_;
  const StopSignal& stop_;
  const RealClock clock_;
  absl::Time began_;  // Of a standby: when its turn came.
  std::unique_ptr<FaultyDisk> faulty_disk_;
  FileSystem* files_ = FileSystem::Real();
  std::optional<Validation> validation_;
  std::unique_ptr<Trainer> trainer_;
  std::unique_ptr<FileLock> lock_;
  std::string run_;
  std::unique_ptr<JsonLinesWriter> events_;
  std::unique_ptr<JsonLinesWriter> metrics_;
  std::unique_ptr<RootLog> log_;
  RootState state_;  // At the beginning of this life.
  std::unique_ptr<CoordinatorService> service_;
  int64_t merged_tokens_ = 0;  // The node's executor's.
  mutable Mutex fatal_mutex_;
  absl::Status fatal_ ABSL_GUARDED_BY(fatal_mutex_);
  std::unique_ptr<ParameterServer> root_;
  std::unique_ptr<RootFaults> faults_;
  std::unique_ptr<Executor> snapshots_;
  std::unique_ptr<grpc::Server> server_;
  double initial_loss_ = 0;
};

absl::Status CoordinatorLife::Prepare() {
  if (job_.fault_injection() == FAULT_INJECTION_ALLOWED) {
    faulty_disk_ = std::make_unique<FaultyDisk>(&clock_, DeriveSeed(job_.seed(), "coordinator.disk"));
    files_ = faulty_disk_.get();
  }
  if (!options_.crash_at.empty()) {
    if (absl::Status status = ArmFaultPoint("coordinator", options_.crash_at); !status.ok()) return status;
  }
  if (absl::Status status = FileSystem::Real()->MakeDirectories(options_.run_dir); !status.ok()) return status;
  // Somebody else may have made it, and not have synced its name.
  std::error_code error;
  const std::filesystem::path path = std::filesystem::absolute(options_.run_dir, error).lexically_normal();
  const std::string parent = (path.has_filename() ? path : path.parent_path()).parent_path();
  const absl::Status synced = FileSystem::Real()->SyncDirectory(parent);
  LOG_IF(WARNING, !synced.ok()) << "a loss of power may cost the run directory: " << synced;
  return absl::OkStatus();
}

absl::Status CoordinatorLife::LoadModel() {
  absl::StatusOr<Validation> validation = Validation::Open(job_);
  if (!validation.ok()) return validation.status();
  validation_ = *std::move(validation);
  TrainerOptions trainer_options;
  trainer_options.threads = options_.threads;
  absl::StatusOr<std::unique_ptr<Trainer>> trainer = MakeTrainer(job_, trainer_options);
  if (!trainer.ok()) return trainer.status();
  trainer_ = *std::move(trainer);
  return CheckContributionBytes(job_, trainer_->layout());
}

absl::StatusOr<bool> CoordinatorLife::TakeRunDirectory() {
  const std::string& run_dir = options_.run_dir;
  absl::StatusOr<std::unique_ptr<FileLock>> lock = LockRunDirectory(files_, options_, stop_);
  if (!lock.ok()) return lock.status();
  if (*lock == nullptr) return false;
  lock_ = *std::move(lock);
  if (options_.standby) began_ = clock_.Now();
  // A directory that nothing came of would be refused the next time.
  if (!options_.resume) {
    if (const absl::Status status = CanBind(options_.listen); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("the coordinator ", status.message()));
    }
  }
  if (!options_.resume && HoldsRun(files_, run_dir)) {
    return absl::AlreadyExistsError(absl::StrCat(
        "run directory ", run_dir, " holds another run; name a new one, remove it, or go on with it (--resume)"));
  }
  // Whoever dies from here on may be started again with --resume.
  if (!options_.resume) {
    if (absl::Status status = WriteFileAtomic(run_dir + "/config.resolved.yaml", options_.resolved_yaml);
        !status.ok()) {
      return status;
    }
  }
  return true;
}

absl::StatusOr<RecoveredRoot> CoordinatorLife::NewOrRecovered() {
  if (options_.resume) {
    absl::StatusOr<RecoveredRoot> recovered = RecoverRoot(files_, options_.run_dir, job_, trainer_.get());
    if (recovered.ok()) {
      if (absl::Status status = CheckInputs(job_, recovered->identity); !status.ok()) return status;
      return recovered;
    }
    if (recovered.status().code() == absl::StatusCode::kFailedPrecondition) {
      return absl::InvalidArgumentError(recovered.status().message());
    }
    // A coordinator that died before its first snapshot had told nobody anything.
    if (!absl::IsNotFound(recovered.status()) || !files_->Size(options_.run_dir + "/config.resolved.yaml").ok()) {
      return recovered.status();
    }
  }
  return BeginRun(files_, options_.run_dir, job_, clock_, trainer_.get());
}

absl::Status CoordinatorLife::WithRoom(const std::function<absl::Status()>& attempt) {
  for (int attempts = 0;; ++attempts) {
    absl::Status status = attempt();
    if (!options_.resume || !IsFullDisk(status)) return status;
    LOG_IF(ERROR, attempts == 0) << "the run goes on when there is room: " << status;
    if (stop_.WaitFor(kRoomRetry)) return absl::CancelledError(kStoppedBySignal);
  }
}

absl::StatusOr<bool> CoordinatorLife::BeginTerm() {
  const std::string& run_dir = options_.run_dir;
  const std::string config = run_dir + "/config.resolved.yaml";
  absl::StatusOr<RecoveredRoot> begun = NewOrRecovered();
  if (!begun.ok()) return begun.status();
  if (options_.resume && IsComplete(run_dir)) {
    LOG(INFO) << "the run in " << run_dir << " has reached its budget, as its report.json says: there is nothing to do";
    return false;
  }
  // Only now is it known that the directory is this job's.
  if (ReadFile(config).value_or("") != options_.resolved_yaml) {
    const absl::Status status = WithRoom([&] { return WriteFileAtomic(config, options_.resolved_yaml); });
    if (!status.ok()) return status;
  }
  // Of a part of the run that is over; the whole will have its own.
  if (::unlink((run_dir + "/report.json").c_str()) != 0 && errno != ENOENT) {
    return ErrnoToStatus(errno, absl::StrCat("cannot remove ", run_dir, "/report.json"));
  }
  absl::StatusOr<std::unique_ptr<JsonLinesWriter>> events = JsonLinesWriter::Open(run_dir + "/events.jsonl");
  if (!events.ok()) return events.status();
  events_ = *std::move(events);
  absl::StatusOr<std::unique_ptr<JsonLinesWriter>> metrics = JsonLinesWriter::Open(run_dir + "/metrics.jsonl");
  if (!metrics.ok()) return metrics.status();
  metrics_ = *std::move(metrics);
  run_ = begun->identity.run();
  ParameterServer::Restored restored = begun->replay->Restored();
  RootLog::Options log_options;
  log_options.fsync = options_.fsync;
  log_options.snapshot_bytes = job_.limits().snapshot_bytes();
  log_options.bytes_since_snapshot = begun->bytes_replayed;
  log_options.stop = &stop_;
  const absl::Status opened = WithRoom([&]() -> absl::Status {
    auto log = RootLog::Open(files_, run_dir, begun->identity, restored.state, begun->log, log_options);
    if (!log.ok()) return log.status();
    log_ = *std::move(log);
    return absl::OkStatus();
  });
  if (!opened.ok()) return opened;
  LogRecord term;
  term.mutable_term_begun()->set_term(restored.state.term() + 1);
  term.mutable_term_begun()->set_unix_ns(absl::ToUnixNanos(clock_.WallNow()));
  term.mutable_term_begun()->set_pid(::getpid());
  term.mutable_term_begun()->set_host(HostName());
  log_->Append(term);
  if (absl::Status status = WithRoom([this] { return log_->MakeDurableOnce(); }); !status.ok()) return status;

  state_ = log_->Summary();
  const ParameterLayout& layout = trainer_->layout();
  service_ = std::make_unique<CoordinatorService>(job_, run_, layout.schema_digest(), layout.size(), state_, log_.get(),
                                                  &clock_, events_.get(), metrics_.get());
  service_->SetTrainFingerprint(validation_->TrainFingerprint());
  if (state_.term() > 1) {
    service_->RecordEvent({{"event", "resumed"},
                           {"term", state_.term()},
                           {"version", state_.version()},
                           {"snapshot", begun->snapshot},
                           {"records_replayed", begun->records_replayed},
                           {"log_bytes", begun->log.bytes},
                           {"seconds", absl::ToDoubleSeconds(clock_.Now() - began_)},
                           {"warnings", begun->warnings}});
    for (const std::string& warning : begun->warnings) LOG(WARNING) << warning;
    LOG(INFO) << "term " << state_.term() << " goes on at version " << state_.version() << ", "
              << begun->records_replayed << " records after " << begun->snapshot;
  }
  begun->replay.reset();
  MakeRoot(std::move(restored));
  return true;
}

// `restored` is given away: kept, it would be three more vectors until the end.
void CoordinatorLife::MakeRoot(ParameterServer::Restored restored) {
  root_ = std::make_unique<ParameterServer>(RootOptions(job_, trainer_->layout()), RootHooks(), trainer_->parameters(),
                                            NotesOf(state_), nullptr, &clock_, &restored);
  service_->SetRoot(root_.get());
  if (faulty_disk_ != nullptr) {
    faults_ = std::make_unique<RootFaults>(
        faulty_disk_.get(), &clock_,
        DeriveSeed(job_.seed(), "coordinator.faults", static_cast<uint64_t>(state_.term())),
        RootFaults::Hooks{[this](const Json& event) { service_->RecordEvent(event); },
                          [this] { return root_->version(); }, CarryOutOnThisProcess, absl::SleepFor});
    service_->SetFaults(faults_.get());
  }
  snapshots_ = std::make_unique<Executor>("snapshots");
}

ParameterServer::Hooks CoordinatorLife::RootHooks() {
  ParameterServer::Hooks hooks;
  hooks.admit = [this](const Manifest& manifest, const LogRecord& accepted, std::string* detail) {
    Verdict verdict = VERDICT_UNSPECIFIED;
    service_->With([&](CoordinatorCore& core, absl::Time) { verdict = core.Admit(manifest, accepted, detail); });
    return verdict;
  };
  hooks.record = [this](const LogRecord& record) {
    // A stranger, of a run directory that was put back to an earlier time, may send before its heartbeat learns that it
    // is none. It will not ask again.
    const ContributionHeader& sender = record.refused().header();
    if (record.has_refused() && !log_->Joined(sender.member(), sender.incarnation())) return;
    log_->Append(record);
  };
  hooks.make_durable = [this] { return log_->MakeDurable(); };
  hooks.on_merged = [this](const ParentNode::Apply& apply) {
    Json parts = Json::array();
    for (const Manifest& manifest : apply.manifests) {
      parts.push_back({{"member", manifest.sender.member.value()},
                       {"sequence", manifest.sequence.value()},
                       {"base", manifest.base.value()},
                       {"steps", manifest.steps},
                       {"tokens", manifest.tokens}});
    }
    service_->With([&](CoordinatorCore& core, absl::Time now) { core.Merged(apply.manifests, now); });
    service_->RecordEvent({{"event", "merged"}, {"staleness", apply.staleness_max}, {"contributions", parts}});
  };
  hooks.on_refused = [this](const Manifest& manifest, Verdict verdict, const std::string& detail) {
    service_->With([&](CoordinatorCore& core, absl::Time) { core.Refused(manifest); });
    service_->RecordEvent({{"event", "refused"},
                           {"member", manifest.sender.member.value()},
                           {"sequence", manifest.sequence.value()},
                           {"reason", VerdictName(verdict)},
                           {"detail", detail}});
  };
  merged_tokens_ = state_.tokens_merged();
  hooks.gradient_rate = [this](const ParentNode::Apply& apply) {
    for (const Manifest& manifest : apply.manifests) merged_tokens_ += manifest.tokens;
    return LearningRate(job_.optimizer(), job_.stop().tokens(), merged_tokens_);
  };
  hooks.gradient_step = [this](absl::Span<float> gradient, double learning_rate) -> absl::Status {
    absl::Span<float> target = trainer_->gradient();
    std::copy(gradient.begin(), gradient.end(), target.begin());
    if (absl::Status status = trainer_->PushGradient(); !status.ok()) return status;
    const absl::StatusOr<double> norm = trainer_->OptimizerStep(learning_rate);
    if (!norm.ok()) return norm.status();
    return trainer_->PullParameters();
  };
  hooks.on_fatal = [this](const absl::Status& status) {
    MutexLock hold(fatal_mutex_);
    fatal_.Update(status);
  };
  return hooks;
}

absl::Status CoordinatorLife::Serve() {
  const bool started_before = state_.started_unix_ns() > 0;
  service_->With([&](CoordinatorCore& core, absl::Time now) {
    if (!started_before) {
      core.HoldStart(true, now);
      return;
    }
    const absl::Duration since = clock_.WallNow() - absl::FromUnixNanos(state_.started_unix_ns());
    core.BackdateStart(now - (since - absl::Nanoseconds(state_.paused_ns())));
  });
  int port = 0;
  server_ = Listen(options_.listen, {service_.get(), root_.get()}, &port);
  // The kernel takes back a dead process's lock before its port.
  while (server_ == nullptr && options_.standby && clock_.Now() - began_ < kPortOfTheDead && !stop_.WaitFor(kTick)) {
    server_ = Listen(options_.listen, {service_.get(), root_.get()}, &port);
  }
  if (server_ == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("the coordinator cannot listen on ", options_.listen,
                                                   ": the port is in use, or the address is not of this machine"));
  }
  const std::string host(options_.listen.substr(0, options_.listen.rfind(':')));
  const std::string address = absl::StrCat(host, ":", port);
  const absl::Status written =
      WithRoom([&] { return WriteFileAtomic(options_.run_dir + "/coordinator.address", address); });
  if (!written.ok()) return written;
  LOG(INFO) << "run " << run_ << " of job " << job_.name() << ": coordinator of term " << state_.term()
            << " listens on " << address << (TlsInUse() ? " with TLS" : " without TLS") << " after "
            << clock_.Now() - began_;
  return absl::OkStatus();
}

absl::Status CoordinatorLife::JudgeTheStart() {
  initial_loss_ = state_.validation_loss_initial();
  if (state_.started_unix_ns() > 0) return absl::OkStatus();
  // While the other processes start. Nothing moves the parameters meanwhile: the node's executor is taken.
  absl::StatusOr<double> loss = 0.0;
  root_->RunExclusive(
      [&](const ParentNode&) { loss = validation_->Loss(trainer_.get(), job_.report().validation_tokens()); });
  if (!loss.ok()) return loss.status();
  initial_loss_ = *loss;
  service_->SetInitialLoss(initial_loss_);
  service_->With([](CoordinatorCore& core, absl::Time now) { core.HoldStart(false, now); });
  LOG(INFO) << trainer_->layout().size() << " parameters, validation loss " << initial_loss_;
  return absl::OkStatus();
}

void CoordinatorLife::PostSnapshot() {
  root_->PostSnapshot([this](ParameterServer::Vectors vectors) {
    auto snapshot = std::make_shared<absl::StatusOr<Checkpoint>>(
        MakeSnapshot(log_->identity(), log_->state(), job_.model().context(), trainer_.get(),
                     RootOptions(job_, trainer_->layout()).progress, std::move(vectors)));
    snapshots_->Post([this, snapshot] {
      const absl::Status status = log_->WriteSnapshot(*snapshot);
      if (!status.ok()) LOG(ERROR) << "the log stays longer: " << status;
      service_->RecordEvent({{"event", "snapshot"},
                             {"version", snapshot->ok() ? (**snapshot).state.version() : 0},
                             {"failure", std::string(status.message())}});
    });
  });
}

void CoordinatorLife::AwaitSnapshots() {
  root_->RunExclusive([](const ParentNode&) {});
  Notification written;
  snapshots_->Post([&written] { written.Notify(); });
  written.WaitFor(absl::InfiniteDuration());
}

absl::Status CoordinatorLife::AwaitTheEnd() {
  absl::Status outcome;
  CoordinatorCore::Phase phase = CoordinatorCore::Phase::kStarting;
  const int root_ticks = job_.strategy().root().grace_ns() > 0 ? 1 : kTicksOfQuarantine;
  absl::Time next_progress = clock_.Now() + kFirstProgress;
  for (int tick = 0; phase == CoordinatorCore::Phase::kStarting || phase == CoordinatorCore::Phase::kTraining; ++tick) {
    const bool stopped = stop_.WaitFor(kTick);
    const absl::Status broken = Fatal();
    service_->With([&](CoordinatorCore& core, absl::Time now) {
      if (core.phase() == CoordinatorCore::Phase::kDone) {
        // All of it is committed: a signal comes too late to stop anything.
      } else if (stopped) {
        outcome = absl::CancelledError(kStoppedBySignal);
        core.Stop("the coordinator was stopped by a signal", now);
      } else if (!broken.ok()) {
        outcome = broken;
        core.Fail(std::string(broken.message()), now);
      }
      core.SetRootVersion(root_->version());
      core.Tick(now);
      phase = core.phase();
      if (phase == CoordinatorCore::Phase::kFailed && outcome.ok()) {
        outcome = absl::AbortedError(core.failure());
      }
    });
    if (tick % root_ticks == 0) root_->Tick();
    if (faults_ != nullptr) faults_->Tick();
    if (log_->ClaimSnapshot()) PostSnapshot();
    if (options_.on_progress != nullptr && clock_.Now() >= next_progress) {
      options_.on_progress(service_->Status());
      next_progress = clock_.Now() + kProgressEvery;
    }
  }
  if (!outcome.ok()) log_->Stop();  // A log that cannot be written keeps nobody waiting any more.
  return outcome;
}

void CoordinatorLife::Farewell() {
  const absl::Time began = clock_.Now();
  while (true) {
    if (faults_ != nullptr) faults_->Tick();
    bool over = false;
    service_->With([&](CoordinatorCore& core, absl::Time now) {
      core.Tick(now);
      over = core.AllToldFinish() || now - began >= core.FarewellMax();
    });
    if (over) return;
    absl::SleepFor(kTick);  // A signal that came once would end each StopSignal::WaitFor at once.
  }
}

absl::Status CoordinatorLife::Finish(absl::Status outcome) {
  const std::string preset = Preset_Name(job_.strategy().preset());
  Json report = {{"job", job_.name()},
                 {"run", run_},
                 {"seed", job_.seed()},
                 {"preset", absl::AsciiStrToLower(absl::StripPrefix(preset, "PRESET_"))},  // As in the job file.
                 {"completed", false},
                 {"failure", ""},
                 {"parameters", trainer_->layout().size()}};
  absl::StatusOr<double> final_loss = absl::CancelledError("only a run that is over is judged");
  // What members bring until they have heard that it ends is a part of a run that is not over, and nothing after that.
  const bool over = outcome.ok();
  if (!over) {
    Farewell();
    root_->TakeNoMore();
    LogRecord record;
    service_->With(
        [&](CoordinatorCore& core, absl::Time) { *record.mutable_run_stopped() = core.StopRecord(clock_.WallNow()); });
    log_->Append(record);  // Durable with the snapshot.
  }
  AwaitSnapshots();  // One at a time: each is a copy of all that the root has.
  PostSnapshot();
  root_->RunExclusive([&](const ParentNode& node) {
    ReportNode(node, &report);
    report["parameters_sha256"] = Sha256Hex(absl::MakeConstSpan(trainer_->parameters()));
    if (outcome.ok()) final_loss = validation_->Loss(trainer_.get(), job_.report().validation_tokens());
  });
  if (outcome.ok()) outcome = final_loss.status();
  if (over) Farewell();
  service_->With([&](CoordinatorCore& core, absl::Time) { core.FillReport(&report); });
  ReportLog(log_->Summary(), log_->durable_index(), &report);
  report["validation_loss_initial"] = initial_loss_;
  report["validation_loss_final"] = final_loss.ok() ? Json(*final_loss) : Json();
  const std::optional<double> unigram_loss = validation_->UnigramLoss();
  report["validation_loss_unigram"] = unigram_loss.has_value() ? Json(*unigram_loss) : Json();
  root_->Shutdown();
  snapshots_->Shutdown();
  outcome.Update(Fatal());
  report["completed"] = outcome.ok();
  report["failure"] = std::string(outcome.message());
  report["log"]["telemetry_lines_dropped"] = service_->lines_dropped();
  report["coordinator_peak_memory_bytes"] = PeakMemoryBytes();
  report["coordinator_cpu_seconds"] = ProcessCpuSeconds();
  outcome.Update(WriteFileAtomic(options_.run_dir + "/report.json",
                                 report.dump(2, ' ', false, Json::error_handler_t::replace) + "\n"));
  server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(2));
  server_->Wait();
  return outcome;
}

}  // namespace

absl::Status RunCoordinator(const CoordinatorOptions& options, const StopSignal& stop) {
  return CoordinatorLife(options, stop).Run();
}

}  // namespace wukong
