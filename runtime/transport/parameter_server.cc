#include "runtime/transport/parameter_server.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "glog/logging.h"
#include "runtime/transport/grpc_options.h"

namespace wukong {
namespace {

// How soon a cancelled call is noticed. A contribution holds bytes that others may wait for; a follower that is gone
// holds only its thread, and what is new or the end of this node wakes it.
constexpr absl::Duration kPoll = absl::Milliseconds(200);
constexpr absl::Duration kFollowPoll = absl::Seconds(1);
constexpr int kRangesMax = 100000;  // Of one contribution.
// Group commit: while more work waits, so many effects may wait with it for one sync.
constexpr size_t kOutboxMax = 64;

}  // namespace

// One contribution, from its first byte to its verdict.
struct ParameterServer::Offer {
  ContributionHeader header;
  std::shared_ptr<EncodedVector> payload = std::make_shared<EncodedVector>();
  int64_t bytes = 0;  // Counted in staged_bytes_.
  Notification answered;
  Verdict verdict = VERDICT_UNSPECIFIED;  // Both written before `answered`.
  std::string detail;
};

ParameterServer::ParameterServer(const Options& options, Hooks hooks, absl::Span<float> theta,
                                 const VersionNotes& notes, ParentLink* up, const Clock* clock,
                                 const Restored* restored)
    : options_(options),
      up_(up),
      engine_(options, std::move(hooks), theta, notes, up, clock, restored),
      executor_("node") {
  public_.OnTaken([this] { Post(ParentNode::FollowersReady{}); });
}

ParameterServer::~ParameterServer() { Shutdown(); }

void ParameterServer::Shutdown() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    budget_changed_.NotifyAll();
  }
  public_.Shutdown();
  executor_.Shutdown();
}

bool ParameterServer::PostWork(std::function<void()> work) {
  return executor_.Post([this, work = std::move(work)] {
    work();
    if (executor_.queued() == 0 || engine_.outbox() >= kOutboxMax) engine_.Flush();
  });
}

void ParameterServer::Post(const ParentNode::Event& event) {
  PostWork([this, event] { engine_.Handle(event); });
}

void ParameterServer::OnParentVersion() {
  const FollowedParameters::Snapshot snapshot = up_->parameters().snapshot();
  if (snapshot.version.value() == 0) return;
  Post(ParentNode::ParentMoved{snapshot.root_version, snapshot.tokens_committed, snapshot.lead});
}
void ParameterServer::OnParentAnswer(Sequence sequence, Verdict verdict) {
  Post(ParentNode::Answered{sequence, verdict});
}
void ParameterServer::SetIdle(const std::set<MemberId>& idle) { Post(ParentNode::IdleChildren{idle}); }
void ParameterServer::SetDraining(bool on) { Post(ParentNode::Drain{on}); }
void ParameterServer::Tick() { Post(ParentNode::Tick{}); }

void ParameterServer::Fence(MemberKey child, std::function<void(std::vector<LeasedRange>)> done) {
  PostWork([this, child, done = std::move(done)] { done(engine_.Fence(child)); });
}

void ParameterServer::RunExclusive(const std::function<void(const ParentNode&)>& work) {
  Notification done;
  if (!PostWork([&] {
        engine_.Flush();
        work(engine_.node());
        done.Notify();
      })) {
    return;
  }
  while (!done.WaitFor(absl::Seconds(1))) {
  }
}

void ParameterServer::PostSnapshot(std::function<void(const Vectors&)> work) {
  PostWork([this, work = std::move(work)] {
    if (engine_.Flush()) work(engine_.CopyVectors());
  });
}

absl::Status ParameterServer::ReadContribution(grpc::ServerContext* context,
                                               grpc::ServerReader<ContributeMessage>* reader, Offer* offer) {
  ContributeMessage message;
  if (!reader->Read(&message) || !message.has_header()) {
    return absl::InvalidArgumentError("a contribution begins with its header");
  }
  const ContributionHeader header = message.header();
  if (header.schema_digest() != options_.schema_digest) {
    return absl::FailedPreconditionError(
        absl::StrFormat("member %d sends parameters of another model (schema %.12s, this node has %.12s)",
                        header.member(), header.schema_digest(), options_.schema_digest));
  }
  if (header.codec() != options_.codec_up) {
    return absl::InvalidArgumentError(
        absl::StrFormat("codec %s, expected %s", CodecKind_Name(header.codec()), CodecKind_Name(options_.codec_up)));
  }
  if (header.fragments() != static_cast<int>(options_.fragments.size()) || header.ranges_size() > kRangesMax ||
      header.sequence() < 1 || header.tokens() < 0 || header.steps() < 0) {
    return absl::InvalidArgumentError(absl::StrFormat("%d fragments in %d ranges, expected %d fragments",
                                                      header.fragments(), header.ranges_size(),
                                                      options_.fragments.size()));
  }
  offer->header = header;
  offer->payload->codec = header.codec();
  const auto bytes = static_cast<int64_t>(EncodedBytes(header.codec(), options_.fragments));
  {
    MutexLock lock(mutex_);
    // One contribution is always let in, or a model larger than the bound could never train.
    while (staged_bytes_ > 0 && staged_bytes_ + bytes > options_.in_flight_bytes && !stopping_) {
      budget_changed_.WaitFor(mutex_, kPoll);
      if (context->IsCancelled()) return absl::CancelledError("the sender is gone");
    }
    if (stopping_) return absl::UnavailableError("this node is shutting down");
    staged_bytes_ += bytes;
    staged_bytes_max_ = std::max(staged_bytes_max_, staged_bytes_);
  }
  offer->bytes = bytes;
  for (size_t f = 0; f < options_.fragments.size(); ++f) {
    if (!reader->Read(&message)) {
      if (context->IsCancelled()) return absl::CancelledError("the contribution broke off");
      return absl::InvalidArgumentError(
          absl::StrFormat("the contribution ends after %d of %d fragments", f, options_.fragments.size()));
    }
    if (!message.has_fragment() || message.fragment().index() != static_cast<int>(f) ||
        ((options_.node.parts == 1 || !message.fragment().payload().empty()) &&
         message.fragment().payload().size() !=
             EncodedBytes(header.codec(), absl::MakeConstSpan(options_.fragments).subspan(f, 1)))) {
      return absl::InvalidArgumentError(absl::StrFormat("fragment %d is out of order or of the wrong size", f));
    }
    offer->payload->fragments.push_back(std::move(*message.mutable_fragment()->mutable_payload()));
  }
  if (reader->Read(&message)) return absl::InvalidArgumentError("bytes after the last fragment");
  const uint64_t checksum = offer->payload->checksum();
  if (checksum != header.payload_checksum()) {
    // Damaged on the way: the sender still has it.
    return absl::UnavailableError(
        absl::StrFormat("payload checksum %016x, the header says %016x", checksum, header.payload_checksum()));
  }
  return absl::OkStatus();
}

grpc::Status ParameterServer::Contribute(grpc::ServerContext* context, grpc::ServerReader<ContributeMessage>* reader,
                                         ContributeReply* reply) {
  auto offer = std::make_shared<Offer>();
  const absl::Status read = ReadContribution(context, reader, offer.get());
  if (!read.ok()) {
    MutexLock lock(mutex_);
    staged_bytes_ -= offer->bytes;
    budget_changed_.NotifyAll();
    return ToGrpc(read);
  }
  const bool posted = PostWork([this, offer] {
    NodeEngine::Contribution contribution;
    contribution.header = offer->header;
    contribution.payload = offer->payload;
    contribution.released = [this, offer] {
      MutexLock lock(mutex_);
      staged_bytes_ -= offer->bytes;
      budget_changed_.NotifyAll();
    };
    contribution.answer = [offer](Verdict verdict, const std::string& detail) {
      offer->verdict = verdict;
      offer->detail = detail;
      offer->answered.Notify();
    };
    engine_.Take(std::move(contribution));
  });
  if (!posted) return ToGrpc(absl::UnavailableError("this node is shutting down"));
  while (!offer->answered.WaitFor(kPoll)) {
    // The verdict will be remembered for the repeat.
    if (context->IsCancelled()) return grpc::Status(grpc::StatusCode::CANCELLED, "the sender is gone");
    MutexLock lock(mutex_);
    if (stopping_) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "this node is shutting down");
  }
  reply->set_verdict(offer->verdict);
  reply->set_detail(offer->detail);
  return grpc::Status::OK;
}

grpc::Status ParameterServer::Follow(grpc::ServerContext* context, const FollowRequest* request,
                                     grpc::ServerWriter<FollowMessage>* writer) {
  if (request->schema_digest() != options_.schema_digest) {
    return ToGrpc(absl::FailedPreconditionError(
        absl::StrFormat("member %d runs another model (schema %.12s, this node has %.12s)", request->member(),
                        request->schema_digest(), options_.schema_digest)));
  }
  const MemberKey child{MemberId(request->member()), Incarnation(request->incarnation())};
  Post(ParentNode::ChildAttached{child, Sequence(std::max<int64_t>(1, request->next_sequence()))});
  PublicParameters::Position have;
  have.complete = Version(request->have_version());
  for (const int64_t version : request->fragment_versions()) have.fragments.emplace_back(version);
  PublicParameters::Cursor cursor = public_.CursorAt(std::move(have));
  public_.AddFollower();
  bool writable = true;
  while (writable && !context->IsCancelled()) {
    {
      MutexLock lock(mutex_);
      if (stopping_) break;
    }
    const std::optional<FollowMessage> message = public_.Next(&cursor, child, kFollowPoll);
    if (message.has_value()) writable = writer->Write(*message);
  }
  public_.RemoveFollower();
  MutexLock lock(mutex_);
  return stopping_ ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "this node is shutting down") : grpc::Status::OK;
}

}  // namespace wukong
