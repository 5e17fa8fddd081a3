// How the coordinator's core stands, for people and for report.json.
#include <numeric>

#include "absl/strings/str_cat.h"
#include "coordinator/coordinator_core.h"
#include "coordinator/member_usage.h"

namespace wukong {
namespace {

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

}  // namespace

MemberUsage CoordinatorCore::TotalUsage(const Member& member) const {
  MemberUsage usage = member.usage;
  Add(member.usage_of_earlier_lives, &usage);
  return usage;
}

std::map<std::string, int64_t> CoordinatorCore::RefusedBySender() const {
  std::map<std::string, int64_t> refused;
  for (const auto& held : members_) {
    const Member& aggregator = *held;
    if (aggregator.role != ROLE_AGGREGATOR) continue;
    const MemberUsage usage = TotalUsage(aggregator);
    for (const RefusedCount& one : usage.refused()) {
      const Member* const sender = Find(MemberId(one.member()));
      const std::string name = sender == nullptr ? absl::StrCat("member ", one.member()) : sender->name;
      refused[absl::StrCat(name, " of ", RegionOf(aggregator), ": ", VerdictName(one.verdict()))] += one.count();
    }
  }
  return refused;
}

void CoordinatorCore::FillStatus(StatusReply* status, absl::Time now) const {
  status->set_run(run_);
  status->set_phase(PhaseName(phase_));
  status->set_detail(phase_ == Phase::kStarting ? WaitsFor() : failure_);
  status->set_version(root_version_.value());
  status->set_term(term_);
  if (training_started_ != absl::Time()) {
    const absl::Time end = phase_ == Phase::kTraining ? now : training_ended_;
    status->set_seconds(absl::ToDoubleSeconds(end - training_started_));
  }
  status->set_tokens_budget(total_tokens());
  status->set_tokens_committed(committed_tokens());
  for (const auto& [sender, count] : RefusedBySender()) (*status->mutable_refused())[sender] = count;
  double compute = 0, wall = 0;
  for (const auto& held : members_) {
    const Member& member = *held;
    const MemberUsage usage = TotalUsage(member);
    if (member.role == ROLE_WORKER) {
      status->set_tokens_computed(status->tokens_computed() + usage.tokens_computed());
      compute += usage.compute_seconds();
      wall += usage.wall_seconds();
    }
    MemberStatus* entry = status->add_members();
    entry->set_region(RegionOf(member));
    entry->set_name(member.name);
    entry->set_role(member.role);
    entry->set_state(member.state == State::kFencing ? "fencing"
                     : member.state == State::kGone  ? "gone"
                     : member.quarantined            ? "quarantined"
                                                     : "live");
    entry->set_incarnation(member.key.incarnation.value());
    entry->set_pid(member.pid);
    entry->set_host(member.host);
    entry->set_heard_seconds_ago(absl::ToDoubleSeconds(now - member.last_seen));
    entry->set_why_gone(member.why_gone);
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
  std::vector<MemberUsage> by_index(regions());
  nlohmann::ordered_json processes = nlohmann::ordered_json::array();
  for (const auto& held : members_) {
    const Member& member = *held;
    const MemberUsage usage = TotalUsage(member);
    processes.push_back({{"role", RoleName(member.role)},
                         {"region", RegionOf(member)},
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
    Add(usage, &by_index[member.region]);
  }
  const auto share = [](const MemberUsage& usage) {
    // In an order of its own: that of a message's map is no order.
    const std::map<std::string, double> waiting(usage.waiting_seconds().begin(), usage.waiting_seconds().end());
    return nlohmann::ordered_json{
        {"compute_share", usage.wall_seconds() > 0 ? usage.compute_seconds() / usage.wall_seconds() : 0.0},
        {"compute_seconds", usage.compute_seconds()},
        {"wall_seconds", usage.wall_seconds()},
        {"waiting_seconds", waiting},
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
  for (int r = 0; r < regions(); ++r) {
    by_region[regions_[r].name()] = share(by_index[r]);
    trips[regions_[r].name()] = {{"round_trip_ms_p50", 1e3 * Percentile(round_trips_[r].seconds, 50)},
                                 {"round_trip_ms_p99", 1e3 * Percentile(round_trips_[r].seconds, 99)},
                                 {"round_trips_measured", round_trips_[r].seconds.size()}};
    MemberUsage aggregators;
    for (const auto& member : members_) {
      if (member->role == ROLE_AGGREGATOR && member->region == r) Add(TotalUsage(*member), &aggregators);
    }
    trips[regions_[r].name()]["payload_bytes_up"] = aggregators.payload_bytes_up();
    trips[regions_[r].name()]["payload_bytes_down"] = aggregators.payload_bytes_down();
    nlohmann::ordered_json counts = {{"accepted", 0}, {"rejected", nlohmann::ordered_json::object()}};
    for (const auto& [verdict, count] : aggregators.contributions_received()) {
      (verdict == VerdictName(VERDICT_ACCEPTED) ? counts["accepted"] : counts["rejected"][verdict]) = count;
    }
    received[regions_[r].name()] = counts;
  }
  (*report)["compute"] = {{"all", share(all)}, {"regions", by_region}};
  (*report)["contributions"]["regions"] = received;
  nlohmann::ordered_json by_sender = nlohmann::ordered_json::object();
  for (const auto& [sender, count] : RefusedBySender()) by_sender[sender] = count;
  (*report)["contributions"]["rejected_by_sender"] = by_sender;
  (*report)["wan"] = trips;
  const ShardLedger::Audit audit = ledger_.MakeAudit();
  const bool done = phase_ == Phase::kDone;
  (*report)["ranges"] = {{"total", audit.total},
                         {"committed_once", audit.committed_once},
                         {"committed_more_than_once", audit.committed_more_than_once},
                         {"left", done ? 0 : audit.not_committed},  // For the rest of the run.
                         {"lost", done ? audit.not_committed : 0}};
  (*report)["processes"] = processes;
}

}  // namespace wukong
