// Strong types for the numbers that name things, so that a version cannot be passed where a sequence is meant.
#ifndef WUKONG_RUNTIME_BASE_IDS_H_
#define WUKONG_RUNTIME_BASE_IDS_H_

#include <cstdint>
#include <ostream>

namespace wukong {

template <typename Tag>
class StrongId {
 public:
  constexpr StrongId() = default;
  constexpr explicit StrongId(int64_t value) : value_(value) {}
  constexpr int64_t value() const { return value_; }

  friend constexpr bool operator==(StrongId a, StrongId b) { return a.value_ == b.value_; }
  friend constexpr bool operator!=(StrongId a, StrongId b) { return a.value_ != b.value_; }
  friend constexpr bool operator<(StrongId a, StrongId b) { return a.value_ < b.value_; }
  friend constexpr bool operator<=(StrongId a, StrongId b) { return a.value_ <= b.value_; }
  friend constexpr bool operator>(StrongId a, StrongId b) { return a.value_ > b.value_; }
  friend constexpr bool operator>=(StrongId a, StrongId b) { return a.value_ >= b.value_; }
  friend std::ostream& operator<<(std::ostream& out, StrongId id) { return out << id.value_; }
  template <typename H>
  friend H AbslHashValue(H h, StrongId id) {
    return H::combine(std::move(h), id.value_);
  }

 private:
  int64_t value_ = 0;
};

// A member of the job (a worker or an aggregator), unique over the run.
using MemberId = StrongId<struct MemberTag>;
// Which life of a member; a new life fences the ones before it.
using Incarnation = StrongId<struct IncarnationTag>;
// Of a node's public parameters. Only rises.
using Version = StrongId<struct VersionTag>;
// Of one sender's contributions: 1, 2, 3, ...
using Sequence = StrongId<struct SequenceTag>;
// Names a vector that the driver holds; state machines never see the vector itself.
using Handle = StrongId<struct HandleTag>;

}  // namespace wukong

#endif  // WUKONG_RUNTIME_BASE_IDS_H_
