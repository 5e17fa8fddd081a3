// `wukong sim --report` and `wukong chaos shrink` as a researcher calls them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "tests/integration/wukong_process.h"

namespace wukong::integration {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;
using ::testing::StartsWith;

// Of four faults only the frozen root makes a pause of more than five seconds.
constexpr char kScenario[] = R"(name: several
workload: {samples: 2000, step: 50ms}
regions:
  - {name: a, workers: 2}
  - {name: b, workers: 2}
wan: {rtt: 20ms}
timeline:
  - {fault: slow, at: 1s, for: 2s, factor: 2, target: [a/worker-0]}
  - {fault: kill, at: 2s, target: [b/worker-1]}
  - {fault: freeze, at: 3s, for: 15s, target: [root]}
  - {fault: latency, at: 4s, for: 2s, factor: 2, target: [a]}
expect: {recovery_max: 5s}
)";

class SimCommandTest : public ::testing::Test {
 protected:
  SimCommandTest() : workspace_(/*prepare_data=*/false), scenario_(workspace_.Write("several.yaml", kScenario)) {}

  std::unique_ptr<Process> Run(std::vector<std::string> arguments, int exit_code) const {
    auto process = workspace_.Start(std::move(arguments));
    EXPECT_EQ(process->Wait(), exit_code) << process->err();
    return process;
  }
  std::string Read(const std::string& name) const {
    std::stringstream text;
    text << std::ifstream(workspace_.Path(name)).rdbuf();
    return text.str();
  }

  const Workspace workspace_;
  const std::string scenario_;
};

TEST_F(SimCommandTest, ReportIsAFolderWithAllThatHappened) {
  const auto run = Run({"sim", scenario_, "--seed", "3", "--report", workspace_.Path("report")}, 1);
  EXPECT_THAT(run->out(), HasSubstr("recovery_max         nothing was merged for"));
  const Json result = Json::parse(Read("report/result.json"), nullptr, /*allow_exceptions=*/false);
  ASSERT_TRUE(result.is_object());
  EXPECT_EQ(result["backend"], "sim");
  EXPECT_EQ(result["passed"], false);
  EXPECT_EQ(result["verdicts"]["I1"], "holds");
  EXPECT_EQ(result["samples_committed"], 2000);
  // One row for each fault, and when the killed worker was missed and back.
  const std::vector<std::string> faults = absl::StrSplit(Read("report/faults.csv"), '\n', absl::SkipEmpty());
  ASSERT_THAT(faults, SizeIs(5));
  EXPECT_EQ(faults[0], "number,fault,target,begin_s,end_s,detected_s,back_s");
  const std::vector<std::string> kill = absl::StrSplit(faults[2], ',');
  EXPECT_THAT(faults[2], StartsWith("1,kill,b/worker-1,2,"));
  ASSERT_THAT(kill, SizeIs(7));
  EXPECT_FALSE(kill[6].empty()) << "it was back";
  const std::vector<std::string> progress = absl::StrSplit(Read("report/progress.csv"), '\n', absl::SkipEmpty());
  EXPECT_EQ(progress[0], "seconds,samples_committed,loss");
  EXPECT_GT(progress.size(), 10u);
  // What is kept is enough to do it again.
  const auto again = Run({"chaos", "replay", workspace_.Path("report/tape.jsonl")}, 0);
  const auto resolved = Run({"sim", workspace_.Path("report/scenario.yaml"), "--seed", "3", "--json"}, 1);
  const Json same = Json::parse(resolved->out(), nullptr, /*allow_exceptions=*/false);
  ASSERT_TRUE(same.is_object()) << resolved->out();
  EXPECT_EQ(same["tape_hash"], result["tape_hash"]);
}

TEST_F(SimCommandTest, FaultsThatOverlapThemselvesEndOneAfterTheOther) {
  const std::string path = workspace_.Write("overlapping.yaml",
                                            "name: overlapping\nworkload: {samples: 1000, step: 50ms}\n"
                                            "regions: [{name: a, workers: 2}]\nwan: {rtt: 20ms}\n"
                                            "timeline: [{fault: latency, every: 300ms, until: 5s, for: 900ms, "
                                            "factor: 2, target: [a]}]\n");
  Run({"sim", path, "--seed", "3", "--report", workspace_.Path("report")}, 0);
  const std::vector<std::string> faults = absl::StrSplit(Read("report/faults.csv"), '\n', absl::SkipEmpty());
  ASSERT_GT(faults.size(), 6u);
  for (size_t i = 1; i < faults.size(); ++i) {
    const std::vector<std::string> columns = absl::StrSplit(faults[i], ',');
    EXPECT_NEAR(std::stod(columns[4]) - std::stod(columns[3]), 0.9, 0.002) << faults[i];
  }
}

TEST_F(SimCommandTest, ShrinkLeavesTheFaultThatMatters) {
  const auto shrink = Run({"chaos", "shrink", scenario_, "--seed", "3", "--output", workspace_.Path("small.yaml")}, 0);
  EXPECT_THAT(shrink->err(), HasSubstr("1 of 4 faults are left: recovery_max"));
  EXPECT_THAT(shrink->out(), HasSubstr("fault: freeze"));
  EXPECT_THAT(shrink->out(), HasSubstr("wukong sim " + workspace_.Path("small.yaml") + " --seed 3"));
  const auto small = Run({"sim", workspace_.Path("small.yaml"), "--seed", "3"}, 1);
  EXPECT_THAT(small->out(), HasSubstr("faults               freeze 1; 0 processes died"));
}

TEST_F(SimCommandTest, ShrinkSaysWhatItCannotDo) {
  const auto holds = Run({"chaos", "shrink", scenario_, "--seed", "3", "--verdict", "I1"}, 2);
  EXPECT_THAT(holds->err(), HasSubstr("--verdict I1: holds with seed 3; what fails is recovery_max"));
  const auto passes = Run({"chaos", "shrink", scenario_, "--seed", "3", "--set", "expect.recovery_max=60s"}, 2);
  EXPECT_THAT(passes->err(), HasSubstr("does not fail with seed 3: there is nothing to shrink"));
  const auto nowhere = Run({"chaos", "shrink", scenario_, "--seed", "3", "--output", workspace_.Path("no/x.yaml")}, 2);
  EXPECT_THAT(nowhere->err(), HasSubstr("nothing can be written to"));
  EXPECT_THAT(nowhere->err(), Not(HasSubstr("try 1"))) << "before any work";
  const auto missing = Run({"chaos", "shrink", workspace_.Path("missing.yaml")}, 2);
  EXPECT_THAT(missing->err(), HasSubstr("missing.yaml"));
}

}  // namespace
}  // namespace wukong::integration
