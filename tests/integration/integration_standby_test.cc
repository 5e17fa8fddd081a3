// The coordinator's standby: sleeps until the coordinator is gone, and then is the coordinator.
#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <optional>
#include <set>
#include <sstream>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/wukong_process.h"

namespace wukong::integration {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kReady[] = "ready as the standby of the coordinator";

// Each sample adds one to the parameters: what was merged twice, or lost, shows.
std::string CounterJob(int64_t samples) {
  const std::string level = "{weight: sum, learning_rate: 1, momentum: 0, codec_up: fp32, codec_down: fp32}";
  return absl::StrCat(
      "name: counter\nmodel: {synthetic: counter, size: 200, step: 50ms, context: 1, vocabulary: 2}\n"
      "data: {range_steps: 2}\noptimizer: {micro_batch: 4}\n"
      "strategy: {preset: async, inner_steps: 4, region: ",
      level, ", root: ", level,
      "}\nregions: [{name: beijing, workers: 2}, {name: shenzhen, workers: 2}]\n"
      "wan: {rtt: 20ms, bandwidth: 100Mbit}\nstop: {tokens: ",
      samples,
      "}\nreport: {validation_tokens: 1, progress_every: 300ms}\n"
      "limits: {heartbeat: 100ms, lease: 2s}\n");
}

std::string ReadAll(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::unique_ptr<Process> StartStandby(const Workspace& workspace, const std::string& address) {
  auto standby = workspace.Start({"coordinator", "--run-dir", workspace.Path("run"), "--listen", address, "--standby"});
  EXPECT_TRUE(Await([&] { return absl::StrContains(standby->err(), kReady) || standby->ended(); })) << standby->err();
  return standby;
}

// In clock ticks, user's and kernel's.
int64_t CpuTicks(pid_t pid) {
  const std::string stat = ReadAll(absl::StrCat("/proc/", pid, "/stat"));
  std::istringstream fields(stat.substr(stat.rfind(')') + 1));
  std::string skipped;
  for (int field = 3; field < 14; ++field) fields >> skipped;
  int64_t user = -1, kernel = -1;
  fields >> user >> kernel;
  EXPECT_GE(user, 0);
  return user + kernel;
}

TEST(StandbyTest, UpGoesOnWithItWhenTheCoordinatorIsKilled) {
  const Workspace workspace(/*prepare_data=*/false);
  constexpr int64_t kSamples = 6000;  // Some 19 s.
  const auto up =
      workspace.Start({"up", workspace.Write("job.yaml", CounterJob(kSamples)), "--run-dir", workspace.Path("run")});
  const RunRecord record(workspace.Path("run"));
  const std::string log = workspace.Path("run/logs/coordinator.log");
  ASSERT_TRUE(Await([&] { return absl::StrContains(ReadAll(log), kReady) || up->ended(); })) << up->err();
  ASSERT_FALSE(up->ended()) << up->err();
  const std::set<pid_t> standby = ChildrenWith(*up, " --standby");
  ASSERT_EQ(standby.size(), 1u);
  const pid_t first = record.CoordinatorPid();
  EXPECT_NE(first, *standby.begin());
  ASSERT_EQ(::kill(first, SIGKILL), 0);
  EXPECT_TRUE(Await([&] { return record.CoordinatorPid() == *standby.begin() || up->ended(); }));
  EXPECT_FALSE(up->ended()) << up->err();

  ASSERT_EQ(up->Wait(), 0) << up->err();
  EXPECT_THAT(up->err(), HasSubstr("coordinator was killed by signal 9 (Killed); its standby takes over (restart 1"));
  const Json report = record.Report();
  ExpectBudgetCommittedOnce(report, kSamples);
  EXPECT_EQ(report["validation_loss_final"], kSamples) << "the counter itself";
  EXPECT_EQ(report["term"], 2);
  EXPECT_EQ(report["restarts"]["by_process"], Json({{"coordinator", 1}}));
  const auto verify = workspace.Start({"log", "verify", workspace.Path("run")});
  EXPECT_EQ(verify->Wait(), 0) << verify->out() << verify->err();
}

// Of an earlier part of the run, which whoever goes on with it may not have come to removing.
TEST(StandbyTest, AnOldReportDoesNotEndIt) {
  const Workspace workspace(/*prepare_data=*/false);
  const auto up =
      workspace.Start({"up", workspace.Write("job.yaml", CounterJob(100000)), "--run-dir", workspace.Path("run")});
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return record.Merged() > 0 || up->ended(); })) << up->err();
  up->Signal(SIGTERM);
  EXPECT_EQ(up->Wait(), 1) << up->err();
  ASSERT_EQ(record.Report()["completed"], false);
  const int lock = ::open(workspace.Path("run/lock").c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_EQ(::flock(lock, LOCK_EX | LOCK_NB), 0);
  ASSERT_EQ(::write(lock, "me\n", 3), 3);  // As whoever takes it does.
  const auto standby = StartStandby(
      workspace, std::string(absl::StripAsciiWhitespace(ReadAll(workspace.Path("run/coordinator.address")))));
  ::close(lock);
  EXPECT_TRUE(
      Await([&] { return absl::StrContains(standby->err(), "coordinator of term 2 listens") || standby->ended(); }));
  standby->Signal(SIGTERM);
  EXPECT_EQ(standby->Wait(), 1) << standby->err();
  EXPECT_THAT(standby->err(), HasSubstr("coordinator of term 2 listens"));
}

TEST(StandbyTest, EndsWithTheJob) {
  const Workspace workspace;
  const TinyJob job = [] {
    TinyJob tiny;
    tiny.regions = {{"beijing", 1}};
    tiny.tokens = 20000;
    return tiny;
  }();
  Cluster cluster(workspace, job);
  const auto standby = StartStandby(workspace, cluster.address());
  cluster.StartAll();
  EXPECT_EQ(cluster.coordinator().Wait(), 0) << cluster.coordinator().err();
  EXPECT_EQ(standby->Wait(), 0) << standby->err();
  EXPECT_THAT(standby->err(), HasSubstr("is over"));
  const Json report = cluster.record().Report();
  ExpectBudgetCommittedOnce(report, Budget(job));
  EXPECT_EQ(report["term"], 1);
}

TEST(StandbyTest, EndsWithACoordinatorThatIsStopped) {
  const Workspace workspace;
  TinyJob job;
  job.tokens = kEndless;
  Cluster cluster(workspace, job);
  const auto standby = StartStandby(workspace, cluster.address());
  cluster.coordinator().Signal(SIGTERM);
  EXPECT_EQ(cluster.coordinator().Wait(), 1) << cluster.coordinator().err();
  EXPECT_EQ(standby->Wait(), 0) << standby->err();
  EXPECT_THAT(standby->err(), HasSubstr("is over"));
}

TEST(StandbyTest, ASignalEndsItAndNothingElse) {
  const Workspace workspace;
  TinyJob job;
  job.tokens = kEndless;
  Cluster cluster(workspace, job);
  const auto standby = StartStandby(workspace, cluster.address());
  standby->Signal(SIGTERM);
  EXPECT_EQ(standby->Wait(), 0) << standby->err();
  EXPECT_THAT(standby->err(), Not(HasSubstr("takes over")));
  EXPECT_FALSE(cluster.coordinator().ended());
  EXPECT_EQ(cluster.record().CoordinatorPid(), cluster.coordinator().pid());
  const std::optional<StatusReply> status = AskStatus(cluster.address());
  ASSERT_TRUE(status.has_value());
  EXPECT_EQ(status->term(), 1);
}

// A process that is stopped holds its lock until it dies.
TEST(StandbyTest, SleepsOnWhileTheCoordinatorIsStoppedAndTakesOverWhenItDies) {
  const Workspace workspace;
  TinyJob job;
  job.tokens = kEndless;
  Cluster cluster(workspace, job);
  const auto standby = StartStandby(workspace, cluster.address());
  ASSERT_TRUE(Freeze(cluster.coordinator().pid()));
  const absl::Time stopped = absl::Now();
  const int64_t ticks = CpuTicks(standby->pid());
  EXPECT_FALSE(
      Await([&] { return absl::StrContains(standby->err(), "takes over") || standby->ended(); }, absl::Seconds(2)));
  EXPECT_LE(CpuTicks(standby->pid()) - ticks, 1) << "in " << absl::Now() - stopped;
  EXPECT_EQ(cluster.record().CoordinatorPid(), cluster.coordinator().pid());

  cluster.coordinator().Signal(SIGKILL);
  std::optional<StatusReply> status;
  EXPECT_TRUE(Await([&] {
    status = AskStatus(cluster.address());
    return status.has_value() || standby->ended();
  })) << standby->err();
  ASSERT_TRUE(status.has_value()) << standby->err();
  EXPECT_EQ(status->term(), 2);
  EXPECT_EQ(cluster.record().CoordinatorPid(), standby->pid());
  standby->Signal(SIGTERM);
  EXPECT_EQ(standby->Wait(), 1) << "it is the coordinator now: " << standby->err();
}

TEST(StandbyTest, NeedsTheAddressOfTheCoordinator) {
  const Workspace workspace(/*prepare_data=*/false);
  const auto standby =
      workspace.Start({"coordinator", "--run-dir", workspace.Path("run"), "--listen", "127.0.0.1:0", "--standby"});
  EXPECT_EQ(standby->Wait(), 2);
  EXPECT_THAT(standby->err(), HasSubstr("--standby needs the --listen of the coordinator"));
}

}  // namespace
}  // namespace wukong::integration
