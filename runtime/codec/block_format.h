// Where the bits of a block are. A block is quantized to one grid: its scale, and one small integer per value.
//
// A block of n values has its codes at a stride, so that packing is shifts of whole bytes on every instruction set:
//   8 bits  byte i is value i
//   4 bits  stride s = ceil(n / 2): byte j holds value j in its lower half and value j + s in its upper one
//   2 bits  stride s = ceil(n / 4): byte j holds value j + k s in bits 2k and 2k + 1
//   3 bits  the lower two bits of each code as with 2 bits, then the upper bit of each at stride s = ceil(n / 8): byte
//   j
//           holds that of value j + k s in bit k
// Codes are two's complement; bits that no value has are zero.
#ifndef WUKONG_RUNTIME_CODEC_BLOCK_FORMAT_H_
#define WUKONG_RUNTIME_CODEC_BLOCK_FORMAT_H_

#include <cstddef>
#include <cstdint>

namespace wukong {

template <int kBits>
struct BlockFormat {
  static_assert(kBits == 8 || kBits == 4 || kBits == 3 || kBits == 2, "a width that has a layout");
  // Values of a block; the last of a vector may be shorter.
  static constexpr size_t kValues = kBits == 8 ? 256 : 128;
  // The scale of 2 bits is the value of largest magnitude with its sign, and has the code -2; else it is the magnitude.
  static constexpr bool kSignedScale = kBits == 2;
  // The code of a value that equals the scale.
  static constexpr float kScaleCode = kBits == 8 ? 127.0f : kBits == 4 ? 7.0f : kBits == 3 ? 3.0f : -2.0f;
  // A value is (code * kUnit) * scale, each product rounded to nearest even.
  static constexpr float kUnit = 1.0f / kScaleCode;
  static_assert(kScaleCode * kUnit == 1.0f, "the largest value of a block comes back exactly");
  // The code that no encoder writes; none with 2 bits, whose four codes are all levels.
  static constexpr bool kHasBadCode = kBits != 2;
  static constexpr int kBadCode = -(1 << (kBits - 1));
  static constexpr uint8_t kMask = static_cast<uint8_t>((1 << kBits) - 1);

  static constexpr size_t Blocks(size_t count) { return (count + kValues - 1) / kValues; }
  // Bytes of the codes of one block of `count` values.
  static constexpr size_t BlockBytes(size_t count) {
    return kBits == 8   ? count
           : kBits == 4 ? (count + 1) / 2
           : kBits == 3 ? (count + 3) / 4 + (count + 7) / 8
                        : (count + 3) / 4;
  }
  // Bytes of the codes of a vector.
  static constexpr size_t CodeBytes(size_t count) {
    return count / kValues * BlockBytes(kValues) + BlockBytes(count % kValues);
  }
};

// The most values of which the largest are chosen at once: their positions have 12 bits.
constexpr size_t kSelectMax = 4096;

constexpr uint32_t kInfinityBits = 0x7f800000;
constexpr uint32_t kMagnitudeMask = 0x7fffffff;

// Whether an encoder may write this scale: finite, no negative magnitude, no -0.
template <int kBits>
constexpr bool GoodScale(uint32_t bits) {
  const uint32_t negative_zero = kMagnitudeMask + 1;
  return (bits & kMagnitudeMask) < kInfinityBits &&
         (BlockFormat<kBits>::kSignedScale ? bits != negative_zero : bits < negative_zero);
}

// What a block's values are multiplied with first, a power of two, so that neither kScaleCode / scale overflows nor it
// is denormal.
constexpr float BlockLift(float magnitude) {
  return magnitude < 0x1p-60f ? 0x1p80f : magnitude > 0x1p100f ? 0x1p-80f : 1.0f;
}

// Adding 1.5 * 2^23 leaves no fraction bits: the processor rounds to nearest even, and the low byte is the integer in
// two's complement.
constexpr float kRoundingMagic = 12582912.0f;

}  // namespace wukong

#endif  // WUKONG_RUNTIME_CODEC_BLOCK_FORMAT_H_
