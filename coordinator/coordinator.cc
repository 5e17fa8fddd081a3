#include "coordinator/coordinator.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "coordinator/coordinator_core.h"
#include "glog/logging.h"
#include "proto/wire.grpc.pb.h"
#include "runtime/base/clock.h"
#include "runtime/base/digest.h"
#include "runtime/base/file.h"
#include "runtime/base/random.h"
#include "runtime/data/token_dataset.h"
#include "runtime/model/trainer.h"
#include "runtime/sync/learning_rate.h"
#include "runtime/transport/grpc_options.h"
#include "runtime/transport/parameter_server.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

constexpr absl::Duration kTick = absl::Milliseconds(50);
constexpr absl::Duration kFarewell = absl::Seconds(5);  // For members to hear that the run is over.

// The core behind a mutex, its effects carried out in the order in which they were decided.
class CoordinatorService final : public Coordinator::Service {
 public:
  CoordinatorService(const Job& job, const std::string& run, const std::string& schema_digest, int64_t parameters,
                     const Clock* clock, JsonLinesWriter* events, JsonLinesWriter* metrics)
      : clock_(clock),
        started_(clock->Now()),
        events_(events),
        metrics_(metrics),
        core_(job, run, schema_digest, parameters, clock->Now()) {}

  // Before the first call that has effects on the root.
  void SetRoot(ParameterServer* root) {
    MutexLock lock(mutex_);
    root_ = root;
  }

  grpc::Status GetJob(grpc::ServerContext*, const GetJobRequest* request, GetJobReply* reply) override {
    return Call(reply, [&](CoordinatorCore& core, absl::Time) { return core.GetJob(*request); });
  }
  grpc::Status Join(grpc::ServerContext*, const JoinRequest* request, JoinReply* reply) override {
    return Call(reply, [&](CoordinatorCore& core, absl::Time now) { return core.Join(*request, now); });
  }
  grpc::Status Heartbeat(grpc::ServerContext*, const HeartbeatRequest* request, HeartbeatReply* reply) override {
    return Call(reply, [&](CoordinatorCore& core, absl::Time now) { return core.Heartbeat(*request, now); });
  }
  grpc::Status GetStatus(grpc::ServerContext*, const StatusRequest*, StatusReply* reply) override {
    With([&](CoordinatorCore& core, absl::Time now) { core.FillStatus(reply, now); });
    return grpc::Status::OK;
  }

  // Runs `use(core, now)` alone, then the effects. `use` must not call the root.
  template <typename Use>
  void With(Use use) {
    std::vector<CoordinatorCore::Effect> effects;
    ParameterServer* root = nullptr;
    {
      MutexLock lock(mutex_);
      use(core_, clock_->Now());
      effects = core_.TakeEffects();
      root = root_;
    }
    // Posting to the root is ordered enough outside the lock: fences and idle sets say how things stand, not what
    // changed.
    for (const CoordinatorCore::Effect& effect : effects) Carry(effect, root);
  }

  void RecordEvent(Json event) { Carry(CoordinatorCore::Record{std::move(event)}, nullptr); }
  // The first failed write of events or metrics.
  absl::Status write_status() const {
    MutexLock lock(write_mutex_);
    return write_status_;
  }

 private:
  template <typename Reply, typename Use>
  grpc::Status Call(Reply* reply, Use use) {
    absl::Status status;
    With([&](CoordinatorCore& core, absl::Time now) {
      absl::StatusOr<Reply> result = use(core, now);
      status = result.status();
      if (result.ok()) *reply = *std::move(result);
    });
    return ToGrpc(status);
  }

  double Seconds() const { return absl::ToDoubleSeconds(clock_->Now() - started_); }

  void Keep(const absl::Status& status) {
    if (status.ok()) return;
    MutexLock lock(write_mutex_);
    write_status_.Update(status);
  }

  void Carry(const CoordinatorCore::Effect& effect, ParameterServer* root) {
    if (const auto* fence = std::get_if<CoordinatorCore::FenceChild>(&effect)) {
      if (root != nullptr) root->Fence(fence->child, [](const std::vector<LeasedRange>&) {});
    } else if (const auto* idle = std::get_if<CoordinatorCore::SetIdle>(&effect)) {
      if (root != nullptr) root->SetIdle(idle->idle);
    } else if (const auto* record = std::get_if<CoordinatorCore::Record>(&effect)) {
      Json line = {{"time", absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", clock_->WallNow(), absl::UTCTimeZone())},
                   {"seconds", std::round(Seconds() * 1e3) / 1e3}};
      line.update(record->event);
      Keep(events_->Write(line));
    } else if (const auto* steps = std::get_if<CoordinatorCore::RecordSteps>(&effect)) {
      for (const StepRecord& step : steps->steps) {
        Keep(metrics_->Write({{"time", step.time_seconds()},
                              {"region", steps->region},
                              {"worker", steps->worker},
                              {"step", step.step()},
                              {"tokens", step.tokens()},
                              {"loss", step.loss()},
                              {"compute_seconds", step.compute_seconds()},
                              {"wait_seconds", step.wait_seconds()},
                              {"staleness", steps->root_version.value() - step.root_base_version()},
                              {"learning_rate", step.learning_rate()},
                              {"gradient_norm", step.gradient_norm()}}));
      }
    }
  }

  const Clock* const clock_;
  const absl::Time started_;
  JsonLinesWriter* const events_;
  JsonLinesWriter* const metrics_;
  Mutex mutex_;
  CoordinatorCore core_ ABSL_GUARDED_BY(mutex_);
  ParameterServer* root_ ABSL_GUARDED_BY(mutex_) = nullptr;
  mutable Mutex write_mutex_;
  absl::Status write_status_ ABSL_GUARDED_BY(write_mutex_);
};

int64_t PeakMemoryBytes() {
  struct rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * 1024;
}

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

std::string NewRunName(const Job& job, const Clock& clock) {
  return absl::StrCat(job.name(), "-", absl::FormatTime("%Y%m%dT%H%M%S", clock.WallNow(), absl::UTCTimeZone()), "-",
                      absl::Hex(DeriveSeed(static_cast<uint64_t>(absl::ToUnixNanos(clock.WallNow())), "run",
                                           static_cast<uint64_t>(::getpid())) &
                                    0xffff,
                                absl::kZeroPad4));
}

ParameterServer::Options RootOptions(const Job& job, const ParameterLayout& layout) {
  const Strategy& strategy = job.strategy();
  ParameterServer::Options options;
  options.node.is_root = true;
  options.node.level = strategy.root();
  options.node.waits = strategy.in_flight() == IN_FLIGHT_WAIT;
  options.node.in_flight_max = strategy.in_flight_max();
  options.progress = strategy.progress();
  options.codec_up = strategy.root().codec_up();
  options.codec_down = strategy.root().codec_down();
  options.fragments = CutFragments(layout.size(), job.limits().fragment_bytes());
  options.schema_digest = layout.schema_digest();
  options.in_flight_bytes = job.limits().in_flight_bytes();
  return options;
}

}  // namespace

absl::Status RunCoordinator(const CoordinatorOptions& options, const StopSignal& stop) {
  const Job& job = options.job;
  const RealClock clock;
  const std::string& run_dir = options.run_dir;
  if (absl::Status status = MakeDirectories(run_dir); !status.ok()) return status;
  if (::access((run_dir + "/events.jsonl").c_str(), F_OK) == 0) {
    return absl::AlreadyExistsError(
        absl::StrCat("run directory ", run_dir, " holds another run; name a new one, or remove it"));
  }
  if (absl::Status status = WriteFileAtomic(run_dir + "/config.resolved.yaml", options.resolved_yaml); !status.ok()) {
    return status;
  }
  absl::StatusOr<std::unique_ptr<JsonLinesWriter>> events = JsonLinesWriter::Open(run_dir + "/events.jsonl");
  if (!events.ok()) return events.status();
  absl::StatusOr<std::unique_ptr<JsonLinesWriter>> metrics = JsonLinesWriter::Open(run_dir + "/metrics.jsonl");
  if (!metrics.ok()) return metrics.status();

  const absl::StatusOr<DataFiles> files = FindDataFiles(job.data());
  if (!files.ok()) return files.status();
  absl::StatusOr<std::unique_ptr<TokenFile>> validation_file = TokenFile::Open(files->validation);
  if (!validation_file.ok()) return validation_file.status();
  absl::StatusOr<std::unique_ptr<TokenFile>> train_file = TokenFile::Open(files->train);
  if (!train_file.ok()) return train_file.status();
  const double unigram_loss =
      UnigramLoss((*train_file)->tokens(), (*validation_file)->tokens(), job.model().vocabulary());
  const absl::StatusOr<SampleReader> validation = SampleReader::Make(
      std::shared_ptr<const TokenFile>(*std::move(validation_file)), job.model().context(), job.seed());
  if (!validation.ok()) return validation.status();

  TrainerOptions trainer_options;
  trainer_options.threads = options.threads;
  const absl::StatusOr<std::unique_ptr<Trainer>> trainer = MakeTrainer(job, trainer_options);
  if (!trainer.ok()) return trainer.status();
  const ParameterLayout& layout = (*trainer)->layout();

  const std::string run = NewRunName(job, clock);
  CoordinatorService service(job, run, layout.schema_digest(), layout.size(), &clock, events->get(), metrics->get());
  ParameterServer::Hooks hooks;
  hooks.admit = [&](const Manifest& manifest, std::string* detail) {
    Verdict verdict = VERDICT_UNSPECIFIED;
    service.With([&](CoordinatorCore& core, absl::Time) { verdict = core.Admit(manifest, detail); });
    return verdict;
  };
  int64_t merged_tokens = 0;  // The node's executor's.
  hooks.on_merged = [&](const ParentNode::Apply& apply) {
    Json parts = Json::array();
    for (const Manifest& manifest : apply.manifests) {
      merged_tokens += manifest.tokens;
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
  hooks.gradient_step = [&](absl::Span<float> gradient) -> absl::Status {
    absl::Span<float> target = (*trainer)->gradient();
    std::copy(gradient.begin(), gradient.end(), target.begin());
    if (absl::Status status = (*trainer)->PushGradient(); !status.ok()) return status;
    // The rate for the tokens with this step's: a step at the very beginning would otherwise have a rate of zero.
    const int64_t step_tokens = StepSamples(job) * job.model().context();
    const absl::StatusOr<double> norm =
        (*trainer)->OptimizerStep(LearningRate(job.optimizer(), job.stop().tokens(), merged_tokens + step_tokens));
    if (!norm.ok()) return norm.status();
    return (*trainer)->PullParameters();
  };
  Mutex fatal_mutex;
  absl::Status fatal;
  hooks.on_fatal = [&](const absl::Status& status) {
    MutexLock lock(fatal_mutex);
    fatal.Update(status);
  };
  VersionNotes notes;
  notes.root_version = Version(1);
  ParameterServer root(RootOptions(job, layout), std::move(hooks), (*trainer)->parameters(), notes, nullptr, &clock);
  service.SetRoot(&root);

  grpc::ServerBuilder builder;
  ConfigureServer(&builder);
  int port = 0;
  builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&service);
  builder.RegisterService(&root);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) {
    return absl::InvalidArgumentError(absl::StrCat("the coordinator cannot listen on ", options.listen,
                                                   ": the port is in use, or the address is not of this machine"));
  }
  const std::string host(options.listen.substr(0, options.listen.rfind(':')));
  const std::string address = absl::StrCat(host, ":", port);
  if (absl::Status status = WriteFileAtomic(run_dir + "/coordinator.address", address); !status.ok()) return status;
  LOG(INFO) << "run " << run << " of job " << job.name() << ": coordinator listens on " << address;

  // While the other processes start. Nothing moves the parameters meanwhile: the node's executor is taken.
  absl::StatusOr<double> initial_loss = absl::UnknownError("not evaluated");
  root.RunExclusive([&](const ParentNode&) {
    initial_loss = Validate(trainer->get(), *validation, job.report().validation_tokens());
  });
  if (!initial_loss.ok()) return initial_loss.status();
  LOG(INFO) << layout.size() << " parameters, validation loss " << *initial_loss << " (unigram " << unigram_loss << ")";

  absl::Status outcome;
  CoordinatorCore::Phase phase = CoordinatorCore::Phase::kStarting;
  while (phase == CoordinatorCore::Phase::kStarting || phase == CoordinatorCore::Phase::kTraining) {
    const bool stopped = stop.WaitFor(kTick);
    absl::Status broken = service.write_status();
    {
      MutexLock lock(fatal_mutex);
      broken.Update(fatal);
    }
    service.With([&](CoordinatorCore& core, absl::Time now) {
      if (stopped) {
        outcome = absl::CancelledError("stopped by a signal");
        core.Fail("the coordinator was stopped by a signal", now);
      } else if (!broken.ok()) {
        outcome = broken;
        core.Fail(std::string(broken.message()), now);
      }
      core.Tick(now);
      phase = core.phase();
      if (phase == CoordinatorCore::Phase::kFailed && outcome.ok()) {
        outcome = absl::AbortedError(core.failure());
      }
    });
    root.Tick();
    root.RunExclusive([&](const ParentNode& node) {
      service.With([&](CoordinatorCore& core, absl::Time) { core.SetRootVersion(node.version()); });
    });
  }

  // What is merged is merged: from here on nothing changes the parameters.
  Json report = {{"job", job.name()},         {"run", run},
                 {"seed", job.seed()},        {"preset", Preset_Name(job.strategy().preset())},
                 {"completed", outcome.ok()}, {"failure", std::string(outcome.message())}};
  absl::StatusOr<double> final_loss = *initial_loss;
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
    if (outcome.ok()) final_loss = Validate(trainer->get(), *validation, job.report().validation_tokens());
  });
  if (!final_loss.ok()) outcome.Update(final_loss.status());
  const absl::Time farewell = clock.Now() + kFarewell;
  bool all_told = false;
  while (!all_told && clock.Now() < farewell) {
    service.With([&](CoordinatorCore& core, absl::Time now) {
      core.Tick(now);
      all_told = core.AllToldFinish();
    });
    if (!all_told) stop.WaitFor(outcome.code() == absl::StatusCode::kCancelled ? absl::ZeroDuration() : kTick);
  }
  service.With([&](CoordinatorCore& core, absl::Time) { core.FillReport(&report); });
  report["validation_loss_initial"] = *initial_loss;
  report["validation_loss_final"] = final_loss.ok() ? Json(*final_loss) : Json();
  report["validation_loss_unigram"] = unigram_loss;
  report["coordinator_peak_memory_bytes"] = PeakMemoryBytes();
  outcome.Update(WriteFileAtomic(run_dir + "/report.json", report.dump(2) + "\n"));

  root.Shutdown();
  server->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(2));
  server->Wait();
  return outcome;
}

}  // namespace wukong
