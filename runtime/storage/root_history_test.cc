#include "runtime/storage/root_history.h"

#include <gmock/gmock.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "runtime/base/random.h"
#include "runtime/sync/types.h"

namespace wukong {
namespace {

using google::protobuf::util::MessageDifferencer;
using testing::HasSubstr;

LogRecord Term(int64_t term, int64_t unix_ns = 0) {
  LogRecord record;
  record.mutable_term_begun()->set_term(term);
  record.mutable_term_begun()->set_unix_ns(unix_ns);
  return record;
}

LogRecord StartedAt(int64_t unix_ns) {
  LogRecord record;
  record.mutable_run_started()->set_unix_ns(unix_ns);
  return record;
}

LogRecord StoppedAt(int64_t unix_ns) {
  LogRecord record;
  record.mutable_run_stopped()->set_unix_ns(unix_ns);
  return record;
}

LogRecord Joined(int64_t member, int64_t incarnation, const std::string& region = "beijing") {
  LogRecord record;
  MemberJoined* joined = record.mutable_member_joined();
  joined->set_member(member);
  joined->set_incarnation(incarnation);
  joined->set_role(ROLE_AGGREGATOR);
  joined->set_region(region);
  joined->set_name("aggregator");
  return record;
}

LogRecord Fenced(int64_t member, int64_t incarnation) {
  LogRecord record;
  record.mutable_member_fenced()->set_member(member);
  record.mutable_member_fenced()->set_incarnation(incarnation);
  return record;
}

LogRecord Accepted(int64_t member, int64_t incarnation, int64_t sequence,
                   const std::vector<std::pair<int64_t, int64_t>>& ranges) {
  LogRecord record;
  ContributionHeader* header = record.mutable_accepted()->mutable_header();
  header->set_member(member);
  header->set_incarnation(incarnation);
  header->set_sequence(sequence);
  int64_t samples = 0;
  for (const auto& [begin, end] : ranges) {
    SampleRange* range = header->add_ranges();
    range->set_begin(begin);
    range->set_end(end);
    samples += end - begin;
  }
  header->set_tokens(10 * samples);
  record.mutable_accepted()->add_fragments("payload");
  record.mutable_accepted()->set_norm(1.5);
  return record;
}

LogRecord MergedOf(const std::vector<ContributionHeader>& headers, bool momentum_step = false) {
  LogRecord record;
  for (const ContributionHeader& header : headers) {
    MergedPart* part = record.mutable_merged()->add_parts();
    part->set_member(header.member());
    part->set_incarnation(header.incarnation());
    part->set_sequence(header.sequence());
    part->set_weight(0.5);
    part->set_staleness(2);
  }
  record.mutable_merged()->set_momentum_step(momentum_step);
  return record;
}

LogRecord PublishedAs(int64_t version) {
  LogRecord record;
  record.mutable_published()->set_version(version);
  return record;
}

struct History {
  RootHistory history;
  int64_t index = 0;
  absl::Status Add(const LogRecord& record) {
    const absl::Status status = history.Add(index + 1, record);
    if (status.ok()) ++index;
    return status;
  }
};

TEST(RootHistoryTest, AddsUpWhatWasCommitted) {
  History h;
  ASSERT_TRUE(h.Add(Term(1)).ok());
  ASSERT_TRUE(h.Add(Joined(1, 1)).ok());
  const LogRecord first = Accepted(1, 1, 1, {{0, 4}, {8, 12}}), second = Accepted(1, 1, 2, {{4, 8}});
  ASSERT_TRUE(h.Add(first).ok());
  ASSERT_TRUE(h.Add(second).ok());
  EXPECT_EQ(h.history.unmerged().size(), 2);
  ASSERT_TRUE(h.Add(MergedOf({first.accepted().header()})).ok());
  ASSERT_TRUE(h.Add(PublishedAs(2)).ok());
  const RootState state = h.history.state();
  ASSERT_EQ(state.committed_size(), 1) << "neighbours are joined";
  EXPECT_EQ(state.committed(0).begin(), 0);
  EXPECT_EQ(state.committed(0).end(), 12);
  EXPECT_EQ(state.version(), 2);
  EXPECT_EQ(state.tokens_accepted(), 120);
  EXPECT_EQ(state.tokens_merged(), 80);
  EXPECT_EQ(state.tokens_by_region().at("beijing"), 120);
  ASSERT_EQ(state.unmerged_size(), 1);
  EXPECT_EQ(state.unmerged(0).fragments(0), "payload");
  EXPECT_EQ(h.history.Summary().unmerged(0).fragments_size(), 0);
  ASSERT_EQ(state.members_size(), 1);
  EXPECT_EQ(state.members(0).offered(), 2);
  EXPECT_EQ(state.members(0).included(), 1);
}

TEST(RootHistoryTest, KnowsWhatTheNewestVersionHoldsAndWhatWasMergedSince) {
  History h;
  for (const LogRecord& record : {Term(1), Joined(1, 1), Accepted(1, 1, 1, {{0, 8}}), Accepted(1, 1, 2, {{8, 12}})}) {
    ASSERT_TRUE(h.Add(record).ok());
  }
  EXPECT_FALSE(h.history.state().told());
  ASSERT_TRUE(h.Add(MergedOf({h.history.unmerged()[0].header()})).ok());
  ASSERT_TRUE(h.Add(PublishedAs(2)).ok());
  EXPECT_TRUE(h.history.state().told());
  EXPECT_EQ(h.history.state().members(0).told(), 1);
  ASSERT_TRUE(h.Add(MergedOf({h.history.unmerged()[0].header()})).ok());
  EXPECT_FALSE(h.history.state().told());
  EXPECT_EQ(h.history.state().members(0).told(), 1);
  EXPECT_EQ(h.history.state().members(0).included(), 2);
  RootHistory restored(h.history.state());
  ASSERT_TRUE(restored.Add(h.history.state().index() + 1, PublishedAs(3)).ok());
  EXPECT_EQ(restored.state().members(0).told(), 2) << "it was merged before the snapshot";
  ASSERT_TRUE(h.Add(Joined(1, 2)).ok());
  EXPECT_EQ(h.history.state().members(0).told(), 0) << "a new life has sent nothing";
}

TEST(RootHistoryTest, CountsHowLongTheRunLayStopped) {
  History h;
  for (const LogRecord& record : {Term(1, 10), StoppedAt(20), Term(2, 50), StartedAt(60), StoppedAt(100)}) {
    ASSERT_TRUE(h.Add(record).ok());
  }
  EXPECT_EQ(h.history.state().paused_ns(), 0) << "before training there is no time of the run, and it still lies";
  RootHistory restored(h.history.state());
  ASSERT_TRUE(restored.Add(6, Term(3, 700)).ok());
  EXPECT_EQ(restored.state().paused_ns(), 600);
  ASSERT_TRUE(restored.Add(7, Term(4, 800)).ok());
  EXPECT_EQ(restored.state().paused_ns(), 600) << "who died is time of the run until it is back";
  ASSERT_TRUE(restored.Add(8, StoppedAt(900)).ok());
  ASSERT_TRUE(restored.Add(9, Term(5, 850)).ok());
  EXPECT_EQ(restored.state().paused_ns(), 600) << "a clock that was put back makes no pause";
}

TEST(RootHistoryTest, KnowsWhatMembersHadUsedWhenTheRunWasStopped) {
  const auto stopped = [](int64_t member, int64_t tokens) {
    LogRecord record = StoppedAt(100);
    MemberUsed* used = record.mutable_run_stopped()->add_used();
    used->set_member(member);
    used->set_incarnation(1);
    used->mutable_usage()->set_tokens_computed(tokens);
    return record;
  };
  History h;
  for (const LogRecord& record : {Term(1, 10), Joined(1, 1), StartedAt(60)}) ASSERT_TRUE(h.Add(record).ok());
  EXPECT_THAT(std::string(h.Add(stopped(2, 40)).message()), HasSubstr("I7"));
  for (const LogRecord& record : {stopped(1, 40), Term(2, 200), Joined(1, 2)}) ASSERT_TRUE(h.Add(record).ok());
  EXPECT_EQ(h.history.state().members(0).used().usage().tokens_computed(), 40);
  EXPECT_EQ(h.history.state().members(0).used().incarnation(), 1);
  EXPECT_FALSE(h.history.state().usage_lost());
  ASSERT_TRUE(h.Add(Term(3, 300)).ok());
  EXPECT_TRUE(h.history.state().usage_lost()) << "that of term 2";
}

TEST(RootHistoryTest, NamesWhatContradictsTheRecordsBefore) {
  History h;
  ASSERT_TRUE(h.Add(Term(1)).ok());
  ASSERT_TRUE(h.Add(Joined(1, 1)).ok());
  ASSERT_TRUE(h.Add(Joined(2, 1, "shenzhen")).ok());
  const LogRecord first = Accepted(1, 1, 1, {{0, 8}});
  ASSERT_TRUE(h.Add(first).ok());
  const RootState before = h.history.state();
  const struct {
    LogRecord record;
    const char* invariant;
  } kCases[] = {
      {Term(3), "I6"},
      {Term(1), "I6"},
      {Joined(1, 1), "I6"},
      {Joined(1, 3), "I6"},
      {Accepted(2, 1, 1, {{7, 9}}), "I1"},
      {Accepted(2, 1, 1, {{16, 20}, {19, 24}}), "I1"},
      {Accepted(2, 1, 1, {{20, 20}}), "I1"},
      {Accepted(1, 1, 1, {{8, 16}}), "I7"},
      {Accepted(1, 1, 3, {{8, 16}}), "I7"},
      {Accepted(1, 2, 2, {{8, 16}}), "I7"},
      {Accepted(9, 1, 1, {{8, 16}}), "I7"},
      {MergedOf({Accepted(1, 1, 2, {}).accepted().header()}), "I10"},
      {MergedOf({first.accepted().header(), first.accepted().header()}), "I10"},
      {PublishedAs(3), "I4"},
      {PublishedAs(1), "I4"},
      {Fenced(9, 1), "I7"},
  };
  for (const auto& [record, invariant] : kCases) {
    const absl::Status status = h.Add(record);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << LogRecordToJson(5, record);
    EXPECT_THAT(std::string(status.message()), HasSubstr(invariant)) << LogRecordToJson(5, record);
    EXPECT_THAT(std::string(status.message()), HasSubstr("record 5"));
  }
  EXPECT_EQ(h.history.Add(7, PublishedAs(2)).code(), absl::StatusCode::kDataLoss) << "a record is missing";
  EXPECT_EQ(h.history.Add(5, LogRecord()).code(), absl::StatusCode::kDataLoss) << "of no kind";
  EXPECT_TRUE(MessageDifferencer::Equals(h.history.state(), before));
}

TEST(RootHistoryTest, AFencedLifeHasNoSayAndANewOneBeginsAnew) {
  History h;
  ASSERT_TRUE(h.Add(Term(1)).ok());
  ASSERT_TRUE(h.Add(Joined(1, 1)).ok());
  ASSERT_TRUE(h.Add(Accepted(1, 1, 1, {{0, 8}})).ok());
  ASSERT_TRUE(h.Add(Fenced(1, 1)).ok());
  EXPECT_THAT(std::string(h.Add(Accepted(1, 1, 2, {{8, 16}})).message()), HasSubstr("after its fence"));
  ASSERT_TRUE(h.Add(Joined(1, 2)).ok());
  EXPECT_EQ(h.history.state().members(0).offered(), 0);
  ASSERT_TRUE(h.Add(Accepted(1, 2, 1, {{8, 16}})).ok());
  LogRecord refused;
  *refused.mutable_refused()->mutable_header() = Accepted(1, 1, 2, {{16, 24}}).accepted().header();
  refused.mutable_refused()->set_verdict(VERDICT_FENCED);
  ASSERT_TRUE(h.Add(refused).ok()) << "the old life is told that it is fenced";
  EXPECT_EQ(h.history.state().members(0).offered(), 1) << "which is nothing to the new one";
  EXPECT_EQ(h.history.state().refused().at("fenced"), 1);
}

// A root that does at random what a root may do, beside sets and counters.
TEST(RootHistoryTest, AgreesWithASimpleModelAndGoesOnFromAnySnapshot) {
  constexpr int kSamples = 400;
  for (uint64_t seed = 1; seed <= 200; ++seed) {
    SCOPED_TRACE(testing::Message() << "seed " << seed);
    Random random(seed);
    const auto pick = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); };
    History whole;
    RootHistory resumed;  // Replaced by a copy from a snapshot now and then.
    std::set<int64_t> committed;
    struct Sender {
      int64_t incarnation = 0, sequence = 0;
      bool fenced = true;
    };
    std::vector<Sender> senders(3);
    std::vector<ContributionHeader> waiting;
    int64_t term = 0, version = 1, tokens = 0;
    const auto add = [&](const LogRecord& record) {
      const absl::Status status = whole.Add(record);
      ASSERT_TRUE(status.ok()) << status;
      ASSERT_TRUE(resumed.Add(whole.index, record).ok());
    };
    for (int step = 0; step < 150; ++step) {
      const int64_t who = pick(3);
      Sender& sender = senders[who];
      switch (pick(8)) {
        case 0:
          if (pick(4) == 0) add(Term(++term));
          break;
        case 1:
          if (sender.fenced || pick(5) == 0) {
            sender = {sender.incarnation + 1, 0, false};
            add(Joined(who + 1, sender.incarnation));
          }
          break;
        case 2:
          if (sender.incarnation > 0 && pick(5) == 0) {
            sender.fenced = true;
            add(Fenced(who + 1, sender.incarnation));
          }
          break;
        case 3:
          if (!waiting.empty()) {
            const auto count = static_cast<size_t>(1 + pick(static_cast<int64_t>(waiting.size())));
            add(MergedOf({waiting.begin(), waiting.begin() + static_cast<std::ptrdiff_t>(count)}, pick(2) == 0));
            waiting.erase(waiting.begin(), waiting.begin() + static_cast<std::ptrdiff_t>(count));
          }
          break;
        case 4:
          add(PublishedAs(++version));
          break;
        case 5:
          resumed = RootHistory(whole.history.state());
          break;
        default: {
          if (sender.fenced) break;
          std::vector<std::pair<int64_t, int64_t>> ranges;
          for (int r = 0; r < 2; ++r) {
            const int64_t begin = pick(kSamples), end = begin + 1 + pick(8);
            bool free = true;
            for (int64_t s = begin; s < end; ++s) free = free && committed.count(s) == 0;
            if (!free) continue;
            for (int64_t s = begin; s < end; ++s) committed.insert(s);
            ranges.emplace_back(begin, end);
          }
          const LogRecord record = Accepted(who + 1, sender.incarnation, ++sender.sequence, ranges);
          tokens += record.accepted().header().tokens();
          waiting.push_back(record.accepted().header());
          add(record);
        }
      }
      if (testing::Test::HasFatalFailure()) return;
    }
    const RootState state = whole.history.state();
    EXPECT_TRUE(MessageDifferencer::Equals(state, resumed.state()));
    std::set<int64_t> counted;
    for (const SampleRange& range : state.committed()) {
      for (int64_t s = range.begin(); s < range.end(); ++s) EXPECT_TRUE(counted.insert(s).second);
    }
    EXPECT_EQ(counted, committed);
    EXPECT_EQ(whole.history.samples_committed(), static_cast<int64_t>(committed.size()));
    EXPECT_EQ(state.tokens_accepted(), tokens);
    EXPECT_EQ(state.unmerged_size(), static_cast<int>(waiting.size()));
    EXPECT_EQ(state.version(), version);
    EXPECT_EQ(state.term(), term);
  }
}

}  // namespace
}  // namespace wukong
