// Who is lost, what becomes of its data, and who is no longer waited for.
#include "coordinator/coordinator_core.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "coordinator/test_cluster.h"

namespace wukong {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using Phase = CoordinatorCore::Phase;

TEST(CoordinatorLossTest, ASilentWorkersDataGoesToOthersOnceItsAggregatorHasFencedIt) {
  Cluster c;
  c.Start();
  for (int i = 0; i < 2; ++i) c.Want(&c.b0, 4);
  ASSERT_GE(c.b0.held.size(), 2u);
  for (int i = 0; i < 3; ++i) {
    c.now += absl::Seconds(5);
    c.BeatAllBut(&c.b0);
    c.core.Tick(c.now);
  }
  EXPECT_EQ(c.TryBeat(&c.b0).status().code(), absl::StatusCode::kAborted);
  const int64_t leased = c.core.ledger().leased();
  EXPECT_THAT(Fences(c.Beat(&c.aggregator_s)), IsEmpty()) << "not its worker";
  EXPECT_THAT(Fences(c.Beat(&c.aggregator_b)), ElementsAre(FenceOf(c.b0)));
  EXPECT_THAT(Fences(c.Beat(&c.aggregator_b)), ElementsAre(FenceOf(c.b0))) << "until it says that it is done";
  EXPECT_EQ(c.core.ledger().leased(), leased);

  // The aggregator has accepted the first range, and owes it to the root.
  const LeasedRange custody = c.b0.held[0];
  int64_t all = 0;
  for (const LeasedRange& range : c.b0.held) all += range.size();
  EXPECT_THAT(Fences(c.Beat(&c.aggregator_b, FenceDoneFor(c.b0.key, {custody}))), IsEmpty());
  EXPECT_EQ(c.core.ledger().leased(), leased - all + custody.size());
  Process region;
  region.held = {custody};
  c.Commit(c.aggregator_b, &region);
  EXPECT_EQ(c.core.ledger().committed(), custody.size());

  // A fence that is said to be done twice, or was never asked for, releases nothing more.
  const int64_t left = c.core.ledger().leased();
  c.Beat(&c.aggregator_b, FenceDoneFor(c.b0.key, {}));
  c.Beat(&c.aggregator_s, FenceDoneFor(c.b1.key, {}));
  EXPECT_EQ(c.core.ledger().leased(), left);
}

TEST(CoordinatorLossTest, AnAggregatorsDeathLosesWhatOnlyItHadAndItsWorkersGoOn) {
  Cluster c;
  c.Start();
  c.Want(&c.b0, 2);
  ASSERT_GE(c.b0.held.size(), 2u);
  const Manifest late = c.ManifestOf(c.aggregator_b, c.b0);
  // b0 has contributed its first range, and the aggregator owes it to the root.
  const LeasedRange passed_on = c.b0.held[0];
  c.b0.held.erase(c.b0.held.begin());
  for (int i = 0; i < 3; ++i) {
    c.now += absl::Seconds(5);
    c.BeatAllBut(&c.aggregator_b);
    c.core.Tick(c.now);
  }
  const auto fences = c.Effects<CoordinatorCore::FenceChild>();
  ASSERT_EQ(fences.size(), 1u);
  EXPECT_EQ(fences[0].child, c.aggregator_b.key);
  std::string detail;
  EXPECT_EQ(c.core.Admit(late, LogRecord(), &detail), VERDICT_FENCED);
  EXPECT_EQ(c.TryJoin(ROLE_WORKER, "beijing", "b1").status().code(), absl::StatusCode::kUnavailable);

  HeartbeatReply reply = c.Want(&c.b0, 4);
  EXPECT_TRUE(reply.assert_holdings());
  EXPECT_EQ(reply.parent_incarnation(), 0) << "there is no aggregator";
  EXPECT_EQ(reply.granted_size(), 0) << "not before it has said what it holds";
  const int64_t leased = c.core.ledger().leased();
  reply = c.Assert(&c.b0);
  EXPECT_FALSE(reply.assert_holdings());
  EXPECT_EQ(c.core.ledger().leased(), leased - passed_on.size()) << "what was passed on is lost";

  c.aggregator_b = c.Join(ROLE_AGGREGATOR, "beijing", "agg");
  EXPECT_EQ(c.aggregator_b.key.incarnation, Incarnation(2));
  reply = c.Want(&c.b1, 4);
  EXPECT_EQ(reply.parent_address(), "beijing:1");
  EXPECT_EQ(reply.parent_incarnation(), 2);
  EXPECT_TRUE(reply.assert_holdings());
  c.Assert(&c.b1);
  c.Commit(c.aggregator_b, &c.b0);
  c.Commit(c.aggregator_b, &c.b1);
  EXPECT_GT(c.core.ledger().committed(), 0);
}

TEST(CoordinatorLossTest, HoldingsThatCountOnAFencedAggregatorDoNotCount) {
  Cluster c;
  c.Start();
  const MemberKey old = c.aggregator_b.key;
  c.aggregator_b = c.Join(ROLE_AGGREGATOR, "beijing", "agg");
  ASSERT_TRUE(c.Beat(&c.b0).assert_holdings());
  EXPECT_TRUE(c.Assert(&c.b0, old).assert_holdings()) << "it has not noticed yet: it may count on the one that is gone";
  EXPECT_FALSE(c.Assert(&c.b0, c.aggregator_b.key).assert_holdings());
}

// Stopped, or on a machine that slept: what it did not hear while it was away nobody can be blamed for.
TEST(CoordinatorLossTest, ACoordinatorThatWasAwayItselfTakesNobodyForDead) {
  Cluster c;
  c.Start();
  c.core.Tick(c.now);
  c.now += absl::Seconds(4);
  c.BeatAllBut(&c.b0);
  c.core.Tick(c.now);
  c.now += absl::Hours(1);
  c.Beat(&c.s0);  // It is heard before the coordinator looks at its clock.
  c.core.Tick(c.now);
  EXPECT_TRUE(c.Effects<CoordinatorCore::FenceChild>().empty());
  for (int i = 0; i < 2; ++i) {
    c.now += absl::Seconds(3);
    c.BeatAllBut(&c.b0);
    c.core.Tick(c.now);
  }
  EXPECT_TRUE(Fences(c.Beat(&c.aggregator_b)).empty()) << "silent for 4 + 3 + 3 seconds, and none more";
  EXPECT_EQ(c.core.phase(), CoordinatorCore::Phase::kTraining);
  c.now += absl::Seconds(3);
  c.BeatAllBut(&c.b0);
  c.core.Tick(c.now);
  EXPECT_THAT(Fences(c.Beat(&c.aggregator_b)), ElementsAre(FenceOf(c.b0))) << "who is dead is still noticed";
}

TEST(CoordinatorLossTest, NobodyIsExcusedBecauseALeaseIsShorterThanTwoLooksAtTheClock) {
  Job job = MakeJob();
  job.mutable_limits()->set_lease_ns(100'000'000);
  Cluster c(job);
  c.Start();
  c.core.Tick(c.now);
  for (int i = 0; i < 10; ++i) {
    c.now += absl::Milliseconds(51);
    c.BeatAllBut(&c.b0);
    c.core.Tick(c.now);
  }
  EXPECT_THAT(Fences(c.Beat(&c.aggregator_b)), ElementsAre(FenceOf(c.b0)));
}

TEST(CoordinatorLossTest, TheEndWaitsUntilAHeartbeatCanHaveHeardOfIt) {
  Job job = MakeJob();
  job.mutable_limits()->set_heartbeat_ns(20'000'000'000);
  EXPECT_GE(Cluster(job).core.FarewellMax(), absl::Seconds(20));
}

TEST(CoordinatorLossTest, ACoordinatorThatWasAwayAtTheStartStillWaitsForItsMembers) {
  Cluster c;
  c.aggregator_b = c.Join(ROLE_AGGREGATOR, "beijing", "agg");
  c.core.Tick(c.now);
  c.now += absl::Hours(1);
  c.core.Tick(c.now);
  EXPECT_EQ(c.core.phase(), CoordinatorCore::Phase::kStarting) << c.core.failure();
}

TEST(CoordinatorLossTest, ARegionWhoseAggregatorStaysAwayIsGivenUp) {
  Cluster c;
  c.Start();
  c.core.Tick(c.now);
  for (int i = 0; i < 14; ++i) {
    c.now += absl::Seconds(5);
    for (Process* process : {&c.aggregator_s, &c.b0, &c.b1, &c.s0}) {
      const auto reply = c.TryBeat(process);
      if (reply.ok() && reply->assert_holdings()) c.Assert(process);
    }
    c.core.Tick(c.now);
    if (i == 10) {
      EXPECT_GT(c.core.ledger().LeasedIn(0), 0) << "it may still come back";
    }
  }
  for (int i = 0; i < 4; ++i) {
    c.now += absl::Seconds(5);
    c.Beat(&c.aggregator_s);
    c.Beat(&c.s0);
    c.core.Tick(c.now);
  }
  EXPECT_EQ(c.core.ledger().LeasedIn(0), 0);
  EXPECT_EQ(c.TryBeat(&c.b0).status().code(), absl::StatusCode::kAborted);
  EXPECT_EQ(c.core.phase(), Phase::kTraining);
}

TEST(CoordinatorLossTest, AnotherAggregatorOfARegionReplacesTheFirst) {
  Cluster c;
  c.Start();
  const Process other = c.Join(ROLE_AGGREGATOR, "beijing", "other");
  const absl::Status replaced = c.TryBeat(&c.aggregator_b).status();
  EXPECT_EQ(replaced.code(), absl::StatusCode::kAlreadyExists) << "it must not come back and replace the other";
  EXPECT_THAT(std::string(replaced.message()),
              ::testing::ContainsRegex("is fenced: process [0-9]+ of a-host has its place now"));
  EXPECT_NE(other.key.member, c.aggregator_b.key.member);
}

TEST(CoordinatorLossTest, WithoutAnyWorkerTheRunFailsAfterAWhile) {
  Cluster c;
  c.Start();
  // They are taken for dead after 15 s, and were last alive at the tick before.
  for (int i = 0; i < 14; ++i) {
    c.now += absl::Seconds(5);
    c.Beat(&c.aggregator_b);
    c.Beat(&c.aggregator_s);
    c.core.Tick(c.now);
  }
  EXPECT_EQ(c.core.phase(), Phase::kTraining) << "one may still come back";
  c.now += absl::Seconds(1);
  c.core.Tick(c.now);
  EXPECT_EQ(c.core.phase(), Phase::kFailed);
  EXPECT_THAT(c.core.failure(), HasSubstr("no worker is left"));
}

TEST(CoordinatorRootTest, AdmitsOnlyLiveAggregatorsAndOnlyWhatTheirRegionsHold) {
  Cluster c;
  c.Start();
  std::string detail;
  EXPECT_EQ(c.core.Admit(c.ManifestOf(c.aggregator_s, c.b0), LogRecord(), &detail), VERDICT_RANGES);
  EXPECT_EQ(c.core.Admit(c.ManifestOf(c.b0, c.b0), LogRecord(), &detail), VERDICT_FENCED);
  Process newer = c.aggregator_b;
  newer.key.incarnation = Incarnation(2);
  EXPECT_EQ(c.core.Admit(c.ManifestOf(newer, c.b0), LogRecord(), &detail), VERDICT_FENCED);
  EXPECT_EQ(c.core.Admit(c.ManifestOf(c.aggregator_b, c.b0), LogRecord(), &detail), VERDICT_ACCEPTED) << detail;
  EXPECT_EQ(c.core.Admit(c.ManifestOf(c.aggregator_b, c.b0), LogRecord(), &detail), VERDICT_RANGES)
      << "it is admitted once";
}

TEST(CoordinatorRootTest, WhatIsRefusedForGoodIsTrainedOnByOthers) {
  Cluster c;
  c.Start();
  const int64_t available = c.core.ledger().available();
  const Manifest refused = c.ManifestOf(c.aggregator_b, c.b0);
  Manifest forged = refused;
  forged.sender = c.aggregator_s.key;
  c.core.Refused(forged);
  forged.sender = c.b1.key;
  c.core.Refused(forged);
  EXPECT_EQ(c.core.ledger().available(), available);
  c.core.Refused(refused);
  EXPECT_EQ(c.core.ledger().available(), available + 2);
  // The samples have a new lease; the old one, refused again, must not touch it.
  c.s0.held.clear();
  c.TakeAll(&c.s0);
  EXPECT_EQ(c.s0.held.front().begin, c.b0.held.front().begin);
  c.core.Refused(refused);
  EXPECT_EQ(c.core.ledger().available(), 0);
}

TEST(CoordinatorIdleTest, ARegionDrainsWhenAllItsWorkersAreIdleAndNoDataIsLeft) {
  Cluster c;
  c.Start();
  c.BeIdle(&c.b0);
  c.BeIdle(&c.b1);
  EXPECT_FALSE(c.Beat(&c.aggregator_b).drain()) << "there is data for them";
  c.TakeAll(&c.s0);
  const HeartbeatReply reply = c.Beat(&c.aggregator_b);
  EXPECT_TRUE(reply.drain());
  EXPECT_THAT(reply.idle_members(), ElementsAre(c.b0.key.member.value(), c.b1.key.member.value()));
  EXPECT_FALSE(c.Beat(&c.aggregator_s).drain()) << "s0 is at work";
  c.Beat(&c.b1);
  EXPECT_FALSE(c.Beat(&c.aggregator_b).drain()) << "b1 is at work again";
}

TEST(CoordinatorIdleTest, AGrantEndsIdleness) {
  Cluster c;
  c.Start();
  HeartbeatRequest request;
  request.set_idle(true);
  request.set_want_samples(2);
  EXPECT_GT(c.Beat(&c.b0, request).granted_size(), 0);
  EXPECT_THAT(c.Beat(&c.aggregator_b).idle_members(), IsEmpty());
}

TEST(CoordinatorIdleTest, AWorkerThatIsBeingFencedHoldsUpTheDrain) {
  Cluster c;
  c.Start();
  c.TakeAll(&c.s0);
  c.BeIdle(&c.b1);
  const Process old = c.b0;
  c.b0 = c.Join(ROLE_WORKER, "beijing", "b0");
  for (int i = 0; i < 3; ++i) {
    c.now += absl::Seconds(5);
    c.BeatAllBut(&c.b0);
    c.BeIdle(&c.b1);
    c.core.Tick(c.now);
  }
  EXPECT_FALSE(c.Beat(&c.aggregator_b).drain()) << "its data may come free";
  HeartbeatRequest done = FenceDoneFor(old.key, old.held);
  *done.add_fence_done() = FenceDoneFor(c.b0.key, {}).fence_done(0);
  EXPECT_TRUE(c.Beat(&c.aggregator_b, done).drain()) << "what it owes must go to the root now";
}

TEST(CoordinatorIdleTest, TheRootDoesNotWaitForARegionThatOwesNothing) {
  Cluster c;
  c.Start();
  c.TakeAll(&c.s0);
  c.Commit(c.aggregator_b, &c.b0);
  EXPECT_THAT(c.Effects<CoordinatorCore::SetIdle>(), IsEmpty()) << "b1 still has data";
  c.Commit(c.aggregator_b, &c.b1);
  const auto idle = c.Effects<CoordinatorCore::SetIdle>();
  ASSERT_EQ(idle.size(), 1u);
  EXPECT_THAT(idle[0].idle, ElementsAre(c.aggregator_b.key.member));
  c.core.Refused(c.ManifestOf(c.aggregator_s, c.s0));  // There is data again.
  ASSERT_FALSE(c.core.ledger().available() == 0);
  const auto busy = c.Effects<CoordinatorCore::SetIdle>();
  ASSERT_EQ(busy.size(), 1u);
  EXPECT_THAT(busy[0].idle, IsEmpty());
}

TEST(CoordinatorIdleTest, ARegionWithoutWorkersDoesNotHoldUpTheRoot) {
  Cluster c;
  c.Start();
  for (int i = 0; i < 3; ++i) {
    c.now += absl::Seconds(5);
    c.BeatAllBut(&c.s0);
    c.core.Tick(c.now);
  }
  EXPECT_THAT(c.Effects<CoordinatorCore::SetIdle>(), IsEmpty()) << "its aggregator may owe something";
  ASSERT_GT(c.core.ledger().available(), 0);
  c.Beat(&c.aggregator_s, FenceDoneFor(c.s0.key, {}));
  auto idle = c.Effects<CoordinatorCore::SetIdle>();
  ASSERT_EQ(idle.size(), 1u) << "with quorum: all, beijing would wait for ever for a region that cannot contribute";
  EXPECT_THAT(idle[0].idle, ElementsAre(c.aggregator_s.key.member));
  c.s0 = c.Join(ROLE_WORKER, "shenzhen", "s0");
  c.Want(&c.s0, 2);
  idle = c.Effects<CoordinatorCore::SetIdle>();
  ASSERT_EQ(idle.size(), 1u);
  EXPECT_THAT(idle[0].idle, IsEmpty());
}

}  // namespace
}  // namespace wukong
