// A region's aggregator: the parent of its workers, a child of the root.
#ifndef WUKONG_WORKER_AGGREGATOR_H_
#define WUKONG_WORKER_AGGREGATOR_H_

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/base/stop_signal.h"

namespace wukong {

struct AggregatorOptions {
  std::string coordinator;  // host:port; the root is there too.
  std::string region;
  bool new_region = false;  // The region need not be in the job file.
  std::string listen = "127.0.0.1:0";
  std::string advertise;  // What workers connect to; by default the host of `listen` with the port that was chosen.
  absl::Duration connect_timeout = absl::Seconds(30);
};

// Serves until the run is over (OK), `stop` comes (OK), or it cannot go on: UNAVAILABLE (no coordinator),
// INVALID_ARGUMENT (address, a region's name), NOT_FOUND (region), ABORTED (the job failed). Marked as safe to start
// again (runtime/base/restart.h): ABORTED (fenced), CANCELLED (stopped while it owed something to the root).
absl::Status RunAggregator(const AggregatorOptions& options, const StopSignal& stop);

}  // namespace wukong

#endif  // WUKONG_WORKER_AGGREGATOR_H_
