#include "runtime/sync/presets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "google/protobuf/util/message_differencer.h"
#include "runtime/sync/node_options.h"
#include "runtime/sync/stable_gain.h"

namespace wukong {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

Job ThreeRegions(Preset preset) {
  Job job;
  for (const char* name : {"beijing", "shenzhen", "guizhou"}) {
    Region* region = job.add_regions();
    region->set_name(name);
    region->set_workers(2);
  }
  job.mutable_strategy()->set_preset(preset);
  return job;
}

Job Resolved(Job job) {
  EXPECT_TRUE(ResolveStrategy(&job).ok());
  return job;
}

// Every field of the message is set, apart from what only the level below the root has.
void ExpectAllSet(const google::protobuf::Message& message, const std::vector<std::string>& but = {}) {
  const auto* descriptor = message.GetDescriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    const auto* field = descriptor->field(i);
    const bool excepted = std::find(but.begin(), but.end(), field->name()) != but.end();
    EXPECT_EQ(message.GetReflection()->HasField(message, field), !excepted) << field->full_name();
  }
}

TEST(PresetsTest, EveryPresetSetsEveryKnobAndWorks) {
  for (int value = PRESET_UNSPECIFIED + 1; value <= Preset_MAX; ++value) {
    const auto preset = static_cast<Preset>(value);
    SCOPED_TRACE(Preset_Name(preset));
    const Job job = Resolved(ThreeRegions(preset));
    ExpectAllSet(job.strategy());
    ExpectAllSet(job.strategy().region());
    ExpectAllSet(job.strategy().root(), {"send_every", "flush_age_ns"});
    EXPECT_EQ(CheckStrategy(job).message(), "");
  }
}

TEST(PresetsTest, ARegionMayHaveAsManyContributionsInFlightAsALeaf) {
  const auto in_flight = [](Preset preset) {
    return NodeOptionsOf(Resolved(ThreeRegions(preset)), /*is_root=*/false, {}).node.in_flight_max;
  };
  EXPECT_EQ(in_flight(PRESET_ASYNC), 2);
  EXPECT_EQ(in_flight(PRESET_DILOCO), 1);
  EXPECT_EQ(in_flight(PRESET_STREAMING_DILOCO), 4) << "each carries another part";
}

TEST(PresetsTest, TheDefaultIsAsync) {
  const Job job = Resolved(ThreeRegions(PRESET_UNSPECIFIED));
  const Strategy& strategy = job.strategy();
  EXPECT_EQ(strategy.preset(), PRESET_ASYNC);
  EXPECT_EQ(strategy.inner_steps(), 16);
  EXPECT_EQ(strategy.step_scaling(), STEP_SCALING_SPEED);
  EXPECT_EQ(strategy.in_flight(), IN_FLIGHT_KEEP);
  EXPECT_EQ(strategy.in_flight_max(), 2);
  EXPECT_EQ(strategy.progress(), PROGRESS_PARAMETERS);
  EXPECT_EQ(strategy.region().quorum(), 1);
  EXPECT_EQ(strategy.region().learning_rate(), 1.0);
  EXPECT_EQ(strategy.region().momentum(), 0.0);
  EXPECT_EQ(strategy.region().codec_up(), CODEC_KIND_INT8);
  EXPECT_EQ(strategy.region().send_every(), 0);
  EXPECT_EQ(strategy.region().flush_age_ns(), 5'000'000'000);
  EXPECT_EQ(strategy.root().quorum(), 1);
  EXPECT_EQ(strategy.root().learning_rate(), 0.7);
  EXPECT_EQ(strategy.root().momentum(), 0.5);
  EXPECT_EQ(strategy.root().momentum_delay(), 0);
  EXPECT_EQ(strategy.root().staleness_max(), 64);
}

TEST(PresetsTest, DilocoWaitsForAllWithNesterovAtTheRoot) {
  const Job job = Resolved(ThreeRegions(PRESET_DILOCO));
  EXPECT_EQ(job.strategy().in_flight(), IN_FLIGHT_WAIT);
  EXPECT_EQ(job.strategy().region().quorum(), 0);
  EXPECT_EQ(job.strategy().region().momentum(), 0.0);
  EXPECT_EQ(job.strategy().region().send_every(), 1);
  EXPECT_EQ(job.strategy().root().quorum(), 0);
  EXPECT_EQ(job.strategy().root().learning_rate(), 0.7);
  EXPECT_EQ(job.strategy().root().momentum(), 0.9);
  EXPECT_EQ(job.strategy().root().momentum_delay(), 1);
  EXPECT_EQ(job.strategy().root().staleness_max(), 0);
  EXPECT_EQ(job.strategy().root().codec_up(), CODEC_KIND_FP32);
}

TEST(PresetsTest, DdpAveragesTheGradientsOfEveryStep) {
  const Job job = Resolved(ThreeRegions(PRESET_DDP));
  EXPECT_EQ(job.strategy().inner_steps(), 1);
  EXPECT_EQ(job.strategy().progress(), PROGRESS_GRADIENT);
  EXPECT_EQ(job.strategy().root().weight(), WEIGHT_TOKENS);
  EXPECT_EQ(job.strategy().root().learning_rate(), 1.0);
  EXPECT_EQ(job.strategy().root().momentum(), 0.0);
}

TEST(PresetsTest, ExplicitValuesWinEvenWhereTheyAreZero) {
  Job job = ThreeRegions(PRESET_ASYNC);
  job.mutable_strategy()->set_inner_steps(4);
  job.mutable_strategy()->mutable_root()->set_momentum(0.0);
  job.mutable_strategy()->mutable_root()->set_quorum(2);
  job.mutable_strategy()->mutable_region()->set_flush_age_ns(0);
  job = Resolved(job);
  EXPECT_EQ(job.strategy().inner_steps(), 4);
  EXPECT_EQ(job.strategy().root().momentum(), 0.0);
  EXPECT_EQ(job.strategy().root().quorum(), 2);
  EXPECT_EQ(job.strategy().root().learning_rate(), 0.7) << "what is not set is the preset's";
  EXPECT_EQ(job.strategy().region().flush_age_ns(), 0);
}

TEST(PresetsTest, ResolvingTwiceChangesNothing) {
  for (int value = PRESET_UNSPECIFIED + 1; value <= Preset_MAX; ++value) {
    const Job once = Resolved(ThreeRegions(static_cast<Preset>(value)));
    EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(once, Resolved(once)));
  }
}

TEST(PresetsTest, WaitingMeansOneInFlight) {
  Job job = ThreeRegions(PRESET_ASYNC);
  job.mutable_strategy()->set_in_flight(IN_FLIGHT_WAIT);
  EXPECT_EQ(Resolved(job).strategy().in_flight_max(), 1);
  job.mutable_strategy()->set_in_flight_max(3);
  EXPECT_EQ(Resolved(job).strategy().in_flight_max(), 3) << "an explicit value is never changed, but refused";
}

TEST(PresetsTest, AnUnknownPresetIsRefused) {
  Job job = ThreeRegions(static_cast<Preset>(77));
  const absl::Status status = ResolveStrategy(&job);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("ssp, sparseloco, got number 77"));
}

struct Refusal {
  const char* name;
  Preset preset;
  std::function<void(Job*)> change;
  const char* key;
  const char* reason;
};

TEST(CheckStrategyTest, RefusesWhatCannotWorkAndSaysWhy) {
  const auto strategy = [](Job* job) { return job->mutable_strategy(); };
  const Refusal table[] = {
      {"gradient with several steps", PRESET_DDP, [&](Job* j) { strategy(j)->set_inner_steps(4); },
       "strategy.inner_steps", "expected 1 with progress: gradient, got 4"},
      {"gradient in flight", PRESET_DDP,
       [&](Job* j) {
         strategy(j)->set_in_flight(IN_FLIGHT_KEEP);
         strategy(j)->mutable_region()->set_staleness_max(9);
         strategy(j)->mutable_root()->set_staleness_max(9);
       },
       "strategy.in_flight", "expected wait with progress: gradient"},
      {"gradient with a quorum", PRESET_DDP,
       [&](Job* j) {
         strategy(j)->mutable_root()->set_quorum(2);
         strategy(j)->mutable_root()->set_staleness_max(9);
       },
       "strategy.root.quorum", "expected all with progress: gradient, got 2"},
      {"gradient with a quorum in the region", PRESET_DDP,
       [&](Job* j) {
         strategy(j)->mutable_region()->set_quorum(1);
         strategy(j)->mutable_region()->set_staleness_max(9);
       },
       "strategy.region.quorum", "expected all with progress: gradient, got 1"},
      {"gradient with momentum", PRESET_DDP, [&](Job* j) { strategy(j)->mutable_root()->set_momentum(0.9); },
       "strategy.root.momentum", "the inner optimizer has the momentum"},
      {"gradient scaled", PRESET_DDP, [&](Job* j) { strategy(j)->mutable_root()->set_learning_rate(0.7); },
       "strategy.root.learning_rate", "would scale the gradient"},
      {"gradient mixed", PRESET_DDP, [&](Job* j) { strategy(j)->mutable_region()->set_mix(0.5); },
       "strategy.region.mix", "expected 1 with progress: gradient, got 0.5"},
      {"gradient sent seldom", PRESET_DDP, [&](Job* j) { strategy(j)->mutable_region()->set_send_every(0); },
       "strategy.region.send_every", "expected 1 with progress: gradient, got all"},
      {"momentum twice", PRESET_ASYNC, [&](Job* j) { strategy(j)->mutable_region()->set_momentum(0.3); },
       "strategy.region.momentum", "two levels of momentum diverge at small delays"},
      {"naive asynchronous Nesterov", PRESET_ASYNC,
       [&](Job* j) {
         strategy(j)->mutable_root()->set_momentum(0.9);
         strategy(j)->mutable_root()->set_momentum_delay(1);
       },
       "strategy.root.momentum",
       "expected a learning rate below 0.239 with momentum 0.9, momentum_delay 1 and a quorum of 1 of 3, got 0.7"},
      {"gain", PRESET_DILOCO, [&](Job* j) { strategy(j)->mutable_root()->set_learning_rate(1.4); },
       "strategy.root.learning_rate",
       "overshoots (expected a learning rate below 1.36 with momentum 0.9, momentum_delay 1 and a quorum of 3 of 3, "
       "got 1.4"},
      {"gain without momentum", PRESET_ASYNC, [&](Job* j) { strategy(j)->mutable_region()->set_learning_rate(2); },
       "strategy.region.learning_rate", "overshoots (expected a learning rate below 1.99 with momentum 0"},
      {"a quorum with no staleness", PRESET_DILOCO,
       [&](Job* j) {
         strategy(j)->mutable_root()->set_quorum(2);
         strategy(j)->mutable_root()->set_momentum(0.5);
       },
       "strategy.root.staleness_max", "expected at least 1 with quorum 2 of 3 and in_flight: wait, got 0"},
      {"keeping on with no staleness", PRESET_ASYNC, [&](Job* j) { strategy(j)->mutable_root()->set_staleness_max(2); },
       "strategy.root.staleness_max", "expected at least 3 with quorum 1 of 3 and in_flight: keep, got 2"},
      {"no children's mix", PRESET_ASYNC, [&](Job* j) { strategy(j)->mutable_root()->set_mix(0); }, "strategy.root.mix",
       "no child would ever take"},
      {"waiting with two in flight", PRESET_DILOCO, [&](Job* j) { strategy(j)->set_in_flight_max(2); },
       "strategy.in_flight_max", "expected 1 with in_flight: wait, got 2"},
      {"a region that keeps what all wait for", PRESET_DILOCO,
       [&](Job* j) { strategy(j)->mutable_region()->set_send_every(40); }, "strategy.region.send_every",
       "or all with in_flight: wait, got 40"},
      {"a region that waits for a second merge", PRESET_DILOCO,
       [&](Job* j) {
         j->mutable_regions(1)->set_workers(3);
         strategy(j)->mutable_region()->set_quorum(2);
         strategy(j)->mutable_region()->set_staleness_max(1);
         strategy(j)->mutable_region()->set_send_every(0);
       },
       "strategy.region.send_every",
       "wait for the root after 2 contributions, which their region would keep (expected at most 2 with in_flight: "
       "wait, got all)"},
      {"a lead with a quorum", PRESET_SSP, [&](Job* j) { strategy(j)->mutable_root()->set_quorum(2); },
       "strategy.root.quorum", "whose contribution would wait for the others'"},
      {"a lead with a grace", PRESET_SSP, [&](Job* j) { strategy(j)->mutable_region()->set_grace_ns(1'000'000'000); },
       "strategy.region.grace", "until it is too old"},
      {"a lead of those who wait", PRESET_DILOCO, [&](Job* j) { strategy(j)->set_lead_max(2); }, "strategy.lead_max",
       "expected 0 with in_flight: wait, got 2"},
      {"a share of nothing", PRESET_DILOCO, [&](Job* j) { strategy(j)->set_pending(PENDING_SHARE); },
       "strategy.pending", "expected full with in_flight: wait"},
      {"a share of what is overwritten", PRESET_ASYNC,
       [&](Job* j) {
         strategy(j)->set_pending(PENDING_SHARE);
         strategy(j)->set_rebase(REBASE_REPLACE);
       },
       "strategy.pending", "expected full with rebase: replace"},
      {"a sum of what is thrown away", PRESET_ASYNC,
       [&](Job* j) {
         strategy(j)->set_rebase(REBASE_REPLACE);
         strategy(j)->mutable_root()->set_weight(WEIGHT_SUM);
       },
       "strategy.rebase", "expected move with weight: sum"},
      {"a sum that is cut", PRESET_ASYNC,
       [&](Job* j) {
         strategy(j)->mutable_root()->set_weight(WEIGHT_SUM);
         strategy(j)->mutable_root()->set_robust(ROBUST_NORM_CLIP);
       },
       "strategy.root.robust", "expected none with weight: sum"},
      {"a sum of directions", PRESET_ASYNC,
       [&](Job* j) {
         strategy(j)->mutable_root()->set_weight(WEIGHT_SUM);
         strategy(j)->mutable_root()->set_average(AVERAGE_DIRECTION_NORM);
       },
       "strategy.root.average", "expected mean with weight: sum"},
      {"the median of one", PRESET_ASYNC, [&](Job* j) { strategy(j)->mutable_root()->set_robust(ROBUST_MEDIAN); },
       "strategy.root.robust", "expected a quorum of at least 3, got 1 of 3"},
      {"the median of a small region", PRESET_LOCAL_SGD,
       [&](Job* j) {
         j->mutable_regions(0)->set_workers(4);
         j->mutable_regions(1)->set_workers(3);
         j->mutable_regions(2)->set_workers(2);
         strategy(j)->mutable_region()->set_robust(ROBUST_MEDIAN);
       },
       "strategy.region.robust", "expected a quorum of at least 3, got 2 of 2 in guizhou"},
      {"two averages", PRESET_DILOCO,
       [&](Job* j) {
         strategy(j)->mutable_root()->set_robust(ROBUST_TRIMMED_MEAN);
         strategy(j)->mutable_root()->set_average(AVERAGE_DIRECTION_NORM);
       },
       "strategy.root.average", "itself a way to average"},
      {"the median of parts", PRESET_DILOCO,
       [&](Job* j) {
         strategy(j)->set_parts(4);
         strategy(j)->mutable_root()->set_robust(ROBUST_MEDIAN);
       },
       "strategy.root.robust", "expected none or norm_clip with strategy.parts: 4"},
      {"a clip beyond the guard", PRESET_ASYNC,
       [&](Job* j) {
         j->mutable_limits()->set_norm_ratio_max(20);
         strategy(j)->mutable_root()->set_norm_ratio(25);
       },
       "strategy.root.norm_ratio", "expected at most that, got 25"},
      {"grace for nobody", PRESET_DILOCO, [&](Job* j) { strategy(j)->mutable_root()->set_grace_ns(1000); },
       "strategy.root.grace", "expected 0 with a quorum of 3 of 3"},
      {"gradient in parts", PRESET_DDP, [&](Job* j) { strategy(j)->set_parts(2); }, "strategy.parts",
       "expected 1 with progress: gradient, got 2"},
      {"gradient replaced", PRESET_DDP, [&](Job* j) { strategy(j)->set_rebase(REBASE_REPLACE); }, "strategy.rebase",
       "expected move with progress: gradient"},
      {"too large a quorum", PRESET_ASYNC, [&](Job* j) { strategy(j)->mutable_root()->set_quorum(4); },
       "strategy.root.quorum", "at most the job's 3 regions or `all`, got 4"},
      {"too large a quorum in a joined region", PRESET_ASYNC,
       [&](Job* j) {
         j->mutable_regions(1)->set_collective(COLLECTIVE_GLOO);
         strategy(j)->mutable_region()->set_quorum(2);
       },
       "strategy.region.quorum", "region shenzhen (expected at most its 1 leaf or `all`, got 2)"},
      {"the root's send_every", PRESET_ASYNC, [&](Job* j) { strategy(j)->mutable_root()->set_send_every(2); },
       "strategy.root.send_every", "strategy.region.send_every"},
      {"the root's flush_age", PRESET_ASYNC, [&](Job* j) { strategy(j)->mutable_root()->set_flush_age_ns(2); },
       "strategy.root.flush_age", "strategy.region.flush_age"},
  };
  for (const Refusal& row : table) {
    SCOPED_TRACE(row.name);
    Job job = ThreeRegions(row.preset);
    row.change(&job);
    job = Resolved(job);
    const std::vector<StrategyProblem> problems = FindStrategyProblems(job);
    ASSERT_EQ(problems.size(), 1u) << CheckStrategy(job);
    EXPECT_EQ(problems[0].key, row.key);
    EXPECT_THAT(problems[0].reason, HasSubstr(row.reason));
    EXPECT_EQ(CheckStrategy(job).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(CheckStrategy(job).message()), HasSubstr(std::string(row.key) + ": "));
  }
}

TEST(CheckStrategyTest, AllowsWhatWorks) {
  const std::function<void(Job*)> table[] = {
      // Delayed Nesterov with strong momentum is what the delay is for.
      [](Job* j) { j->mutable_strategy()->mutable_root()->set_momentum(0.9); },
      // Strong momentum at every merge, where every merge has all children.
      [](Job* j) {
        j->mutable_strategy()->mutable_root()->set_quorum(0);
        j->mutable_strategy()->mutable_root()->set_momentum(0.9);
        j->mutable_strategy()->mutable_root()->set_momentum_delay(1);
      },
      // Asked for all the same.
      [](Job* j) {
        j->mutable_strategy()->set_unstable(UNSTABLE_ALLOWED);
        j->mutable_strategy()->mutable_root()->set_learning_rate(3);
        j->mutable_strategy()->mutable_region()->set_momentum(0.9);
        j->mutable_strategy()->mutable_root()->set_mix(0);
      },
      // The middle of three.
      [](Job* j) {
        j->mutable_strategy()->set_preset(PRESET_DILOCO);
        j->mutable_strategy()->mutable_root()->set_robust(ROBUST_MEDIAN);
      },
      // A waiting sender with a quorum of one is answered at once.
      [](Job* j) { j->mutable_strategy()->set_in_flight(IN_FLIGHT_WAIT); },
      [](Job* j) {
        j->mutable_strategy()->set_preset(PRESET_DDP);
        for (Region& region : *j->mutable_regions()) region.set_collective(COLLECTIVE_GLOO);
      },
      [](Job* j) {
        j->mutable_strategy()->set_preset(PRESET_DDP);
        j->mutable_strategy()->mutable_root()->set_codec_up(CODEC_KIND_BF16);
      },
      // Alone, one child is all children.
      [](Job* j) {
        j->mutable_regions()->DeleteSubrange(1, 2);
        j->mutable_strategy()->mutable_root()->set_momentum(0.9);
        j->mutable_strategy()->mutable_root()->set_momentum_delay(1);
      },
  };
  int row = 0;
  for (const auto& change : table) {
    SCOPED_TRACE(row++);
    Job job = ThreeRegions(PRESET_ASYNC);
    change(&job);
    EXPECT_EQ(CheckStrategy(Resolved(job)).message(), "");
  }
}

TEST(PresetsTest, WhoAsksForASumGetsItUncut) {
  Job job = ThreeRegions(PRESET_ASYNC);
  job.mutable_strategy()->mutable_root()->set_weight(WEIGHT_SUM);
  job = Resolved(job);
  EXPECT_EQ(job.strategy().root().robust(), ROBUST_NONE);
  EXPECT_EQ(job.strategy().region().robust(), ROBUST_NORM_CLIP);
}

TEST(PresetsTest, HalosCountsItsMergesInRoundsOfTheLargestRegion) {
  Job job = ThreeRegions(PRESET_HALOS);
  job.mutable_regions(1)->set_workers(4);
  job = Resolved(job);
  EXPECT_EQ(job.strategy().region().momentum_delay(), 16) << "4 workers and 16 merges, as published";
  EXPECT_EQ(job.strategy().region().send_every(), 32);
  EXPECT_EQ(job.strategy().rebase(), REBASE_REPLACE);
}

TEST(StableGainTest, WithoutDelayItIsWhatThePolynomialSays) {
  for (const double beta : {0.0, 0.3, 0.5, 0.9, 0.99}) {
    DelayModel model;
    model.momentum = beta;
    for (const int64_t children : {1, 2, 7}) {
      model.children = model.quorum = children;
      EXPECT_NEAR(LargestStableGain(model), 2 * (1 + beta) / (1 + 2 * beta), 0.03) << beta << " " << children;
    }
  }
}

// With one contribution per merge and no momentum, the children's merges are one recursion of order M,
// x <- x - (g / M) x_M merges ago, which is stable for g < 2 M sin(pi / (4 M - 2)).
TEST(StableGainTest, WithDelayAndNoMomentumItIsWhatTheRecursionSays) {
  for (const int64_t children : {2, 3, 4, 8, 16}) {
    DelayModel model;
    model.children = children;
    const auto m = static_cast<double>(children);
    EXPECT_NEAR(LargestStableGain(model), 2 * m * std::sin(M_PI / (4 * m - 2)), 0.03) << children;
  }
}

TEST(StableGainTest, MomentumUnderDelayWantsAMuchSmallerRate) {
  DelayModel model;
  model.children = 4;
  model.momentum = 0.9;
  const double naive = LargestStableGain(model);
  model.momentum_delay = 4;
  const double delayed = LargestStableGain(model);
  model.momentum_delay = 1;
  model.quorum = 4;
  const double together = LargestStableGain(model);
  EXPECT_LT(naive, 0.3);
  EXPECT_GT(delayed, 2 * naive);
  EXPECT_GT(together, delayed);
}

TEST(StableGainTest, AQuorumThatDoesNotDivideTheChildrenIsTakenAsItIs) {
  const auto gain = [](int64_t quorum, int64_t children, double momentum) {
    DelayModel model;
    model.children = children;
    model.quorum = quorum;
    model.momentum = momentum;
    return LargestStableGain(model);
  };
  // Two of three are 1.5 merges in a round, not three.
  EXPECT_NEAR(gain(2, 3, 0.9), 1.145, 0.03);
  EXPECT_NEAR(gain(3, 5, 0.9), 0.83, 0.03);
  EXPECT_GT(gain(3, 5, 0.9), gain(2, 5, 0.9));
  // The recursion alone says 2.98 and 3.97.
  EXPECT_EQ(gain(2, 3, 0), gain(3, 3, 0));
  EXPECT_EQ(gain(3, 4, 0), gain(4, 4, 0));
  // More children than are run.
  EXPECT_NEAR(gain(50, 100, 0.9), gain(2, 4, 0.9), 0.03);
}

}  // namespace
}  // namespace wukong
