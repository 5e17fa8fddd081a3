#include "runtime/transport/parent_link.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "glog/logging.h"
#include "runtime/base/random.h"
#include "runtime/transport/grpc_options.h"
#include "runtime/transport/striping.h"

namespace wukong {
namespace {

// A stream is opened anew this often, so that no call is without a deadline.
constexpr absl::Duration kFollowTimeout = absl::Minutes(10);

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
      send_streams_(options.streams_max, options.round_trip),
      parameters_(options.fragments),
      next_sequence_(options.first_sequence),
      follower_([this] { FollowLoop(); }),
      sender_([this] { SendLoop(); }) {}

ParentLink::~ParentLink() { Shutdown(); }

void ParentLink::Send(const Manifest& manifest, std::shared_ptr<const EncodedVector> payload) {
  Outgoing outgoing{manifest, std::move(payload)};
  outgoing.manifest.sender = options_.self;
  MutexLock lock(mutex_);
  outgoing_.push_back(std::move(outgoing));
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
  if (sender_.joinable()) sender_.join();
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
    connection.channel = MakeChannel(options_.address);
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
  // 50 ms, doubling to 1 s, half of it jitter: a region's workers do not come back all at once.
  Random random(DeriveSeed(options_.seed, "backoff", attempt));
  const double ceiling = std::min(1.0, 0.05 * static_cast<double>(1 << std::min(attempt, 10)));
  const absl::Duration delay = absl::Seconds(ceiling * (0.5 + 0.5 * random.Uniform()));
  MutexLock lock(mutex_);
  if (!stopping_) changed_.WaitFor(mutex_, delay);
  return !stopping_;
}

// One Follow with its parts, from its beginning to its end.
class ParentLink::Following {
 public:
  explicit Following(ParentLink* link) : link_(link) {}

  absl::Status Run() {
    SetDeadline(&context_, kFollowTimeout);
    context_.set_wait_for_ready(true);
    if (!link_->Begin(&context_)) return absl::CancelledError("shutting down");
    FollowRequest request = link_->MakeFollowRequest();
    const int wanted = link_->follow_streams_.streams();
    request.set_transfer(transfer_);
    if (wanted > 1) request.set_parts(wanted);
    link_->Connect(&link_->follow_connections_, 1);
    auto reader = link_->follow_connections_.front().stub->Follow(&context_, request);
    if (wanted > 1) AddParts(wanted);
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
    for (std::thread& part : parts_) part.join();
    if (absl::IsDataLoss(taken)) return taken;
    if (finished.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) return absl::OkStatus();
    return FromGrpc(finished, absl::StrCat(link_->options_.parent_name, " at ", link_->options_.address, ", follow"));
  }

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
    link_->callbacks_.on_version();
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
    SetDeadline(context, kFollowTimeout + absl::Minutes(1));
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

  ParentLink* const link_;
  const uint64_t transfer_ = ++link_->transfers_;
  grpc::ClientContext context_;
  FollowMerge merge_{[this](FollowMessage message, absl::Time arrived) { return Take(std::move(message), arrived); }};
  std::atomic<int> bringing_{0};  // Parts of which something came.
  // Changed before the first message and under the merge's lock.
  std::deque<grpc::ClientContext> part_contexts_;
  std::deque<std::thread> parts_;
  int64_t version_bytes_ = 0;
  absl::Time version_began_;
};

void ParentLink::FollowLoop() {
  int attempt = 0;
  while (true) {
    const int64_t before = bytes_down_;
    const absl::Status status = Following(this).Run();
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
    } else if (!status.ok() && attempt == 0) {
      LOG(WARNING) << "following " << options_.parent_name << ": " << status;
    }
    // What came is not asked for again, unless it was damaged.
    const bool moved = bytes_down_ > before && status.code() != absl::StatusCode::kDataLoss;
    attempt = moved ? 0 : attempt + 1;
    if (!Backoff(attempt)) return;
  }
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
  request.set_next_sequence(next_sequence_.value());
  return request;
}

void ParentLink::SendLoop() {
  Connect(&send_connections_, send_streams_.streams());
  while (true) {
    Outgoing outgoing;
    {
      MutexLock lock(mutex_);
      while (outgoing_.empty() && !stopping_) changed_.Wait(mutex_);
      if (stopping_) return;
      outgoing = std::move(outgoing_.front());
      outgoing_.pop_front();
    }
    for (int attempt = 0;; ++attempt) {
      ContributeReply reply;
      const absl::Status status = SendOnce(outgoing, &reply);
      if (status.ok() && reply.verdict() != VERDICT_OUT_OF_ORDER) {
        ++contributions_sent_;
        {
          MutexLock lock(mutex_);
          next_sequence_ = Sequence(outgoing.manifest.sequence.value() + 1);
        }
        callbacks_.on_answer(outgoing.manifest.sequence, reply.verdict(), reply.detail());
        break;
      }
      {
        MutexLock lock(mutex_);
        if (stopping_) return;
      }
      if (IsFatal(status)) {
        callbacks_.on_fatal(status);
        return;
      }
      LOG_IF(WARNING, attempt == 0) << "contribution " << outgoing.manifest.sequence << " to " << options_.parent_name
                                    << " is sent again: " << (status.ok() ? reply.detail() : status.ToString());
      if (!Backoff(attempt)) return;
    }
  }
}

template <typename Message>
bool ParentLink::WritePieces(const Outgoing& outgoing, const std::vector<Piece>& pieces,
                             grpc::ClientWriter<Message>* writer) {
  Message message;
  for (const Piece& piece : pieces) {
    FragmentPayload* fragment = message.mutable_fragment();
    fragment->set_index(piece.fragment);
    fragment->set_offset(piece.offset);
    fragment->mutable_payload()->assign(outgoing.payload->fragments[piece.fragment], piece.offset, piece.length);
    if (!writer->Write(message)) return false;
    bytes_up_ += piece.length;
  }
  return writer->WritesDone();
}

absl::Status ParentLink::SendPart(const Outgoing& outgoing, const std::vector<Piece>& pieces, uint64_t transfer,
                                  Connection* connection, grpc::ClientContext* context) {
  if (!Begin(context)) return absl::CancelledError("shutting down");
  ContributePartReply reply;
  auto writer = connection->stub->ContributePart(context, &reply);
  ContributePartMessage message;
  *message.mutable_part_of() = PartOfTransfer(transfer);
  if (writer->Write(message)) WritePieces(outgoing, pieces, writer.get());
  const grpc::Status finished = writer->Finish();
  End(context);
  return FromGrpc(finished, "a part of a contribution");
}

absl::Status ParentLink::SendOnce(const Outgoing& outgoing, ContributeReply* reply) {
  const EncodedVector& payload = *outgoing.payload;
  const int64_t bytes = payload.bytes();
  const int wanted = send_streams_.streams();
  Connect(&send_connections_, wanted);
  // Those that are not connected yet are for the next one.
  int streams = 1;
  while (streams < wanted && send_connections_[streams].channel->GetState(/*try_to_connect=*/true) ==
                                 grpc_connectivity_state::GRPC_CHANNEL_READY) {
    ++streams;
  }
  std::vector<std::vector<Piece>> pieces(streams);
  size_t turn = 0;
  for (size_t f = 0; f < payload.fragments.size(); ++f) {
    const auto size = static_cast<int64_t>(payload.fragments[f].size());
    const int64_t piece = PieceBytes(size, streams);
    for (int64_t offset = 0; offset < size; offset += piece) {
      pieces[turn++ % pieces.size()].push_back({static_cast<int>(f), offset, std::min(piece, size - offset)});
    }
  }

  const absl::Duration timeout = TransferTimeout(options_.rpc_timeout, bytes);
  const uint64_t transfer = ++transfers_;
  grpc::ClientContext context;
  SetDeadline(&context, timeout);
  context.set_wait_for_ready(true);  // Goes out as soon as the parent is back: a backoff would sleep past that.
  if (!Begin(&context)) return absl::CancelledError("shutting down");
  const absl::Time began = absl::Now();
  auto writer = send_connections_.front().stub->Contribute(&context, reply);
  ContributeMessage message;
  ContributionHeader* header = message.mutable_header();
  ManifestToProto(outgoing.manifest, header);
  header->set_codec(payload.codec);
  header->set_schema_digest(options_.schema_digest);
  header->set_fragments(static_cast<int>(payload.fragments.size()));
  header->set_payload_checksum(payload.checksum());
  header->set_payload_bytes(bytes);
  header->set_streams(streams);
  header->set_transfer(transfer);
  std::deque<grpc::ClientContext> part_contexts;
  std::vector<std::thread> parts;
  for (int i = 1; i < streams; ++i) {
    grpc::ClientContext* part = &part_contexts.emplace_back();
    SetDeadline(part, timeout);
    parts.emplace_back([this, i, part, transfer, &context, &outgoing, &pieces] {
      // The parent would wait for what is missing.
      if (!SendPart(outgoing, pieces[i], transfer, &send_connections_[i], part).ok()) context.TryCancel();
    });
  }
  if (writer->Write(message)) WritePieces(outgoing, pieces[0], writer.get());
  const grpc::Status finished = writer->Finish();
  End(&context);
  for (grpc::ClientContext& part : part_contexts) part.TryCancel();
  for (std::thread& part : parts) part.join();
  if (finished.ok()) send_streams_.Observe(streams, bytes, absl::Now() - began);
  return FromGrpc(finished, absl::StrCat(options_.parent_name, " at ", options_.address, ", contribution ",
                                         outgoing.manifest.sequence.value()));
}

}  // namespace wukong
