#include "coordinator/coordinator_core.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "coordinator/member_usage.h"
#include "runtime/base/mutation.h"

namespace wukong {
namespace {

constexpr size_t kRoundTripsKept = 10000;
constexpr absl::Duration kRateWindow = absl::Seconds(10);
// Less between two looks at the clock is no absence: they are some 50 ms apart where nothing else is to be done.
constexpr absl::Duration kAwayMin = absl::Milliseconds(150);
// Leases are numbered (term, counter): those of an earlier term are below those of a later one.
constexpr int kTermShift = 40;
// Members that outlive a coordinator remember which orders they have heard; those of a later term come after them.
constexpr int64_t kFaultOrdersOfATerm = 1'000'000;

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
      fault_orders_((term_ - 1) * kFaultOrdersOfATerm),
      round_trips_(job.regions_size()) {
  Restore(state, now);
}

int64_t CoordinatorCore::total_tokens() const { return ledger_.total() * job_.model().context(); }
int64_t CoordinatorCore::committed_tokens() const { return ledger_.committed() * job_.model().context(); }

absl::Status CoordinatorCore::Heartbeat(const HeartbeatRequest& request, absl::Time now, HeartbeatReply* answer) {
  HeartbeatReply& reply = *answer;
  reply.Clear();
  Member* const found = Find(MemberId(request.member()));
  if (found == nullptr) return absl::AbortedError("this member is unknown to the coordinator; join again");
  Member& member = *found;
  if (member.state != State::kLive || member.key.incarnation.value() != request.incarnation()) {
    return Fenced(member, request.incarnation());
  }
  member.last_seen = now;
  if (request.beat() == member.beat && !Mutated("core.answers_a_beat_twice")) {
    reply = member.last_reply;
    return absl::OkStatus();
  }
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
    if (regions_[member.region].collective() == COLLECTIVE_GLOO) {  // Of a few, since each is connected to each.
      for (const Member* other : by_region_[member.region].workers) {
        if (other->state != State::kLive) continue;
        Life* life = reply.add_group();
        life->set_member(other->key.member.value());
        life->set_incarnation(other->key.incarnation.value());
      }
    }
    if (request.steps_size() > 0) {
      for (const StepRecord& step : request.steps()) {
        recent_losses_.push_back(step.loss());
        recent_staleness_.push_back(root_version_.value() - step.root_base_version());
      }
      while (recent_losses_.size() > 64) recent_losses_.pop_front();
      while (recent_staleness_.size() > 64) recent_staleness_.pop_front();
      effects_.push_back(RecordSteps{RegionOf(member),
                                     member.name,
                                     member.key.incarnation,
                                     {request.steps().begin(), request.steps().end()},
                                     root_version_});
    }
    if (request.want_samples() > 0) {
      if (!member.wants) {
        member.wants = true;
        Recount(member.region);
      }
      MaybeStart(now);
      if (phase_ == Phase::kTraining && !member.must_assert && !member.quarantined) {
        const int64_t want = SamplesFor(member, request);
        for (const LeasedRange& range : ledger_.Lease(member.key, member.region, want)) {
          *reply.add_granted() = RangeToProto(range);
        }
        RaiseCeiling();
      }
    }
    reply.set_exhausted(phase_ == Phase::kTraining && ledger_.available() == 0 && !recovering());
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
      Member* const fenced = Find(key.member);
      if (fenced != nullptr && fenced->key == key) fenced->state = State::kGone;
      Log({{"event", "fenced"},
           {"name", fenced == nullptr ? "" : Describe(*fenced)},
           {"incarnation", key.incarnation.value()},
           {"samples_available_again", ledger_.available() - before},
           {"ranges_in_custody", custody.size()}});
    }
    for (const MemberKey& key : fencing_[member.region]) {
      Life* fence = reply.add_fence();
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
  if (request.leaving() && phase_ != Phase::kDone && phase_ != Phase::kFailed) {
    Expire(&member, "left", "it was told to end");
  }
  UpdateRootIdle();
  if (phase_ == Phase::kDone || phase_ == Phase::kFailed) {
    reply.set_finish(true);
    reply.set_finish_reason(phase_ == Phase::kDone ? "" : failure_);
    reply.set_finish_resumable(stopped_);
    member.told_finish = true;
  }
  member.last_reply = reply;
  return absl::OkStatus();
}

absl::Status CoordinatorCore::Fenced(const Member& member, int64_t incarnation) const {
  const Member* const holder = member.role == ROLE_AGGREGATOR ? Aggregator(member.region)
                               : member.state == State::kLive ? &member
                                                              : nullptr;
  // Two processes that both came back would take the place from each other for ever.
  if (holder != nullptr && (holder != &member || member.is_another_process)) {
    return absl::AlreadyExistsError(absl::StrFormat("%s incarnation %d is fenced: process %d of %s has its place now",
                                                    Describe(member), incarnation, holder->pid, holder->host));
  }
  return absl::AbortedError(
      absl::StrFormat("%s incarnation %d is fenced: %s", Describe(member), incarnation,
                      member.why_gone.empty() ? "it was before this coordinator began" : member.why_gone));
}

namespace {

MemberKey ParentIn(const HeartbeatReply& answer) {
  return {MemberId(answer.parent_member()), Incarnation(answer.parent_incarnation())};
}

}  // namespace

CoordinatorCore::Rests CoordinatorCore::RestsOnTheLog(MemberKey key, const HeartbeatReply& answer) const {
  const Member* const member = Find(key.member);
  const bool parent_changes = member != nullptr && !(member->told_parent == ParentIn(answer));
  if (answer.committed_size() > 0 || parent_changes) return Rests::kAltogether;
  return answer.fence_size() > 0 ? Rests::kOnAFence : Rests::kOnNothing;
}

void CoordinatorCore::Told(MemberKey key, const HeartbeatReply& answer) {
  Member* const member = Find(key.member);
  if (member != nullptr && member->key == key) member->told_parent = ParentIn(answer);
}

void CoordinatorCore::TakeRefusals(const Member& aggregator, const HeartbeatRequest& request) {
  std::map<std::pair<int64_t, Verdict>, int64_t> known;
  for (const RefusedCount& one : aggregator.usage.refused()) known[{one.member(), one.verdict()}] = one.count();
  for (const RefusedCount& one : request.usage().refused()) {
    const int64_t more = one.count() - known[{one.member(), one.verdict()}];
    if (more <= 0) continue;
    const Member* const sender = Find(MemberId(one.member()));
    Log({{"event", "refused"},
         {"by", Describe(aggregator)},
         {"name", sender == nullptr ? absl::StrCat("member ", one.member()) : Describe(*sender)},
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

int64_t CoordinatorCore::SamplesFor(const Member& member, const HeartbeatRequest& request) const {
  const Region& region = regions_[member.region];
  // Workers that act as one take the steps of all of them.
  const int64_t group = region.collective() == COLLECTIVE_GLOO ? region.workers() : 1;
  const int64_t step = StepSamples(job_) * group;
  // Near the end everybody gets less, so that all finish at about the same time: half of what is left, by speed (guided
  // self-scheduling, Polychronopoulos and Kuck 1987).
  double fraction = static_cast<double>(group) / std::max(1, live_workers_);
  if (member.speed > 0 && speed_sum_ > 0) fraction *= member.speed / (speed_sum_ / static_cast<double>(speeds_.size()));
  const auto share = static_cast<int64_t>(static_cast<double>(ledger_.available()) * std::min(1.0, fraction) / 2);
  // But not less than lasts until the answer to its next heartbeat, which leaves when this one is answered, and a trip
  // more, since a lost packet costs one: halves that arrive too late leave it idle. The others keep their shares.
  const double trip = request.usage().round_trip_seconds();
  const double away = 2 * trip + std::max(trip, absl::ToDoubleSeconds(absl::Nanoseconds(job_.limits().heartbeat_ns())));
  const auto lasting = static_cast<int64_t>(std::ceil(member.speed * static_cast<double>(group) * away));
  // Who asks more often must not get more: what is in hand is a part of the share.
  const int64_t guided = share / step * step - request.samples_in_hand();
  const int64_t until_then = std::min(lasting - request.samples_in_hand(), 2 * share / step * step);
  const int64_t room = std::min(request.want_samples(), std::max(guided, until_then));
  const int64_t least = request.samples_in_hand() < step ? 1 : 0;
  return std::max(least, (room + step - 1) / step) * step;
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
  std::vector<MemberId> idle;  // By id.
  if (phase_ == Phase::kTraining && !recovering()) {
    const bool none = ledger_.available() > 0 && regions_taking_data_ == regions();  // Nearly always.
    for (int r = 0; !none && r < regions(); ++r) {
      // A region that owes nothing, and gets no more data: there is none, or nobody is left there to train on it.
      if (ledger_.available() > 0 && by_region_[r].takes_data > 0) continue;
      if (ledger_.LeasedIn(r) > 0) continue;
      for (const Member* aggregator : by_region_[r].aggregators) idle.push_back(aggregator->key.member);
    }
    std::sort(idle.begin(), idle.end());
  }
  if (idle == root_idle_) return;
  effects_.push_back(SetIdle{{idle.begin(), idle.end()}});
  root_idle_ = std::move(idle);
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
  recent_tokens_.clear();
  LogRecord record;
  record.mutable_run_started();
  Write(record);
  Log({{"event", "training_started"}, {"seconds_to_start", absl::ToDoubleSeconds(now - created_)}});
}

void CoordinatorCore::Excuse(absl::Time now) {
  const absl::Duration away = now - last_tick_;
  last_tick_ = now;
  // Half a lease may be less than what lies between two looks.
  if (away <= std::max(kAwayMin, absl::Nanoseconds(job_.limits().lease_ns()) / 2)) return;
  // Whoever was heard after this process came back is not silent at all.
  const auto later = [&](absl::Time* time) { *time = std::min(now, *time + away); };
  for (const auto& member : members_) later(&member->last_seen);
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
  // Nobody's time runs out before that of who was silent for the longest when all were looked at.
  if (now > all_heard_until_) {
    absl::Time heard = now;
    for (const auto& member : members_) {
      if (member->state != State::kLive) continue;
      if (now - member->last_seen > lease && !Mutated("core.never_expires")) {
        Expire(member.get(), "lost", absl::StrFormat("silent for %s", absl::FormatDuration(now - member->last_seen)));
      } else {
        heard = std::min(heard, member->last_seen);
      }
    }
    all_heard_until_ = heard + lease;
  }
  const auto start = absl::Nanoseconds(job_.limits().start_ns());
  if (phase_ == Phase::kStarting && now - created_ > start) {
    Fail(absl::StrFormat("not ready within %s (limits.start): %s; look into their logs", absl::FormatDuration(start),
                         WaitsFor()),
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
  // The last one from before the window stays: after a pause of this process all that was computed meanwhile comes at
  // once.
  while (recent_tokens_.size() > 2 && now - recent_tokens_[1].time > kRateWindow) recent_tokens_.pop_front();
}

std::string CoordinatorCore::WaitsFor() const {
  std::vector<std::string> missing;
  for (int r = 0; r < job_.regions_size(); ++r) {
    if (Aggregator(r) == nullptr) missing.push_back(absl::StrCat("the aggregator of ", job_.regions(r).name()));
    const int ready = by_region_[r].ready;
    if (ready < job_.regions(r).workers()) {
      missing.push_back(absl::StrFormat("%d of %d workers of %s", job_.regions(r).workers() - ready,
                                        job_.regions(r).workers(), job_.regions(r).name()));
    }
  }
  return absl::StrJoin(missing, ", ");
}

Verdict CoordinatorCore::Admit(const Manifest& manifest, const LogRecord& accepted, std::string* detail) {
  const Member* const found = Find(manifest.sender.member);
  if (found == nullptr || found->role != ROLE_AGGREGATOR || found->state != State::kLive ||
      (!(found->key == manifest.sender) && !Mutated("core.admits_fenced_lives"))) {
    *detail = "the sender is not a live aggregator";
    return VERDICT_FENCED;
  }
  if (!ledger_.Admit(found->region, manifest.ranges, detail)) return VERDICT_RANGES;
  if (!Mutated("core.admits_without_a_record")) Write(accepted);
  return VERDICT_ACCEPTED;
}

void CoordinatorCore::Merged(const std::vector<Manifest>& manifests, absl::Time now) {
  for (const Manifest& manifest : manifests) ledger_.Commit(manifest.ranges);
  UpdateRootIdle();
  MaybeFinish(now);
}

void CoordinatorCore::Refused(const Manifest& manifest) {
  Member* const found = Find(manifest.sender.member);
  if (found == nullptr || found->role != ROLE_AGGREGATOR || !(found->key == manifest.sender)) {
    return;  // Released already, with the region.
  }
  if (found->must_assert) {
    std::vector<LeasedRange>& unspoken = found->refused_unspoken;
    unspoken.insert(unspoken.end(), manifest.ranges.begin(), manifest.ranges.end());
  }
  const int64_t before = ledger_.available();
  ledger_.ReleaseRefused(found->region, manifest.ranges);
  if (ledger_.available() == before) return;
  Log({{"event", "released"},
       {"name", Describe(*found)},
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

void CoordinatorCore::Stop(const std::string& reason, absl::Time now) {
  stopped_ = stopped_ || (phase_ != Phase::kDone && phase_ != Phase::kFailed);
  Fail(reason, now);
}

bool CoordinatorCore::AllToldFinish() const {
  return std::all_of(members_.begin(), members_.end(),
                     [](const auto& member) { return member->state != State::kLive || member->told_finish; });
}

absl::Duration CoordinatorCore::FarewellMax() const {
  double trip = 0;
  for (const RoundTrips& trips : round_trips_) {
    if (!trips.seconds.empty()) trip = std::max(trip, trips.seconds.back());
  }
  // They hear it in the answers to their heartbeats.
  return absl::Seconds(5) + 2 * absl::Seconds(trip) + absl::Nanoseconds(job_.limits().heartbeat_ns());
}

std::vector<CoordinatorCore::Effect> CoordinatorCore::TakeEffects() {
  std::vector<Effect> effects;
  effects.swap(effects_);
  return effects;
}

}  // namespace wukong
