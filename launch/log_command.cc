#include "launch/log_command.h"

#include <cstdio>
#include <limits>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "coordinator/root_log.h"
#include "coordinator/root_recovery.h"
#include "launch/exit_code.h"
#include "launch/flag_checks.h"
#include "launch/job_file.h"
#include "launch/run_directory.h"
#include "nlohmann/json.hpp"
#include "runtime/storage/root_history.h"

namespace wukong {
namespace {

struct LogFlags {
  std::string run_dir;
  int64_t from = 1;
  bool json = false;
};

int Verify(const LogFlags& flags) {
  const absl::StatusOr<OpenedRun> run = OpenRun(flags.run_dir);
  if (!run.ok()) return ReportStatus(run.status());
  nlohmann::ordered_json report;
  absl::Status status = VerifyRun(FileSystem::Real(), flags.run_dir, run->job, run->trainer.get(), &report);
  // The configuration, the snapshots and the log are not of one run.
  if (status.code() == absl::StatusCode::kFailedPrecondition) status = absl::InvalidArgumentError(status.message());
  report["ok"] = status.ok();
  report["violation"] = std::string(status.message());
  if (flags.json) {
    std::printf("%s\n", report.dump(2).c_str());
  } else if (status.ok()) {
    const auto number = [&](const char* key) { return report[key].get<long long>(); };
    std::printf("%s: the log is whole and agrees with itself\n", report["run"].get<std::string>().c_str());
    std::printf("  records              %lld, from %lld, in %lld segments (%.1f MB)%s\n", number("records"),
                number("first_record"), number("segments"), report["log_bytes"].get<double>() / 1e6,
                number("torn_bytes") > 0 ? "; the last was torn and counts for nothing" : "");
    std::printf("  terms, versions      %lld, %lld\n", number("terms"), number("version"));
    std::printf("  replayed             %lld versions and %lld snapshots: the same bits\n", number("versions_checked"),
                number("snapshots_checked"));
    std::printf("  tokens committed     %lld of %lld, each sample once\n", number("tokens_committed"),
                number("tokens_budget"));
    for (const auto& [region, tokens] : report["tokens_committed_by_region"].items()) {
      std::printf("    %-18s %lld\n", region.c_str(), tokens.get<long long>());
    }
    std::printf("  parameters SHA-256   %s\n", report["parameters_sha256"].get<std::string>().c_str());
  }
  return ReportStatus(status);
}

int Dump(const LogFlags& flags) {
  if (absl::Status status = CheckRunHas(flags.run_dir, "log"); !status.ok()) return ReportStatus(status);
  const absl::StatusOr<LogSummary> log =
      ReadLog(FileSystem::Real(), LogDirectory(flags.run_dir), flags.from,
              [](int64_t index, absl::string_view bytes) -> absl::Status {
                LogRecord record;
                if (!record.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
                  return absl::DataLossError(absl::StrCat("record ", index, " is no log record"));
                }
                if (std::printf("%s\n", LogRecordToJson(index, record).c_str()) < 0) {
                  return absl::ResourceExhaustedError("standard output cannot be written");
                }
                return absl::OkStatus();
              });
  if (absl::IsDataLoss(log.status())) {
    // Of a log that is whole, the argument is wrong.
    const absl::StatusOr<LogSummary> whole = ReadLog(FileSystem::Real(), LogDirectory(flags.run_dir), 0,
                                                     [](int64_t, absl::string_view) { return absl::OkStatus(); });
    if (whole.ok() && flags.from > whole->next_index) {
      return ReportStatus(
          absl::InvalidArgumentError(absl::StrCat("the log in ", LogDirectory(flags.run_dir), " ends with record ",
                                                  whole->next_index - 1, ", and --from is ", flags.from)));
    }
  }
  if (log.status().code() == absl::StatusCode::kOutOfRange) {
    return ReportStatus(absl::InvalidArgumentError(
        absl::StrCat(log.status().message(),
                     "; the oldest records are gone since a snapshot holds what they add up to: "
                     "--from names the first record to print")));
  }
  return ReportStatus(log.status());
}

}  // namespace

void AddLogCommand(CLI::App& app, std::function<int()>* action) {
  CLI::App* log = app.add_subcommand("log", "Read the log of a run");
  log->require_subcommand(1);
  {
    auto flags = std::make_shared<LogFlags>();
    CLI::App* verb =
        log->add_subcommand("verify", "Replay the log by itself and check that nothing is lost or counted twice");
    verb->add_option("RUN_DIR", flags->run_dir, "The run directory")->required();
    verb->add_flag("--json", flags->json, "Print what was found as JSON");
    verb->callback([flags, action] { *action = [flags] { return Verify(*flags); }; });
  }
  {
    auto flags = std::make_shared<LogFlags>();
    CLI::App* verb = log->add_subcommand("dump", "Print the records as JSON lines");
    verb->add_option("RUN_DIR", flags->run_dir, "The run directory")->required();
    verb->add_option("--from", flags->from, "First record (default: the oldest that is there)")
        ->check(WholeNumber(0, std::numeric_limits<int64_t>::max()));
    flags->from = 0;
    verb->callback([flags, action] { *action = [flags] { return Dump(*flags); }; });
  }
}

}  // namespace wukong
