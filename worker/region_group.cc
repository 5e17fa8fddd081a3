#include "worker/region_group.h"

#include <array>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "glog/logging.h"
#include "runtime/base/clock.h"
#include "runtime/base/restart.h"

namespace wukong {
namespace {

constexpr absl::Duration kWatchPeriod = absl::Milliseconds(100);
// For rank 0 to end the group in order, once this worker knows that the run is over, or all know that one leaves.
constexpr absl::Duration kOverPatience = absl::Seconds(2);
constexpr absl::Duration kLeavePatience = absl::Seconds(11);

}  // namespace

ReasonToLeave::ReasonToLeave(std::vector<MemberKey> ranks, Mailbox* mail, const StopSignal* stop)
    : ranks_(std::move(ranks)), mail_(mail), stop_(stop) {}

std::string ReasonToLeave::Find(absl::Time now, bool somebody_leaves) {
  if (const std::optional<int> lost = mail_->LostRank(ranks_); lost.has_value()) {
    return absl::StrFormat("the coordinator takes rank %d for gone, or has another life of it", *lost);
  }
  bool over = false;
  {
    MutexLock lock(mail_->mutex);
    if (mail_->over && IsRestartSafe(mail_->outcome)) return "this worker has lost its place";
    over = mail_->over;
  }
  if (over && !over_since_.has_value()) over_since_ = now;
  if (over && now - *over_since_ > kOverPatience) return "the run is over";
  const bool leaves = somebody_leaves && stop_->received() != 0;
  if (leaves && !leaves_since_.has_value()) leaves_since_ = now;
  if (leaves && now - *leaves_since_ > kLeavePatience) return "this worker was told to leave";
  return "";
}

SampleShare ShareOf(int64_t samples, int rank, int size) {
  return {samples * rank / size, samples * (rank + 1) / size};
}

RegionGroup::RegionGroup(std::string region, std::unique_ptr<Communicator> communicator, Callbacks callbacks)
    : region_(std::move(region)),
      communicator_(std::move(communicator)),
      callbacks_(std::move(callbacks)),
      last_order_(RealClock().Now()),
      watch_([this] { Watch(); }) {}

RegionGroup::~RegionGroup() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  watch_.join();
}

void RegionGroup::Watch() {
  while (true) {
    {
      MutexLock lock(mutex_);
      if (!stopping_) changed_.WaitFor(mutex_, kWatchPeriod);
      if (stopping_) return;
    }
    const std::string why = callbacks_.give_up(somebody_leaves_);
    if (why.empty()) continue;
    {
      MutexLock lock(mutex_);
      given_up_ = why;
    }
    communicator_->Abort();
    return;
  }
}

absl::Status RegionGroup::Check(const absl::Status& status) {
  if (status.ok()) return status;
  broken_ = true;
  MutexLock lock(mutex_);
  const std::string why = given_up_.empty() ? absl::StrCat("it has lost a rank: ", status.message()) : given_up_;
  return RestartSafe(
      absl::AbortedError(absl::StrFormat("the group of region %s ends, and all its workers leave: %s", region_, why)));
}

absl::Status RegionGroup::Announce(const GroupOrder& order) {
  CHECK_EQ(rank(), 0);
  last_order_ = RealClock().Now();
  std::string bytes = order.SerializeAsString();
  return Check(communicator_->BroadcastBytes(&bytes, 0));
}

absl::StatusOr<GroupOrder> RegionGroup::NextOrder() {
  CHECK_NE(rank(), 0);
  std::string bytes;
  if (absl::Status status = Check(communicator_->BroadcastBytes(&bytes, 0)); !status.ok()) return status;
  GroupOrder order;
  if (!order.ParseFromString(bytes) || order.kind() == GroupOrder::KIND_UNSPECIFIED) {
    return Check(absl::InternalError(absl::StrFormat("rank 0 gave an order that rank %d cannot read", rank())));
  }
  return order;
}

void RegionGroup::Part() {
  // A rank that closed its connections at once could take from another what that has not read yet.
  if (const absl::Status status = communicator_->Barrier(); !status.ok()) LOG(INFO) << status;
}

absl::Status RegionGroup::ShareParameters(Trainer* trainer) {
  if (absl::Status status = Check(communicator_->Broadcast(trainer->parameters(), 0)); !status.ok()) return status;
  return rank() == 0 ? absl::OkStatus() : trainer->PushParameters();
}

absl::StatusOr<double> RegionGroup::SumLoss(double part) {
  std::array<float, 2> values = {static_cast<float>(part), callbacks_.leaving() ? 1.0f : 0.0f};
  if (absl::Status status = Check(communicator_->AllReduceSum(absl::MakeSpan(values))); !status.ok()) return status;
  somebody_leaves_ = values[1] > 0;
  return values[0];
}

absl::Status RegionGroup::SumGradient(Trainer* trainer) {
  if (absl::Status status = trainer->PullGradient(); !status.ok()) return status;
  if (absl::Status status = Check(communicator_->AllReduceSum(trainer->gradient())); !status.ok()) return status;
  return trainer->PushGradient();
}

absl::StatusOr<std::unique_ptr<RegionGroup>> FormRegionGroup(const Job& job, const Region& region,
                                                             const JoinReply& joined, Mailbox* mail,
                                                             const StopSignal* stop) {
  CommunicatorOptions options;
  options.kind = region.collective();
  options.group = absl::StrCat("region ", region.name());
  options.rank = joined.rank();
  options.size = region.workers();
  options.form_timeout = absl::Nanoseconds(job.limits().start_ns());
  options.timeout = absl::Nanoseconds(job.limits().rpc_ns());
  absl::StatusOr<std::string> local = LocalAddressTowards(joined.parent_address());
  if (!local.ok()) return local.status();
  options.local_address = *std::move(local);

  const auto leaving = [stop] { return stop->received() != 0; };
  const MemberKey self{MemberId(joined.member()), Incarnation(joined.incarnation())};
  const MemberKey parent{MemberId(joined.parent_member()), Incarnation(joined.parent_incarnation())};
  std::vector<MemberKey> ranks;  // Once they have agreed.
  RpcStore store(joined.parent_address(), self, options.form_timeout, [&] {
    return leaving() || mail->IsOver() || mail->ParentIsGone(parent) || mail->LostRank(ranks).has_value();
  });
  const auto explain = [&](const absl::Status& status) {
    if (leaving() || mail->IsOver()) return status;
    std::string gone;
    if (const std::optional<int> lost = mail->LostRank(ranks); lost.has_value()) {
      gone = absl::StrCat("rank ", *lost);
    } else if (mail->ParentIsGone(parent)) {
      // With it is what the ranks have told one another so far; they begin anew at the next one.
      gone = "the aggregator";
    } else {
      return status;
    }
    return RestartSafe(absl::AbortedError(
        absl::StrFormat("%s of %s went away while its workers were forming their group", gone, region.name())));
  };
  absl::StatusOr<Generation> generation =
      AgreeOnGeneration(&store, options.rank, options.size, self, options.form_timeout);
  if (!generation.ok()) {
    return explain(absl::Status(generation.status().code(),
                                absl::StrFormat("%s, rank %d of %d, forming the group: %s", options.group, options.rank,
                                                options.size, generation.status().message())));
  }
  options.generation = absl::StrCat("group/", generation->name);
  mail->AskWhoLives();
  ranks = generation->members;
  absl::StatusOr<std::unique_ptr<Communicator>> communicator = MakeCommunicator(options, &store);
  if (!communicator.ok()) {
    // All ranks were there a moment ago: who is gone will be started again, and the others with it.
    const absl::Status status = explain(communicator.status());
    return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status) ? RestartSafe(status) : status;
  }
  LOG(INFO) << "rank " << options.rank << " of the " << options.size << " workers of " << region.name()
            << " that act as one (" << options.generation << ")";
  RegionGroup::Callbacks callbacks;
  callbacks.leaving = leaving;
  callbacks.give_up = [reason = std::make_shared<ReasonToLeave>(ranks, mail, stop)](bool somebody_leaves) {
    return reason->Find(RealClock().Now(), somebody_leaves);
  };
  return std::make_unique<RegionGroup>(region.name(), *std::move(communicator), std::move(callbacks));
}

}  // namespace wukong
