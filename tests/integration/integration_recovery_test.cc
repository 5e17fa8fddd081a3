// Processes that die and are started again: whoever dies, whenever, the budget is committed exactly once and nobody
// else notices more than a pause.
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/wukong_process.h"

namespace wukong::integration {
namespace {

using ::testing::HasSubstr;

TinyJob TwoRegions(int64_t tokens) {
  TinyJob job;
  job.regions = {{"beijing", 2}, {"shenzhen", 1}};
  job.tokens = tokens;
  job.speed = 0.3;
  job.lease = "2s";
  return job;
}

std::unique_ptr<Process> StartUp(const Workspace& workspace, const TinyJob& job, std::vector<std::string> more = {}) {
  std::vector<std::string> arguments = {"up", workspace.WriteJob(job), "--run-dir", workspace.Path("run")};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return workspace.Start(std::move(arguments));
}

int64_t Restarts(const Json& report, const std::string& process) {
  return report["restarts"]["by_process"].value(process, int64_t{0});
}

Json ProcessIn(const Json& report, const std::string& region, const std::string& name) {
  for (const Json& process : report["processes"]) {
    if (process["region"] == region && process["name"] == name) return process;
  }
  return Json();
}

void KillCoordinator(const RunRecord& record) {
  const pid_t coordinator = record.CoordinatorPid();
  ASSERT_GT(coordinator, 0);
  ASSERT_EQ(::kill(coordinator, SIGKILL), 0);
}

std::set<pid_t> Members(const Process& up) {
  std::set<pid_t> members = ChildrenWith(up, " worker ");
  members.merge(ChildrenWith(up, " aggregator "));
  return members;
}

void ExpectVerified(const Workspace& workspace) {
  const auto verify = workspace.Start({"log", "verify", workspace.Path("run")});
  EXPECT_EQ(verify->Wait(), 0) << verify->out() << verify->err();
}

// ---------------------------------------------------------------- workers and aggregators

TEST(RecoveryTest, AKilledWorkerIsStartedAgainAndTrains) {
  const Workspace workspace;
  const TinyJob job = TwoRegions(150000);
  const auto up = StartUp(workspace, job);
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return record.Merged() >= 3 || up->ended(); }));
  const pid_t victim = record.PidOf("beijing", "worker-1");
  ASSERT_GT(victim, 0) << up->err();
  ASSERT_EQ(::kill(victim, SIGKILL), 0);

  ASSERT_EQ(up->Wait(), 0) << up->err();
  EXPECT_THAT(up->err(),
              HasSubstr("worker-1 of beijing was killed by signal 9 (Killed); it is started again in 100ms"));
  const Json report = record.Report();
  ExpectBudgetCommittedOnce(report, Budget(job));
  EXPECT_EQ(report["restarts"]["total"], 1);
  EXPECT_EQ(report["restarts"]["budget"], 100);
  EXPECT_EQ(Restarts(report, "worker-1 of beijing"), 1);
  EXPECT_EQ(ProcessIn(report, "beijing", "worker-1")["incarnations"], 2);
  EXPECT_NE(record.PidOf("beijing", "worker-1"), victim);
  ExpectVerified(workspace);
}

TEST(RecoveryTest, AWorkerKilledBeforeTrainingIsStartedAgain) {
  const Workspace workspace;
  TinyJob job = TwoRegions(20000);
  const auto up = StartUp(workspace, job);
  pid_t victim = -1;
  ASSERT_TRUE(Await([&] {
    for (const pid_t child : ChildrenWith(*up, " --name worker-1 ")) victim = child;
    return victim > 0 || up->ended();
  }));
  ASSERT_EQ(::kill(victim, SIGKILL), 0) << up->err();
  ASSERT_EQ(up->Wait(), 0) << up->err();
  const Json report = RunRecord(workspace.Path("run")).Report();
  ExpectBudgetCommittedOnce(report, Budget(job));
  EXPECT_EQ(Restarts(report, "worker-1 of beijing"), 1);
}

// Contributions of this region that are merged.
int64_t MergedOf(const RunRecord& record, const std::string& region) {
  std::set<int64_t> members;
  for (const Json& event : record.Events("joined")) {
    if (event["role"] == "aggregator" && event["region"] == region) members.insert(event["member"].get<int64_t>());
  }
  int64_t count = 0;
  for (const Json& event : record.Events("merged")) {
    for (const Json& part : event["contributions"]) count += members.count(part["member"].get<int64_t>()) > 0 ? 1 : 0;
  }
  return count;
}

// The group cannot go on without a rank: all of its workers leave, are started again, and form it anew.
void KillARankOfAGroup(const std::string& name) {
  const Workspace workspace;
  const TinyJob job = TwoRegions(120000);
  const auto up = StartUp(workspace, job, {"--set", "regions.beijing.collective=gloo"});
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return MergedOf(record, "beijing") >= 1 || up->ended(); }));
  const pid_t victim = record.PidOf("beijing", name);
  ASSERT_GT(victim, 0) << up->err();
  ASSERT_EQ(::kill(victim, SIGKILL), 0);

  ASSERT_EQ(up->Wait(), 0) << up->err();
  const Json report = record.Report();
  ExpectBudgetCommittedOnce(report, Budget(job));
  for (const char* worker : {"worker-0", "worker-1"}) {
    EXPECT_EQ(Restarts(report, absl::StrCat(worker, " of beijing")), 1) << up->err();
    EXPECT_EQ(ProcessIn(report, "beijing", worker)["incarnations"], 2);
  }
  EXPECT_EQ(Restarts(report, "worker-0 of shenzhen"), 0);
  ExpectVerified(workspace);
}

TEST(RecoveryTest, AGroupFormsAnewWhenItsFirstRankIsKilled) { KillARankOfAGroup("worker-0"); }
TEST(RecoveryTest, AGroupFormsAnewWhenAnotherRankIsKilled) { KillARankOfAGroup("worker-1"); }

// Its connections stay, so that only the coordinator can say that it is gone; limits.rpc is a minute.
void StopARankOfAGroup(const std::string& name, const std::string& other) {
  const Workspace workspace;
  TinyJob job = TwoRegions(200000);  // The others must not be done before it has come back.
  job.lease = "1s";
  const auto up = StartUp(workspace, job, {"--set", "regions.beijing.collective=gloo"});
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return MergedOf(record, "beijing") >= 1 || up->ended(); }));
  const pid_t victim = record.PidOf("beijing", name);
  const pid_t waiting = record.PidOf("beijing", other);
  ASSERT_GT(victim, 0) << up->err();
  ASSERT_TRUE(Freeze(victim));
  EXPECT_TRUE(Await([&] { return !IsRunning(waiting) || up->ended(); }, absl::Seconds(20))) << up->err();
  EXPECT_TRUE(record.EventAbout("lost", name).is_object()) << up->err();
  ASSERT_EQ(::kill(victim, SIGCONT), 0) << up->err();

  ASSERT_EQ(up->Wait(), 0) << up->err();
  const Json report = record.Report();
  ExpectBudgetCommittedOnce(report, Budget(job));
  for (const std::string& worker : {name, other}) {
    EXPECT_EQ(Restarts(report, absl::StrCat(worker, " of beijing")), 1) << up->err();
  }
  ExpectVerified(workspace);
}

TEST(RecoveryTest, AGroupHearsOfAFirstRankThatStandsStill) { StopARankOfAGroup("worker-0", "worker-1"); }
TEST(RecoveryTest, AGroupHearsOfAnotherRankThatStandsStill) { StopARankOfAGroup("worker-1", "worker-0"); }

// It comes back to find that it was taken for dead: what it still sends must not count, and it must not be lost either.
TEST(RecoveryTest, AWorkerThatWasStoppedPastItsLeaseIsFencedAndStartedAgain) {
  const Workspace workspace;
  TinyJob job = TwoRegions(150000);
  job.lease = "1s";
  const auto up = StartUp(workspace, job);
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return record.Merged() >= 3 || up->ended(); }));
  const pid_t victim = record.PidOf("beijing", "worker-1");
  ASSERT_GT(victim, 0) << up->err();
  ASSERT_TRUE(Freeze(victim));
  EXPECT_TRUE(Await([&] { return record.EventAbout("lost", "worker-1").is_object() || up->ended(); }));
  ASSERT_EQ(::kill(victim, SIGCONT), 0) << up->err();

  ASSERT_EQ(up->Wait(), 0) << up->err();
  EXPECT_THAT(up->err(), HasSubstr("worker-1 of beijing ended with exit code 75; it is started again"));
  const Json report = record.Report();
  ExpectBudgetCommittedOnce(report, Budget(job));
  EXPECT_EQ(Restarts(report, "worker-1 of beijing"), 1);
  EXPECT_TRUE(record.EventAbout("fenced", "worker-1").is_object());
  ExpectVerified(workspace);
}

TEST(RecoveryTest, WorkersOutliveTheirAggregator) {
  const Workspace workspace;
  const TinyJob job = TwoRegions(150000);
  const auto up = StartUp(workspace, job);
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return record.Merged() >= 3 || up->ended(); }));
  const std::set<pid_t> workers = ChildrenWith(*up, " worker ");
  EXPECT_EQ(workers.size(), 3u);
  const pid_t victim = record.PidOf("beijing", "aggregator");
  ASSERT_GT(victim, 0) << up->err();
  ASSERT_EQ(::kill(victim, SIGKILL), 0);
  ASSERT_TRUE(Await([&] {
    const pid_t next = record.PidOf("beijing", "aggregator");
    return (next > 0 && next != victim) || up->ended();
  }));
  EXPECT_EQ(ChildrenWith(*up, " worker "), workers) << up->err();

  ASSERT_EQ(up->Wait(), 0) << up->err();
  const Json report = record.Report();
  ExpectBudgetCommittedOnce(report, Budget(job));
  EXPECT_EQ(report["restarts"]["by_process"], Json({{"aggregator of beijing", 1}}));
  for (const char* worker : {"worker-0", "worker-1"}) {
    EXPECT_EQ(ProcessIn(report, "beijing", worker)["incarnations"], 1) << worker;
  }
  ExpectVerified(workspace);
}

// ---------------------------------------------------------------- the coordinator

TEST(RecoveryTest, ACoordinatorKilledTwiceGoesOnWithTheSameMembers) {
  const Workspace workspace;
  const TinyJob job = TwoRegions(200000);
  const auto up = StartUp(workspace, job, {"--no-standby"});
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return record.Merged() >= 3 || up->ended(); })) << up->err();
  const std::string address = record.CoordinatorAddress();
  const std::set<pid_t> members = Members(*up);
  EXPECT_EQ(members.size(), 5u);
  for (int64_t term = 2; term <= 3; ++term) {
    SCOPED_TRACE(absl::StrCat("term ", term));
    const std::optional<StatusReply> before = AskStatus(address);
    ASSERT_TRUE(before.has_value()) << up->err();
    KillCoordinator(record);
    // It goes on, and not from where it began.
    std::optional<StatusReply> after;
    ASSERT_TRUE(Await([&] {
      after = AskStatus(address);
      return (after.has_value() && after->term() == term && after->tokens_committed() > before->tokens_committed()) ||
             up->ended();
    })) << up->err();
    ASSERT_FALSE(up->ended()) << "too few tokens for this test, or: " << up->err();
    EXPECT_EQ(record.CoordinatorAddress(), address);
  }
  EXPECT_EQ(Members(*up), members) << "nobody else was started again: " << up->err();

  ASSERT_EQ(up->Wait(), 0) << up->err();
  const Json report = record.Report();
  ExpectBudgetCommittedOnce(report, Budget(job));
  EXPECT_EQ(report["term"], 3);
  EXPECT_EQ(report["restarts"]["by_process"], Json({{"coordinator", 2}}));
  EXPECT_THAT(up->err(), HasSubstr("coordinator was killed by signal 9"));
  EXPECT_THAT(up->err(), HasSubstr("the coordinator is away, restarting"));
  ExpectVerified(workspace);
}

// A process that is stopped, or whose machine sleeps, comes back to a clock that has jumped.
TEST(RecoveryTest, ACoordinatorThatWasStoppedPastTheLeaseLosesNobody) {
  const Workspace workspace;
  TinyJob job = TwoRegions(150000);
  job.lease = "1s";
  const auto up = StartUp(workspace, job);
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return record.Merged() >= 3 || up->ended(); })) << up->err();
  const std::set<pid_t> members = Members(*up);
  const pid_t coordinator = record.CoordinatorPid();
  ASSERT_GT(coordinator, 0);
  ASSERT_TRUE(Freeze(coordinator));
  const absl::Time stopped = absl::Now();
  const size_t merged = record.Merged();
  const auto second =
      workspace.Start({"coordinator", "--run-dir", workspace.Path("run"), "--listen", "127.0.0.1:0", "--resume"});
  EXPECT_EQ(second->Wait(), 2) << second->err();
  EXPECT_THAT(second->err(), HasSubstr(absl::StrCat("pid ", coordinator)));
  EXPECT_TRUE(Await([&] { return absl::Now() - stopped > absl::Seconds(3); }));
  ASSERT_EQ(::kill(coordinator, SIGCONT), 0) << up->err();
  // It may first finish a merge that it was stopped in.
  ASSERT_TRUE(Await([&] { return !record.Events("away").empty() || up->ended(); })) << up->err();
  ASSERT_FALSE(record.Events("away").empty()) << "it was not away for as long as this test needs";
  ASSERT_TRUE(Await([&] { return record.Merged() > merged + 1 || up->ended(); })) << up->err();
  EXPECT_EQ(Members(*up), members) << "nobody was started again: " << up->err();

  ASSERT_EQ(up->Wait(), 0) << up->err();
  const Json report = record.Report();
  ExpectBudgetCommittedOnce(report, Budget(job));
  EXPECT_TRUE(record.Events("lost").empty()) << record.Events("lost").front();
  EXPECT_EQ(report["restarts"]["total"], 0) << up->err();
  EXPECT_EQ(report["term"], 1);
  ExpectVerified(workspace);
}

TEST(RecoveryTest, EverybodyMayDieAtOnce) {
  const Workspace workspace;
  const TinyJob job = TwoRegions(150000);
  const auto up = StartUp(workspace, job, {"--no-standby"});
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return record.Merged() >= 3 || up->ended(); }));
  std::set<pid_t> victims = Members(*up);
  victims.merge(ChildrenWith(*up, " coordinator "));
  EXPECT_EQ(victims.size(), 6u);
  for (const pid_t victim : victims) ::kill(victim, SIGKILL);
  ASSERT_EQ(up->Wait(), 0) << up->err();
  const Json report = record.Report();
  ExpectBudgetCommittedOnce(report, Budget(job));
  EXPECT_EQ(report["restarts"]["total"], 6);
  ExpectVerified(workspace);
}

TEST(RecoveryTest, TheBudgetOfRestartsIsKept) {
  const Workspace workspace;
  const auto up = StartUp(workspace, TwoRegions(kEndless), {"--restarts", "1"});
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return record.Merged() >= 1 || up->ended(); })) << up->err();
  const std::string address = record.CoordinatorAddress();
  KillCoordinator(record);
  ASSERT_TRUE(Await([&] {
    const std::optional<StatusReply> status = AskStatus(address);
    return (status.has_value() && status->term() == 2) || up->ended();
  })) << up->err();
  const std::set<pid_t> members = Members(*up);
  KillCoordinator(record);
  EXPECT_EQ(up->Wait(), 1) << up->err();
  EXPECT_THAT(up->err(), HasSubstr("the coordinator was killed by signal 9 (Killed) and is not started again (all 1 "
                                   "restarts of this run (--restarts) are used up)"));
  EXPECT_THAT(up->err(), HasSubstr("--resume"));
  ExpectAllGone(members);
}

TEST(RecoveryTest, ASecondCoordinatorIsTurnedAway) {
  const Workspace workspace;
  const TinyJob job = TwoRegions(kEndless);
  Cluster cluster(workspace, job);
  const std::string pid = std::to_string(cluster.coordinator().pid());
  const auto coordinator =
      workspace.Start({"coordinator", "--run-dir", workspace.Path("run"), "--listen", "127.0.0.1:0", "--resume"});
  EXPECT_EQ(coordinator->Wait(), 2) << coordinator->err();
  EXPECT_THAT(coordinator->err(), HasSubstr(pid));
  const auto up = workspace.Start({"up", "--resume", workspace.Path("run")});
  EXPECT_EQ(up->Wait(), 2) << up->err();
  EXPECT_THAT(up->err(), HasSubstr(pid));
  EXPECT_FALSE(cluster.coordinator().ended());
  EXPECT_EQ(cluster.record().CoordinatorAddress(), cluster.address()) << "what finds the first one is untouched";
}

// ---------------------------------------------------------------- resuming a run

TEST(ResumeTest, ARunGoesOnAfterEverythingWasKilled) {
  const Workspace workspace;
  const TinyJob job = TwoRegions(150000);
  const RunRecord record(workspace.Path("run"));
  {
    const auto up = StartUp(workspace, job);
    ASSERT_TRUE(Await([&] { return record.Merged() >= 3 || up->ended(); }));
    const std::set<pid_t> processes = Descendants(*up, 6);
    up->Signal(SIGKILL);
    EXPECT_EQ(up->Wait(), 128 + SIGKILL) << up->err();
    ExpectAllGone(processes);
  }
  EXPECT_TRUE(record.Report().is_null());
  const auto status = workspace.Start({"status", workspace.Path("run")});
  EXPECT_EQ(status->Wait(), 4) << status->err();
  EXPECT_THAT(status->err(), HasSubstr("--resume"));

  // The job file may be gone; the run directory holds what the run needs.
  std::filesystem::remove(workspace.Path("job.yaml"));
  const auto resumed = workspace.Start({"up", "--resume", workspace.Path("run")});
  ASSERT_EQ(resumed->Wait(), 0) << resumed->err();
  const Json report = record.Report();
  ExpectBudgetCommittedOnce(report, Budget(job));
  EXPECT_EQ(report["term"], 2);
  EXPECT_EQ(report["restarts"]["total"], 0) << "by this `up`";
  ExpectVerified(workspace);

  const auto again = workspace.Start({"up", "--resume", workspace.Path("run") + "/", "--json"});
  EXPECT_EQ(again->Wait(), 0) << again->err();
  EXPECT_THAT(again->err(), HasSubstr("already complete"));
  EXPECT_EQ(Json::parse(again->out(), nullptr, /*allow_exceptions=*/false), report);
  // As a service manager would.
  const auto alone =
      workspace.Start({"coordinator", "--resume", "--run-dir", workspace.Path("run"), "--listen", "127.0.0.1:0"});
  EXPECT_EQ(alone->Wait(), 0) << alone->err();
  EXPECT_EQ(record.Report(), report) << "it says how the run was, and not how this was";
}

TEST(ResumeTest, ARunGoesOnAfterCtrlC) {
  const Workspace workspace;
  const TinyJob job = TwoRegions(100000);
  const RunRecord record(workspace.Path("run"));
  {
    const auto up = StartUp(workspace, job);
    ASSERT_TRUE(Await([&] { return record.Merged() >= 3 || up->ended(); }));
    up->Signal(SIGINT);
    EXPECT_EQ(up->Wait(), 1) << up->err();
  }
  const Json stopped = record.Report();
  EXPECT_EQ(stopped["completed"], false);
  // Meanwhile it lies stopped.
  const auto another =
      workspace.Start({"up", "--resume", workspace.Path("run"), "--set", "optimizer.learning_rate=1e-3"});
  EXPECT_EQ(another->Wait(), 2) << "it would be another run";
  EXPECT_THAT(another->err(), HasSubstr("optimizer.learning_rate=1e-3"));
  const auto refused = workspace.Start({"up", "--resume", workspace.Path("run"), "--set", "limits.lease=150ms"});
  EXPECT_EQ(refused->Wait(), 2) << "a late heartbeat would end it; and the run stays as it was";
  ExpectVerified(workspace);
  const absl::Time goes_on = absl::Now();
  const auto late = workspace.Start({"up", "--resume", workspace.Path("run"), "--set", "stop.wall=1ms"});
  EXPECT_EQ(late->Wait(), 1) << late->err();
  EXPECT_THAT(late->err(), HasSubstr("stop.wall"));
  const auto resumed = workspace.Start({"up", "--resume", workspace.Path("run"), "--set", "stop.wall=1h"});
  ASSERT_EQ(resumed->Wait(), 0) << resumed->err();
  const Json report = record.Report();
  ExpectBudgetCommittedOnce(report, Budget(job));
  EXPECT_LE(report.value("wall_seconds", 0.0),
            stopped.value("wall_seconds", 0.0) + absl::ToDoubleSeconds(absl::Now() - goes_on))
      << "while it lay stopped its time stood still";
}

TEST(ResumeTest, WhatIsNoRunDirectoryIsNamed) {
  const Workspace workspace(/*prepare_data=*/false);
  std::filesystem::create_directories(workspace.Path("empty"));
  workspace.Write("file", "no directory");
  for (const char* name : {"no-such-directory", "empty", "file"}) {
    SCOPED_TRACE(name);
    const std::string path = workspace.Path(name);
    const std::vector<std::vector<std::string>> commands = {
        {"up", "--resume", path}, {"coordinator", "--resume", "--run-dir", path}, {"status", path}};
    for (const std::vector<std::string>& command : commands) {
      const auto process = workspace.Start(command);
      EXPECT_EQ(process->Wait(), 2) << process->err();
      EXPECT_THAT(process->err(), HasSubstr(path));
      EXPECT_THAT(process->err(), HasSubstr("run directory"));
    }
  }
  EXPECT_TRUE(std::filesystem::is_empty(workspace.Path("empty"))) << "nothing was begun there";
}

TEST(ResumeTest, ARunDirectoryThatCannotBeWrittenIsNamed) {
  const Workspace workspace;
  const std::string run = workspace.Path("run");
  const auto resolved = workspace.Start({"validate", workspace.WriteJob(TwoRegions(20000)), "--resolved"});
  ASSERT_EQ(resolved->Wait(), 0) << resolved->err();
  std::filesystem::create_directories(run + "/logs");
  workspace.Write("run/config.resolved.yaml", resolved->out());
  for (const std::string& path : {run + "/logs", run}) ASSERT_EQ(::chmod(path.c_str(), 0555), 0);
  const auto up = workspace.Start({"up", "--resume", run}, [path = run.c_str()] {
    if (::geteuid() != 0) return;
    // Modes do not keep root out; a read-only mount does.
    const bool mounted = ::unshare(CLONE_NEWNS) == 0 &&
                         ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
                         ::mount(path, path, nullptr, MS_BIND, nullptr) == 0 &&
                         ::mount(nullptr, path, nullptr, MS_BIND | MS_REMOUNT | MS_RDONLY, nullptr) == 0;
    if (!mounted) ::_exit(99);
  });
  const std::optional<int> code = up->Wait();
  for (const std::string& path : {run, run + "/logs"}) ::chmod(path.c_str(), 0755);
  if (code == 99) GTEST_SKIP() << "no mount namespaces here";
  EXPECT_EQ(code, 3) << up->err();
  EXPECT_THAT(up->err(), HasSubstr(run));
}

// ---------------------------------------------------------------- wukong status

TEST(StatusTest, ShowsARunThatTrainsAndOneThatIsOver) {
  const Workspace workspace;
  const TinyJob job = TwoRegions(kEndless);
  const auto up = StartUp(workspace, job);
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return record.Merged() >= 1 || up->ended(); })) << up->err();
  const std::string address = record.CoordinatorAddress();
  for (const std::string& target : {address, workspace.Path("run")}) {
    SCOPED_TRACE(target);
    const auto status = workspace.Start({"status", target});
    EXPECT_EQ(status->Wait(), 0) << status->err();
    for (const char* text : {"training", "tokens committed", "beijing", "worker-1", "aggregator", "live"}) {
      EXPECT_THAT(status->out(), HasSubstr(text));
    }
  }
  const auto json = workspace.Start({"status", workspace.Path("run"), "--json"});
  EXPECT_EQ(json->Wait(), 0) << json->err();
  const Json live = Json::parse(json->out(), nullptr, /*allow_exceptions=*/false);
  ASSERT_TRUE(live.is_object()) << json->out();
  EXPECT_EQ(live["phase"], "training");
  EXPECT_EQ(live["term"], 1);
  EXPECT_GT(live["durable_index"], 0);
  EXPECT_EQ(live["storage_trouble"], "");
  EXPECT_EQ(live["tokens_budget"], Budget(job));
  EXPECT_EQ(live["members"].size(), 5u);
  for (const Json& member : live["members"]) {
    EXPECT_NE(member["host"], "") << member;
    EXPECT_LT(member["heard_seconds_ago"], 30) << member;
  }

  const auto watch = workspace.Start({"status", workspace.Path("run"), "--watch", "--every", "100ms", "--json"});
  const auto lines = [&] {
    const std::string out = watch->out();
    return std::vector<std::string>(absl::StrSplit(out, '\n', absl::SkipEmpty()));
  };
  ASSERT_TRUE(Await([&] { return lines().size() >= 3 || watch->ended(); })) << watch->err();
  up->Signal(SIGINT);
  EXPECT_EQ(up->Wait(), 1) << up->err();
  EXPECT_EQ(watch->Wait(), 0) << "it ends with the run: " << watch->err();
  EXPECT_EQ(Json::parse(lines().front())["phase"], "training");
  EXPECT_EQ(Json::parse(lines().back())["phase"], "failed");
  const auto over = workspace.Start({"status", workspace.Path("run")});
  EXPECT_EQ(over->Wait(), 0) << over->err();
  EXPECT_THAT(over->out(), HasSubstr("the run is over"));
  EXPECT_THAT(over->out(), HasSubstr("stopped by a signal\n"));
  EXPECT_THAT(over->out(), HasSubstr(absl::StrCat("wukong up --resume ", workspace.Path("run"))));
  const auto nobody = workspace.Start({"status", address});
  EXPECT_EQ(nobody->Wait(), 4) << nobody->err();
  EXPECT_THAT(nobody->err(), HasSubstr(address));
}

// ---------------------------------------------------------------- fault points

#ifdef WUKONG_FAULT_POINTS

class FaultPointTest : public ::testing::TestWithParam<std::string> {};

TEST_P(FaultPointTest, TheCoordinatorMayDieThere) {
  const Workspace workspace;
  TinyJob job = TwoRegions(30000);
  job.speed = 1;  // The point comes after a number of contributions, not at a time.
  const auto up = StartUp(workspace, job, {"--crash-at", GetParam(), "--set", "limits.snapshot_bytes=20000"});
  ASSERT_EQ(up->Wait(), 0) << up->err();
  const Json report = RunRecord(workspace.Path("run")).Report();
  ExpectBudgetCommittedOnce(report, Budget(job));
  EXPECT_EQ(Restarts(report, "coordinator"), 1) << "the fault did not come";
  ExpectVerified(workspace);
}

// Those of runtime/base/fault_point.cc, some of them not the first time: that is before anybody has trained.
INSTANTIATE_TEST_SUITE_P(Points, FaultPointTest,
                         ::testing::Values("root.before_append", "root.after_append:3", "root.before_fsync:2",
                                           "root.after_fsync:3", "root.before_ack:2", "root.after_ack:3",
                                           "root.before_publish:2", "root.after_publish:2", "snapshot.before_write",
                                           "snapshot.before_rename", "snapshot.before_rename:2",
                                           "snapshot.after_rename:2", "snapshot.before_prune", "snapshot.after_prune"),
                         [](const auto& the_case) {
                           std::string name = the_case.param;
                           std::replace_if(
                               name.begin(), name.end(), [](char c) { return c == '.' || c == ':'; }, '_');
                           return name;
                         });

#endif  // WUKONG_FAULT_POINTS

}  // namespace
}  // namespace wukong::integration
