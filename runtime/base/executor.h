// A thread with a queue: work posted to one executor runs in order, one piece at a time.
#ifndef WUKONG_RUNTIME_BASE_EXECUTOR_H_
#define WUKONG_RUNTIME_BASE_EXECUTOR_H_

#include <deque>
#include <functional>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "runtime/base/mutex.h"

namespace wukong {

// Thread-safe. The destructor runs what is queued, then joins.
class Executor {
 public:
  explicit Executor(const std::string& name);
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  // False, and the work is dropped, once Shutdown was called.
  bool Post(std::function<void()> work);
  // Pieces of work that wait.
  int queued() const {
    MutexLock lock(mutex_);
    return static_cast<int>(queue_.size());
  }
  // Runs what is queued, then stops. Must not be called from the executor's own thread.
  void Shutdown();

 private:
  void Run();

  mutable Mutex mutex_;
  CondVar changed_;
  std::deque<std::function<void()>> queue_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

// Set once, waited for by many. Thread-safe.
class Notification {
 public:
  void Notify() {
    MutexLock lock(mutex_);
    notified_ = true;
    changed_.NotifyAll();
  }
  bool HasBeenNotified() const {
    MutexLock lock(mutex_);
    return notified_;
  }
  // True when notified within `timeout`.
  bool WaitFor(absl::Duration timeout) const;

 private:
  mutable Mutex mutex_;
  mutable CondVar changed_;
  bool notified_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_BASE_EXECUTOR_H_
