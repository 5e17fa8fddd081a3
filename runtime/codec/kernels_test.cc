// Every instruction set gives the bits of the reference.
#include "runtime/codec/kernels.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hwy/targets.h"
#include "runtime/base/random.h"
#include "runtime/codec/reference_kernels.h"

namespace wukong {
namespace {

constexpr uint64_t kKernelSeed = 20250301;

std::vector<int64_t> SupportedTargets() {
  std::vector<int64_t> targets;
  for (int64_t left = hwy::SupportedTargets() & HWY_TARGETS; left != 0; left &= left - 1)
    targets.push_back(left & -left);
  return targets;
}

// Runs the kernels of one instruction set while it lives.
class OnTarget {
 public:
  explicit OnTarget(int64_t target) { hwy::SetSupportedTargetsForTest(target); }
  ~OnTarget() { hwy::SetSupportedTargetsForTest(0); }
};

std::vector<size_t> Counts() {
  std::vector<size_t> counts;
  for (size_t count = 0; count <= 300; ++count) counts.push_back(count);
  for (const size_t count : {511, 512, 513, 1000, 4095, 4096, 4097, 12289}) counts.push_back(count);
  return counts;
}

// Random bits are NaN and infinite now and then; the others are finite.
std::vector<std::pair<std::string, std::vector<float>>> Inputs(size_t count) {
  Random random(DeriveSeed(kKernelSeed, "inputs", count));
  std::vector<float> normal(count), bits(count), denormal(count), huge(count), tied(count), spread(count),
      sparse(count);
  for (size_t i = 0; i < count; ++i) {
    normal[i] = static_cast<float>(random.Normal());
    const auto word = static_cast<uint32_t>(random.Below(uint64_t{1} << 32));
    std::memcpy(&bits[i], &word, sizeof(word));
    const float sign = random.Below(2) == 0 ? 1.0f : -1.0f;
    denormal[i] = sign * static_cast<float>(random.Below(300)) * std::numeric_limits<float>::denorm_min();
    huge[i] = sign * std::numeric_limits<float>::max() * static_cast<float>(random.Uniform());
    tied[i] = sign * 0.125f * static_cast<float>(random.Below(9));  // Hits the ties of every rounding.
    spread[i] = static_cast<float>(random.Normal() * std::pow(10.0, random.Uniform() * 70 - 35));
    sparse[i] = random.Below(200) == 0 ? -3e-4f : 0.0f;
  }
  if (count > 0) tied[count / 2] = 1.0f;
  std::vector<std::pair<std::string, std::vector<float>>> inputs = {
      {"normal", normal},
      {"random bits", bits},
      {"denormal", denormal},
      {"huge", huge},
      {"tied", tied},
      {"spread", spread},
      {"sparse", sparse},
      {"zero", std::vector<float>(count, 0.0f)},
      {"minus zero", std::vector<float>(count, -0.0f)},
      {"constant", std::vector<float>(count, -1.7e-3f)},
      {"largest", std::vector<float>(count, std::numeric_limits<float>::max())},
      {"smallest", std::vector<float>(count, -std::numeric_limits<float>::denorm_min())}};
  std::vector<float> rising(count);
  for (size_t i = 0; i < count; ++i) rising[i] = static_cast<float>(i);
  inputs.emplace_back("rising", std::move(rising));
  return inputs;
}

// Equal as bits: NaN equals itself, and -0 is not 0.
bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

template <typename Body>
void ForEveryTargetAndInput(Body body) {
  const std::vector<int64_t> targets = SupportedTargets();
  ASSERT_FALSE(targets.empty());
  for (const int64_t target : targets) {
    const OnTarget on_target(target);
    for (const size_t count : Counts()) {
      for (const auto& [name, values] : Inputs(count)) {
        SCOPED_TRACE(std::string(hwy::TargetName(target)) + ", " + name + " of " + std::to_string(count));
        body(values);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

TEST(KernelsTest, LargestMagnitudeIsTheReferences) {
  ForEveryTargetAndInput([](const std::vector<float>& values) {
    ASSERT_EQ(kernels::LargestMagnitude(values.data(), values.size()),
              reference::LargestMagnitude(values.data(), values.size()));
  });
}

TEST(KernelsTest, Bf16IsTheReferences) {
  ForEveryTargetAndInput([](const std::vector<float>& values) {
    std::string expected(2 * values.size(), 'x'), payload(2 * values.size(), 'y');
    reference::EncodeBf16(values.data(), values.size(), expected.data());
    kernels::EncodeBf16(values.data(), values.size(), payload.data());
    ASSERT_EQ(payload, expected);
    std::vector<float> wanted(values.size()), decoded(values.size());
    const uint32_t largest = reference::DecodeBf16(expected.data(), values.size(), wanted.data());
    ASSERT_EQ(kernels::DecodeBf16(payload.data(), values.size(), decoded.data()), largest);
    ASSERT_TRUE(SameBits(decoded, wanted));
  });
}

TEST(KernelsTest, TheLargestAreTheReferences) {
  ForEveryTargetAndInput([](const std::vector<float>& values) {
    if (values.empty() || values.size() > kSelectMax) return;
    for (const size_t keep : {size_t{1}, (values.size() + 63) / 64, values.size()}) {
      std::vector<uint16_t> expected(keep), positions(keep);
      const uint32_t largest = reference::SelectLargest(values.data(), values.size(), keep, expected.data());
      ASSERT_EQ(kernels::SelectLargest(values.data(), values.size(), keep, positions.data()), largest);
      if (largest >= kInfinityBits) continue;
      ASSERT_EQ(positions, expected) << "keep " << keep;
    }
  });
}

template <typename Bits>
class BlockKernelsTest : public ::testing::Test {};

template <int kBits>
using Width = std::integral_constant<int, kBits>;
using Widths = ::testing::Types<Width<8>, Width<4>, Width<3>, Width<2>>;
TYPED_TEST_SUITE(BlockKernelsTest, Widths);

TYPED_TEST(BlockKernelsTest, PayloadsAndValuesAreTheReferences) {
  constexpr int kBits = TypeParam::value;
  using Format = BlockFormat<kBits>;
  ForEveryTargetAndInput([](const std::vector<float>& values) {
    const size_t blocks = Format::Blocks(values.size());
    std::string scales(blocks * sizeof(float), 'x'), other_scales = scales;
    std::string codes(Format::CodeBytes(values.size()), 'x'), other_codes = codes;
    const size_t good = reference::EncodeBlocks<kBits>(values.data(), values.size(), scales.data(), codes.data());
    ASSERT_EQ(kernels::EncodeBlocks<kBits>(values.data(), values.size(), other_scales.data(), other_codes.data()),
              good);
    ASSERT_EQ(other_scales, scales);
    ASSERT_EQ(other_codes, codes);
    if (good < blocks) return;
    std::vector<float> expected(values.size()), decoded(values.size());
    ASSERT_EQ(reference::DecodeBlocks<kBits>(scales.data(), codes.data(), values.size(), expected.data()), blocks);
    ASSERT_EQ(kernels::DecodeBlocks<kBits>(scales.data(), codes.data(), values.size(), decoded.data()), blocks);
    ASSERT_TRUE(SameBits(decoded, expected));
  });
}

TYPED_TEST(BlockKernelsTest, DamageIsFoundInTheSameBlock) {
  constexpr int kBits = TypeParam::value;
  using Format = BlockFormat<kBits>;
  for (const int64_t target : SupportedTargets()) {
    const OnTarget on_target(target);
    Random random(DeriveSeed(kKernelSeed, "damage", kBits));
    int damaged = 0;
    for (int trial = 0; trial < 3000; ++trial) {
      const size_t count = random.Below(1200);
      const size_t blocks = Format::Blocks(count);
      std::vector<float> values(count, 1.0f), expected(count), decoded(count);
      std::string scales(blocks * sizeof(float), '\0'), codes(Format::CodeBytes(count), '\0');
      reference::EncodeBlocks<kBits>(values.data(), count, scales.data(), codes.data());
      for (std::string* part : {&scales, &codes}) {
        if (!part->empty()) (*part)[random.Below(part->size())] = static_cast<char>(random.Below(256));
      }
      const size_t good = reference::DecodeBlocks<kBits>(scales.data(), codes.data(), count, expected.data());
      ASSERT_EQ(kernels::DecodeBlocks<kBits>(scales.data(), codes.data(), count, decoded.data()), good)
          << hwy::TargetName(target) << ", trial " << trial;
      damaged += good < blocks ? 1 : 0;
      ASSERT_TRUE(good < blocks || SameBits(decoded, expected));
    }
    EXPECT_GT(damaged, 0);
    EXPECT_LT(damaged, 3000);
  }
}

}  // namespace
}  // namespace wukong
