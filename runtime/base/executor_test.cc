#include "runtime/base/executor.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

namespace wukong {
namespace {

constexpr absl::Duration kLong = absl::Seconds(60);  // Only a test that hangs waits this long.

TEST(ExecutorTest, RunsWorkInTheOrderInWhichItWasPosted) {
  std::vector<int> order;
  {
    Executor executor("test");
    for (int i = 0; i < 1000; ++i) EXPECT_TRUE(executor.Post([&order, i] { order.push_back(i); }));
  }
  ASSERT_EQ(order.size(), 1000u) << "the destructor runs what is queued";
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(order[i], i);
}

TEST(ExecutorTest, RunsOnePieceOfWorkAtATimeAndEachPostersInOrder) {
  constexpr int kPosters = 4, kEach = 500;
  int running = 0, overlaps = 0;  // Unguarded on purpose: the executor alone touches them.
  std::vector<std::vector<int>> seen(kPosters);
  {
    Executor executor("test");
    std::vector<std::thread> posters;
    for (int poster = 0; poster < kPosters; ++poster) {
      posters.emplace_back([&, poster] {
        for (int i = 0; i < kEach; ++i) {
          executor.Post([&, poster, i] {
            if (++running != 1) ++overlaps;
            seen[poster].push_back(i);
            --running;
          });
        }
      });
    }
    for (std::thread& poster : posters) poster.join();
  }
  EXPECT_EQ(overlaps, 0);
  for (const std::vector<int>& one : seen) {
    ASSERT_EQ(one.size(), static_cast<size_t>(kEach));
    for (int i = 0; i < kEach; ++i) EXPECT_EQ(one[i], i);
  }
}

TEST(ExecutorTest, RunsOnAThreadOfItsOwn) {
  Executor executor("test");
  Notification done;
  std::thread::id id;
  executor.Post([&] {
    id = std::this_thread::get_id();
    done.Notify();
  });
  ASSERT_TRUE(done.WaitFor(kLong));
  EXPECT_NE(id, std::this_thread::get_id());
}

TEST(ExecutorTest, WorkMayPostMoreWork) {
  Executor executor("test");
  Notification done;
  std::vector<int> order;
  executor.Post([&] {
    executor.Post([&] {
      order.push_back(2);
      done.Notify();
    });
    order.push_back(1);
  });
  ASSERT_TRUE(done.WaitFor(kLong)) << "posting from the executor's own thread hangs";
  EXPECT_EQ(order, (std::vector<int>{1, 2}));
}

TEST(ExecutorTest, ShutdownRunsWhatIsQueuedAndTakesNothingMore) {
  Executor executor("test");
  Notification hold;
  std::atomic<int> ran{0};
  executor.Post([&] { hold.WaitFor(kLong); });
  for (int i = 0; i < 10; ++i) executor.Post([&] { ++ran; });
  EXPECT_EQ(ran, 0) << "the first piece holds up the rest";
  hold.Notify();
  executor.Shutdown();
  EXPECT_EQ(ran, 10);
  const auto guard = std::make_shared<int>(0);
  EXPECT_FALSE(executor.Post([&ran, guard] { ++ran; }));
  EXPECT_EQ(guard.use_count(), 1) << "work that is not taken is let go";
  executor.Shutdown();
  EXPECT_EQ(ran, 10);
}

TEST(ExecutorTest, WorkThatWasRunIsLetGo) {
  const auto guard = std::make_shared<int>(0);
  Executor executor("test");
  executor.Post([guard] {});
  executor.Shutdown();
  EXPECT_EQ(guard.use_count(), 1);
}

TEST(CondVarTest, WaitsForAnInfiniteTime) {
  Mutex mutex;
  CondVar changed;
  int notified = 0;
  std::thread notifier;
  {
    MutexLock lock(mutex);
    notifier = std::thread([&] {
      MutexLock hold(mutex);
      ++notified;
      changed.NotifyAll();
    });
    for (int returns = 0; notified == 0 && returns < 1000; ++returns) {
      EXPECT_TRUE(changed.WaitFor(mutex, absl::InfiniteDuration())) << "the time cannot run out";
    }
    EXPECT_EQ(notified, 1) << "it does not wait";
  }
  notifier.join();
}

TEST(NotificationTest, WakesAllWhoWait) {
  Notification notification;
  EXPECT_FALSE(notification.HasBeenNotified());
  EXPECT_FALSE(notification.WaitFor(absl::ZeroDuration()));
  std::atomic<int> woken{0};
  std::vector<std::thread> waiters;
  for (int i = 0; i < 4; ++i) {
    waiters.emplace_back(
        [&, i] { woken += notification.WaitFor(i % 2 == 0 ? kLong : absl::InfiniteDuration()) ? 1 : 0; });
  }
  notification.Notify();
  for (std::thread& waiter : waiters) waiter.join();
  EXPECT_EQ(woken, 4);
  EXPECT_TRUE(notification.HasBeenNotified());
  EXPECT_TRUE(notification.WaitFor(absl::ZeroDuration())) << "it stays notified";
}

}  // namespace
}  // namespace wukong
