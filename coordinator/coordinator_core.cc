#include "coordinator/coordinator_core.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "glog/logging.h"

namespace wukong {
namespace {

constexpr size_t kRoundTripsKept = 10000;
constexpr absl::Duration kRateWindow = absl::Seconds(10);

const char* RoleName(Role role) { return role == ROLE_AGGREGATOR ? "aggregator" : "worker"; }

const char* PhaseName(CoordinatorCore::Phase phase) {
  switch (phase) {
    case CoordinatorCore::Phase::kStarting:
      return "starting";
    case CoordinatorCore::Phase::kTraining:
      return "training";
    case CoordinatorCore::Phase::kDone:
      return "done";
    case CoordinatorCore::Phase::kFailed:
      return "failed";
  }
  return "unknown";
}

// The p-th percentile by nearest rank; 0 of nothing.
double Percentile(std::vector<double> values, double p) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const auto rank = static_cast<size_t>(std::ceil(p / 100.0 * static_cast<double>(values.size())));
  return values[std::min(values.size() - 1, rank == 0 ? 0 : rank - 1)];
}

void Add(const MemberUsage& from, MemberUsage* to) {
  to->set_wall_seconds(to->wall_seconds() + from.wall_seconds());
  to->set_compute_seconds(to->compute_seconds() + from.compute_seconds());
  to->set_cpu_seconds(to->cpu_seconds() + from.cpu_seconds());
  to->set_tokens_computed(to->tokens_computed() + from.tokens_computed());
  to->set_payload_bytes_up(to->payload_bytes_up() + from.payload_bytes_up());
  to->set_payload_bytes_down(to->payload_bytes_down() + from.payload_bytes_down());
  to->set_contributions_sent(to->contributions_sent() + from.contributions_sent());
  for (const auto& [verdict, count] : from.contributions_received()) {
    (*to->mutable_contributions_received())[verdict] += count;
  }
  to->set_peak_memory_bytes(std::max(to->peak_memory_bytes(), from.peak_memory_bytes()));
}

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
                                 absl::Time now)
    : job_(job),
      run_(std::move(run)),
      schema_digest_(std::move(schema_digest)),
      parameters_(parameters),
      ledger_(TotalSamples(job), StepSamples(job) * job.data().range_steps()),
      created_(now),
      nobody_since_(now),
      round_trips_(job.regions_size()) {}

int64_t CoordinatorCore::total_tokens() const { return ledger_.total() * job_.model().context(); }
int64_t CoordinatorCore::committed_tokens() const { return ledger_.committed() * job_.model().context(); }

int CoordinatorCore::RegionIndex(const std::string& name) const {
  for (int i = 0; i < job_.regions_size(); ++i) {
    if (job_.regions(i).name() == name) return i;
  }
  return -1;
}

absl::StatusOr<GetJobReply> CoordinatorCore::GetJob(const GetJobRequest& request) const {
  if (RegionIndex(request.region()) < 0) {
    std::vector<std::string> names;
    for (const Region& region : job_.regions()) names.push_back(region.name());
    return absl::NotFoundError(
        absl::StrFormat("the job has no region '%s'; it has %s", request.region(), absl::StrJoin(names, ", ")));
  }
  GetJobReply reply;
  *reply.mutable_job() = job_;
  reply.set_schema_digest(schema_digest_);
  reply.set_run(run_);
  reply.set_parameters(parameters_);
  return reply;
}

std::string CoordinatorCore::Describe(const Member& member) const {
  return absl::StrFormat("%s %s of %s", RoleName(member.role), member.name, job_.regions(member.region).name());
}

CoordinatorCore::Member* CoordinatorCore::Aggregator(int region) {
  for (auto& [id, member] : members_) {
    if (member.region == region && member.role == ROLE_AGGREGATOR && member.state == State::kLive) return &member;
  }
  return nullptr;
}

bool CoordinatorCore::CollectiveFollower(const Member& member) const {
  return member.role == ROLE_WORKER && job_.regions(member.region).collective() == COLLECTIVE_GLOO && member.rank > 0;
}

absl::StatusOr<JoinReply> CoordinatorCore::Join(const JoinRequest& request, absl::Time now) {
  const int region = RegionIndex(request.region());
  if (region < 0) {
    GetJobRequest unknown;
    unknown.set_region(request.region());
    return GetJob(unknown).status();
  }
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
  Member* aggregator = Aggregator(region);
  if (request.role() == ROLE_WORKER && aggregator == nullptr) {
    return absl::UnavailableError(absl::StrFormat("the aggregator of %s has not joined yet", request.region()));
  }

  Member* member = nullptr;
  for (auto& [id, known] : members_) {
    if (known.region == region && known.role == request.role() && !request.name().empty() &&
        known.name == request.name()) {
      member = &known;
    }
  }
  if (request.role() == ROLE_AGGREGATOR && aggregator != nullptr && aggregator != member) {
    Expire(aggregator, "replaced by another aggregator of its region");
  }
  if (member == nullptr) {
    const MemberId id(next_member_++);
    member = &members_[id];
    member->key = {id, Incarnation(1)};
    member->role = request.role();
    member->region = region;
    std::set<int> ranks;
    for (const auto& [other_id, other] : members_) {
      if (other_id != id && other.region == region && other.role == request.role()) ranks.insert(other.rank);
    }
    if (request.has_rank() && request.rank() >= 0) member->rank = request.rank();
    while (ranks.count(member->rank) > 0) ++member->rank;
    member->name =
        request.name().empty() ? absl::StrFormat("%s-%d", RoleName(request.role()), member->rank) : request.name();
  } else {
    if (member->state == State::kLive) Expire(member, "a new process joined under its name");
    Add(member->usage, &member->usage_of_earlier_lives);
    member->key.incarnation = Incarnation(member->key.incarnation.value() + 1);
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
  if (member->role == ROLE_WORKER) reply.set_parent_address(Aggregator(region)->address);
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
  if (request.beat() == member.beat) return member.last_reply;
  if (request.beat() < member.beat) return absl::InvalidArgumentError("an older beat than the last one");
  member.beat = request.beat();
  member.usage = request.usage();
  if (request.usage().round_trip_seconds() > 0) {
    auto& trips = round_trips_[member.region].seconds;
    if (trips.size() >= kRoundTripsKept) trips.erase(trips.begin());
    trips.push_back(request.usage().round_trip_seconds());
  }

  HeartbeatReply reply;
  if (member.role == ROLE_WORKER) {
    member.idle = request.idle();
    if (request.samples_per_second() > 0) member.speed = request.samples_per_second();
    std::vector<LeasedRange> released;
    for (const SampleRange& range : request.released()) released.push_back(RangeFromProto(range));
    if (!released.empty()) {
      ledger_.Release(member.key, released);
      Log({{"event", "released"}, {"name", Describe(member)}, {"ranges", released.size()}});
    }
    if (request.steps_size() > 0) {
      for (const StepRecord& step : request.steps()) {
        recent_losses_.push_back(step.loss());
        recent_staleness_.push_back(root_version_.value() - step.root_base_version());
      }
      while (recent_losses_.size() > 64) recent_losses_.pop_front();
      while (recent_staleness_.size() > 64) recent_staleness_.pop_front();
      effects_.push_back(RecordSteps{job_.regions(member.region).name(),
                                     member.name,
                                     {request.steps().begin(), request.steps().end()},
                                     root_version_});
    }
    if (request.want_samples() > 0) {
      member.wants = true;
      MaybeStart(now);
      if (phase_ == Phase::kTraining) {
        // Near the end everybody gets less, so that all finish at about the same time (guided self-scheduling,
        // Polychronopoulos and Kuck 1987).
        // Workers that act as one take the steps of all of them.
        const Region& region = job_.regions(member.region);
        const int64_t step = StepSamples(job_) * (region.collective() == COLLECTIVE_GLOO ? region.workers() : 1);
        const int64_t share = ledger_.available() / (int64_t{2} * std::max(1, LiveWorkers())) / step * step;
        const int64_t steps = (std::min(request.want_samples(), share) + step - 1) / step;
        const int64_t want = std::max<int64_t>(1, steps) * step;
        for (const LeasedRange& range : ledger_.Lease(member.key, member.region, want)) {
          *reply.add_granted() = RangeToProto(range);
        }
      }
    }
    reply.set_exhausted(phase_ == Phase::kTraining && reply.granted_size() == 0 && ledger_.available() == 0);
    if (reply.granted_size() > 0) member.idle = false;
    reply.set_samples_per_second_reference(ReferenceSpeed());
  } else {
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
    for (const auto& [id, other] : members_) {
      if (other.role == ROLE_WORKER && other.region == member.region && other.idle) {
        reply.add_idle_members(id.value());
      }
    }
    reply.set_drain(phase_ == Phase::kTraining && ledger_.available() == 0 && RegionIdle(member.region));
  }
  UpdateRootIdle();
  if (phase_ == Phase::kDone || phase_ == Phase::kFailed) {
    reply.set_finish(true);
    reply.set_finish_reason(phase_ == Phase::kDone ? "" : failure_);
    member.told_finish = true;
  }
  member.last_reply = reply;
  return reply;
}

double CoordinatorCore::ReferenceSpeed() const {
  std::vector<double> speeds;
  for (const auto& [id, member] : members_) {
    if (member.role == ROLE_WORKER && member.state == State::kLive && member.speed > 0) speeds.push_back(member.speed);
  }
  // A high percentile and not the largest, so that one lucky measurement does not shorten everybody's rounds.
  return Percentile(std::move(speeds), 80);
}

int CoordinatorCore::LiveWorkers() const {
  return static_cast<int>(std::count_if(members_.begin(), members_.end(), [](const auto& entry) {
    return entry.second.role == ROLE_WORKER && entry.second.state == State::kLive;
  }));
}

bool CoordinatorCore::RegionIdle(int region) const {
  return std::all_of(members_.begin(), members_.end(), [&](const auto& entry) {
    const Member& member = entry.second;
    return member.role != ROLE_WORKER || member.region != region || member.state == State::kGone || member.idle ||
           CollectiveFollower(member);
  });
}

void CoordinatorCore::UpdateRootIdle() {
  std::set<MemberId> idle;
  if (phase_ == Phase::kTraining) {
    std::set<int> with_workers;
    for (const auto& [id, member] : members_) {
      if (member.role == ROLE_WORKER && member.state == State::kLive) with_workers.insert(member.region);
    }
    for (const auto& [id, member] : members_) {
      // A region that owes nothing, and gets no more data: there is none, or nobody is left there to train on it.
      if (member.role == ROLE_AGGREGATOR && ledger_.LeasedIn(member.region) == 0 &&
          (ledger_.available() == 0 || with_workers.count(member.region) == 0)) {
        idle.insert(id);
      }
    }
  }
  if (idle == root_idle_) return;
  root_idle_ = idle;
  effects_.push_back(SetIdle{std::move(idle)});
}

void CoordinatorCore::MaybeStart(absl::Time now) {
  if (phase_ != Phase::kStarting) return;
  for (int r = 0; r < job_.regions_size(); ++r) {
    if (Aggregator(r) == nullptr) return;
    int ready = 0;
    for (const auto& [id, member] : members_) {
      if (member.role == ROLE_WORKER && member.region == r && member.state == State::kLive &&
          (member.wants || CollectiveFollower(member))) {
        ++ready;
      }
    }
    if (ready < job_.regions(r).workers()) return;
  }
  phase_ = Phase::kTraining;
  training_started_ = now;
  Log({{"event", "training_started"}, {"seconds_to_start", absl::ToDoubleSeconds(now - created_)}});
}

void CoordinatorCore::Expire(Member* member, const std::string& reason) {
  if (member->state != State::kLive) return;
  Log({{"event", "lost"},
       {"role", RoleName(member->role)},
       {"region", job_.regions(member->region).name()},
       {"name", member->name},
       {"incarnation", member->key.incarnation.value()},
       {"reason", reason}});
  if (member->role == ROLE_WORKER) {
    member->state = State::kFencing;
    member->idle = false;
    if (Aggregator(member->region) != nullptr) {
      fencing_[member->region].insert(member->key);
      return;
    }
    member->state = State::kGone;
    ledger_.ReleaseFenced(member->key, {});
    return;
  }
  // A region without its aggregator cannot deliver what it holds: the root takes nothing more from this incarnation,
  // and the data goes to others. Its workers learn at their next heartbeat that they are fenced.
  member->state = State::kGone;
  effects_.push_back(FenceChild{member->key});
  for (auto& [id, other] : members_) {
    if (other.role == ROLE_WORKER && other.region == member->region && other.state != State::kGone) {
      other.state = State::kGone;
    }
  }
  fencing_[member->region].clear();
  ledger_.ReleaseRegion(member->region);
}

void CoordinatorCore::Tick(absl::Time now) {
  if (phase_ == Phase::kDone || phase_ == Phase::kFailed) return;
  const auto lease = absl::Nanoseconds(job_.limits().lease_ns());
  int workers = 0;
  for (auto& [id, member] : members_) {
    if (member.state == State::kLive && now - member.last_seen > lease) {
      Expire(&member, absl::StrFormat("silent for %s", absl::FormatDuration(now - member.last_seen)));
    }
    if (member.state == State::kLive && member.role == ROLE_WORKER) ++workers;
  }
  const auto start = absl::Nanoseconds(job_.limits().start_ns());
  if (phase_ == Phase::kStarting && now - created_ > start) {
    std::vector<std::string> missing;
    for (int r = 0; r < job_.regions_size(); ++r) {
      if (Aggregator(r) == nullptr) missing.push_back(absl::StrCat("the aggregator of ", job_.regions(r).name()));
      int ready = 0;
      for (const auto& [id, member] : members_) {
        if (member.role == ROLE_WORKER && member.region == r && member.state == State::kLive &&
            (member.wants || CollectiveFollower(member))) {
          ++ready;
        }
      }
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
  if (workers > 0 || phase_ == Phase::kStarting) nobody_since_ = now;
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
  UpdateRootIdle();
  int64_t computed = 0;
  for (const auto& [id, member] : members_) computed += TotalUsage(member).tokens_computed();
  recent_tokens_.push_back({now, computed});
  while (recent_tokens_.size() > 1 && now - recent_tokens_.front().time > kRateWindow) recent_tokens_.pop_front();
}

Verdict CoordinatorCore::Admit(const Manifest& manifest, std::string* detail) {
  const auto found = members_.find(manifest.sender.member);
  if (found == members_.end() || found->second.role != ROLE_AGGREGATOR || found->second.state != State::kLive ||
      !(found->second.key == manifest.sender)) {
    *detail = "the sender is not a live aggregator";
    return VERDICT_FENCED;
  }
  if (!ledger_.Admit(found->second.region, manifest.ranges, detail)) return VERDICT_RANGES;
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

MemberUsage CoordinatorCore::TotalUsage(const Member& member) const {
  MemberUsage usage = member.usage;
  Add(member.usage_of_earlier_lives, &usage);
  return usage;
}

void CoordinatorCore::FillStatus(StatusReply* status, absl::Time now) const {
  status->set_run(run_);
  status->set_phase(PhaseName(phase_));
  status->set_detail(failure_);
  status->set_version(root_version_.value());
  if (training_started_ != absl::Time()) {
    const absl::Time end = phase_ == Phase::kTraining ? now : training_ended_;
    status->set_seconds(absl::ToDoubleSeconds(end - training_started_));
  }
  status->set_tokens_budget(total_tokens());
  status->set_tokens_committed(committed_tokens());
  double compute = 0, wall = 0;
  for (const auto& [id, member] : members_) {
    const MemberUsage usage = TotalUsage(member);
    if (member.role == ROLE_WORKER) {
      status->set_tokens_computed(status->tokens_computed() + usage.tokens_computed());
      compute += usage.compute_seconds();
      wall += usage.wall_seconds();
    }
    MemberStatus* entry = status->add_members();
    entry->set_region(job_.regions(member.region).name());
    entry->set_name(member.name);
    entry->set_role(member.role);
    entry->set_state(member.state == State::kLive ? "live" : member.state == State::kFencing ? "fencing" : "gone");
    entry->set_incarnation(member.key.incarnation.value());
    entry->set_pid(member.pid);
    *entry->mutable_usage() = usage;
  }
  if (wall > 0) status->set_compute_share(compute / wall);
  if (!recent_losses_.empty()) {
    status->set_loss(std::accumulate(recent_losses_.begin(), recent_losses_.end(), 0.0) /
                     static_cast<double>(recent_losses_.size()));
    status->set_staleness_mean(
        static_cast<double>(std::accumulate(recent_staleness_.begin(), recent_staleness_.end(), int64_t{0})) /
        static_cast<double>(recent_staleness_.size()));
  }
  if (recent_tokens_.size() > 1) {
    const double seconds = absl::ToDoubleSeconds(recent_tokens_.back().time - recent_tokens_.front().time);
    if (seconds > 0) {
      status->set_tokens_per_second(static_cast<double>(recent_tokens_.back().tokens - recent_tokens_.front().tokens) /
                                    seconds);
    }
  }
}

void CoordinatorCore::FillReport(nlohmann::ordered_json* report) const {
  MemberUsage all;
  std::vector<MemberUsage> regions(job_.regions_size());
  nlohmann::ordered_json processes = nlohmann::ordered_json::array();
  for (const auto& [id, member] : members_) {
    const MemberUsage usage = TotalUsage(member);
    processes.push_back({{"role", RoleName(member.role)},
                         {"region", job_.regions(member.region).name()},
                         {"name", member.name},
                         {"incarnations", member.key.incarnation.value()},
                         {"compute_seconds", usage.compute_seconds()},
                         {"wall_seconds", usage.wall_seconds()},
                         {"cpu_seconds", usage.cpu_seconds()},
                         {"tokens_computed", usage.tokens_computed()},
                         {"contributions_sent", usage.contributions_sent()},
                         {"payload_bytes_up", usage.payload_bytes_up()},
                         {"payload_bytes_down", usage.payload_bytes_down()},
                         {"peak_memory_bytes", usage.peak_memory_bytes()}});
    if (member.role != ROLE_WORKER) continue;
    Add(usage, &all);
    Add(usage, &regions[member.region]);
  }
  const auto share = [](const MemberUsage& usage) {
    return nlohmann::ordered_json{
        {"compute_share", usage.wall_seconds() > 0 ? usage.compute_seconds() / usage.wall_seconds() : 0.0},
        {"compute_seconds", usage.compute_seconds()},
        {"wall_seconds", usage.wall_seconds()},
        {"cpu_seconds", usage.cpu_seconds()},
        {"tokens_computed", usage.tokens_computed()}};
  };
  const double seconds =
      training_started_ == absl::Time() ? 0 : absl::ToDoubleSeconds(training_ended_ - training_started_);
  (*report)["tokens_committed"] = committed_tokens();
  (*report)["tokens_computed"] = all.tokens_computed();
  (*report)["wall_seconds"] = seconds;
  (*report)["tokens_per_second"] = seconds > 0 ? static_cast<double>(committed_tokens()) / seconds : 0.0;
  (*report)["compute_share"] = share(all)["compute_share"];
  nlohmann::ordered_json by_region = nlohmann::ordered_json::object();
  nlohmann::ordered_json trips = nlohmann::ordered_json::object();
  nlohmann::ordered_json received = nlohmann::ordered_json::object();
  for (int r = 0; r < job_.regions_size(); ++r) {
    by_region[job_.regions(r).name()] = share(regions[r]);
    trips[job_.regions(r).name()] = {{"round_trip_ms_p50", 1e3 * Percentile(round_trips_[r].seconds, 50)},
                                     {"round_trip_ms_p99", 1e3 * Percentile(round_trips_[r].seconds, 99)},
                                     {"round_trips_measured", round_trips_[r].seconds.size()}};
    MemberUsage aggregators;
    for (const auto& [id, member] : members_) {
      if (member.role == ROLE_AGGREGATOR && member.region == r) Add(TotalUsage(member), &aggregators);
    }
    trips[job_.regions(r).name()]["payload_bytes_up"] = aggregators.payload_bytes_up();
    trips[job_.regions(r).name()]["payload_bytes_down"] = aggregators.payload_bytes_down();
    nlohmann::ordered_json counts = {{"accepted", 0}, {"rejected", nlohmann::ordered_json::object()}};
    for (const auto& [verdict, count] : aggregators.contributions_received()) {
      (verdict == VerdictName(VERDICT_ACCEPTED) ? counts["accepted"] : counts["rejected"][verdict]) = count;
    }
    received[job_.regions(r).name()] = counts;
  }
  (*report)["compute"] = {{"all", share(all)}, {"regions", by_region}};
  (*report)["contributions"]["regions"] = received;
  (*report)["wan"] = trips;
  const ShardLedger::Audit audit = ledger_.MakeAudit();
  (*report)["ranges"] = {{"total", audit.total},
                         {"committed_once", audit.committed_once},
                         {"committed_more_than_once", audit.committed_more_than_once},
                         {"lost", audit.not_committed}};
  (*report)["processes"] = processes;
}

}  // namespace wukong
