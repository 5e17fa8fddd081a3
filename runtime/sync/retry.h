// When a call that did not come through is made again: the same for processes and for the simulator. Pure.
#ifndef WUKONG_RUNTIME_SYNC_RETRY_H_
#define WUKONG_RUNTIME_SYNC_RETRY_H_

#include <algorithm>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace wukong {

// Of a call to the coordinator. `round_trip` is the last one that was seen, 0 before there is one; `timeouts` calls in
// a row were not answered in time: each has the next one wait twice as long, up to four times, so that a coordinator
// that is far is reached, and a silent one is given up soon where it is near.
inline absl::Duration CoordinatorTimeout(absl::Duration round_trip, int timeouts) {
  return std::max(absl::Seconds(5), 4 * round_trip) * (1 << std::min(timeouts, 2));
}
// Between two tries of one.
inline constexpr absl::Duration kCoordinatorRetry = absl::Milliseconds(100);

// Worth trying again: the peer or the network was away.
inline bool IsTransient(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) || absl::IsCancelled(status) ||
         absl::IsResourceExhausted(status);
}

// Between two tries to follow a parent or to contribute to it: 50 ms after the first (attempt 0), doubling to 1 s, half
// of it jitter, so that a region's workers do not come back all at once. `uniform` is in [0, 1).
inline absl::Duration ParentRetry(int attempt, double uniform) {
  const double ceiling = std::min(1.0, 0.05 * static_cast<double>(1 << std::min(attempt, 10)));
  return absl::Seconds(ceiling * (0.5 + 0.5 * uniform));
}

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SYNC_RETRY_H_
