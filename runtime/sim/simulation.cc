#include "runtime/sim/simulation.h"

#include <algorithm>
#include <memory>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "coordinator/root_recovery.h"
#include "runtime/base/digest.h"
#include "runtime/fault/link_shape.h"
#include "runtime/model/synthetic_trainer.h"
#include "runtime/sim/checkers.h"
#include "runtime/sim/timeline.h"
#include "runtime/sync/presets.h"

namespace wukong {
namespace {

// What the tape adds up to.
struct Account {
  std::set<std::tuple<int64_t, int64_t, int64_t>> acknowledged;  // By the root.
  std::map<std::tuple<int64_t, int64_t, int64_t>, int64_t> accepted;
  int64_t samples_acknowledged = 0;
  int64_t deaths = 0;
  int64_t versions = 0;
  std::map<int64_t, int64_t> staleness;
  absl::Duration last_merge = absl::InfiniteDuration();
  absl::Duration longest_pause;
  absl::Duration progress_since = absl::InfiniteDuration();  // When faults ended.
  absl::Duration last_progress;                              // Merge at the root since, or when they ended.

  void See(const TapeEvent& event) {
    const auto key = std::make_tuple(event.values[0], event.values[1], event.values[2]);
    if (event.kind == TapeEvent::kDied) ++deaths;
    if (event.who != "root") return;
    switch (event.kind) {
      case TapeEvent::kAccepted:
        accepted[key] = event.values[3];
        break;
      case TapeEvent::kAnswered:
        if (event.values[3] == VERDICT_ACCEPTED && acknowledged.insert(key).second) {
          samples_acknowledged += accepted[key];
        }
        break;
      case TapeEvent::kMerged:
        ++staleness[event.values[2]];
        last_progress = event.time;
        if (last_merge < event.time) longest_pause = std::max(longest_pause, event.time - last_merge);
        last_merge = event.time;
        break;
      case TapeEvent::kPublished:
        ++versions;
        break;
      default:
        break;
    }
  }
};

double SpeedOf(const Region& region, int worker) {
  if (region.speed_size() == 0) return 1;
  return region.speed(region.speed_size() == 1 ? 0 : worker);
}

// What a run is made of, in the order in which it must be taken down.
class Simulation {
 public:
  Simulation(const Scenario& scenario, const Job& job, uint64_t seed)
      : scenario_(scenario), world_(job, seed), model_(MakeSyntheticTrainer(job.model(), seed)) {
    world_.counts = scenario.workload().fidelity() == FIDELITY_COUNTER;
    root_ =
        std::make_unique<SimCoordinator>(&world_, scenario.workload(), absl::Nanoseconds(scenario.disk().sync_ns()));
    cast_.root = root_.get();
    for (int r = 0; r < scenario.regions_size(); ++r) {
      const Region& region = scenario.regions(r);
      world_.network.AddRegion(region.name(), ShapeOfLink(job.wan(), region.name(), DIRECTION_UP),
                               ShapeOfLink(job.wan(), region.name(), DIRECTION_DOWN));
      aggregators_.push_back(std::make_unique<SimAggregator>(&world_, root_.get(), model_->layout(), region.name(), r));
      cast_.aggregators.push_back(aggregators_.back().get());
      cast_.workers.emplace_back();
      for (int w = 0; w < region.workers(); ++w) {
        workers_.push_back(std::make_unique<SimWorker>(&world_, scenario.workload(), root_.get(),
                                                       aggregators_.back().get(), model_->layout(),
                                                       absl::StrCat(region.name(), "/worker-", w), SpeedOf(region, w)));
        cast_.workers.back().push_back(workers_.back().get());
        steps_per_second_ +=
            SpeedOf(region, w) / absl::ToDoubleSeconds(absl::Nanoseconds(scenario.workload().step_ns()));
      }
    }
    timeline_ = std::make_unique<Timeline>(scenario_, seed, &world_, cast_);
  }

  SimulationResult Run(const Tape::Watcher& watcher) {
    std::vector<std::unique_ptr<Checker>> checkers = MakeCheckers();
    for (const auto& checker : checkers) {
      world_.tape.Watch([&checker = *checker](const TapeEvent& event) { checker.See(event); });
    }
    Account account;
    world_.tape.Watch([&account](const TapeEvent& event) { account.See(event); });
    if (watcher) world_.tape.Watch(watcher);

    Launch(root_.get());
    for (const auto& aggregator : aggregators_) Launch(aggregator.get());
    for (const auto& worker : workers_) Launch(worker.get());
    timeline_->Begin();
    const auto after = absl::Nanoseconds(scenario_.quiesce().after_ns());
    if (after > absl::ZeroDuration()) {
      world_.queue.After(after, [this, &account] {
        Quiesce();
        account.progress_since = account.last_progress = world_.queue.elapsed();
      });
    }
    const absl::Time limit = absl::UnixEpoch() + absl::Nanoseconds(scenario_.expect().within_ns());
    while (!root_->done() && !Stalled(account) && world_.queue.RunOne(limit)) {
    }
    if (Stalled(account)) {
      stalled_ =
          absl::StrFormat("nothing was merged from %s to %s, although faults had ended at %s",
                          absl::FormatDuration(account.last_progress), absl::FormatDuration(world_.queue.elapsed()),
                          absl::FormatDuration(account.progress_since));
    }

    SimulationResult result;
    result.virtual_time = world_.queue.elapsed();
    result.events = world_.queue.executed();
    result.versions = account.versions;
    result.deaths = account.deaths;
    result.staleness = account.staleness;
    result.longest_pause = account.longest_pause;
    for (const auto& worker : workers_) {
      result.samples_trained += worker->samples_trained();
      result.compute_share += worker->compute_seconds();
    }
    const double seconds = std::max(1e-9, absl::ToDoubleSeconds(result.virtual_time));
    result.compute_share /= seconds * static_cast<double>(workers_.size());
    for (const auto& checker : checkers) result.verdicts[checker->name()] = checker->violation();
    JudgeLog(account, &result);
    result.goodput = static_cast<double>(result.samples_committed) /
                     (steps_per_second_ * scenario_.workload().micro_batch() * seconds);
    Judge(&result);
    result.tape_events = world_.tape.size();
    result.tape_hash = world_.tape.hash();
    return result;
  }

 private:
  void Quiesce() {
    Random random(DeriveSeed(world_.seed, "sim.quiesce"));
    timeline_->Heal();
    left_dead_ = timeline_->LeaveOut(DrawCore(scenario_, &random), &random);
    if (scenario_.restarts().after_ns() > 0) return;  // The dead are on their way.
    std::vector<SimProcess*> processes = {root_.get()};
    for (const auto& aggregator : aggregators_) processes.push_back(aggregator.get());
    for (const auto& worker : workers_) processes.push_back(worker.get());
    for (SimProcess* process : processes) {
      if (!process->alive() && left_dead_.count(process) == 0) Launch(process);
    }
  }

  // After faults ended, nothing is merged for too long although there is something left to merge.
  bool Stalled(const Account& account) const {
    return account.progress_since < absl::InfiniteDuration() && !root_->budget_committed() &&
           world_.queue.elapsed() - account.last_progress > absl::Nanoseconds(scenario_.quiesce().within_ns());
  }

  // Starts a process, and again after each death.
  void Launch(SimProcess* process) {
    process->OnDeath([this, process] {
      world_.Note(TapeEvent::kDied, process->name(), {process->life()});
      const auto after = absl::Nanoseconds(scenario_.restarts().after_ns());
      if (after <= absl::ZeroDuration()) return;
      world_.queue.After(after, [this, process] {
        if (!root_->done() && left_dead_.count(process) == 0) Launch(process);
      });
    });
    world_.Note(TapeEvent::kStarted, process->name(), {process->life()});
    process->Start();
  }

  // What is on the disk at the end, read as a stranger reads it.
  void JudgeLog(const Account& account, SimulationResult* result) {
    const auto replayed = MakeSyntheticTrainer(world_.job.model(), world_.seed);
    nlohmann::ordered_json report;
    const absl::Status verified = VerifyRun(&root_->disk(), "/run", world_.job, replayed.get(), &report);
    for (const char* invariant : {"I3", "I8", "I9", "I12"}) result->verdicts[invariant];
    if (!verified.ok()) {
      // "I9 is broken: ..." where it is one of them.
      const std::string text(verified.message());
      const std::string named = text.substr(0, text.find(' '));
      result->verdicts[result->verdicts.count(named) > 0 ? named : "I8"] = text;
      return;
    }
    result->samples_committed = report["tokens_committed"].get<int64_t>();
    result->parameters_sha256 = report["parameters_sha256"].get<std::string>();
    result->loss = replayed->Loss(replayed->parameters());
    // Every sample is committed once, so more acknowledged than committed samples means that something was lost.
    if (account.samples_acknowledged > result->samples_committed) {
      result->verdicts["I3"] = absl::StrFormat("%d samples were acknowledged, %d are in the log",
                                               account.samples_acknowledged, result->samples_committed);
    }
    const bool averages = world_.job.strategy().root().weight() != WEIGHT_SUM;
    if (world_.counts && !averages && report["complete"].get<bool>() &&
        replayed->Loss(replayed->parameters()) != static_cast<double>(result->samples_committed)) {
      result->verdicts["I10"] = absl::StrFormat("the model counts %.0f samples, the log %d",
                                                replayed->Loss(replayed->parameters()), result->samples_committed);
    }
    const std::vector<float> own = root_->parameters();
    if (!own.empty() && report["complete"].get<bool>() &&
        Sha256Hex(absl::MakeConstSpan(own)) != result->parameters_sha256) {
      result->verdicts["I9"] = "the root's parameters are not what its log replays to";
    }
  }

  void Judge(SimulationResult* result) {
    const Expect& expect = scenario_.expect();
    std::map<std::string, std::string>& verdicts = result->verdicts;
    if (!expect.invariants().empty()) {
      std::map<std::string, std::string> wanted;
      for (const std::string& invariant : expect.invariants()) wanted[invariant] = verdicts[invariant];
      verdicts = std::move(wanted);
    }
    std::string& complete = verdicts["I11"];
    if (!root_->failure().empty()) {
      complete = root_->failure();
    } else if (!stalled_.empty()) {
      complete = stalled_;
    } else if (result->samples_committed < TotalSamples(world_.job)) {
      complete = absl::StrFormat("%d of %d samples are committed after %s", result->samples_committed,
                                 TotalSamples(world_.job), absl::FormatDuration(result->virtual_time));
    }
    const std::vector<int64_t> observed = timeline_->Observed();
    std::vector<std::string> never;
    for (size_t i = 0; i < observed.size(); ++i) {
      const FaultKind kind = scenario_.timeline(static_cast<int>(i)).fault();
      result->faults_observed[absl::AsciiStrToLower(FaultKind_Name(kind).substr(11))] += observed[i];
      if (observed[i] == 0) never.push_back(absl::StrFormat("timeline[%d]", i));
    }
    if (absl::Nanoseconds(scenario_.quiesce().after_ns()) > result->virtual_time) never.emplace_back("quiesce");
    verdicts["fired"] = never.empty() ? "" : absl::StrJoin(never, ", ") + " never happened: this run shows nothing";
    if (expect.goodput_min() > 0) {
      verdicts["goodput_min"] =
          result->goodput >= expect.goodput_min()
              ? ""
              : absl::StrFormat("goodput is %.3f, expected at least %.3f", result->goodput, expect.goodput_min());
    }
    if (expect.gap_max() > 0) {
      verdicts["gap_max"] = result->loss <= expect.gap_max()
                                ? ""
                                : absl::StrFormat("the loss is %.6f above the optimum, expected at most %.6f",
                                                  result->loss, expect.gap_max());
    }
    if (expect.recovery_max_ns() > 0) {
      const auto most = absl::Nanoseconds(expect.recovery_max_ns());
      verdicts["recovery_max"] =
          result->longest_pause <= most
              ? ""
              : absl::StrFormat("nothing was merged for %s, expected at most %s",
                                absl::FormatDuration(result->longest_pause), absl::FormatDuration(most));
    }
  }

  const Scenario& scenario_;
  SimWorld world_;
  const std::unique_ptr<SyntheticTrainer> model_;  // For its layout.
  std::unique_ptr<SimCoordinator> root_;
  std::vector<std::unique_ptr<SimAggregator>> aggregators_;
  std::vector<std::unique_ptr<SimWorker>> workers_;
  SimCast cast_;
  std::unique_ptr<Timeline> timeline_;
  double steps_per_second_ = 0;
  std::set<const SimProcess*> left_dead_;  // For good.
  std::string stalled_;                    // When nothing was merged after faults had ended; empty otherwise.
};

}  // namespace

bool SimulationResult::passed() const {
  return std::all_of(verdicts.begin(), verdicts.end(), [](const auto& verdict) { return verdict.second.empty(); });
}

absl::StatusOr<Job> JobOfScenario(const Scenario& scenario) {
  Job job;
  job.set_name(scenario.name());
  job.set_seed(scenario.seed());
  job.mutable_model()->set_context(1);
  job.mutable_model()->set_vocabulary(2);
  const Workload& workload = scenario.workload();
  job.mutable_model()->set_synthetic(workload.fidelity() == FIDELITY_TOY ? SYNTHETIC_KIND_TOY : SYNTHETIC_KIND_COUNTER);
  job.mutable_model()->set_size(workload.parameters());
  job.mutable_model()->set_step_ns(workload.step_ns());
  job.mutable_model()->set_step_jitter(workload.step_jitter());
  if (workload.fidelity() == FIDELITY_TOY) job.mutable_model()->set_noise(workload.noise());
  job.mutable_data()->set_range_steps(workload.range_steps());
  Optimizer* optimizer = job.mutable_optimizer();
  optimizer->set_learning_rate(workload.learning_rate());
  optimizer->set_final_learning_rate_fraction(1);
  optimizer->set_decay(DECAY_CONSTANT);
  optimizer->set_micro_batch(workload.micro_batch());
  optimizer->set_accumulation(1);
  optimizer->set_epsilon(1e-8);  // Nobody uses it; a job file must have one.
  *job.mutable_strategy() = scenario.strategy();
  if (workload.fidelity() == FIDELITY_COUNTER) {
    for (Level* level : {job.mutable_strategy()->mutable_region(), job.mutable_strategy()->mutable_root()}) {
      if (!level->has_weight()) level->set_weight(WEIGHT_SUM);
      if (!level->has_learning_rate()) level->set_learning_rate(1);
      if (!level->has_momentum()) level->set_momentum(0);
      if (!level->has_codec_up()) level->set_codec_up(CODEC_KIND_FP32);
      if (!level->has_codec_down()) level->set_codec_down(CODEC_KIND_FP32);
    }
  }
  *job.mutable_regions() = scenario.regions();
  *job.mutable_wan() = scenario.wan();
  job.mutable_stop()->set_tokens(workload.samples());
  *job.mutable_limits() = scenario.limits();
  if (absl::Status status = ResolveStrategy(&job); !status.ok()) return status;
  return job;
}

std::vector<ScenarioProblem> FindScenarioProblems(const Scenario& scenario) {
  std::vector<ScenarioProblem> problems;
  const auto add = [&](const std::string& key, const std::string& reason) { problems.push_back({key, reason}); };
  std::set<std::string> names;
  for (int r = 0; r < scenario.regions_size(); ++r) {
    const Region& region = scenario.regions(r);
    const std::string key = absl::StrCat("regions[", r, "]");
    if (!names.insert(region.name()).second) add(key + ".name", "another region has this name");
    if (region.name() == "root") add(key + ".name", "root is the root's");
    if (region.speed_size() > 1 && region.speed_size() != region.workers()) {
      add(key + ".speed", absl::StrCat(region.speed_size(), " speeds for ", region.workers(), " workers"));
    }
    if (region.collective() == COLLECTIVE_GLOO) add(key + ".collective", "collectives are not simulated");
  }
  for (int l = 0; l < scenario.wan().links_size(); ++l) {
    if (names.count(scenario.wan().links(l).region()) == 0) {
      add(absl::StrCat("wan.links[", l, "].region"), "there is no such region");
    }
  }
  const bool counts = scenario.workload().fidelity() == FIDELITY_COUNTER;
  if (counts && scenario.workload().samples() >= (1 << 24)) {
    add("workload.samples", "a counter is exact below 16777216 samples");
  }
  if (scenario.expect().gap_max() > 0 && counts) {
    add("expect.gap_max", "a counter has no loss; this can be checked with fidelity toy");
  }
  static const std::set<std::string> kInvariants = {"I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9", "I10", "I12"};
  for (int i = 0; i < scenario.expect().invariants_size(); ++i) {
    if (kInvariants.count(scenario.expect().invariants(i)) == 0) {
      add(absl::StrCat("expect.invariants[", i, "]"),
          absl::StrCat("cannot be checked (expected ", absl::StrJoin(kInvariants, ", "), ")"));
    }
  }
  for (int i = 0; i < scenario.timeline_size(); ++i) {
    const Fault& fault = scenario.timeline(i);
    const std::string key = absl::StrCat("timeline[", i, "]");
    const int triggers =
        (fault.has_at_ns() ? 1 : 0) + (fault.has_every_ns() ? 1 : 0) + (fault.on() != FAULT_PLACE_UNSPECIFIED ? 1 : 0);
    if (triggers != 1) add(key, "says when in more than one way, or not at all (expected one of at, every and on)");
    if (fault.has_until_ns() && !fault.has_every_ns()) add(key + ".until", "is for faults that happen every so often");
    const FaultKind kind = fault.fault();
    const bool on_disk = kind == FAULT_KIND_POWER_LOSS || kind == FAULT_KIND_DISK_FULL || kind == FAULT_KIND_DISK_ERROR;
    const bool on_worker =
        kind == FAULT_KIND_SLOW || kind == FAULT_KIND_NAN || kind == FAULT_KIND_SIGN_FLIP || kind == FAULT_KIND_SCALE;
    const bool on_process = kind == FAULT_KIND_KILL || kind == FAULT_KIND_FREEZE || kind == FAULT_KIND_CLOCK_SKEW;
    if (fault.target_size() == 0 && !on_disk) add(key, "has no target");
    for (int t = 0; t < fault.target_size(); ++t) {
      const std::string at = absl::StrCat(key, ".target[", t, "]");
      const auto targets = ResolveTarget(scenario, fault.target(t));
      if (!targets.ok()) {
        add(at, std::string(targets.status().message()));
        continue;
      }
      for (const FaultTarget& target : *targets) {
        const char* wrong = nullptr;
        if (on_disk && !target.root()) wrong = "only the root has a disk";
        if (on_worker && (target.root() || target.worker < 0))
          wrong = "this happens to workers (expected REGION/worker-N)";
        if (!on_disk && !on_worker && !on_process && (target.root() || target.worker >= 0)) {
          wrong = "this happens to a region's link (expected REGION)";
        }
        if (wrong != nullptr) {
          add(at, wrong);
          break;
        }
      }
    }
    const bool needs_factor = kind == FAULT_KIND_SLOW || kind == FAULT_KIND_BANDWIDTH || kind == FAULT_KIND_LATENCY ||
                              kind == FAULT_KIND_SCALE || kind == FAULT_KIND_CLOCK_SKEW;
    if (needs_factor != fault.has_factor()) {
      add(key + ".factor", needs_factor ? "is missing: how much?" : "means nothing for this fault");
    }
    const bool needs_probability = kind == FAULT_KIND_LOSS || kind == FAULT_KIND_DUPLICATE ||
                                   kind == FAULT_KIND_REORDER || kind == FAULT_KIND_CORRUPT;
    if (needs_probability != fault.has_probability()) {
      add(key + ".probability", needs_probability ? "is missing: how often?" : "means nothing for this fault");
    }
    if (kind == FAULT_KIND_BANDWIDTH && scenario.wan().bandwidth_bps() == 0) {
      add(key + ".fault", "the link's bandwidth is unlimited (set wan.bandwidth)");
    }
    if (kind == FAULT_KIND_CLOCK_SKEW && fault.factor() > 0.5)
      add(key + ".factor", "a clock may be off by at most 0.5");
    const bool lasts = kind != FAULT_KIND_KILL && kind != FAULT_KIND_POWER_LOSS;
    if (!lasts && fault.has_for_ns()) add(key + ".for", "means nothing here: restarts.after says when it comes back");
    if (lasts && !fault.has_for_ns() &&
        (kind == FAULT_KIND_FREEZE || kind == FAULT_KIND_CUT || kind == FAULT_KIND_DISK_FULL ||
         kind == FAULT_KIND_DISK_ERROR)) {
      add(key + ".for", "is missing: without an end the run cannot go on");
    }
  }
  const absl::StatusOr<Job> job = JobOfScenario(scenario);
  if (!job.ok()) {
    add("strategy", std::string(job.status().message()));
  } else {
    for (const StrategyProblem& problem : FindStrategyProblems(*job)) add(problem.key, problem.reason);
    for (const Level* level : {&job->strategy().region(), &job->strategy().root()}) {
      const bool exact = level->weight() == WEIGHT_SUM && level->learning_rate() == 1 && level->momentum() == 0 &&
                         level->codec_up() == CODEC_KIND_FP32 && level->codec_down() == CODEC_KIND_FP32;
      if (counts && !exact) {
        add(level == &job->strategy().root() ? "strategy.root" : "strategy.region",
            "a counter needs weight sum, learning_rate 1, momentum 0 and codecs fp32 (leave them unset)");
      }
    }
  }
  return problems;
}

absl::StatusOr<SimulationResult> RunSimulation(const Scenario& scenario, uint64_t seed, const Tape::Watcher& watcher) {
  const std::vector<ScenarioProblem> problems = FindScenarioProblems(scenario);
  if (!problems.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(problems[0].key, ": ", problems[0].reason));
  }
  absl::StatusOr<Job> job = JobOfScenario(scenario);
  if (!job.ok()) return job.status();
  job->set_seed(seed);
  return Simulation(scenario, *job, seed).Run(watcher);
}

}  // namespace wukong
