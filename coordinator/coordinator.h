// The coordinator's process: the root parameter node, the coordinator's service, and the run directory.
#ifndef WUKONG_COORDINATOR_COORDINATOR_H_
#define WUKONG_COORDINATOR_COORDINATOR_H_

#include <string>

#include "absl/status/status.h"
#include "proto/job.pb.h"
#include "runtime/base/stop_signal.h"

namespace wukong {

struct CoordinatorOptions {
  Job job;                    // Resolved and checked.
  std::string resolved_yaml;  // Of the job, for the run directory.
  std::string listen;         // host:port; port 0 chooses one.
  std::string run_dir;        // Made if it is not there; must not hold another run.
  int threads = 1;            // For validation, and for the optimizer of ddp.
};

// Runs the job to its end. Writes RUN_DIR/coordinator.address (host:port) when it listens, events.jsonl and
// metrics.jsonl as it goes, and report.json at the end, also of a run that failed or was stopped. Errors:
// INVALID_ARGUMENT (address, job), ALREADY_EXISTS (the run directory holds a run), RESOURCE_EXHAUSTED (full disk),
// OUT_OF_RANGE (diverged), CANCELLED (a signal), ABORTED (the job failed; the message says why).
absl::Status RunCoordinator(const CoordinatorOptions& options, const StopSignal& stop);

}  // namespace wukong

#endif  // WUKONG_COORDINATOR_COORDINATOR_H_
