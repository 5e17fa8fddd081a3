#include "runtime/sync/node_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <utility>
#include <vector>

namespace wukong {
namespace {

using testing::Each;

constexpr int64_t kEngineValues = 64;

// A way up on which everything stays until the test answers it.
class HeldPort final : public ParentPort {
 public:
  explicit HeldPort(const std::vector<FragmentSpan>& fragments) : parameters_(fragments) {}
  const FollowedParameters& parameters() const override { return parameters_; }
  void VersionSeen() override {}
  absl::Status Send(const Manifest& manifest, const Encode& encode) override {
    const auto payload = encode(nullptr);
    if (payload.ok()) sent_[manifest.sequence] = {manifest, *payload};
    return payload.status();
  }
  const std::map<Sequence, std::pair<Manifest, std::shared_ptr<const EncodedVector>>>& sent() const { return sent_; }

 private:
  FollowedParameters parameters_;
  std::map<Sequence, std::pair<Manifest, std::shared_ptr<const EncodedVector>>> sent_;
};

// A region with one worker, whose contributions are the same number in each value.
class RegionEngineTest : public testing::TestWithParam<Verdict> {
 protected:
  RegionEngineTest() : fragments_(CutFragments(kEngineValues, 128)), port_(fragments_), theta_(kEngineValues) {
    NodeEngine::Options options;
    options.fragments = fragments_;
    options.replica.codec = options.codec_down = CODEC_KIND_FP32;
    options.node.in_flight_max = 1;
    Level& level = options.node.level;
    level.set_quorum(1);
    level.set_learning_rate(1);
    level.set_momentum(0);
    level.set_momentum_delay(1);
    level.set_weight(WEIGHT_EQUAL);
    level.set_staleness_max(8);
    level.set_staleness_decay(STALENESS_DECAY_NONE);
    level.set_mix(1);
    level.set_send_every(1);
    level.set_flush_age_ns(0);
    NodeEngine::Hooks hooks;
    hooks.on_fatal = [](const absl::Status& status) { ADD_FAILURE() << status; };
    engine_ = std::make_unique<NodeEngine>(options, std::move(hooks), absl::MakeSpan(theta_), VersionNotes(), &port_,
                                           &clock_);
    engine_->Handle(ParentNode::ChildAttached{{MemberId(1), Incarnation(1)}});
  }

  void Contribute(int64_t sequence, float value) {
    NodeEngine::Contribution contribution;
    Manifest manifest;
    manifest.sender = {MemberId(1), Incarnation(1)};
    manifest.sequence = Sequence(sequence);
    manifest.base = engine_->node().version();
    manifest.root_base = Version(1);
    manifest.steps = 1;
    manifest.tokens = 100;
    manifest.ranges = {{2 * sequence, 2 * sequence + 2, sequence}};
    ManifestToProto(manifest, &contribution.header);
    auto payload = std::make_shared<EncodedVector>();
    payload->codec = CODEC_KIND_FP32;
    for (const FragmentSpan& fragment : fragments_) {
      const std::vector<float> values(static_cast<size_t>(fragment.size()), value);
      ASSERT_TRUE(MakeCodec(payload->codec, fragment)->Encode(values, &payload->fragments.emplace_back()).ok());
    }
    contribution.payload = std::move(payload);
    contribution.answer = [](Verdict verdict, const std::string& detail) {
      EXPECT_EQ(verdict, VERDICT_ACCEPTED) << detail;
    };
    engine_->Take(std::move(contribution));
  }

  const std::vector<FragmentSpan> fragments_;
  const RealClock clock_;
  HeldPort port_;
  std::vector<float> theta_;
  std::unique_ptr<NodeEngine> engine_;
};

TEST_P(RegionEngineTest, WhatTheRootRefusesGoesAndWhatWasMergedSinceStays) {
  Contribute(1, 1.0f);
  ASSERT_EQ(port_.sent().size(), 1u);
  Contribute(2, 0.25f);
  EXPECT_THAT(theta_, Each(1.25f));
  ASSERT_EQ(port_.sent().size(), 1u) << "one at a time";
  engine_->Handle(ParentNode::Written{Sequence(1)});
  engine_->Handle(ParentNode::Answered{Sequence(1), GetParam()});
  EXPECT_THAT(theta_, Each(0.25f));
  ASSERT_EQ(port_.sent().size(), 2u);
  const auto& [manifest, payload] = port_.sent().at(Sequence(2));
  EXPECT_EQ(manifest.ranges, (std::vector<LeasedRange>{{4, 6, 2}}));
  for (size_t f = 0; f < fragments_.size(); ++f) {
    std::vector<float> values(static_cast<size_t>(fragments_[f].size()));
    ASSERT_TRUE(DecodeFragment(*payload, f, fragments_[f], absl::MakeSpan(values)).ok());
    EXPECT_THAT(values, Each(0.25f)) << "what its ranges were trained to";
  }
}

INSTANTIATE_TEST_SUITE_P(Verdicts, RegionEngineTest, testing::Values(VERDICT_STALE, VERDICT_NORM, VERDICT_NON_FINITE));

}  // namespace
}  // namespace wukong
