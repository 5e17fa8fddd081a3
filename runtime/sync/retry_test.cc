#include "runtime/sync/retry.h"

#include <gtest/gtest.h>

namespace wukong {
namespace {

TEST(RetryTest, ThePauseDoublesToASecondAndHalfOfItIsJitter) {
  EXPECT_EQ(ParentRetry(0, 0.0), absl::Milliseconds(25));
  EXPECT_EQ(ParentRetry(0, 1.0), absl::Milliseconds(50));
  EXPECT_EQ(ParentRetry(1, 1.0), absl::Milliseconds(100));
  EXPECT_EQ(ParentRetry(4, 0.0), absl::Milliseconds(400));
  EXPECT_EQ(ParentRetry(5, 1.0), absl::Seconds(1));
  EXPECT_EQ(ParentRetry(1'000'000, 1.0), absl::Seconds(1)) << "however often";
}

TEST(RetryTest, ACallToTheCoordinatorIsGivenWhatItsLinkNeeds) {
  EXPECT_EQ(CoordinatorTimeout(absl::ZeroDuration(), 0), absl::Seconds(5));
  EXPECT_EQ(CoordinatorTimeout(absl::Milliseconds(150), 0), absl::Seconds(5));
  EXPECT_EQ(CoordinatorTimeout(absl::Seconds(3), 0), absl::Seconds(12));
  EXPECT_EQ(CoordinatorTimeout(absl::ZeroDuration(), 1), absl::Seconds(10));
  EXPECT_EQ(CoordinatorTimeout(absl::ZeroDuration(), 2), absl::Seconds(20));
  EXPECT_EQ(CoordinatorTimeout(absl::ZeroDuration(), 1'000'000), absl::Seconds(20)) << "however often";
}

TEST(RetryTest, WhoIsAwayIsAskedAgainAndWhoRefusesIsNot) {
  EXPECT_TRUE(IsTransient(absl::UnavailableError("")));
  EXPECT_TRUE(IsTransient(absl::DeadlineExceededError("")));
  EXPECT_TRUE(IsTransient(absl::CancelledError("")));
  EXPECT_TRUE(IsTransient(absl::ResourceExhaustedError("")));
  EXPECT_FALSE(IsTransient(absl::AbortedError("")));
  EXPECT_FALSE(IsTransient(absl::FailedPreconditionError("")));
  EXPECT_FALSE(IsTransient(absl::OkStatus()));
}

}  // namespace
}  // namespace wukong
