// Room for contributions that come in, from their bytes to their verdict. What does not fit waits in the sender's
// window.
#ifndef WUKONG_RUNTIME_TRANSPORT_STAGING_ROOM_H_
#define WUKONG_RUNTIME_TRANSPORT_STAGING_ROOM_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/base/mutex.h"

namespace wukong {

// Bytes are counted when they come: a contribution over a slow link takes no room for what is still on its way. Where
// several that have begun do not fit together, one at a time goes on beyond the bound, the first that came to it, so
// that there is always one that ends. What is kept of contributions that broke off makes room first. Thread-safe.
class StagingRoom {
 public:
  // What one contribution occupies. Its owner gives it back (Return) before it goes.
  class Share {
    friend class StagingRoom;
    int64_t bytes_ = 0;
    bool returned_ = false;
  };

  // `make_room` returns the share of one that broke off; false when there is none. Called without a lock, by Take.
  explicit StagingRoom(int64_t bytes, std::function<bool()> make_room = nullptr)
      : bytes_max_(bytes), make_room_(std::move(make_room)) {}

  // Takes room for `bytes` more; waits for it. CANCELLED: `gone` said so, which is asked now and then. UNAVAILABLE:
  // after Shutdown.
  absl::Status Take(Share* share, int64_t bytes, const std::function<bool()>& gone) {
    constexpr absl::Duration kAskWhetherGone = absl::Milliseconds(200);
    while (true) {
      while (IsFull(*share, bytes) && make_room_ && make_room_()) {
      }
      MutexLock lock(mutex_);
      if (stopping_) return absl::UnavailableError("this node is shutting down");
      if (share->returned_) return absl::CancelledError("the contribution is over");
      if (used_ == share->bytes_ || used_ + bytes <= bytes_max_ || beyond_ == nullptr || beyond_ == share) {
        if (used_ + bytes > bytes_max_) beyond_ = share;
        Add(share, bytes);
        return absl::OkStatus();
      }
      changed_.WaitFor(mutex_, kAskWhetherGone);
      if (gone()) return absl::CancelledError("the sender is gone");
    }
  }
  // The contribution broke off, and may come again: another one may go on beyond the bound in its place.
  void Rest(const Share* share) {
    MutexLock lock(mutex_);
    if (beyond_ != share) return;
    beyond_ = nullptr;
    changed_.NotifyAll();
  }
  // Gives `from` back, and to `to`, which goes on with it, `bytes` of it at once.
  void PassOn(Share* from, Share* to, int64_t bytes) {
    MutexLock lock(mutex_);
    const bool beyond = beyond_ == from;
    GiveBack(from);
    Add(to, bytes);
    if (beyond && used_ > bytes_max_) beyond_ = to;
  }
  // Gives all of it back; a second time changes nothing.
  void Return(Share* share) {
    MutexLock lock(mutex_);
    GiveBack(share);
  }
  void Shutdown() {
    MutexLock lock(mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  // The most that there was so far.
  int64_t used_max() const {
    MutexLock lock(mutex_);
    return used_max_;
  }

 private:
  // There is no room for so many more.
  bool IsFull(const Share& share, int64_t bytes) const {
    MutexLock lock(mutex_);
    return used_ > share.bytes_ && used_ + bytes > bytes_max_ && beyond_ != &share && !share.returned_ && !stopping_;
  }
  void Add(Share* share, int64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    share->bytes_ += bytes;
    used_ += bytes;
    used_max_ = std::max(used_max_, used_);
  }
  void GiveBack(Share* share) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    used_ -= share->bytes_;
    share->bytes_ = 0;
    share->returned_ = true;
    if (beyond_ == share) beyond_ = nullptr;
    changed_.NotifyAll();
  }

  const int64_t bytes_max_;
  const std::function<bool()> make_room_;
  mutable Mutex mutex_;
  CondVar changed_;
  int64_t used_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t used_max_ ABSL_GUARDED_BY(mutex_) = 0;
  const Share* beyond_ ABSL_GUARDED_BY(mutex_) = nullptr;  // Goes on beyond the bound.
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_TRANSPORT_STAGING_ROOM_H_
