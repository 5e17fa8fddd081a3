// Virtual time: what happens next, ordered by (time, order of coming). One thread.
#ifndef WUKONG_RUNTIME_SIM_EVENT_QUEUE_H_
#define WUKONG_RUNTIME_SIM_EVENT_QUEUE_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "runtime/base/clock.h"

namespace wukong {

class EventQueue final : public Clock {
 public:
  absl::Time Now() const override { return now_; }
  absl::Time WallNow() const override { return now_; }
  // Since the simulation began.
  absl::Duration elapsed() const { return now_ - absl::UnixEpoch(); }

  // What is asked for in the past happens now.
  void At(absl::Time time, std::function<void()> action) {
    heap_.push_back({std::max(time, now_), next_++, std::move(action)});
    std::push_heap(heap_.begin(), heap_.end(), Later);
  }
  void After(absl::Duration delay, std::function<void()> action) { At(now_ + delay, std::move(action)); }

  // False when nothing is left to happen until `limit`.
  bool RunOne(absl::Time limit) {
    if (heap_.empty() || heap_.front().time > limit) return false;
    std::pop_heap(heap_.begin(), heap_.end(), Later);
    const Event event = std::move(heap_.back());
    heap_.pop_back();
    now_ = event.time;
    ++executed_;
    event.action();
    return true;
  }

  int64_t executed() const { return executed_; }

 private:
  struct Event {
    absl::Time time;
    int64_t order = 0;
    std::function<void()> action;
  };
  static bool Later(const Event& a, const Event& b) { return a.time != b.time ? a.time > b.time : a.order > b.order; }

  absl::Time now_ = absl::UnixEpoch();
  int64_t next_ = 0;
  int64_t executed_ = 0;
  std::vector<Event> heap_;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_EVENT_QUEUE_H_
