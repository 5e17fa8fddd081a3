// Whole systems under faults, in virtual time.
#include "runtime/sim/simulation.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "proto/wire.pb.h"
#include "runtime/base/clock.h"
#include "runtime/sim/checkers.h"
#include "runtime/sim/scenario_problems.h"
#include "runtime/sim/test_scenario.h"
#include "runtime/sim/timeline.h"

namespace wukong {
namespace {

Scenario MakeScenario() {
  Scenario scenario;
  scenario.set_name("test");
  Workload* workload = scenario.mutable_workload();
  workload->set_fidelity(FIDELITY_COUNTER);
  workload->set_samples(20000);
  workload->set_step_ns(100'000'000);
  workload->set_step_jitter(0.05);
  workload->set_micro_batch(4);
  workload->set_range_steps(4);
  workload->set_parameters(600);
  workload->set_learning_rate(0.05);
  workload->set_noise(1);
  for (const char* name : {"beijing", "shenzhen", "guizhou"}) {
    Region* region = scenario.add_regions();
    region->set_name(name);
    region->set_workers(2);
  }
  scenario.mutable_wan()->set_rtt_ns(150'000'000);
  scenario.mutable_wan()->set_jitter_ns(10'000'000);
  scenario.mutable_wan()->set_bandwidth_bps(100'000'000);
  scenario.mutable_strategy()->set_preset(PRESET_ASYNC);
  SetTestDefaults(&scenario);
  return scenario;
}

std::string Failures(const SimulationResult& result) {
  std::string text;
  for (const auto& [name, reason] : result.verdicts) {
    if (!reason.empty()) absl::StrAppend(&text, name, ": ", reason, "\n");
  }
  return text;
}

TEST(SimulationTest, WithoutFaultsEverySampleCountsOnce) {
  const auto result = RunSimulation(MakeScenario(), 1, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->passed()) << Failures(*result);
  EXPECT_EQ(result->samples_committed, 20000);
  EXPECT_EQ(result->samples_trained, 20000) << "nothing is done twice";
  EXPECT_GT(result->compute_share, 0.9);
  EXPECT_GT(result->versions, 100);
}

Fault* Add(Scenario* scenario, FaultKind kind, const std::string& target) {
  Fault* fault = scenario->add_timeline();
  fault->set_fault(kind);
  if (!target.empty()) fault->add_target(target);
  fault->set_version(1);
  return fault;
}

struct FaultCase {
  const char* name;
  void (*faults)(Scenario*);
};

class SimulationFaultTest : public testing::TestWithParam<FaultCase> {};

TEST_P(SimulationFaultTest, NothingIsLostAndNothingCountsTwice) {
  Scenario scenario = MakeScenario();
  GetParam().faults(&scenario);
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    const auto result = RunSimulation(scenario, seed, nullptr);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(result->passed()) << "seed " << seed << ": " << Failures(*result);
    EXPECT_EQ(result->samples_committed, 20000);
    if (HasFailure()) break;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Faults, SimulationFaultTest,
    testing::Values(
        FaultCase{"workers_die", [](Scenario* s) { Add(s, FAULT_KIND_KILL, "*/*")->set_every_ns(5 * kSecond); }},
        FaultCase{"aggregators_die",
                  [](Scenario* s) {
                    Fault* fault = Add(s, FAULT_KIND_KILL, "beijing");
                    fault->add_target("shenzhen");
                    fault->set_every_ns(10 * kSecond);
                  }},
        FaultCase{"the_root_dies", [](Scenario* s) { Add(s, FAULT_KIND_KILL, "root")->set_every_ns(10 * kSecond); }},
        FaultCase{"power_is_lost", [](Scenario* s) { Add(s, FAULT_KIND_POWER_LOSS, "")->set_every_ns(10 * kSecond); }},
        FaultCase{"the_root_dies_before_it_acknowledges",
                  [](Scenario* s) {
                    for (const int version : {3, 10, 50}) {
                      Fault* fault = Add(s, FAULT_KIND_POWER_LOSS, "");
                      fault->set_on(FAULT_PLACE_AFTER_APPEND_BEFORE_ACK);
                      fault->set_version(version);
                    }
                  }},
        FaultCase{"everybody_dies",
                  [](Scenario* s) {
                    Add(s, FAULT_KIND_KILL, "*/**")->set_every_ns(3 * kSecond);
                    Add(s, FAULT_KIND_POWER_LOSS, "")->set_every_ns(17 * kSecond);
                  }},
        FaultCase{"workers_freeze",
                  [](Scenario* s) {
                    Fault* fault = Add(s, FAULT_KIND_FREEZE, "*/**");
                    fault->set_every_ns(10 * kSecond);
                    fault->set_for_ns(13 * kSecond);
                  }},
        FaultCase{"the_root_freezes",
                  [](Scenario* s) {
                    Fault* fault = Add(s, FAULT_KIND_FREEZE, "root");
                    fault->set_every_ns(20 * kSecond);
                    fault->set_for_ns(15 * kSecond);
                  }},
        FaultCase{"a_link_is_cut",
                  [](Scenario* s) {
                    Fault* fault = Add(s, FAULT_KIND_CUT, "beijing");
                    fault->set_every_ns(15 * kSecond);
                    fault->set_for_ns(20 * kSecond);
                    Fault* up = Add(s, FAULT_KIND_CUT, "guizhou");
                    up->set_direction(DIRECTION_UP);
                    up->set_every_ns(15 * kSecond);
                    up->set_for_ns(8 * kSecond);
                  }},
        FaultCase{"messages_come_twice_and_late",
                  [](Scenario* s) {
                    for (const FaultKind kind : {FAULT_KIND_DUPLICATE, FAULT_KIND_REORDER, FAULT_KIND_CORRUPT}) {
                      Fault* fault = Add(s, kind, "beijing");
                      fault->add_target("shenzhen");
                      fault->set_at_ns(0);
                      fault->set_probability(kind == FAULT_KIND_CORRUPT ? 0.02 : 0.3);
                    }
                    Add(s, FAULT_KIND_KILL, "*/**")->set_every_ns(10 * kSecond);
                  }},
        FaultCase{"every_message_comes_twice_and_late_and_all_wait",
                  [](Scenario* s) {
                    s->mutable_strategy()->set_preset(PRESET_DILOCO);
                    for (const FaultKind kind : {FAULT_KIND_DUPLICATE, FAULT_KIND_REORDER}) {
                      Fault* fault = Add(s, kind, "beijing");
                      fault->add_target("shenzhen");
                      fault->set_at_ns(0);
                      fault->set_probability(1);
                    }
                  }},
        FaultCase{"the_disk_is_full",
                  [](Scenario* s) {
                    for (const FaultKind kind : {FAULT_KIND_DISK_FULL, FAULT_KIND_DISK_ERROR}) {
                      Fault* fault = Add(s, kind, "");
                      fault->set_every_ns(20 * kSecond);
                      fault->set_for_ns(5 * kSecond);
                    }
                    Add(s, FAULT_KIND_POWER_LOSS, "")->set_every_ns(20 * kSecond);
                  }}),
    [](const auto& parameter) { return std::string(parameter.param.name); });

// A unary call is delivered once, whatever the network does: nobody fences himself by a copy of his own call.
TEST(SimulationTest, WhoJoinsOnceIsOneLife) {
  Scenario scenario = MakeScenario();
  scenario.mutable_workload()->set_samples(2000);
  Fault* fault = Add(&scenario, FAULT_KIND_DUPLICATE, "*");
  fault->set_at_ns(0);
  fault->set_probability(1);
  int joined = 0;
  const auto result = RunSimulation(scenario, 1, [&](const TapeEvent& event) {
    if (event.kind == TapeEvent::kCoordinator && event.text.find(R"("joined")") != std::string::npos) ++joined;
  });
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->passed()) << Failures(*result);
  EXPECT_EQ(joined, 9) << "three aggregators and six workers";
}

TEST(SimulationTest, TheSameSeedGivesTheSameBytes) {
  Scenario scenario = MakeScenario();
  Add(&scenario, FAULT_KIND_KILL, "*/**")->set_every_ns(5 * kSecond);
  const auto first = RunSimulation(scenario, 7, nullptr), again = RunSimulation(scenario, 7, nullptr);
  const auto other = RunSimulation(scenario, 8, nullptr);
  ASSERT_TRUE(first.ok() && again.ok() && other.ok());
  EXPECT_EQ(first->tape_hash, again->tape_hash);
  EXPECT_EQ(first->parameters_sha256, again->parameters_sha256);
  EXPECT_NE(first->tape_hash, other->tape_hash);
}

// One connection carries 142 kbit/s at 1 s and 1% loss: 9 s for 160 KB.
TEST(SimulationTest, SmallFragmentsGoOverAllConnections) {
  Scenario scenario = MakeScenario();
  scenario.mutable_wan()->set_rtt_ns(1'000'000'000);
  scenario.mutable_wan()->set_loss(0.01);
  scenario.mutable_workload()->set_samples(1000);
  scenario.mutable_workload()->set_parameters(40'000);
  scenario.mutable_limits()->set_fragment_bytes(8 << 10);
  const auto first_parameters = [&](int streams_max) {
    scenario.mutable_limits()->set_streams_max(streams_max);
    absl::Duration first = absl::InfiniteDuration();
    const auto result = RunSimulation(scenario, 1, [&](const TapeEvent& event) {
      if (event.kind == TapeEvent::kTook && event.who == "beijing") first = std::min(first, event.time);
    });
    EXPECT_TRUE(result.ok() && result->passed()) << result.status();
    return first;
  };
  EXPECT_GT(first_parameters(1), absl::Seconds(8));
  EXPECT_LT(first_parameters(16), absl::Seconds(5));
}

// Numbers draw from streams of their own: a fault that changes nothing for a process leaves its numbers alone.
TEST(SimulationTest, AnotherFaultDoesNotReshuffleTheRest) {
  Scenario scenario = MakeScenario();
  scenario.mutable_workload()->set_samples(4000);
  Add(&scenario, FAULT_KIND_KILL, "*/*")->set_every_ns(7 * kSecond);
  const auto times = [&] {
    std::vector<std::string> strikes;
    const auto result = RunSimulation(scenario, 3, [&](const TapeEvent& event) {
      if (event.kind != TapeEvent::kFault || event.values[0] != 0) return;
      strikes.push_back(absl::StrCat(absl::FormatDuration(event.time), " ", event.who));
    });
    EXPECT_TRUE(result.ok());
    return strikes;
  };
  const std::vector<std::string> before = times();
  Fault* late = Add(&scenario, FAULT_KIND_SLOW, "guizhou/worker-1");
  late->set_factor(3);
  late->set_at_ns(0);
  const std::vector<std::string> after = times();
  ASSERT_FALSE(before.empty());
  ASSERT_GE(after.size(), before.size());
  for (size_t i = 0; i < before.size(); ++i) EXPECT_EQ(before[i], after[i]);
}

// Two faults of a kind at once: each lasts for its own time, whichever ends first.
struct OverlapCase {
  const char* name;
  FaultKind kind;
  double factor;  // 0: the fault has none.
  const char* target;
  // What is counted from 18 s to 30 s, while only the longer fault lasts.
  TapeEvent::Kind event;
  const char* who;
  size_t least, most;
};

class OverlapTest : public testing::TestWithParam<OverlapCase> {};

TEST_P(OverlapTest, TheOneThatIsLeftGoesOn) {
  const OverlapCase& overlap = GetParam();
  for (const bool first_is_longer : {true, false}) {
    Scenario scenario = MakeScenario();
    scenario.mutable_workload()->set_step_jitter(0);
    for (const bool first : {true, false}) {
      Fault* fault = Add(&scenario, overlap.kind, overlap.target);
      fault->set_at_ns((first ? 10 : 12) * kSecond);
      fault->set_for_ns((first == first_is_longer ? 20 : 5) * kSecond);
      if (overlap.factor > 0) fault->set_factor(overlap.factor);
    }
    std::set<absl::Duration> times;  // A step may have samples of several ranges.
    const auto result = RunSimulation(scenario, 1, [&](const TapeEvent& event) {
      if (event.kind == overlap.event && event.who == overlap.who && event.time > absl::Seconds(18) &&
          event.time < absl::Seconds(30)) {
        times.insert(event.time);
      }
    });
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(result->passed()) << Failures(*result);
    EXPECT_GE(times.size(), overlap.least) << first_is_longer;
    EXPECT_LE(times.size(), overlap.most) << first_is_longer;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Faults, OverlapTest,
    testing::Values(
        OverlapCase{"slow", FAULT_KIND_SLOW, 4, "beijing/worker-0", TapeEvent::kTrained, "beijing/worker-0", 20, 31},
        OverlapCase{"freeze", FAULT_KIND_FREEZE, 0, "beijing/worker-0", TapeEvent::kTrained, "beijing/worker-0", 0, 0},
        OverlapCase{"nan", FAULT_KIND_NAN, 0, "beijing/worker-0", TapeEvent::kDamaged, "beijing/worker-0", 1, 100},
        OverlapCase{"disk_full", FAULT_KIND_DISK_FULL, 0, "", TapeEvent::kCommitted, "root", 0, 0},
        OverlapCase{"disk_error", FAULT_KIND_DISK_ERROR, 0, "", TapeEvent::kCommitted, "root", 0, 0}),
    [](const auto& parameter) { return std::string(parameter.param.name); });

TEST(SimulationTest, FaultsAtOnceMultiply) {
  Scenario scenario = MakeScenario();
  scenario.mutable_workload()->set_step_jitter(0);
  for (const double factor : {2.0, 5.0}) {
    Fault* fault = Add(&scenario, FAULT_KIND_SLOW, "beijing/worker-0");
    fault->set_at_ns(10 * kSecond);
    fault->set_factor(factor);
  }
  std::set<absl::Duration> steps;
  const auto result = RunSimulation(scenario, 1, [&](const TapeEvent& event) {
    if (event.kind != TapeEvent::kTrained || event.who != "beijing/worker-0") return;
    if (event.time > absl::Seconds(12) && event.time < absl::Seconds(22)) steps.insert(event.time);
  });
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_GE(steps.size(), 8u);
  EXPECT_LE(steps.size(), 10u) << "a second each";
}

// Another fault of the same worker, or of another link, is no evidence that this one came to pass.
TEST(SimulationTest, EachFaultMustComeToPassItself) {
  Scenario scenario = MakeScenario();
  scenario.mutable_workload()->set_fidelity(FIDELITY_TOY);
  scenario.mutable_workload()->set_samples(8000);
  const auto lasts = [](Fault* fault, int64_t from, int64_t time) {
    fault->set_at_ns(from);
    fault->set_for_ns(time);
    return fault;
  };
  lasts(Add(&scenario, FAULT_KIND_NAN, "beijing/worker-0"), 5 * kSecond, 10 * kSecond);
  lasts(Add(&scenario, FAULT_KIND_NAN, "beijing/worker-0"), 1, 1);
  lasts(Add(&scenario, FAULT_KIND_SCALE, "beijing/worker-0"), 1, 1)->set_factor(2);
  lasts(Add(&scenario, FAULT_KIND_DUPLICATE, "shenzhen"), 5 * kSecond, 10 * kSecond)->set_probability(0.5);
  lasts(Add(&scenario, FAULT_KIND_DUPLICATE, "guizhou"), 5 * kSecond, 1)->set_probability(0.5);
  const auto result = RunSimulation(scenario, 1, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->verdicts.at("fired"),
            "timeline[1], timeline[2], timeline[4] never happened: this run shows nothing");
}

TEST(SimulationTest, AFaultThatNeverHappensFailsTheRun) {
  Scenario scenario = MakeScenario();
  scenario.mutable_workload()->set_samples(1000);
  Add(&scenario, FAULT_KIND_KILL, "root")->set_at_ns(3000 * kSecond);
  const auto result = RunSimulation(scenario, 1, nullptr);
  ASSERT_TRUE(result.ok());
  EXPECT_FALSE(result->passed());
  EXPECT_EQ(result->verdicts.at("fired"), "timeline[0] never happened: this run shows nothing");
}

// Regions that send rarely: what they hold when the root comes back waits no longer.
TEST(SimulationTest, ARootThatIsBackHearsOfWhatTheRegionsHold) {
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    Scenario scenario = MakeScenario();
    scenario.mutable_strategy()->mutable_region()->set_send_every(16);
    scenario.mutable_strategy()->mutable_region()->set_flush_age_ns(300 * kSecond);
    Add(&scenario, FAULT_KIND_KILL, "root")->set_at_ns(static_cast<int64_t>(40 + seed) * kSecond);
    absl::Duration back = absl::InfiniteDuration();
    absl::Duration first = absl::InfiniteDuration();
    int64_t starts = 0;
    const auto result = RunSimulation(scenario, seed, [&](const TapeEvent& event) {
      if (event.who != "root") return;
      if (event.kind == TapeEvent::kStarted && ++starts == 2) back = event.time;
      if (event.kind == TapeEvent::kAccepted && starts == 2) first = std::min(first, event.time);
    });
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(result->passed()) << "seed " << seed << ": " << Failures(*result);
    EXPECT_LT(first - back, absl::Seconds(2)) << "seed " << seed;
  }
}

// A life that ends before it has written enough for a snapshot leaves what it wrote to the next one's account.
TEST(SimulationTest, WhoDiesAgainAndAgainReplaysNoMore) {
  Scenario scenario = MakeScenario();
  constexpr int64_t kSnapshot = 16 << 10;
  scenario.mutable_limits()->set_snapshot_bytes(kSnapshot);
  Add(&scenario, FAULT_KIND_KILL, "root")->set_every_ns(2 * kSecond);
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    const auto result = RunSimulation(scenario, seed, nullptr);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(result->passed()) << "seed " << seed << ": " << Failures(*result);
    EXPECT_GT(result->deaths, 10);
    EXPECT_GT(result->most_bytes_replayed, kSnapshot / 2) << "of a log of some 100 KiB";
    EXPECT_LT(result->most_bytes_replayed, 2 * kSnapshot);
  }
}

// Faults without an end; then a core is whole again, and the rest is gone for good.
TEST(SimulationTest, WhoIsToldOfALostParentIsNotGivenItBack) {
  // An aggregator is away for longer than its lease, and the root dies within the moment in which that was decided.
  for (const int64_t milliseconds : {15900, 16300, 16500, 17000}) {
    Scenario scenario = MakeScenario();
    scenario.mutable_workload()->set_samples(12000);
    scenario.mutable_workload()->set_step_jitter(0);
    scenario.mutable_wan()->set_rtt_ns(100'000'000);
    scenario.mutable_wan()->set_jitter_ns(0);
    scenario.mutable_limits()->set_lease_ns(6 * kSecond);
    scenario.mutable_regions()->DeleteSubrange(2, 1);
    Fault* freeze = Add(&scenario, FAULT_KIND_FREEZE, "shenzhen");
    freeze->set_at_ns(10 * kSecond);
    freeze->set_for_ns(9 * kSecond);
    Add(&scenario, FAULT_KIND_KILL, "root")->set_at_ns(milliseconds * kSecond / 1000);
    const auto result = RunSimulation(scenario, 1, nullptr);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(result->passed()) << milliseconds << ": " << Failures(*result);
    EXPECT_EQ(result->samples_committed, 12000) << milliseconds;
  }
}

TEST(SimulationTest, AHealedCoreFinishesTheRun) {
  for (const Preset preset : {PRESET_ASYNC, PRESET_DILOCO}) {
    for (uint64_t seed = 1; seed <= 4; ++seed) {
      Scenario scenario = MakeScenario();
      scenario.mutable_workload()->set_samples(8000);
      scenario.mutable_strategy()->set_preset(preset);
      Add(&scenario, FAULT_KIND_KILL, "*/**")->set_every_ns(3 * kSecond);
      Fault* slow = Add(&scenario, FAULT_KIND_SLOW, "*/*");
      slow->set_factor(5);
      slow->set_at_ns(2 * kSecond);
      Fault* cut = Add(&scenario, FAULT_KIND_CUT, "*");
      cut->set_at_ns(30 * kSecond);
      cut->set_for_ns(3000 * kSecond);
      scenario.mutable_quiesce()->set_after_ns(40 * kSecond);
      scenario.mutable_quiesce()->set_within_ns(60 * kSecond);
      const auto result = RunSimulation(scenario, seed, nullptr);
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_TRUE(result->passed()) << Preset_Name(preset) << ", seed " << seed << ": " << Failures(*result);
    }
  }
}

TEST(SimulationTest, WhoIsLeftFrozenIsFrozenWhenItComesBack) {
  int frozen_when_dead = 0;
  for (uint64_t seed = 1; seed <= 6; ++seed) {
    Scenario scenario = MakeScenario();
    Add(&scenario, FAULT_KIND_KILL, "*/*")->set_at_ns(40 * kSecond - kSecond / 2);
    scenario.mutable_quiesce()->set_after_ns(40 * kSecond);
    scenario.mutable_quiesce()->set_within_ns(60 * kSecond);
    std::set<std::string> frozen;
    const auto result = RunSimulation(scenario, seed, [&](const TapeEvent& event) {
      if (event.kind == TapeEvent::kFault && event.text == "left frozen") frozen.emplace(event.who);
      if (event.kind == TapeEvent::kStarted) frozen_when_dead += static_cast<int>(frozen.count(std::string(event.who)));
      if (event.kind == TapeEvent::kTrained) {
        EXPECT_EQ(frozen.count(std::string(event.who)), 0u) << seed << ": " << event.who;
      }
    });
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(result->passed()) << "seed " << seed << ": " << Failures(*result);
    if (HasFailure()) break;
  }
  EXPECT_GT(frozen_when_dead, 0) << "or this test shows nothing";
}

TEST(SimulationTest, ACoreThatMergesNothingBreaksI11) {
  Scenario scenario = MakeScenario();
  scenario.mutable_quiesce()->set_after_ns(40 * kSecond);
  scenario.mutable_quiesce()->set_within_ns(kSecond / 100);  // No round is as short.
  const auto result = RunSimulation(scenario, 1, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_NE(result->verdicts.at("I11").find("although faults had ended at 40s"), std::string::npos)
      << result->verdicts.at("I11");
}

TEST(SimulationTest, ARunThatEndsBeforeItIsQuietShowsNothing) {
  Scenario scenario = MakeScenario();
  scenario.mutable_workload()->set_samples(1000);
  scenario.mutable_quiesce()->set_after_ns(3000 * kSecond);
  const auto result = RunSimulation(scenario, 1, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->verdicts.at("fired"), "quiesce never happened: this run shows nothing");
}

TEST(SimulationTest, TheToyComesToItsOptimumWithEachPreset) {
  for (const Preset preset : {PRESET_ASYNC, PRESET_DILOCO, PRESET_DDP}) {
    Scenario scenario = MakeScenario();
    scenario.mutable_workload()->set_fidelity(FIDELITY_TOY);
    scenario.mutable_strategy()->set_preset(preset);
    const auto result = RunSimulation(scenario, 1, nullptr);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(result->passed()) << Failures(*result);
    EXPECT_LT(result->loss, 0.05) << Preset_Name(preset) << ": it began with 0.275";
  }
}

TEST(SimulationTest, CountersCountWithEachPreset) {
  for (int p = PRESET_ASYNC; p <= Preset_MAX; ++p) {
    const auto preset = static_cast<Preset>(p);
    Scenario scenario = MakeScenario();
    scenario.mutable_workload()->set_samples(4000);
    scenario.mutable_strategy()->set_preset(preset);
    if (preset == PRESET_STREAMING_DILOCO || preset == PRESET_EAGER_DILOCO || preset == PRESET_HALOS) {
      EXPECT_EQ(FindScenarioProblems(scenario).size(), 1u) << "it is not exact";
    }
    scenario.mutable_strategy()->set_parts(1);
    scenario.mutable_strategy()->set_pending(PENDING_FULL);
    scenario.mutable_strategy()->set_rebase(REBASE_MOVE);
    Add(&scenario, FAULT_KIND_KILL, "*/**")->set_every_ns(10 * kSecond);
    const auto result = RunSimulation(scenario, 1, nullptr);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(result->passed()) << Preset_Name(preset) << ": " << Failures(*result);
  }
}

TEST(SimulationTest, ACounterAsksForWhatIsExact) {
  Scenario scenario = MakeScenario();
  scenario.mutable_strategy()->set_preset(PRESET_STREAMING_DILOCO);
  ASSERT_EQ(FindScenarioProblems(scenario).size(), 1u);
  EXPECT_EQ(FindScenarioProblems(scenario)[0].key, "strategy.parts");
  scenario.mutable_workload()->set_fidelity(FIDELITY_TOY);
  EXPECT_TRUE(FindScenarioProblems(scenario).empty());
  for (void (*inexact)(Level*) : {+[](Level* level) { level->set_mix(0.5); },
                                  +[](Level* level) { level->set_staleness_decay(STALENESS_DECAY_POLYNOMIAL); }}) {
    scenario = MakeScenario();
    inexact(scenario.mutable_strategy()->mutable_root());
    ASSERT_EQ(FindScenarioProblems(scenario).size(), 1u);
    EXPECT_EQ(FindScenarioProblems(scenario)[0].key, "strategy.root");
  }
}

// A contribution that takes away what it should add.
TEST(SimulationTest, AContributionOfTheWrongSignIsNoticed) {
  for (const Preset preset : {PRESET_ASYNC, PRESET_DDP}) {
    Scenario scenario = MakeScenario();
    scenario.mutable_workload()->set_samples(4000);
    scenario.mutable_strategy()->set_preset(preset);
    Fault* flip = Add(&scenario, FAULT_KIND_SIGN_FLIP, "*/*");
    flip->set_at_ns(0);
    const auto result = RunSimulation(scenario, 1, nullptr);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_NE(result->verdicts.at("I10").find("samples and adds -"), std::string::npos) << result->verdicts.at("I10");
  }
}

// Of one fragment, every other contribution has none.
TEST(SimulationTest, AContributionWithoutValuesCannotBeDamaged) {
  Scenario scenario = MakeScenario();
  scenario.mutable_workload()->set_fidelity(FIDELITY_TOY);
  scenario.mutable_workload()->set_samples(4000);
  scenario.mutable_workload()->set_parameters(60);
  scenario.mutable_strategy()->set_parts(2);
  Fault* fault = Add(&scenario, FAULT_KIND_NAN, "beijing/worker-0");
  fault->set_at_ns(3 * kSecond);
  fault->set_for_ns(10 * kSecond);
  const auto result = RunSimulation(scenario, 1, nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(result->passed()) << Failures(*result);
}

TEST(SimulationTest, AMessageWithoutAPayloadCannotBeCorrupted) {
  Scenario scenario = MakeScenario();
  scenario.mutable_workload()->set_fidelity(FIDELITY_TOY);
  scenario.mutable_workload()->set_samples(4000);
  scenario.mutable_workload()->set_parameters(60);
  scenario.mutable_strategy()->set_parts(4);
  absl::Duration empty, whole;  // When the last contribution of that kind came to beijing from its workers.
  const auto before = RunSimulation(scenario, 1, [&](const TapeEvent& event) {
    if (event.kind != TapeEvent::kOffered || event.who != "beijing" || event.time > absl::Seconds(10)) return;
    (event.values[2] % 4 == 0 ? whole : empty) = event.time;
  });
  ASSERT_TRUE(before.ok()) << before.status();
  for (const absl::Duration arrival : {empty, whole}) {
    ASSERT_GT(arrival, absl::ZeroDuration());
    // While it is sent, and nothing else.
    Fault* fault = Add(&scenario, FAULT_KIND_CORRUPT, "beijing");
    fault->set_at_ns(absl::ToInt64Nanoseconds(arrival - absl::Microseconds(500)));
    fault->set_for_ns(450'000);
    fault->set_probability(1);
    const auto result = RunSimulation(scenario, 1, nullptr);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->faults_observed.at("corrupt"), arrival == empty ? 0 : 1);
    scenario.clear_timeline();
  }
}

// A tape that breaks an invariant is noticed, by the checker whose it is.
TEST(CheckersTest, EachNoticesItsOwn) {
  struct Case {
    const char* name;
    std::vector<TapeEvent> events;
  };
  const auto event = [](TapeEvent::Kind kind, std::array<int64_t, 4> values) {
    return TapeEvent{absl::Seconds(1), kind, "root", values, ""};
  };
  const auto at = [](const char* who, TapeEvent::Kind kind, std::array<int64_t, 4> values) {
    return TapeEvent{absl::Seconds(1), kind, who, values, ""};
  };
  const auto told = [](const char* text) {
    return TapeEvent{absl::Seconds(1), TapeEvent::kCoordinator, "root", {}, text};
  };
  const TapeEvent joined = told(R"({"event": "joined", "role": "aggregator", "region": "beijing", "member": 3})");
  const TapeEvent joined_again =
      told(R"({"event": "joined", "role": "aggregator", "region": "beijing", "member": 3, "incarnation": 2})");
  const TapeEvent lost = told(R"({"event": "lost", "role": "aggregator", "region": "beijing"})");
  const TapeEvent begins = event(TapeEvent::kStarted, {});
  const Case cases[] = {
      {"",
       {event(TapeEvent::kCommitted, {0, 4}), event(TapeEvent::kCommitted, {8, 12}),
        event(TapeEvent::kCommitted, {4, 8})}},
      {"I1", {event(TapeEvent::kCommitted, {0, 4}), event(TapeEvent::kCommitted, {3, 8})}},
      {"I1", {event(TapeEvent::kCommitted, {4, 8}), event(TapeEvent::kCommitted, {0, 5})}},
      {"I4", {event(TapeEvent::kPublished, {2, 11}), event(TapeEvent::kPublished, {2, 12})}},
      {"I4", {event(TapeEvent::kPublished, {3, 11}), event(TapeEvent::kPublished, {2, 12})}},
      // I5: whatever the root says of how stale it is.
      {"I5", {event(TapeEvent::kPublished, {70, 11}), event(TapeEvent::kMerged, {1, 1, 0, 5})}},
      {"", {event(TapeEvent::kPublished, {70, 11}), event(TapeEvent::kMerged, {1, 1, 64, 6})}},
      {"I7",
       {event(TapeEvent::kAnswered, {1, 1, 5, VERDICT_ACCEPTED}),
        event(TapeEvent::kAnswered, {1, 1, 5, VERDICT_STALE})}},
      {"",
       {event(TapeEvent::kAnswered, {1, 1, 5, VERDICT_ACCEPTED}),
        event(TapeEvent::kAnswered, {1, 2, 5, VERDICT_STALE})}},
      // I7: the coordinator has not fenced who is told that he is fenced, or has.
      {"I7",
       {joined_again, event(TapeEvent::kAnswered, {3, 2, 5, VERDICT_ACCEPTED}),
        event(TapeEvent::kAnswered, {3, 2, 5, VERDICT_FENCED})}},
      {"",
       {joined_again, event(TapeEvent::kAnswered, {3, 1, 5, VERDICT_ACCEPTED}),
        event(TapeEvent::kAnswered, {3, 1, 5, VERDICT_FENCED})}},
      {"",
       {joined_again, event(TapeEvent::kAnswered, {3, 2, 5, VERDICT_ACCEPTED}),
        told(R"({"event": "lost", "role": "aggregator", "region": "beijing", "incarnation": 2})"),
        event(TapeEvent::kAnswered, {3, 2, 5, VERDICT_FENCED})}},
      {"I10", {event(TapeEvent::kContent, {1, 1, 64, 60})}},
      {"I10", {event(TapeEvent::kLeased, {0, 4000, 1, 1}), event(TapeEvent::kCounted, {7001})}},
      {"", {event(TapeEvent::kLeased, {0, 4000, 1, 1}), event(TapeEvent::kCounted, {5000})}},
      {"I12",
       {at("beijing/worker-0", TapeEvent::kDamaged, {1, 1, 5}),
        at("beijing", TapeEvent::kAnswered, {1, 1, 5, VERDICT_ACCEPTED})}},
      {"",
       {at("beijing/worker-0", TapeEvent::kDamaged, {1, 1, 5}),
        at("beijing", TapeEvent::kAnswered, {1, 1, 5, VERDICT_NON_FINITE}),
        at("beijing", TapeEvent::kAnswered, {1, 1, 6, VERDICT_ACCEPTED})}},
      // I2: what a living region acknowledged is nobody's any more.
      {"I2", {joined, at("beijing", TapeEvent::kHeld, {0, 8}), event(TapeEvent::kLeased, {4, 12, 7, 5})}},
      {"", {joined, at("beijing", TapeEvent::kHeld, {0, 8}), event(TapeEvent::kLeased, {8, 12, 7, 5})}},
      {"",
       {joined, event(TapeEvent::kLeased, {0, 8, 7, 5}), at("beijing", TapeEvent::kHeld, {0, 8}),
        event(TapeEvent::kLeased, {0, 8, 7, 5})}},
      {"",
       {joined, at("beijing", TapeEvent::kHeld, {0, 8}), at("beijing", TapeEvent::kDied, {}),
        event(TapeEvent::kLeased, {0, 8, 7, 5})}},
      {"", {joined, at("beijing", TapeEvent::kHeld, {0, 8}), lost, event(TapeEvent::kLeased, {0, 8, 7, 5})}},
      {"I2", {joined_again, at("beijing", TapeEvent::kHeld, {0, 8, 2}), event(TapeEvent::kLeased, {0, 8, 7, 5})}},
      {"", {joined_again, at("beijing", TapeEvent::kHeld, {0, 8, 1}), event(TapeEvent::kLeased, {0, 8, 7, 5})}},
      {"", {joined, lost, at("beijing", TapeEvent::kHeld, {0, 8}), event(TapeEvent::kLeased, {0, 8, 7, 5})}},
      {"",
       {joined, at("beijing", TapeEvent::kHeld, {0, 8}), event(TapeEvent::kAnswered, {3, 1, 5, VERDICT_STALE}),
        event(TapeEvent::kLeased, {0, 8, 7, 5})}},
      {"I2",
       {joined, at("beijing", TapeEvent::kHeld, {0, 8}), event(TapeEvent::kAnswered, {4, 1, 5, VERDICT_STALE}),
        event(TapeEvent::kLeased, {0, 8, 7, 5})}},
      {"",
       {joined, TapeEvent{absl::Seconds(1), TapeEvent::kLeased, "root", {0, 8, 6, 5}, "beyond the ceiling on the disk"},
        at("beijing", TapeEvent::kHeld, {0, 8}), event(TapeEvent::kLeased, {0, 8, 7, 5})}},
      // I4: children hold what their parent published.
      {"I4", {event(TapeEvent::kPublished, {2, 11}), at("beijing", TapeEvent::kTook, {2, 12})}},
      {"", {event(TapeEvent::kPublished, {2, 11}), at("beijing", TapeEvent::kTook, {2, 11})}},
      {"I4",
       {at("beijing", TapeEvent::kPublished, {2, 11, 0, 1}), at("beijing/worker-0", TapeEvent::kTook, {2, 12, 1})}},
      {"", {at("beijing", TapeEvent::kPublished, {2, 11, 0, 1}), at("beijing/worker-0", TapeEvent::kTook, {2, 12, 2})}},
      {"I4", {at("beijing", TapeEvent::kTook, {2, 11, 0, 5}), at("beijing", TapeEvent::kTook, {3, 12, 0, 4})}},
      {"",
       {at("beijing", TapeEvent::kTook, {2, 11, 0, 5}), at("beijing", TapeEvent::kStarted, {1}),
        at("beijing", TapeEvent::kTook, {3, 12, 0, 0})}},
      // I6
      {"", {begins, event(TapeEvent::kPublished, {2, 11, 1}), begins, event(TapeEvent::kPublished, {3, 12, 2})}},
      {"I6", {begins, event(TapeEvent::kPublished, {2, 11, 1}), begins, event(TapeEvent::kPublished, {3, 12, 1})}},
      {"I6", {begins, event(TapeEvent::kPublished, {2, 11, 1}), event(TapeEvent::kPublished, {3, 12, 2})}},
      {"I6",
       {begins, event(TapeEvent::kLeased, {0, 8, (int64_t{2} << 40) + 1, 5}), begins,
        event(TapeEvent::kLeased, {8, 16, (int64_t{2} << 40) + 2, 5})}},
      {"I6", {event(TapeEvent::kLeased, {0, 8, 7, 5}), event(TapeEvent::kLeased, {8, 16, 7, 5})}},
  };
  for (const Case& one : cases) {
    SCOPED_TRACE(&one - cases);
    for (const auto& checker : MakeCheckers(/*staleness_max=*/64)) {
      for (const TapeEvent& seen : one.events) checker->See(seen);
      EXPECT_EQ(!checker->violation().empty(), std::string(checker->name()) == one.name) << checker->violation();
    }
  }
}

// Two regions of two workers, a GPT of one layer and a text of one sentence.
Scenario GptScenario() {
  const std::string directory = absl::StrCat(testing::TempDir(), "/simulation_test.", getpid());
  std::filesystem::create_directories(directory);
  for (const auto& [name, tokens] : {std::pair("train.bin", 4000), std::pair("validation.bin", 3000)}) {
    std::ofstream file(absl::StrCat(directory, "/", name), std::ios::binary);
    for (int i = 0; i < tokens; ++i) {
      const char sentence[] = "the quick brown fox jumps over the lazy dog. ";
      const char token[2] = {sentence[i % (sizeof(sentence) - 1)], 0};
      file.write(token, 2);
    }
  }
  Scenario scenario;
  scenario.set_name("gpt");
  Workload* workload = scenario.mutable_workload();
  workload->set_fidelity(FIDELITY_GPT);
  workload->set_samples(1200);
  workload->set_step_ns(100'000'000);
  workload->set_step_jitter(0.05);
  workload->set_micro_batch(4);
  workload->set_range_steps(2);
  Model* model = scenario.mutable_model();
  model->set_layers(1);
  model->set_heads(2);
  model->set_width(16);
  model->set_context(16);
  model->set_vocabulary(128);
  scenario.mutable_data()->set_train(directory + "/train.bin");
  scenario.mutable_data()->set_validation(directory + "/validation.bin");
  Optimizer* optimizer = scenario.mutable_optimizer();
  optimizer->set_learning_rate(1e-2);
  optimizer->set_final_learning_rate_fraction(1);
  optimizer->set_decay(DECAY_CONSTANT);
  optimizer->set_beta1(0.9);
  optimizer->set_beta2(0.95);
  optimizer->set_epsilon(1e-8);
  optimizer->set_clip_norm(1);
  optimizer->set_precision(PRECISION_FP32);
  for (const char* name : {"beijing", "shenzhen"}) {
    Region* region = scenario.add_regions();
    region->set_name(name);
    region->set_workers(2);
  }
  const Scenario defaults = MakeScenario();
  *scenario.mutable_wan() = defaults.wan();
  *scenario.mutable_limits() = defaults.limits();
  *scenario.mutable_restarts() = defaults.restarts();
  *scenario.mutable_expect() = defaults.expect();
  *scenario.mutable_disk() = defaults.disk();
  scenario.mutable_strategy()->set_preset(PRESET_ASYNC);
  scenario.mutable_strategy()->set_inner_steps(4);
  return scenario;
}

TEST(SimulationTest, ARealModelIsTrainedThroughDeathsAndEndsWithTheSameBits) {
  Scenario scenario = GptScenario();
  Fault* kill = scenario.add_timeline();
  kill->set_fault(FAULT_KIND_KILL);
  kill->add_target("*/**");
  kill->set_every_ns(4'000'000'000);
  const auto first = RunSimulation(scenario, 1, nullptr);
  ASSERT_TRUE(first.ok()) << first.status();
  for (const auto& [name, violation] : first->verdicts) EXPECT_EQ(violation, "") << name;
  EXPECT_EQ(first->samples_committed, 1200);
  ASSERT_FALSE(first->progress.empty());
  EXPECT_GT(first->progress.front().loss, 4.0) << "as good as nothing: log 128 is 4.85";
  EXPECT_LT(first->loss, 3.3) << "it knows at least how often each letter comes";
  const auto again = RunSimulation(scenario, 1, nullptr);
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->tape_hash, first->tape_hash);
  EXPECT_EQ(again->parameters_sha256, first->parameters_sha256);
}

TEST(SimulationTest, ARealModelNeedsWhatAJobNeeds) {
  Scenario scenario = GptScenario();
  scenario.mutable_data()->set_train("/nowhere/train.bin");
  EXPECT_NE(RunSimulation(scenario, 1, nullptr).status().message().find("/nowhere/train.bin"), std::string::npos);
  scenario.mutable_model()->clear_context();
  ASSERT_FALSE(FindScenarioProblems(scenario).empty());
  EXPECT_EQ(FindScenarioProblems(scenario)[0].key, "model");
}

}  // namespace
}  // namespace wukong
