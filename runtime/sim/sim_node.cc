#include "runtime/sim/sim_node.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "runtime/base/digest.h"
#include "runtime/sync/retry.h"

namespace wukong {
namespace {

// A copy with one bit changed; null when there is none.
std::shared_ptr<const EncodedVector> Damaged(const EncodedVector& payload, uint64_t where) {
  const auto bytes = static_cast<uint64_t>(payload.bytes());
  if (bytes == 0) return nullptr;
  auto damaged = std::make_shared<EncodedVector>(payload);
  uint64_t at = (where >> 8) % bytes;
  auto fragment = damaged->fragments.begin();
  for (; at >= fragment->size(); ++fragment) at -= fragment->size();
  (*fragment)[at] ^= static_cast<char>(1 << (where % 8));
  return damaged;
}

// Of a FollowMore.
constexpr int64_t kFollowMoreBytes = 32;

// A region's link to the root, or a line inside a region, as in worker/aggregator.cc and worker/leaf.cc.
StreamTuner TunerBetween(SimWorld* world, const SimProcess* from, const SimProcess* to) {
  if (from->site() == to->site()) return StreamTuner(1, absl::ZeroDuration());
  return StreamTuner(world->job.limits().streams_max(), world->network.RoundTrip(from->site(), to->site()));
}

}  // namespace

struct SimNode::Following {
  Follower follower;
  PublicParameters::Cursor cursor;
  bool busy = false;
  bool waiting = false;  // Among those who wait for the next version.
};

void SimNode::SetEngine(NodeEngine* engine) {
  engine_ = engine;
  engine_->public_parameters().OnTaken([this] {
    process_->Deliver([this] {
      engine_->Handle(ParentNode::FollowersReady{});
      Pump();
    });
  });
}

void SimNode::Contribute(const ContributionHeader& header, const std::shared_ptr<const EncodedVector>& payload,
                         absl::AnyInvocable<void(absl::StatusOr<ContributeReply>)> respond) {
  if (engine_ == nullptr) {
    respond(absl::UnavailableError("the aggregator has no parameters yet"));
    return;
  }
  if (payload->checksum() != header.payload_checksum()) {
    respond(absl::UnavailableError("the payload was damaged on its way"));
    return;
  }
  Manifest manifest = ManifestFromProto(header);
  int64_t samples = 0;
  for (const LeasedRange& range : manifest.ranges) samples += range.size();
  const std::array<int64_t, 4> id = {manifest.sender.member.value(), manifest.sender.incarnation.value(),
                                     manifest.sequence.value(), samples};
  world_->Note(TapeEvent::kOffered, process_->name(), id);
  NodeEngine::Contribution contribution;
  contribution.header = header;
  contribution.payload = payload;
  const auto answer = std::make_shared<decltype(respond)>(std::move(respond));
  contribution.answer = [this, id, ranges = std::move(manifest.ranges), answer](Verdict verdict,
                                                                                const std::string& detail) {
    if (verdict != VERDICT_OUT_OF_ORDER) {
      world_->Note(TapeEvent::kAnswered, process_->name(), {id[0], id[1], id[2], verdict});
    }
    if (verdict == VERDICT_ACCEPTED && process_->site() >= 0) {
      for (const LeasedRange& range : ranges) {
        world_->Note(TapeEvent::kHeld, process_->name(), {range.begin, range.end, self_.incarnation.value()});
      }
    }
    ContributeReply reply;
    reply.set_verdict(verdict);
    reply.set_detail(detail);
    (*answer)(std::move(reply));
  };
  engine_->Take(std::move(contribution));
  engine_->Flush();
  Pump();
}

std::shared_ptr<SimNode::Following> SimNode::Follow(Follower follower) {
  if (engine_ == nullptr) return nullptr;
  const FollowRequest& request = follower.request;
  auto following = std::make_shared<Following>();
  PublicParameters::Position have;
  have.complete = Version(request.have_version());
  for (const int64_t version : request.fragment_versions()) have.fragments.emplace_back(version);
  engine_->Handle(ParentNode::ChildAttached{{MemberId(request.member()), Incarnation(request.incarnation())},
                                            Sequence(std::max<int64_t>(1, request.next_sequence()))});
  following->cursor = engine_->public_parameters().CursorAt(std::move(have));
  engine_->public_parameters().Allow(&following->cursor, request.versions());
  following->follower = std::move(follower);
  following->follower.connection->CountIn(closed_);
  engine_->public_parameters().AddFollower();
  followers_.push_back(following);
  PumpOne(following);
  Pump();
  return following;
}

void SimNode::FollowMore(const std::shared_ptr<Following>& following, int64_t versions) {
  if (!following->follower.connection->open()) return;
  engine_->public_parameters().Allow(&following->cursor, versions);
  PumpOne(following);
}

void SimNode::NotePublished() {
  const PublicParameters& published = engine_->public_parameters();
  if (process_->site() < 0 || published.version() == published_) return;
  published_ = published.version();
  world_->Note(TapeEvent::kPublished, process_->name(),
               {published_.value(), static_cast<int64_t>(published.checksum()), 0, self_.incarnation.value()});
}

void SimNode::Pump() {
  if (engine_ == nullptr) return;
  NotePublished();
  if (*closed_ > 0) {
    *closed_ = 0;
    const auto gone = [](const std::shared_ptr<Following>& following) {
      return !following->follower.connection->open();
    };
    waiting_.erase(std::remove_if(waiting_.begin(), waiting_.end(), gone), waiting_.end());
    const auto left = std::remove_if(followers_.begin(), followers_.end(), gone);
    for (auto follower = left; follower != followers_.end(); ++follower) engine_->public_parameters().RemoveFollower();
    followers_.erase(left, followers_.end());
  }
  const Version version = engine_->public_parameters().version();
  if (version == pumped_) return;
  pumped_ = version;
  // The others are being sent something and go on after that, or have room for nothing.
  std::vector<std::shared_ptr<Following>> waiting;
  waiting.swap(waiting_);
  for (const std::shared_ptr<Following>& following : waiting) {
    following->waiting = false;
    PumpOne(following);
  }
}

void SimNode::PumpOne(const std::shared_ptr<Following>& following) {
  if (following->busy) return;
  NotePublished();
  const FollowRequest& request = following->follower.request;
  const MemberKey child{MemberId(request.member()), Incarnation(request.incarnation())};
  std::optional<FollowMessage> message =
      engine_->public_parameters().Next(&following->cursor, child, absl::ZeroDuration());
  if (!message.has_value()) {
    if (!following->waiting && engine_->public_parameters().HasRoom(following->cursor)) {
      following->waiting = true;
      waiting_.push_back(following);
    }
    return;
  }
  following->busy = true;
  const auto bytes = static_cast<int64_t>(message->ByteSizeLong());
  if (message->has_fragment() &&
      world_->network.Happens(
          world_->network.FaultsBetween(process_->site(), following->follower.stream->receiver()->site()).corrupt)) {
    std::string* payload = message->mutable_fragment()->mutable_payload();
    if (!payload->empty()) {
      (*payload)[payload->size() / 2] ^= 1;
      world_->network.NoteCorrupted(process_->site(), following->follower.stream->receiver()->site());
    }
  }
  following->follower.stream->Send(
      bytes,
      [this, following] {
        following->busy = false;
        if (!following->follower.connection->open()) {
          Pump();
        } else {
          PumpOne(following);
        }
      },
      [following, sent = *std::move(message)]() mutable { following->follower.take(std::move(sent)); });
}

SimUplink::SimUplink(SimWorld* world, SimProcess* self, SimProcess* process, std::function<SimNode*()> parent,
                     Options options, Callbacks callbacks)
    : world_(world),
      self_(self),
      process_(process),
      parent_(std::move(parent)),
      options_(std::move(options)),
      callbacks_(std::move(callbacks)),
      parameters_(options_.fragments),
      follow_streams_(TunerBetween(world, self, process)),
      send_streams_(TunerBetween(world, self, process)),
      next_sequence_(options_.first_sequence),
      random_(DeriveSeed(world->seed, absl::StrCat("sim.uplink.", self->name()), static_cast<uint64_t>(self->life()))) {
  Connect();
}

void SimUplink::ConnectLater() {
  connection_->Close();
  away_ = true;
  self_->After(ParentRetry(follow_attempt_++, random_.Uniform()), Guard([this] { Connect(); }));
}

void SimUplink::Connect() {
  connection_->Close();
  connection_ = std::make_shared<SimConnection>();
  versions_arrived_ = versions_seen_ = 0;
  follow_more_ = nullptr;
  FollowRequest request;
  request.set_versions(options_.versions_ahead);
  request.set_member(options_.self.member.value());
  request.set_incarnation(options_.self.incarnation.value());
  const PublicParameters::Position have = parameters_.Resume();
  request.set_have_version(have.complete.value());
  for (const Version fragment : have.fragments) request.add_fragment_versions(fragment.value());
  request.set_next_sequence((outgoing_.empty() ? next_sequence_ : outgoing_.begin()->first).value());
  const auto bytes = static_cast<int64_t>(request.ByteSizeLong());
  // Unlike a contribution, which is sent again when no answer comes, a stream is opened once: a copy of the request
  // gets the answer of the first.
  auto served = std::make_shared<std::shared_ptr<SimNode::Following>>();
  world_->network.Call(
      self_, process_, bytes, absl::Seconds(10),
      [this, request, served, connections = follow_streams_.streams(),
       connection = connection_](const SimNetwork::Respond& respond) {
        // Runs at the parent; nothing of this object is read there but what says that it is still there.
        if (!connection->open()) return;
        if (*served == nullptr) {
          SimNode::Follower follower;
          follower.request = request;
          follower.stream = world_->network.OpenStream(process_, self_, connections);
          follower.connection = connection;
          follower.take = [this, connection, connections](FollowMessage message) {
            if (connection->open()) Take(std::move(message), connections);
          };
          SimNode* node = parent_();
          if (node != nullptr) *served = node->Follow(std::move(follower));
        }
        respond(16, [this, connection, following = *served] {
          if (!connection->open()) return;
          if (following == nullptr) {
            ConnectLater();
            return;
          }
          Followed(following);
        });
      },
      [this, connection = connection_](const absl::Status&) {
        if (connection->open()) ConnectLater();
      });
  // A parent that dies resets the connection.
  process_->OnDeath([this, connection = connection_] {
    if (!connection->open()) return;
    const absl::Duration way = world_->network.RoundTrip(process_->site(), self_->site()) / 2;
    world_->queue.After(way, [this, connection] {
      if (!connection->open()) return;
      self_->Deliver([this, connection] {
        if (connection->open()) ConnectLater();
      });
    });
  });
}

void SimUplink::Followed(const std::shared_ptr<SimNode::Following>& following) {
  // Only a parent that is the same hears it: it resets the connection when it dies.
  follow_more_ = [this, following, way = world_->network.OpenStream(self_, process_)](int64_t versions) {
    way->Send(kFollowMoreBytes, nullptr, [this, following, versions, connection = connection_] {
      // Runs at the parent.
      SimNode* node = connection->open() ? parent_() : nullptr;
      if (node != nullptr) node->FollowMore(following, versions);
    });
  };
  if (versions_seen_ > 0) follow_more_(versions_seen_ + options_.versions_ahead);
  if (std::exchange(away_, false) && callbacks_.on_back) callbacks_.on_back();
}

void SimUplink::VersionSeen() {
  if (versions_seen_ == versions_arrived_) return;
  versions_seen_ = versions_arrived_;
  if (follow_more_) follow_more_(versions_seen_ + options_.versions_ahead);
}

void SimUplink::Take(FollowMessage message, int connections) {
  if (version_bytes_ == 0) version_began_ = world_->queue.Now();
  version_bytes_ += static_cast<int64_t>(message.fragment().payload().size());
  const absl::StatusOr<bool> completed = parameters_.Take(std::move(message));
  if (!completed.ok()) {
    parameters_.Reset();
    ConnectLater();
    return;
  }
  follow_attempt_ = 0;
  if (!*completed) return;
  follow_streams_.Observe(connections, version_bytes_, world_->queue.Now() - version_began_);
  version_bytes_ = 0;
  ++versions_arrived_;
  callbacks_.on_version();
}

absl::Status SimUplink::Send(const Manifest& manifest, const Encode& encode) {
  absl::StatusOr<std::shared_ptr<const EncodedVector>> payload = encode(nullptr);
  if (!payload.ok()) return payload.status();
  Send(manifest, *std::move(payload));
  return absl::OkStatus();
}

void SimUplink::Send(const Manifest& manifest, std::shared_ptr<const EncodedVector> payload) {
  Outgoing outgoing{manifest, std::move(payload)};
  outgoing.manifest.sender = options_.self;
  outgoing_[manifest.sequence] = std::move(outgoing);
  next_sequence_ = Sequence(manifest.sequence.value() + 1);
  SendNext();
}

void SimUplink::SendNext() {
  if (writing_.has_value()) return;
  int under_way = 0;
  for (auto& [sequence, outgoing] : outgoing_) {
    if (++under_way > options_.in_flight_max) return;
    if (std::exchange(outgoing.begun, true)) continue;
    writing_ = sequence;
    SendOnce(sequence);
    return;
  }
}

void SimUplink::SendLater(Sequence sequence) {
  self_->After(ParentRetry(outgoing_.at(sequence).attempt++, random_.Uniform()),
               Guard([this, sequence] { SendOnce(sequence); }));
}

void SimUplink::Written(Sequence sequence) {
  if (writing_ != sequence) return;
  writing_.reset();
  const auto open = open_;
  if (callbacks_.on_written) callbacks_.on_written(sequence);
  if (*open) SendNext();
}

void SimUplink::Answered(Sequence sequence, const absl::StatusOr<ContributeReply>& reply) {
  if (!reply.ok() || reply->verdict() == VERDICT_OUT_OF_ORDER) {
    SendLater(sequence);
    return;
  }
  const auto open = open_;
  Written(sequence);
  if (!*open) return;
  outgoing_.erase(sequence);
  callbacks_.on_answer(sequence, reply->verdict());
  if (*open) SendNext();
}

void SimUplink::SendOnce(Sequence sequence) {
  const Outgoing& outgoing = outgoing_.at(sequence);
  auto sent = std::make_shared<Sent>();
  ContributionHeader& header = sent->header;
  ManifestToProto(outgoing.manifest, &header);
  header.set_codec(outgoing.payload->codec);
  header.set_fragments(static_cast<int>(outgoing.payload->fragments.size()));
  header.set_payload_checksum(outgoing.payload->checksum());
  header.set_schema_digest(options_.schema_digest);
  sent->payload = outgoing.payload;
  if (world_->network.Happens(world_->network.FaultsBetween(self_->site(), process_->site()).corrupt)) {
    if (auto damaged = Damaged(*sent->payload, random_())) {
      sent->payload = std::move(damaged);
      world_->network.NoteCorrupted(self_->site(), process_->site());
    }
  }
  const int64_t payload_bytes = sent->payload->bytes();
  const int streams = send_streams_.streams();
  world_->network.Call(
      self_, process_, static_cast<int64_t>(header.ByteSizeLong()) + payload_bytes,
      TransferTimeout(absl::Nanoseconds(world_->job.limits().rpc_ns()), payload_bytes),
      [this, open = open_, sent, sequence, payload_bytes, streams,
       began = world_->queue.Now()](const SimNetwork::Respond& respond) {
        // The parent is the one that this child was attached to, whether the child is still there or not.
        SimNode* node = *open ? parent_() : nullptr;
        const auto answer = [=](absl::StatusOr<ContributeReply> reply) {
          respond(32, [=, reply = std::move(reply)] {
            if (!*open) return;
            send_streams_.Observe(streams, payload_bytes, world_->queue.Now() - began);
            Answered(sequence, reply);
          });
        };
        if (node == nullptr) {
          answer(absl::UnavailableError("no parent"));
        } else {
          node->Contribute(sent->header, sent->payload, answer);
        }
      },
      [this, open = open_, sequence](const absl::Status&) {
        if (*open) SendLater(sequence);
      },
      streams, options_.in_flight_max > 1 ? Guard([this, sequence] { Written(sequence); }) : Action());
}

void NoteTaken(SimWorld* world, const SimProcess* self, const FollowedParameters& followed, Incarnation parent) {
  followed.With([&](absl::Span<const float> values, const FollowedParameters::Snapshot& snapshot) {
    if (snapshot.version.value() == 0) return;
    world->Note(TapeEvent::kTook, self->name(),
                {snapshot.version.value(), static_cast<int64_t>(Checksum(values.data(), values.size() * sizeof(float))),
                 parent.value(), snapshot.included.value()});
  });
}

}  // namespace wukong
