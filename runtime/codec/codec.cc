// Payload layouts, all numbers little-endian, no header (the sender and the receiver know the kind and the count):
//
//   fp32   count x IEEE binary32
//   bf16   count x the upper 16 bits of a binary32, rounded to nearest even
//   int8   blocks of 256 values, int4, int3, int2 of 128 (the last may be shorter): first a binary32 scale for each
//   block,
//          then each block's codes (runtime/codec/block_format.h). The scale is the largest magnitude m, and a value is
//          q / 127 * m, q / 7 * m or q / 3 * m. With 2 bits the scale is the value e of largest magnitude with its
//          sign, and a value is -q / 2 * e, q in [-2, 1]: the levels are -e/2, 0, e/2 and e
//   topk   chunks of 4096 values (the last may be shorter), of each the k = ceil(n / 64) of largest magnitude: a
//   binary32
//          scale s, k positions of 12 bits, rising, two in three bytes, then k codes of 2 bits, four in a byte, the
//          first lowest: 0 for zero, 1 for s, 3 for -s. Bits that are left over are zero
//
// A scale is the magnitude itself and not a step such as m / 127: that quotient would be rounded to nothing for
// denormal blocks, and the largest value of each block comes back exactly.
//
// The kernels give the same bits on every instruction set (runtime/codec/kernels.h).
#include "runtime/codec/codec.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "glog/logging.h"
#include "runtime/codec/block_format.h"
#include "runtime/codec/kernels.h"

namespace wukong {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "payloads are copied as the machine holds them");
static_assert(sizeof(float) == 4 && std::numeric_limits<float>::is_iec559, "payloads are IEEE binary32");

// The smallest magnitude that bf16 rounds to infinity: half way above its largest number, 0x7f7f.
constexpr uint32_t kBf16OverflowBits = 0x7f7f8000;
constexpr size_t kTopKChunk = kSelectMax;
constexpr size_t kTopKShare = 64;  // One value of so many is kept.
constexpr size_t kTopKKept = kTopKChunk / kTopKShare;

bool AllBelow(absl::Span<const float> values, uint32_t magnitude_bits) {
  return kernels::LargestMagnitude(values.data(), values.size()) < magnitude_bits;
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
    kernels::EncodeBf16(values.data(), values.size(), payload->data());
    return absl::OkStatus();
  }

  absl::Status Decode(absl::string_view payload, absl::Span<float> values) const override {
    absl::Status size = CheckSize("bf16", payload.size(), EncodedBytes(values.size()), values.size());
    if (!size.ok()) return size;
    if (kernels::DecodeBf16(payload.data(), values.size(), values.data()) < kInfinityBits) return absl::OkStatus();
    return absl::InvalidArgumentError(
        "bf16 codec, decoding: the payload holds a NaN or an infinity; the sender must not");
  }
};

template <int kBits>
class BlockCodec final : public Codec {
  using Format = BlockFormat<kBits>;

 public:
  BlockCodec(CodecKind kind, const char* name) : kind_(kind), name_(name) {}
  CodecKind kind() const override { return kind_; }
  size_t EncodedBytes(size_t count) const override {
    return Format::Blocks(count) * sizeof(float) + Format::CodeBytes(count);
  }
  // Half a step of the grid, and with 2 bits a whole one: -m has no code where m is the scale. 1e-4 of it covers the
  // roundings of the five operations between (each 2^-24 of m at most); and the smallest denormal, below which the
  // product is rounded.
  double ErrorBound(double magnitude) const override {
    const double step = magnitude / std::fabs(static_cast<double>(Format::kScaleCode));
    return (Format::kSignedScale ? step : step / 2) * (1 + 1e-4) + 0x1p-149;
  }

  absl::Status Encode(absl::Span<const float> values, std::string* payload) const override {
    payload->resize(EncodedBytes(values.size()));
    const size_t blocks = Format::Blocks(values.size());
    char* codes = payload->data() + blocks * sizeof(float);
    const size_t good = kernels::EncodeBlocks<kBits>(values.data(), values.size(), payload->data(), codes);
    if (good == blocks) return absl::OkStatus();
    payload->clear();
    return BadValue(name_, values, kInfinityBits, good * Format::kValues);
  }

  absl::Status Decode(absl::string_view payload, absl::Span<float> values) const override {
    absl::Status size = CheckSize(name_, payload.size(), EncodedBytes(values.size()), values.size());
    if (!size.ok()) return size;
    const size_t blocks = Format::Blocks(values.size());
    const char* codes = payload.data() + blocks * sizeof(float);
    const size_t good = kernels::DecodeBlocks<kBits>(payload.data(), codes, values.size(), values.data());
    if (good == blocks) return absl::OkStatus();
    uint32_t scale;
    std::memcpy(&scale, payload.data() + good * sizeof(scale), sizeof(scale));
    if (!GoodScale<kBits>(scale)) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "%s codec, decoding: the scale of block %d has the bits %#010x; expected a finite number%s. The payload is "
          "damaged, or its sender diverged",
          name_, good, scale, Format::kSignedScale ? " other than -0" : " that is not negative"));
    }
    return absl::InvalidArgumentError(
        absl::StrFormat("%s codec, decoding: block %d holds a code that no encoder writes%s. The payload is damaged",
                        name_, good, kBits == 8 ? ", -128" : ", or a bit that belongs to no value"));
  }

 private:
  const CodecKind kind_;
  const char* const name_;
};

// The k values of largest magnitude of each chunk, as a scale, positions and signs. Of those the j largest are told,
// each as the mean of their magnitudes, where j is what leaves the smallest squared error, i.e. has the largest
// (sum of the j largest)^2 / j; the others are told as zero. So the squared error is always smaller than the sum of the
// squares, which is what error feedback needs (Karimireddy et al. 2019).
class TopKCodec final : public Codec {
 public:
  CodecKind kind() const override { return CODEC_KIND_TOPK; }
  size_t EncodedBytes(size_t count) const override {
    return count / kTopKChunk * ChunkBytes(kTopKChunk) + (count % kTopKChunk == 0 ? 0 : ChunkBytes(count % kTopKChunk));
  }
  // A value that is not kept is left out as a whole.
  double ErrorBound(double magnitude) const override { return magnitude; }

  absl::Status Encode(absl::Span<const float> values, std::string* payload) const override {
    payload->assign(EncodedBytes(values.size()), '\0');
    auto* out = reinterpret_cast<uint8_t*>(payload->data());
    for (size_t begin = 0; begin < values.size(); begin += kTopKChunk) {
      const size_t count = std::min(kTopKChunk, values.size() - begin);
      uint16_t positions[kTopKKept];
      if (kernels::SelectLargest(values.data() + begin, count, Kept(count), positions) >= kInfinityBits) {
        payload->clear();
        return BadValue("topk", values, kInfinityBits, begin);
      }
      EncodeChunk(values.data() + begin, positions, Kept(count), out);
      out += ChunkBytes(count);
    }
    return absl::OkStatus();
  }

  absl::Status Decode(absl::string_view payload, absl::Span<float> values) const override {
    absl::Status size = CheckSize("topk", payload.size(), EncodedBytes(values.size()), values.size());
    if (!size.ok()) return size;
    std::fill(values.begin(), values.end(), 0.0f);
    const auto* in = reinterpret_cast<const uint8_t*>(payload.data());
    for (size_t begin = 0; begin < values.size(); begin += kTopKChunk) {
      const size_t count = std::min(kTopKChunk, values.size() - begin);
      const char* problem = DecodeChunk(in, count, values.data() + begin);
      if (problem != nullptr) {
        return absl::InvalidArgumentError(
            absl::StrFormat("topk codec, decoding: chunk %d: %s. The payload is damaged", begin / kTopKChunk, problem));
      }
      in += ChunkBytes(count);
    }
    return absl::OkStatus();
  }

 private:
  static constexpr size_t Kept(size_t count) { return (count + kTopKShare - 1) / kTopKShare; }
  static constexpr size_t PositionBytes(size_t kept) { return (12 * kept + 7) / 8; }
  static constexpr size_t ChunkBytes(size_t count) {
    return sizeof(float) + PositionBytes(Kept(count)) + (2 * Kept(count) + 7) / 8;
  }

  static void EncodeChunk(const float* values, const uint16_t* positions, size_t kept, uint8_t* out) {
    // Padded to whole groups of four, which are told as zero.
    float chosen[kTopKKept + 3] = {}, magnitudes[kTopKKept];
    for (size_t i = 0; i < kept; ++i) chosen[i] = values[positions[i]];
    for (size_t i = 0; i < kept; ++i) magnitudes[i] = std::fabs(chosen[i]);
    std::sort(magnitudes, magnitudes + kept, std::greater<>());
    // In double precision neither sums nor products can leave the range.
    double sum = 0, best_sum = 0, best_count = 1;
    float smallest_told = 0;
    for (size_t j = 1; j <= kept; ++j) {
      sum += static_cast<double>(magnitudes[j - 1]);
      if (j < kept && magnitudes[j] == magnitudes[j - 1]) continue;  // Equal values are told alike.
      const auto count = static_cast<double>(j);
      if (sum * sum * best_count <= best_sum * best_sum * count) continue;
      best_sum = sum;
      best_count = count;
      smallest_told = magnitudes[j - 1];
    }
    const auto rounded = static_cast<float>(best_sum / best_count);
    std::memcpy(out, &rounded, sizeof(rounded));
    uint8_t* const packed = out + sizeof(rounded);
    uint8_t* const codes = packed + PositionBytes(kept);
    for (size_t i = 0; i < kept; i += 2) {
      const unsigned pair = positions[i] | (i + 1 < kept ? static_cast<unsigned>(positions[i + 1]) << 12 : 0);
      packed[i / 2 * 3] = static_cast<uint8_t>(pair);
      packed[i / 2 * 3 + 1] = static_cast<uint8_t>(pair >> 8);
      if (i + 1 < kept) packed[i / 2 * 3 + 2] = static_cast<uint8_t>(pair >> 16);
    }
    const auto code_of = [&](float value) {
      const unsigned told = std::fabs(value) >= smallest_told && value != 0 ? kPositive : 0;
      return told | (std::signbit(value) ? told << 1 : 0);
    };
    for (size_t i = 0; i < kept; i += 4) {
      codes[i / 4] = static_cast<uint8_t>(code_of(chosen[i]) | code_of(chosen[i + 1]) << 2 |
                                          code_of(chosen[i + 2]) << 4 | code_of(chosen[i + 3]) << 6);
    }
  }

  // Null, or what is wrong. `values` are zero before.
  static const char* DecodeChunk(const uint8_t* in, size_t count, float* values) {
    const size_t kept = Kept(count);
    uint32_t bits;
    std::memcpy(&bits, in, sizeof(bits));
    if (bits >= kInfinityBits) return "the scale is not a finite number that is not negative";
    float scale;
    std::memcpy(&scale, &bits, sizeof(scale));
    const float levels[4] = {0.0f, scale, 0.0f, -scale};
    const uint8_t* const packed = in + sizeof(bits);
    const uint8_t* const codes = packed + PositionBytes(kept);
    int last = -1;
    for (size_t i = 0; i < kept; ++i) {
      const uint8_t* const pair = packed + i / 2 * 3;
      const int position = i % 2 == 0 ? pair[0] | (pair[1] & 0xf) << 8 : pair[1] >> 4 | pair[2] << 4;
      if (position <= last) return "the positions do not rise";
      if (position >= static_cast<int>(count)) return "a position lies behind the last value";
      const int code = codes[i / 4] >> (i % 4 * 2) & 3;
      if (code == kUnused) return "a value has a code that no encoder writes";
      last = position;
      values[position] = levels[code];
    }
    if (kept % 2 == 1 && packed[kept / 2 * 3 + 1] >> 4 != 0) return "unused bits behind the positions are not zero";
    if (kept % 4 != 0 && codes[kept / 4] >> (kept % 4 * 2) != 0) return "unused bits behind the codes are not zero";
    return nullptr;
  }

  static constexpr unsigned kPositive = 1, kUnused = 2;  // 3 is negative.
};

}  // namespace

std::unique_ptr<Codec> MakeCodec(CodecKind kind, const FragmentSpan& span) {
  if (kind != CODEC_KIND_MIXED) return MakeCodec(kind);
  return MakeCodec(span.role == ParameterRole::kFeedForward ? CODEC_KIND_INT3 : CODEC_KIND_INT4);
}

size_t EncodedBytes(CodecKind kind, absl::Span<const FragmentSpan> fragments) {
  size_t bytes = 0;
  for (const FragmentSpan& span : fragments) {
    bytes += MakeCodec(kind, span)->EncodedBytes(static_cast<size_t>(span.size()));
  }
  return bytes;
}

std::unique_ptr<Codec> MakeCodec(CodecKind kind) {
  switch (kind) {
    case CODEC_KIND_FP32:
      return std::make_unique<Fp32Codec>();
    case CODEC_KIND_BF16:
      return std::make_unique<Bf16Codec>();
    case CODEC_KIND_INT8:
      return std::make_unique<BlockCodec<8>>(kind, "int8");
    case CODEC_KIND_INT4:
      return std::make_unique<BlockCodec<4>>(kind, "int4");
    case CODEC_KIND_INT3:
      return std::make_unique<BlockCodec<3>>(kind, "int3");
    case CODEC_KIND_INT2:
      return std::make_unique<BlockCodec<2>>(kind, "int2");
    case CODEC_KIND_TOPK:
      return std::make_unique<TopKCodec>();
    default:
      LOG(FATAL) << "no codec of kind " << static_cast<int>(kind);
  }
}

ErrorFeedback::ErrorFeedback(size_t size) : residual_(size) {}

absl::Status ErrorFeedback::Encode(const Codec& codec, size_t offset, absl::Span<const float> values,
                                   std::string* payload) {
  CHECK_LE(offset, residual_.size());
  CHECK_LE(values.size(), residual_.size() - offset);
  const size_t count = values.size();
  // The sums, then what the receiver will make of them.
  scratch_.resize(2 * count);
  const absl::Span<float> sums = absl::MakeSpan(scratch_).subspan(0, count);
  const absl::Span<float> decoded = absl::MakeSpan(scratch_).subspan(count);
  float* residual = residual_.data() + offset;
  for (size_t i = 0; i < count; ++i) sums[i] = values[i] + residual[i];
  absl::Status status = codec.Encode(sums, payload);
  if (!status.ok()) return status;
  status = codec.Decode(*payload, decoded);
  if (!status.ok()) {
    payload->clear();
    return status;
  }
  for (size_t i = 0; i < count; ++i) residual[i] = sums[i] - decoded[i];
  return absl::OkStatus();
}

void ErrorFeedback::Clear() { std::fill(residual_.begin(), residual_.end(), 0.0f); }

}  // namespace wukong
