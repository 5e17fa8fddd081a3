// What a snapshot stands on is in the log before it.
#include "coordinator/root_log.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/root_recovery.h"
#include "runtime/base/file.h"
#include "runtime/base/manual_clock.h"
#include "runtime/model/trainer.h"
#include "runtime/storage/faulty_disk.h"
#include "runtime/sync/presets.h"

namespace wukong {
namespace {

Job SmallJob() {
  Job job;
  job.set_name("small");
  job.mutable_model()->set_synthetic(SYNTHETIC_KIND_COUNTER);
  job.mutable_model()->set_size(100);
  job.mutable_model()->set_context(1);
  job.mutable_model()->set_vocabulary(2);
  job.mutable_strategy()->set_preset(PRESET_ASYNC);
  job.mutable_limits()->set_fragment_bytes(1024);
  EXPECT_TRUE(ResolveStrategy(&job).ok());
  return job;
}

class RootLogTest : public ::testing::Test {
 protected:
  RootLogTest()
      : directory_(absl::StrCat(testing::TempDir(), "/root_log.", ::getpid(), ".",
                                testing::UnitTest::GetInstance()->current_test_info()->name())),
        disk_(&clock_, 1),
        trainer_(*MakeTrainer(job_, TrainerOptions())) {
    std::filesystem::create_directories(directory_);
  }
  ~RootLogTest() override { std::filesystem::remove_all(directory_); }

  void Begin(const RootLog::Options& options = RootLog::Options()) {
    begun_ = *BeginRun(&disk_, directory_, job_, clock_, trainer_.get());
    log_ = *RootLog::Open(&disk_, directory_, begun_.identity, RootState(), begun_.log, options);
  }
  void BeginTerm(int64_t term) {
    LogRecord record;
    record.mutable_term_begun()->set_term(term);
    log_->Append(record);
    ASSERT_TRUE(begun_.replay->Add(log_->index(), record).ok());
  }
  // As another process finds it, which knows nothing of what is in memory here.
  absl::StatusOr<RecoveredRoot> Recover() { return RecoverRoot(&disk_, directory_, job_, trainer_.get()); }

  const Job job_ = SmallJob();
  const std::string directory_;
  ManualClock clock_;
  FaultyDisk disk_;
  const std::unique_ptr<Trainer> trainer_;
  RecoveredRoot begun_;
  std::unique_ptr<RootLog> log_;
};

TEST_F(RootLogTest, ASnapshotHasNoRecordThatTheLogDoesNotHave) {
  Begin();
  BeginTerm(1);
  ASSERT_TRUE(log_->MakeDurable().ok());
  BeginTerm(2);  // Nobody waits for this one to be on the disk.
  ASSERT_EQ(log_->durable_index(), 1);
  ASSERT_TRUE(log_->WriteSnapshot(begun_.replay->Snapshot(begun_.identity)).ok());
  const absl::StatusOr<RecoveredRoot> recovered = Recover();
  ASSERT_TRUE(recovered.ok()) << recovered.status();
  EXPECT_EQ(recovered->replay->history().index(), 2);
  EXPECT_EQ(recovered->replay->history().term(), 2);
  EXPECT_EQ(recovered->records_replayed, 0) << "the newer snapshot is the one";
}

TEST_F(RootLogTest, WithoutItsRecordsThereIsNoSnapshot) {
  Begin();
  BeginTerm(1);
  ASSERT_TRUE(log_->MakeDurable().ok());
  BeginTerm(2);
  disk_.FillUntil(clock_.Now() + absl::Hours(1));
  EXPECT_FALSE(log_->WriteSnapshot(begun_.replay->Snapshot(begun_.identity)).ok());
  const absl::StatusOr<RecoveredRoot> recovered = Recover();
  ASSERT_TRUE(recovered.ok()) << recovered.status();
  EXPECT_EQ(recovered->replay->history().term(), 1);
}

TEST_F(RootLogTest, ALogThatIsGoneIsNoNewRun) {
  Begin();
  BeginTerm(1);
  ASSERT_TRUE(log_->WriteSnapshot(begun_.replay->Snapshot(begun_.identity)).ok());
  log_.reset();
  std::filesystem::remove_all(LogDirectory(directory_));
  EXPECT_EQ(Recover().status().code(), absl::StatusCode::kDataLoss) << Recover().status();
}

TEST_F(RootLogTest, ALogWithoutSnapshotsIsNoNewRun) {
  Begin();
  BeginTerm(1);
  ASSERT_TRUE(log_->MakeDurable().ok());
  log_.reset();
  std::filesystem::remove_all(CheckpointDirectory(directory_));
  EXPECT_EQ(Recover().status().code(), absl::StatusCode::kDataLoss) << Recover().status();
  std::filesystem::remove_all(LogDirectory(directory_));
  EXPECT_EQ(Recover().status().code(), absl::StatusCode::kNotFound) << Recover().status();
}

// Events are written after the first record: who has them is no new run, whatever else is gone.
TEST_F(RootLogTest, ARunWithEventsIsNotBegunAnew) {
  Begin();
  const std::string events = directory_ + "/events.jsonl";
  std::filesystem::remove_all(LogDirectory(directory_));
  ASSERT_TRUE(WriteFileAtomic(events, "").ok());
  EXPECT_TRUE(Recover().ok()) << "it died before the first record: " << Recover().status();
  ASSERT_TRUE(WriteFileAtomic(events, "{}\n").ok());
  EXPECT_EQ(Recover().status().code(), absl::StatusCode::kDataLoss) << Recover().status();
  std::filesystem::remove_all(CheckpointDirectory(directory_));
  EXPECT_EQ(Recover().status().code(), absl::StatusCode::kDataLoss) << Recover().status();
  ASSERT_TRUE(WriteFileAtomic(events, "").ok());
  EXPECT_EQ(Recover().status().code(), absl::StatusCode::kNotFound) << Recover().status();
}

TEST_F(RootLogTest, ASegmentThatIsMissingIsDamage) {
  Begin();
  const std::string first = CheckpointPath(CheckpointDirectory(directory_), 1);
  std::filesystem::copy_file(first, directory_ + "/first");
  BeginTerm(1);
  ASSERT_TRUE(log_->WriteSnapshot(begun_.replay->Snapshot(begun_.identity)).ok());
  BeginTerm(2);
  ASSERT_TRUE(log_->WriteSnapshot(begun_.replay->Snapshot(begun_.identity)).ok());
  std::filesystem::rename(directory_ + "/first", first);  // The log before the other one is gone.
  EXPECT_EQ(Recover().status().code(), absl::StatusCode::kDataLoss) << Recover().status();
  nlohmann::ordered_json report;
  const absl::Status verified = VerifyRun(&disk_, directory_, job_, trainer_.get(), &report);
  EXPECT_EQ(verified.code(), absl::StatusCode::kDataLoss) << verified;
}

TEST_F(RootLogTest, AnythingOfARunIsARun) {
  EXPECT_FALSE(HoldsRun(&disk_, directory_));
  ASSERT_TRUE(disk_.MakeDirectories(CheckpointDirectory(directory_)).ok());
  EXPECT_FALSE(HoldsRun(&disk_, directory_));
  Begin();
  EXPECT_TRUE(HoldsRun(&disk_, directory_));
  std::filesystem::remove_all(LogDirectory(directory_));
  EXPECT_TRUE(HoldsRun(&disk_, directory_)) << "as an import leaves it";
}

// Of a TorchScript file it is known only here how large it is.
TEST(ContributionBytesTest, AModelWhoseContributionIsTooLargeForARecordIsRefused) {
  Job job = SmallJob();
  job.mutable_limits()->set_fragment_bytes(4'000'000);
  job.mutable_limits()->set_in_flight_bytes(int64_t{4} << 30);
  job.mutable_strategy()->mutable_root()->set_codec_up(CODEC_KIND_FP32);
  job.mutable_strategy()->mutable_region()->set_codec_up(CODEC_KIND_FP32);
  const ParameterLayout large({{"w", {270'000'000}}}), small({{"w", {200'000'000}}});
  EXPECT_EQ(CheckContributionBytes(job, large).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(CheckContributionBytes(job, small).ok()) << CheckContributionBytes(job, small);
  job.mutable_limits()->set_in_flight_bytes(64 << 20);
  EXPECT_EQ(CheckContributionBytes(job, small).code(), absl::StatusCode::kInvalidArgument);
}

// A version each, so that each has a name of its own.
TEST_F(RootLogTest, ADamagedSnapshotIsNotOneOfTheTwoThatAreKept) {
  Begin();
  std::vector<std::string> paths = {CheckpointPath(CheckpointDirectory(directory_), 1)};
  const auto snapshot = [&] {
    BeginTerm(log_->state().term() + 1);
    absl::StatusOr<Checkpoint> made = begun_.replay->Snapshot(begun_.identity);
    made->state.set_version(static_cast<int64_t>(paths.size()) + 1);
    ASSERT_TRUE(log_->WriteSnapshot(made).ok());
    paths.push_back(CheckpointPath(CheckpointDirectory(directory_), made->state.version()));
  };
  snapshot();
  snapshot();
  std::filesystem::resize_file(paths[2], 100);
  // Another life, which has read none of them.
  const LogSummary end =
      *ReadLog(&disk_, LogDirectory(directory_), 0, [](int64_t, absl::string_view) { return absl::OkStatus(); });
  const RootState state = log_->state();
  log_.reset();
  log_ = *RootLog::Open(&disk_, directory_, begun_.identity, state, end, RootLog::Options());
  snapshot();
  EXPECT_FALSE(std::filesystem::exists(paths[0]));
  EXPECT_TRUE(std::filesystem::exists(paths[1])) << "the older of those that can be read";
  EXPECT_TRUE(std::filesystem::exists(paths[3]));
  const absl::StatusOr<LogSummary> log =
      ReadLog(&disk_, LogDirectory(directory_), 2, [](int64_t, absl::string_view) { return absl::OkStatus(); });
  EXPECT_TRUE(log.ok()) << "it goes on from the older one: " << log.status();
}

TEST_F(RootLogTest, WhatALifeLeftUnfinishedIsRemoved) {
  std::filesystem::create_directories(CheckpointDirectory(directory_));
  const std::string left = CheckpointPath(CheckpointDirectory(directory_), 7) + ".tmp";
  ASSERT_TRUE(WriteFileAtomic(left, "half a snapshot").ok());
  Begin();
  EXPECT_FALSE(std::filesystem::exists(left));
  EXPECT_TRUE(std::filesystem::exists(CheckpointPath(CheckpointDirectory(directory_), 1)));
}

TEST_F(RootLogTest, ASnapshotThatCouldNotBeMadeGivesItsClaimBack) {
  RootLog::Options options;
  options.snapshot_bytes = 1;
  Begin(options);
  BeginTerm(1);
  ASSERT_TRUE(log_->ClaimSnapshot());
  BeginTerm(2);
  EXPECT_FALSE(log_->ClaimSnapshot()) << "one is being made";
  EXPECT_EQ(log_->WriteSnapshot(absl::InternalError("no memory")).code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(log_->ClaimSnapshot());
}

TEST_F(RootLogTest, ASignalEndsTheWaitForADiskThatFails) {
  const StopSignal stop;
  RootLog::Options options;
  options.stop = &stop;
  Begin(options);
  BeginTerm(1);
  disk_.FillUntil(clock_.Now() + absl::Hours(1));
  ASSERT_EQ(::raise(SIGTERM), 0);
  EXPECT_EQ(log_->MakeDurable().code(), absl::StatusCode::kCancelled);
  EXPECT_FALSE(log_->trouble().empty());
}

}  // namespace
}  // namespace wukong
