// What packed files begin with.
#ifndef WUKONG_RUNTIME_DATA_PACKING_H_
#define WUKONG_RUNTIME_DATA_PACKING_H_

#include <cstddef>

#include "absl/strings/string_view.h"

namespace wukong {

struct Packing {
  absl::string_view magic;
  const char* name;
  const char* unpack;  // Writes what is in it to standard output.
};

constexpr size_t kPackingMagicMax = 10;

// By the first bytes of a file, kPackingMagicMax of them where it has as many; null: gzip, xz, zstd, bzip2 and zip do
// not begin so.
const Packing* FindPacking(absl::string_view head);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_DATA_PACKING_H_
