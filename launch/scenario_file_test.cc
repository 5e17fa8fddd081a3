// Scenario files: the examples are good, and everything that can be wrong is named with its line.
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "launch/job_file.h"
#include "runtime/sim/scenario_problems.h"
#include "runtime/sim/simulation.h"
#include "runtime/sim/swarm.h"

namespace wukong {
namespace {

std::vector<std::string> Examples() {
  std::vector<std::string> paths;
  for (const auto& entry : std::filesystem::directory_iterator(WUKONG_SOURCE_DIR "/launch/examples/scenarios")) {
    paths.push_back(entry.path().string());
  }
  return paths;
}

TEST(ScenarioFileTest, ThereAreEnoughExamplesAndAllAreGood) {
  const std::vector<std::string> examples = Examples();
  EXPECT_GE(examples.size(), 12u);
  for (const std::string& path : examples) {
    const auto source = LoadScenarioFile(path, {});
    ASSERT_TRUE(source.ok()) << source.status();
    for (const ScenarioProblem& problem : FindScenarioProblems(source->scenario)) {
      ADD_FAILURE() << source->Where(problem.key) << problem.reason;
    }
    EXPECT_EQ(absl::StrCat(source->scenario.name(), ".yaml"), std::filesystem::path(path).filename());
  }
}

TEST(ScenarioFileTest, RealProcessesTakeAllExamplesButThese) {
  const std::set<std::string> only_simulated = {"corrupted-payload", "duplicated-and-reordered", "skewed-clocks"};
  std::set<std::string> refused;
  for (const std::string& path : Examples()) {
    const auto source = LoadScenarioFile(path, {});
    ASSERT_TRUE(source.ok()) << source.status();
    if (!FindScenarioProblems(source->scenario, BACKEND_PROCESS).empty()) refused.insert(source->scenario.name());
  }
  EXPECT_EQ(refused, only_simulated);
}

TEST(ScenarioFileTest, AScenarioAsYamlReadsBackAsItWas) {
  const std::string path = absl::StrCat(testing::TempDir(), "/scenario_file_test.", getpid(), ".again.yaml");
  const auto expect_same_again = [&](const Scenario& scenario) {
    const std::string yaml = ScenarioYaml(scenario);
    std::ofstream(path) << yaml;
    const auto again = LoadScenarioFile(path, {});
    ASSERT_TRUE(again.ok()) << again.status() << "\n" << yaml;
    EXPECT_EQ(again->scenario.DebugString(), scenario.DebugString()) << yaml;
  };
  for (const std::string& example : Examples()) {
    SCOPED_TRACE(example);
    auto source = LoadScenarioFile(example, {});
    ASSERT_TRUE(source.ok()) << source.status();
    expect_same_again(source->scenario);
    // Numbers that no person would write.
    Fault* fault = source->scenario.add_timeline();
    fault->set_fault(FAULT_KIND_LOSS);
    fault->add_target("*/**");
    fault->add_target("root");
    fault->set_at_ns(12'345'678'912'345);
    fault->set_for_ns(1'000'001);
    fault->set_version(1);
    fault->set_direction(DIRECTION_UP);
    fault->set_probability(0.1234567890123);
    source->scenario.set_doc("two lines:\n  \"quoted\" # no comment");
    source->scenario.set_seed(~uint64_t{0});
    expect_same_again(source->scenario);
  }
  std::filesystem::remove(path);
}

TEST(ScenarioFileTest, WhatIsWrongIsNamedWithItsLine) {
  const struct {
    const char* timeline;  // From line 4 on.
    const char* message;
  } cases[] = {
      {"timeline: [{fault: explode, at: 1s, target: [a]}]", "timeline[0].fault"},
      {"timeline:\n  - {fault: kill, at: 1s, target: [c/worker-0]}", ":5: timeline[0].target[0]: there is no region c"},
      {"timeline:\n  - {fault: kill, at: 1s, target: [a/worker-9]}", "names no worker (a has worker-0 to worker-1)"},
      {"timeline: [{fault: kill, at: -1s, target: [a]}]", "timeline[0].at"},
      {"timeline: [{fault: loss, at: 1s, target: [a], probability: 1.5}]", "timeline[0].probability"},
      {"timeline: [{fault: loss, at: 1s, target: [a]}]", "probability: is missing"},
      {"timeline: [{fault: loss, at: 1s, target: [a/worker-0], probability: 1%}]", "happens to a region's link"},
      {"timeline: [{fault: slow, at: 1s, target: [a], factor: 2}]", "happens to workers"},
      {"timeline: [{fault: slow, at: 1s, target: [a/worker-0], factor: 0.5}]",
       "factor: is how many times longer a step"},
      {"timeline: [{fault: bandwidth, at: 1s, target: [a], factor: 0.5}]", "fault: the link's bandwidth is unlimited"},
      {"wan: {bandwidth: 1Mbit}\ntimeline: [{fault: bandwidth, at: 1s, target: [a], factor: 4}]",
       "factor: is the share of the bandwidth that is left"},
      {"timeline: [{fault: latency, at: 1s, target: ['*'], factor: 4}]",
       "fault: the link has no latency that could grow"},
      {"wan: {rtt: 1s}\ntimeline: [{fault: latency, at: 1s, target: [a], factor: 0.5}]",
       "factor: is how many times longer"},
      {"timeline: [{fault: loss, at: 1s, target: [a], probability: 1%}]",
       "fault: loss costs a link without a round trip"},
      {"wan: {rtt: 1s}\ntimeline: [{fault: loss, at: 1s, target: [a], probability: 100%}]",
       "expected at most 90%, or a cut"},
      {"timeline: [{fault: kill, target: [a]}]", "says when"},
      {"timeline: [{fault: kill, at: 1s, every: 2s, target: [a]}]", "says when"},
      {"timeline: [{fault: cut, at: 1s, target: [a]}]", "for: is missing"},
      {"timeline: [{fault: disk_full, at: 1s, for: 1s, target: [a]}]", "only the root has a disk"},
      {"timeline: [{fault: kill, at: 1s, target: [a], factr: 2}]", "did you mean factor?"},
      {"expect: {invariants: [I99]}", ":4: expect.invariants[0]: cannot be checked"},
      {"expect: {gap_max: 0.1}", "fidelity toy"},
      {"expect: {loss_max: 2}", "there is no validation loss (expected fidelity gpt; toy has gap_max)"},
      {"model: {context: 8, vocabulary: 256}", "means nothing here (expected fidelity gpt, or no model)"},
      {"data: {train: a.bin}", "means nothing here (expected fidelity gpt, or no data)"},
      {"strategy: {root: {momentum: 0.9}}", "a counter needs"},
      {"wan: {links: [{region: c, rtt: 1s}]}", "there is no such region"},
  };
  const std::string path = absl::StrCat(testing::TempDir(), "/scenario_file_test.", getpid(), ".yaml");
  for (const auto& one : cases) {
    SCOPED_TRACE(one.timeline);
    std::ofstream(path) << "name: bad\nworkload: {samples: 100}\nregions: [{name: a, workers: 2}]\n"
                        << one.timeline << "\n";
    const auto source = LoadScenarioFile(path, {});
    std::string text(source.status().message());
    if (source.ok()) {
      for (const ScenarioProblem& problem : FindScenarioProblems(source->scenario)) {
        absl::StrAppend(&text, source->Where(problem.key), problem.reason, "\n");
      }
    }
    EXPECT_TRUE(absl::StrContains(text, one.message)) << text;
    EXPECT_TRUE(absl::StrContains(text, path)) << text;
  }
  std::filesystem::remove(path);
}

TEST(ScenarioFileTest, AFaultOfOneLinkIsJudgedByThatLink) {
  const std::string path = absl::StrCat(testing::TempDir(), "/scenario_file_test_link.", getpid(), ".yaml");
  const auto problems = [&](const char* text) {
    std::ofstream(path) << "name: links\nworkload: {samples: 100}\n"
                        << "regions: [{name: a, workers: 1}, {name: b, workers: 1}]\n"
                        << "wan: {links: [{region: a, bandwidth: 10Mbit, direction: up}]}\n"
                        << text << "\n";
    const auto source = LoadScenarioFile(path, {});
    EXPECT_TRUE(source.ok()) << source.status();
    return source.ok() ? FindScenarioProblems(source->scenario).size() : size_t{99};
  };
  EXPECT_EQ(problems("timeline: [{fault: bandwidth, at: 1s, target: [a], factor: 0.1}]"), 0u);
  EXPECT_EQ(problems("timeline: [{fault: bandwidth, at: 1s, target: ['*'], factor: 0.1}]"), 0u);
  EXPECT_EQ(problems("timeline: [{fault: bandwidth, at: 1s, target: [a], factor: 0.1, direction: down}]"), 1u);
  EXPECT_EQ(problems("timeline: [{fault: bandwidth, at: 1s, target: [b], factor: 0.1}]"), 1u);
  std::filesystem::remove(path);
}

TEST(ScenarioFileTest, RealProcessesAreCheckedForAllThatTheirLogShows) {
  const std::string path = absl::StrCat(testing::TempDir(), "/scenario_file_test_checks.", getpid(), ".yaml");
  std::ofstream(path) << "name: all\nworkload: {samples: 100}\nregions: [{name: a, workers: 1}]\n"
                      << "expect: {invariants: [I1, I3, I4, I6, I7, I8, I9, I10, I12]}\n";
  const auto source = LoadScenarioFile(path, {});
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_TRUE(FindScenarioProblems(source->scenario, BACKEND_PROCESS).empty());
  std::filesystem::remove(path);
}

// What the swarm writes down when a drawn scenario fails repeats that scenario.
TEST(ScenarioFileTest, AScenarioThatIsWrittenReadsTheSame) {
  const std::string path = absl::StrCat(testing::TempDir(), "/scenario_file_test.", getpid(), ".yaml");
  for (uint64_t index = 0; index < 100; ++index) {
    const Scenario scenario = DrawScenario(1, index);
    std::ofstream(path) << ScenarioYaml(scenario);
    const auto source = LoadScenarioFile(path, {});
    ASSERT_TRUE(source.ok()) << source.status() << "\n" << ScenarioYaml(scenario);
    EXPECT_EQ(source->scenario.DebugString(), scenario.DebugString());
  }
  std::filesystem::remove(path);
}

class ScenarioExampleTest : public testing::TestWithParam<std::string> {};

TEST_P(ScenarioExampleTest, Passes) {
  const auto source = LoadScenarioFile(GetParam(), {});
  ASSERT_TRUE(source.ok()) << source.status();
  const auto result = RunSimulation(source->scenario, source->scenario.seed(), nullptr);
  ASSERT_TRUE(result.ok()) << result.status();
  for (const auto& [name, violation] : result->verdicts) {
    EXPECT_EQ(violation, "") << name << "; again with: wukong sim " << GetParam();
  }
}

// Those that need no data.
std::vector<std::string> ExamplesToRun() {
  std::vector<std::string> paths;
  for (const std::string& path : Examples()) {
    const auto source = LoadScenarioFile(path, {});
    if (source.ok() && source->scenario.workload().fidelity() != FIDELITY_GPT) paths.push_back(path);
  }
  return paths;
}

INSTANTIATE_TEST_SUITE_P(Examples, ScenarioExampleTest, testing::ValuesIn(ExamplesToRun()), [](const auto& parameter) {
  std::string name = std::filesystem::path(parameter.param).stem().string();
  for (char& c : name) c = c == '-' ? '_' : c;
  return name;
});

}  // namespace
}  // namespace wukong
