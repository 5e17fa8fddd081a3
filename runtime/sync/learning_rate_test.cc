#include "runtime/sync/learning_rate.h"

#include <gtest/gtest.h>

namespace wukong {
namespace {

Optimizer MakeOptimizer(Decay decay, int64_t warmup) {
  Optimizer optimizer;
  optimizer.set_learning_rate(0.01);
  optimizer.set_final_learning_rate_fraction(0.1);
  optimizer.set_warmup_tokens(warmup);
  optimizer.set_decay(decay);
  return optimizer;
}

TEST(LearningRateTest, WarmsUpLinearlyToThePeak) {
  const Optimizer optimizer = MakeOptimizer(DECAY_COSINE, 100);
  EXPECT_EQ(LearningRate(optimizer, 1100, 0), 0);
  EXPECT_DOUBLE_EQ(LearningRate(optimizer, 1100, 50), 0.005);
  EXPECT_DOUBLE_EQ(LearningRate(optimizer, 1100, 100), 0.01);
}

TEST(LearningRateTest, CosineIsHalfWayDownInTheMiddleAndStaysAtItsEnd) {
  const Optimizer optimizer = MakeOptimizer(DECAY_COSINE, 100);
  EXPECT_NEAR(LearningRate(optimizer, 1100, 600), 0.0055, 1e-12);
  EXPECT_NEAR(LearningRate(optimizer, 1100, 350), 0.01 * (0.1 + 0.9 * 0.5 * (1 + 0.70710678118654752)), 1e-12);
  EXPECT_NEAR(LearningRate(optimizer, 1100, 1100), 0.001, 1e-12);
  EXPECT_NEAR(LearningRate(optimizer, 1100, 1000000), 0.001, 1e-12);
}

TEST(LearningRateTest, LinearFallsByEqualSteps) {
  const Optimizer optimizer = MakeOptimizer(DECAY_LINEAR, 0);
  EXPECT_DOUBLE_EQ(LearningRate(optimizer, 1000, 0), 0.01);
  EXPECT_NEAR(LearningRate(optimizer, 1000, 250), 0.00775, 1e-12);
  EXPECT_NEAR(LearningRate(optimizer, 1000, 500), 0.0055, 1e-12);
  EXPECT_NEAR(LearningRate(optimizer, 1000, 2000), 0.001, 1e-12);
}

TEST(LearningRateTest, ConstantStaysAtThePeakAfterTheWarmUp) {
  const Optimizer optimizer = MakeOptimizer(DECAY_CONSTANT, 10);
  EXPECT_DOUBLE_EQ(LearningRate(optimizer, 1000, 5), 0.005);
  EXPECT_DOUBLE_EQ(LearningRate(optimizer, 1000, 10), 0.01);
  EXPECT_DOUBLE_EQ(LearningRate(optimizer, 1000, 5000), 0.01);
}

TEST(LearningRateTest, AWarmUpLongerThanTheRunOnlyRises) {
  for (const Decay decay : {DECAY_COSINE, DECAY_LINEAR, DECAY_CONSTANT}) {
    const Optimizer optimizer = MakeOptimizer(decay, 2000);
    double last = -1;
    for (int64_t tokens = 0; tokens <= 1000; tokens += 50) {
      const double rate = LearningRate(optimizer, 1000, tokens);
      EXPECT_GT(rate, last);
      EXPECT_DOUBLE_EQ(rate, 0.01 * static_cast<double>(tokens) / 2000);
      last = rate;
    }
    EXPECT_GE(LearningRate(optimizer, 1000, 2100), 0.001 - 1e-12) << "beyond the end it is still a sane rate";
  }
}

}  // namespace
}  // namespace wukong
