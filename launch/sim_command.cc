#include "launch/sim_command.h"

#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "glog/logging.h"
#include "launch/exit_code.h"
#include "launch/experiment_report.h"
#include "launch/flag_checks.h"
#include "launch/job_file.h"
#include "launch/status_text.h"
#include "launch/tape_file.h"
#include "nlohmann/json.hpp"
#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/shell_word.h"
#include "runtime/fault/fault_schedule.h"
#include "runtime/model/compute_process.h"
#include "runtime/sim/simulation.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

struct SimFlags {
  std::string scenario;
  std::vector<std::string> overrides;
  std::string seed;
  std::string seeds;
  std::string tape;
  std::string report;
  int jobs = 0;
  bool json = false;
};

Json ToJson(uint64_t seed, const SimulationResult& result, double wall_seconds) {
  Json verdicts = Json::object();
  for (const auto& [name, violation] : result.verdicts) verdicts[name] = violation.empty() ? "holds" : violation;
  Json staleness = Json::object();
  for (const auto& [versions, count] : result.staleness) staleness[std::to_string(versions)] = count;
  return {{"seed", seed},
          {"passed", result.passed()},
          {"verdicts", verdicts},
          {"virtual_seconds", absl::ToDoubleSeconds(result.virtual_time)},
          {"wall_seconds", wall_seconds},
          {"events", result.events},
          {"events_per_second", static_cast<double>(result.events) / std::max(1e-9, wall_seconds)},
          {"samples_committed", result.samples_committed},
          {"samples_trained", result.samples_trained},
          {"goodput", result.goodput},
          {"compute_share", result.compute_share},
          {"waiting", result.waiting},
          {"loss", result.loss},
          {"longest_pause_seconds", absl::ToDoubleSeconds(result.longest_pause)},
          {"versions", result.versions},
          {"deaths", result.deaths},
          {"most_bytes_replayed", result.most_bytes_replayed},
          {"staleness", staleness},
          {"faults_observed", result.faults_observed},
          {"tape_hash", absl::StrFormat("%016x", result.tape_hash)},
          {"parameters_sha256", result.parameters_sha256}};
}

// When faults began and ended, and when who died was known to be gone and was back, as the tape says.
class FaultWatcher {
 public:
  void See(const TapeEvent& event) {
    const double now = absl::ToDoubleSeconds(event.time);
    if (event.kind == TapeEvent::kFault && !event.text.empty()) {
      const std::string who(event.who);
      const auto key = std::make_pair(event.values[0], who);
      if (event.values[1] == 0) {
        std::deque<size_t>& open = lasting_[key];
        if (open.empty()) return;
        spans_[open.front()].end = now;  // Those of one number last equally long.
        open.pop_front();
        return;
      }
      lasting_[key].push_back(spans_.size());
      FaultKind kind = FAULT_KIND_UNSPECIFIED;
      const std::string name = FaultKind_Parse(event.text, &kind) ? FaultName(kind) : event.text;
      spans_.push_back({name, who, static_cast<int>(event.values[0]), now, {}, {}, {}});
      if (kind == FAULT_KIND_KILL || kind == FAULT_KIND_POWER_LOSS) gone_[who] = spans_.size() - 1;
    }
    if (gone_.empty()) return;
    if (event.kind == TapeEvent::kMerged && event.who == "root") Back("root", now);
    if (event.kind != TapeEvent::kCoordinator) return;
    const Json said = Json::parse(event.text, nullptr, /*allow_exceptions=*/false);
    const std::string what = said.is_object() ? said.value("event", "") : "";
    if (what != "joined" && what != "lost") return;
    const std::string region = said.value("region", "");
    const std::string who =
        said.value("role", "") == "worker" ? absl::StrCat(region, "/", said.value("name", "")) : region;
    Noticed(who, now);
    if (what == "joined") Back(who, now);
  }
  const std::vector<ExperimentReport::FaultSpan>& spans() const { return spans_; }

 private:
  void Noticed(const std::string& who, double now) {
    const auto found = gone_.find(who);
    if (found != gone_.end() && !spans_[found->second].detected) spans_[found->second].detected = now;
  }
  void Back(const std::string& who, double now) {
    const auto found = gone_.find(who);
    if (found == gone_.end()) return;
    spans_[found->second].back = now;
    gone_.erase(found);
  }

  std::vector<ExperimentReport::FaultSpan> spans_;
  std::map<std::pair<int64_t, std::string>, std::deque<size_t>> lasting_;
  std::map<std::string, size_t> gone_;
};

struct Outputs {
  std::string tape;    // A file, or nothing.
  std::string report;  // A folder, or nothing.
};

absl::Status WriteReport(const Outputs& outputs, const Scenario& scenario, const SimulationResult& result,
                         const FaultWatcher& faults, Json json) {
  ExperimentReport report;
  report.name = scenario.name();
  json["scenario"] = scenario.name();
  json["backend"] = "sim";
  json["binary_sha256"] = OwnBinarySha256();
  report.result = std::move(json);
  report.scenario_yaml = ScenarioYaml(scenario);
  report.faults = faults.spans();
  const bool has_loss = scenario.workload().fidelity() != FIDELITY_COUNTER;
  for (const SimulationResult::Point& point : result.progress) {
    report.progress.push_back({absl::ToDoubleSeconds(point.time), point.samples,
                               has_loss ? std::optional<double>(point.loss) : std::nullopt});
  }
  std::string note;
  const absl::Status status = WriteExperimentReport(outputs.report, report, &note);
  if (!note.empty()) std::fprintf(stderr, "wukong: %s\n", note.c_str());
  return status;
}

absl::StatusOr<Json> RunSeed(const Scenario& scenario, uint64_t seed, const Outputs& outputs) {
  TapeWriter tape;
  if (!outputs.report.empty()) {
    if (absl::Status status = MakeDirectories(outputs.report); !status.ok()) return status;
  }
  if (!outputs.tape.empty()) {
    if (absl::Status status = tape.Open(outputs.tape, scenario, seed); !status.ok()) return status;
  }
  FaultWatcher faults;
  Tape::Watcher watcher;
  if (!outputs.tape.empty() || !outputs.report.empty()) {
    watcher = [&](const TapeEvent& event) {
      if (!outputs.tape.empty()) tape.Add(event);
      faults.See(event);
    };
  }
  const RealClock clock;
  const absl::Time begin = clock.Now();
  const absl::StatusOr<SimulationResult> result = RunSimulation(scenario, seed, watcher);
  if (!result.ok()) return result.status();
  Json json = ToJson(seed, *result, absl::ToDoubleSeconds(clock.Now() - begin));
  absl::Status status;
  if (!outputs.tape.empty()) status = tape.Finish(*result);
  if (!outputs.report.empty()) status.Update(WriteReport(outputs, scenario, *result, faults, json));
  if (!status.ok()) return status;
  return json;
}

void PrintOne(const Scenario& scenario, const Json& run) {
  const auto number = [&](const char* key) { return run[key].get<double>(); };
  std::printf("%s, seed %llu: %s\n", scenario.name().c_str(), run["seed"].get<unsigned long long>(),
              run["passed"].get<bool>() ? "passed" : "FAILED");
  std::printf("  virtual time         %.1f s, in %.2f s (%.0f events, %.0f a second)\n", number("virtual_seconds"),
              number("wall_seconds"), number("events"), number("events_per_second"));
  std::printf("  samples              %.0f committed, %.0f trained\n", number("samples_committed"),
              number("samples_trained"));
  std::printf("  goodput              %.3f of what the workers could have made; computing %.1f%% of the time%s\n",
              number("goodput"), 100 * number("compute_share"),
              WaitingText(run["waiting"].get<std::map<std::string, double>>()).c_str());
  std::printf("  root                 %.0f versions, longest pause between merges %.2f s\n", number("versions"),
              number("longest_pause_seconds"));
  if (scenario.workload().fidelity() != FIDELITY_COUNTER) std::printf("  loss                 %.6g\n", number("loss"));
  std::string faults;
  for (const auto& [kind, count] : run["faults_observed"].items()) {
    absl::StrAppend(&faults, faults.empty() ? "" : ", ", kind, " ", count.get<int64_t>());
  }
  std::printf("  faults               %s; %.0f processes died\n", faults.empty() ? "none" : faults.c_str(),
              number("deaths"));
  for (const auto& [name, verdict] : run["verdicts"].items()) {
    std::printf("  %-20s %s\n", name.c_str(), verdict.get<std::string>().c_str());
  }
  std::printf("  tape                 %s\n", run["tape_hash"].get<std::string>().c_str());
  std::printf("  parameters SHA-256   %s\n", run["parameters_sha256"].get<std::string>().c_str());
}

// Each seed in a process of its own, a few at a time: one that crashes is a failing seed like others.
int RunSeeds(const SimFlags& flags, const Scenario& scenario, uint64_t from, uint64_t to) {
  struct Child {
    pid_t pid = 0;
    uint64_t seed = 0;
    int pipe = -1;
    std::string text;
  };
  std::vector<Child> running;
  std::vector<uint64_t> failing;
  Json runs = Json::array();
  const int jobs = flags.jobs > 0 ? flags.jobs : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  uint64_t next = from;
  uint64_t done = 0;
  const unsigned long long count = to - from + 1;
  const auto finish = [&](Child& child) {
    int status = 0;
    ::waitpid(child.pid, &status, 0);
    ::close(child.pipe);
    Json run = Json::parse(child.text, nullptr, /*allow_exceptions=*/false);
    if (!run.is_object()) {
      run = {{"seed", child.seed}, {"passed", false}, {"verdicts", {{"crash", "the simulator died"}}}};
    }
    if (!run["passed"].get<bool>()) {
      failing.push_back(child.seed);
      for (const auto& [name, verdict] : run["verdicts"].items()) {
        if (verdict != "holds") {
          std::fprintf(stderr, "seed %llu: %s: %s\n", static_cast<unsigned long long>(child.seed), name.c_str(),
                       verdict.get<std::string>().c_str());
        }
      }
    }
    ++done;
    if (::isatty(STDERR_FILENO) != 0) {
      std::fprintf(stderr, "\r%llu of %llu seeds", static_cast<unsigned long long>(done), count);
    }
    if (flags.json) runs.push_back(std::move(run));
  };
  while (next <= to || !running.empty()) {
    while (next <= to && static_cast<int>(running.size()) < jobs) {
      int ends[2];
      if (::pipe(ends) != 0) return ReportStatus(absl::ResourceExhaustedError("cannot make a pipe"));
      std::fflush(nullptr);
      const pid_t pid = ::fork();
      if (pid < 0) return ReportStatus(absl::ResourceExhaustedError("cannot start a process"));
      if (pid == 0) {
        ::close(ends[0]);
        const absl::StatusOr<Json> run = RunSeed(scenario, next, Outputs());
        const std::string text = run.ok() ? run->dump() : std::string();
        for (size_t at = 0; at < text.size();) {
          const ssize_t written = ::write(ends[1], text.data() + at, text.size() - at);
          if (written <= 0) break;
          at += static_cast<size_t>(written);
        }
        ::_exit(0);
      }
      ::close(ends[1]);
      running.push_back({pid, next++, ends[0], ""});
    }
    std::vector<pollfd> polls;
    for (const Child& child : running) polls.push_back({child.pipe, POLLIN, 0});
    ::poll(polls.data(), polls.size(), -1);
    for (size_t i = running.size(); i-- > 0;) {
      if (polls[i].revents == 0) continue;
      char buffer[65536];
      const ssize_t got = ::read(running[i].pipe, buffer, sizeof buffer);
      if (got > 0) {
        running[i].text.append(buffer, static_cast<size_t>(got));
        continue;
      }
      finish(running[i]);
      running.erase(running.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  if (::isatty(STDERR_FILENO) != 0) std::fprintf(stderr, "\n");
  std::sort(failing.begin(), failing.end());
  if (flags.json) {
    std::sort(runs.begin(), runs.end(), [](const Json& a, const Json& b) { return a["seed"] < b["seed"]; });
    std::printf("%s\n",
                Json({{"scenario", scenario.name()}, {"failing_seeds", failing}, {"runs", runs}}).dump(2).c_str());
  } else {
    std::printf("%s: %llu seeds, %zu failed\n", scenario.name().c_str(), count, failing.size());
    for (const uint64_t seed : failing) {
      std::string sets;
      for (const std::string& text : flags.overrides) absl::StrAppend(&sets, " --set ", ShellWord(text));
      std::printf("  wukong sim %s --seed %llu%s\n", ShellWord(flags.scenario).c_str(),
                  static_cast<unsigned long long>(seed), sets.c_str());
    }
  }
  return failing.empty() ? kExitOk : kExitFailed;
}

int Sim(const SimFlags& flags) {
  const absl::StatusOr<Scenario> loaded = LoadCheckedScenario(flags.scenario, flags.overrides);
  if (!loaded.ok()) return ReportStatus(loaded.status());
  const Scenario& scenario = *loaded;
  FLAGS_minloglevel = google::GLOG_FATAL;  // What nodes say to their logs is on the tape.
  if (scenario.workload().fidelity() == FIDELITY_GPT) {
    TuneForComputing();
  } else {
    KeepMemoryInHugePages();  // Thousands of nodes, each looked at for a moment: the page table would miss at each.
  }
  if (!flags.seeds.empty()) {
    const std::vector<std::string> ends = absl::StrSplit(flags.seeds, "..");
    uint64_t from = 0, to = 0;
    if (ends.size() != 2 || !absl::SimpleAtoi(ends[0], &from) || !absl::SimpleAtoi(ends[1], &to) || from > to) {
      return ReportStatus(
          absl::InvalidArgumentError(absl::StrCat("--seeds ", flags.seeds, ": expected FIRST..LAST, such as 1..100")));
    }
    if (!flags.tape.empty() || !flags.report.empty() || !flags.seed.empty()) {
      return ReportStatus(absl::InvalidArgumentError("--seeds goes without --seed, --tape and --report"));
    }
    return RunSeeds(flags, scenario, from, to);
  }
  uint64_t seed = scenario.seed();
  if (!flags.seed.empty() && !absl::SimpleAtoi(flags.seed, &seed)) {
    return ReportStatus(absl::InvalidArgumentError(absl::StrCat("--seed ", flags.seed, ": expected a number")));
  }
  Outputs outputs{flags.tape, flags.report};
  // A report without its tape could not be looked into.
  if (outputs.tape.empty() && !outputs.report.empty()) outputs.tape = outputs.report + "/tape.jsonl";
  const absl::StatusOr<Json> run = RunSeed(scenario, seed, outputs);
  if (!run.ok()) return ReportStatus(run.status());
  if (flags.json) {
    std::printf("%s\n", run->dump(2).c_str());
  } else {
    PrintOne(scenario, *run);
  }
  return (*run)["passed"].get<bool>() ? kExitOk : kExitFailed;
}

}  // namespace

void AddSimCommand(CLI::App& app, std::function<int()>* action) {
  auto flags = std::make_shared<SimFlags>();
  CLI::App* command = app.add_subcommand("sim", "Run a scenario with faults on the simulator, in virtual time");
  command->add_option("SCENARIO", flags->scenario, "The scenario file (docs/simulation.md)")->required();
  command->add_option("--set", flags->overrides, "key.path=value in place of what the file says; may be repeated")
      ->expected(1)
      ->take_all()
      ->allow_extra_args(false);
  command->add_option("--seed", flags->seed, "Seed in place of the scenario's");
  command->add_option("--seeds", flags->seeds, "FIRST..LAST: run all of them, and name those that fail");
  command->add_option("--jobs", flags->jobs, "With --seeds: processes at a time (default: one per core)")
      ->check(WholeNumber(1));
  command->add_option("--tape", flags->tape, "Write what happens to this file, as JSON lines");
  command->add_option("--report", flags->report,
                      "Write a folder with the scenario, the verdicts, faults, progress, a plot and the tape");
  command->add_flag("--json", flags->json, "Print the result as JSON");
  command->callback([flags, action] { *action = [flags] { return Sim(*flags); }; });
}

}  // namespace wukong
