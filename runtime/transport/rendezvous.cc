#include "runtime/transport/rendezvous.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/types/span.h"
#include "runtime/base/clock.h"
#include "runtime/transport/grpc_options.h"

namespace wukong {
namespace {

constexpr absl::Duration kServerWaitMax = absl::Seconds(5);
constexpr absl::Duration kServerWait = absl::Milliseconds(500);  // So that a cancellation is noticed.
constexpr absl::Duration kCallTimeout = absl::Seconds(5);
constexpr absl::Duration kRetry = absl::Milliseconds(100);

constexpr absl::Duration kLookAgain = absl::Milliseconds(100);  // For places that were taken anew.
constexpr char kPlanKey[] = "group/plan";

std::string PlaceKey(int rank) { return absl::StrCat("group/place/", rank); }
std::string AnswerKey(absl::string_view generation, absl::string_view identity) {
  return absl::StrCat("group/answer/", generation, "/", identity);
}
std::string BeginKey(absl::string_view generation) { return absl::StrCat("group/begin/", generation); }

bool NotThere(const absl::Status& status) { return status.code() == absl::StatusCode::kDeadlineExceeded; }

// A member as the store has it: "member.incarnation".
std::string IdentityOf(MemberKey key) { return absl::StrCat(key.member.value(), ".", key.incarnation.value()); }

absl::StatusOr<Generation> MakeGeneration(const std::string& name, absl::Span<const std::string> identities) {
  Generation generation;
  generation.name = name;
  for (const std::string& identity : identities) {
    const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(identity, absl::MaxSplits('.', 1));
    int64_t member = 0;
    int64_t incarnation = 0;
    if (!absl::SimpleAtoi(parts.first, &member) || !absl::SimpleAtoi(parts.second, &incarnation)) {
      return absl::InternalError(
          absl::StrFormat("the plan of group %s names \"%s\", which is no member", name, identity));
    }
    generation.members.push_back({MemberId(member), Incarnation(incarnation)});
  }
  return generation;
}

// Rank 0's part. A plan is the generation's name and the identities in the order of their ranks.
absl::StatusOr<Generation> LeadAgreement(RendezvousStore* store, int size, const std::string& identity,
                                         absl::Duration timeout) {
  const RealClock clock;
  const absl::Time deadline = clock.Now() + timeout;
  std::vector<std::string> planned;
  std::string generation;
  for (int attempt = 0;;) {
    std::vector<std::string> places = {identity};
    std::vector<int> missing;
    for (int rank = 1; rank < size; ++rank) {
      absl::StatusOr<std::string> place =
          store->Get(PlaceKey(rank), missing.empty() ? kLookAgain : absl::ZeroDuration());
      if (!place.ok() && !NotThere(place.status())) return place.status();
      if (!place.ok()) missing.push_back(rank);
      places.push_back(place.ok() ? *std::move(place) : "");
    }
    if (missing.empty()) {
      if (places != planned) {
        generation = absl::StrCat(identity, "#", ++attempt);
        planned = places;
        absl::Status status = store->Set(kPlanKey, absl::StrCat(generation, " ", absl::StrJoin(planned, " ")));
        if (!status.ok()) return status;
      }
      for (int rank = 1; rank < size; ++rank) {
        const auto answer = store->Get(AnswerKey(generation, planned[static_cast<size_t>(rank)]),
                                       missing.empty() ? kLookAgain : absl::ZeroDuration());
        if (!answer.ok() && !NotThere(answer.status())) return answer.status();
        if (!answer.ok()) missing.push_back(rank);
      }
      if (missing.empty()) {
        absl::Status status = store->Set(BeginKey(generation), "");
        if (!status.ok()) return status;
        return MakeGeneration(generation, planned);
      }
    }
    if (clock.Now() >= deadline) {
      return absl::DeadlineExceededError(absl::StrFormat(
          "rank %s of %d did not come within %s", absl::StrJoin(missing, ", "), size, absl::FormatDuration(timeout)));
    }
  }
}

bool AggregatorIsAway(const absl::Status& status) {
  return status.code() == absl::StatusCode::kUnavailable || status.code() == absl::StatusCode::kDeadlineExceeded;
}

}  // namespace

absl::Status MemoryStore::Set(MemberKey owner, const std::string& key, const std::string& value) {
  if (key.size() + value.size() > limits_.value_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrFormat("the rendezvous store takes at most %d bytes per key, got %d for %.64s", limits_.value_bytes,
                        key.size() + value.size(), key));
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

absl::StatusOr<Generation> AgreeOnGeneration(RendezvousStore* store, int rank, int size, MemberKey self,
                                             absl::Duration timeout) {
  const std::string identity = IdentityOf(self);
  if (rank == 0) return LeadAgreement(store, size, identity, timeout);
  const RealClock clock;
  const absl::Time deadline = clock.Now() + timeout;
  if (absl::Status status = store->Set(PlaceKey(rank), identity); !status.ok()) return status;
  std::string answered;
  while (true) {
    const absl::StatusOr<std::string> plan = store->Get(kPlanKey, kLookAgain);
    if (!plan.ok() && !NotThere(plan.status())) return plan.status();
    if (plan.ok()) {
      const std::vector<std::string> words = absl::StrSplit(*plan, ' ');
      if (static_cast<int>(words.size()) == size + 1 && words[static_cast<size_t>(rank) + 1] == identity) {
        if (answered != words[0]) {
          absl::Status status = store->Set(AnswerKey(words[0], identity), "");
          if (!status.ok()) return status;
          answered = words[0];
        }
        const auto begin = store->Get(BeginKey(answered), kLookAgain);
        if (begin.ok()) return MakeGeneration(answered, absl::MakeSpan(words).subspan(1));
        if (!NotThere(begin.status())) return begin.status();
      } else {
        // Rank 0 of another life, or another life of this rank: it will plan anew.
        const auto wait = store->Get(BeginKey(identity), kLookAgain);
        if (!wait.ok() && !NotThere(wait.status())) return wait.status();
      }
    }
    if (clock.Now() >= deadline) {
      return absl::DeadlineExceededError(absl::StrFormat("rank %s of %d did not come within %s",
                                                         answered.empty() ? "0" : "0, or another,", size,
                                                         absl::FormatDuration(timeout)));
    }
  }
}

grpc::Status ServeStoreSet(MemoryStore* store, const StoreSetRequest& request) {
  return ToGrpc(
      store->Set({MemberId(request.member()), Incarnation(request.incarnation())}, request.key(), request.value()));
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
    request.set_wait_seconds(
        absl::ToDoubleSeconds(std::clamp(deadline - clock.Now(), absl::ZeroDuration(), kServerWait)));
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
      return absl::DeadlineExceededError(absl::StrFormat("nobody set %s at the aggregator at %s within %s%s%s", key,
                                                         address_, absl::FormatDuration(timeout), not_set ? "" : ": ",
                                                         not_set ? "" : std::string(status.message())));
    }
    if (not_set) continue;  // The server has waited.
    MutexLock lock(mutex);
    never.WaitFor(mutex, kRetry);
  }
}

}  // namespace wukong
