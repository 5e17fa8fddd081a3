#include "runtime/fault/link_model.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/fault/link_test_util.h"

namespace wukong {
namespace {

constexpr uint64_t kSeed = 7;

TEST(LinkModelTest, TakesTheTimeThatTheBandwidthAsks) {
  LinkModel link(Shape(absl::ZeroDuration(), 8e6));  // 1 MB/s.
  for (int i = 0; i < 100; ++i) link.Transmit(kStart, 10'000);
  EXPECT_NEAR(absl::ToDoubleSeconds(link.free_at() - kStart), 1.0, 1e-6);
}

TEST(LinkModelTest, ALateCallerCostsNoBandwidthAndAnIdleWireSavesNone) {
  LinkModel link(Shape(absl::ZeroDuration(), 8e6));
  link.Transmit(kStart, 10'000);
  // Asked later, for bytes that were there at the start: they leave behind the first ones.
  EXPECT_EQ(link.Transmit(kStart, 10'000), kStart + absl::Milliseconds(20));
  // After a pause the wire starts when the bytes come.
  EXPECT_EQ(link.Transmit(kStart + absl::Seconds(5), 10'000), kStart + absl::Milliseconds(5010));
}

TEST(LinkModelTest, AnUnlimitedWireTakesNoTime) {
  LinkModel link(Shape(absl::Milliseconds(3)));
  EXPECT_EQ(link.Transmit(kStart, 1 << 30), kStart);
}

TEST(LinkModelTest, ANewRateStartsAtOnce) {
  LinkModel link(Shape(absl::ZeroDuration(), 8));  // 1 byte per second.
  link.Transmit(kStart, 1000);
  link.SetShape(Shape(absl::ZeroDuration(), 8e6), kStart + absl::Seconds(1));
  EXPECT_EQ(link.Transmit(kStart + absl::Seconds(1), 1000), kStart + absl::Seconds(1) + absl::Milliseconds(1));
}

TEST(LinkModelTest, ShapesThatMakeNoSenseBecomeTheNearestThatDo) {
  LinkShape shape = Shape(absl::Milliseconds(-1), -5, std::numeric_limits<double>::quiet_NaN(), absl::Seconds(-1));
  shape = Sanitized(shape);
  EXPECT_EQ(shape.delay, absl::ZeroDuration());
  EXPECT_EQ(shape.jitter, absl::ZeroDuration());
  EXPECT_EQ(shape.bandwidth_bits_per_s, 0);
  EXPECT_EQ(shape.loss, 0);
  EXPECT_EQ(Sanitized(Shape(absl::InfiniteDuration(), 1, 2)).delay, absl::Hours(1));
  EXPECT_EQ(Sanitized(Shape(absl::InfiniteDuration(), 1, 2)).loss, 0.9);
}

TEST(LinkModelTest, BoundsWhatIsInFlight) {
  // 100 Mbit/s for 150 ms are 1.875 MB; twice that.
  EXPECT_EQ(InFlightLimit(Shape(absl::ZeroDuration(), 100e6), absl::Milliseconds(150)), 3'750'000);
  EXPECT_EQ(InFlightLimit(Shape(absl::ZeroDuration(), 1e6), absl::Milliseconds(10)), 256 << 10);
  EXPECT_EQ(InFlightLimit(Shape(absl::ZeroDuration(), 0), absl::Milliseconds(150)), 64 << 20);
}

TEST(StreamModelTest, ArrivesAfterTheDelay) {
  LinkModel link(Shape(absl::Milliseconds(75), 8e6));
  StreamModel stream(kSeed, "up", 1);
  const StreamModel::Sent sent = stream.Send(link, absl::Milliseconds(150), kStart, 1000);
  EXPECT_EQ(sent.departure, kStart + absl::Milliseconds(1));
  EXPECT_EQ(sent.arrival, kStart + absl::Milliseconds(76));
  EXPECT_FALSE(sent.lost);
}

TEST(StreamModelTest, JitterHasTheDeviationAskedForAndKeepsTheMean) {
  LinkModel link(Shape(absl::Milliseconds(75), 0, 0, absl::Milliseconds(7)));
  StreamModel stream(kSeed, "up", 1);
  double sum = 0;
  double squares = 0;
  constexpr int kCount = 20'000;
  for (int i = 0; i < kCount; ++i) {
    const absl::Time time = kStart + i * absl::Seconds(1);  // Far apart, so that the draws are independent.
    const double ms = absl::ToDoubleMilliseconds(stream.Send(link, absl::ZeroDuration(), time, 100).arrival - time);
    sum += ms;
    squares += ms * ms;
  }
  const double mean = sum / kCount;
  EXPECT_NEAR(mean, 75, 0.3);
  EXPECT_NEAR(std::sqrt(squares / kCount - mean * mean), 7, 0.2);
}

TEST(StreamModelTest, BytesNeverOvertakeEachOtherWhateverTheJitter) {
  LinkModel link(Shape(absl::Milliseconds(5), 100e6, 0.01, absl::Milliseconds(20)));
  StreamModel stream(kSeed, "down", 1);
  absl::Time last = absl::InfinitePast();
  for (int i = 0; i < 10'000; ++i) {
    const absl::Time time = kStart + i * absl::Microseconds(300);
    const int64_t bytes = stream.NextBytes(link.shape(), 1000);
    const StreamModel::Sent sent = stream.Send(link, absl::Milliseconds(10), time, bytes);
    EXPECT_GE(sent.arrival, last);
    EXPECT_GE(sent.arrival, sent.departure);
    last = sent.arrival;
  }
}

TEST(StreamModelTest, ALostSegmentComesARoundTripLaterAndHoldsThoseBehindIt) {
  const absl::Duration rtt = absl::Milliseconds(100);
  LinkModel link(Shape(absl::Milliseconds(50), 0, 0.05));
  StreamModel stream(kSeed, "up", 1);
  absl::Time time = kStart;
  StreamModel::Sent lost;
  int64_t before = 0;
  for (; !lost.lost; ++before) {
    ASSERT_LT(before, 10'000);
    time += absl::Seconds(1);
    lost = stream.Send(link, rtt, time, stream.NextBytes(link.shape(), kSegmentBytes));
    EXPECT_EQ(lost.arrival, time + absl::Milliseconds(lost.lost ? 150 : 50));
  }
  int64_t bytes = stream.NextBytes(link.shape(), 100);
  StreamModel::Sent next = stream.Send(link, rtt, time + absl::Milliseconds(1), bytes);
  EXPECT_GE(next.arrival, lost.arrival);
}

TEST(StreamModelTest, LosesTheShareAskedForAndTheSameSegmentsForTheSameSeed) {
  const double loss = 0.01;
  LinkModel link(Shape(absl::Milliseconds(1), 0, loss));
  constexpr int kSegments = 200'000;
  std::vector<int> lost[2];
  for (std::vector<int>& into : lost) {
    StreamModel stream(kSeed, "up", 3);
    for (int i = 0; i < kSegments; ++i) {
      const int64_t bytes = stream.NextBytes(link.shape(), kSegmentBytes);
      if (stream.Send(link, absl::Milliseconds(2), kStart, bytes).lost) into.push_back(i);
    }
  }
  const double deviation = std::sqrt(kSegments * loss * (1 - loss));
  EXPECT_NEAR(static_cast<double>(lost[0].size()), kSegments * loss, 4 * deviation);
  EXPECT_EQ(lost[0], lost[1]);
}

TEST(StreamModelTest, LosesTheShareAskedForInLargePiecesToo) {
  const double loss = 0.002;
  LinkModel link(Shape(absl::Milliseconds(1), 0, loss));
  StreamModel stream(kSeed, "up", 4);
  constexpr int64_t kSegments = 1'000'000;
  int64_t left = kSegments * kSegmentBytes;
  int64_t lost = 0;
  while (left > 0) {
    const int64_t bytes = stream.NextBytes(link.shape(), std::min<int64_t>(left, 45 * kSegmentBytes));
    lost += stream.Send(link, absl::Milliseconds(2), kStart, bytes).lost ? 1 : 0;
    left -= bytes;
  }
  EXPECT_NEAR(static_cast<double>(lost), kSegments * loss, 4 * std::sqrt(kSegments * loss));
}

// Sends as soon as the loss bound allows for `duration`; bytes per second.
double Goodput(LinkModel& link, StreamModel& stream, absl::Duration rtt, absl::Duration duration) {
  int64_t sent = 0;
  absl::Time now = kStart;
  while (now < kStart + duration) {
    const int64_t bytes = stream.NextBytes(link.shape(), 64 << 10);
    now = stream.Send(link, rtt, now, bytes).departure;
    sent += bytes;
  }
  return static_cast<double>(sent) / absl::ToDoubleSeconds(duration);
}

TEST(StreamModelTest, LossBoundsOneConnectionByTheMathisFormula) {
  const absl::Duration rtt = absl::Milliseconds(150);
  // 1448 B / 0.15 s * 1.22 / sqrt(0.001), by hand.
  EXPECT_NEAR(MathisBytesPerSecond(0.001, rtt), 372'424, 1);
  LinkModel link(Shape(absl::Milliseconds(75), 100e6, 0.001));
  StreamModel stream(kSeed, "up", 1);
  EXPECT_NEAR(Goodput(link, stream, rtt, absl::Seconds(60)) / MathisBytesPerSecond(0.001, rtt), 1, 0.02);
}

TEST(StreamModelTest, LossDoesNotBoundBelowTheWire) {
  const absl::Duration rtt = absl::Milliseconds(10);
  LinkModel link(Shape(absl::Milliseconds(5), 8e6, 1e-5));
  StreamModel stream(kSeed, "up", 1);
  EXPECT_NEAR(Goodput(link, stream, rtt, absl::Seconds(20)), 1e6, 2e4);
}

TEST(StreamModelTest, AWindowMayLeaveAtOnceAfterAPause) {
  const absl::Duration rtt = absl::Milliseconds(150);
  LinkModel link(Shape(absl::Milliseconds(75), 0, 0.001));
  StreamModel stream(kSeed, "up", 1);
  int64_t sent = 0;
  while (stream.eligible_at() <= kStart) {
    const int64_t bytes = stream.NextBytes(link.shape(), kSegmentBytes);
    stream.Send(link, rtt, kStart, bytes);
    sent += bytes;
  }
  // 1.22 / sqrt(0.001) = 38.6 segments.
  EXPECT_NEAR(static_cast<double>(sent) / kSegmentBytes, 38.6, 1.5);
}

TEST(StreamModelTest, AHoldDelaysWhatComesAfter) {
  LinkModel link(Shape(absl::Milliseconds(5)));
  StreamModel stream(kSeed, "up", 1);
  stream.HoldUntil(kStart + absl::Seconds(1));
  EXPECT_EQ(stream.Send(link, absl::ZeroDuration(), kStart, 10).arrival, kStart + absl::Seconds(1));
}

}  // namespace
}  // namespace wukong
