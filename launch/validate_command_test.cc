#include "launch/validate_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "launch/command_testing.h"
#include "launch/job_file.h"
#include "nlohmann/json.hpp"

namespace wukong {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

CommandOutcome Validate(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "validate");
  return RunCommand(AddValidateCommand, arguments);
}

TEST(ValidateCommandTest, AGoodJobIsSummedUp) {
  const CommandOutcome outcome = Validate({ThreeRegions(), "--no-data"});
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_EQ(outcome.err, "");
  EXPECT_THAT(outcome.out, AllOf(StartsWith(ThreeRegions() + ": ok\n"), HasSubstr("1,239,040 parameters"),
                                 HasSubstr("beijing x 2, shenzhen x 2, guizhou x 2 (6 workers)"),
                                 HasSubstr("3,000,000, 1,024 per worker and step"), HasSubstr("async, 16 steps"),
                                 HasSubstr("rtt 150ms, jitter 10ms, bandwidth 100Mbit, loss 0")));
}

TEST(ValidateCommandTest, SetIsRepeatedAndLeavesTheJobItsPlace) {
  const CommandOutcome outcome = Validate(
      {"--set", "strategy.preset=ddp", "--set", "wan.rtt=0ms", "--no-data", ThreeRegions(), "--set", "stop.tokens=4k"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("tokens    4,000,"), HasSubstr("ddp, 1 step per"), HasSubstr("rtt 0s")));
}

TEST(ValidateCommandTest, ABadJobIsExitCodeTwo) {
  const CommandOutcome outcome = Validate({ThreeRegions(), "--no-data", "--set", "wan.rtt=5"});
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_EQ(outcome.out, "");
  EXPECT_THAT(outcome.err, StartsWith("wukong: error: --set wan.rtt=5: wan.rtt: a unit is missing"));
  EXPECT_EQ(Validate({ThreeRegions(), "--no-data", "--set", "model.width=130"}).exit_code, 2);
  EXPECT_EQ(Validate({"/nonexistent/job.yaml"}).exit_code, 2);
  EXPECT_EQ(Validate({}).exit_code, 2);
}

TEST(ValidateCommandTest, AMissingDeviceIsExitCodeThree) {
  EXPECT_EQ(Validate({ThreeRegions(), "--no-data", "--device", "--set", "regions.0.device=cuda:999"}).exit_code, 3);
  EXPECT_EQ(Validate({ThreeRegions(), "--no-data", "--device"}).exit_code, 0);
}

TEST(ValidateCommandTest, JsonIsForPrograms) {
  const auto good = nlohmann::json::parse(Validate({ThreeRegions(), "--no-data", "--json"}).out);
  EXPECT_EQ(good["ok"], true);
  EXPECT_EQ(good["workers"], 6);
  EXPECT_EQ(good["tokens"], 3'000'000);
  EXPECT_EQ(good["regions"][2]["name"], "guizhou");
  const CommandOutcome outcome =
      Validate({ThreeRegions(), "--no-data", "--json", "--set", "seed=x", "--set", "stop.tokens=x"});
  EXPECT_EQ(outcome.exit_code, 2);
  const auto bad = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(bad["ok"], false);
  EXPECT_EQ(bad["errors"].size(), 2u);
}

TEST(ValidateCommandTest, AScenarioIsCheckedAsOne) {
  const std::string path = absl::StrCat(WUKONG_SOURCE_DIR, "/launch/examples/scenarios/slow-worker.yaml");
  const CommandOutcome outcome = Validate({path});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_THAT(outcome.out,
              AllOf(StartsWith(path + ": ok, a scenario\n"), HasSubstr("  run by    wukong sim, wukong chaos run\n")));
  const auto on_processes = Validate({path, "--set", "backend=process", "--json"});
  EXPECT_EQ(nlohmann::json::parse(on_processes.out)["run_by"], nlohmann::json({"wukong chaos run"}))
      << on_processes.err;
  EXPECT_EQ(nlohmann::json::parse(Validate({path, "--json"}).out)["ok"], true);
  const CommandOutcome bad = Validate({path, "--set", "workload.samples=0"});
  EXPECT_EQ(bad.exit_code, 2);
  EXPECT_THAT(bad.err, HasSubstr("--set workload.samples=0: workload.samples: "));
  EXPECT_EQ(Validate({path, "--device"}).exit_code, 2);
  // Whoever takes the one for the other hears which of them it is.
  EXPECT_THAT(LoadJobFile(path, {}).status().message(),
              HasSubstr("is a scenario, not a job (it has a workload): `wukong sim` runs it in virtual time"));
  EXPECT_THAT(LoadScenarioFile(ThreeRegions(), {}).status().message(), HasSubstr("is a job, not a scenario"));
}

TEST(ValidateCommandTest, KeysNeedNoJobAndResolvedIsAJob) {
  const CommandOutcome keys = Validate({"--keys"});
  EXPECT_EQ(keys.exit_code, 0);
  EXPECT_EQ(keys.out, KeyReference());
  const CommandOutcome resolved = Validate({ThreeRegions(), "--no-data", "--resolved"});
  EXPECT_EQ(resolved.exit_code, 0);
  EXPECT_EQ(resolved.out, ResolvedYaml(LoadJobFile(ThreeRegions(), {})->job));
}

}  // namespace
}  // namespace wukong
