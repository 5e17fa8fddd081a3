// The real files of a disk that fails when told to: what is left is what was synced, and sometimes more.
#include "runtime/storage/faulty_disk.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/base/manual_clock.h"
#include "runtime/base/random.h"
#include "runtime/storage/log.h"

namespace wukong {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class FaultyDiskTest : public ::testing::Test {
 protected:
  ~FaultyDiskTest() override { std::filesystem::remove_all(directory_); }
  // Empty, whatever a test did in it before.
  void Begin(uint64_t seed) {
    disk_.reset();
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
    disk_ = std::make_unique<FaultyDisk>(&clock_, seed);
  }
  std::string Path(const std::string& name) const { return absl::StrCat(directory_, "/", name); }
  std::unique_ptr<WritableFile> Create(const std::string& name) { return disk_->Create(Path(name)).value(); }
  // What another process reads afterwards.
  std::string Contents(const std::string& name) const { return FileSystem::Real()->Read(Path(name)).value_or("none"); }
  std::vector<std::string> Names() const { return FileSystem::Real()->List(directory_).value(); }

  const std::string directory_ = absl::StrCat(testing::TempDir(), "/faulty_disk.", ::getpid());
  ManualClock clock_;
  std::unique_ptr<FaultyDisk> disk_;
};

TEST_F(FaultyDiskTest, ADiskThatNobodyOrderedToFailIsTheRealOne) {
  Begin(1);
  const auto file = Create("a");
  ASSERT_TRUE(file->Append("hello").ok());
  ASSERT_TRUE(file->Sync().ok());
  ASSERT_TRUE(file->Append(" world").ok());
  ASSERT_TRUE(file->Truncate(7).ok());
  EXPECT_EQ(disk_->Create(Path("a")).status().code(), absl::StatusCode::kAlreadyExists);
  ASSERT_TRUE(disk_->Rename(Path("a"), Path("b")).ok());
  EXPECT_EQ(disk_->Read(Path("b")).value(), "hello w");
  EXPECT_EQ(disk_->Size(Path("b")).value(), 7);
  ASSERT_TRUE(disk_->Remove(Path("b")).ok());
  EXPECT_EQ(disk_->Remove(Path("b")).code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(disk_->SyncDirectory(directory_).ok());
  EXPECT_THAT(disk_->List(directory_).value(), ElementsAre());
  EXPECT_EQ(disk_->failed_writes() + disk_->failed_syncs(), 0);
}

TEST_F(FaultyDiskTest, AFullDiskTakesAPartAndIsEmptyAgainInTime) {
  Begin(1);
  const auto file = Create("a");
  ASSERT_TRUE(file->Append("before ").ok());
  disk_->FillUntil(clock_.Now() + absl::Seconds(10));
  const absl::Status status = file->Append("during");
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr(Path("a")));
  EXPECT_TRUE(absl::StartsWith("before during", Contents("a"))) << Contents("a");
  EXPECT_EQ(disk_->failed_writes(), 1);
  clock_.Advance(absl::Seconds(10));
  ASSERT_TRUE(file->Truncate(7).ok());
  EXPECT_TRUE(file->Append("after").ok());
  EXPECT_EQ(Contents("a"), "before after");
  EXPECT_EQ(disk_->failed_writes(), 1);
}

TEST_F(FaultyDiskTest, WhatWasSyncedSurvivesAndWhatWasNotMayBeTorn) {
  const std::string synced(100, 's'), unsynced(200, 'u');
  int nothing = 0, everything = 0, torn = 0;
  for (uint64_t seed = 1; seed <= 60; ++seed) {
    Begin(seed);
    const auto file = Create("a");
    ASSERT_TRUE(disk_->SyncDirectory(directory_).ok());
    ASSERT_TRUE(file->Append(synced).ok());
    ASSERT_TRUE(file->Sync().ok());
    ASSERT_TRUE(file->Append(unsynced).ok());
    const FaultyDisk::Loss loss = disk_->LosePower(seed);
    EXPECT_EQ(loss.bytes_unsynced, 200);
    EXPECT_EQ(loss.names_undone, 0);
    const std::string left = Contents("a");
    ASSERT_EQ(left.substr(0, 100), synced) << "seed " << seed;
    EXPECT_EQ(loss.bytes_lost, 200 - std::count(left.begin() + 100, left.end(), 'u')) << "seed " << seed;
    EXPECT_EQ(std::count(left.begin(), left.end(), 'u') + std::count(left.begin(), left.end(), '\0') + 100,
              static_cast<int64_t>(left.size()));
    nothing += left.size() == 100 ? 1 : 0;
    everything += left.size() == 300 && loss.bytes_lost == 0 ? 1 : 0;
    torn += absl::StrContains(left, '\0') ? 1 : 0;
  }
  EXPECT_GT(nothing, 0);
  EXPECT_GT(torn, 0);
  EXPECT_LT(nothing + torn + everything, 60) << "some keep a part from the beginning";
}

TEST_F(FaultyDiskTest, AFailedSyncLosesBytesThatALaterOneDoesNotBringBack) {
  int lost = 0;
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    Begin(seed);
    const auto file = Create("a");
    ASSERT_TRUE(file->Append(std::string(320, 'x')).ok());
    disk_->FailSyncsUntil(clock_.Now() + absl::Seconds(1));
    EXPECT_EQ(file->Sync().code(), absl::StatusCode::kInternal);
    EXPECT_FALSE(disk_->SyncDirectory(directory_).ok());
    EXPECT_EQ(disk_->failed_syncs(), 2);
    clock_.Advance(absl::Seconds(1));
    ASSERT_TRUE(file->Append("tail").ok());
    ASSERT_TRUE(file->Sync().ok());
    ASSERT_TRUE(disk_->SyncDirectory(directory_).ok());
    EXPECT_EQ(Contents("a"), std::string(320, 'x') + "tail") << "programs go on seeing them";
    disk_->LosePower(seed);
    const std::string left = Contents("a");
    ASSERT_EQ(left.size(), 324u);
    EXPECT_EQ(left.substr(320), "tail");
    lost += absl::StrContains(left, '\0') ? 1 : 0;
  }
  EXPECT_GE(lost, 9);
}

TEST_F(FaultyDiskTest, NamesThatWereNotSyncedAreAsBeforeOrAsAfter) {
  std::set<std::string> seen;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    Begin(seed);
    FileSystem::Real()->Create(Path("old")).value()->Append("old").IgnoreError();
    FileSystem::Real()->Create(Path("kept")).value()->Append("kept").IgnoreError();
    const auto file = Create("new");
    ASSERT_TRUE(file->Append("new").ok());
    ASSERT_TRUE(file->Sync().ok());
    ASSERT_TRUE(disk_->Rename(Path("new"), Path("old")).ok());
    ASSERT_TRUE(disk_->Remove(Path("kept")).ok());
    disk_->LosePower(seed);
    EXPECT_EQ(Contents("new"), "none") << "it never had this name on the disk";
    seen.insert(absl::StrCat(Contents("old"), " ", Contents("kept")));
  }
  EXPECT_THAT(seen, testing::UnorderedElementsAre("old kept", "old none", "new kept", "new none"));
}

TEST_F(FaultyDiskTest, NamesThatWereSyncedStay) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    Begin(seed);
    FileSystem::Real()->Create(Path("gone")).value()->Append("gone").IgnoreError();
    const auto file = Create("new");
    ASSERT_TRUE(file->Append("new").ok());
    ASSERT_TRUE(file->Sync().ok());
    ASSERT_TRUE(disk_->Rename(Path("new"), Path("named")).ok());
    ASSERT_TRUE(disk_->Remove(Path("gone")).ok());
    ASSERT_TRUE(disk_->SyncDirectory(directory_).ok());
    EXPECT_EQ(disk_->LosePower(seed).names_undone, 0);
    EXPECT_THAT(Names(), ElementsAre("named"));
    EXPECT_EQ(Contents("named"), "new");
  }
}

// The root's log on it: whatever the seed, everything that a Sync confirmed is read again, in order, and nothing that
// was not written. Power fails at the beginning of a sync, when there is most to lose.
TEST_F(FaultyDiskTest, TheLogKeepsItsWord) {
  int torn = 0, lost = 0;
  for (uint64_t seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    Begin(seed);
    const std::string log_directory = Path("log");
    LogIdentity identity;
    identity.set_run("run");
    LogOptions options;
    options.segment_bytes = 400;
    auto log = LogWriter::Open(disk_.get(), log_directory, identity, LogSummary(), options);
    ASSERT_TRUE(log.ok()) << log.status();
    Random random(seed);
    const uint64_t syncs = random.Below(12);
    int64_t confirmed = 0;
    const auto append = [&] {
      for (uint64_t i = 0; i <= random.Below(4); ++i) (*log)->Append(absl::StrCat("record ", (*log)->next_index()));
    };
    for (uint64_t i = 0; i < syncs; ++i) {
      append();
      if (random.Below(4) == 0) disk_->FailSyncsUntil(clock_.Now() + absl::Seconds(1));
      const absl::Status status = (*log)->Sync();
      if (status.ok()) confirmed = (*log)->durable_index();
      clock_.Advance(absl::Seconds(1));
    }
    // Other calls would block from then on, as they should: this one is on the thread that loses power, and fails by
    // the order that is in force.
    FaultyDisk::Loss loss;
    append();
    disk_->OnSync([&] {
      loss = disk_->LosePower(seed);
      throw seed;  // Out of the log: in production the process is gone.
    });
    EXPECT_THROW((*log)->Sync().IgnoreError(), uint64_t);
    EXPECT_GT(loss.bytes_unsynced, 0);
    lost += loss.bytes_lost > 0 ? 1 : 0;
    int64_t read = 0;
    const auto summary = ReadLog(FileSystem::Real(), log_directory, 0, [&](int64_t index, absl::string_view record) {
      EXPECT_EQ(record, absl::StrCat("record ", index));
      EXPECT_EQ(index, ++read);
      return absl::OkStatus();
    });
    ASSERT_TRUE(summary.ok()) << summary.status();
    EXPECT_GE(read, confirmed);
    EXPECT_LT(read, (*log)->next_index());
    torn += summary->torn_bytes > 0 ? 1 : 0;
  }
  EXPECT_GT(torn, 5);
  EXPECT_GT(lost, 20);
}

}  // namespace
}  // namespace wukong
