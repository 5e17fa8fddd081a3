// Whoever follows a node holds the same bytes as its public copy at each version, however late or lossy the stream is.
#include "runtime/sync/public_copy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "runtime/base/random.h"

namespace wukong {
namespace {

constexpr uint64_t kBaseSeed = 424242;
constexpr int64_t kSize = 600;
constexpr int64_t kModelBytes = kSize * 4;
const MemberId kChild(7);

std::vector<FragmentSpan> Fragments() { return CutFragments(kSize, 800); }  // 200 values each.

void MoveRandomly(Random* random, std::vector<float>* theta) {
  for (float& value : *theta) value += static_cast<float>(0.1 * random->Normal());
}

struct Follower {
  FollowedParameters followed{Fragments()};
  PublicParameters::Cursor cursor;
  void Connect(const PublicParameters& parent) {
    followed.DropStaged();
    cursor = parent.CursorAt(followed.snapshot().version);
  }
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
std::vector<FollowMessage> AllMessages(PublicParameters* parent, Version have) {
  PublicParameters::Cursor cursor = parent->CursorAt(have);
  std::vector<FollowMessage> messages;
  while (const auto message = parent->Next(&cursor, kChild, absl::ZeroDuration())) messages.push_back(*message);
  return messages;
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
    const uint64_t seed = DeriveSeed(kBaseSeed, CodecKind_Name(GetParam()), run);
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    Random random(seed);
    std::vector<float> theta(kSize);
    MoveRandomly(&random, &theta);
    PublicParameters parent(theta, Fragments(), GetParam(), {});
    std::map<Version, std::vector<float>> history = {{Version(1), parent.Copy(nullptr)}};
    std::vector<std::unique_ptr<Follower>> followers;
    const auto advance = [&](Follower* follower) {
      const auto message = parent.Next(&follower->cursor, kChild, absl::ZeroDuration());
      if (!message.has_value()) return false;
      if (message->has_fragment()) ++(message->fragment().absolute() ? wholes : deltas);
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
        MoveRandomly(&random, &theta);
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

TEST_P(PublicCopyTest, ThePublicCopyStaysWithinOneEncodingOfTheta) {
  Random random(kBaseSeed);
  std::vector<float> theta(kSize);
  PublicParameters parent = MakeParent(theta);
  for (int i = 0; i < 50; ++i) {
    MoveRandomly(&random, &theta);
    ASSERT_TRUE(parent.Publish(theta, {}).ok());
    const std::vector<float> copy = parent.Copy(nullptr);
    for (int64_t k = 0; k < kSize; ++k) {
      ASSERT_LE(std::abs(copy[k] - theta[k]), MakeCodec(GetParam())->ErrorBound(1.0) + 1e-6)
          << "what the codec leaves out must go with the next version, not add up";
    }
    if (GetParam() == CODEC_KIND_FP32) {
      EXPECT_TRUE(SameBits(copy, theta));
    }
  }
}

TEST_P(PublicCopyTest, RetainsDifferencesOfAtMostOneModelAndThenSendsWholeFragments) {
  Random random(kBaseSeed);
  std::vector<float> theta(kSize);
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
  EXPECT_EQ(furthest, GetParam() == CODEC_KIND_FP32 ? 0 : GetParam() == CODEC_KIND_BF16 ? 2 : 3);
}

TEST_P(PublicCopyTest, ThetaThatIsNotFiniteIsNotPublished) {
  std::vector<float> theta(kSize, 1.0f);
  PublicParameters parent = MakeParent(theta);
  uint64_t before = 0, after = 0;
  parent.Copy(&before);
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    theta.assign(kSize, 2.0f);
    theta[kSize - 1] = bad;
    EXPECT_EQ(parent.Publish(theta, {}).code(), absl::StatusCode::kInvalidArgument);
  }
  parent.Copy(&after);
  EXPECT_EQ(before, after);
  EXPECT_EQ(parent.version(), Version(1));
}

TEST_P(PublicCopyTest, DamageIsDataLossAndTheChildRecoversByBeginningAnew) {
  Random random(kBaseSeed);
  std::vector<float> theta(kSize);
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

TEST_P(PublicCopyTest, ABrokenConnectionGoesOnFromTheLastWholeVersion) {
  Random random(kBaseSeed);
  std::vector<float> theta(kSize);
  PublicParameters parent = MakeParent(theta);
  Follower follower;
  follower.Connect(parent);
  ASSERT_TRUE(CatchUp(&parent, &follower).ok());
  const std::vector<float> before = ValuesOf(follower.followed);
  MoveRandomly(&random, &theta);
  ASSERT_TRUE(parent.Publish(theta, {}).ok());
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(follower.followed.Take(*parent.Next(&follower.cursor, kChild, absl::ZeroDuration())).ok());
  }
  EXPECT_TRUE(SameBits(ValuesOf(follower.followed), before)) << "values move by whole versions only";
  EXPECT_EQ(follower.followed.snapshot().version, Version(1));
  follower.Connect(parent);
  ASSERT_TRUE(CatchUp(&parent, &follower).ok());
  EXPECT_TRUE(SameBits(ValuesOf(follower.followed), parent.Copy(nullptr)));
}

INSTANTIATE_TEST_SUITE_P(Codecs, PublicCopyTest, testing::Values(CODEC_KIND_FP32, CODEC_KIND_BF16, CODEC_KIND_INT8),
                         [](const auto& parameter) { return CodecKind_Name(parameter.param).substr(11); });

TEST(PublicParametersTest, EachChildHearsOfItsOwnContributions) {
  const std::vector<float> theta(kSize);
  VersionNotes notes;
  notes.included = {{MemberId(7), Sequence(3)}, {MemberId(8), Sequence(5)}};
  notes.root_version = Version(11);
  notes.tokens_committed = 1234;
  PublicParameters parent(theta, Fragments(), CODEC_KIND_FP32, notes);
  const std::pair<MemberId, Sequence> expected[] = {
      {MemberId(7), Sequence(3)}, {MemberId(8), Sequence(5)}, {MemberId(9), Sequence(0)}};
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
  const std::vector<float> theta(kSize, 1.0f);
  PublicParameters parent(theta, Fragments(), CODEC_KIND_INT8, {});
  for (const int64_t have : {int64_t{2}, int64_t{1} << 40, int64_t{-3}}) {
    const auto messages = AllMessages(&parent, Version(have));
    ASSERT_EQ(messages.size(), 4u) << have;
    EXPECT_TRUE(messages[0].fragment().absolute());
  }
  EXPECT_TRUE(AllMessages(&parent, Version(1)).empty());
}

TEST(PublicParametersTest, SaysWhenSomebodyHasTheNewestVersionOrTheLastFollowerLeaves) {
  const std::vector<float> theta(kSize);
  PublicParameters parent(theta, Fragments(), CODEC_KIND_FP32, {});
  int taken = 0;
  parent.OnTaken([&] { ++taken; });
  parent.AddFollower();
  EXPECT_EQ(parent.followers(), 1);
  PublicParameters::Cursor cursor = parent.CursorAt(Version(0));
  for (int i = 0; i < 3; ++i) (void)parent.Next(&cursor, kChild, absl::ZeroDuration());
  EXPECT_EQ(taken, 0) << "only fragments so far";
  (void)parent.Next(&cursor, kChild, absl::ZeroDuration());
  EXPECT_EQ(taken, 1);
  parent.RemoveFollower();
  EXPECT_EQ(taken, 2);
  EXPECT_EQ(parent.followers(), 0);
}

TEST(PublicParametersTest, ShutdownEndsTheStream) {
  std::vector<float> theta(kSize);
  PublicParameters parent(theta, Fragments(), CODEC_KIND_FP32, {});
  PublicParameters::Cursor cursor = parent.CursorAt(Version(0));
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

}  // namespace
}  // namespace wukong
