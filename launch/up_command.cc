#include "launch/up_command.h"

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "coordinator/root_recovery.h"
#include "launch/exit_code.h"
#include "launch/flag_checks.h"
#include "launch/job_check.h"
#include "launch/job_file.h"
#include "launch/local_run.h"
#include "launch/port_reservation.h"
#include "launch/role_commands.h"
#include "launch/run_directory.h"
#include "launch/status_text.h"
#include "launch/tls_flag.h"
#include "runtime/base/file.h"
#include "runtime/base/shell_word.h"
#include "runtime/base/stop_signal.h"
#include "runtime/storage/file_system.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

struct UpFlags {
  std::string job;
  std::vector<std::string> set;
  std::string run_dir;
  std::string resume;  // The run directory to go on with, in place of the three above.
  bool json = false;
  int restarts = 100;
  bool standby = true;
  bool no_fsync = false;
  std::string crash_at;
};

// Where a run goes that is not resumed. ALREADY_EXISTS: there is one.
absl::StatusOr<std::string> NewRunDirectory(const UpFlags& flags, const Job& job) {
  if (flags.run_dir.empty()) return MakeRunDirectory(job.name());
  if (HoldsRun(FileSystem::Real(), flags.run_dir)) {
    return absl::AlreadyExistsError(
        absl::StrCat("run directory ", flags.run_dir, " holds another run; go on with it by: wukong up", TlsFlagText(),
                     " --resume ", ShellWord(flags.run_dir), "; or name a new one, or remove it"));
  }
  return flags.run_dir;
}

absl::Status CheckFlags(const UpFlags& flags) {
  if (flags.resume.empty()) {
    if (!flags.job.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError("up: the job is missing (expected wukong up JOB.yaml, or --resume RUN_DIR)");
  }
  const char* const also = !flags.job.empty() ? "a job file" : !flags.run_dir.empty() ? "--run-dir" : nullptr;
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
    std::printf("%s", ReportSummary(report, flags.resume).c_str());
  }
  return true;
}

absl::Status CheckNobodyWorksIn(const std::string& run_dir) {
  // Held for a moment only: the coordinator takes it for itself.
  const auto lock = FileSystem::Real()->Lock(run_dir + "/lock", "wukong up --resume\n");
  if (!absl::IsFailedPrecondition(lock.status())) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("this run is under way (",
                                                 absl::StripAsciiWhitespace(ReadFile(run_dir + "/lock").value_or("")),
                                                 "): wukong status ", ShellWord(run_dir), " shows it"));
}

// The run's job with what `--set` says of it. INVALID_ARGUMENT: the run would be another one.
absl::StatusOr<JobSource> ChangeRunJob(const std::string& run_dir, const std::vector<std::string>& set) {
  const std::string path = run_dir + "/config.resolved.yaml";
  absl::StatusOr<JobSource> before = LoadRunJob(run_dir);
  if (!before.ok() || set.empty()) return before;
  absl::StatusOr<JobSource> changed = LoadJobFile(path, set);
  if (!changed.ok()) return changed.status();
  if (absl::Status status = CheckGoesOnWith(run_dir, before->job, *changed); !status.ok()) return status;
  return changed;
}

int RunUp(UpFlags flags) {
  MakeBrokenOutputsErrors();
  if (absl::Status status = CheckFlags(flags); !status.ok()) return ReportStatus(status);
  const bool resume = !flags.resume.empty();
  while (flags.resume.size() > 1 && flags.resume.back() == '/') flags.resume.pop_back();
  absl::StatusOr<JobSource> source = resume ? ChangeRunJob(flags.resume, flags.set) : LoadJobFile(flags.job, flags.set);
  if (!source.ok()) return ReportStatus(source.status());
  if (resume && ShowIfComplete(flags)) return kExitOk;
  CheckOptions check;
  check.check_data = true;
  check.check_device = true;
  check.check_beginning = !resume;
  if (absl::Status status = CheckJob(*source, check); !status.ok()) return ReportStatus(status);
  if (!resume) PrintWarnings(source->job);
  if (resume) {
    if (absl::Status status = CheckNobodyWorksIn(flags.resume); !status.ok()) return ReportStatus(status);
    if (!flags.set.empty()) {
      const absl::Status written = WriteFileAtomic(flags.resume + "/config.resolved.yaml", ResolvedYaml(source->job));
      if (!written.ok()) return ReportStatus(written);
    }
  } else if (std::error_code error; !std::filesystem::is_regular_file(flags.job, error)) {
    return ReportStatus(absl::InvalidArgumentError(
        absl::StrCat("up: ", flags.job,
                     " is not a file that can be read twice: the coordinator reads it as well. Write it to a file")));
  }
  absl::StatusOr<PortReservation> port = PortReservation::Make();
  if (!port.ok()) return ReportStatus(port.status());
  absl::StatusOr<std::string> run_dir = flags.resume;
  if (!resume) run_dir = NewRunDirectory(flags, source->job);
  if (!run_dir.ok()) return ReportStatus(run_dir.status());
  const StopSignal stop;
  LocalRun::Options options;
  options.job = flags.job;
  options.set = flags.set;
  options.run_dir = *std::move(run_dir);
  options.resume = resume;
  options.restarts = flags.restarts;
  options.standby = flags.standby;
  options.no_fsync = flags.no_fsync;
  options.crash_at = flags.crash_at;
  const LocalRun::Result result = LocalRun(options, *std::move(source), *std::move(port), &stop).Run();
  if (!result.report.is_null()) {
    if (flags.json) {
      std::printf("%s\n", JsonText(result.report).c_str());
    } else {
      std::printf("%s", ReportSummary(result.report, options.run_dir).c_str());
    }
  }
  const bool stopped = stop.received() != 0 || WasStopped(result.report);
  if (stopped && result.exit_code == kExitFailed && LoadRunJob(options.run_dir).ok()) {
    std::fprintf(stderr, "wukong: the run goes on with: wukong up%s --resume %s\n", TlsFlagText().c_str(),
                 ShellWord(options.run_dir).c_str());
  }
  return result.exit_code;
}

}  // namespace

void AddUpCommand(CLI::App& app, std::function<int()>* action) {
  auto flags = std::make_shared<UpFlags>();
  CLI::App* verb = app.add_subcommand("up", "Run a whole job on this machine, the links between regions emulated");
  verb->add_option("JOB", flags->job, "The job file");
  verb->add_option("--set", flags->set,
                   "Set one key of the job, as key.path=value; may be repeated. With --resume: of what "
                   "the run does not depend on, such as stop.wall")
      ->allow_extra_args(false);
  verb->add_option("--run-dir", flags->run_dir, "Where the run is recorded (default: runs/NAME-TIME)");
  verb->add_option("--resume", flags->resume, "Go on with the run that is recorded in this directory; takes no job");
  verb->add_option("--restarts", flags->restarts,
                   "How many processes that die are started again in the whole run; 0: none")
      ->check(WholeNumber(0))
      ->capture_default_str();
  verb->add_flag("--standby,!--no-standby", flags->standby,
                 "Beside the coordinator a process waits to go on in its place at once, if it dies (default)");
  verb->add_flag("--no-fsync", flags->no_fsync, "The coordinator does not wait for the disk: to measure what it costs");
#ifdef WUKONG_FAULT_POINTS
  verb->add_option("--crash-at", flags->crash_at,
                   "POINT[:N]: the first coordinator dies when this point is passed for the N-th time");
#endif
  verb->add_flag("--json", flags->json, "Print the report as JSON on standard output");
  SetConnectingAction(verb, action, [flags] { return RunUp(*flags); });
}

}  // namespace wukong
