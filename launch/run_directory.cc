#include "launch/run_directory.h"

#include <utility>

#include "launch/job_file.h"

namespace wukong {

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
