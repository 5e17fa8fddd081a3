#include "launch/status_text.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace wukong {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;
using Json = nlohmann::ordered_json;

StatusReply Training() {
  StatusReply status;
  status.set_run("tiny-20260101T000000-00ab");
  status.set_phase("training");
  status.set_seconds(38.1);
  status.set_tokens_budget(3000000);
  status.set_tokens_committed(567000);
  status.set_loss(2.4123);
  status.set_tokens_per_second(15043);
  status.set_compute_share(0.991);
  status.set_staleness_mean(0.6);
  status.set_term(2);
  status.set_durable_index(812);
  (*status.mutable_refused())["stale"] = 3;
  (*status.mutable_refused())["fenced"] = 1;
  for (const auto& [role, name] : {std::pair(ROLE_WORKER, "worker-0"), std::pair(ROLE_AGGREGATOR, "aggregator")}) {
    MemberStatus* member = status.add_members();
    member->set_region("beijing");
    member->set_name(name);
    member->set_role(role);
    member->set_state("live");
    member->set_incarnation(role == ROLE_WORKER ? 3 : 1);
    member->set_host("one");
    member->set_heard_seconds_ago(role == ROLE_WORKER ? 0.31 : 130);
    member->mutable_usage()->set_wall_seconds(40);
    member->mutable_usage()->set_compute_seconds(30);
    if (role == ROLE_WORKER) {
      (*member->mutable_usage()->mutable_waiting_seconds())["data"] = 8;
      (*member->mutable_usage()->mutable_waiting_seconds())["answer"] = 0.5;
    }
    member->mutable_usage()->set_tokens_computed(94208);
    member->mutable_usage()->set_peak_memory_bytes(312'400'000);
  }
  return status;
}

TEST(ProgressLineTest, SaysHowWellTheRunDoes) {
  EXPECT_EQ(ProgressLine(Training(), WanBytes{23'800'000, 90'400'000}),
            "  38.1s training  18.9% of 3.00M tokens  loss 2.412   15043 tok/s  computing  99.1%  staleness 0.6  WAN "
            "up 23.8 down 90.4 MB");
  EXPECT_EQ(ProgressLine(Training()),
            "  38.1s training  18.9% of 3.00M tokens  loss 2.412   15043 tok/s  computing  99.1%  staleness 0.6");
}

TEST(ProgressLineTest, SaysWhoIsMissingBeforeTheBeginning) {
  StatusReply status = Training();
  status.set_phase("starting");
  status.set_tokens_committed(0);
  EXPECT_EQ(ProgressLine(status), "  starting: waiting for the first loss");
  status.set_detail("1 of 2 workers of beijing");
  EXPECT_EQ(ProgressLine(status), "  starting: waiting for 1 of 2 workers of beijing");
}

TEST(ProgressLineTest, ASmallBudgetIsNotZero) {
  StatusReply status = Training();
  status.set_tokens_budget(2500);
  EXPECT_THAT(ProgressLine(status), testing::HasSubstr("% of 2.5k tokens"));
}

TEST(ProgressLineTest, SaysWhyNothingIsAcknowledged) {
  StatusReply status = Training();
  status.set_storage_trouble("writing the log: No space left on device");
  EXPECT_EQ(ProgressLine(status),
            "  38.1s training  18.9% of 3.00M tokens  NOT ACKNOWLEDGING: writing the log: No space left on device");
}

TEST(StatusTextTest, ShowsTheRunAndItsMembers) {
  EXPECT_EQ(StatusText(Training()), R"(tiny-20260101T000000-00ab: training, 38.1 s since training began
  tokens committed     567000 of 3000000 (18.9%)
  loss                 2.4123 nats/token, mean of the last steps
  tokens per second    15043
  workers computing    99.1% of their time; waiting for answers 1.2%, waiting for data 20.0%
  staleness            0.6 versions, mean of the last steps
  version              0
  term                 2
  records on the disk  812
  refused              fenced 1, stale 3

  region   name        role        state        life      heard  computing        tokens  peak memory
  beijing  aggregator  aggregator  live            1      2 min                                312 MB
  beijing  worker-0    worker      live            3      0.3 s      75.0%         94208       312 MB
)");
}

TEST(StatusTextTest, TellsWhereMembersAreAndWhyTheyAreGone) {
  StatusReply status = Training();
  status.mutable_members(0)->set_host("two");
  status.mutable_members(0)->set_state("gone");
  status.mutable_members(0)->set_why_gone("silent for 3s");
  status.mutable_members(1)->set_why_gone("of a life before this one");
  EXPECT_THAT(StatusText(status),
              AllOf(HasSubstr("peak memory  host\n"), HasSubstr("312 MB  two\n"),
                    HasSubstr("  worker-0 of beijing: silent for 3s\n"), Not(HasSubstr("before this one"))));
}

TEST(StatusTextTest, PutsTroubleWithTheDiskFirst) {
  StatusReply status = Training();
  EXPECT_THAT(StatusText(status), Not(HasSubstr("NOT ACKNOWLEDGING")));
  status.set_storage_trouble("writing the log: No space left on device");
  EXPECT_THAT(StatusText(status), HasSubstr("since training began\nNOT ACKNOWLEDGING: writing the log"));
}

TEST(StatusTextTest, AnEmptyStatusIsShownAsWell) { EXPECT_THAT(StatusText(StatusReply()), HasSubstr("0 of 0 (0.0%)")); }

TEST(StatusJsonTest, HoldsWhatTheTableHolds) {
  const Json json = StatusJson(Training());
  EXPECT_EQ(json["phase"], "training");
  EXPECT_EQ(json["term"], 2);
  EXPECT_EQ(json["durable_index"], 812);
  EXPECT_EQ(json["storage_trouble"], "");
  EXPECT_EQ(json["refused"]["stale"], 3);
  EXPECT_EQ(json["waiting"], (Json{{"answer", 0.0125}, {"data", 0.2}}));
  EXPECT_EQ(json["members"].size(), 2u);
  EXPECT_EQ(json["members"][1]["name"], "worker-0");
  EXPECT_EQ(json["members"][1]["compute_share"], 0.75);
  EXPECT_EQ(json["members"][1]["host"], "one");
  EXPECT_EQ(json["members"][1]["heard_seconds_ago"], 0.31);
  EXPECT_EQ(json["members"][1]["why_gone"], "");
}

TEST(ReportSummaryTest, ShowsHowARunEnded) {
  const Json report = {
      {"job", "tiny"},
      {"completed", true},
      {"failure", ""},
      {"tokens_committed", 80000},
      {"wall_seconds", 10.0},
      {"tokens_per_second", 8000.0},
      {"validation_loss_initial", 5.5},
      {"validation_loss_final", 2.25},
      {"validation_loss_unigram", 3.0},
      {"compute_share", 0.5},
      {"compute", {{"all", {{"wall_seconds", 40.0}, {"waiting_seconds", {{"nothing_left", 1.0}}}}}}},
      {"ranges", {{"total", 10}, {"committed_once", 10}, {"committed_more_than_once", 0}, {"lost", 0}}},
      {"restarts", {{"total", 3}, {"budget", 100}, {"by_process", {{"coordinator", 2}, {"worker-0 of beijing", 1}}}}},
      {"wan",
       {{"beijing",
         {{"round_trip_ms_p50", 150.0},
          {"round_trip_ms_p99", 190.0},
          {"payload_bytes_up", 1000000},
          {"payload_bytes_down", 2000000}}}}}};
  EXPECT_EQ(ReportSummary(report), R"(tiny: the token budget is committed
  tokens committed     80000 in 10.0 s (8000 tokens/s)
  validation loss      2.2500 nats/token (began at 5.5000; unigram model 3.0000)
  workers computing    50.0% of their time; no data left 2.5%
  data ranges          10, committed once 10, more than once 0, lost 0
  started again        3 times (coordinator 2, worker-0 of beijing 1)
  link beijing         round trip p50 150 ms, p99 190 ms; payload up 1.0 MB, down 2.0 MB
)");
}

TEST(ReportSummaryTest, ShowsWhatAPartOfARunLosesWithItsEnd) {
  Json report = {{"job", "tiny"}, {"completed", false}, {"failure", "stopped by a signal"}};
  report["ledger"]["all"]["tokens_not_used"] = 12288;
  EXPECT_THAT(ReportSummary(report),
              HasSubstr("not used             12288 tokens that workers had trained on are in no version"));
  report["failure"] = "diverged";  // It does not go on.
  EXPECT_THAT(ReportSummary(report), Not(HasSubstr("not used")));
  report["failure"] = "stopped by a signal";
  report["ledger"]["all"]["tokens_not_used"] = Json();  // Nobody knows.
  EXPECT_THAT(ReportSummary(report), Not(HasSubstr("not used")));
}

TEST(ReportSummaryTest, NoReportIsWrongEnoughForACrash) {
  for (const char* text :
       {"null", "[]", "{}", "3", R"({"job": 7, "completed": "yes", "ranges": 3, "wan": "x", "restarts": []})",
        R"({"wan": {"beijing": null}, "restarts": {"total": 1, "by_process": {"a": "b"}}})"}) {
    EXPECT_THAT(ReportSummary(Json::parse(text)), HasSubstr("tokens committed     0 in")) << text;
    EXPECT_FALSE(ReportCompleted(Json::parse(text))) << text;
  }
  EXPECT_THAT(ReportSummary({{"job", "tiny"}, {"failure", "no worker is left"}}),
              StartsWith("tiny: no worker is left"));
}

}  // namespace
}  // namespace wukong
