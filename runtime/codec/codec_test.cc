#include "runtime/codec/codec.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/base/digest.h"
#include "runtime/base/random.h"

namespace wukong {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kCodecSeed = 20240607;
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

double Magnitude(absl::Span<const float> values) {
  double magnitude = 0;
  for (const float value : values) magnitude = std::max(magnitude, std::fabs(static_cast<double>(value)));
  return magnitude;
}

// Every way a vector of `count` values may look.
std::vector<std::pair<std::string, std::vector<float>>> Shapes(size_t count) {
  Random random(DeriveSeed(kCodecSeed, "shapes", count));
  std::vector<float> normal(count), mixed(count), alternating(count), denormal(count), huge(count), sparse(count);
  for (size_t i = 0; i < count; ++i) {
    const float sign = i % 2 == 0 ? 1.0f : -1.0f;
    normal[i] = static_cast<float>(random.Normal());
    mixed[i] = static_cast<float>(random.Normal() * std::pow(10.0, random.Uniform() * 60 - 30));
    alternating[i] = sign * 0.3f;
    denormal[i] = sign * static_cast<float>(random.Below(200)) * std::numeric_limits<float>::denorm_min();
    huge[i] = sign * (random.Below(2) == 0 ? 1e38f : 3.3e38f);
    sparse[i] = i % 97 == 5 ? 1e-20f : 0.0f;
  }
  return {{"normal", normal},
          {"mixed", mixed},
          {"alternating", alternating},
          {"denormal", denormal},
          {"huge", huge},
          {"sparse", sparse},
          {"constant", std::vector<float>(count, -1.7e-3f)},
          {"tiny constant", std::vector<float>(count, 1e-37f)},
          {"zero", std::vector<float>(count, 0.0f)},
          {"minus zero", std::vector<float>(count, -0.0f)}};
}

class CodecTest : public ::testing::TestWithParam<CodecKind> {
 protected:
  CodecTest() : codec_(MakeCodec(GetParam())) {}
  std::unique_ptr<Codec> codec_;
};

TEST_P(CodecTest, KnowsItsKind) { EXPECT_EQ(codec_->kind(), GetParam()); }

TEST_P(CodecTest, RoundTripStaysWithinTheErrorBound) {
  for (size_t count = 0; count <= 600; ++count) {
    for (const auto& [name, values] : Shapes(count)) {
      SCOPED_TRACE(name + " of " + std::to_string(count));
      std::string payload = "what was here before";
      ASSERT_TRUE(codec_->Encode(values, &payload).ok());
      ASSERT_EQ(payload.size(), codec_->EncodedBytes(count));
      std::vector<float> decoded(count, kNaN);
      ASSERT_TRUE(codec_->Decode(payload, absl::MakeSpan(decoded)).ok());
      const double bound = codec_->ErrorBound(Magnitude(values));
      for (size_t i = 0; i < count; ++i) {
        ASSERT_LE(std::fabs(static_cast<double>(decoded[i]) - values[i]), bound) << i << ": " << values[i];
      }
    }
  }
}

TEST_P(CodecTest, ZerosComeBackAsZeros) {
  const std::vector<float> values(300, 0.0f);
  std::string payload;
  ASSERT_TRUE(codec_->Encode(values, &payload).ok());
  std::vector<float> decoded(values.size(), 1.0f);
  ASSERT_TRUE(codec_->Decode(payload, absl::MakeSpan(decoded)).ok());
  EXPECT_EQ(decoded, values);
}

TEST_P(CodecTest, EncodingDecodedValuesChangesNothingMore) {
  for (const auto& [name, values] : Shapes(513)) {
    SCOPED_TRACE(name);
    std::string first, second;
    ASSERT_TRUE(codec_->Encode(values, &first).ok());
    std::vector<float> once(values.size()), twice(values.size());
    ASSERT_TRUE(codec_->Decode(first, absl::MakeSpan(once)).ok());
    ASSERT_TRUE(codec_->Encode(once, &second).ok());
    ASSERT_TRUE(codec_->Decode(second, absl::MakeSpan(twice)).ok());
    EXPECT_EQ(once, twice);
  }
}

TEST_P(CodecTest, EncodesTheSameBytesFromAnyAlignmentAndForOtherObjects) {
  const std::vector<float> values = Shapes(600)[0].second;
  std::string expected, payload;
  ASSERT_TRUE(codec_->Encode(values, &expected).ok());
  for (size_t shift = 1; shift < 8; ++shift) {
    std::vector<float> shifted(values.size() + shift);
    std::memcpy(shifted.data() + shift, values.data(), values.size() * sizeof(float));
    ASSERT_TRUE(MakeCodec(GetParam())->Encode(absl::MakeConstSpan(shifted).subspan(shift), &payload).ok());
    EXPECT_EQ(payload, expected);
    // A payload is a slice of a message: it may start at any byte.
    const std::string framed = std::string(shift, 'x') + expected;
    std::vector<float> decoded(values.size()), reference(values.size());
    ASSERT_TRUE(codec_->Decode(absl::string_view(framed).substr(shift), absl::MakeSpan(decoded)).ok());
    ASSERT_TRUE(codec_->Decode(expected, absl::MakeSpan(reference)).ok());
    EXPECT_EQ(decoded, reference);
  }
}

// The digests pin the layout and the rounding: a machine or compiler that makes other bytes breaks replays.
TEST_P(CodecTest, EncodesThePinnedBytes) {
  Random random(kCodecSeed);
  std::vector<float> values(100000);
  for (float& value : values) {  // Sums and products only: the library's log and cos differ between machines.
    value = static_cast<float>((random.Uniform() - 0.5) * (random.Below(1000) == 0 ? 64.0 : 0.125));
  }
  std::string payload;
  ASSERT_TRUE(codec_->Encode(values, &payload).ok());
  std::vector<float> decoded(values.size());
  ASSERT_TRUE(codec_->Decode(payload, absl::MakeSpan(decoded)).ok());
  const std::string digests = Sha256Hex(payload).substr(0, 16) + " " + Sha256Hex(decoded).substr(0, 16);
  switch (GetParam()) {
    case CODEC_KIND_FP32:
      EXPECT_EQ(digests, "22fdfeb19c1376ff 22fdfeb19c1376ff");
      break;
    case CODEC_KIND_BF16:
      EXPECT_EQ(digests, "1a3688f0d26412f5 e647d78da16c40bc");
      break;
    case CODEC_KIND_INT8:
      EXPECT_EQ(digests, "b12e4b2d1c6c4b4d 7f124d0ff822f670");
      break;
    case CODEC_KIND_INT4:
      EXPECT_EQ(digests, "e7147696d2db1868 fef3af799da2d31f");
      break;
    case CODEC_KIND_INT3:
      EXPECT_EQ(digests, "1b21508aa1ba2c75 3e0dcc7f6766d5b4");
      break;
    case CODEC_KIND_INT2:
      EXPECT_EQ(digests, "d40b02adfaaf1103 daaa96592205fbc8");
      break;
    case CODEC_KIND_TOPK:
      EXPECT_EQ(digests, "c297ba29f1c59654 669d31c83e8171e0");
      break;
    default:
      FAIL() << "pin the bytes of the new codec: " << digests;
  }
}

TEST_P(CodecTest, RefusesNaNAndInfinityByIndex) {
  for (const float bad : {kNaN, -kNaN, kInfinity, -kInfinity}) {
    for (const size_t index : {size_t{0}, size_t{3}, size_t{255}, size_t{256}, size_t{599}}) {
      std::vector<float> values(600, 0.25f);
      values[index] = bad;
      std::string payload = "left over";
      const absl::Status status = codec_->Encode(values, &payload);
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(status.message()), HasSubstr("value " + std::to_string(index) + " of 600"));
      EXPECT_TRUE(payload.empty());
    }
  }
}

TEST_P(CodecTest, RefusesPayloadsOfAnotherSize) {
  for (const size_t count : {size_t{0}, size_t{1}, size_t{256}, size_t{257}}) {
    const std::vector<float> values(count, 0.5f);
    std::string payload;
    ASSERT_TRUE(codec_->Encode(values, &payload).ok());
    std::vector<float> decoded(count);
    const absl::Status longer = codec_->Decode(payload + "x", absl::MakeSpan(decoded));
    EXPECT_EQ(longer.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(longer.message()), HasSubstr("expected " + std::to_string(payload.size())));
    if (payload.empty()) continue;
    payload.pop_back();
    EXPECT_EQ(codec_->Decode(payload, absl::MakeSpan(decoded)).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(codec_->Decode("", absl::MakeSpan(decoded)).code(), absl::StatusCode::kInvalidArgument);
  }
}

// Whatever the bytes are, the outcome is finite numbers or an error.
TEST_P(CodecTest, DecodesAnyBytesToFiniteNumbersOrRefusesThem) {
  Random random(kCodecSeed + 1);
  int refused = 0, accepted = 0;
  for (int trial = 0; trial < 2000; ++trial) {
    const size_t count = random.Below(300);
    std::vector<float> values(count, 1.0f);
    std::string payload;
    ASSERT_TRUE(codec_->Encode(values, &payload).ok());
    for (uint64_t flips = random.Below(4) * (payload.empty() ? 0 : 1); flips > 0; --flips) {
      payload[random.Below(payload.size())] = static_cast<char>(random.Below(256));
    }
    const bool ok = codec_->Decode(payload, absl::MakeSpan(values)).ok();
    ++(ok ? accepted : refused);
    for (size_t i = 0; ok && i < count; ++i) ASSERT_TRUE(std::isfinite(values[i])) << "trial " << trial;
  }
  EXPECT_GT(accepted, 0);
  EXPECT_GT(refused, 0);
}

TEST_P(CodecTest, RefusesPayloadsThatHoldNaN) {
  // The first four bytes are a value of fp32, two of bf16, or the first scale of int8: all ones is a NaN in each.
  const std::vector<float> values(5, 0.5f);
  std::string payload;
  ASSERT_TRUE(codec_->Encode(values, &payload).ok());
  std::memset(payload.data(), 0xff, 4);
  std::vector<float> decoded(values.size());
  EXPECT_EQ(codec_->Decode(payload, absl::MakeSpan(decoded)).code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(CodecTest, ErrorFeedbackConservesTheSum) {
  constexpr size_t kCount = 700;
  ErrorFeedback feedback(kCount);
  Random random(kCodecSeed + 2);
  std::vector<double> sent(kCount), received(kCount);
  double magnitude = 0;
  for (int step = 0; step < 50; ++step) {
    // Any slicing: the two parts move with the step, and need not fall on blocks.
    const size_t cut = random.Below(kCount + 1);
    for (const auto& [offset, count] : {std::pair<size_t, size_t>{0, cut}, {cut, kCount - cut}}) {
      std::vector<float> values(count), decoded(count);
      for (float& value : values) value = static_cast<float>(random.Normal() * 1e-3);
      magnitude = std::max(magnitude, Magnitude(values));
      std::string payload;
      ASSERT_TRUE(feedback.Encode(*codec_, offset, values, &payload).ok());
      ASSERT_TRUE(codec_->Decode(payload, absl::MakeSpan(decoded)).ok());
      for (size_t i = 0; i < count; ++i) {
        sent[offset + i] += values[i];
        received[offset + i] += decoded[i];
      }
    }
  }
  for (size_t i = 0; i < kCount; ++i) {
    EXPECT_NEAR(received[i] + feedback.residual()[i], sent[i], 50 * magnitude * 0x1p-23) << i;
  }
  // The residual does not pile up over steps: with r = ErrorBound(1) it is at most r (magnitude + residual). A value
  // that topk does not keep waits until it is among the largest.
  const double ratio = codec_->ErrorBound(1);
  EXPECT_LE(Magnitude(feedback.residual()), ratio < 1 ? 1.1 * ratio / (1 - ratio) * magnitude : 50 * magnitude);
  feedback.Clear();
  EXPECT_EQ(Magnitude(feedback.residual()), 0);
}

TEST_P(CodecTest, ErrorFeedbackKeepsItsResidualOnAnError) {
  ErrorFeedback feedback(300);
  std::vector<float> values(300);
  for (size_t i = 0; i < values.size(); ++i) values[i] = 0.001f * static_cast<float>(i);
  std::string payload;
  ASSERT_TRUE(feedback.Encode(*codec_, 0, values, &payload).ok());
  const std::vector<float> before(feedback.residual().begin(), feedback.residual().end());
  values[299] = kNaN;
  EXPECT_EQ(feedback.Encode(*codec_, 0, values, &payload).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(payload.empty());
  EXPECT_EQ(before, std::vector<float>(feedback.residual().begin(), feedback.residual().end()));
}

// What is left out is never longer than what was to be sent, so that error feedback converges.
TEST_P(CodecTest, WhatIsLeftOutIsNotLongerThanTheVector) {
  for (const size_t count : {size_t{1}, size_t{128}, size_t{513}, size_t{5000}}) {
    for (const auto& [name, values] : Shapes(count)) {
      SCOPED_TRACE(name + " of " + std::to_string(count));
      std::string payload;
      ASSERT_TRUE(codec_->Encode(values, &payload).ok());
      std::vector<float> decoded(count);
      ASSERT_TRUE(codec_->Decode(payload, absl::MakeSpan(decoded)).ok());
      double left_out = 0, all = 0;
      for (size_t i = 0; i < count; ++i) {
        left_out += std::pow(static_cast<double>(values[i]) - decoded[i], 2);
        all += std::pow(static_cast<double>(values[i]), 2);
      }
      EXPECT_LE(left_out, all * (1 + 1e-6));
    }
  }
}

TEST_P(CodecTest, ErrorFeedbackDeliversEverythingInTheEnd) {
  constexpr size_t kCount = 5000;
  ErrorFeedback feedback(kCount);
  Random random(kCodecSeed + 3);
  std::vector<float> values(kCount), decoded(kCount);
  for (float& value : values) value = static_cast<float>(random.Normal());
  std::vector<double> received(kCount);
  const std::vector<float> nothing(kCount, 0.0f);
  std::string payload;
  for (int send = 0; send < 300; ++send) {
    ASSERT_TRUE(feedback.Encode(*codec_, 0, send == 0 ? values : nothing, &payload).ok());
    ASSERT_TRUE(codec_->Decode(payload, absl::MakeSpan(decoded)).ok());
    for (size_t i = 0; i < kCount; ++i) received[i] += decoded[i];
  }
  for (size_t i = 0; i < kCount; ++i) ASSERT_NEAR(received[i], values[i], 0.01) << i;
}

INSTANTIATE_TEST_SUITE_P(All, CodecTest,
                         ::testing::Values(CODEC_KIND_FP32, CODEC_KIND_BF16, CODEC_KIND_INT8, CODEC_KIND_INT4,
                                           CODEC_KIND_INT3, CODEC_KIND_INT2, CODEC_KIND_TOPK),
                         [](const auto& kind) { return CodecKind_Name(kind.param); });

TEST(Bf16CodecTest, RoundsToNearestEvenAndRefusesWhatRoundsToInfinity) {
  const std::unique_ptr<Codec> codec = MakeCodec(CODEC_KIND_BF16);
  const auto through = [&](float value) {
    std::string payload;
    EXPECT_TRUE(codec->Encode({value}, &payload).ok());
    float out = kNaN;
    EXPECT_TRUE(codec->Decode(payload, absl::MakeSpan(&out, 1)).ok());
    return out;
  };
  EXPECT_EQ(through(1.0f + 0x1p-8f), 1.0f);                // A tie, down to even.
  EXPECT_EQ(through(1.0f + 3 * 0x1p-8f), 1.0f + 0x1p-6f);  // A tie, up to even.
  EXPECT_EQ(through(1.0f + 0x1p-8f + 0x1p-20f), 1.0f + 0x1p-7f);
  EXPECT_EQ(through(-1.0f - 3 * 0x1p-8f), -1.0f - 0x1p-6f);
  std::string payload;
  EXPECT_FALSE(codec->Encode({0.0f, std::numeric_limits<float>::max()}, &payload).ok());
  EXPECT_EQ(through(3.3895e38f), 0x1.fep127f);
}

class BlockCodecTest : public ::testing::TestWithParam<CodecKind> {
 protected:
  std::vector<float> Through(const std::vector<float>& values) {
    std::string payload;
    EXPECT_TRUE(codec_->Encode(values, &payload).ok());
    std::vector<float> decoded(values.size(), kNaN);
    EXPECT_TRUE(codec_->Decode(payload, absl::MakeSpan(decoded)).ok());
    return decoded;
  }
  const std::unique_ptr<Codec> codec_ = MakeCodec(GetParam());
};

TEST_P(BlockCodecTest, TheLargestValueOfABlockComesBackExactly) {
  for (const float largest :
       {std::numeric_limits<float>::max(), 1.0f, 0.1f, 1e-38f, std::numeric_limits<float>::denorm_min()}) {
    std::vector<float> values(256);
    values[17] = -largest;
    values[18] = largest / 3;
    const std::vector<float> decoded = Through(values);
    EXPECT_EQ(decoded[17], -largest);
    EXPECT_NEAR(decoded[18], values[18], codec_->ErrorBound(largest));
  }
}

TEST_P(BlockCodecTest, OneLargeValueSpoilsOnlyItsOwnBlock) {
  std::vector<float> values(512, 1e-3f);
  values[0] = 1e6f;
  const std::vector<float> decoded = Through(values);
  EXPECT_EQ(decoded[1], 0.0f);
  EXPECT_EQ(decoded[256], 1e-3f);
}

TEST_P(BlockCodecTest, RefusesScalesThatNoEncoderWrites) {
  const std::vector<float> values(300, 0.5f);
  std::string payload;
  ASSERT_TRUE(codec_->Encode(values, &payload).ok());
  std::vector<float> scales = {kNaN, -kNaN, kInfinity, -kInfinity, -0.0f};
  if (GetParam() != CODEC_KIND_INT2) scales.push_back(-0.5f);  // There the sign is that of the largest value.
  for (const float scale : scales) {
    std::string damaged = payload;
    std::memcpy(damaged.data() + sizeof(scale), &scale, sizeof(scale));
    std::vector<float> decoded(values.size());
    const absl::Status status = codec_->Decode(damaged, absl::MakeSpan(decoded));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << scale;
    EXPECT_THAT(std::string(status.message()), HasSubstr("the scale of block 1"));
  }
}

TEST_P(BlockCodecTest, RefusesBitsThatBelongToNoValue) {
  if (GetParam() == CODEC_KIND_INT8) return;  // It has none.
  for (const size_t count : {size_t{1}, size_t{129}, size_t{131}, size_t{255}}) {
    const std::vector<float> values(count, 0.0f);
    std::string payload;
    ASSERT_TRUE(codec_->Encode(values, &payload).ok());
    payload.back() = static_cast<char>(payload.back() | 0x80);  // The last byte has a free place for counts like these.
    std::vector<float> decoded(count);
    const absl::Status status = codec_->Decode(payload, absl::MakeSpan(decoded));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << count;
    EXPECT_THAT(std::string(status.message()), HasSubstr("block " + std::to_string((count - 1) / 128)));
  }
}

INSTANTIATE_TEST_SUITE_P(All, BlockCodecTest,
                         ::testing::Values(CODEC_KIND_INT8, CODEC_KIND_INT4, CODEC_KIND_INT3, CODEC_KIND_INT2),
                         [](const auto& kind) { return CodecKind_Name(kind.param); });

TEST(BlockCodecLayoutTest, BytesPerValue) {
  const auto bytes = [](CodecKind kind, size_t count) { return MakeCodec(kind)->EncodedBytes(count); };
  EXPECT_EQ(bytes(CODEC_KIND_INT8, 1024), 1024u + 16);
  EXPECT_EQ(bytes(CODEC_KIND_INT4, 1024), 512u + 32);
  EXPECT_EQ(bytes(CODEC_KIND_INT3, 1024), 384u + 32);
  EXPECT_EQ(bytes(CODEC_KIND_INT2, 1024), 256u + 32);
  EXPECT_EQ(bytes(CODEC_KIND_INT4, 129), 64u + 1 + 8);
  EXPECT_EQ(bytes(CODEC_KIND_INT3, 129), 48u + 2 + 8);
  EXPECT_EQ(bytes(CODEC_KIND_INT2, 133), 32u + 2 + 8);
  EXPECT_EQ(bytes(CODEC_KIND_TOPK, 4096), 4u + 96 + 16);
  EXPECT_EQ(bytes(CODEC_KIND_TOPK, 4097), 116u + 4 + 2 + 1);
  EXPECT_EQ(bytes(CODEC_KIND_TOPK, 192), 4u + 5 + 1);
}

TEST(BlockCodecLayoutTest, CodesStandAtAStride) {
  std::vector<float> values = {7, -7, 1, 2, 3};  // q of int4; the stride of 5 is 3.
  std::string payload;
  ASSERT_TRUE(MakeCodec(CODEC_KIND_INT4)->Encode(values, &payload).ok());
  EXPECT_EQ(payload.substr(4), std::string("\x27\x39\x01", 3));
  values = {3, -3, 1, 2, -1};  // q of int3: 011 101 001 010 111; the strides are 2 and 1.
  ASSERT_TRUE(MakeCodec(CODEC_KIND_INT3)->Encode(values, &payload).ok());
  EXPECT_EQ(payload.substr(4), std::string("\x37\x09\x12", 3));
  values = {4, -4, 2, 0, -2};  // q of int2: -2 1 -1 0 1, i.e. 10 01 11 00 01; the stride is 2.
  ASSERT_TRUE(MakeCodec(CODEC_KIND_INT2)->Encode(values, &payload).ok());
  EXPECT_EQ(payload.substr(4), std::string("\x1e\x01", 2));
}

TEST(MixedCodecTest, FeedForwardMatricesHaveThreeBitsAndTheRestFour) {
  const FragmentSpan feed_forward{0, 256, ParameterRole::kFeedForward};
  const FragmentSpan other{256, 512};
  EXPECT_EQ(MakeCodec(CODEC_KIND_MIXED, feed_forward)->kind(), CODEC_KIND_INT3);
  EXPECT_EQ(MakeCodec(CODEC_KIND_MIXED, other)->kind(), CODEC_KIND_INT4);
  EXPECT_EQ(MakeCodec(CODEC_KIND_INT8, feed_forward)->kind(), CODEC_KIND_INT8);
  EXPECT_EQ(EncodedBytes(CODEC_KIND_MIXED, {feed_forward, other}), 96u + 8 + 128 + 8);
}

TEST(Int2CodecTest, TheLevelsFollowTheSignOfTheLargestValue) {
  const std::unique_ptr<Codec> codec = MakeCodec(CODEC_KIND_INT2);
  for (const float sign : {1.0f, -1.0f}) {
    std::vector<float> values = {4, 3.1f, 2, 1.1f, 0.9f, 0, -0.9f, -1.1f, -2, -3.1f, -3.9f};
    std::vector<float> expected = {4, 4, 2, 2, 0, 0, 0, -2, -2, -2, -2};
    for (float& value : values) value *= sign;
    for (float& value : expected) value *= sign;
    std::string payload;
    ASSERT_TRUE(codec->Encode(values, &payload).ok());
    std::vector<float> decoded(values.size());
    ASSERT_TRUE(codec->Decode(payload, absl::MakeSpan(decoded)).ok());
    EXPECT_EQ(decoded, expected);
  }
}

class TopKCodecTest : public ::testing::Test {
 protected:
  std::vector<float> Through(const std::vector<float>& values) {
    EXPECT_TRUE(codec_->Encode(values, &payload_).ok());
    std::vector<float> decoded(values.size(), kNaN);
    EXPECT_TRUE(codec_->Decode(payload_, absl::MakeSpan(decoded)).ok());
    return decoded;
  }
  const std::unique_ptr<Codec> codec_ = MakeCodec(CODEC_KIND_TOPK);
  std::string payload_;
};

TEST_F(TopKCodecTest, KeepsOneOf64ByMagnitude) {
  std::vector<float> values(4096 + 65), expected(values.size());
  for (size_t i = 0; i < values.size(); ++i) values[i] = i % 2 == 0 ? 0.5f : -0.5f;
  for (size_t i = 0; i < 64; ++i) {
    values[63 * i + 7] = i % 3 == 0 ? -2.0f : 2.0f;
    expected[63 * i + 7] = values[63 * i + 7];
  }
  values[4096] = 8.0f;  // The short chunk keeps two.
  values[4160] = -8.0f;
  expected[4096] = 8.0f;
  expected[4160] = -8.0f;
  EXPECT_EQ(Through(values), expected);
}

TEST_F(TopKCodecTest, OfEqualMagnitudesTheLowerPositionIsKept) {
  std::vector<float> values(4096, -1.0f), expected(4096);
  values[4000] = 1.0f;
  for (size_t i = 0; i < 64; ++i) expected[i] = -1.0f;
  EXPECT_EQ(Through(values), expected);
  values[4095] = 2.0f;  // It is larger, so the last of the equal ones goes.
  const std::vector<float> decoded = Through(values);
  EXPECT_GT(decoded[4095], 0.0f);
  EXPECT_LT(decoded[62], 0.0f);
  EXPECT_EQ(decoded[63], 0.0f);
}

TEST_F(TopKCodecTest, AFewLargeValuesAreNotDrownedByTheOthersThatAreKept) {
  std::vector<float> values(4096, 1e-6f), expected(4096);
  values[10] = 3.0f;
  values[3000] = -3.0f;
  expected[10] = 3.0f;
  expected[3000] = -3.0f;
  EXPECT_EQ(Through(values), expected);
}

TEST_F(TopKCodecTest, TheScaleLeavesTheSmallestSquaredError) {
  std::vector<float> values(4096);
  values[1] = 4;
  values[2] = -3;
  values[3] = 1;  // 4^2 = 16, 7^2 / 2 = 24.5, 8^2 / 3 = 21.3: two values of 3.5.
  const std::vector<float> decoded = Through(values);
  EXPECT_EQ(decoded[1], 3.5f);
  EXPECT_EQ(decoded[2], -3.5f);
  EXPECT_EQ(decoded[3], 0.0f);
}

TEST_F(TopKCodecTest, RefusesDamagedChunks) {
  std::vector<float> values(192 + 4096);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  std::vector<float> decoded(values.size());
  ASSERT_TRUE(codec_->Encode(values, &payload_).ok());
  const size_t last = payload_.size() - 10;  // Of 192 values: a scale, three positions in 5 bytes, a byte of codes.
  struct Case {
    const char* what;
    size_t at;
    int value;
  };
  for (const Case& c : std::vector<Case>{{"positions do not rise", 4, 0xff},  // The first of the first chunk.
                                         {"behind the last value", last + 4 + 3, 0xff},  // The third one.
                                         {"unused bits behind the positions", last + 4 + 4, 0x10},
                                         {"unused bits behind the codes", last + 9, 0x55},
                                         {"no encoder writes", last + 9, 0x02},
                                         {"the scale", last + 3, 0xbf}}) {
    SCOPED_TRACE(c.what);
    std::string damaged = payload_;
    damaged[c.at] = static_cast<char>(c.value);
    const absl::Status status = codec_->Decode(damaged, absl::MakeSpan(decoded));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.what));
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.at < last ? "chunk 0" : "chunk 1"));
  }
}

}  // namespace
}  // namespace wukong
