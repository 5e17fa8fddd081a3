#include "runtime/fault/netem.h"

#include <limits>

#include "absl/time/time.h"
#include "gtest/gtest.h"

namespace wukong {
namespace {

TEST(NetemArgumentsTest, SayWhatTheLinkIs) {
  LinkShape shape;
  shape.delay = absl::Milliseconds(75);
  shape.jitter = absl::Milliseconds(10);
  shape.bandwidth_bits_per_s = 100e6;
  shape.loss = 0.001;
  // 0.115 s of 12.5 MB/s under way, and 0.15 s of it in the queue, in packets of 1,500 bytes.
  EXPECT_EQ(NetemArguments(shape, /*cut=*/false, absl::Milliseconds(150)),
            "netem limit 2209 delay 75000us 10000us distribution normal loss 0.1% rate 100000000bit");
  EXPECT_EQ(NetemArguments(shape, /*cut=*/true, absl::Milliseconds(150)),
            "netem limit 2209 delay 75000us 10000us distribution normal loss 100% rate 100000000bit");
}

TEST(NetemArgumentsTest, ALinkWithoutLimitsHasARateThatKeepsOrder) {
  EXPECT_EQ(NetemArguments(LinkShape(), /*cut=*/false, absl::ZeroDuration()),
            "netem limit 44740 delay 0us rate 10000000000bit");
}

TEST(NetemArgumentsTest, ThereIsNoJitterWithoutADelay) {
  LinkShape shape;
  shape.jitter = absl::Milliseconds(1);
  shape.bandwidth_bits_per_s = 1e6;
  EXPECT_EQ(NetemArguments(shape, /*cut=*/false, absl::ZeroDuration()), "netem limit 65 delay 0us rate 1000000bit");
  shape.delay = absl::Milliseconds(1);
  shape.jitter = absl::Nanoseconds(400);
  EXPECT_EQ(NetemArguments(shape, /*cut=*/false, absl::Milliseconds(1)), "netem limit 65 delay 1000us rate 1000000bit");
}

TEST(NetemArgumentsTest, WhatNoLinkCanBeIsMadeTheNearest) {
  LinkShape shape;
  shape.delay = -absl::Seconds(1);
  shape.loss = 2;
  shape.bandwidth_bits_per_s = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(NetemArguments(shape, /*cut=*/false, absl::ZeroDuration()),
            "netem limit 44740 delay 0us loss 90% rate 10000000000bit");
}

}  // namespace
}  // namespace wukong
