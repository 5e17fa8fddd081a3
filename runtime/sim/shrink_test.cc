// Shrinking, with a predicate from outside in place of a simulation.
#include "runtime/sim/shrink.h"

#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "runtime/base/clock.h"
#include "runtime/base/random.h"

namespace wukong {
namespace {

Scenario TwoRegions() {
  Scenario scenario;
  for (const char* name : {"a", "b"}) {
    Region* region = scenario.add_regions();
    region->set_name(name);
    region->set_workers(3);
  }
  return scenario;
}

Fault* AddFault(Scenario* scenario, FaultKind kind, int64_t at_ns, const std::string& target) {
  Fault* fault = scenario->add_timeline();
  fault->set_fault(kind);
  fault->set_at_ns(at_ns);
  if (!target.empty()) fault->add_target(target);
  return fault;
}

ShrinkResult Shrink(const Scenario& scenario, std::function<bool(const Scenario&)> fails, int tries_max = 1000) {
  ShrinkOptions options;
  options.fails = std::move(fails);
  options.tries_max = tries_max;
  return ShrinkScenario(scenario, options);
}

// The times of the faults, in seconds.
std::set<int64_t> Times(const Scenario& scenario) {
  std::set<int64_t> times;
  for (const Fault& fault : scenario.timeline()) times.insert(fault.at_ns() / kSecond);
  return times;
}

TEST(ShrinkTest, FindsExactlyTheFaultsThatAreNeededTogether) {
  for (uint64_t run = 0; run < 100; ++run) {
    SCOPED_TRACE(absl::StrCat("run ", run));
    Random random(DeriveSeed(1, "shrink", run));
    Scenario scenario = TwoRegions();
    const auto size = static_cast<int64_t>(1 + random.Below(60));
    std::set<int64_t> needed;
    for (int64_t i = 0; i < size; ++i) AddFault(&scenario, FAULT_KIND_KILL, i * kSecond, "a/worker-0");
    for (uint64_t i = 0; i < 1 + random.Below(4); ++i) {
      needed.insert(static_cast<int64_t>(random.Below(static_cast<uint64_t>(size))));
    }
    const ShrinkResult result = Shrink(scenario, [&](const Scenario& candidate) {
      const std::set<int64_t> times = Times(candidate);
      return std::includes(times.begin(), times.end(), needed.begin(), needed.end());
    });
    EXPECT_EQ(Times(result.scenario), needed);
    EXPECT_FALSE(result.exhausted);
  }
}

TEST(ShrinkTest, NeedsFewTriesWhereOneFaultOfManyIsToBlame) {
  Scenario scenario = TwoRegions();
  for (int64_t i = 0; i < 1000; ++i) AddFault(&scenario, FAULT_KIND_KILL, i * kSecond, "a/worker-0");
  const ShrinkResult result =
      Shrink(scenario, [](const Scenario& candidate) { return Times(candidate).count(617) > 0; });
  EXPECT_EQ(Times(result.scenario), std::set<int64_t>{617});
  EXPECT_LE(result.tries, 30) << "halving 1,000 takes ten rounds";
}

TEST(ShrinkTest, TakesAllFaultsAwayWhereNoneIsNeeded) {
  Scenario scenario = TwoRegions();
  AddFault(&scenario, FAULT_KIND_KILL, kSecond, "a");
  EXPECT_EQ(Shrink(scenario, [](const Scenario&) { return true; }).scenario.timeline_size(), 0);
}

TEST(ShrinkTest, LeavesTheTargetsThatMatter) {
  Scenario scenario = TwoRegions();
  AddFault(&scenario, FAULT_KIND_KILL, kSecond, "*/*");
  const ShrinkResult result = Shrink(scenario, [](const Scenario& candidate) {
    std::set<std::string> targets;
    for (const Fault& fault : candidate.timeline()) {
      for (const std::string& target : fault.target()) {
        if (target == "*/*") return true;
        targets.insert(target);
      }
    }
    return targets.count("a/worker-2") > 0 && targets.count("b/worker-0") > 0;
  });
  ASSERT_EQ(result.scenario.timeline_size(), 1);
  const auto& targets = result.scenario.timeline(0).target();
  EXPECT_EQ(std::vector<std::string>(targets.begin(), targets.end()),
            (std::vector<std::string>{"a/worker-2", "b/worker-0"}));
}

TEST(ShrinkTest, MakesFaultsShorterOneSidedAndTheirTimesRound) {
  Scenario scenario = TwoRegions();
  Fault* fault = AddFault(&scenario, FAULT_KIND_CUT, 12'345'678'912, "a");
  fault->set_for_ns(60 * kSecond);
  const ShrinkResult result = Shrink(scenario, [](const Scenario& candidate) {
    return candidate.timeline_size() == 1 && candidate.timeline(0).for_ns() >= 5 * kSecond &&
           candidate.timeline(0).direction() != DIRECTION_UP && candidate.timeline(0).at_ns() >= 12'300'000'000;
  });
  ASSERT_EQ(result.scenario.timeline_size(), 1);
  const Fault& left = result.scenario.timeline(0);
  EXPECT_GE(left.for_ns(), 5 * kSecond);
  EXPECT_LT(left.for_ns(), 10 * kSecond);
  EXPECT_EQ(left.direction(), DIRECTION_DOWN);
  EXPECT_EQ(left.at_ns(), 12'300'000'000);
}

TEST(ShrinkTest, StopsWhenTheTriesAreUsedUpWithWhatFailsByThen) {
  Scenario scenario = TwoRegions();
  for (int64_t i = 0; i < 64; ++i) AddFault(&scenario, FAULT_KIND_KILL, i * kSecond, "a/worker-0");
  const auto fails = [](const Scenario& candidate) {
    const std::set<int64_t> times = Times(candidate);
    return times.count(3) > 0 && times.count(60) > 0;
  };
  int calls = 0;
  const ShrinkResult result = Shrink(
      scenario,
      [&](const Scenario& candidate) {
        ++calls;
        return fails(candidate);
      },
      10);
  EXPECT_TRUE(result.exhausted);
  EXPECT_EQ(result.tries, 10);
  EXPECT_EQ(calls, 10);
  EXPECT_TRUE(fails(result.scenario));
}

TEST(ShrinkTest, RandomFaultsBecomeTheTimesAtWhichTheyHappened) {
  Scenario scenario = TwoRegions();
  AddFault(&scenario, FAULT_KIND_CUT, 5 * kSecond, "a")->set_for_ns(kSecond);
  Fault* random = scenario.add_timeline();
  random->set_fault(FAULT_KIND_FREEZE);
  random->add_target("*/*");
  random->set_every_ns(kSecond);
  random->set_until_ns(20 * kSecond);
  random->set_for_ns(kSecond);
  std::vector<FaultStrike> strikes;
  const auto see = [&](double seconds, int fault, int64_t begins, const std::string& who) {
    CollectStrike({absl::Seconds(seconds), TapeEvent::kFault, who, {fault, begins}, ""}, &strikes);
  };
  see(5, 0, 1, "a");
  see(7.5, 1, 1, "b/worker-1");
  see(8.5, 1, 0, "b/worker-1");
  see(9, 1, 1, "a/worker-0");
  CollectStrike({absl::Seconds(1), TapeEvent::kDied, "a", {1, 1}, ""}, &strikes);
  const Scenario with_times = WithFaultTimes(scenario, strikes);
  ASSERT_EQ(with_times.timeline_size(), 3);
  EXPECT_EQ(with_times.timeline(0).SerializeAsString(), scenario.timeline(0).SerializeAsString());
  const Fault& first = with_times.timeline(1);
  EXPECT_EQ(first.fault(), FAULT_KIND_FREEZE);
  EXPECT_EQ(first.at_ns(), 7'500'000'000);
  EXPECT_EQ(first.for_ns(), kSecond);
  EXPECT_FALSE(first.has_every_ns());
  EXPECT_FALSE(first.has_until_ns());
  ASSERT_EQ(first.target_size(), 1);
  EXPECT_EQ(first.target(0), "b/worker-1");
  EXPECT_EQ(with_times.timeline(2).target(0), "a/worker-0");
}

}  // namespace
}  // namespace wukong
