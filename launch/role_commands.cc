#include "launch/role_commands.h"

#include <csignal>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "coordinator/coordinator.h"
#include "coordinator/root_recovery.h"
#include "glog/logging.h"
#include "launch/exit_code.h"
#include "launch/flag_checks.h"
#include "launch/job_check.h"
#include "launch/job_file.h"
#include "launch/run_directory.h"
#include "launch/status_text.h"
#include "launch/tls_flag.h"
#include "nlohmann/json.hpp"
#include "runtime/base/file.h"
#include "runtime/base/shell_word.h"
#include "runtime/base/stop_signal.h"
#include "runtime/model/compute_process.h"
#include "runtime/storage/file_system.h"
#include "worker/aggregator.h"
#include "worker/worker.h"

namespace wukong {
namespace {

struct CoordinatorFlags {
  std::string job;
  std::vector<std::string> set;
  bool no_fsync = false;
  bool begin_or_resume = false;
  CoordinatorOptions options;
};

absl::StatusOr<JobSource> LoadJobOf(const CoordinatorFlags& flags) {
  if (!flags.job.empty()) {
    absl::StatusOr<JobSource> source = LoadJobFile(flags.job, flags.set);
    if (!source.ok() || !flags.options.resume) return source;
    // One that died before it had a log may begin with another job.
    const absl::StatusOr<JobSource> began = LoadRunJob(flags.options.run_dir);
    if (!began.ok() || !HoldsRun(FileSystem::Real(), flags.options.run_dir)) return source;
    if (absl::Status status = CheckGoesOnWith(flags.options.run_dir, began->job, *source); !status.ok()) return status;
    return source;
  }
  if (!flags.options.resume) {
    return absl::InvalidArgumentError("coordinator: --job is missing (only with --resume it may be omitted)");
  }
  if (!flags.set.empty()) {
    return absl::InvalidArgumentError("coordinator: --set needs --job: a run goes on with the job that it began with");
  }
  return LoadRunJob(flags.options.run_dir);
}

// What goes on with the run of a coordinator that was stopped; the run has its job, so --job and --set are left out.
std::string CommandThatGoesOn(const CoordinatorFlags& flags) {
  const CoordinatorOptions& options = flags.options;
  // Where members look for it, also if the port was any.
  const std::string listen = ReadFile(options.run_dir + "/coordinator.address").value_or(options.listen);
  return absl::StrCat(
      "wukong coordinator --run-dir ", ShellWord(options.run_dir), " --listen ", ShellWord(listen),
      options.threads == CoordinatorOptions().threads ? "" : absl::StrCat(" --threads ", options.threads),
      flags.no_fsync ? " --no-fsync" : "", TlsFlagText(), " --resume");
}

// Of a standby that a signal has ended there is none. For people: nobody misses it where it cannot be written.
void ShowReport(const std::string& run_dir) {
  const absl::StatusOr<std::string> text = ReadFile(run_dir + "/report.json");
  if (!text.ok()) return;
  const auto report = nlohmann::ordered_json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (ReportCompleted(report)) std::fprintf(stderr, "%s", ReportSummary(report, run_dir).c_str());
}

int RunCoordinatorCommand(CoordinatorFlags flags) {
  MakeBrokenOutputsErrors();
  if (flags.begin_or_resume && HoldsRun(FileSystem::Real(), flags.options.run_dir)) flags.options.resume = true;
  if (flags.options.standby) {
    flags.options.resume = true;
    // Members look for the next coordinator where the one before it was.
    if (absl::EndsWith(flags.options.listen, ":0")) {
      return ReportStatus(absl::InvalidArgumentError(
          absl::StrCat("coordinator: --standby needs the --listen of the coordinator that it stands by, got ",
                       flags.options.listen, " (port 0 would be another one)")));
    }
  }
  absl::StatusOr<JobSource> source = LoadJobOf(flags);
  if (!source.ok()) return ReportStatus(source.status());
  CheckOptions check;
  check.check_data = true;
  check.check_device = false;  // Devices are the workers' machines'.
  check.check_beginning = !flags.options.resume;
  if (absl::Status status = CheckJob(*source, check); !status.ok()) return ReportStatus(status);
  if (!flags.options.resume) PrintWarnings(source->job);
  CoordinatorOptions options = flags.options;
  options.job = source->job;
  options.resolved_yaml = ResolvedYaml(source->job);
  options.fsync = !flags.no_fsync;
  options.on_progress = [](const StatusReply& run) { LOG(INFO) << absl::StripAsciiWhitespace(ProgressLine(run)); };
  const StopSignal stop;
  const absl::Status status = RunCoordinator(options, stop);
  if (status.ok()) ShowReport(options.run_dir);
  if (absl::IsCancelled(status) && LoadRunJob(options.run_dir).ok()) {
    return ReportStatus(
        absl::CancelledError(absl::StrCat(status.message(), "; it goes on with: ", CommandThatGoesOn(flags))));
  }
  return ReportStatus(status);
}

struct WorkerFlags {
  std::string job;
  std::string data;
  double connect_timeout = 30;
  WorkerOptions options;
};

int RunWorkerCommand(const WorkerFlags& flags) {
  MakeBrokenOutputsErrors();
  TuneForComputing();
  WorkerOptions options = flags.options;
  options.connect_timeout = absl::Seconds(flags.connect_timeout);
  if (!flags.job.empty()) {
    absl::StatusOr<JobSource> source = LoadJobFile(flags.job, {});
    if (!source.ok()) return ReportStatus(source.status());
    if (source->job.model().torchscript().empty()) {
      return ReportStatus(absl::InvalidArgumentError(absl::StrCat(
          "worker: --job ", flags.job, " has no model.torchscript, and nothing else of it would be used")));
    }
    *options.local.mutable_model() = source->job.model();
  }
  if (!flags.data.empty()) options.local.mutable_data()->set_directory(flags.data);
  const StopSignal stop;
  return ReportStatus(RunWorker(options, stop));
}

struct AggregatorFlags {
  double connect_timeout = 30;
  AggregatorOptions options;
};

}  // namespace

void MakeBrokenOutputsErrors() {
  std::signal(SIGXFSZ, SIG_IGN);
  std::signal(SIGPIPE, SIG_IGN);
}

void AddRoleCommands(CLI::App& app, std::function<int()>* action) {
  {
    auto flags = std::make_shared<CoordinatorFlags>();
    CLI::App* verb = app.add_subcommand("coordinator", "Run a job's coordinator, with the root of its parameters");
    verb->add_option("--job", flags->job, "The job file; with --resume, by default that of the run");
    verb->add_option("--set", flags->set, "Set one key of the job, as key.path=value; may be repeated")
        ->allow_extra_args(false);
    verb->add_option("--run-dir", flags->options.run_dir, "Where the run is recorded; must not hold another run")
        ->required();
    verb->add_flag("--resume", flags->options.resume, "Go on with the run that is recorded there");
    verb->add_flag("--begin-or-resume", flags->begin_or_resume,
                   "--resume where the directory holds a run, else begin one: for service managers");
    verb->add_flag("--standby", flags->options.standby,
                   "Make all ready, sleep until the coordinator of the run is gone, and go on in its place");
    verb->add_flag("--no-fsync", flags->no_fsync, "Do not wait for the disk: for measuring what it costs");
#ifdef WUKONG_FAULT_POINTS
    verb->add_option("--crash-at", flags->options.crash_at,
                     "POINT[:N]: die when this point is passed for the N-th time");
#endif
    verb->add_option("--listen", flags->options.listen, "host:port for aggregators and workers")
        ->default_str("0.0.0.0:7700")
        ->check(HostPort(/*may_be_any=*/true));
    verb->add_option("--threads", flags->options.threads, "Threads for validation")
        ->check(WholeNumber(1))
        ->capture_default_str();
    flags->options.listen = "0.0.0.0:7700";
    SetConnectingAction(verb, action, [flags] { return RunCoordinatorCommand(*flags); });
  }
  {
    auto flags = std::make_shared<AggregatorFlags>();
    CLI::App* verb = app.add_subcommand("aggregator", "Run the aggregator of one region");
    verb->add_option("--coordinator", flags->options.coordinator, "host:port of the coordinator")
        ->required()
        ->check(HostPort());
    verb->add_option("--region", flags->options.region, "The region, as in the job file")->required();
    verb->add_flag("--new-region", flags->options.new_region,
                   "The run gets this region, if its job file has none such");
    verb->add_option("--listen", flags->options.listen, "host:port for the region's workers")
        ->capture_default_str()
        ->check(HostPort(/*may_be_any=*/true));
    verb->add_option("--advertise", flags->options.advertise, "host:port that the workers connect to, if not that")
        ->check(ReachableHostPort());
    verb->add_option("--connect-timeout", flags->connect_timeout, "How long to try to reach the coordinator")
        ->default_str("30s")
        ->transform(Seconds());
    SetConnectingAction(verb, action, [flags] {
      MakeBrokenOutputsErrors();
      AggregatorOptions options = flags->options;
      options.connect_timeout = absl::Seconds(flags->connect_timeout);
      const StopSignal stop;
      return ReportStatus(RunAggregator(options, stop));
    });
  }
  {
    auto flags = std::make_shared<WorkerFlags>();
    CLI::App* verb = app.add_subcommand("worker", "Run one worker; it may join a job that is under way");
    verb->add_option("--join,--coordinator", flags->options.coordinator, "host:port of the coordinator")
        ->required()
        ->check(HostPort());
    verb->add_option("--region", flags->options.region, "The region, as in the job file")->required();
    verb->add_option("--name", flags->options.name, "Unique in the region; by default the coordinator gives one")
        ->check(MemberName());
    verb->add_option("--rank", flags->options.rank, "Place among the region's workers; by default the next free one")
        ->check(WholeNumber(0));
    verb->add_option("--data", flags->data, "Data directory on this machine, if not the job's path");
    verb->add_option("--job", flags->job,
                     "Job file on this machine whose model.torchscript is used in place of the coordinator's");
    verb->add_option("--device", flags->options.device, "cpu, cuda or cuda:N, if not the region's");
    verb->add_option("--connect-timeout", flags->connect_timeout, "How long to try to reach the coordinator")
        ->default_str("30s")
        ->transform(Seconds());
#ifdef WUKONG_FAULT_POINTS
    verb->add_option("--fault", flags->options.fault,
                     "POINT[:N]: from the N-th time on do there what a broken machine would");
#endif
    SetConnectingAction(verb, action, [flags] { return RunWorkerCommand(*flags); });
  }
}

}  // namespace wukong
