// Values with every bit, and files as other programs make them.
#ifndef WUKONG_RUNTIME_STORAGE_SAFETENSORS_TEST_UTIL_H_
#define WUKONG_RUNTIME_STORAGE_SAFETENSORS_TEST_UTIL_H_

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace wukong {

inline float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline std::vector<uint32_t> Bits(absl::Span<const float> values) {
  std::vector<uint32_t> bits(values.size());
  if (!values.empty()) std::memcpy(bits.data(), values.data(), values.size() * sizeof(float));
  return bits;
}

inline std::string FileOf(absl::string_view header, absl::string_view buffer) {
  const uint64_t length = header.size();
  return absl::StrCat(absl::string_view(reinterpret_cast<const char*>(&length), sizeof(length)), header, buffer);
}

}  // namespace wukong

#endif  // WUKONG_RUNTIME_STORAGE_SAFETENSORS_TEST_UTIL_H_
