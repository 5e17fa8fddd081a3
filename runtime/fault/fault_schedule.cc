#include "runtime/fault/fault_schedule.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace wukong {

absl::StatusOr<std::vector<FaultTarget>> ResolveTarget(const Scenario& scenario, const std::string& text) {
  std::vector<FaultTarget> targets;
  if (text == "root") return std::vector<FaultTarget>{FaultTarget()};
  const size_t slash = text.find('/');
  const std::string region = text.substr(0, slash);
  const std::string rest = slash == std::string::npos ? "" : text.substr(slash + 1);
  bool known = false;
  for (int r = 0; r < scenario.regions_size(); ++r) {
    if (region != "*" && scenario.regions(r).name() != region) continue;
    known = true;
    const int workers = scenario.regions(r).workers();
    if (rest.empty() || rest == "**") targets.push_back({r, -1});
    if (rest == "*" || rest == "**") {
      for (int w = 0; w < workers; ++w) targets.push_back({r, w});
      continue;
    }
    int worker = 0;
    absl::string_view number = rest;
    if (rest.empty()) continue;
    if (!absl::ConsumePrefix(&number, "worker-") || !absl::SimpleAtoi(number, &worker) || worker < 0 ||
        worker >= workers) {
      return absl::InvalidArgumentError(
          absl::StrCat(text, " names no worker (", region, " has worker-0 to worker-", workers - 1, ")"));
    }
    targets.push_back({r, worker});
  }
  if (!known) {
    return absl::InvalidArgumentError(absl::StrCat("there is no region ", region, " (expected root, or a region)"));
  }
  return targets;
}

std::string TargetName(const Scenario& scenario, const FaultTarget& target) {
  if (target.root()) return "root";
  const std::string& region = scenario.regions(target.region).name();
  return target.worker < 0 ? region : absl::StrCat(region, "/worker-", target.worker);
}

std::string FaultName(FaultKind kind) {
  return absl::AsciiStrToLower(absl::StripPrefix(FaultKind_Name(kind), "FAULT_KIND_"));
}

FaultSchedule::FaultSchedule(const Scenario& scenario, uint64_t seed) : scenario_(scenario) {
  for (int i = 0; i < scenario.timeline_size(); ++i) {
    const Fault& fault = scenario.timeline(i);
    const auto number = static_cast<size_t>(i);
    std::vector<FaultTarget> targets;
    for (const std::string& text : fault.target()) {
      const auto resolved = ResolveTarget(scenario, text);
      targets.insert(targets.end(), resolved->begin(), resolved->end());
    }
    if (targets.empty()) targets.emplace_back();
    random_.emplace_back(DeriveSeed(seed, "sim.fault", static_cast<uint64_t>(i)));
    if (fault.has_at_ns()) {
      for (const FaultTarget& target : targets) {
        acts_.emplace(absl::Nanoseconds(fault.at_ns()), Planned{{number, target, true}});
      }
    }
    targets_.push_back(std::move(targets));
    if (fault.has_every_ns()) PlanRandom(number, absl::ZeroDuration());
  }
}

void FaultSchedule::PlanRandom(size_t number, absl::Duration now) {
  const Fault& fault = scenario_.timeline(static_cast<int>(number));
  const absl::Duration next =
      now + absl::Seconds(random_[number].Exponential(absl::ToDoubleSeconds(absl::Nanoseconds(fault.every_ns()))));
  if (fault.has_until_ns() && next > absl::Nanoseconds(fault.until_ns())) return;
  acts_.emplace(next, Planned{{number, {}, true}, true});
}

void FaultSchedule::Begin(size_t number, const FaultTarget& target, absl::Duration now, std::vector<Act>* acts) {
  acts->push_back({number, target, true});
  const Fault& fault = scenario_.timeline(static_cast<int>(number));
  if (fault.has_for_ns()) acts_.emplace(now + absl::Nanoseconds(fault.for_ns()), Planned{{number, target, false}});
}

std::vector<FaultSchedule::Act> FaultSchedule::Take(absl::Duration now) {
  std::vector<Act> acts;
  while (!acts_.empty() && acts_.begin()->first <= now) {
    const absl::Duration time = acts_.begin()->first;
    const Planned planned = acts_.begin()->second;
    acts_.erase(acts_.begin());
    const size_t number = planned.act.number;
    if (planned.random) {
      Begin(number, targets_[number][random_[number].Below(targets_[number].size())], time, &acts);
      PlanRandom(number, time);
    } else if (planned.act.begins) {
      Begin(number, planned.act.target, time, &acts);
    } else {
      acts.push_back(planned.act);
    }
  }
  return acts;
}

void FaultSchedule::Trigger(size_t number, absl::Duration now) {
  if (healed_) return;
  for (const FaultTarget& target : targets_[number]) acts_.emplace(now, Planned{{number, target, true}});
}

void FaultSchedule::Heal(absl::Duration now) {
  healed_ = true;
  std::multimap<absl::Duration, Planned> ends;
  for (auto& [time, planned] : acts_) {
    if (!planned.act.begins) ends.emplace(now, planned);
  }
  acts_ = std::move(ends);
}

}  // namespace wukong
