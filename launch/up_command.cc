#include "launch/up_command.h"

#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "launch/exit_code.h"
#include "launch/job_check.h"
#include "launch/job_file.h"
#include "launch/port_reservation.h"
#include "launch/role_commands.h"
#include "launch/status_text.h"
#include "launch/supervisor.h"
#include "proto/wire.grpc.pb.h"
#include "runtime/base/file.h"
#include "runtime/base/random.h"
#include "runtime/base/stop_signal.h"
#include "runtime/fault/link_shape.h"
#include "runtime/fault/wan_relay.h"
#include "runtime/transport/grpc_options.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

constexpr absl::Duration kPoll = absl::Milliseconds(50);
// A coordinator that answered and does not any more is about to end, and then says why others ended. Beyond this it
// hangs.
constexpr absl::Duration kSilent = absl::Seconds(15);

struct UpFlags {
  std::string job;
  std::vector<std::string> set;
  std::string run_dir;
  std::string resume;  // The run directory to go on with, in place of the three above.
  bool json = false;
  int restarts = 100;
  bool no_fsync = false;
  std::string crash_at;
};

std::string OwnPath() { return std::filesystem::read_symlink("/proc/self/exe").string(); }

// Tells a file from the one that replaced it by a rename; empty when there is none.
std::string IdentityOf(const std::string& path) {
  struct stat info = {};
  if (::stat(path.c_str(), &info) != 0) return "";
  return absl::StrCat(info.st_ino, " ", info.st_mtim.tv_sec, " ", info.st_mtim.tv_nsec);
}

class Up {
 public:
  Up(UpFlags flags, std::string run_dir, JobSource source, PortReservation port, const StopSignal* stop)
      : flags_(std::move(flags)),
        run_dir_(std::move(run_dir)),
        source_(std::move(source)),
        job_(source_.job),
        port_(std::move(port)),
        stop_(stop),
        supervisor_(Supervisor::Options{run_dir_ + "/logs", flags_.restarts,
                                        [this](ProcessKind ended) { return Stage(ended); },
                                        [this](const std::string& line) { Say(line); }}) {}

  int Run();

 private:
  std::vector<std::string> CoordinatorCommand(int starts) const;
  absl::Status StartAll();
  absl::Status StartMember(const std::string& name, ProcessKind kind, const std::vector<std::string>& arguments);
  absl::Status WaitForCoordinator();
  absl::Status WatchUntilOver();
  // Asks the coordinator how things stand; nothing when it does not answer.
  std::optional<StatusReply> AskStatus();
  std::optional<RunStage> Stage(ProcessKind ended);
  // The coordinator has not answered since it was started, or is to be started.
  bool CoordinatorIsAway() const;
  void ShowProgress();
  void Say(const std::string& line);
  void EndProgressLine();
  // Of this run, and not one that an earlier part of it left behind. NOT_FOUND: there is none.
  absl::StatusOr<Json> ReadReport() const;
  absl::Status CompleteReport(Json* report) const;
  // The exit code of a run that the coordinator has ended.
  int EndOfCoordinator(const Supervisor::Ending& ending, const absl::StatusOr<Json>& report);

  const UpFlags flags_;
  const std::string run_dir_;
  const JobSource source_;
  const Job& job_;
  const PortReservation port_;  // The coordinator's, through all of its lives.
  const StopSignal* const stop_;
  Supervisor supervisor_;
  std::map<std::string, std::unique_ptr<WanRelay>> relays_;
  std::unique_ptr<Coordinator::Stub> coordinator_;
  std::string earlier_report_;   // As it was found.
  std::string earlier_address_;  // The identity of the file, likewise.

  // As the coordinator last said.
  std::string phase_ = "starting";
  bool has_trained_ = false;
  int answered_start_ = 0;  // The start of the coordinator, counted from 1, that answered last.
  absl::Time answered_at_ = absl::InfinitePast();
  bool progress_line_open_ = false;
};

std::vector<std::string> Up::CoordinatorCommand(int starts) const {
  std::vector<std::string> command = {OwnPath(), "coordinator", "--run-dir", run_dir_, "--listen", port_.address()};
  const bool resume = starts > 0 || !flags_.resume.empty();
  if (resume) command.push_back("--resume");
  // What the run began with stands in its directory, whatever became of the job file; unless it died before that.
  if (!resume || !std::filesystem::exists(run_dir_ + "/config.resolved.yaml")) {
    command.insert(command.end(), {"--job", flags_.job});
    for (const std::string& set : flags_.set) command.insert(command.end(), {"--set", set});
  }
  if (flags_.no_fsync) command.push_back("--no-fsync");
  if (starts == 0 && !flags_.crash_at.empty()) command.insert(command.end(), {"--crash-at", flags_.crash_at});
  return command;
}

absl::Status Up::StartMember(const std::string& name, ProcessKind kind, const std::vector<std::string>& arguments) {
  std::vector<std::string> command = {OwnPath()};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return supervisor_.Start(
      name, kind, [command](int) { return command; }, absl::Now());
}

absl::Status Up::WaitForCoordinator() {
  // How long the log takes that a run is resumed from depends on the log.
  const absl::Time deadline =
      flags_.resume.empty() ? absl::Now() + absl::Nanoseconds(job_.limits().start_ns()) : absl::InfiniteFuture();
  while (IdentityOf(run_dir_ + "/coordinator.address") == earlier_address_) {
    if (absl::Status status = supervisor_.Poll(absl::Now()); !status.ok()) return status;
    if (const auto& ending = supervisor_.coordinator_ending(); ending.has_value()) {
      return absl::AbortedError(absl::StrFormat("the coordinator %s before it listened%s:\n%s", EndedHow(ending->code),
                                                ending->reason.empty() ? "" : absl::StrCat(" (", ending->reason, ")"),
                                                LogTail(supervisor_.coordinator_log(), 5)));
    }
    if (stop_->WaitFor(kPoll)) return absl::CancelledError("stopped by a signal");
    if (absl::Now() > deadline) return absl::AbortedError("the coordinator did not listen within limits.start");
  }
  return absl::OkStatus();
}

absl::Status Up::StartAll() {
  absl::Status status = supervisor_.Start(
      "coordinator", ProcessKind::kCoordinator, [this](int starts) { return CoordinatorCommand(starts); }, absl::Now());
  if (status.ok()) status = WaitForCoordinator();
  if (!status.ok()) return status;
  for (const Region& region : job_.regions()) {
    WanRelay::Options options;
    options.target = port_.address();
    options.up = ShapeOfLink(job_.wan(), region.name(), DIRECTION_UP);
    options.down = ShapeOfLink(job_.wan(), region.name(), DIRECTION_DOWN);
    options.seed = DeriveSeed(job_.seed(), absl::StrCat("wan ", region.name()));
    absl::StatusOr<std::unique_ptr<WanRelay>> relay = WanRelay::Start(options);
    if (!relay.ok()) return relay.status();
    const std::string gateway = (*relay)->address();
    relays_[region.name()] = *std::move(relay);
    const std::string limit = absl::StrCat(absl::ToDoubleSeconds(absl::Nanoseconds(job_.limits().start_ns())));
    status =
        StartMember(absl::StrCat("aggregator of ", region.name()), ProcessKind::kAggregator,
                    {"aggregator", "--coordinator", gateway, "--region", region.name(), "--connect-timeout", limit});
    if (!status.ok()) return status;
    for (int w = 0; w < region.workers(); ++w) {
      const std::string name = absl::StrCat("worker-", w);
      status = StartMember(absl::StrCat(name, " of ", region.name()), ProcessKind::kWorker,
                           {"worker", "--join", gateway, "--region", region.name(), "--name", name, "--rank",
                            std::to_string(w), "--connect-timeout", limit});
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

std::optional<StatusReply> Up::AskStatus() {
  const int start = supervisor_.coordinator_starts();
  // A channel that failed to connect waits longer each time; the next life of the coordinator need not wait for that.
  if (coordinator_ == nullptr || CoordinatorIsAway()) coordinator_ = Coordinator::NewStub(MakeChannel(port_.address()));
  grpc::ClientContext context;
  SetDeadline(&context, absl::Seconds(2));
  StatusReply reply;
  if (!coordinator_->GetStatus(&context, StatusRequest(), &reply).ok()) return std::nullopt;
  phase_ = reply.phase();
  has_trained_ = has_trained_ || phase_ == "training" || phase_ == "done" || reply.tokens_committed() > 0;
  answered_start_ = start;
  answered_at_ = absl::Now();
  return reply;
}

bool Up::CoordinatorIsAway() const {
  return !supervisor_.coordinator_runs() || answered_start_ != supervisor_.coordinator_starts();
}

std::optional<RunStage> Up::Stage(ProcessKind ended) {
  const auto known = [this] { return has_trained_ ? RunStage::kUnderWay : RunStage::kFirstStart; };
  // Whatever killed the coordinator after it had written the report, the run is over.
  if (ended == ProcessKind::kCoordinator) return ReadReport().ok() ? RunStage::kOver : known();
  if (!supervisor_.coordinator_runs()) return known();  // It comes back, for otherwise nobody would ask.
  if (AskStatus().has_value()) return phase_ == "done" || phase_ == "failed" ? RunStage::kOver : known();
  // One that has not answered yet is starting. One that has is about to end, which says more than what its members made
  // of it.
  if (CoordinatorIsAway() || absl::Now() - answered_at_ > kSilent) return known();
  return std::nullopt;
}

void Up::ShowProgress() {
  const std::optional<StatusReply> status = AskStatus();
  if (!status.has_value() && !(CoordinatorIsAway() && supervisor_.coordinator_starts() > 1)) return;
  int64_t bytes_up = 0, bytes_down = 0;
  for (const auto& [region, relay] : relays_) {
    bytes_up += relay->stats(LinkDirection::kUp).bytes;
    bytes_down += relay->stats(LinkDirection::kDown).bytes;
  }
  const std::string line = status.has_value() ? ProgressLine(*status, bytes_up, bytes_down)
                                              : std::string("  the coordinator is away, restarting");
  if (::isatty(STDERR_FILENO) != 0) {
    std::fprintf(stderr, "\r\033[K%s", line.c_str());
    progress_line_open_ = true;
  } else {
    std::fprintf(stderr, "%s\n", line.c_str());
  }
  std::fflush(stderr);
}

void Up::EndProgressLine() {
  if (progress_line_open_) std::fprintf(stderr, "\n");
  progress_line_open_ = false;
}

void Up::Say(const std::string& line) {
  EndProgressLine();
  std::fprintf(stderr, "wukong: %s%s", line.c_str(), !line.empty() && line.back() == '\n' ? "" : "\n");
}

absl::Status Up::WatchUntilOver() {
  absl::Time next_progress = absl::Now();
  while (!supervisor_.coordinator_ending().has_value()) {
    if (stop_->WaitFor(kPoll)) return absl::CancelledError("stopped by a signal");
    if (absl::Now() >= next_progress) {
      ShowProgress();
      next_progress = absl::Now() + absl::Nanoseconds(job_.report().progress_every_ns());
    }
    if (absl::Status status = supervisor_.Poll(absl::Now()); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::StatusOr<Json> Up::ReadReport() const {
  const std::string path = run_dir_ + "/report.json";
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return text.status();
  if (*text == earlier_report_) return absl::NotFoundError(path + " is of an earlier part of this run");
  Json report = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!report.is_object()) return absl::DataLossError(path + " is not whole");
  return report;
}

absl::Status Up::CompleteReport(Json* report) const {
  // What only the owner of the relays knows.
  const double seconds = report->value("wall_seconds", 0.0);
  for (const auto& [region, relay] : relays_) {
    Json& link = (*report)["wan"][region];
    const LinkStats up = relay->stats(LinkDirection::kUp), down = relay->stats(LinkDirection::kDown);
    link["wire_bytes_up"] = up.bytes;
    link["wire_bytes_down"] = down.bytes;
    link["emulated_losses"] = up.losses + down.losses;
    for (const char* direction : {"up", "down"}) {
      const double bytes = link.value(absl::StrCat("payload_bytes_", direction), 0.0);
      link[absl::StrCat("goodput_bits_per_second_", direction)] = seconds > 0 ? 8 * bytes / seconds : 0.0;
    }
  }
  // And what only the owner of the processes knows.
  int total = 0;
  Json by_process = Json::object();
  for (const auto& [name, count] : supervisor_.restarts()) {
    total += count;
    by_process[name] = count;
  }
  (*report)["restarts"] = {{"total", total}, {"budget", supervisor_.budget()}, {"by_process", by_process}};
  return WriteFileAtomic(run_dir_ + "/report.json", report->dump(2) + "\n");
}

int Up::EndOfCoordinator(const Supervisor::Ending& ending, const absl::StatusOr<Json>& report) {
  if (ending.code == kExitOk) return kExitOk;
  // It was killed on its way out, with everything done.
  if (ending.reason.empty() && ending.code > 128 && report.ok() && ReportCompleted(*report)) return kExitOk;
  std::fprintf(stderr, "wukong: error: the coordinator %s%s:\n%s", EndedHow(ending.code).c_str(),
               ending.reason.empty()
                   ? ""
                   : absl::StrCat(" and is not started again (", ending.reason, "); what it had recorded is in ",
                                  run_dir_, ", and goes on with wukong up --resume ", run_dir_)
                         .c_str(),
               LogTail(supervisor_.coordinator_log(), 3).c_str());
  return ending.code < 128 && ending.code != kExitRestart ? ending.code : kExitFailed;
}

int Up::Run() {
  earlier_report_ = ReadFile(run_dir_ + "/report.json").value_or("");
  earlier_address_ = IdentityOf(run_dir_ + "/coordinator.address");
  if (absl::Status status = MakeDirectories(run_dir_ + "/logs"); !status.ok()) return ReportStatus(status);
  int workers = 0;
  for (const Region& region : job_.regions()) workers += region.workers();
  std::fprintf(stderr, "%s: %d regions, %d workers; run directory %s%s\n", job_.name().c_str(), job_.regions_size(),
               workers, run_dir_.c_str(), flags_.resume.empty() ? "" : ", which is resumed");

  absl::Status status = StartAll();
  if (status.ok()) status = WatchUntilOver();
  EndProgressLine();
  supervisor_.Stop(status.ok() ? 0 : SIGTERM);
  absl::StatusOr<Json> report = ReadReport();
  if (report.ok() && CompleteReport(&*report).ok()) {
    if (flags_.json) {
      std::printf("%s\n", report->dump(2).c_str());
    } else {
      std::printf("%sreport: %s/report.json\n", ReportSummary(*report).c_str(), run_dir_.c_str());
    }
  }
  const std::optional<Supervisor::Ending>& ending = supervisor_.coordinator_ending();
  if (!status.ok()) {
    std::fprintf(stderr, "wukong: error: %s\n", std::string(status.message()).c_str());
    // What the coordinator could not do before it listened is what this command could not do.
    const int code = ending.has_value() ? ending->code : 0;
    if (!report.ok() && code > 0 && code < 128 && code != kExitRestart) return code;
    return status.code() == absl::StatusCode::kCancelled ? kExitFailed : ExitCodeOf(status);
  }
  return EndOfCoordinator(ending.value_or(Supervisor::Ending{kExitFailed, ""}), report);
}

// Where a run goes that is not resumed. ALREADY_EXISTS: there is one.
absl::StatusOr<std::string> NewRunDirectory(const UpFlags& flags, const Job& job) {
  const std::string run_dir =
      flags.run_dir.empty()
          ? absl::StrCat("runs/", job.name(), "-", absl::FormatTime("%Y%m%dT%H%M%SZ", absl::Now(), absl::UTCTimeZone()))
          : flags.run_dir;
  std::error_code error;
  if (std::filesystem::exists(run_dir + "/events.jsonl", error)) {
    return absl::AlreadyExistsError(absl::StrCat("run directory ", run_dir,
                                                 " holds another run; go on with it by: wukong up --resume ", run_dir,
                                                 "; or name a new one, or remove it"));
  }
  return run_dir;
}

absl::Status CheckFlags(const UpFlags& flags) {
  if (flags.resume.empty()) {
    if (!flags.job.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError("up: the job is missing (expected wukong up JOB.yaml, or --resume RUN_DIR)");
  }
  const char* const also = !flags.job.empty()       ? "a job file"
                           : !flags.set.empty()     ? "--set"
                           : !flags.run_dir.empty() ? "--run-dir"
                                                    : nullptr;
  if (also == nullptr) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("up: --resume ", flags.resume, " and ", also,
                                                 ": a run goes on in its directory with the job that it began with"));
}

// Of a run that has reached its budget there is only the report to show.
bool ShowIfComplete(const UpFlags& flags) {
  const absl::StatusOr<std::string> text = ReadFile(flags.resume + "/report.json");
  if (!text.ok()) return false;
  const Json report = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!ReportCompleted(report)) return false;
  std::fprintf(stderr, "wukong: the run in %s is already complete\n", flags.resume.c_str());
  if (flags.json) {
    std::printf("%s\n", JsonText(report).c_str());
  } else {
    std::printf("%sreport: %s/report.json\n", ReportSummary(report).c_str(), flags.resume.c_str());
  }
  return true;
}

int RunUp(UpFlags flags) {
  MakeFileLimitAnError();
  if (absl::Status status = CheckFlags(flags); !status.ok()) return ReportStatus(status);
  const bool resume = !flags.resume.empty();
  while (flags.resume.size() > 1 && flags.resume.back() == '/') flags.resume.pop_back();
  absl::StatusOr<JobSource> source = resume ? LoadRunJob(flags.resume) : LoadJobFile(flags.job, flags.set);
  if (!source.ok()) return ReportStatus(source.status());
  if (resume && ShowIfComplete(flags)) return kExitOk;
  CheckOptions check;
  check.check_data = true;
  check.check_device = true;
  if (absl::Status status = CheckJob(*source, check); !status.ok()) return ReportStatus(status);
  absl::StatusOr<std::string> run_dir = flags.resume;
  if (!resume) run_dir = NewRunDirectory(flags, source->job);
  if (!run_dir.ok()) return ReportStatus(run_dir.status());
  absl::StatusOr<PortReservation> port = PortReservation::Make();
  if (!port.ok()) return ReportStatus(port.status());
  const StopSignal stop;
  return Up(std::move(flags), *std::move(run_dir), *std::move(source), *std::move(port), &stop).Run();
}

}  // namespace

void AddUpCommand(CLI::App& app, std::function<int()>* action) {
  auto flags = std::make_shared<UpFlags>();
  CLI::App* verb = app.add_subcommand("up", "Run a whole job on this machine, the links between regions emulated");
  verb->add_option("job", flags->job, "The job file");
  verb->add_option("--set", flags->set, "Set one key of the job, as key.path=value; may be repeated")
      ->allow_extra_args(false);
  verb->add_option("--run-dir", flags->run_dir, "Where the run is recorded (default: runs/NAME-TIME)");
  verb->add_option("--resume", flags->resume, "Go on with the run that is recorded in this directory; takes no job");
  verb->add_option("--restarts", flags->restarts,
                   "How many processes that die are started again in the whole run; 0: none")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  verb->add_flag("--no-fsync", flags->no_fsync, "The coordinator does not wait for the disk: to measure what it costs");
#ifdef WUKONG_FAULT_POINTS
  verb->add_option("--crash-at", flags->crash_at,
                   "POINT[:N]: the first coordinator dies when this point is passed for the N-th time");
#endif
  verb->add_flag("--json", flags->json, "Print the report as JSON on standard output");
  verb->callback([flags, action] { *action = [flags] { return RunUp(*flags); }; });
}

}  // namespace wukong
