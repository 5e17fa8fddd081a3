#include "runtime/fault/packet_model.h"

#include <algorithm>

#include "gtest/gtest.h"
#include "runtime/fault/link_test_util.h"

namespace wukong {
namespace {

constexpr absl::Duration kRtt = absl::Milliseconds(100);

LinkShape ShapeWithRtt(double bandwidth, double loss = 0) { return Shape(kRtt / 2, bandwidth, loss); }

TEST(PacketModelTest, APacketTakesItsTimeOnTheWireAndTheDelay) {
  PacketModel model(ShapeWithRtt(12e6), 1, "up");
  // 1,500 bytes at 12 Mbit/s: a millisecond each, one behind the other.
  EXPECT_EQ(model.Send(1500, kRtt, kStart), kStart + kRtt / 2 + absl::Milliseconds(1));
  EXPECT_EQ(model.Send(1500, kRtt, kStart), kStart + kRtt / 2 + absl::Milliseconds(2));
  EXPECT_EQ(model.Send(1500, kRtt, kStart + absl::Seconds(1)),
            kStart + absl::Seconds(1) + kRtt / 2 + absl::Milliseconds(1));
  EXPECT_EQ(model.queued_max(), absl::Milliseconds(1));
}

TEST(PacketModelTest, AFullQueueDropsWhatComes) {
  const LinkShape shape = ShapeWithRtt(12e6);
  PacketModel model(shape, 1, "up");
  const int64_t fit = PacketQueueBytes(shape, kRtt) / 1500;
  EXPECT_EQ(fit, 100) << "12 Mbit/s times 100 ms";
  int64_t taken = 0;
  for (int i = 0; i < 150; ++i) taken += model.Send(1500, kRtt, kStart).has_value() ? 1 : 0;
  EXPECT_EQ(taken, fit);
  EXPECT_EQ(model.overflown(), 150 - fit);
  EXPECT_EQ(model.lost(), 0);
  EXPECT_TRUE(model.Send(1500, kRtt, kStart + absl::Milliseconds(2)).has_value()) << "one has left";
  PacketModel unlimited(ShapeWithRtt(0), 1, "up");
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(unlimited.Send(1500, kRtt, kStart), kStart + kRtt / 2);
}

TEST(PacketModelTest, TheShareOfPacketsThatIsLostIsLost) {
  PacketModel model(ShapeWithRtt(0, 0.05), 3, "up");
  PacketModel again(ShapeWithRtt(0, 0.05), 3, "up");
  constexpr int kPackets = 20000;
  int taken = 0;
  for (int i = 0; i < kPackets; ++i) {
    const absl::Time now = kStart + absl::Milliseconds(i);
    const auto arrival = model.Send(1500, kRtt, now);
    EXPECT_EQ(arrival, again.Send(1500, kRtt, now)) << "the same seed";
    taken += arrival.has_value() ? 1 : 0;
  }
  EXPECT_EQ(model.lost(), kPackets - taken);
  EXPECT_NEAR(model.lost(), 0.05 * kPackets, 100);
}

TEST(PacketModelTest, ACutDropsEverythingAndAHealedLinkNothing) {
  PacketModel model(ShapeWithRtt(12e6), 1, "up");
  model.SetCut(true);
  EXPECT_FALSE(model.Send(1500, kRtt, kStart).has_value());
  model.SetCut(false);
  EXPECT_TRUE(model.Send(1500, kRtt, kStart).has_value());
  EXPECT_EQ(model.lost() + model.overflown(), 0) << "of neither kind";
}

TEST(PacketModelTest, PacketsDoNotOvertakeEachOther) {
  LinkShape shape = ShapeWithRtt(100e6);
  shape.jitter = absl::Milliseconds(20);
  PacketModel model(shape, 5, "up");
  absl::Time last = absl::InfinitePast();
  absl::Duration shortest = absl::InfiniteDuration(), longest;
  for (int i = 0; i < 2000; ++i) {
    const absl::Time now = kStart + absl::Milliseconds(3 * i);
    const auto arrival = model.Send(1500, kRtt, now);
    ASSERT_TRUE(arrival.has_value());
    EXPECT_GE(*arrival, last);
    last = *arrival;
    shortest = std::min(shortest, *arrival - now);
    longest = std::max(longest, *arrival - now);
  }
  EXPECT_LT(shortest, absl::Milliseconds(30));
  EXPECT_GT(longest, absl::Milliseconds(70));
}

TEST(PacketModelTest, AShapeThatChangesHoldsFromThenOn) {
  PacketModel model(ShapeWithRtt(12e6), 1, "up");
  model.SetShape(ShapeWithRtt(1.2e6), kStart);
  EXPECT_EQ(model.Send(1500, kRtt, kStart), kStart + kRtt / 2 + absl::Milliseconds(10));
}

}  // namespace
}  // namespace wukong
