#include "runtime/sync/stream_tuner.h"

#include <algorithm>

#include "gtest/gtest.h"
#include "runtime/base/random.h"

namespace wukong {
namespace {

// A link on which one connection carries `per_stream` bytes per second, and all of them together `room`.
absl::Duration Took(int streams, int64_t bytes, double per_stream, double room, absl::Duration round_trip) {
  return round_trip + absl::Seconds(static_cast<double>(bytes) / std::min(room, streams * per_stream));
}

int After(StreamTuner* tuner, int transfers, double per_stream, double room, absl::Duration round_trip,
          double noise = 0) {
  Random random(7);
  for (int i = 0; i < transfers; ++i) {
    const absl::Duration took = Took(tuner->streams(), 1'000'000, per_stream, room, round_trip);
    tuner->Observe(tuner->streams(), 1'000'000, took * (1 + noise * random.Uniform()));
  }
  return tuner->streams();
}

// Share of `transfers` that went over at least, or at most, so many streams.
double Share(StreamTuner* tuner, int transfers, int low, int high, double per_stream, double room) {
  int counted = 0;
  for (int i = 0; i < transfers; ++i) {
    counted += tuner->streams() >= low && tuner->streams() <= high ? 1 : 0;
    After(tuner, 1, per_stream, room, absl::Milliseconds(150));
  }
  return static_cast<double>(counted) / transfers;
}

TEST(StreamTunerTest, TheRoundTripGivesTheFirstGuess) {
  EXPECT_EQ(StreamTuner(16, absl::ZeroDuration()).streams(), 1);
  EXPECT_EQ(StreamTuner(16, absl::Milliseconds(10)).streams(), 1);
  EXPECT_EQ(StreamTuner(16, absl::Milliseconds(30)).streams(), 4);
  EXPECT_EQ(StreamTuner(16, absl::Milliseconds(80)).streams(), 8);
  EXPECT_EQ(StreamTuner(16, absl::Milliseconds(150)).streams(), 16);
  EXPECT_EQ(StreamTuner(16, absl::Seconds(1)).streams(), 16);
  EXPECT_EQ(StreamTuner(12, absl::Seconds(1)).streams(), 12);
  EXPECT_EQ(StreamTuner(1, absl::Seconds(1)).streams(), 1);
}

TEST(StreamTunerTest, GrowsWhereOneConnectionIsTheLimit) {
  StreamTuner tuner(16, absl::Milliseconds(10));
  After(&tuner, 20, 300e3, 12.5e6, absl::Milliseconds(150));
  EXPECT_GT(Share(&tuner, 200, 16, 16, 300e3, 12.5e6), 0.9);
}

TEST(StreamTunerTest, ShrinksWhereOneConnectionFillsTheLink) {
  StreamTuner tuner(16, absl::Milliseconds(150));
  After(&tuner, 40, 12.5e6, 12.5e6, absl::Milliseconds(150));
  EXPECT_GT(Share(&tuner, 200, 1, 1, 12.5e6, 12.5e6), 0.9);
}

TEST(StreamTunerTest, FollowsALinkThatChanges) {
  StreamTuner tuner(16, absl::Milliseconds(150));
  After(&tuner, 500, 12.5e6, 12.5e6, absl::Milliseconds(150));
  After(&tuner, 200, 300e3, 12.5e6, absl::Milliseconds(150));
  EXPECT_GT(Share(&tuner, 200, 16, 16, 300e3, 12.5e6), 0.9);
}

TEST(StreamTunerTest, NoiseOfAThirdDoesNotHideTheLimit) {
  StreamTuner tuner(16, absl::Milliseconds(10));
  After(&tuner, 100, 300e3, 12.5e6, absl::Milliseconds(50), 0.33);
  int enough = 0;
  for (int i = 0; i < 100; ++i) enough += After(&tuner, 1, 300e3, 12.5e6, absl::Milliseconds(50), 0.33) >= 8 ? 1 : 0;
  EXPECT_GT(enough, 90);
}

TEST(StreamTunerTest, WhatIsNotConnectedYetIsNoTrial) {
  StreamTuner tuner(16, absl::Milliseconds(10));
  tuner.Observe(1, 1'000'000, absl::Seconds(1));
  ASSERT_EQ(tuner.streams(), 2) << "tries two";
  for (int i = 0; i < 10; ++i) tuner.Observe(1, 1'000'000, absl::Seconds(1));
  EXPECT_EQ(tuner.streams(), 2) << "until two were there";
  tuner.Observe(2, 1'000'000, absl::Seconds(0.5));
  tuner.Observe(2, 1'000'000, absl::Seconds(0.5));
  EXPECT_EQ(tuner.streams(), 4);
}

TEST(StreamTunerTest, FewerAreUsedWhereTransfersBreakAndMoreAgainWhereTheyDoNot) {
  StreamTuner tuner(16, absl::Milliseconds(160));
  ASSERT_EQ(tuner.streams(), 16);
  for (const int expected : {8, 4, 2, 1, 1}) {
    tuner.Broke(tuner.streams());
    EXPECT_EQ(tuner.streams(), expected);
  }
  After(&tuner, 200, 300e3, 12.5e6, absl::Milliseconds(150));
  EXPECT_GT(Share(&tuner, 200, 16, 16, 300e3, 12.5e6), 0.9);
}

TEST(StreamTunerTest, WhatIsTooSmallSaysNothing) {
  StreamTuner tuner(16, absl::Milliseconds(10));
  for (int i = 0; i < 10; ++i) tuner.Observe(1, 100, absl::Milliseconds(50));
  EXPECT_EQ(tuner.streams(), 1);
}

}  // namespace
}  // namespace wukong
