#include "runtime/sync/leaf_schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace wukong {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

LeafSchedule::Options LeafOptions(int64_t inner_steps, bool waits = false, int in_flight_max = 1) {
  LeafSchedule::Options options;
  options.inner_steps = inner_steps;
  options.waits = waits;
  options.in_flight_max = in_flight_max;
  options.step_samples = 4;
  options.tokens_per_sample = 10;
  return options;
}

// A schedule that has its first parameters, with what a worker does around it.
struct Leaf {
  explicit Leaf(const LeafSchedule::Options& options) : schedule(options) { Take(1, 0, 1); }
  void Lease(int64_t begin, int64_t end, int64_t token = 1) { schedule.Leased({{begin, end, token}}, false); }
  void Take(int64_t version, int64_t included, int64_t root) {
    const LeafSchedule::ParentState state{Version(version), Sequence(included), Version(root)};
    schedule.VersionArrived(state);
    EXPECT_TRUE(std::holds_alternative<LeafSchedule::Rebase>(schedule.Next()));
    schedule.Rebased(state);
  }
  std::vector<LeasedRange> Train(double seconds = 1) {
    const LeafSchedule::Action action = schedule.Next();
    const auto* train = std::get_if<LeafSchedule::Train>(&action);
    EXPECT_NE(train, nullptr) << "action " << action.index() << " in place of a step";
    if (train == nullptr) return {};
    schedule.StepDone(seconds);
    return train->samples;
  }
  Manifest Contribute() {
    const LeafSchedule::Action action = schedule.Next();
    const auto* contribute = std::get_if<LeafSchedule::Contribute>(&action);
    EXPECT_NE(contribute, nullptr) << "action " << action.index() << " in place of a contribution";
    return contribute == nullptr ? Manifest() : contribute->manifest;
  }
  bool Waits(WaitReason reason) {
    const LeafSchedule::Action action = schedule.Next();
    const auto* wait = std::get_if<LeafSchedule::Wait>(&action);
    return wait != nullptr && wait->reason == reason;
  }
  bool WaitsForData() {
    const LeafSchedule::Action action = schedule.Next();
    const auto* wait = std::get_if<LeafSchedule::Wait>(&action);
    return wait != nullptr && wait->for_data();
  }
  bool IsIdle() {
    const LeafSchedule::Action action = schedule.Next();
    const auto* wait = std::get_if<LeafSchedule::Wait>(&action);
    return wait != nullptr && wait->idle;
  }
  LeafSchedule schedule;
};

TEST(LeafScheduleTest, WaitsForItsFirstParameters) {
  LeafSchedule schedule(LeafOptions(1));
  schedule.Leased({{0, 4, 1}}, false);
  const LeafSchedule::Action action = schedule.Next();
  ASSERT_TRUE(std::holds_alternative<LeafSchedule::Wait>(action));
  EXPECT_EQ(std::get<LeafSchedule::Wait>(action).reason, WaitReason::kParameters);
}

TEST(LeafScheduleTest, ContributesAfterHSteps) {
  Leaf leaf(LeafOptions(3));
  leaf.Lease(0, 100);
  EXPECT_THAT(leaf.Train(), ElementsAre(LeasedRange{0, 4, 1}));
  EXPECT_THAT(leaf.Train(), ElementsAre(LeasedRange{4, 8, 1}));
  EXPECT_THAT(leaf.Train(), ElementsAre(LeasedRange{8, 12, 1}));
  const Manifest manifest = leaf.Contribute();
  EXPECT_EQ(manifest.sequence, Sequence(1));
  EXPECT_EQ(manifest.steps, 3);
  EXPECT_EQ(manifest.tokens, 120);
  EXPECT_THAT(manifest.ranges, ElementsAre(LeasedRange{0, 12, 1}));
  EXPECT_EQ(leaf.schedule.untrained_samples(), 88);
  EXPECT_THAT(leaf.Train(), ElementsAre(LeasedRange{12, 16, 1}));
}

TEST(LeafScheduleTest, AStepMaySpanLeases) {
  Leaf leaf(LeafOptions(1));
  leaf.Lease(0, 3, 1);
  leaf.Lease(8, 16, 2);
  EXPECT_THAT(leaf.Train(), ElementsAre(LeasedRange{0, 3, 1}, LeasedRange{8, 9, 2}));
  EXPECT_THAT(leaf.Contribute().ranges, ElementsAre(LeasedRange{0, 3, 1}, LeasedRange{8, 9, 2}));
}

TEST(LeafScheduleTest, ASlowWorkerDoesFewerStepsPerContribution) {
  LeafSchedule::Options options = LeafOptions(10);
  options.scale_steps_by_speed = true;
  Leaf leaf(options);
  leaf.Lease(0, 100);
  EXPECT_EQ(leaf.schedule.steps_per_contribution(), 10) << "no speed is known yet";
  leaf.Train(/*seconds=*/2);
  EXPECT_DOUBLE_EQ(leaf.schedule.samples_per_second(), 2);
  const struct {
    double reference;
    int64_t steps;
  } rows[] = {{0, 10}, {1, 10}, {2, 10}, {2.1, 10}, {2.5, 8}, {4, 5}, {6, 3}, {1000, 1}};
  for (const auto& row : rows) {
    leaf.schedule.SpeedReference(row.reference);
    EXPECT_EQ(leaf.schedule.steps_per_contribution(), row.steps) << "reference " << row.reference;
  }
  leaf.schedule.SpeedReference(6);
  leaf.Train(2);
  leaf.Train(2);
  EXPECT_EQ(leaf.Contribute().steps, 3);
}

TEST(LeafScheduleTest, WithFixedStepsSpeedDoesNotMatter) {
  Leaf leaf(LeafOptions(10));
  leaf.Lease(0, 100);
  leaf.Train(2);
  leaf.schedule.SpeedReference(1000);
  EXPECT_EQ(leaf.schedule.steps_per_contribution(), 10);
}

TEST(LeafScheduleTest, AWaitingWorkerGoesOnOnlyWithAVersionThatIncludesItsContribution) {
  Leaf leaf(LeafOptions(1, /*waits=*/true));
  leaf.Lease(0, 100);
  leaf.Train();
  leaf.Contribute();
  EXPECT_TRUE(leaf.Waits(WaitReason::kAnswer));
  EXPECT_THAT(leaf.schedule.Answered(Sequence(1), VERDICT_ACCEPTED), IsEmpty());
  EXPECT_TRUE(leaf.Waits(WaitReason::kAnswer)) << "accepted is not included";
  EXPECT_FALSE(leaf.WaitsForData()) << "a version ends this wait";
  leaf.Take(2, /*included=*/0, 1);
  EXPECT_TRUE(leaf.Waits(WaitReason::kAnswer));
  leaf.Take(3, /*included=*/1, 2);
  leaf.Train();
}

TEST(LeafScheduleTest, AVersionMayOvertakeTheAnswerThatItRestsOn) {
  Leaf leaf(LeafOptions(1, /*waits=*/true));
  leaf.Lease(0, 100);
  leaf.Train();
  leaf.Contribute();
  leaf.Take(2, /*included=*/1, 1);
  EXPECT_TRUE(leaf.Waits(WaitReason::kAnswer));
  leaf.schedule.Answered(Sequence(1), VERDICT_ACCEPTED);
  leaf.Train();
}

TEST(LeafScheduleTest, WhileTheNetworkIsSlowTheContributionGrows) {
  Leaf leaf(LeafOptions(2, /*waits=*/false, /*in_flight_max=*/1));
  leaf.Lease(0, 100);
  leaf.Train();
  leaf.Train();
  EXPECT_EQ(leaf.Contribute().steps, 2);
  for (int i = 0; i < 5; ++i) leaf.Train();
  leaf.schedule.Answered(Sequence(1), VERDICT_ACCEPTED);
  const Manifest manifest = leaf.Contribute();
  EXPECT_EQ(manifest.steps, 5);
  EXPECT_EQ(manifest.sequence, Sequence(2));
  EXPECT_THAT(manifest.ranges, ElementsAre(LeasedRange{8, 28, 1}));
}

// As eager DiLoCo asks: one round travels while the next is trained, and no third is begun before it has come back.
TEST(LeafScheduleTest, OverlappingItWaitsAtTheEndOfTheNextRoundForAVersionThatIncludesTheLast) {
  LeafSchedule::Options options = LeafOptions(2);
  options.overlaps = true;
  Leaf leaf(options);
  leaf.Lease(0, 100);
  leaf.Train();
  leaf.Train();
  EXPECT_EQ(leaf.Contribute().sequence, Sequence(1));
  leaf.Train();
  EXPECT_THAT(leaf.schedule.Answered(Sequence(1), VERDICT_ACCEPTED), IsEmpty());
  leaf.Train();
  EXPECT_TRUE(leaf.Waits(WaitReason::kAnswer)) << "answered, and in no version";
  leaf.Take(2, 0, 2);
  EXPECT_TRUE(leaf.Waits(WaitReason::kAnswer)) << "a version of the others' progress";
  leaf.Take(3, 1, 3);
  EXPECT_EQ(leaf.Contribute().sequence, Sequence(2));
  leaf.Train();
  EXPECT_THAT(leaf.schedule.Answered(Sequence(2), VERDICT_STALE), ElementsAre(LeasedRange{8, 16, 1}));
  leaf.Train();
  EXPECT_EQ(leaf.Contribute().sequence, Sequence(3)) << "what was refused is waited for by nobody";
}

TEST(LeafScheduleTest, SeveralContributionsMayBeInFlight) {
  Leaf leaf(LeafOptions(1, false, 2));
  leaf.Lease(0, 100);
  leaf.Train();
  EXPECT_EQ(leaf.Contribute().sequence, Sequence(1));
  leaf.Train();
  EXPECT_EQ(leaf.Contribute().sequence, Sequence(2));
  leaf.Train();
  leaf.Train();
  leaf.schedule.Answered(Sequence(2), VERDICT_ACCEPTED);
  EXPECT_EQ(leaf.Contribute().steps, 2);
}

TEST(LeafScheduleTest, TheLastContributionMayBeAPartOfARound) {
  Leaf leaf(LeafOptions(5));
  leaf.Lease(0, 6);
  leaf.Train();
  EXPECT_TRUE(leaf.Waits(WaitReason::kData)) << "there may be more data, and a step wants all of its samples";
  EXPECT_TRUE(leaf.WaitsForData());
  leaf.schedule.Leased({}, /*exhausted=*/true);
  EXPECT_THAT(leaf.Train(), ElementsAre(LeasedRange{4, 6, 1}));
  const Manifest manifest = leaf.Contribute();
  EXPECT_EQ(manifest.steps, 2);
  EXPECT_EQ(manifest.tokens, 60);
  EXPECT_TRUE(manifest.last);
  EXPECT_TRUE(leaf.Waits(WaitReason::kNothingLeft)) << "it owes nothing only when the answer is there";
  leaf.schedule.Answered(Sequence(1), VERDICT_ACCEPTED);
  EXPECT_TRUE(leaf.IsIdle());
}

TEST(LeafScheduleTest, WhoeverGotTheLastDataContributesWithoutAskingAgain) {
  Leaf leaf(LeafOptions(5));
  leaf.schedule.Leased({{0, 6, 1}}, /*exhausted=*/true);
  leaf.Train();
  leaf.Train();
  const Manifest manifest = leaf.Contribute();
  EXPECT_EQ(manifest.steps, 2);
  EXPECT_TRUE(manifest.last);
}

TEST(LeafScheduleTest, OnlyWhatNoDataIsLeftAfterIsTheLast) {
  Leaf leaf(LeafOptions(/*inner_steps=*/1, /*waits=*/false, /*in_flight_max=*/8));
  leaf.Lease(0, 8);
  leaf.Train();
  EXPECT_FALSE(leaf.Contribute().last) << "it has data";
  leaf.Train();
  EXPECT_FALSE(leaf.Contribute().last) << "there may be more";
  leaf.schedule.Leased({}, /*exhausted=*/true);
  leaf.Lease(8, 12);
  leaf.Train();
  EXPECT_FALSE(leaf.Contribute().last) << "there was more";
}

TEST(LeafScheduleTest, AnIdleWorkerGoesBackToWorkWhenDataIsAvailableAgain) {
  Leaf leaf(LeafOptions(1));
  leaf.schedule.Leased({}, true);
  EXPECT_TRUE(leaf.IsIdle());
  leaf.Lease(40, 44, 9);
  EXPECT_THAT(leaf.Train(), ElementsAre(LeasedRange{40, 44, 9}));
}

TEST(LeafScheduleTest, ARefusedContributionGivesItsRangesBackOnce) {
  Leaf leaf(LeafOptions(1));
  leaf.Lease(0, 8);
  leaf.Train();
  leaf.Contribute();
  EXPECT_THAT(leaf.schedule.Answered(Sequence(1), VERDICT_STALE), ElementsAre(LeasedRange{0, 4, 1}));
  EXPECT_THAT(leaf.schedule.Answered(Sequence(1), VERDICT_STALE), IsEmpty());
  EXPECT_THAT(leaf.schedule.Answered(Sequence(9), VERDICT_STALE), IsEmpty());
  leaf.Train();
  EXPECT_EQ(leaf.Contribute().sequence, Sequence(2)) << "a sequence is never used again";
}

TEST(LeafScheduleTest, ARefusalLetsAWaitingWorkerGoOn) {
  Leaf leaf(LeafOptions(1, true));
  leaf.Lease(0, 8);
  leaf.Train();
  leaf.Contribute();
  leaf.schedule.Answered(Sequence(1), VERDICT_STALE);
  leaf.Train();
}

TEST(LeafScheduleTest, StopTrainingContributesWhatWasTrainedAndReturnsTheRest) {
  Leaf leaf(LeafOptions(5));
  leaf.Lease(0, 20);
  leaf.Train();
  EXPECT_THAT(leaf.schedule.StopTraining(), ElementsAre(LeasedRange{4, 20, 1}));
  EXPECT_EQ(leaf.schedule.WantSamples(absl::Seconds(10), 8), 0);
  EXPECT_THAT(leaf.Contribute().ranges, ElementsAre(LeasedRange{0, 4, 1}));
  leaf.schedule.Answered(Sequence(1), VERDICT_ACCEPTED);
  EXPECT_TRUE(leaf.IsIdle());
}

// The version that it is in may take all others' round, for which nobody who leaves has the time.
TEST(LeafScheduleTest, WhoLeavesWaitsForTheAnswerAndNotForTheVersion) {
  for (const bool answered_before : {false, true}) {
    Leaf leaf(LeafOptions(1, /*waits=*/true));
    leaf.Lease(0, 20);
    leaf.Train();
    leaf.Contribute();
    if (answered_before) leaf.schedule.Answered(Sequence(1), VERDICT_ACCEPTED);
    EXPECT_FALSE(leaf.IsIdle());
    leaf.schedule.StopTraining();
    EXPECT_EQ(leaf.IsIdle(), answered_before);
    leaf.schedule.Answered(Sequence(1), VERDICT_ACCEPTED);
    EXPECT_TRUE(leaf.IsIdle());
  }
}

TEST(LeafScheduleTest, LostProgressReturnsAllThatItWasMadeFrom) {
  Leaf leaf(LeafOptions(5));
  leaf.Lease(0, 20);
  leaf.Train();
  leaf.Train();
  ASSERT_TRUE(std::holds_alternative<LeafSchedule::Train>(leaf.schedule.Next()));  // Under way.
  EXPECT_THAT(Coalesce(leaf.schedule.ProgressLost()), ElementsAre(LeasedRange{0, 12, 1}));
  leaf.Train();
  leaf.Train();
  leaf.schedule.Leased({}, true);
  EXPECT_THAT(leaf.Contribute().ranges, ElementsAre(LeasedRange{12, 20, 1}));
}

TEST(LeafScheduleTest, ThreeLostStepsWithoutAContributionBetweenAreADivergence) {
  Leaf leaf(LeafOptions(2));
  leaf.Lease(0, 1000);
  const auto lose_a_step = [&] {
    EXPECT_TRUE(std::holds_alternative<LeafSchedule::Train>(leaf.schedule.Next()));
    const bool diverged = leaf.schedule.StepLost();
    EXPECT_FALSE(leaf.schedule.ProgressLost().empty());
    return diverged;
  };
  for (int contribution = 0; contribution < 3; ++contribution) {
    EXPECT_FALSE(lose_a_step());
    leaf.Train();
    EXPECT_FALSE(lose_a_step()) << "a good step before it makes no contribution";
    leaf.Train();
    leaf.Train();
    const Manifest manifest = leaf.Contribute();
    EXPECT_EQ(manifest.steps, 2);
    EXPECT_TRUE(leaf.schedule.Answered(manifest.sequence, VERDICT_ACCEPTED).empty());
  }
  EXPECT_FALSE(lose_a_step());
  EXPECT_FALSE(lose_a_step());
  leaf.Train();
  EXPECT_TRUE(lose_a_step());
}

TEST(LeafScheduleTest, TheManifestNamesTheOldestBaseOfItsSteps) {
  Leaf leaf(LeafOptions(3));
  leaf.Take(5, 0, 40);
  leaf.Lease(0, 100);
  leaf.Train();
  leaf.Take(7, 0, 44);
  leaf.Train();
  leaf.Take(9, 0, 48);
  leaf.Train();
  Manifest manifest = leaf.Contribute();
  EXPECT_EQ(manifest.base, Version(5));
  EXPECT_EQ(manifest.root_base, Version(40));
  leaf.schedule.Answered(Sequence(1), VERDICT_ACCEPTED);
  for (int i = 0; i < 3; ++i) leaf.Train();
  manifest = leaf.Contribute();
  EXPECT_EQ(manifest.base, Version(9)) << "the next contribution begins anew";
  EXPECT_EQ(manifest.root_base, Version(48));
}

TEST(LeafScheduleTest, RebasesOnlyBetweenStepsAndOncePerVersion) {
  Leaf leaf(LeafOptions(10));
  leaf.Lease(0, 100);
  ASSERT_TRUE(std::holds_alternative<LeafSchedule::Train>(leaf.schedule.Next()));
  leaf.schedule.VersionArrived({Version(2), Sequence(0), Version(2)});
  leaf.schedule.VersionArrived({Version(3), Sequence(0), Version(3)});
  leaf.schedule.StepDone(1);
  ASSERT_TRUE(std::holds_alternative<LeafSchedule::Rebase>(leaf.schedule.Next()));
  leaf.schedule.Rebased({Version(3), Sequence(0), Version(3)});
  EXPECT_EQ(leaf.schedule.base_root_version(), Version(3));
  leaf.Train();
}

TEST(LeafScheduleTest, WhoIsTooFarAheadWaitsForTheOthersWithoutATraceInItsWork) {
  LeafSchedule::Options options = LeafOptions(1, /*waits=*/false, /*in_flight_max=*/4);
  options.lead_max = 3;
  Leaf leaf(options);
  leaf.Lease(0, 100);
  const auto hear = [&](int64_t version, int64_t included, int64_t lead) {
    const LeafSchedule::ParentState state{Version(version), Sequence(included), Version(1), lead};
    leaf.schedule.VersionArrived(state);
    EXPECT_TRUE(std::holds_alternative<LeafSchedule::Rebase>(leaf.schedule.Next()));
    leaf.schedule.Rebased(state);
  };
  for (int sequence = 1; sequence <= 3; ++sequence) {  // In flight: they will be ahead.
    leaf.Train();
    EXPECT_EQ(leaf.Contribute().sequence, Sequence(sequence));
  }
  EXPECT_TRUE(leaf.Waits(WaitReason::kOthers));
  for (int sequence = 1; sequence <= 3; ++sequence) leaf.schedule.Answered(Sequence(sequence), VERDICT_ACCEPTED);
  hear(2, 3, 3);
  EXPECT_TRUE(leaf.Waits(WaitReason::kOthers));
  hear(3, 3, 2);
  leaf.Train();
  leaf.Contribute();
  EXPECT_TRUE(leaf.Waits(WaitReason::kOthers));
  leaf.schedule.Answered(Sequence(4), VERDICT_ACCEPTED);
  hear(4, 4, 0);
  leaf.Train();
}

TEST(LeafScheduleTest, TheLastContributionIsWhole) {
  Leaf leaf(LeafOptions(1));
  leaf.Lease(0, 8);
  leaf.schedule.Leased({}, /*exhausted=*/true);
  const auto whole = [&] {
    const LeafSchedule::Action action = leaf.schedule.Next();
    const auto* contribute = std::get_if<LeafSchedule::Contribute>(&action);
    EXPECT_NE(contribute, nullptr);
    return contribute != nullptr && contribute->whole;
  };
  leaf.Train();
  EXPECT_FALSE(whole());
  leaf.schedule.Answered(Sequence(1), VERDICT_ACCEPTED);
  leaf.Train();
  EXPECT_TRUE(whole());
}

TEST(LeafScheduleTest, AsksForDataBeforeItRunsOut) {
  Leaf leaf(LeafOptions(10));
  EXPECT_EQ(leaf.schedule.WantSamples(absl::Seconds(1), 16), 40 + 16) << "a contribution's and one range";
  leaf.Lease(0, 24);
  leaf.Train(/*seconds=*/0.5);  // 8 samples a second.
  const struct {
    double latency_seconds;
    int64_t want;
  } rows[] = {{0.0, 0}, {1.8, 0}, {2.0, 16}, {4.0, 4 + 32 + 16 - 20}};
  for (const auto& row : rows) {
    // It has 20 left, and keeps one step (4) beyond what it trains within the latency.
    EXPECT_EQ(leaf.schedule.WantSamples(absl::Seconds(row.latency_seconds), 16), row.want) << row.latency_seconds;
  }
}

TEST(LeafScheduleTest, AsksForFewStepsWhileItsSpeedIsUnknown) {
  Leaf leaf(LeafOptions(/*inner_steps=*/500));
  EXPECT_EQ(leaf.schedule.WantSamples(absl::Seconds(1), 16), 16 * 4 + 16);
}

TEST(LeafScheduleTest, ExpectsTheSpeedOfAnEarlierLifeUntilItsFirstStep) {
  LeafSchedule::Options options = LeafOptions(10);
  options.prefetch = absl::Seconds(4);
  Leaf leaf(options);
  leaf.schedule.ExpectSpeed(100);
  EXPECT_EQ(leaf.schedule.samples_per_second(), 0) << "nothing was measured";
  EXPECT_EQ(leaf.schedule.WantSamples(absl::Seconds(1), 16), 4 + 500 + 16);
  leaf.Lease(0, 4);
  leaf.Train(/*seconds=*/0.5);
  EXPECT_EQ(leaf.schedule.samples_per_second(), 8);
  EXPECT_EQ(leaf.schedule.WantSamples(absl::Seconds(1), 16), 4 + 40 + 16);
}

TEST(LeafScheduleTest, HoldsDataForTheTimeThatTheCoordinatorMayBeAway) {
  LeafSchedule::Options options = LeafOptions(10);
  options.prefetch = absl::Seconds(4);
  Leaf leaf(options);
  leaf.Lease(0, 44);
  leaf.Train(/*seconds=*/0.5);  // 8 samples a second: 32 in four seconds.
  EXPECT_EQ(leaf.schedule.untrained_samples(), 40);
  EXPECT_EQ(leaf.schedule.WantSamples(absl::ZeroDuration(), 16), 0);
  EXPECT_EQ(leaf.schedule.WantSamples(absl::Seconds(1), 16), 4 + 40 + 16 - 40);
  leaf.Train(0.5);
  EXPECT_EQ(leaf.schedule.WantSamples(absl::ZeroDuration(), 16), 16);
}

// ---- a parent that is gone

TEST(LeafParentLostTest, WithoutAParentItTrainsOnForAWhileAndThenWaits) {
  Leaf leaf(LeafOptions(/*inner_steps=*/3, /*waits=*/false, /*in_flight_max=*/2));
  leaf.Lease(0, 1000);
  leaf.Train();
  EXPECT_THAT(leaf.schedule.ParentLost(), IsEmpty());
  for (int i = 0; i < 6; ++i) leaf.Train();
  EXPECT_TRUE(leaf.Waits(WaitReason::kParameters));
  leaf.schedule.Holdings();
  leaf.schedule.HoldingsAnswered({}, {});
  leaf.Take(1, 0, 9);
  const Manifest manifest = leaf.Contribute();
  EXPECT_EQ(manifest.steps, 7);
  EXPECT_EQ(manifest.sequence, Sequence(1));
}

TEST(LeafParentLostTest, BeforeItsFirstParametersThereIsNothingToGoOnWith) {
  LeafSchedule schedule(LeafOptions(1));
  schedule.Leased({{0, 4, 1}}, false);
  schedule.ParentLost();
  const LeafSchedule::Action action = schedule.Next();
  ASSERT_TRUE(std::holds_alternative<LeafSchedule::Wait>(action));
}

TEST(LeafParentLostTest, WhatWasNotAnsweredIsMadeAgainUnlessTheRootHasIt) {
  Leaf leaf(LeafOptions(1, false, 4));
  leaf.Take(7, 0, 30);
  leaf.Lease(0, 100);
  for (int i = 0; i < 4; ++i) {
    leaf.Train();
    leaf.Contribute();
  }
  leaf.schedule.Answered(Sequence(1), VERDICT_ACCEPTED);
  leaf.Take(8, 0, 35);
  leaf.Train();
  EXPECT_THAT(leaf.schedule.ParentLost(), ElementsAre(Sequence(2), Sequence(3), Sequence(4)));
  EXPECT_THAT(leaf.schedule.Holdings(), ElementsAre(LeasedRange{4, 100, 1})) << "all but what was answered";

  // The coordinator gave [9, 10) to somebody else.
  const LeafSchedule::Decision decision = leaf.schedule.HoldingsAnswered({{4, 8, 1}}, {{9, 10, 1}});
  EXPECT_THAT(decision.included, ElementsAre(Sequence(2)));
  EXPECT_THAT(decision.dropped, ElementsAre(Sequence(3)));
  EXPECT_THAT(decision.taken_back, ElementsAre(Sequence(4)));
  EXPECT_THAT(decision.released, ElementsAre(LeasedRange{8, 9, 1}, LeasedRange{10, 12, 1}));
  EXPECT_FALSE(decision.progress_lost);

  leaf.Take(1, 0, 40);  // The next parent's versions begin at 1 again.
  const Manifest manifest = leaf.Contribute();
  EXPECT_EQ(manifest.sequence, Sequence(5)) << "sequences go on";
  EXPECT_THAT(manifest.ranges, ElementsAre(LeasedRange{12, 20, 1}));
  EXPECT_EQ(manifest.steps, 2);
  EXPECT_EQ(manifest.base, Version(1)) << "versions of the old parent mean nothing to the new one";
  EXPECT_EQ(manifest.root_base, Version(30)) << "but the root is the same";
}

TEST(LeafParentLostTest, NothingIsContributedBeforeTheCoordinatorHasSpoken) {
  Leaf leaf(LeafOptions(1, false, 2));
  leaf.Lease(0, 100);
  leaf.Train();
  leaf.Contribute();
  leaf.schedule.Answered(Sequence(1), VERDICT_ACCEPTED);
  leaf.schedule.ParentLost();
  leaf.Take(1, 0, 2);
  leaf.Train();
  leaf.Train();
  EXPECT_TRUE(leaf.Waits(WaitReason::kAnswer));
  leaf.schedule.HoldingsAnswered({}, {});
  EXPECT_TRUE(leaf.Waits(WaitReason::kAnswer)) << "it has not said what it holds";
  leaf.schedule.Holdings();
  leaf.schedule.HoldingsAnswered({}, {});
  EXPECT_EQ(leaf.Contribute().steps, 2);
}

TEST(LeafParentLostTest, AnAnswerToHoldingsOfBeforeAnotherLossDecidesNothing) {
  Leaf leaf(LeafOptions(1, false, 2));
  leaf.Lease(0, 100);
  leaf.Train();
  leaf.schedule.Holdings();
  leaf.Contribute();
  leaf.schedule.ParentLost();
  const LeafSchedule::Decision decision = leaf.schedule.HoldingsAnswered({}, {});
  EXPECT_THAT(decision.taken_back, IsEmpty());
  leaf.schedule.Holdings();
  EXPECT_THAT(leaf.schedule.HoldingsAnswered({{0, 4, 1}}, {}).included, ElementsAre(Sequence(1)));
}

TEST(LeafParentLostTest, AContributionThatTheRootHasIsTakenWithItsParametersAlsoWhenTheyCameFirst) {
  Leaf leaf(LeafOptions(1, false, 1));
  leaf.Lease(0, 100);
  leaf.Train();
  leaf.Contribute();
  leaf.schedule.ParentLost();
  leaf.schedule.Holdings();
  leaf.Take(1, 0, 5);
  leaf.schedule.HoldingsAnswered({{0, 4, 1}}, {});
  EXPECT_TRUE(std::holds_alternative<LeafSchedule::Rebase>(leaf.schedule.Next())) << "the base holds it twice";
  leaf.schedule.Rebased({Version(1), Sequence(0), Version(5)});
  leaf.Train();
}

TEST(LeafParentLostTest, WhatAVersionHeldBeforeItsAnswerCameCannotBeTakenBack) {
  Leaf leaf(LeafOptions(1));
  leaf.Lease(0, 100);
  leaf.Train();
  leaf.Contribute();
  leaf.Take(2, /*included=*/1, 1);
  leaf.schedule.ParentLost();
  EXPECT_THAT(leaf.schedule.Holdings(), ElementsAre(LeasedRange{0, 100, 1}));
  const LeafSchedule::Decision decision = leaf.schedule.HoldingsAnswered({}, {});
  EXPECT_THAT(decision.taken_back, IsEmpty());
  EXPECT_THAT(decision.released, ElementsAre(LeasedRange{0, 4, 1}));
}

TEST(LeafParentLostTest, WhatThetaHasForgottenCannotBeTakenBack) {
  Leaf leaf(LeafOptions(1));
  leaf.Lease(0, 100);
  leaf.Train();
  leaf.Contribute();
  leaf.schedule.SentForgotten();
  EXPECT_THAT(leaf.schedule.ProgressLost(), IsEmpty());
  leaf.schedule.ParentLost();
  leaf.schedule.Holdings();
  EXPECT_THAT(leaf.schedule.HoldingsAnswered({}, {}).released, ElementsAre(LeasedRange{0, 4, 1}));
}

TEST(LeafParentLostTest, DataThatIsAnothersIsNotTrainedOn) {
  Leaf leaf(LeafOptions(3));
  leaf.Lease(0, 40);
  leaf.Train();
  leaf.schedule.Holdings();  // The coordinator is new; the parent lives.
  LeafSchedule::Decision decision = leaf.schedule.HoldingsAnswered({{8, 10, 1}}, {{20, 24, 1}});
  EXPECT_FALSE(decision.progress_lost);
  EXPECT_THAT(decision.released, IsEmpty());
  EXPECT_THAT(leaf.Train(), ElementsAre(LeasedRange{4, 8, 1}));
  EXPECT_EQ(leaf.schedule.untrained_samples(), 26);
  leaf.schedule.Holdings();
  decision = leaf.schedule.HoldingsAnswered({}, {{0, 2, 1}});
  EXPECT_TRUE(decision.progress_lost);
  EXPECT_THAT(decision.released, ElementsAre(LeasedRange{2, 8, 1}));
  EXPECT_THAT(leaf.Train(), ElementsAre(LeasedRange{10, 14, 1}));
}

TEST(LeafParentLostTest, WhileTheParentLivesItAnswersForWhatItWasSent) {
  Leaf leaf(LeafOptions(1));
  leaf.Lease(0, 8);
  leaf.Train();
  leaf.Contribute();
  EXPECT_THAT(leaf.schedule.Holdings(), ElementsAre(LeasedRange{0, 8, 1}));
  const LeafSchedule::Decision decision = leaf.schedule.HoldingsAnswered({{0, 4, 1}}, {});
  EXPECT_THAT(decision.included, IsEmpty());
  EXPECT_THAT(leaf.schedule.Holdings(), ElementsAre(LeasedRange{0, 8, 1}));
  leaf.schedule.Answered(Sequence(1), VERDICT_ACCEPTED);
  EXPECT_THAT(leaf.schedule.Holdings(), ElementsAre(LeasedRange{4, 8, 1}));
}

TEST(LeafParentLostTest, AGradientIsMadeAnewFromItsData) {
  LeafSchedule::Options options = LeafOptions(1, /*waits=*/true);
  options.gradient_progress = true;
  Leaf leaf(options);
  leaf.Lease(0, 12);
  leaf.Train();
  leaf.Contribute();
  leaf.schedule.ParentLost();
  EXPECT_TRUE(leaf.Waits(WaitReason::kAnswer)) << "a gradient of old parameters would be of no use";
  leaf.schedule.Holdings();
  EXPECT_THAT(leaf.schedule.HoldingsAnswered({}, {}).taken_back, ElementsAre(Sequence(1)));
  EXPECT_TRUE(leaf.Waits(WaitReason::kParameters));
  leaf.Take(1, 0, 3);
  EXPECT_THAT(leaf.Train(), ElementsAre(LeasedRange{0, 4, 1}));
  EXPECT_EQ(leaf.Contribute().sequence, Sequence(2));
}

TEST(LeafParentLostTest, AWorkerThatWaitsMakesNoMoreThanOneRoundWithoutAParent) {
  Leaf leaf(LeafOptions(2, /*waits=*/true));
  leaf.Lease(0, 100);
  leaf.schedule.ParentLost();
  leaf.schedule.Holdings();
  leaf.schedule.HoldingsAnswered({}, {});
  leaf.Train();
  leaf.Train();
  EXPECT_TRUE(leaf.Waits(WaitReason::kParameters));
  leaf.Take(1, 0, 3);
  EXPECT_EQ(leaf.Contribute().steps, 2);
}

}  // namespace
}  // namespace wukong
