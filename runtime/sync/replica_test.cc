// Properties of rebasing: a child and its parent exchange contributions and versions that are late, repeated, skipped
// or refused, and no progress is lost or counted twice. Two wrong rules are run through the same checks, which must
// notice.
#include "runtime/sync/replica.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "runtime/base/random.h"

namespace wukong {
namespace {

constexpr uint64_t kReplicaBaseSeed = 20240601;
constexpr int64_t kReplicaSize = 700;     // More than two of int8's blocks.
constexpr int64_t kFragmentBytes = 1024;  // 256 values: three fragments, the last one shorter.

std::vector<float> DecodeAll(const EncodedVector& payload, const std::vector<FragmentSpan>& fragments) {
  std::vector<float> values(fragments.back().end);
  for (size_t f = 0; f < fragments.size(); ++f) {
    const auto status = DecodeFragment(payload, f, fragments[f],
                                       absl::MakeSpan(values).subspan(fragments[f].begin, fragments[f].size()));
    EXPECT_TRUE(status.ok()) << status;
  }
  return values;
}

bool SameBits(absl::Span<const float> a, absl::Span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

double LargestDifference(absl::Span<const float> a, absl::Span<const float> b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(static_cast<double>(a[i]) - b[i]));
  return largest;
}

// What the exchange below needs of a child; `theta` is the harness's.
class Child {
 public:
  virtual ~Child() = default;
  virtual std::vector<float> Send(Sequence sequence) = 0;  // Decoded.
  virtual void Rebase(absl::Span<const float> values, Sequence included) = 0;
  virtual bool Drop(Sequence sequence) = 0;      // False: it was not pending any more.
  virtual bool TakeBack(Sequence sequence) = 0;  // Likewise.
  virtual absl::Span<const float> base() const = 0;
};

class RealChild final : public Child {
 public:
  RealChild(absl::Span<float> theta, const std::vector<FragmentSpan>& fragments, CodecKind codec, double mix)
      : fragments_(fragments), replica_(theta, fragments, {codec, mix, PROGRESS_PARAMETERS}) {}
  std::vector<float> Send(Sequence sequence) override {
    const auto payload = replica_.Send(sequence);
    EXPECT_TRUE(payload.ok()) << payload.status();
    return DecodeAll(**payload, fragments_);
  }
  void Rebase(absl::Span<const float> values, Sequence included) override {
    EXPECT_TRUE(replica_.Rebase(values, included).ok());
  }
  bool Drop(Sequence sequence) override {
    const int before = replica_.pending();
    EXPECT_TRUE(replica_.Drop(sequence).ok());
    return replica_.pending() < before;
  }
  bool TakeBack(Sequence sequence) override {
    const int before = replica_.pending();
    EXPECT_TRUE(replica_.TakeBack(sequence).ok());
    return replica_.pending() < before;
  }
  absl::Span<const float> base() const override { return replica_.base(); }

 private:
  const std::vector<FragmentSpan> fragments_;
  Replica replica_;
};

// Two rules that look right: v = public - base, without what is in flight; and a new base that drops what was done
// since the last contribution.
class WrongChild final : public Child {
 public:
  enum Rule { kLeavesPendingOut, kDropsProgress };
  WrongChild(absl::Span<float> theta, Rule rule) : rule_(rule), theta_(theta), base_(theta.begin(), theta.end()) {}
  std::vector<float> Send(Sequence sequence) override {
    std::vector<float> c(theta_.size());
    for (size_t i = 0; i < c.size(); ++i) {
      c[i] = theta_[i] - base_[i];
      base_[i] += c[i];
    }
    pending_[sequence] = c;
    return c;
  }
  void Rebase(absl::Span<const float> values, Sequence included) override {
    pending_.erase(pending_.begin(), pending_.upper_bound(included));
    for (size_t i = 0; i < base_.size(); ++i) {
      theta_[i] = rule_ == kDropsProgress ? values[i] : theta_[i] + values[i] - base_[i];
      base_[i] = values[i];
    }
  }
  bool Drop(Sequence sequence) override { return Undo(sequence, true); }
  bool TakeBack(Sequence sequence) override { return Undo(sequence, false); }
  absl::Span<const float> base() const override { return base_; }

 private:
  bool Undo(Sequence sequence, bool theta_too) {
    const auto found = pending_.find(sequence);
    if (found == pending_.end()) return false;
    for (size_t i = 0; i < base_.size(); ++i) {
      base_[i] -= found->second[i];
      if (theta_too) theta_[i] -= found->second[i];
    }
    pending_.erase(found);
    return true;
  }
  const Rule rule_;
  absl::Span<float> theta_;
  std::vector<float> base_;
  std::map<Sequence, std::vector<float>> pending_;
};

// The largest violation of each property in one exchange.
struct Violations {
  double conservation = 0;  // | sent + (theta - base) - local updates |
  double rebase_moved = 0;  // | change of theta - base in a rebase |
  double own_work = 0;      // With mix 1, after a rebase: | base - (public + sent and not included) |
  double at_the_end = 0;    // With mix 1, when all is included: | base - public |
  int rebases = 0;
  int refused = 0;
  bool end_is_bit_identical = false;
};

// Values are multiples of 2^-10 and stay small, so with fp32 no operation rounds and every violation is a real one.
float RandomStep(Random* random) { return (static_cast<float>(random->Below(2049)) - 1024.0f) / 1024.0f; }

template <typename MakeChild>
Violations RunExchange(uint64_t seed, double mix, MakeChild make_child) {
  Random random(seed);
  std::vector<float> theta(kReplicaSize);
  for (float& value : theta) value = RandomStep(&random);
  const std::unique_ptr<Child> child = make_child(absl::MakeSpan(theta));

  struct InFlight {
    Sequence sequence;
    std::vector<float> c;
  };
  struct Version {
    std::vector<float> values;
    Sequence included;
  };
  std::vector<float> parent = theta;
  std::deque<InFlight> up;
  std::deque<Version> down;
  std::deque<std::pair<Sequence, bool>> refusals;  // true: take back, false: drop.
  std::map<Sequence, std::vector<float>> not_included;
  std::vector<double> updates(kReplicaSize), sent(kReplicaSize);
  Sequence sequence, included;
  Violations violations;

  const auto check_conservation = [&] {
    for (int64_t i = 0; i < kReplicaSize; ++i) {
      const double progress = static_cast<double>(theta[i]) - child->base()[i];
      violations.conservation = std::max(violations.conservation, std::abs(sent[i] + progress - updates[i]));
    }
  };
  const auto send = [&] {
    sequence = Sequence(sequence.value() + 1);
    up.push_back({sequence, child->Send(sequence)});
    for (int64_t i = 0; i < kReplicaSize; ++i) sent[i] += up.back().c[i];
    not_included[sequence] = up.back().c;
  };
  const auto undo = [&](Sequence refused, bool take_back) {
    const std::vector<float> c = not_included.count(refused) > 0 ? not_included[refused] : std::vector<float>();
    if (!(take_back ? child->TakeBack(refused) : child->Drop(refused))) return;
    ++violations.refused;
    not_included.erase(refused);
    for (int64_t i = 0; i < kReplicaSize; ++i) {
      sent[i] -= c[i];
      if (!take_back) updates[i] -= c[i];
    }
  };
  const auto rebase = [&](const Version& version) {
    const std::vector<float> theta_before(theta.begin(), theta.end());
    const std::vector<float> base_before(child->base().begin(), child->base().end());
    child->Rebase(version.values, version.included);
    ++violations.rebases;
    not_included.erase(not_included.begin(), not_included.upper_bound(version.included));
    for (int64_t i = 0; i < kReplicaSize; ++i) {
      const double before = static_cast<double>(theta_before[i]) - base_before[i];
      const double after = static_cast<double>(theta[i]) - child->base()[i];
      violations.rebase_moved = std::max(violations.rebase_moved, std::abs(after - before));
      double expected = version.values[i];
      for (const auto& [number, c] : not_included) expected += c[i];
      violations.own_work = std::max(violations.own_work, std::abs(child->base()[i] - expected));
    }
  };
  const auto parent_takes_first = [&] {
    const InFlight contribution = up.front();
    up.pop_front();
    if (random.Below(8) == 0) {
      refusals.emplace_back(contribution.sequence, random.Below(2) == 0);
      return;
    }
    for (int64_t i = 0; i < kReplicaSize; ++i) parent[i] += contribution.c[i];
    included = contribution.sequence;
  };

  for (int event = 0; event < 120; ++event) {
    switch (random.Below(7)) {
      case 0:
      case 1:  // An optimizer step.
        for (int64_t i = 0; i < kReplicaSize; ++i) {
          const float u = RandomStep(&random);
          theta[i] += u;
          updates[i] += u;
        }
        break;
      case 2:
        if (up.size() < 5) send();
        break;
      case 3:
        if (!up.empty()) parent_takes_first();
        break;
      case 4:  // Others contribute, and a version is published; the link may deliver it much later.
        for (int64_t i = 0; i < kReplicaSize; ++i) parent[i] += RandomStep(&random);
        down.push_back({parent, included});
        break;
      case 5:  // A version arrives; those before it were skipped.
        if (!down.empty()) {
          down.erase(down.begin(), down.begin() + static_cast<std::ptrdiff_t>(random.Below(down.size())));
          rebase(down.front());
          if (random.Below(4) > 0) down.pop_front();  // Otherwise it will be delivered again.
        }
        break;
      default:
        if (!refusals.empty()) {
          undo(refusals.front().first, refusals.front().second);
          refusals.pop_front();
        }
    }
    check_conservation();
  }

  // After the faults everything arrives: answers first, then the last contribution, then a version that includes it.
  while (!up.empty()) parent_takes_first();
  for (const auto& [refused, take_back] : refusals) undo(refused, take_back);
  send();
  for (int64_t i = 0; i < kReplicaSize; ++i) parent[i] += up.front().c[i];
  rebase({parent, sequence});
  check_conservation();
  violations.at_the_end = LargestDifference(child->base(), parent);
  violations.end_is_bit_identical = SameBits(child->base(), parent);
  if (mix < 1) violations.own_work = violations.at_the_end = 0;
  return violations;
}

class ReplicaProperty : public testing::TestWithParam<std::tuple<CodecKind, double>> {};

TEST_P(ReplicaProperty, ProgressIsConservedWhateverTheOrderOfMessages) {
  const auto [codec, mix] = GetParam();
  const auto fragments = CutFragments(kReplicaSize, kFragmentBytes);
  // Exact where nothing rounds: fp32 with mix 1. Otherwise a few hundred roundings of values below 64.
  const double tolerance = codec == CODEC_KIND_FP32 && mix == 1 ? 0 : 5e-4;
  int rebases = 0, refused = 0;
  for (uint64_t run = 0; run < 60; ++run) {
    const uint64_t seed = DeriveSeed(kReplicaBaseSeed, CodecKind_Name(codec), run);
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    const Violations violations = RunExchange(seed, mix, [&, codec = codec, mix = mix](absl::Span<float> theta) {
      return std::make_unique<RealChild>(theta, fragments, codec, mix);
    });
    EXPECT_LE(violations.conservation, tolerance) << "sent + (theta - base) is not the sum of the local updates";
    EXPECT_LE(violations.rebase_moved, tolerance) << "a rebase changed theta - base";
    EXPECT_LE(violations.own_work, tolerance) << "base is not the public parameters and what is in flight";
    if (mix == 1) {
      EXPECT_TRUE(violations.end_is_bit_identical) << "all is included, yet base is not the public parameters";
    }
    rebases += violations.rebases;
    refused += violations.refused;
    if (HasFailure()) return;
  }
  EXPECT_GT(rebases, 300) << "the orders tried are too tame to show anything";
  EXPECT_GT(refused, 50);
}

INSTANTIATE_TEST_SUITE_P(CodecsAndMixes, ReplicaProperty,
                         testing::Combine(testing::Values(CODEC_KIND_FP32, CODEC_KIND_BF16, CODEC_KIND_INT8,
                                                          CODEC_KIND_INT4, CODEC_KIND_INT2, CODEC_KIND_TOPK,
                                                          CODEC_KIND_MIXED),
                                          testing::Values(1.0, 0.25)));

TEST(ReplicaPropertyControl, LeavingThePendingSumOutIsNoticed) {
  const Violations violations = RunExchange(kReplicaBaseSeed, 1, [](absl::Span<float> theta) {
    return std::make_unique<WrongChild>(theta, WrongChild::kLeavesPendingOut);
  });
  EXPECT_GT(violations.own_work, 0.5) << "the worker's own work in flight should be missing after a rebase";
}

TEST(ReplicaPropertyControl, DroppingWhatWasDoneInFlightIsNoticed) {
  const Violations violations = RunExchange(kReplicaBaseSeed, 1, [](absl::Span<float> theta) {
    return std::make_unique<WrongChild>(theta, WrongChild::kDropsProgress);
  });
  EXPECT_GT(violations.conservation, 0.5) << "progress should be lost";
}

// Gradient descent on x^2 / 2, halved per contribution, whose effect comes back `delay` contributions later.
double AfterTrainingWithDelay(Child* child, float* theta, int delay) {
  float parent = *theta;
  std::deque<std::pair<float, Sequence>> down;
  for (int round = 1; round <= 200; ++round) {
    *theta -= 0.5f * *theta;
    parent += child->Send(Sequence(round)).front();
    down.emplace_back(parent, Sequence(round));
    if (static_cast<int>(down.size()) > delay) {
      child->Rebase({&down.front().first, 1}, down.front().second);
      down.pop_front();
    }
    if (!(std::abs(parent) < 1e6f)) return std::numeric_limits<double>::infinity();
  }
  return std::abs(parent);
}

TEST(ReplicaDelay, TrainingIsStableUnderSeveralStepsOfDelay) {
  for (const int delay : {0, 1, 4, 16}) {
    float theta = 1;
    RealChild child({&theta, 1}, {{0, 1}}, CODEC_KIND_FP32, 1);
    EXPECT_LT(AfterTrainingWithDelay(&child, &theta, delay), 1e-6) << delay << " contributions of delay";
  }
}

TEST(ReplicaDelay, WithoutThePendingSumItDiverges) {
  float theta = 1;
  WrongChild prompt({&theta, 1}, WrongChild::kLeavesPendingOut);
  EXPECT_LT(AfterTrainingWithDelay(&prompt, &theta, 0), 1e-6) << "the control must be right where there is no delay";
  theta = 1;
  WrongChild late({&theta, 1}, WrongChild::kLeavesPendingOut);
  EXPECT_GT(AfterTrainingWithDelay(&late, &theta, 4), 1e3);
}

// One value per fragment, so that the numbers can be followed by hand.
struct Small {
  explicit Small(Replica::Options options = {}) : replica(absl::MakeSpan(theta), {{0, 1}, {1, 2}}, options) {}
  std::vector<float> theta = {1, 2};
  Replica replica;
};

TEST(ReplicaTest, AnyIncludedSequenceAndAnyParametersLeaveTheProgressAlone) {
  Random random(kReplicaBaseSeed);
  Small s;
  for (int i = 1; i <= 50; ++i) {
    s.theta[0] += RandomStep(&random);
    if (i % 3 == 0) {
      ASSERT_TRUE(s.replica.Send(Sequence(i)).ok());
    }
    const float progress[] = {s.theta[0] - s.replica.base()[0], s.theta[1] - s.replica.base()[1]};
    const std::vector<float> values = {RandomStep(&random), RandomStep(&random)};
    ASSERT_TRUE(s.replica.Rebase(values, Sequence(static_cast<int64_t>(random.Below(60)) - 5)).ok());
    EXPECT_EQ(s.theta[0] - s.replica.base()[0], progress[0]);
    EXPECT_EQ(s.theta[1] - s.replica.base()[1], progress[1]);
  }
}

TEST(ReplicaTest, DropTakesTheContributionFromThetaAndBase) {
  Small s;
  s.theta[0] += 0.5f;
  ASSERT_TRUE(s.replica.Send(Sequence(1)).ok());
  s.theta[0] += 0.25f;
  ASSERT_TRUE(s.replica.Send(Sequence(2)).ok());
  s.theta[0] += 0.125f;
  ASSERT_TRUE(s.replica.Drop(Sequence(1)).ok());
  EXPECT_EQ(s.theta, (std::vector<float>{1.375f, 2}));
  EXPECT_EQ(s.replica.base()[0], 1.25f);
  EXPECT_EQ(s.replica.pending(), 1);
  ASSERT_TRUE(s.replica.Drop(Sequence(1)).ok());
  EXPECT_EQ(s.theta[0], 1.375f) << "the second time there is nothing to drop";
}

TEST(ReplicaTest, WhatWasTakenBackIsSentAgain) {
  Small s;
  s.theta[0] += 0.5f;
  ASSERT_TRUE(s.replica.Send(Sequence(1)).ok());
  s.theta[0] += 0.25f;
  ASSERT_TRUE(s.replica.TakeBack(Sequence(1)).ok());
  EXPECT_EQ(s.theta[0], 1.75f);
  EXPECT_EQ(s.replica.base()[0], 1.0f);
  ASSERT_TRUE(s.replica.TakeBack(Sequence(7)).ok());
  const auto payload = s.replica.Send(Sequence(2));
  ASSERT_TRUE(payload.ok());
  EXPECT_EQ(DecodeAll(**payload, {{0, 1}, {1, 2}}), (std::vector<float>{0.75f, 0}));
}

TEST(ReplicaTest, WithAnotherParentOnlyWhatThatOneHasAndWhatIsUndecidedStays) {
  for (const double mix : {1.0, 0.25}) {
    Small s({CODEC_KIND_FP32, mix, PROGRESS_PARAMETERS});
    for (int i = 1; i <= 4; ++i) {
      s.theta[0] += static_cast<float>(i);
      ASSERT_TRUE(s.replica.Send(Sequence(i)).ok());
    }
    s.theta[0] += 0.5f;  // 1 + 1 + 2 + 3 + 4 + 0.5
    s.replica.ParentReplaced({Sequence(2), Sequence(3), Sequence(4)});
    EXPECT_EQ(s.theta[0], 11.5f) << "until there is a parent it goes on with what it has";
    EXPECT_EQ(s.replica.pending(), 3);
    EXPECT_TRUE(s.replica.Rebase(std::vector<float>{100, 2}, Sequence(0)).value()) << "taken whole, mix " << mix;
    EXPECT_EQ(s.replica.base()[0], 109);
    EXPECT_EQ(s.theta[0], 109.5f);

    // The root has the second, the third must not count, and the fourth is to be made again.
    s.replica.Included(Sequence(2));
    ASSERT_TRUE(s.replica.Drop(Sequence(3)).ok());
    ASSERT_TRUE(s.replica.TakeBack(Sequence(4)).ok());
    EXPECT_EQ(s.replica.pending(), 0);
    EXPECT_TRUE(s.replica.Rebase(std::vector<float>{100, 2}, Sequence(0)).value());
    EXPECT_EQ(s.replica.base()[0], 100);
    EXPECT_EQ(s.theta[0], 104.5f);
    const auto payload = s.replica.Send(Sequence(5));
    ASSERT_TRUE(payload.ok());
    EXPECT_EQ(DecodeAll(**payload, {{0, 1}, {1, 2}}), (std::vector<float>{4.5f, 0}));
    // From here on as before.
    EXPECT_EQ(s.replica.Rebase(std::vector<float>{200, 2}, Sequence(0)).value(), mix == 1.0);
    EXPECT_TRUE(s.replica.Rebase(std::vector<float>{200, 2}, Sequence(5)).value());
    EXPECT_EQ(s.theta[0], mix == 1.0 ? 200 : 104.5f + 0.25f * (200 - 104.5f));
  }
}

TEST(ReplicaTest, WhatIsIncludedMovesNothingByItself) {
  Small s;
  s.theta[0] += 0.5f;
  ASSERT_TRUE(s.replica.Send(Sequence(1)).ok());
  s.theta[0] += 0.25f;
  s.replica.Included(Sequence(1));
  s.replica.Included(Sequence(7));
  EXPECT_EQ(s.theta[0], 1.75f);
  EXPECT_EQ(s.replica.base()[0], 1.5f);
  EXPECT_EQ(s.replica.pending(), 0);
}

TEST(ReplicaTest, RevertThrowsAwayOnlyWhatWasNotSent) {
  Small s;
  s.theta[0] += 0.5f;
  ASSERT_TRUE(s.replica.Send(Sequence(1)).ok());
  s.theta[0] = std::numeric_limits<float>::quiet_NaN();
  s.replica.Revert();
  EXPECT_EQ(s.theta, (std::vector<float>{1.5f, 2}));
  EXPECT_EQ(s.replica.pending(), 1);
  EXPECT_TRUE(s.replica.Rebase(std::vector<float>{10, 2}, Sequence(0)).value());
  EXPECT_EQ(s.theta[0], 10.5f);
}

TEST(ReplicaTest, ProgressThatIsNotFiniteIsRefusedAndChangesNothing) {
  for (const CodecKind codec : {CODEC_KIND_FP32, CODEC_KIND_BF16, CODEC_KIND_INT8, CODEC_KIND_INT4, CODEC_KIND_INT2,
                                CODEC_KIND_TOPK, CODEC_KIND_MIXED}) {
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      Small s({codec, 1.0, PROGRESS_PARAMETERS});
      s.theta = {1.5f, bad};
      const std::vector<float> before = s.theta;
      EXPECT_EQ(s.replica.Send(Sequence(1)).status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_TRUE(SameBits(s.theta, before));
      EXPECT_EQ(s.replica.base()[0], 1.0f) << "the fragment before the bad one must not have moved";
      EXPECT_EQ(s.replica.base()[1], 2.0f);
      EXPECT_EQ(s.replica.pending(), 0);
    }
  }
}

TEST(ReplicaTest, ResetTakesThePublicParametersAndForgetsWhatWasSent) {
  Small s;
  s.theta[0] = 5;
  ASSERT_TRUE(s.replica.Send(Sequence(1)).ok());
  s.replica.Reset(std::vector<float>{3, 4});
  EXPECT_EQ(s.theta, (std::vector<float>{3, 4}));
  EXPECT_EQ(s.replica.base()[0], 3);
  EXPECT_EQ(s.replica.pending(), 0);
}

TEST(ReplicaTest, MixIsAppliedOncePerIncludedContributionAndNotPerVersion) {
  Small s({CODEC_KIND_FP32, 0.25, PROGRESS_PARAMETERS});
  const std::vector<float> target = {9, 2};
  EXPECT_FALSE(s.replica.Rebase(target, Sequence(0)).value()) << "nothing of ours is in it";
  EXPECT_EQ(s.theta[0], 1);
  ASSERT_TRUE(s.replica.Send(Sequence(1)).ok());
  EXPECT_TRUE(s.replica.Rebase(target, Sequence(1)).value());
  EXPECT_EQ(s.theta[0], 3);  // 1 + 0.25 * 8
  EXPECT_FALSE(s.replica.Rebase(target, Sequence(1)).value());
  EXPECT_EQ(s.theta[0], 3);
}

TEST(ReplicaTest, AVersionThatIncludesTwoContributionsWeighsAsTwo) {
  Small s({CODEC_KIND_FP32, 0.25, PROGRESS_PARAMETERS});
  ASSERT_TRUE(s.replica.Send(Sequence(1)).ok());
  ASSERT_TRUE(s.replica.Send(Sequence(2)).ok());
  EXPECT_TRUE(s.replica.Rebase(std::vector<float>{9, 2}, Sequence(2)).value());
  EXPECT_EQ(s.theta[0], 4.5f);  // 1 -> 3 -> 4.5
}

TEST(ReplicaTest, MixCountsWhatIsInFlightAsPartOfThePublicParameters) {
  Small s({CODEC_KIND_FP32, 0.5, PROGRESS_PARAMETERS});
  s.theta[0] = 2;
  ASSERT_TRUE(s.replica.Send(Sequence(1)).ok());  // c = 1
  s.theta[0] = 4;
  ASSERT_TRUE(s.replica.Send(Sequence(2)).ok());  // c = 2, base = 4
  EXPECT_TRUE(s.replica.Rebase(std::vector<float>{6, 2}, Sequence(1)).value());
  EXPECT_EQ(s.theta[0], 6);  // v = 0.5 * (6 + 2 - 4)
  EXPECT_EQ(s.replica.base()[0], 6);
}

// Streaming: what is not sent now is sent when its turn comes, and nothing is lost or counted twice on the way.
TEST(ReplicaParts, FragmentsTakeTurnsAndNothingIsLost) {
  const auto fragments = CutFragments(kReplicaSize, kFragmentBytes);
  ASSERT_EQ(fragments.size(), 3u);
  std::vector<float> theta(kReplicaSize);
  Replica::Options options;
  options.parts = 2;
  Replica replica(absl::MakeSpan(theta), fragments, options);
  std::vector<float> parent(kReplicaSize);
  for (int sequence = 1; sequence <= 10; ++sequence) {
    for (float& value : theta) value += 1;
    const auto payload = replica.Send(Sequence(sequence), {}, /*whole=*/sequence == 10);
    ASSERT_TRUE(payload.ok());
    for (size_t f = 0; f < fragments.size(); ++f) {
      EXPECT_EQ((*payload)->fragments[f].empty(), sequence < 10 && f % 2 != static_cast<size_t>(sequence) % 2)
          << "fragment " << f << " of contribution " << sequence;
    }
    const std::vector<float> sent = DecodeAll(**payload, fragments);
    for (int64_t i = 0; i < kReplicaSize; ++i) parent[i] += sent[i];
    // The answer to the last but one is what there is.
    ASSERT_TRUE(replica.Rebase(parent, Sequence(sequence)).ok());
    EXPECT_EQ(theta[0], sequence) << "the child keeps what it has not sent";
    EXPECT_EQ(theta[kReplicaSize / 2], sequence);
  }
  EXPECT_EQ(parent, std::vector<float>(kReplicaSize, 10.0f)) << "and the last one brings all of it";
}

TEST(ReplicaParts, MixIsAppliedToWhatTheContributionCarried) {
  const auto fragments = CutFragments(kReplicaSize, kFragmentBytes);
  std::vector<float> theta(kReplicaSize);
  Replica::Options options;
  options.parts = 3;
  options.mix = 0.5;
  Replica replica(absl::MakeSpan(theta), fragments, options);
  ASSERT_TRUE(replica.Send(Sequence(1)).ok());
  ASSERT_TRUE(replica.Rebase(std::vector<float>(kReplicaSize, 8.0f), Sequence(1)).ok());
  EXPECT_EQ(theta[fragments[0].begin], 0);
  EXPECT_EQ(theta[fragments[1].begin], 4) << "it was fragment 1's turn";
  EXPECT_EQ(theta[fragments[2].begin], 0);
}

TEST(ReplicaTest, ReplacingOverwritesWhatWasLearnedMeanwhile) {
  Small s({CODEC_KIND_FP32, 0.25, PROGRESS_PARAMETERS, 1, /*replaces=*/true});
  s.theta[0] = 5;
  ASSERT_TRUE(s.replica.Send(Sequence(1)).ok());
  s.theta[0] = 7;
  ASSERT_TRUE(s.replica.Rebase(std::vector<float>{3, 2}, Sequence(1)).ok());
  EXPECT_EQ(s.theta[0], 6);  // 0.75 * 7 + 0.25 * 3
  EXPECT_EQ(s.replica.base()[0], 6) << "the 2 that were learned meanwhile are not sent any more";
}

TEST(ReplicaTest, AShareOfWhatIsInFlightIsWhatItWillBeWorth) {
  Replica::Options options;
  options.pending_weight = 0.25;
  Small s(options);
  s.theta[0] = 5;
  ASSERT_TRUE(s.replica.Send(Sequence(1)).ok());  // c = 4
  s.theta[0] = 6;                                 // 1 since.
  ASSERT_TRUE(s.replica.Rebase(std::vector<float>{10, 2}, Sequence(0)).ok());
  EXPECT_EQ(s.theta[0], 12);  // 10 + 4 / 4 + 1
  EXPECT_EQ(s.replica.base()[0], 11);
  ASSERT_TRUE(s.replica.Rebase(std::vector<float>{11, 2}, Sequence(1)).ok());
  EXPECT_EQ(s.theta[0], 12) << "it was worth that much";
  EXPECT_EQ(s.replica.base()[0], 11);
}

TEST(ReplicaTest, WithAMixOfZeroAChildStaysApart) {
  Small s({CODEC_KIND_FP32, 0.0, PROGRESS_PARAMETERS});
  s.theta[0] = 5;
  ASSERT_TRUE(s.replica.Send(Sequence(1)).ok());
  ASSERT_TRUE(s.replica.Rebase(std::vector<float>{100, 100}, Sequence(1)).ok());
  EXPECT_EQ(s.theta[0], 5);
}
class ReplicaDelivery : public testing::TestWithParam<CodecKind> {};

TEST_P(ReplicaDelivery, ProgressMadeOnceIsSentInFullInTheEnd) {
  Random random(DeriveSeed(kReplicaBaseSeed, "delivery"));
  std::vector<float> theta(kReplicaSize, 0.0f);
  std::vector<FragmentSpan> fragments = CutFragments(kReplicaSize, kFragmentBytes);
  fragments[1].role = ParameterRole::kFeedForward;
  Replica replica(absl::MakeSpan(theta), fragments, {GetParam(), 1.0, PROGRESS_PARAMETERS});
  for (float& value : theta) value = static_cast<float>(random.Normal());
  const std::vector<float> progress = theta;
  std::vector<float> parent(kReplicaSize, 0.0f);
  for (int step = 1; step <= 200; ++step) {
    const auto payload = replica.Send(Sequence(step));
    ASSERT_TRUE(payload.ok());
    const std::vector<float> decoded = DecodeAll(**payload, fragments);
    for (int64_t i = 0; i < kReplicaSize; ++i) parent[i] += decoded[i];
    ASSERT_TRUE(replica.Rebase(parent, Sequence(step)).ok());
  }
  EXPECT_LE(LargestDifference(parent, progress), 1e-5);
  EXPECT_LE(LargestDifference(theta, progress), 1e-5) << "rebasing must not move what was trained";
}

INSTANTIATE_TEST_SUITE_P(Codecs, ReplicaDelivery,
                         testing::Values(CODEC_KIND_FP32, CODEC_KIND_BF16, CODEC_KIND_INT8, CODEC_KIND_INT4,
                                         CODEC_KIND_INT3, CODEC_KIND_INT2, CODEC_KIND_TOPK, CODEC_KIND_MIXED));

class ReplicaGradient : public testing::TestWithParam<CodecKind> {};

TEST_P(ReplicaGradient, WhatTheCodecLeavesOutComesLaterAndTheBaseStays) {
  Random random(DeriveSeed(kReplicaBaseSeed, "gradient"));
  std::vector<float> theta(kReplicaSize, 1.0f);
  const auto fragments = CutFragments(kReplicaSize, kFragmentBytes);
  Replica replica(absl::MakeSpan(theta), fragments, {GetParam(), 1.0, PROGRESS_GRADIENT});
  const auto codec = MakeCodec(GetParam(), FragmentSpan());
  std::vector<double> made(kReplicaSize), sent(kReplicaSize);
  for (int step = 1; step <= 100; ++step) {
    std::vector<float> gradient(kReplicaSize);
    for (float& value : gradient) value = static_cast<float>(random.Normal());
    if (step % 10 == 0) {  // A refused gradient leaves no trace, wherever the bad value is.
      std::vector<float> bad = gradient;
      bad[kReplicaSize - 1] = std::numeric_limits<float>::quiet_NaN();
      EXPECT_EQ(replica.Send(Sequence(step), bad).status().code(), absl::StatusCode::kInvalidArgument);
    }
    const auto payload = replica.Send(Sequence(step), gradient);
    ASSERT_TRUE(payload.ok());
    const std::vector<float> decoded = DecodeAll(**payload, fragments);
    for (int64_t i = 0; i < kReplicaSize; ++i) {
      made[i] += gradient[i];
      sent[i] += decoded[i];
      // The residual of one encoding and no more, however many steps there were; the sums are below 8, and with topk,
      // where a value waits for its turn, below 16.
      const double largest = GetParam() == CODEC_KIND_TOPK ? 16 : 8;
      ASSERT_LE(std::abs(made[i] - sent[i]), codec->ErrorBound(largest) + 1e-4)
          << "value " << i << " after step " << step;
    }
    EXPECT_EQ(replica.base()[0], 1.0f);
    EXPECT_EQ(theta[0], 1.0f);
  }
  const std::vector<float> target(kReplicaSize, 7.0f);
  ASSERT_TRUE(replica.Rebase(target, Sequence(99)).ok());
  EXPECT_EQ(theta, target) << "parameters do not hold a gradient, so nothing is pending in them";
  ASSERT_TRUE(replica.Drop(Sequence(100)).ok());
  EXPECT_EQ(theta, target);
}

// Its data is trained on again, and all of the gradient made again.
TEST_P(ReplicaGradient, NothingIsLeftOfOneThatDidNotCount) {
  Random random(DeriveSeed(kReplicaBaseSeed, "did not count"));
  std::vector<float> first(kReplicaSize), second(kReplicaSize);
  for (float& value : first) value = static_cast<float>(random.Normal());
  for (float& value : second) value = static_cast<float>(random.Normal());
  const auto fragments = CutFragments(kReplicaSize, kFragmentBytes);
  const auto make = [&](std::vector<float>* theta) {
    theta->assign(kReplicaSize, 1.0f);
    return std::make_unique<Replica>(absl::MakeSpan(*theta), fragments,
                                     Replica::Options{GetParam(), 1.0, PROGRESS_GRADIENT});
  };
  std::vector<float> theta;
  const auto fresh = make(&theta)->Send(Sequence(2), second);
  ASSERT_TRUE(fresh.ok());
  for (const char* end : {"drop", "take back", "not encoded"}) {
    std::vector<float> values;
    const auto replica = make(&values);
    if (std::string(end) == "not encoded") {
      std::vector<float> bad = first;
      bad.back() = std::numeric_limits<float>::max();  // Finite, and no codec need take it.
      if (replica->Send(Sequence(1), bad).ok()) continue;
    } else {
      ASSERT_TRUE(replica->Send(Sequence(1), first).ok());
      ASSERT_TRUE((std::string(end) == "drop" ? replica->Drop(Sequence(1)) : replica->TakeBack(Sequence(1))).ok());
    }
    const auto payload = replica->Send(Sequence(2), second);
    ASSERT_TRUE(payload.ok());
    EXPECT_EQ((*payload)->fragments, (*fresh)->fragments) << end;
  }
}

INSTANTIATE_TEST_SUITE_P(Codecs, ReplicaGradient,
                         testing::Values(CODEC_KIND_FP32, CODEC_KIND_BF16, CODEC_KIND_INT8, CODEC_KIND_INT4,
                                         CODEC_KIND_INT2, CODEC_KIND_TOPK, CODEC_KIND_MIXED));

}  // namespace
}  // namespace wukong
