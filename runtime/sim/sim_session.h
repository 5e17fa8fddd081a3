// A member's conversation with the coordinator in the simulator, as worker/session.h has it in production: it joins,
// and then one heartbeat after the other, each repeated until it is answered.
#ifndef WUKONG_RUNTIME_SIM_SIM_SESSION_H_
#define WUKONG_RUNTIME_SIM_SIM_SESSION_H_

#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/wire.pb.h"
#include "runtime/sim/sim_beat.h"
#include "runtime/sim/sim_node.h"
#include "runtime/sync/retry.h"
#include "runtime/sync/types.h"

namespace wukong {

// The coordinator as others reach it: its process, and what serves calls there in its present life.
struct SimCoordinatorDoor {
  SimProcess* process = nullptr;
  // The answer may come later; not at all when the process dies before.
  using JoinAnswer = absl::AnyInvocable<void(absl::StatusOr<JoinReply>&&)>;
  std::function<void(const JoinRequest&, JoinAnswer)> join;
  // `reply` is filled before it is answered with OK, and lives as long as the answer.
  using HeartbeatAnswer = absl::AnyInvocable<void(const absl::Status&)>;
  std::function<void(const HeartbeatRequest&, HeartbeatReply* reply, HeartbeatAnswer)> heartbeat;
  // What a heartbeat of this member needs there.
  std::function<absl::Span<const char>(MemberId)> memory_of;
};

class SimSession {
 public:
  struct Callbacks {
    std::function<void(HeartbeatRequest*)> fill;
    std::function<void(const HeartbeatReply&)> on_reply;
    std::function<void(const absl::Status&)> on_lost;
  };
  SimSession(SimWorld* world, SimProcess* self, const SimCoordinatorDoor* door, Callbacks callbacks)
      : world_(world), self_(self), door_(door), callbacks_(std::move(callbacks)) {}

  // Tries until it is let in; then heartbeats begin after `joined`.
  void Join(const JoinRequest& request, std::function<void(const JoinReply&)> joined);
  void Kick();
  double round_trip_seconds() const { return round_trip_; }

 private:
  void Beat();
  std::shared_ptr<SimBeat> NewBeat();
  void SendBeat(const std::shared_ptr<SimBeat>& beat);
  void BeatFailed(const HeartbeatRequest& request, const absl::Status& status);
  void BeatAnswered(const SimBeat& beat);
  void Wait();
  absl::Duration Timeout() const { return CoordinatorTimeout(absl::Seconds(round_trip_), timeouts_); }

  SimWorld* const world_;
  SimProcess* const self_;
  const SimCoordinatorDoor* const door_;
  const Callbacks callbacks_;
  MemberKey key_;
  int64_t beat_ = 0;
  bool beating_ = false;
  bool kicked_ = false;
  int64_t timer_ = 0;
  absl::Time first_try_;
  double round_trip_ = 0;
  int timeouts_ = 0;  // Calls in a row that were not answered in time.
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_SIM_SESSION_H_
