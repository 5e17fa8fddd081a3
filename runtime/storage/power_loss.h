// What a disk keeps of bytes that nobody synced: the same rule for files in memory and for real ones. Pure.
#ifndef WUKONG_RUNTIME_STORAGE_POWER_LOSS_H_
#define WUKONG_RUNTIME_STORAGE_POWER_LOSS_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "runtime/base/random.h"

namespace wukong {

// Bytes of a file, from `begin` up to `end`.
struct ByteRange {
  int64_t begin = 0;
  int64_t end = 0;
};

// Small, so that small records are torn too.
inline constexpr int64_t kSectorBytes = 32;

// Any of the sectors of bytes [clean, size) reach the disk. Rising; neighbours are one range. Where a file has grown,
// there are zeros in what lies between them.
inline std::vector<ByteRange> SomeSectors(int64_t clean, int64_t size, Random* random) {
  std::vector<ByteRange> kept;
  for (int64_t at = clean; at < size;) {
    const int64_t end = std::min(size, (at / kSectorBytes + 1) * kSectorBytes);
    if (random->Below(2) == 0) {
      if (!kept.empty() && kept.back().end == at) {
        kept.back().end = end;
      } else {
        kept.push_back({at, end});
      }
    }
    at = end;
  }
  return kept;
}

// What a machine that lost power finds of bytes [clean, size) when it starts again: nothing, a part from the beginning
// (which may be empty), or any sectors.
inline std::vector<ByteRange> LeftByPowerLoss(int64_t clean, int64_t size, Random* random) {
  switch (random->Below(3)) {
    case 0:
      return {};
    case 1:
      return {{clean, clean + static_cast<int64_t>(random->Below(static_cast<uint64_t>(size - clean) + 1))}};
    default:
      return SomeSectors(clean, size, random);
  }
}

}  // namespace wukong

#endif  // WUKONG_RUNTIME_STORAGE_POWER_LOSS_H_
