#include "runtime/sync/average.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "runtime/base/random.h"
#include "runtime/sync/near.h"

namespace wukong {
namespace {

using testing::ElementsAre;

std::vector<float> Average(AverageRule rule, const std::vector<std::vector<float>>& contributions,
                           std::vector<double> weights = {}) {
  std::vector<absl::Span<const float>> spans(contributions.begin(), contributions.end());
  if (weights.empty()) weights.assign(contributions.size(), 1.0 / static_cast<double>(contributions.size()));
  std::vector<float> out(contributions.front().size(), 99.0f);
  AverageContributions(rule, spans, weights, absl::MakeSpan(out));
  return out;
}

const AverageRule kRules[] = {AverageRule::kMean, AverageRule::kDirectionNorm, AverageRule::kMedian,
                              AverageRule::kTrimmedMean, AverageRule::kCenteredClip};

TEST(AverageTest, TheMeanIsTheWeightedSum) {
  EXPECT_THAT(Average(AverageRule::kMean, {{1, 0, 4}, {3, 2, 0}}, {0.5, 0.25}), ElementsAre(1.25f, 0.5f, 2));
}

TEST(AverageTest, DirectionsAndNormsAreAveragedApart) {
  // Directions (1, 0) and (0, 1): d = (1/2, 1/2), |d| = 1/sqrt(2). Norms 3 and 1: n = 2. So 2 (1/sqrt(2), 1/sqrt(2)).
  const double each = 2 / std::sqrt(2.0);
  EXPECT_THAT(Average(AverageRule::kDirectionNorm, {{3, 0}, {0, 1}}), ElementsAre(Near(each), Near(each)));
  // Weights 1/3 and 2/3: d = (1/3, 2/3), |d| = sqrt(5)/3, n = 1 + 2/3.
  const double scale = (5.0 / 3) / (std::sqrt(5.0) / 3);
  EXPECT_THAT(Average(AverageRule::kDirectionNorm, {{3, 0}, {0, 1}}, {1.0 / 3, 2.0 / 3}),
              ElementsAre(Near(scale / 3), Near(scale * 2 / 3)));
}

TEST(AverageTest, OppositeDirectionsAndZeroesGoNowhere) {
  EXPECT_THAT(Average(AverageRule::kDirectionNorm, {{3, 0}, {-5, 0}}), ElementsAre(0, 0));
  EXPECT_THAT(Average(AverageRule::kDirectionNorm, {{0, 0}, {0, 0}}), ElementsAre(0, 0));
  EXPECT_THAT(Average(AverageRule::kDirectionNorm, {{0, 0}, {4, 0}}), ElementsAre(Near(2), 0));
}

TEST(AverageTest, WhatIsNearlyZeroHasNoDirection) {
  EXPECT_THAT(Average(AverageRule::kDirectionNorm, {{1e-42f, 0}, {4, 0}}), ElementsAre(Near(2), 0));
  EXPECT_THAT(Average(AverageRule::kDirectionNorm, {{1e-42f, 0}, {0, 0}}), ElementsAre(0, 0));
}

TEST(AverageTest, TheMedianIsOfEachCoordinate) {
  EXPECT_THAT(Average(AverageRule::kMedian, {{1, 9, 0}, {2, -8, 0}, {100, 7, 3}}), ElementsAre(2, 7, 0));
  EXPECT_THAT(Average(AverageRule::kMedian, {{1, 1}, {2, 5}, {100, 7}, {4, -100}}), ElementsAre(3, 3));
}

TEST(AverageTest, TheTrimmedMeanLeavesTheEndsOut) {
  EXPECT_THAT(Average(AverageRule::kTrimmedMean, {{1, 0}, {2, 0}, {3, 6}, {1000, 0}, {-5, 0}}), ElementsAre(2, 0));
  std::vector<std::vector<float>> ten;
  for (int i = 0; i < 10; ++i) ten.push_back({i < 2 ? 1e6f : i > 7 ? -1e6f : static_cast<float>(i)});
  EXPECT_THAT(Average(AverageRule::kTrimmedMean, ten), ElementsAre(Near(4.5))) << "a fifth of each end";
}

TEST(AverageTest, CenteredClippingTakesTheFarOnesByTheirDirectionOnly) {
  // Center (the median) 1. Distances 1, 0, 1, 99; their median is 1: the far one counts as 2.
  // 1 + (-1 + 0 + 1 + 1) / 4
  EXPECT_THAT(Average(AverageRule::kCenteredClip, {{0}, {1}, {1}, {100}}),
              ElementsAre(Near(1 + (-0.5 + 0 + 0 + 0.5) / 4)));
  EXPECT_THAT(Average(AverageRule::kCenteredClip, {{0}, {1}, {2}, {3}, {1000}}),
              ElementsAre(Near(2 + (-1 - 1 + 0 + 1 + 1) / 5.0)));
}

TEST(AverageTest, TheSumOfTheWeightsIsTheGain) {
  // Where all contributions are the same, every rule gives it back, times the sum of the weights.
  for (const AverageRule rule : kRules) {
    SCOPED_TRACE(static_cast<int>(rule));
    EXPECT_THAT(Average(rule, {{2, -4, 1}, {2, -4, 1}, {2, -4, 1}, {2, -4, 1}}, {0.1, 0.2, 0.1, 0.1}),
                ElementsAre(Near(1), Near(-2), Near(0.5)));
  }
}

TEST(AverageTest, OneContributionIsItself) {
  for (const AverageRule rule : kRules) {
    SCOPED_TRACE(static_cast<int>(rule));
    EXPECT_THAT(Average(rule, {{2, -4, 0}}), ElementsAre(Near(2), Near(-4), 0));
  }
}

// A minority that sends anything at all cannot pull a robust average far from what the others say; the mean goes
// wherever it is pulled.
TEST(AverageTest, AMinorityCannotPullTheRobustOnesFar) {
  const uint64_t seed = 7;
  Random random(seed);
  std::vector<std::vector<float>> contributions;
  for (int i = 0; i < 10; ++i) {
    std::vector<float> values(50);
    for (float& value : values) value = static_cast<float>(i < 8 ? 1 + 0.1 * random.Normal() : -1e4);
    contributions.push_back(values);
  }
  for (const AverageRule rule : {AverageRule::kMedian, AverageRule::kTrimmedMean, AverageRule::kCenteredClip}) {
    for (const float value : Average(rule, contributions)) EXPECT_NEAR(value, 1, 0.5) << static_cast<int>(rule);
  }
  EXPECT_LT(Average(AverageRule::kMean, contributions)[0], -1000);
}

}  // namespace
}  // namespace wukong
