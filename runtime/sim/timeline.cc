#include "runtime/sim/timeline.h"

#include <algorithm>
#include <utility>

#include "runtime/fault/active_faults.h"

namespace wukong {
namespace {

bool IsOfLink(FaultKind kind) {
  return kind == FAULT_KIND_CUT || kind == FAULT_KIND_BANDWIDTH || kind == FAULT_KIND_LATENCY ||
         kind == FAULT_KIND_LOSS || kind == FAULT_KIND_DUPLICATE || kind == FAULT_KIND_REORDER ||
         kind == FAULT_KIND_CORRUPT;
}

}  // namespace

Timeline::Timeline(const Scenario& scenario, uint64_t seed, SimWorld* world, const SimCast& cast)
    : scenario_(scenario),
      world_(world),
      cast_(cast),
      schedule_(scenario, seed),
      observed_(static_cast<size_t>(scenario.timeline_size())),
      links_(cast.aggregators.size()),
      fired_on_place_(static_cast<size_t>(scenario.timeline_size())) {
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
      schedule_.Trigger(number, world_->queue.elapsed());
      world_->queue.After(absl::ZeroDuration(), [this] { Act(); });
    }
  });
  Act();
}

void Timeline::Act() {
  const absl::Duration now = world_->queue.elapsed();
  for (const FaultSchedule::Act& act : schedule_.Take(now)) {
    act.begins ? Strike(act.number, act.target) : End(act.number, act.target);
  }
  if (planned_ <= now) planned_ = absl::InfiniteDuration();
  if (schedule_.next() >= planned_) return;
  planned_ = schedule_.next();
  world_->queue.After(planned_ - now, [this] { Act(); });
}

void Timeline::Strike(size_t number, const FaultTarget& target) {
  const Fault& fault = scenario_.timeline(static_cast<int>(number));
  const FaultKind kind = fault.fault();
  SimProcess* process = ProcessOf(target);
  const bool kills = kind == FAULT_KIND_KILL || kind == FAULT_KIND_POWER_LOSS;
  // What cannot begin has an end all the same, which must not be taken for that of a later one.
  const bool begins = process->alive() || (!kills && kind != FAULT_KIND_FREEZE);
  const std::optional<int64_t> effects = Effects(kind, target);
  if (!kills) {
    lasting_.push_back(
        {number, target, process->alive() ? std::make_optional(process->life()) : std::nullopt, effects.value_or(0)});
  }
  if (!begins) return;
  if (kills) {
    process->Kill();
    if (kind == FAULT_KIND_POWER_LOSS) cast_.root->disk().Crash();
  } else {
    if (IsOfLink(kind)) links_[target.region].Begin(number, fault);
    Carry(kind, target);
  }
  if (!effects.has_value()) ++observed_[number];
  world_->Note(TapeEvent::kFault, NameOf(target), {static_cast<int64_t>(number), 1}, FaultKind_Name(kind));
}

void Timeline::End(size_t number, const FaultTarget& target) {
  // Those of one number last equally long.
  const auto found = std::find_if(lasting_.begin(), lasting_.end(), [&](const Lasting& lasting) {
    return lasting.number == number && lasting.target == target;
  });
  if (found == lasting_.end()) return;
  const Lasting ended = *found;
  lasting_.erase(found);
  const FaultKind kind = scenario_.timeline(static_cast<int>(number)).fault();
  if (kind == FAULT_KIND_FREEZE && !ended.life.has_value()) return;
  if (const auto effects = Effects(kind, target)) observed_[number] += *effects - ended.effects;
  if (IsOfLink(kind)) links_[target.region].End(number);
  Carry(kind, target);
  world_->Note(TapeEvent::kFault, NameOf(target), {static_cast<int64_t>(number), 0}, FaultKind_Name(kind));
}

void Timeline::Carry(FaultKind kind, const FaultTarget& target) {
  SimProcess* process = ProcessOf(target);
  const auto lasts = [&](const Lasting& lasting) {
    return lasting.target == target && scenario_.timeline(static_cast<int>(lasting.number)).fault() == kind;
  };
  switch (kind) {
    case FAULT_KIND_FREEZE:
      // It is of a process: who was killed and started again is another one.
      process->SetFrozen(std::any_of(lasting_.begin(), lasting_.end(), [&](const Lasting& lasting) {
        return lasts(lasting) && lasting.life == process->life();
      }));
      break;
    case FAULT_KIND_CLOCK_SKEW: {
      // Of several the strongest, so that the bound on what a clock may be off by holds for all of them together.
      double skew = 0;
      for (const Lasting& lasting : lasting_) {
        if (lasts(lasting)) skew = std::max(skew, scenario_.timeline(static_cast<int>(lasting.number)).factor());
      }
      process->SetClockRate(1 + skew);
      break;
    }
    case FAULT_KIND_SLOW:
    case FAULT_KIND_NAN:
    case FAULT_KIND_SIGN_FLIP:
    case FAULT_KIND_SCALE:
      cast_.workers[target.region][target.worker]->SetDamage(DamageOf(target));
      break;
    case FAULT_KIND_DISK_FULL:
      cast_.root->disk().SetFull(std::any_of(lasting_.begin(), lasting_.end(), lasts));
      break;
    case FAULT_KIND_DISK_ERROR:
      cast_.root->SetDiskError(std::any_of(lasting_.begin(), lasting_.end(), lasts));
      break;
    default:
      ReshapeLinks(target.region);
      break;
  }
}

Damage Timeline::DamageOf(const FaultTarget& target) const {
  // As orders that a real worker heard, and that end when they are left out here.
  ActiveFaults faults;
  int64_t orders = 0;
  for (const Lasting& lasting : lasting_) {
    const Fault& fault = scenario_.timeline(static_cast<int>(lasting.number));
    if (!(lasting.target == target)) continue;
    FaultOrder order;
    order.set_number(++orders);
    order.set_fault(fault.fault());
    order.set_factor(fault.factor());
    faults.Take(order, world_->queue.Now());
  }
  return faults.At(world_->queue.Now());
}

void Timeline::ReshapeLinks(int region) {
  const LinkFaults& link = links_[region];
  for (const LinkDirection direction : {LinkDirection::kUp, LinkDirection::kDown}) {
    const bool up = direction == LinkDirection::kUp;
    SimLink& simulated = up ? world_->network.up(region) : world_->network.down(region);
    simulated.SetShape(link.Shape((up ? up_ : down_)[region], direction));
    simulated.SetCut(link.Cut(direction));
  }
  for (SimLink* simulated : {&world_->network.up(region), &world_->network.down(region)}) {
    simulated->SetRoundTrip(world_->network.RoundTrip(region, -1));
  }
  const auto probability = [&](FaultKind kind) {
    const Fault* fault = link.Find(kind);
    return fault == nullptr ? 0.0 : fault->probability();
  };
  SimNetwork::Faults& faults = world_->network.faults(region);
  faults = SimNetwork::Faults();
  faults.duplicate = probability(FAULT_KIND_DUPLICATE);
  faults.reorder = probability(FAULT_KIND_REORDER);
  faults.corrupt = probability(FAULT_KIND_CORRUPT);
}

void Timeline::Heal() {
  schedule_.Heal(world_->queue.elapsed());
  while (!lasting_.empty()) {
    const Lasting first = lasting_.front();
    End(first.number, first.target);
  }
}

Timeline::LeftBehind Timeline::LeaveOut(const std::vector<LeftOut>& left_out) {
  LeftBehind left_behind;
  for (const LeftOut& left : left_out) {
    SimProcess* process = ProcessOf(left.target);
    world_->Note(TapeEvent::kFault, process->name(), {}, "left " + HowName(left.how));
    switch (left.how) {
      case LeftOut::How::kDead:
        left_behind.dead.insert(process);
        process->Kill();
        break;
      case LeftOut::How::kFrozen:
        left_behind.frozen.insert(process);
        process->SetFrozen(true);
        break;
      case LeftOut::How::kCutOff:
        world_->network.up(left.target.region).SetCut(true);
        world_->network.down(left.target.region).SetCut(true);
        break;
    }
  }
  return left_behind;
}

std::optional<int64_t> Timeline::Effects(FaultKind kind, const FaultTarget& target) const {
  switch (kind) {
    case FAULT_KIND_DUPLICATE:
      return world_->network.happened(target.region).duplicated;
    case FAULT_KIND_REORDER:
      return world_->network.happened(target.region).reordered;
    case FAULT_KIND_CORRUPT:
      return world_->network.happened(target.region).corrupted;
    case FAULT_KIND_DISK_FULL:
      return cast_.root->disk().failures(FaultFileSystem::kWrite);
    case FAULT_KIND_DISK_ERROR:
      return cast_.root->disk().failures(FaultFileSystem::kSync);
    case FAULT_KIND_NAN:
      return cast_.workers[target.region][target.worker]->damaged().nan;
    case FAULT_KIND_SIGN_FLIP:
    case FAULT_KIND_SCALE:
      return cast_.workers[target.region][target.worker]->damaged().scaled;
    default:
      return std::nullopt;
  }
}

std::vector<int64_t> Timeline::Observed() const {
  std::vector<int64_t> observed = observed_;
  for (const Lasting& lasting : lasting_) {
    const FaultKind kind = scenario_.timeline(static_cast<int>(lasting.number)).fault();
    if (const auto effects = Effects(kind, lasting.target)) observed[lasting.number] += *effects - lasting.effects;
  }
  return observed;
}

}  // namespace wukong
