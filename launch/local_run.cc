#include "launch/local_run.h"

#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "glog/logging.h"
#include "launch/exit_code.h"
#include "launch/status_text.h"
#include "launch/tls_flag.h"
#include "runtime/base/file.h"
#include "runtime/base/random.h"
#include "runtime/base/shell_word.h"
#include "runtime/fault/link_shape.h"
#include "runtime/fault/netem.h"
#include "runtime/fault/packet_relay.h"
#include "runtime/transport/grpc_options.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

constexpr absl::Duration kPoll = absl::Milliseconds(50);
// For the coordinator to say how things stand; less where faults are to happen at their times meanwhile.
constexpr absl::Duration kAnswer = absl::Seconds(2);
constexpr absl::Duration kAnswerSoon = absl::Milliseconds(500);
// A coordinator that answered and does not any more is about to end, and then says why others ended. Beyond this it
// hangs.
constexpr absl::Duration kSilent = absl::Seconds(15);
// Of training, before the coordinator gets a standby: a short run would only pay for its start.
constexpr absl::Duration kShortRun = absl::Seconds(5);

std::string OwnPath() { return std::filesystem::read_symlink("/proc/self/exe").string(); }

int PortOf(const std::string& address) {
  int port = 0;
  CHECK(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port)) << address;
  return port;
}

// Tells a file from the one that replaced it by a rename; empty when there is none.
std::string IdentityOf(const std::string& path) {
  struct stat info = {};
  if (::stat(path.c_str(), &info) != 0) return "";
  return absl::StrCat(info.st_ino, " ", info.st_mtim.tv_sec, " ", info.st_mtim.tv_nsec);
}

}  // namespace

LocalRun::LocalRun(Options options, JobSource source, PortReservation port, const StopSignal* stop)
    : options_(std::move(options)),
      run_dir_(options_.run_dir),
      source_(std::move(source)),
      job_(source_.job),
      program_(OwnPath()),
      port_(std::move(port)),
      stop_(stop),
      supervisor_(Supervisor::Options{
          run_dir_ + "/logs", options_.restarts, [this](ProcessKind ended) { return Stage(ended); },
          [this](const std::string& line) { Say(line); }, options_.restart_after, [this] { return StandbyCommand(); },
          absl::Nanoseconds(job_.limits().heartbeat_ns()), [this] { return AskedToHurry(); }}) {}

std::string LocalRun::AggregatorName(const std::string& region) { return absl::StrCat("aggregator of ", region); }

std::string LocalRun::WorkerName(const std::string& region, int worker) {
  return absl::StrCat("worker-", worker, " of ", region);
}

std::vector<std::string> LocalRun::CoordinatorCommand(int starts) const {
  // What comes over a link of packets does not come by the loopback device.
  const std::string listen =
      options_.network == Network::kRelay ? port_.address() : absl::StrCat("0.0.0.0:", PortOf(port_.address()));
  std::vector<std::string> command = {program_, "coordinator", "--run-dir", run_dir_, "--listen", listen};
  // What the run began with stands in its directory, whatever became of the job file; unless it died before that.
  const bool begun = options_.resume || (starts > 0 && std::filesystem::exists(run_dir_ + "/config.resolved.yaml"));
  if (begun) {
    command.push_back("--resume");
  } else {
    if (starts > 0) command.push_back("--begin-or-resume");
    command.insert(command.end(), {"--job", options_.job});
    for (const std::string& set : options_.set) command.insert(command.end(), {"--set", set});
  }
  if (options_.no_fsync) command.push_back("--no-fsync");
  if (starts == 0 && !options_.crash_at.empty()) command.insert(command.end(), {"--crash-at", options_.crash_at});
  return command;
}

std::optional<std::vector<std::string>> LocalRun::StandbyCommand() const {
  if (!options_.standby || options_.restart_after > absl::ZeroDuration()) return std::nullopt;
  if (phase_ != "training" || clock_.Now() - began_ < kShortRun) return std::nullopt;
  std::vector<std::string> command = CoordinatorCommand(supervisor_.coordinator_starts());
  command.push_back("--standby");
  return command;
}

absl::Status LocalRun::StartMember(const std::string& name, ProcessKind kind, const std::vector<std::string>& arguments,
                                   int network) {
  std::vector<std::string> command = {program_};
  command.insert(command.end(), arguments.begin(), arguments.end());
  return supervisor_.Start(
      name, kind, [command](int) { return command; }, clock_.Now(), network);
}

absl::Status LocalRun::WaitForCoordinator() {
  // How long the log takes that a run is resumed from depends on the log.
  const absl::Time deadline =
      !options_.resume ? clock_.Now() + absl::Nanoseconds(job_.limits().start_ns()) : absl::InfiniteFuture();
  bool told = false;
  while (IdentityOf(run_dir_ + "/coordinator.address") == earlier_address_) {
    // Its own log is on that disk.
    if (!told && options_.resume && DiskIsFull(run_dir_)) {
      Say(absl::StrCat("the disk of ", run_dir_, " is full: the coordinator waits for room"));
      told = true;
    }
    if (absl::Status status = supervisor_.Poll(clock_.Now()); !status.ok()) return status;
    if (const auto& ending = supervisor_.coordinator_ending(); ending.has_value()) {
      return absl::AbortedError(absl::StrFormat("the coordinator %s before it listened%s:\n%s", EndedHow(ending->code),
                                                ending->reason.empty() ? "" : absl::StrCat(" (", ending->reason, ")"),
                                                LogTail(supervisor_.coordinator_log(), 5)));
    }
    if (stop_->WaitFor(kPoll)) return absl::CancelledError("stopped by a signal");
    if (clock_.Now() > deadline) return absl::AbortedError("the coordinator did not listen within limits.start");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<EmulatedLink>> LocalRun::StartLink(const Region& region, int* network) {
  const LinkShape up = ShapeOfLink(job_.wan(), region.name(), DIRECTION_UP);
  const LinkShape down = ShapeOfLink(job_.wan(), region.name(), DIRECTION_DOWN);
  const uint64_t seed = DeriveSeed(job_.seed(), absl::StrCat("wan ", region.name()));
  if (options_.network == Network::kRelay) return WanRelay::Start({"127.0.0.1:0", port_.address(), up, down, seed});
  absl::StatusOr<JoinedNetwork> joined = JoinNetwork(static_cast<int>(networks_.size()));
  if (!joined.ok()) return joined.status();
  networks_.push_back(*std::move(joined));
  *network = networks_.back().network.get();
  const PacketRelayOptions options = {PortOf(port_.address()), up, down, seed};
  return options_.network == Network::kNetem ? StartNetemLink(&networks_.back(), options)
                                             : StartPacketRelay(&networks_.back(), options);
}

absl::Status LocalRun::StartAll() {
  absl::Status status = supervisor_.Start(
      "coordinator", ProcessKind::kCoordinator, [this](int starts) { return CoordinatorCommand(starts); },
      clock_.Now());
  if (status.ok()) status = WaitForCoordinator();
  if (!status.ok()) return status;
  for (const Region& region : job_.regions()) {
    int network = -1;
    absl::StatusOr<std::unique_ptr<EmulatedLink>> link = StartLink(region, &network);
    if (!link.ok()) return link.status();
    const std::string gateway = (*link)->address();
    links_[region.name()] = *std::move(link);
    const std::string limit = absl::StrCat(absl::ToDoubleSeconds(absl::Nanoseconds(job_.limits().start_ns())));
    status = StartMember(
        AggregatorName(region.name()), ProcessKind::kAggregator,
        {"aggregator", "--coordinator", gateway, "--region", region.name(), "--connect-timeout", limit}, network);
    if (!status.ok()) return status;
    for (int w = 0; w < region.workers(); ++w) {
      const std::string name = absl::StrCat("worker-", w);
      status = StartMember(WorkerName(region.name(), w), ProcessKind::kWorker,
                           {"worker", "--join", gateway, "--region", region.name(), "--name", name, "--rank",
                            std::to_string(w), "--connect-timeout", limit},
                           network);
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

Coordinator::Stub* LocalRun::coordinator() {
  // A channel that failed to connect waits longer each time; the next life of the coordinator need not wait for that.
  if (coordinator_ == nullptr || CoordinatorIsAway()) coordinator_ = Coordinator::NewStub(MakeChannel(port_.address()));
  return coordinator_.get();
}

std::optional<StatusReply> LocalRun::AskStatus() {
  if (expects_no_answer_) return std::nullopt;
  const int start = supervisor_.coordinator_starts();
  grpc::ClientContext context;
  SetDeadline(&context, options_.on_poll ? kAnswerSoon : kAnswer);
  StatusReply reply;
  if (!coordinator()->GetStatus(&context, StatusRequest(), &reply).ok()) return std::nullopt;
  phase_ = reply.phase();
  has_trained_ = has_trained_ || phase_ == "training" || phase_ == "done" || reply.tokens_committed() > 0;
  answered_start_ = start;
  answered_at_ = clock_.Now();
  if (has_trained_) began_ = std::min(began_, answered_at_);
  others_work_ = std::any_of(reply.members().begin(), reply.members().end(), [this](const MemberStatus& member) {
    return member.role() == ROLE_WORKER && member.state() == "live" &&
           !supervisor_.Owns(absl::StrCat(member.name(), " of ", member.region()), member.pid());
  });
  if (options_.on_status) options_.on_status(reply);
  return reply;
}

bool LocalRun::CoordinatorIsAway() const {
  return !supervisor_.coordinator_runs() || answered_start_ != supervisor_.coordinator_starts();
}

std::optional<RunStage> LocalRun::Stage(ProcessKind ended) {
  const auto known = [this] { return has_trained_ ? RunStage::kUnderWay : RunStage::kFirstStart; };
  // Whatever killed the coordinator after it had written the report, the run is over.
  if (ended == ProcessKind::kCoordinator) return ReadReport().ok() ? RunStage::kOver : known();
  if (!supervisor_.coordinator_runs()) return known();  // It comes back, for otherwise nobody would ask.
  if (AskStatus().has_value()) return phase_ == "done" || phase_ == "failed" ? RunStage::kOver : known();
  // One that has not answered yet is starting. One that has is about to end, which says more than what its members made
  // of it.
  if (CoordinatorIsAway() || clock_.Now() - answered_at_ > kSilent) return known();
  return std::nullopt;
}

void LocalRun::ShowProgress() {
  const std::optional<StatusReply> status = AskStatus();
  if (!status.has_value() && !(CoordinatorIsAway() && supervisor_.coordinator_starts() > 1)) return;
  const bool over = status.has_value() && (phase_ == "done" || phase_ == "failed");
  if (over && shown_over_) return;  // Its members are being told.
  shown_over_ = over;
  WanBytes wan;
  for (const auto& [region, relay] : links_) {
    wan.up += relay->stats(LinkDirection::kUp).bytes;
    wan.down += relay->stats(LinkDirection::kDown).bytes;
  }
  const std::string line =
      status.has_value() ? ProgressLine(*status, wan)
                         : absl::StrCat("  the coordinator is away, ",
                                        DiskIsFull(run_dir_) ? "and waits for room: its disk is full" : "restarting");
  if (::isatty(STDERR_FILENO) != 0) {
    std::fprintf(stderr, "\r\033[K%s", line.c_str());
    progress_line_open_ = true;
  } else if (over || clock_.Now() >= next_line_) {
    std::fprintf(stderr, "%s\n", line.c_str());
    next_line_ = clock_.Now() + options_.lines_every;
  }
  std::fflush(stderr);
}

bool LocalRun::AskedToHurry() {
  // One key may reach a process by several ways: from the terminal, and from whoever started it.
  if (clock_.Now() - ending_since_ < absl::Seconds(1)) {
    signals_heeded_ = stop_->count();
    return false;
  }
  if (stop_->count() <= signals_heeded_) return false;
  if (std::exchange(signals_heeded_, stop_->count()) == 0) {  // The run ends for another reason, unannounced.
    SayStopping();
    return false;
  }
  Say("killing what is left");
  return true;
}

void LocalRun::SayStopping() {
  Say("stopping: the coordinator writes down what it has; another Ctrl-C kills at once, and nothing committed is lost");
}

void LocalRun::EndProgressLine() {
  if (progress_line_open_) std::fprintf(stderr, "\n");
  progress_line_open_ = false;
}

void LocalRun::Say(const std::string& line) {
  EndProgressLine();
  std::fprintf(stderr, "wukong: %s%s", line.c_str(), !line.empty() && line.back() == '\n' ? "" : "\n");
}

absl::Status LocalRun::WatchUntilOver() {
  absl::Time next_progress = clock_.Now();
  while (!supervisor_.coordinator_ending().has_value()) {
    if (stop_->WaitFor(kPoll)) return absl::CancelledError("stopped by a signal");
    if (clock_.Now() >= next_progress) {
      ShowProgress();
      next_progress = clock_.Now() + absl::Nanoseconds(job_.report().progress_every_ns());
      // Somebody may take the place of who was killed, for which the coordinator waits. Others would find the same.
      if (phase_ == "training" && supervisor_.no_worker_left() && !others_work_ &&
          supervisor_.given_up_code().value_or(0) < 128) {
        return absl::AbortedError("no worker is left, and none will be started again: the lines above say why");
      }
    }
    if (absl::Status status = supervisor_.Poll(clock_.Now()); !status.ok()) return status;
    if (options_.on_poll) {
      if (!has_trained_) (void)AskStatus();
      if (has_trained_) options_.on_poll(this, clock_.Now() - began_);
    }
    if (clock_.Now() - began_ > options_.within) {
      return absl::DeadlineExceededError(
          absl::StrCat("the budget is not committed ", absl::FormatDuration(options_.within), " after the first step"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Json> LocalRun::ReadReport() const {
  const std::string path = run_dir_ + "/report.json";
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return text.status();
  if (*text == earlier_report_) return absl::NotFoundError(path + " is of an earlier part of this run");
  Json report = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!report.is_object()) return absl::DataLossError(path + " is not whole");
  return report;
}

absl::Status LocalRun::CompleteReport(const absl::Status& status, Json* report) const {
  // The coordinator knows only that it got a signal.
  if (!status.ok() && !absl::IsCancelled(status) && !ReportCompleted(*report)) {
    (*report)["failure"] = std::string(status.message());
  }
  // What only the owner of the relays knows.
  const double seconds = report->value("wall_seconds", 0.0);
  for (const auto& [region, relay] : links_) {
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
  return WriteFileAtomic(run_dir_ + "/report.json", JsonText(*report) + "\n");
}

int LocalRun::EndOfCoordinator(const Supervisor::Ending& ending, const absl::StatusOr<Json>& report) {
  if (ending.code == kExitOk) return kExitOk;
  // It was killed on its way out, with everything done.
  if (ending.reason.empty() && ending.code > 128 && report.ok() && ReportCompleted(*report)) return kExitOk;
  std::fprintf(
      stderr, "wukong: error: the coordinator %s%s:\n%s", EndedHow(ending.code).c_str(),
      ending.reason.empty()
          ? ""
          : absl::StrCat(" and is not started again (", ending.reason, "); what it had recorded is in ", run_dir_,
                         ", and goes on with wukong up", TlsFlagText(), " --resume ", ShellWord(run_dir_))
                .c_str(),
      LogTail(supervisor_.coordinator_log(), 3).c_str());
  return ending.code < 128 && ending.code != kExitRestart ? ending.code : kExitFailed;
}

LocalRun::Result LocalRun::Run() {
  earlier_report_ = ReadFile(run_dir_ + "/report.json").value_or("");
  earlier_address_ = IdentityOf(run_dir_ + "/coordinator.address");
  if (absl::Status status = MakeDirectories(run_dir_ + "/logs"); !status.ok()) return {ReportStatus(status), {}};
  int workers = 0;
  for (const Region& region : job_.regions()) workers += region.workers();
  std::fprintf(stderr, "%s: %d regions, %d workers; run directory %s%s\n", job_.name().c_str(), job_.regions_size(),
               workers, run_dir_.c_str(), options_.resume ? ", which is resumed" : "");

  absl::Status status = StartAll();
  if (status.ok()) status = WatchUntilOver();
  EndProgressLine();
  ending_since_ = clock_.Now();
  if (absl::IsCancelled(status)) SayStopping();
  supervisor_.Stop(status.ok() ? 0 : SIGTERM);
  absl::StatusOr<Json> report = ReadReport();
  Result result;
  absl::Status reported;
  if (report.ok()) {
    reported = CompleteReport(status, &*report);
    result.report = *report;
  }
  const std::optional<Supervisor::Ending>& ending = supervisor_.coordinator_ending();
  if (status.ok()) {
    result.exit_code = EndOfCoordinator(ending.value_or(Supervisor::Ending{kExitFailed, ""}), report);
    if (!reported.ok()) {
      std::fprintf(stderr, "wukong: error: the report lacks what only this process knows: %s\n",
                   std::string(reported.message()).c_str());
      if (result.exit_code == kExitOk) result.exit_code = ExitCodeOf(reported);
    }
    return result;
  }
  // A signal that came when all was committed stopped nothing, and nobody is missed then.
  if ((absl::IsCancelled(status) || supervisor_.no_worker_left()) && ending.has_value() && ending->code == kExitOk &&
      report.ok() && ReportCompleted(*report)) {
    result.exit_code = kExitOk;
    return result;
  }
  std::fprintf(stderr, "wukong: error: %s\n", std::string(status.message()).c_str());
  // What the coordinator could not do before it listened, or a member that the run needs, this command could not do.
  const auto says_why = [](std::optional<int> code) {
    return code.has_value() && *code > 0 && *code < 128 && *code != kExitRestart;
  };
  const std::optional<int> member = supervisor_.given_up_code();
  if (absl::IsAborted(status) && says_why(member)) {
    result.exit_code = *member;
  } else if (!report.ok() && ending.has_value() && says_why(ending->code)) {
    result.exit_code = ending->code;
  } else {
    result.exit_code = absl::IsCancelled(status) ? kExitFailed : ExitCodeOf(status);
  }
  return result;
}

}  // namespace wukong
