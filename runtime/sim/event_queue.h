// Virtual time: what happens next, ordered by (time, order of coming). One thread.
#ifndef WUKONG_RUNTIME_SIM_EVENT_QUEUE_H_
#define WUKONG_RUNTIME_SIM_EVENT_QUEUE_H_

#include <algorithm>
#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/time/time.h"
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

   protected:
    ~Place() = default;
  };
  struct EventId {
    uint32_t slot = 0;
    int64_t order = -1;
  };

  absl::Time Now() const override { return now_; }
  absl::Time WallNow() const override { return now_; }
  // Since the simulation began.
  absl::Duration elapsed() const { return now_ - absl::UnixEpoch(); }

  // What is asked for in the past happens now. `place` (may be null) outlives the queue's last event.
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
    if (time <= now_) {
      due_.push_back({now_, id.order, slot});
    } else {
      heap_.push_back({time, id.order, slot});
      std::push_heap(heap_.begin(), heap_.end(), Later());
    }
    return id;
  }
  EventId After(absl::Duration delay, Action&& action, Place* place = nullptr, int64_t tag = 0) {
    return At(now_ + delay, std::move(action), place, tag);
  }

  // It does not happen, if it has not happened yet.
  void Cancel(EventId id) {
    if (id.slot >= slots_.size() || slots_[id.slot].order != id.order || slots_[id.slot].cancelled) return;
    slots_[id.slot].cancelled = true;
    slots_[id.slot].action = nullptr;
    if (++cancelled_ * 2 > heap_.size()) RemoveCancelled();
  }

  // False when nothing is left to happen until `limit`.
  bool RunOne(absl::Time limit) {
    while (!due_.empty() || !heap_.empty()) {
      Entry next;
      if (due_.empty() || (!heap_.empty() && Later()(due_.front(), heap_.front()))) {
        next = heap_.front();
        if (next.time > limit) return false;
        std::pop_heap(heap_.begin(), heap_.end(), Later());
        heap_.pop_back();
      } else {
        next = due_.front();
        if (next.time > limit) return false;
        due_.pop_front();
      }
      Slot& event = slots_[next.slot];
      if (event.cancelled) {
        if (cancelled_ > 0) --cancelled_;
        Free(next.slot);
        continue;
      }
      Action action = std::move(event.action);
      Place* const place = event.place;
      const int64_t tag = event.tag;
      Free(next.slot);
      now_ = next.time;
      ++executed_;
      if (place != nullptr) {
        place->Happen(tag, std::move(action));
      } else {
        action();
      }
      return true;
    }
    return false;
  }

  // Without those that were cancelled.
  int64_t executed() const { return executed_; }

 private:
  static constexpr uint32_t kNone = ~uint32_t{0};
  struct Entry {
    absl::Time time;
    int64_t order = 0;
    uint32_t slot = 0;
  };
  struct Later {
    bool operator()(const Entry& a, const Entry& b) const {
      return a.time != b.time ? a.time > b.time : a.order > b.order;
    }
  };
  struct Slot {
    Action action;
    Place* place = nullptr;
    int64_t tag = 0;
    int64_t order = -1;
    uint32_t next_free = kNone;
    bool cancelled = false;
  };

  void Free(uint32_t slot) {
    slots_[slot].action = nullptr;
    slots_[slot].order = -1;
    slots_[slot].cancelled = false;
    slots_[slot].next_free = free_;
    free_ = slot;
  }
  // Most timeouts never come to pass: they must not fill the queue until their time.
  void RemoveCancelled() {
    const auto dead = std::partition(heap_.begin(), heap_.end(),
                                     [this](const Entry& entry) { return !slots_[entry.slot].cancelled; });
    for (auto entry = dead; entry != heap_.end(); ++entry) Free(entry->slot);
    heap_.erase(dead, heap_.end());
    std::make_heap(heap_.begin(), heap_.end(), Later());
    cancelled_ = 0;
  }

  absl::Time now_ = absl::UnixEpoch();
  int64_t next_ = 0;
  int64_t executed_ = 0;
  size_t cancelled_ = 0;
  std::deque<Entry> due_;  // Now, in their order: half of all events happen at the time at which they are asked for.
  std::vector<Entry> heap_;
  std::vector<Slot> slots_;
  uint32_t free_ = kNone;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_EVENT_QUEUE_H_
