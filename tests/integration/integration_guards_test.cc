// A machine that is broken and does not know it: what it sends is damaged behind all of its own checks. Nothing of that
// reaches the parameters, everybody can see who it was, and the run ends as any other.
#include <algorithm>
#include <ostream>
#include <string>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/wukong_process.h"

namespace wukong::integration {
namespace {

using ::testing::HasSubstr;

#ifdef WUKONG_FAULT_POINTS

struct Damage {
  std::string fault;
  std::string reason;
  std::string preset;
};

std::ostream& operator<<(std::ostream& out, const Damage& damage) {
  return out << damage.fault << " with " << damage.preset;
}

class DamageTest : public ::testing::TestWithParam<Damage> {};

TEST_P(DamageTest, NeverReachesTheParametersAndItsSenderIsNamed) {
  const auto& [fault, reason, preset] = GetParam();
  const Workspace workspace;
  TinyJob job;
  job.preset = preset;
  job.regions = {{"beijing", 2}, {"shenzhen", 1}};
  job.tokens = 100000;
  job.speed = 0.3;
  Cluster cluster(workspace, job, {"--set", "limits.quarantine=2s"});
  for (const char* region : {"beijing", "shenzhen"}) cluster.StartAggregator(region);
  cluster.StartWorker("beijing", {"--name", "worker-0"});
  cluster.StartWorker("beijing", {"--name", "worker-1", "--fault", fault});
  cluster.StartWorker("shenzhen", {"--name", "worker-0"});

  const RunRecord& record = cluster.record();
  EXPECT_TRUE(Await([&] {
    return record.EventAbout("quarantined", "worker-1 of beijing").is_object() || cluster.coordinator().ended();
  }));
  const auto status = workspace.Start({"status", cluster.address()});
  EXPECT_EQ(status->Wait(), 0) << status->err();
  EXPECT_THAT(status->out(), HasSubstr(absl::StrCat("worker-1 of beijing: ", reason, " ")));

  ASSERT_EQ(cluster.coordinator().Wait(), 0) << cluster.coordinator().err();
  for (const auto& member : cluster.members()) EXPECT_EQ(member->Wait(), 0) << member->err();
  const Json report = record.Report();
  ExpectBudgetCommittedOnce(report, Budget(job));
  EXPECT_EQ(report["contributions"]["rejected"], Json::object()) << "the root never saw it";
  EXPECT_GE(report["contributions"]["regions"]["beijing"]["rejected"].value(reason, 0), 3);
  const Json& by_sender = report["contributions"]["rejected_by_sender"];
  EXPECT_GE(by_sender.value(absl::StrCat("worker-1 of beijing: ", reason), 0), 3) << by_sender;
  for (const auto& [sender, count] : by_sender.items()) {
    EXPECT_TRUE(absl::StartsWith(sender, "worker-1 of beijing: ")) << sender << " " << count;
  }
  EXPECT_FALSE(record.Events("refused").empty());
  for (const Json& event : record.Events("refused")) EXPECT_EQ(event["name"], "worker worker-1 of beijing");
  ASSERT_TRUE(report["validation_loss_final"].is_number()) << "not finite";
  EXPECT_LT(report["validation_loss_final"], report["validation_loss_initial"]);
  const auto verify = workspace.Start({"log", "verify", workspace.Path("run")});
  EXPECT_EQ(verify->Wait(), 0) << verify->out() << verify->err();
}

// What is usual must be known before something is too large: 16 contributions to the aggregator.
INSTANTIATE_TEST_SUITE_P(Faults, DamageTest,
                         ::testing::Values(Damage{"worker.nan_contribution:4", "non_finite", "async"},
                                           Damage{"worker.nan_contribution:4", "non_finite", "diloco"},
                                           Damage{"worker.scale_contribution:20", "norm", "async"}),
                         [](const auto& the_case) {
                           return absl::StrCat(the_case.param.reason, "_", the_case.param.preset);
                         });

TEST(FaultFlagTest, AnUnknownFaultIsAnsweredWithTheKnownOnes) {
  const Workspace workspace(/*prepare_data=*/false);
  const auto worker =
      workspace.Start({"worker", "--join", "127.0.0.1:1", "--region", "beijing", "--fault", "worker.no_such_fault"});
  EXPECT_EQ(worker->Wait(), 2) << worker->err();
  for (const char* text : {"worker.no_such_fault", "worker.nan_contribution", "worker.scale_contribution"}) {
    EXPECT_THAT(worker->err(), HasSubstr(text));
  }
}

#else

TEST(FaultFlagTest, AReleaseHasNoFaults) {
  const Workspace workspace(/*prepare_data=*/false);
  const auto worker =
      workspace.Start({"worker", "--join", "127.0.0.1:1", "--region", "beijing", "--fault", "worker.nan_contribution"});
  EXPECT_EQ(worker->Wait(), 2) << worker->err();
  EXPECT_THAT(worker->err(), HasSubstr("--fault"));
}

#endif  // WUKONG_FAULT_POINTS

}  // namespace
}  // namespace wukong::integration
