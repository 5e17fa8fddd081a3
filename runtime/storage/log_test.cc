#include "runtime/storage/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/random.h"
#include "runtime/data/test_directory.h"
#include "runtime/storage/fault_file_system.h"
#include "runtime/storage/file_system.h"

namespace wukong {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr char kDirectory[] = "/run/log";
constexpr int64_t kHeadBytes = 24;

LogIdentity Identity() {
  LogIdentity identity;
  identity.set_format(1);
  identity.set_run("fifth");
  identity.set_job_digest("0123");
  identity.set_parameters(42);
  return identity;
}

std::string SegmentPath(int64_t first) { return absl::StrFormat("%s/log-%020d.seg", kDirectory, first); }

// Of every length from 0 to 96, and no two alike but the empty ones.
std::string Record(int64_t index) {
  std::string record;
  Random random(static_cast<uint64_t>(index));
  for (int64_t left = (index * 29) % 97; left > 0; --left) record.push_back(static_cast<char>(random()));
  return record;
}

std::string Message(const absl::Status& status) { return std::string(status.message()); }

struct Found {
  LogSummary summary;
  std::vector<std::string> records;  // From summary.first_index on.
};

absl::StatusOr<Found> Read(FileSystem* files, const std::string& directory = kDirectory) {
  Found found;
  int64_t expected = 0;
  auto summary = ReadLog(files, directory, 0, [&](int64_t index, absl::string_view record) {
    EXPECT_TRUE(expected == 0 || index == expected) << index << " after " << expected - 1;
    expected = index + 1;
    found.records.emplace_back(record);
    return absl::OkStatus();
  });
  if (!summary.ok()) return summary.status();
  found.summary = *summary;
  EXPECT_EQ(found.summary.next_index - found.summary.first_index, static_cast<int64_t>(found.records.size()));
  return found;
}

// Continues the log that is there, or begins it.
absl::StatusOr<std::unique_ptr<LogWriter>> Open(FileSystem* files, const LogOptions& options = {},
                                                const std::string& directory = kDirectory) {
  LogSummary end;
  const auto found = Read(files, directory);
  if (found.ok()) {
    end = found->summary;
  } else if (!absl::IsNotFound(found.status())) {
    return found.status();
  }
  return LogWriter::Open(files, directory, Identity(), end, options);
}

// Records first, first + 1, ... last, one Sync behind them.
void AppendAndSync(LogWriter* log, int64_t first, int64_t last) {
  for (int64_t index = first; index <= last; ++index) ASSERT_EQ(log->Append(Record(index)), index);
  const absl::Status status = log->Sync();
  ASSERT_TRUE(status.ok()) << status;
  ASSERT_EQ(log->durable_index(), last);
}

void ExpectRecords(FileSystem* files, int64_t first, int64_t last) {
  const auto found = Read(files);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->summary.first_index, first);
  EXPECT_EQ(found->summary.next_index, last + 1);
  for (size_t i = 0; i < found->records.size(); ++i) {
    EXPECT_EQ(found->records[i], Record(first + static_cast<int64_t>(i))) << first + static_cast<int64_t>(i);
  }
}

// Bit by bit, from the polynomial: independent of the library that the log uses.
uint32_t Crc32cBitByBit(absl::string_view data) {
  uint32_t crc = 0xFFFFFFFFu;
  for (const char c : data) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78u : 0);
  }
  return ~crc;
}

std::string MakeFrame(int64_t index, int64_t synced, const std::string& payload) {
  std::string checked(16, '\0');
  std::memcpy(checked.data(), &index, 8);
  std::memcpy(checked.data() + 8, &synced, 8);
  checked += payload;
  const uint32_t length = static_cast<uint32_t>(payload.size());
  const uint32_t crc = Crc32cBitByBit(checked);
  std::string head(8, '\0');
  std::memcpy(head.data(), &length, 4);
  std::memcpy(head.data() + 4, &crc, 4);
  return head + checked;
}

// Where the frames of a good segment end.
std::vector<int64_t> FrameEnds(const std::string& segment) {
  std::vector<int64_t> ends;
  for (int64_t end = 0; end < static_cast<int64_t>(segment.size());) {
    uint32_t length;
    std::memcpy(&length, segment.data() + end, 4);
    end += kHeadBytes + length;
    ends.push_back(end);
  }
  return ends;
}

// Two segments: 1-2, 3, 4-6 and 7-8, 9-10, as they were synced.
void MakeSmallLog(FaultFileSystem* files) {
  auto log = Open(files);
  ASSERT_TRUE(log.ok()) << log.status();
  AppendAndSync(log->get(), 1, 2);
  AppendAndSync(log->get(), 3, 3);
  AppendAndSync(log->get(), 4, 6);
  ASSERT_TRUE((*log)->StartSegment().ok());
  AppendAndSync(log->get(), 7, 8);
  AppendAndSync(log->get(), 9, 10);
}

TEST(LogTest, RecordsComeBackAsTheyWere) {
  const TestDirectory scratch;
  const std::string directory = scratch.path() + "/a/log";
  FileSystem* files = FileSystem::Real();
  std::vector<std::string> records = {"one", "", std::string("\0\1\2", 3), std::string(3 << 20, 'x')};
  for (int life = 0; life < 3; ++life) {
    auto log = Open(files, {}, directory);
    ASSERT_TRUE(log.ok()) << log.status();
    if (life > 0) records.push_back(absl::StrCat("life ", life));
    for (size_t i = static_cast<size_t>((*log)->next_index() - 1); i < records.size(); ++i) (*log)->Append(records[i]);
    EXPECT_LT((*log)->durable_index(), static_cast<int64_t>(records.size()));
    ASSERT_TRUE((*log)->Sync().ok());
    EXPECT_EQ((*log)->durable_index(), static_cast<int64_t>(records.size()));
  }
  const auto found = Read(files, directory);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->records, records);
  EXPECT_EQ(found->summary.identity.run(), "fifth");
  EXPECT_EQ(found->summary.torn_bytes, 0);
}

TEST(LogTest, FramesAreWhatTheHeaderSays) {
  ASSERT_EQ(Crc32cBitByBit("123456789"), 0xE3069283u);
  FaultFileSystem files(1);
  auto log = Open(&files);
  ASSERT_TRUE(log.ok()) << log.status();
  (*log)->Append("ab");
  (*log)->Append("c");
  ASSERT_TRUE((*log)->Sync().ok());
  (*log)->Append("d");
  ASSERT_TRUE((*log)->Sync().ok());
  const std::string head = MakeFrame(0, 0, Identity().SerializeAsString());
  const int64_t first = static_cast<int64_t>(head.size());
  EXPECT_EQ(files.Read(SegmentPath(1)).value(), head + MakeFrame(1, first, "ab") + MakeFrame(2, first, "c") +
                                                    MakeFrame(3, first + 2 * kHeadBytes + 3, "d"));
  EXPECT_EQ((*log)->bytes_written(), files.Size(SegmentPath(1)).value());
}

TEST(LogTest, ANewSegmentBeginsBeyondTheLimit) {
  FaultFileSystem files(1);
  LogOptions options;
  options.segment_bytes = 400;
  auto log = Open(&files, options);
  ASSERT_TRUE(log.ok()) << log.status();
  for (int64_t i = 1; i <= 40; ++i) AppendAndSync(log->get(), i, i);
  const auto names = files.List(kDirectory).value();
  EXPECT_GT(names.size(), 5u);
  for (const std::string& name : names) EXPECT_LT(files.Size(kDirectory + ("/" + name)).value(), 400 + 97 + kHeadBytes);
  ExpectRecords(&files, 1, 40);
  EXPECT_EQ(Read(&files)->summary.segments, static_cast<int>(names.size()));
}

TEST(LogTest, ReadingBeginsWhereItIsAskedTo) {
  FaultFileSystem files(1);
  MakeSmallLog(&files);
  for (int64_t from = 1; from <= 11; ++from) {
    std::vector<std::string> records, expected;
    const auto summary = ReadLog(&files, kDirectory, from, [&records](int64_t, absl::string_view record) {
      records.emplace_back(record);
      return absl::OkStatus();
    });
    ASSERT_TRUE(summary.ok()) << summary.status();
    for (int64_t index = from; index <= 10; ++index) expected.push_back(Record(index));
    EXPECT_EQ(records, expected) << from;
    EXPECT_EQ(summary->next_index, 11);
    EXPECT_EQ(summary->proven_index, 8);
    EXPECT_EQ(summary->bytes, files.Size(SegmentPath(1)).value() + files.Size(SegmentPath(7)).value());
  }
  const auto none = [](int64_t, absl::string_view) { return absl::OkStatus(); };
  const auto later = ReadLog(&files, kDirectory, 12, none);
  EXPECT_EQ(later.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(later.status()), AllOf(HasSubstr(SegmentPath(7)), HasSubstr("ends with record 10")));
  const auto refused =
      ReadLog(&files, kDirectory, 1, [](int64_t, absl::string_view) { return absl::UnimplementedError("no"); });
  EXPECT_EQ(refused.status(), absl::UnimplementedError("no"));
  EXPECT_EQ(ReadLog(&files, "/nowhere", 1, none).status().code(), absl::StatusCode::kNotFound);
}

TEST(LogTest, ManyRecordsCostOneWriteAndOneSync) {
  FaultFileSystem files(1);
  auto log = Open(&files);
  ASSERT_TRUE(log.ok()) << log.status();
  const int writes = files.calls(FaultFileSystem::kWrite), syncs = files.calls(FaultFileSystem::kSync);
  AppendAndSync(log->get(), 1, 1000);
  ASSERT_TRUE((*log)->Sync().ok());
  EXPECT_EQ(files.calls(FaultFileSystem::kWrite), writes + 1);
  EXPECT_EQ(files.calls(FaultFileSystem::kSync), syncs + 1);
}

TEST(LogTest, WithoutSyncNoFileIsSynced) {
  FaultFileSystem files(1);
  LogOptions options;
  options.sync = false;
  auto log = Open(&files, options);
  ASSERT_TRUE(log.ok()) << log.status();
  AppendAndSync(log->get(), 1, 10);
  ASSERT_TRUE((*log)->StartSegment().ok());
  AppendAndSync(log->get(), 11, 20);
  EXPECT_EQ(files.calls(FaultFileSystem::kSync), 0);
  log->reset();
  ExpectRecords(&files, 1, 20);
}

TEST(LogTest, AppendDoesNotWaitForASync) {
  FaultFileSystem files(1);
  auto log = Open(&files);
  ASSERT_TRUE(log.ok()) << log.status();
  (*log)->Append(Record(1));
  int64_t during = 0;
  // On the thread that syncs: it would wait for ever for a mutex that is held during I/O.
  files.OnSync([&] {
    during = (*log)->Append(Record(2));
    EXPECT_EQ((*log)->durable_index(), 0);
  });
  ASSERT_TRUE((*log)->Sync().ok());
  files.OnSync(nullptr);
  EXPECT_EQ(during, 2);
  EXPECT_EQ((*log)->durable_index(), 1) << "a sync covers what was appended before it, and no more";
  ASSERT_TRUE((*log)->Sync().ok());
  EXPECT_EQ((*log)->durable_index(), 2);
  ExpectRecords(&files, 1, 2);
}

TEST(LogTest, EverySyncCoversWhatItsThreadAppended) {
  constexpr int kThreads = 8, kRounds = 100;
  FaultFileSystem files(1);
  LogOptions options;
  options.segment_bytes = 4096;
  auto log = Open(&files, options);
  ASSERT_TRUE(log.ok()) << log.status();
  std::vector<std::thread> threads;
  for (int thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&log, thread] {
      for (int round = 0; round < kRounds; ++round) {
        const int64_t index = (*log)->Append(absl::StrCat(thread, " ", round));
        ASSERT_TRUE((*log)->Sync().ok());
        ASSERT_GE((*log)->durable_index(), index);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  files.Crash();
  const auto found = Read(&files);
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_EQ(found->records.size(), static_cast<size_t>(kThreads * kRounds));
  std::map<int, int> rounds;
  for (const std::string& record : found->records) {
    const int thread = record[0] - '0';
    EXPECT_EQ(record, absl::StrCat(thread, " ", rounds[thread]++));
  }
}

TEST(LogTest, ACutAtAnyByteLeavesThePrefixAndTheLogGoesOn) {
  FaultFileSystem whole(1);
  MakeSmallLog(&whole);
  const std::string first = whole.Read(SegmentPath(1)).value(), second = whole.Read(SegmentPath(7)).value();
  const std::vector<int64_t> ends = FrameEnds(second);
  ASSERT_EQ(ends.size(), 5u);
  for (int64_t cut = 0; cut <= static_cast<int64_t>(second.size()); ++cut) {
    SCOPED_TRACE(absl::StrCat("cut at byte ", cut));
    const int64_t frames = std::upper_bound(ends.begin(), ends.end(), cut) - ends.begin();
    const int64_t last = frames == 0 ? 6 : 6 + frames - 1;
    FaultFileSystem files(static_cast<uint64_t>(cut));
    files.Put(SegmentPath(1), first);
    files.Put(SegmentPath(7), second.substr(0, static_cast<size_t>(cut)));
    ExpectRecords(&files, 1, last);
    const LogSummary summary = Read(&files)->summary;
    EXPECT_EQ(summary.last_segment, SegmentPath(7));
    EXPECT_EQ(summary.last_segment_bytes, frames == 0 ? 0 : ends[static_cast<size_t>(frames - 1)]);
    EXPECT_EQ(summary.torn_bytes, cut - summary.last_segment_bytes);

    auto log = Open(&files);
    ASSERT_TRUE(log.ok()) << log.status();
    ASSERT_EQ((*log)->durable_index(), last);
    files.Crash();
    ExpectRecords(&files, 1, last);
    log = Open(&files);
    ASSERT_TRUE(log.ok()) << log.status();
    AppendAndSync(log->get(), last + 1, last + 3);
    files.Crash();
    ExpectRecords(&files, 1, last + 3);
    EXPECT_EQ(Read(&files)->summary.torn_bytes, 0);
  }
  // Of an earlier segment everything was confirmed.
  for (size_t cut = 0; cut < first.size(); ++cut) {
    FaultFileSystem files(1);
    files.Put(SegmentPath(1), first.substr(0, cut));
    files.Put(SegmentPath(7), second);
    const auto found = Read(&files);
    ASSERT_EQ(found.status().code(), absl::StatusCode::kDataLoss) << cut;
    EXPECT_THAT(Message(found.status()), AllOf(HasSubstr(SegmentPath(1)), HasSubstr("damaged at byte ")));
  }
}

TEST(LogTest, NoFlippedBitGivesAWrongRecord) {
  FaultFileSystem files(1);
  MakeSmallLog(&files);
  const auto whole = Read(&files);
  ASSERT_TRUE(whole.ok()) << whole.status();
  int damaged = 0, torn = 0;
  for (const int64_t segment : {1, 7}) {
    const std::string path = SegmentPath(segment), contents = files.Read(path).value();
    // 9 and 10 were synced last: nothing was written later that proves it.
    const int64_t proven = segment == 1 ? static_cast<int64_t>(contents.size()) : FrameEnds(contents)[2];
    for (size_t byte = 0; byte < contents.size(); ++byte) {
      for (int bit = 0; bit < 8; ++bit) {
        SCOPED_TRACE(absl::StrCat("bit ", bit, " of byte ", byte, " of segment ", segment));
        std::string flipped = contents;
        flipped[byte] = static_cast<char>(flipped[byte] ^ (1 << bit));
        files.Put(path, flipped);
        const auto found = Read(&files);
        if (static_cast<int64_t>(byte) < proven) {
          ASSERT_EQ(found.status().code(), absl::StatusCode::kDataLoss);
          EXPECT_THAT(Message(found.status()),
                      AllOf(HasSubstr(path), HasSubstr("damaged at byte "), HasSubstr("exported checkpoint")));
          ++damaged;
          continue;
        }
        ASSERT_TRUE(found.ok()) << found.status();
        ASSERT_GE(found->records.size(), 8u);
        ASSERT_LT(found->records.size(), 10u);
        EXPECT_TRUE(std::equal(found->records.begin(), found->records.end(), whole->records.begin()));
        EXPECT_GT(found->summary.torn_bytes, 0);
        EXPECT_EQ(found->summary.bytes + found->summary.torn_bytes, whole->summary.bytes);
        ++torn;
      }
    }
    files.Put(path, contents);
  }
  EXPECT_GT(damaged, 0);
  EXPECT_GT(torn, 0);
}

TEST(LogTest, ASegmentThatWasJustCreatedMayBeTheOnlyOne) {
  const std::string head = MakeFrame(0, 0, Identity().SerializeAsString());
  for (size_t bytes = 0; bytes <= head.size(); ++bytes) {
    FaultFileSystem files(1);
    files.Put(SegmentPath(5), head.substr(0, bytes));
    const auto found = Read(&files);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_EQ(found->summary.identity.format(), bytes == head.size() ? 1 : 0);
    EXPECT_EQ(found->summary.first_index, 5);
    EXPECT_EQ(found->summary.next_index, 5);
    auto log = Open(&files);
    ASSERT_TRUE(log.ok()) << log.status();
    AppendAndSync(log->get(), 5, 6);
    ExpectRecords(&files, 5, 6);
    EXPECT_EQ(Read(&files)->summary.segments, 1);
  }
}

TEST(LogTest, ALongTornTailIsReadOnce) {
  FaultFileSystem files(1);
  auto log = Open(&files);
  ASSERT_TRUE(log.ok()) << log.status();
  AppendAndSync(log->get(), 1, 3);
  std::string tail(4 << 20, '\xff');  // A length of 4 GiB first.
  Random random(1);
  for (size_t i = 100; i < tail.size(); ++i) tail[i] = static_cast<char>(random() & random() & random());
  files.Put(SegmentPath(1), files.Read(SegmentPath(1)).value() + tail);
  ExpectRecords(&files, 1, 3);
  EXPECT_EQ(Read(&files)->summary.torn_bytes, static_cast<int64_t>(tail.size()));
}

TEST(LogTest, AFrameThatIsWholeAndWrongIsDamage) {
  const std::string head = MakeFrame(0, 0, Identity().SerializeAsString());
  const int64_t first = static_cast<int64_t>(head.size());
  for (const std::string& tail : {MakeFrame(3, first, "x"), MakeFrame(1, first, "x"), MakeFrame(2, first + 1000, "x"),
                                  MakeFrame(0, 0, Identity().SerializeAsString())}) {
    FaultFileSystem files(1);
    const std::string good = head + MakeFrame(1, first, "one");
    files.Put(SegmentPath(1), good + tail);
    const auto found = Read(&files);
    EXPECT_EQ(found.status().code(), absl::StatusCode::kDataLoss);
    EXPECT_THAT(Message(found.status()),
                HasSubstr(absl::StrCat("damaged at byte ", good.size(), " of ", SegmentPath(1), " (record 2: ")));
  }
}

TEST(LogTest, AMissingSegmentIsDamage) {
  FaultFileSystem files(1);
  MakeSmallLog(&files);
  auto log = Open(&files);
  ASSERT_TRUE(log.ok()) << log.status();
  AppendAndSync(log->get(), 11, 12);
  ASSERT_EQ(Read(&files)->summary.segments, 3);
  ASSERT_TRUE(files.Remove(SegmentPath(7)).ok());
  const auto found = Read(&files);
  EXPECT_EQ(found.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(Message(found.status()), AllOf(HasSubstr(SegmentPath(1)), HasSubstr("record 7"), HasSubstr("record 9")));
}

TEST(LogTest, ANewerFormatAndAnotherRunAreRefused) {
  FaultFileSystem files(1);
  MakeSmallLog(&files);
  LogIdentity identity = Identity();
  identity.set_format(2);
  const std::string second = files.Read(SegmentPath(7)).value();
  files.Put(SegmentPath(7), MakeFrame(0, 0, identity.SerializeAsString()));
  const auto newer = Read(&files);
  EXPECT_EQ(newer.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(newer.status()),
              AllOf(HasSubstr(SegmentPath(7)), HasSubstr("written by a newer wukong (format 2, this one reads 1)")));
  identity = Identity();
  identity.set_run("sixth");
  files.Put(SegmentPath(7), MakeFrame(0, 0, identity.SerializeAsString()));
  const auto other = Read(&files);
  EXPECT_EQ(other.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(other.status()), AllOf(HasSubstr(SegmentPath(7)), HasSubstr("sixth"), HasSubstr("fifth")));
}

TEST(LogTest, AFullDiskLosesNothingAndRepeatsNothing) {
  for (const bool cut_fails : {false, true}) {
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      SCOPED_TRACE(absl::StrCat("seed ", seed));
      FaultFileSystem files(seed);
      auto log = Open(&files);
      ASSERT_TRUE(log.ok()) << log.status();
      AppendAndSync(log->get(), 1, 3);
      files.SetFull(true);
      for (int64_t index = 4; index <= 9; ++index) {
        (*log)->Append(Record(index));
        if (cut_fails) files.Fail(FaultFileSystem::kTruncate);
        const absl::Status status = (*log)->Sync();
        EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
        EXPECT_THAT(Message(status), HasSubstr(kDirectory));
        EXPECT_EQ((*log)->durable_index(), 3);
      }
      EXPECT_EQ(files.failures(FaultFileSystem::kTruncate), cut_fails ? 1 : 0);
      files.SetFull(false);
      AppendAndSync(log->get(), 10, 11);
      ExpectRecords(&files, 1, 11);
      EXPECT_EQ(Read(&files)->summary.segments, cut_fails ? 2 : 1);
      files.Crash();
      ExpectRecords(&files, 1, 11);
    }
  }
}

TEST(LogTest, AfterAFailedSyncANewSegmentHoldsWhatWasNotKnownToBeOnTheDisk) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    FaultFileSystem files(seed);
    auto log = Open(&files);
    ASSERT_TRUE(log.ok()) << log.status();
    AppendAndSync(log->get(), 1, 3);
    files.Fail(FaultFileSystem::kSync, 0, 3);
    for (int64_t index = 4; index <= 6; ++index) {
      (*log)->Append(Record(index));
      EXPECT_EQ((*log)->Sync().code(), absl::StatusCode::kInternal);
      EXPECT_EQ((*log)->durable_index(), 3);
    }
    AppendAndSync(log->get(), 7, 8);
    EXPECT_THAT(files.List(kDirectory).value(),
                ElementsAre("log-00000000000000000001.seg", "log-00000000000000000004.seg"));
    ExpectRecords(&files, 1, 8);
    files.Crash();
    ExpectRecords(&files, 1, 8);
  }
}

TEST(LogTest, ARestartDoesNotTrustThePageCacheAfterAFailedSync) {
  int unsynced = 0;
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    FaultFileSystem files(seed);
    auto log = Open(&files);
    ASSERT_TRUE(log.ok()) << log.status();
    AppendAndSync(log->get(), 1, 3);
    (*log)->Append(Record(4));
    files.Fail(FaultFileSystem::kSync);
    ASSERT_FALSE((*log)->Sync().ok());
    log->reset();
    log = Open(&files);
    ASSERT_TRUE(log.ok()) << log.status();
    const int64_t last = (*log)->durable_index();
    unsynced += last == 4 ? 1 : 0;
    files.Crash();
    ExpectRecords(&files, 1, last);
  }
  EXPECT_GT(unsynced, 0) << "record 4 was never seen: nothing was tested";
}

// One fault, of each kind and at each place.
TEST(LogTest, NoSingleFaultLosesOrRepeatsARecord) {
  int fired = 0;
  for (int operation = 0; operation < FaultFileSystem::kOperations; ++operation) {
    for (int nth = 0; nth < 12; ++nth) {
      for (uint64_t seed = 1; seed <= 6; ++seed) {
        SCOPED_TRACE(absl::StrCat("operation ", operation, " number ", nth, " seed ", seed));
        FaultFileSystem files(seed);
        LogOptions options;
        options.segment_bytes = 300;
        auto log = Open(&files, options);
        ASSERT_TRUE(log.ok()) << log.status();
        if (operation == FaultFileSystem::kTruncate) {
          files.Fail(FaultFileSystem::kTruncate);
          files.Fail(FaultFileSystem::kWrite, nth);  // Or there is nothing to cut.
        } else {
          files.Fail(static_cast<FaultFileSystem::Operation>(operation), nth);
        }
        for (int64_t index = 1; index <= 12; ++index) {
          ASSERT_EQ((*log)->Append(Record(index)), index);
          if (!(*log)->Sync().ok()) {
            EXPECT_LT((*log)->durable_index(), index);
          }
          if (index == 4) (*log)->StartSegment().IgnoreError();
          if (index >= 8) (*log)->RemoveBefore(index - 3).IgnoreError();
        }
        for (int attempt = 0; attempt < 3 && !(*log)->Sync().ok(); ++attempt) {
        }
        EXPECT_EQ((*log)->durable_index(), 12);
        fired += files.failures(static_cast<FaultFileSystem::Operation>(operation));
        if (seed % 2 == 0) files.Crash();
        const auto found = Read(&files);
        ASSERT_TRUE(found.ok()) << found.status();
        EXPECT_LE(found->summary.first_index, 9);
        ExpectRecords(&files, found->summary.first_index, 12);
      }
    }
  }
  EXPECT_GT(fired, 100);
}

// A loss of power, or only of the process, before each operation on the disk that this makes.
TEST(LogTest, ADeathBetweenAnyTwoOperationsLosesNothingConfirmed) {
  int deaths = 0, unconfirmed_found = 0, torn = 0;
  for (int operations = 0; operations < 90; ++operations) {
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      SCOPED_TRACE(absl::StrCat("after ", operations, " operations, seed ", seed));
      FaultFileSystem files(seed);
      LogOptions options;
      options.segment_bytes = 200;
      files.DieAfter(operations);
      auto log = Open(&files, options);
      int64_t confirmed = 0, appended = 0;
      for (int round = 0; log.ok() && round < 8; ++round) {
        for (int i = 0; i <= round % 3; ++i) appended = (*log)->Append(Record(appended + 1));
        (*log)->Sync().IgnoreError();
        if (round == 3) (*log)->StartSegment().IgnoreError();
        if (round >= 5) (*log)->RemoveBefore(confirmed).IgnoreError();
        confirmed = (*log)->durable_index();
      }
      const bool died = !log.ok() || confirmed < appended;
      deaths += died ? 1 : 0;
      if (seed % 4 == 0) {
        files.Revive();
      } else {
        files.Crash();
      }
      const auto found = Read(&files);
      if (!log.ok() && absl::IsNotFound(found.status())) continue;
      ASSERT_TRUE(found.ok()) << found.status();
      const int64_t last = found->summary.next_index - 1;
      ASSERT_GE(last, confirmed);
      ASSERT_LE(last, appended);
      ASSERT_LE(found->summary.first_index, std::max<int64_t>(confirmed, 1));
      ExpectRecords(&files, found->summary.first_index, last);
      unconfirmed_found += last > confirmed ? 1 : 0;
      torn += found->summary.torn_bytes > 0 ? 1 : 0;
      auto next = Open(&files, options);
      ASSERT_TRUE(next.ok()) << next.status();
      AppendAndSync(next->get(), last + 1, last + 2);
      files.Crash();
      ExpectRecords(&files, found->summary.first_index, last + 2);
    }
  }
  EXPECT_GT(deaths, 500);
  EXPECT_GT(unconfirmed_found, 50);
  EXPECT_GT(torn, 50);
}

TEST(LogTest, OldSegmentsAreRemovedAndNumbersGoOn) {
  FaultFileSystem files(1);
  MakeSmallLog(&files);
  auto log = Open(&files);  // A third segment: 9-10.
  ASSERT_TRUE(log.ok()) << log.status();
  ASSERT_TRUE((*log)->RemoveBefore(6).ok());
  ExpectRecords(&files, 1, 10);
  ASSERT_TRUE((*log)->RemoveBefore(7).ok());
  ExpectRecords(&files, 7, 10);
  ASSERT_TRUE((*log)->StartSegment().ok());
  ASSERT_TRUE((*log)->StartSegment().ok()) << "of nothing";
  ASSERT_TRUE((*log)->RemoveBefore(1000).ok());
  ExpectRecords(&files, 11, 10);
  EXPECT_EQ(Read(&files)->summary.segments, 1);
  log = Open(&files);
  ASSERT_TRUE(log.ok()) << log.status();
  AppendAndSync(log->get(), 11, 12);
  files.Crash();
  ExpectRecords(&files, 11, 12);
  const auto gone =
      ReadLog(&files, kDirectory, 10, [](int64_t, absl::string_view) { return absl::OkStatus(); }).status();
  EXPECT_EQ(gone.code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(Message(gone), AllOf(HasSubstr(kDirectory), HasSubstr("begins with record 11")));
}

TEST(LogTest, AWriterThatIsNotWhereTheLogEndsIsRefused) {
  FaultFileSystem files(1);
  MakeSmallLog(&files);
  LogSummary end;
  EXPECT_EQ(LogWriter::Open(&files, kDirectory, Identity(), end, {}).status().code(), absl::StatusCode::kAborted);
  end = Read(&files)->summary;
  auto log = Open(&files);
  ASSERT_TRUE(log.ok()) << log.status();
  AppendAndSync(log->get(), 11, 11);
  EXPECT_EQ(LogWriter::Open(&files, kDirectory, Identity(), end, {}).status().code(), absl::StatusCode::kAborted);
  ASSERT_TRUE(files.MakeDirectories("/run/other").ok());
  EXPECT_EQ(LogWriter::Open(&files, "/run/other", Identity(), end, {}).status().code(), absl::StatusCode::kAborted);
}

struct Totals {
  int faults = 0, crashes = 0, torn = 0, lives = 0, removed = 0, unconfirmed_found = 0, unconfirmed_lost = 0;
};

// Lives of one log on a machine that fails and crashes. `appended[i]` is what record i + 1 must be, if it is there.
void LiveAndCrash(uint64_t seed, Totals* totals) {
  Random random(seed);
  FaultFileSystem files(DeriveSeed(seed, "files"));
  std::vector<std::string> appended;
  int64_t confirmed = 0, removed_before = 1;
  bool begun = false;
  const double probabilities[] = {0, 0.01, 0.05, 0.2};
  const int64_t segment_bytes[] = {1, 300, 3000, 64 << 20};
  for (int life = 0; life < 12; ++life) {
    SCOPED_TRACE(absl::StrCat("life ", life));
    ++totals->lives;
    files.FailRandomly(0);
    LogSummary end;
    const auto found = Read(&files);
    if (!begun && absl::IsNotFound(found.status())) {
      appended.clear();
    } else {
      ASSERT_TRUE(found.ok()) << found.status();
      end = found->summary;
      const int64_t last = end.next_index - 1;
      ASSERT_GE(last, confirmed) << "confirmed records are gone";
      ASSERT_LE(last, static_cast<int64_t>(appended.size()));
      ASSERT_LE(end.first_index, removed_before);
      for (size_t i = 0; i < found->records.size(); ++i) {
        ASSERT_EQ(found->records[i], appended[static_cast<size_t>(end.first_index) - 1 + i])
            << end.first_index << "+" << i;
      }
      totals->torn += end.torn_bytes > 0 ? 1 : 0;
      totals->removed += end.first_index > 1 ? 1 : 0;
      totals->unconfirmed_found += last > confirmed ? 1 : 0;
      totals->unconfirmed_lost += last < static_cast<int64_t>(appended.size()) ? 1 : 0;
      appended.resize(static_cast<size_t>(last));
    }
    files.FailRandomly(probabilities[random.Below(4)]);
    LogOptions options;
    options.segment_bytes = segment_bytes[random.Below(4)];
    auto log = LogWriter::Open(&files, kDirectory, Identity(), end, options);
    if (random.Below(2) == 0) files.DieAfter(static_cast<int>(random.Below(60)));
    if (log.ok()) {
      begun = true;
      confirmed = static_cast<int64_t>(appended.size());
      ASSERT_EQ((*log)->durable_index(), confirmed);
      for (uint64_t left = random.Below(60); left > 0; --left) {
        const uint64_t action = random.Below(10);
        if (action < 5) {
          std::string record(random.Below(random.Below(8) == 0 ? 1000 : 60), '\0');
          for (char& c : record) c = static_cast<char>(random());
          appended.push_back(record);
          ASSERT_EQ((*log)->Append(record), static_cast<int64_t>(appended.size()));
        } else if (action < 8) {
          const bool synced = (*log)->Sync().ok();
          if (synced) {
            ASSERT_EQ((*log)->durable_index(), static_cast<int64_t>(appended.size()));
          }
        } else if (action == 8) {
          (*log)->StartSegment().IgnoreError();
        } else {
          const int64_t index = 1 + static_cast<int64_t>(random.Below(static_cast<uint64_t>(confirmed) + 1));
          removed_before = std::max(removed_before, index);
          (*log)->RemoveBefore(index).IgnoreError();
        }
        ASSERT_GE((*log)->durable_index(), confirmed);
        confirmed = (*log)->durable_index();
      }
      if (random.Below(4) == 0) {
        files.FailRandomly(0);
        files.Revive();
        const absl::Status status = (*log)->Sync();
        ASSERT_TRUE(status.ok()) << status;
        confirmed = static_cast<int64_t>(appended.size());
      }
    }
    if (random.Below(2) == 0) {
      files.Crash();
      ++totals->crashes;
    } else {
      files.Revive();  // Only the process ended.
    }
  }
  for (int operation = 0; operation < FaultFileSystem::kOperations; ++operation) {
    totals->faults += files.failures(static_cast<FaultFileSystem::Operation>(operation));
  }
}

TEST(LogTest, WhateverFailsConfirmedRecordsSurviveAndNothingElseAppears) {
  Totals totals;
  for (uint64_t seed = 1; seed <= 1000; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    LiveAndCrash(seed, &totals);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(totals.faults, 1000);
  EXPECT_GT(totals.crashes, 1000);
  EXPECT_GT(totals.torn, 100);
  EXPECT_GT(totals.removed, 100);
  EXPECT_GT(totals.unconfirmed_found, 100);
  EXPECT_GT(totals.unconfirmed_lost, 100);
}

}  // namespace
}  // namespace wukong
