// For tests: equal but for the rounding of float32.
#ifndef WUKONG_RUNTIME_SYNC_NEAR_H_
#define WUKONG_RUNTIME_SYNC_NEAR_H_

#include <gmock/gmock.h>

namespace wukong {

inline auto Near(double value) { return ::testing::FloatNear(static_cast<float>(value), 1e-5f); }

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SYNC_NEAR_H_
