// What nodes of the tree say to each other, as the state machines see it.
#ifndef WUKONG_RUNTIME_SYNC_TYPES_H_
#define WUKONG_RUNTIME_SYNC_TYPES_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "proto/wire.pb.h"
#include "runtime/base/ids.h"

namespace wukong {

// One life of a member.
struct MemberKey {
  MemberId member;
  Incarnation incarnation;
  friend bool operator==(MemberKey a, MemberKey b) { return a.member == b.member && a.incarnation == b.incarnation; }
  friend bool operator<(MemberKey a, MemberKey b) {
    return a.member != b.member ? a.member < b.member : a.incarnation < b.incarnation;
  }
  template <typename H>
  friend H AbslHashValue(H h, MemberKey key) {
    return H::combine(std::move(h), key.member, key.incarnation);
  }
};

// Samples [begin, end), under the lease `token`.
struct LeasedRange {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t token = 0;
  int64_t size() const { return end - begin; }
  friend bool operator==(const LeasedRange& a, const LeasedRange& b) {
    return a.begin == b.begin && a.end == b.end && a.token == b.token;
  }
};

// What a contribution says of itself.
struct Manifest {
  MemberKey sender;
  Sequence sequence;
  Version base;       // Oldest version of the parent that any of its steps began from.
  Version root_base;  // Likewise of the root.
  int64_t steps = 0;
  int64_t tokens = 0;
  std::vector<LeasedRange> ranges;
  bool last = false;  // The sender has no data left, and knows of none to come.
};

// Joins neighbouring ranges of one lease; sorts by begin.
std::vector<LeasedRange> Coalesce(std::vector<LeasedRange> ranges);

Manifest ManifestFromProto(const ContributionHeader& header);
void ManifestToProto(const Manifest& manifest, ContributionHeader* header);
LeasedRange RangeFromProto(const SampleRange& range);
SampleRange RangeToProto(const LeasedRange& range);

// One word for logs and reports, as in "stale".
const char* VerdictName(Verdict verdict);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SYNC_TYPES_H_
