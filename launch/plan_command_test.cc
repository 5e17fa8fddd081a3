#include "launch/plan_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "launch/command_testing.h"
#include "nlohmann/json.hpp"

namespace wukong {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

struct PlanOutcome : CommandOutcome {
  int measured = 0;
};

PlanOutcome RunPlan(std::vector<std::string> arguments) {
  PlanOutcome outcome;
  const auto add = [&](CLI::App& app, std::function<int()>* action) {
    AddPlanCommand(
        app,
        [&](const Job&) {
          ++outcome.measured;
          return absl::Milliseconds(125);
        },
        action);
  };
  arguments.insert(arguments.begin(), "plan");
  static_cast<CommandOutcome&>(outcome) = RunCommand(add, arguments);
  return outcome;
}

TEST(PlanCommandTest, PrintsTablesForPeople) {
  const PlanOutcome outcome = RunPlan({ThreeRegions(), "--step-time", "250ms", "--set", "strategy.preset=ddp"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(outcome.err, "");
  EXPECT_THAT(
      outcome.out,
      AllOf(
          StartsWith(ThreeRegions() + ": "), HasSubstr("1.239e+06 parameters, 1024 tokens per worker and step"),
          HasSubstr("step           250 ms (as given)"), HasSubstr("computing      21.0% of the workers' time"),
          HasSubstr("beijing up"), HasSubstr("guizhou down"), HasSubstr("4.96 MB"), HasSubstr("12.5 MB/s"),
          HasSubstr("coordinator"), HasSubstr("for 98.0% computing, and links that keep up, each alone:"),
          HasSubstr("strategy.inner_steps: not by this alone (it must be 1 with progress: gradient), 21.0% at most")));
}

TEST(PlanCommandTest, JsonHasTheSameFigures) {
  const PlanOutcome outcome = RunPlan({ThreeRegions(), "--json", "--tokens-per-second", "4096", "--set",
                                       "strategy.preset=ddp", "--step-time", "guizhou=1s"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const auto json = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(json["ok"], true);
  EXPECT_EQ(json["parameters"], 1239040);
  EXPECT_EQ(json["step_seconds"], 0.25);
  EXPECT_EQ(json["step_seconds_by_region"]["guizhou"], 1.0);
  EXPECT_EQ(json["regions"][0]["up"]["bytes"], 4956160);
  EXPECT_NEAR(json["round_seconds"].get<double>(), 1 + 2 * (4956160 * 8 / 100e6 + 0.075), 1e-9);
  EXPECT_NEAR(json["regions"][0]["compute_share"].get<double>(), 0.25 / json["round_seconds"].get<double>(), 1e-9);
  EXPECT_EQ(json["memory"].size(), 3u);
  EXPECT_EQ(json["remedies"].size(), 3u);
}

TEST(PlanCommandTest, MeasuresASmallModelWhereNobodySaysHowFastItIs) {
  const PlanOutcome outcome = RunPlan({ThreeRegions(), "--json"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(outcome.measured, 1);
  EXPECT_THAT(outcome.err, HasSubstr("measuring a step"));
  const auto json = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(json["step_seconds"], 0.125);
  EXPECT_EQ(json["step_seconds_from"], "measured on this machine");
  EXPECT_EQ(RunPlan({ThreeRegions(), "--step-time", "1s"}).measured, 0);
  EXPECT_EQ(RunPlan({ThreeRegions(), "--step-time", "1"}).out, RunPlan({ThreeRegions(), "--step-time", "1s"}).out);
}

TEST(PlanCommandTest, PlansForAModelThatCannotBeBuilt) {
  const PlanOutcome outcome = RunPlan({ThreeRegions(), "--json", "--parameters", "1T", "--step-time", "1min", "--set",
                                       "wan.bandwidth=100Gbit", "--set", "model.width=7"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  const auto json = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(json["parameters"], 1'000'000'000'000);
  EXPECT_EQ(json["regions"][0]["up"]["bytes"], 1'015'625'000'000);
  for (const auto& [text, parameters] : std::vector<std::pair<std::string, int64_t>>{
           {"7B", 7'000'000'000}, {"1.5B", 1'500'000'000}, {"124M", 124'000'000}, {"0.5T", 500'000'000'000}}) {
    const PlanOutcome other = RunPlan({ThreeRegions(), "--json", "--parameters", text, "--step-time", "1s"});
    ASSERT_EQ(other.exit_code, 0) << other.err;
    EXPECT_EQ(nlohmann::json::parse(other.out)["parameters"], parameters);
  }
}

TEST(PlanCommandTest, SaysFirstThatTheJobWouldBeRefused) {
  const PlanOutcome outcome = RunPlan({ThreeRegions(), "--parameters", "7B", "--step-time", "1s"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_THAT(outcome.out,
              HasSubstr("schedule allow\n  REFUSED        by `wukong up`: a contribution is one record of"));
}

TEST(PlanCommandTest, ASyntheticModelSaysItsOwnStep) {
  const PlanOutcome outcome = RunPlan({ThreeRegions(), "--json", "--set",
                                       "model={context: 1, vocabulary: 2, synthetic: counter, size: 100, step: 2s}",
                                       "--set", "data={range_steps: 4}"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_EQ(nlohmann::json::parse(outcome.out)["step_seconds"], 2.0);
  EXPECT_EQ(outcome.measured, 0);
}

TEST(PlanCommandTest, SaysWhatIsWrongAndWhatToDo) {
  const std::pair<std::vector<std::string>, const char*> table[] = {
      {{"/nonexistent.yaml"}, "/nonexistent.yaml"},
      {{ThreeRegions(), "--set", "model.width=129"}, "--set model.width=129: model.width: not divisible"},
      {{ThreeRegions(), "--step-time", "soon"}, "plan: --step-time: not a duration (expected a duration"},
      {{ThreeRegions(), "--step-time", "0s"},
       "plan: --step-time: a step takes time (expected more than 0, got \"0s\")"},
      {{ThreeRegions(), "--step-time", "1s", "--step-time", "2s"}, "given twice for all regions"},
      {{ThreeRegions(), "--step-time", "1s", "--step-time", "bejing=2s"},
       "plan: --step-time: unknown region; did you mean beijing? (expected beijing, shenzhen or guizhou, got "
       "\"bejing\")"},
      {{ThreeRegions(), "--step-time", "beijing=1s", "--step-time", "beijing=2s"}, "given twice for beijing"},
      {{ThreeRegions(), "--step-time", "1s", "--tokens-per-second", "5"}, "given beside --step-time"},
      {{ThreeRegions(), "--tokens-per-second", "-5"},
       "plan: --tokens-per-second: expected more than 0, of one worker, got -5"},
      {{ThreeRegions(), "--step-time", "1s", "--step-jitter", "200%"}, "plan: --step-jitter: too large"},
      {{ThreeRegions(), "--parameters", "0", "--step-time", "1s"}, "plan: --parameters: not a number of parameters"},
      {{ThreeRegions(), "--parameters", "xT", "--step-time", "1s"}, "got \"xT\""},
      {{ThreeRegions(), "--parameters", "2000T", "--step-time", "1s"}, "expected 1 to 1000T"},
      {{ThreeRegions(), "--parameters", "nanT", "--step-time", "1s"}, "got \"nanT\""},
      {{ThreeRegions(), "--parameters", "1B"},
       "cannot be measured; give --step-time, or --tokens-per-second of one worker"},
      {{ThreeRegions(), "--set", "model.width=2048", "--set", "limits.in_flight_bytes=2GB"},
       "parameters is not measured (expected at most 50000000); give --step-time"},
      {{ThreeRegions(), "--set", "model={context: 1, vocabulary: 2, torchscript: x.pt}", "--step-time", "1s"},
       "model.torchscript: its size is not known without running it; give --parameters"},
  };
  for (const auto& [arguments, text] : table) {
    const PlanOutcome outcome = RunPlan(arguments);
    EXPECT_EQ(outcome.exit_code, 2) << text;
    EXPECT_EQ(outcome.out, "") << text;
    EXPECT_THAT(outcome.err, AllOf(StartsWith("wukong: error: "), HasSubstr(text)));
    std::vector<std::string> as_json = arguments;
    as_json.push_back("--json");
    const auto json = nlohmann::json::parse(RunPlan(as_json).out);
    EXPECT_EQ(json["ok"], false);
    EXPECT_THAT(json["errors"][0].get<std::string>(), HasSubstr(text));
  }
}

}  // namespace
}  // namespace wukong
