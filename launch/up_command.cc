#include "launch/up_command.h"

#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "launch/exit_code.h"
#include "launch/job_check.h"
#include "launch/job_file.h"
#include "launch/role_commands.h"
#include "launch/subprocess.h"
#include "proto/wire.grpc.pb.h"
#include "runtime/base/file.h"
#include "runtime/base/random.h"
#include "runtime/base/stop_signal.h"
#include "runtime/fault/wan_relay.h"
#include "runtime/transport/grpc_options.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

constexpr absl::Duration kPoll = absl::Milliseconds(50);
constexpr absl::Duration kLeave = absl::Seconds(15);  // For processes to end by themselves once the run is over.
// Once the coordinator is gone: who has not heard by now will not hear, and would look for it for limits.start.
constexpr absl::Duration kOrphaned = absl::Seconds(3);
constexpr uint64_t kDiskFullBytes = 4096;

struct UpFlags {
  std::string job;
  std::vector<std::string> set;
  std::string run_dir;
  bool json = false;
};

struct Process {
  std::string name;  // "worker-1 of beijing"
  std::string log;
  bool is_worker = false;
  Subprocess process;
  bool reported = false;
};

std::string OwnPath() { return std::filesystem::read_symlink("/proc/self/exe").string(); }

// The last lines of a log, for a person who wants to know why.
std::string Tail(const std::string& path, size_t lines) {
  std::ifstream file(path);
  std::vector<std::string> all;
  for (std::string line; std::getline(file, line);) all.push_back(line);
  std::string tail;
  for (size_t i = all.size() > lines ? all.size() - lines : 0; i < all.size(); ++i)
    absl::StrAppend(&tail, "    ", all[i], "\n");
  // Then the reason could not be logged, and is this.
  std::error_code error;
  const std::filesystem::space_info space = std::filesystem::space(path, error);
  if (!error && space.available < kDiskFullBytes) {
    absl::StrAppend(&tail, "    no space is left on the file system of ", path, "\n");
  }
  return tail;
}

std::string EndedHow(int code) {
  if (code > 128) return absl::StrFormat("was killed by signal %d (%s)", code - 128, strsignal(code - 128));
  return absl::StrFormat("ended with exit code %d", code);
}

LinkShape Shape(const Wan& wan, const std::string& region, Direction direction) {
  int64_t rtt = wan.rtt_ns(), jitter = wan.jitter_ns(), bandwidth = wan.bandwidth_bps();
  double loss = wan.loss();
  // What is said of one direction wins over what is said of both.
  for (const Direction said : {DIRECTION_BOTH, direction}) {
    for (const WanLink& link : wan.links()) {
      if (link.region() != region || link.direction() != said) continue;
      if (link.has_rtt_ns()) rtt = link.rtt_ns();
      if (link.has_jitter_ns()) jitter = link.jitter_ns();
      if (link.has_bandwidth_bps()) bandwidth = link.bandwidth_bps();
      if (link.has_loss()) loss = link.loss();
    }
  }
  LinkShape shape;
  shape.delay = absl::Nanoseconds(rtt) / 2;
  // The job file gives the round trip's standard deviation; two independent directions add up to it.
  shape.jitter = absl::Nanoseconds(jitter) / 1.4142135623730951;
  shape.bandwidth_bits_per_s = static_cast<double>(bandwidth);
  shape.loss = loss;
  return shape;
}

class Up {
 public:
  Up(UpFlags flags, JobSource source, const StopSignal* stop)
      : flags_(std::move(flags)), source_(std::move(source)), job_(source_.job), stop_(stop) {}

  int Run();

 private:
  absl::Status StartAll();
  absl::Status StartProcess(const std::string& name, bool is_worker, const std::vector<std::string>& arguments);
  absl::StatusOr<std::string> WaitForCoordinator();
  // Asks the coordinator how things stand; nothing when it does not answer.
  std::optional<StatusReply> AskStatus();
  // Looks after the children; an error ends the run.
  absl::Status CheckProcesses();
  void ShowProgress(const StatusReply& status);
  void EndProgressLine();
  void StopAll(int coordinator_signal);
  absl::Status CompleteReport(Json* report);
  void PrintSummary(const Json& report);

  const UpFlags flags_;
  const JobSource source_;
  const Job& job_;
  const StopSignal* const stop_;
  std::string run_dir_;
  std::vector<Process> processes_;  // The coordinator first.
  std::map<std::string, std::unique_ptr<WanRelay>> relays_;
  std::unique_ptr<Coordinator::Stub> coordinator_;
  std::string phase_ = "starting";  // As the coordinator last said.
  bool progress_line_open_ = false;
};

absl::Status Up::StartProcess(const std::string& name, bool is_worker, const std::vector<std::string>& arguments) {
  std::string log = absl::StrCat(run_dir_, "/logs/", name, ".log");
  std::replace(log.begin() + static_cast<std::ptrdiff_t>(run_dir_.size()), log.end(), ' ', '-');
  std::vector<std::string> command = {OwnPath()};
  command.insert(command.end(), arguments.begin(), arguments.end());
  absl::StatusOr<Subprocess> process = Subprocess::Start(command, log);
  if (!process.ok()) return process.status();
  processes_.push_back({name, log, is_worker, *std::move(process), false});
  return absl::OkStatus();
}

absl::StatusOr<std::string> Up::WaitForCoordinator() {
  const std::string file = run_dir_ + "/coordinator.address";
  const absl::Time deadline = absl::Now() + absl::Nanoseconds(job_.limits().start_ns());
  while (true) {
    if (std::filesystem::exists(file)) return ReadFile(file);
    if (const std::optional<int> ended = processes_[0].process.Poll(); ended.has_value()) {
      processes_[0].reported = true;
      return absl::AbortedError(
          absl::StrFormat("the coordinator %s before it listened:\n%s", EndedHow(*ended), Tail(processes_[0].log, 5)));
    }
    if (stop_->WaitFor(kPoll)) return absl::CancelledError("stopped by a signal");
    if (absl::Now() > deadline) return absl::AbortedError("the coordinator did not listen within limits.start");
  }
}

absl::Status Up::StartAll() {
  std::vector<std::string> coordinator = {"coordinator", "--job",    flags_.job,   "--run-dir",
                                          run_dir_,      "--listen", "127.0.0.1:0"};
  for (const std::string& set : flags_.set) {
    coordinator.push_back("--set");
    coordinator.push_back(set);
  }
  if (absl::Status status = StartProcess("coordinator", false, coordinator); !status.ok()) return status;
  const absl::StatusOr<std::string> address = WaitForCoordinator();
  if (!address.ok()) return address.status();
  for (const Region& region : job_.regions()) {
    WanRelay::Options options;
    options.target = *address;
    options.up = Shape(job_.wan(), region.name(), DIRECTION_UP);
    options.down = Shape(job_.wan(), region.name(), DIRECTION_DOWN);
    options.seed = DeriveSeed(job_.seed(), absl::StrCat("wan ", region.name()));
    absl::StatusOr<std::unique_ptr<WanRelay>> relay = WanRelay::Start(options);
    if (!relay.ok()) return relay.status();
    const std::string gateway = (*relay)->address();
    relays_[region.name()] = *std::move(relay);
    const std::string limit = absl::StrCat(absl::ToDoubleSeconds(absl::Nanoseconds(job_.limits().start_ns())));
    absl::Status status =
        StartProcess(absl::StrCat("aggregator of ", region.name()), false,
                     {"aggregator", "--coordinator", gateway, "--region", region.name(), "--connect-timeout", limit});
    if (!status.ok()) return status;
    for (int w = 0; w < region.workers(); ++w) {
      const std::string name = absl::StrCat("worker-", w);
      status = StartProcess(absl::StrCat(name, " of ", region.name()), true,
                            {"worker", "--join", gateway, "--region", region.name(), "--name", name, "--rank",
                             std::to_string(w), "--connect-timeout", limit});
      if (!status.ok()) return status;
    }
  }
  return absl::OkStatus();
}

std::optional<StatusReply> Up::AskStatus() {
  grpc::ClientContext context;
  SetDeadline(&context, absl::Seconds(2));
  StatusReply reply;
  if (!coordinator_->GetStatus(&context, StatusRequest(), &reply).ok()) return std::nullopt;
  phase_ = reply.phase();
  return reply;
}

absl::Status Up::CheckProcesses() {
  for (size_t i = 1; i < processes_.size(); ++i) {
    Process& process = processes_[i];
    const std::optional<int> ended = process.process.Poll();
    if (!ended.has_value() || process.reported) continue;
    // The phase of the last progress line may be over. A coordinator that does not answer is about to end, which says
    // more than what its members made of it.
    if (*ended != 0 && !AskStatus().has_value()) return absl::OkStatus();
    process.reported = true;
    if (*ended == 0) continue;
    EndProgressLine();
    const std::string what = absl::StrCat(process.name, " ", EndedHow(*ended));
    if (phase_ == "starting") {
      return absl::AbortedError(
          absl::StrCat(what, " before training began; its log ", process.log, " ends with\n", Tail(process.log, 5)));
    }
    if (phase_ != "training") continue;  // The run is over, and the coordinator says why.
    std::fprintf(stderr, "wukong: warning: %s; its data goes to others and the run goes on (log: %s)\n", what.c_str(),
                 process.log.c_str());
  }
  return absl::OkStatus();
}

void Up::ShowProgress(const StatusReply& status) {
  int64_t bytes_up = 0, bytes_down = 0;
  for (const auto& [region, relay] : relays_) {
    bytes_up += relay->stats(LinkDirection::kUp).bytes;
    bytes_down += relay->stats(LinkDirection::kDown).bytes;
  }
  const std::string line =
      status.phase() == "starting"
          ? absl::StrFormat("  starting: %d processes have joined", status.members_size())
          : absl::StrFormat(
                "%6.1fs %-8s %5.1f%% of %.2fM tokens  loss %.3f  %6.0f tok/s  computing %5.1f%%  staleness %.1f  WAN "
                "up %.1f "
                "down "
                "%.1f MB",
                status.seconds(), status.phase(),
                100.0 * static_cast<double>(status.tokens_committed()) / static_cast<double>(status.tokens_budget()),
                static_cast<double>(status.tokens_budget()) / 1e6, status.loss(), status.tokens_per_second(),
                100 * status.compute_share(), status.staleness_mean(), static_cast<double>(bytes_up) / 1e6,
                static_cast<double>(bytes_down) / 1e6);
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

void Up::StopAll(int coordinator_signal) {
  if (processes_.empty()) return;
  if (coordinator_signal != 0) processes_[0].process.Signal(coordinator_signal);
  absl::Time deadline = absl::Now() + kLeave;
  for (const int signal_number : {0, SIGTERM, SIGKILL}) {
    if (signal_number != 0) {
      for (Process& process : processes_) process.process.Signal(signal_number);
      deadline = absl::Now() + kLeave;
    }
    bool orphaned = false;
    while (absl::Now() < deadline) {
      const bool all = std::all_of(processes_.begin(), processes_.end(),
                                   [](Process& process) { return process.process.Poll().has_value(); });
      if (all) return;
      if (signal_number == 0 && !orphaned && processes_[0].process.Poll().has_value()) {
        orphaned = true;
        deadline = std::min(deadline, absl::Now() + kOrphaned);
      }
      absl::SleepFor(kPoll);
    }
  }
}

absl::Status Up::CompleteReport(Json* report) {
  const std::string path = run_dir_ + "/report.json";
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return text.status();
  *report = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (report->is_discarded()) return absl::DataLossError(path + " is not whole");
  // What only the owner of the relays knows.
  const double seconds = (*report)["wall_seconds"];
  for (const auto& [region, relay] : relays_) {
    Json& link = (*report)["wan"][region];
    const LinkStats up = relay->stats(LinkDirection::kUp), down = relay->stats(LinkDirection::kDown);
    link["wire_bytes_up"] = up.bytes;
    link["wire_bytes_down"] = down.bytes;
    link["emulated_losses"] = up.losses + down.losses;
    for (const char* direction : {"up", "down"}) {
      const double bytes = link[absl::StrCat("payload_bytes_", direction)];
      link[absl::StrCat("goodput_bits_per_second_", direction)] = seconds > 0 ? 8 * bytes / seconds : 0.0;
    }
  }
  return WriteFileAtomic(path, report->dump(2) + "\n");
}

void Up::PrintSummary(const Json& report) {
  const double initial = report["validation_loss_initial"], unigram = report["validation_loss_unigram"];
  std::printf("%s: %s\n", job_.name().c_str(),
              report["completed"] ? "the token budget is committed" : std::string(report["failure"]).c_str());
  std::printf("  tokens committed     %lld in %.1f s (%.0f tokens/s)\n", report["tokens_committed"].get<long long>(),
              report["wall_seconds"].get<double>(), report["tokens_per_second"].get<double>());
  if (report["validation_loss_final"].is_number()) {
    std::printf("  validation loss      %.4f nats/token (began at %.4f; unigram model %.4f)\n",
                report["validation_loss_final"].get<double>(), initial, unigram);
  }
  std::printf("  workers computing    %.1f%% of their time\n", 100 * report["compute_share"].get<double>());
  const Json& ranges = report["ranges"];
  std::printf("  data ranges          %lld, committed once %lld, more than once %lld, lost %lld\n",
              ranges["total"].get<long long>(), ranges["committed_once"].get<long long>(),
              ranges["committed_more_than_once"].get<long long>(), ranges["lost"].get<long long>());
  for (const auto& [region, link] : report["wan"].items()) {
    std::printf("  link %-15s round trip p50 %.0f ms, p99 %.0f ms; payload up %.1f MB, down %.1f MB\n", region.c_str(),
                link["round_trip_ms_p50"].get<double>(), link["round_trip_ms_p99"].get<double>(),
                link["payload_bytes_up"].get<double>() / 1e6, link["payload_bytes_down"].get<double>() / 1e6);
  }
  std::printf("report: %s/report.json\n", run_dir_.c_str());
}

int Up::Run() {
  run_dir_ = flags_.run_dir.empty() ? absl::StrCat("runs/", job_.name(), "-",
                                                   absl::FormatTime("%Y%m%dT%H%M%SZ", absl::Now(), absl::UTCTimeZone()))
                                    : flags_.run_dir;
  if (std::filesystem::exists(run_dir_ + "/events.jsonl")) {
    return ReportStatus(absl::AlreadyExistsError(
        absl::StrCat("run directory ", run_dir_, " holds another run; name a new one, or remove it")));
  }
  if (absl::Status status = MakeDirectories(run_dir_ + "/logs"); !status.ok()) return ReportStatus(status);
  int workers = 0;
  for (const Region& region : job_.regions()) workers += region.workers();
  std::fprintf(stderr, "%s: %d regions, %d workers; run directory %s\n", job_.name().c_str(), job_.regions_size(),
               workers, run_dir_.c_str());

  absl::Status status = StartAll();
  if (status.ok()) {
    const auto address = ReadFile(run_dir_ + "/coordinator.address");
    coordinator_ = Coordinator::NewStub(MakeChannel(address.ok() ? *address : ""));
    absl::Time next_progress = absl::Now();
    while (!processes_[0].process.Poll().has_value()) {
      if (stop_->WaitFor(kPoll)) {
        status = absl::CancelledError("stopped by a signal");
        break;
      }
      if (absl::Now() >= next_progress) {
        if (const std::optional<StatusReply> reply = AskStatus(); reply.has_value()) ShowProgress(*reply);
        next_progress = absl::Now() + absl::Nanoseconds(job_.report().progress_every_ns());
      }
      status = CheckProcesses();
      if (!status.ok()) break;
    }
    EndProgressLine();
  }
  StopAll(status.ok() ? 0 : SIGTERM);
  const std::optional<int> code = processes_.empty() ? std::nullopt : processes_[0].process.Poll();
  Json report;
  const bool reported = CompleteReport(&report).ok();
  if (reported) {
    if (flags_.json) {
      std::printf("%s\n", report.dump(2).c_str());
    } else {
      PrintSummary(report);
    }
  }
  if (!status.ok()) {
    std::fprintf(stderr, "wukong: error: %s\n", std::string(status.message()).c_str());
    // What the coordinator could not do before it listened is what this command could not do.
    if (!reported && code.has_value() && *code > 0 && *code < 128) return *code;
    return status.code() == absl::StatusCode::kCancelled ? kExitFailed : ExitCodeOf(status);
  }
  if (code != 0) {
    std::fprintf(stderr, "wukong: error: the coordinator %s:\n%s", EndedHow(code.value_or(-1)).c_str(),
                 Tail(processes_[0].log, 3).c_str());
  }
  return code.has_value() && *code < 128 ? *code : kExitFailed;
}

}  // namespace

void AddUpCommand(CLI::App& app, std::function<int()>* action) {
  auto flags = std::make_shared<UpFlags>();
  CLI::App* verb = app.add_subcommand("up", "Run a whole job on this machine, the links between regions emulated");
  verb->add_option("job", flags->job, "The job file")->required();
  verb->add_option("--set", flags->set, "Set one key of the job, as key.path=value; may be repeated")
      ->allow_extra_args(false);
  verb->add_option("--run-dir", flags->run_dir, "Where the run is recorded (default: runs/NAME-TIME)");
  verb->add_flag("--json", flags->json, "Print the report as JSON on standard output");
  verb->callback([flags, action] {
    *action = [flags] {
      MakeFileLimitAnError();
      absl::StatusOr<JobSource> source = LoadJobFile(flags->job, flags->set);
      if (!source.ok()) return ReportStatus(source.status());
      CheckOptions check;
      check.check_data = true;
      check.check_device = true;
      if (absl::Status status = CheckJob(*source, check); !status.ok()) return ReportStatus(status);
      const StopSignal stop;
      return Up(*flags, *std::move(source), &stop).Run();
    };
  });
}

}  // namespace wukong
