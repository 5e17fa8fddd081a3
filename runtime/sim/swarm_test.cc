#include "runtime/sim/swarm.h"

#include <set>
#include <string>

#include "gtest/gtest.h"
#include "runtime/sim/scenario_problems.h"
#include "runtime/sim/simulation.h"

namespace wukong {
namespace {

constexpr uint64_t kDraws = 400;

TEST(SwarmTest, EveryDrawIsAGoodScenario) {
  for (uint64_t index = 0; index < kDraws; ++index) {
    for (const ScenarioProblem& problem : FindScenarioProblems(DrawScenario(1, index))) {
      ADD_FAILURE() << "index " << index << ": " << problem.key << ": " << problem.reason;
    }
  }
}

TEST(SwarmTest, TheSameSeedDrawsTheSameScenario) {
  for (uint64_t index = 0; index < 20; ++index) {
    EXPECT_EQ(DrawScenario(5, index).SerializeAsString(), DrawScenario(5, index).SerializeAsString());
    EXPECT_NE(DrawScenario(5, index).SerializeAsString(), DrawScenario(6, index).SerializeAsString());
    EXPECT_NE(DrawScenario(5, index).SerializeAsString(), DrawScenario(5, index + 1).SerializeAsString());
  }
}

TEST(SwarmTest, EverythingIsDrawnSometime) {
  std::set<FaultKind> kinds;
  std::set<Preset> presets;
  std::set<Fidelity> fidelities;
  std::set<FaultPlace> places;
  std::set<int> fault_counts, regions;
  std::set<Robust> robust;
  int at = 0, every = 0, quiet = 0, compressed = 0, quorum = 0, staleness = 0, parts = 0, grace = 0, momentum = 0,
      replaces = 0, shares = 0, sends = 0, leads = 0;
  for (uint64_t index = 0; index < kDraws; ++index) {
    const Scenario scenario = DrawScenario(1, index);
    presets.insert(scenario.strategy().preset());
    fidelities.insert(scenario.workload().fidelity());
    fault_counts.insert(scenario.timeline_size());
    regions.insert(scenario.regions_size());
    quiet += scenario.quiesce().after_ns() > 0 ? 1 : 0;
    compressed += scenario.strategy().root().codec_up() == CODEC_KIND_BF16 ? 1 : 0;
    quorum += scenario.strategy().root().has_quorum() ? 1 : 0;
    staleness += scenario.strategy().root().has_staleness_max() ? 1 : 0;
    parts += scenario.strategy().parts() > 1 ? 1 : 0;
    grace += scenario.strategy().root().grace_ns() > 0 ? 1 : 0;
    momentum += scenario.strategy().root().momentum() > 0 ? 1 : 0;
    replaces += scenario.strategy().rebase() == REBASE_REPLACE ? 1 : 0;
    shares += scenario.strategy().pending() == PENDING_SHARE ? 1 : 0;
    sends += scenario.strategy().region().has_send_every() ? 1 : 0;
    leads += scenario.strategy().has_lead_max() ? 1 : 0;
    robust.insert({scenario.strategy().region().robust(), scenario.strategy().root().robust()});
    for (const Fault& fault : scenario.timeline()) {
      kinds.insert(fault.fault());
      places.insert(fault.on());
      at += fault.has_at_ns() ? 1 : 0;
      every += fault.has_every_ns() ? 1 : 0;
    }
  }
  EXPECT_EQ(kinds.size(), static_cast<size_t>(FaultKind_MAX));
  EXPECT_EQ(places.size(), 4u) << "none, and the three that there are";
  EXPECT_EQ(presets.size(), static_cast<size_t>(Preset_MAX));
  EXPECT_EQ(robust.size(), 5u) << "the preset's, none, and those by coordinate";
  EXPECT_EQ(fidelities.size(), 2u);
  EXPECT_EQ(fault_counts.size(), 9u) << "none to eight";
  EXPECT_EQ(regions.size(), 4u);
  for (const int count :
       {at, every, quiet, compressed, quorum, staleness, parts, grace, momentum, replaces, shares, sends, leads}) {
    EXPECT_GT(count, 0);
  }
}

}  // namespace
}  // namespace wukong
