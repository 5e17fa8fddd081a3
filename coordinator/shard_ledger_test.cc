#include "coordinator/shard_ledger.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/base/random.h"

namespace wukong {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr uint64_t kBaseSeed = 9001;

MemberKey Key(int64_t member, int64_t incarnation = 1) { return {MemberId(member), Incarnation(incarnation)}; }

TEST(ShardLedgerTest, LeasesTheLowestSamplesFirstAndNoLeaseCrossesACut) {
  ShardLedger ledger(20, 8);
  EXPECT_THAT(ledger.Lease(Key(1), 0, 5), ElementsAre(LeasedRange{0, 5, 1}));
  EXPECT_THAT(ledger.Lease(Key(2), 0, 10), ElementsAre(LeasedRange{5, 8, 2}, LeasedRange{8, 15, 3}));
  EXPECT_THAT(ledger.Lease(Key(1), 1, 100), ElementsAre(LeasedRange{15, 16, 4}, LeasedRange{16, 20, 5}));
  EXPECT_THAT(ledger.Lease(Key(1), 1, 100), IsEmpty());
  EXPECT_THAT(ledger.Lease(Key(1), 1, 0), IsEmpty());
  EXPECT_EQ(ledger.leased(), 20);
  EXPECT_EQ(ledger.LeasedIn(0), 15);
  EXPECT_EQ(ledger.LeasedIn(1), 5);
}

TEST(ShardLedgerTest, LeasesAgainWhatWasReleasedUnderANewToken) {
  ShardLedger ledger(8, 8);
  const auto first = ledger.Lease(Key(1), 0, 8);
  ledger.Release(Key(1), {{2, 4, first[0].token}});
  EXPECT_THAT(ledger.Lease(Key(2), 1, 8), ElementsAre(LeasedRange{2, 4, first[0].token + 1}));
}

TEST(ShardLedgerTest, ReleasesOfOthersOldTokensAndNonsenseAreIgnored) {
  ShardLedger ledger(16, 8);
  const auto held = ledger.Lease(Key(1), 0, 8);
  const int64_t token = held[0].token;
  ledger.Release(Key(2), held);
  ledger.Release(Key(1, 2), held);
  ledger.Release(Key(1), {{0, 8, token + 1}, {-4, 4, token}, {4, 100, token}, {6, 3, token}});
  EXPECT_EQ(ledger.leased(), 8);
  ledger.Release(Key(1), {{0, 16, token}});
  EXPECT_EQ(ledger.available(), 16) << "what it does hold of the range is given back";
  ledger.Lease(Key(2), 0, 8);
  ledger.Release(Key(1), held);
  EXPECT_EQ(ledger.leased(), 8) << "the old token is worth nothing";
}

TEST(ShardLedgerTest, CustodySurvivesTheWorkerButNotTheRegion) {
  ShardLedger ledger(16, 8);
  const auto held = ledger.Lease(Key(1), 0, 16);
  ledger.ReleaseFenced(Key(1), {{0, 4, held[0].token}, {8, 16, held[1].token + 7}});
  EXPECT_EQ(ledger.available(), 12) << "custody under a wrong token is none";
  ledger.Release(Key(1), held);
  ledger.ReleaseFenced(Key(1), {});
  EXPECT_EQ(ledger.leased(), 4) << "the worker cannot give back what its region owes to the root";
  std::string detail;
  ShardLedger with_region = ledger;
  EXPECT_TRUE(ledger.Admit(0, {{0, 4, held[0].token}}, &detail)) << detail;
  with_region.ReleaseRegion(0);
  EXPECT_EQ(with_region.available(), 16);
  EXPECT_FALSE(with_region.Admit(0, {{0, 4, held[0].token}}, &detail));
}

TEST(ShardLedgerTest, AdmitsAllRangesOrNone) {
  ShardLedger ledger(32, 8);
  const auto mine = ledger.Lease(Key(1), 0, 16);
  const auto others = ledger.Lease(Key(2), 1, 8);
  std::string detail;
  EXPECT_FALSE(ledger.Admit(0, {mine[0], others[0]}, &detail)) << "another region's";
  EXPECT_FALSE(ledger.Admit(1, {mine[0]}, &detail));
  EXPECT_FALSE(ledger.Admit(0, {mine[0], {24, 32, 9}}, &detail));
  EXPECT_THAT(detail, HasSubstr("samples [24, 32) under token 9 are available"));
  EXPECT_FALSE(ledger.Admit(0, {{0, 8, mine[0].token + 1}}, &detail));
  EXPECT_FALSE(ledger.Admit(0, {mine[0], mine[0]}, &detail));
  EXPECT_THAT(detail, HasSubstr("named twice"));
  EXPECT_FALSE(ledger.Admit(0, {{-1, 4, 1}}, &detail));
  EXPECT_FALSE(ledger.Admit(0, {{30, 33, 1}}, &detail));
  EXPECT_FALSE(ledger.Admit(0, {{4, 4, 1}}, &detail));
  EXPECT_EQ(ledger.leased(), 24) << "nothing was admitted by halves";
  EXPECT_TRUE(ledger.Admit(0, mine, &detail)) << detail;
  EXPECT_FALSE(ledger.Admit(0, mine, &detail));
  EXPECT_THAT(detail, HasSubstr("admitted"));
  ledger.Commit(mine);
  EXPECT_FALSE(ledger.Admit(0, mine, &detail));
  EXPECT_THAT(detail, HasSubstr("committed"));
}

TEST(ShardLedgerTest, WhatTheRootRefusedGoesToOthersUnlessItWasNotTheRegions) {
  ShardLedger ledger(16, 8);
  const auto mine = ledger.Lease(Key(1), 0, 8);
  const auto others = ledger.Lease(Key(2), 1, 8);
  ledger.ReleaseFenced(Key(1), mine);  // In the region's custody.
  ledger.ReleaseRefused(0, {others[0], {0, 8, mine[0].token + 9}, {-1, 99, 1}});
  EXPECT_EQ(ledger.available(), 0);
  ledger.ReleaseRefused(0, mine);
  EXPECT_EQ(ledger.available(), 8);
  std::string detail;
  ASSERT_TRUE(ledger.Admit(1, others, &detail));
  ledger.ReleaseRefused(1, others);
  EXPECT_EQ(ledger.available(), 8) << "what is admitted will be committed";
}

TEST(ShardLedgerTest, TheAuditCountsRangesFromTheCommitsAlone) {
  ShardLedger ledger(20, 8);
  std::string detail;
  const auto held = ledger.Lease(Key(1), 0, 12);  // [0, 8) and [8, 12)
  ASSERT_TRUE(ledger.Admit(0, held, &detail));
  EXPECT_EQ(ledger.MakeAudit().committed_once, 0) << "admitted is not committed";
  ledger.Commit(held);
  ShardLedger::Audit audit = ledger.MakeAudit();
  EXPECT_EQ(audit.total, 3);
  EXPECT_EQ(audit.committed_once, 1);
  EXPECT_EQ(audit.not_committed, 2) << "half a range is not committed";
  EXPECT_EQ(audit.committed_more_than_once, 0);
  const auto rest = ledger.Lease(Key(1), 0, 100);
  ASSERT_TRUE(ledger.Admit(0, rest, &detail));
  ledger.Commit(rest);
  audit = ledger.MakeAudit();
  EXPECT_EQ(audit.committed_once, 3);
  EXPECT_EQ(audit.not_committed, 0);
  EXPECT_TRUE(ledger.done());
}

using ShardLedgerDeathTest = testing::Test;

// The audit's count of double commits is for a ledger whose states are wrong; through this interface none can be made.
TEST(ShardLedgerDeathTest, CommittingTwiceOrWithoutAdmissionIsABugAndStopsTheProcess) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  ShardLedger ledger(8, 8);
  std::string detail;
  const auto held = ledger.Lease(Key(1), 0, 8);
  EXPECT_DEATH(ledger.Commit(held), "samples \\[0, 8\\)");
  ASSERT_TRUE(ledger.Admit(0, held, &detail));
  ledger.Commit(held);
  EXPECT_DEATH(ledger.Commit(held), "samples \\[0, 8\\)");
}

// One entry per sample, and nothing clever.
class RandomRun {
 public:
  explicit RandomRun(uint64_t seed)
      : random_(seed),
        total_(1 + static_cast<int64_t>(random_.Below(120))),
        range_(1 + static_cast<int64_t>(random_.Below(12))),
        ledger_(total_, range_),
        samples_(total_),
        commits_(total_) {}

  void Go() {
    for (int event = 0; event < 150 && !testing::Test::HasFailure(); ++event) {
      OneEvent();
      CheckCounts();
    }
    // Then the regions all die but one, which does the rest: everything must come to its end.
    for (int region = 1; region < kRegions; ++region) ReleaseRegion(region);
    while (!admitted_.empty()) CommitOne();
    ReleaseRegion(0);
    while (!testing::Test::HasFailure()) {
      const auto granted = Lease(Key(1), 0, 1 + static_cast<int64_t>(random_.Below(20)));
      if (granted.empty()) break;
      std::string detail;
      EXPECT_TRUE(Admit(0, granted, &detail)) << detail;
      CommitOne();
    }
    CheckCounts();
    EXPECT_TRUE(ledger_.done());
    EXPECT_EQ(ledger_.MakeAudit().committed_once, ledger_.MakeAudit().total);
  }

 private:
  enum State { kAvailable, kLeased, kAdmitted, kCommitted };
  struct Sample {
    State state = kAvailable;
    MemberKey holder;
    int region = -1;
    int64_t token = 0;
    bool custody = false;
  };
  static constexpr int kRegions = 3;
  static int RegionOf(MemberKey key) { return static_cast<int>(key.member.value() % kRegions); }

  MemberKey SomeMember() {
    return Key(1 + static_cast<int64_t>(random_.Below(6)), 1 + static_cast<int64_t>(random_.Below(2)));
  }

  // Mostly pieces of leases that were granted at some time, sometimes bent.
  std::vector<LeasedRange> SomeRanges(int region) {
    std::vector<LeasedRange> ranges;
    const int64_t count = static_cast<int64_t>(random_.Below(4));
    for (int64_t i = 0; i < count && !granted_.empty(); ++i) {
      const auto& [of_region, granted] = granted_[random_.Below(granted_.size())];
      if (of_region != region && random_.Below(8) > 0) continue;
      LeasedRange range = granted;
      if (random_.Below(3) == 0) range.begin += static_cast<int64_t>(random_.Below(range.size()));
      if (random_.Below(3) == 0) range.end -= static_cast<int64_t>(random_.Below(range.size()));
      if (random_.Below(20) == 0) range.token += 1;
      if (random_.Below(30) == 0) range.end = total_ + 3;
      if (random_.Below(30) == 0) range.begin -= 5;
      ranges.push_back(range);
    }
    return ranges;
  }

  std::vector<LeasedRange> Lease(MemberKey holder, int region, int64_t want) {
    std::vector<LeasedRange> granted = ledger_.Lease(holder, region, want);
    int64_t sum = 0, next = 0;
    for (const LeasedRange& range : granted) {
      EXPECT_LT(range.begin, range.end);
      EXPECT_EQ(range.begin / range_, (range.end - 1) / range_) << "a lease crosses a cut";
      EXPECT_GT(range.token, last_token_) << "a token is used again";
      last_token_ = std::max(last_token_, range.token);
      for (; next < range.begin; ++next) EXPECT_NE(samples_[next].state, kAvailable) << "not the lowest first";
      for (int64_t i = range.begin; i < range.end; ++i) {
        EXPECT_EQ(samples_[i].state, kAvailable) << "sample " << i << " is leased twice";
        samples_[i] = {kLeased, holder, region, range.token, false};
      }
      next = range.end;
      sum += range.size();
      granted_.emplace_back(region, range);
    }
    EXPECT_LE(sum, want);
    EXPECT_TRUE(sum == want || Count(kAvailable) == 0) << "less was granted than wanted although there is more";
    return granted;
  }

  bool Admit(int region, const std::vector<LeasedRange>& ranges, std::string* detail) {
    bool good = true;
    std::vector<int> named(total_);
    for (const LeasedRange& range : ranges) {
      if (range.begin < 0 || range.end > total_ || range.begin >= range.end) {
        good = false;
        continue;
      }
      for (int64_t i = range.begin; i < range.end; ++i) {
        good = good && ++named[i] == 1 && samples_[i].state == kLeased && samples_[i].region == region &&
               samples_[i].token == range.token;
      }
    }
    const bool admitted = ledger_.Admit(region, ranges, detail);
    EXPECT_EQ(admitted, good) << *detail;
    if (!admitted) {
      EXPECT_FALSE(detail->empty());
      return false;
    }
    for (int64_t i = 0; i < total_; ++i) {
      if (named[i] > 0) samples_[i].state = kAdmitted;
    }
    admitted_.push_back(ranges);
    return true;
  }

  void CommitOne() {
    const size_t which = random_.Below(admitted_.size());
    ledger_.Commit(admitted_[which]);
    for (const LeasedRange& range : admitted_[which]) {
      for (int64_t i = range.begin; i < range.end; ++i) {
        samples_[i].state = kCommitted;
        ++commits_[i];
      }
    }
    admitted_.erase(admitted_.begin() + static_cast<std::ptrdiff_t>(which));
  }

  void ReleaseRegion(int region) {
    ledger_.ReleaseRegion(region);
    for (Sample& sample : samples_) {
      if (sample.state == kLeased && sample.region == region) sample = Sample();
    }
  }

  // Calls `use` for every leased sample of `ranges` that has the token.
  template <typename Use>
  void ForHeld(const std::vector<LeasedRange>& ranges, Use use) {
    for (const LeasedRange& range : ranges) {
      if (range.begin < 0 || range.end > total_ || range.begin >= range.end) continue;
      for (int64_t i = range.begin; i < range.end; ++i) {
        if (samples_[i].state == kLeased && samples_[i].token == range.token) use(&samples_[i]);
      }
    }
  }

  void OneEvent() {
    const MemberKey member = SomeMember();
    const int region = RegionOf(member);
    switch (random_.Below(12)) {
      case 0:
      case 1:
      case 2:
      case 3:
        Lease(member, region, static_cast<int64_t>(random_.Below(20)));
        break;
      case 4: {
        const auto ranges = SomeRanges(region);
        ledger_.Release(member, ranges);
        ForHeld(ranges, [&](Sample* sample) {
          if (sample->holder == member && !sample->custody) *sample = Sample();
        });
        break;
      }
      case 5: {
        const auto custody = SomeRanges(region);
        ledger_.ReleaseFenced(member, custody);
        ForHeld(custody, [&](Sample* sample) { sample->custody = sample->custody || sample->holder == member; });
        for (Sample& sample : samples_) {
          if (sample.state == kLeased && sample.holder == member && !sample.custody) sample = Sample();
        }
        break;
      }
      case 6:
        if (random_.Below(4) == 0) ReleaseRegion(region);
        break;
      case 7: {
        const auto ranges = SomeRanges(region);
        ledger_.ReleaseRefused(region, ranges);
        ForHeld(ranges, [&](Sample* sample) {
          if (sample->region == region) *sample = Sample();
        });
        break;
      }
      case 8:
        if (!admitted_.empty()) CommitOne();
        break;
      default: {
        std::string detail;
        Admit(region, SomeRanges(region), &detail);
      }
    }
  }

  int64_t Count(State state) const {
    return std::count_if(samples_.begin(), samples_.end(), [&](const Sample& s) { return s.state == state; });
  }

  void CheckCounts() {
    EXPECT_EQ(ledger_.available(), Count(kAvailable));
    EXPECT_EQ(ledger_.leased(), Count(kLeased));
    EXPECT_EQ(ledger_.committed(), Count(kCommitted));
    for (int region = 0; region < kRegions; ++region) {
      EXPECT_EQ(ledger_.LeasedIn(region), std::count_if(samples_.begin(), samples_.end(), [&](const Sample& s) {
                  return s.state == kLeased && s.region == region;
                }));
    }
    ShardLedger::Audit expected;
    for (int64_t begin = 0; begin < total_; begin += range_) {
      const auto first = commits_.begin() + begin, last = commits_.begin() + std::min(total_, begin + range_);
      ++expected.total;
      if (*std::max_element(first, last) > 1) {
        ++expected.committed_more_than_once;
      } else if (*std::min_element(first, last) == 0) {
        ++expected.not_committed;
      } else {
        ++expected.committed_once;
      }
    }
    const ShardLedger::Audit audit = ledger_.MakeAudit();
    EXPECT_EQ(audit.total, expected.total);
    EXPECT_EQ(audit.committed_once, expected.committed_once);
    EXPECT_EQ(audit.not_committed, expected.not_committed);
    EXPECT_EQ(audit.committed_more_than_once, 0);
    EXPECT_EQ(expected.committed_more_than_once, 0) << "a sample was committed twice";
  }

  Random random_;
  const int64_t total_, range_;
  ShardLedger ledger_;
  std::vector<Sample> samples_;
  std::vector<int> commits_;
  std::vector<std::pair<int, LeasedRange>> granted_;  // With the region; all that there ever were.
  std::vector<std::vector<LeasedRange>> admitted_;
  int64_t last_token_ = 0;
};

TEST(ShardLedgerRandomTest, AgreesWithOneStatePerSampleInAnyOrderOfEvents) {
  for (uint64_t run = 0; run < 300; ++run) {
    const uint64_t seed = DeriveSeed(kBaseSeed, "ledger", run);
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    RandomRun(seed).Go();
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace wukong
