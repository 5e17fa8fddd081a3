#include "runtime/fault/active_faults.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "glog/logging.h"

namespace wukong {

bool ActiveFaults::Take(const FaultOrder& order, absl::Time now) {
  if (order.number() <= heard_) return false;
  heard_ = order.number();
  if (order.fault() == FAULT_KIND_KILL || order.fault() == FAULT_KIND_FREEZE) return true;
  const absl::Time end = order.for_ns() > 0 ? now + absl::Nanoseconds(order.for_ns()) : absl::InfiniteFuture();
  lasting_.emplace_back(order, end);
  return false;
}

Damage ActiveFaults::At(absl::Time now) const {
  Damage damage;
  for (const auto& [order, end] : lasting_) {
    if (now >= end) continue;
    switch (order.fault()) {
      case FAULT_KIND_SLOW:
        damage.slow *= order.factor();
        break;
      case FAULT_KIND_NAN:
        damage.nan = true;
        break;
      case FAULT_KIND_SIGN_FLIP:
        damage.scale = -damage.scale;
        break;
      case FAULT_KIND_SCALE:
        damage.scale *= order.factor();
        break;
      default:
        break;
    }
  }
  return damage;
}

void CarryOutOnThisProcess(const FaultOrder& order) {
  LOG(WARNING) << "fault injection: " << FaultKind_Name(order.fault()) << ", order " << order.number();
  google::FlushLogFiles(google::INFO);
  const pid_t self = ::getpid();
  if (order.fault() == FAULT_KIND_KILL) {
    ::kill(self, SIGKILL);
    return;
  }
  timespec left = {};
  left.tv_sec = static_cast<time_t>(order.for_ns() / 1'000'000'000);
  left.tv_nsec = static_cast<long>(order.for_ns() % 1'000'000'000);
  int stopped[2];
  if (::pipe2(stopped, O_CLOEXEC) != 0) {
    PLOG(ERROR) << "fault injection: no pipe; the freeze does not happen";
    return;
  }
  const pid_t waker = ::fork();
  if (waker == 0) {
    // Only what may be called after a fork in a process with threads.
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != self) ::_exit(1);
    ::kill(self, SIGSTOP);     // Not by itself: it might not be stopped yet when it is woken.
    ::close_range(0, ~0U, 0);  // It must not hold our sockets. This ends the wait below.
    while (::nanosleep(&left, &left) != 0) {
    }
    ::kill(self, SIGCONT);
    ::_exit(0);
  }
  if (waker < 0) {
    PLOG(ERROR) << "fault injection: no process can be started that would end the freeze; it does not happen";
  }
  ::close(stopped[1]);
  char nothing = 0;
  while (::read(stopped[0], &nothing, 1) < 0 && errno == EINTR) {
  }
  ::close(stopped[0]);
  if (waker > 0) std::thread([waker] { ::waitpid(waker, nullptr, 0); }).detach();
}

}  // namespace wukong
