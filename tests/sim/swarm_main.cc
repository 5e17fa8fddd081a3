// Runs scenarios of a swarm (runtime/sim/swarm.h) for a while, on every core, and says which failed and how to repeat
// them.
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "glog/logging.h"
#include "launch/job_file.h"
#include "nlohmann/json.hpp"
#include "runtime/base/clock.h"
#include "runtime/base/mutation.h"
#include "runtime/sim/simulation.h"
#include "runtime/sim/swarm.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

// A scenario that takes longer, in real time, does not end. A bug is known for one by a shorter time.
constexpr unsigned kHungSeconds = 300;
constexpr unsigned kMutantHungSeconds = 45;

struct Flags {
  double seconds = 60;
  uint64_t seed = 1;
  uint64_t scenarios = std::numeric_limits<uint64_t>::max();
  int jobs = 0;
  std::string mutation;
  std::string only;
  std::string tape;
  std::string directory = "build/swarm";
  bool stop_at_first = false;
  bool json = false;
  bool list_mutations = false;
};

// What is wrong, by verdict. A fault that did not come to pass is none of it: faults are drawn without knowing the run.
std::map<std::string, std::string> Violations(const absl::StatusOr<SimulationResult>& result) {
  if (!result.ok()) return {{"scenario", std::string(result.status().message())}};
  std::map<std::string, std::string> violations;
  for (const auto& [name, violation] : result->verdicts) {
    if (!violation.empty() && name != "fired") violations[name] = violation;
  }
  return violations;
}

// One process that runs every `jobs`-th scenario, and its report line by line.
struct Runner {
  pid_t pid = 0;
  int pipe = -1;
  uint64_t next = 0;  // The one that it is at, or begins with.
  std::string text;
  std::string errors;  // File of its standard error.
};

class Swarm {
 public:
  explicit Swarm(const Flags& flags) : flags_(flags), begin_(clock_.Now()) {
    jobs_ = flags.jobs > 0 ? flags.jobs : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  }

  int Run() {
    std::vector<Runner> runners(static_cast<size_t>(jobs_));
    for (int i = 0; i < jobs_; ++i) {
      runners[i].next = static_cast<uint64_t>(i);
      runners[i].errors = absl::StrCat(std::filesystem::temp_directory_path().string(), "/swarm.", ::getpid(), ".", i);
      Start(&runners[i]);
    }
    while (!runners.empty()) {
      std::vector<pollfd> polls;
      for (const Runner& runner : runners) polls.push_back({runner.pipe, POLLIN, 0});
      ::poll(polls.data(), polls.size(), -1);
      for (size_t i = runners.size(); i-- > 0;) {
        if (polls[i].revents == 0 || Read(&runners[i])) continue;
        std::filesystem::remove(runners[i].errors);
        runners.erase(runners.begin() + static_cast<std::ptrdiff_t>(i));
      }
    }
    return Report();
  }

 private:
  double Elapsed() const { return absl::ToDoubleSeconds(clock_.Now() - begin_); }
  bool Over() const { return Elapsed() >= flags_.seconds || (flags_.stop_at_first && !failures_.empty()); }

  void Start(Runner* runner) {
    int ends[2];
    CHECK_EQ(::pipe(ends), 0) << "cannot make a pipe";
    std::fflush(nullptr);
    runner->pid = ::fork();
    CHECK_GE(runner->pid, 0) << "cannot start a process";
    if (runner->pid > 0) {
      ::close(ends[1]);
      runner->pipe = ends[0];
      return;
    }
    ::close(ends[0]);
    for (uint64_t index = runner->next; !Over() && index < flags_.scenarios; index += static_cast<uint64_t>(jobs_)) {
      CHECK_NOTNULL(std::freopen(runner->errors.c_str(), "w", stderr));
      std::setvbuf(stderr, nullptr, _IONBF, 0);  // What a process says last must not be lost with it.
      ::alarm(HungSeconds());
      Tell(ends[1], {{"begins", index}});
      const Scenario scenario = DrawScenario(flags_.seed, index);
      const absl::StatusOr<SimulationResult> result = RunSimulation(scenario, scenario.seed(), nullptr);
      Json report = {{"index", index}, {"violations", Violations(result)}, {"mutation_passes", MutationPasses()}};
      if (result.ok()) {
        report["virtual_seconds"] = absl::ToDoubleSeconds(result->virtual_time);
        report["faults"] = result->faults_observed;
      }
      Tell(ends[1], report);
    }
    ::_exit(0);
  }

  static void Tell(int pipe, const Json& line) {
    const std::string text = line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
    for (size_t at = 0; at < text.size();) {
      const ssize_t written = ::write(pipe, text.data() + at, text.size() - at);
      if (written <= 0) ::_exit(1);
      at += static_cast<size_t>(written);
    }
  }

  // False when the runner has ended for good.
  bool Read(Runner* runner) {
    char buffer[65536];
    const ssize_t got = ::read(runner->pipe, buffer, sizeof buffer);
    if (got > 0) {
      runner->text.append(buffer, static_cast<size_t>(got));
      for (size_t end = runner->text.find('\n'); end != std::string::npos; end = runner->text.find('\n')) {
        Take(Json::parse(runner->text.substr(0, end)), runner);
        runner->text.erase(0, end + 1);
      }
      if (flags_.stop_at_first && !failures_.empty()) ::kill(runner->pid, SIGKILL);
      return true;
    }
    ::close(runner->pipe);
    int status = 0;
    ::waitpid(runner->pid, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return false;
    if (!(flags_.stop_at_first && !failures_.empty())) {
      ++scenarios_;
      Failed(runner->next, {{WTERMSIG(status) == SIGALRM ? "hangs" : "crash", WhyItDied(*runner, status)}});
      runner->next += static_cast<uint64_t>(jobs_);
    }
    if (Over() || runner->next >= flags_.scenarios) return false;
    runner->text.clear();
    Start(runner);
    return true;
  }

  unsigned HungSeconds() const { return flags_.mutation.empty() ? kHungSeconds : kMutantHungSeconds; }

  std::string WhyItDied(const Runner& runner, int status) const {
    if (WTERMSIG(status) == SIGALRM) return absl::StrCat("it did not end within ", HungSeconds(), " s of real time");
    std::ifstream errors(runner.errors);
    for (std::string line; std::getline(errors, line);) {
      if (const size_t at = line.find("Check failed"); at != std::string::npos) return line.substr(at);
    }
    return absl::StrCat("it was ended by signal ", WTERMSIG(status));
  }

  void Take(const Json& line, Runner* runner) {
    if (line.contains("begins")) {
      runner->next = line["begins"].get<uint64_t>();
      return;
    }
    ++scenarios_;
    virtual_seconds_ += line.value("virtual_seconds", 0.0);
    mutation_passes_ += line.value("mutation_passes", int64_t{0}) > 0 ? 1 : 0;
    if (line.contains("faults")) {
      for (const auto& [kind, count] : line["faults"].items()) faults_[kind] += count.get<int64_t>();
    }
    if (!line["violations"].empty()) {
      Failed(line["index"].get<uint64_t>(), line["violations"].get<std::map<std::string, std::string>>());
    }
    if (!flags_.json && ::isatty(STDERR_FILENO) != 0) {
      std::fprintf(stderr, "\r%.0f of %.0f s: %lld scenarios, %zu failed", Elapsed(), flags_.seconds,
                   static_cast<long long>(scenarios_), failures_.size());
    }
  }

  void Failed(uint64_t index, const std::map<std::string, std::string>& violations) {
    failures_[index] = violations;
    if (flags_.json) return;
    const Scenario scenario = DrawScenario(flags_.seed, index);
    std::filesystem::create_directories(flags_.directory);
    const std::string file = absl::StrCat(flags_.directory, "/", flags_.seed, "-", index, ".yaml");
    std::ofstream(file) << ScenarioYaml(scenario);
    for (const auto& [name, violation] : violations) {
      std::fprintf(stderr, "%s%llu:%llu: %s: %s\n", ::isatty(STDERR_FILENO) != 0 ? "\r" : "",
                   static_cast<unsigned long long>(flags_.seed), static_cast<unsigned long long>(index), name.c_str(),
                   violation.c_str());
    }
    const std::string mutation = flags_.mutation.empty() ? "" : " --mutation " + flags_.mutation;
    std::fprintf(stderr, "  again with: tests/sim/swarm --only %llu:%llu%s\n",
                 static_cast<unsigned long long>(flags_.seed), static_cast<unsigned long long>(index),
                 mutation.c_str());
    std::fprintf(stderr, "  the scenario is in %s\n", file.c_str());
  }

  int Report() const {
    if (flags_.json) {
      Json failures = Json::array();
      for (const auto& [index, violations] : failures_) {
        failures.push_back({{"index", index}, {"violations", violations}});
      }
      std::printf("%s\n", Json({{"seed", flags_.seed},
                                {"mutation", flags_.mutation},
                                {"scenarios", scenarios_},
                                {"seconds", Elapsed()},
                                {"virtual_hours", virtual_seconds_ / 3600},
                                {"faults_observed", faults_},
                                {"mutation_reached", mutation_passes_},
                                {"failures", failures}})
                              .dump(2)
                              .c_str());
      return failures_.empty() ? 0 : 1;
    }
    if (::isatty(STDERR_FILENO) != 0) std::fprintf(stderr, "\n");
    std::string faults;
    for (const auto& [kind, count] : faults_) absl::StrAppend(&faults, faults.empty() ? "" : ", ", kind, " ", count);
    std::printf("swarm %llu: %lld scenarios, %zu failed; %.1f simulated hours in %.0f s; faults: %s\n",
                static_cast<unsigned long long>(flags_.seed), static_cast<long long>(scenarios_), failures_.size(),
                virtual_seconds_ / 3600, Elapsed(), faults.empty() ? "none" : faults.c_str());
    return failures_.empty() ? 0 : 1;
  }

  const Flags flags_;
  const RealClock clock_;
  const absl::Time begin_;
  int jobs_ = 1;
  int64_t scenarios_ = 0;
  int64_t mutation_passes_ = 0;  // Scenarios that came to where the mutation is.
  double virtual_seconds_ = 0;
  std::map<std::string, int64_t> faults_;
  std::map<uint64_t, std::map<std::string, std::string>> failures_;  // By index.
};

// One scenario, in this process.
int RunOnly(const Flags& flags) {
  const std::vector<std::string> parts = absl::StrSplit(flags.only, ':');
  uint64_t seed = 0, index = 0;
  if (parts.size() != 2 || !absl::SimpleAtoi(parts[0], &seed) || !absl::SimpleAtoi(parts[1], &index)) {
    std::fprintf(stderr, "--only %s: expected SEED:INDEX, such as 1:17\n", flags.only.c_str());
    return 2;
  }
  const Scenario scenario = DrawScenario(seed, index);
  std::ofstream tape;
  Tape::Watcher watcher;
  if (!flags.tape.empty()) {
    tape.open(flags.tape);
    watcher = [&tape](const TapeEvent& event) { tape << TapeEventToJson(event) << "\n"; };
  }
  std::printf("%s", ScenarioYaml(scenario).c_str());
  std::fflush(stdout);
  const absl::StatusOr<SimulationResult> result = RunSimulation(scenario, scenario.seed(), watcher);
  const std::map<std::string, std::string> violations = Violations(result);
  for (const auto& [name, violation] : violations) std::printf("%s: %s\n", name.c_str(), violation.c_str());
  if (result.ok()) {
    std::printf("%s: %lld samples committed in %.1f s of virtual time, tape %016llx\n",
                violations.empty() ? "passed" : "FAILED", static_cast<long long>(result->samples_committed),
                absl::ToDoubleSeconds(result->virtual_time), static_cast<unsigned long long>(result->tape_hash));
  }
  return violations.empty() ? 0 : 1;
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("Scenarios drawn at random, on the simulator (docs/simulation.md)");
  app.add_option("--seconds", flags.seconds, "How long scenarios are begun");
  app.add_option("--seed", flags.seed, "What they are drawn from");
  app.add_option("--scenarios", flags.scenarios, "No more than these: numbers 0 to N-1 of the seed");
  app.add_option("--jobs", flags.jobs, "Processes at a time (default: one per core)");
  app.add_option("--mutation", flags.mutation, "With this bug (a build with -DWUKONG_MUTATIONS=ON)");
  app.add_option("--only", flags.only, "SEED:INDEX: this scenario alone");
  app.add_option("--tape", flags.tape, "With --only: write what happens to this file, as JSON lines");
  app.add_option("--failures", flags.directory, "Where the scenarios that failed are written");
  app.add_flag("--stop-at-first", flags.stop_at_first, "End when one has failed");
  app.add_flag("--json", flags.json, "Print the result as JSON");
  app.add_flag("--list-mutations", flags.list_mutations, "Print the mutations and what they do wrong");
  CLI11_PARSE(app, argc, argv);
  if (flags.list_mutations) {
    for (const auto& [name, wrong] : Mutations()) std::printf("%s\t%s\n", name.c_str(), wrong.c_str());
    return 0;
  }
  if (!flags.mutation.empty()) {
    if (const absl::Status status = SetMutation(flags.mutation); !status.ok()) {
      std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
      return 2;
    }
  }
  FLAGS_minloglevel = google::GLOG_FATAL;  // What nodes say to their logs is on the tape.
  FLAGS_logtostderr = true;
  return flags.only.empty() ? Swarm(flags).Run() : RunOnly(flags);
}

}  // namespace
}  // namespace wukong

int main(int argc, char** argv) { return wukong::Main(argc, argv); }
