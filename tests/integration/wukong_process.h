// The `wukong` binary as a test sees it: processes with a deadline, a workspace with a tiny job, and what a run
// recorded.
#ifndef WUKONG_TESTS_INTEGRATION_WUKONG_PROCESS_H_
#define WUKONG_TESTS_INTEGRATION_WUKONG_PROCESS_H_

#include <sys/types.h>

#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "nlohmann/json.hpp"
#include "proto/wire.pb.h"

namespace wukong::integration {

using Json = nlohmann::json;

// Reached only by what is broken; the machine may be busy.
inline constexpr absl::Duration kPatience = absl::Seconds(90);

// Looks at `condition` every 20 ms. False when it did not come true in time.
bool Await(const std::function<bool()>& condition, absl::Duration patience = kPatience);

// Is not a zombie either: those are only not reaped yet.
bool IsRunning(pid_t pid);
// Stops a process, and returns when all its threads stand still: a thread on another core may go on for a moment after
// kill() has returned. False when there is no such process.
bool Freeze(pid_t pid);
std::vector<pid_t> ChildrenOf(pid_t pid);
// The command line, its arguments separated by spaces; empty when there is no such process.
std::string CommandLine(pid_t pid);

// As the coordinator at `address` says; nothing when it does not answer. A channel of its own each time, for one that
// has failed to connect waits before it tries again.
std::optional<StatusReply> AskStatus(const std::string& address);

// One process of the binary under test. It dies with the test, whatever happens.
class Process {
 public:
  // `in_child` runs between fork and exec and must be async-signal-safe. Output goes to files in `directory`, which is
  // also the working directory.
  Process(const std::string& directory, std::vector<std::string> arguments, std::function<void()> in_child = {},
          std::string binary = WUKONG_BINARY);
  ~Process();
  Process(const Process&) = delete;
  Process& operator=(const Process&) = delete;

  pid_t pid() const { return pid_; }
  void Signal(int signal_number);
  // The exit code, or 128 + the signal; nothing when it has not ended within `patience`.
  std::optional<int> Wait(absl::Duration patience = kPatience);
  bool ended() { return Wait(absl::ZeroDuration()).has_value(); }
  std::string out() const;
  std::string err() const;

 private:
  std::string out_path_;
  std::string err_path_;
  pid_t pid_ = -1;
  std::optional<int> ended_;
};

// Everything that `up` has started and not yet ended, once that is as many as `expected`.
std::set<pid_t> Descendants(const Process& up, size_t expected);
// Those of its children whose command line holds `text`.
std::set<pid_t> ChildrenWith(const Process& up, absl::string_view text);
void ExpectAllGone(const std::set<pid_t>& processes);

// A job that trains in a second or two.
struct TinyJob {
  std::string preset = "async";
  std::vector<std::pair<std::string, int>> regions = {{"beijing", 2}, {"shenzhen", 2}, {"guizhou", 2}};  // Workers.
  int64_t tokens = 100000;
  int width = 32;
  double speed = 1;
  std::string rtt = "30ms";
  std::string lease = "3s";
  std::string start = "60s";
};
inline TinyJob OneRegion(int workers, int64_t tokens = 20000, double speed = 1) {
  TinyJob job;
  job.regions = {{"beijing", workers}};
  job.tokens = tokens;
  job.speed = speed;
  return job;
}
constexpr int64_t kEndless = 50'000'000;  // Tokens: more than any test waits for.

// A directory of its own with prepared data, gone at its end.
class Workspace {
 public:
  // `prepare_data`: makes `data` with `wukong data prepare` from a text of seeded sentences.
  explicit Workspace(bool prepare_data = true);
  ~Workspace();

  const std::string& path() const { return path_; }
  std::string Path(absl::string_view name) const;
  // Returns the path.
  std::string Write(absl::string_view name, absl::string_view contents) const;
  std::string Yaml(const TinyJob& job) const;
  std::string WriteJob(const TinyJob& job) const { return Write("job.yaml", Yaml(job)); }

  std::unique_ptr<Process> Start(std::vector<std::string> arguments, std::function<void()> in_child = {}) const;

 private:
  std::string path_;
};

// What a run recorded so far; a last line that is not whole yet is left out.
class RunRecord {
 public:
  explicit RunRecord(std::string directory) : directory_(std::move(directory)) {}
  const std::string& directory() const { return directory_; }
  std::vector<Json> Events() const { return Lines("events.jsonl"); }
  std::vector<Json> Events(absl::string_view kind) const;  // Whose "event" is `kind`.
  // The first event of `kind` whose name holds `name`, or null.
  Json EventAbout(absl::string_view kind, absl::string_view name) const;
  std::vector<Json> Metrics() const { return Lines("metrics.jsonl"); }
  size_t Merged() const { return Events("merged").size(); }
  // Null when there is none, or it does not parse.
  Json Report() const;
  // Of a live or past member, newest incarnation; -1 when it has not joined.
  pid_t PidOf(absl::string_view region, absl::string_view name) const;
  // host:port, waiting for it.
  std::string CoordinatorAddress() const;
  // Of the coordinator that holds the run directory's lock, or held it last; -1 when there was none.
  pid_t CoordinatorPid() const;

 private:
  std::vector<Json> Lines(absl::string_view file) const;
  std::string directory_;
};

// A job's processes started one by one, without `wukong up`.
class Cluster {
 public:
  Cluster(const Workspace& workspace, const TinyJob& job, std::vector<std::string> coordinator_flags = {});
  // Every aggregator and every worker of the job.
  void StartAll();
  Process& StartAggregator(const std::string& region, std::vector<std::string> more = {});
  Process& StartWorker(const std::string& region, std::vector<std::string> more = {});

  const RunRecord& record() const { return record_; }
  Process& coordinator() { return *coordinator_; }
  const std::vector<std::unique_ptr<Process>>& members() const { return members_; }
  const std::string& address() const { return address_; }

 private:
  const Workspace& workspace_;
  const TinyJob job_;
  RunRecord record_;
  std::unique_ptr<Process> coordinator_;
  std::vector<std::unique_ptr<Process>> members_;
  std::string address_;
};

// What is true of every run that reached its budget, faults or not; `budget` in whole steps.
void ExpectBudgetCommittedOnce(const Json& report, int64_t budget);
// stop.tokens rounded up to whole optimizer steps.
int64_t Budget(const TinyJob& job);

}  // namespace wukong::integration

#endif  // WUKONG_TESTS_INTEGRATION_WUKONG_PROCESS_H_
