#include "runtime/sim/shrink.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/clock.h"
#include "runtime/fault/fault_schedule.h"
#include "runtime/sim/timeline.h"

namespace wukong {
namespace {

// Some of `items`, of which `fails` holds, and does not when any one of them is taken away. It holds of all of them.
template <typename Item>
std::vector<Item> Ddmin(std::vector<Item> items, const std::function<bool(const std::vector<Item>&)>& fails) {
  size_t parts = 2;
  while (items.size() >= 2) {
    bool smaller = false;
    const auto cut = [&](size_t part) {
      return items.begin() + static_cast<std::ptrdiff_t>(items.size() * part / parts);
    };
    // One part alone; after the first round every part alone was tried as half of a part before.
    for (size_t part = 0; part < parts && !smaller; ++part) {
      const std::vector<Item> alone(cut(part), cut(part + 1));
      if (!fails(alone)) continue;
      items = alone;
      parts = 2;
      smaller = true;
    }
    // Everything but one part. With two parts that is the same.
    for (size_t part = 0; part < parts && parts > 2 && !smaller; ++part) {
      std::vector<Item> others(items.begin(), cut(part));
      others.insert(others.end(), cut(part + 1), items.end());
      if (!fails(others)) continue;
      items = std::move(others);
      parts = std::max<size_t>(2, parts - 1);
      smaller = true;
    }
    if (smaller) continue;
    if (parts == items.size()) break;
    parts = std::min(items.size(), 2 * parts);
  }
  return items;
}

std::string Words(const Fault& fault) {
  std::string text = FaultName(fault.fault());
  if (fault.target_size() == 1) absl::StrAppend(&text, " of ", fault.target(0));
  if (fault.target_size() > 1) absl::StrAppend(&text, " of ", fault.target_size(), " targets");
  if (fault.has_at_ns()) absl::StrAppend(&text, " at ", absl::FormatDuration(absl::Nanoseconds(fault.at_ns())));
  return text;
}

class Shrinker {
 public:
  Shrinker(const Scenario& scenario, const ShrinkOptions& options) : options_(options) { result_.scenario = scenario; }

  ShrinkResult Go() {
    bool changed = true;
    while (changed && !result_.exhausted) {
      changed = FewerFaults();
      for (int i = 0; i < result_.scenario.timeline_size(); ++i) {
        changed = FewerTargets(i) || changed;
        changed = SimplerFault(i) || changed;
      }
    }
    return std::move(result_);
  }

 private:
  // Whether this one fails as well; then it takes the place of the scenario.
  bool Try(const Scenario& candidate, const std::string& what) {
    const std::string key = candidate.SerializeAsString();
    if (passing_.count(key) > 0) return false;
    if (result_.tries >= options_.tries_max) {
      result_.exhausted = true;
      return false;
    }
    ++result_.tries;
    const bool fails = options_.fails(candidate);
    if (options_.on_try) options_.on_try(what, fails);
    if (fails) {
      result_.scenario = candidate;
    } else {
      passing_.insert(key);
    }
    return fails;
  }

  bool FewerFaults() {
    std::vector<Fault> faults(result_.scenario.timeline().begin(), result_.scenario.timeline().end());
    const size_t before = faults.size();
    const std::function<bool(const std::vector<Fault>&)> fails = [this](const std::vector<Fault>& some) {
      Scenario candidate = result_.scenario;
      candidate.mutable_timeline()->Assign(some.begin(), some.end());
      return Try(candidate, absl::StrCat(some.size(), " faults"));
    };
    if (before == 0 || fails({})) return before > 0;
    return Ddmin(std::move(faults), fails).size() < before;
  }

  bool FewerTargets(int number) {
    const Fault& fault = result_.scenario.timeline(number);
    std::vector<std::string> targets;
    for (const std::string& text : fault.target()) {
      const auto resolved = ResolveTarget(result_.scenario, text);
      if (!resolved.ok()) return false;
      for (const FaultTarget& target : *resolved) targets.push_back(TargetName(result_.scenario, target));
    }
    if (targets.size() < 2) return false;
    const size_t before = targets.size();
    const std::function<bool(const std::vector<std::string>&)> fails = [&](const std::vector<std::string>& some) {
      Scenario candidate = result_.scenario;
      Fault* changed = candidate.mutable_timeline(number);
      changed->mutable_target()->Assign(some.begin(), some.end());
      return Try(candidate, Words(*changed));
    };
    return Ddmin(std::move(targets), fails).size() < before;
  }

  template <typename Change>
  bool TryFault(int number, const std::string& what, Change change) {
    Scenario candidate = result_.scenario;
    change(candidate.mutable_timeline(number));
    return Try(candidate, absl::StrCat(Words(result_.scenario.timeline(number)), ": ", what));
  }

  bool SimplerFault(int number) {
    bool changed = false;
    const auto fault = [&]() -> const Fault& { return result_.scenario.timeline(number); };
    while (fault().for_ns() >= 2 * kMillisecond) {
      // To whole milliseconds, so that a person can read it.
      const int64_t half = std::max(kMillisecond, fault().for_ns() / 2 / kMillisecond * kMillisecond);
      if (!TryFault(number, "shorter", [&](Fault* one) { one->set_for_ns(half); })) break;
      changed = true;
    }
    while (fault().until_ns() >= 2 * kMillisecond) {
      const int64_t half = fault().until_ns() / 2 / kMillisecond * kMillisecond;
      if (!TryFault(number, "only earlier", [&](Fault* one) { one->set_until_ns(half); })) break;
      changed = true;
    }
    const FaultKind kind = fault().fault();
    const bool directed =
        kind == FAULT_KIND_CUT || kind == FAULT_KIND_BANDWIDTH || kind == FAULT_KIND_LATENCY || kind == FAULT_KIND_LOSS;
    if (directed && fault().direction() != DIRECTION_UP && fault().direction() != DIRECTION_DOWN) {
      for (const Direction direction : {DIRECTION_UP, DIRECTION_DOWN}) {
        if (!TryFault(number, "one way", [&](Fault* one) { one->set_direction(direction); })) continue;
        changed = true;
        break;
      }
    }
    for (const int64_t unit : {1000 * kMillisecond, 100 * kMillisecond, 10 * kMillisecond, kMillisecond}) {
      if (!fault().has_at_ns() || fault().at_ns() % unit == 0) break;
      const int64_t rounder = fault().at_ns() / unit * unit;
      if (!TryFault(number, "at a rounder time", [&](Fault* one) { one->set_at_ns(rounder); })) continue;
      changed = true;
      break;
    }
    return changed;
  }

  const ShrinkOptions& options_;
  ShrinkResult result_;
  std::set<std::string> passing_;  // What was tried and did not fail.
};

}  // namespace

void CollectStrike(const TapeEvent& event, std::vector<FaultStrike>* strikes) {
  if (event.kind != TapeEvent::kFault || event.values[1] != 1) return;
  strikes->push_back({static_cast<int>(event.values[0]), std::string(event.who), event.time});
}

Scenario WithFaultTimes(const Scenario& scenario, const std::vector<FaultStrike>& strikes) {
  Scenario with_times = scenario;
  with_times.clear_timeline();
  for (int i = 0; i < scenario.timeline_size(); ++i) {
    const Fault& fault = scenario.timeline(i);
    if (!fault.has_every_ns()) {
      *with_times.add_timeline() = fault;
      continue;
    }
    for (const FaultStrike& strike : strikes) {
      if (strike.fault != i) continue;
      Fault* once = with_times.add_timeline();
      *once = fault;
      once->clear_every_ns();
      once->clear_until_ns();
      once->set_at_ns(absl::ToInt64Nanoseconds(strike.time));
      once->clear_target();
      // What strikes the disk names no target.
      if (fault.target_size() > 0) once->add_target(strike.target);
    }
  }
  return with_times;
}

ShrinkResult ShrinkScenario(const Scenario& scenario, const ShrinkOptions& options) {
  return Shrinker(scenario, options).Go();
}

}  // namespace wukong
