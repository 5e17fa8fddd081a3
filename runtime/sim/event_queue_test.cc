// The order of events, and those that do not happen.
#include "runtime/sim/event_queue.h"

#include <algorithm>
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
