// `wukong chaos shrink`: the least of a failing scenario's faults with which it still fails.
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "glog/logging.h"
#include "launch/chaos_command.h"
#include "launch/exit_code.h"
#include "launch/flag_checks.h"
#include "launch/job_file.h"
#include "launch/tape_file.h"
#include "nlohmann/json.hpp"
#include "runtime/base/shell_word.h"
#include "runtime/sim/shrink.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

struct ShrinkFlags {
  std::string scenario;
  std::vector<std::string> overrides;
  std::string seed;
  std::string verdict;
  std::string output;
  int tries = 1000;
};

struct Outcome {
  std::map<std::string, std::string> failed;  // Verdict -> what is wrong.
  std::vector<FaultStrike> strikes;
};

// Each strike on a line of its own, as it happens, so that those of a simulator that dies are known; then the verdict.
void WriteOutcome(const Scenario& scenario, uint64_t seed, int file) {
  const auto write_line = [file](const Json& json) {
    const std::string text = json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
    for (size_t at = 0; at < text.size();) {
      const ssize_t written = ::write(file, text.data() + at, text.size() - at);
      if (written <= 0) return;
      at += static_cast<size_t>(written);
    }
  };
  std::vector<FaultStrike> collected;
  const auto result = RunSimulation(scenario, seed, [&](const TapeEvent& event) {
    collected.clear();
    CollectStrike(event, &collected);
    for (const FaultStrike& strike : collected) {
      write_line({strike.fault, strike.target, absl::ToInt64Nanoseconds(strike.time)});
    }
  });
  Json failed = Json::object();
  // A scenario that is not valid any more does not fail: it cannot be run.
  if (result.ok()) {
    for (const auto& [name, violation] : result->verdicts) {
      if (!violation.empty()) failed[name] = violation;
    }
  }
  write_line(failed);
}

// In a process of its own: a scenario in which the simulator dies is a failing one like others.
absl::StatusOr<Outcome> RunApart(const Scenario& scenario, uint64_t seed) {
  int ends[2];
  if (::pipe(ends) != 0) return absl::ResourceExhaustedError("cannot make a pipe");
  std::fflush(nullptr);
  const pid_t pid = ::fork();
  if (pid < 0) return absl::ResourceExhaustedError("cannot start a process");
  if (pid == 0) {
    ::close(ends[0]);
    WriteOutcome(scenario, seed, ends[1]);
    ::_exit(0);
  }
  ::close(ends[1]);
  std::string text;
  char buffer[65536];
  for (ssize_t got = 0; (got = ::read(ends[0], buffer, sizeof buffer)) > 0;)
    text.append(buffer, static_cast<size_t>(got));
  ::close(ends[0]);
  int status = 0;
  ::waitpid(pid, &status, 0);
  Outcome outcome;
  bool ended = false;
  for (const absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (json.is_array()) {
      outcome.strikes.push_back(
          {json[0].get<int>(), json[1].get<std::string>(), absl::Nanoseconds(json[2].get<int64_t>())});
    } else if (json.is_object()) {
      ended = true;
      for (const auto& [name, violation] : json.items()) outcome.failed[name] = violation.get<std::string>();
    }
  }
  if (!ended) outcome.failed["crash"] = "the simulator died";
  return outcome;
}

// What to keep of several: that something did not happen, or did not happen in time, is the least telling.
std::string MostTelling(const std::map<std::string, std::string>& failed) {
  std::string best;
  int best_rank = 3;
  for (const auto& [name, violation] : failed) {
    const int rank = name == "fired" ? 2 : name == "I11" ? 1 : 0;
    if (rank < best_rank) {
      best = name;
      best_rank = rank;
    }
  }
  return best;
}

// INVALID_ARGUMENT: the file could not be written.
absl::Status CheckShrunkOutput(const std::string& output) {
  if (output.empty()) return absl::OkStatus();
  std::error_code error;
  if (std::filesystem::is_directory(output, error)) {
    return absl::InvalidArgumentError(absl::StrCat("--output ", output, ": is a directory (expected a file)"));
  }
  std::string written = output;
  if (!std::filesystem::exists(output, error)) {
    const std::string folder = std::filesystem::path(output).parent_path();
    written = folder.empty() ? "." : folder;
  }
  if (::access(written.c_str(), W_OK) == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--output ", output, ": nothing can be written to ", written, ": ", std::strerror(errno)));
}

absl::Status Shrink(const ShrinkFlags& flags) {
  absl::StatusOr<Scenario> scenario = LoadCheckedScenario(flags.scenario, flags.overrides);
  if (!scenario.ok()) return scenario.status();
  uint64_t seed = scenario->seed();
  if (!flags.seed.empty() && !absl::SimpleAtoi(flags.seed, &seed)) {
    return absl::InvalidArgumentError(absl::StrCat("--seed ", flags.seed, ": expected a number"));
  }
  scenario->set_seed(seed);
  // That it cannot be written is to be known before minutes of work.
  if (absl::Status status = CheckShrunkOutput(flags.output); !status.ok()) return status;
  const absl::StatusOr<Outcome> whole = RunApart(*scenario, seed);
  if (!whole.ok()) return whole.status();
  if (whole->failed.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(flags.scenario, " does not fail with seed ", seed,
                                                   ": there is nothing to shrink (wukong sim ", flags.scenario,
                                                   " --seeds 1..100 finds seeds that do)"));
  }
  const std::string verdict = flags.verdict.empty() ? MostTelling(whole->failed) : flags.verdict;
  if (whole->failed.count(verdict) == 0) {
    std::vector<std::string> names;
    for (const auto& [name, violation] : whole->failed) names.push_back(name);
    return absl::InvalidArgumentError(absl::StrCat("--verdict ", verdict, ": holds with seed ", seed,
                                                   "; what fails is ", absl::StrJoin(names, ", ")));
  }
  std::fprintf(stderr, "seed %llu: %s: %s\n", static_cast<unsigned long long>(seed), verdict.c_str(),
               whole->failed.at(verdict).c_str());

  absl::Status trouble;
  std::string violation = whole->failed.at(verdict);
  ShrinkOptions options;
  options.tries_max = flags.tries;
  options.fails = [&](const Scenario& candidate) {
    if (!trouble.ok()) return false;
    const absl::StatusOr<Outcome> outcome = RunApart(candidate, seed);
    if (!outcome.ok()) {
      trouble = outcome.status();
      return false;
    }
    const auto found = outcome->failed.find(verdict);
    if (found == outcome->failed.end()) return false;
    violation = found->second;
    return true;
  };
  int tries = 0;
  options.on_try = [&](const std::string& what, bool failed) {
    std::fprintf(stderr, "try %d: %s: %s\n", ++tries, what.c_str(), failed ? "still fails" : "does not fail");
  };
  // Random faults first become what they were in this run: taking one away must not move the others.
  Scenario start = WithFaultTimes(*scenario, whole->strikes);
  if (!options.fails(start)) start = *scenario;
  const ShrinkResult result = ShrinkScenario(start, options);
  if (!trouble.ok()) return trouble;
  if (result.exhausted) {
    std::fprintf(stderr, "wukong: warning: %d tries were not enough; more may help (--tries)\n", result.tries);
  }
  std::fprintf(stderr, "%d of %d faults are left: %s: %s\n", result.scenario.timeline_size(), start.timeline_size(),
               verdict.c_str(), violation.c_str());

  const std::string yaml = ScenarioYaml(result.scenario);
  std::printf("%s# %s\n#   wukong sim %s --seed %llu\n", yaml.c_str(),
              flags.output.empty() ? "Once this is in a file, again with" : "Again with",
              flags.output.empty() ? "FILE" : ShellWord(flags.output).c_str(), static_cast<unsigned long long>(seed));
  if (flags.output.empty()) return absl::OkStatus();
  std::ofstream file(flags.output);
  file << yaml;
  if (file.flush()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("cannot write ", flags.output, ": ", std::strerror(errno)));
}

}  // namespace

void AddChaosShrinkCommand(CLI::App& chaos, std::function<int()>* action) {
  auto flags = std::make_shared<ShrinkFlags>();
  CLI::App* command =
      chaos.add_subcommand("shrink", "Cut the faults of a failing scenario down to those that it needs");
  command->add_option("SCENARIO", flags->scenario, "The scenario file (docs/simulation.md)")->required();
  command->add_option("--set", flags->overrides, "key.path=value in place of what the file says; may be repeated")
      ->expected(1)
      ->take_all()
      ->allow_extra_args(false);
  command->add_option("--seed", flags->seed, "The seed with which it fails (default: the scenario's)");
  command->add_option("--verdict", flags->verdict, "What must go on failing (default: the most telling of what fails)");
  command->add_option("--tries", flags->tries, "At most so many simulations (default 1000)")->check(WholeNumber(1));
  command->add_option("--output", flags->output, "Write the scenario that is left to this file as well");
  command->callback([flags, action] {
    *action = [flags] {
      FLAGS_minloglevel = google::GLOG_FATAL;  // What nodes say to their logs is on the tape.
      return ReportStatus(Shrink(*flags));
    };
  });
}

}  // namespace wukong
