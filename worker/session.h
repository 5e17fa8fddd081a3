// A member's conversation with the coordinator: the job, joining, and heartbeats.
#ifndef WUKONG_WORKER_SESSION_H_
#define WUKONG_WORKER_SESSION_H_

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/wire.grpc.pb.h"
#include "runtime/base/mutex.h"
#include "runtime/base/stop_signal.h"
#include "runtime/fault/active_faults.h"
#include "runtime/sync/types.h"

namespace wukong {

// How a member ends that is told so (`reply.finish()`): OK when the budget is committed, else ABORTED with the reason,
// marked as safe to start again where the coordinator was only told to stop.
absl::Status StatusOfFinish(const HeartbeatReply& reply);

// How long a member that has joined goes on without a coordinator. One whose machine starts anew is away for minutes,
// and workers can train meanwhile: ten times what a process has for its start.
inline absl::Duration CoordinatorPatience(const Limits& limits) { return 10 * absl::Nanoseconds(limits.start_ns()); }

class Session {
 public:
  Session(std::string coordinator_address, std::string region);
  ~Session();

  // Both try again until `timeout`, or until `stop` has come (CANCELLED). UNAVAILABLE: nobody answered, or the
  // aggregator of the region did not come.
  absl::StatusOr<GetJobReply> FetchJob(bool new_region, absl::Duration timeout, const StopSignal& stop);
  absl::StatusOr<JoinReply> Join(JoinRequest request, absl::Duration timeout, const StopSignal& stop);

  struct Callbacks {  // From the heartbeat thread.
    // Fills everything but the member and the beat. What it hands over is delivered exactly once, whatever is lost.
    std::function<void(HeartbeatRequest*)> fill;
    std::function<void(const HeartbeatReply&)> on_reply;
    // No heartbeat will come any more. ABORTED: fenced (runtime/base/restart.h). UNAVAILABLE: the coordinator was away
    // for `patience`.
    std::function<void(const absl::Status&)> on_lost;
  };
  void StartHeartbeats(MemberKey self, absl::Duration period, absl::Duration patience, Callbacks callbacks);
  // The next heartbeat goes at once.
  void Kick();
  // One more heartbeat with what there is to say, then no more; what is under way after `timeout` is cancelled.
  void StopHeartbeats(absl::Duration timeout);

  // Between a heartbeat (before the first one: the request to join) and its answer, most recently.
  absl::Duration round_trip() const;
  // What is wrong with this member, because it was ordered (docs/chaos.md).
  Damage damage() const;

 private:
  void Loop();
  void LoopUntilStopped();
  // One beat, repeated until it is answered. False when the loop must end.
  bool Beat();
  void TakeFaults(const HeartbeatReply& reply);

  const std::string address_;
  const std::string region_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<Coordinator::Stub> stub_;
  MemberKey self_;
  absl::Duration period_;
  absl::Duration patience_;
  Callbacks callbacks_;
  int64_t beat_ = 0;  // The heartbeat thread's.

  mutable Mutex mutex_;
  CondVar changed_;
  bool kicked_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;                      // The heartbeat thread.
  grpc::ClientContext* calling_ ABSL_GUARDED_BY(mutex_) = nullptr;  // Its call.
  absl::Time stop_by_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  absl::Duration round_trip_ ABSL_GUARDED_BY(mutex_);
  ActiveFaults faults_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace wukong

#endif  // WUKONG_WORKER_SESSION_H_
