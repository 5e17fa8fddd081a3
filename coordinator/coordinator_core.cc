#include "coordinator/coordinator_core.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "coordinator/member_usage.h"
#include "glog/logging.h"
#include "runtime/base/mutation.h"
#include "runtime/base/region_name.h"

namespace wukong {
namespace {

constexpr size_t kRoundTripsKept = 10000;
constexpr int kRegionsMax = 1000;
constexpr int kRegionsNamed = 20;  // In one message.
constexpr absl::Duration kRateWindow = absl::Seconds(10);
// Leases are numbered (term, counter): those of an earlier term are below those of a later one.
constexpr int kTermShift = 40;

}  // namespace

int64_t StepSamples(const Job& job) {
  return static_cast<int64_t>(job.optimizer().micro_batch()) * job.optimizer().accumulation();
}

int64_t TotalSamples(const Job& job) {
  const int64_t step = StepSamples(job);
  const int64_t samples = (job.stop().tokens() + job.model().context() - 1) / job.model().context();
  return (samples + step - 1) / step * step;
}

CoordinatorCore::CoordinatorCore(const Job& job, std::string run, std::string schema_digest, int64_t parameters,
                                 absl::Time now, const RootState& state, Journal journal)
    : job_(job),
      regions_(job.regions().begin(), job.regions().end()),
      run_(std::move(run)),
      schema_digest_(std::move(schema_digest)),
      parameters_(parameters),
      term_(Mutated("core.forgets_the_term") ? 1 : std::max<int64_t>(1, state.term())),
      journal_(std::move(journal)),
      ledger_(TotalSamples(job), StepSamples(job) * job.data().range_steps(), (term_ << kTermShift) + 1),
      created_(now),
      nobody_since_(now),
      last_tick_(now),
      by_region_(job.regions_size()),
      round_trips_(job.regions_size()) {
  Restore(state, now);
}

int64_t CoordinatorCore::total_tokens() const { return ledger_.total() * job_.model().context(); }
int64_t CoordinatorCore::committed_tokens() const { return ledger_.committed() * job_.model().context(); }

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
  Member* member = &members_[id];
  member->key.member = id;
  member->role = role;
  member->region = region;
  RegionMembers& there = by_region_[region];
  std::vector<Member*>& peers = role == ROLE_WORKER ? there.workers : there.aggregators;
  const auto after = std::upper_bound(peers.begin(), peers.end(), id,
                                      [](MemberId one, const Member* other) { return one < other->key.member; });
  peers.insert(after, member);
  return member;
}

void CoordinatorCore::Recount(int region) {
  RegionMembers& there = by_region_[region];
  live_workers_ -= there.live_workers;
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
}

void CoordinatorCore::CountSpeed(Member* member) {
  const double now = member->state == State::kLive ? member->speed : 0;
  const double before = std::exchange(member->counted_speed, now);
  if (now == before) return;
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
  if (request.role() == ROLE_AGGREGATOR && aggregator != nullptr && aggregator != member) {
    Expire(aggregator, "replaced by another aggregator of its region");
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
      Expire(member, "a new process joined under its name");
    }
    Add(member->usage, &member->usage_of_earlier_lives);
    const int64_t one_more = Mutated("core.keeps_the_incarnation") ? 0 : 1;
    member->key.incarnation = Incarnation(member->key.incarnation.value() + one_more);
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
  }
  return reply;
}

absl::StatusOr<HeartbeatReply> CoordinatorCore::Heartbeat(const HeartbeatRequest& request, absl::Time now) {
  const auto found = members_.find(MemberId(request.member()));
  if (found == members_.end()) return absl::AbortedError("this member is unknown to the coordinator; join again");
  Member& member = found->second;
  if (member.state != State::kLive || member.key.incarnation.value() != request.incarnation()) {
    return absl::AbortedError(
        absl::StrFormat("%s incarnation %d is fenced: it was silent for too long, or another took its place",
                        Describe(member), request.incarnation()));
  }
  member.last_seen = now;
  if (request.beat() == member.beat && !Mutated("core.answers_a_beat_twice")) return member.last_reply;
  if (request.beat() < member.beat) return absl::InvalidArgumentError("an older beat than the last one");
  member.beat = request.beat();
  if (member.role == ROLE_AGGREGATOR) TakeRefusals(member, request);
  tokens_computed_ += request.usage().tokens_computed() - member.usage.tokens_computed();
  member.usage = request.usage();
  if (request.usage().round_trip_seconds() > 0) {
    auto& trips = round_trips_[member.region].seconds;
    if (trips.size() >= kRoundTripsKept) trips.pop_front();
    trips.push_back(request.usage().round_trip_seconds());
  }

  HeartbeatReply reply;
  reply.set_term(term_);
  if (member.role == ROLE_WORKER) {
    member.idle = request.idle();
    if (request.samples_per_second() > 0) {
      member.speed = request.samples_per_second();
      CountSpeed(&member);
    }
    std::vector<LeasedRange> released;
    for (const SampleRange& range : request.released()) released.push_back(RangeFromProto(range));
    if (!released.empty()) {
      ledger_.Release(member.key, released);
      Log({{"event", "released"}, {"name", Describe(member)}, {"ranges", released.size()}});
    }
    if (request.has_holdings()) TakeHoldings(&member, request.holdings(), &reply);
    if (const Member* parent = Aggregator(member.region); parent != nullptr) {
      reply.set_parent_address(parent->address);
      reply.set_parent_member(parent->key.member.value());
      reply.set_parent_incarnation(parent->key.incarnation.value());
    }
    reply.set_assert_holdings(member.must_assert);
    if (request.steps_size() > 0) {
      for (const StepRecord& step : request.steps()) {
        recent_losses_.push_back(step.loss());
        recent_staleness_.push_back(root_version_.value() - step.root_base_version());
      }
      while (recent_losses_.size() > 64) recent_losses_.pop_front();
      while (recent_staleness_.size() > 64) recent_staleness_.pop_front();
      effects_.push_back(
          RecordSteps{RegionOf(member), member.name, {request.steps().begin(), request.steps().end()}, root_version_});
    }
    if (request.want_samples() > 0) {
      if (!member.wants) {
        member.wants = true;
        Recount(member.region);
      }
      MaybeStart(now);
      if (phase_ == Phase::kTraining && !member.must_assert && !member.quarantined) {
        // Near the end everybody gets less, so that all finish at about the same time (guided self-scheduling,
        // Polychronopoulos and Kuck 1987).
        // Workers that act as one take the steps of all of them.
        const Region& region = regions_[member.region];
        const int64_t step = StepSamples(job_) * (region.collective() == COLLECTIVE_GLOO ? region.workers() : 1);
        const int64_t share = ledger_.available() / (int64_t{2} * std::max(1, live_workers_)) / step * step;
        // Who asks more often must not get more: what is in hand is a part of the share.
        const int64_t room = std::min(request.want_samples(), share - request.samples_in_hand());
        const int64_t steps = (room + step - 1) / step;
        const int64_t least = request.samples_in_hand() < step ? 1 : 0;
        const int64_t want = std::max(least, steps) * step;
        for (const LeasedRange& range : ledger_.Lease(member.key, member.region, want)) {
          *reply.add_granted() = RangeToProto(range);
        }
        RaiseCeiling();
      }
    }
    reply.set_exhausted(phase_ == Phase::kTraining && reply.granted_size() == 0 && ledger_.available() == 0 &&
                        !recovering());
    if (reply.granted_size() > 0) member.idle = false;
    reply.set_samples_per_second_reference(ReferenceSpeed());
  } else {
    if (request.has_holdings()) TakeHoldings(&member, request.holdings(), &reply);
    reply.set_assert_holdings(member.must_assert && AggregatorMaySpeak(member.region));
    for (const FenceDone& done : request.fence_done()) {
      const MemberKey key{MemberId(done.member()), Incarnation(done.incarnation())};
      if (fencing_[member.region].erase(key) == 0) continue;
      std::vector<LeasedRange> custody;
      for (const SampleRange& range : done.custody()) custody.push_back(RangeFromProto(range));
      const int64_t before = ledger_.available();
      ledger_.ReleaseFenced(key, custody);
      const auto fenced = members_.find(key.member);
      if (fenced != members_.end() && fenced->second.key == key) fenced->second.state = State::kGone;
      Log({{"event", "fenced"},
           {"name", fenced == members_.end() ? "" : Describe(fenced->second)},
           {"incarnation", key.incarnation.value()},
           {"samples_available_again", ledger_.available() - before},
           {"ranges_in_custody", custody.size()}});
    }
    for (const MemberKey& key : fencing_[member.region]) {
      Fence* fence = reply.add_fence();
      fence->set_member(key.member.value());
      fence->set_incarnation(key.incarnation.value());
    }
    for (const Member* worker : by_region_[member.region].workers) {
      if (worker->idle) reply.add_idle_members(worker->key.member.value());
    }
    reply.set_drain(phase_ == Phase::kTraining && ledger_.available() == 0 && !recovering() &&
                    RegionIdle(member.region));
  }
  TellFaults(&member, request.fault_heard(), &reply);
  UpdateRootIdle();
  if (phase_ == Phase::kDone || phase_ == Phase::kFailed) {
    reply.set_finish(true);
    reply.set_finish_reason(phase_ == Phase::kDone ? "" : failure_);
    member.told_finish = true;
  }
  member.last_reply = reply;
  return reply;
}

void CoordinatorCore::TakeRefusals(const Member& aggregator, const HeartbeatRequest& request) {
  std::map<std::pair<int64_t, Verdict>, int64_t> known;
  for (const RefusedCount& one : aggregator.usage.refused()) known[{one.member(), one.verdict()}] = one.count();
  for (const RefusedCount& one : request.usage().refused()) {
    const int64_t more = one.count() - known[{one.member(), one.verdict()}];
    if (more <= 0) continue;
    const auto sender = members_.find(MemberId(one.member()));
    Log({{"event", "refused"},
         {"by", Describe(aggregator)},
         {"name", sender == members_.end() ? absl::StrCat("member ", one.member()) : Describe(sender->second)},
         {"member", one.member()},
         {"reason", VerdictName(one.verdict())},
         {"contributions", more}});
  }
  std::set<MemberId> quarantined;
  for (const int64_t member : request.quarantined()) quarantined.insert(MemberId(member));
  bool changed = false;
  for (Member* member : by_region_[aggregator.region].workers) {
    const bool now = quarantined.count(member->key.member) > 0;
    if (now == member->quarantined) continue;
    Log({{"event", now ? "quarantined" : "quarantine_over"}, {"name", Describe(*member)}});
    member->quarantined = now;
    changed = true;
  }
  if (changed) Recount(aggregator.region);
}

double CoordinatorCore::ReferenceSpeed() const {
  // A high percentile and not the largest, so that one lucky measurement does not shorten everybody's rounds.
  return PercentileOfSorted(speeds_, 80);
}

bool CoordinatorCore::RegionIdle(int region) const {
  const std::vector<Member*>& workers = by_region_[region].workers;
  return std::all_of(workers.begin(), workers.end(), [&](const Member* member) {
    return member->state == State::kGone || member->idle || CollectiveFollower(*member);
  });
}

void CoordinatorCore::UpdateRootIdle() {
  std::set<MemberId> idle;
  if (phase_ == Phase::kTraining && !recovering()) {
    for (int r = 0; r < regions(); ++r) {
      // A region that owes nothing, and gets no more data: there is none, or nobody is left there to train on it.
      if (ledger_.available() > 0 && by_region_[r].takes_data > 0) continue;
      if (ledger_.LeasedIn(r) > 0) continue;
      for (const Member* aggregator : by_region_[r].aggregators) idle.insert(aggregator->key.member);
    }
  }
  if (idle == root_idle_) return;
  root_idle_ = idle;
  effects_.push_back(SetIdle{std::move(idle)});
}

void CoordinatorCore::HoldStart(bool held, absl::Time now) {
  held_ = held;
  MaybeStart(now);
}

void CoordinatorCore::MaybeStart(absl::Time now) {
  if (phase_ != Phase::kStarting || held_) return;
  // Those of the job file; nobody waits for a region that it does not name.
  for (int r = 0; r < job_.regions_size(); ++r) {
    if (Aggregator(r) == nullptr || by_region_[r].ready < job_.regions(r).workers()) return;
  }
  phase_ = Phase::kTraining;
  training_started_ = now;
  LogRecord record;
  record.mutable_run_started();
  Write(record);
  Log({{"event", "training_started"}, {"seconds_to_start", absl::ToDoubleSeconds(now - created_)}});
}

void CoordinatorCore::Expire(Member* member, const std::string& reason) {
  if (member->state != State::kLive) return;
  Log({{"event", "lost"},
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
        Expire(worker,
               absl::StrFormat("its region has had no aggregator for %s (limits.start)", absl::FormatDuration(start)));
      }
    }
  }
}

void CoordinatorCore::Excuse(absl::Time now) {
  const absl::Duration away = now - last_tick_;
  last_tick_ = now;
  if (away <= absl::Nanoseconds(job_.limits().lease_ns()) / 2) return;
  // Whoever was heard after this process came back is not silent at all.
  const auto later = [&](absl::Time* time) { *time = std::min(now, *time + away); };
  for (auto& [id, member] : members_) later(&member.last_seen);
  for (auto& [region, seen] : aggregator_seen_) later(&seen);
  later(&created_);
  later(&nobody_since_);
  Log({{"event", "away"}, {"seconds", absl::ToDoubleSeconds(away)}});
}

void CoordinatorCore::Tick(absl::Time now) {
  if (phase_ == Phase::kDone || phase_ == Phase::kFailed) return;
  Excuse(now);
  GiveUpRegionsWithoutAggregator(now);
  const auto lease = absl::Nanoseconds(job_.limits().lease_ns());
  for (auto& [id, member] : members_) {
    if (member.state == State::kLive && now - member.last_seen > lease && !Mutated("core.never_expires")) {
      Expire(&member, absl::StrFormat("silent for %s", absl::FormatDuration(now - member.last_seen)));
    }
  }
  const auto start = absl::Nanoseconds(job_.limits().start_ns());
  if (phase_ == Phase::kStarting && now - created_ > start) {
    std::vector<std::string> missing;
    for (int r = 0; r < job_.regions_size(); ++r) {
      if (Aggregator(r) == nullptr) missing.push_back(absl::StrCat("the aggregator of ", job_.regions(r).name()));
      const int ready = by_region_[r].ready;
      if (ready < job_.regions(r).workers()) {
        missing.push_back(absl::StrFormat("%d of %d workers of %s", job_.regions(r).workers() - ready,
                                          job_.regions(r).workers(), job_.regions(r).name()));
      }
    }
    Fail(absl::StrFormat("not ready within %s (limits.start): %s; look into their logs", absl::FormatDuration(start),
                         absl::StrJoin(missing, ", ")),
         now);
    return;
  }
  if (live_workers_ > 0 || phase_ == Phase::kStarting) nobody_since_ = now;
  if (phase_ == Phase::kTraining && now - nobody_since_ > start) {
    Fail(absl::StrFormat("no worker is left, and none joined for %s (limits.start)", absl::FormatDuration(start)), now);
    return;
  }
  const auto wall = absl::Nanoseconds(job_.stop().wall_ns());
  if (phase_ == Phase::kTraining && wall > absl::ZeroDuration() && now - training_started_ > wall) {
    Fail(absl::StrFormat("stop.wall (%s) is over with %d of %d tokens committed", absl::FormatDuration(wall),
                         committed_tokens(), total_tokens()),
         now);
    return;
  }
  MaybeEndRecovery();
  MaybeFinish(now);
  UpdateRootIdle();
  // After a restart the members report their totals one by one: no rate before they all have.
  if (recovering()) return;
  recent_tokens_.push_back({now, tokens_computed_});
  while (recent_tokens_.size() > 1 && now - recent_tokens_.front().time > kRateWindow) recent_tokens_.pop_front();
}

Verdict CoordinatorCore::Admit(const Manifest& manifest, const LogRecord& accepted, std::string* detail) {
  const auto found = members_.find(manifest.sender.member);
  if (found == members_.end() || found->second.role != ROLE_AGGREGATOR || found->second.state != State::kLive ||
      (!(found->second.key == manifest.sender) && !Mutated("core.admits_fenced_lives"))) {
    *detail = "the sender is not a live aggregator";
    return VERDICT_FENCED;
  }
  if (!ledger_.Admit(found->second.region, manifest.ranges, detail)) return VERDICT_RANGES;
  if (!Mutated("core.admits_without_a_record")) Write(accepted);
  return VERDICT_ACCEPTED;
}

void CoordinatorCore::Merged(const std::vector<Manifest>& manifests, absl::Time now) {
  for (const Manifest& manifest : manifests) ledger_.Commit(manifest.ranges);
  UpdateRootIdle();
  MaybeFinish(now);
}

void CoordinatorCore::Refused(const Manifest& manifest) {
  const auto found = members_.find(manifest.sender.member);
  if (found == members_.end() || found->second.role != ROLE_AGGREGATOR || !(found->second.key == manifest.sender)) {
    return;  // Released already, with the region.
  }
  const int64_t before = ledger_.available();
  ledger_.ReleaseRefused(found->second.region, manifest.ranges);
  if (ledger_.available() == before) return;
  Log({{"event", "released"},
       {"name", Describe(found->second)},
       {"sequence", manifest.sequence.value()},
       {"samples_available_again", ledger_.available() - before}});
  UpdateRootIdle();
}

void CoordinatorCore::MaybeFinish(absl::Time now) {
  if (phase_ != Phase::kTraining || !ledger_.done()) return;
  phase_ = Phase::kDone;
  training_ended_ = now;
  Log({{"event", "budget_committed"}, {"tokens", committed_tokens()}});
}

void CoordinatorCore::Fail(const std::string& reason, absl::Time now) {
  if (phase_ == Phase::kDone || phase_ == Phase::kFailed) return;
  phase_ = Phase::kFailed;
  failure_ = reason;
  training_ended_ = now;
  Log({{"event", "failed"}, {"reason", reason}});
}

bool CoordinatorCore::AllToldFinish() const {
  return std::all_of(members_.begin(), members_.end(),
                     [](const auto& entry) { return entry.second.state != State::kLive || entry.second.told_finish; });
}

std::vector<CoordinatorCore::Effect> CoordinatorCore::TakeEffects() {
  std::vector<Effect> effects;
  effects.swap(effects_);
  return effects;
}

}  // namespace wukong
