#include "runtime/sim/simulation.h"
#include "runtime/fault/fault_schedule.h"
#include "runtime/sim/scenario_problems.h"

#include <algorithm>
#include <memory>
#include <set>
#include <tuple>
#include <utility>

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

constexpr int64_t kCurvePoints = 200;  // Of the loss of a real model.

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
  Simulation(const Scenario& scenario, const Job& job, uint64_t seed, SimModel* model)
      : scenario_(scenario), world_(job, seed, model) {
    world_.counts = scenario.workload().fidelity() == FIDELITY_COUNTER;
    root_ =
        std::make_unique<SimCoordinator>(&world_, scenario.workload(), absl::Nanoseconds(scenario.disk().sync_ns()));
    cast_.root = root_.get();
    for (int r = 0; r < scenario.regions_size(); ++r) {
      const Region& region = scenario.regions(r);
      world_.network.AddRegion(region.name(), ShapeOfLink(job.wan(), region.name(), DIRECTION_UP),
                               ShapeOfLink(job.wan(), region.name(), DIRECTION_DOWN));
      aggregators_.push_back(std::make_unique<SimAggregator>(&world_, root_.get(), model->layout(), region.name(), r));
      cast_.aggregators.push_back(aggregators_.back().get());
      cast_.workers.emplace_back();
      for (int w = 0; w < region.workers(); ++w) {
        workers_.push_back(std::make_unique<SimWorker>(&world_, scenario.workload(), root_.get(),
                                                       aggregators_.back().get(), model->layout(),
                                                       absl::StrCat(region.name(), "/worker-", w), SpeedOf(region, w)));
        cast_.workers.back().push_back(workers_.back().get());
        steps_per_second_ +=
            SpeedOf(region, w) / absl::ToDoubleSeconds(absl::Nanoseconds(scenario.workload().step_ns()));
      }
    }
    timeline_ = std::make_unique<Timeline>(scenario_, seed, &world_, cast_);
  }

  SimulationResult Run(const Tape::Watcher& watcher) {
    std::vector<std::unique_ptr<Checker>> checkers = MakeCheckers(world_.job.strategy().root().staleness_max());
    for (const auto& checker : checkers) {
      world_.tape.Watch([&checker = *checker](const TapeEvent& event) { checker.See(event); });
    }
    Account account;
    world_.tape.Watch([&account](const TapeEvent& event) { account.See(event); });
    if (watcher) world_.tape.Watch(watcher);
    SimulationResult result;
    int64_t committed = 0;
    world_.tape.Watch([&](const TapeEvent& event) {
      if (event.kind == TapeEvent::kCommitted) committed += event.values[1] - event.values[0];
      if (event.kind != TapeEvent::kPublished || event.who != "root") return;
      // The loss of a real model costs as much as several steps: only some versions are points of its curve.
      const int64_t apart = world_.job.model().synthetic() != SYNTHETIC_KIND_UNSPECIFIED
                                ? 0
                                : scenario_.workload().samples() / kCurvePoints;
      if (!result.progress.empty() && committed < result.progress.back().samples + apart) return;
      AddProgress(event.time, committed, &result);
    });

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

    result.virtual_time = world_.queue.elapsed();
    result.events = world_.queue.executed();
    result.versions = account.versions;
    result.deaths = account.deaths;
    result.most_bytes_replayed = root_->most_bytes_replayed();
    result.staleness = account.staleness;
    result.longest_pause = account.longest_pause;
    double compute = 0, wall = 0;
    for (const auto& worker : workers_) {
      result.samples_trained += worker->samples_trained();
      compute += worker->compute_seconds();
      wall += worker->wall_seconds();
      for (const auto& [reason, seconds] : worker->waits().Seconds(world_.queue.Now()))
        result.waiting[reason] += seconds;
    }
    for (auto& [reason, share] : result.waiting) share = wall > 0 ? share / wall : 0;
    result.compute_share = wall > 0 ? compute / wall : 0;
    const double seconds = std::max(1e-9, absl::ToDoubleSeconds(result.virtual_time));
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
    timeline_->Heal();
    left_behind_ = timeline_->LeaveOut(DrawLeftOut(scenario_, world_.seed));
    if (scenario_.restarts().after_ns() > 0) return;  // The dead are on their way.
    std::vector<SimProcess*> processes = {root_.get()};
    for (const auto& aggregator : aggregators_) processes.push_back(aggregator.get());
    for (const auto& worker : workers_) processes.push_back(worker.get());
    for (SimProcess* process : processes) {
      if (!process->alive() && left_behind_.dead.count(process) == 0) Launch(process);
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
      const auto start = absl::Nanoseconds(scenario_.restarts().start_ns());
      world_.queue.After(after + start, [this, process] {
        if (!root_->done() && left_behind_.dead.count(process) == 0) Launch(process);
      });
    });
    world_.Note(TapeEvent::kStarted, process->name(), {process->life()});
    process->Start();
    if (left_behind_.frozen.count(process) > 0) process->SetFrozen(true);
  }

  void AddProgress(absl::Duration time, int64_t committed, SimulationResult* result) const {
    SimulationResult::Point point{time, committed, 0};
    if (!world_.counts) {
      const std::vector<float> parameters = root_->parameters();
      if (!parameters.empty()) point.loss = world_.model->Loss(parameters, SimModel::Effort::kQuick);
    }
    result->progress.push_back(point);
  }

  // What is on the disk at the end, read as a stranger reads it.
  void JudgeLog(const Account& account, SimulationResult* result) {
    const std::unique_ptr<Trainer> replayed = world_.model->NewTrainer();
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
    result->samples_committed = report["tokens_committed"].get<int64_t>() / world_.job.model().context();
    result->parameters_sha256 = report["parameters_sha256"].get<std::string>();
    result->loss = world_.model->Loss(replayed->parameters(), SimModel::Effort::kThorough);
    // Every sample is committed once, so more acknowledged than committed samples means that something was lost.
    if (account.samples_acknowledged > result->samples_committed) {
      result->verdicts["I3"] = absl::StrFormat("%d samples were acknowledged, %d are in the log",
                                               account.samples_acknowledged, result->samples_committed);
    }
    std::string& content = result->verdicts["I10"];  // A contribution that was wrong says more than the sum of them.
    if (world_.counts && content.empty() && report["complete"].get<bool>() &&
        result->loss != static_cast<double>(result->samples_committed)) {
      content = absl::StrFormat("the model counts %.0f samples, the log %d", result->loss, result->samples_committed);
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
      result->faults_observed[FaultName(kind)] += observed[i];
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
    if (expect.loss_max() > 0) {
      // Also of a loss that is not a number.
      verdicts["loss_max"] =
          result->loss <= expect.loss_max()
              ? ""
              : absl::StrFormat("the validation loss is %.4f, expected at most %.4f", result->loss, expect.loss_max());
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
  std::unique_ptr<SimCoordinator> root_;
  std::vector<std::unique_ptr<SimAggregator>> aggregators_;
  std::vector<std::unique_ptr<SimWorker>> workers_;
  SimCast cast_;
  std::unique_ptr<Timeline> timeline_;
  double steps_per_second_ = 0;
  Timeline::LeftBehind left_behind_;
  std::string stalled_;  // When nothing was merged after faults had ended; empty otherwise.
};

}  // namespace

bool SimulationResult::passed() const {
  return std::all_of(verdicts.begin(), verdicts.end(), [](const auto& verdict) { return verdict.second.empty(); });
}

absl::StatusOr<SimulationResult> RunSimulation(const Scenario& scenario, uint64_t seed, const Tape::Watcher& watcher) {
  const std::vector<ScenarioProblem> problems = FindScenarioProblems(scenario);
  if (!problems.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(problems[0].key, ": ", problems[0].reason));
  }
  absl::StatusOr<Job> job = JobOfScenario(scenario);
  if (!job.ok()) return job.status();
  job->set_seed(seed);
  const absl::StatusOr<std::unique_ptr<SimModel>> model = SimModel::Make(*job);
  if (!model.ok()) return model.status();
  return Simulation(scenario, *job, seed, model->get()).Run(watcher);
}

}  // namespace wukong
