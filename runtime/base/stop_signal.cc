#include "runtime/base/stop_signal.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>

#include "glog/logging.h"

namespace wukong {
namespace {

// A signal handler can reach nothing else.
std::atomic<int> g_received{0};
std::atomic<int> g_count{0};
std::atomic<int> g_pipe{-1};

void OnSignal(int signal_number) {
  const int saved = errno;
  g_received = signal_number;
  ++g_count;
  const char byte = 0;
  if (g_pipe >= 0 && ::write(g_pipe, &byte, 1) < 0) {
    // The pipe is full: whoever waits has been woken already.
  }
  errno = saved;
}

}  // namespace

StopSignal::StopSignal() {
  CHECK_EQ(g_pipe.load(), -1) << "one StopSignal at a time";
  CHECK_EQ(::pipe2(pipe_, O_NONBLOCK | O_CLOEXEC), 0);
  g_received = 0;
  g_count = 0;
  g_pipe = pipe_[1];
  struct sigaction action = {};
  action.sa_handler = OnSignal;
  sigemptyset(&action.sa_mask);
  ::sigaction(SIGINT, &action, nullptr);
  ::sigaction(SIGTERM, &action, nullptr);
  // A terminal that is closed, or a connection that is gone.
  struct sigaction before = {};
  ::sigaction(SIGHUP, nullptr, &before);
  if (before.sa_handler != SIG_IGN) ::sigaction(SIGHUP, &action, nullptr);
}

StopSignal::~StopSignal() {
  ::signal(SIGINT, SIG_DFL);
  ::signal(SIGTERM, SIG_DFL);
  struct sigaction hangup = {};
  ::sigaction(SIGHUP, nullptr, &hangup);
  if (hangup.sa_handler == OnSignal) ::signal(SIGHUP, SIG_DFL);
  g_pipe = -1;
  ::close(pipe_[0]);
  ::close(pipe_[1]);
}

int StopSignal::received() const { return g_received; }
int StopSignal::count() const { return g_count; }

bool StopSignal::WaitFor(absl::Duration timeout) const {
  if (received() == 0) {
    struct pollfd ready = {pipe_[0], POLLIN, 0};
    ::poll(&ready, 1, static_cast<int>(absl::ToInt64Milliseconds(timeout)));
    char bytes[64];
    while (::read(pipe_[0], bytes, sizeof(bytes)) > 0) {
    }
  }
  return received() != 0;
}

void StopSignal::Wake() const {
  const char byte = 0;
  if (::write(pipe_[1], &byte, 1) < 0) {
    // The pipe is full: whoever waits has been woken already.
  }
}

}  // namespace wukong
