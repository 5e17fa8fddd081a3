#include "runtime/fault/freezes.h"

#include "gtest/gtest.h"

namespace wukong {
namespace {

constexpr char kWorker[] = "worker-0 of beijing";

TEST(FreezesTest, AProcessGoesOnWhenTheLastOfItsFreezesEnds) {
  Freezes freezes;
  freezes.Begin(kWorker, 1, 100);
  freezes.Begin(kWorker, 2, 100);
  freezes.Begin("another", 1, 200);
  EXPECT_TRUE(freezes.IsFrozen(kWorker, 100));
  EXPECT_FALSE(freezes.End(kWorker, 1, 100).goes_on);
  EXPECT_TRUE(freezes.IsFrozen(kWorker, 100));
  EXPECT_TRUE(freezes.End(kWorker, 2, 100).goes_on);
  EXPECT_FALSE(freezes.IsFrozen(kWorker, 100));
  EXPECT_FALSE(freezes.End(kWorker, 2, 100).began) << "there is none";
}

TEST(FreezesTest, WhatAnEarlierLifeWasFrozenByDoesNotHoldTheNextOne) {
  Freezes freezes;
  freezes.Begin(kWorker, 1, 100);  // For long; it is killed meanwhile.
  freezes.Begin(kWorker, 2, 101);
  EXPECT_TRUE(freezes.End(kWorker, 2, 101).goes_on);
  const Freezes::Ended late = freezes.End(kWorker, 1, 101);
  EXPECT_TRUE(late.began);
  EXPECT_FALSE(late.goes_on) << "nothing holds that one";
}

TEST(FreezesTest, TheEndOfOneThatDidNotBeginDoesNotEndALaterOne) {
  Freezes freezes;
  freezes.Begin(kWorker, 1, 0);
  freezes.Begin(kWorker, 1, 100);
  const Freezes::Ended none = freezes.End(kWorker, 1, 100);
  EXPECT_FALSE(none.began);
  EXPECT_FALSE(none.goes_on);
  EXPECT_TRUE(freezes.IsFrozen(kWorker, 100));
  EXPECT_FALSE(freezes.IsFrozen(kWorker, 0));
  EXPECT_TRUE(freezes.End(kWorker, 1, 100).goes_on);
}

TEST(FreezesTest, WhoIsGoneIsNotWoken) {
  Freezes freezes;
  freezes.Begin(kWorker, 1, 100);
  EXPECT_FALSE(freezes.End(kWorker, 1, 0).goes_on);
}

}  // namespace
}  // namespace wukong
