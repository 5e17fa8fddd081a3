// Room for contributions that come in, from their bytes to their verdict. What does not fit waits in the sender's
// window.
#ifndef WUKONG_RUNTIME_TRANSPORT_STAGING_ROOM_H_
#define WUKONG_RUNTIME_TRANSPORT_STAGING_ROOM_H_

#include <algorithm>
#include <cstdint>
#include <functional>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/base/mutex.h"

namespace wukong {

// Bytes are counted when they come: a contribution over a slow link takes no room for what is still on its way. Where
// several that have begun do not fit together, one at a time goes on beyond the bound, the first that came to it, so
// that there is always one that ends. Thread-safe.
class StagingRoom {
 public:
  // What one contribution occupies. Its owner gives it back (Return) before it goes.
  class Share {
    friend class StagingRoom;
    int64_t bytes_ = 0;
    bool returned_ = false;
  };

  explicit StagingRoom(int64_t bytes) : bytes_max_(bytes) {}

  // Takes room for `bytes` more; waits for it. CANCELLED: `gone` said so, which is asked now and then. UNAVAILABLE:
  // after Shutdown.
  absl::Status Take(Share* share, int64_t bytes, const std::function<bool()>& gone) {
    constexpr absl::Duration kAskWhetherGone = absl::Milliseconds(200);
    MutexLock lock(mutex_);
    while (used_ > share->bytes_ && used_ + bytes > bytes_max_ && beyond_ != nullptr && beyond_ != share &&
           !stopping_ && !share->returned_) {
      changed_.WaitFor(mutex_, kAskWhetherGone);
      if (gone()) return absl::CancelledError("the sender is gone");
    }
    if (stopping_) return absl::UnavailableError("this node is shutting down");
    if (share->returned_) return absl::CancelledError("the contribution is over");
    if (used_ + bytes > bytes_max_) beyond_ = share;
    share->bytes_ += bytes;
    used_ += bytes;
    used_max_ = std::max(used_max_, used_);
    return absl::OkStatus();
  }
  // Gives all of it back; a second time changes nothing.
  void Return(Share* share) {
    MutexLock lock(mutex_);
    used_ -= share->bytes_;
    share->bytes_ = 0;
    share->returned_ = true;
    if (beyond_ == share) beyond_ = nullptr;
    changed_.NotifyAll();
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
  const int64_t bytes_max_;
  mutable Mutex mutex_;
  CondVar changed_;
  int64_t used_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t used_max_ ABSL_GUARDED_BY(mutex_) = 0;
  const Share* beyond_ ABSL_GUARDED_BY(mutex_) = nullptr;  // Goes on beyond the bound.
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_TRANSPORT_STAGING_ROOM_H_
