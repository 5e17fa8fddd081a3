#include "launch/run_directory.h"

#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "coordinator/root_recovery.h"
#include "runtime/base/file.h"

namespace wukong {

absl::StatusOr<std::string> MakeRunDirectory(absl::string_view name) {
  const std::string first =
      absl::StrCat("runs/", name, "-", absl::FormatTime("%Y%m%dT%H%M%SZ", absl::Now(), absl::UTCTimeZone()));
  if (absl::Status status = MakeDirectories("runs"); !status.ok()) return status;
  std::string path = first;
  for (int next = 2;; ++next) {
    std::error_code error;
    if (std::filesystem::create_directory(path, error)) return path;  // False: it was there.
    if (error) return absl::PermissionDeniedError(absl::StrCat("cannot make ", path, ": ", error.message()));
    path = absl::StrCat(first, "-", next);
  }
}

absl::Status CheckRunHas(const std::string& run_dir, absl::string_view part) {
  // What was copied without the rest can be read as well.
  std::error_code error;
  if (std::filesystem::exists(absl::StrCat(run_dir, "/", part), error)) return absl::OkStatus();
  if (absl::Status status = CheckRunDirectory(run_dir); !status.ok()) return status;
  const bool begun = std::filesystem::exists(run_dir + "/events.jsonl", error);
  return absl::InvalidArgumentError(
      absl::StrCat("run directory ", run_dir, " has no ", part,
                   begun ? "; is it on a disk that is not mounted?" : ": its coordinator has not begun the run"));
}

absl::Status CheckGoesOnWith(const std::string& run_dir, const Job& before, const JobSource& job) {
  JobErrors errors;
  for (const JobDifference& difference : JobDifferences(CommonJob(before), CommonJob(job.job))) {
    errors.Add(job.Where(difference.key),
               absl::StrCat("the run in ", run_dir, " goes on with what it began with (expected ", difference.before,
                            ", got ", difference.after,
                            "); only stop.wall, report, wan and limits (but for limits.fragment_bytes) may change"));
  }
  return errors.ToStatus();
}

absl::StatusOr<OpenedRun> OpenRun(const std::string& run_dir) {
  absl::StatusOr<JobSource> source = LoadRunJob(run_dir);
  if (!source.ok()) return source.status();
  absl::StatusOr<std::unique_ptr<Trainer>> trainer = MakeTrainer(source->job, TrainerOptions());
  if (!trainer.ok()) return trainer.status();
  OpenedRun run;
  run.job = source->job;
  run.trainer = *std::move(trainer);
  return run;
}

}  // namespace wukong
