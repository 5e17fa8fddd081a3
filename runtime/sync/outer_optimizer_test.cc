#include "runtime/sync/outer_optimizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "runtime/codec/codec.h"
#include "runtime/sync/near.h"

namespace wukong {
namespace {

using testing::ElementsAre;

const std::vector<FragmentSpan> kFragments = {{0, 2}, {2, 3}};

std::shared_ptr<EncodedVector> Encoded(const std::vector<float>& values, CodecKind codec = CODEC_KIND_FP32) {
  auto payload = std::make_shared<EncodedVector>();
  payload->codec = codec;
  for (const FragmentSpan& span : kFragments) {
    payload->fragments.emplace_back();
    EXPECT_TRUE(MakeCodec(codec)
                    ->Encode(absl::MakeConstSpan(values).subspan(span.begin, span.size()), &payload->fragments.back())
                    .ok());
  }
  return payload;
}

Merge MakeMerge(const std::vector<double>& weights, double rate, double momentum = 0, bool step = false) {
  Merge merge;
  for (const double weight : weights) {
    merge.parts.push_back({Handle(1), weight, MemberId(static_cast<int64_t>(merge.parts.size()) + 1)});
  }
  merge.learning_rate = rate;
  merge.momentum = momentum;
  merge.momentum_step = step;
  return merge;
}

struct Outer {
  explicit Outer(bool with_momentum, Progress progress = PROGRESS_PARAMETERS)
      : optimizer(absl::MakeSpan(theta), kFragments, progress, with_momentum) {}
  void Apply(const Merge& merge, const std::vector<std::vector<float>>& contributions) {
    std::vector<std::shared_ptr<const EncodedVector>> payloads;
    for (const auto& values : contributions) payloads.push_back(Encoded(values));
    const absl::Status status = optimizer.Apply(merge, payloads);
    EXPECT_TRUE(status.ok()) << status;
  }
  std::vector<float> theta = {1, 2, 3};
  OuterOptimizer optimizer;
};

TEST(OuterOptimizerTest, SgdMovesByTheWeightedSum) {
  Outer outer(false);
  outer.Apply(MakeMerge({0.5, 0.5}, 1.0), {{1, 0, 4}, {3, 2, 0}});
  EXPECT_THAT(outer.theta, ElementsAre(3, 3, 5));
  outer.Apply(MakeMerge({0.25}, 0.5), {{8, 0, -8}});
  EXPECT_THAT(outer.theta, ElementsAre(4, 3, 4));
}

TEST(OuterOptimizerTest, AveragingWithRateOneIsTheMeanOfTheChildren) {
  Outer outer(false);  // Children at 2, 6 and 7 for the first value, all from theta = 1.
  outer.Apply(MakeMerge({1.0 / 3, 1.0 / 3, 1.0 / 3}, 1.0), {{1, 0, 0}, {5, 0, 0}, {6, 0, 0}});
  EXPECT_THAT(outer.theta, ElementsAre(Near(5), 2, 3));
}

TEST(OuterOptimizerTest, NesterovAtEveryMergeIsDiLoCosRule) {
  // m1 = 1, theta += 0.7 (1 + 0.9 * 1);  m2 = 0.9 + 2 = 2.9, theta += 0.7 (2 + 0.9 * 2.9);
  // m3 = 0.9 * 2.9 - 1 = 1.61, theta += 0.7 (-1 + 0.9 * 1.61)
  Outer outer(true);
  const double steps[] = {0.7 * 1.9, 0.7 * (2 + 2.61), 0.7 * (-1 + 1.449)};
  const float contributions[] = {1, 2, -1};
  double theta = 1;
  for (int i = 0; i < 3; ++i) {
    outer.Apply(MakeMerge({1.0}, 0.7, 0.9, true), {{contributions[i], 0, 0}});
    theta += steps[i];
    EXPECT_THAT(outer.theta, ElementsAre(Near(theta), 2, 3)) << "after merge " << i + 1;
  }
}

TEST(OuterOptimizerTest, DelayedNesterovTakesItsMomentumFromAllMergesSinceTheLastStep) {
  // Delay 2, rate 0.5, momentum 0.5, contributions 1, 2, 4, 8, 0, 0:
  //   1: += 0.5 * 1                                    2: m = 3,              += 0.5 * (2 + 1.5)
  //   3: += 0.5 * 4                                    4: m = 1.5 + 12 = 13.5, += 0.5 * (8 + 6.75)
  //   5: nothing                                       6: m = 6.75,           += 0.5 * 3.375
  Outer outer(true);
  const float contributions[] = {1, 2, 4, 8, 0, 0};
  const double expected[] = {1.5, 3.25, 5.25, 12.625, 12.625, 14.3125};
  for (int i = 0; i < 6; ++i) {
    outer.Apply(MakeMerge({1.0}, 0.5, 0.5, i % 2 == 1), {{0, 0, contributions[i]}});
    EXPECT_THAT(outer.theta, ElementsAre(1, 2, Near(expected[i] + 2))) << "after merge " << i + 1;
  }
}

TEST(OuterOptimizerTest, ASenderHasOneVoiceHoweverOftenItIsInAMerge) {
  std::vector<float> theta = {0, 0, 0};
  OuterOptimizer optimizer(absl::MakeSpan(theta), kFragments, PROGRESS_PARAMETERS, false, AverageRule::kMedian);
  Merge merge = MakeMerge({0.2, 0.2, 0.2, 0.2, 0.2}, 1.0);
  for (size_t i = 0; i < 3; ++i) merge.parts[i].sender = MemberId(1);
  ASSERT_TRUE(optimizer
                  .Apply(merge, {Encoded({1e4, 1, 5}), Encoded({1e4, 2, 5}), Encoded({1e4, 3, 5}), Encoded({1, 9, 5}),
                                 Encoded({2, -9, 5})})
                  .ok());
  EXPECT_THAT(theta, ElementsAre(Near(2), Near(2), Near(5)));
}

TEST(OuterOptimizerTest, GradientsAccumulateAndLeaveThetaAlone) {
  Outer outer(false, PROGRESS_GRADIENT);
  outer.Apply(MakeMerge({0.5, 0.25}, 1.0), {{2, 4, 0}, {4, 0, 8}});
  outer.Apply(MakeMerge({1.0}, 1.0), {{1, 1, 1}});
  EXPECT_THAT(outer.optimizer.gradient(), ElementsAre(3, 3, 3));
  EXPECT_THAT(outer.theta, ElementsAre(1, 2, 3));
}

// Two fragments that take turns: each gets DiLoCo's Nesterov at its own merges, and rests in between.
TEST(OuterOptimizerTest, AFragmentThatNobodyCarriesRests) {
  Outer outer(true);
  const auto carry = [&](int fragment, float value) {
    auto payload = std::make_shared<EncodedVector>(*Encoded({value, value, value}));
    payload->fragments[1 - fragment].clear();
    ASSERT_TRUE(outer.optimizer.Apply(MakeMerge({1.0}, 0.5, 0.5, true), {payload}).ok());
  };
  carry(0, 2);  // m = 2: += 0.5 * (2 + 1)
  EXPECT_THAT(outer.theta, ElementsAre(2.5f, 3.5f, 3));
  carry(1, 4);  // m = 4: += 0.5 * (4 + 2)
  EXPECT_THAT(outer.theta, ElementsAre(2.5f, 3.5f, 6));
  carry(0, 2);  // m = 1 + 2: += 0.5 * (2 + 1.5)
  EXPECT_THAT(outer.theta, ElementsAre(4.25f, 5.25f, 6));
}

TEST(OuterOptimizerTest, WhatWaitsForAMomentumStepIsNotForgotten) {
  Outer outer(true);
  auto first = std::make_shared<EncodedVector>(*Encoded({2, 2, 2}));
  first->fragments[1].clear();
  auto second = std::make_shared<EncodedVector>(*Encoded({2, 2, 2}));
  second->fragments[0].clear();
  ASSERT_TRUE(outer.optimizer.Apply(MakeMerge({1.0}, 1.0, 0.5, false), {first}).ok());
  EXPECT_THAT(outer.theta, ElementsAre(3, 4, 3));
  ASSERT_TRUE(outer.optimizer.Apply(MakeMerge({1.0}, 1.0, 0.5, true), {second}).ok());
  EXPECT_THAT(outer.theta, ElementsAre(4, 5, 6)) << "0.5 * 2 for the first fragment, 2 + 0.5 * 2 for the second";
}

TEST(OuterOptimizerTest, TakesTheAverageItIsTold) {
  std::vector<float> theta = {1, 2, 3};
  OuterOptimizer optimizer(absl::MakeSpan(theta), kFragments, PROGRESS_PARAMETERS, false, AverageRule::kMedian);
  ASSERT_TRUE(optimizer
                  .Apply(MakeMerge({1.0 / 3, 1.0 / 3, 1.0 / 3}, 1.0),
                         {Encoded({1, 7, 0}), Encoded({2, 900, 1}), Encoded({-1000, 5, 2})})
                  .ok());
  EXPECT_THAT(theta, ElementsAre(2, 9, 4));
}

TEST(OuterOptimizerTest, ContributionsMayComeInAnyCodec) {
  Outer outer(false);
  ASSERT_TRUE(outer.optimizer
                  .Apply(MakeMerge({1.0, 1.0}, 1.0),
                         {Encoded({1, 1, 2}, CODEC_KIND_INT8), Encoded({2, 0.5, -1}, CODEC_KIND_BF16)})
                  .ok());
  EXPECT_THAT(outer.theta, ElementsAre(4, 3.5f, 4));
}

TEST(OuterOptimizerTest, APayloadThatCannotBeDecodedIsAnError) {
  Outer outer(false);
  auto payload = Encoded({1, 1, 1});
  payload->fragments[0].pop_back();
  EXPECT_EQ(outer.optimizer.Apply(MakeMerge({1.0}, 1.0), {payload}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(outer.theta, ElementsAre(1, 2, 3));
}

TEST(CheckContributionTest, GivesTheNormOverAllFragments) {
  EXPECT_DOUBLE_EQ(CheckContribution(*Encoded({2, 3, 6}), kFragments).value(), 7);
  EXPECT_EQ(CheckContribution(*Encoded({0, 0, 0}, CODEC_KIND_INT8), kFragments).value(), 0);
}

TEST(CheckContributionTest, RefusesWrongShapesAndValuesThatAreNotFinite) {
  const auto code = [](const EncodedVector& payload) { return CheckContribution(payload, kFragments).status().code(); };
  for (const CodecKind codec : {CODEC_KIND_FP32, CODEC_KIND_BF16, CODEC_KIND_INT8}) {
    SCOPED_TRACE(CodecKind_Name(codec));
    auto cut = Encoded({1, 2, 3}, codec);
    cut->fragments[1].pop_back();
    EXPECT_EQ(code(*cut), absl::StatusCode::kInvalidArgument);
    auto longer = Encoded({1, 2, 3}, codec);
    longer->fragments[0].push_back('\0');
    EXPECT_EQ(code(*longer), absl::StatusCode::kInvalidArgument);
    auto fewer = Encoded({1, 2, 3}, codec);
    fewer->fragments.pop_back();
    EXPECT_EQ(code(*fewer), absl::StatusCode::kInvalidArgument);
    auto more = Encoded({1, 2, 3}, codec);
    more->fragments.emplace_back();
    EXPECT_EQ(code(*more), absl::StatusCode::kInvalidArgument);
    auto nan = Encoded({1, 2, 3}, codec);
    std::memset(nan->fragments[1].data(), 0xff, 4 <= nan->fragments[1].size() ? 4 : 2);
    const auto status = CheckContribution(*nan, kFragments).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("fragment 1"));
  }
}

TEST(CheckContributionTest, HugeButFiniteValuesHaveANorm) {
  const float huge = std::numeric_limits<float>::max();
  EXPECT_GT(CheckContribution(*Encoded({huge, huge, huge}), kFragments).value(), huge);
}

}  // namespace
}  // namespace wukong
