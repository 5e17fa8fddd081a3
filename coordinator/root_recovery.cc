#include "coordinator/root_recovery.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "coordinator/coordinator_core.h"
#include "coordinator/root_log.h"
#include "coordinator/validation.h"
#include "glog/logging.h"
#include "runtime/base/digest.h"
#include "runtime/base/mutation.h"
#include "runtime/base/random.h"
#include "runtime/codec/codec.h"
#include "runtime/model/job_layout.h"
#include "runtime/sync/node_options.h"

namespace wukong {
namespace {

constexpr char kPublic[] = "public";
constexpr char kMomentum[] = "momentum";
constexpr char kBuffer[] = "buffer";
constexpr char kOptimizerVector[] = "optimizer.";  // Before the names of Trainer::OptimizerState.
constexpr char kOptimizerSteps[] = "optimizer_steps";

absl::StatusOr<LogRecord> ParseRecord(int64_t index, absl::string_view bytes) {
  LogRecord record;
  if (!record.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return absl::DataLossError(absl::StrFormat("record %d is no log record; was it written by a newer wukong?", index));
  }
  return record;
}

const std::vector<float>* Extra(const Checkpoint& snapshot, const char* name) {
  const auto found = snapshot.extra_vectors.find(name);
  return found == snapshot.extra_vectors.end() ? nullptr : &found->second;
}

absl::Status CopyExtra(const Checkpoint& snapshot, const char* name, absl::Span<float> to) {
  const std::vector<float>* values = Extra(snapshot, name);
  if (values == nullptr || values->size() != to.size()) {
    return absl::DataLossError(absl::StrFormat("the snapshot of version %d has no vector %s of %d values",
                                               snapshot.state.version(), name, to.size()));
  }
  std::copy(values->begin(), values->end(), to.begin());
  return absl::OkStatus();
}

absl::Status CheckIdentity(const LogIdentity& identity, const Job& job, const Trainer& trainer,
                           const std::string& what) {
  const ParameterLayout& layout = trainer.layout();
  if (identity.schema_digest() != layout.schema_digest()) {
    return absl::FailedPreconditionError(
        absl::StrFormat("%s belongs to another model: its parameters have schema digest %.12s, the job's have %.12s",
                        what, identity.schema_digest(), layout.schema_digest()));
  }
  if (identity.job_digest() != JobDigest(job)) {
    return absl::FailedPreconditionError(
        absl::StrFormat("%s belongs to another job (digest %.12s, this one has %.12s): a run goes on with the job it "
                        "began with; only stop.wall, report, limits (but for limits.fragment_bytes) and wan may change",
                        what, identity.job_digest(), JobDigest(job)));
  }
  const std::string& was = identity.cpu_capability();
  if (const std::string is = trainer.cpu_capability(); !was.empty() && was != is) {
    return absl::FailedPreconditionError(absl::StrCat(
        what, " was begun with the vector instructions ", was, " of libtorch, and here it uses ", is,
        ": the root's optimizer would give other bits, and its log replays only to the same. On a machine that has ",
        was, ", ATEN_CPU_CAPABILITY=", absl::AsciiStrToLower(was), " in the environment makes it the same"));
  }
  return absl::OkStatus();
}

// Events are written after the first record of the log is on the disk.
bool HasEvents(FileSystem* files, const std::string& run_dir) {
  const absl::StatusOr<int64_t> bytes = files->Size(run_dir + "/events.jsonl");
  return bytes.ok() && *bytes > 0;
}

// There is no snapshot. NOT_FOUND where there was no run either.
absl::Status NoSnapshot(FileSystem* files, const std::string& run_dir) {
  const auto ignore = [](int64_t, absl::string_view) { return absl::OkStatus(); };
  if (!absl::IsNotFound(ReadLog(files, LogDirectory(run_dir), 0, ignore).status())) {
    return absl::DataLossError(absl::StrCat("there is a log in ", LogDirectory(run_dir),
                                            " and no snapshot that it begins with in ", CheckpointDirectory(run_dir)));
  }
  if (HasEvents(files, run_dir)) {
    return absl::DataLossError(absl::StrCat(
        run_dir, " holds the events of a run (events.jsonl), and neither its log nor its snapshots: ",
        LogDirectory(run_dir), " and ", CheckpointDirectory(run_dir),
        " are missing or empty. Is a disk not mounted? Put them back, or begin a new run in another directory"));
  }
  return absl::NotFoundError(
      absl::StrCat(run_dir, " holds no run that could be resumed: there is no snapshot in ", run_dir, "/checkpoints"));
}

// There is no log after a snapshot. NOT_FOUND where there was none yet: it died before the first record.
absl::Status NoLog(FileSystem* files, const std::string& run_dir, const std::string& snapshot, int64_t index,
                   const absl::Status& missing) {
  if (index == 0 && !HasEvents(files, run_dir)) return missing;
  return absl::DataLossError(absl::StrCat(
      missing.message(), ", and ",
      index > 0 ? absl::StrFormat("the snapshot %s stands at record %d", snapshot, index)
                : absl::StrCat("the run has events (", run_dir, "/events.jsonl), which come after the first record"),
      ": is a disk not mounted? Put the log back, or resume from an exported checkpoint"));
}

// The oldest segments are never gone while a snapshot needs them.
absl::Status AsDataLoss(const absl::Status& status) {
  return absl::IsOutOfRange(status) ? absl::DataLossError(status.message()) : status;
}

std::string NewRunName(const Job& job, const Clock& clock) {
  return absl::StrCat(job.name(), "-", absl::FormatTime("%Y%m%dT%H%M%S", clock.WallNow(), absl::UTCTimeZone()), "-",
                      absl::Hex(DeriveSeed(static_cast<uint64_t>(absl::ToUnixNanos(clock.WallNow())), "run",
                                           static_cast<uint64_t>(::getpid())) &
                                    0xffff,
                                absl::kZeroPad4));
}

}  // namespace

ParameterServer::Options RootOptions(const Job& job, const ParameterLayout& layout) {
  ParameterServer::Options options;
  static_cast<NodeEngine::Options&>(options) = NodeOptionsOf(job, /*is_root=*/true, FragmentsOf(job, layout.size()));
  options.codec_up = job.strategy().root().codec_up();
  options.schema_digest = layout.schema_digest();
  options.tokens_per_sample = job.model().context();
  options.samples_per_step = LargestStep(job);
  options.in_flight_bytes = job.limits().in_flight_bytes();
  return options;
}

Job CommonJob(const Job& job) {
  Job common = job;
  common.mutable_stop()->clear_wall_ns();
  common.clear_report();
  common.clear_limits();
  common.mutable_limits()->set_fragment_bytes(job.limits().fragment_bytes());  // How payloads are cut.
  common.clear_wan();
  return common;
}

std::string JobDigest(const Job& job) { return Sha256Hex(CommonJob(job).SerializeAsString()); }

RootReplay::RootReplay(const Job& job, Trainer* trainer, const RootState& state)
    : job_(job),
      trainer_(trainer),
      options_(RootOptions(job, trainer->layout())),
      history_(state),
      outer_(trainer->parameters(), options_.fragments, options_.progress, options_.node.level.momentum() > 0,
             AverageRuleOf(options_.node.level)) {}

absl::StatusOr<std::unique_ptr<RootReplay>> RootReplay::Make(const Job& job, Trainer* trainer,
                                                             const Checkpoint* snapshot) {
  auto replay =
      std::unique_ptr<RootReplay>(new RootReplay(job, trainer, snapshot == nullptr ? RootState() : snapshot->state));
  const absl::Span<float> theta = trainer->parameters();
  const ParameterServer::Options& options = replay->options_;
  if (snapshot == nullptr) {
    replay->public_ = std::make_unique<PublicParameters>(theta, options.fragments, options.codec_down, VersionNotes());
    return replay;
  }
  if (snapshot->parameters.size() != theta.size()) {
    return absl::DataLossError(absl::StrFormat("the snapshot of version %d has %d parameters, the model has %d",
                                               snapshot->state.version(), snapshot->parameters.size(), theta.size()));
  }
  std::copy(snapshot->parameters.begin(), snapshot->parameters.end(), theta.begin());
  if (absl::Status status = trainer->PushParameters(); !status.ok()) return status;
  std::vector<float> public_values(theta.size());
  absl::Status status = CopyExtra(*snapshot, kPublic, absl::MakeSpan(public_values));
  if (status.ok() && !replay->outer_.momentum().empty()) {
    status = CopyExtra(*snapshot, kMomentum, replay->outer_.momentum());
    status.Update(CopyExtra(*snapshot, kBuffer, replay->outer_.buffer()));
  }
  if (!status.ok()) return status;
  replay->public_ = std::make_unique<PublicParameters>(public_values, options.fragments, options.codec_down,
                                                       VersionNotes(), Version(snapshot->state.version()));
  if (options.progress == PROGRESS_GRADIENT) {
    Trainer::OptimizerState optimizer;
    const auto steps = snapshot->notes.find(kOptimizerSteps);
    if (steps == snapshot->notes.end() || !absl::SimpleAtoi(steps->second, &optimizer.steps)) {
      return absl::DataLossError("the snapshot does not say how many steps its optimizer has made");
    }
    for (const auto& [name, values] : snapshot->extra_vectors) {
      absl::string_view vector = name;
      if (absl::ConsumePrefix(&vector, kOptimizerVector)) optimizer.vectors[std::string(vector)] = values;
    }
    if (status = trainer->LoadOptimizer(optimizer); !status.ok()) return absl::DataLossError(status.message());
  }
  return replay;
}

absl::Status RootReplay::Add(int64_t index, const LogRecord& record) {
  std::vector<std::shared_ptr<const EncodedVector>> payloads;
  Merge merge;
  if (record.has_merged()) {
    const Merged& merged = record.merged();
    for (int i = 0; i < merged.parts_size() && i < history_.unmerged().size(); ++i) {
      const ContributionAccepted& accepted = history_.unmerged()[i];
      auto payload = std::make_shared<EncodedVector>();
      payload->codec = accepted.header().codec();
      payload->fragments.assign(accepted.fragments().begin(), accepted.fragments().end());
      if (payload->checksum() != accepted.header().payload_checksum()) {
        return absl::DataLossError(
            absl::StrFormat("I12 is broken: the payload of contribution %d of member %d has "
                            "another digest than its sender gave",
                            accepted.header().sequence(), accepted.header().member()));
      }
      const absl::StatusOr<double> norm = CheckContribution(*payload, options_.fragments);
      if (!norm.ok()) return absl::DataLossError(absl::StrCat("I12 is broken: ", norm.status().message()));
      payloads.push_back(std::move(payload));
      merge.parts.push_back({Handle(i + 1), merged.parts(i).weight(), MemberId(merged.parts(i).member())});
    }
    merge.learning_rate = merged.learning_rate();
    merge.momentum = merged.momentum();
    merge.momentum_step = merged.momentum_step();
  }
  if (absl::Status status = history_.Add(index, record); !status.ok()) return status;
  if (record.has_merged()) {
    if (absl::Status status = outer_.Apply(merge, payloads); !status.ok()) return status;
    if (options_.progress == PROGRESS_GRADIENT) {
      const absl::Span<float> gradient = outer_.gradient();
      std::copy(gradient.begin(), gradient.end(), trainer_->gradient().begin());
      std::fill(gradient.begin(), gradient.end(), 0.0f);
      if (absl::Status status = trainer_->PushGradient(); !status.ok()) return status;
      const absl::StatusOr<double> norm = trainer_->OptimizerStep(record.merged().inner_learning_rate());
      if (!norm.ok()) return norm.status();
      if (absl::Status status = trainer_->PullParameters(); !status.ok()) return status;
    }
  } else if (record.has_published()) {
    if (record.published().previous_checksum() != public_->checksum()) {
      return absl::DataLossError(absl::StrFormat(
          "I9 is broken: record %d: version %d was told with checksum %016x, the replay has %016x", index,
          record.published().version() - 1, record.published().previous_checksum(), public_->checksum()));
    }
    if (absl::Status status = public_->Publish(trainer_->parameters(), VersionNotes()); !status.ok()) return status;
  }
  return absl::OkStatus();
}

ParameterServer::Restored RootReplay::Restored() {
  ParameterServer::Restored restored;
  restored.state = history_.state();
  uint64_t checksum = 0;
  restored.public_values = public_->Copy(&checksum);
  restored.momentum.assign(outer_.momentum().begin(), outer_.momentum().end());
  restored.buffer.assign(outer_.buffer().begin(), outer_.buffer().end());
  if (Mutated("recovery.forgets_momentum")) std::fill(restored.momentum.begin(), restored.momentum.end(), 0.0f);
  return restored;
}

absl::StatusOr<Checkpoint> RootReplay::Snapshot(const LogIdentity& identity) {
  ParameterServer::Vectors vectors;
  vectors.theta = trainer_->parameters();
  vectors.public_values = public_->Copy(&vectors.public_checksum);
  vectors.momentum = outer_.momentum();
  vectors.buffer = outer_.buffer();
  return MakeSnapshot(identity, history_.state(), job_.model().context(), trainer_, options_.progress,
                      std::move(vectors));
}

absl::StatusOr<Checkpoint> MakeSnapshot(const LogIdentity& identity, RootState state, int64_t context, Trainer* trainer,
                                        Progress progress, ParameterServer::Vectors vectors) {
  Checkpoint snapshot;
  snapshot.tensors = trainer->layout().tensors();
  snapshot.parameters.assign(vectors.theta.begin(), vectors.theta.end());
  snapshot.extra_vectors[kPublic] = std::move(vectors.public_values);
  if (Mutated("snapshot.public_copy_is_theta")) snapshot.extra_vectors[kPublic] = snapshot.parameters;
  if (!vectors.momentum.empty()) {
    snapshot.extra_vectors[kMomentum].assign(vectors.momentum.begin(), vectors.momentum.end());
    snapshot.extra_vectors[kBuffer].assign(vectors.buffer.begin(), vectors.buffer.end());
  }
  if (progress == PROGRESS_GRADIENT) {
    absl::StatusOr<Trainer::OptimizerState> optimizer = trainer->SaveOptimizer();
    if (!optimizer.ok()) return optimizer.status();
    snapshot.notes[kOptimizerSteps] = absl::StrCat(optimizer->steps);
    for (auto& [name, values] : optimizer->vectors) {
      snapshot.extra_vectors[absl::StrCat(kOptimizerVector, name)] = std::move(values);
    }
  }
  int64_t samples = 0;
  for (const SampleRange& range : state.committed()) samples += range.end() - range.begin();
  if (Mutated("snapshot.without_the_ledger")) state.clear_committed();
  if (Mutated("snapshot.without_the_members")) state.clear_members();
  if (Mutated("snapshot.without_the_unmerged")) state.clear_unmerged();
  snapshot.notes["committed_tokens"] = absl::StrCat(samples * context);
  state.set_public_checksum(vectors.public_checksum);
  snapshot.identity = identity;
  snapshot.state = std::move(state);
  return snapshot;
}

bool HoldsRun(FileSystem* files, const std::string& run_dir) {
  if (files->Size(run_dir + "/events.jsonl").ok() || files->List(LogDirectory(run_dir)).ok()) return true;
  const absl::StatusOr<std::vector<CheckpointFile>> snapshots = ListCheckpoints(files, CheckpointDirectory(run_dir));
  return snapshots.ok() && !snapshots->empty();
}

absl::Status CheckContributionBytes(const Job& job, const ParameterLayout& layout) {
  const ParameterServer::Options options = RootOptions(job, layout);
  const auto bytes = [&](const Level& level) {
    return static_cast<int64_t>(EncodedBytes(level.codec_up(), options.fragments));
  };
  const int64_t logged = bytes(job.strategy().root());
  const int64_t staged = std::max(logged, bytes(job.strategy().region()));
  if (logged > kContributionBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrFormat("strategy.root.codec_up: a contribution is one record of the root's log, and has %d bytes with "
                        "this codec and the model's %d parameters (expected at most %d)",
                        logged, layout.size(), kContributionBytesMax));
  }
  if (staged > options.in_flight_bytes) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "limits.in_flight_bytes: too small to hold one contribution of the model's %d parameters (expected at least %d "
        "bytes, got %d)",
        layout.size(), staged, options.in_flight_bytes));
  }
  return absl::OkStatus();
}

absl::StatusOr<RecoveredRoot> BeginRun(FileSystem* files, const std::string& run_dir, const Job& job,
                                       const Clock& clock, Trainer* trainer) {
  RecoveredRoot fresh;
  fresh.identity.set_format(1);
  fresh.identity.set_run(NewRunName(job, clock));
  fresh.identity.set_job_digest(JobDigest(job));
  fresh.identity.set_schema_digest(trainer->layout().schema_digest());
  fresh.identity.set_parameters(trainer->layout().size());
  if (RootOptions(job, trainer->layout()).progress == PROGRESS_GRADIENT) {
    fresh.identity.set_cpu_capability(trainer->cpu_capability());
  }
  if (absl::Status status = FingerprintInputs(job, &fresh.identity); !status.ok()) return status;
  if (!job.model().parameters().empty()) {
    const absl::StatusOr<std::vector<float>> parameters =
        ReadParametersFrom(files, job.model().parameters(), trainer->layout());
    if (!parameters.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("model.parameters: ", parameters.status().message()));
    }
    std::copy(parameters->begin(), parameters->end(), trainer->parameters().begin());
    if (absl::Status status = trainer->PushParameters(); !status.ok()) return status;
  }
  absl::StatusOr<std::unique_ptr<RootReplay>> replay = RootReplay::Make(job, trainer, nullptr);
  if (!replay.ok()) return replay.status();
  fresh.replay = *std::move(replay);
  absl::Status status = files->MakeDirectories(CheckpointDirectory(run_dir));
  if (!status.ok()) return status;
  const absl::StatusOr<Checkpoint> first = fresh.replay->Snapshot(fresh.identity);
  if (!first.ok()) return first.status();
  status = WriteCheckpoint(files, CheckpointPath(CheckpointDirectory(run_dir), 1), *first);
  if (!status.ok()) return status;
  return fresh;
}

absl::StatusOr<RecoveredRoot> RecoverRoot(FileSystem* files, const std::string& run_dir, const Job& job,
                                          Trainer* trainer) {
  RecoveredRoot recovered;
  absl::StatusOr<std::vector<CheckpointFile>> snapshots = ListCheckpoints(files, CheckpointDirectory(run_dir));
  if (!snapshots.ok()) return snapshots.status();
  if (snapshots->empty()) return NoSnapshot(files, run_dir);
  std::reverse(snapshots->begin(), snapshots->end());
  absl::Status failure;
  for (const CheckpointFile& file : *snapshots) {
    absl::StatusOr<Checkpoint> snapshot = ReadCheckpoint(files, file.path);
    if (!snapshot.ok()) {
      failure = snapshot.status();
      recovered.warnings.push_back(absl::StrCat("passed over a damaged snapshot: ", failure.message()));
      continue;
    }
    if (absl::Status status = CheckIdentity(snapshot->identity, job, *trainer, run_dir); !status.ok()) {
      return status;
    }
    absl::StatusOr<std::unique_ptr<RootReplay>> replay = RootReplay::Make(job, trainer, &*snapshot);
    if (!replay.ok()) return replay.status();
    // It has copied them; each is as large as the model.
    std::vector<float>().swap(snapshot->parameters);
    snapshot->extra_vectors.clear();
    absl::StatusOr<LogSummary> log = ReadLog(files, LogDirectory(run_dir), snapshot->state.index() + 1,
                                             [&](int64_t index, absl::string_view bytes) -> absl::Status {
                                               const absl::StatusOr<LogRecord> record = ParseRecord(index, bytes);
                                               if (!record.ok()) return record.status();
                                               ++recovered.records_replayed;
                                               recovered.bytes_replayed += static_cast<int64_t>(bytes.size());
                                               return (*replay)->Add(index, *record);
                                             });
    if (absl::IsNotFound(log.status())) {
      const absl::Status status = NoLog(files, run_dir, file.path, snapshot->state.index(), log.status());
      if (!absl::IsNotFound(status)) return status;
      log = LogSummary();  // It died before the first record.
      log->identity = snapshot->identity;
    }
    if (log.ok() && log->next_index <= snapshot->state.index()) {
      return absl::DataLossError(absl::StrFormat(
          "the log of %s ends with record %d, and the snapshot %s stands at record %d: segments are missing", run_dir,
          log->next_index - 1, file.path, snapshot->state.index()));
    }
    if (!log.ok()) return AsDataLoss(log.status());
    if (log->identity.format() != 0 && log->identity.run() != snapshot->identity.run()) {
      return absl::FailedPreconditionError(absl::StrFormat("%s is of run %s, and its log of run %s", file.path,
                                                           snapshot->identity.run(), log->identity.run()));
    }
    if (log->torn_bytes > 0) {
      recovered.warnings.push_back(absl::StrFormat("cut %d bytes of records that were never acknowledged from %s",
                                                   log->torn_bytes, log->last_segment));
    }
    recovered.replay = *std::move(replay);
    recovered.identity = snapshot->identity;
    recovered.log = *std::move(log);
    recovered.snapshot = file.path;
    return recovered;
  }
  return failure;
}

absl::Status VerifyRun(FileSystem* files, const std::string& run_dir, const Job& job, Trainer* trainer,
                       nlohmann::ordered_json* report) {
  absl::StatusOr<std::vector<CheckpointFile>> listed = ListCheckpoints(files, CheckpointDirectory(run_dir));
  if (!listed.ok()) return listed.status();
  if (listed->empty()) return NoSnapshot(files, run_dir);
  // I8: each is whole. The oldest is where the replay begins; the others are what it must arrive at.
  std::vector<Checkpoint> snapshots;
  for (const CheckpointFile& file : *listed) {
    absl::StatusOr<Checkpoint> snapshot = ReadCheckpoint(files, file.path);
    if (!snapshot.ok()) return snapshot.status();
    if (absl::Status status = CheckIdentity(snapshot->identity, job, *trainer, file.path); !status.ok()) {
      return status;
    }
    snapshots.push_back(*std::move(snapshot));
  }
  absl::StatusOr<std::unique_ptr<RootReplay>> made = RootReplay::Make(job, trainer, &snapshots.front());
  if (!made.ok()) return made.status();
  RootReplay& replay = **made;
  int64_t versions_checked = 0, snapshots_checked = 0, records = 0;
  const int64_t context = job.model().context();
  const auto compare = [&]() -> absl::Status {
    for (const Checkpoint& snapshot : snapshots) {
      if (snapshot.state.index() != replay.history().index()) continue;
      const absl::StatusOr<Checkpoint> own = replay.Snapshot(snapshot.identity);
      if (!own.ok()) return own.status();
      const bool same =
          Sha256Hex(absl::MakeConstSpan(own->parameters)) == Sha256Hex(absl::MakeConstSpan(snapshot.parameters)) &&
          own->extra_vectors.size() == snapshot.extra_vectors.size() &&
          std::equal(own->extra_vectors.begin(), own->extra_vectors.end(), snapshot.extra_vectors.begin(),
                     [](const auto& a, const auto& b) {
                       return a.first == b.first &&
                              Sha256Hex(absl::MakeConstSpan(a.second)) == Sha256Hex(absl::MakeConstSpan(b.second));
                     });
      if (!same) {
        return absl::DataLossError(absl::StrFormat(
            "I9 is broken: the snapshot of version %d is not what the log before it gives", snapshot.state.version()));
      }
      ++snapshots_checked;
    }
    return absl::OkStatus();
  };
  if (absl::Status status = compare(); !status.ok()) return status;
  const absl::StatusOr<LogSummary> log =
      ReadLog(files, LogDirectory(run_dir), snapshots.front().state.index() + 1,
              [&](int64_t index, absl::string_view bytes) -> absl::Status {
                const absl::StatusOr<LogRecord> record = ParseRecord(index, bytes);
                if (!record.ok()) return record.status();
                if (record->has_accepted()) {
                  const ContributionHeader& header = record->accepted().header();
                  int64_t samples = 0;
                  for (const SampleRange& range : header.ranges()) samples += range.end() - range.begin();
                  if (samples * context != header.tokens()) {
                    return absl::DataLossError(
                        absl::StrFormat("I10 is broken: record %d: %d tokens are claimed for %d samples of %d", index,
                                        header.tokens(), samples, context));
                  }
                }
                if (record->has_published()) ++versions_checked;
                ++records;
                if (absl::Status status = replay.Add(index, *record); !status.ok()) return status;
                return compare();
              });
  if (absl::IsNotFound(log.status())) {
    return NoLog(files, run_dir, listed->front().path, snapshots.front().state.index(), log.status());
  }
  if (!log.ok()) return AsDataLoss(log.status());
  const RootState state = replay.history().Summary();
  int64_t committed = 0;
  for (const SampleRange& range : state.committed()) committed += range.end() - range.begin();
  const int64_t total = TotalSamples(job);
  nlohmann::ordered_json& json = *report;
  json["run"] = log->identity.run();
  json["records"] = records;
  json["first_record"] = snapshots.front().state.index() + 1;
  json["segments"] = log->segments;
  json["log_bytes"] = log->bytes;
  json["torn_bytes"] = log->torn_bytes;
  json["terms"] = state.term();
  json["version"] = state.version();
  json["versions_checked"] = versions_checked;
  json["snapshots_checked"] = snapshots_checked;
  json["contributions_accepted"] = state.contributions_accepted();
  json["contributions_merged"] = state.contributions_merged();
  json["tokens_budget"] = total * context;
  json["tokens_committed"] = committed * context;
  nlohmann::ordered_json regions = nlohmann::ordered_json::object();
  for (const Region& region : job.regions()) {
    const auto tokens = state.tokens_by_region().find(region.name());
    regions[region.name()] = tokens == state.tokens_by_region().end() ? 0 : tokens->second;
  }
  for (const RootMember& member : state.members()) {
    if (regions.contains(member.region())) continue;  // Others came with --new-region.
    const auto tokens = state.tokens_by_region().find(member.region());
    regions[member.region()] = tokens == state.tokens_by_region().end() ? 0 : tokens->second;
  }
  json["tokens_committed_by_region"] = regions;
  json["samples_committed_twice"] = state.samples_accepted() - committed;
  json["complete"] = committed == total && state.unmerged_size() == 0;
  json["parameters_sha256"] = Sha256Hex(absl::MakeConstSpan(trainer->parameters()));
  if (snapshots_checked != static_cast<int64_t>(snapshots.size())) {
    return absl::DataLossError("I3 is broken: the log ends before the newest snapshot");
  }
  if (state.samples_accepted() != committed || state.tokens_accepted() != committed * context) {
    return absl::DataLossError(
        absl::StrFormat("I10 is broken: contributions claim %d samples and %d tokens, %d samples are committed",
                        state.samples_accepted(), state.tokens_accepted(), committed));
  }
  if (committed > total) {
    return absl::DataLossError(absl::StrFormat("I1 is broken: %d of %d samples are committed", committed, total));
  }
  return absl::OkStatus();
}

}  // namespace wukong
