// What a worker's threads tell one another: the heartbeat's and the link's, and the one that trains.
#ifndef WUKONG_WORKER_MAILBOX_H_
#define WUKONG_WORKER_MAILBOX_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "proto/wire.pb.h"
#include "runtime/base/clock.h"
#include "runtime/base/mutex.h"
#include "runtime/sync/types.h"
#include "worker/session.h"

namespace wukong {

struct Mailbox {
  Mutex mutex;
  CondVar changed;

  // To the training thread.
  bool version ABSL_GUARDED_BY(mutex) = false;
  std::vector<std::pair<Sequence, Verdict>> answers ABSL_GUARDED_BY(mutex);
  std::vector<HeartbeatReply> replies ABSL_GUARDED_BY(mutex);
  bool over ABSL_GUARDED_BY(mutex) = false;
  absl::Status outcome ABSL_GUARDED_BY(mutex);

  // To the heartbeat thread.
  int64_t want_samples ABSL_GUARDED_BY(mutex) = 0;
  bool idle ABSL_GUARDED_BY(mutex) = false;
  double samples_per_second ABSL_GUARDED_BY(mutex) = 0;
  MemberUsage usage ABSL_GUARDED_BY(mutex);
  std::vector<LeasedRange> released ABSL_GUARDED_BY(mutex);
  std::vector<StepRecord> steps ABSL_GUARDED_BY(mutex);

  // The run is over for this worker; the first outcome counts.
  void End(const absl::Status& status) {
    MutexLock lock(mutex);
    if (!over) outcome = status;
    over = true;
    changed.NotifyAll();
  }

  bool IsOver() {
    MutexLock lock(mutex);
    return over;
  }

  // Emulated slowness; the end of the run ends it.
  void WaitUntilOver(absl::Duration time) {
    const RealClock clock;
    const absl::Time until = clock.Now() + time;
    MutexLock lock(mutex);
    while (!over && clock.Now() < until) changed.WaitFor(mutex, until - clock.Now());
  }

  // Hands the heartbeat what there is to say, once.
  void Fill(HeartbeatRequest* request) {
    MutexLock lock(mutex);
    request->set_want_samples(want_samples);
    request->set_idle(idle);
    request->set_samples_per_second(samples_per_second);
    *request->mutable_usage() = usage;
    request->mutable_usage()->set_cpu_seconds(ProcessCpuSeconds());
    request->mutable_usage()->set_peak_memory_bytes(PeakMemoryBytes());
    for (const LeasedRange& range : released) *request->add_released() = RangeToProto(range);
    released.clear();
    for (StepRecord& step : steps) *request->add_steps() = std::move(step);
    steps.clear();
  }

  void TakeReply(const HeartbeatReply& reply) {
    if (reply.finish()) {
      End(reply.finish_reason().empty() ? absl::OkStatus()
                                        : absl::AbortedError(absl::StrCat("the job failed: ", reply.finish_reason())));
      return;
    }
    MutexLock lock(mutex);
    if (reply.granted_size() > 0) want_samples = 0;
    replies.push_back(reply);
    changed.NotifyAll();
  }
};

}  // namespace wukong

#endif  // WUKONG_WORKER_MAILBOX_H_
