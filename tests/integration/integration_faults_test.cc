// Processes that die, leave, come late, or are interrupted: the budget is committed exactly once all the same, and
// nothing is left running.
#include <signal.h>

#include <algorithm>
#include <memory>
#include <set>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "tests/integration/wukong_process.h"

namespace wukong::integration {
namespace {

TinyJob TwoRegions(int64_t tokens, double speed) {
  TinyJob job;
  job.regions = {{"beijing", 2}, {"shenzhen", 1}};
  job.tokens = tokens;
  job.speed = speed;
  return job;
}

// `wukong up` that leaves the dead dead: what the others make of it is tested here, what becomes of those who are
// started again in integration_recovery_test.cc.
std::unique_ptr<Process> StartWithoutRestarts(const Workspace& workspace, const TinyJob& job) {
  return workspace.Start({"up", workspace.WriteJob(job), "--run-dir", workspace.Path("run"), "--restarts", "0"});
}

TEST(FaultsTest, AKilledWorkersDataGoesToOthers) {
  const Workspace workspace;
  const TinyJob job = TwoRegions(80000, 0.3);
  const auto up = StartWithoutRestarts(workspace, job);
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return record.Merged() >= 3 || up->ended(); }));
  const pid_t victim = record.PidOf("beijing", "worker-1");
  ASSERT_GT(victim, 0) << up->err();
  ASSERT_EQ(::kill(victim, SIGKILL), 0);

  ASSERT_EQ(up->Wait(), 0) << up->err();
  EXPECT_TRUE(absl::StrContains(up->err(), "worker-1 of beijing was killed by signal 9")) << up->err();
  ExpectBudgetCommittedOnce(record.Report(), Budget(job));
  const Json lost = record.EventAbout("lost", "worker-1");
  EXPECT_EQ(lost.value("region", ""), "beijing");
  EXPECT_TRUE(absl::StrContains(lost.value("reason", ""), "silent for")) << lost;
  EXPECT_TRUE(record.EventAbout("fenced", "worker-1").is_object());
  EXPECT_EQ(record.Events("lost").size(), 1u) << "nobody else was lost";
}

TEST(FaultsTest, TheSynchronousPresetGoesOnWithoutAKilledWorker) {
  const Workspace workspace;
  TinyJob job = TwoRegions(15000, 0.3);
  job.preset = "ddp";
  job.rtt = "5ms";
  const auto up = StartWithoutRestarts(workspace, job);
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return record.Merged() >= 3 || up->ended(); }));
  const pid_t victim = record.PidOf("beijing", "worker-0");
  ASSERT_GT(victim, 0) << up->err();
  ASSERT_EQ(::kill(victim, SIGKILL), 0);
  ASSERT_EQ(up->Wait(), 0) << up->err();
  ExpectBudgetCommittedOnce(record.Report(), Budget(job));
  EXPECT_TRUE(record.EventAbout("fenced", "worker-0").is_object());
}

TEST(FaultsTest, AWorkerStartedByHandTakesTheDeadOnesPlace) {
  const Workspace workspace;
  TinyJob job = OneRegion(1, 40000, 0.3);
  const auto up = StartWithoutRestarts(workspace, job);
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return record.Merged() >= 2 || up->ended(); }));
  const pid_t victim = record.PidOf("beijing", "worker-0");
  ASSERT_GT(victim, 0) << up->err();
  ASSERT_EQ(::kill(victim, SIGKILL), 0);
  // Nobody is left to train: only the newcomer can end the run.
  const auto newcomer =
      workspace.Start({"worker", "--join", record.CoordinatorAddress(), "--region", "beijing", "--name", "worker-0"});
  ASSERT_EQ(up->Wait(), 0) << up->err();
  EXPECT_EQ(newcomer->Wait(), 0) << newcomer->err();
  ExpectBudgetCommittedOnce(record.Report(), Budget(job));
  const std::vector<Json> joined = record.Events("joined");
  ASSERT_EQ(joined.size(), 3u);
  EXPECT_EQ(joined.back()["name"], "worker-0");
  EXPECT_EQ(joined.back()["incarnation"], 2);
  EXPECT_EQ(joined.back()["pid"], newcomer->pid());
}

TEST(FaultsTest, AWorkerJoinsARunningJob) {
  const Workspace workspace;
  TinyJob job = OneRegion(2, 60000, 0.3);
  job.lease = "60s";  // Those that are stopped meanwhile must not be taken for dead.
  const auto up = workspace.Start({"up", workspace.WriteJob(job), "--run-dir", workspace.Path("run")});
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return record.Merged() >= 2 || up->ended(); }));
  // The others are held, so that there is something left to do when the newcomer is ready.
  const pid_t others[] = {record.PidOf("beijing", "worker-0"), record.PidOf("beijing", "worker-1")};
  for (const pid_t pid : others) ASSERT_TRUE(Freeze(pid)) << up->err();
  const auto newcomer = workspace.Start({"worker", "--join", record.CoordinatorAddress(), "--region", "beijing"});
  const auto trains = [&] {
    const std::vector<Json> metrics = record.Metrics();
    return std::any_of(metrics.begin(), metrics.end(), [](const Json& step) { return step["worker"] == "worker-2"; });
  };
  EXPECT_TRUE(Await([&] { return trains() || newcomer->ended(); }));
  for (const pid_t pid : others) ::kill(pid, SIGCONT);
  ASSERT_EQ(up->Wait(), 0) << up->err();
  EXPECT_EQ(newcomer->Wait(), 0) << newcomer->err();
  const Json report = record.Report();
  ExpectBudgetCommittedOnce(report, Budget(job));
  int64_t contributions = 0;
  for (const Json& process : report["processes"]) {
    if (process["name"] == "worker-2") contributions = process["contributions_sent"];
  }
  EXPECT_GT(contributions, 0);
  EXPECT_TRUE(record.Events("lost").empty());
}

TEST(FaultsTest, ARegionThatIsNotInTheJobFileJoinsARunningJob) {
  const Workspace workspace;
  TinyJob job = TwoRegions(60000, 0.3);
  job.lease = "60s";  // Those that are stopped meanwhile must not be taken for dead.
  const auto up = workspace.Start({"up", workspace.WriteJob(job), "--run-dir", workspace.Path("run")});
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return record.Merged() >= 2 || up->ended(); }));
  // The workers of the others are held, so that there is something left to do when the newcomers are ready.
  const std::set<pid_t> others = ChildrenWith(*up, " worker ");
  ASSERT_EQ(others.size(), 3u) << up->err();
  for (const pid_t pid : others) ASSERT_TRUE(Freeze(pid));
  const std::string address = record.CoordinatorAddress();
  const auto aggregator =
      workspace.Start({"aggregator", "--coordinator", address, "--region", "tokyo", "--new-region"});
  EXPECT_TRUE(Await([&] { return record.Events("region_added").size() == 1 || aggregator->ended(); }));
  const auto worker = workspace.Start({"worker", "--join", address, "--region", "tokyo"});
  const auto contributes = [&] {
    const std::vector<Json> merged = record.Events("merged");
    const std::vector<Json> joined = record.Events("joined");
    return std::any_of(joined.begin(), joined.end(), [&](const Json& join) {
      return join["region"] == "tokyo" && std::any_of(merged.begin(), merged.end(), [&](const Json& merge) {
               return merge["contributions"][0]["member"] == join["member"];
             });
    });
  };
  EXPECT_TRUE(Await([&] { return contributes() || worker->ended(); })) << worker->err();
  const auto status = workspace.Start({"status", address});
  EXPECT_EQ(status->Wait(), 0) << status->err();
  EXPECT_TRUE(absl::StrContains(status->out(), "tokyo")) << status->out();
  for (const pid_t pid : others) ::kill(pid, SIGCONT);
  ASSERT_EQ(up->Wait(), 0) << up->err();
  EXPECT_EQ(worker->Wait(), 0) << worker->err();
  EXPECT_EQ(aggregator->Wait(), 0) << aggregator->err();
  const Json report = record.Report();
  ExpectBudgetCommittedOnce(report, Budget(job));
  int64_t committed = 0;
  for (const char* region : {"beijing", "shenzhen", "tokyo"}) {
    EXPECT_GT(report["ledger"]["regions"][region]["tokens_committed"], 0) << region;
    committed += report["ledger"]["regions"][region]["tokens_committed"].get<int64_t>();
  }
  EXPECT_EQ(committed, Budget(job));
  const auto verify = workspace.Start({"log", "verify", workspace.Path("run")});
  EXPECT_EQ(verify->Wait(), 0) << verify->err();
  EXPECT_TRUE(absl::StrContains(verify->out(), "tokyo")) << verify->out();
  const auto dump = workspace.Start({"log", "dump", workspace.Path("run")});
  EXPECT_EQ(dump->Wait(), 0) << dump->err();
  EXPECT_TRUE(absl::StrContains(dump->out(), "\"new_region\":true")) << dump->out();
}

TEST(FaultsTest, ATerminatedWorkerContributesAndGivesBack) {
  const Workspace workspace;
  const TinyJob job = OneRegion(2, 60000, 0.3);
  Cluster cluster(workspace, job);
  cluster.StartAll();
  const RunRecord& record = cluster.record();
  ASSERT_TRUE(Await([&] { return record.Merged() >= 3 || cluster.coordinator().ended(); }));
  Process& leaver = *cluster.members().back();
  leaver.Signal(SIGTERM);
  EXPECT_EQ(leaver.Wait(), 0) << leaver.err();
  EXPECT_FALSE(cluster.coordinator().ended()) << "it left before the end";
  ASSERT_EQ(cluster.coordinator().Wait(), 0) << cluster.coordinator().err();
  const Json report = record.Report();
  ExpectBudgetCommittedOnce(report, Budget(job));
  EXPECT_EQ(report["tokens_computed"], report["tokens_committed"]) << "what it trained was not trained again";
  for (const auto& member : cluster.members()) EXPECT_EQ(member->Wait(), 0) << member->err();
}

TEST(FaultsTest, ATerminatedWorkerThatCannotContributeWasPreempted) {
  const Workspace workspace;
  TinyJob job = OneRegion(2, 120000, 0.3);
  job.lease = "20s";  // The aggregator stands still for ten, and is nobody's loss.
  Cluster cluster(workspace, job);
  cluster.StartAll();
  const RunRecord& record = cluster.record();
  ASSERT_TRUE(Await([&] { return record.Merged() >= 3 || cluster.coordinator().ended(); }));
  const pid_t aggregator = record.PidOf("beijing", "aggregator");
  ASSERT_GT(aggregator, 0);
  ASSERT_TRUE(Freeze(aggregator));
  // Until the leaver has trained what nobody can have taken: steps come with its heartbeats, of which the first may
  // have been on its way and the second may tell of what was before.
  for (int heartbeats = 0; heartbeats < 3; ++heartbeats) {
    const auto steps = [&] {
      const std::vector<Json> metrics = record.Metrics();
      return std::count_if(metrics.begin(), metrics.end(),
                           [](const Json& step) { return step["worker"] == "worker-1"; });
    };
    const auto before = steps();
    ASSERT_TRUE(Await([&] { return steps() > before; }));
  }
  Process& leaver = *cluster.members().back();
  leaver.Signal(SIGTERM);
  EXPECT_EQ(leaver.Wait(), 75) << leaver.err();
  EXPECT_TRUE(absl::StrContains(leaver.err(), "preempted: what was trained could not be contributed")) << leaver.err();
  ASSERT_EQ(::kill(aggregator, SIGCONT), 0);
  ASSERT_EQ(cluster.coordinator().Wait(), 0) << cluster.coordinator().err();
  ExpectBudgetCommittedOnce(record.Report(), Budget(job));
  EXPECT_EQ(record.EventAbout("left", "worker-1").value("region", ""), "beijing") << "and nobody waits for its lease";
  EXPECT_TRUE(record.Events("lost").empty());
}

TEST(FaultsTest, CtrlCEndsEveryProcess) {
  const Workspace workspace;
  const TinyJob job = TwoRegions(50'000'000, 0.3);
  const auto up = workspace.Start({"up", workspace.WriteJob(job), "--run-dir", workspace.Path("run")});
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return record.Merged() >= 1 || up->ended(); }));
  const std::set<pid_t> processes = Descendants(*up, 6);
  const absl::Time begin = absl::Now();
  up->Signal(SIGINT);
  EXPECT_EQ(up->Wait(), 1) << up->err();
  EXPECT_LT(absl::Now() - begin, absl::Seconds(20));
  EXPECT_TRUE(absl::StrContains(up->err(), "stopped by a signal")) << up->err();
  EXPECT_TRUE(absl::StrContains(up->err(), absl::StrCat("goes on with: wukong up --resume ", workspace.Path("run"))))
      << up->err();
  EXPECT_FALSE(absl::StrContains(up->err() + up->out(), "wukong coordinator")) << "that is not how it was begun";
  ExpectAllGone(processes);
  const Json report = record.Report();
  ASSERT_TRUE(report.is_object());
  EXPECT_EQ(report["completed"], false);
  EXPECT_LT(report["tokens_committed"], Budget(job));
  EXPECT_GT(report["tokens_committed"], 0);
  const Result verified = RunToEnd(workspace, {"log", "verify", "--json", workspace.Path("run")});
  ASSERT_EQ(verified.code, 0) << verified.err;
  const Json log = Json::parse(verified.out);
  EXPECT_EQ(report["tokens_committed"], log["tokens_committed"]);
  EXPECT_EQ(report["parameters_sha256"], log["parameters_sha256"]);
}

TEST(FaultsTest, ARunWhoseWorkersAllDivergeEndsAndSaysSo) {
  const Workspace workspace;
  const auto up =
      workspace.Start({"up", workspace.WriteJob(OneRegion(2, kEndless)), "--run-dir", workspace.Path("run"),
                       "--restarts", "0", "--set", "optimizer.kind=sgd", "--set", "optimizer.learning_rate=10", "--set",
                       "optimizer.momentum=0.99", "--set", "optimizer.clip_norm=0"});
  EXPECT_EQ(up->Wait(), 6) << up->err();
  EXPECT_TRUE(absl::StrContains(up->err(), "no worker is left")) << up->err();
  EXPECT_TRUE(RunRecord(workspace.Path("run")).Report()["validation_loss_final"].is_null());
}

TEST(FaultsTest, AClosedTerminalEndsARunAsCtrlCDoes) {
  const Workspace workspace;
  const auto up =
      workspace.Start({"up", workspace.WriteJob(OneRegion(2, kEndless)), "--run-dir", workspace.Path("run")});
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return record.Merged() >= 1 || up->ended(); }));
  up->Signal(SIGHUP);
  EXPECT_EQ(up->Wait(), 1) << up->err();
  const Json report = record.Report();
  ASSERT_TRUE(report.is_object());
  EXPECT_GT(report["tokens_committed"], 0);
  EXPECT_EQ(report["ranges"]["left"],
            report["ranges"]["total"].get<int>() - report["ranges"]["committed_once"].get<int>());
}

TEST(FaultsTest, MembersOfACoordinatorThatIsStoppedMayComeBackToTheNext) {
  const Workspace workspace;
  Cluster cluster(workspace, OneRegion(1, kEndless));
  cluster.StartAll();
  ASSERT_TRUE(Await([&] { return cluster.record().Merged() >= 1 || cluster.coordinator().ended(); }));
  cluster.coordinator().Signal(SIGTERM);
  EXPECT_EQ(cluster.coordinator().Wait(), 1) << cluster.coordinator().err();
  const std::string err = cluster.coordinator().err();
  EXPECT_TRUE(absl::StrContains(err, absl::StrCat("it goes on with: wukong coordinator --run-dir ",
                                                  cluster.record().directory(), " --listen 127.0.0.1:")))
      << err;
  EXPECT_FALSE(absl::StrContains(err, "wukong up")) << "nobody wants the whole job on this machine: " << err;
  for (const auto& member : cluster.members()) EXPECT_EQ(member->Wait(), 75) << member->err();
}

TEST(FaultsTest, ASecondCtrlCKillsWhoeverDoesNotEnd) {
  const Workspace workspace;
  const auto up =
      workspace.Start({"up", workspace.WriteJob(OneRegion(2, kEndless)), "--run-dir", workspace.Path("run")});
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return record.Merged() >= 1 || up->ended(); }));
  const std::set<pid_t> processes = Descendants(*up, 4);
  for (const pid_t pid : processes) ASSERT_TRUE(Freeze(pid)) << up->err();
  const absl::Time begin = absl::Now();
  up->Signal(SIGINT);
  ASSERT_TRUE(Await([&] { return absl::StrContains(up->err(), "another Ctrl-C kills at once") || up->ended(); }));
  EXPECT_TRUE(Await([&] {
    // Those of the first second count as one with the first.
    if (!absl::StrContains(up->err(), "killing what is left")) up->Signal(SIGINT);
    return up->ended();
  }));
  EXPECT_EQ(up->Wait(), 1) << up->err();
  EXPECT_LT(absl::Now() - begin, absl::Seconds(14)) << "that is how long they would have had";
  EXPECT_TRUE(absl::StrContains(up->err(), "killing what is left")) << up->err();
  ExpectAllGone(processes);
  EXPECT_EQ(RunToEnd(workspace, {"log", "verify", workspace.Path("run")}).code, 0);
}

TEST(FaultsTest, CtrlCBeforeTrainingEndsEveryProcess) {
  const Workspace workspace;
  const TinyJob job = TwoRegions(50'000'000, 0.3);
  const auto up = workspace.Start({"up", workspace.WriteJob(job), "--run-dir", workspace.Path("run")});
  const std::set<pid_t> processes = Descendants(*up, 2);  // The coordinator and the first aggregator.
  const absl::Time begin = absl::Now();
  up->Signal(SIGINT);
  EXPECT_EQ(up->Wait(), 1) << up->err();
  EXPECT_LT(absl::Now() - begin, absl::Seconds(20));
  ExpectAllGone(processes);
}

TEST(FaultsTest, KillingUpLeavesNoProcessBehind) {
  const Workspace workspace;
  const TinyJob job = TwoRegions(50'000'000, 0.3);
  const auto up = workspace.Start({"up", workspace.WriteJob(job), "--run-dir", workspace.Path("run")});
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return record.Merged() >= 1 || up->ended(); }));
  const std::set<pid_t> processes = Descendants(*up, 6);
  up->Signal(SIGKILL);
  EXPECT_EQ(up->Wait(), 128 + SIGKILL);
  ExpectAllGone(processes);
}

TEST(FaultsTest, ALostRegionsDataGoesToTheOthers) {
  const Workspace workspace;
  TinyJob job = TwoRegions(80000, 0.3);
  job.start = "15s";  // So long its workers hope for another aggregator.
  const auto up = StartWithoutRestarts(workspace, job);
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return record.Merged() >= 3 || up->ended(); }));
  const pid_t victim = record.PidOf("shenzhen", "aggregator");
  ASSERT_GT(victim, 0) << up->err();
  ASSERT_EQ(::kill(victim, SIGKILL), 0);
  ASSERT_EQ(up->Wait(), 0) << up->err();
  ExpectBudgetCommittedOnce(record.Report(), Budget(job));
  EXPECT_TRUE(record.EventAbout("lost", "aggregator").is_object());
}

TEST(FaultsTest, WithoutRestartsAKilledCoordinatorEndsTheRunWithAnError) {
  const Workspace workspace;
  const TinyJob job = TwoRegions(50'000'000, 0.3);
  const auto up = StartWithoutRestarts(workspace, job);
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return record.Merged() >= 1 || up->ended(); }));
  const std::set<pid_t> processes = Descendants(*up, 6);
  for (const pid_t pid : processes) {
    if (!absl::StrContains(CommandLine(pid), " coordinator ")) continue;
    ASSERT_EQ(::kill(pid, SIGKILL), 0);
  }
  EXPECT_EQ(up->Wait(), 1) << up->err();
  EXPECT_TRUE(absl::StrContains(up->err(), "the coordinator was killed by signal 9")) << up->err();
  ExpectAllGone(processes);
}

TEST(FaultsTest, RolesStartedOneByOneCompleteAJob) {
  const Workspace workspace;
  TinyJob job;
  job.regions = {{"beijing", 1}, {"shenzhen", 1}};
  job.tokens = 20000;
  Cluster cluster(workspace, job);
  // Workers first: they wait for their aggregators.
  for (const char* region : {"beijing", "shenzhen"}) cluster.StartWorker(region);
  for (const char* region : {"shenzhen", "beijing"}) cluster.StartAggregator(region);
  ASSERT_EQ(cluster.coordinator().Wait(), 0) << cluster.coordinator().err();
  for (const auto& member : cluster.members()) EXPECT_EQ(member->Wait(), 0) << member->err();
  ExpectBudgetCommittedOnce(cluster.record().Report(), Budget(job));
}

}  // namespace
}  // namespace wukong::integration
