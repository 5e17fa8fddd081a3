#include "runtime/fault/fault_schedule.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace wukong {
namespace {

using ::testing::HasSubstr;

// Two regions, a with two workers and b with one.
Scenario TwoRegions() {
  Scenario scenario;
  scenario.add_regions()->set_name("a");
  scenario.mutable_regions(0)->set_workers(2);
  scenario.add_regions()->set_name("b");
  scenario.mutable_regions(1)->set_workers(1);
  return scenario;
}

Fault* Add(Scenario* scenario, FaultKind kind, const std::string& target) {
  Fault* fault = scenario->add_timeline();
  fault->set_fault(kind);
  fault->add_target(target);
  return fault;
}

int64_t Nanos(int seconds) { return absl::ToInt64Nanoseconds(absl::Seconds(seconds)); }

// "12.0 +1 a/worker-0": the time, begins or ends, the fault's number, the target.
std::vector<std::string> All(const Scenario& scenario, uint64_t seed, absl::Duration until) {
  FaultSchedule schedule(scenario, seed);
  std::vector<std::string> lines;
  while (schedule.next() <= until) {
    const absl::Duration now = schedule.next();
    for (const FaultSchedule::Act& act : schedule.Take(now)) {
      lines.push_back(absl::FormatDuration(now) + (act.begins ? " +" : " -") + std::to_string(act.number) + " " +
                      TargetName(scenario, act.target));
    }
  }
  return lines;
}

TEST(FaultScheduleTest, AtATimeHappensToAllTargetsAndEnds) {
  Scenario scenario = TwoRegions();
  Fault* cut = Add(&scenario, FAULT_KIND_CUT, "b");
  cut->set_at_ns(Nanos(5));
  cut->set_for_ns(Nanos(3));
  Add(&scenario, FAULT_KIND_KILL, "a/**")->set_at_ns(Nanos(6));
  EXPECT_THAT(All(scenario, 1, absl::Hours(1)),
              testing::ElementsAre("5s +0 b", "6s +1 a", "6s +1 a/worker-0", "6s +1 a/worker-1", "8s -0 b"));
}

TEST(FaultScheduleTest, RandomTimesTakeOneTargetEachAndStop) {
  Scenario scenario = TwoRegions();
  Fault* kill = Add(&scenario, FAULT_KIND_KILL, "*/*");
  kill->set_every_ns(Nanos(10));
  kill->set_until_ns(Nanos(10'000));
  const std::vector<std::string> lines = All(scenario, 7, absl::Hours(24));
  EXPECT_NEAR(static_cast<double>(lines.size()), 1000, 150) << "on average every 10 s";
  for (const char* name : {"a/worker-0", "a/worker-1", "b/worker-0"}) {
    EXPECT_GT(
        std::count_if(lines.begin(), lines.end(), [&](const auto& line) { return absl::StrContains(line, name); }),
        200);
  }
  EXPECT_EQ(lines, All(scenario, 7, absl::Hours(24)));
  EXPECT_NE(lines, All(scenario, 8, absl::Hours(24)));
}

TEST(FaultScheduleTest, OneMoreFaultLeavesTheOthersAsTheyWere) {
  Scenario scenario = TwoRegions();
  Add(&scenario, FAULT_KIND_KILL, "*/*")->set_every_ns(Nanos(10));
  const std::vector<std::string> alone = All(scenario, 3, absl::Minutes(5));
  Add(&scenario, FAULT_KIND_KILL, "a")->set_every_ns(Nanos(10));
  std::vector<std::string> first;
  for (const std::string& line : All(scenario, 3, absl::Minutes(5))) {
    if (absl::StrContains(line, " +0 ")) first.push_back(line);
  }
  EXPECT_FALSE(alone.empty());
  EXPECT_EQ(first, alone);
}

TEST(FaultScheduleTest, WhatWaitsForAnEventHappensWhenItComes) {
  Scenario scenario = TwoRegions();
  Add(&scenario, FAULT_KIND_KILL, "root")->set_on(FAULT_PLACE_AFTER_ACK);
  FaultSchedule schedule(scenario, 1);
  EXPECT_EQ(schedule.next(), absl::InfiniteDuration());
  schedule.Trigger(0, absl::Seconds(9));
  EXPECT_EQ(schedule.next(), absl::Seconds(9));
  EXPECT_EQ(schedule.Take(absl::Seconds(9)).size(), 1u);
}

TEST(FaultScheduleTest, HealingEndsWhatLastsAndBeginsNothing) {
  Scenario scenario = TwoRegions();
  Fault* cut = Add(&scenario, FAULT_KIND_CUT, "a");
  cut->set_at_ns(Nanos(1));
  cut->set_for_ns(Nanos(100));
  Add(&scenario, FAULT_KIND_KILL, "b")->set_at_ns(Nanos(20));
  Add(&scenario, FAULT_KIND_KILL, "*/*")->set_every_ns(Nanos(5));
  FaultSchedule schedule(scenario, 1);
  (void)schedule.Take(absl::Seconds(10));
  schedule.Heal(absl::Seconds(11));
  schedule.Trigger(1, absl::Seconds(12));
  const auto acts = schedule.Take(absl::Hours(1));
  ASSERT_EQ(acts.size(), 1u);
  EXPECT_FALSE(acts[0].begins);
  EXPECT_EQ(acts[0].number, 0u);
  EXPECT_EQ(schedule.next(), absl::InfiniteDuration());
}

TEST(FaultScheduleTest, NamesThatNameNothing) {
  const Scenario scenario = TwoRegions();
  EXPECT_THAT(ResolveTarget(scenario, "c").status().message(), HasSubstr("there is no region c"));
  EXPECT_THAT(ResolveTarget(scenario, "a/worker-2").status().message(), HasSubstr("a has worker-0 to worker-1"));
}

}  // namespace
}  // namespace wukong
