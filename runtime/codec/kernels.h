// The arithmetic of the codecs, vectorised for each instruction set and chosen at run time (Google Highway). Each
// function has the same contract and the same bits as the one of its name in runtime/codec/reference_kernels.h: every
// operation is an IEEE one that rounds once (no reassociation, no fused multiply-add).
#ifndef WUKONG_RUNTIME_CODEC_KERNELS_H_
#define WUKONG_RUNTIME_CODEC_KERNELS_H_

#include <cstddef>
#include <cstdint>

namespace wukong {
namespace kernels {

uint32_t LargestMagnitude(const float* values, size_t count);

void EncodeBf16(const float* values, size_t count, char* payload);
uint32_t DecodeBf16(const char* payload, size_t count, float* values);

template <int kBits>
size_t EncodeBlocks(const float* values, size_t count, char* scales, char* codes);
template <int kBits>
size_t DecodeBlocks(const char* scales, const char* codes, size_t count, float* values);

uint32_t SelectLargest(const float* values, size_t count, size_t keep, uint16_t* positions);

}  // namespace kernels
}  // namespace wukong

#endif  // WUKONG_RUNTIME_CODEC_KERNELS_H_
