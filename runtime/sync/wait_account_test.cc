#include "runtime/sync/wait_account.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace wukong {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;

absl::Time At(double seconds) { return absl::UnixEpoch() + absl::Seconds(seconds); }

TEST(WaitAccountTest, AddsUpByReason) {
  WaitAccount account;
  account.Waits(WaitReason::kData, At(1));
  account.Works(At(3));
  account.Waits(WaitReason::kNothingLeft, At(10));
  account.Works(At(10.5));
  account.Waits(WaitReason::kData, At(20));
  account.Works(At(21));
  EXPECT_THAT(account.Seconds(At(30)), ElementsAre(Pair("data", 3), Pair("nothing_left", 0.5)));
}

TEST(WaitAccountTest, AWaitThatIsAskedForAgainGoesOn) {
  WaitAccount account;
  for (int i = 0; i < 10; ++i) account.Waits(WaitReason::kAnswer, At(i));
  account.Works(At(10));
  EXPECT_THAT(account.Seconds(At(10)), ElementsAre(Pair("answer", 10)));
}

TEST(WaitAccountTest, AnotherReasonBeginsAnew) {
  WaitAccount account;
  account.Waits(WaitReason::kParameters, At(0));
  account.Waits(WaitReason::kOthers, At(2));
  EXPECT_THAT(account.Seconds(At(5)), ElementsAre(Pair("others", 3), Pair("parameters", 2)));
  EXPECT_THAT(account.Seconds(At(6)), ElementsAre(Pair("others", 4), Pair("parameters", 2))) << "nothing was changed";
}

TEST(WaitAccountTest, WorkingIsNotWaiting) {
  WaitAccount account;
  account.Works(At(5));
  EXPECT_THAT(account.Seconds(At(9)), IsEmpty());
}

}  // namespace
}  // namespace wukong
