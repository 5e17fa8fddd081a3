#include "runtime/transport/parent_link.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "glog/logging.h"
#include "runtime/base/random.h"
#include "runtime/sync/retry.h"
#include "runtime/transport/grpc_options.h"
#include "runtime/transport/striping.h"

namespace wukong {
namespace {

// A stream is opened anew when it is older than this and a version has come whole: no call is without a deadline, and
// what is under way is never thrown away for one.
constexpr absl::Duration kFollowTimeout = absl::Minutes(10);

// Tries of one thing of which one is logged, after the first.
constexpr int kLogEvery = 30;

// After a FollowMore that did not come through, while its Follow goes on.
constexpr absl::Duration kAskAgain = absl::Milliseconds(200);

// Another try would end as this one did. Everything else that a call can end with happens to good peers while one of
// them starts, stops or is cut off.
bool IsFatal(const absl::Status& status) {
  return status.code() == absl::StatusCode::kFailedPrecondition ||
         status.code() == absl::StatusCode::kInvalidArgument || status.code() == absl::StatusCode::kUnimplemented;
}

}  // namespace

ParentLink::ParentLink(const Options& options, Callbacks callbacks)
    : options_(options),
      callbacks_(std::move(callbacks)),
      follow_streams_(options.streams_max, options.round_trip),
      parameters_(options.fragments),
      next_sequence_(options.first_sequence),
      send_streams_(options.streams_max, options.round_trip),
      follow_timeout_(TransferTimeout(kFollowTimeout, 3 * options.fragments.back().end * int64_t{sizeof(float)})),
      follower_([this] { FollowLoop(); }) {
  {
    MutexLock lock(mutex_);
    Connect(&send_connections_, send_streams_.streams());
  }
  for (int i = 0; i < options.in_flight_max; ++i) senders_.emplace_back([this] { SendLoop(); });
}

ParentLink::~ParentLink() { Shutdown(); }

absl::Status ParentLink::Send(const Manifest& manifest, const Encode& encode) {
  return encode([&](std::shared_ptr<const OutgoingPayload> payload) { Queue(manifest, std::move(payload)); }).status();
}

void ParentLink::Send(const Manifest& manifest, std::shared_ptr<const EncodedVector> payload) {
  Queue(manifest, std::make_shared<OutgoingPayload>(std::move(payload)));
}

void ParentLink::Queue(const Manifest& manifest, std::shared_ptr<const OutgoingPayload> payload) {
  Outgoing outgoing{manifest, std::move(payload)};
  outgoing.manifest.sender = options_.self;
  MutexLock lock(mutex_);
  unanswered_.insert(manifest.sequence);
  next_sequence_ = Sequence(manifest.sequence.value() + 1);
  outgoing_.push_back(std::move(outgoing));
  changed_.NotifyAll();
}

void ParentLink::VersionSeen() {
  MutexLock lock(mutex_);
  if (versions_seen_ == versions_arrived_) return;
  versions_seen_ = versions_arrived_;
  changed_.NotifyAll();
}

void ParentLink::Shutdown() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    for (grpc::ClientContext* call : calls_) call->TryCancel();
    changed_.NotifyAll();
  }
  if (follower_.joinable()) follower_.join();
  for (std::thread& sender : senders_) {
    if (sender.joinable()) sender.join();
  }
}

bool ParentLink::Begin(grpc::ClientContext* context) {
  MutexLock lock(mutex_);
  if (stopping_) return false;
  calls_.insert(context);
  return true;
}

void ParentLink::End(grpc::ClientContext* context) {
  MutexLock lock(mutex_);
  calls_.erase(context);
}

void ParentLink::Connect(Connections* connections, int count) const {
  while (static_cast<int>(connections->size()) < count) {
    Connection connection;
    connection.channel = MakeChannel(options_.address, options_.silence);
    connection.channel->GetState(/*try_to_connect=*/true);
    connection.stub = ParameterNode::NewStub(connection.channel);
    connections->push_back(std::move(connection));
  }
}

PartOf ParentLink::PartOfTransfer(uint64_t transfer) const {
  PartOf part;
  part.set_member(options_.self.member.value());
  part.set_incarnation(options_.self.incarnation.value());
  part.set_transfer(transfer);
  return part;
}

bool ParentLink::Backoff(int attempt) {
  Random random(DeriveSeed(options_.seed, "backoff", attempt));
  const absl::Time until = absl::Now() + ParentRetry(attempt, random.Uniform());
  MutexLock lock(mutex_);
  while (!stopping_ && absl::Now() < until) changed_.WaitFor(mutex_, until - absl::Now());
  return !stopping_;
}

// One Follow with its parts and what is asked for meanwhile, from its beginning to its end.
class ParentLink::Following {
 public:
  // `back`: the one before broke off, or the parent did not take it up.
  Following(ParentLink* link, bool back) : link_(link), back_(back), before_(link->VersionsArrived()) {}

  absl::Status Run() {
    SetDeadline(&context_, link_->follow_timeout_);
    context_.set_wait_for_ready(true);
    context_.AddMetadata(kMeantFor, LifeText(link_->options_.parent));
    if (!link_->Begin(&context_)) return absl::CancelledError("shutting down");
    FollowRequest request = link_->MakeFollowRequest();
    request.set_versions(versions_);
    const int wanted = link_->follow_streams_.streams();
    request.set_transfer(transfer_);
    if (wanted > 1) request.set_parts(wanted);
    link_->Connect(&link_->follow_connections_, 1);
    auto reader = link_->follow_connections_.front().stub->Follow(&context_, request);
    if (wanted > 1) AddParts(wanted);
    reader->WaitForInitialMetadata();
    taken_up_ = context_.GetServerInitialMetadata().count(kFollowing) > 0;
    link_->SetFollowing(taken_up_);
    if (back_ && taken_up_ && link_->callbacks_.on_back) link_->callbacks_.on_back();
    std::thread asker([this, stub = link_->follow_connections_.front().stub.get()] { AskForMore(stub); });
    FollowMessage message;
    while (reader->Read(&message)) {
      if (!Got(std::move(message))) break;
    }
    const absl::Status taken = merge_.status();
    if (!taken.ok()) context_.TryCancel();
    const grpc::Status finished = reader->Finish();
    link_->End(&context_);
    merge_.Break();
    for (grpc::ClientContext& part : part_contexts_) part.TryCancel();
    {
      MutexLock lock(link_->mutex_);
      over_ = true;
      if (asking_ != nullptr) asking_->TryCancel();
      link_->changed_.NotifyAll();
    }
    asker.join();
    for (std::thread& part : parts_) part.join();
    if (absl::IsDataLoss(taken)) return taken;
    if (old_ || finished.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) return absl::OkStatus();
    link_->follow_streams_.Broke(bringing_);
    return FromGrpc(finished, absl::StrCat(link_->options_.parent_name, " at ", link_->options_.address, ", follow"));
  }

  // After Run: whether the parent let this child follow.
  bool taken_up() const { return taken_up_; }

 private:
  bool Got(FollowMessage message) {
    link_->bytes_down_ += static_cast<int64_t>(message.fragment().payload().size());
    return merge_.Put(std::move(message), absl::Now()).ok();
  }

  // Whole messages, in order.
  absl::Status Take(FollowMessage message, absl::Time arrived) {
    if (version_bytes_ == 0) version_began_ = arrived;
    version_bytes_ += static_cast<int64_t>(message.fragment().payload().size());
    const absl::StatusOr<bool> completed = link_->parameters_.Take(std::move(message));
    if (!completed.ok()) return completed.status();
    if (!*completed) return absl::OkStatus();
    StreamTuner& tuner = link_->follow_streams_;
    tuner.Observe(std::max(1, bringing_.load()), version_bytes_, absl::Now() - version_began_);
    version_bytes_ = 0;
    // Fewer are used when the stream is opened anew.
    if (tuner.streams() > std::max<int>(1, static_cast<int>(parts_.size()))) AddParts(tuner.streams());
    {
      MutexLock lock(link_->mutex_);
      ++link_->versions_arrived_;
    }
    link_->callbacks_.on_version();
    if (absl::Now() - began_ > kFollowTimeout) {
      old_ = true;
      context_.TryCancel();
    }
    return absl::OkStatus();
  }

  // Before the first message, or from Take.
  void AddParts(int count) {
    link_->Connect(&link_->follow_connections_, 1 + count);
    while (static_cast<int>(parts_.size()) < count) {
      Connection* connection = &link_->follow_connections_[1 + parts_.size()];
      grpc::ClientContext* context = &part_contexts_.emplace_back();
      parts_.emplace_back([this, connection, context] { ReadPart(connection, context); });
    }
  }

  void ReadPart(Connection* connection, grpc::ClientContext* context) {
    SetDeadline(context, link_->follow_timeout_ + absl::Minutes(1));
    context->set_wait_for_ready(true);
    if (!link_->Begin(context)) return;
    FollowPartRequest request;
    *request.mutable_part_of() = link_->PartOfTransfer(transfer_);
    auto reader = connection->stub->FollowPart(context, request);
    FollowMessage message;
    bool first = true;
    bool wanted = true;
    while (wanted && reader->Read(&message)) {
      if (std::exchange(first, false)) ++bringing_;
      wanted = Got(std::move(message));
    }
    context->TryCancel();
    const grpc::Status finished = reader->Finish();
    link_->End(context);
    // One that never took part is not missed.
    if (finished.error_code() == grpc::StatusCode::NOT_FOUND) return;
    merge_.Break();
    context_.TryCancel();
  }

  // Versions that this Follow has brought and that were looked at, and how many may be on their way: what was told last
  // is told again until the parent has heard of it.
  void AskForMore(ParameterNode::Stub* stub) {
    while (true) {
      grpc::ClientContext context;
      FollowMoreRequest request;
      *request.mutable_part_of() = link_->PartOfTransfer(transfer_);
      {
        MutexLock lock(link_->mutex_);
        while (!over_ && !link_->stopping_ && MayCome() <= versions_) link_->changed_.Wait(link_->mutex_);
        if (over_ || link_->stopping_) return;
        request.set_versions(MayCome());
        asking_ = &context;
      }
      SetDeadline(&context, link_->options_.rpc_timeout);
      FollowMoreReply reply;
      const grpc::Status told = stub->FollowMore(&context, request, &reply);
      MutexLock lock(link_->mutex_);
      asking_ = nullptr;
      if (told.ok()) {
        versions_ = request.versions();
      } else if (told.error_code() == grpc::StatusCode::NOT_FOUND) {
        context_.TryCancel();  // This Follow is over at the parent, or nobody can ask for more of it.
        return;
      } else if (!over_ && !link_->stopping_) {
        link_->changed_.WaitFor(link_->mutex_, kAskAgain);
      }
    }
  }
  int64_t MayCome() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(link_->mutex_) {
    return std::max<int64_t>(0, link_->versions_seen_ - before_) + link_->options_.versions_ahead;
  }

  ParentLink* const link_;
  const bool back_;
  const absl::Time began_ = absl::Now();
  std::atomic<bool> old_{false};
  bool taken_up_ = false;
  const uint64_t transfer_ = ++link_->transfers_;
  const int64_t before_;  // Versions that came by earlier ones.
  grpc::ClientContext context_;
  FollowMerge merge_{[this](FollowMessage message, absl::Time arrived) { return Take(std::move(message), arrived); }};
  std::atomic<int> bringing_{0};                       // Parts of which something came.
  int64_t versions_ = link_->options_.versions_ahead;  // That the parent knows of. The asker's, once there is one.
  bool over_ ABSL_GUARDED_BY(link_->mutex_) = false;
  grpc::ClientContext* asking_ ABSL_GUARDED_BY(link_->mutex_) = nullptr;
  // Changed before the first message and under the merge's lock.
  std::deque<grpc::ClientContext> part_contexts_;
  std::deque<std::thread> parts_;
  int64_t version_bytes_ = 0;
  absl::Time version_began_;
};

void ParentLink::FollowLoop() {
  int attempt = 0;
  bool away = false;
  while (true) {
    const int64_t before = bytes_down_;
    Following following(this, away);
    const absl::Status status = following.Run();
    SetFollowing(false);
    away = !status.ok() || !following.taken_up();
    {
      MutexLock lock(mutex_);
      if (stopping_) return;
    }
    if (IsFatal(status)) {
      callbacks_.on_fatal(status);
      return;
    }
    if (status.code() == absl::StatusCode::kDataLoss) {
      LOG(WARNING) << "parameters of " << options_.parent_name << " are fetched anew: " << status.message();
      parameters_.Reset();
    } else if (!status.ok() && attempt % kLogEvery == 0) {
      LOG(WARNING) << "following " << options_.parent_name << ": " << status;
    }
    // What came is not asked for again, unless it was damaged.
    const bool moved = bytes_down_ > before && status.code() != absl::StatusCode::kDataLoss;
    attempt = moved ? 0 : attempt + 1;
    if (!Backoff(attempt)) return;
  }
}

void ParentLink::SetFollowing(bool following) {
  MutexLock lock(mutex_);
  if (following) {
    away_since_ = absl::InfiniteFuture();
  } else {
    away_since_ = std::min(away_since_, absl::Now());
  }
}

absl::Duration ParentLink::away() const {
  MutexLock lock(mutex_);
  return std::max(absl::ZeroDuration(), absl::Now() - away_since_);
}

int64_t ParentLink::VersionsArrived() {
  MutexLock lock(mutex_);
  return versions_arrived_;
}

FollowRequest ParentLink::MakeFollowRequest() {
  FollowRequest request;
  request.set_member(options_.self.member.value());
  request.set_incarnation(options_.self.incarnation.value());
  const PublicParameters::Position have = parameters_.Resume();
  request.set_have_version(have.complete.value());
  for (const Version fragment : have.fragments) request.add_fragment_versions(fragment.value());
  request.set_schema_digest(options_.schema_digest);
  MutexLock lock(mutex_);
  request.set_next_sequence((unanswered_.empty() ? next_sequence_ : *unanswered_.begin()).value());
  return request;
}

// One contribution on its way, once.
class ParentLink::Sending {
 public:
  // `connections`: at least one. `again`: an earlier one broke off, and what the parent has of it is not sent any more.
  // `on_written` is called at most once, and before Run returns.
  Sending(ParentLink* link, const Outgoing& outgoing, std::vector<Connection*> connections, bool again,
          std::function<void()> on_written)
      : link_(link),
        outgoing_(outgoing),
        connections_(std::move(connections)),
        again_(again),
        on_written_(std::move(on_written)),
        unwritten_(static_cast<int>(connections_.size())) {}

  absl::Status Run(ContributeReply* reply) {
    const Options& options = link_->options_;
    const absl::Duration timeout = TransferTimeout(options.rpc_timeout, outgoing_.payload->bytes());
    grpc::ClientContext context;
    SetDeadline(&context, timeout);
    context.AddMetadata(kMeantFor, LifeText(options.parent));
    context.set_wait_for_ready(true);  // Goes out as soon as the parent is back: a backoff would sleep past that.
    if (again_) context.AddMetadata(kAgain, "1");
    if (!link_->Begin(&context)) return absl::CancelledError("shutting down");
    auto writer = connections_.front()->stub->Contribute(&context, reply);
    ContributeMessage message;
    *message.mutable_header() = Header();
    const bool begun = writer->Write(message);
    std::string whole;
    if (begun && again_) {
      writer->WaitForInitialMetadata();
      const auto found = context.GetServerInitialMetadata().find(kWholeFragments);
      if (found != context.GetServerInitialMetadata().end())
        whole = std::string(found->second.data(), found->second.size());
    }
    DealOut(whole);
    std::deque<grpc::ClientContext> part_contexts;
    std::vector<std::thread> parts;
    for (size_t i = 1; i < connections_.size(); ++i) {
      grpc::ClientContext* part = &part_contexts.emplace_back();
      SetDeadline(part, timeout);
      parts.emplace_back([this, i, part, &context] {
        // The parent would wait for what is missing.
        if (!SendPart(i, part).ok()) context.TryCancel();
      });
    }
    if (begun && WritePieces(0, writer.get())) {
      if (const auto checksum = Await([&] { return outgoing_.payload->Checksum(); }); checksum.has_value()) {
        message.mutable_end()->set_payload_checksum(*checksum);
        if (writer->Write(message)) Written(writer->WritesDone());
      }
    }
    if (outgoing_.payload->abandoned()) context.TryCancel();
    const grpc::Status finished = writer->Finish();
    link_->End(&context);
    for (grpc::ClientContext& part : part_contexts) part.TryCancel();
    for (std::thread& part : parts) part.join();
    return FromGrpc(finished, absl::StrCat(options.parent_name, " at ", options.address, ", contribution ",
                                           outgoing_.manifest.sequence.value()));
  }

  // After Run: how long its first connection had nothing to send, because it was not encoded yet.
  absl::Duration encoder_wait() const { return encoder_wait_; }
  // Likewise: bytes of the payload that were to be sent.
  int64_t bytes() const { return bytes_; }

 private:
  // `whole`: kWholeFragments.
  void DealOut(const std::string& whole) {
    pieces_.resize(connections_.size());
    size_t turn = 0;
    const std::vector<int64_t>& sizes = outgoing_.payload->sizes();
    for (size_t f = 0; f < sizes.size(); ++f) {
      if (f / 8 < whole.size() && (whole[f / 8] >> f % 8 & 1) != 0) {
        bytes_ -= sizes[f];
        continue;
      }
      const int64_t piece = PieceBytes(sizes[f], static_cast<int>(pieces_.size()));
      for (int64_t offset = 0; offset < sizes[f]; offset += piece) {
        pieces_[turn++ % pieces_.size()].push_back({static_cast<int>(f), offset, std::min(piece, sizes[f] - offset)});
      }
    }
  }

  ContributionHeader Header() const {
    const OutgoingPayload& payload = *outgoing_.payload;
    ContributionHeader header;
    ManifestToProto(outgoing_.manifest, &header);
    header.set_codec(payload.codec());
    header.set_schema_digest(link_->options_.schema_digest);
    header.set_fragments(static_cast<int>(payload.sizes().size()));
    header.set_payload_bytes(payload.bytes());
    header.set_streams(static_cast<int>(connections_.size()));
    header.set_transfer(transfer_);
    return header;
  }

  // The first connection's.
  template <typename Encoded>
  auto Await(Encoded encoded) -> decltype(encoded()) {
    const absl::Time begin = absl::Now();
    auto result = encoded();
    encoder_wait_ += absl::Now() - begin;
    return result;
  }

  // A call's share of the contribution; false when it breaks off.
  template <typename Message>
  bool WritePieces(size_t part, grpc::ClientWriter<Message>* writer) {
    Message message;
    for (const Piece& piece : pieces_[part]) {
      const auto encoded = [&] { return outgoing_.payload->Fragment(piece.fragment); };
      const std::string* bytes = part == 0 ? Await(encoded) : encoded();
      if (bytes == nullptr) return false;
      FragmentPayload* fragment = message.mutable_fragment();
      fragment->set_index(piece.fragment);
      fragment->set_offset(piece.offset);
      fragment->mutable_payload()->assign(*bytes, piece.offset, piece.length);
      if (!writer->Write(message)) return false;
      link_->bytes_up_ += piece.length;
    }
    return true;
  }

  // A call has handed all of its share to the network.
  void Written(bool done) {
    if (done && --unwritten_ == 0) on_written_();
  }

  absl::Status SendPart(size_t part, grpc::ClientContext* context) {
    if (!link_->Begin(context)) return absl::CancelledError("shutting down");
    ContributePartReply reply;
    auto writer = connections_[part]->stub->ContributePart(context, &reply);
    ContributePartMessage message;
    *message.mutable_part_of() = link_->PartOfTransfer(transfer_);
    if (writer->Write(message) && WritePieces(part, writer.get())) Written(writer->WritesDone());
    if (outgoing_.payload->abandoned()) context->TryCancel();
    const grpc::Status finished = writer->Finish();
    link_->End(context);
    return FromGrpc(finished, "a part of a contribution");
  }

  ParentLink* const link_;
  const Outgoing& outgoing_;
  const std::vector<Connection*> connections_;
  const bool again_;
  const std::function<void()> on_written_;
  const uint64_t transfer_ = ++link_->transfers_;
  std::vector<std::vector<Piece>> pieces_;  // Per connection.
  int64_t bytes_ = outgoing_.payload->bytes();
  absl::Duration encoder_wait_;  // Run's thread's.
  std::atomic<int> unwritten_;   // Connections.
};

void ParentLink::SendLoop() {
  while (true) {
    Outgoing outgoing;
    {
      MutexLock lock(mutex_);
      while ((outgoing_.empty() || writing_) && !stopping_) changed_.Wait(mutex_);
      if (stopping_) return;
      outgoing = std::move(outgoing_.front());
      outgoing_.pop_front();
      writing_ = true;
    }
    if (!Deliver(outgoing)) return;
  }
}

std::vector<ParentLink::Connection*> ParentLink::SendConnections() {
  MutexLock lock(mutex_);
  const int wanted = send_streams_.streams();
  Connect(&send_connections_, wanted);
  std::vector<Connection*> connections = {&send_connections_.front()};
  // Those that are not connected yet are for the next one.
  for (int i = 1; i < wanted && send_connections_[i].channel->GetState(/*try_to_connect=*/true) ==
                                    grpc_connectivity_state::GRPC_CHANNEL_READY;
       ++i) {
    connections.push_back(&send_connections_[i]);
  }
  return connections;
}

bool ParentLink::Deliver(const Outgoing& outgoing) {
  const Sequence sequence = outgoing.manifest.sequence;
  bool written = false;  // Under mutex_.
  const auto on_written = [&] {
    {
      MutexLock lock(mutex_);
      if (std::exchange(written, true)) return;
    }
    if (callbacks_.on_written) callbacks_.on_written(sequence);
    MutexLock lock(mutex_);
    writing_ = false;
    changed_.NotifyAll();
  };
  for (int attempt = 0;; ++attempt) {
    if (outgoing.payload->abandoned()) {
      // Whoever was encoding it knows why. Nobody has heard of the number.
      MutexLock lock(mutex_);
      unanswered_.erase(sequence);
      if (next_sequence_.value() == sequence.value() + 1) next_sequence_ = sequence;
      writing_ = false;
      changed_.NotifyAll();
      return true;
    }
    std::vector<Connection*> connections = SendConnections();
    const auto streams = static_cast<int>(connections.size());
    const absl::Time began = absl::Now();
    const int64_t bytes_before = bytes_up_;
    ContributeReply reply;
    Sending sending(this, outgoing, std::move(connections), /*again=*/attempt > 0, on_written);
    const absl::Status status = sending.Run(&reply);
    if (status.ok()) {
      MutexLock lock(mutex_);
      send_streams_.Observe(streams, sending.bytes(), absl::Now() - began - sending.encoder_wait());
    }
    LOG_IF(INFO, sending.bytes() < outgoing.payload->bytes())
        << "contribution " << sequence << " to " << options_.parent_name << ": "
        << outgoing.payload->bytes() - sending.bytes() << " of " << outgoing.payload->bytes()
        << " bytes had come before it broke off, and were not sent again";
    if (status.ok() && reply.verdict() != VERDICT_OUT_OF_ORDER) {
      on_written();
      ++contributions_sent_;
      {
        MutexLock lock(mutex_);
        unanswered_.erase(sequence);
      }
      callbacks_.on_answer(sequence, reply.verdict(), reply.detail());
      return true;
    }
    {
      MutexLock lock(mutex_);
      if (stopping_) return false;
    }
    if (IsFatal(status)) {
      callbacks_.on_fatal(status);
      return false;
    }
    if (outgoing.payload->abandoned()) continue;
    if (!status.ok() && bytes_up_ > bytes_before) {
      MutexLock lock(mutex_);
      send_streams_.Broke(streams);
    }
    LOG_IF(WARNING, attempt % kLogEvery == 0)
        << "contribution " << sequence << " to " << options_.parent_name << " is sent again (" << attempt + 1
        << "): " << (status.ok() ? reply.detail() : status.ToString());
    if (!Backoff(attempt)) return false;
  }
}

}  // namespace wukong
