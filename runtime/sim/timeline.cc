#include "runtime/sim/timeline.h"

#include <algorithm>
#include <utility>

namespace wukong {

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
  SimProcess* process = ProcessOf(target);
  SimWorker* worker = target.root() || target.worker < 0 ? nullptr : cast_.workers[target.region][target.worker];
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
      links_[target.region].Begin(number, fault);
      ReshapeLinks(target.region);
      break;
  }
  ++observed_[number];
  world_->Note(TapeEvent::kFault, NameOf(target), {static_cast<int64_t>(number), 1}, FaultKind_Name(fault.fault()));
  if (!lasts) return;
  lasting_.insert({number, target});
}

void Timeline::End(size_t number, const FaultTarget& target) {
  const auto range = lasting_.equal_range(number);
  const auto found = std::find_if(range.first, range.second, [&](const auto& entry) { return entry.second == target; });
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
    default:
      links_[target.region].End(number);
      ReshapeLinks(target.region);
      break;
  }
  world_->Note(TapeEvent::kFault, NameOf(target), {static_cast<int64_t>(number), 0}, FaultKind_Name(fault.fault()));
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
    const auto [number, target] = *lasting_.begin();
    End(number, target);
  }
}

std::set<const SimProcess*> Timeline::LeaveOut(const std::vector<LeftOut>& left_out) {
  std::set<const SimProcess*> dead;
  for (const LeftOut& left : left_out) {
    SimProcess* process = ProcessOf(left.target);
    world_->Note(TapeEvent::kFault, process->name(), {}, "left " + HowName(left.how));
    switch (left.how) {
      case LeftOut::How::kDead:
        dead.insert(process);
        process->Kill();
        break;
      case LeftOut::How::kFrozen:
        process->SetFrozen(true);
        break;
      case LeftOut::How::kCutOff:
        world_->network.up(left.target.region).SetCut(true);
        world_->network.down(left.target.region).SetCut(true);
        break;
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
        for (const FaultTarget& target : schedule_.targets(static_cast<size_t>(i))) {
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
