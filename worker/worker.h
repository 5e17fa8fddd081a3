// A leaf of the tree: trains on leased data, contributes to its region's aggregator, and takes newer parameters.
#ifndef WUKONG_WORKER_WORKER_H_
#define WUKONG_WORKER_WORKER_H_

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/job.pb.h"
#include "runtime/base/stop_signal.h"

namespace wukong {

struct WorkerOptions {
  std::string coordinator;  // host:port
  std::string region;
  std::string name;  // Empty: the coordinator gives one.
  int rank = -1;     // Among the region's workers, for speed and collectives; -1: the coordinator gives one.
  // What differs on this machine from the job that the coordinator hands out; unset parts are the job's.
  Job local;  // model.torchscript, data
  std::string device;
  std::string fault;  // POINT[:N]: does there what a broken machine would (runtime/base/fault_point.h). Empty: nothing.
  absl::Duration connect_timeout = absl::Seconds(30);
};

// Trains until the run is over (OK), or until `stop` comes (OK after what was trained is contributed and the rest given
// back). Errors: UNAVAILABLE (no coordinator, or away for too long), INVALID_ARGUMENT (region, data, another model),
// FAILED_PRECONDITION (device), OUT_OF_RANGE (diverged), ABORTED (the job failed). Marked as safe to start again
// (runtime/base/restart.h): ABORTED (fenced, or its group lost a rank), CANCELLED (there was no time to contribute
// after `stop`).
absl::Status RunWorker(const WorkerOptions& options, const StopSignal& stop);

}  // namespace wukong

#endif  // WUKONG_WORKER_WORKER_H_
