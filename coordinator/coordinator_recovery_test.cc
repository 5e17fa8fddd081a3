// A coordinator that dies and comes back from its log, and the account of the data through it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <set>

#include "coordinator/coordinator_core.h"
#include "coordinator/test_cluster.h"
#include "nlohmann/json.hpp"
#include "runtime/base/random.h"

namespace wukong {
namespace {

using Phase = CoordinatorCore::Phase;

// 4,000 samples: more than the ceiling runs ahead of the leases.
Job LongJob() {
  Job job = MakeJob();
  job.mutable_stop()->set_tokens(16000);
  return job;
}

TEST(CoordinatorRecoveryTest, ANewTermKnowsItsMembersAndWhatIsCommitted) {
  Cluster before;
  before.Start();
  before.Commit(before.aggregator_b, &before.b0);
  Cluster after(MakeJob(), before.history.state());
  EXPECT_EQ(after.history.term(), 2);
  EXPECT_EQ(after.core.phase(), Phase::kTraining);
  EXPECT_EQ(after.core.ledger().committed(), before.core.ledger().committed());
  Process b0 = before.b0, stranger = before.b0;
  stranger.key.incarnation = Incarnation(9);
  EXPECT_TRUE(after.TryBeat(&b0).ok()) << "it need not join again";
  EXPECT_EQ(after.TryBeat(&stranger).status().code(), absl::StatusCode::kAborted);
  const Process again = after.Join(ROLE_WORKER, "beijing", "b0");
  EXPECT_EQ(again.key.member, before.b0.key.member);
  EXPECT_EQ(again.key.incarnation, Incarnation(2)) << "an incarnation is never given twice";
}

TEST(CoordinatorRecoveryTest, ARunThatWasStoppedGoesOnCountingWhatItsMembersUse) {
  const auto computed = [](const Cluster& cluster) {
    nlohmann::ordered_json report;
    cluster.core.FillReport(&report);
    return report["tokens_computed"].get<int64_t>();
  };
  const auto beat = [](Cluster* cluster, Process* worker, int64_t tokens) {
    HeartbeatRequest request;
    request.mutable_usage()->set_tokens_computed(tokens);
    EXPECT_TRUE(cluster->TryBeat(worker, request).ok());
  };
  Cluster before;
  before.Start();
  beat(&before, &before.b0, 16);
  before.b0 = before.Join(ROLE_WORKER, "beijing", "b0");
  beat(&before, &before.b0, 8);
  beat(&before, &before.b1, 4);
  before.core.Stop("Ctrl-C", before.now);
  LogRecord record;
  *record.mutable_run_stopped() = before.core.StopRecord(absl::FromUnixSeconds(100));
  before.Journal(record);

  Cluster after(MakeJob(), before.history.state());
  EXPECT_EQ(computed(after), 28);
  Process survivor = before.b0, again = after.Join(ROLE_WORKER, "beijing", "b1");
  beat(&after, &survivor, 12);
  beat(&after, &again, 2);
  EXPECT_EQ(computed(after), 16 + 12 + 4 + 2) << "who did not end has its total told again";
  Cluster third(MakeJob(), after.history.state());
  EXPECT_EQ(computed(third), 16 + 8 + 4) << "of term 2 nothing was written down";
}

TEST(CoordinatorRecoveryTest, OneProcessThatJoinedTwiceIsNotTwoProcesses) {
  Cluster before;
  before.pids = 41;
  Process aggregator = before.Join(ROLE_AGGREGATOR, "beijing", "agg");
  for (const int64_t pid : {42, 43}) {
    Cluster after(MakeJob(), before.history.state());
    after.pids = pid - 1;
    after.Join(ROLE_AGGREGATOR, "beijing", "agg");
    EXPECT_EQ(after.TryBeat(&aggregator).status().code(),
              pid == 42 ? absl::StatusCode::kAborted : absl::StatusCode::kAlreadyExists)
        << "process " << pid;
  }
}

TEST(CoordinatorRecoveryTest, ARegionThatIsNotInTheJobFileIsStillThere) {
  Cluster before;
  before.Start();
  const Process aggregator = before.Join(ROLE_AGGREGATOR, "tokyo", "agg", /*new_region=*/true);
  Process worker = before.Join(ROLE_WORKER, "tokyo", "w0");
  before.Join(ROLE_AGGREGATOR, "lima", "agg", /*new_region=*/true);
  before.Want(&worker, 4);
  ASSERT_FALSE(worker.held.empty());
  Cluster after(MakeJob(), before.history.state());
  GetJobRequest request;
  request.set_region("tokyo");
  const auto reply = after.core.GetJob(request);
  ASSERT_TRUE(reply.ok()) << reply.status();
  ASSERT_EQ(reply->job().regions_size(), 4);
  EXPECT_EQ(reply->job().regions(2).name(), "tokyo");
  EXPECT_EQ(reply->job().regions(3).name(), "lima");
  Process tokyo = aggregator;
  EXPECT_TRUE(after.Beat(&worker).assert_holdings());
  after.Assert(&worker, aggregator.key);
  after.Beat(&tokyo);
  after.Commit(tokyo, &worker);
  EXPECT_GT(after.core.ledger().committed(), 0);
  // And joins in it need no flag any more.
  EXPECT_EQ(after.Join(ROLE_AGGREGATOR, "tokyo", "agg").key.incarnation, Incarnation(2));
}

TEST(CoordinatorRecoveryTest, WhatWasNeverLeasedIsGivenAtOnceAndTheRestWhenAllHaveSpoken) {
  Cluster before(LongJob());
  before.Start();
  const LeasedRange b1_range = before.b1.held[0];
  Cluster after(LongJob(), before.history.state());
  ASSERT_TRUE(after.core.recovering());
  Process b0 = before.b0, b1 = before.b1, s0 = before.s0;
  Process aggregator_b = before.aggregator_b, aggregator_s = before.aggregator_s;
  aggregator_b.held = aggregator_s.held = {};
  EXPECT_TRUE(after.Beat(&b0).assert_holdings());
  EXPECT_FALSE(after.Beat(&aggregator_b).assert_holdings()) << "its workers speak first";
  EXPECT_FALSE(after.Assert(&b0).assert_holdings());
  const HeartbeatReply fresh = after.Want(&b0, 4);
  ASSERT_GT(fresh.granted_size(), 0) << "it need not wait for the others";
  EXPECT_GE(fresh.granted(0).begin(), before.history.state().lease_ceiling());
  EXPECT_GT(fresh.granted(0).token(), b1_range.token) << "leases of a later term are numbered higher";
  // b1 lost what it had; nobody has it now.
  b1.held.clear();
  after.Assert(&b1);
  after.Assert(&s0);
  EXPECT_TRUE(after.core.recovering()) << "an aggregator may have it";
  EXPECT_TRUE(after.Beat(&aggregator_b).assert_holdings());
  after.Assert(&aggregator_b);
  after.Assert(&aggregator_s);
  EXPECT_FALSE(after.core.recovering());
  EXPECT_EQ(after.Want(&s0, 4).granted(0).begin(), b1_range.begin) << "lowest first";
  std::string detail;
  Manifest late;
  late.sender = aggregator_b.key;
  late.sequence = Sequence(1);
  late.ranges = {b1_range};
  EXPECT_EQ(after.core.Admit(late, LogRecord(), &detail), VERDICT_RANGES) << "it is another's now";
}

TEST(CoordinatorRecoveryTest, AContributionUnderALeaseOfTheTermBeforeIsCommittedOnce) {
  Cluster before;
  before.Start();
  Cluster after(MakeJob(), before.history.state());
  Process b0 = before.b0, aggregator = before.aggregator_b;
  const std::vector<LeasedRange> held = b0.held;
  Process region;
  region.held = {held[0]};
  after.Commit(aggregator, &region);
  after.Beat(&b0);
  const HeartbeatReply reply = after.Assert(&b0);
  ASSERT_EQ(reply.committed_size(), 1) << "the worker hears that the root has it";
  EXPECT_EQ(reply.committed(0).begin(), held[0].begin);
  EXPECT_EQ(reply.disowned_size(), 0);
  std::string detail;
  EXPECT_EQ(after.core.Admit(after.ManifestOf(aggregator, b0), LogRecord(), &detail), VERDICT_RANGES);
}

// An aggregator says what it holds while the answer to a contribution of it is on its way: refused, and not to be sent
// again.
TEST(CoordinatorRecoveryTest, WhatWasRefusedBeforeItsSenderSpokeIsNotHeldByIt) {
  Cluster before;
  before.Start();
  Cluster after(MakeJob(), before.history.state());
  Process b0 = before.b0, b1 = before.b1, aggregator = before.aggregator_b;
  aggregator.held = {b0.held[0]};  // As b0 contributed it.
  b0.held.erase(b0.held.begin());
  Manifest refused;
  refused.sender = aggregator.key;
  refused.sequence = Sequence(1);
  refused.ranges = aggregator.held;
  after.core.Refused(refused);  // For another reason: too old, not finite.
  for (Process* worker : {&b0, &b1}) {
    after.Beat(worker);
    after.Assert(worker);
  }
  const int64_t available = after.core.ledger().available();
  after.Beat(&aggregator);
  after.Assert(&aggregator);
  EXPECT_EQ(after.core.ledger().available(), available + refused.ranges[0].size());
  std::string detail;
  EXPECT_EQ(after.core.Admit(refused, LogRecord(), &detail), VERDICT_RANGES) << "it is nobody's";
}

TEST(CoordinatorRecoveryTest, WhoDoesNotComeBackIsFencedAndItsDataGoesToOthers) {
  Cluster before;
  before.Start();
  Cluster after(MakeJob(), before.history.state());
  after.aggregator_b = before.aggregator_b;
  after.aggregator_s = before.aggregator_s;
  after.b0 = before.b0;
  after.b1 = before.b1;
  after.s0 = before.s0;
  for (Process* process : {&after.aggregator_b, &after.aggregator_s}) process->held.clear();
  for (int i = 0; i < 3; ++i) {
    after.now += absl::Seconds(5);
    for (Process* process : {&after.b0, &after.s0, &after.aggregator_b, &after.aggregator_s}) {
      if (after.Beat(process).assert_holdings()) after.Assert(process);
    }
    after.core.Tick(after.now);
  }
  after.Beat(&after.aggregator_b, FenceDoneFor(after.b1.key, {}));
  after.Beat(&after.aggregator_b);
  if (after.Beat(&after.aggregator_b).assert_holdings()) after.Assert(&after.aggregator_b);
  after.core.Tick(after.now);
  EXPECT_FALSE(after.core.recovering());
  int64_t held = 0;
  for (const Process* process : {&before.b0, &before.s0}) {
    for (const LeasedRange& range : process->held) held += range.size();
  }
  EXPECT_EQ(after.core.ledger().leased(), held) << "what the two others have";
}

// Workers, aggregators and the coordinator die at random; messages and replies are lost. In the end every sample is
// committed once, which the history checks at every record.
TEST(CoordinatorRecoveryTest, NothingIsLostOrCountedTwiceWhoeverDies) {
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Random random(seed);
    const auto chance = [&](double p) { return random.Uniform() < p; };
    Job job = MakeJob();
    job.mutable_stop()->set_tokens(12000);
    auto cluster = std::make_unique<Cluster>(job);

    struct Worker {
      std::string region, name;
      bool joined = false;
      Process process;
      MemberKey parent;
    };
    struct Aggregator {
      std::string region;
      bool joined = false;
      Process process;  // held: what it owes the root.
      int64_t sequence = 0;
      std::vector<FenceDone> fences;
    };
    std::vector<Aggregator> aggregators(2);
    aggregators[0].region = "beijing";
    aggregators[1].region = "shenzhen";
    std::vector<Worker> workers(3);
    const auto fresh = [](const std::string& region, const std::string& name) {
      Worker worker;
      worker.region = region;
      worker.name = name;
      return worker;
    };
    workers[0] = fresh("beijing", "b0");
    workers[1] = fresh("beijing", "b1");
    workers[2] = fresh("shenzhen", "s0");
    const auto aggregator_of = [&](const Worker& worker) -> Aggregator& {
      return aggregators[worker.region == "beijing" ? 0 : 1];
    };
    const auto erase = [](std::vector<LeasedRange>* from,
                          const google::protobuf::RepeatedPtrField<SampleRange>& ranges) {
      for (const SampleRange& range : ranges) {
        from->erase(std::remove_if(from->begin(), from->end(),
                                   [&](const LeasedRange& held) {
                                     return held.begin >= range.begin() && held.end <= range.end();
                                   }),
                    from->end());
      }
    };
    int step = 0;
    const int kFaultySteps = 1500;
    for (; step < 20000 && cluster->core.phase() != Phase::kDone; ++step) {
      ASSERT_NE(cluster->core.phase(), Phase::kFailed) << cluster->core.failure();
      const bool faulty = step < kFaultySteps;
      cluster->now += absl::Milliseconds(200);
      cluster->core.Tick(cluster->now);
      if (faulty && chance(0.01)) {
        cluster = std::make_unique<Cluster>(job, cluster->history.state(), cluster->now);
        cluster->core.Tick(cluster->now);
      }
      Cluster& c = *cluster;
      for (Aggregator& a : aggregators) {
        if (c.core.phase() == Phase::kDone) break;
        if (faulty && chance(0.005)) a = {a.region, false, {}, 0, {}};
        if (!a.joined) {
          if (!chance(0.3)) continue;
          a.process = c.Join(ROLE_AGGREGATOR, a.region, "aggregator");
          a.joined = true;
        }
        HeartbeatRequest request;
        for (const FenceDone& done : a.fences) *request.add_fence_done() = done;
        a.fences.clear();
        const auto reply = c.TryBeat(&a.process, request);
        if (!reply.ok()) {
          a = {a.region, false, {}, 0, {}};
          continue;
        }
        if (reply->assert_holdings()) c.Assert(&a.process);
        for (const Life& fence : reply->fence()) {
          FenceDone done;
          done.set_member(fence.member());
          done.set_incarnation(fence.incarnation());
          for (Worker& w : workers) {
            if (w.joined && w.process.key.member.value() == fence.member() &&
                w.process.key.incarnation.value() == fence.incarnation()) {
              w.parent = {};  // It takes nothing more from it.
            }
          }
          for (const LeasedRange& range : a.process.held) *done.add_custody() = RangeToProto(range);
          a.fences.push_back(done);
        }
        if (!a.process.held.empty() && chance(0.3)) {
          Manifest manifest;
          manifest.sender = a.process.key;
          manifest.sequence = Sequence(a.sequence + 1);
          manifest.ranges = a.process.held;
          std::string detail;
          const Verdict verdict = c.core.Admit(manifest, Cluster::RecordOf(manifest), &detail);
          if (verdict == VERDICT_ACCEPTED) {
            c.NoteMerged(manifest);
            c.core.Merged({manifest}, c.now);
          } else {
            LogRecord refused;
            ManifestToProto(manifest, refused.mutable_refused()->mutable_header());
            refused.mutable_refused()->set_verdict(verdict);
            c.Journal(refused);
            c.core.Refused(manifest);
          }
          ++a.sequence;
          a.process.held.clear();
        }
      }
      for (Worker& w : workers) {
        if (c.core.phase() == Phase::kDone) break;
        if (faulty && chance(0.01)) w = fresh(w.region, w.name);
        if (faulty && chance(0.05)) continue;  // Silent for a moment.
        if (!w.joined) {
          const auto reply = c.TryJoin(ROLE_WORKER, w.region, w.name);
          if (!reply.ok()) continue;
          w.joined = true;
          w.process = {{MemberId(reply->member()), Incarnation(reply->incarnation())}, 0, {}};
          w.parent = {MemberId(reply->parent_member()), Incarnation(reply->parent_incarnation())};
        }
        HeartbeatRequest request;
        request.set_idle(w.process.held.empty());
        request.set_want_samples(w.process.held.size() < 3 ? 4 : 0);
        auto reply = c.TryBeat(&w.process, request);
        if (!reply.ok()) {
          w = fresh(w.region, w.name);
          continue;
        }
        for (const SampleRange& range : reply->granted()) w.process.held.push_back(RangeFromProto(range));
        w.parent = {MemberId(reply->parent_member()), Incarnation(reply->parent_incarnation())};
        if (reply->assert_holdings()) {
          const HeartbeatReply answer = c.Assert(&w.process, w.parent);
          erase(&w.process.held, answer.committed());
          erase(&w.process.held, answer.disowned());
        }
        Aggregator& a = aggregator_of(w);
        if (!w.process.held.empty() && chance(0.4) && a.joined && a.process.key == w.parent) {
          a.process.held.insert(a.process.held.end(), w.process.held.begin(), w.process.held.end());
          w.process.held.clear();
        }
      }
      if (testing::Test::HasFatalFailure()) return;
    }
    EXPECT_EQ(cluster->core.phase(), Phase::kDone)
        << cluster->core.ledger().committed() << " committed, " << cluster->core.ledger().leased() << " leased, "
        << cluster->core.ledger().unknown() << " unknown, " << cluster->core.ledger().available() << " available";
    const RootState state = cluster->history.state();
    ASSERT_EQ(state.committed_size(), 1);
    EXPECT_EQ(state.committed(0).end(), TotalSamples(job));
    EXPECT_EQ(state.samples_accepted(), TotalSamples(job));
  }
}

}  // namespace
}  // namespace wukong
