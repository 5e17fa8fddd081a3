// Who may come to a run, who is in it, and who is taken for gone.
#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "coordinator/coordinator_core.h"
#include "coordinator/member_usage.h"
#include "runtime/base/mutation.h"
#include "runtime/base/region_name.h"

namespace wukong {
namespace {

constexpr int kRegionsMax = 1000;
constexpr int kRegionsNamed = 20;  // In one message.

}  // namespace

int CoordinatorCore::RegionIndex(const std::string& name) const {
  for (int i = 0; i < regions(); ++i) {
    if (regions_[i].name() == name) return i;
  }
  return -1;
}

absl::Status CoordinatorCore::CheckRegion(const std::string& name, bool may_be_new) const {
  if (RegionIndex(name) >= 0) return absl::OkStatus();
  if (!may_be_new) {
    std::vector<std::string> names;
    for (int i = 0; i < std::min(regions(), kRegionsNamed); ++i) names.push_back(regions_[i].name());
    if (regions() > kRegionsNamed) names.push_back("...");
    return absl::NotFoundError(
        absl::StrFormat("the job has no region '%s'; it has %s (an aggregator that is started with --new-region "
                        "brings a region that is not in the job file)",
                        name, absl::StrJoin(names, ", ")));
  }
  if (!IsRegionName(name)) {
    return absl::InvalidArgumentError(absl::StrFormat(
        "not a region's name (expected at most %d letters, digits and '-', got \"%s\")", kRegionNameMax, name));
  }
  if (regions() >= kRegionsMax) {
    return absl::FailedPreconditionError(
        absl::StrFormat("the run has %d regions, and takes no more (expected at most %d); join one of them with "
                        "workers in place of making region '%s'",
                        regions(), kRegionsMax, name));
  }
  return absl::OkStatus();
}

int CoordinatorCore::AddRegion(const std::string& name) {
  // What a job file that says nothing of a region's workers would make of it; none of them are waited for.
  Region region;
  region.set_name(name);
  region.set_device("cpu");
  region.set_collective(COLLECTIVE_NONE);
  region.set_threads(1);
  regions_.push_back(std::move(region));
  round_trips_.emplace_back();
  by_region_.emplace_back();
  return regions() - 1;
}

CoordinatorCore::Member* CoordinatorCore::AddMember(MemberId id, Role role, int region) {
  const auto later = [](MemberId one, const auto& other) { return one < other->key.member; };
  auto made = std::make_unique<Member>();
  Member* const member = made.get();
  member->key.member = id;
  member->role = role;
  member->region = region;
  RegionMembers& there = by_region_[region];
  std::vector<Member*>& peers = role == ROLE_WORKER ? there.workers : there.aggregators;
  peers.insert(std::upper_bound(peers.begin(), peers.end(), id, later), member);
  members_.insert(std::upper_bound(members_.begin(), members_.end(), id, later), std::move(made));
  by_id_[id] = member;
  return member;
}

void CoordinatorCore::Recount(int region) {
  RegionMembers& there = by_region_[region];
  live_workers_ -= there.live_workers;
  regions_taking_data_ -= there.takes_data > 0 ? 1 : 0;
  there.aggregator = nullptr;
  there.aggregator_must_assert = false;
  for (Member* member : there.aggregators) {
    if (member->state != State::kLive) continue;
    if (there.aggregator == nullptr) there.aggregator = member;
    there.aggregator_must_assert = there.aggregator_must_assert || member->must_assert;
  }
  there.live_workers = there.ready = there.takes_data = there.must_assert = 0;
  for (Member* member : there.workers) {
    CountSpeed(member);
    if (member->state != State::kLive) continue;
    ++there.live_workers;
    there.ready += member->wants || CollectiveFollower(*member) ? 1 : 0;
    there.takes_data += member->quarantined ? 0 : 1;
    there.must_assert += member->must_assert ? 1 : 0;
  }
  live_workers_ += there.live_workers;
  regions_taking_data_ += there.takes_data > 0 ? 1 : 0;
}

void CoordinatorCore::CountSpeed(Member* member) {
  const double now = member->state == State::kLive ? member->speed : 0;
  const double before = std::exchange(member->counted_speed, now);
  if (now == before) return;
  speed_sum_ += now - before;
  // What lies between the old place and the new one moves by one.
  const auto from = before > 0 ? std::lower_bound(speeds_.begin(), speeds_.end(), before) : speeds_.end();
  if (now <= 0) {
    speeds_.erase(from);
  } else if (before <= 0) {
    speeds_.insert(std::lower_bound(speeds_.begin(), speeds_.end(), now), now);
  } else {
    *from = now;
    if (now > before) {
      std::rotate(from, from + 1, std::lower_bound(from + 1, speeds_.end(), now));
    } else {
      std::rotate(std::lower_bound(speeds_.begin(), from, now), from, from + 1);
    }
  }
}

absl::StatusOr<GetJobReply> CoordinatorCore::GetJob(const GetJobRequest& request) const {
  if (absl::Status status = CheckRegion(request.region(), request.new_region()); !status.ok()) return status;
  GetJobReply reply;
  *reply.mutable_job() = job_;
  reply.mutable_job()->mutable_regions()->Assign(regions_.begin(), regions_.end());
  reply.set_schema_digest(schema_digest_);
  reply.set_run(run_);
  reply.set_parameters(parameters_);
  return reply;
}

std::string CoordinatorCore::Describe(const Member& member) const {
  return absl::StrFormat("%s %s of %s", RoleName(member.role), member.name, RegionOf(member));
}

bool CoordinatorCore::CollectiveFollower(const Member& member) const {
  return member.role == ROLE_WORKER && regions_[member.region].collective() == COLLECTIVE_GLOO && member.rank > 0;
}

bool CoordinatorCore::LivesElsewhere(const Member& member, const std::string& host, absl::Time now) const {
  if (member.state != State::kLive || member.host.empty() || member.host == host) return false;
  return now - member.last_seen < absl::Nanoseconds(job_.limits().lease_ns()) / 2;
}

absl::StatusOr<JoinReply> CoordinatorCore::Join(const JoinRequest& request, absl::Time now) {
  const bool may_be_new = request.new_region() && request.role() == ROLE_AGGREGATOR;
  if (absl::Status status = CheckRegion(request.region(), may_be_new); !status.ok()) return status;
  if (request.role() != ROLE_WORKER && request.role() != ROLE_AGGREGATOR) {
    return absl::InvalidArgumentError("a member is a worker or an aggregator");
  }
  if (request.schema_digest() != schema_digest_) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "%s of %s was built for another model: its parameters have schema digest %.12s, the job's have %.12s",
        request.name().empty() ? RoleName(request.role()) : request.name(), request.region(), request.schema_digest(),
        schema_digest_));
  }
  if (phase_ == Phase::kDone || phase_ == Phase::kFailed) return absl::UnavailableError("the run is over");
  int region = RegionIndex(request.region());
  const bool is_new = region < 0;
  if (is_new) region = AddRegion(request.region());
  const std::string newcomer = absl::StrFormat("process %d of %s", request.pid(), request.host());
  Member* aggregator = Aggregator(region);
  if (request.role() == ROLE_WORKER && aggregator == nullptr) {
    return absl::UnavailableError(absl::StrFormat("the aggregator of %s has not joined yet", request.region()));
  }

  Member* member = nullptr;
  const RegionMembers& there = by_region_[region];
  const std::vector<Member*>& peers = request.role() == ROLE_WORKER ? there.workers : there.aggregators;
  for (Member* known : peers) {
    if (!request.name().empty() && known->name == request.name()) member = known;
  }
  const Member* const holder = request.role() == ROLE_AGGREGATOR ? aggregator : member;
  if (holder != nullptr && LivesElsewhere(*holder, request.host(), now)) {
    return absl::UnavailableError(absl::StrFormat(
        "%s is process %d of %s, which was heard %s ago: stop it there first%s, or wait until it is silent",
        Describe(*holder), holder->pid, holder->host, absl::FormatDuration(now - holder->last_seen),
        holder->role == ROLE_WORKER ? ", take another --name" : ""));
  }
  if (request.role() == ROLE_AGGREGATOR && aggregator != nullptr && aggregator != member) {
    Expire(aggregator, "lost", absl::StrCat(newcomer, " joined as the aggregator of its region"));
  }
  if (member == nullptr) {
    std::set<int> ranks;
    for (const Member* other : peers) ranks.insert(other->rank);
    member = AddMember(MemberId(next_member_++), request.role(), region);
    member->key.incarnation = Incarnation(1);
    if (request.has_rank() && request.rank() >= 0) member->rank = request.rank();
    while (ranks.count(member->rank) > 0) ++member->rank;
    member->name =
        request.name().empty() ? absl::StrFormat("%s-%d", RoleName(request.role()), member->rank) : request.name();
  } else {
    if (member->state == State::kLive && !Mutated("core.does_not_fence_the_earlier_life")) {
      Expire(member, "lost", absl::StrCat(newcomer, " joined under its name"));
    }
    Add(member->usage, &member->usage_of_earlier_lives);
    const int64_t one_more = Mutated("core.keeps_the_incarnation") ? 0 : 1;
    member->key.incarnation = Incarnation(member->key.incarnation.value() + one_more);
    // One whose first call to join was late may have come twice.
    member->is_another_process = request.pid() != member->pid || request.host() != member->host;
  }
  member->state = State::kLive;
  member->address = request.address();
  member->pid = request.pid();
  member->host = request.host();
  member->last_seen = now;
  member->wants = member->idle = member->told_finish = false;
  member->usage = MemberUsage();
  member->beat = 0;
  member->last_reply = HeartbeatReply();

  member->must_assert = false;
  member->quarantined = false;
  member->refused_unspoken.clear();
  member->faults.clear();
  Recount(region);

  LogRecord record;
  MemberJoined* noted = record.mutable_member_joined();
  noted->set_member(member->key.member.value());
  noted->set_incarnation(member->key.incarnation.value());
  noted->set_role(member->role);
  noted->set_region(request.region());
  noted->set_name(member->name);
  noted->set_rank(member->rank);
  noted->set_address(member->address);
  noted->set_pid(member->pid);
  noted->set_host(member->host);
  noted->set_new_region(is_new);
  Write(record);
  if (is_new) Log({{"event", "region_added"}, {"region", request.region()}});
  Log({{"event", "joined"},
       {"role", RoleName(member->role)},
       {"region", request.region()},
       {"name", member->name},
       {"member", member->key.member.value()},
       {"incarnation", member->key.incarnation.value()},
       {"pid", member->pid},
       {"host", member->host}});
  JoinReply reply;
  reply.set_member(member->key.member.value());
  reply.set_incarnation(member->key.incarnation.value());
  reply.set_name(member->name);
  reply.set_rank(member->rank);
  reply.set_term(term_);
  if (member->role == ROLE_WORKER) {
    const Member* parent = Aggregator(region);
    reply.set_parent_address(parent->address);
    reply.set_parent_member(parent->key.member.value());
    reply.set_parent_incarnation(parent->key.incarnation.value());
    reply.set_samples_per_second(member->speed);
  }
  return reply;
}

void CoordinatorCore::Expire(Member* member, const char* event, const std::string& reason) {
  if (member->state != State::kLive) return;
  member->why_gone = reason;
  Log({{"event", event},
       {"role", RoleName(member->role)},
       {"region", RegionOf(*member)},
       {"name", member->name},
       {"incarnation", member->key.incarnation.value()},
       {"reason", reason}});
  LogRecord record;
  record.mutable_member_fenced()->set_member(member->key.member.value());
  record.mutable_member_fenced()->set_incarnation(member->key.incarnation.value());
  record.mutable_member_fenced()->set_reason(reason);
  Write(record);
  if (member->role == ROLE_WORKER) {
    member->state = State::kFencing;
    member->idle = false;
    Recount(member->region);
    if (Aggregator(member->region) != nullptr) {
      fencing_[member->region].insert(member->key);
      return;
    }
    member->state = State::kGone;
    ledger_.ReleaseFenced(member->key, {});
    return;
  }
  // The root takes nothing more from this incarnation: what it had accepted and not delivered is lost with it. Its
  // workers go on, and say what they still hold.
  member->state = State::kGone;
  effects_.push_back(FenceChild{member->key});
  std::set<MemberKey> speaking;
  for (Member* worker : by_region_[member->region].workers) {
    if (worker->state == State::kFencing) worker->state = State::kGone;
    if (worker->state != State::kLive || Mutated("core.asks_nobody_after_a_lost_region")) continue;
    worker->must_assert = true;
    speaking.insert(worker->key);
  }
  Recount(member->region);
  fencing_[member->region].clear();
  ledger_.ReleaseRegion(member->region, speaking);
}

void CoordinatorCore::GiveUpRegionsWithoutAggregator(absl::Time now) {
  const auto start = absl::Nanoseconds(job_.limits().start_ns());
  for (int r = 0; r < regions(); ++r) {
    const auto seen = aggregator_seen_.emplace(r, now).first;
    if (phase_ != Phase::kTraining || Aggregator(r) != nullptr) {
      seen->second = now;
    } else if (now - seen->second > start) {
      for (Member* worker : by_region_[r].workers) {
        if (worker->state != State::kLive) continue;
        Expire(worker, "lost",
               absl::StrFormat("its region has had no aggregator for %s (limits.start)", absl::FormatDuration(start)));
      }
    }
  }
}

}  // namespace wukong
