// Payload layouts, all numbers little-endian, no header (the sender and the receiver know the kind and the count):
//
//   fp32   count x IEEE binary32
//   bf16   count x the upper 16 bits of a binary32, rounded to nearest even
//   int8   ceil(count / 256) x binary32: the largest magnitude m of each block of 256 values (the last may be shorter),
//          then count x two's complement q in [-127, 127]; a value is q / 127 * m
//
// int8 stores the magnitude itself and not m / 127: that quotient would be rounded to nothing for denormal blocks, and
// the largest value of each block comes back exactly.
//
// The loops are written for the vectoriser at baseline x86-64, and every operation in them is an IEEE one that rounds
// once (no reassociation, no fused multiply-add), so that the bits are the same on every instruction set. Magnitudes
// are compared as integers: for that order a NaN is above infinity, which is above every number.
#include "runtime/codec/codec.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "glog/logging.h"

namespace wukong {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "payloads are copied as the machine holds them");
static_assert(sizeof(float) == 4 && std::numeric_limits<float>::is_iec559, "payloads are IEEE binary32");

constexpr uint32_t kInfinityBits = 0x7f800000;
// The smallest magnitude that bf16 rounds to infinity: half way above its largest number, 0x7f7f.
constexpr uint32_t kBf16OverflowBits = 0x7f7f8000;
constexpr size_t kBlock = 256;

// Signed, since SSE2 compares only signed integers; a magnitude never has the sign bit.
int32_t LargestMagnitudeBits(const float* values, size_t count) {
  int32_t largest = 0;
  for (size_t i = 0; i < count; ++i) {
    int32_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    bits &= 0x7fffffff;
    largest = largest < bits ? bits : largest;
  }
  return largest;
}

bool AllBelow(absl::Span<const float> values, uint32_t magnitude_bits) {
  return static_cast<uint32_t>(LargestMagnitudeBits(values.data(), values.size())) < magnitude_bits;
}

// The error for the first value whose magnitude is not below `magnitude_bits`; there is one.
absl::Status BadValue(absl::string_view codec, absl::Span<const float> values, uint32_t magnitude_bits,
                      size_t first = 0) {
  for (size_t i = first; i < values.size(); ++i) {
    if (AllBelow(values.subspan(i, 1), magnitude_bits)) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "%s codec, encoding: value %d of %d is %g; expected finite numbers that the codec can hold. The training step "
        "that made it has diverged or its input is damaged",
        codec, i, values.size(), values[i]));
  }
  LOG(FATAL) << "no bad value among " << values.size();
}

absl::Status CheckSize(absl::string_view codec, size_t got, size_t expected, size_t count) {
  if (got == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat(
      "%s codec, decoding: the payload has %d bytes, expected %d for %d values. It was cut, or the sender "
      "has another codec or model",
      codec, got, expected, count));
}

class Fp32Codec final : public Codec {
 public:
  CodecKind kind() const override { return CODEC_KIND_FP32; }
  size_t EncodedBytes(size_t count) const override { return count * sizeof(float); }
  double ErrorBound(double /*magnitude*/) const override { return 0; }

  absl::Status Encode(absl::Span<const float> values, std::string* payload) const override {
    payload->clear();
    if (!AllBelow(values, kInfinityBits)) return BadValue("fp32", values, kInfinityBits);
    payload->append(reinterpret_cast<const char*>(values.data()), EncodedBytes(values.size()));
    return absl::OkStatus();
  }

  absl::Status Decode(absl::string_view payload, absl::Span<float> values) const override {
    absl::Status size = CheckSize("fp32", payload.size(), EncodedBytes(values.size()), values.size());
    if (!size.ok()) return size;
    if (values.empty()) return absl::OkStatus();
    std::memcpy(values.data(), payload.data(), payload.size());
    if (AllBelow(values, kInfinityBits)) return absl::OkStatus();
    return absl::InvalidArgumentError(
        "fp32 codec, decoding: the payload holds a NaN or an infinity; the sender must not");
  }
};

class Bf16Codec final : public Codec {
 public:
  CodecKind kind() const override { return CODEC_KIND_BF16; }
  size_t EncodedBytes(size_t count) const override { return count * sizeof(uint16_t); }
  // 8 significant bits: half a unit in the last place, and half the smallest denormal (2^-133).
  double ErrorBound(double magnitude) const override { return magnitude * 0x1p-8 + 0x1p-134; }

  absl::Status Encode(absl::Span<const float> values, std::string* payload) const override {
    if (!AllBelow(values, kBf16OverflowBits)) {
      payload->clear();
      return BadValue("bf16", values, kBf16OverflowBits);
    }
    payload->resize(EncodedBytes(values.size()));
    const float* in = values.data();
    char* out = payload->data();
    for (size_t i = 0; i < values.size(); ++i) {
      uint32_t bits;
      std::memcpy(&bits, in + i, sizeof(bits));
      const uint16_t half = static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
      std::memcpy(out + 2 * i, &half, sizeof(half));
    }
    return absl::OkStatus();
  }

  absl::Status Decode(absl::string_view payload, absl::Span<float> values) const override {
    absl::Status size = CheckSize("bf16", payload.size(), EncodedBytes(values.size()), values.size());
    if (!size.ok()) return size;
    const char* in = payload.data();
    float* out = values.data();
    for (size_t i = 0; i < values.size(); ++i) {
      uint16_t half;
      std::memcpy(&half, in + 2 * i, sizeof(half));
      const uint32_t bits = static_cast<uint32_t>(half) << 16;
      std::memcpy(out + i, &bits, sizeof(bits));
    }
    if (AllBelow(values, kInfinityBits)) return absl::OkStatus();
    return absl::InvalidArgumentError(
        "bf16 codec, decoding: the payload holds a NaN or an infinity; the sender must not");
  }
};

class Int8Codec final : public Codec {
 public:
  CodecKind kind() const override { return CODEC_KIND_INT8; }
  size_t EncodedBytes(size_t count) const override { return Blocks(count) * sizeof(float) + count; }
  // Half a step of m / 127; 1e-4 of it covers the roundings of the five operations between (each 2^-24 of m at most);
  // and the smallest denormal, below which the product is rounded.
  double ErrorBound(double magnitude) const override { return magnitude / 254 * (1 + 1e-4) + 0x1p-149; }

  absl::Status Encode(absl::Span<const float> values, std::string* payload) const override {
    payload->resize(EncodedBytes(values.size()));
    char* magnitudes = payload->data();
    int8_t* quantized = reinterpret_cast<int8_t*>(payload->data() + Blocks(values.size()) * sizeof(float));
    for (size_t begin = 0; begin < values.size(); begin += kBlock) {
      const size_t count = std::min(kBlock, values.size() - begin);
      const int32_t bits = LargestMagnitudeBits(values.data() + begin, count);
      if (static_cast<uint32_t>(bits) >= kInfinityBits) {
        payload->clear();
        return BadValue("int8", values, kInfinityBits, begin);
      }
      std::memcpy(magnitudes, &bits, sizeof(bits));
      magnitudes += sizeof(bits);
      EncodeBlock(values.data() + begin, count, bits, quantized + begin);
    }
    return absl::OkStatus();
  }

  absl::Status Decode(absl::string_view payload, absl::Span<float> values) const override {
    absl::Status size = CheckSize("int8", payload.size(), EncodedBytes(values.size()), values.size());
    if (!size.ok()) return size;
    const char* magnitudes = payload.data();
    const int8_t* quantized = reinterpret_cast<const int8_t*>(payload.data() + Blocks(values.size()) * sizeof(float));
    for (size_t begin = 0; begin < values.size(); begin += kBlock) {
      const size_t count = std::min(kBlock, values.size() - begin);
      uint32_t bits;
      std::memcpy(&bits, magnitudes, sizeof(bits));
      magnitudes += sizeof(bits);
      // Negative scales are refused with the same comparison: no encoder writes one.
      if (bits >= kInfinityBits) {
        return absl::InvalidArgumentError(absl::StrFormat(
            "int8 codec, decoding: the scale of block %d has the bits %#010x; expected a finite number that is not "
            "negative. The payload is damaged, or its sender diverged",
            begin / kBlock, bits));
      }
      if (!DecodeBlock(quantized + begin, count, bits, values.data() + begin)) {
        return absl::InvalidArgumentError(absl::StrFormat(
            "int8 codec, decoding: block %d holds -128, which no encoder writes. The payload is damaged",
            begin / kBlock));
      }
    }
    return absl::OkStatus();
  }

 private:
  static size_t Blocks(size_t count) { return (count + kBlock - 1) / kBlock; }

  // `largest_bits` is that of the block's largest magnitude, finite.
  static void EncodeBlock(const float* values, size_t count, int32_t largest_bits, int8_t* out) {
    float largest;
    std::memcpy(&largest, &largest_bits, sizeof(largest));
    // 127 / largest overflows for tiny blocks: those are first brought up by a power of two, which is exact.
    const float lift = largest < 0x1p-60f ? 0x1p80f : 1.0f;
    const float lifted = largest * lift;
    // Not above zero for an empty block, and where the caller made the processor flush denormals.
    const float factor = lifted > 0 ? 127.0f / lifted : 0.0f;
    // Adding 1.5 * 2^23 leaves no fraction bits: the processor rounds to nearest even, and the low byte is the integer
    // in two's complement.
    constexpr float kMagic = 12582912.0f;
    for (size_t i = 0; i < count; ++i) {
      const float shifted = (values[i] * lift) * factor + kMagic;
      uint32_t bits;
      std::memcpy(&bits, &shifted, sizeof(bits));
      out[i] = static_cast<int8_t>(static_cast<uint8_t>(bits));
    }
  }

  // False when a value is -128. Never overflows: |q / 127| <= 1.
  static bool DecodeBlock(const int8_t* in, size_t count, uint32_t largest_bits, float* values) {
    float largest;
    std::memcpy(&largest, &largest_bits, sizeof(largest));
    constexpr float kUnit = 1.0f / 127.0f;
    static_assert(127.0f * kUnit == 1.0f, "the largest value of a block comes back exactly");
    uint8_t bad = 0;
    for (size_t i = 0; i < count; ++i) {
      bad |= static_cast<uint8_t>(in[i] == -128);
      values[i] = (static_cast<float>(in[i]) * kUnit) * largest;
    }
    return bad == 0;
  }
};

}  // namespace

std::unique_ptr<Codec> MakeCodec(CodecKind kind) {
  switch (kind) {
    case CODEC_KIND_FP32:
      return std::make_unique<Fp32Codec>();
    case CODEC_KIND_BF16:
      return std::make_unique<Bf16Codec>();
    case CODEC_KIND_INT8:
      return std::make_unique<Int8Codec>();
    default:
      LOG(FATAL) << "no codec of kind " << static_cast<int>(kind);
  }
}

ErrorFeedback::ErrorFeedback(std::unique_ptr<Codec> codec, size_t size) : codec_(std::move(codec)), residual_(size) {}

absl::Status ErrorFeedback::Encode(size_t offset, absl::Span<const float> values, std::string* payload) {
  CHECK_LE(offset, residual_.size());
  CHECK_LE(values.size(), residual_.size() - offset);
  const size_t count = values.size();
  // The sums, then what the receiver will make of them.
  scratch_.resize(2 * count);
  const absl::Span<float> sums = absl::MakeSpan(scratch_).subspan(0, count);
  const absl::Span<float> decoded = absl::MakeSpan(scratch_).subspan(count);
  float* residual = residual_.data() + offset;
  for (size_t i = 0; i < count; ++i) sums[i] = values[i] + residual[i];
  absl::Status status = codec_->Encode(sums, payload);
  if (!status.ok()) return status;
  status = codec_->Decode(*payload, decoded);
  if (!status.ok()) {
    payload->clear();
    return status;
  }
  for (size_t i = 0; i < count; ++i) residual[i] = sums[i] - decoded[i];
  return absl::OkStatus();
}

void ErrorFeedback::Clear() { std::fill(residual_.begin(), residual_.end(), 0.0f); }

}  // namespace wukong
