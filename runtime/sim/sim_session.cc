#include "runtime/sim/sim_session.h"

namespace wukong {

void SimSession::Join(const JoinRequest& request, std::function<void(const JoinReply&)> joined) {
  const auto again = [this, request, joined] {
    self_->After(kCoordinatorRetry, [this, request, joined] { Join(request, joined); });
  };
  world_->network.Call(
      self_, door_->process, static_cast<int64_t>(request.ByteSizeLong()), Timeout(),
      [this, request, joined, again, door = door_](const SimNetwork::Respond& respond) {
        // A copy would be another process of the same name, which fences this one; and gRPC never delivers a call
        // twice.
        if (!respond.wanted()) return;
        door->join(request, [this, respond, joined, again](const absl::StatusOr<JoinReply>& reply) {
          respond(64, [this, reply, joined, again] {
            if (!reply.ok()) {
              again();
              return;
            }
            timeouts_ = 0;
            key_ = {MemberId(reply->member()), Incarnation(reply->incarnation())};
            self_->SetMemoryAtRoot(door_->memory_of(key_.member));
            joined(*reply);
            Beat();
          });
        });
      },
      [this, again](const absl::Status& status) {
        if (absl::IsDeadlineExceeded(status)) ++timeouts_;
        again();
      });
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
  const std::shared_ptr<SimBeat> beat = NewBeat();
  HeartbeatRequest& request = beat->request;
  request.set_member(key_.member.value());
  request.set_incarnation(key_.incarnation.value());
  request.set_beat(++beat_);
  callbacks_.fill(&request);
  request.mutable_usage()->set_round_trip_seconds(round_trip_);
  first_try_ = self_->Now();
  SendBeat(beat);
}

std::shared_ptr<SimBeat> SimSession::NewBeat() {
  std::shared_ptr<SimBeat> beat = world_->beats.Take();
  beat->session = this;
  beat->door = door_;
  return beat;
}

void SimSession::BeatFailed(const HeartbeatRequest& request, const absl::Status& status) {
  const bool gave_up = self_->Now() - first_try_ > absl::Nanoseconds(world_->job.limits().start_ns());
  if (!IsTransient(status) || gave_up) {
    callbacks_.on_lost(status);
    return;
  }
  if (absl::IsDeadlineExceeded(status)) ++timeouts_;
  const std::shared_ptr<SimBeat> again = NewBeat();
  again->request = request;
  self_->After(kCoordinatorRetry, [this, again] { SendBeat(again); });
}

void SimSession::BeatAnswered(const SimBeat& beat) {
  if (!beat.status.ok()) {
    BeatFailed(beat.request, beat.status);
    return;
  }
  round_trip_ = absl::ToDoubleSeconds(self_->Now() - beat.sent);
  timeouts_ = 0;
  beating_ = false;
  callbacks_.on_reply(beat.reply);
  Wait();
}

void SimSession::SendBeat(const std::shared_ptr<SimBeat>& beat) {
  beat->sent = self_->Now();
  const auto bytes = static_cast<int64_t>(beat->request.ByteSizeLong());
  world_->network.Call(
      self_, door_->process, bytes, Timeout(),
      [beat](const SimNetwork::Respond& respond) {
        if (!respond.wanted()) {
          const auto reply = std::make_shared<HeartbeatReply>();
          beat->door->heartbeat(beat->request, reply.get(), [reply](const absl::Status&) {});
          return;
        }
        beat->door->heartbeat(beat->request, &beat->reply, [beat, respond](const absl::Status& status) {
          beat->status = status;
          const int64_t size = status.ok() ? static_cast<int64_t>(beat->reply.ByteSizeLong()) : 16;
          respond(size, [beat] { beat->session->BeatAnswered(*beat); });
        });
      },
      [beat](const absl::Status& status) { beat->session->BeatFailed(beat->request, status); });
}

}  // namespace wukong
