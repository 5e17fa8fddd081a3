#include "runtime/data/packing.h"

#include "absl/strings/match.h"

namespace wukong {

const Packing* FindPacking(absl::string_view head) {
  // The 8 of gzip is its only method. The 9 of bzip2 is the size of its blocks, its default.
  static constexpr Packing kPackings[] = {{"\x1f\x8b\x08", "gzip", "gzip -dc"},
                                          {absl::string_view("\xfd\x37zXZ\0", 6), "xz", "xz -dc"},
                                          {"\x28\xb5\x2f\xfd", "zstd", "zstd -dc"},
                                          {"BZh9\x31\x41\x59\x26\x53\x59", "bzip2", "bzip2 -dc"},
                                          {"PK\x03\x04", "zip", "unzip -p"}};
  for (const Packing& packing : kPackings) {
    if (absl::StartsWith(head, packing.magic)) return &packing;
  }
  return nullptr;
}

}  // namespace wukong
