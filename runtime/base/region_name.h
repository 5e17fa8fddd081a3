// What a region may be called: a label of a host name.
#ifndef WUKONG_RUNTIME_BASE_REGION_NAME_H_
#define WUKONG_RUNTIME_BASE_REGION_NAME_H_

#include <algorithm>
#include <cstddef>

#include "absl/strings/ascii.h"
#include "absl/strings/string_view.h"

namespace wukong {

inline constexpr size_t kRegionNameMax = 63;

// At most kRegionNameMax letters, digits and '-', not beginning with '-', and not nothing.
inline bool IsRegionName(absl::string_view name) {
  return !name.empty() && name.size() <= kRegionNameMax && name[0] != '-' &&
         std::all_of(name.begin(), name.end(), [](char c) { return absl::ascii_isalnum(c) || c == '-'; });
}

}  // namespace wukong

#endif  // WUKONG_RUNTIME_BASE_REGION_NAME_H_
