#include "tests/integration/wukong_process.h"

#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "glog/logging.h"
#include "gtest/gtest.h"
#include "proto/wire.grpc.pb.h"
#include "runtime/base/random.h"

namespace wukong::integration {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(20);
constexpr int64_t kMicroBatch = 4;
constexpr int64_t kContext = 32;

std::string Slurp(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// The third and fourth field of `directory`/stat: state and parent of a process (/proc/PID) or of a thread
// (/proc/PID/task/TID).
bool ReadStat(const std::string& directory, char* state, pid_t* parent) {
  const std::string stat = Slurp(absl::StrCat(directory, "/stat"));
  const size_t close = stat.rfind(')');  // The second field is a name in parentheses, which may hold anything.
  if (close == std::string::npos) return false;
  std::istringstream rest(stat.substr(close + 1));
  return static_cast<bool>(rest >> *state >> *parent);
}

// Sentences that a tiny model learns something of.
std::string Text() {
  const char* const subjects[] = {"the worker", "a region", "the root", "our model", "one fragment", "every version"};
  const char* const verbs[] = {"sends", "takes", "merges", "keeps", "drops", "waits for", "reads"};
  const char* const objects[] = {"the parameters", "a gradient", "the data", "its lease", "the newest version"};
  Random random(1);
  std::string text;
  for (int i = 0; i < 4000; ++i) {
    absl::StrAppend(&text, subjects[random.Below(6)], " ", verbs[random.Below(7)], " ", objects[random.Below(5)],
                    ".\n");
  }
  return text;
}

}  // namespace

bool Await(const std::function<bool()>& condition, absl::Duration patience) {
  const absl::Time deadline = absl::Now() + patience;
  while (!condition()) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(kPoll);
  }
  return true;
}

bool IsRunning(pid_t pid) {
  char state = 0;
  pid_t parent = 0;
  return ReadStat(absl::StrCat("/proc/", pid), &state, &parent) && state != 'Z' && state != 'X';
}

bool Freeze(pid_t pid) {
  if (pid <= 0 || ::kill(pid, SIGSTOP) != 0) return false;  // -1 would be everybody.
  return Await([&] {
    std::error_code error;
    std::filesystem::directory_iterator thread(absl::StrCat("/proc/", pid, "/task"), error);
    for (; !error && thread != std::filesystem::directory_iterator(); thread.increment(error)) {
      char state = 0;
      pid_t parent = 0;
      if (ReadStat(thread->path().string(), &state, &parent) && state != 'T') return false;
    }
    return !error;
  });
}

std::vector<pid_t> ChildrenOf(pid_t pid) {
  std::vector<pid_t> children;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    pid_t child = 0, parent = 0;
    char state = 0;
    if (!absl::SimpleAtoi(entry.path().filename().string(), &child) ||
        !ReadStat(entry.path().string(), &state, &parent))
      continue;
    if (parent == pid) children.push_back(child);
  }
  return children;
}

std::string CommandLine(pid_t pid) {
  std::string line = Slurp(absl::StrCat("/proc/", pid, "/cmdline"));
  std::replace(line.begin(), line.end(), '\0', ' ');
  return line;
}

std::optional<StatusReply> AskStatus(const std::string& address) {
  const auto stub = Coordinator::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(2));
  StatusReply reply;
  if (!stub->GetStatus(&context, StatusRequest(), &reply).ok()) return std::nullopt;
  return reply;
}

Process::Process(const std::string& directory, std::vector<std::string> arguments, std::function<void()> in_child,
                 std::string binary)
    : out_path_(absl::StrCat(directory, "/process-XXXXXX")), err_path_(absl::StrCat(directory, "/process-XXXXXX")) {
  const int out = ::mkostemp(out_path_.data(), O_CLOEXEC);
  const int err = ::mkostemp(err_path_.data(), O_CLOEXEC);
  PCHECK(out >= 0 && err >= 0) << directory;
  std::vector<char*> argv = {binary.data()};
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const pid_t parent = ::getpid();
  pid_ = ::fork();
  PCHECK(pid_ >= 0);
  if (pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(127);
    const int null = ::open("/dev/null", O_RDONLY);
    ::dup2(null, STDIN_FILENO);
    ::dup2(out, STDOUT_FILENO);
    ::dup2(err, STDERR_FILENO);
    if (::chdir(directory.c_str()) != 0) ::_exit(127);
    ::signal(SIGHUP, SIG_DFL);  // Under nohup it is ignored, also by whoever is started.
    if (in_child) in_child();
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  ::close(out);
  ::close(err);
}

Process::~Process() {
  if (ended()) return;
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

void Process::Signal(int signal_number) {
  if (!ended()) ::kill(pid_, signal_number);
}

std::optional<int> Process::Wait(absl::Duration patience) {
  const auto poll = [this] {
    int status = 0;
    if (!ended_.has_value() && ::waitpid(pid_, &status, WNOHANG) == pid_) {
      ended_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    return ended_.has_value();
  };
  Await(poll, patience);
  return ended_;
}

std::string Process::out() const { return Slurp(out_path_); }
std::string Process::err() const { return Slurp(err_path_); }

std::set<pid_t> Descendants(const Process& up, size_t expected) {
  std::set<pid_t> children;
  EXPECT_TRUE(Await([&] {
    for (const pid_t child : ChildrenOf(up.pid())) children.insert(child);
    return children.size() >= expected;
  }));
  return children;
}

std::set<pid_t> ChildrenWith(const Process& up, absl::string_view text) {
  std::set<pid_t> children;
  for (const pid_t child : ChildrenOf(up.pid())) {
    if (absl::StrContains(CommandLine(child), text)) children.insert(child);
  }
  return children;
}

void ExpectAllGone(const std::set<pid_t>& processes) {
  EXPECT_FALSE(processes.empty());
  Await([&] { return std::none_of(processes.begin(), processes.end(), IsRunning); }, absl::Seconds(20));
  for (const pid_t pid : processes) EXPECT_FALSE(IsRunning(pid)) << pid << ": " << CommandLine(pid);
}

Workspace::Workspace(bool prepare_data) : path_(::testing::TempDir() + "/wukong_integration_XXXXXX") {
  PCHECK(::mkdtemp(path_.data()) != nullptr) << path_;
  if (!prepare_data) return;
  const auto prepare =
      Start({"data", "prepare", "--tokenizer", "byte", "--input", Write("text.txt", Text()), "--output", Path("data")});
  const std::optional<int> code = prepare->Wait();
  EXPECT_EQ(code, 0) << prepare->err();
}

Workspace::~Workspace() {
  if (::testing::Test::HasFailure()) {
    std::fprintf(stderr, "kept for inspection: %s\n", path_.c_str());
    return;
  }
  std::error_code error;
  std::filesystem::remove_all(path_, error);
}

std::string Workspace::Path(absl::string_view name) const { return absl::StrCat(path_, "/", name); }

std::string Workspace::Write(absl::string_view name, absl::string_view contents) const {
  const std::string path = Path(name);
  std::ofstream file(path, std::ios::binary);
  file << contents;
  file.flush();
  CHECK(file.good()) << path;
  return path;
}

std::string Workspace::Yaml(const TinyJob& job) const {
  std::string regions;
  for (const auto& [name, workers] : job.regions) {
    absl::StrAppend(&regions, "  - name: ", name, "\n    workers: ", workers, "\n    speed: ", job.speed, "\n");
  }
  return absl::StrCat(
      "name: tiny\nseed: 7\n", "model:\n  layers: 1\n  heads: 2\n  width: ", job.width, "\n  context: ", kContext,
      "\n  vocabulary: 256\n", "data:\n  directory: data\n  range_steps: 2\n",
      "optimizer:\n  learning_rate: 1e-2\n  micro_batch: ", kMicroBatch, "\nstrategy:\n  preset: ", job.preset, "\n",
      job.preset == "ddp" ? "" : "  inner_steps: 4\n", "regions:\n", regions, "wan:\n  rtt: ", job.rtt,
      "\nstop:\n  tokens: ", job.tokens, "\nreport:\n  validation_tokens: 2k\n  progress_every: 300ms\n",
      "limits:\n  heartbeat: 100ms\n  lease: ", job.lease, "\n  start: ", job.start, "\n");
}

std::unique_ptr<Process> Workspace::Start(std::vector<std::string> arguments, std::function<void()> in_child) const {
  return std::make_unique<Process>(path_, std::move(arguments), std::move(in_child));
}

std::vector<Json> RunRecord::Lines(absl::string_view file) const {
  const std::string text = Slurp(absl::StrCat(directory_, "/", file));
  std::vector<Json> lines;
  for (absl::string_view line : absl::StrSplit(text.substr(0, text.rfind('\n') + 1), '\n', absl::SkipEmpty())) {
    lines.push_back(Json::parse(line, nullptr, /*allow_exceptions=*/false));
    EXPECT_FALSE(lines.back().is_discarded()) << file << ": " << line;
  }
  return lines;
}

std::vector<Json> RunRecord::Events(absl::string_view kind) const {
  std::vector<Json> events;
  for (Json& event : Lines("events.jsonl")) {
    if (event.value("event", "") == kind) events.push_back(std::move(event));
  }
  return events;
}

Json RunRecord::EventAbout(absl::string_view kind, absl::string_view name) const {
  for (const Json& event : Events(kind)) {
    if (absl::StrContains(event.value("name", ""), name)) return event;
  }
  return Json();
}

Json RunRecord::Report() const {
  Json report = Json::parse(Slurp(directory_ + "/report.json"), nullptr, /*allow_exceptions=*/false);
  return report.is_discarded() ? Json() : report;
}

pid_t RunRecord::PidOf(absl::string_view region, absl::string_view name) const {
  pid_t pid = -1;
  for (const Json& event : Events("joined")) {
    if (event["region"] == std::string(region) && event["name"] == std::string(name)) pid = event["pid"];
  }
  return pid;
}

std::string RunRecord::CoordinatorAddress() const {
  std::string address;
  EXPECT_TRUE(Await([&] {
    address = Slurp(directory_ + "/coordinator.address");
    return !address.empty();
  })) << directory_;
  return address;
}

pid_t RunRecord::CoordinatorPid() const {
  int pid = -1;
  const std::string owner = Slurp(directory_ + "/lock");
  return std::sscanf(owner.c_str(), "pid %d on", &pid) == 1 ? pid : -1;
}

Cluster::Cluster(const Workspace& workspace, const TinyJob& job, std::vector<std::string> coordinator_flags)
    : workspace_(workspace), job_(job), record_(workspace.Path("run")) {
  std::vector<std::string> arguments = {
      "coordinator", "--job", workspace.WriteJob(job), "--run-dir", record_.directory(), "--listen", "127.0.0.1:0"};
  arguments.insert(arguments.end(), coordinator_flags.begin(), coordinator_flags.end());
  coordinator_ = workspace.Start(std::move(arguments));
  address_ = record_.CoordinatorAddress();
}

void Cluster::StartAll() {
  for (const auto& [region, workers] : job_.regions) {
    StartAggregator(region);
    for (int w = 0; w < workers; ++w) StartWorker(region, {"--name", absl::StrCat("worker-", w)});
  }
}

Process& Cluster::StartAggregator(const std::string& region, std::vector<std::string> more) {
  std::vector<std::string> arguments = {"aggregator", "--coordinator", address_, "--region", region};
  arguments.insert(arguments.end(), more.begin(), more.end());
  members_.push_back(workspace_.Start(std::move(arguments)));
  return *members_.back();
}

Process& Cluster::StartWorker(const std::string& region, std::vector<std::string> more) {
  std::vector<std::string> arguments = {"worker", "--join", address_, "--region", region};
  arguments.insert(arguments.end(), more.begin(), more.end());
  members_.push_back(workspace_.Start(std::move(arguments)));
  return *members_.back();
}

int64_t Budget(const TinyJob& job) {
  constexpr int64_t kStep = kMicroBatch * kContext;
  return (job.tokens + kStep - 1) / kStep * kStep;
}

void ExpectBudgetCommittedOnce(const Json& report, int64_t budget) {
  ASSERT_TRUE(report.is_object()) << "there is no report";
  EXPECT_EQ(report["completed"], true);
  EXPECT_EQ(report["failure"], "");
  EXPECT_EQ(report["tokens_committed"], budget);
  const Json& ranges = report["ranges"];
  EXPECT_GT(ranges["total"], 0);
  EXPECT_EQ(ranges["committed_once"], ranges["total"]);
  EXPECT_EQ(ranges["committed_more_than_once"], 0);
  EXPECT_EQ(ranges["lost"], 0);
  int64_t merged = 0;
  for (const auto& [staleness, count] : report["staleness"].items()) merged += count.get<int64_t>();
  EXPECT_EQ(report["contributions"]["accepted"], merged) << "every accepted contribution has a staleness";
}

}  // namespace wukong::integration
