#include "runtime/codec/kernels.h"

#include <algorithm>
#include <cstring>

#include "runtime/codec/block_format.h"
#include "runtime/codec/reference_kernels.h"

// This file is compiled once per instruction set: the header includes it again and again, each time with another
// HWY_NAMESPACE.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "runtime/codec/kernels.cc"
#include "hwy/foreach_target.h"
// After it.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace wukong {
namespace kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// At most 16 lanes, so that blocks are whole numbers of four vectors.
using Floats = hn::CappedTag<float, 16>;
using Ints = hn::RebindToSigned<Floats>;
using Words = hn::RebindToUnsigned<Floats>;
using LaneBytes = hn::Rebind<uint8_t, Floats>;
using SignedLaneBytes = hn::Rebind<int8_t, Floats>;
using LaneHalves = hn::Rebind<uint16_t, Floats>;

HWY_INLINE hn::Vec<Ints> MagnitudeBits(hn::Vec<Floats> values) {
  const Ints ints;
  return hn::And(hn::BitCast(ints, values), hn::Set(ints, static_cast<int32_t>(kMagnitudeMask)));
}

// Of 4 * kSteps vectors: the largest magnitude, and the largest as signed integers, which is the largest positive value
// where there is one. Signed integers are what every instruction set compares.
struct Extremes {
  uint32_t magnitude = 0;
  int32_t largest = 0;
};

template <bool kSigned>
HWY_INLINE Extremes ExtremesOf(const float* HWY_RESTRICT values, size_t count) {
  const Floats floats;
  const Ints ints;
  const size_t n = hn::Lanes(floats);
  auto a = hn::Zero(ints), b = a, c = a, d = a;
  auto signed_a = hn::Set(ints, INT32_MIN), signed_b = signed_a;
  for (size_t i = 0; i < count; i += 4 * n) {
    const auto w = hn::LoadU(floats, values + i), x = hn::LoadU(floats, values + i + n);
    const auto y = hn::LoadU(floats, values + i + 2 * n), z = hn::LoadU(floats, values + i + 3 * n);
    a = hn::Max(a, MagnitudeBits(w));
    b = hn::Max(b, MagnitudeBits(x));
    c = hn::Max(c, MagnitudeBits(y));
    d = hn::Max(d, MagnitudeBits(z));
    if (kSigned) {
      signed_a = hn::Max(signed_a, hn::Max(hn::BitCast(ints, w), hn::BitCast(ints, x)));
      signed_b = hn::Max(signed_b, hn::Max(hn::BitCast(ints, y), hn::BitCast(ints, z)));
    }
  }
  Extremes extremes;
  extremes.magnitude = static_cast<uint32_t>(hn::GetLane(hn::MaxOfLanes(ints, hn::Max(hn::Max(a, b), hn::Max(c, d)))));
  if (kSigned) extremes.largest = hn::GetLane(hn::MaxOfLanes(ints, hn::Max(signed_a, signed_b)));
  return extremes;
}

uint32_t LargestMagnitude(const float* HWY_RESTRICT values, size_t count) {
  const size_t step = 4 * hn::Lanes(Floats());
  const size_t whole = count / step * step;
  return std::max(ExtremesOf<false>(values, whole).magnitude,
                  reference::LargestMagnitude(values + whole, count - whole));
}

void EncodeBf16(const float* HWY_RESTRICT values, size_t count, char* HWY_RESTRICT payload) {
  const Floats floats;
  const Words words;
  const LaneHalves halves;
  const size_t n = hn::Lanes(floats);
  const auto bias = hn::Set(words, 0x7fff), one = hn::Set(words, 1);
  size_t i = 0;
  for (; i + n <= count; i += n) {
    const auto bits = hn::BitCast(words, hn::LoadU(floats, values + i));
    const auto odd = hn::And(hn::ShiftRight<16>(bits), one);
    const auto rounded = hn::ShiftRight<16>(hn::Add(bits, hn::Add(bias, odd)));
    uint16_t lanes[16];
    hn::StoreU(hn::TruncateTo(halves, rounded), halves, lanes);
    std::memcpy(payload + 2 * i, lanes, 2 * n);
  }
  reference::EncodeBf16(values + i, count - i, payload + 2 * i);
}

uint32_t DecodeBf16(const char* HWY_RESTRICT payload, size_t count, float* HWY_RESTRICT values) {
  const Floats floats;
  const Ints ints;
  const Words words;
  const LaneHalves halves;
  const size_t n = hn::Lanes(floats);
  auto largest = hn::Zero(ints);
  size_t i = 0;
  for (; i + n <= count; i += n) {
    uint16_t lanes[16];
    std::memcpy(lanes, payload + 2 * i, 2 * n);
    const auto bits = hn::ShiftLeft<16>(hn::PromoteTo(words, hn::LoadU(halves, lanes)));
    const auto decoded = hn::BitCast(floats, bits);
    largest = hn::Max(largest, MagnitudeBits(decoded));
    hn::StoreU(decoded, floats, values + i);
  }
  return std::max(static_cast<uint32_t>(hn::GetLane(hn::MaxOfLanes(ints, largest))),
                  reference::DecodeBf16(payload + 2 * i, count - i, values + i));
}

// A code per byte.
template <int kBits>
HWY_INLINE void Quantize(const float* HWY_RESTRICT values, float scale, float magnitude, uint8_t* HWY_RESTRICT codes) {
  using Format = BlockFormat<kBits>;
  const Floats floats;
  const Words words;
  const LaneBytes bytes;
  const size_t n = hn::Lanes(floats);
  const float lift = BlockLift(magnitude);
  const float lifted = scale * lift;
  const auto factor = hn::Set(floats, lifted != 0 ? Format::kScaleCode / lifted : 0.0f);
  const auto magic = hn::Set(floats, kRoundingMagic);
  const auto one = hn::Set(floats, 1.0f);
  const auto quantize = [&](hn::Vec<Floats> lifted_values, size_t i) HWY_ATTR {
    auto code = hn::Mul(lifted_values, factor);
    if (Format::kSignedScale) code = hn::Min(code, one);
    const auto bits = hn::BitCast(words, hn::Add(code, magic));
    hn::StoreU(hn::TruncateTo(bytes, bits), bytes, codes + i);
  };
  if (lift == 1.0f) {  // A product with 1 is exact.
    for (size_t i = 0; i < Format::kValues; i += n) quantize(hn::LoadU(floats, values + i), i);
  } else {
    const auto lifts = hn::Set(floats, lift);
    for (size_t i = 0; i < Format::kValues; i += n) quantize(hn::Mul(hn::LoadU(floats, values + i), lifts), i);
  }
}

// `kPartBits` of each code of a whole block, from bit `kShift` on.
template <int kPartBits, int kShift>
HWY_INLINE void PackPart(const uint8_t* HWY_RESTRICT codes, size_t count, uint8_t* HWY_RESTRICT out) {
  constexpr size_t kPerByte = 8 / kPartBits;
  const hn::CappedTag<uint8_t, size_t{16} * kPartBits> bytes;
  const size_t stride = count / kPerByte;
  const auto mask = hn::Set(bytes, (1 << kPartBits) - 1);
  const auto part = [&](size_t at)
                        HWY_ATTR { return hn::And(hn::ShiftRight<kShift>(hn::LoadU(bytes, codes + at)), mask); };
  for (size_t j = 0; j < stride; j += hn::Lanes(bytes)) {
    auto packed = part(j);
    if constexpr (kPartBits == 4) {
      packed = hn::Or(packed, hn::ShiftLeft<4>(part(j + stride)));
    } else if constexpr (kPartBits == 2) {
      packed = hn::Or(packed, hn::ShiftLeft<2>(part(j + stride)));
      packed = hn::Or(packed, hn::ShiftLeft<4>(part(j + 2 * stride)));
      packed = hn::Or(packed, hn::ShiftLeft<6>(part(j + 3 * stride)));
    } else {
      packed = hn::Or(packed, hn::ShiftLeft<1>(part(j + stride)));
      packed = hn::Or(packed, hn::ShiftLeft<2>(part(j + 2 * stride)));
      packed = hn::Or(packed, hn::ShiftLeft<3>(part(j + 3 * stride)));
      packed = hn::Or(packed, hn::ShiftLeft<4>(part(j + 4 * stride)));
      packed = hn::Or(packed, hn::ShiftLeft<5>(part(j + 5 * stride)));
      packed = hn::Or(packed, hn::ShiftLeft<6>(part(j + 6 * stride)));
      packed = hn::Or(packed, hn::ShiftLeft<7>(part(j + 7 * stride)));
    }
    hn::StoreU(packed, bytes, out + j);
  }
}

// The bytes of the part at `kIndex` strides, `codes` before, `kShift` bits further up.
template <int kPartBits, int kShift, size_t kIndex = 0>
HWY_INLINE void UnpackPart(const uint8_t* HWY_RESTRICT in, size_t count, uint8_t* HWY_RESTRICT codes) {
  constexpr size_t kPerByte = 8 / kPartBits;
  const hn::CappedTag<uint8_t, size_t{16} * kPartBits> bytes;
  const size_t stride = count / kPerByte;
  const auto mask = hn::Set(bytes, (1 << kPartBits) - 1);
  uint8_t* const out = codes + kIndex * stride;
  for (size_t j = 0; j < stride; j += hn::Lanes(bytes)) {
    const auto part = hn::And(hn::ShiftRight<kIndex * kPartBits>(hn::LoadU(bytes, in + j)), mask);
    if constexpr (kShift == 0) {
      hn::StoreU(part, bytes, out + j);
    } else {
      hn::StoreU(hn::Or(hn::LoadU(bytes, out + j), hn::ShiftLeft<kShift>(part)), bytes, out + j);
    }
  }
  if constexpr (kIndex + 1 < kPerByte) UnpackPart<kPartBits, kShift, kIndex + 1>(in, count, codes);
}

template <int kBits>
size_t EncodeBlocks(const float* HWY_RESTRICT values, size_t count, char* scales, char* codes) {
  using Format = BlockFormat<kBits>;
  constexpr size_t kValues = Format::kValues;
  const size_t whole = count / kValues;
  auto* out = reinterpret_cast<uint8_t*>(codes);
  for (size_t block = 0; block < whole; ++block) {
    const float* in = values + block * kValues;
    const Extremes extremes = ExtremesOf<Format::kSignedScale>(in, kValues);
    if (extremes.magnitude >= kInfinityBits) return block;
    float magnitude;
    std::memcpy(&magnitude, &extremes.magnitude, sizeof(magnitude));
    const bool negative =
        Format::kSignedScale && extremes.magnitude != 0 && extremes.largest != static_cast<int32_t>(extremes.magnitude);
    const float scale = negative ? -magnitude : magnitude;
    std::memcpy(scales + block * sizeof(scale), &scale, sizeof(scale));
    if constexpr (kBits == 8) {
      Quantize<kBits>(in, scale, magnitude, out);
    } else {
      HWY_ALIGN uint8_t quantized[kValues];
      Quantize<kBits>(in, scale, magnitude, quantized);
      if constexpr (kBits == 3) {
        PackPart<2, 0>(quantized, kValues, out);
        PackPart<1, 2>(quantized, kValues, out + kValues / 4);
      } else {
        PackPart<kBits, 0>(quantized, kValues, out);
      }
    }
    out += Format::BlockBytes(kValues);
  }
  return whole + reference::EncodeBlocks<kBits>(values + whole * kValues, count - whole * kValues,
                                                scales + whole * sizeof(float), reinterpret_cast<char*>(out));
}

template <int kBits>
size_t DecodeBlocks(const char* scales, const char* codes, size_t count, float* HWY_RESTRICT values) {
  using Format = BlockFormat<kBits>;
  constexpr size_t kValues = Format::kValues;
  const Floats floats;
  const Ints ints;
  const SignedLaneBytes lane_bytes;
  const hn::CappedTag<uint8_t, 64> bytes;
  const size_t n = hn::Lanes(floats);
  const size_t whole = count / kValues;
  const auto* in = reinterpret_cast<const uint8_t*>(codes);
  const auto unit = hn::Set(floats, Format::kUnit);
  for (size_t block = 0; block < whole; ++block) {
    uint32_t bits;
    std::memcpy(&bits, scales + block * sizeof(bits), sizeof(bits));
    if (!GoodScale<kBits>(bits)) return block;
    float scale;
    std::memcpy(&scale, &bits, sizeof(scale));
    HWY_ALIGN uint8_t quantized[kValues];
    const uint8_t* unpacked = quantized;
    if constexpr (kBits == 8) {
      unpacked = in;
    } else if constexpr (kBits == 3) {
      UnpackPart<2, 0>(in, kValues, quantized);
      UnpackPart<1, 2>(in + kValues / 4, kValues, quantized);
    } else {
      UnpackPart<kBits, 0>(in, kValues, quantized);
    }
    // Extends the sign, and looks for what no encoder writes.
    const auto sign = hn::Set(bytes, static_cast<uint8_t>(1 << (kBits - 1)));
    auto bad = hn::Eq(hn::Zero(bytes), hn::Set(bytes, 1));
    for (size_t i = 0; i < kValues; i += hn::Lanes(bytes)) {
      const auto code = hn::LoadU(bytes, unpacked + i);
      if (Format::kHasBadCode) bad = hn::Or(bad, hn::Eq(code, sign));
      if constexpr (kBits != 8) hn::StoreU(hn::Sub(hn::Xor(code, sign), sign), bytes, quantized + i);
    }
    if (!hn::AllFalse(bytes, bad)) return block;
    const auto scale_lanes = hn::Set(floats, scale);
    float* const out = values + block * kValues;
    for (size_t i = 0; i < kValues; i += n) {
      const auto code = hn::LoadU(lane_bytes, reinterpret_cast<const int8_t*>(unpacked) + i);
      const auto level = hn::ConvertTo(floats, hn::PromoteTo(ints, code));
      hn::StoreU(hn::Mul(hn::Mul(level, unit), scale_lanes), floats, out + i);
    }
    in += Format::BlockBytes(kValues);
  }
  return whole + reference::DecodeBlocks<kBits>(scales + whole * sizeof(float), reinterpret_cast<const char*>(in),
                                                count - whole * kValues, values + whole * kValues);
}

// The k-th largest of `count` numbers that are not negative, k <= count, from its highest bit to its lowest: a bit is
// set when at least k numbers are not below what has been found with it. `count` is a multiple of the lanes.
HWY_INLINE int32_t KthLargest(const int32_t* HWY_RESTRICT numbers, size_t count, size_t k) {
  const Ints ints;
  int32_t found = 0;
  for (int bit = 30; bit >= 0; --bit) {
    const int32_t tried = found | (1 << bit);
    const auto limit = hn::Set(ints, tried - 1);
    size_t above = 0;
    for (size_t i = 0; i < count; i += hn::Lanes(ints)) {
      above += hn::CountTrue(ints, hn::Gt(hn::LoadU(ints, numbers + i), limit));
    }
    found = above >= k ? tried : found;
  }
  return found;
}

// What is kept of a full chunk lies among the values that are not below the keep-th largest of kGroups maxima: at least
// `keep` values are as large. Of numbers in random order about 1.4 * keep are.
uint32_t SelectLargest(const float* HWY_RESTRICT values, size_t count, size_t keep, uint16_t* positions) {
  constexpr size_t kGroups = 128;
  if (count != kSelectMax || keep > kGroups) return reference::SelectLargest(values, count, keep, positions);
  const Floats floats;
  const Ints ints;
  const size_t n = hn::Lanes(floats);
  HWY_ALIGN int32_t maxima[kGroups];
  for (size_t group = 0; group < kGroups; group += 4 * n) {
    auto a = hn::Zero(ints), b = a, c = a, d = a;
    for (size_t i = group; i < kSelectMax; i += kGroups) {
      a = hn::Max(a, MagnitudeBits(hn::LoadU(floats, values + i)));
      b = hn::Max(b, MagnitudeBits(hn::LoadU(floats, values + i + n)));
      c = hn::Max(c, MagnitudeBits(hn::LoadU(floats, values + i + 2 * n)));
      d = hn::Max(d, MagnitudeBits(hn::LoadU(floats, values + i + 3 * n)));
    }
    hn::StoreU(a, ints, maxima + group);
    hn::StoreU(b, ints, maxima + group + n);
    hn::StoreU(c, ints, maxima + group + 2 * n);
    hn::StoreU(d, ints, maxima + group + 3 * n);
  }
  const auto largest = static_cast<uint32_t>(*std::max_element(maxima, maxima + kGroups));
  if (largest >= kInfinityBits) return largest;

  const auto limit = hn::Set(ints, KthLargest(maxima, kGroups, keep));
  // A vector is stored whole, of which the lanes in front count.
  HWY_ALIGN int32_t magnitudes[kSelectMax + 16], candidates[kSelectMax + 16];
  size_t found = 0;
  auto position = hn::Iota(ints, 0);
  const auto step = hn::Set(ints, static_cast<int32_t>(n));
  for (size_t i = 0; i < kSelectMax; i += n) {
    const auto magnitude = MagnitudeBits(hn::LoadU(floats, values + i));
    const auto above = hn::Not(hn::Lt(magnitude, limit));
    hn::StoreU(hn::Compress(magnitude, above), ints, magnitudes + found);
    hn::StoreU(hn::Compress(position, above), ints, candidates + found);
    found += hn::CountTrue(ints, above);
    position = hn::Add(position, step);
  }
  hn::StoreU(hn::Zero(ints), ints, magnitudes + found);
  const int32_t smallest = KthLargest(magnitudes, (found + n - 1) / n * n, keep);
  reference::TakeLargest(reinterpret_cast<const uint32_t*>(magnitudes), reinterpret_cast<const uint32_t*>(candidates),
                         found, static_cast<uint32_t>(smallest), keep, positions);
  return largest;
}

// Only functions that are no templates can be chosen at run time.
#define WUKONG_BLOCK_KERNELS(BITS)                                                                \
  size_t EncodeBlocks##BITS(const float* values, size_t count, char* scales, char* codes) {       \
    return EncodeBlocks<BITS>(values, count, scales, codes);                                      \
  }                                                                                               \
  size_t DecodeBlocks##BITS(const char* scales, const char* codes, size_t count, float* values) { \
    return DecodeBlocks<BITS>(scales, codes, count, values);                                      \
  }
WUKONG_BLOCK_KERNELS(8)
WUKONG_BLOCK_KERNELS(4)
WUKONG_BLOCK_KERNELS(3)
WUKONG_BLOCK_KERNELS(2)
#undef WUKONG_BLOCK_KERNELS

}  // namespace HWY_NAMESPACE
}  // namespace kernels
}  // namespace wukong
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace wukong {
namespace kernels {

HWY_EXPORT(LargestMagnitude);
HWY_EXPORT(EncodeBf16);
HWY_EXPORT(DecodeBf16);
HWY_EXPORT(SelectLargest);

uint32_t LargestMagnitude(const float* values, size_t count) {
  return HWY_DYNAMIC_DISPATCH(LargestMagnitude)(values, count);
}
void EncodeBf16(const float* values, size_t count, char* payload) {
  HWY_DYNAMIC_DISPATCH(EncodeBf16)(values, count, payload);
}
uint32_t DecodeBf16(const char* payload, size_t count, float* values) {
  return HWY_DYNAMIC_DISPATCH(DecodeBf16)(payload, count, values);
}
uint32_t SelectLargest(const float* values, size_t count, size_t keep, uint16_t* positions) {
  return HWY_DYNAMIC_DISPATCH(SelectLargest)(values, count, keep, positions);
}

#define WUKONG_BLOCK_KERNELS(BITS)                                                                \
  HWY_EXPORT(EncodeBlocks##BITS);                                                                 \
  HWY_EXPORT(DecodeBlocks##BITS);                                                                 \
  template <>                                                                                     \
  size_t EncodeBlocks<BITS>(const float* values, size_t count, char* scales, char* codes) {       \
    return HWY_DYNAMIC_DISPATCH(EncodeBlocks##BITS)(values, count, scales, codes);                \
  }                                                                                               \
  template <>                                                                                     \
  size_t DecodeBlocks<BITS>(const char* scales, const char* codes, size_t count, float* values) { \
    return HWY_DYNAMIC_DISPATCH(DecodeBlocks##BITS)(scales, codes, count, values);                \
  }
WUKONG_BLOCK_KERNELS(8)
WUKONG_BLOCK_KERNELS(4)
WUKONG_BLOCK_KERNELS(3)
WUKONG_BLOCK_KERNELS(2)
#undef WUKONG_BLOCK_KERNELS

}  // namespace kernels
}  // namespace wukong
#endif  // HWY_ONCE
