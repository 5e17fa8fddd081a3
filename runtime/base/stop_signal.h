// SIGINT, SIGTERM and SIGHUP as something to wait for.
#ifndef WUKONG_RUNTIME_BASE_STOP_SIGNAL_H_
#define WUKONG_RUNTIME_BASE_STOP_SIGNAL_H_

#include "absl/time/time.h"

namespace wukong {

// From its making until its end, SIGINT, SIGTERM and, unless it was ignored (nohup), SIGHUP set a flag in place of
// ending the process. One at a time. One thread waits; any may wake it.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // The signal that came, or 0.
  int received() const;
  // How many have come.
  int count() const;
  // Sleeps up to `timeout`, less when a signal comes or when it is woken. True when a signal has come.
  bool WaitFor(absl::Duration timeout) const;
  // Ends a WaitFor: the one that sleeps, or the next.
  void Wake() const;

 private:
  int pipe_[2];
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_BASE_STOP_SIGNAL_H_
