#include "runtime/sim/sim_session.h"

#include <utility>

#include "runtime/sync/retry.h"

namespace wukong {

void SimSession::Join(const JoinRequest& request, std::function<void(const JoinReply&)> joined) {
  const auto again = [this, request, joined] {
    self_->After(kCoordinatorRetry, [this, request, joined] { Join(request, joined); });
  };
  world_->network.Call(
      self_, door_->process, static_cast<int64_t>(request.ByteSizeLong()), kCoordinatorTimeout,
      [this, request, joined, again, door = door_](const SimNetwork::Respond& respond) {
        door->join(request, [this, respond, joined, again](const absl::StatusOr<JoinReply>& reply) {
          respond(64, [this, reply, joined, again] {
            if (!reply.ok()) {
              again();
              return;
            }
            key_ = {MemberId(reply->member()), Incarnation(reply->incarnation())};
            joined(*reply);
            Beat();
          });
        });
      },
      [again](const absl::Status&) { again(); });
}

void SimSession::Kick() {
  kicked_ = true;
  if (beating_ || beat_ == 0) return;
  Beat();
}

void SimSession::Wait() {
  if (kicked_) {
    Beat();
    return;
  }
  self_->After(absl::Nanoseconds(world_->job.limits().heartbeat_ns()), [this, timer = timer_] {
    if (timer == timer_) Beat();
  });
}

void SimSession::Beat() {
  ++timer_;
  kicked_ = false;
  beating_ = true;
  auto request = std::make_shared<HeartbeatRequest>();
  request->set_member(key_.member.value());
  request->set_incarnation(key_.incarnation.value());
  request->set_beat(++beat_);
  callbacks_.fill(request.get());
  request->mutable_usage()->set_round_trip_seconds(round_trip_);
  first_try_ = self_->Now();
  SendBeat(request);
}

void SimSession::BeatFailed(const std::shared_ptr<const HeartbeatRequest>& request, const absl::Status& status) {
  const bool gave_up = self_->Now() - first_try_ > absl::Nanoseconds(world_->job.limits().start_ns());
  if (!IsTransient(status) || gave_up) {
    callbacks_.on_lost(status);
    return;
  }
  self_->After(kCoordinatorRetry, [this, request] { SendBeat(request); });
}

void SimSession::SendBeat(const std::shared_ptr<const HeartbeatRequest>& request) {
  const absl::Time sent = self_->Now();
  world_->network.Call(
      self_, door_->process, static_cast<int64_t>(request->ByteSizeLong()), kCoordinatorTimeout,
      [this, request, sent, door = door_](const SimNetwork::Respond& respond) {
        door->heartbeat(*request, [this, request, respond, sent](absl::StatusOr<HeartbeatReply> reply) {
          const int64_t bytes = reply.ok() ? static_cast<int64_t>(reply->ByteSizeLong()) : 16;
          respond(bytes, [this, request, reply = std::move(reply), sent] {
            if (!reply.ok()) {
              BeatFailed(request, reply.status());
              return;
            }
            round_trip_ = absl::ToDoubleSeconds(self_->Now() - sent);
            beating_ = false;
            callbacks_.on_reply(*reply);
            Wait();
          });
        });
      },
      [this, request](const absl::Status& status) { BeatFailed(request, status); });
}

}  // namespace wukong
