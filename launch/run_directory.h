// A run directory, as the verbs that look into one open it.
#ifndef WUKONG_LAUNCH_RUN_DIRECTORY_H_
#define WUKONG_LAUNCH_RUN_DIRECTORY_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "proto/job.pb.h"
#include "runtime/model/trainer.h"

namespace wukong {

struct OpenedRun {
  Job job;
  std::unique_ptr<Trainer> trainer;  // Of the job's model, initialised.
};

// INVALID_ARGUMENT: no run directory; the message says what is missing.
absl::StatusOr<OpenedRun> OpenRun(const std::string& run_dir);

}  // namespace wukong

#endif  // WUKONG_LAUNCH_RUN_DIRECTORY_H_
