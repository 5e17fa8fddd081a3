// The coordinator's process: the root parameter node, the coordinator's service, and the run directory.
#ifndef WUKONG_COORDINATOR_COORDINATOR_H_
#define WUKONG_COORDINATOR_COORDINATOR_H_

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "proto/job.pb.h"
#include "proto/wire.pb.h"
#include "runtime/base/stop_signal.h"

namespace wukong {

// The `failure` in the report of a run that a signal has ended. What goes on with it depends on what it was begun with.
inline constexpr char kStoppedBySignal[] = "stopped by a signal";

struct CoordinatorOptions {
  Job job;                    // Resolved and checked.
  std::string resolved_yaml;  // Of the job, for the run directory.
  std::string listen;         // host:port; port 0 chooses one.
  std::string run_dir;        // Made if it is not there; must not hold another run.
  int threads = 1;            // For validation, and for the optimizer of ddp.
  bool resume = false;        // Goes on with the run that run_dir holds; a new one if that never began.
  bool standby = false;       // With resume: waits for its turn, below.
  bool fsync = true;          // False only to measure what it costs.
  // Told how the run does two seconds after the loss that it begins with is known, and then once a minute.
  std::function<void(const StatusReply&)> on_progress;
  std::string crash_at;  // POINT[:N]: dies there (runtime/base/fault_point.h). Empty: nowhere.
};

// Runs the job to its end. Writes RUN_DIR/coordinator.address (host:port) when it listens, events.jsonl and
// metrics.jsonl as it goes, and report.json at the end, also of a run that failed or was stopped. What counts is in
// RUN_DIR/log and RUN_DIR/checkpoints (docs/durability.md); RUN_DIR/lock keeps a second coordinator out. Errors:
// INVALID_ARGUMENT (address, job, a run directory of another job or with another coordinator), ALREADY_EXISTS (the run
// directory holds a run), DATA_LOSS (its log or snapshots are damaged), RESOURCE_EXHAUSTED (full disk at the beginning;
// a run that has a log waits for room), OUT_OF_RANGE (diverged), CANCELLED (a signal), ABORTED (the job failed; the
// message says why).
//
// A standby makes everything ready that needs no lock (data, trainer), sleeps until the run directory's coordinator is
// gone, and then is the next one: takes the lock, replays, listens, in this order, so that nobody finds its port before
// it can serve. OK as well: a coordinator has ended the run, of which report.json is the sign; or a signal came while
// it slept. A coordinator that is stopped (SIGSTOP) or hangs keeps its lock, and its standby sleeps on.
absl::Status RunCoordinator(const CoordinatorOptions& options, const StopSignal& stop);

}  // namespace wukong

#endif  // WUKONG_COORDINATOR_COORDINATOR_H_
