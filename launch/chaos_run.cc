// `wukong chaos run`: a scenario on real processes of this machine.
#include <algorithm>
#include <cstdio>
#include <deque>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "coordinator/root_recovery.h"
#include "launch/chaos_command.h"
#include "launch/exit_code.h"
#include "launch/experiment_report.h"
#include "launch/job_check.h"
#include "launch/job_file.h"
#include "launch/local_run.h"
#include "launch/process_faults.h"
#include "launch/role_commands.h"
#include "launch/run_directory.h"
#include "launch/status_text.h"
#include "launch/tape_file.h"
#include "launch/tls_flag.h"
#include "runtime/base/file.h"
#include "runtime/fault/netem.h"
#include "runtime/fault/network_namespace.h"
#include "runtime/model/trainer.h"
#include "runtime/sim/scenario_problems.h"
#include "runtime/sim/simulation.h"
#include "worker/training_step.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

// Its points come twice a second, which nobody wants to read.
constexpr absl::Duration kLinesEvery = absl::Seconds(5);

// As --network names them.
const std::map<std::string, LocalRun::Network>& Networks() {
  static const auto& networks = *new std::map<std::string, LocalRun::Network>{
      {"relay", LocalRun::Network::kRelay},
      {"namespaces", LocalRun::Network::kNamespaces},
      {"netem", LocalRun::Network::kNetem},
  };
  return networks;
}

struct RunFlags {
  std::string scenario;
  std::vector<std::string> overrides;
  std::string seed;
  std::string run_dir;
  std::string network = "relay";
  bool json = false;
};

// The events of a run that an experiment is judged by.
struct EventLine {
  absl::Time time;
  std::string event;
  Json json;
};

std::vector<EventLine> ReadEvents(const std::string& path) {
  std::vector<EventLine> events;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    EventLine event;
    std::string error;
    if (!json.is_object() || !absl::ParseTime(absl::RFC3339_full, json.value("time", ""), &event.time, &error))
      continue;
    event.event = json.value("event", "");
    event.json = std::move(json);
    events.push_back(std::move(event));
  }
  return events;
}

// Whether `event` is about the process that `target` names.
bool IsAbout(const Scenario& scenario, const EventLine& event, const FaultTarget& target) {
  if (target.root()) return event.event == "resumed" || event.event == "merged";
  if (event.json.value("region", "") != scenario.regions(target.region).name()) return false;
  if (target.worker < 0) return event.json.value("role", "") == "aggregator";
  return event.json.value("name", "") == absl::StrCat("worker-", target.worker);
}

class Experiment {
 public:
  Experiment(const Scenario& scenario, const Job& job, std::string run_dir, std::string network)
      : scenario_(scenario),
        job_(job),
        run_dir_(std::move(run_dir)),
        network_(std::move(network)),
        faults_(scenario, job, job.seed(), run_dir_) {}

  LocalRun::Options RunOptions();
  // Reads what the run left behind.
  void Judge(const LocalRun::Result& run);
  bool passed() const { return passed_; }
  const ExperimentReport& report() const { return report_; }

 private:
  void JudgeLog(Json* verdicts);
  // I3: what was told of, in any life of the coordinator, is in the log.
  void JudgeEvents(const std::vector<EventLine>& events, Json* verdicts) const;
  void JudgeExpectations(const LocalRun::Result& run, Json* verdicts);
  void AddFaults(const std::vector<EventLine>& events);
  double Goodput(double seconds) const;

  const Scenario& scenario_;
  const Job& job_;
  const std::string run_dir_;
  const std::string network_;
  ProcessFaults faults_;
  absl::Time began_ = absl::InfiniteFuture();
  absl::Time ended_ = absl::InfinitePast();
  absl::Duration longest_pause_at_the_end_;  // Between merges, since faults ended.
  ExperimentReport report_;
  bool passed_ = false;
};

LocalRun::Options Experiment::RunOptions() {
  LocalRun::Options options;
  options.job = run_dir_ + "/job.yaml";
  options.run_dir = run_dir_;
  options.restart_after = absl::Nanoseconds(scenario_.restarts().after_ns());
  options.restarts = options.restart_after > absl::ZeroDuration() ? 1'000'000 : 0;
  options.within = absl::Nanoseconds(scenario_.expect().within_ns());
  options.lines_every = kLinesEvery;
  options.on_poll = [this](LocalRun* run, absl::Duration elapsed) {
    began_ = std::min(began_, absl::Now() - elapsed);
    faults_.Poll(run, elapsed);
  };
  options.on_status = [this](const StatusReply& status) {
    if (status.phase() == "starting") return;
    const double seconds = began_ == absl::InfiniteFuture() ? 0 : absl::ToDoubleSeconds(absl::Now() - began_);
    ExperimentReport::Point point{seconds, status.tokens_committed() / job_.model().context(), {}};
    if (job_.model().synthetic() != SYNTHETIC_KIND_COUNTER && status.loss() > 0) point.loss = status.loss();
    report_.progress.push_back(point);
    ended_ = absl::Now();
  };
  return options;
}

// The longest time without a merge in [from, until]; zero when that is empty.
absl::Duration LongestPause(const std::vector<EventLine>& events, absl::Time from, absl::Time until) {
  absl::Duration longest;
  for (const EventLine& event : events) {
    if (event.event != "merged" || event.time <= from || event.time > until) continue;
    longest = std::max(longest, event.time - from);
    from = event.time;
  }
  return std::max(longest, until - from);
}

double Experiment::Goodput(double seconds) const {
  double samples_per_second = 0;
  for (const Region& region : scenario_.regions()) {
    for (int w = 0; w < region.workers(); ++w) {
      samples_per_second += EmulatedSpeed(region, w) * scenario_.workload().micro_batch() /
                            absl::ToDoubleSeconds(absl::Nanoseconds(scenario_.workload().step_ns()));
    }
  }
  const double committed = report_.result.value("samples_committed", 0.0);
  return seconds > 0 ? committed / seconds / samples_per_second : 0;
}

void Experiment::JudgeLog(Json* verdicts) {
  for (const char* invariant : {"I1", "I3", "I4", "I6", "I7", "I8", "I9", "I10", "I12"})
    (*verdicts)[invariant] = "holds";
  const absl::StatusOr<std::unique_ptr<Trainer>> made = MakeTrainer(job_, TrainerOptions());
  if (!made.ok()) {
    (*verdicts)["I8"] = std::string(made.status().message());
    return;
  }
  Trainer* const trainer = made->get();
  Json log;
  const absl::Status status = VerifyRun(FileSystem::Real(), run_dir_, job_, trainer, &log);
  if (!status.ok()) {
    const std::string text(status.message());
    const std::string named = text.substr(0, text.find(' '));
    (*verdicts)[verdicts->contains(named) ? named : "I8"] = text;
    return;
  }
  report_.result["samples_committed"] = log["tokens_committed"].get<int64_t>() / job_.model().context();
  report_.result["versions"] = log["version"];
  report_.result["parameters_sha256"] = log["parameters_sha256"];
  if (job_.model().synthetic() == SYNTHETIC_KIND_UNSPECIFIED) return;
  const double loss = trainer->Evaluate(Batch()).value_or(std::numeric_limits<double>::quiet_NaN());
  report_.result["loss"] = loss;
  const bool sums = job_.strategy().root().weight() == WEIGHT_SUM && job_.strategy().region().weight() == WEIGHT_SUM;
  if (job_.model().synthetic() == SYNTHETIC_KIND_COUNTER && sums && log["complete"].get<bool>() &&
      loss != log["tokens_committed"].get<double>()) {
    (*verdicts)["I10"] =
        absl::StrFormat("the model counts %.0f samples, the log %.0f", loss, log["tokens_committed"].get<double>());
  }
}

void Experiment::JudgeEvents(const std::vector<EventLine>& events, Json* verdicts) const {
  if (!report_.result.contains("samples_committed")) return;  // The log cannot be read.
  int64_t told = 0;
  for (const EventLine& event : events) {
    if (event.event != "merged") continue;
    for (const Json& part : event.json["contributions"]) told += part.value("tokens", int64_t{0});
  }
  // A line may be missing where the coordinator was killed. Work that was lost is done, and told of, once more.
  const int64_t logged = report_.result["samples_committed"].get<int64_t>() * job_.model().context();
  if (told > logged) {
    (*verdicts)["I3"] =
        absl::StrFormat("the root told of %d tokens that it had merged, and its log has %d", told, logged);
  }
}

void Experiment::JudgeExpectations(const LocalRun::Result& run, Json* verdicts) {
  const Expect& expect = scenario_.expect();
  if (expect.invariants_size() > 0) {
    Json wanted = Json::object();
    for (const std::string& invariant : expect.invariants()) wanted[invariant] = (*verdicts)[invariant];
    *verdicts = std::move(wanted);
  }
  const bool completed = !run.report.is_null() && ReportCompleted(run.report);
  (*verdicts)["I11"] = completed ? "holds" : "the budget is not committed";
  const auto within = absl::Nanoseconds(scenario_.quiesce().within_ns());
  if (longest_pause_at_the_end_ > within) {
    (*verdicts)["I11"] =
        absl::StrFormat("nothing was merged for %s after faults had ended, expected something in every %s",
                        absl::FormatDuration(absl::Trunc(longest_pause_at_the_end_, absl::Milliseconds(10))),
                        absl::FormatDuration(within));
  }
  const auto check = [&](const char* name, bool wanted, bool holds, const std::string& otherwise) {
    if (wanted) (*verdicts)[name] = holds ? "holds" : otherwise;
  };
  std::vector<std::string> never;
  Json observed = Json::object();
  for (int i = 0; i < scenario_.timeline_size(); ++i) {
    const int64_t count = faults_.Count(static_cast<size_t>(i));
    const std::string kind = FaultName(scenario_.timeline(i).fault());
    observed[kind] = observed.value(kind, int64_t{0}) + count;
    if (count == 0) never.push_back(absl::StrFormat("timeline[%d]", i));
  }
  if (scenario_.quiesce().after_ns() > 0 && !faults_.quiet_since().has_value()) never.emplace_back("quiesce");
  report_.result["faults_observed"] = observed;
  check("fired", true, never.empty(), absl::StrJoin(never, ", ") + " never happened: this run shows nothing");
  const double goodput = report_.result.value("goodput", 0.0);
  check("goodput_min", expect.goodput_min() > 0, goodput >= expect.goodput_min(),
        absl::StrFormat("goodput is %.3f, expected at least %.3f", goodput, expect.goodput_min()));
  const double loss = report_.result.value("loss", 0.0);
  check("gap_max", expect.gap_max() > 0, loss <= expect.gap_max(),
        absl::StrFormat("the loss is %.6f above the optimum, expected at most %.6f", loss, expect.gap_max()));
  // Without a loss the run did not end.
  const double final_loss = report_.result.value("loss", std::numeric_limits<double>::infinity());
  check("loss_max", expect.loss_max() > 0, final_loss <= expect.loss_max(),
        absl::StrFormat("the validation loss is %.4f, expected at most %.4f", final_loss, expect.loss_max()));
  const double pause = report_.result["longest_pause_seconds"].get<double>();
  const absl::Duration most = absl::Nanoseconds(expect.recovery_max_ns());
  check("recovery_max", expect.recovery_max_ns() > 0, pause <= absl::ToDoubleSeconds(most),
        absl::StrFormat("nothing was merged for %.2f s, expected at most %s", pause, absl::FormatDuration(most)));
}

void Experiment::AddFaults(const std::vector<EventLine>& events) {
  std::map<std::pair<size_t, std::string>, std::deque<size_t>> lasting;  // Its spans, of which the first ends first.
  for (const ObservedFault& seen : faults_.observed()) {
    const Fault& fault = scenario_.timeline(static_cast<int>(seen.act.number));
    const std::string target = TargetName(scenario_, seen.act.target);
    const double seconds = absl::ToDoubleSeconds(seen.elapsed);
    const auto key = std::make_pair(seen.act.number, target);
    if (!seen.act.begins) {
      std::deque<size_t>& open = lasting[key];
      if (open.empty()) continue;
      report_.faults[open.front()].end = seconds;
      open.pop_front();
      continue;
    }
    ExperimentReport::FaultSpan span{
        FaultName(fault.fault()), target, static_cast<int>(seen.act.number), seconds, {}, {}, {}};
    const bool stops = fault.fault() == FAULT_KIND_KILL || fault.fault() == FAULT_KIND_FREEZE ||
                       fault.fault() == FAULT_KIND_POWER_LOSS;
    const bool ordered = !stops || fault.on() != FAULT_PLACE_UNSPECIFIED;
    if (ordered && fault.has_for_ns()) span.end = seconds + absl::ToDoubleSeconds(absl::Nanoseconds(fault.for_ns()));
    if (stops) {
      for (const EventLine& event : events) {
        if (event.time < seen.time || !IsAbout(scenario_, event, seen.act.target)) continue;
        const double after = seconds + absl::ToDoubleSeconds(event.time - seen.time);
        const bool says_gone = event.event == "lost" || event.event == "joined" || event.event == "resumed";
        if (says_gone && !span.detected.has_value()) span.detected = after;
        if (event.event == (seen.act.target.root() ? "merged" : "joined") && span.detected.has_value()) {
          span.back = after;
          break;
        }
      }
    }
    lasting[key].push_back(report_.faults.size());
    report_.faults.push_back(std::move(span));
  }
  if (!faults_.quiet_since().has_value()) return;
  const double quiet = absl::ToDoubleSeconds(*faults_.quiet_since());
  for (ExperimentReport::FaultSpan& span : report_.faults) {
    const FaultKind kind = scenario_.timeline(span.number).fault();
    if (kind == FAULT_KIND_KILL || kind == FAULT_KIND_POWER_LOSS) continue;
    span.end = std::min(span.end.value_or(quiet), std::max(quiet, span.begin));
  }
}

void Experiment::Judge(const LocalRun::Result& run) {
  report_.name = scenario_.name();
  report_.result = {
      {"scenario", scenario_.name()},       {"backend", "process"}, {"network", network_}, {"seed", job_.seed()},
      {"binary_sha256", OwnBinarySha256()}, {"passed", false}};
  Json verdicts = Json::object();
  JudgeLog(&verdicts);
  faults_.ReadStruck();
  const std::vector<EventLine> events = ReadEvents(run_dir_ + "/events.jsonl");
  JudgeEvents(events, &verdicts);
  absl::Time started = absl::InfiniteFuture(), first_merge = absl::InfiniteFuture(), last_merge = absl::InfinitePast();
  for (const EventLine& event : events) {
    if (event.event == "training_started") {
      started = event.time;
      began_ = std::min(began_, started);
    }
    if (event.event == "budget_committed") ended_ = event.time;
    if (event.event != "merged") continue;
    first_merge = std::min(first_merge, event.time);
    last_merge = event.time;
  }
  if (faults_.quiet_since().has_value()) {
    // A run without an end stops at some time.
    longest_pause_at_the_end_ = LongestPause(events, started + *faults_.quiet_since(), ended_);
  }
  if (job_.model().synthetic() == SYNTHETIC_KIND_UNSPECIFIED && run.report.contains("validation_loss_final")) {
    report_.result["loss"] = run.report["validation_loss_final"];
  }
  const double seconds = std::max(0.0, absl::ToDoubleSeconds(ended_ - began_));
  report_.result["wall_seconds"] = seconds;
  // The coordinator may end before it is asked again.
  const auto committed = static_cast<int64_t>(report_.result.value("samples_committed", 0.0));
  if (!report_.progress.empty() && report_.progress.back().samples < committed) {
    report_.progress.push_back({seconds, committed, report_.progress.back().loss});
  }
  if (job_.model().synthetic() != SYNTHETIC_KIND_UNSPECIFIED) report_.result["goodput"] = Goodput(seconds);
  report_.result["longest_pause_seconds"] = absl::ToDoubleSeconds(LongestPause(events, first_merge, last_merge));
  for (const char* key : {"compute_share", "staleness", "restarts", "contributions", "ledger"}) {
    if (run.report.contains(key)) report_.result[key] = run.report[key];
  }
  if (faults_.quiet_since().has_value()) {
    Json left_out = Json::array();
    for (const LeftOut& left : faults_.left_out()) {
      left_out.push_back({{"target", TargetName(scenario_, left.target)}, {"how", HowName(left.how)}});
    }
    report_.result["left_out"] = left_out;
  }
  JudgeExpectations(run, &verdicts);
  passed_ = std::all_of(verdicts.begin(), verdicts.end(), [](const Json& verdict) { return verdict == "holds"; });
  report_.result["passed"] = passed_;
  report_.result["verdicts"] = verdicts;
  AddFaults(events);
}

void Print(const Json& result) {
  const auto number = [&](const char* key) { return result.value(key, 0.0); };
  std::printf("%s on real processes, seed %llu: %s\n", result["scenario"].get<std::string>().c_str(),
              result["seed"].get<unsigned long long>(), result["passed"].get<bool>() ? "passed" : "FAILED");
  std::printf("  time                 %.1f s\n", number("wall_seconds"));
  std::printf("  samples              %.0f committed\n", number("samples_committed"));
  if (result.contains("goodput")) {
    std::printf("  goodput              %.3f of what the workers could have made\n", number("goodput"));
  }
  std::printf("  computing            %.1f%% of the time\n", 100 * number("compute_share"));
  if (result.contains("loss")) std::printf("  loss                 %.6g\n", number("loss"));
  std::printf("  root                 %.0f versions, longest pause between merges %.2f s\n", number("versions"),
              number("longest_pause_seconds"));
  std::vector<std::string> faults;
  for (const auto& [kind, count] : result["faults_observed"].items()) {
    faults.push_back(absl::StrCat(kind, " ", count.get<int64_t>()));
  }
  std::printf("  faults               %s\n", faults.empty() ? "none" : absl::StrJoin(faults, ", ").c_str());
  for (const auto& [name, verdict] : result["verdicts"].items()) {
    std::printf("  %-20s %s\n", name.c_str(), verdict.get<std::string>().c_str());
  }
}

absl::StatusOr<std::string> NewExperimentDirectory(const RunFlags& flags, const Scenario& scenario) {
  if (flags.run_dir.empty()) return MakeRunDirectory(absl::StrCat("chaos-", scenario.name()));
  const std::string& run_dir = flags.run_dir;
  std::error_code error;
  if (std::filesystem::exists(run_dir, error) && !std::filesystem::is_empty(run_dir, error)) {
    return absl::AlreadyExistsError(
        absl::StrCat("run directory ", run_dir, " is not empty (expected a new one: every experiment has its own)"));
  }
  if (absl::Status status = MakeDirectories(run_dir); !status.ok()) return status;
  return run_dir;
}

// The job that real processes run, by way of a job file, as any other.
absl::StatusOr<JobSource> MakeJob(const Scenario& scenario, uint64_t seed, const std::string& run_dir) {
  absl::StatusOr<Job> job = JobOfScenario(scenario);
  if (!job.ok()) return job.status();
  job->set_seed(seed);
  job->set_fault_injection(FAULT_INJECTION_ALLOWED);
  job->mutable_report()->set_progress_every_ns(absl::ToInt64Nanoseconds(absl::Milliseconds(500)));
  const bool synthetic = job->model().synthetic() != SYNTHETIC_KIND_UNSPECIFIED;
  job->mutable_report()->set_validation_tokens(synthetic ? 1 : 65536);
  const std::string path = run_dir + "/job.yaml";
  if (absl::Status status = WriteFileAtomic(path, ResolvedYaml(*job)); !status.ok()) return status;
  absl::StatusOr<JobSource> source = LoadJobFile(path, {});
  if (!source.ok()) return source.status();
  if (absl::Status status = CheckJob(*source, CheckOptions()); !status.ok()) return status;
  return source;
}

int Run(const RunFlags& flags) {
  MakeBrokenOutputsErrors();
  const absl::StatusOr<Scenario> loaded = LoadCheckedScenario(flags.scenario, flags.overrides, BACKEND_PROCESS);
  if (!loaded.ok()) return ReportStatus(loaded.status());
  const Scenario& scenario = *loaded;
  uint64_t seed = scenario.seed();
  if (!flags.seed.empty() && !absl::SimpleAtoi(flags.seed, &seed)) {
    return ReportStatus(absl::InvalidArgumentError(absl::StrCat("--seed ", flags.seed, ": expected a number")));
  }
  const LocalRun::Network network = Networks().at(flags.network);
  if (network != LocalRun::Network::kRelay) {
    absl::Status status = EnterOwnNetwork();
    if (status.ok() && network == LocalRun::Network::kNetem) status = TryNetem();
    if (!status.ok()) return ReportStatus(status);
  }
  const absl::StatusOr<std::string> run_dir = NewExperimentDirectory(flags, scenario);
  if (!run_dir.ok()) return ReportStatus(run_dir.status());
  absl::StatusOr<JobSource> job = MakeJob(scenario, seed, *run_dir);
  if (!job.ok()) return ReportStatus(job.status());
  absl::StatusOr<PortReservation> port = PortReservation::Make();
  if (!port.ok()) return ReportStatus(port.status());

  Experiment experiment(scenario, job->job, *run_dir, flags.network);
  const StopSignal stop;
  LocalRun::Options options = experiment.RunOptions();
  options.network = network;
  const LocalRun::Result result = LocalRun(options, *job, *std::move(port), &stop).Run();
  if (stop.received() != 0) {
    std::fprintf(stderr, "wukong: stopped by a signal: nothing was judged; what there is of the run is in %s\n",
                 run_dir->c_str());
    return kExitFailed;
  }
  experiment.Judge(result);
  ExperimentReport report = experiment.report();
  report.scenario_yaml = ScenarioYaml(scenario);
  const std::string folder = *run_dir + "/experiment";
  std::string note;
  const absl::Status written = WriteExperimentReport(folder, report, &note);
  if (flags.json) {
    std::printf("%s\n", report.result.dump(2).c_str());
  } else {
    Print(report.result);
    std::printf("  report               %s\n", folder.c_str());
    if (!note.empty()) std::printf("  note                 %s\n", note.c_str());
  }
  if (!written.ok()) return ReportStatus(written);
  return experiment.passed() ? kExitOk : kExitFailed;
}

}  // namespace

void AddChaosRunCommand(CLI::App& chaos, std::function<int()>* action) {
  auto flags = std::make_shared<RunFlags>();
  CLI::App* verb = chaos.add_subcommand(
      "run", "Run a scenario on real processes of this machine, with emulated links between regions");
  verb->add_option("SCENARIO", flags->scenario, "The scenario file (docs/simulation.md)")->required();
  verb->add_option("--set", flags->overrides, "key.path=value in place of what the file says; may be repeated")
      ->expected(1)
      ->take_all()
      ->allow_extra_args(false);
  verb->add_option("--seed", flags->seed, "Seed in place of the scenario's");
  verb->add_option("--run-dir", flags->run_dir, "Where the run is recorded (default: runs/chaos-NAME-TIME)");
  verb->add_option(
          "--network", flags->network,
          "relay: links are TCP relays; namespaces: each region has a network of its own, and packets are "
          "delayed and dropped (needs root or user namespaces); netem: the same by the kernel's netem, where it "
          "has it (docs/wan.md)")
      ->check(CLI::IsMember(Networks()))
      ->capture_default_str();
  verb->add_flag("--json", flags->json, "Print the result as JSON");
  SetConnectingAction(verb, action, [flags] { return Run(*flags); });
}

}  // namespace wukong
