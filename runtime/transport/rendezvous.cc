#include "runtime/transport/rendezvous.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/clock.h"
#include "runtime/transport/grpc_options.h"

namespace wukong {
namespace {

constexpr absl::Duration kServerWaitMax = absl::Seconds(5);
constexpr absl::Duration kServerWait = absl::Milliseconds(500);  // So that a cancellation is noticed.
constexpr absl::Duration kCallTimeout = absl::Seconds(5);
constexpr absl::Duration kRetry = absl::Milliseconds(100);

bool AggregatorIsAway(const absl::Status& status) {
  return status.code() == absl::StatusCode::kUnavailable || status.code() == absl::StatusCode::kDeadlineExceeded;
}

}  // namespace

absl::Status MemoryStore::Set(MemberKey owner, const std::string& key, const std::string& value) {
  if (key.size() + value.size() > limits_.value_bytes) {
    return absl::ResourceExhaustedError(absl::StrFormat("the rendezvous store takes at most %d bytes per key, got %d for %.64s",
                                                        limits_.value_bytes, key.size() + value.size(), key));
  }
  MutexLock lock(mutex_);
  const auto found = entries_.find(key);
  const size_t before = found == entries_.end() ? 0 : key.size() + found->second.value.size();
  if (bytes_ - before + key.size() + value.size() > limits_.total_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("the rendezvous store holds %d bytes and takes at most %d", bytes_, limits_.total_bytes));
  }
  bytes_ += key.size() + value.size() - before;
  entries_[key] = {owner, value};
  changed_.NotifyAll();
  return absl::OkStatus();
}

absl::StatusOr<std::string> MemoryStore::Get(const std::string& key, absl::Duration timeout) {
  const RealClock clock;
  const absl::Time deadline = clock.Now() + timeout;
  MutexLock lock(mutex_);
  while (true) {
    const auto found = entries_.find(key);
    if (found != entries_.end()) return found->second.value;
    const absl::Duration left = deadline - clock.Now();
    if (left <= absl::ZeroDuration()) {
      return absl::DeadlineExceededError(
          absl::StrFormat("nobody set %s in the rendezvous store within %s", key, absl::FormatDuration(timeout)));
    }
    changed_.WaitFor(mutex_, left);
  }
}

void MemoryStore::Forget(MemberKey owner) {
  MutexLock lock(mutex_);
  for (auto it = entries_.begin(); it != entries_.end();) {
    if (it->second.owner.member == owner.member && it->second.owner.incarnation <= owner.incarnation) {
      bytes_ -= it->first.size() + it->second.value.size();
      it = entries_.erase(it);
    } else {
      ++it;
    }
  }
}

grpc::Status ServeStoreSet(MemoryStore* store, const StoreSetRequest& request) {
  return ToGrpc(store->Set({MemberId(request.member()), Incarnation(request.incarnation())}, request.key(), request.value()));
}

grpc::Status ServeStoreGet(MemoryStore* store, const StoreGetRequest& request, StoreGetReply* reply) {
  const double seconds = std::clamp(request.wait_seconds(), 0.0, absl::ToDoubleSeconds(kServerWaitMax));
  absl::StatusOr<std::string> value = store->Get(request.key(), absl::Seconds(seconds));
  if (!value.ok()) return grpc::Status(grpc::StatusCode::NOT_FOUND, std::string(value.status().message()));
  reply->set_value(*std::move(value));
  return grpc::Status::OK;
}

RpcStore::RpcStore(const std::string& address, MemberKey self, absl::Duration set_timeout,
                   std::function<bool()> cancelled)
    : address_(address),
      self_(self),
      set_timeout_(set_timeout),
      cancelled_(std::move(cancelled)),
      stub_(ParameterNode::NewStub(MakeChannel(address))) {}

absl::Status RpcStore::Set(const std::string& key, const std::string& value) {
  const RealClock clock;
  const absl::Time deadline = clock.Now() + set_timeout_;
  StoreSetRequest request;
  request.set_member(self_.member.value());
  request.set_incarnation(self_.incarnation.value());
  request.set_key(key);
  request.set_value(value);
  Mutex mutex;
  CondVar never;
  while (true) {
    grpc::ClientContext context;
    SetDeadline(&context, std::min(kCallTimeout, set_timeout_));
    StoreSetReply reply;
    const absl::Status status = FromGrpc(stub_->StoreSet(&context, request, &reply),
                                         absl::StrCat("aggregator at ", address_, ", setting ", key));
    if (!AggregatorIsAway(status) || clock.Now() > deadline) return status;
    if (cancelled_()) return absl::CancelledError("stopped while setting " + key);
    MutexLock lock(mutex);
    never.WaitFor(mutex, kRetry);
  }
}

absl::StatusOr<std::string> RpcStore::Get(const std::string& key, absl::Duration timeout) {
  const RealClock clock;
  const absl::Time deadline = clock.Now() + timeout;
  Mutex mutex;
  CondVar never;
  while (true) {
    StoreGetRequest request;
    request.set_key(key);
    request.set_wait_seconds(absl::ToDoubleSeconds(std::clamp(deadline - clock.Now(), absl::ZeroDuration(), kServerWait)));
    grpc::ClientContext context;
    SetDeadline(&context, kCallTimeout);
    StoreGetReply reply;
    const absl::Status status = FromGrpc(stub_->StoreGet(&context, request, &reply),
                                         absl::StrCat("aggregator at ", address_, ", waiting for ", key));
    if (status.ok()) return std::move(*reply.mutable_value());
    const bool not_set = status.code() == absl::StatusCode::kNotFound;
    if (!not_set && !AggregatorIsAway(status)) return status;
    if (cancelled_()) return absl::CancelledError("stopped while waiting for " + key);
    if (clock.Now() >= deadline) {
      return absl::DeadlineExceededError(absl::StrFormat("nobody set %s at the aggregator at %s within %s%s%s", key, address_,
                                                         absl::FormatDuration(timeout), not_set ? "" : ": ",
                                                         not_set ? "" : std::string(status.message())));
    }
    if (not_set) continue;  // The server has waited.
    MutexLock lock(mutex);
    never.WaitFor(mutex, kRetry);
  }
}

}  // namespace wukong
