// The arithmetic of the codecs, one value after the other: what every vectorised kernel must reproduce bit for bit.
// Payload pointers need no alignment. Magnitudes are compared as integers: for that order a NaN is above infinity,
// which is above every number.
#ifndef WUKONG_RUNTIME_CODEC_REFERENCE_KERNELS_H_
#define WUKONG_RUNTIME_CODEC_REFERENCE_KERNELS_H_

#include <cstddef>
#include <cstdint>

#include "runtime/codec/block_format.h"

namespace wukong {
namespace reference {

// Bits of the largest magnitude; 0 of nothing.
uint32_t LargestMagnitude(const float* values, size_t count);

// Writes 2 * count bytes; values are below what rounds to infinity.
void EncodeBf16(const float* values, size_t count, char* payload);
// Returns the bits of the largest magnitude.
uint32_t DecodeBf16(const char* payload, size_t count, float* values);

// Writes a scale of 4 bytes per block and CodeBytes(count) of codes. Returns the first block with a NaN or an infinity,
// where it stops, or the number of blocks.
template <int kBits>
size_t EncodeBlocks(const float* values, size_t count, char* scales, char* codes);
// Returns the first block whose scale is not finite (or is negative, where the scale is a magnitude) or whose codes no
// encoder writes; or the number of blocks.
template <int kBits>
size_t DecodeBlocks(const char* scales, const char* codes, size_t count, float* values);

// Writes the positions of the `keep` largest magnitudes of `count` <= kSelectMax values, rising; of equal ones the
// lower position is kept. 0 < keep <= count. Returns the bits of the largest magnitude; where that is not finite the
// positions are unspecified.
uint32_t SelectLargest(const float* values, size_t count, size_t keep, uint16_t* positions);
// Of candidates in rising order, given as magnitudes' bits and positions, those above `smallest`, and of those equal to
// it the first, until there are `keep`. As many are not below it.
void TakeLargest(const uint32_t* magnitudes, const uint32_t* candidates, size_t count, uint32_t smallest, size_t keep,
                 uint16_t* positions);

}  // namespace reference
}  // namespace wukong

#endif  // WUKONG_RUNTIME_CODEC_REFERENCE_KERNELS_H_
