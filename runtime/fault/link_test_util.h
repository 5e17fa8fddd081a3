// Links of tests.
#ifndef WUKONG_RUNTIME_FAULT_LINK_TEST_UTIL_H_
#define WUKONG_RUNTIME_FAULT_LINK_TEST_UTIL_H_

#include "absl/time/time.h"
#include "runtime/fault/wan_relay.h"

namespace wukong {

// Some time to begin at.
inline const absl::Time kStart = absl::UnixEpoch() + absl::Hours(1);

inline LinkShape Shape(absl::Duration delay, double bandwidth_bits_per_s = 0, double loss = 0,
                       absl::Duration jitter = absl::ZeroDuration()) {
  LinkShape shape;
  shape.delay = delay;
  shape.jitter = jitter;
  shape.bandwidth_bits_per_s = bandwidth_bits_per_s;
  shape.loss = loss;
  return shape;
}

}  // namespace wukong

#endif  // WUKONG_RUNTIME_FAULT_LINK_TEST_UTIL_H_
