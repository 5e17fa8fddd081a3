// Whoever follows a node holds the same bytes as its public copy at each version, however late or lossy the stream is.
#include "runtime/sync/public_copy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

#include "absl/strings/str_cat.h"
#include "runtime/base/random.h"

namespace wukong {
namespace {

constexpr uint64_t kCopyBaseSeed = 424242;
constexpr int64_t kCopySize = 600;
constexpr int64_t kModelBytes = kCopySize * 4;
const MemberKey kChild{MemberId(7), Incarnation(1)};

std::vector<FragmentSpan> Fragments() { return CutFragments(kCopySize, 800); }  // 200 values each.

void MoveRandomly(Random* random, std::vector<float>* theta) {
  for (float& value : *theta) value += static_cast<float>(0.1 * random->Normal());
}

// Leaves each fragment alone in one of three cases.
void MoveSomeFragments(Random* random, std::vector<float>* theta) {
  for (const FragmentSpan& span : Fragments()) {
    if (random->Below(3) == 0) continue;
    for (int64_t i = span.begin; i < span.end; ++i) (*theta)[i] += static_cast<float>(0.1 * random->Normal());
  }
}

struct Follower {
  FollowedParameters followed{Fragments()};
  PublicParameters::Cursor cursor;
  void Connect(const PublicParameters& parent) { cursor = parent.CursorAt(followed.Resume()); }
};

std::vector<float> ValuesOf(const FollowedParameters& followed) {
  return followed.With([](absl::Span<const float> values, const FollowedParameters::Snapshot&) {
    return std::vector<float>(values.begin(), values.end());
  });
}

// Feeds everything there is; the first error ends it.
absl::Status CatchUp(PublicParameters* parent, Follower* follower) {
  while (const auto message = parent->Next(&follower->cursor, kChild, absl::ZeroDuration())) {
    const auto taken = follower->followed.Take(*message);
    if (!taken.ok()) return taken.status();
  }
  return absl::OkStatus();
}

// Everything that a follower would get now.
std::vector<FollowMessage> AllMessages(PublicParameters* parent, PublicParameters::Position have) {
  PublicParameters::Cursor cursor = parent->CursorAt(std::move(have));
  std::vector<FollowMessage> messages;
  while (const auto message = parent->Next(&cursor, kChild, absl::ZeroDuration())) messages.push_back(*message);
  return messages;
}
std::vector<FollowMessage> AllMessages(PublicParameters* parent, Version have) {
  return AllMessages(parent, PublicParameters::Position{{}, have});
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

class PublicCopyTest : public testing::TestWithParam<CodecKind> {
 protected:
  PublicParameters MakeParent(const std::vector<float>& theta) {
    return PublicParameters(theta, Fragments(), GetParam(), {});
  }
};

TEST_P(PublicCopyTest, EveryFollowerHoldsTheSameBytesAtEveryVersionItCompletes) {
  int64_t deltas = 0, wholes = 0;
  for (uint64_t run = 0; run < 20; ++run) {
    const uint64_t seed = DeriveSeed(kCopyBaseSeed, CodecKind_Name(GetParam()), run);
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    Random random(seed);
    std::vector<float> theta(kCopySize);
    MoveRandomly(&random, &theta);
    PublicParameters parent(theta, Fragments(), GetParam(), {});
    std::map<Version, std::vector<float>> history = {{Version(1), parent.Copy(nullptr)}};
    std::vector<std::unique_ptr<Follower>> followers;
    const auto advance = [&](Follower* follower) {
      const auto message = parent.Next(&follower->cursor, kChild, absl::ZeroDuration());
      if (!message.has_value()) return false;
      if (message->has_fragment() && !message->fragment().unchanged()) {
        ++(message->fragment().absolute() ? wholes : deltas);
      }
      const auto completed = follower->followed.Take(*message);
      EXPECT_TRUE(completed.ok()) << completed.status();
      if (completed.ok() && *completed) {
        const Version version = follower->followed.snapshot().version;
        EXPECT_TRUE(SameBits(ValuesOf(follower->followed), history.at(version))) << "version " << version;
      }
      return completed.ok();
    };
    for (int event = 0; event < 400 && !HasFailure(); ++event) {
      const uint64_t what = random.Below(40);
      if (what < 3) {
        MoveSomeFragments(&random, &theta);
        ASSERT_TRUE(parent.Publish(theta, {}).ok());
        history[parent.version()] = parent.Copy(nullptr);
      } else if (what == 3 && followers.size() < 4) {
        followers.push_back(std::make_unique<Follower>());
        followers.back()->Connect(parent);
      } else if (what == 4 && !followers.empty()) {  // The connection breaks in the middle of a version.
        followers[random.Below(followers.size())]->Connect(parent);
      } else if (!followers.empty()) {
        // The later followers are slower, so that some fall behind the retained differences.
        const size_t who = random.Below(followers.size());
        if (random.Below(who * who * 4 + 1) == 0) advance(followers[who].get());
      }
    }
    for (auto& follower : followers) {
      while (!HasFailure() && advance(follower.get())) {
      }
      EXPECT_TRUE(SameBits(ValuesOf(follower->followed), parent.Copy(nullptr)));
      EXPECT_EQ(follower->followed.snapshot().version, parent.version());
    }
    if (HasFailure()) return;
  }
  EXPECT_GT(wholes, 100);
  if (GetParam() == CODEC_KIND_FP32) {
    EXPECT_EQ(deltas, 0);
  } else {
    EXPECT_GT(deltas, 100) << "no differences were followed: the test shows nothing";
  }
}

TEST_P(PublicCopyTest, AFragmentThatDidNotChangeIsNotSent) {
  std::vector<float> theta(kCopySize, 1.0f);
  PublicParameters parent(theta, Fragments(), GetParam(), {});
  Follower follower;
  follower.Connect(parent);
  ASSERT_TRUE(CatchUp(&parent, &follower).ok());
  for (int64_t version = 2; version <= 12; ++version) {
    theta[version % 2 == 0 ? 0 : 250] += 1;  // Of the first or the second of three.
    ASSERT_TRUE(parent.Publish(theta, {}).ok());
    // One that is one version behind, and one that missed some.
    if (version % 5 == 0) continue;
    size_t bytes = 0;
    while (const auto message = parent.Next(&follower.cursor, kChild, absl::ZeroDuration())) {
      bytes += message->fragment().payload().size();
      const auto taken = follower.followed.Take(*message);
      ASSERT_TRUE(taken.ok()) << taken.status();
    }
    const size_t fragments = version % 5 == 1 && version > 5 ? 2 : 1;
    EXPECT_EQ(bytes, fragments * EncodedBytes(GetParam(), absl::MakeConstSpan(Fragments()).subspan(0, 1)))
        << "version " << version;
    EXPECT_EQ(follower.followed.snapshot().version, Version(version));
    EXPECT_TRUE(SameBits(ValuesOf(follower.followed), parent.Copy(nullptr)));
  }
}

TEST(FollowedParametersTest, NothingUnchangedCanStandForWhatItDoesNotHave) {
  Follower follower;
  FollowMessage message;
  message.mutable_fragment()->set_index(0);
  message.mutable_fragment()->set_version(3);
  message.mutable_fragment()->set_unchanged(true);
  ASSERT_TRUE(follower.followed.Take(message).ok());
  FollowMessage complete;
  complete.mutable_complete()->set_version(3);
  EXPECT_EQ(follower.followed.Take(complete).status().code(), absl::StatusCode::kDataLoss);
}

TEST_P(PublicCopyTest, ThePublicCopyStaysWithinOneEncodingOfTheta) {
  Random random(kCopyBaseSeed);
  std::vector<float> theta(kCopySize);
  PublicParameters parent = MakeParent(theta);
  for (int i = 0; i < 50; ++i) {
    MoveRandomly(&random, &theta);
    ASSERT_TRUE(parent.Publish(theta, {}).ok());
    const std::vector<float> copy = parent.Copy(nullptr);
    for (int64_t k = 0; k < kCopySize; ++k) {
      ASSERT_LE(std::abs(copy[k] - theta[k]), MakeCodec(GetParam(), FragmentSpan())->ErrorBound(1.0) + 1e-6)
          << "what the codec leaves out must go with the next version, not add up";
    }
    if (GetParam() == CODEC_KIND_FP32) {
      EXPECT_TRUE(SameBits(copy, theta));
    }
  }
}

TEST_P(PublicCopyTest, ThetaThatStaysIsPublishedInFullInTheEnd) {
  Random random(kCopyBaseSeed);
  std::vector<float> theta(kCopySize);
  PublicParameters parent = MakeParent(theta);
  MoveRandomly(&random, &theta);
  double largest = 0;
  for (const float value : theta) largest = std::max(largest, std::abs(static_cast<double>(value)));
  for (int i = 0; i < 200; ++i) ASSERT_TRUE(parent.Publish(theta, {}).ok());
  const std::vector<float> copy = parent.Copy(nullptr);
  // bf16 rounds the last difference, and the sum is rounded; never more than that is left.
  for (int64_t k = 0; k < kCopySize; ++k) ASSERT_NEAR(copy[k], theta[k], 1e-5 * largest) << k;
}

TEST_P(PublicCopyTest, RetainsDifferencesOfAtMostOneModelAndThenSendsWholeFragments) {
  Random random(kCopyBaseSeed);
  std::vector<float> theta(kCopySize);
  PublicParameters parent = MakeParent(theta);
  for (int i = 0; i < 30; ++i) {
    MoveRandomly(&random, &theta);
    ASSERT_TRUE(parent.Publish(theta, {}).ok());
  }
  int64_t furthest = 0;
  for (int64_t behind = 1; behind <= 30; ++behind) {
    int64_t bytes = 0;
    bool any_whole = false;
    for (const FollowMessage& message : AllMessages(&parent, Version(31 - behind))) {
      bytes += static_cast<int64_t>(message.fragment().payload().size());
      any_whole = any_whole || message.fragment().absolute();
    }
    EXPECT_LE(bytes, kModelBytes) << behind << " versions behind";
    if (!any_whole) furthest = behind;
  }
  const int64_t retained = kModelBytes / static_cast<int64_t>(EncodedBytes(GetParam(), Fragments()));
  EXPECT_EQ(furthest, GetParam() == CODEC_KIND_FP32 ? 0 : std::min<int64_t>(30, retained));
}

TEST_P(PublicCopyTest, ThetaThatIsNotFiniteIsNotPublished) {
  std::vector<float> theta(kCopySize, 1.0f);
  PublicParameters parent = MakeParent(theta);
  uint64_t before = 0, after = 0;
  parent.Copy(&before);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    theta.assign(kCopySize, 2.0f);
    theta[kCopySize - 1] = bad;
    EXPECT_EQ(parent.Publish(theta, {}).code(), absl::StatusCode::kInvalidArgument);
  }
  parent.Copy(&after);
  EXPECT_EQ(before, after);
  EXPECT_EQ(parent.version(), Version(1));
}

TEST_P(PublicCopyTest, DamageIsDataLossAndTheChildRecoversByBeginningAnew) {
  Random random(kCopyBaseSeed);
  std::vector<float> theta(kCopySize);
  PublicParameters parent = MakeParent(theta);
  using Messages = std::vector<FollowMessage>;
  struct Damage {
    const char* name;
    std::function<void(Messages*)> spoil;
  };
  const Damage damages[] = {
      {"a flipped bit in a payload", [](Messages* m) { (*(*m)[1].mutable_fragment()->mutable_payload())[2] ^= 0x01; }},
      {"a truncated payload", [](Messages* m) { (*m)[1].mutable_fragment()->mutable_payload()->pop_back(); }},
      {"an empty payload", [](Messages* m) { (*m)[1].mutable_fragment()->clear_payload(); }},
      {"a fragment beyond the last", [](Messages* m) { (*m)[1].mutable_fragment()->set_index(3); }},
      {"a negative fragment", [](Messages* m) { (*m)[1].mutable_fragment()->set_index(-1); }},
      {"another fragment's index", [](Messages* m) { (*m)[1].mutable_fragment()->set_index(2); }},
      {"a missing fragment", [](Messages* m) { m->erase(m->begin() + 1); }},
      {"a wrong checksum",
       [](Messages* m) { m->back().mutable_complete()->set_checksum(m->back().complete().checksum() + 1); }},
      {"a version that the fragments do not have",
       [](Messages* m) { m->back().mutable_complete()->set_version(m->back().complete().version() + 1); }},
      {"a message of an unknown kind", [](Messages* m) { (*m)[1].Clear(); }},
      {"a difference to a version that the child does not have",
       [](Messages* m) {
         (*m)[1].mutable_fragment()->set_absolute(false);
         (*m)[1].mutable_fragment()->set_version((*m)[1].fragment().version() + 5);
       }},
      {"a difference in an unknown codec",
       [](Messages* m) {
         (*m)[1].mutable_fragment()->set_absolute(false);
         (*m)[1].mutable_fragment()->set_codec(static_cast<CodecKind>(99));
       }},
  };
  for (const bool joins : {true, false}) {
    for (const Damage& damage : damages) {
      SCOPED_TRACE(absl::StrCat(damage.name, joins ? ", while joining" : ", while following"));
      Follower follower;
      follower.Connect(parent);
      if (!joins) {
        ASSERT_TRUE(CatchUp(&parent, &follower).ok());
      }
      MoveRandomly(&random, &theta);
      ASSERT_TRUE(parent.Publish(theta, {}).ok());
      Messages messages = AllMessages(&parent, follower.followed.snapshot().version);
      ASSERT_EQ(messages.size(), 4u);
      damage.spoil(&messages);
      absl::Status status;
      for (const FollowMessage& message : messages) {
        if (status.ok()) status = follower.followed.Take(message).status();
      }
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
      EXPECT_EQ(follower.followed.snapshot().version, Version(0)) << "half a version must not pass for a whole one";
      follower.followed.Reset();
      follower.Connect(parent);
      ASSERT_TRUE(CatchUp(&parent, &follower).ok());
      EXPECT_TRUE(SameBits(ValuesOf(follower.followed), parent.Copy(nullptr)));
      EXPECT_EQ(follower.followed.snapshot().version, parent.version());
    }
  }
}

// A stream that breaks after every number of messages, of a child that joins (whole fragments) or that is `behind` by
// so many versions (differences, where they are retained), while the parent makes `meanwhile` versions.
TEST_P(PublicCopyTest, ABrokenConnectionGoesOnWhereItBroke) {
  Random random(kCopyBaseSeed);
  int64_t resumed = 0;
  constexpr int kBeyondReach = 100;     // More versions than differences are retained of.
  for (const int behind : {0, 1, 2}) {  // 0: it joins.
    for (const int meanwhile : {0, 1, kBeyondReach}) {
      for (size_t broken_after = 0;; ++broken_after) {
        SCOPED_TRACE(absl::StrCat("behind ", behind, ", broken after ", broken_after, ", then ", meanwhile));
        std::vector<float> theta(kCopySize);
        MoveRandomly(&random, &theta);
        PublicParameters parent = MakeParent(theta);
        const auto move = [&](int versions) {
          for (int i = 0; i < versions; ++i) {
            MoveRandomly(&random, &theta);
            ASSERT_TRUE(parent.Publish(theta, {}).ok());
          }
        };
        Follower follower;
        follower.Connect(parent);
        if (behind > 0) {
          ASSERT_TRUE(CatchUp(&parent, &follower).ok());
        }
        move(behind);
        const FollowedParameters::Snapshot whole = follower.followed.snapshot();
        const std::vector<float> before = ValuesOf(follower.followed);
        const std::vector<FollowMessage> unbroken = AllMessages(&parent, follower.followed.Resume());
        if (broken_after == unbroken.size()) break;
        std::map<int, int64_t> got;
        for (size_t i = 0; i < broken_after; ++i) {
          const auto message = parent.Next(&follower.cursor, kChild, absl::ZeroDuration());
          ASSERT_TRUE(message.has_value() && message->has_fragment());
          got[message->fragment().index()] = message->fragment().version();
          ASSERT_TRUE(follower.followed.Take(*message).ok());
        }
        EXPECT_TRUE(SameBits(ValuesOf(follower.followed), before)) << "values move by whole versions only";
        EXPECT_EQ(follower.followed.snapshot().version, whole.version);

        move(meanwhile);
        follower.Connect(parent);
        const std::vector<FollowMessage> rest = AllMessages(&parent, follower.followed.Resume());
        if (meanwhile == 0) {
          EXPECT_EQ(rest.size(), unbroken.size() - broken_after) << "what came is not sent again";
          resumed += static_cast<int64_t>(broken_after);
        }
        for (const FollowMessage& message : rest) {
          if (!message.has_fragment() || got.count(message.fragment().index()) == 0) continue;
          EXPECT_GT(message.fragment().version(), got[message.fragment().index()]);
          EXPECT_EQ(message.fragment().absolute(), GetParam() == CODEC_KIND_FP32 || meanwhile == kBeyondReach)
              << "what came is what the differences are to";
          got.erase(message.fragment().index());  // The next one is a difference to this one.
        }
        ASSERT_TRUE(CatchUp(&parent, &follower).ok());
        EXPECT_TRUE(SameBits(ValuesOf(follower.followed), parent.Copy(nullptr)));
        EXPECT_EQ(follower.followed.snapshot().version, parent.version());
        if (HasFailure()) return;
      }
    }
  }
  EXPECT_GE(resumed, 18) << "1 + 2 + 3 messages each time";
}

TEST_P(PublicCopyTest, WhatWasStagedFromAnotherLifeOfTheParentIsNoticed) {
  Random random(kCopyBaseSeed);
  std::vector<float> theta(kCopySize), other(kCopySize);
  MoveRandomly(&random, &theta);
  MoveRandomly(&random, &other);
  PublicParameters parent = MakeParent(theta), another = MakeParent(other);
  Follower follower;
  follower.Connect(parent);
  ASSERT_TRUE(follower.followed.Take(*parent.Next(&follower.cursor, kChild, absl::ZeroDuration())).ok());
  follower.Connect(another);
  EXPECT_EQ(CatchUp(&another, &follower).code(), absl::StatusCode::kDataLoss);
  follower.followed.Reset();
  follower.Connect(another);
  ASSERT_TRUE(CatchUp(&another, &follower).ok());
  EXPECT_TRUE(SameBits(ValuesOf(follower.followed), other));
}

INSTANTIATE_TEST_SUITE_P(Codecs, PublicCopyTest,
                         testing::Values(CODEC_KIND_FP32, CODEC_KIND_BF16, CODEC_KIND_INT8, CODEC_KIND_INT4,
                                         CODEC_KIND_INT2, CODEC_KIND_TOPK, CODEC_KIND_MIXED),
                         [](const auto& parameter) { return CodecKind_Name(parameter.param).substr(11); });

// A parent whose versions come faster than some of its children can take them.
class Broadcast {
 public:
  static constexpr int64_t kFragments = 12;
  // Two times through the fragments: differences that lead nowhere in the end, and a whole copy.
  static constexpr int64_t kMessagesMax = 2 * kFragments + 1;
  static constexpr int64_t kBytesMax = 2 * kModelBytes + kModelBytes / kFragments;
  struct Child {
    Child(MemberId member, int takes_one_in) : id{member, Incarnation(1)}, one_in(takes_one_in) {}
    const MemberKey id;
    const int one_in;  // Versions per message that it takes; 0 for one that takes everything at once.
    FollowedParameters followed{CutFragments(kCopySize, kModelBytes / kFragments)};
    PublicParameters::Cursor cursor;
    int64_t messages = 0;  // Since it had a whole version, or connected.
    int64_t messages_max = 0;
    int64_t bytes = 0;
    int64_t bytes_max = 0;
    int64_t completed = 0;
  };

  Broadcast(CodecKind codec, uint64_t seed)
      : random_(seed),
        theta_(kCopySize),
        parent_(theta_, CutFragments(kCopySize, kModelBytes / kFragments), codec, NotesOf(Version(1))) {
    history_[Version(1)] = theta_;
  }

  PublicParameters* parent() { return &parent_; }
  Random* random() { return &random_; }
  void Connect(Child* child) {
    child->cursor = parent_.CursorAt(child->followed.Resume());
    child->messages = 0;
    child->bytes = 0;
  }
  // Its stream broke, and the parent still knows what it was being brought to.
  void ConnectAgain(Child* child) {
    const PublicParameters::Cursor broken = std::move(child->cursor);
    child->cursor = parent_.CursorAt(child->followed.Resume(), &broken);
  }
  void Publish() {
    MoveRandomly(&random_, &theta_);
    ASSERT_TRUE(parent_.Publish(theta_, NotesOf(Version(parent_.version().value() + 1))).ok());
    history_[parent_.version()] = parent_.Copy(nullptr);
    ASSERT_LE(parent_.frozen(), 2);
  }
  // False when there was nothing to take.
  bool TakeOne(Child* child) {
    const auto message = parent_.Next(&child->cursor, child->id, absl::ZeroDuration());
    if (!message.has_value()) return false;
    child->messages_max = std::max(child->messages_max, ++child->messages);
    child->bytes += static_cast<int64_t>(message->fragment().payload().size());
    child->bytes_max = std::max(child->bytes_max, child->bytes);
    const Version before = child->followed.snapshot().version;
    const auto completed = child->followed.Take(*message);
    EXPECT_TRUE(completed.ok()) << completed.status();
    if (!completed.ok() || !*completed) return completed.ok();
    const FollowedParameters::Snapshot snapshot = child->followed.snapshot();
    EXPECT_TRUE(SameBits(ValuesOf(child->followed), history_.at(snapshot.version))) << "version " << snapshot.version;
    EXPECT_GT(snapshot.version, before);
    const VersionNotes notes = NotesOf(snapshot.version);
    EXPECT_EQ(snapshot.included, notes.included.at(child->id));
    EXPECT_EQ(snapshot.root_version, notes.root_version);
    EXPECT_EQ(snapshot.tokens_committed, notes.tokens_committed);
    ++child->completed;
    child->messages = 0;
    child->bytes = 0;
    return true;
  }
  // One version, and what the children take while it is the newest.
  void Round(const std::vector<Child*>& children) {
    Publish();
    ++rounds_;
    for (Child* child : children) {
      if (child->one_in > 0 && rounds_ % child->one_in == 0) TakeOne(child);
      while (child->one_in == 0 && !testing::Test::HasFailure() && TakeOne(child)) {
      }
    }
  }

 private:
  static VersionNotes NotesOf(Version version) {
    VersionNotes notes;
    for (int64_t child = 1; child <= 9; ++child) {
      notes.included[{MemberId(child), Incarnation(1)}] = Sequence(10 * version.value() + child);
    }
    notes.root_version = Version(version.value() + 1000);
    notes.tokens_committed = 7 * version.value();
    return notes;
  }

  Random random_;
  std::vector<float> theta_;
  PublicParameters parent_;
  std::map<Version, std::vector<float>> history_;
  int64_t rounds_ = 0;
};

class SlowFollowerTest : public testing::TestWithParam<CodecKind> {
 protected:
  uint64_t Seed(uint64_t run) const { return DeriveSeed(kCopyBaseSeed, CodecKind_Name(GetParam()), run); }
};

TEST_P(SlowFollowerTest, CompletesVersionsThatAreLongReplaced) {
  for (const int one_in : {1, 3}) {
    for (const bool joins : {true, false}) {
      SCOPED_TRACE(absl::StrCat("one message in ", one_in, " versions", joins ? ", joins" : ", was up to date"));
      Broadcast broadcast(GetParam(), kCopyBaseSeed);
      Broadcast::Child child(kChild.member, one_in);
      broadcast.Connect(&child);
      for (int64_t i = 0; !joins && i <= Broadcast::kFragments; ++i) broadcast.TakeOne(&child);
      for (int64_t round = 0; round < Broadcast::kMessagesMax * 20 * one_in && !HasFailure(); ++round) {
        broadcast.Round({&child});
      }
      EXPECT_GE(child.completed, 20);
      EXPECT_LE(child.messages_max, Broadcast::kMessagesMax);
      EXPECT_LE(child.bytes_max, Broadcast::kBytesMax);
    }
  }
}

TEST_P(SlowFollowerTest, TwoAtDifferentSpeedsAndAFastOneDoNotHinderEachOther) {
  for (const auto& [first, second] : {std::pair(1, 1), std::pair(1, 2), std::pair(2, 7)}) {
    SCOPED_TRACE(absl::StrCat("one message in ", first, " and in ", second, " versions"));
    Broadcast broadcast(GetParam(), kCopyBaseSeed);
    Broadcast::Child slow(MemberId(1), first), slower(MemberId(2), second), fast(MemberId(3), 0);
    broadcast.Connect(&slow);
    broadcast.Connect(&fast);
    for (int64_t round = 0; round < Broadcast::kMessagesMax * 10 * second && !HasFailure(); ++round) {
      if (round == 5) broadcast.Connect(&slower);
      broadcast.Round(round < 5 ? std::vector{&slow, &fast} : std::vector{&slow, &slower, &fast});
      ASSERT_EQ(fast.followed.snapshot().version, broadcast.parent()->version());
    }
    for (const Broadcast::Child* child : {&slow, &slower}) {
      EXPECT_GE(child->completed, 9);
      EXPECT_LE(child->messages_max, Broadcast::kMessagesMax);
      EXPECT_LE(child->bytes_max, Broadcast::kBytesMax);
    }
  }
}

TEST_P(SlowFollowerTest, ManyAtRandomSpeedsThatBreakAndResumeAllGetSomewhere) {
  for (uint64_t run = 0; run < 8 && !HasFailure(); ++run) {
    SCOPED_TRACE(absl::StrCat("seed ", Seed(run)));
    Broadcast broadcast(GetParam(), Seed(run));
    Random* random = broadcast.random();
    std::vector<std::unique_ptr<Broadcast::Child>> owned;
    std::vector<Broadcast::Child*> children;
    for (int64_t i = 1; i <= 5; ++i) {
      owned.push_back(std::make_unique<Broadcast::Child>(MemberId(i), static_cast<int>(random->Below(5))));
      children.push_back(owned.back().get());
      broadcast.Connect(children.back());
    }
    for (int64_t round = 0; round < 1000 && !HasFailure(); ++round) {
      broadcast.Round(children);
      if (random->Below(100) == 0) broadcast.Connect(children[random->Below(children.size())]);
    }
    for (const Broadcast::Child* child : children) EXPECT_GE(child->completed, 10) << "one in " << child->one_in;
    // When no more versions come, everybody gets the last one.
    for (Broadcast::Child* child : children) {
      for (int64_t i = 0; i < 4 * Broadcast::kMessagesMax && !HasFailure(); ++i) broadcast.TakeOne(child);
      EXPECT_EQ(child->followed.snapshot().version, broadcast.parent()->version());
    }
    EXPECT_EQ(broadcast.parent()->frozen(), 0);
  }
}

TEST_P(SlowFollowerTest, ResumesWhereverItBroke) {
  for (const int versions_meanwhile : {0, 1, 20}) {
    for (int64_t broken_after = 0; broken_after <= Broadcast::kFragments; ++broken_after) {
      SCOPED_TRACE(
          absl::StrCat("broken after ", broken_after, " messages, ", versions_meanwhile, " versions meanwhile"));
      Broadcast broadcast(GetParam(), kCopyBaseSeed);
      Broadcast::Child child(kChild.member, 1);
      broadcast.Connect(&child);
      for (int64_t i = 0; child.completed < 2 && i < 2 * Broadcast::kMessagesMax; ++i) broadcast.Round({&child});
      for (int64_t i = 0; i < broken_after; ++i) broadcast.Round({&child});
      for (int i = 0; i < versions_meanwhile; ++i) broadcast.Publish();
      broadcast.Connect(&child);
      const int64_t completed = child.completed;
      for (int64_t i = 0; i < Broadcast::kMessagesMax; ++i) broadcast.Round({&child});
      EXPECT_GT(child.completed, completed);
      if (HasFailure()) return;
    }
  }
}

// With connections that live shorter than a version takes, and versions that come meanwhile.
TEST_P(SlowFollowerTest, WhoseStreamsBreakIsBroughtToTheVersionThatItWasBroughtTo) {
  for (const int64_t lives_for : {1, 2, 5}) {
    SCOPED_TRACE(absl::StrCat(lives_for, " messages in each life of a stream"));
    Broadcast broadcast(GetParam(), kCopyBaseSeed);
    Broadcast::Child child(kChild.member, 1);
    broadcast.Connect(&child);
    for (int64_t i = 0; i < 20 * Broadcast::kMessagesMax && !HasFailure(); ++i) {
      broadcast.Round({&child});
      if (i % lives_for == 0) broadcast.ConnectAgain(&child);
    }
    EXPECT_GE(child.completed, 10);
    // One who forgot everything is brought to nothing that is older than what it had.
    child.followed.Reset();
    broadcast.ConnectAgain(&child);
    const int64_t completed = child.completed;
    for (int64_t i = 0; i < 2 * Broadcast::kMessagesMax && !HasFailure(); ++i) broadcast.Round({&child});
    EXPECT_GT(child.completed, completed);
    child.cursor = {};
    broadcast.Publish();
    EXPECT_EQ(broadcast.parent()->frozen(), 0);
  }
}

TEST_P(SlowFollowerTest, WhatIsFrozenGoesWithTheLastThatNeedsIt) {
  Broadcast broadcast(GetParam(), kCopyBaseSeed);
  Broadcast::Child children[] = {{MemberId(1), 1}, {MemberId(2), 1}, {MemberId(3), 1}};
  for (Broadcast::Child& child : children) {
    broadcast.Connect(&child);
    broadcast.TakeOne(&child);
  }
  EXPECT_EQ(broadcast.parent()->frozen(), 0) << "the newest version needs no copy";
  broadcast.Publish();
  EXPECT_EQ(broadcast.parent()->frozen(), 1) << "they share one";
  children[0].cursor = {};
  children[1].cursor = {};
  EXPECT_EQ(broadcast.parent()->frozen(), 1);
  for (int64_t i = 0; i < Broadcast::kFragments; ++i) broadcast.TakeOne(&children[2]);
  EXPECT_EQ(children[2].completed, 1);
  EXPECT_EQ(broadcast.parent()->frozen(), 0);
  broadcast.Publish();
  EXPECT_EQ(broadcast.parent()->frozen(), 0) << "nobody is between two versions";
}

// These count messages, in which the bounds hold where fewer differences are retained than there are fragments. In
// bytes they hold for every codec.
INSTANTIATE_TEST_SUITE_P(Codecs, SlowFollowerTest,
                         testing::Values(CODEC_KIND_FP32, CODEC_KIND_BF16, CODEC_KIND_INT8, CODEC_KIND_INT4,
                                         CODEC_KIND_MIXED),
                         [](const auto& parameter) { return CodecKind_Name(parameter.param).substr(11); });

TEST(PublicParametersTest, EachChildHearsOfItsOwnContributions) {
  const std::vector<float> theta(kCopySize);
  VersionNotes notes;
  const auto life = [](int64_t member, int64_t incarnation) {
    return MemberKey{MemberId(member), Incarnation(incarnation)};
  };
  notes.included = {{life(7, 1), Sequence(3)}, {life(8, 2), Sequence(5)}};
  notes.root_version = Version(11);
  notes.tokens_committed = 1234;
  PublicParameters parent(theta, Fragments(), CODEC_KIND_FP32, notes);
  const std::pair<MemberKey, Sequence> expected[] = {
      {life(7, 1), Sequence(3)},
      {life(8, 2), Sequence(5)},
      {life(9, 1), Sequence(0)},
      // It came after the version: the numbers of the life before it are not its own.
      {life(7, 2), Sequence(0)}};
  for (const auto& [child, included] : expected) {
    Follower follower;
    follower.Connect(parent);
    while (const auto message = parent.Next(&follower.cursor, child, absl::ZeroDuration())) {
      ASSERT_TRUE(follower.followed.Take(*message).ok());
    }
    EXPECT_EQ(follower.followed.snapshot().included, included);
    EXPECT_EQ(follower.followed.snapshot().root_version, Version(11));
    EXPECT_EQ(follower.followed.snapshot().tokens_committed, 1234);
  }
}

TEST(PublicParametersTest, AChildThatClaimsAVersionFromTheFutureGetsTheWhole) {
  const std::vector<float> theta(kCopySize, 1.0f);
  PublicParameters parent(theta, Fragments(), CODEC_KIND_INT8, {});
  for (const int64_t have : {int64_t{2}, int64_t{1} << 40, int64_t{-3}}) {
    const auto messages = AllMessages(&parent, Version(have));
    ASSERT_EQ(messages.size(), 4u) << have;
    EXPECT_TRUE(messages[0].fragment().absolute());
  }
  EXPECT_TRUE(AllMessages(&parent, Version(1)).empty());
}

TEST(PublicParametersTest, AFragmentOfAVersionThatItCannotHaveSentIsSentAnew) {
  const std::vector<float> theta(kCopySize, 1.0f);
  PublicParameters parent(theta, Fragments(), CODEC_KIND_INT8, {}, Version(5));
  const auto versions = [](std::vector<int64_t> values) { return std::vector<Version>(values.begin(), values.end()); };
  struct Case {
    PublicParameters::Position have;
    std::vector<int> sent;  // Fragments; after them the version is complete.
  };
  const Case cases[] = {
      {{versions({5, 5, 5}), Version(0)}, {}},  // Only the last message was lost.
      {{versions({5, 0, 5}), Version(0)}, {1}},
      {{versions({5, 6, -1}), Version(0)}, {1, 2}},
      {{versions({5, int64_t{1} << 40, 5}), Version(4)}, {1}},
      {{versions({5, 4, 5}), Version(5)}, {1}},  // It cannot have the whole.
      {{versions({5, 5}), Version(5)}, {0, 1, 2}},
      {{versions({5, 5, 5, 5}), Version(5)}, {0, 1, 2}},
      {{{}, Version(0)}, {0, 1, 2}},
  };
  for (const Case& one : cases) {
    const std::vector<FollowMessage> messages = AllMessages(&parent, one.have);
    SCOPED_TRACE(&one - cases);
    ASSERT_EQ(messages.size(), one.sent.size() + 1);
    for (size_t i = 0; i < one.sent.size(); ++i) {
      EXPECT_EQ(messages[i].fragment().index(), one.sent[i]);
      EXPECT_TRUE(messages[i].fragment().absolute());
    }
    EXPECT_EQ(messages.back().complete().version(), 5);
  }
  EXPECT_TRUE(AllMessages(&parent, {versions({5, 5, 5}), Version(5)}).empty());
}

TEST(PublicParametersTest, SaysWhenSomebodyHasTheNewestVersionOrTheLastFollowerLeaves) {
  const std::vector<float> theta(kCopySize);
  PublicParameters parent(theta, Fragments(), CODEC_KIND_FP32, {});
  int taken = 0;
  parent.OnTaken([&] { ++taken; });
  parent.AddFollower();
  parent.AddFollower();
  EXPECT_EQ(parent.followers(), 2);
  PublicParameters::Cursor fast = parent.CursorAt({}), slow = parent.CursorAt({});
  const auto take = [&](PublicParameters::Cursor* cursor, int messages) {
    for (int i = 0; i < messages; ++i) ASSERT_TRUE(parent.Next(cursor, kChild, absl::ZeroDuration()).has_value());
  };
  take(&fast, 3);
  EXPECT_EQ(taken, 0) << "only fragments so far";
  take(&fast, 1);
  EXPECT_EQ(taken, 1);
  take(&slow, 3);
  ASSERT_TRUE(parent.Publish(theta, {}).ok());
  take(&slow, 1);
  EXPECT_EQ(taken, 1) << "nobody has version 2 yet";
  take(&slow, 4);
  EXPECT_EQ(taken, 2);
  take(&fast, 4);
  EXPECT_EQ(taken, 2) << "known already";
  parent.RemoveFollower();
  EXPECT_EQ(taken, 2);
  parent.RemoveFollower();
  EXPECT_EQ(taken, 3);
  EXPECT_EQ(parent.followers(), 0);
}

TEST(PublicParametersTest, AChildIsSentWhatItHasRoomFor) {
  std::vector<float> theta(kCopySize);
  PublicParameters parent(theta, Fragments(), CODEC_KIND_FP32, {});
  int taken = 0;
  parent.OnTaken([&] { ++taken; });
  Follower follower, other;
  follower.Connect(parent);
  parent.Allow(&follower.cursor, 2);
  const auto publish = [&] {
    theta[0] += 1;
    ASSERT_TRUE(parent.Publish(theta, {}).ok());
  };
  const auto catch_up = [&](Follower* child) {
    EXPECT_TRUE(CatchUp(&parent, child).ok());
    return child->followed.snapshot().version;
  };
  EXPECT_EQ(catch_up(&follower), Version(1));
  EXPECT_EQ(taken, 1) << "it has room for another one";
  publish();
  EXPECT_EQ(catch_up(&follower), Version(2));
  EXPECT_EQ(taken, 1) << "it has the newest version, and room for nothing";
  publish();
  publish();
  EXPECT_EQ(catch_up(&follower), Version(2));
  parent.Allow(&follower.cursor, 1);
  EXPECT_EQ(catch_up(&follower), Version(2)) << "what was said first came last";
  parent.Allow(&follower.cursor, 3);
  EXPECT_EQ(catch_up(&follower), Version(4)) << "the newest, and nothing in between";
  EXPECT_EQ(taken, 1);
  parent.Allow(&follower.cursor, 4);
  EXPECT_EQ(catch_up(&follower), Version(4));
  EXPECT_EQ(taken, 2) << "room is news where nobody had any";

  other.Connect(parent);
  EXPECT_EQ(catch_up(&other), Version(4));
  EXPECT_EQ(taken, 2) << "that is known";
  publish();
  EXPECT_EQ(catch_up(&follower), Version(5));
  EXPECT_EQ(taken, 2);
  EXPECT_EQ(catch_up(&other), Version(5));
  EXPECT_EQ(taken, 3) << "who follows without a bound has room";
}

TEST(PublicParametersTest, RoomEndsTheWaitForIt) {
  std::vector<float> theta(kCopySize);
  PublicParameters parent(theta, Fragments(), CODEC_KIND_FP32, {});
  Follower follower;
  follower.Connect(parent);
  parent.Allow(&follower.cursor, 1);
  ASSERT_TRUE(CatchUp(&parent, &follower).ok());
  ASSERT_TRUE(parent.Publish(theta, {}).ok());
  std::thread child([&] { parent.Allow(&follower.cursor, 2); });
  EXPECT_TRUE(parent.Next(&follower.cursor, kChild, absl::Hours(1)).has_value());
  child.join();
}

TEST(PublicParametersTest, ShutdownEndsTheStream) {
  std::vector<float> theta(kCopySize);
  PublicParameters parent(theta, Fragments(), CODEC_KIND_FP32, {});
  PublicParameters::Cursor cursor = parent.CursorAt({});
  parent.Shutdown();
  EXPECT_FALSE(parent.Next(&cursor, kChild, absl::InfiniteDuration()).has_value());
}

TEST(FollowedParametersTest, AStreamThatNeverCompletesAVersionIsCutOff) {
  FollowedParameters followed(Fragments());
  FollowMessage message;
  message.mutable_fragment()->set_absolute(true);
  message.mutable_fragment()->set_payload(std::string(1 << 20, 'x'));
  absl::Status status;
  int messages = 0;
  while (status.ok() && messages < 100) {
    status = followed.Take(message).status();
    ++messages;
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_LE(messages, 18);
}

TEST(FollowedParametersTest, WhatBrokenStreamsLeaveBehindIsBounded) {
  FollowedParameters followed(Fragments());
  FollowMessage message;
  FragmentUpdate* update = message.mutable_fragment();
  update->set_payload(std::string(1 << 20, 'x'));
  absl::Status status;
  int messages = 0;
  while (status.ok() && messages < 100) {  // Differences add up, however often the stream breaks.
    update->set_version(++messages);
    status = followed.Take(message).status();
    (void)followed.Resume();
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_LE(messages, 18);
  // A whole fragment takes the place of what came before it, so that a parent that moves while streams break costs no
  // more than one that does not.
  update->set_absolute(true);
  for (messages = 1; messages <= 100; ++messages) {
    update->set_version(messages);
    ASSERT_TRUE(followed.Take(message).ok());
    EXPECT_EQ(followed.Resume().fragments[0], Version(messages));
  }
}

}  // namespace
}  // namespace wukong
