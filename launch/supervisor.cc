#include "launch/supervisor.h"

#include <signal.h>
#include <string.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "launch/exit_code.h"
#include "runtime/base/clock.h"

namespace wukong {
namespace {

// Doubled for each life in a row that was shorter than kYoung; the fifth such life is the last.
constexpr absl::Duration kFirstBackoff = absl::Milliseconds(100);
constexpr absl::Duration kYoung = absl::Seconds(5);
constexpr int kDiedYoungMax = 5;

// After a start of the coordinator: until members have found it, the cores are theirs. Doubled for each standby in a
// row that died, up to the maximum.
constexpr absl::Duration kStandbyAfter = absl::Seconds(2);
constexpr absl::Duration kStandbyAfterMax = absl::Minutes(5);

constexpr absl::Duration kPoll = absl::Milliseconds(50);
constexpr absl::Duration kLeave = absl::Seconds(15);  // For processes to end by themselves once the run is over.
// Once the coordinator is gone: who has not heard by now will not hear, and would look for it for limits.start.
constexpr absl::Duration kOrphaned = absl::Seconds(3);
constexpr uint64_t kDiskFullBytes = 4096;
constexpr size_t kTailLines = 5;

bool WasKilled(int code) { return code > 128; }

// Where all share a machine, what everybody waits for goes before what computes: a coordinator that starts again has
// the core for the moment that it needs.
int NicenessOf(ProcessKind kind) { return kind == ProcessKind::kWorker ? 10 : 0; }

}  // namespace

// ---------------------------------------------------------------- the policy

RestartPolicy::Decision RestartPolicy::Ended(const std::string& name, ProcessKind kind, int code, absl::Duration lived,
                                             RunStage stage) {
  const bool did_not_mean_to = WasKilled(code) || code == kExitRestart;
  const auto give_up = [](std::string reason) { return Decision{Decision::Kind::kGiveUp, {}, std::move(reason)}; };
  if (stage == RunStage::kOver || code == kExitOk) return Decision();
  if (!did_not_mean_to) {
    if (kind == ProcessKind::kCoordinator) return Decision();
    if (code == kExitUsage || code == kExitMachine) return give_up("the next one would find the same");
    if (stage == RunStage::kFirstStart) return give_up("nobody has trained yet");
  }

  History& history = histories_[name];
  history.died_young = lived < kYoung || code == kExitDiverged ? history.died_young + 1 : 0;
  if (budget_ == 0) return give_up("restarts are off");
  if (history.died_young >= kDiedYoungMax) {
    return give_up(absl::StrFormat(
        "%d times in a row it %s", kDiedYoungMax,
        code == kExitDiverged ? "diverged" : absl::StrCat("did not live for ", absl::FormatDuration(kYoung))));
  }
  if (used_ >= budget_)
    return give_up(absl::StrFormat("all %d restarts of this run (--restarts) are used up", budget_));
  ++used_;
  Decision restart;
  restart.kind = Decision::Kind::kRestart;
  restart.backoff = kFirstBackoff * (1 << std::max(0, history.died_young - 1));
  return restart;
}

// ---------------------------------------------------------------- words

std::string EndedHow(int code) {
  if (WasKilled(code)) return absl::StrFormat("was killed by signal %d (%s)", code - 128, strsignal(code - 128));
  return absl::StrFormat("ended with exit code %d", code);
}

bool DiskIsFull(const std::string& path) {
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(path, error);
  return !error && space.available < kDiskFullBytes;
}

std::string LogTail(const std::string& path, size_t lines) {
  std::ifstream file(path);
  std::vector<std::string> all;
  for (std::string line; std::getline(file, line);) all.push_back(line);
  std::string tail;
  for (size_t i = all.size() > lines ? all.size() - lines : 0; i < all.size(); ++i)
    absl::StrAppend(&tail, "    ", all[i], "\n");
  // Then the reason could not be logged, and is this.
  if (DiskIsFull(path)) {
    absl::StrAppend(&tail, "    no space is left on the file system of ", path, "\n");
  }
  return tail;
}

// ---------------------------------------------------------------- the supervisor

absl::Status Supervisor::Start(const std::string& name, ProcessKind kind, Command command, absl::Time now,
                               int network) {
  std::string file = name;
  std::replace(file.begin(), file.end(), ' ', '-');
  const std::string log = absl::StrCat(options_.log_directory, "/", file, ".log");
  absl::StatusOr<Subprocess> child = Subprocess::Start(command(0), log, NicenessOf(kind), network);
  if (!child.ok()) return child.status();
  Process process{name, kind, std::move(command), log, network, *std::move(child)};
  process.started = now;
  processes_.push_back(std::move(process));
  return absl::OkStatus();
}

absl::Status Supervisor::Poll(absl::Time now) {
  // Asked at most once for all members: a coordinator that does not answer costs time.
  std::optional<RunStage> stage_for_members;
  bool asked = false;
  const auto stage_for = [&](ProcessKind kind) {
    if (kind == ProcessKind::kCoordinator) return options_.stage(kind);
    if (!asked) stage_for_members = options_.stage(kind);
    asked = true;
    return stage_for_members;
  };
  for (Process& process : processes_) {
    if (coordinator_ending_.has_value()) return absl::OkStatus();
    if (process.state == State::kRunning) {
      const std::optional<int> code = process.child.Poll();
      if (!code.has_value()) continue;
      process.state = State::kToBeDecided;
      process.ended = now;
      process.code = *code;
      asked = false;  // What was known before it ended may not be what it ended from.
    }
    if (process.abandoned && (process.state == State::kToBeDecided || process.state == State::kWaiting)) {
      process.state = State::kGone;
    }
    if (process.state == State::kToBeDecided) {
      const bool as_meant = process.code == kExitOk && process.kind != ProcessKind::kCoordinator;
      const std::optional<RunStage> stage = as_meant ? RunStage::kUnderWay : stage_for(process.kind);
      if (!stage.has_value()) continue;
      if (absl::Status status = Decide(&process, *stage, now); !status.ok()) return status;
    }
    if (process.state == State::kWaiting && now >= process.restart_at) {
      // Members that come when the run is over would wait for a run to join.
      const std::optional<RunStage> stage =
          process.kind == ProcessKind::kCoordinator ? RunStage::kUnderWay : stage_for(process.kind);
      if (stage == RunStage::kOver) process.state = State::kGone;
      if (stage.has_value() && stage != RunStage::kOver) Restart(&process, now);
    }
  }
  KeepStandby(now);
  return absl::OkStatus();
}

void Supervisor::KeepStandby(absl::Time now) {
  if (!options_.standby || !coordinator_runs()) return;
  const Process& coordinator = processes_[0];
  if (standby_.has_value()) {
    const std::optional<int> code = standby_->Poll();
    if (!code.has_value()) return;
    standby_.reset();
    const absl::Duration pause = std::min(kStandbyAfter * std::exp2(++standbys_died_), kStandbyAfterMax);
    next_standby_ = now + pause;
    if (*code == kExitOk) return;
    options_.say(absl::StrFormat("the coordinator's standby %s; another one is started in %s", EndedHow(*code),
                                 absl::FormatDuration(pause)));
  }
  if (now < std::max(next_standby_, coordinator.started + kStandbyAfter)) return;
  if (policy_.used() >= policy_.budget()) return;  // It might not take over.
  const std::optional<std::vector<std::string>> command = options_.standby();
  if (!command.has_value()) return;
  absl::StatusOr<Subprocess> child = Subprocess::Start(*command, coordinator.log, NicenessOf(coordinator.kind));
  if (child.ok()) {
    standby_ = *std::move(child);
  } else {
    next_standby_ = now + kStandbyAfterMax;
    options_.say(absl::StrCat("warning: the coordinator has no standby: ", child.status().message()));
  }
}

absl::Status Supervisor::Decide(Process* process, RunStage stage, absl::Time now) {
  // Who makes processes die chooses when.
  const bool as_planned = options_.restart_after > absl::ZeroDuration() && process->code == 128 + SIGKILL;
  const absl::Duration lived = as_planned ? absl::InfiniteDuration() : process->ended - process->started;
  const RestartPolicy::Decision decision = policy_.Ended(process->name, process->kind, process->code, lived, stage);
  switch (decision.kind) {
    case RestartPolicy::Decision::Kind::kLeave:
      process->state = State::kGone;
      if (process->kind == ProcessKind::kCoordinator) coordinator_ending_ = Ending{process->code, ""};
      return absl::OkStatus();
    case RestartPolicy::Decision::Kind::kRestart: {
      if (process->kind == ProcessKind::kCoordinator && standby_.has_value() && !standby_->Poll().has_value()) {
        ++restarts_[process->name];
        ++process->starts;
        process->child = *std::exchange(standby_, std::nullopt);
        process->started = now;
        process->state = State::kRunning;
        standbys_died_ = 0;
        options_.say(absl::StrFormat("%s %s; its standby takes over (restart %d of at most %d)", process->name,
                                     EndedHow(process->code), policy_.used(), policy_.budget()));
        return absl::OkStatus();
      }
      process->state = State::kWaiting;
      const absl::Duration away = std::max(decision.backoff, options_.restart_after);
      process->restart_at = process->ended + away;
      options_.say(absl::StrFormat("%s %s; it is started again in %s (restart %d of at most %d)", process->name,
                                   EndedHow(process->code), absl::FormatDuration(away), policy_.used(),
                                   policy_.budget()));
      return absl::OkStatus();
    }
    case RestartPolicy::Decision::Kind::kGiveUp:
      process->state = State::kGone;
      return GiveUp(process, stage, decision.reason);
  }
  return absl::OkStatus();
}

absl::Status Supervisor::GiveUp(Process* process, RunStage stage, const std::string& reason) {
  if (process->kind == ProcessKind::kCoordinator) {
    coordinator_ending_ = Ending{process->code, reason};
    return absl::OkStatus();
  }
  const std::string what = absl::StrCat(process->name, " ", EndedHow(process->code));
  const std::string tail = absl::StrCat("; its log ", process->log, " ends with\n", LogTail(process->log, kTailLines));
  given_up_code_ = process->code;
  if (stage == RunStage::kFirstStart) {
    return absl::AbortedError(absl::StrCat(what, " before training began", tail));
  }
  const bool restarts_are_off = policy_.budget() == 0;
  if (process->kind == ProcessKind::kWorker || restarts_are_off) {
    std::string warning = absl::StrCat("warning: ", what, " and is not started again (", reason, ")",
                                       no_worker_left() ? "" : "; its data goes to others and the run goes on");
    absl::StrAppend(&warning, restarts_are_off ? absl::StrCat(" (log: ", process->log, ")") : tail);
    options_.say(warning);
    return absl::OkStatus();
  }
  return absl::AbortedError(
      absl::StrCat(what, " and is not started again (", reason, "): the run cannot go on without it", tail));
}

void Supervisor::Restart(Process* process, absl::Time now) {
  ++restarts_[process->name];
  absl::StatusOr<Subprocess> child =
      Subprocess::Start(process->command(process->starts), process->log, NicenessOf(process->kind), process->network);
  ++process->starts;
  process->started = now;
  if (child.ok()) {
    process->child = *std::move(child);
    process->state = State::kRunning;
    return;
  }
  // No memory, no process left: as if it had died at once, and so tried again for a while.
  options_.say(absl::StrCat("warning: ", process->name, " could not be started: ", child.status().message()));
  process->state = State::kToBeDecided;
  process->ended = now;
  process->code = kExitRestart;
}

bool Supervisor::Owns(const std::string& name, int64_t pid) const {
  return std::any_of(processes_.begin(), processes_.end(),
                     [&](const Process& one) { return one.name == name && one.child.pid() == pid; });
}

bool Supervisor::no_worker_left() const {
  bool were = false;
  for (const Process& process : processes_) {
    if (process.kind != ProcessKind::kWorker) continue;
    if (process.state != State::kGone || process.code == kExitOk) return false;
    were = true;
  }
  return given_up_code_.has_value() && were;
}

Supervisor::Process* Supervisor::Running(const std::string& name) {
  for (Process& process : processes_) {
    if (process.name == name && process.state == State::kRunning && !process.child.Poll().has_value()) return &process;
  }
  return nullptr;
}

pid_t Supervisor::RunningPid(const std::string& name) {
  const Process* const process = Running(name);
  return process == nullptr ? 0 : process->child.pid();
}

bool Supervisor::Signal(const std::string& name, int signal_number) {
  Process* const process = Running(name);
  if (process != nullptr) process->child.Signal(signal_number);
  return process != nullptr;
}

void Supervisor::Abandon(const std::string& name) {
  const auto process =
      std::find_if(processes_.begin(), processes_.end(), [&](const Process& one) { return one.name == name; });
  if (process != processes_.end()) process->abandoned = true;
}

void Supervisor::Stop(int coordinator_signal) {
  if (processes_.empty()) return;
  Subprocess& coordinator = processes_[0].child;
  std::vector<Subprocess*> children;
  for (Process& process : processes_) children.push_back(&process.child);
  if (standby_.has_value()) {
    children.push_back(&*standby_);
    standby_->Signal(SIGTERM);  // First, or it would take over what is to end.
  }
  if (coordinator_signal != 0) coordinator.Signal(coordinator_signal);
  const RealClock clock;
  absl::Time deadline = clock.Now() + kLeave + options_.heartbeat;
  bool hurry = false;
  for (const int signal_number : {0, SIGTERM, SIGKILL}) {
    if (hurry && signal_number != SIGKILL) continue;
    if (signal_number != 0) {
      for (Subprocess* child : children) {
        child->Signal(signal_number);
        child->Signal(SIGCONT);  // Whoever is stopped would not hear of it.
      }
      deadline = clock.Now() + kLeave;
    }
    bool orphaned = false;
    while (clock.Now() < deadline) {
      const bool all =
          std::all_of(children.begin(), children.end(), [](Subprocess* child) { return child->Poll().has_value(); });
      if (all) break;
      if (signal_number != SIGKILL && options_.hurry && options_.hurry()) {
        hurry = true;
        break;
      }
      if (signal_number == 0 && !orphaned && coordinator.Poll().has_value()) {
        orphaned = true;
        deadline = std::min(deadline, clock.Now() + kOrphaned);
      }
      absl::SleepFor(kPoll);
    }
  }
  // A coordinator that was asked to end says how it did, unless it was gone before.
  const std::optional<int> code = coordinator.Poll();
  if (code.has_value() && !coordinator_ending_.has_value()) coordinator_ending_ = Ending{*code, ""};
  for (Process& process : processes_) process.state = State::kGone;
}

}  // namespace wukong
