// The inner learning rate, by tokens that the whole job has trained on.
#ifndef WUKONG_RUNTIME_SYNC_LEARNING_RATE_H_
#define WUKONG_RUNTIME_SYNC_LEARNING_RATE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "proto/job.pb.h"

namespace wukong {

// Linear warm-up over warmup_tokens, then the decay towards final_learning_rate_fraction at `stop_tokens`, after which
// it stays there (cosine: Loshchilov and Hutter 2017, without restarts).
inline double LearningRate(const Optimizer& optimizer, int64_t stop_tokens, int64_t tokens) {
  const double peak = optimizer.learning_rate();
  const auto warmup = static_cast<double>(optimizer.warmup_tokens());
  const auto now = static_cast<double>(tokens);
  if (now < warmup) return peak * now / warmup;
  const double length = std::max(1.0, static_cast<double>(stop_tokens) - warmup);
  const double progress = std::min(1.0, (now - warmup) / length);
  const double floor = optimizer.final_learning_rate_fraction();
  switch (optimizer.decay()) {
    case DECAY_COSINE:
      return peak * (floor + (1 - floor) * 0.5 * (1 + std::cos(M_PI * progress)));
    case DECAY_LINEAR:
      return peak * (1 - (1 - floor) * progress);
    default:
      return peak;
  }
}

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SYNC_LEARNING_RATE_H_
