#include "runtime/model/synthetic_trainer.h"

#include "gtest/gtest.h"
#include "runtime/base/clock.h"

namespace wukong {
namespace {

Model Synthetic(SyntheticKind kind) {
  Model model;
  model.set_synthetic(kind);
  model.set_context(1);
  model.set_size(8);
  return model;
}

Batch Numbers(const std::vector<int64_t>& samples) {
  Batch batch;
  batch.context = 1;
  batch.samples = static_cast<int64_t>(samples.size());
  batch.tokens = batch.targets = samples;
  return batch;
}

TEST(SyntheticTrainerTest, ACounterCountsSamplesExactly) {
  const auto trainer = MakeSyntheticTrainer(Synthetic(SYNTHETIC_KIND_COUNTER), 1);
  for (int step = 0; step < 3; ++step) {
    ASSERT_TRUE(trainer->AccumulateGradient(Numbers({5, 9}), 0.5).ok());
    ASSERT_TRUE(trainer->AccumulateGradient(Numbers({6}), 0.5).ok());
    ASSERT_TRUE(trainer->OptimizerStep(1e-3).ok());
  }
  for (const float value : trainer->parameters()) EXPECT_EQ(value, 9);
}

TEST(SyntheticTrainerTest, AToyFindsItsOptimumUpToTheNoise) {
  Model model = Synthetic(SYNTHETIC_KIND_TOY);
  model.set_noise(0.01);
  const auto trainer = MakeSyntheticTrainer(model, 1);
  EXPECT_NEAR(trainer->Loss(trainer->parameters()), 0.275, 1e-6) << "half the mean curvature, at 0";
  for (int64_t step = 0; step < 1000; ++step) {
    ASSERT_TRUE(trainer->AccumulateGradient(Numbers({step}), 1).ok());
    ASSERT_TRUE(trainer->OptimizerStep(0.1).ok());
  }
  EXPECT_LT(trainer->Loss(trainer->parameters()), 1e-4);
}

TEST(SyntheticTrainerTest, NoiseDependsOnTheSampleAlone) {
  Model model = Synthetic(SYNTHETIC_KIND_TOY);
  model.set_noise(1);
  const auto one = MakeSyntheticTrainer(model, 1), other = MakeSyntheticTrainer(model, 1);
  ASSERT_TRUE(one->AccumulateGradient(Numbers({3, 4}), 1).ok());
  (void)other->AccumulateSamples(3, 5, 1);
  for (int i = 0; i < 8; ++i) EXPECT_NEAR(one->gradient()[i], other->gradient()[i], 1e-6);
}

TEST(SyntheticTrainerTest, AStepTakesItsTime) {
  Model model = Synthetic(SYNTHETIC_KIND_COUNTER);
  model.set_step_ns(50'000'000);
  const auto trainer = MakeSyntheticTrainer(model, 1);
  const RealClock clock;
  const absl::Time begin = clock.Now();
  ASSERT_TRUE(trainer->AccumulateGradient(Numbers({1}), 0.5).ok());
  ASSERT_TRUE(trainer->AccumulateGradient(Numbers({2}), 0.5).ok());
  EXPECT_GE(clock.Now() - begin, absl::Milliseconds(50));
}

TEST(SyntheticTrainerTest, TokensOfATextAreRefused) {
  const auto trainer = MakeSyntheticTrainer(Synthetic(SYNTHETIC_KIND_COUNTER), 1);
  Batch batch = Numbers({1, 2});
  batch.samples = 1;
  batch.context = 2;
  EXPECT_EQ(trainer->AccumulateGradient(batch, 1).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace wukong
