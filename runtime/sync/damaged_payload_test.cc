#include "runtime/sync/damaged_payload.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace wukong {
namespace {

using testing::Each;

constexpr int64_t kDamagedValues = 300;

class DamagedPayloadTest : public testing::TestWithParam<CodecKind> {
 protected:
  DamagedPayloadTest() : fragments_(CutFragments(kDamagedValues, 512)) {
    payload_.codec = GetParam();
    for (const FragmentSpan& fragment : fragments_) {
      const std::vector<float> values(static_cast<size_t>(fragment.size()), 100.0f);
      EXPECT_TRUE(MakeCodec(payload_.codec, fragment)->Encode(values, &payload_.fragments.emplace_back()).ok());
    }
  }
  std::vector<float> Decoded(const EncodedVector& payload) const {
    std::vector<float> all;
    for (size_t f = 0; f < fragments_.size(); ++f) {
      std::vector<float> values(static_cast<size_t>(fragments_[f].size()));
      EXPECT_TRUE(DecodeFragment(payload, f, fragments_[f], absl::MakeSpan(values)).ok());
      all.insert(all.end(), values.begin(), values.end());
    }
    return all;
  }

  const std::vector<FragmentSpan> fragments_;
  EncodedVector payload_;
};

TEST_P(DamagedPayloadTest, IsScaledAsFarAsNumbersGo) {
  const std::vector<float> before = Decoded(payload_);
  const std::vector<float> flipped = Decoded(*Scaled(payload_, fragments_, -1));
  for (size_t i = 0; i < before.size(); ++i) EXPECT_NEAR(flipped[i], -before[i], 2) << i;
  for (const double factor : {1e38, 1e300, -std::numeric_limits<double>::infinity()}) {
    for (const float value : Decoded(*Scaled(payload_, fragments_, factor))) {
      ASSERT_TRUE(std::isfinite(value)) << factor;
    }
  }
}

TEST_P(DamagedPayloadTest, WithNanNoCodecTakesIt) {
  const auto damaged = WithNan(payload_);
  for (size_t f = 0; f < fragments_.size(); ++f) {
    std::vector<float> values(static_cast<size_t>(fragments_[f].size()));
    EXPECT_FALSE(DecodeFragment(*damaged, f, fragments_[f], absl::MakeSpan(values)).ok());
  }
}

INSTANTIATE_TEST_SUITE_P(Codecs, DamagedPayloadTest,
                         testing::Values(CODEC_KIND_FP32, CODEC_KIND_BF16, CODEC_KIND_INT8, CODEC_KIND_INT4,
                                         CODEC_KIND_INT2, CODEC_KIND_TOPK, CODEC_KIND_MIXED));

}  // namespace
}  // namespace wukong
