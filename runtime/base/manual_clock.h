// A clock that moves only when it is told to, for tests.
#ifndef WUKONG_RUNTIME_BASE_MANUAL_CLOCK_H_
#define WUKONG_RUNTIME_BASE_MANUAL_CLOCK_H_

#include <atomic>
#include <cstdint>

#include "absl/time/time.h"
#include "runtime/base/clock.h"

namespace wukong {

// Thread-safe. Both times begin at the epoch.
class ManualClock final : public Clock {
 public:
  absl::Time Now() const override { return absl::UnixEpoch() + absl::Nanoseconds(now_ns_.load()); }
  absl::Time WallNow() const override { return Now(); }
  void Advance(absl::Duration time) { now_ns_ += absl::ToInt64Nanoseconds(time); }

 private:
  std::atomic<int64_t> now_ns_{0};
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_BASE_MANUAL_CLOCK_H_
