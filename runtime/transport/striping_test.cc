#include "runtime/transport/striping.h"

#include <algorithm>
#include <string>
#include <thread>

#include "absl/time/clock.h"
#include "gtest/gtest.h"
#include "runtime/base/random.h"
#include "runtime/codec/codec.h"
#include "runtime/transport/staging_room.h"

namespace wukong {
namespace {

std::string RandomBytes(Random* random, int64_t count) {
  std::string bytes(count, '\0');
  for (char& byte : bytes) byte = static_cast<char>((*random)());
  return bytes;
}

FragmentPayload Piece(int index, int64_t offset, const std::string& payload) {
  FragmentPayload piece;
  piece.set_index(index);
  piece.set_offset(offset);
  piece.set_payload(payload);
  return piece;
}

// Takes room that is there at once.
bool Takes(StagingRoom* room, StagingRoom::Share* share, int64_t bytes) {
  return room->Take(share, bytes, [] { return true; }).ok();
}

TEST(StagingRoomTest, WhatBrokeOffGoesBeforeTheBoundIsPassed) {
  StagingRoom::Share broken, other, third;
  int asked = 0;
  StagingRoom room(100, [&] {
    if (++asked > 1) return false;
    room.Return(&broken);
    return true;
  });
  ASSERT_TRUE(Takes(&room, &broken, 60));
  room.Rest(&broken);
  ASSERT_TRUE(Takes(&room, &other, 40));
  EXPECT_EQ(asked, 0) << "there is room for both";
  ASSERT_TRUE(Takes(&room, &other, 30));
  EXPECT_EQ(asked, 1);
  EXPECT_EQ(room.used_max(), 100);
  EXPECT_FALSE(Takes(&room, &broken, 1)) << "it is over";
  ASSERT_TRUE(Takes(&room, &third, 31)) << "one goes on beyond the bound";
  EXPECT_FALSE(Takes(&room, &other, 1));
  room.Rest(&third);
  EXPECT_TRUE(Takes(&room, &other, 1)) << "in the place of one that broke off";
}

TEST(StagingRoomTest, WhoGoesOnWithAContributionHasItsRoomAndItsPlaceBeyondTheBound) {
  StagingRoom room(100);
  StagingRoom::Share first, other, next, last;
  ASSERT_TRUE(Takes(&room, &first, 60));
  ASSERT_TRUE(Takes(&room, &other, 30));
  ASSERT_TRUE(Takes(&room, &first, 20));
  room.PassOn(&first, &next, 75);
  EXPECT_FALSE(Takes(&room, &first, 1));
  EXPECT_FALSE(Takes(&room, &other, 1)) << "it is not its place";
  EXPECT_TRUE(Takes(&room, &next, 5));
  EXPECT_EQ(room.used_max(), 110);
  room.Return(&next);
  room.Return(&next);
  EXPECT_TRUE(Takes(&room, &last, 70)) << "all of it came back, and once";
  EXPECT_EQ(room.used_max(), 110);
}

TEST(PieceBytesTest, IsAShareWithinBounds) {
  EXPECT_EQ(PieceBytes(1 << 20, 1), 1 << 20);
  EXPECT_EQ(PieceBytes(0, 1), 1);
  EXPECT_EQ(PieceBytes(1 << 20, 8), 128 << 10);
  EXPECT_EQ(PieceBytes(1 << 20, 2), 256 << 10);
  EXPECT_EQ(PieceBytes(1000, 8), 2 << 10);
  EXPECT_EQ(PieceBytes(0, 8), 2 << 10);
}

class ContributionAssemblyTest : public ::testing::Test {
 protected:
  const std::vector<FragmentSpan> fragments_ = CutFragments(1000, 1024);  // 256, 256, 256 and 232 values.
  const int64_t bytes_ = 4000;
};

TEST_F(ContributionAssemblyTest, TakesPiecesInAnyOrderFromManyThreads) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const int streams = 1 + static_cast<int>(random() % 5);
    std::vector<std::string> whole;
    std::vector<std::vector<FragmentPayload>> pieces(streams);
    for (size_t f = 0; f < fragments_.size(); ++f) {
      whole.push_back(RandomBytes(&random, fragments_[f].size() * 4));
      for (size_t begin = 0; begin < whole[f].size();) {
        const size_t length = std::min<size_t>(1 + random() % 300, whole[f].size() - begin);
        pieces[random() % pieces.size()].push_back(
            Piece(static_cast<int>(f), static_cast<int64_t>(begin), whole[f].substr(begin, length)));
        begin += length;
      }
    }
    ContributionAssembly assembly(CODEC_KIND_FP32, fragments_, /*partial=*/false, bytes_, streams);
    std::vector<std::thread> threads;
    for (std::vector<FragmentPayload>& mine : pieces) {
      std::shuffle(mine.begin(), mine.end(), random);
      threads.emplace_back([&] {
        absl::Status status;
        for (FragmentPayload& piece : mine) status.Update(assembly.Add(std::move(piece)));
        assembly.StreamEnded(status);
      });
    }
    for (std::thread& thread : threads) thread.join();
    const std::optional<absl::Status> end = assembly.Wait(absl::ZeroDuration());
    ASSERT_TRUE(end.has_value());
    ASSERT_TRUE(end->ok()) << *end;
    EXPECT_EQ(assembly.payload()->fragments, whole);
  }
}

TEST_F(ContributionAssemblyTest, RefusesWhatDoesNotFit) {
  const auto add = [&](const FragmentPayload& piece) {
    ContributionAssembly assembly(CODEC_KIND_FP32, fragments_, false, bytes_, 1);
    return assembly.Add(piece).code();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(add(Piece(-1, 0, "x")), kInvalid);
  EXPECT_EQ(add(Piece(4, 0, "x")), kInvalid);
  EXPECT_EQ(add(Piece(0, -1, "x")), kInvalid);
  EXPECT_EQ(add(Piece(0, 1024, "x")), kInvalid);
  EXPECT_EQ(add(Piece(0, INT64_MAX, "x")), kInvalid);
  EXPECT_EQ(add(Piece(0, 1, std::string(1024, 'x'))), kInvalid);
  EXPECT_EQ(add(Piece(0, 0, "")), kInvalid);
  EXPECT_EQ(add(Piece(0, 1023, "x")), absl::StatusCode::kOk);

  ContributionAssembly assembly(CODEC_KIND_FP32, fragments_, false, bytes_, 1);
  EXPECT_TRUE(assembly.Add(Piece(0, 0, std::string(1000, 'x'))).ok());
  EXPECT_EQ(assembly.Add(Piece(0, 500, std::string(100, 'x'))).code(), kInvalid) << "more than there are";
}

TEST_F(ContributionAssemblyTest, SaysWhatIsMissing) {
  for (const int streams : {1, 2}) {
    ContributionAssembly assembly(CODEC_KIND_FP32, fragments_, false, bytes_, streams);
    EXPECT_TRUE(assembly.Add(Piece(0, 0, std::string(1024, 'x'))).ok());
    EXPECT_FALSE(assembly.Wait(absl::ZeroDuration()).has_value());
    for (int i = 0; i < streams; ++i) assembly.StreamEnded(absl::OkStatus());
    const auto end = assembly.Wait(absl::ZeroDuration());
    ASSERT_TRUE(end.has_value());
    EXPECT_EQ(end->message(), "the contribution ends with 0 of 1024 bytes of fragment 1");
    EXPECT_EQ(absl::IsUnavailable(*end), streams > 1) << "another connection may have broken off";
  }
}

TEST_F(ContributionAssemblyTest, FragmentsMayBeMissingWhereTheyTakeTurns) {
  ContributionAssembly assembly(CODEC_KIND_FP32, fragments_, /*partial=*/true, 2048, 1);
  EXPECT_TRUE(assembly.Add(Piece(1, 0, std::string(1024, 'x'))).ok());
  EXPECT_TRUE(assembly.Add(Piece(3, 0, "")).ok());
  EXPECT_TRUE(assembly.Add(Piece(2, 0, std::string(1024, 'y'))).ok());
  EXPECT_EQ(assembly.Add(Piece(0, 0, std::string(1024, 'z'))).code(), absl::StatusCode::kInvalidArgument)
      << "more than the contribution said";
  assembly.StreamEnded(absl::OkStatus());
  ASSERT_TRUE(assembly.Wait(absl::ZeroDuration())->ok());
  EXPECT_EQ(assembly.payload()->fragments[0], "");
  EXPECT_EQ(assembly.payload()->fragments[2], std::string(1024, 'y'));
}

TEST_F(ContributionAssemblyTest, AnotherTransferTakesWhatIsWholeAndEndsThisOne) {
  ContributionAssembly assembly(CODEC_KIND_FP32, fragments_, false, bytes_, 1);
  EXPECT_FALSE(assembly.has_whole());
  EXPECT_TRUE(assembly.Add(Piece(0, 0, std::string(1000, 'x'))).ok());
  EXPECT_FALSE(assembly.has_whole());
  EXPECT_TRUE(assembly.Add(Piece(2, 0, std::string(1024, 'y'))).ok());
  EXPECT_TRUE(assembly.has_whole());
  EXPECT_EQ(assembly.TakeWhole(), (std::map<int, std::string>{{2, std::string(1024, 'y')}}));
  EXPECT_FALSE(assembly.has_whole());
  EXPECT_TRUE(absl::IsCancelled(assembly.Add(Piece(1, 0, std::string(1024, 'z')))));
  assembly.StreamEnded(absl::OkStatus());
  EXPECT_TRUE(absl::IsCancelled(*assembly.Wait(absl::InfiniteDuration())));
}

TEST_F(ContributionAssemblyTest, OneThatIsThereIsNotTaken) {
  ContributionAssembly assembly(CODEC_KIND_FP32, fragments_, /*partial=*/true, 1024, 1);
  EXPECT_TRUE(assembly.Add(Piece(1, 0, std::string(1024, 'x'))).ok());
  assembly.StreamEnded(absl::OkStatus());
  ASSERT_TRUE(assembly.Wait(absl::ZeroDuration())->ok());
  EXPECT_EQ(assembly.TakeWhole(), std::nullopt);
  EXPECT_FALSE(assembly.has_whole());
  EXPECT_EQ(assembly.payload()->fragments[1], std::string(1024, 'x'));
}

TEST_F(ContributionAssemblyTest, AConnectionThatBreaksEndsIt) {
  ContributionAssembly assembly(CODEC_KIND_FP32, fragments_, false, bytes_, 3);
  assembly.StreamEnded(absl::UnavailableError("gone"));
  EXPECT_EQ(assembly.Wait(absl::ZeroDuration()), absl::UnavailableError("gone"));
}

FollowMessage Update(int index, int64_t version, const std::string& payload) {
  FollowMessage message;
  message.mutable_fragment()->set_index(index);
  message.mutable_fragment()->set_version(version);
  message.mutable_fragment()->set_payload(payload);
  return message;
}

FollowMessage Complete(int64_t version) {
  FollowMessage message;
  message.mutable_complete()->set_version(version);
  return message;
}

TEST(FollowSpreadTest, WhatIsSpreadComesTogetherInOrder) {
  for (uint64_t seed = 1; seed <= 10; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    std::vector<FollowMessage> sent;
    for (int64_t version = 1; version <= 10; ++version) {
      for (int f = 0; f < 3; ++f) sent.push_back(Update(f, version, RandomBytes(&random, random() % (1 << 20))));
      sent.push_back(Update(3, version, ""));
      sent.push_back(Complete(version));
    }
    std::vector<FollowMessage> taken;
    FollowMerge merge([&](FollowMessage message, absl::Time) {
      message.clear_number();
      taken.push_back(std::move(message));
      return absl::OkStatus();
    });
    FollowSpread spread;
    const int parts = 1 + static_cast<int>(seed % 4);
    std::vector<std::thread> threads;
    for (int i = 0; i < parts; ++i) {
      const int part = spread.Attach();
      threads.emplace_back([&spread, &merge, part] {
        while (!spread.broken()) {
          std::optional<FollowMessage> message = spread.Take(part, absl::Milliseconds(10));
          if (message.has_value() && !merge.Put(*std::move(message), absl::Now()).ok()) return;
        }
      });
    }
    ASSERT_EQ(spread.AwaitParts(parts, absl::ZeroDuration()), parts);
    for (const FollowMessage& message : sent) {
      if (!message.fragment().payload().empty()) {
        ASSERT_TRUE(spread.Put(message));
      } else {
        FollowMessage numbered = message;
        spread.Number(&numbered);
        ASSERT_TRUE(merge.Put(std::move(numbered), absl::Now()).ok()) << merge.status();
      }
    }
    // Its last message is complete when everything before it is.
    FollowMessage last = Complete(99);
    spread.Number(&last);
    const int64_t number = last.number();
    ASSERT_TRUE(merge.Put(std::move(last), absl::Now()).ok());
    while (merge.next() <= number) std::this_thread::yield();
    spread.Break();
    for (std::thread& thread : threads) thread.join();
    sent.push_back(Complete(99));
    ASSERT_EQ(taken.size(), sent.size());
    for (size_t i = 0; i < sent.size(); ++i) {
      ASSERT_EQ(taken[i].SerializeAsString(), sent[i].SerializeAsString()) << i;
    }
  }
}

TEST(FollowSpreadTest, ABreakEndsWhoWaits) {
  FollowSpread spread;
  spread.Attach();
  std::thread sender([&] {
    // The part takes nothing.
    while (spread.Put(Update(0, 1, std::string(1000, 'x')))) {
    }
  });
  spread.Break();
  sender.join();
  EXPECT_FALSE(spread.Take(0, absl::InfiniteDuration()).has_value());
}

TEST(FollowMergeTest, RefusesWhatCannotBe) {
  const auto take = [](const FollowMessage&, absl::Time) { return absl::OkStatus(); };
  const auto numbered = [](int64_t number, FollowMessage message, int64_t to_come = 0) {
    message.set_number(number);
    if (to_come != 0) message.mutable_fragment()->set_bytes_to_come(to_come);
    return message;
  };
  {
    FollowMerge merge(take);
    EXPECT_TRUE(merge.Put(numbered(2, Update(0, 1, "b")), absl::Now()).ok());
    EXPECT_TRUE(absl::IsDataLoss(merge.Put(numbered(2, Update(0, 1, "b")), absl::Now()))) << "twice, not its turn";
  }
  {
    FollowMerge merge(take);
    EXPECT_TRUE(merge.Put(numbered(1, Complete(1)), absl::Now()).ok());
    EXPECT_TRUE(absl::IsDataLoss(merge.Put(numbered(1, Complete(1)), absl::Now()))) << "twice";
  }
  {
    FollowMerge merge(take);
    EXPECT_TRUE(merge.Put(numbered(1, Update(0, 1, "a"), 5), absl::Now()).ok());
    EXPECT_TRUE(absl::IsDataLoss(merge.Put(numbered(2, Complete(1)), absl::Now()))) << "a piece is missing";
  }
  {
    FollowMerge merge(take);
    EXPECT_TRUE(merge.Put(numbered(1, Update(0, 1, "a"), 5), absl::Now()).ok());
    EXPECT_TRUE(absl::IsDataLoss(merge.Put(numbered(2, Update(1, 1, "bcdef")), absl::Now()))) << "of another fragment";
  }
  {
    FollowMerge merge(take);
    EXPECT_TRUE(absl::IsDataLoss(merge.Put(numbered(1, Update(0, 1, "a"), int64_t{1} << 40), absl::Now())));
  }
}

TEST(FollowMergeTest, WhatIsFarAheadWaitsAndABreakEndsTheWait) {
  FollowMerge merge([](const FollowMessage&, absl::Time) { return absl::OkStatus(); });
  std::thread ahead([&] {
    absl::Status status;
    for (int64_t number = 2; status.ok(); ++number) {
      FollowMessage message = Update(0, 1, std::string(1 << 20, 'x'));
      message.set_number(number);
      status = merge.Put(std::move(message), absl::Now());
      ASSERT_LT(number, 100) << "it goes on without end";
    }
    EXPECT_TRUE(absl::IsCancelled(status));
  });
  merge.Break();
  ahead.join();
}

}  // namespace
}  // namespace wukong
