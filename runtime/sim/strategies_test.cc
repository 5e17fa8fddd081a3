// Training methods in whole systems: each reaches the end, loses nothing, and relations between methods that must hold
// do.
#include <cmath>
#include <functional>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "runtime/sim/simulation.h"
#include "runtime/sim/test_scenario.h"

namespace wukong {
namespace {

// Three regions of three workers, 150 ms from the root, on a noisy quadratic whose loss is 0 at the optimum.
Scenario Toy(Preset preset) {
  Scenario scenario;
  scenario.set_name("strategies");
  Workload* workload = scenario.mutable_workload();
  workload->set_fidelity(FIDELITY_TOY);
  workload->set_samples(12000);
  workload->set_step_ns(100'000'000);
  workload->set_micro_batch(4);
  workload->set_range_steps(4);
  workload->set_parameters(1200);
  workload->set_learning_rate(0.02);
  workload->set_noise(0.5);
  for (const char* name : {"beijing", "shenzhen", "guizhou"}) {
    Region* region = scenario.add_regions();
    region->set_name(name);
    region->set_workers(3);
  }
  scenario.mutable_wan()->set_rtt_ns(150'000'000);
  scenario.mutable_wan()->set_bandwidth_bps(100'000'000);
  scenario.mutable_strategy()->set_preset(preset);
  SetTestDefaults(&scenario);
  return scenario;
}

SimulationResult Simulate(const Scenario& scenario, uint64_t seed = 1) {
  absl::StatusOr<SimulationResult> result = RunSimulation(scenario, seed, nullptr);
  EXPECT_TRUE(result.ok()) << result.status();
  if (!result.ok()) return {};
  for (const auto& [name, reason] : result->verdicts) EXPECT_EQ(reason, "") << name << " with seed " << seed;
  return *std::move(result);
}

class EveryPresetTest : public testing::TestWithParam<int> {};

// Workers die meanwhile.
TEST_P(EveryPresetTest, ComesNearTheOptimumAndLosesNothing) {
  Scenario scenario = Toy(static_cast<Preset>(GetParam()));
  Fault* fault = scenario.add_timeline();
  fault->set_fault(FAULT_KIND_KILL);
  fault->add_target("*/*");
  fault->set_every_ns(10'000'000'000);
  const SimulationResult result = Simulate(scenario);
  EXPECT_GE(result.samples_committed, 12000);
  ASSERT_FALSE(result.progress.empty());
  // Without momentum, with two levels that lag, or with 1 of 64 values, a short run gets less far.
  const bool slow = GetParam() == PRESET_FEDBUFF || GetParam() == PRESET_HALOS || GetParam() == PRESET_SPARSELOCO;
  EXPECT_LT(result.loss, result.progress.front().loss / (slow ? 1.5 : 20)) << "from " << result.progress.front().loss;
}

INSTANTIATE_TEST_SUITE_P(Presets, EveryPresetTest, testing::Range(int{PRESET_ASYNC}, int{Preset_MAX} + 1),
                         [](const testing::TestParamInfo<int>& parameter) {
                           return absl::AsciiStrToLower(Preset_Name(static_cast<Preset>(parameter.param)));
                         });

// An asynchronous method that waits for all is a synchronous one, to the last bit.
TEST(StrategyEquivalenceTest, AsyncWithAQuorumOfAllIsDiloco) {
  Scenario async = Toy(PRESET_ASYNC);
  Strategy* strategy = async.mutable_strategy();
  strategy->set_in_flight(IN_FLIGHT_WAIT);
  strategy->set_step_scaling(STEP_SCALING_FIXED);
  strategy->mutable_region()->set_quorum(0);
  strategy->mutable_root()->set_quorum(0);
  strategy->mutable_region()->set_send_every(1);
  strategy->mutable_region()->set_flush_age_ns(0);
  strategy->mutable_root()->set_momentum(0.9);
  strategy->mutable_root()->set_momentum_delay(1);
  for (Level* level : {strategy->mutable_region(), strategy->mutable_root()}) {
    level->set_codec_up(CODEC_KIND_FP32);
    level->set_codec_down(CODEC_KIND_FP32);
  }
  const SimulationResult one = Simulate(async);
  const SimulationResult other = Simulate(Toy(PRESET_DILOCO));
  EXPECT_EQ(one.parameters_sha256, other.parameters_sha256);
  EXPECT_EQ(one.versions, other.versions);
}

// One step of plain SGD, averaged, is plain SGD with the averaged gradient. Without noise it does not matter which
// samples a step has, so the two may lease them in another order.
TEST(StrategyEquivalenceTest, LocalSgdOfOneStepIsDdp) {
  const auto run = [](Preset preset) {
    Scenario scenario = Toy(preset);
    scenario.mutable_workload()->set_noise(0);
    scenario.mutable_workload()->set_samples(3600);  // 100 steps of everybody.
    scenario.mutable_strategy()->set_inner_steps(1);
    return Simulate(scenario);
  };
  const SimulationResult local = run(PRESET_LOCAL_SGD);
  const SimulationResult ddp = run(PRESET_DDP);
  EXPECT_EQ(local.versions, ddp.versions);
  ASSERT_GT(ddp.loss, 0);
  EXPECT_NEAR(local.loss / ddp.loss, 1, 1e-4);
}

// The control: momentum at every stale arrival does worse than the same momentum delayed.
TEST(StrategyEquivalenceTest, NaiveAsynchronousNesterovDoesWorse) {
  const auto loss = [](Preset preset) {
    Scenario scenario = Toy(preset);
    scenario.mutable_wan()->set_rtt_ns(2'000'000'000);
    scenario.mutable_strategy()->set_in_flight_max(4);
    double sum = 0;
    for (uint64_t seed = 1; seed <= 3; ++seed) sum += Simulate(scenario, seed).loss;
    return sum;
  };
  EXPECT_GT(loss(PRESET_ASYNC_NESTEROV), 1.2 * loss(PRESET_ASYNC));
}

// A worker ten times slower than the others holds them back by the lead that they may have, and not in `async`.
TEST(StrategyTest, NobodyIsFartherAheadThanTheLead) {
  const auto minutes = [](int64_t lead) {
    Scenario scenario = Toy(PRESET_SSP);
    scenario.mutable_strategy()->set_lead_max(lead);
    scenario.mutable_strategy()->set_inner_steps(2);
    for (const double speed : {0.1, 1.0, 1.0}) scenario.mutable_regions(0)->add_speed(speed);
    return absl::ToDoubleMinutes(Simulate(scenario).virtual_time);
  };
  const double free = minutes(0);
  EXPECT_GT(minutes(2), 2 * free);
}

// Far away a region does not wait for one answer before it sends the next contribution.
TEST(StrategyTest, ARegionsContributionsTravelTogether) {
  const auto merged = [](int in_flight_max) {
    Scenario scenario = Toy(PRESET_ASYNC);
    scenario.mutable_strategy()->set_in_flight_max(in_flight_max);
    scenario.mutable_strategy()->set_inner_steps(4);  // 0.4 s.
    scenario.mutable_wan()->set_rtt_ns(4'000'000'000);
    int64_t count = 0;
    for (const auto& [versions, contributions] : Simulate(scenario).staleness) count += contributions;
    return count;
  };
  const int64_t alone = merged(1);
  EXPECT_GT(merged(2), 3 * alone / 2);
  EXPECT_GT(merged(4), 5 * alone / 2);
}

// Where the round trip is eight rounds, momentum of 0.9 needs that each region's round is merged once, with all
// others'.
TEST(StrategyTest, OverlappedRoundsComeNearTheOptimumOverALongRoundTrip) {
  const auto loss = [](InFlight in_flight) {
    Scenario scenario = Toy(PRESET_EAGER_DILOCO);
    scenario.mutable_strategy()->set_in_flight(in_flight);
    scenario.mutable_strategy()->set_inner_steps(4);  // 0.4 s.
    scenario.mutable_wan()->set_rtt_ns(3'200'000'000);
    scenario.mutable_regions(0)->add_speed(0.5);
    const SimulationResult result = Simulate(scenario);
    return result.loss / result.progress.front().loss;
  };
  EXPECT_LT(loss(IN_FLIGHT_OVERLAP), 0.01);
  EXPECT_GT(loss(IN_FLIGHT_KEEP), 0.1) << "or this test shows nothing";
}

}  // namespace
}  // namespace wukong
