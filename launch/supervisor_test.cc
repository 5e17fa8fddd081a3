#include "launch/supervisor.h"

#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "launch/exit_code.h"

namespace wukong {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;
using Kind = RestartPolicy::Decision::Kind;

constexpr ProcessKind kCoordinator = ProcessKind::kCoordinator;
constexpr ProcessKind kAggregator = ProcessKind::kAggregator;
constexpr ProcessKind kWorker = ProcessKind::kWorker;
constexpr int kKilled = 128 + SIGKILL;
constexpr int kCrashed = 128 + SIGABRT;
const absl::Duration kLong = absl::Minutes(5);
const absl::Duration kShort = absl::Seconds(1);

// ---------------------------------------------------------------- the policy

TEST(RestartPolicyTest, DecidesByWhoEndedHowAndWhen) {
  struct Row {
    ProcessKind process;
    int code;
    RunStage stage;
    Kind decided;
  };
  const Row rows[] = {
      {kWorker, kKilled, RunStage::kUnderWay, Kind::kRestart},
      {kWorker, kCrashed, RunStage::kUnderWay, Kind::kRestart},
      {kWorker, kExitRestart, RunStage::kUnderWay, Kind::kRestart},
      {kWorker, kExitFailed, RunStage::kUnderWay, Kind::kRestart},
      {kWorker, kExitUnreachable, RunStage::kUnderWay, Kind::kRestart},
      {kWorker, kExitOk, RunStage::kUnderWay, Kind::kLeave},
      {kWorker, kExitUsage, RunStage::kUnderWay, Kind::kGiveUp},
      {kWorker, kExitMachine, RunStage::kUnderWay, Kind::kGiveUp},
      {kAggregator, kKilled, RunStage::kUnderWay, Kind::kRestart},
      {kAggregator, kExitFailed, RunStage::kUnderWay, Kind::kRestart},
      {kAggregator, kExitMachine, RunStage::kUnderWay, Kind::kGiveUp},
      // Before anybody has trained, an error is for the user; who was killed did not make it.
      {kWorker, kKilled, RunStage::kFirstStart, Kind::kRestart},
      {kWorker, kExitRestart, RunStage::kFirstStart, Kind::kRestart},
      {kWorker, kExitFailed, RunStage::kFirstStart, Kind::kGiveUp},
      {kAggregator, kExitUnreachable, RunStage::kFirstStart, Kind::kGiveUp},
      // The coordinator's exit code is the run's, unless it was not its own.
      {kCoordinator, kKilled, RunStage::kUnderWay, Kind::kRestart},
      {kCoordinator, kCrashed, RunStage::kFirstStart, Kind::kRestart},
      {kCoordinator, kExitRestart, RunStage::kUnderWay, Kind::kRestart},
      {kCoordinator, kExitOk, RunStage::kUnderWay, Kind::kLeave},
      {kCoordinator, kExitFailed, RunStage::kUnderWay, Kind::kLeave},
      {kCoordinator, kExitUsage, RunStage::kFirstStart, Kind::kLeave},
      {kCoordinator, kExitMachine, RunStage::kUnderWay, Kind::kLeave},
      {kCoordinator, kExitDiverged, RunStage::kUnderWay, Kind::kLeave},
      // What is over is not started again.
      {kCoordinator, kKilled, RunStage::kOver, Kind::kLeave},
      {kAggregator, kExitFailed, RunStage::kOver, Kind::kLeave},
      {kWorker, kKilled, RunStage::kOver, Kind::kLeave},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(absl::StrCat("process ", static_cast<int>(row.process), " code ", row.code, " stage ",
                              static_cast<int>(row.stage)));
    RestartPolicy policy(10);
    const auto decision = policy.Ended("it", row.process, row.code, kShort, row.stage);
    EXPECT_EQ(static_cast<int>(decision.kind), static_cast<int>(row.decided));
    EXPECT_EQ(decision.reason.empty(), row.decided != Kind::kGiveUp);
    EXPECT_EQ(policy.used(), row.decided == Kind::kRestart ? 1 : 0);
  }
}

std::vector<absl::Duration> Backoffs(RestartPolicy* policy, const std::string& name,
                                     const std::vector<absl::Duration>& lives) {
  std::vector<absl::Duration> backoffs;
  for (const absl::Duration lived : lives) {
    const auto decision = policy->Ended(name, kWorker, kKilled, lived, RunStage::kUnderWay);
    EXPECT_EQ(static_cast<int>(decision.kind), static_cast<int>(Kind::kRestart)) << decision.reason;
    backoffs.push_back(decision.backoff);
  }
  return backoffs;
}

TEST(RestartPolicyTest, WaitsLongerEachTime) {
  RestartPolicy policy(100);
  const std::vector<absl::Duration> lives(4, kShort);
  EXPECT_THAT(Backoffs(&policy, "worker-0", lives), ElementsAre(absl::Milliseconds(100), absl::Milliseconds(200),
                                                                absl::Milliseconds(400), absl::Milliseconds(800)));
  EXPECT_THAT(Backoffs(&policy, "worker-1", {kShort}), ElementsAre(absl::Milliseconds(100))) << "each has its own";
}

TEST(RestartPolicyTest, ALongerLifeResetsTheBackoff) {
  RestartPolicy policy(100);
  EXPECT_THAT(
      Backoffs(&policy, "worker-0", {kShort, kShort, absl::Seconds(5), kShort}),
      ElementsAre(absl::Milliseconds(100), absl::Milliseconds(200), absl::Milliseconds(100), absl::Milliseconds(100)));
}

TEST(RestartPolicyTest, GivesUpOnWhatDiesYoungFiveTimesInARow) {
  RestartPolicy policy(100);
  Backoffs(&policy, "worker-0", {kShort, kShort, kShort, kShort});
  Backoffs(&policy, "worker-1", {kShort});
  const auto decision = policy.Ended("worker-0", kWorker, kKilled, absl::Seconds(4), RunStage::kUnderWay);
  EXPECT_EQ(static_cast<int>(decision.kind), static_cast<int>(Kind::kGiveUp));
  EXPECT_THAT(decision.reason, HasSubstr("5 times in a row"));
}

TEST(RestartPolicyTest, GivesUpOnWhatDivergesFiveTimesInARow) {
  RestartPolicy policy(100);
  for (int life = 1; life <= 5; ++life) {
    const auto decision = policy.Ended("worker-0", kWorker, kExitDiverged, kLong, RunStage::kUnderWay);
    EXPECT_EQ(static_cast<int>(decision.kind), static_cast<int>(life < 5 ? Kind::kRestart : Kind::kGiveUp)) << life;
    EXPECT_EQ(decision.reason, life < 5 ? "" : "5 times in a row it diverged");
  }
}

TEST(RestartPolicyTest, ALifeOfFiveSecondsIsNotYoung) {
  RestartPolicy policy(100);
  const std::vector<absl::Duration> lives = {kShort, kShort, kShort, kShort, absl::Seconds(5),
                                             kShort, kShort, kShort, kShort};
  EXPECT_EQ(Backoffs(&policy, "worker-0", lives).size(), lives.size());
}

TEST(RestartPolicyTest, TheBudgetIsTheWholeRuns) {
  RestartPolicy policy(3);
  Backoffs(&policy, "worker-0", {kLong, kLong});
  Backoffs(&policy, "worker-1", {kLong});
  EXPECT_EQ(policy.used(), 3);
  const auto decision = policy.Ended("aggregator", kAggregator, kKilled, kLong, RunStage::kUnderWay);
  EXPECT_EQ(static_cast<int>(decision.kind), static_cast<int>(Kind::kGiveUp));
  EXPECT_THAT(decision.reason, HasSubstr("all 3 restarts"));
}

TEST(RestartPolicyTest, ABudgetOfZeroRestartsNothing) {
  RestartPolicy policy(0);
  for (const ProcessKind kind : {kCoordinator, kAggregator, kWorker}) {
    const auto decision = policy.Ended("it", kind, kKilled, kLong, RunStage::kUnderWay);
    EXPECT_EQ(static_cast<int>(decision.kind), static_cast<int>(Kind::kGiveUp));
    EXPECT_EQ(decision.reason, "restarts are off");
  }
}

// ---------------------------------------------------------------- the exit code that asks for it

TEST(ExitCodeTest, AnErrorThatIsSafeToRestartFromIsSeventyFive) {
  const absl::Status fenced = absl::AbortedError("this incarnation is fenced");
  EXPECT_EQ(ExitCodeOf(fenced), kExitFailed);
  const absl::Status marked = RestartSafe(fenced);
  EXPECT_EQ(ExitCodeOf(marked), 75);
  EXPECT_EQ(marked.code(), fenced.code());
  EXPECT_EQ(marked.message(), fenced.message());
  EXPECT_EQ(ExitCodeOf(RestartSafe(absl::OkStatus())), kExitOk);
}

// ---------------------------------------------------------------- the supervisor

// Shell commands as processes, and a clock that the test moves.
class SupervisorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_ = ::testing::TempDir() + "/supervisor_XXXXXX";
    ASSERT_NE(::mkdtemp(directory_.data()), nullptr);
  }
  void TearDown() override {
    supervisor_.reset();
    std::error_code error;
    std::filesystem::remove_all(directory_, error);
  }

  void Make(int restarts, absl::Duration restart_after = absl::ZeroDuration()) {
    supervisor_.emplace(Supervisor::Options{directory_, restarts,
                                            [this](ProcessKind) {
                                              ++asked_;
                                              return stage_;
                                            },
                                            [this](const std::string& line) { said_.push_back(line); }, restart_after});
    StartShell("coordinator", kCoordinator, {"exec sleep 100"});
  }

  // One script per start; the last one for all that follow.
  void StartShell(const std::string& name, ProcessKind kind, const std::vector<std::string>& scripts) {
    const auto command = [scripts](int starts) {
      const std::string& script = scripts[std::min<size_t>(scripts.size() - 1, starts)];
      return std::vector<std::string>{"/bin/sh", "-c", script};
    };
    ASSERT_TRUE(supervisor_->Start(name, kind, command, now_).ok());
  }

  // Polls at the same time of the test's clock until `condition`; children need real time to end.
  absl::Status PollUntil(const std::function<bool()>& condition) {
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (true) {
      if (absl::Status status = supervisor_->Poll(now_); !status.ok()) return status;
      if (condition()) return absl::OkStatus();
      if (absl::Now() > deadline) return absl::DeadlineExceededError("the condition did not come true");
      absl::SleepFor(absl::Milliseconds(2));
    }
  }
  bool Logged(const std::string& name, const std::string& text) {
    std::ifstream file(absl::StrCat(directory_, "/", name, ".log"));
    const std::string all((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    return all.find(text) != std::string::npos;
  }

  std::string directory_;
  absl::Time now_ = absl::UnixEpoch();
  std::optional<RunStage> stage_ = RunStage::kUnderWay;
  int asked_ = 0;
  std::vector<std::string> said_;
  std::optional<Supervisor> supervisor_;
};

TEST_F(SupervisorTest, StartsAgainAfterTheBackoff) {
  Make(10);
  StartShell("worker-0 of beijing", kWorker, {"exit 75", "echo second life; exec sleep 100"});
  ASSERT_TRUE(PollUntil([&] { return said_.size() == 1; }).ok());
  EXPECT_THAT(said_[0], HasSubstr("worker-0 of beijing ended with exit code 75; it is started again in 100ms"));
  EXPECT_THAT(supervisor_->restarts(), IsEmpty()) << "not yet";
  now_ += absl::Milliseconds(99);
  ASSERT_TRUE(supervisor_->Poll(now_).ok());
  EXPECT_THAT(supervisor_->restarts(), IsEmpty());
  now_ += absl::Milliseconds(1);
  ASSERT_TRUE(PollUntil([&] { return Logged("worker-0-of-beijing", "second life"); }).ok());
  EXPECT_THAT(supervisor_->restarts(), ElementsAre(Pair("worker-0 of beijing", 1)));
}

TEST_F(SupervisorTest, WhomAnExperimentKillsAgainAndAgainComesBackEachTime) {
  Make(100, absl::Milliseconds(300));
  StartShell("worker-0 of beijing", kWorker, {"exec sleep 100"});
  for (int death = 1; death <= 7; ++death) {
    now_ += absl::Seconds(1);
    ASSERT_TRUE(supervisor_->Signal("worker-0 of beijing", SIGKILL)) << death;
    ASSERT_TRUE(PollUntil([&] { return said_.size() == static_cast<size_t>(death); }).ok());
    EXPECT_THAT(said_.back(), HasSubstr("it is started again in 300ms"));
    now_ += absl::Milliseconds(300);
    ASSERT_TRUE(PollUntil([&] { return supervisor_->RunningPid("worker-0 of beijing") != 0; }).ok());
  }
}

TEST_F(SupervisorTest, WhoEndsAsMeantIsLeft) {
  Make(10);
  StartShell("worker-0 of beijing", kWorker, {"exit 0"});
  StartShell("worker-1 of beijing", kWorker, {"exit 75"});
  ASSERT_TRUE(PollUntil([&] { return said_.size() == 1; }).ok());
  EXPECT_THAT(said_[0], HasSubstr("worker-1"));
  EXPECT_EQ(asked_, 1) << "nobody need be asked about the other";
}

TEST_F(SupervisorTest, AsksAgainWhileNobodyCanTellHowFarTheRunIs) {
  Make(10);
  stage_ = std::nullopt;
  StartShell("worker-0 of beijing", kWorker, {"exit 1"});
  ASSERT_TRUE(PollUntil([&] { return asked_ >= 3; }).ok());
  EXPECT_THAT(said_, IsEmpty());
  stage_ = RunStage::kOver;
  ASSERT_TRUE(supervisor_->Poll(now_).ok());
  now_ += kLong;
  ASSERT_TRUE(supervisor_->Poll(now_).ok());
  EXPECT_THAT(said_, IsEmpty()) << "the run had failed, and so did its worker";
  EXPECT_THAT(supervisor_->restarts(), IsEmpty());
}

TEST_F(SupervisorTest, DoesNotStartWhenTheRunIsOverMeanwhile) {
  Make(10);
  StartShell("worker-0 of beijing", kWorker, {"exit 75"});
  ASSERT_TRUE(PollUntil([&] { return said_.size() == 1; }).ok());
  stage_ = RunStage::kOver;
  now_ += kLong;
  ASSERT_TRUE(supervisor_->Poll(now_).ok());
  stage_ = RunStage::kUnderWay;
  ASSERT_TRUE(supervisor_->Poll(now_).ok());
  EXPECT_THAT(supervisor_->restarts(), IsEmpty());
}

TEST_F(SupervisorTest, AWorkerThatIsGoneForGoodIsAWarningWithItsLog) {
  Make(10);
  StartShell("worker-0 of beijing", kWorker, {"echo no such device; exit 3"});
  ASSERT_TRUE(PollUntil([&] { return said_.size() == 1; }).ok());
  EXPECT_THAT(said_[0], HasSubstr("warning: worker-0 of beijing ended with exit code 3 and is not started again"));
  EXPECT_THAT(said_[0], HasSubstr("no such device"));
}

TEST_F(SupervisorTest, KnowsWhenTheLastWorkerIsGoneForGood) {
  Make(10);
  StartShell("worker-0 of beijing", kWorker, {"exit 3"});
  StartShell("worker-1 of beijing", kWorker, {"exec sleep 100"});
  ASSERT_TRUE(PollUntil([&] { return said_.size() == 1; }).ok());
  EXPECT_THAT(said_[0], HasSubstr("the run goes on"));
  EXPECT_EQ(supervisor_->given_up_code(), 3);
  EXPECT_FALSE(supervisor_->no_worker_left());
  ASSERT_TRUE(supervisor_->Signal("worker-1 of beijing", SIGKILL));
  ASSERT_TRUE(PollUntil([&] { return said_.size() == 2; }).ok());
  EXPECT_THAT(said_[1], HasSubstr("it is started again"));
  supervisor_->Abandon("worker-1 of beijing");
  EXPECT_TRUE(PollUntil([&] { return supervisor_->no_worker_left(); }).ok());
  EXPECT_FALSE(supervisor_->Owns("worker-1 of beijing", ::getpid()));
  StartShell("worker-2 of beijing", kWorker, {"exit 0"});
  EXPECT_FALSE(supervisor_->no_worker_left()) << "it works";
  ASSERT_TRUE(PollUntil([&] { return !supervisor_->Signal("worker-2 of beijing", 0); }).ok());
  EXPECT_FALSE(supervisor_->no_worker_left()) << "it left as it was meant to";
}

TEST_F(SupervisorTest, AnAggregatorThatIsGoneForGoodEndsTheRun) {
  Make(10);
  StartShell("aggregator of beijing", kAggregator, {"echo no such device; exit 3"});
  const absl::Status status = PollUntil([] { return false; });
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(status.message(), HasSubstr("aggregator of beijing ended with exit code 3"));
  EXPECT_THAT(status.message(), HasSubstr("cannot go on without it"));
  EXPECT_THAT(status.message(), HasSubstr("no such device"));
}

TEST_F(SupervisorTest, TheRunGoesOnWithoutWhoIsAbandoned) {
  Make(10);
  StartShell("aggregator of beijing", kAggregator, {"exit 3"});  // A reason to end the run.
  StartShell("worker-0 of beijing", kWorker, {"exit 75"});
  supervisor_->Abandon("aggregator of beijing");
  ASSERT_TRUE(PollUntil([&] { return said_.size() == 1; }).ok());
  EXPECT_THAT(said_[0], HasSubstr("worker-0 of beijing ended with exit code 75; it is started again"));
  supervisor_->Abandon("worker-0 of beijing");
  now_ += absl::Seconds(10);
  ASSERT_TRUE(PollUntil([&] { return !supervisor_->Signal("aggregator of beijing", 0); }).ok());
  EXPECT_THAT(supervisor_->restarts(), IsEmpty()) << "also where it was decided before";
  EXPECT_EQ(said_.size(), 1u);
}

TEST_F(SupervisorTest, WithoutRestartsTheOthersGoOnWithoutAnAggregator) {
  Make(0);
  StartShell("aggregator of beijing", kAggregator, {"kill -9 $$"});
  ASSERT_TRUE(PollUntil([&] { return said_.size() == 1; }).ok());
  EXPECT_THAT(said_[0], HasSubstr("aggregator of beijing was killed by signal 9"));
  EXPECT_THAT(said_[0], HasSubstr("the run goes on"));
}

TEST_F(SupervisorTest, AnErrorBeforeAnybodyHasTrainedEndsTheRun) {
  Make(10);
  stage_ = RunStage::kFirstStart;
  StartShell("worker-0 of beijing", kWorker, {"echo out of luck; exit 1"});
  const absl::Status status = PollUntil([] { return false; });
  EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
  EXPECT_THAT(status.message(), HasSubstr("before training began"));
  EXPECT_THAT(status.message(), HasSubstr("out of luck"));
}

TEST_F(SupervisorTest, TheCoordinatorIsStartedAgainWithAnotherCommandLine) {
  supervisor_.emplace(Supervisor::Options{directory_, 10, [this](ProcessKind) { return stage_; },
                                          [this](const std::string& line) { said_.push_back(line); }});
  StartShell("coordinator", kCoordinator, {"kill -9 $$", "echo resumed; exec sleep 100"});
  EXPECT_TRUE(supervisor_->coordinator_runs());
  ASSERT_TRUE(PollUntil([&] { return said_.size() == 1; }).ok());
  EXPECT_FALSE(supervisor_->coordinator_runs());
  EXPECT_FALSE(supervisor_->coordinator_ending().has_value()) << "it comes back";
  now_ += absl::Seconds(1);
  ASSERT_TRUE(PollUntil([&] { return Logged("coordinator", "resumed"); }).ok());
  EXPECT_TRUE(supervisor_->coordinator_runs());
  EXPECT_EQ(supervisor_->coordinator_starts(), 2);
}

class StandbyTest : public SupervisorTest {
 protected:
  // `coordinator` and `standby` are scripts.
  void Make(int restarts, const std::string& coordinator, const std::string& standby) {
    Supervisor::Options options;
    options.log_directory = directory_;
    options.restarts = restarts;
    options.stage = [this](ProcessKind) { return stage_; };
    options.say = [this](const std::string& line) { said_.push_back(line); };
    options.standby = [this, standby]() -> std::optional<std::vector<std::string>> {
      ++asked_;
      if (!wanted_) return std::nullopt;
      return std::vector<std::string>{"/bin/sh", "-c", standby};
    };
    supervisor_.emplace(std::move(options));
    StartShell("coordinator", kCoordinator, {coordinator, "echo started anew; exec sleep 100"});
  }
  absl::Status PollUntilLogged(const std::string& text) {
    return PollUntil([&] { return Logged("coordinator", text); });
  }
  bool wanted_ = true;
};

TEST_F(StandbyTest, IsStartedTwoSecondsAfterTheCoordinatorIfItIsWanted) {
  Make(10, "exec sleep 100", "echo standing by; exec sleep 100");
  now_ += absl::Milliseconds(1999);
  ASSERT_TRUE(supervisor_->Poll(now_).ok());
  EXPECT_EQ(asked_, 0);
  now_ += absl::Milliseconds(1);
  wanted_ = false;
  ASSERT_TRUE(supervisor_->Poll(now_).ok());
  EXPECT_EQ(asked_, 1);
  wanted_ = true;
  ASSERT_TRUE(PollUntilLogged("standing by").ok());
  EXPECT_EQ(asked_, 2) << "one is enough";
}

TEST_F(StandbyTest, IsTheCoordinatorOnceThatOneDied) {
  Make(10, "exec sleep 100", "echo standing by; exec sleep 100");
  now_ += absl::Seconds(2);
  ASSERT_TRUE(PollUntilLogged("standing by").ok());
  ASSERT_TRUE(supervisor_->Signal("coordinator", SIGKILL));
  ASSERT_TRUE(PollUntil([&] { return said_.size() == 1; }).ok());
  EXPECT_THAT(said_[0], HasSubstr("coordinator was killed by signal 9 (Killed); its standby takes over (restart 1 of"));
  EXPECT_TRUE(supervisor_->coordinator_runs());
  EXPECT_EQ(supervisor_->coordinator_starts(), 2);
  EXPECT_THAT(supervisor_->restarts(), ElementsAre(Pair("coordinator", 1)));
  EXPECT_EQ(asked_, 1) << "the next one has to wait for its time";
  now_ += absl::Seconds(2);
  ASSERT_TRUE(supervisor_->Poll(now_).ok());
  EXPECT_EQ(asked_, 2);
  EXPECT_FALSE(Logged("coordinator", "started anew"));
}

TEST_F(StandbyTest, ADeadOneTakesNothingOver) {
  Make(10, "exec sleep 100", "echo standing by; kill -9 $$");
  now_ += absl::Seconds(2);
  ASSERT_TRUE(PollUntil([&] { return said_.size() == 1; }).ok());
  EXPECT_THAT(said_[0], HasSubstr("the coordinator's standby was killed by signal 9 (Killed); another one is started "
                                  "in 4s"));
  now_ += absl::Milliseconds(3999);
  ASSERT_TRUE(supervisor_->Poll(now_).ok());
  EXPECT_EQ(asked_, 1);
  ASSERT_TRUE(supervisor_->Signal("coordinator", SIGKILL));
  ASSERT_TRUE(PollUntil([&] { return said_.size() == 2; }).ok());
  EXPECT_THAT(said_[1], HasSubstr("it is started again in 100ms (restart 1 of"));
  now_ += absl::Milliseconds(100);
  ASSERT_TRUE(PollUntilLogged("started anew").ok());
}

TEST_F(StandbyTest, NeedsABudgetToTakeOver) {
  Make(0, "exec sleep 100", "exec sleep 100");
  now_ += kLong;
  ASSERT_TRUE(supervisor_->Poll(now_).ok());
  EXPECT_EQ(asked_, 0);
}

TEST_F(StandbyTest, EndsWhenAllIsStopped) {
  Make(10, "trap 'echo coordinator ends; exit 1' TERM; echo ready; while :; do sleep 0.05; done",
       "trap 'echo standby ends; exit 0' TERM; echo standing by; while :; do sleep 0.01; done");
  now_ += absl::Seconds(2);
  ASSERT_TRUE(PollUntil([&] { return Logged("coordinator", "ready") && Logged("coordinator", "standing by"); }).ok());
  supervisor_->Stop(SIGTERM);
  EXPECT_TRUE(Logged("coordinator", "standby ends"));
  EXPECT_TRUE(Logged("coordinator", "coordinator ends"));
  ASSERT_TRUE(supervisor_->coordinator_ending().has_value());
  EXPECT_EQ(supervisor_->coordinator_ending()->code, 1) << "the coordinator's, not the standby's";
}

TEST_F(SupervisorTest, NothingIsStartedOnceTheCoordinatorHasEnded) {
  supervisor_.emplace(Supervisor::Options{directory_, 10, [this](ProcessKind) { return stage_; },
                                          [this](const std::string& line) { said_.push_back(line); }});
  StartShell("coordinator", kCoordinator, {"exit 1"});
  StartShell("worker-0 of beijing", kWorker, {"exit 75"});
  ASSERT_TRUE(PollUntil([&] { return supervisor_->coordinator_ending().has_value(); }).ok());
  EXPECT_EQ(supervisor_->coordinator_ending()->code, 1);
  EXPECT_EQ(supervisor_->coordinator_ending()->reason, "");
  now_ += kLong;
  ASSERT_TRUE(supervisor_->Poll(now_).ok());
  EXPECT_THAT(supervisor_->restarts(), IsEmpty());
}

TEST_F(SupervisorTest, ACoordinatorThatMayNotComeBackSaysWhy) {
  supervisor_.emplace(Supervisor::Options{directory_, 0, [this](ProcessKind) { return stage_; },
                                          [this](const std::string& line) { said_.push_back(line); }});
  StartShell("coordinator", kCoordinator, {"kill -9 $$"});
  ASSERT_TRUE(PollUntil([&] { return supervisor_->coordinator_ending().has_value(); }).ok());
  EXPECT_EQ(supervisor_->coordinator_ending()->code, kKilled);
  EXPECT_EQ(supervisor_->coordinator_ending()->reason, "restarts are off");
}

TEST_F(SupervisorTest, StopEndsEverythingAndKnowsHowTheCoordinatorEnded) {
  supervisor_.emplace(Supervisor::Options{directory_, 10, [this](ProcessKind) { return stage_; },
                                          [this](const std::string& line) { said_.push_back(line); }});
  StartShell("coordinator", kCoordinator, {"trap 'exit 1' TERM; echo ready; while :; do sleep 0.05; done"});
  StartShell("worker-0 of beijing", kWorker, {"echo ready; exec sleep 100"});
  ASSERT_TRUE(PollUntil([&] { return Logged("coordinator", "ready") && Logged("worker-0-of-beijing", "ready"); }).ok());
  const absl::Time begin = absl::Now();
  supervisor_->Stop(SIGTERM);
  EXPECT_LT(absl::Now() - begin, absl::Seconds(14)) << "orphans are not waited for as long as members are";
  ASSERT_TRUE(supervisor_->coordinator_ending().has_value());
  EXPECT_EQ(supervisor_->coordinator_ending()->code, 1);
}

TEST_F(SupervisorTest, WhoIsInAHurryWaitsForNobody) {
  bool hurry = false;
  Supervisor::Options options{directory_, 10, [this](ProcessKind) { return stage_; },
                              [this](const std::string& line) { said_.push_back(line); }};
  options.hurry = [&] { return std::exchange(hurry, true); };  // From the second time on.
  supervisor_.emplace(options);
  const std::string deaf = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
  StartShell("coordinator", kCoordinator, {deaf});
  StartShell("worker-0 of beijing", kWorker, {deaf});
  ASSERT_TRUE(PollUntil([&] { return Logged("coordinator", "ready") && Logged("worker-0-of-beijing", "ready"); }).ok());
  const absl::Time begin = absl::Now();
  supervisor_->Stop(SIGTERM);
  EXPECT_LT(absl::Now() - begin, absl::Seconds(14)) << "that is how long they would have had";
  ASSERT_TRUE(supervisor_->coordinator_ending().has_value());
  EXPECT_EQ(supervisor_->coordinator_ending()->code, kKilled);
}

}  // namespace
}  // namespace wukong
