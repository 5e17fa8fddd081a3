#include "runtime/fault/active_faults.h"

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "gtest/gtest.h"
#include "runtime/base/clock.h"
#include "runtime/fault/link_test_util.h"

namespace wukong {
namespace {

FaultOrder Order(int64_t number, FaultKind kind, double factor = 0, absl::Duration time = absl::ZeroDuration()) {
  FaultOrder order;
  order.set_number(number);
  order.set_fault(kind);
  order.set_factor(factor);
  order.set_for_ns(absl::ToInt64Nanoseconds(time));
  return order;
}

TEST(ActiveFaultsTest, LastForTheirTimeAndAddUp) {
  ActiveFaults faults;
  EXPECT_FALSE(faults.Take(Order(1, FAULT_KIND_SLOW, 4, absl::Seconds(10)), kStart));
  EXPECT_FALSE(faults.Take(Order(2, FAULT_KIND_SIGN_FLIP), kStart));
  EXPECT_FALSE(faults.Take(Order(3, FAULT_KIND_SCALE, 8, absl::Seconds(20)), kStart));
  EXPECT_FALSE(faults.Take(Order(4, FAULT_KIND_NAN, 0, absl::Seconds(5)), kStart));
  EXPECT_EQ(faults.heard(), 4);
  EXPECT_EQ(faults.At(kStart).slow, 4);
  EXPECT_EQ(faults.At(kStart).scale, -8);
  EXPECT_TRUE(faults.At(kStart).nan);
  const absl::Time later = kStart + absl::Seconds(10);
  EXPECT_EQ(faults.At(later).slow, 1);
  EXPECT_EQ(faults.At(later).scale, -8);
  EXPECT_FALSE(faults.At(later).nan);
  EXPECT_EQ(faults.At(kStart + absl::Hours(1)).scale, -1) << "without a time it is for good";
}

TEST(ActiveFaultsTest, AnOrderThatIsHeardAgainChangesNothing) {
  ActiveFaults faults;
  faults.Take(Order(3, FAULT_KIND_SCALE, 2), kStart);
  EXPECT_FALSE(faults.Take(Order(3, FAULT_KIND_SCALE, 2), kStart));
  EXPECT_FALSE(faults.Take(Order(2, FAULT_KIND_KILL), kStart));
  EXPECT_EQ(faults.At(kStart).scale, 2);
  EXPECT_TRUE(faults.Take(Order(4, FAULT_KIND_KILL), kStart)) << "for the process to carry out";
}

TEST(ActiveFaultsTest, AFrozenProcessComesBack) {
  const RealClock clock;
  const absl::Time begin = clock.Now();
  const pid_t child = ::fork();
  if (child == 0) {
    CarryOutOnThisProcess(Order(1, FAULT_KIND_FREEZE, 0, absl::Milliseconds(200)));
    ::_exit(7);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
  EXPECT_TRUE(WIFSTOPPED(status));
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 7);
  EXPECT_GE(clock.Now() - begin, absl::Milliseconds(200));
}

TEST(ActiveFaultsTest, ShortFreezesEndHoweverTheProcessesAreScheduled) {
  const pid_t child = ::fork();
  if (child == 0) {
    for (int i = 1; i <= 200; ++i) CarryOutOnThisProcess(Order(i, FAULT_KIND_FREEZE, 0, absl::Microseconds(1)));
    ::_exit(7);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

TEST(ActiveFaultsTest, WhoWouldWakeAProcessDiesWithIt) {
  // Orphans of this process' children become its own.
  ASSERT_EQ(::prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    CarryOutOnThisProcess(Order(1, FAULT_KIND_FREEZE, 0, absl::Hours(1)));
    ::_exit(7);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, WUNTRACED), child);
  EXPECT_TRUE(WIFSTOPPED(status));
  ASSERT_EQ(::kill(child, SIGKILL), 0);
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_NE(::waitpid(-1, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << "the one that would have waited for an hour";
  ::prctl(PR_SET_CHILD_SUBREAPER, 0);
}

TEST(ActiveFaultsTest, AKilledProcessIsGone) {
  const pid_t child = ::fork();
  if (child == 0) {
    CarryOutOnThisProcess(Order(1, FAULT_KIND_KILL));
    ::_exit(7);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

}  // namespace
}  // namespace wukong
