#include "launch/plan.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "launch/command_testing.h"
#include "launch/job_check.h"
#include "launch/job_file.h"
#include "runtime/base/random.h"
#include "runtime/codec/codec.h"
#include "runtime/fault/link_model.h"
#include "runtime/model/job_layout.h"
#include "runtime/model/parameter_layout.h"

namespace wukong {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr int64_t kParameters = 1239040;  // Of the example.
constexpr int64_t kFp32 = 4 * kParameters;
constexpr int64_t kInt8 = kParameters + int64_t{4} * 4840;  // A scale of 4 bytes per 256 values.
constexpr int64_t kTokens = 1024;                           // Per worker and step.

// Three regions of two workers, 150 ms and 100 Mbit/s away without jitter; a step takes 250 ms.
PlanInput Example(std::vector<std::string> settings = {}) {
  settings.insert(settings.begin(), {"wan.jitter=0ms"});
  const absl::StatusOr<JobSource> source = LoadJobFile(ThreeRegions(), settings);
  EXPECT_TRUE(source.ok()) << source.status();
  PlanInput input;
  input.job = source->job;
  input.parameters = kParameters;
  input.step_seconds = 0.25;
  return input;
}

Plan PlanOf(const std::vector<std::string>& settings) { return MakePlan(Example(settings)); }

const MemoryPlan& MemoryOf(const Plan& plan, const std::string& role) {
  for (const MemoryPlan& memory : plan.memory) {
    if (memory.role == role) return memory;
  }
  ADD_FAILURE() << "no memory of a " << role;
  return plan.memory[0];
}

TEST(VectorBytesTest, IsWhatTheCodecMakesOfEveryFragment) {
  Job job = Example({}).job;
  for (const int64_t parameters : {1, 255, 256, 257, 1000, 262144, 262145, 1239040}) {
    for (const int64_t fragment_bytes : {1024, 1028, 4096, 1 << 20}) {
      job.mutable_limits()->set_fragment_bytes(fragment_bytes);
      for (int kind = CODEC_KIND_UNSPECIFIED + 1; kind <= CodecKind_MAX; ++kind) {
        const auto codec = static_cast<CodecKind>(kind);
        job.mutable_strategy()->mutable_root()->set_codec_up(codec);
        EXPECT_EQ(VectorBytes(job, parameters, codec),
                  static_cast<int64_t>(EncodedBytes(codec, FragmentsOf(job, parameters))))
            << parameters << " in " << fragment_bytes << " as " << CodecKind_Name(codec);
      }
    }
  }
  job.mutable_limits()->set_fragment_bytes(1 << 20);
  EXPECT_EQ(VectorBytes(job, kParameters, CODEC_KIND_INT8), kInt8);
}

TEST(PlanTest, FragmentsThatTakeTurnsTravelOnePartAtATime) {
  const auto bytes = [](const char* parts) {
    return PlanOf({"strategy.preset=streaming_diloco", parts, "strategy.root.codec_up=fp32"}).regions[0].up.bytes;
  };
  EXPECT_EQ(bytes("strategy.parts=4"), (bytes("strategy.parts=1") + 3) / 4);
}

TEST(PlanTest, AveragedGradientsByHand) {
  const Plan plan = PlanOf({"strategy.preset=ddp"});
  const double transfer = kFp32 * 8 / 100e6;           // 0.396 s
  const double round = 0.25 + 2 * (transfer + 0.075);  // A step, up, and down again.
  EXPECT_EQ(plan.parameters, kParameters);
  EXPECT_EQ(plan.tokens_per_step, kTokens);
  EXPECT_NEAR(plan.round_seconds, round, 1e-9);
  EXPECT_NEAR(plan.rounds_per_hour, 3600 / round, 1e-6);
  EXPECT_NEAR(plan.compute_share, 0.25 / round, 1e-9);
  EXPECT_NEAR(plan.tokens_per_second, 6 * kTokens / round, 1e-6);
  EXPECT_NEAR(plan.log_bytes_per_hour, 3 * kFp32 * 3600 / round, 1);
  EXPECT_EQ(plan.join_bytes, kFp32);
  ASSERT_EQ(plan.regions.size(), 3u);
  for (const RegionPlan& region : plan.regions) {
    EXPECT_EQ(region.up.bytes, kFp32);
    EXPECT_EQ(region.down.bytes, kFp32);
    EXPECT_NEAR(region.up.transfer_seconds, transfer, 1e-9);
    EXPECT_NEAR(region.up.seconds, transfer + 0.075, 1e-9);
    EXPECT_NEAR(region.up.busy, transfer / round, 1e-9);
    EXPECT_NEAR(region.up.window_bytes, 12.5e6 * 0.15, 1e-3);
    EXPECT_FALSE(region.up.bound_by_loss);
    EXPECT_NEAR(region.wait_seconds, round - 0.25, 1e-9);
    EXPECT_EQ(region.staleness_versions, 0);
    EXPECT_EQ(region.staleness_steps, 1);
  }
  EXPECT_THAT(plan.notes, IsEmpty());
}

TEST(PlanTest, WhoeverWaitsForAllWaitsForTheSlowestPath) {
  PlanInput input =
      Example({"strategy.preset=diloco", "regions.beijing.speed=[1,0.5]",
               "wan.links=[{region: shenzhen, rtt: 1s}, {region: guizhou, direction: down, bandwidth: 10Mbit}]"});
  input.step_seconds = 0.1;
  const Plan plan = MakePlan(input);
  const double fast = kFp32 * 8 / 100e6, slow = kFp32 * 8 / 10e6;
  const double beijing = 3.2 + 2 * (fast + 0.075), shenzhen = 1.6 + 2 * (fast + 0.5);
  const double guizhou = 1.6 + fast + slow + 0.15;
  ASSERT_GT(guizhou, beijing);
  ASSERT_GT(beijing, shenzhen);
  EXPECT_NEAR(plan.round_seconds, guizhou, 1e-9);
  EXPECT_NEAR(plan.regions[0].compute_share, (1.6 + 3.2) / 2 / guizhou, 1e-9);
  EXPECT_NEAR(plan.regions[0].wait_seconds, guizhou - 2.4, 1e-9);
  EXPECT_NEAR(plan.regions[1].compute_share, 1.6 / guizhou, 1e-9);
  EXPECT_NEAR(plan.regions[1].rtt_seconds, 1, 1e-12);
  EXPECT_NEAR(plan.regions[2].rtt_seconds, 0.15, 1e-12);
  EXPECT_NEAR(plan.compute_share, (1.6 + 3.2 + 4 * 1.6) / 6 / guizhou, 1e-9);
  EXPECT_NEAR(plan.tokens_per_second, 96 * kTokens / guizhou, 1e-6);

  // Two of three do not wait for guizhou.
  input.job.mutable_strategy()->mutable_root()->set_quorum(2);
  const Plan two = MakePlan(input);
  EXPECT_NEAR(two.regions[0].up.interval_seconds, beijing, 1e-9);
  EXPECT_NEAR(two.regions[1].up.interval_seconds, beijing, 1e-9);
  EXPECT_NEAR(two.regions[2].up.interval_seconds, guizhou, 1e-9);
  EXPECT_NEAR(two.round_seconds, 2 / (2 / beijing + 1 / guizhou), 1e-9);
  EXPECT_NEAR(two.regions[2].staleness_versions, guizhou / two.round_seconds - 1, 1e-9);
}

TEST(PlanTest, WhoeverWaitsForAllWaitsForTheUnluckiest) {
  // Expected largest of 2 and 6 standard normal numbers: 1/sqrt(pi), and 1.2672 (Harter 1961).
  EXPECT_NEAR(NormalOrderStatistic(1, 1), 0, 1e-9);
  EXPECT_NEAR(NormalOrderStatistic(2, 2), 0.5642, 0.03);
  EXPECT_NEAR(NormalOrderStatistic(6, 6), 1.2672, 0.02);
  EXPECT_NEAR(NormalOrderStatistic(1, 6), -1.2672, 0.02);
  PlanInput input = Example({"strategy.preset=diloco", "wan.rtt=0ms", "wan.bandwidth=unlimited"});
  input.step_jitter = 0.2;
  const double largest = NormalOrderStatistic(6, 6);
  EXPECT_NEAR(MakePlan(input).round_seconds, 4 * (1 + largest * 0.2 / 4), 1e-9) << "16 steps halve it twice";
  EXPECT_NEAR(MakePlan(input).compute_share, 1 / (1 + largest * 0.05), 1e-9);
  input.job.mutable_strategy()->mutable_root()->set_quorum(1);  // Regions go by themselves.
  EXPECT_NEAR(MakePlan(input).regions[0].up.interval_seconds, 4 * (1 + NormalOrderStatistic(2, 2) * 0.05), 1e-9);
  input.job = Example().job;
  EXPECT_EQ(MakePlan(input).compute_share, 1) << "nobody waits";
}

TEST(PlanTest, WhoeverKeepsTrainingHasStalenessInPlaceOfWaits) {
  const Plan plan = PlanOf({});
  const double transfer = kInt8 * 8 / 100e6, way = transfer + 0.075;
  // Two workers of 4 s per contribution: one of the region's every 4 s, and a version of the root's every 4/3 s.
  EXPECT_NEAR(plan.round_seconds, 4.0 / 3, 1e-9);
  EXPECT_EQ(plan.compute_share, 1);
  EXPECT_NEAR(plan.tokens_per_second, 6 * kTokens / 0.25, 1e-6);
  EXPECT_NEAR(plan.log_bytes_per_hour, 3 * kInt8 * 900, 1e-3);
  // Half a version, its way down, the steps, the region's other worker, and the way up.
  const double age = 4.0 / 3 / 2 + way + 4 + 2 + way;
  for (const RegionPlan& region : plan.regions) {
    EXPECT_EQ(region.wait_seconds, 0);
    EXPECT_FALSE(region.link_limits);
    EXPECT_NEAR(region.up.interval_seconds, 4, 1e-9);
    EXPECT_NEAR(region.staleness_versions, age / (4.0 / 3), 1e-9);
    EXPECT_NEAR(region.staleness_steps, age / 0.25, 1e-9);
  }
  EXPECT_THAT(plan.notes, IsEmpty());
}

TEST(PlanTest, ALinkThatIsTooSlowLimitsHowOftenNotHowFast) {
  const Plan plan = PlanOf({"wan.bandwidth=1Mbit", "strategy.root.staleness_max=1"});
  const double transfer = kInt8 * 8 / 1e6;
  EXPECT_EQ(plan.compute_share, 1);
  for (const RegionPlan& region : plan.regions) {
    EXPECT_TRUE(region.link_limits);
    EXPECT_NEAR(region.up.interval_seconds, transfer, 1e-9);
    // What comes while one contribution is being written waits for its end: in place of the region's other worker.
    const double age = transfer / 2 + transfer + 0.075 + 4 + transfer + transfer + 0.075;
    EXPECT_NEAR(region.staleness_steps, age / 0.25, 1e-6);
  }
  // A version is made when somebody has the last one.
  EXPECT_NEAR(plan.round_seconds, transfer, 1e-9);
  EXPECT_THAT(plan.notes, Contains(HasSubstr("beijing: its workers make a contribution faster than its link")));
  EXPECT_THAT(plan.notes, Contains(HasSubstr("more than strategy.root.staleness_max allows (1)")));
}

TEST(PlanTest, FarAwayTheAnswersLimitHowOften) {
  const Plan plan = PlanOf({"wan.rtt=10s"});
  const double transfer = kInt8 * 8 / 100e6;
  EXPECT_NEAR(plan.regions[0].up.interval_seconds, (transfer + 10) / 2, 1e-9) << "two wait for their answers";
  const Plan more = PlanOf({"wan.rtt=10s", "strategy.in_flight_max=4"});
  EXPECT_NEAR(more.regions[0].up.interval_seconds, 4, 1e-9) << "as often as its workers contribute";
}

TEST(PlanTest, AgeFlushesWhatComesSeldom) {
  const Plan plan = PlanOf({"strategy.inner_steps=100"});
  // 25 s per contribution and worker: 12.5 s from one to the next, and 5 s after the first it is sent.
  EXPECT_NEAR(plan.regions[0].up.interval_seconds, 17.5, 1e-9);
}

TEST(PlanTest, ARegionSendsWholeMerges) {
  const auto interval = [](const char* send_every) {
    return PlanOf({"strategy.region.quorum=2", "strategy.region.flush_age=0s", send_every})
        .regions[0]
        .up.interval_seconds;
  };
  EXPECT_NEAR(interval("strategy.region.send_every=1"), 4, 1e-9) << "two of its two workers";
  EXPECT_NEAR(interval("strategy.region.send_every=3"), 8, 1e-9) << "after the second merge there are four";
}

TEST(PlanTest, RoundsThatOverlapComeNoFasterThanTheWireTakesThem) {
  const Plan plan = PlanOf({"strategy.preset=streaming_diloco", "wan.bandwidth=100kbit", "strategy.in_flight_max=16"});
  const RegionPlan& region = plan.regions[0];
  ASSERT_GT(region.up.transfer_seconds, 1) << "four steps";
  ASSERT_GT(region.up.transfer_seconds, (region.up.seconds + region.down.seconds) / 16);
  EXPECT_NEAR(region.up.interval_seconds, region.up.transfer_seconds, 1e-9);
  EXPECT_NEAR(region.compute_share, 1 / region.up.transfer_seconds, 1e-9);
  // A quorum of one sends the contribution of each worker by itself.
  const Plan each = PlanOf({"strategy.preset=diloco", "strategy.region.quorum=1", "wan.bandwidth=1Mbit",
                            "wan.links=[{region: beijing, direction: down, bandwidth: 1Gbit}, {region: shenzhen, "
                            "bandwidth: 1Gbit}, {region: guizhou, bandwidth: 1Gbit}]"});
  EXPECT_NEAR(each.regions[0].up.interval_seconds, each.regions[0].up.transfer_seconds, 1e-9);
}

TEST(PlanTest, SlowWorkersDoFewerStepsWhereStepsAreScaled) {
  const Plan plan = PlanOf({"regions.beijing.speed=[1,0.5]", "regions.guizhou.speed=0.95"});
  EXPECT_EQ(plan.regions[0].inner_steps_min, 8);
  EXPECT_EQ(plan.regions[0].inner_steps_max, 16);
  EXPECT_EQ(plan.regions[2].inner_steps_min, 16) << "within 10% of the reference";
  const Plan fixed = PlanOf({"regions.beijing.speed=[1,0.5]", "strategy.step_scaling=fixed"});
  EXPECT_EQ(fixed.regions[0].inner_steps_min, 16);
}

TEST(PlanTest, WorkersThatActAsOneGoAtThePaceOfTheSlowest) {
  const Plan plan =
      PlanOf({"regions.beijing.collective=gloo", "regions.beijing.speed=[1,0.5]", "strategy.step_scaling=fixed"});
  EXPECT_EQ(plan.regions[0].leaves, 1);
  EXPECT_EQ(plan.regions[0].workers, 2);
  EXPECT_NEAR(plan.regions[0].compute_seconds, 8, 1e-9);
  EXPECT_NEAR(plan.regions[0].tokens_per_second, 2 * kTokens / 0.5, 1e-9);
  EXPECT_NEAR(plan.regions[0].compute_share, 0.75, 1e-9);
}

TEST(PlanTest, ARegionMayHaveAStepTimeOfItsOwn) {
  PlanInput input = Example();
  input.region_step_seconds["guizhou"] = 1;
  const Plan plan = MakePlan(input);
  EXPECT_NEAR(plan.regions[2].tokens_per_second, 2 * kTokens, 1e-9);
  EXPECT_EQ(plan.regions[2].inner_steps_max, 4);
}

TEST(PlanTest, LossBoundsTheRateAsTheEmulatedLinkDoes) {
  for (const char* bandwidth : {"unlimited", "20Mbit", "100Mbit"}) {
    for (const double loss : {0.0, 1e-4, 1e-3, 1e-2}) {
      for (const int streams_max : {1, 8}) {
        SCOPED_TRACE(absl::StrCat(bandwidth, " loss ", loss, " streams ", streams_max));
        const PlanInput input = Example({absl::StrCat("wan.bandwidth=", bandwidth), absl::StrCat("wan.loss=", loss),
                                         absl::StrCat("limits.streams_max=", streams_max)});
        const LinkPlan up = MakePlan(input).regions[0].up;
        ASSERT_LE(up.streams, streams_max);
        LinkShape shape;
        shape.delay = absl::Milliseconds(75);
        // Their share of the wire.
        shape.bandwidth_bits_per_s = static_cast<double>(input.job.wan().bandwidth_bps()) / up.streams;
        shape.loss = loss;
        const absl::Duration rtt = absl::Milliseconds(150);
        double sum = 0;
        constexpr int kTransfers = 400;
        for (int i = 0; i < kTransfers; ++i) {
          const absl::Time begin = absl::UnixEpoch();
          absl::Time end = begin;
          for (int s = 0; s < up.streams; ++s) {
            LinkModel link(shape);
            StreamModel stream(5, "up", static_cast<uint64_t>(i * up.streams + s));
            for (int64_t left = kInt8 / up.streams; left > 0;) {
              const int64_t bytes = stream.NextBytes(shape, std::min(left, link.QuantumBytes()));
              end = std::max(end, stream.Send(link, rtt, begin, bytes).arrival);
              left -= bytes;
            }
          }
          sum += absl::ToDoubleSeconds(end - begin);
        }
        EXPECT_NEAR(up.seconds, sum / kTransfers, (up.streams > 1 ? 0.12 : 0.02) * up.seconds + 0.01);
        if (loss > 0) {
          const double mathis = 1448 / 0.15 * 1.22 / std::sqrt(loss);
          EXPECT_EQ(up.bound_by_loss, up.rate_bytes_per_second == up.streams * mathis);
        }
      }
    }
  }
}

TEST(PlanTest, ATransferThatIsTooLongForItsCallIsNamed) {
  EXPECT_THAT(PlanOf({"wan.bandwidth=32kbit"}).notes, Contains(HasSubstr("longer than limits.rpc allows for it (2")));
  EXPECT_THAT(PlanOf({"wan.bandwidth=100kbit"}).notes, Not(Contains(HasSubstr("longer than limits.rpc"))));
}

TEST(PlanTest, AsManyConnectionsAsFillTheLink) {
  const auto streams = [](std::vector<std::string> overrides) {
    const LinkPlan up = MakePlan(Example(std::move(overrides))).regions[0].up;
    return up.streams;
  };
  EXPECT_EQ(streams({}), 1) << "100 Mbit/s at 150 ms are 1.9 MB under way";
  EXPECT_EQ(streams({"wan.bandwidth=1Gbit"}), 8) << "19 MB, 4 MB on each";
  EXPECT_EQ(streams({"wan.loss=1%"}), 16) << "107 of which would fill it";
  EXPECT_EQ(streams({"wan.loss=1%", "wan.bandwidth=2Mbit"}), 4) << "0.94 Mbit/s each";
  EXPECT_EQ(streams({"wan.loss=1%", "limits.streams_max=5"}), 5);
  EXPECT_EQ(streams({"wan.rtt=0ms", "wan.loss=1%"}), 1);
  EXPECT_EQ(streams({"wan.bandwidth=unlimited"}), 1);
}

TEST(PlanTest, TheLargestModelOnTheFastestLinkFitsTheNumbers) {
  PlanInput input = Example({"wan.bandwidth=100Gbit", "strategy.preset=diloco", "strategy.root.codec_up=int8"});
  input.parameters = 1'000'000'000'000;
  input.step_seconds = 60;
  const Plan plan = MakePlan(input);
  EXPECT_EQ(plan.regions[0].up.bytes, 1'015'625'000'000);
  EXPECT_EQ(plan.regions[0].down.bytes, 4'000'000'000'000);
  EXPECT_NEAR(plan.regions[0].up.transfer_seconds, 81.25, 1e-9);
  EXPECT_NEAR(plan.regions[0].down.transfer_seconds, 320, 1e-9);
  EXPECT_NEAR(plan.round_seconds, 16 * 60 + 81.25 + 320 + 0.15, 1e-6);
  EXPECT_EQ(MemoryOf(plan, "coordinator").bytes, 20'000'000'000'000);
  EXPECT_GT(MemoryOf(plan, "coordinator").bytes_max, MemoryOf(plan, "coordinator").bytes);
  EXPECT_THAT(plan.refusal, HasSubstr("one record of the root's log, and has 1015625000000 bytes with "
                                      "strategy.root.codec_up (expected at most 1056964608)"));
  EXPECT_THAT(plan.refusal, Not(HasSubstr("limits.in_flight_bytes"))) << "to raise it does not help";
  EXPECT_THAT(plan.notes, Contains(HasSubstr("TCP's buffers")));

  input.parameters = kPlanParametersMax;
  const Plan most = MakePlan(input);
  for (const RegionPlan& region : most.regions) {
    EXPECT_GT(region.up.bytes, 0);
    EXPECT_GT(region.down.bytes, region.up.bytes);
  }
  for (const MemoryPlan& memory : most.memory) {
    EXPECT_GT(memory.bytes, 0) << memory.role;
    EXPECT_GT(memory.bytes_max, memory.bytes) << memory.role;
  }
}

TEST(PlanTest, VectorsOfEachRoleFollowTheKnobs) {
  const auto vectors = [](const std::vector<std::string>& settings, const std::string& role) {
    return MemoryOf(PlanOf(settings), role).vectors;
  };
  EXPECT_EQ(vectors({}, "worker"), 6);
  EXPECT_EQ(vectors({}, "aggregator"), 4);
  EXPECT_EQ(vectors({}, "coordinator"), 5);
  EXPECT_EQ(vectors({"strategy.root.momentum=0"}, "coordinator"), 3);
  EXPECT_EQ(vectors({"optimizer.kind=sgd"}, "worker"), 5);
  EXPECT_EQ(vectors({"optimizer.kind=sgd", "optimizer.momentum=0"}, "worker"), 4);
  const double hidden = 12.0 * 128 * 128 * 6 / kParameters;
  EXPECT_NEAR(vectors({"optimizer.kind=muon"}, "worker"), 4 + hidden + 2 * (1 - hidden), 1e-9);
  EXPECT_EQ(vectors({"strategy.preset=ddp"}, "worker"), 5) << "the optimizer's state is the root's";
  EXPECT_EQ(vectors({"strategy.preset=ddp"}, "coordinator"), 6);
  EXPECT_EQ(MemoryOf(PlanOf({}), "worker").bytes, 6 * kFp32);
}

TEST(PlanTest, WhatWasAcceptedAndWaitsForAMergeIsHeldBesideWhatIsStaged) {
  const int64_t staged = 64 << 20;
  // Differences of one model's bytes and two replaced versions; two contributions of workers, and one to the root.
  const Plan all = PlanOf({"strategy.preset=diloco"});
  EXPECT_EQ(MemoryOf(all, "aggregator").bytes_max, (4 + 3 + 1 + 2 + 1) * kFp32 + staged);
  // Three contributions, in the history and in a snapshot of four vectors as well.
  EXPECT_EQ(MemoryOf(all, "coordinator").bytes_max, (5 + 3 + 1 + 4 + 3 * 3) * kFp32 + staged);
  // With a quorum of one it is the one that is being merged.
  EXPECT_EQ(MemoryOf(PlanOf({}), "coordinator").bytes_max, (5 + 3 + 4) * kFp32 + (1 + 3) * kInt8 + staged);
  // Two of three, of whom the first may have sent twice; and whoever else comes within the grace.
  const auto coordinator = [](std::vector<std::string> settings) {
    settings.emplace_back("strategy.root.quorum=2");
    return MemoryOf(PlanOf(settings), "coordinator").bytes_max;
  };
  EXPECT_EQ(coordinator({}), (5 + 3 + 4) * kFp32 + (1 + 3 * 3) * kInt8 + staged);
  EXPECT_EQ(coordinator({"strategy.root.grace=1s"}), (5 + 3 + 4) * kFp32 + (1 + 3 * 5) * kInt8 + staged);
}

TEST(PlanTest, ASnapshotStandsOnWholeContributions) {
  const Plan small = PlanOf({"strategy.preset=diloco"});
  // 64 MiB are 14 of them.
  EXPECT_NEAR(small.snapshot_bytes_per_hour, 3 * small.rounds_per_hour / 14 * 4 * kFp32, 1);
  PlanInput large = Example({"strategy.preset=diloco"});
  large.parameters = 100'000'000;
  const Plan plan = MakePlan(large);
  EXPECT_NEAR(plan.snapshot_bytes_per_hour, 3 * plan.rounds_per_hour * 4 * 400e6, 1e3) << "one for each";
}

std::vector<std::string> PresetNames() {
  std::vector<std::string> names;
  for (int preset = PRESET_UNSPECIFIED + 1; preset <= Preset_MAX; ++preset) {
    names.push_back(absl::AsciiStrToLower(Preset_Name(static_cast<Preset>(preset)).substr(sizeof("PRESET_") - 1)));
  }
  return names;
}

TEST(PlanTest, NobodySendsMoreThanALinkTakesAndARemedyKeepsItsWord) {
  for (const std::string& preset : PresetNames()) {
    for (const char* bandwidth : {"10Mbit", "1Gbit", "100Gbit"}) {
      for (const int64_t millions : {1, 1'000, 1'000'000}) {
        SCOPED_TRACE(absl::StrCat(preset, " ", millions, "M parameters, ", bandwidth));
        const auto with = [&, preset = preset](std::vector<std::string> settings) {
          settings.insert(settings.begin(), {"strategy.preset=" + preset, absl::StrCat("wan.bandwidth=", bandwidth)});
          PlanInput input = Example(std::move(settings));
          input.parameters = millions * 1'000'000;
          input.step_seconds = 1;
          return input;
        };
        const auto check = [](const PlanInput& input) {
          Plan plan = MakePlan(input);
          const double most = static_cast<double>(input.job.wan().bandwidth_bps()) / 8 * (1 + 1e-9);
          for (const RegionPlan& region : plan.regions) {
            for (const LinkPlan* link : {&region.up, &region.down}) {
              EXPECT_LE(link->busy, 1 + 1e-9);
              if (most <= 0) continue;  // Unlimited.
              EXPECT_LE(static_cast<double>(link->bytes) / link->interval_seconds, most);
            }
          }
          return plan;
        };
        const auto enough = [](const Plan& plan) {
          return plan.compute_share >= kPlanShareWanted &&
                 std::none_of(plan.regions.begin(), plan.regions.end(), [](const auto& r) { return r.link_limits; });
        };
        const Plan given = check(with({}));
        for (const Remedy& remedy : given.remedies) {
          if (!remedy.possible) continue;
          SCOPED_TRACE(absl::StrCat(remedy.key, "=", remedy.value));
          std::vector<std::string> settings = {absl::StrCat(remedy.key, "=", remedy.value)};
          if (absl::StrContains(remedy.key, "codec")) {
            settings = {"strategy.root.codec_up=" + remedy.value, "strategy.root.codec_down=" + remedy.value};
          }
          const Plan after = check(with(settings));
          EXPECT_TRUE(enough(after)) << after.compute_share;
          EXPECT_NEAR(after.compute_share, remedy.share, 1e-9);
          if (absl::StrContains(remedy.key, "codec")) {
            EXPECT_THAT(after.refusal, Not(HasSubstr("one record of the root's log")));
          } else if (absl::StrContains(remedy.key, "inner_steps") && remedy.value != "1") {
            const PlanInput fewer = with({absl::StrCat("strategy.inner_steps=", std::stoi(remedy.value) - 1)});
            EXPECT_FALSE(enough(MakePlan(fewer)));
          }
        }
      }
    }
  }
}

TEST(PlanTest, SaysThatARunWouldBeRefusedForTheSizeOfItsContributions) {
  PlanInput input = Example({"strategy.preset=diloco", "wan.rtt=0ms", "wan.bandwidth=100Gbit"});
  input.parameters = 500'000'000;
  const Plan plan = MakePlan(input);
  EXPECT_THAT(plan.refusal, HasSubstr("a contribution is one record of the root's log, and has 2000000000 bytes"));
  EXPECT_THAT(plan.refusal, Not(HasSubstr("in_flight_bytes"))) << "more of these would not help";
  const Plan fits = PlanOf({"limits.in_flight_bytes=4MB"});
  EXPECT_EQ(fits.refusal, "");
  const Plan held = PlanOf({"limits.in_flight_bytes=4MB", "strategy.region.codec_up=fp32"});
  EXPECT_EQ(held.refusal, absl::StrCat("limits.in_flight_bytes (4000000) does not hold one contribution of ", kFp32,
                                       " bytes: raise it"));
  // Also of fragments that take turns: the last contribution has all of them.
  input = Example({"strategy.preset=streaming_diloco", "strategy.root.codec_up=int8"});
  input.parameters = 2'000'000'000;
  EXPECT_THAT(MakePlan(input).refusal, HasSubstr("and has 2031250000 bytes"));
}

TEST(PlanTest, SharesRiseWithBandwidthAndStepsAndFallWithDistanceAndSize) {
  Random random(11);
  const auto pick = [&](std::vector<std::string> values) { return values[random.Below(values.size())]; };
  for (int i = 0; i < 200; ++i) {
    SCOPED_TRACE(i);
    PlanInput input = Example({pick({"strategy.preset=diloco", "strategy.preset=ddp"}),
                               "regions.beijing.speed=" + pick({"1", "0.5", "[0.3,0.9]"}),
                               "wan.rtt=" + pick({"0ms", "20ms", "1s"}), "wan.loss=" + pick({"0", "0.01%", "1%"}),
                               "wan.bandwidth=" + pick({"1Mbit", "100Mbit", "10Gbit", "unlimited"}),
                               "strategy.root.codec_up=" + pick({"fp32", "bf16", "int8"})});
    input.step_seconds = 0.001 * std::pow(10.0, 4 * random.Uniform());
    const auto more = [&](double before, const PlanInput& changed, bool rises) {
      const double after = MakePlan(changed).compute_share;
      EXPECT_TRUE(rises ? after >= before - 1e-12 : after <= before + 1e-12) << before << " " << after;
      EXPECT_GT(after, 0);
      EXPECT_LE(after, 1 + 1e-12);
    };
    const double share = MakePlan(input).compute_share;
    PlanInput changed = input;
    changed.job.mutable_wan()->set_rtt_ns(input.job.wan().rtt_ns() + 50'000'000);
    more(share, changed, false);
    changed = input;
    changed.job.mutable_wan()->set_bandwidth_bps(2 * input.job.wan().bandwidth_bps());
    more(share, changed, true);
    changed = input;
    changed.job.mutable_wan()->set_loss(input.job.wan().loss() * 3);
    more(share, changed, false);
    changed = input;
    changed.parameters *= 3;
    more(share, changed, false);
    changed = input;
    changed.job.mutable_strategy()->set_inner_steps(3 * input.job.strategy().inner_steps());
    more(share, changed, true);
  }
}

const Remedy& RemedyOf(const Plan& plan, const std::string& key) {
  for (const Remedy& remedy : plan.remedies) {
    if (absl::StrContains(remedy.key, key)) return remedy;
  }
  ADD_FAILURE() << "no remedy " << key;
  return plan.remedies[0];
}

TEST(RemedyTest, TheFewestStepsThatAreEnough) {
  // 16 steps of 250 ms, and 0.943 s of the way: 49 times the way must be computed.
  const double way = 2 * (kFp32 * 8 / 100e6 + 0.075);
  const Plan plan = PlanOf({"strategy.preset=diloco"});
  EXPECT_EQ(RemedyOf(plan, "inner_steps").value, absl::StrCat(std::ceil(49 * way / 0.25)));
  EXPECT_GE(RemedyOf(plan, "inner_steps").share, 0.98);
  EXPECT_FALSE(RemedyOf(plan, "bandwidth").possible) << "150 ms are too much for 4 s of computing";
  EXPECT_NEAR(RemedyOf(plan, "bandwidth").share, 4 / 4.15, 1e-9);
  EXPECT_FALSE(RemedyOf(plan, "codec").possible);
}

TEST(RemedyTest, TheLeastBandwidthAndTheCodecThatLeavesOutLeast) {
  const Plan plan = PlanOf({"strategy.preset=diloco", "wan.rtt=0ms", "wan.bandwidth=300Mbit",
                            "wan.links=[{region: guizhou, bandwidth: 200Mbit}]"});
  // 2 * bytes * 8 / bandwidth of 4 s / 49: 971.4 Mbit/s, rounded up to two digits.
  EXPECT_EQ(RemedyOf(plan, "bandwidth").value, "980Mbit");
  EXPECT_EQ(RemedyOf(plan, "codec").value, "int4") << "guizhou's 200 Mbit/s are too little for int8";
  const Plan thin = PlanOf({"strategy.preset=diloco", "wan.rtt=0ms", "wan.bandwidth=300Mbit",
                            "wan.links=[{region: guizhou, bandwidth: 200kbit}]"});
  EXPECT_FALSE(RemedyOf(thin, "codec").possible);
  const Plan even = PlanOf({"strategy.preset=diloco", "wan.rtt=0ms", "wan.bandwidth=300Mbit"});
  EXPECT_EQ(RemedyOf(even, "codec").value, "int8");
}

TEST(RemedyTest, ACodecWithWhichTheJobWouldBeRefusedIsNone) {
  PlanInput input = Example({"strategy.preset=diloco", "wan.rtt=0ms", "wan.bandwidth=100Gbit"});
  input.parameters = 500'000'000;
  input.step_seconds = 1;
  EXPECT_EQ(RemedyOf(MakePlan(input), "codec").value, "bf16") << "the log does not take the 2 GB of fp32";
  input.parameters = 1'000'000'000'000;
  EXPECT_FALSE(RemedyOf(MakePlan(input), "codec").possible);
  EXPECT_THAT(RemedyOf(MakePlan(input), "codec").reason, HasSubstr("with no codec the root's log takes"));
  EXPECT_EQ(RemedyOf(PlanOf({"limits.in_flight_bytes=4MB"}), "codec").value, "bf16") << "5 MB do not fit";
}

TEST(RemedyTest, SaysWhyNothingAloneHelps) {
  const Plan slow = PlanOf({"strategy.preset=diloco", "regions.beijing.speed=[1,0.5]"});
  EXPECT_FALSE(RemedyOf(slow, "inner_steps").possible);
  EXPECT_THAT(RemedyOf(slow, "inner_steps").reason, HasSubstr("slower ones"));
  // All alike, with 1 TB to send: a million steps are not enough.
  PlanInput alike = Example({"strategy.preset=diloco"});
  alike.parameters = 1'000'000'000'000;
  EXPECT_FALSE(RemedyOf(MakePlan(alike), "inner_steps").possible);
  EXPECT_THAT(RemedyOf(MakePlan(alike), "inner_steps").reason, HasSubstr("the links stay too slow"));
  const Plan gradient = PlanOf({"strategy.preset=ddp"});
  EXPECT_THAT(RemedyOf(gradient, "inner_steps").reason, HasSubstr("must be 1 with progress: gradient"));
}

TEST(RemedyTest, WhereNobodyWaitsTheLinksAreToKeepUp) {
  // A region's contribution per H * 250 ms; it takes the link 0.101 s, and its answer comes 0.15 s later, to two of
  // them.
  EXPECT_EQ(RemedyOf(PlanOf({}), "inner_steps").value, "1");
  // H = 16: 4 s for 1,258,400 bytes.
  EXPECT_EQ(RemedyOf(PlanOf({}), "bandwidth").value, "2600kbit");
  EXPECT_EQ(RemedyOf(PlanOf({"wan.bandwidth=20Mbit"}), "codec").value, "fp32");
  EXPECT_EQ(RemedyOf(PlanOf({"wan.bandwidth=4Mbit"}), "codec").value, "int8");
  EXPECT_FALSE(RemedyOf(PlanOf({"wan.rtt=10s"}), "bandwidth").possible);
}

}  // namespace
}  // namespace wukong
