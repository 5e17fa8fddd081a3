// Looks after the processes of a run: starts them, and starts those again that die.
//
//             ends                      decided: restart            its time has come
//   running ---------> to be decided -----------------> waiting ------------------> running
//                          |  decided: leave, give up,     | the run is over meanwhile,
//                          |  or abandoned                 | or abandoned
//                          v                               v
//                        gone <---------------------------/
//
// The coordinator's standby, if there is one when it dies, is the running coordinator at once.
#ifndef WUKONG_LAUNCH_SUPERVISOR_H_
#define WUKONG_LAUNCH_SUPERVISOR_H_

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "launch/subprocess.h"

namespace wukong {

enum class ProcessKind { kCoordinator, kAggregator, kWorker };

// How far the run was when a process ended.
enum class RunStage {
  kFirstStart,  // Nobody has trained yet: what is wrong is likely to be wrong again, and the user waits for it.
  kUnderWay,
  kOver,  // Done or failed, the coordinator has said so: whoever ends now ends with the run.
};

// Decides which processes are started again, and when. Pure: it starts nothing and has no clock.
class RestartPolicy {
 public:
  // `budget`: restarts in the whole run, over all processes.
  explicit RestartPolicy(int budget) : budget_(budget) {}

  struct Decision {
    enum class Kind {
      kLeave,    // It ended as it was meant to.
      kRestart,  // After `backoff`.
      kGiveUp,   // It is gone for good, and `reason` says why.
    };
    Kind kind = Kind::kLeave;
    absl::Duration backoff;
    std::string reason;
  };

  // The process ended with `code` (128 + the signal for one that was killed) after a life of `lived`.
  //
  //   code                 coordinator                 aggregator, worker
  //   0                    it decided: leave           leave
  //   killed, 75           restart                     restart
  //   2, 3                 it decided: leave           give up: the next one would find the same
  //   any other            it decided: leave           restart; give up before the run has trained
  //
  // In a run that is over all are left. A restart needs budget, and a process that does not die young, or diverge (6),
  // five times in a row.
  Decision Ended(const std::string& name, ProcessKind kind, int code, absl::Duration lived, RunStage stage);

  int budget() const { return budget_; }
  int used() const { return used_; }

 private:
  struct History {
    int died_young = 0;  // Or diverged, in a row.
  };
  const int budget_;
  int used_ = 0;
  std::map<std::string, History> histories_;
};

// "was killed by signal 9 (Killed)", "ended with exit code 3"
std::string EndedHow(int code);
// Nothing more can be written on the file system of `path`.
bool DiskIsFull(const std::string& path);
// The last lines of a log, indented, for a person who wants to know why.
std::string LogTail(const std::string& path, size_t lines);

// Not thread-safe. Children die with this process.
class Supervisor {
 public:
  struct Options {
    std::string log_directory;
    int restarts = 0;  // The policy's budget.
    // How far the run is, asked after a process of this kind has ended. Nothing: nobody can tell yet, ask again.
    std::function<std::optional<RunStage>(ProcessKind)> stage;
    // What people should read, one line or more.
    std::function<void(const std::string&)> say;
    // Between a death and the next start there is at least this. Above 0: a member that is killed young is so because
    // an experiment kills members, and is started again however often that happens.
    absl::Duration restart_after = absl::ZeroDuration();
    // The command line of a process that becomes the coordinator by itself as soon as that one is gone, so that none
    // has to be started then. Asked while there is none; nothing: none yet. Its restarts are of no budget, but taking
    // over is.
    std::function<std::optional<std::vector<std::string>>()> standby = nullptr;
    // Members hear of the end by their heartbeats, which come so often.
    absl::Duration heartbeat = absl::ZeroDuration();
    // Asked while everything is being ended: whether what is left is to be killed at once.
    std::function<bool()> hurry = nullptr;
  };
  explicit Supervisor(Options options) : options_(std::move(options)), policy_(options_.restarts) {}

  // The whole command line for the start that follows on `starts` others.
  using Command = std::function<std::vector<std::string>(int starts)>;
  // `name` as in "worker-1 of beijing"; the log is named after it. The coordinator comes first. `network`: as
  // Subprocess::Start, of every life of it; outlives this.
  absl::Status Start(const std::string& name, ProcessKind kind, Command command, absl::Time now, int network = -1);

  // Takes note of who ended, and starts whom it is time to start. ABORTED: a process is gone for good without which the
  // run cannot go on. Once the coordinator is gone, nothing is started any more.
  absl::Status Poll(absl::Time now);

  bool coordinator_runs() const { return !processes_.empty() && processes_[0].state == State::kRunning; }
  int coordinator_starts() const { return processes_.empty() ? 0 : processes_[0].starts; }
  const std::string& coordinator_log() const { return processes_[0].log; }
  struct Ending {
    int code = 0;
    std::string reason;  // Why it is not started again; empty when it ended by itself.
  };
  // How the coordinator ended for good; nothing while it runs or is to be started again.
  const std::optional<Ending>& coordinator_ending() const { return coordinator_ending_; }

  // The last life of this process has this pid.
  bool Owns(const std::string& name, int64_t pid) const;
  // Each worker was given up or abandoned; who left as it was meant to, at the end of a run for instance, is none.
  bool no_worker_left() const;
  // The exit code (or 128 + the signal) of the last member that was given up.
  std::optional<int> given_up_code() const { return given_up_code_; }

  // The pid of this process, which runs; 0: none does now.
  pid_t RunningPid(const std::string& name);
  // False: no such process runs now.
  bool Signal(const std::string& name, int signal_number);

  // It is never started again, and the run goes on without it.
  void Abandon(const std::string& name);

  // Ends everything and waits for it. Before anybody is asked to end (SIGTERM, at last SIGKILL), they get some time to
  // do it by themselves, the coordinator after `coordinator_signal` if that is not 0.
  void Stop(int coordinator_signal);

  int budget() const { return policy_.budget(); }
  // How often each was started again, for those that were.
  const std::map<std::string, int>& restarts() const { return restarts_; }

 private:
  enum class State { kRunning, kToBeDecided, kWaiting, kGone };
  struct Process {
    std::string name;
    ProcessKind kind;
    Command command;
    std::string log;
    int network;
    Subprocess child;  // The last one started.
    int starts = 1;
    State state = State::kRunning;
    bool abandoned = false;
    absl::Time started = absl::InfinitePast();
    absl::Time ended = absl::InfinitePast();
    absl::Time restart_at = absl::InfinitePast();
    int code = 0;
  };

  Process* Running(const std::string& name);  // Null: none does now.
  absl::Status Decide(Process* process, RunStage stage, absl::Time now);
  absl::Status GiveUp(Process* process, RunStage stage, const std::string& reason);
  void Restart(Process* process, absl::Time now);
  void KeepStandby(absl::Time now);

  const Options options_;
  RestartPolicy policy_;
  std::vector<Process> processes_;
  std::optional<Ending> coordinator_ending_;
  std::optional<int> given_up_code_;
  std::map<std::string, int> restarts_;
  std::optional<Subprocess> standby_;
  int standbys_died_ = 0;  // In a row.
  absl::Time next_standby_ = absl::InfinitePast();
};

}  // namespace wukong

#endif  // WUKONG_LAUNCH_SUPERVISOR_H_
