// The only door to time. State machines get the time as an argument; drivers read it here.
#ifndef WUKONG_RUNTIME_BASE_CLOCK_H_
#define WUKONG_RUNTIME_BASE_CLOCK_H_

#include <chrono>
#include <cstdint>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace wukong {

// In nanoseconds, as messages hold times.
inline constexpr int64_t kMillisecond = 1'000'000;
inline constexpr int64_t kSecond = 1'000'000'000;

class Clock {
 public:
  virtual ~Clock() = default;
  // Monotonic: for intervals. The origin means nothing.
  virtual absl::Time Now() const = 0;
  // For display only.
  virtual absl::Time WallNow() const = 0;
};

class RealClock final : public Clock {
 public:
  absl::Time Now() const override {
    return absl::UnixEpoch() + absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
  }
  absl::Time WallNow() const override { return absl::Now(); }
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_BASE_CLOCK_H_
