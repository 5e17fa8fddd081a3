#include "runtime/data/packing.h"

#include "absl/strings/match.h"

namespace wukong {

namespace {

// Its three bytes alone may be those of two tokens: flags, kind of compression and system of RFC 1952 as well.
bool LooksLikeGzip(absl::string_view head) {
  if (head.size() < kPackingMagicMax) return false;
  const auto flags = static_cast<unsigned char>(head[3]), kind = static_cast<unsigned char>(head[8]),
             system = static_cast<unsigned char>(head[9]);
  return (flags & 0xe0) == 0 && (kind == 0 || kind == 2 || kind == 4) && (system <= 13 || system == 255);
}

}  // namespace

const Packing* FindPacking(absl::string_view head) {
  // The 8 of gzip is its only method. The 9 of bzip2 is the size of its blocks, its default.
  static constexpr Packing kPackings[] = {{"\x1f\x8b\x08", "gzip", "gzip -dc"},
                                          {absl::string_view("\xfd\x37zXZ\0", 6), "xz", "xz -dc"},
                                          {"\x28\xb5\x2f\xfd", "zstd", "zstd -dc"},
                                          {"BZh9\x31\x41\x59\x26\x53\x59", "bzip2", "bzip2 -dc"},
                                          {"PK\x03\x04", "zip", "unzip -p"}};
  for (const Packing& packing : kPackings) {
    if (absl::StartsWith(head, packing.magic) && (&packing != kPackings || LooksLikeGzip(head))) return &packing;
  }
  return nullptr;
}

}  // namespace wukong
