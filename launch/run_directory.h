// A run directory, as the verbs that look into one open it.
#ifndef WUKONG_LAUNCH_RUN_DIRECTORY_H_
#define WUKONG_LAUNCH_RUN_DIRECTORY_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "launch/job_file.h"
#include "proto/job.pb.h"
#include "runtime/model/trainer.h"

namespace wukong {

struct OpenedRun {
  Job job;
  std::unique_ptr<Trainer> trainer;  // Of the job's model, initialised.
};

// Makes runs/NAME-TIME, or runs/NAME-TIME-2 and so on where somebody began a run of that name in the same second.
absl::StatusOr<std::string> MakeRunDirectory(absl::string_view name);

// OK where `run_dir` has the folder `part`, "log" or "checkpoints"; INVALID_ARGUMENT says what is wrong with it.
absl::Status CheckRunHas(const std::string& run_dir, absl::string_view part);

// INVALID_ARGUMENT: the run, which began with `before`, would be another one with `job`; the message says by which
// keys.
absl::Status CheckGoesOnWith(const std::string& run_dir, const Job& before, const JobSource& job);

// INVALID_ARGUMENT: no run directory; the message says what is missing.
absl::StatusOr<OpenedRun> OpenRun(const std::string& run_dir);

}  // namespace wukong

#endif  // WUKONG_LAUNCH_RUN_DIRECTORY_H_
