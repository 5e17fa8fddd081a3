// Scenarios with faults on real processes, and faults that are ordered in a running job.
#include <signal.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/integration/wukong_process.h"

namespace wukong::integration {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

std::string Read(const std::string& path) {
  std::ifstream file(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

// Two regions of two workers whose steps take 20 ms; some 6 s without faults.
std::string ScenarioText(const std::string& more) {
  return absl::StrCat(
      "name: test\n"
      "workload: {fidelity: counter, samples: 4k, step: 20ms, parameters: 200}\n"
      "regions: [{name: beijing, workers: 2}, {name: shenzhen, workers: 2}]\n"
      "wan: {rtt: 20ms, bandwidth: 100Mbit}\n"
      "limits: {heartbeat: 100ms, lease: 2s}\n"
      "restarts: {after: 300ms}\n"
      "expect: {within: 80s}\n",
      more);
}

struct Outcome {
  int code = -1;
  Json result;
  std::string folder;
  std::string out;
};

Outcome RunScenario(const Workspace& workspace, const std::string& more, const std::string& network = "relay") {
  workspace.Write("scenario.yaml", ScenarioText(more));
  const auto process = workspace.Start(
      {"chaos", "run", "scenario.yaml", "--run-dir", workspace.Path("run"), "--network", network, "--json"});
  Outcome run;
  run.code = process->Wait(absl::Seconds(150)).value_or(-1);
  run.out = process->out() + process->err();
  run.folder = workspace.Path("run/experiment");
  run.result = Json::parse(process->out(), nullptr, false);
  return run;
}

// All that can be checked on processes, and that every fault came to pass.
void ExpectAllHold(const Outcome& run) {
  for (const char* name : {"I1", "I3", "I4", "I8", "I9", "I10", "I11", "I12", "fired"}) {
    EXPECT_EQ(run.result["verdicts"].value(name, ""), "holds") << name;
  }
}

TEST(ChaosRunTest, ProcessesOfEveryKindDieAndEachSampleCountsOnce) {
  const Workspace workspace(/*prepare_data=*/false);
  const Outcome run = RunScenario(workspace,
                                  "timeline:\n"
                                  "  - {fault: kill, target: [beijing/worker-1], at: 1s}\n"
                                  "  - {fault: freeze, target: [shenzhen/worker-0], at: 1500ms, for: 3s}\n"
                                  "  - {fault: kill, target: [shenzhen], at: 2s}\n"
                                  "  - {fault: kill, target: [root], at: 3s}\n");
  ASSERT_EQ(run.code, 0) << run.out;
  ExpectAllHold(run);
  EXPECT_EQ(run.result["samples_committed"], 4000);
  EXPECT_EQ(run.result["loss"], 4000) << "the counter itself";
  EXPECT_EQ(run.result["faults_observed"]["kill"], 3);
  EXPECT_GE(run.result["restarts"]["total"], 3);
  EXPECT_EQ(run.result["binary_sha256"].get<std::string>().size(), 64u);
  const std::string faults = Read(run.folder + "/faults.csv");
  EXPECT_THAT(faults, HasSubstr("0,kill,beijing/worker-1,"));
  EXPECT_THAT(faults, HasSubstr("3,kill,root,"));
  EXPECT_THAT(Read(run.folder + "/progress.csv"), HasSubstr(",4000,"));
  // The folder repeats itself.
  const auto again = workspace.Start({"sim", run.folder + "/scenario.yaml", "--json"});
  EXPECT_EQ(again->Wait(), 0) << again->err();
}

TEST(ChaosRunTest, BadLinksAndBadWorkersAreOutlived) {
  const Workspace workspace(/*prepare_data=*/false);
  const Outcome run =
      RunScenario(workspace,
                  "timeline:\n"
                  "  - {fault: cut, target: [beijing], at: 1s, for: 2s}\n"
                  "  - {fault: latency, target: [shenzhen], factor: 5, at: 1s, for: 2s}\n"
                  "  - {fault: bandwidth, target: [shenzhen], factor: 0.1, at: 1s, for: 2s, direction: up}\n"
                  "  - {fault: nan, target: [shenzhen/worker-1], at: 1s, for: 1s}\n"
                  "  - {fault: slow, target: [shenzhen/worker-0], factor: 3, at: 1s, for: 3s}\n");
  ASSERT_EQ(run.code, 0) << run.out;
  EXPECT_EQ(run.result["verdicts"]["I10"], "holds");
  EXPECT_EQ(run.result["loss"], 4000);
  EXPECT_GE(run.result["longest_pause_seconds"], 0.0);
  const RunRecord record(workspace.Path("run"));
  EXPECT_EQ(record.Events("fault_heard").size(), 2u);
  EXPECT_THAT(Read(run.folder + "/plot.gp"), HasSubstr("rectangle"));
}

// A root that stands still holds up neither what ends its own freeze nor what happens to others.
TEST(ChaosRunTest, FaultsKeepTheirTimesWhileTheRootStandsStill) {
  const Workspace workspace(/*prepare_data=*/false);
  const Outcome run = RunScenario(workspace,
                                  "timeline:\n"
                                  "  - {fault: freeze, target: [root], at: 1s, for: 1s}\n"
                                  "  - {fault: cut, target: [shenzhen], at: 1200ms, for: 300ms}\n"
                                  "  - {fault: kill, target: [beijing/worker-1], at: 1300ms}\n"
                                  "  - {fault: nan, target: [shenzhen/worker-0], at: 1400ms, for: 1s}\n");
  ASSERT_EQ(run.code, 0) << run.out;
  ExpectAllHold(run);
  int lasting = 0;
  std::ifstream faults(run.folder + "/faults.csv");
  for (std::string line; std::getline(faults, line);) {
    const std::vector<std::string> columns = absl::StrSplit(line, ',');
    const double wanted = columns[1] == "freeze" ? 1.0 : columns[1] == "cut" ? 0.3 : 0;
    if (wanted == 0) continue;
    ++lasting;
    EXPECT_NEAR(std::stod(columns[4]) - std::stod(columns[3]), wanted, 0.25) << line;
  }
  EXPECT_EQ(lasting, 2);
}

// At four seconds its lease has run out.
TEST(ChaosRunTest, AnOrderForWhoIsDeadHoldsUpNoOther) {
  const Workspace workspace(/*prepare_data=*/false);
  workspace.Write("scenario.yaml",
                  absl::StrReplaceAll(ScenarioText("timeline:\n"
                                                   "  - {fault: kill, target: [beijing/worker-0], at: 500ms}\n"
                                                   "  - {fault: slow, target: [beijing/worker-0], factor: 2, at: 4s}\n"
                                                   "  - {fault: nan, target: [shenzhen/worker-0], at: 4s, for: 1s}\n"),
                                      {{"300ms", "0s"}}));
  const auto process = workspace.Start({"chaos", "run", "scenario.yaml", "--run-dir", workspace.Path("run"), "--json"});
  EXPECT_EQ(process->Wait(absl::Seconds(150)), 1) << process->err();
  const Json result = Json::parse(process->out(), nullptr, false);
  EXPECT_EQ(result["faults_observed"]["nan"], 1) << process->out();
  EXPECT_EQ(result["verdicts"]["fired"], "timeline[1] never happened: this run shows nothing");
}

TEST(ChaosRunTest, PacketsAreDroppedBetweenNetworksAndNothingIsLost) {
  const Workspace workspace(/*prepare_data=*/false);
  const Outcome run = RunScenario(workspace,
                                  "timeline:\n"
                                  "  - {fault: cut, target: [beijing], at: 1s, for: 1s}\n"
                                  "  - {fault: loss, target: [shenzhen], probability: 5%, at: 1s, for: 3s}\n"
                                  "  - {fault: kill, target: [beijing], at: 3s}\n"
                                  "  - {fault: kill, target: [root], at: 4s}\n",
                                  "namespaces");
  if (run.code == 3) {
    EXPECT_THAT(run.out, HasSubstr("network namespaces need root with CAP_SYS_ADMIN, or user namespaces"));
    GTEST_SKIP() << run.out;
  }
  ASSERT_EQ(run.code, 0) << run.out;
  EXPECT_EQ(run.result["network"], "namespaces");
  EXPECT_EQ(run.result["loss"], 4000);
  EXPECT_EQ(run.result["verdicts"]["fired"], "holds");
  const Json report = RunRecord(workspace.Path("run")).Report();
  EXPECT_GT(report["wan"]["shenzhen"]["emulated_losses"], 0) << "of packets";
  EXPECT_GT(report["wan"]["beijing"]["wire_bytes_up"], report["wan"]["beijing"]["payload_bytes_up"]) << "with headers";
}

TEST(ChaosRunTest, TheKernelsNetemIsUsedOrTheMachineSaysThatItHasNone) {
  const Workspace workspace(/*prepare_data=*/false);
  const Outcome run = RunScenario(workspace,
                                  "timeline:\n"
                                  "  - {fault: cut, target: [beijing], at: 1s, for: 1s}\n"
                                  "  - {fault: loss, target: [shenzhen], probability: 5%, at: 1s, for: 3s}\n",
                                  "netem");
  if (run.code == 3) {
    EXPECT_THAT(run.out, AnyOf(HasSubstr("network namespaces need"),
                               HasSubstr("needs iproute2's tc and ip, and a kernel with sch_netem")));
    return;
  }
  ASSERT_EQ(run.code, 0) << run.out;
  EXPECT_EQ(run.result["network"], "netem");
  EXPECT_EQ(run.result["loss"], 4000);
  EXPECT_GT(RunRecord(workspace.Path("run")).Report()["wan"]["shenzhen"]["emulated_losses"], 0) << "of packets";
}

// All workers are taken for dead, and the coordinator dies before anything but that made it write its log.
TEST(ChaosRunTest, WhoWasFencedStaysFencedWhenTheRootDies) {
  const Workspace workspace(/*prepare_data=*/false);
  const Outcome run = RunScenario(workspace,
                                  "timeline:\n"
                                  "  - {fault: freeze, target: ['*/*'], at: 1s, for: 5s}\n"
                                  "  - {fault: kill, target: [root], at: 4500ms}\n");
  ASSERT_EQ(run.code, 0) << run.out;
  EXPECT_EQ(run.result["loss"], 4000);
}

// Numbers of the timeline in the order in which they struck the root, with what the coordinator said of them.
std::vector<Json> Struck(const Workspace& workspace, const std::string& fault) {
  std::vector<Json> struck;
  for (Json& event : RunRecord(workspace.Path("run")).Events("fault_struck")) {
    if (event["fault"] == fault) struck.push_back(std::move(event));
  }
  return struck;
}

TEST(ChaosRunTest, ADiskThatFailsAndPowerThatIsLostCostNothingThatWasAcknowledged) {
  const Workspace workspace(/*prepare_data=*/false);
  const Outcome run = RunScenario(workspace,
                                  "timeline:\n"
                                  "  - {fault: disk_full, at: 1s, for: 1500ms}\n"
                                  "  - {fault: disk_error, at: 3s, for: 1s}\n"
                                  "  - {fault: power_loss, at: 4400ms}\n");
  ASSERT_EQ(run.code, 0) << run.out;
  ExpectAllHold(run);
  EXPECT_EQ(run.result["loss"], 4000) << "the counter itself";
  EXPECT_EQ(run.result["restarts"]["total"], 1);
  EXPECT_GE(run.result["longest_pause_seconds"].get<double>(), 1.0) << "nothing is merged while the disk is full";
  const std::string log = Read(workspace.Path("run/logs/coordinator.log"));
  EXPECT_THAT(log, HasSubstr("nothing is acknowledged"));
  EXPECT_THAT(log, HasSubstr("No space left on device"));
  EXPECT_THAT(log, HasSubstr("Input/output error"));
  const std::vector<Json> losses = Struck(workspace, "power_loss");
  ASSERT_EQ(losses.size(), 1u);
  EXPECT_GT(losses[0]["bytes_unsynced"], 0) << "a loss of power that had nothing to lose shows nothing";
  EXPECT_THAT(Read(run.folder + "/faults.csv"), HasSubstr("2,power_loss,root,"));
}

TEST(ChaosRunTest, TheRootFailsAtItsEvents) {
  const Workspace workspace(/*prepare_data=*/false);
  const Outcome run = RunScenario(workspace,
                                  "timeline:\n"
                                  "  - {fault: power_loss, on: after_append_before_ack, version: 5}\n"
                                  "  - {fault: kill, target: [root], on: after_ack, version: 12}\n"
                                  "  - {fault: freeze, target: [root], on: after_publish, version: 20, for: 1s}\n"
                                  "  - {fault: power_loss, on: after_publish, version: 25}\n");
  ASSERT_EQ(run.code, 0) << run.out;
  EXPECT_EQ(run.result["verdicts"]["fired"], "holds");
  EXPECT_EQ(run.result["loss"], 4000);
  EXPECT_EQ(run.result["restarts"]["total"], 3);
  std::vector<std::pair<std::string, int64_t>> places;
  for (const Json& event : RunRecord(workspace.Path("run")).Events("fault_struck")) {
    places.emplace_back(event["on"], event["version"]);
  }
  ASSERT_EQ(places.size(), 4u) << "each strikes once, in all lives of the coordinator";
  const std::pair<const char*, int64_t> expected[] = {
      {"after_append_before_ack", 5}, {"after_ack", 12}, {"after_publish", 20}, {"after_publish", 25}};
  for (size_t i = 0; i < places.size(); ++i) {
    EXPECT_EQ(places[i].first, expected[i].first);
    EXPECT_GE(places[i].second, expected[i].second);
  }
}

TEST(ChaosRunTest, OthersFailAtTheRootsEvents) {
  const Workspace workspace(/*prepare_data=*/false);
  const Outcome run =
      RunScenario(workspace,
                  "timeline:\n"
                  "  - {fault: kill, target: [beijing/worker-1, shenzhen], on: after_ack, version: 5}\n"
                  "  - {fault: cut, target: [shenzhen], on: after_publish, version: 10, for: 1s}\n"
                  "  - {fault: nan, target: [beijing/worker-0], on: after_publish, version: 12, for: 1s}\n"
                  "  - {fault: kill, target: [root], on: after_append_before_ack, version: 15}\n"
                  "  - {fault: kill, target: [beijing], on: after_append_before_ack, version: 20}\n");
  ASSERT_EQ(run.code, 0) << run.out;
  ExpectAllHold(run);
  EXPECT_EQ(run.result["loss"], 4000);
  EXPECT_EQ(run.result["faults_observed"]["kill"], 4);
  EXPECT_EQ(run.result["faults_observed"]["cut"], 1);
  std::vector<int64_t> versions;
  for (const Json& event : RunRecord(workspace.Path("run")).Events("fault_due")) versions.push_back(event["version"]);
  ASSERT_EQ(versions.size(), 4u) << "each is told of once, in all lives of the coordinator";
  for (size_t i = 0; i < versions.size(); ++i) EXPECT_GE(versions[i], (std::vector<int64_t>{5, 10, 12, 20})[i]);
}

TEST(ChaosRunTest, WhenFaultsHaveEndedTheCoreGoesOnWithoutTheOthers) {
  const Workspace workspace(/*prepare_data=*/false);
  const Outcome run = RunScenario(workspace,
                                  "seed: 2\n"
                                  "timeline:\n"
                                  "  - {fault: kill, target: ['*/**'], every: 1s}\n"
                                  "  - {fault: freeze, target: [beijing/worker-0], at: 1s, for: 100s}\n"
                                  "  - {fault: cut, target: [shenzhen], at: 2s, for: 100s}\n"
                                  "  - {fault: slow, target: ['*/*'], factor: 20, at: 1500ms}\n"
                                  "quiesce: {after: 3s, within: 20s}\n");
  ASSERT_EQ(run.code, 0) << run.out;
  ExpectAllHold(run);
  EXPECT_EQ(run.result["loss"], 4000);
  EXPECT_EQ(run.result["left_out"], Json::parse("[{\"target\":\"beijing/worker-0\",\"how\":\"dead\"},"
                                                " {\"target\":\"shenzhen\",\"how\":\"cut off\"}]"))
      << "as in the simulator, which has the same seed";
}

TEST(ChaosRunTest, AnEndThatNeverComesFailsTheRun) {
  const Workspace workspace(/*prepare_data=*/false);
  const Outcome run = RunScenario(workspace, "quiesce: {after: 1000s}\n");
  EXPECT_EQ(run.code, 1) << run.out;
  EXPECT_EQ(run.result["verdicts"].value("fired", ""), "quiesce never happened: this run shows nothing");
}

TEST(ChaosRunTest, AnEventThatNeverComesFailsTheRun) {
  const Workspace workspace(/*prepare_data=*/false);
  const Outcome run = RunScenario(workspace, "timeline: [{fault: power_loss, on: after_publish, version: 100000}]\n");
  EXPECT_EQ(run.code, 1) << run.out;
  EXPECT_THAT(run.result["verdicts"].value("fired", ""), HasSubstr("timeline[0] never happened"));
}

TEST(ChaosRunTest, WhatDoesNotHoldFailsTheRun) {
  const Workspace workspace(/*prepare_data=*/false);
  const Outcome run = RunScenario(workspace,
                                  "timeline:\n"
                                  "  - {fault: kill, target: [beijing/worker-1], at: 1000s}\n");
  EXPECT_EQ(run.code, 1) << run.out;
  EXPECT_THAT(run.result["verdicts"].value("fired", ""), HasSubstr("timeline[0] never happened"));
  EXPECT_EQ(run.result["passed"], false);
}

TEST(ChaosRunTest, WhatCannotBeDoneToProcessesIsSaid) {
  const Workspace workspace(/*prepare_data=*/false);
  const std::pair<const char*, const char*> cases[] = {
      {"timeline: [{fault: reorder, probability: 0.1, target: [beijing], at: 1s, for: 1s}]",
       "scenario.yaml:8: timeline[0].fault: cannot be done to real processes (expected kill, power_loss,"},
      {"timeline: [{fault: kill, target: [tokyo], at: 1s}]", "there is no region tokyo"},
      {"backend: sim", "scenario.yaml:8: backend: this scenario is for the simulator"},
  };
  for (const auto& [more, message] : cases) {
    const Outcome run = RunScenario(workspace, more);
    EXPECT_EQ(run.code, 2) << more;
    EXPECT_THAT(run.out, HasSubstr(message));
  }
  workspace.Write("scenario.yaml", absl::StrReplaceAll(ScenarioText("quiesce: {after: 5s}"), {{"300ms", "0s"}}));
  const auto no_restarts = workspace.Start({"chaos", "run", "scenario.yaml"});
  EXPECT_EQ(no_restarts->Wait(), 2);
  EXPECT_THAT(no_restarts->err(), HasSubstr("scenario.yaml:8: quiesce: real processes that died must come back"));
  workspace.Write("scenario.yaml", ScenarioText(""));
  std::filesystem::create_directory(workspace.Path("taken"));
  workspace.Write("taken/file", "");
  const auto process = workspace.Start({"chaos", "run", "scenario.yaml", "--run-dir", workspace.Path("taken")});
  EXPECT_EQ(process->Wait(), 2);
  EXPECT_THAT(process->err(), HasSubstr("is not empty"));
}

TinyJob TwoWorkers(int64_t tokens) {
  TinyJob job;
  job.regions = {{"beijing", 2}};
  job.tokens = tokens;
  return job;
}

// In the workspace's directory "run"; until something was merged, or the run has ended.
std::unique_ptr<Process> StartAllowingFaults(const Workspace& workspace, const TinyJob& job,
                                             const std::vector<std::string>& more = {}) {
  workspace.Write("job.yaml", workspace.Yaml(job) + "fault_injection: allowed\n");
  std::vector<std::string> arguments = {"up", "job.yaml", "--run-dir", workspace.Path("run")};
  arguments.insert(arguments.end(), more.begin(), more.end());
  auto up = workspace.Start(arguments);
  const RunRecord record(workspace.Path("run"));
  Await([&] { return record.Merged() > 0 || up->ended(); });
  return up;
}

TEST(ChaosInjectTest, AFaultReachesARunningJobThatAllowsIt) {
  const Workspace workspace;
  const TinyJob job = TwoWorkers(400000);
  const auto up = StartAllowingFaults(workspace, job);
  const RunRecord record(workspace.Path("run"));
  ASSERT_GT(record.Merged(), 0) << up->err();
  const auto inject = workspace.Start({"chaos", "inject", "kill", "beijing/worker-0", "--run-dir", "run"});
  ASSERT_EQ(inject->Wait(), 0) << inject->err();
  EXPECT_THAT(inject->out(), HasSubstr("kill ordered (number 1) for worker worker-0 of beijing"));
  ASSERT_TRUE(Await([&] { return record.Events("lost").size() == 1 || up->ended(); }));
  EXPECT_EQ(record.EventAbout("lost", "worker-0").value("region", ""), "beijing");
  EXPECT_EQ(up->Wait(), 0) << up->err();
  EXPECT_EQ(record.Report()["restarts"]["total"], 1);
  ExpectBudgetCommittedOnce(record.Report(), Budget(job));

  const auto late = workspace.Start({"chaos", "inject", "kill", "beijing/worker-0", "--run-dir", "run"});
  EXPECT_EQ(late->Wait(), 4) << "nobody is there any more: " << late->err();
  EXPECT_THAT(late->err(), HasSubstr("the run in run is over: wukong status run shows"));
}

TEST(ChaosInjectTest, AnyRankOfAGroupIsSlowedDown) {
  const Workspace workspace;
  const TinyJob job = TwoWorkers(60000);
  const auto up = StartAllowingFaults(workspace, job, {"--set", "regions.beijing.collective=gloo"});
  const RunRecord record(workspace.Path("run"));
  ASSERT_GT(record.Merged(), 0) << up->err();
  // Until the end: how many steps a time has depends on the machine.
  const auto inject = workspace.Start(
      {"chaos", "inject", "slow", "beijing/worker-1", "--factor", "10", "--for", "1h", "--run-dir", "run"});
  ASSERT_EQ(inject->Wait(), 0) << inject->err();
  EXPECT_EQ(up->Wait(), 0) << up->err();
  ExpectBudgetCommittedOnce(record.Report(), Budget(job));
  // Both compute halves of the same steps.
  std::map<int64_t, double> first;
  int slowed = 0;
  for (const Json& step : record.Metrics()) {
    if (step["worker"] == "worker-0") first[step["step"]] = step["compute_seconds"];
  }
  for (const Json& step : record.Metrics()) {
    if (step["worker"] != "worker-1" || first.count(step["step"]) == 0) continue;
    if (step["compute_seconds"].get<double>() > 5 * first[step["step"]]) ++slowed;
  }
  EXPECT_GE(slowed, 100) << "of " << first.size() << " steps";
}

TEST(ChaosInjectTest, TheDiskOfARunningJobFillsUpAndItsPowerFails) {
  const Workspace workspace;
  const TinyJob job = TwoWorkers(400000);
  const auto up = StartAllowingFaults(workspace, job);
  const RunRecord record(workspace.Path("run"));
  ASSERT_GT(record.Merged(), 0) << up->err();
  const std::pair<std::vector<std::string>, const char*> wrong[] = {
      {{"disk_full", "root"}, "needs a time"},
      {{"power_loss", "beijing"}, "happens to the root's disk"},
      {{"kill", "root", "--on", "after_lunch"}, "is no event (expected after_append_before_ack,"},
  };
  for (const auto& [flags, message] : wrong) {
    std::vector<std::string> arguments = {"chaos", "inject"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    arguments.insert(arguments.end(), {"--run-dir", "run"});
    const auto process = workspace.Start(arguments);
    EXPECT_EQ(process->Wait(), 2) << process->err();
    EXPECT_THAT(process->err(), HasSubstr(message));
  }
  const auto full = workspace.Start({"chaos", "inject", "disk_full", "root", "--for", "5s", "--run-dir", "run"});
  ASSERT_EQ(full->Wait(), 0) << full->err();
  EXPECT_THAT(full->out(), HasSubstr("disk_full ordered (number 1) for root; events.jsonl says fault_struck"));
  ASSERT_TRUE(Await([&] { return !Struck(workspace, "disk_full").empty() || up->ended(); }));
  const auto status = workspace.Start({"status", "run"});
  ASSERT_EQ(status->Wait(), 0) << status->err();
  EXPECT_THAT(status->out(), HasSubstr("NOT ACKNOWLEDGING"));
  const auto power =
      workspace.Start({"chaos", "inject", "power_loss", "root", "--on", "after_append_before_ack", "--run-dir", "run"});
  ASSERT_EQ(power->Wait(), 0) << power->err();
  EXPECT_EQ(up->Wait(), 0) << up->err();
  EXPECT_EQ(Struck(workspace, "disk_full").size(), 1u);
  EXPECT_EQ(Struck(workspace, "power_loss").size(), 1u);
  EXPECT_EQ(record.Report()["restarts"]["by_process"]["coordinator"], 1);
  ExpectBudgetCommittedOnce(record.Report(), Budget(job));
  const auto verify = workspace.Start({"log", "verify", "run"});
  EXPECT_EQ(verify->Wait(), 0) << verify->err();
}

TEST(ChaosInjectTest, AJobThatDoesNotAllowItIsLeftAlone) {
  const Workspace workspace;
  TinyJob job;
  job.regions = {{"beijing", 1}};
  job.tokens = 100000;
  workspace.WriteJob(job);
  const auto up = workspace.Start({"up", "job.yaml", "--run-dir", workspace.Path("run")});
  const RunRecord record(workspace.Path("run"));
  ASSERT_TRUE(Await([&] { return record.Merged() > 0; })) << up->err();
  const auto inject = workspace.Start({"chaos", "inject", "freeze", "beijing", "--for", "5s", "--run-dir", "run"});
  EXPECT_EQ(inject->Wait(), 2);
  EXPECT_THAT(inject->err(), HasSubstr("fault_injection: allowed"));
  for (const std::vector<std::string>& flags :
       std::vector<std::vector<std::string>>{{"explode", "root", "--run-dir", "run"},
                                             {"freeze", "root", "--for", "soon", "--run-dir", "run"},
                                             {"freeze", "root", "--for", "5m", "--run-dir", "run"},
                                             {"kill", "root"},
                                             {"kill", "root", "--run-dir", "nowhere"}}) {
    std::vector<std::string> arguments = {"chaos", "inject"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    EXPECT_EQ(workspace.Start(arguments)->Wait(), 2) << flags[0];
  }
  EXPECT_EQ(up->Wait(), 0) << up->err();
}

}  // namespace
}  // namespace wukong::integration
