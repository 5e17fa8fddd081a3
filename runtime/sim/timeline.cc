#include "runtime/sim/timeline.h"

#include <algorithm>
#include <utility>

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

Timeline::Timeline(const Scenario& scenario, uint64_t seed, SimWorld* world, const SimCast& cast)
    : scenario_(scenario),
      world_(world),
      cast_(cast),
      observed_(static_cast<size_t>(scenario.timeline_size())),
      on_link_(cast.aggregators.size()),
      fired_on_place_(static_cast<size_t>(scenario.timeline_size())) {
  for (int i = 0; i < scenario.timeline_size(); ++i) {
    std::vector<FaultTarget> targets;
    for (const std::string& text : scenario.timeline(i).target()) {
      const auto resolved = ResolveTarget(scenario, text);
      targets.insert(targets.end(), resolved->begin(), resolved->end());
    }
    if (targets.empty()) targets.emplace_back();
    targets_.push_back(std::move(targets));
    random_.emplace_back(DeriveSeed(seed, "sim.fault", static_cast<uint64_t>(i)));
  }
  for (size_t r = 0; r < cast.aggregators.size(); ++r) {
    up_.push_back(world->network.up(static_cast<int>(r)).shape());
    down_.push_back(world->network.down(static_cast<int>(r)).shape());
  }
}

SimProcess* Timeline::ProcessOf(const FaultTarget& target) const {
  if (target.root()) return cast_.root;
  if (target.worker < 0) return cast_.aggregators[target.region];
  return cast_.workers[target.region][target.worker];
}

std::string Timeline::NameOf(const FaultTarget& target) const { return ProcessOf(target)->name(); }

void Timeline::Begin() {
  for (int i = 0; i < scenario_.timeline_size(); ++i) {
    const Fault& fault = scenario_.timeline(i);
    const auto number = static_cast<size_t>(i);
    if (fault.has_at_ns()) world_->queue.After(absl::Nanoseconds(fault.at_ns()), [this, number] { Happen(number); });
    if (fault.has_every_ns()) PlanRandom(number);
  }
  cast_.root->OnPlace([this](SimCoordinator::Place place, Version version) {
    for (int i = 0; i < scenario_.timeline_size(); ++i) {
      const Fault& fault = scenario_.timeline(i);
      const auto number = static_cast<size_t>(i);
      const bool here = (fault.on() == FAULT_PLACE_AFTER_APPEND_BEFORE_ACK &&
                         place == SimCoordinator::Place::kAfterAppendBeforeAck) ||
                        (fault.on() == FAULT_PLACE_AFTER_ACK && place == SimCoordinator::Place::kAfterAck) ||
                        (fault.on() == FAULT_PLACE_AFTER_PUBLISH && place == SimCoordinator::Place::kAfterPublish);
      if (!here || version.value() < fault.version() || fired_on_place_[number]) continue;
      fired_on_place_[number] = true;
      // Not in the middle of what the root is doing, but before anything else happens to it.
      world_->queue.After(absl::ZeroDuration(), [this, number] { Happen(number); });
    }
  });
}

void Timeline::PlanRandom(size_t number) {
  const Fault& fault = scenario_.timeline(static_cast<int>(number));
  const absl::Duration next =
      absl::Seconds(random_[number].Exponential(absl::ToDoubleSeconds(absl::Nanoseconds(fault.every_ns()))));
  if (fault.has_until_ns() && world_->queue.elapsed() + next > absl::Nanoseconds(fault.until_ns())) return;
  world_->queue.After(next, [this, number] {
    if (healed_) return;
    Happen(number);
    PlanRandom(number);
  });
}

void Timeline::Happen(size_t number) {
  if (healed_) return;
  const Fault& fault = scenario_.timeline(static_cast<int>(number));
  const std::vector<FaultTarget>& targets = targets_[number];
  if (fault.has_every_ns()) {
    Strike(number, targets[random_[number].Below(targets.size())]);
    return;
  }
  for (const FaultTarget& target : targets) Strike(number, target);
}

void Timeline::Strike(size_t number, const FaultTarget& target) {
  const Fault& fault = scenario_.timeline(static_cast<int>(number));
  SimProcess* process = ProcessOf(target);
  SimWorker* worker = target.root() || target.worker < 0 ? nullptr : cast_.workers[target.region][target.worker];
  const bool up = fault.direction() != DIRECTION_DOWN, down = fault.direction() != DIRECTION_UP;
  bool lasts = true;
  switch (fault.fault()) {
    case FAULT_KIND_KILL:
    case FAULT_KIND_POWER_LOSS:
      if (!process->alive()) return;
      process->Kill();
      if (fault.fault() == FAULT_KIND_POWER_LOSS) cast_.root->disk().Crash();
      lasts = false;
      break;
    case FAULT_KIND_FREEZE:
      if (!process->alive() || process->frozen()) return;
      process->SetFrozen(true);
      break;
    case FAULT_KIND_CLOCK_SKEW:
      process->SetClockRate(1 + fault.factor());
      break;
    case FAULT_KIND_SLOW:
      worker->faults().slow = fault.factor();
      break;
    case FAULT_KIND_NAN:
      worker->faults().nan = true;
      break;
    case FAULT_KIND_SIGN_FLIP:
      worker->faults().sign_flip = true;
      break;
    case FAULT_KIND_SCALE:
      worker->faults().scale = fault.factor();
      break;
    case FAULT_KIND_DISK_FULL:
      cast_.root->disk().SetFull(true);
      break;
    case FAULT_KIND_DISK_ERROR:
      cast_.root->SetDiskError(true);
      break;
    default:
      on_link_[target.region].insert({number, {&fault, up, down}});
      ReshapeLinks(target.region);
      break;
  }
  ++observed_[number];
  world_->Note(TapeEvent::kFault, NameOf(target), {static_cast<int64_t>(number), 1}, FaultKind_Name(fault.fault()));
  if (!lasts) return;
  lasting_.insert({number, target});
  if (fault.has_for_ns()) {
    world_->queue.After(absl::Nanoseconds(fault.for_ns()), [this, number, target] { End(number, target); });
  }
}

void Timeline::End(size_t number, const FaultTarget& target) {
  const auto range = lasting_.equal_range(number);
  const auto found = std::find_if(range.first, range.second, [&](const auto& entry) {
    return entry.second.region == target.region && entry.second.worker == target.worker;
  });
  if (found == range.second) return;
  lasting_.erase(found);
  const Fault& fault = scenario_.timeline(static_cast<int>(number));
  SimWorker* worker = target.root() || target.worker < 0 ? nullptr : cast_.workers[target.region][target.worker];
  switch (fault.fault()) {
    case FAULT_KIND_FREEZE:
      ProcessOf(target)->SetFrozen(false);
      break;
    case FAULT_KIND_CLOCK_SKEW:
      ProcessOf(target)->SetClockRate(1);
      break;
    case FAULT_KIND_SLOW:
      worker->faults().slow = 1;
      break;
    case FAULT_KIND_NAN:
      worker->faults().nan = false;
      break;
    case FAULT_KIND_SIGN_FLIP:
      worker->faults().sign_flip = false;
      break;
    case FAULT_KIND_SCALE:
      worker->faults().scale = 1;
      break;
    case FAULT_KIND_DISK_FULL:
      cast_.root->disk().SetFull(false);
      break;
    case FAULT_KIND_DISK_ERROR:
      cast_.root->SetDiskError(false);
      break;
    default: {
      auto& active = on_link_[target.region];
      active.erase(active.find(number));
      ReshapeLinks(target.region);
      break;
    }
  }
  world_->Note(TapeEvent::kFault, NameOf(target), {static_cast<int64_t>(number), 0}, FaultKind_Name(fault.fault()));
}

void Timeline::ReshapeLinks(int region) {
  for (const bool is_up : {true, false}) {
    LinkShape shape = (is_up ? up_ : down_)[region];
    // Of several of a kind the strongest counts, not all of them one upon the other.
    double bandwidth = 1, latency = 1;
    bool cut = false;
    for (const auto& [number, active] : on_link_[region]) {
      const Fault& fault = *active.fault;
      if (!(is_up ? active.up : active.down)) continue;
      if (fault.fault() == FAULT_KIND_CUT) cut = true;
      if (fault.fault() == FAULT_KIND_BANDWIDTH) bandwidth = std::min(bandwidth, fault.factor());
      if (fault.fault() == FAULT_KIND_LATENCY) latency = std::max(latency, fault.factor());
      if (fault.fault() == FAULT_KIND_LOSS) shape.loss = std::max(shape.loss, fault.probability());
    }
    shape.bandwidth_bits_per_s *= bandwidth;
    shape.delay *= latency;
    SimLink& link = is_up ? world_->network.up(region) : world_->network.down(region);
    link.SetShape(shape);
    link.SetCut(cut);
  }
  for (SimLink* link : {&world_->network.up(region), &world_->network.down(region)}) {
    link->SetRoundTrip(world_->network.RoundTrip(region, -1));
  }
  SimNetwork::Faults& faults = world_->network.faults(region);
  faults = SimNetwork::Faults();
  for (const auto& [number, active] : on_link_[region]) {
    const Fault& fault = *active.fault;
    if (fault.fault() == FAULT_KIND_DUPLICATE) faults.duplicate = fault.probability();
    if (fault.fault() == FAULT_KIND_REORDER) faults.reorder = fault.probability();
    if (fault.fault() == FAULT_KIND_CORRUPT) faults.corrupt = fault.probability();
  }
}

void Timeline::Heal() {
  healed_ = true;
  while (!lasting_.empty()) {
    const auto [number, target] = *lasting_.begin();
    End(number, target);
  }
}

SimCore DrawCore(const Scenario& scenario, Random* random) {
  SimCore core;
  const auto certain_region = static_cast<int>(random->Below(static_cast<uint64_t>(scenario.regions_size())));
  for (int r = 0; r < scenario.regions_size(); ++r) {
    core.regions.push_back(random->Below(2) == 0 || r == certain_region);
    std::vector<bool>& workers = core.workers.emplace_back();
    const int count = scenario.regions(r).workers();
    const auto certain_worker = static_cast<int>(random->Below(static_cast<uint64_t>(count)));
    for (int w = 0; w < count; ++w) {
      workers.push_back(core.regions.back() && (random->Below(2) == 0 || w == certain_worker));
    }
  }
  return core;
}

std::set<const SimProcess*> Timeline::LeaveOut(const SimCore& core, Random* random) {
  std::set<const SimProcess*> dead;
  const auto leave = [&](SimProcess* process, bool freeze) {
    world_->Note(TapeEvent::kFault, process->name(), {}, freeze ? "left frozen" : "left dead");
    if (freeze) {
      process->SetFrozen(true);
    } else {
      dead.insert(process);
      process->Kill();
    }
  };
  for (size_t r = 0; r < cast_.aggregators.size(); ++r) {
    const bool cut = !core.regions[r] && random->Below(2) == 0;
    if (cut) {
      world_->Note(TapeEvent::kFault, cast_.aggregators[r]->name(), {}, "left cut off");
      world_->network.up(static_cast<int>(r)).SetCut(true);
      world_->network.down(static_cast<int>(r)).SetCut(true);
      continue;
    }
    if (!core.regions[r]) leave(cast_.aggregators[r], /*freeze=*/false);
    for (size_t w = 0; w < cast_.workers[r].size(); ++w) {
      if (!core.workers[r][w]) leave(cast_.workers[r][w], core.regions[r] && random->Below(3) == 0);
    }
  }
  return dead;
}

std::vector<int64_t> Timeline::Observed() const {
  std::vector<int64_t> observed = observed_;
  for (int i = 0; i < scenario_.timeline_size(); ++i) {
    int64_t& count = observed[static_cast<size_t>(i)];
    int64_t came_to_pass = count;
    switch (scenario_.timeline(i).fault()) {
      case FAULT_KIND_DUPLICATE:
        came_to_pass = world_->network.duplicated();
        break;
      case FAULT_KIND_REORDER:
        came_to_pass = world_->network.reordered();
        break;
      case FAULT_KIND_CORRUPT:
        came_to_pass = world_->network.corrupted();
        break;
      case FAULT_KIND_DISK_FULL:
        came_to_pass = cast_.root->disk().failures(FaultFileSystem::kWrite);
        break;
      case FAULT_KIND_DISK_ERROR:
        came_to_pass = cast_.root->disk().failures(FaultFileSystem::kSync);
        break;
      case FAULT_KIND_NAN:
      case FAULT_KIND_SIGN_FLIP:
      case FAULT_KIND_SCALE:
        came_to_pass = 0;
        for (const FaultTarget& target : targets_[static_cast<size_t>(i)]) {
          came_to_pass += cast_.workers[target.region][target.worker]->faults().damaged;
        }
        break;
      default:
        break;
    }
    if (count > 0) count = came_to_pass;
  }
  return observed;
}

}  // namespace wukong
