#include "runtime/codec/reference_kernels.h"

#include <algorithm>
#include <cstring>
#include <functional>

namespace wukong {
namespace reference {
namespace {

uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

float FloatOf(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Of a block with finite values: the largest magnitude, or the value that has it. Of both signs the positive is taken.
template <int kBits>
float ScaleOf(const float* values, size_t count, float magnitude) {
  if (!BlockFormat<kBits>::kSignedScale) return magnitude;
  const bool positive = std::any_of(values, values + count, [&](float value) { return value == magnitude; });
  return positive ? magnitude : -magnitude;
}

template <int kBits>
void Quantize(const float* values, size_t count, float scale, float magnitude, uint8_t* quantized) {
  using Format = BlockFormat<kBits>;
  const float lift = BlockLift(magnitude);
  const float lifted = scale * lift;
  // Zero for a block of zeros, and where the caller made the processor flush denormals.
  const float factor = lifted != 0 ? Format::kScaleCode / lifted : 0.0f;
  for (size_t i = 0; i < count; ++i) {
    float code = (values[i] * lift) * factor;
    // The value opposite to a signed scale has no code of its own.
    if (Format::kSignedScale) code = std::min(code, 1.0f);
    quantized[i] = static_cast<uint8_t>(BitsOf(code + kRoundingMagic)) & Format::kMask;
  }
}

// `part_bits` of each code at a stride; the codes are shifted right by `shift` first.
template <int kPartBits>
size_t PackPart(const uint8_t* quantized, size_t count, int shift, uint8_t* out) {
  constexpr size_t kPerByte = 8 / kPartBits;
  const size_t stride = (count + kPerByte - 1) / kPerByte;
  std::memset(out, 0, stride);
  for (size_t i = 0; i < count; ++i) {
    const auto part = static_cast<uint8_t>((quantized[i] >> shift) & ((1 << kPartBits) - 1));
    out[i % stride] |= static_cast<uint8_t>(part << (i / stride * kPartBits));
  }
  return stride;
}

// Adds the parts to `quantized`; false when a bit that no value has is set.
template <int kPartBits>
bool UnpackPart(const uint8_t* in, size_t count, int shift, uint8_t* quantized) {
  constexpr size_t kPerByte = 8 / kPartBits;
  const size_t stride = (count + kPerByte - 1) / kPerByte;
  bool good = true;
  for (size_t i = 0; i < stride * kPerByte; ++i) {
    const auto part = static_cast<uint8_t>((in[i % stride] >> (i / stride * kPartBits)) & ((1 << kPartBits) - 1));
    if (i < count) {
      quantized[i] |= static_cast<uint8_t>(part << shift);
    } else {
      good = good && part == 0;
    }
  }
  return good;
}

template <int kBits>
void Pack(const uint8_t* quantized, size_t count, uint8_t* out) {
  if constexpr (kBits == 8) {
    std::memcpy(out, quantized, count);
  } else if constexpr (kBits == 3) {
    out += PackPart<2>(quantized, count, 0, out);
    PackPart<1>(quantized, count, 2, out);
  } else {
    PackPart<kBits>(quantized, count, 0, out);
  }
}

template <int kBits>
bool Unpack(const uint8_t* in, size_t count, uint8_t* quantized) {
  std::memset(quantized, 0, count);
  if constexpr (kBits == 8) {
    std::memcpy(quantized, in, count);
    return true;
  } else if constexpr (kBits == 3) {
    const bool lower = UnpackPart<2>(in, count, 0, quantized);
    const bool upper = UnpackPart<1>(in + (count + 3) / 4, count, 2, quantized);
    return lower && upper;
  } else {
    return UnpackPart<kBits>(in, count, 0, quantized);
  }
}

}  // namespace

uint32_t LargestMagnitude(const float* values, size_t count) {
  uint32_t largest = 0;
  for (size_t i = 0; i < count; ++i) largest = std::max(largest, BitsOf(values[i]) & kMagnitudeMask);
  return largest;
}

void EncodeBf16(const float* values, size_t count, char* payload) {
  for (size_t i = 0; i < count; ++i) {
    const uint32_t bits = BitsOf(values[i]);
    const auto half = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    std::memcpy(payload + 2 * i, &half, sizeof(half));
  }
}

uint32_t DecodeBf16(const char* payload, size_t count, float* values) {
  for (size_t i = 0; i < count; ++i) {
    uint16_t half;
    std::memcpy(&half, payload + 2 * i, sizeof(half));
    values[i] = FloatOf(static_cast<uint32_t>(half) << 16);
  }
  return LargestMagnitude(values, count);
}

template <int kBits>
size_t EncodeBlocks(const float* values, size_t count, char* scales, char* codes) {
  using Format = BlockFormat<kBits>;
  uint8_t quantized[Format::kValues];
  auto* out = reinterpret_cast<uint8_t*>(codes);
  for (size_t block = 0; block < Format::Blocks(count); ++block) {
    const size_t n = std::min(Format::kValues, count - block * Format::kValues);
    const float* in = values + block * Format::kValues;
    const uint32_t bits = LargestMagnitude(in, n);
    if (bits >= kInfinityBits) return block;
    const float scale = ScaleOf<kBits>(in, n, FloatOf(bits));
    std::memcpy(scales + block * sizeof(scale), &scale, sizeof(scale));
    Quantize<kBits>(in, n, scale, FloatOf(bits), quantized);
    Pack<kBits>(quantized, n, out);
    out += Format::BlockBytes(n);
  }
  return Format::Blocks(count);
}

template <int kBits>
size_t DecodeBlocks(const char* scales, const char* codes, size_t count, float* values) {
  using Format = BlockFormat<kBits>;
  uint8_t quantized[Format::kValues];
  const auto* in = reinterpret_cast<const uint8_t*>(codes);
  for (size_t block = 0; block < Format::Blocks(count); ++block) {
    const size_t n = std::min(Format::kValues, count - block * Format::kValues);
    uint32_t bits;
    std::memcpy(&bits, scales + block * sizeof(bits), sizeof(bits));
    if (!GoodScale<kBits>(bits)) return block;
    const float scale = FloatOf(bits);
    bool good = Unpack<kBits>(in, n, quantized);
    for (size_t i = 0; i < n; ++i) {
      const int code = quantized[i] < 1 << (kBits - 1) ? quantized[i] : quantized[i] - (1 << kBits);
      good = good && !(Format::kHasBadCode && code == Format::kBadCode);
      values[block * Format::kValues + i] = (static_cast<float>(code) * Format::kUnit) * scale;
    }
    if (!good) return block;
    in += Format::BlockBytes(n);
  }
  return Format::Blocks(count);
}

template size_t EncodeBlocks<8>(const float*, size_t, char*, char*);
template size_t EncodeBlocks<4>(const float*, size_t, char*, char*);
template size_t EncodeBlocks<3>(const float*, size_t, char*, char*);
template size_t EncodeBlocks<2>(const float*, size_t, char*, char*);
template size_t DecodeBlocks<8>(const char*, const char*, size_t, float*);
template size_t DecodeBlocks<4>(const char*, const char*, size_t, float*);
template size_t DecodeBlocks<3>(const char*, const char*, size_t, float*);
template size_t DecodeBlocks<2>(const char*, const char*, size_t, float*);

uint32_t SelectLargest(const float* values, size_t count, size_t keep, uint16_t* positions) {
  uint32_t magnitudes[kSelectMax], candidates[kSelectMax], ordered[kSelectMax];
  for (size_t i = 0; i < count; ++i) {
    magnitudes[i] = BitsOf(values[i]) & kMagnitudeMask;
    candidates[i] = static_cast<uint32_t>(i);
  }
  std::copy(magnitudes, magnitudes + count, ordered);
  std::nth_element(ordered, ordered + keep - 1, ordered + count, std::greater<>());
  TakeLargest(magnitudes, candidates, count, ordered[keep - 1], keep, positions);
  return LargestMagnitude(values, count);
}

void TakeLargest(const uint32_t* magnitudes, const uint32_t* candidates, size_t count, uint32_t smallest, size_t keep,
                 uint16_t* positions) {
  const auto above = static_cast<size_t>(
      std::count_if(magnitudes, magnitudes + count, [&](uint32_t magnitude) { return magnitude > smallest; }));
  // Without branches that nobody can predict.
  size_t taken = 0, equal = keep - above;
  for (size_t i = 0; taken < keep; ++i) {
    positions[taken] = static_cast<uint16_t>(candidates[i]);
    const size_t as_small = magnitudes[i] == smallest && equal > 0 ? 1 : 0;
    taken += (magnitudes[i] > smallest ? 1 : 0) + as_small;
    equal -= as_small;
  }
}

}  // namespace reference
}  // namespace wukong
