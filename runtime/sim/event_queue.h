// Virtual time: what happens next, ordered by (time, order of coming). One thread.
//
//   At --now--> due --------------------------------+
//      --soon, or while little is pending--> heap ---+--> RunOne: the first of the three
//      --later--> buckets --the next one is due, or nothing else is left--> opened, sorted
//
#ifndef WUKONG_RUNTIME_SIM_EVENT_QUEUE_H_
#define WUKONG_RUNTIME_SIM_EVENT_QUEUE_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <queue>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "runtime/base/clock.h"

namespace wukong {

// What an event does, once. Two words of captures cost no allocation: those of what happens most should fit.
using Action = absl::AnyInvocable<void()>;

class EventQueue final : public Clock {
 public:
  // Where an event happens, if it still can: a process may have died meanwhile. `tag` is what At was given.
  class Place {
   public:
    virtual void Happen(int64_t tag, Action&& action) = 0;
    // Of thousands of processes each is looked at for a moment, long after the last one. It may ask for memory that it
    // will need, a few events before and just before.
    virtual void Soon(int64_t /*tag*/) const {}
    virtual void VerySoon(int64_t /*tag*/) const {}

   protected:
    ~Place() = default;
  };
  static void Prefetch(const void* address) { __builtin_prefetch(address); }
  // What was there may be gone.
  static void Prefetch(absl::Span<const char> memory) {
    const auto first = reinterpret_cast<uintptr_t>(memory.data());
    for (uintptr_t at = first / kLine * kLine; at < first + memory.size(); at += kLine) {
      Prefetch(reinterpret_cast<const void*>(at));
    }
  }
  // The first word of an action points at what it captures, or is the first of that.
  static void PrefetchCaptures(const Action& action) {
    uintptr_t first = 0;
    std::memcpy(&first, &action, sizeof(first));
    for (uintptr_t line = 0; line < 3; ++line) Prefetch(reinterpret_cast<const void*>(first + kLine * line));
  }
  static constexpr size_t kLine = 64;  // Bytes of a cache line, about.
  struct EventId {
    uint32_t slot = 0;
    int64_t order = -1;
  };

  absl::Time Now() const override { return TimeOf(now_); }
  absl::Time WallNow() const override { return Now(); }
  // Since the simulation began.
  absl::Duration elapsed() const { return absl::Nanoseconds(now_); }

  // At the first whole nanosecond that is not before `time`; what is asked for in the past happens now. `place` (may be
  // null) outlives the queue's last event.
  EventId At(absl::Time time, Action&& action, Place* place = nullptr, int64_t tag = 0) {
    uint32_t slot = free_;
    if (slot == kNone) {
      slot = static_cast<uint32_t>(slots_.size());
      slots_.emplace_back();
    } else {
      free_ = slots_[slot].next_free;
    }
    const EventId id{slot, next_++};
    Slot& event = slots_[slot];
    event.action = std::move(action);
    event.place = place;
    event.tag = tag;
    event.order = id.order;
    const Entry entry{std::clamp(NotBefore(time), now_, kLatest), id.order, slot};
    if (entry.time == now_) {
      due_.push_back(entry);
    } else if (entry.time < opened_until_ || heap_.size() < kFew) {
      heap_.push_back(entry);
      std::push_heap(heap_.begin(), heap_.end(), Later());
    } else {
      const int64_t number = entry.time >> kBucketBits;
      const auto [bucket, fresh] = buckets_.try_emplace(number);
      if (fresh) {
        bucket_numbers_.push(number);
        if (!spare_.empty()) {
          bucket->second = std::move(spare_.back());
          spare_.pop_back();
        }
      }
      bucket->second.push_back(entry);
    }
    return id;
  }
  EventId After(absl::Duration delay, Action&& action, Place* place = nullptr, int64_t tag = 0) {
    return At(Now() + delay, std::move(action), place, tag);
  }

  // It does not happen, if it has not happened yet.
  void Cancel(EventId id) {
    if (id.order < 0 || id.slot >= slots_.size() || slots_[id.slot].order != id.order) return;
    Free(id.slot);
    // Most timeouts never come to pass: they must not fill the queue until their time.
    if (++cancelled_ > kManyCancelled && cancelled_ > 4 * slots_.size()) RemoveCancelled();
  }

  // False when nothing is left to happen until `limit`.
  bool RunOne(absl::Time limit) {
    const int64_t last = absl::ToUnixNanos(limit);
    while (true) {
      const Entry* next = due_.empty() ? nullptr : &due_.front();
      if (!heap_.empty() && (next == nullptr || Later()(*next, heap_.front()))) next = &heap_.front();
      if (opened_at_ < opened_.size()) {
        if (next == nullptr || Later()(*next, opened_[opened_at_])) next = &opened_[opened_at_];
      } else if (!bucket_numbers_.empty() && (next == nullptr || next->time >= bucket_numbers_.top() << kBucketBits)) {
        OpenBucket();
        continue;
      }
      if (next == nullptr || next->time > last) return false;
      const Entry entry = *next;
      if (!due_.empty() && next == &due_.front()) {
        due_.pop_front();
      } else if (!heap_.empty() && next == &heap_.front()) {
        std::pop_heap(heap_.begin(), heap_.end(), Later());
        heap_.pop_back();
        if (!heap_.empty()) Prefetch(&slots_[heap_.front().slot]);
      } else {
        ++opened_at_;
        LookAhead();
      }
      Slot& event = slots_[entry.slot];
      if (event.order != entry.order) {
        --cancelled_;
        continue;
      }
      Action action = std::move(event.action);
      Place* const place = event.place;
      const int64_t tag = event.tag;
      Free(entry.slot);
      now_ = entry.time;
      ++executed_;
      if (place != nullptr) {
        place->Happen(tag, std::move(action));
      } else {
        action();
      }
      return true;
    }
  }

  // Without those that were cancelled.
  int64_t executed() const { return executed_; }
  // How many of those that were cancelled still take up memory.
  size_t kept() const { return cancelled_; }

 private:
  static constexpr uint32_t kNone = ~uint32_t{0};
  // What is far away waits unsorted in buckets of 2^kBucketBits nanoseconds (4 ms), so that with thousands of processes
  // few events are sorted at a time, in memory that stays in the cache. (R. Brown, Calendar queues, CACM 1988.)
  static constexpr int kBucketBits = 22;
  static constexpr int64_t kLatest = (int64_t{1} << 62) - 1;
  static constexpr size_t kFew = 256;  // With so few pending events buckets would cost more than they save.
  static constexpr size_t kManyCancelled = 1 << 16;
  struct Entry {
    int64_t time = 0;  // Nanoseconds.
    int64_t order = 0;
    uint32_t slot = 0;
  };
  struct Later {
    bool operator()(const Entry& a, const Entry& b) const {
      return a.time != b.time ? a.time > b.time : a.order > b.order;
    }
  };
  // One line of the cache.
  struct alignas(64) Slot {
    Action action;
    Place* place = nullptr;
    int64_t tag = 0;
    int64_t order = -1;
    uint32_t next_free = kNone;
  };
  static_assert(sizeof(Slot) == 64);

  static int64_t NotBefore(absl::Time time) {
    const int64_t nanoseconds = absl::ToUnixNanos(time);
    return nanoseconds < kLatest && TimeOf(nanoseconds) < time ? nanoseconds + 1 : nanoseconds;
  }
  static absl::Time TimeOf(int64_t nanoseconds) { return absl::FromUnixNanos(nanoseconds); }
  void Free(uint32_t slot) {
    slots_[slot].action = nullptr;
    slots_[slot].place = nullptr;
    slots_[slot].order = -1;
    slots_[slot].next_free = free_;
    free_ = slot;
  }
  bool Cancelled(const Entry& entry) const { return slots_[entry.slot].order != entry.order; }

  void OpenBucket() {
    const int64_t number = bucket_numbers_.top();
    bucket_numbers_.pop();
    const auto bucket = buckets_.find(number);
    opened_.swap(bucket->second);
    bucket->second.clear();
    spare_.push_back(std::move(bucket->second));
    buckets_.erase(bucket);
    cancelled_ -= RemoveCancelledFrom(&opened_);
    std::sort(opened_.begin(), opened_.end(), [](const Entry& a, const Entry& b) { return Later()(b, a); });
    opened_at_ = 0;
    opened_until_ = (number + 1) << kBucketBits;
  }
  size_t RemoveCancelledFrom(std::vector<Entry>* entries) const {
    const auto dead =
        std::remove_if(entries->begin(), entries->end(), [this](const Entry& entry) { return Cancelled(entry); });
    const auto count = static_cast<size_t>(entries->end() - dead);
    entries->erase(dead, entries->end());
    return count;
  }
  void RemoveCancelled() {
    for (auto& [number, bucket] : buckets_) cancelled_ -= RemoveCancelledFrom(&bucket);
    cancelled_ -= RemoveCancelledFrom(&heap_);
    std::make_heap(heap_.begin(), heap_.end(), Later());
  }

  const Slot* Ahead(size_t events) const {
    return opened_at_ + events < opened_.size() ? &slots_[opened_[opened_at_ + events].slot] : nullptr;
  }
  void LookAhead() const {
    if (const Slot* slot = Ahead(9)) Prefetch(slot);
    if (const Slot* slot = Ahead(6)) {
      Prefetch(slot->place);
      if (slot->action) PrefetchCaptures(slot->action);
    }
    if (const Slot* slot = Ahead(4); slot != nullptr && slot->place != nullptr) slot->place->Soon(slot->tag);
    if (const Slot* slot = Ahead(2); slot != nullptr && slot->place != nullptr) slot->place->VerySoon(slot->tag);
  }

  int64_t now_ = 0;  // Nanoseconds since the simulation began.
  int64_t next_ = 0;
  int64_t executed_ = 0;
  size_t cancelled_ = 0;   // Still among the entries.
  std::deque<Entry> due_;  // Now, in their order: half of all events happen at the time at which they are asked for.
  std::vector<Entry> heap_;
  std::vector<Entry> opened_;  // The bucket that was opened last, sorted; up to opened_at_ it has happened.
  size_t opened_at_ = 0;
  int64_t opened_until_ = 0;  // What comes before this goes to the heap.
  absl::flat_hash_map<int64_t, std::vector<Entry>> buckets_;
  std::priority_queue<int64_t, std::vector<int64_t>, std::greater<>> bucket_numbers_;
  std::vector<std::vector<Entry>> spare_;  // Empty ones, for their memory.
  std::vector<Slot> slots_;
  uint32_t free_ = kNone;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_EVENT_QUEUE_H_
