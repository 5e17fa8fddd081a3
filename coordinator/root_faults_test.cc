// Orders of faults at the root: when they strike, and that each strikes once.
#include "coordinator/root_faults.h"

#include <unistd.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/base/fault_point.h"
#include "runtime/base/manual_clock.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

// In place of the death of the process, after which nothing that it was doing goes on.
struct Died {};

class RootFaultsTest : public ::testing::Test {
 protected:
  RootFaultsTest()
      : directory_(absl::StrCat(testing::TempDir(), "/root_faults.", ::getpid())),
        disk_(&clock_, 1),
        faults_(&disk_, &clock_, 1,
                {[this](const Json& event) {
                   EXPECT_THAT(event["event"], AnyOf("fault_struck", "fault_due"));
                   (event["event"] == "fault_due" ? told_ : struck_).push_back(event["number"]);
                   last_ = event;
                 },
                 [this] { return version_; },
                 [this](const FaultOrder& order) {
                   carried_out_.push_back(order.fault());
                   lasted_ = absl::Nanoseconds(order.for_ns());
                   if (dies_) throw Died();
                 },
                 [this](absl::Duration time) { clock_.Advance(time); }}) {
    std::filesystem::create_directories(directory_);
  }
  ~RootFaultsTest() override { std::filesystem::remove_all(directory_); }

  void Order(FaultKind kind, FaultPlace on = FAULT_PLACE_UNSPECIFIED, int64_t version = 1, bool tells = false) {
    FaultOrder order;
    order.set_number(++orders_);
    order.set_fault(kind);
    order.set_on(on);
    order.set_version(version);
    order.set_tells(tells);
    order.set_for_ns(1'000'000'000);
    faults_.Order(order);
  }
  void TickAfter(absl::Duration time) {
    clock_.Advance(time);
    faults_.Tick();
  }
  std::unique_ptr<WritableFile> File() { return disk_.Create(absl::StrCat(directory_, "/", ++files_)).value(); }

  const std::string directory_;
  ManualClock clock_;
  Version version_{1};
  std::vector<int64_t> struck_, told_;  // Numbers of orders.
  Json last_;
  std::vector<FaultKind> carried_out_;
  absl::Duration lasted_;  // The last of them.
  bool dies_ = false;
  int64_t orders_ = 0;
  int files_ = 0;
  FaultyDisk disk_;
  RootFaults faults_;
};

TEST_F(RootFaultsTest, TheAnswerGoesOutBeforeTheProcessDies) {
  Order(FAULT_KIND_KILL);
  TickAfter(absl::Milliseconds(50));
  EXPECT_THAT(carried_out_, IsEmpty());
  TickAfter(absl::Milliseconds(50));
  EXPECT_THAT(carried_out_, ElementsAre(FAULT_KIND_KILL));
  TickAfter(absl::Seconds(10));
  EXPECT_THAT(struck_, ElementsAre(1)) << "once";
}

TEST_F(RootFaultsTest, StrikesAtItsPlaceFromItsVersionOn) {
  Order(FAULT_KIND_FREEZE, FAULT_PLACE_AFTER_PUBLISH, /*version=*/5);
  Order(FAULT_KIND_KILL, FAULT_PLACE_AFTER_APPEND_BEFORE_ACK, /*version=*/1);
  TickAfter(absl::Seconds(10));
  version_ = Version(4);
  FaultPoint("root.after_publish");
  FaultPoint("root.after_ack");
  EXPECT_THAT(struck_, IsEmpty());
  version_ = Version(6);
  FaultPoint("root.before_publish");
  EXPECT_THAT(struck_, IsEmpty());
  const absl::Time before = clock_.Now();
  FaultPoint("root.after_publish");
  EXPECT_THAT(carried_out_, ElementsAre(FAULT_KIND_FREEZE));
  EXPECT_EQ(last_["on"], "after_publish");
  EXPECT_EQ(last_["version"], 6);
  EXPECT_GT(clock_.Now(), before) << "what was published leaves first";
  FaultPoint("root.after_publish");
  FaultPoint("root.after_append");
  FaultPoint("root.after_append");
  EXPECT_THAT(struck_, ElementsAre(1, 2)) << "each once";
}

TEST_F(RootFaultsTest, TellsOfAPlaceWhereOthersAreToFail) {
  Order(FAULT_KIND_KILL, FAULT_PLACE_AFTER_ACK, /*version=*/5, /*tells=*/true);
  Order(FAULT_KIND_CUT, FAULT_PLACE_AFTER_ACK, /*version=*/6, /*tells=*/true);
  version_ = Version(5);
  const absl::Time before = clock_.Now();
  FaultPoint("root.after_ack");
  EXPECT_THAT(told_, ElementsAre(1));
  EXPECT_EQ(last_["fault"], "kill");
  EXPECT_EQ(last_["on"], "after_ack");
  EXPECT_FALSE(last_.contains("target"));
  version_ = Version(7);
  FaultPoint("root.after_ack");
  FaultPoint("root.after_ack");
  EXPECT_THAT(told_, ElementsAre(1, 2)) << "each once";
  EXPECT_THAT(struck_, IsEmpty());
  EXPECT_THAT(carried_out_, IsEmpty()) << "the root itself goes on";
  EXPECT_EQ(clock_.Now(), before) << "and at once";
}

TEST_F(RootFaultsTest, NothingBeginsOrLastsBeyondItsTime) {
  const auto file = File();
  FaultOrder order;
  order.set_until_ns(10'000'000'000);
  order.set_for_ns(8'000'000'000);
  order.set_on(FAULT_PLACE_AFTER_ACK);
  for (const FaultKind kind : {FAULT_KIND_FREEZE, FAULT_KIND_DISK_FULL, FAULT_KIND_KILL}) {
    order.set_number(++orders_);
    order.set_fault(kind);
    order.set_version(kind == FAULT_KIND_KILL ? 2 : 1);
    faults_.Order(order);
  }
  TickAfter(absl::Seconds(7));
  FaultPoint("root.after_ack");
  EXPECT_EQ(last_["fault"], "freeze");
  EXPECT_LE(lasted_, absl::Seconds(3));
  EXPECT_FALSE(file->Append("x").ok());
  TickAfter(absl::Seconds(3));
  EXPECT_TRUE(file->Append("x").ok());
  version_ = Version(2);
  FaultPoint("root.after_ack");
  EXPECT_THAT(carried_out_, ElementsAre(FAULT_KIND_FREEZE)) << "it is too late for the other";
}

TEST_F(RootFaultsTest, ADiskHasFailedWhenSomethingFailed) {
  Order(FAULT_KIND_DISK_FULL);
  const auto file = File();
  TickAfter(absl::Milliseconds(100));
  EXPECT_THAT(struck_, IsEmpty()) << "nobody noticed";
  EXPECT_EQ(file->Append("x").code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(file->Append("x").ok());
  faults_.Tick();
  TickAfter(absl::Seconds(1));
  EXPECT_THAT(struck_, ElementsAre(1));
  EXPECT_TRUE(file->Append("x").ok()) << "it is over";
  EXPECT_THAT(carried_out_, IsEmpty());

  Order(FAULT_KIND_DISK_ERROR);
  TickAfter(absl::Seconds(2));
  EXPECT_TRUE(file->Sync().ok());
  faults_.Tick();
  EXPECT_THAT(struck_, ElementsAre(1)) << "the second was over before anything was synced";

  Order(FAULT_KIND_DISK_ERROR, FAULT_PLACE_AFTER_ACK);
  EXPECT_TRUE(file->Sync().ok()) << "not yet";
  FaultPoint("root.after_ack");
  EXPECT_EQ(file->Sync().code(), absl::StatusCode::kInternal);
  faults_.Tick();
  EXPECT_THAT(struck_, ElementsAre(1, 3));
}

TEST_F(RootFaultsTest, PowerIsLostWhenThereIsSomethingToLose) {
  const auto file = File();
  ASSERT_TRUE(file->Append("confirmed").ok());
  ASSERT_TRUE(file->Sync().ok());
  ASSERT_TRUE(disk_.SyncDirectory(directory_).ok());
  dies_ = true;
  Order(FAULT_KIND_POWER_LOSS);
  TickAfter(absl::Milliseconds(500));
  EXPECT_TRUE(file->Sync().ok()) << "nothing was written";
  EXPECT_THAT(struck_, IsEmpty());
  ASSERT_TRUE(file->Append(" and this is not").ok());
  EXPECT_THROW(file->Sync().IgnoreError(), Died);
  EXPECT_THAT(carried_out_, ElementsAre(FAULT_KIND_KILL));
  EXPECT_EQ(last_["fault"], "power_loss");
  EXPECT_EQ(last_["bytes_unsynced"], 16);
  const std::string left = FileSystem::Real()->Read(absl::StrCat(directory_, "/1")).value();
  EXPECT_EQ(left.substr(0, 9), "confirmed");
  EXPECT_LE(left.size(), 25u);
}

TEST_F(RootFaultsTest, PowerDoesNotWaitLongForASync) {
  Order(FAULT_KIND_POWER_LOSS);
  TickAfter(absl::Seconds(1));
  EXPECT_THAT(struck_, IsEmpty());
  TickAfter(absl::Milliseconds(100));
  EXPECT_THAT(carried_out_, ElementsAre(FAULT_KIND_KILL));
  EXPECT_EQ(last_["bytes_unsynced"], 0);
}

}  // namespace
}  // namespace wukong
