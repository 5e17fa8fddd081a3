// The order of events, and those that do not happen.
#include "runtime/sim/event_queue.h"

#include <algorithm>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "runtime/base/random.h"

namespace wukong {
namespace {

absl::Time At(int64_t nanoseconds) { return absl::UnixEpoch() + absl::Nanoseconds(nanoseconds); }

// Beside a plain list of what is to happen, from which the first in (time, order of coming) is taken each time.
TEST(EventQueueTest, HappensInTheOrderOfTimeAndOfComing) {
  struct Expected {
    absl::Time time;
    int number = 0;
    EventQueue::EventId id;
  };
  for (uint64_t run = 0; run < 200; ++run) {
    SCOPED_TRACE(absl::StrCat("run ", run));
    Random random(DeriveSeed(1, "event_queue", run));
    EventQueue queue;
    std::vector<Expected> expected;
    std::vector<int> happened, wanted;
    int next = 0;
    const auto add = [&] {
      // Often at the same time, often now or in the past.
      const absl::Time time = queue.Now() + absl::Nanoseconds(static_cast<int64_t>(random.Below(6)) - 2);
      const int number = next++;
      const EventQueue::EventId id = queue.At(time, [&happened, number] { happened.push_back(number); });
      expected.push_back({std::max(time, queue.Now()), number, id});
    };
    for (int step = 0; step < 300; ++step) {
      for (uint64_t i = random.Below(4); i > 0; --i) add();
      if (!expected.empty() && random.Below(3) == 0) {
        const auto gone = expected.begin() + static_cast<std::ptrdiff_t>(random.Below(expected.size()));
        queue.Cancel(gone->id);
        queue.Cancel(gone->id);
        expected.erase(gone);
      }
      const auto first = std::min_element(expected.begin(), expected.end(), [](const Expected& a, const Expected& b) {
        return a.time != b.time ? a.time < b.time : a.number < b.number;
      });
      ASSERT_EQ(queue.RunOne(absl::InfiniteFuture()), first != expected.end());
      if (first == expected.end()) continue;
      wanted.push_back(first->number);
      ASSERT_EQ(happened, wanted);
      ASSERT_EQ(queue.Now(), first->time);
      const EventQueue::EventId over = first->id;
      expected.erase(first);
      queue.Cancel(over);  // It has happened: this changes nothing, whoever has its place now.
    }
    EXPECT_EQ(queue.executed(), static_cast<int64_t>(happened.size()));
  }
}

// Thousands pending, nanoseconds to seconds ahead: they lie in buckets, in the one that is open and among the few that
// came late; and so many never come to pass that the queue throws those away while others of each kind wait.
TEST(EventQueueTest, ThousandsOfEventsFarApartHappenInOrder) {
  for (uint64_t run = 0; run < 4; ++run) {
    SCOPED_TRACE(absl::StrCat("run ", run));
    Random random(DeriveSeed(2, "event_queue", run));
    EventQueue queue;
    std::map<std::pair<int64_t, int>, EventQueue::EventId> expected;  // By time and order of coming.
    std::vector<std::pair<int64_t, int>> happened, wanted;
    int next = 0;
    const auto add = [&] {
      const int64_t ahead = static_cast<int64_t>(random.Below(uint64_t{1} << random.Below(34)));
      const int64_t time = absl::ToInt64Nanoseconds(queue.elapsed()) + ahead;
      const int number = next++;
      expected[{time, number}] = queue.At(At(time), [&happened, time, number] { happened.emplace_back(time, number); });
    };
    for (int i = 0; i < 5000; ++i) add();
    for (int step = 0; step < 100'000; ++step) {
      if (step % 10 < 9) add();
      for (int timeout = 0; run % 2 != 0 && timeout < 4; ++timeout) {
        queue.Cancel(queue.After(absl::Seconds(1 + static_cast<int64_t>(random.Below(1000))), [] { FAIL(); }));
      }
      if (random.Below(run == 0 ? 100 : 2) == 0) {
        auto gone = expected.lower_bound({static_cast<int64_t>(random.Below(uint64_t{1} << 34)), 0});
        if (gone != expected.end()) {
          queue.Cancel(gone->second);
          expected.erase(gone);
        }
      }
      const bool left = !expected.empty();
      ASSERT_EQ(queue.RunOne(absl::InfiniteFuture()), left);
      if (!left) continue;
      wanted.push_back(expected.begin()->first);
      expected.erase(expected.begin());
      ASSERT_EQ(happened.back(), wanted.back());
    }
    EXPECT_EQ(happened, wanted);
    EXPECT_EQ(queue.executed(), static_cast<int64_t>(wanted.size()));
    EXPECT_LT(queue.kept(), 200'000u);
  }
}

TEST(EventQueueTest, ManyTimeoutsThatNeverComeToPass) {
  EventQueue queue;
  int calls = 0;
  const auto held = std::make_shared<int>(0);
  for (int call = 0; call < 300'000; ++call) {
    const EventQueue::EventId timeout = queue.After(absl::Hours(1), [held] { ADD_FAILURE() << "it was cancelled"; });
    queue.After(absl::Microseconds(1), [&] { ++calls; });
    ASSERT_TRUE(queue.RunOne(absl::InfiniteFuture()));
    queue.Cancel(timeout);
  }
  EXPECT_EQ(calls, 300'000);
  EXPECT_EQ(held.use_count(), 1);
  EXPECT_LT(queue.kept(), 70'000u);
  EXPECT_FALSE(queue.RunOne(absl::InfiniteFuture()));
}

// Whoever waits for a time looks at the clock when it is woken, and must not find it a fraction too early.
TEST(EventQueueTest, NothingHappensBeforeTheTimeThatItWasAskedFor) {
  EventQueue queue;
  const absl::Time time = At(5) + absl::Nanoseconds(0.25);
  absl::Time happened;
  queue.At(time, [&] { happened = queue.Now(); });
  EXPECT_TRUE(queue.RunOne(absl::InfiniteFuture()));
  EXPECT_EQ(happened, At(6));
}

TEST(EventQueueTest, GoesNoFurtherThanItsLimit) {
  EventQueue queue;
  bool happened = false;
  queue.At(At(5), [&] { happened = true; });
  EXPECT_FALSE(queue.RunOne(At(4)));
  EXPECT_FALSE(happened);
  EXPECT_EQ(queue.Now(), At(0));
  EXPECT_TRUE(queue.RunOne(At(5)));
  EXPECT_TRUE(happened);
}

TEST(EventQueueTest, LetsGoOfWhatACancelledEventHeld) {
  EventQueue queue;
  auto held = std::make_shared<int>(0);
  const EventQueue::EventId id = queue.At(At(5), [held] { ++*held; });
  EXPECT_EQ(held.use_count(), 2);
  queue.Cancel(id);
  queue.Cancel(id);
  queue.Cancel(EventQueue::EventId());  // Of nothing.
  EXPECT_EQ(held.use_count(), 1);
  EXPECT_FALSE(queue.RunOne(absl::InfiniteFuture()));
  EXPECT_EQ(*held, 0);
  EXPECT_EQ(queue.executed(), 0);
}

TEST(EventQueueTest, HappensAtItsPlaceWithItsTag) {
  struct Recorder final : EventQueue::Place {
    void Happen(int64_t tag, Action&& action) override {
      tags.push_back(tag);
      if (tag != 8) action();
    }
    std::vector<int64_t> tags;
  } place;
  EventQueue queue;
  int ran = 0;
  queue.After(
      absl::Nanoseconds(1), [&] { ++ran; }, &place, 7);
  queue.After(
      absl::ZeroDuration(), [&] { ++ran; }, &place, 8);
  while (queue.RunOne(absl::InfiniteFuture())) {
  }
  EXPECT_EQ(place.tags, (std::vector<int64_t>{8, 7}));
  EXPECT_EQ(ran, 1);
}

}  // namespace
}  // namespace wukong
