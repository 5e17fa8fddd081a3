#include "runtime/transport/parent_link.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "runtime/base/random.h"
#include "runtime/transport/grpc_options.h"

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
      follow_stub_(ParameterNode::NewStub(MakeChannel(options.address))),
      send_stub_(ParameterNode::NewStub(MakeChannel(options.address))),
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
    if (follow_context_ != nullptr) follow_context_->TryCancel();
    if (send_context_ != nullptr) send_context_->TryCancel();
    changed_.NotifyAll();
  }
  if (follower_.joinable()) follower_.join();
  if (sender_.joinable()) sender_.join();
}

bool ParentLink::Begin(grpc::ClientContext* context, grpc::ClientContext** slot) {
  MutexLock lock(mutex_);
  if (stopping_) return false;
  *slot = context;
  return true;
}

void ParentLink::End(grpc::ClientContext** slot) {
  MutexLock lock(mutex_);
  *slot = nullptr;
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

void ParentLink::FollowLoop() {
  int attempt = 0;
  while (true) {
    const int64_t before = bytes_down_;
    const absl::Status status = FollowOnce();
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

absl::Status ParentLink::FollowOnce() {
  grpc::ClientContext context;
  SetDeadline(&context, kFollowTimeout);
  context.set_wait_for_ready(true);
  if (!Begin(&context, &follow_context_)) return absl::CancelledError("shutting down");
  FollowRequest request;
  request.set_member(options_.self.member.value());
  request.set_incarnation(options_.self.incarnation.value());
  const PublicParameters::Position have = parameters_.Resume();
  request.set_have_version(have.complete.value());
  for (const Version fragment : have.fragments) request.add_fragment_versions(fragment.value());
  request.set_schema_digest(options_.schema_digest);
  {
    MutexLock lock(mutex_);
    request.set_next_sequence(next_sequence_.value());
  }
  auto reader = follow_stub_->Follow(&context, request);
  FollowMessage message;
  absl::Status taken = absl::OkStatus();
  while (reader->Read(&message)) {
    bytes_down_ += static_cast<int64_t>(message.fragment().payload().size());
    const absl::StatusOr<bool> completed = parameters_.Take(std::move(message));
    if (!completed.ok()) {
      taken = completed.status();
      context.TryCancel();
      break;
    }
    if (*completed) callbacks_.on_version();
  }
  const grpc::Status finished = reader->Finish();
  End(&follow_context_);
  if (!taken.ok()) return taken;
  if (finished.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) return absl::OkStatus();
  return FromGrpc(finished, absl::StrCat(options_.parent_name, " at ", options_.address, ", follow"));
}

void ParentLink::SendLoop() {
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

absl::Status ParentLink::SendOnce(const Outgoing& outgoing, ContributeReply* reply) {
  grpc::ClientContext context;
  SetDeadline(&context, options_.rpc_timeout);
  context.set_wait_for_ready(true);  // Goes out as soon as the parent is back: a backoff would sleep past that.
  if (!Begin(&context, &send_context_)) return absl::CancelledError("shutting down");
  auto writer = send_stub_->Contribute(&context, reply);
  ContributeMessage message;
  ContributionHeader* header = message.mutable_header();
  ManifestToProto(outgoing.manifest, header);
  header->set_codec(outgoing.payload->codec);
  header->set_schema_digest(options_.schema_digest);
  header->set_fragments(static_cast<int>(outgoing.payload->fragments.size()));
  header->set_payload_checksum(outgoing.payload->checksum());
  bool writable = writer->Write(message);
  for (size_t f = 0; writable && f < outgoing.payload->fragments.size(); ++f) {
    FragmentPayload* fragment = message.mutable_fragment();
    fragment->set_index(static_cast<int>(f));
    fragment->set_payload(outgoing.payload->fragments[f]);
    writable = writer->Write(message);
    if (writable) bytes_up_ += static_cast<int64_t>(outgoing.payload->fragments[f].size());
  }
  writer->WritesDone();
  const grpc::Status finished = writer->Finish();
  End(&send_context_);
  return FromGrpc(finished, absl::StrCat(options_.parent_name, " at ", options_.address, ", contribution ",
                                         outgoing.manifest.sequence.value()));
}

}  // namespace wukong
