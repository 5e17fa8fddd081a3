#include "runtime/base/executor.h"

#include <pthread.h>

#include <utility>

#include "absl/time/clock.h"

namespace wukong {

Executor::Executor(const std::string& name) : thread_([this] { Run(); }) {
  pthread_setname_np(thread_.native_handle(), name.substr(0, 15).c_str());
}

Executor::~Executor() { Shutdown(); }

bool Executor::Post(std::function<void()> work) {
  MutexLock lock(mutex_);
  if (stopping_) return false;
  queue_.push_back(std::move(work));
  changed_.NotifyOne();
  return true;
}

void Executor::Shutdown() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

void Executor::Run() {
  while (true) {
    std::function<void()> work;
    {
      MutexLock lock(mutex_);
      while (queue_.empty() && !stopping_) changed_.Wait(mutex_);
      if (queue_.empty()) return;
      work = std::move(queue_.front());
      queue_.pop_front();
    }
    work();
  }
}

bool Notification::WaitFor(absl::Duration timeout) const {
  const absl::Time deadline = absl::Now() + timeout;
  MutexLock lock(mutex_);
  while (!notified_) {
    const absl::Duration left = deadline - absl::Now();
    if (left <= absl::ZeroDuration()) return false;
    changed_.WaitFor(mutex_, left);
  }
  return true;
}

}  // namespace wukong
