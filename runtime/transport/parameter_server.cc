#include "runtime/transport/parameter_server.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_format.h"
#include "glog/logging.h"
#include "runtime/transport/grpc_options.h"

namespace wukong {
namespace {

constexpr absl::Duration kPoll = absl::Milliseconds(200);  // How soon a cancelled call is noticed.
constexpr int kRangesMax = 100000;                         // Of one contribution.

}  // namespace

// One contribution, from its first byte to its verdict.
struct ParameterServer::Offer {
  Manifest manifest;
  std::shared_ptr<EncodedVector> payload = std::make_shared<EncodedVector>();
  int64_t bytes = 0;  // Counted in staged_bytes_.
  Notification answered;
  Verdict verdict = VERDICT_UNSPECIFIED;  // Both written before `answered`.
  std::string detail;
};

ParameterServer::ParameterServer(const Options& options, Hooks hooks, absl::Span<float> theta,
                                 const VersionNotes& notes, ParentLink* up, const Clock* clock)
    : options_(options),
      hooks_(std::move(hooks)),
      clock_(clock),
      up_(up),
      theta_(theta),
      node_(options.node),
      outer_(theta, options.fragments, options.progress, options.node.level.momentum() > 0),
      public_(theta, options.fragments, options.codec_down, notes),
      executor_("node") {
  CHECK_EQ(options.node.is_root, up == nullptr);
  if (up_ != nullptr) replica_ = std::make_unique<Replica>(theta, options.fragments, options.replica);
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

void ParameterServer::Post(const ParentNode::Event& event) {
  executor_.Post([this, event] { Handle(event); });
}

void ParameterServer::OnParentVersion() {
  const FollowedParameters::Snapshot snapshot = up_->parameters().snapshot();
  if (snapshot.version.value() == 0) return;
  Post(ParentNode::ParentMoved{snapshot.root_version, snapshot.tokens_committed});
}
void ParameterServer::OnParentAnswer(Sequence sequence, Verdict verdict) {
  Post(ParentNode::Answered{sequence, verdict});
}
void ParameterServer::SetIdle(const std::set<MemberId>& idle) { Post(ParentNode::IdleChildren{idle}); }
void ParameterServer::SetDraining(bool on) { Post(ParentNode::Drain{on}); }
void ParameterServer::Tick() { Post(ParentNode::Tick{}); }

void ParameterServer::Fence(MemberKey child, std::function<void(std::vector<LeasedRange>)> done) {
  executor_.Post([this, child, done = std::move(done)] {
    Handle(ParentNode::ChildFenced{child});
    done(node_.CustodyOf(child));
  });
}

void ParameterServer::RunExclusive(const std::function<void(const ParentNode&)>& work) {
  Notification done;
  if (!executor_.Post([&] {
        work(node_);
        done.Notify();
      })) {
    return;
  }
  while (!done.WaitFor(absl::Seconds(1))) {
  }
}

void ParameterServer::Handle(const ParentNode::Event& event) {
  events_.push_back(event);
  // An action may lead to an event (Check to Checked): it waits until the Step before it is carried out to its end.
  if (handling_) return;
  handling_ = true;
  while (!events_.empty() && !failed_) {
    const ParentNode::Event next = std::move(events_.front());
    events_.pop_front();
    for (const ParentNode::Action& action : node_.Step(next, clock_->Now())) {
      std::visit([this](const auto& a) { Do(a); }, action);
    }
  }
  events_.clear();
  handling_ = false;
}

void ParameterServer::Fatal(const absl::Status& status) {
  if (failed_) return;
  failed_ = true;
  LOG(ERROR) << "this node stops: " << status;
  hooks_.on_fatal(status);
}

void ParameterServer::Do(const ParentNode::Check& check) {
  const std::shared_ptr<Offer> offer = offers_.at(check.handle);
  ParentNode::Checked checked;
  checked.handle = check.handle;
  const absl::StatusOr<double> norm = CheckContribution(*offer->payload, options_.fragments);
  if (!norm.ok()) {
    checked.verdict = VERDICT_NON_FINITE;
    checked.detail = std::string(norm.status().message());
  } else {
    checked.verdict = hooks_.admit ? hooks_.admit(offer->manifest, &checked.detail) : VERDICT_ACCEPTED;
  }
  Handle(checked);
}

void ParameterServer::Do(const ParentNode::Reply& reply) {
  const auto found = offers_.find(reply.handle);
  CHECK(found != offers_.end());
  const std::shared_ptr<Offer> offer = found->second;
  offer->verdict = reply.verdict;
  offer->detail = reply.detail;
  if (reply.verdict != VERDICT_ACCEPTED && reply.verdict != VERDICT_OUT_OF_ORDER) {
    LOG(WARNING) << "contribution " << offer->manifest.sequence << " of member " << offer->manifest.sender.member
                 << " refused (" << VerdictName(reply.verdict) << "): " << reply.detail;
    if (hooks_.on_refused) hooks_.on_refused(offer->manifest, reply.verdict, reply.detail);
  }
  if (!reply.keep_payload) offers_.erase(found);
  {
    // What was accepted no longer counts although it may wait for its quorum: the merge needs the contributions that
    // the bound would keep out. There are at most in_flight_max of each child.
    MutexLock lock(mutex_);
    staged_bytes_ -= offer->bytes;
    budget_changed_.NotifyAll();
  }
  offer->answered.Notify();
}

void ParameterServer::Do(const ParentNode::Apply& apply) {
  std::vector<std::shared_ptr<const EncodedVector>> payloads;
  for (const Merge::Part& part : apply.merge.parts) payloads.push_back(offers_.at(part.handle)->payload);
  absl::Status status = outer_.Apply(apply.merge, payloads);
  if (status.ok() && options_.progress == PROGRESS_GRADIENT && up_ == nullptr) {
    status = hooks_.gradient_step(outer_.gradient());
    std::fill(outer_.gradient().begin(), outer_.gradient().end(), 0.0f);
  }
  for (const Merge::Part& part : apply.merge.parts) offers_.erase(part.handle);
  if (!status.ok()) {
    Fatal(status);
    return;
  }
  if (hooks_.on_merged) hooks_.on_merged(apply);
}

void ParameterServer::Do(const ParentNode::Rebase&) {
  const absl::StatusOr<bool> moved = up_->parameters().With(
      [&](absl::Span<const float> values, const FollowedParameters::Snapshot& snapshot) -> absl::StatusOr<bool> {
        if (snapshot.version.value() == 0) return false;  // Being fetched anew; a newer version will come.
        return replica_->Rebase(values, snapshot.included);
      });
  if (!moved.ok()) Fatal(moved.status());
}

void ParameterServer::Do(const ParentNode::Drop& drop) {
  LOG(WARNING) << "the root refused contribution " << drop.sequence << ": " << VerdictName(drop.verdict);
  if (drop.verdict != VERDICT_NON_FINITE) {
    const absl::Status status = replica_->Drop(drop.sequence);
    if (!status.ok()) Fatal(status);
    return;
  }
  // What is not finite cannot be subtracted.
  up_->parameters().With([&](absl::Span<const float> values, const FollowedParameters::Snapshot& snapshot) {
    if (snapshot.version.value() > 0) replica_->Reset(values);
  });
}

void ParameterServer::Do(const ParentNode::Publish& publish) {
  const absl::Status status = public_.Publish(theta_, publish.notes);
  if (!status.ok()) {
    Fatal(absl::OutOfRangeError(
        absl::StrFormat("the parameters diverged at version %d: %s", publish.version.value(), status.message())));
    return;
  }
  CHECK_EQ(public_.version(), publish.version);
}

void ParameterServer::Do(const ParentNode::SendUp& send) {
  const absl::StatusOr<std::shared_ptr<const EncodedVector>> payload =
      options_.progress == PROGRESS_GRADIENT ? replica_->Send(send.manifest.sequence, outer_.gradient())
                                             : replica_->Send(send.manifest.sequence);
  if (!payload.ok()) {
    Fatal(
        absl::OutOfRangeError(absl::StrFormat("the region's progress is not finite: %s", payload.status().message())));
    return;
  }
  if (options_.progress == PROGRESS_GRADIENT) std::fill(outer_.gradient().begin(), outer_.gradient().end(), 0.0f);
  up_->Send(send.manifest, *payload);
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
  offer->manifest = ManifestFromProto(header);
  offer->payload->codec = header.codec();
  const auto codec = MakeCodec(header.codec());
  int64_t bytes = 0;
  for (const FragmentSpan& span : options_.fragments) bytes += static_cast<int64_t>(codec->EncodedBytes(span.size()));
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
        message.fragment().payload().size() != codec->EncodedBytes(options_.fragments[f].size())) {
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
  wukong::Handle handle;
  {
    MutexLock lock(mutex_);
    handle = wukong::Handle(next_handle_++);
  }
  const bool posted = executor_.Post([this, handle, offer] {
    offers_[handle] = offer;
    Handle(ParentNode::Offered{handle, offer->manifest});
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
  Post(ParentNode::ChildAttached{child});
  PublicParameters::Cursor cursor = public_.CursorAt(Version(request->have_version()));
  public_.AddFollower();
  bool writable = true;
  while (writable && !context->IsCancelled()) {
    {
      MutexLock lock(mutex_);
      if (stopping_) break;
    }
    const std::optional<FollowMessage> message = public_.Next(&cursor, child.member, kPoll);
    if (message.has_value()) writable = writer->Write(*message);
  }
  public_.RemoveFollower();
  MutexLock lock(mutex_);
  return stopping_ ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "this node is shutting down") : grpc::Status::OK;
}

}  // namespace wukong
