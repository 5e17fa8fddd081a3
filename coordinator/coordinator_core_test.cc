#include "coordinator/coordinator_core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/member_usage.h"
#include "coordinator/test_cluster.h"
#include "runtime/base/random.h"

namespace wukong {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Phase = CoordinatorCore::Phase;

TEST(CoordinatorSizesTest, TheBudgetIsRoundedUpToWholeOptimizerSteps) {
  Job job = MakeJob();
  EXPECT_EQ(StepSamples(job), 2);
  EXPECT_EQ(TotalSamples(job), 40);
  job.mutable_stop()->set_tokens(161);
  EXPECT_EQ(TotalSamples(job), 42);
  job.mutable_stop()->set_tokens(1);
  EXPECT_EQ(TotalSamples(job), 2);
}

TEST(CoordinatorJoinTest, AnUnknownRegionIsToldWhichThereAre) {
  Cluster c;
  const absl::Status status = c.TryJoin(ROLE_WORKER, "shanghai", "").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no region 'shanghai'; it has beijing, shenzhen"));
  GetJobRequest request;
  request.set_region("beijing");
  const auto reply = c.core.GetJob(request);
  ASSERT_TRUE(reply.ok());
  EXPECT_EQ(reply->run(), "run-1");
  EXPECT_EQ(reply->parameters(), 1000);
  EXPECT_EQ(reply->job().regions_size(), 2);
}

TEST(CoordinatorJoinTest, OnlyAnAggregatorThatSaysSoBringsANewRegion) {
  Cluster c;
  c.Start();
  for (const Role role : {ROLE_AGGREGATOR, ROLE_WORKER}) {
    const absl::Status status = c.TryJoin(role, "tokyo", "").status();
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
    EXPECT_THAT(std::string(status.message()), HasSubstr("an aggregator that is started with --new-region"));
  }
  EXPECT_EQ(c.TryJoin(ROLE_WORKER, "tokyo", "", kDigest, true).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(c.TryJoin(ROLE_AGGREGATOR, "tokyo", "", "fedcba9876543210", true).status().code(),
            absl::StatusCode::kFailedPrecondition);
  for (const std::string& name : {std::string(), std::string("to kyo"), std::string("-tokyo"), std::string(64, 'x')}) {
    const absl::Status status = c.TryJoin(ROLE_AGGREGATOR, name, "", kDigest, true).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(std::string(status.message()), HasSubstr("at most 63 letters, digits and '-', got \"" + name + "\""));
  }
  GetJobRequest request;
  request.set_region("tokyo");
  EXPECT_EQ(c.core.GetJob(request).status().code(), absl::StatusCode::kNotFound) << "no attempt has made the region";
  request.set_new_region(true);
  ASSERT_TRUE(c.core.GetJob(request).ok());
  EXPECT_EQ(c.core.GetJob(request)->job().regions_size(), 2) << "and asking makes none";

  const Process aggregator = c.Join(ROLE_AGGREGATOR, "tokyo", "agg", /*new_region=*/true);
  const auto reply = c.core.GetJob(request);
  ASSERT_TRUE(reply.ok());
  ASSERT_EQ(reply->job().regions_size(), 3);
  const Region& region = reply->job().regions(2);
  EXPECT_EQ(region.name(), "tokyo");
  EXPECT_EQ(region.workers(), 0) << "nobody is waited for";
  EXPECT_EQ(region.device(), "cpu");
  EXPECT_EQ(region.collective(), COLLECTIVE_NONE);
  EXPECT_EQ(region.threads(), 1);
  // The flag stays in whatever starts the aggregator again.
  const Process again = c.Join(ROLE_AGGREGATOR, "tokyo", "agg", /*new_region=*/true);
  EXPECT_EQ(again.key.member, aggregator.key.member);
  EXPECT_EQ(again.key.incarnation, Incarnation(2));
  EXPECT_EQ(c.core.GetJob(request)->job().regions_size(), 3);
}

TEST(CoordinatorJoinTest, ANewRegionWorksLikeAnyOther) {
  Cluster c;
  c.Start();
  const Process aggregator = c.Join(ROLE_AGGREGATOR, "tokyo", "agg", /*new_region=*/true);
  Process worker = c.Join(ROLE_WORKER, "tokyo", "");
  c.Want(&worker, 4);
  ASSERT_FALSE(worker.held.empty());
  int64_t samples = 0;
  for (const LeasedRange& range : worker.held) samples += range.size();
  c.Commit(aggregator, &worker);
  EXPECT_EQ(c.core.ledger().committed(), samples);
  Process stranger;
  stranger.held = c.b0.held;
  std::string detail;
  EXPECT_EQ(c.core.Admit(c.ManifestOf(aggregator, stranger), LogRecord(), &detail), VERDICT_RANGES);

  StatusReply status;
  c.core.FillStatus(&status, c.now);
  int in_tokyo = 0;
  for (const MemberStatus& member : status.members()) in_tokyo += member.region() == "tokyo" ? 1 : 0;
  EXPECT_EQ(in_tokyo, 2);
  nlohmann::ordered_json report;
  c.core.FillReport(&report);
  EXPECT_TRUE(report["compute"]["regions"].contains("tokyo"));
  EXPECT_TRUE(report["wan"].contains("tokyo"));
  bool added = false;
  for (const auto& record : c.Effects<CoordinatorCore::Record>()) {
    added = added || (record.event["event"] == "region_added" && record.event["region"] == "tokyo");
  }
  EXPECT_TRUE(added);
  // It goes as any region goes.
  c.Want(&worker, 4);
  EXPECT_GT(c.core.ledger().LeasedIn(2), 0);
  for (int i = 0; i < 3; ++i) {
    c.now += absl::Seconds(5);
    c.BeatAllBut(nullptr);
    c.core.Tick(c.now);
  }
  EXPECT_EQ(c.core.ledger().LeasedIn(2), 0);
}

TEST(CoordinatorStartTest, NobodyWaitsForARegionThatTheJobDoesNotName) {
  Cluster c;
  Process tokyo = c.Join(ROLE_AGGREGATOR, "tokyo", "agg", /*new_region=*/true);
  Process worker = c.Join(ROLE_WORKER, "tokyo", "w0");
  c.Want(&worker, 4);
  EXPECT_EQ(c.core.phase(), Phase::kStarting) << "and it stands in for none that the job names";
  c.Start();
}

TEST(CoordinatorJoinTest, AnotherModelIsRefused) {
  Cluster c;
  const absl::Status status = c.TryJoin(ROLE_AGGREGATOR, "beijing", "agg", "fedcba9876543210").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("agg of beijing was built for another model"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("fedcba987654"));
}

TEST(CoordinatorJoinTest, AWorkerComesAfterItsAggregator) {
  Cluster c;
  EXPECT_EQ(c.TryJoin(ROLE_WORKER, "beijing", "").status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(c.TryJoin(ROLE_UNSPECIFIED, "beijing", "").status().code(), absl::StatusCode::kInvalidArgument);
  c.Join(ROLE_AGGREGATOR, "beijing", "agg");
  const auto first = c.TryJoin(ROLE_WORKER, "beijing", ""), second = c.TryJoin(ROLE_WORKER, "beijing", "");
  ASSERT_TRUE(first.ok() && second.ok());
  EXPECT_EQ(first->parent_address(), "beijing:1");
  EXPECT_NE(first->name(), second->name()) << "two without a name are two workers";
  EXPECT_NE(first->rank(), second->rank());
}

TEST(CoordinatorJoinTest, WhoLivesOnAnotherMachineKeepsItsPlaceUntilItIsSilent) {
  Cluster c;
  c.Start();
  const absl::Duration half_a_lease = absl::Nanoseconds(MakeJob().limits().lease_ns()) / 2;
  c.host = "b-host";
  const absl::Status second = c.TryJoin(ROLE_AGGREGATOR, "beijing", "agg").status();
  EXPECT_EQ(second.code(), absl::StatusCode::kUnavailable) << "it may come again";
  EXPECT_THAT(std::string(second.message()),
              ::testing::ContainsRegex("aggregator agg of beijing is process [0-9]+ of a-host, which was heard"));
  EXPECT_EQ(c.TryJoin(ROLE_AGGREGATOR, "beijing", "other").status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(c.TryJoin(ROLE_WORKER, "beijing", "b0").status().message()),
              HasSubstr("take another --name"));
  EXPECT_TRUE(c.TryBeat(&c.aggregator_b).ok() && c.TryBeat(&c.b0).ok()) << "nobody lost a place";
  c.Join(ROLE_WORKER, "beijing", "b9");
  c.now += half_a_lease;
  EXPECT_TRUE(c.TryBeat(&c.b0).ok());
  const Process next = c.Join(ROLE_AGGREGATOR, "beijing", "agg");
  EXPECT_EQ(next.key.incarnation, Incarnation(2));
  EXPECT_EQ(c.TryJoin(ROLE_WORKER, "beijing", "b0").status().code(), absl::StatusCode::kUnavailable);
  c.host = "a-host";
  EXPECT_EQ(c.Join(ROLE_WORKER, "beijing", "b0").key.incarnation, Incarnation(2)) << "started anew where it was";
}

TEST(CoordinatorJoinTest, TheSameNameAgainIsANewLifeAndTheOldOneIsFenced) {
  Cluster c;
  c.Start();
  c.Want(&c.b0, 4);
  Process old = c.b0;
  const Process again = c.Join(ROLE_WORKER, "beijing", "b0");
  EXPECT_EQ(again.key.member, old.key.member);
  EXPECT_EQ(again.key.incarnation, Incarnation(2));
  const absl::Status replaced = c.TryBeat(&old).status();
  EXPECT_EQ(replaced.code(), absl::StatusCode::kAlreadyExists) << "it must not come back and replace the other";
  EXPECT_THAT(std::string(replaced.message()),
              ::testing::ContainsRegex("is fenced: process [0-9]+ of a-host has its place now"));
  EXPECT_THAT(Fences(c.Beat(&c.aggregator_b)), ElementsAre(FenceOf(old)));
  const int64_t leased = c.core.ledger().leased();
  EXPECT_GT(leased, 0) << "not before the aggregator says that it takes nothing more";
  c.Beat(&c.aggregator_b, FenceDoneFor(old.key, {}));
  EXPECT_LT(c.core.ledger().leased(), leased);
  c.b0 = again;
  c.Want(&c.b0, 4);  // The new life goes on.
  EXPECT_FALSE(c.b0.held.empty());
}

TEST(CoordinatorJoinTest, ANewLifeIsToldHowFastTheOldOneWas) {
  Cluster c;
  c.Start();
  HeartbeatRequest request;
  request.set_samples_per_second(12.5);
  c.Beat(&c.b0, request);
  EXPECT_EQ(c.TryJoin(ROLE_WORKER, "beijing", "b0")->samples_per_second(), 12.5);
  EXPECT_EQ(c.TryJoin(ROLE_WORKER, "beijing", "b1")->samples_per_second(), 0) << "it never made a step";
}

HeartbeatRequest Refusals(const Process& sender, Verdict verdict, int64_t count, bool quarantined) {
  HeartbeatRequest request;
  RefusedCount* refused = request.mutable_usage()->add_refused();
  refused->set_member(sender.key.member.value());
  refused->set_verdict(verdict);
  refused->set_count(count);
  if (quarantined) request.add_quarantined(sender.key.member.value());
  return request;
}

TEST(CoordinatorGuardsTest, WhatAnAggregatorRefusedIsCountedBySenderAndReason) {
  Cluster c;
  c.Start();
  for (const int64_t count : {1, 1, 3}) c.Beat(&c.aggregator_b, Refusals(c.b0, VERDICT_NORM, count, false));
  std::vector<int64_t> told;
  for (const auto& record : c.Effects<CoordinatorCore::Record>()) {
    if (record.event["event"] != "refused") continue;
    EXPECT_EQ(record.event["name"], "worker b0 of beijing");
    EXPECT_EQ(record.event["by"], "aggregator agg of beijing");
    EXPECT_EQ(record.event["reason"], "norm");
    told.push_back(record.event["contributions"]);
  }
  EXPECT_THAT(told, ElementsAre(1, 2)) << "each once";
  // Another life of the aggregator counts anew.
  c.aggregator_b = c.Join(ROLE_AGGREGATOR, "beijing", "agg");
  c.Beat(&c.aggregator_b, Refusals(c.b0, VERDICT_NORM, 2, false));
  Process stranger;
  stranger.key.member = MemberId(77);
  c.Beat(&c.aggregator_s, Refusals(stranger, VERDICT_FENCED, 1, false));
  const std::map<std::string, int64_t> expected = {{"b0 of beijing: norm", 5}, {"member 77 of shenzhen: fenced", 1}};
  EXPECT_EQ(c.core.RefusedBySender(), expected);
  StatusReply status;
  c.core.FillStatus(&status, c.now);
  EXPECT_EQ(status.refused().at("b0 of beijing: norm"), 5);
  nlohmann::ordered_json report;
  c.core.FillReport(&report);
  EXPECT_EQ(report["contributions"]["rejected_by_sender"]["b0 of beijing: norm"], 5);
}

TEST(CoordinatorGuardsTest, AWorkerInQuarantineGetsNoData) {
  Cluster c;
  c.Start();
  const auto state = [&] {
    StatusReply status;
    c.core.FillStatus(&status, c.now);
    for (const MemberStatus& member : status.members()) {
      if (member.name() == "b0") return member.state();
    }
    return std::string();
  };
  c.Beat(&c.aggregator_b, Refusals(c.b0, VERDICT_NON_FINITE, 3, true));
  EXPECT_EQ(state(), "quarantined");
  const LeasedRange refused = c.b0.held[0];
  HeartbeatRequest request;
  *request.add_released() = RangeToProto(refused);
  request.set_want_samples(4);
  const HeartbeatReply reply = c.Beat(&c.b0, request);
  EXPECT_EQ(reply.granted_size(), 0) << "what was refused must come to another";
  EXPECT_FALSE(reply.exhausted()) << "it may ask again";
  EXPECT_EQ(c.Want(&c.b1, 4).granted(0).begin(), refused.begin);
  c.Beat(&c.aggregator_s);
  EXPECT_EQ(state(), "quarantined") << "another region's aggregator does not end it";
  c.Beat(&c.aggregator_b, Refusals(c.b0, VERDICT_NON_FINITE, 3, false));
  EXPECT_EQ(state(), "live");
  EXPECT_GT(c.Want(&c.b0, 4).granted_size(), 0);
}

TEST(CoordinatorStartTest, NobodyGetsDataBeforeAllAreReady) {
  Cluster c;
  c.aggregator_b = c.Join(ROLE_AGGREGATOR, "beijing", "agg");
  c.b0 = c.Join(ROLE_WORKER, "beijing", "b0");
  c.b1 = c.Join(ROLE_WORKER, "beijing", "b1");
  for (Process* worker : {&c.b0, &c.b1}) {
    const HeartbeatReply reply = c.Want(worker, 8);
    EXPECT_EQ(reply.granted_size(), 0);
    EXPECT_FALSE(reply.exhausted()) << "there will be data";
  }
  c.aggregator_s = c.Join(ROLE_AGGREGATOR, "shenzhen", "agg");
  c.s0 = c.Join(ROLE_WORKER, "shenzhen", "s0");
  c.Beat(&c.s0);
  EXPECT_EQ(c.core.phase(), Phase::kStarting) << "s0 has joined, but not asked for data";
  c.now += absl::Seconds(3);
  EXPECT_GT(c.Want(&c.s0, 8).granted_size(), 0);
  EXPECT_EQ(c.core.phase(), Phase::kTraining);
  EXPECT_EQ(c.core.training_started(), c.now);
  EXPECT_GT(c.Want(&c.b0, 8).granted_size(), 0);
}

TEST(CoordinatorStartTest, NobodyGetsDataWhileTheStartIsHeld) {
  Cluster c;
  c.core.HoldStart(true, c.now);
  c.Join(ROLE_AGGREGATOR, "beijing", "agg");
  c.Join(ROLE_AGGREGATOR, "shenzhen", "agg");
  std::vector<Process> workers = {c.Join(ROLE_WORKER, "beijing", "w0"), c.Join(ROLE_WORKER, "beijing", "w1"),
                                  c.Join(ROLE_WORKER, "shenzhen", "w0")};
  for (Process& worker : workers) EXPECT_EQ(c.Want(&worker, 4).granted_size(), 0);
  EXPECT_EQ(c.core.phase(), CoordinatorCore::Phase::kStarting);
  c.core.HoldStart(false, c.now);
  EXPECT_EQ(c.core.phase(), CoordinatorCore::Phase::kTraining);
  EXPECT_GT(c.Want(&workers[0], 4).granted_size(), 0);
}

TEST(CoordinatorStartTest, WhoIsMissingIsNamedAndCounted) {
  Cluster c;
  c.aggregator_b = c.Join(ROLE_AGGREGATOR, "beijing", "agg");
  c.b0 = c.Join(ROLE_WORKER, "beijing", "b0");
  for (int second = 0; second <= 60; second += 5) {
    c.Beat(&c.aggregator_b);
    c.Want(&c.b0, 8);
    c.core.Tick(c.now);
    ASSERT_EQ(c.core.phase(), Phase::kStarting);
    c.now += absl::Seconds(5);
  }
  c.core.Tick(c.now);
  EXPECT_EQ(c.core.phase(), Phase::kFailed);
  EXPECT_THAT(c.core.failure(), HasSubstr("1 of 2 workers of beijing"));
  EXPECT_THAT(c.core.failure(), HasSubstr("the aggregator of shenzhen"));
  EXPECT_THAT(c.core.failure(), HasSubstr("1 of 1 workers of shenzhen"));
  const HeartbeatReply reply = c.Beat(&c.b0);
  EXPECT_TRUE(reply.finish());
  EXPECT_EQ(reply.finish_reason(), c.core.failure());
}

TEST(CoordinatorEndTest, WhoIsStoppedMayBeResumedAndWhoHasFailedIsNot) {
  for (const bool stops : {true, false}) {
    Cluster c;
    c.Start();
    stops ? c.core.Stop("a signal", c.now) : c.core.Fail("a reason", c.now);
    c.core.Stop("too late", c.now);
    const HeartbeatReply reply = c.Beat(&c.b0);
    EXPECT_TRUE(reply.finish());
    EXPECT_EQ(reply.finish_reason(), stops ? "a signal" : "a reason");
    EXPECT_EQ(reply.finish_resumable(), stops);
  }
}

TEST(CoordinatorHeartbeatTest, AnotherParentThanTheLastThatWasToldRestsOnTheLog) {
  Cluster c;
  c.Start();
  using Rests = CoordinatorCore::Rests;
  const auto told = [&] {
    const HeartbeatReply reply = c.Beat(&c.b0);
    const Rests rests = c.core.RestsOnTheLog(c.b0.key, reply);
    c.core.Told(c.b0.key, reply);
    return rests;
  };
  EXPECT_EQ(told(), Rests::kAltogether) << "the first";
  EXPECT_EQ(told(), Rests::kOnNothing);
  for (int silent = 0; silent < 4; ++silent) {  // Longer than a lease.
    c.now += absl::Seconds(5);
    c.Beat(&c.b0);
    c.Beat(&c.aggregator_s);
    c.core.Tick(c.now);
  }
  const HeartbeatReply orphan = c.Beat(&c.b0);
  EXPECT_EQ(orphan.parent_member(), 0);
  EXPECT_EQ(c.core.RestsOnTheLog(c.b0.key, orphan), Rests::kAltogether) << "as long as it has not left";
  EXPECT_EQ(told(), Rests::kAltogether);
  EXPECT_EQ(told(), Rests::kOnNothing);
  c.aggregator_b = c.Join(ROLE_AGGREGATOR, "beijing", "agg");
  EXPECT_EQ(told(), Rests::kAltogether);
  c.b0 = c.Join(ROLE_WORKER, "beijing", "b0");
  EXPECT_EQ(c.core.RestsOnTheLog(c.aggregator_b.key, c.Beat(&c.aggregator_b)), Rests::kOnAFence)
      << "of its earlier life";
}

TEST(CoordinatorStartTest, TheFollowersOfACollectiveNeedNoDataOfTheirOwn) {
  Job job = MakeJob();
  job.mutable_regions(0)->set_collective(COLLECTIVE_GLOO);
  Cluster c(job);
  c.aggregator_b = c.Join(ROLE_AGGREGATOR, "beijing", "agg");
  c.aggregator_s = c.Join(ROLE_AGGREGATOR, "shenzhen", "agg");
  c.b0 = c.Join(ROLE_WORKER, "beijing", "b0");
  c.s0 = c.Join(ROLE_WORKER, "shenzhen", "s0");
  c.Want(&c.s0, 4);
  c.Want(&c.b0, 4);
  EXPECT_EQ(c.core.phase(), Phase::kStarting) << "the second member of the group is not there";
  c.b1 = c.Join(ROLE_WORKER, "beijing", "b1");
  c.Want(&c.b0, 4);
  EXPECT_EQ(c.core.phase(), Phase::kTraining);
}

// The lives of its group, as `process` hears of them.
std::set<MemberKey> GroupOf(const HeartbeatReply& reply) {
  std::set<MemberKey> lives;
  for (const Life& life : reply.group()) lives.insert({MemberId(life.member()), Incarnation(life.incarnation())});
  return lives;
}

TEST(CoordinatorHeartbeatTest, WhoActsAsOneWithOthersHearsWhichOfThemLive) {
  Job job = MakeJob();
  job.mutable_regions(0)->set_collective(COLLECTIVE_GLOO);
  Cluster c(job);
  c.Start();
  EXPECT_EQ(GroupOf(c.Beat(&c.b0)), (std::set<MemberKey>{c.b0.key, c.b1.key}));
  EXPECT_EQ(c.Beat(&c.s0).group_size(), 0) << "shenzhen's workers act for themselves";

  // One is silent for longer than the lease.
  for (int i = 0; i < 4; ++i) {
    c.now += absl::Nanoseconds(job.limits().lease_ns()) * 3 / 10;
    c.core.Tick(c.now);
    c.BeatAllBut(&c.b1);
  }
  EXPECT_EQ(GroupOf(c.Beat(&c.b0)), (std::set<MemberKey>{c.b0.key}));

  // It comes again.
  const Process next = c.Join(ROLE_WORKER, "beijing", "b1");
  EXPECT_EQ(next.key.member, c.b1.key.member);
  EXPECT_EQ(GroupOf(c.Beat(&c.b0)), (std::set<MemberKey>{c.b0.key, next.key}));
}

TEST(CoordinatorHeartbeatTest, ARepeatedBeatGetsTheSameReplyAndNoMoreData) {
  Cluster c;
  c.Start();
  HeartbeatRequest request;
  request.set_want_samples(4);
  const HeartbeatReply first = c.Beat(&c.b0, request);
  const int64_t leased = c.core.ledger().leased();
  --c.b0.beat;
  const HeartbeatReply again = c.Beat(&c.b0, request);
  EXPECT_EQ(first.SerializeAsString(), again.SerializeAsString());
  EXPECT_GT(first.granted_size(), 0);
  EXPECT_EQ(c.core.ledger().leased(), leased);
  c.b0.beat -= 2;
  EXPECT_EQ(c.TryBeat(&c.b0, request).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(CoordinatorHeartbeatTest, StrangersAreToldToLeave) {
  Cluster c;
  c.Start();
  Process stranger{{MemberId(99), Incarnation(1)}, 0, {}};
  EXPECT_EQ(c.TryBeat(&stranger).status().code(), absl::StatusCode::kAborted);
  Process future = c.b0;
  future.key.incarnation = Incarnation(2);
  EXPECT_EQ(c.TryBeat(&future).status().code(), absl::StatusCode::kAborted);
}

TEST(CoordinatorHeartbeatTest, NobodyWaitsForTheLeaseOfWhoLeaves) {
  Cluster c;
  c.Start();
  const int64_t available = c.core.ledger().available();
  ASSERT_FALSE(c.b0.held.empty());
  HeartbeatRequest request;
  request.set_leaving(true);
  c.Beat(&c.b0, request);
  EXPECT_EQ(c.core.ledger().available(), available) << "its aggregator may have something of it";
  const HeartbeatReply order = c.Beat(&c.aggregator_b);
  ASSERT_EQ(order.fence_size(), 1);
  EXPECT_EQ(order.fence(0).member(), c.b0.key.member.value());
  HeartbeatRequest fenced;
  FenceDone* done = fenced.add_fence_done();
  done->set_member(c.b0.key.member.value());
  done->set_incarnation(c.b0.key.incarnation.value());
  c.Beat(&c.aggregator_b, fenced);
  EXPECT_GT(c.core.ledger().available(), available);
  EXPECT_EQ(c.TryBeat(&c.b0).status().code(), absl::StatusCode::kAborted);
}

TEST(CoordinatorHeartbeatTest, WhatAWorkerGivesBackIsAvailableAgain) {
  Cluster c;
  c.Start();
  const int64_t available = c.core.ledger().available();
  HeartbeatRequest request;
  for (const LeasedRange& range : c.s0.held) *request.add_released() = RangeToProto(range);
  c.Beat(&c.b0, request);
  EXPECT_EQ(c.core.ledger().available(), available) << "another's leases cannot be given back";
  c.Beat(&c.s0, request);
  EXPECT_GT(c.core.ledger().available(), available);
}

TEST(CoordinatorHeartbeatTest, NearTheEndEverybodyGetsLessButNeverLessThanAStep) {
  Cluster c;
  c.Start();
  int64_t last = 1000;
  while (c.core.ledger().available() > 0) {
    const int64_t available = c.core.ledger().available();
    int64_t granted = 0;
    const HeartbeatReply reply = c.Want(&c.b0, 1000);
    for (const SampleRange& range : reply.granted()) granted += range.end() - range.begin();
    EXPECT_GE(granted, std::min<int64_t>(2, available));
    EXPECT_LE(granted, std::max<int64_t>(2, available / 6)) << "half of an equal share of three";
    EXPECT_LE(granted, last);
    EXPECT_EQ(reply.exhausted(), granted == available) << "whoever gets the last need not ask again";
    last = granted;
  }
  const HeartbeatReply reply = c.Want(&c.b0, 1000);
  EXPECT_TRUE(reply.exhausted());
}

TEST(CoordinatorHeartbeatTest, WhoAsksMoreOftenDoesNotGetMore) {
  Cluster c;
  c.Start();
  const int64_t share = c.core.ledger().available() / 6;
  int64_t in_hand = 0;
  const auto ask = [&] {
    HeartbeatRequest request;
    request.set_want_samples(1000);
    request.set_samples_in_hand(in_hand);
    const HeartbeatReply reply = c.Beat(&c.b0, request);
    EXPECT_FALSE(reply.exhausted());
    for (const SampleRange& range : reply.granted()) in_hand += range.end() - range.begin();
    return reply.granted_size() > 0;
  };
  for (int i = 0; i < 10; ++i) EXPECT_EQ(ask(), i == 0) << i;
  EXPECT_GE(in_hand, share - 1);
  EXPECT_LE(in_hand, share);
  in_hand = 1;  // Less than a step.
  EXPECT_TRUE(ask()) << "nobody is left without a step while there are any";
}

TEST(CoordinatorHeartbeatTest, NearTheEndAWorkerFarAwayIsGivenWhatLastsUntilItsNextAnswer) {
  Cluster c;
  c.Start();
  const int64_t share = c.core.ledger().available() / 6 / 2 * 2;  // Half of an equal share of three, in steps of two.
  const auto granted = [&](double speed) {
    HeartbeatRequest request;
    request.set_want_samples(1000);
    request.set_samples_in_hand(share);
    request.set_samples_per_second(speed);
    request.mutable_usage()->set_round_trip_seconds(1);
    int64_t samples = 0;
    const HeartbeatReply reply = c.Beat(&c.b0, request);
    for (const SampleRange& range : reply.granted()) samples += range.end() - range.begin();
    return samples;
  };
  // Two trips until the answer to its next heartbeat, one of them for a packet that gets lost; the next heartbeat
  // leaves after a period of one second, or when this one is answered.
  const double lasts = static_cast<double>(share) / 3;
  EXPECT_EQ(granted(lasts), 0);
  EXPECT_EQ(granted(lasts + 2), 6);
}

TEST(CoordinatorEndTest, WhenAllIsCommittedEverybodyIsToldAndTheAccountAddsUp) {
  Cluster c;
  c.Start();
  c.TakeAll(&c.s0);
  c.Commit(c.aggregator_b, &c.b0);
  c.Commit(c.aggregator_b, &c.b1);
  EXPECT_EQ(c.core.phase(), Phase::kTraining);
  EXPECT_FALSE(c.Beat(&c.b0).finish());
  c.now += absl::Seconds(20);
  c.Commit(c.aggregator_s, &c.s0);
  EXPECT_EQ(c.core.phase(), Phase::kDone);
  EXPECT_EQ(c.core.training_ended(), c.now);
  EXPECT_EQ(c.core.committed_tokens(), 160);
  for (Process* process : {&c.aggregator_b, &c.aggregator_s, &c.b0, &c.b1, &c.s0}) {
    EXPECT_FALSE(c.core.AllToldFinish());
    const HeartbeatReply reply = c.Beat(process);
    EXPECT_TRUE(reply.finish());
    EXPECT_EQ(reply.finish_reason(), "");
  }
  EXPECT_TRUE(c.core.AllToldFinish());
  EXPECT_EQ(c.TryJoin(ROLE_WORKER, "beijing", "late").status().code(), absl::StatusCode::kUnavailable);
  c.core.Fail("too late", c.now);
  EXPECT_EQ(c.core.phase(), Phase::kDone);
  nlohmann::ordered_json report;
  c.core.FillReport(&report);
  EXPECT_EQ(report["tokens_committed"], 160);
  EXPECT_EQ(report["wall_seconds"], 20.0);
  EXPECT_EQ(report["tokens_per_second"], 8.0);
  EXPECT_EQ(report["ranges"]["total"], 10);
  EXPECT_EQ(report["ranges"]["committed_once"], 10);
  EXPECT_EQ(report["ranges"]["committed_more_than_once"], 0);
  EXPECT_EQ(report["ranges"]["lost"], 0);
}

TEST(CoordinatorEndTest, StopWallFailsTheRun) {
  Job job = MakeJob();
  job.mutable_stop()->set_wall_ns(30'000'000'000);
  Cluster c(job);
  c.now += absl::Seconds(50);  // Starting does not count.
  c.Start();
  for (int i = 0; i < 6; ++i) {
    c.now += absl::Seconds(5);
    c.BeatAllBut(nullptr);
    c.core.Tick(c.now);
  }
  EXPECT_EQ(c.core.phase(), Phase::kTraining);
  c.now += absl::Seconds(1);
  c.core.Tick(c.now);
  EXPECT_EQ(c.core.phase(), Phase::kFailed);
  EXPECT_THAT(c.core.failure(), HasSubstr("stop.wall (30s) is over with 0 of 160 tokens committed"));
}

TEST(CoordinatorReportTest, UsageOfEarlierLivesIsCounted) {
  Cluster c;
  c.Start();
  HeartbeatRequest request;
  request.mutable_usage()->set_tokens_computed(100);
  request.mutable_usage()->set_compute_seconds(3);
  request.mutable_usage()->set_wall_seconds(4);
  (*request.mutable_usage()->mutable_waiting_seconds())["data"] = 0.5;
  c.Beat(&c.b0, request);
  c.b0 = c.Join(ROLE_WORKER, "beijing", "b0");
  c.Beat(&c.b0, request);
  nlohmann::ordered_json report;
  c.core.FillReport(&report);
  EXPECT_EQ(report["tokens_computed"], 200);
  EXPECT_EQ(report["compute_share"], 0.75);
  EXPECT_EQ(report["compute"]["all"]["waiting_seconds"]["data"], 1);
  EXPECT_EQ(report["compute"]["regions"]["beijing"]["waiting_seconds"]["data"], 1);
  StatusReply status;
  c.core.FillStatus(&status, c.now);
  EXPECT_EQ(status.tokens_computed(), 200);
  EXPECT_EQ(status.phase(), "training");
  EXPECT_EQ(status.members_size(), 5);
}

TEST(CoordinatorReportTest, TheRateIsOfTheTimeThatItWasMadeIn) {
  Cluster c;
  for (int second = 0; second < 20; ++second) {  // Waiting for the last ones is no training.
    c.now += absl::Seconds(1);
    c.core.Tick(c.now);
  }
  c.Start();
  HeartbeatRequest request;
  const auto rate_after = [&](absl::Duration time, int64_t tokens) {
    c.now += time;
    request.mutable_usage()->set_tokens_computed(request.usage().tokens_computed() + tokens);
    c.Beat(&c.b0, request);
    c.core.Tick(c.now);
    StatusReply status;
    c.core.FillStatus(&status, c.now);
    return status.tokens_per_second();
  };
  rate_after(absl::Seconds(1), 100);
  EXPECT_EQ(rate_after(absl::Seconds(1), 100), 100);
  for (int second = 0; second < 20; ++second) EXPECT_EQ(rate_after(absl::Seconds(1), 100), 100);
  // The coordinator stood still; what was made meanwhile comes at once.
  EXPECT_LE(rate_after(absl::Seconds(30), 3000), 100);
  for (int second = 0; second < 20; ++second) EXPECT_LE(rate_after(absl::Seconds(1), 100), 100);
}

// The speed that workers are compared with is kept as speeds come and go; here it is looked up each time.
TEST(CoordinatorDataTest, TheReferenceSpeedIsAHighPercentileOfTheLivingWhoeverComesAndGoes) {
  Job job = MakeJob();
  job.mutable_regions(0)->set_workers(30);
  job.mutable_limits()->set_start_ns(int64_t{1'000'000'000'000'000});  // It never begins.
  Cluster c(job);
  Process aggregator = c.Join(ROLE_AGGREGATOR, "beijing", "agg");
  struct Worker {
    Process process;
    double speed = 0;
    bool alive = false;
  };
  std::vector<Worker> workers(30);
  Random random(1);
  for (int step = 0; step < 3000; ++step) {
    const size_t w = random.Below(workers.size());
    Worker& worker = workers[w];
    if (!worker.alive || random.Below(10) == 0) {
      worker.process = c.Join(ROLE_WORKER, "beijing", absl::StrCat("worker-", w));  // Its speed is still known.
      worker.alive = true;
    }
    HeartbeatRequest request;
    if (random.Below(3) > 0) worker.speed = static_cast<double>(1 + random.Below(20));  // Some are equal.
    request.set_samples_per_second(worker.speed);
    const double reference = c.Beat(&worker.process, request).samples_per_second_reference();
    std::vector<double> speeds;
    for (const Worker& one : workers) {
      if (one.alive && one.speed > 0) speeds.push_back(one.speed);
    }
    ASSERT_EQ(reference, Percentile(speeds, 80)) << "at step " << step;
    if (random.Below(50) != 0) continue;
    // Everybody but one falls silent.
    for (int second = 0; second < 12; ++second) {
      c.now += absl::Seconds(1);
      c.Beat(&worker.process);
      c.Beat(&aggregator);
      c.core.Tick(c.now);
    }
    for (Worker& one : workers) one.alive = one.alive && &one == &worker;
  }
}

}  // namespace
}  // namespace wukong
