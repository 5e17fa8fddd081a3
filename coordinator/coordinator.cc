#include "coordinator/coordinator.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "coordinator/coordinator_core.h"
#include "coordinator/coordinator_service.h"
#include "coordinator/root_faults.h"
#include "coordinator/root_log.h"
#include "coordinator/root_recovery.h"
#include "glog/logging.h"
#include "proto/wire.grpc.pb.h"
#include "runtime/base/clock.h"
#include "runtime/base/digest.h"
#include "runtime/base/executor.h"
#include "runtime/base/fault_point.h"
#include "runtime/base/file.h"
#include "runtime/base/process_info.h"
#include "runtime/base/random.h"
#include "runtime/data/token_dataset.h"
#include "runtime/fault/active_faults.h"
#include "runtime/model/trainer.h"
#include "runtime/storage/checkpoint.h"
#include "runtime/storage/faulty_disk.h"
#include "runtime/storage/file_system.h"
#include "runtime/sync/learning_rate.h"
#include "runtime/sync/node_options.h"
#include "runtime/transport/grpc_options.h"
#include "runtime/transport/parameter_server.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

constexpr absl::Duration kTick = absl::Milliseconds(50);
constexpr int kTicksOfRoot =
    10;  // The root learns of everything else as it happens: only quarantines end by the clock.
constexpr absl::Duration kPortOfTheDead = absl::Seconds(5);
constexpr absl::Duration kFarewell = absl::Seconds(5);  // For members to hear that the run is over.

// Mean loss over `tokens` tokens of the validation split, spread evenly over it.
absl::StatusOr<double> Validate(Trainer* trainer, const SampleReader& reader, int64_t tokens) {
  constexpr int64_t kBatch = 16;
  const int64_t samples = std::clamp<int64_t>(tokens / reader.context(), 1, reader.samples_per_epoch());
  double sum = 0;
  for (int64_t first = 0; first < samples; first += kBatch) {
    Batch batch;
    batch.context = reader.context();
    for (int64_t i = first; i < std::min(samples, first + kBatch); ++i) {
      reader.AppendInOrder(i * reader.samples_per_epoch() / samples, &batch.tokens, &batch.targets);
      ++batch.samples;
    }
    const absl::StatusOr<double> loss = trainer->Evaluate(batch);
    if (!loss.ok()) return loss.status();
    sum += *loss * static_cast<double>(batch.samples);
  }
  return sum / static_cast<double>(samples);
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
  LOG(INFO) << "ready as the standby of the coordinator in " << run_dir;
  absl::StatusOr<std::unique_ptr<FileLock>> lock = files->WaitForLock(path, owner, stop);
  if (absl::IsCancelled(lock.status())) return nullptr;
  // Whoever had the lock removed what an earlier part of the run had left: this one says how it ended.
  if (lock.ok() && files->Size(run_dir + "/report.json").ok()) {
    LOG(INFO) << "the run in " << run_dir << " is over, as its report.json says; without --standby, --resume goes on";
    return nullptr;
  }
  LOG_IF(INFO, lock.ok()) << "the coordinator in " << run_dir << " is gone: its standby takes over";
  return lock;
}

// Null: the port is in use, or no address of this machine.
std::unique_ptr<grpc::Server> Listen(const std::string& address, const std::vector<grpc::Service*>& services,
                                     int* port) {
  grpc::ServerBuilder builder;
  ConfigureServer(&builder);
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), port);
  for (grpc::Service* service : services) builder.RegisterService(service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  return *port == 0 ? nullptr : std::move(server);
}

// The job's data, as the coordinator uses it.
struct ValidationData {
  std::unique_ptr<TokenFile> train;
  std::shared_ptr<const TokenFile> validation;
  int vocabulary = 0;
  // Of the validation split, by a model that knows only how often each token comes. Reads both files.
  // NaN where there is no text.
  double UnigramLoss() const {
    if (train == nullptr) return std::numeric_limits<double>::quiet_NaN();
    return wukong::UnigramLoss(train->tokens(), validation->tokens(), vocabulary);
  }
  std::unique_ptr<SampleReader> reader;
};

absl::StatusOr<ValidationData> OpenData(const Job& job) {
  if (job.model().synthetic() != SYNTHETIC_KIND_UNSPECIFIED) {
    ValidationData data;
    data.reader = std::make_unique<SampleReader>(SampleReader::Numbers());
    return data;
  }
  const absl::StatusOr<DataFiles> files = FindDataFiles(job.data());
  if (!files.ok()) return files.status();
  absl::StatusOr<std::unique_ptr<TokenFile>> validation = TokenFile::Open(files->validation);
  if (!validation.ok()) return validation.status();
  absl::StatusOr<std::unique_ptr<TokenFile>> train = TokenFile::Open(files->train);
  if (!train.ok()) return train.status();
  ValidationData data;
  data.train = *std::move(train);
  data.validation = *std::move(validation);
  data.vocabulary = job.model().vocabulary();
  absl::StatusOr<SampleReader> reader = SampleReader::Make(data.validation, job.model().context(), job.seed());
  if (!reader.ok()) return reader.status();
  data.reader = std::make_unique<SampleReader>(*std::move(reader));
  return data;
}

// Where this life of the coordinator begins: a new run, or the end of its log.
absl::StatusOr<RecoveredRoot> Begin(FileSystem* files, const CoordinatorOptions& options, const Clock& clock,
                                    Trainer* trainer) {
  const Job& job = options.job;
  if (options.resume) {
    absl::StatusOr<RecoveredRoot> recovered = RecoverRoot(files, options.run_dir, job, trainer);
    if (recovered.ok()) return recovered;
    if (recovered.status().code() == absl::StatusCode::kFailedPrecondition) {
      return absl::InvalidArgumentError(recovered.status().message());
    }
    // A coordinator that died before its first snapshot had told nobody anything.
    if (!absl::IsNotFound(recovered.status()) || !files->Size(options.run_dir + "/config.resolved.yaml").ok()) {
      return recovered.status();
    }
  }
  return BeginRun(files, options.run_dir, job, clock, trainer);
}

}  // namespace

absl::Status RunCoordinator(const CoordinatorOptions& options, const StopSignal& stop) {
  const Job& job = options.job;
  const RealClock clock;
  const absl::Time process_started = clock.Now();
  const std::string& run_dir = options.run_dir;
  std::unique_ptr<FaultyDisk> faulty_disk;
  if (job.fault_injection() == FAULT_INJECTION_ALLOWED) {
    faulty_disk = std::make_unique<FaultyDisk>(&clock, DeriveSeed(job.seed(), "coordinator.disk"));
  }
  FileSystem* const files = faulty_disk != nullptr ? faulty_disk.get() : FileSystem::Real();
  if (!options.crash_at.empty()) {
    if (absl::Status status = ArmFaultPoint("coordinator", options.crash_at); !status.ok()) return status;
  }
  if (absl::Status status = MakeDirectories(run_dir); !status.ok()) return status;
  const absl::StatusOr<ValidationData> data = OpenData(job);
  if (!data.ok()) return data.status();
  TrainerOptions trainer_options;
  trainer_options.threads = options.threads;
  const absl::StatusOr<std::unique_ptr<Trainer>> trainer = MakeTrainer(job, trainer_options);
  if (!trainer.ok()) return trainer.status();
  const ParameterLayout& layout = (*trainer)->layout();

  const absl::StatusOr<std::unique_ptr<FileLock>> lock = LockRunDirectory(files, options, stop);
  if (!lock.ok()) return lock.status();
  if (*lock == nullptr) return absl::OkStatus();
  const absl::Time life_began = options.standby ? clock.Now() : process_started;
  const bool holds_a_run =
      ::access((run_dir + "/events.jsonl").c_str(), F_OK) == 0 || ::access(LogDirectory(run_dir).c_str(), F_OK) == 0;
  if (!options.resume && holds_a_run) {
    return absl::AlreadyExistsError(absl::StrCat(
        "run directory ", run_dir, " holds another run; name a new one, remove it, or go on with it (--resume)"));
  }
  const std::string config = run_dir + "/config.resolved.yaml";
  if (!options.resume) {
    if (absl::Status status = WriteFileAtomic(config, options.resolved_yaml); !status.ok()) return status;
  }

  absl::StatusOr<RecoveredRoot> begun = Begin(files, options, clock, trainer->get());
  if (!begun.ok()) return begun.status();
  // Only now is it known that the directory is this job's.
  if (absl::Status status = WriteFileAtomic(config, options.resolved_yaml); !status.ok()) return status;
  ::unlink((run_dir + "/report.json").c_str());  // Of a part of the run that is over; the whole will have its own.
  absl::StatusOr<std::unique_ptr<JsonLinesWriter>> events = JsonLinesWriter::Open(run_dir + "/events.jsonl");
  if (!events.ok()) return events.status();
  absl::StatusOr<std::unique_ptr<JsonLinesWriter>> metrics = JsonLinesWriter::Open(run_dir + "/metrics.jsonl");
  if (!metrics.ok()) return metrics.status();
  const std::string run = begun->identity.run();
  ParameterServer::Restored restored = begun->replay->Restored();
  RootLog::Options log_options;
  log_options.fsync = options.fsync;
  log_options.snapshot_bytes = job.limits().snapshot_bytes();
  log_options.bytes_since_snapshot = begun->bytes_replayed;
  const absl::StatusOr<std::unique_ptr<RootLog>> opened =
      RootLog::Open(files, run_dir, begun->identity, restored.state, begun->log, log_options);
  if (!opened.ok()) return opened.status();
  RootLog* const log = opened->get();
  LogRecord term;
  term.mutable_term_begun()->set_term(restored.state.term() + 1);
  term.mutable_term_begun()->set_unix_ns(absl::ToUnixNanos(clock.WallNow()));
  term.mutable_term_begun()->set_pid(::getpid());
  term.mutable_term_begun()->set_host(HostName());
  log->Append(term);
  if (absl::Status status = log->MakeDurableOnce(); !status.ok()) return status;

  const RootState state = log->state();
  const bool started_before = state.started_unix_ns() > 0;
  CoordinatorService service(job, run, layout.schema_digest(), layout.size(), state, log, &clock, events->get(),
                             metrics->get());
  if (state.term() > 1) {
    service.RecordEvent({{"event", "resumed"},
                         {"term", state.term()},
                         {"version", state.version()},
                         {"snapshot", begun->snapshot},
                         {"records_replayed", begun->records_replayed},
                         {"log_bytes", begun->log.bytes},
                         {"seconds", absl::ToDoubleSeconds(clock.Now() - life_began)},
                         {"warnings", begun->warnings}});
    for (const std::string& warning : begun->warnings) LOG(WARNING) << warning;
    LOG(INFO) << "term " << state.term() << " goes on at version " << state.version() << ", " << begun->records_replayed
              << " records after " << begun->snapshot;
  }
  begun->replay.reset();

  ParameterServer::Hooks hooks;
  hooks.admit = [&](const Manifest& manifest, const LogRecord& accepted, std::string* detail) {
    Verdict verdict = VERDICT_UNSPECIFIED;
    service.With([&](CoordinatorCore& core, absl::Time) { verdict = core.Admit(manifest, accepted, detail); });
    return verdict;
  };
  hooks.record = [log](const LogRecord& record) { log->Append(record); };
  hooks.make_durable = [log] { return log->MakeDurable(); };
  hooks.on_merged = [&](const ParentNode::Apply& apply) {
    Json parts = Json::array();
    for (const Manifest& manifest : apply.manifests) {
      parts.push_back({{"member", manifest.sender.member.value()},
                       {"sequence", manifest.sequence.value()},
                       {"base", manifest.base.value()},
                       {"steps", manifest.steps},
                       {"tokens", manifest.tokens}});
    }
    service.With([&](CoordinatorCore& core, absl::Time now) { core.Merged(apply.manifests, now); });
    service.RecordEvent({{"event", "merged"}, {"staleness", apply.staleness_max}, {"contributions", parts}});
  };
  hooks.on_refused = [&](const Manifest& manifest, Verdict verdict, const std::string& detail) {
    service.With([&](CoordinatorCore& core, absl::Time) { core.Refused(manifest); });
    service.RecordEvent({{"event", "refused"},
                         {"member", manifest.sender.member.value()},
                         {"sequence", manifest.sequence.value()},
                         {"reason", VerdictName(verdict)},
                         {"detail", detail}});
  };
  int64_t merged_tokens = state.tokens_merged();  // The node's executor's.
  hooks.gradient_rate = [&](const ParentNode::Apply& apply) {
    for (const Manifest& manifest : apply.manifests) merged_tokens += manifest.tokens;
    // The rate for the tokens with this step's: a step at the very beginning would otherwise have a rate of zero.
    const int64_t step_tokens = StepSamples(job) * job.model().context();
    return LearningRate(job.optimizer(), job.stop().tokens(), merged_tokens + step_tokens);
  };
  hooks.gradient_step = [&](absl::Span<float> gradient, double learning_rate) -> absl::Status {
    absl::Span<float> target = (*trainer)->gradient();
    std::copy(gradient.begin(), gradient.end(), target.begin());
    if (absl::Status status = (*trainer)->PushGradient(); !status.ok()) return status;
    const absl::StatusOr<double> norm = (*trainer)->OptimizerStep(learning_rate);
    if (!norm.ok()) return norm.status();
    return (*trainer)->PullParameters();
  };
  Mutex fatal_mutex;
  absl::Status fatal;
  hooks.on_fatal = [&](const absl::Status& status) {
    MutexLock hold(fatal_mutex);
    fatal.Update(status);
  };
  const ParameterServer::Options root_options = RootOptions(job, layout);
  ParameterServer root(root_options, std::move(hooks), (*trainer)->parameters(), NotesOf(state), nullptr, &clock,
                       &restored);
  restored = ParameterServer::Restored();  // Kept, it would be three more vectors until the end.
  service.SetRoot(&root);
  std::unique_ptr<RootFaults> faults;
  if (faulty_disk != nullptr) {
    faults = std::make_unique<RootFaults>(
        faulty_disk.get(), &clock, DeriveSeed(job.seed(), "coordinator.faults", static_cast<uint64_t>(state.term())),
        RootFaults::Hooks{[&service](const Json& event) { service.RecordEvent(event); },
                          [&root] { return root.version(); }, CarryOutOnThisProcess, absl::SleepFor});
    service.SetFaults(faults.get());
  }

  Executor snapshots("snapshots");
  const auto take_snapshot = [&] {
    root.PostSnapshot([&](ParameterServer::Vectors vectors) {
      auto snapshot = std::make_shared<absl::StatusOr<Checkpoint>>(
          MakeSnapshot(log->identity(), log->state(), job.model().context(), trainer->get(), root_options.progress,
                       std::move(vectors)));
      snapshots.Post([&service, log, snapshot] {
        const absl::Status status = snapshot->ok() ? log->WriteSnapshot(**snapshot) : snapshot->status();
        if (!status.ok()) LOG(ERROR) << "no snapshot was taken, the log stays longer: " << status;
        service.RecordEvent({{"event", "snapshot"},
                             {"version", snapshot->ok() ? (**snapshot).state.version() : 0},
                             {"failure", std::string(status.message())}});
      });
    });
  };

  service.With([&](CoordinatorCore& core, absl::Time now) {
    if (!started_before) core.HoldStart(true, now);
    if (started_before) core.BackdateStart(now - (clock.WallNow() - absl::FromUnixNanos(state.started_unix_ns())));
  });
  int port = 0;
  std::unique_ptr<grpc::Server> server = Listen(options.listen, {&service, &root}, &port);
  // The kernel takes back a dead process's lock before its port.
  while (server == nullptr && options.standby && clock.Now() - life_began < kPortOfTheDead && !stop.WaitFor(kTick)) {
    server = Listen(options.listen, {&service, &root}, &port);
  }
  if (server == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("the coordinator cannot listen on ", options.listen,
                                                   ": the port is in use, or the address is not of this machine"));
  }
  const std::string host(options.listen.substr(0, options.listen.rfind(':')));
  const std::string address = absl::StrCat(host, ":", port);
  if (absl::Status status = WriteFileAtomic(run_dir + "/coordinator.address", address); !status.ok()) return status;
  LOG(INFO) << "run " << run << " of job " << job.name() << ": coordinator of term " << state.term() << " listens on "
            << address << " after " << clock.Now() - life_began;

  absl::StatusOr<double> initial_loss = state.validation_loss_initial();
  if (!started_before) {
    // While the other processes start. Nothing moves the parameters meanwhile: the node's executor is taken.
    root.RunExclusive([&](const ParentNode&) {
      initial_loss = Validate(trainer->get(), *data->reader, job.report().validation_tokens());
    });
    if (!initial_loss.ok()) return initial_loss.status();
    service.SetInitialLoss(*initial_loss);
    service.With([](CoordinatorCore& core, absl::Time now) { core.HoldStart(false, now); });
    LOG(INFO) << layout.size() << " parameters, validation loss " << *initial_loss << " (unigram "
              << data->UnigramLoss() << ")";
  }

  absl::Status outcome;
  CoordinatorCore::Phase phase = CoordinatorCore::Phase::kStarting;
  for (int tick = 0; phase == CoordinatorCore::Phase::kStarting || phase == CoordinatorCore::Phase::kTraining; ++tick) {
    const bool stopped = stop.WaitFor(kTick);
    absl::Status broken;
    {
      MutexLock hold(fatal_mutex);
      broken = fatal;
    }
    service.With([&](CoordinatorCore& core, absl::Time now) {
      if (stopped) {
        outcome = absl::CancelledError(absl::StrCat("stopped by a signal; --resume ", run_dir, " goes on"));
        core.Fail("the coordinator was stopped by a signal", now);
      } else if (!broken.ok()) {
        outcome = broken;
        core.Fail(std::string(broken.message()), now);
      }
      core.SetRootVersion(root.version());
      core.Tick(now);
      phase = core.phase();
      if (phase == CoordinatorCore::Phase::kFailed && outcome.ok()) {
        outcome = absl::AbortedError(core.failure());
      }
    });
    if (tick % kTicksOfRoot == 0) root.Tick();
    if (faults != nullptr) faults->Tick();
    if (log->ClaimSnapshot()) take_snapshot();
  }
  if (!outcome.ok()) log->Stop();  // A log that cannot be written keeps nobody waiting any more.

  // What is merged is merged: from here on nothing changes the parameters.
  Json report = {{"job", job.name()},         {"run", run},
                 {"seed", job.seed()},        {"preset", Preset_Name(job.strategy().preset())},
                 {"completed", outcome.ok()}, {"failure", std::string(outcome.message())}};
  absl::StatusOr<double> final_loss = *initial_loss;
  take_snapshot();
  root.RunExclusive([&](const ParentNode& node) {
    report["parameters"] = layout.size();
    report["versions"] = node.version().value();
    Json rejected = Json::object();
    for (const auto& [verdict, count] : node.stats().contributions) {
      if (verdict != VERDICT_ACCEPTED) rejected[VerdictName(verdict)] = count;
    }
    const auto accepted = node.stats().contributions.find(VERDICT_ACCEPTED);
    report["contributions"] = {{"accepted", accepted == node.stats().contributions.end() ? 0 : accepted->second},
                               {"rejected", rejected}};
    Json staleness = Json::object();
    for (const auto& [versions, count] : node.stats().staleness) staleness[std::to_string(versions)] = count;
    report["staleness"] = staleness;
    report["parameters_sha256"] = Sha256Hex(absl::MakeConstSpan((*trainer)->parameters()));
    if (outcome.ok()) final_loss = Validate(trainer->get(), *data->reader, job.report().validation_tokens());
  });
  if (!final_loss.ok()) outcome.Update(final_loss.status());
  const absl::Time farewell = clock.Now() + kFarewell;
  bool all_told = false;
  while (!all_told && clock.Now() < farewell) {
    if (faults != nullptr) faults->Tick();
    service.With([&](CoordinatorCore& core, absl::Time now) {
      core.Tick(now);
      all_told = core.AllToldFinish();
    });
    if (!all_told) stop.WaitFor(outcome.code() == absl::StatusCode::kCancelled ? absl::ZeroDuration() : kTick);
  }
  service.With([&](CoordinatorCore& core, absl::Time) { core.FillReport(&report); });
  const RootState end = log->Summary();
  report["term"] = end.term();
  Json& by_sender = report["contributions"]["rejected_by_sender"];  // At regions; what follows is at the root.
  for (const auto& [sender, count] : end.refused_by_sender()) {
    by_sender[sender] = by_sender.value(sender, int64_t{0}) + count;
  }
  // The account of the data: what is in the log, and what was computed besides.
  const auto account = [](int64_t computed, int64_t committed) {
    return Json{{"tokens_computed", computed},
                {"tokens_committed", committed},
                {"tokens_not_used", std::max<int64_t>(0, computed - committed)}};
  };
  Json regions = Json::object();
  for (const auto& [region, usage] : report["compute"]["regions"].items()) {
    const auto committed = end.tokens_by_region().find(region);
    regions[region] =
        account(usage["tokens_computed"], committed == end.tokens_by_region().end() ? 0 : committed->second);
  }
  report["ledger"] = {{"all", account(report["tokens_computed"], end.tokens_accepted())}, {"regions", regions}};
  report["log"] = {
      {"records", end.index()},
      {"durable_records", log->durable_index()},
      {"bytes", end.bytes()},
      {"bytes_per_committed_token",
       end.tokens_merged() > 0 ? static_cast<double>(end.bytes()) / static_cast<double>(end.tokens_merged()) : 0.0},
      {"telemetry_lines_dropped", service.lines_dropped()}};
  report["validation_loss_initial"] = *initial_loss;
  report["validation_loss_final"] = final_loss.ok() ? Json(*final_loss) : Json();
  report["validation_loss_unigram"] = data->UnigramLoss();
  report["coordinator_peak_memory_bytes"] = PeakMemoryBytes();
  report["coordinator_cpu_seconds"] = ProcessCpuSeconds();

  root.Shutdown();
  snapshots.Shutdown();
  outcome.Update(WriteFileAtomic(run_dir + "/report.json", report.dump(2) + "\n"));
  server->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(2));
  server->Wait();
  return outcome;
}

}  // namespace wukong
