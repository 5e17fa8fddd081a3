// How a coordinator goes on from its log, and how its members tell it what they hold.
#include <algorithm>

#include "coordinator/coordinator_core.h"
#include "coordinator/member_usage.h"
#include "runtime/base/mutation.h"

namespace wukong {
namespace {

// Ranges by which the log's ceiling runs ahead of the leases, so that few leases need a record. After a restart nothing
// below it is leased again before its holders have spoken.
constexpr int64_t kCeilingRanges = 64;

}  // namespace

void CoordinatorCore::Restore(const RootState& state, absl::Time now) {
  std::vector<LeasedRange> committed, admitted;
  for (const SampleRange& range : state.committed()) committed.push_back(RangeFromProto(range));
  for (const ContributionAccepted& accepted : state.unmerged()) {
    for (const SampleRange& range : accepted.header().ranges()) admitted.push_back(RangeFromProto(range));
  }
  lease_ceiling_ = state.lease_ceiling();
  ledger_.Restore(committed, admitted, lease_ceiling_);
  next_member_ = std::max<int64_t>(1, state.next_member());
  root_version_ = Version(std::max<int64_t>(1, state.version()));
  for (const RootMember& known : state.members()) {
    int region = RegionIndex(known.region());
    if (region < 0) region = AddRegion(known.region());  // It came with this aggregator, its first member.
    Member& member = *AddMember(MemberId(known.member()), known.role(), region);
    member.key.incarnation = Incarnation(known.incarnation());
    member.name = known.name();
    member.address = known.address();
    member.pid = known.pid();
    member.host = known.host();
    member.rank = known.rank();
    member.last_seen = now;
    member.usage = known.used().usage();
    member.usage_of_earlier_lives = known.used().usage_of_earlier_lives();
    if (known.used().incarnation() != known.incarnation()) {
      Add(member.usage, &member.usage_of_earlier_lives);
      member.usage = MemberUsage();
    }
    tokens_computed_ += TotalUsage(member).tokens_computed();
    if (known.incarnation() >= known.fenced_below() || Mutated("recovery.forgets_fences")) {
      member.must_assert = true;
    } else {
      member.state = State::kGone;
    }
  }
  for (int r = 0; r < regions(); ++r) Recount(r);
  // Whoever was being fenced may not have been: its aggregator is asked again. No count changes by that.
  for (const auto& member : members_) {
    if (member->role != ROLE_WORKER || member->state != State::kGone || Aggregator(member->region) == nullptr) continue;
    member->state = State::kFencing;
    fencing_[member->region].insert(member->key);
  }
  if (state.started_unix_ns() == 0) return;
  phase_ = Phase::kTraining;
  training_started_ = now;
  MaybeFinish(now);
}

RunStopped CoordinatorCore::StopRecord(absl::Time wall_now) const {
  RunStopped stopped;
  stopped.set_unix_ns(absl::ToUnixNanos(wall_now));
  for (const auto& member : members_) {
    MemberUsed* used = stopped.add_used();
    used->set_member(member->key.member.value());
    used->set_incarnation(member->key.incarnation.value());
    *used->mutable_usage() = member->usage;
    *used->mutable_usage_of_earlier_lives() = member->usage_of_earlier_lives;
  }
  return stopped;
}

bool CoordinatorCore::AggregatorMaySpeak(int region) const { return by_region_[region].must_assert == 0; }

void CoordinatorCore::MaybeEndRecovery() {
  if (!recovering()) return;
  for (const RegionMembers& there : by_region_) {
    const bool speaks = there.must_assert > 0 || there.aggregator_must_assert;
    if (speaks && !Mutated("recovery.ends_before_all_have_spoken")) return;
  }
  const int64_t before = ledger_.available();
  ledger_.EndRecovery();
  Log({{"event", "recovered"}, {"term", term_}, {"samples_available_again", ledger_.available() - before}});
}

void CoordinatorCore::RaiseCeiling() {
  if (ledger_.leased_end() <= lease_ceiling_ || Mutated("recovery.no_lease_ceiling")) return;
  const int64_t range = StepSamples(job_) * job_.data().range_steps();
  lease_ceiling_ = std::min(ledger_.total(), ledger_.leased_end() + kCeilingRanges * range);
  LogRecord record;
  record.mutable_lease_ceiling()->set_sample(lease_ceiling_);
  Write(record);
}

void CoordinatorCore::TakeHoldings(Member* member, const Holdings& holdings, HeartbeatReply* reply) {
  if (!member->must_assert || holdings.term() != term_) return;
  if (member->role == ROLE_WORKER && holdings.parent_incarnation() != 0) {
    // What it has passed on to an aggregator that is gone is lost, and it must have noticed that.
    const Member* aggregator = Aggregator(member->region);
    if (aggregator == nullptr || aggregator->key.member.value() != holdings.parent_member() ||
        aggregator->key.incarnation.value() != holdings.parent_incarnation()) {
      return;
    }
  }
  if (member->role == ROLE_AGGREGATOR && !AggregatorMaySpeak(member->region)) return;
  std::vector<LeasedRange> ranges;
  for (const SampleRange& range : holdings.ranges()) ranges.push_back(RangeFromProto(range));
  const int64_t before = ledger_.available();
  const ShardLedger::Claim claim = ledger_.Assert(member->key, member->region, ranges, member->role == ROLE_AGGREGATOR);
  ledger_.ReleaseRefused(member->region, member->refused_unspoken);
  member->refused_unspoken.clear();
  for (const LeasedRange& range : claim.committed) *reply->add_committed() = RangeToProto(range);
  for (const LeasedRange& range : claim.disowned) *reply->add_disowned() = RangeToProto(range);
  member->must_assert = false;
  Recount(member->region);
  Log({{"event", "asserted"},
       {"name", Describe(*member)},
       {"ranges", ranges.size()},
       {"committed", claim.committed.size()},
       {"disowned", claim.disowned.size()},
       {"samples_available_again", ledger_.available() - before}});
  MaybeEndRecovery();
}

}  // namespace wukong
