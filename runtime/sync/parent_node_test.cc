#include "runtime/sync/parent_node.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "runtime/sync/node_options.h"

namespace wukong {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;
using testing::UnorderedElementsAre;
using Action = ParentNode::Action;
using Actions = std::vector<Action>;

ParentNode::Options ParentOptions(bool is_root, int64_t quorum) {
  ParentNode::Options options;
  options.is_root = is_root;
  Level& level = options.level;
  level.set_quorum(quorum);
  level.set_learning_rate(0.5);
  level.set_momentum(0);
  level.set_momentum_delay(1);
  level.set_weight(WEIGHT_EQUAL);
  level.set_staleness_max(8);
  level.set_staleness_decay(STALENESS_DECAY_NONE);
  level.set_mix(1);
  level.set_send_every(1);
  level.set_flush_age_ns(0);
  return options;
}

template <typename T>
std::vector<T> All(const Actions& actions) {
  std::vector<T> found;
  for (const Action& action : actions) {
    if (const T* one = std::get_if<T>(&action)) found.push_back(*one);
  }
  return found;
}

template <typename T>
T Only(const Actions& actions) {
  const std::vector<T> found = All<T>(actions);
  EXPECT_EQ(found.size(), 1u);
  return found.empty() ? T() : found.front();
}

// A node and its driver, whose checks accept everything unless told otherwise.
struct Node {
  explicit Node(const ParentNode::Options& options, int children = 3) : node(options) {
    for (int child = 1; child <= children; ++child) Attach(child);
  }
  Actions Step(const ParentNode::Event& event) { return node.Step(event, now); }
  Actions Attach(int64_t child, int64_t incarnation = 1) {
    return Step(ParentNode::ChildAttached{Key(child, incarnation)});
  }
  static MemberKey Key(int64_t child, int64_t incarnation = 1) { return {MemberId(child), Incarnation(incarnation)}; }
  // A manifest with two samples that nobody else has.
  Manifest Make(int64_t child, int64_t sequence, int64_t incarnation = 1) {
    Manifest manifest;
    manifest.sender = Key(child, incarnation);
    manifest.sequence = Sequence(sequence);
    manifest.base = node.version();
    manifest.root_base = root_base;
    manifest.steps = 1;
    manifest.tokens = 100;
    manifest.ranges = {{samples, samples + 2, samples + 1000}};
    samples += 2;
    return manifest;
  }
  Actions Offer(const Manifest& manifest) { return Step(ParentNode::Offered{Handle(++handle), manifest}); }
  Actions OfferAndAccept(const Manifest& manifest) {
    const Actions offered = Offer(manifest);
    EXPECT_EQ(All<ParentNode::Check>(offered).size(), 1u);
    return Step(ParentNode::Checked{Handle(handle), VERDICT_ACCEPTED, ""});
  }
  Actions Contribute(int64_t child, int64_t sequence, int64_t incarnation = 1) {
    return OfferAndAccept(Make(child, sequence, incarnation));
  }
  ParentNode node;
  absl::Time now = absl::UnixEpoch();
  Version root_base{1};
  int64_t handle = 0;
  int64_t samples = 0;
};

std::vector<double> Weights(const ParentNode::Apply& apply) {
  std::vector<double> weights;
  for (const Merge::Part& part : apply.merge.parts) weights.push_back(part.weight);
  return weights;
}

auto NearWeight(double value) { return testing::DoubleNear(value, 1e-12); }

TEST(ParentNodeQuorum, OneMergesEachContributionAsItComes) {
  Node n(ParentOptions(true, 1));
  const auto apply = Only<ParentNode::Apply>(n.Contribute(2, 1));
  EXPECT_THAT(Weights(apply), ElementsAre(NearWeight(1.0 / 3)));
  EXPECT_EQ(apply.merge.learning_rate, 0.5);
  EXPECT_EQ(apply.manifests[0].sender, Node::Key(2));
}

TEST(ParentNodeQuorum, AllWaitsForEveryChild) {
  Node n(ParentOptions(true, 0));
  EXPECT_THAT(All<ParentNode::Apply>(n.Contribute(1, 1)), IsEmpty());
  EXPECT_THAT(All<ParentNode::Apply>(n.Contribute(1, 2)), IsEmpty()) << "the same child twice is one child";
  EXPECT_THAT(All<ParentNode::Apply>(n.Contribute(2, 1)), IsEmpty());
  const auto apply = Only<ParentNode::Apply>(n.Contribute(3, 1));
  EXPECT_THAT(Weights(apply), ElementsAre(NearWeight(0.25), NearWeight(0.25), NearWeight(0.25), NearWeight(0.25)));
}

TEST(ParentNodeQuorum, ContributionsAreSetAgainstThoseThatCarryTheSameFragments) {
  ParentNode::Options options = ParentOptions(true, 0);
  options.parts = 4;
  Node n(options, /*children=*/2);
  EXPECT_THAT(All<ParentNode::Apply>(n.Contribute(1, 1)), IsEmpty());
  EXPECT_THAT(All<ParentNode::Apply>(n.Contribute(1, 2)), IsEmpty()) << "the faster of the two";
  const auto apply = Only<ParentNode::Apply>(n.Contribute(2, 1));
  EXPECT_THAT(Weights(apply), ElementsAre(NearWeight(0.5), NearWeight(0.5), NearWeight(0.5)))
      << "one's fragments move by half of it, whoever is ahead with others";
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(apply.merge.parts[i].sender, apply.manifests[i].sender.member);
}

// Two that are at other parts for good, as after one was started again, still weigh what they were trained on.
TEST(ParentNodeQuorum, WhoIsAloneWithItsFragmentsCountsByItsTokensAllTheSame) {
  ParentNode::Options options = ParentOptions(true, 0);
  options.parts = 4;
  options.level.set_weight(WEIGHT_TOKENS);
  Node n(options, /*children=*/2);
  const auto contribute = [&](int64_t child, int64_t sequence, int64_t incarnation, int64_t tokens) {
    Manifest manifest = n.Make(child, sequence, incarnation);
    manifest.tokens = tokens;
    return n.OfferAndAccept(manifest);
  };
  contribute(1, 1, 1, 800);
  contribute(2, 1, 1, 100);
  n.Attach(2, /*incarnation=*/2);
  EXPECT_THAT(All<ParentNode::Apply>(contribute(2, 1, 2, 100)), IsEmpty());
  const auto apply = Only<ParentNode::Apply>(contribute(1, 2, 1, 800));
  ASSERT_EQ(apply.merge.parts.size(), 2u);
  EXPECT_NEAR(apply.merge.parts[0].weight, 0.5 * 100 / 450, 1e-12);
  EXPECT_NEAR(apply.merge.parts[1].weight, 0.5 * 800 / 450, 1e-12);
}

// Grace: once the quorum is there, the others get a little time.
TEST(ParentNodeQuorum, AfterTheQuorumThereIsAGracePeriodUnlessEverybodyIsThere) {
  ParentNode::Options options = ParentOptions(true, 2);
  options.level.set_grace_ns(absl::ToInt64Nanoseconds(absl::Seconds(1)));
  Node n(options);
  EXPECT_THAT(All<ParentNode::Apply>(n.Contribute(1, 1)), IsEmpty());
  n.now += absl::Seconds(5);
  EXPECT_THAT(All<ParentNode::Apply>(n.Contribute(2, 1)), IsEmpty()) << "it begins with the quorum";
  n.now += absl::Milliseconds(999);
  EXPECT_THAT(All<ParentNode::Apply>(n.Step(ParentNode::Tick())), IsEmpty());
  n.now += absl::Milliseconds(1);
  EXPECT_THAT(Weights(Only<ParentNode::Apply>(n.Step(ParentNode::Tick()))),
              ElementsAre(NearWeight(1.0 / 3), NearWeight(1.0 / 3)));
  // With everybody there is nothing to wait for.
  n.Contribute(1, 2);
  n.Contribute(2, 2);
  EXPECT_THAT(Weights(Only<ParentNode::Apply>(n.Contribute(3, 1))),
              ElementsAre(NearWeight(1.0 / 3), NearWeight(1.0 / 3), NearWeight(1.0 / 3)));
  // Nor for a child that has nothing to do.
  n.Contribute(1, 3);
  n.Contribute(2, 3);
  EXPECT_EQ(All<ParentNode::Apply>(n.Step(ParentNode::IdleChildren{{MemberId(3)}})).size(), 1u);
}

TEST(ParentNodeQuorum, WithGraceAQuorumOfOneMergesWhatCameMeanwhile) {
  ParentNode::Options options = ParentOptions(true, 1);
  options.level.set_grace_ns(absl::ToInt64Nanoseconds(absl::Seconds(1)));
  Node n(options);
  EXPECT_THAT(All<ParentNode::Apply>(n.Contribute(1, 1)), IsEmpty());
  EXPECT_THAT(All<ParentNode::Apply>(n.Contribute(3, 1)), IsEmpty());
  n.now += absl::Seconds(1);
  EXPECT_EQ(Only<ParentNode::Apply>(n.Step(ParentNode::Tick())).merge.parts.size(), 2u);
}

TEST(ParentNodeWeight, TokensSquaredPerStepFavoursLargeSteps) {
  ParentNode::Options options = ParentOptions(true, 0);
  options.level.set_weight(WEIGHT_TOKENS_SQUARED_PER_STEP);
  Node n(options, 2);
  Manifest small = n.Make(1, 1);
  small.tokens = 100;
  small.steps = 10;  // 1000
  Manifest large = n.Make(2, 1);
  large.tokens = 200;
  large.steps = 10;  // 4000
  n.OfferAndAccept(small);
  const auto apply = Only<ParentNode::Apply>(n.OfferAndAccept(large));
  EXPECT_THAT(Weights(apply), ElementsAre(NearWeight(0.2), NearWeight(0.8)));
  EXPECT_THAT(apply.raw_weights, ElementsAre(1000, 4000));
}

TEST(ParentNodeWeight, ExponentialDecayTakesATenthPerVersion) {
  ParentNode::Options options = ParentOptions(true, 1);
  options.level.set_staleness_decay(STALENESS_DECAY_EXPONENTIAL);
  Node n(options, 1);
  const Manifest old = n.Make(1, 3);
  n.Contribute(1, 1);
  n.Step(ParentNode::FollowersReady());
  n.Contribute(1, 2);
  ASSERT_EQ(n.node.version(), Version(3));
  EXPECT_THAT(Weights(Only<ParentNode::Apply>(n.OfferAndAccept(old))), ElementsAre(NearWeight(0.81)));
}

// What came with a norm far beyond the usual counts as much as the usual: the weight says so, and the log has it.
TEST(ParentNodeRobust, NormsBeyondTheRatioAreClippedByTheWeight) {
  ParentNode::Options options = ParentOptions(true, 1);
  options.level.set_robust(ROBUST_NORM_CLIP);
  options.level.set_norm_ratio(3);
  Node n(options, 2);
  const auto contribute = [&](int64_t child, int64_t sequence, double norm, int64_t tokens) {
    Manifest manifest = n.Make(child, sequence);
    manifest.tokens = tokens;
    n.Offer(manifest);
    return Weights(Only<ParentNode::Apply>(n.Step(ParentNode::Checked{Handle(n.handle), VERDICT_ACCEPTED, "", norm})));
  };
  EXPECT_THAT(contribute(1, 1, 1000, 100), ElementsAre(NearWeight(0.5))) << "there is nothing to compare with yet";
  for (int64_t i = 1; i <= 20; ++i) EXPECT_THAT(contribute(2, i, 2, 100), ElementsAre(NearWeight(0.5)));
  EXPECT_THAT(contribute(1, 2, 6, 100), ElementsAre(NearWeight(0.5)));
  EXPECT_THAT(contribute(1, 3, 60, 100), ElementsAre(NearWeight(0.05)));
  EXPECT_THAT(contribute(1, 4, 60, 1000), ElementsAre(NearWeight(0.5)))
      << "ten times the tokens may move ten times as far";
  EXPECT_EQ(n.node.stats().clipped, 1);
}

TEST(ParentNodeLead, ChildrenHearHowFarTheyAreBeforeTheSlowest) {
  ParentNode::Options options = ParentOptions(false, 1);
  options.tells_lead = true;
  Node n(options);
  const auto leads = [&](const Actions& actions) {
    std::vector<int64_t> found;
    for (const auto& [child, lead] : Only<ParentNode::Publish>(actions).notes.lead) found.push_back(lead);
    n.Step(ParentNode::FollowersReady());
    return found;
  };
  EXPECT_THAT(leads(n.Contribute(1, 1)), ElementsAre(1, 0, 0));
  EXPECT_THAT(leads(n.Contribute(1, 2)), ElementsAre(2, 0, 0));
  EXPECT_THAT(leads(n.Contribute(2, 1)), ElementsAre(2, 1, 0));
  EXPECT_THAT(leads(n.Step(ParentNode::IdleChildren{{MemberId(3)}})), ElementsAre(1, 0, 0))
      << "nobody waits for who has no data";
  EXPECT_THAT(leads(n.Step(ParentNode::IdleChildren{})), ElementsAre(1, 0, 0)) << "nor until it has caught up";
  EXPECT_THAT(leads(n.Step(ParentNode::ChildFenced{Node::Key(3)})), ElementsAre(1, 0));
  n.Attach(4);
  EXPECT_THAT(leads(n.Contribute(1, 3)), ElementsAre(2, 0, 0)) << "who comes later begins with the slowest";
  // The whole region may be ahead of the others.
  ParentNode::ParentMoved moved{Version(5), 1000, 7};
  EXPECT_THAT(leads(n.Step(moved)), ElementsAre(7, 7, 7));
}

TEST(ParentNodeLead, NobodyWaitsForWhoComesOutOfQuarantineToCatchUp) {
  ParentNode::Options options = ParentOptions(false, 1);
  options.tells_lead = true;
  options.quarantine = absl::Seconds(30);
  Node n(options);
  for (int sequence = 1; sequence <= 3; ++sequence) {
    n.Offer(n.Make(3, sequence));
    n.Step(ParentNode::Checked{Handle(n.handle), VERDICT_NON_FINITE, ""});
  }
  ASSERT_THAT(n.node.Quarantined(n.now), ElementsAre(MemberId(3)));
  for (int sequence = 1; sequence <= 5; ++sequence) {
    n.Contribute(1, sequence);
    n.Contribute(2, sequence);
  }
  n.Step(ParentNode::FollowersReady());
  n.now += absl::Seconds(31);
  n.Contribute(1, 6);
  const auto publish = Only<ParentNode::Publish>(n.Step(ParentNode::FollowersReady()));
  for (const auto& [child, lead] : publish.notes.lead) EXPECT_LE(lead, 1);
}

TEST(ParentNodeQuorum, KMergesWhenKChildrenHaveSent) {
  Node n(ParentOptions(true, 2));
  EXPECT_THAT(All<ParentNode::Apply>(n.Contribute(3, 1)), IsEmpty());
  EXPECT_THAT(Weights(Only<ParentNode::Apply>(n.Contribute(1, 1))),
              ElementsAre(NearWeight(1.0 / 3), NearWeight(1.0 / 3)));
}

TEST(ParentNodeQuorum, IdleChildrenAreNotWaitedFor) {
  Node n(ParentOptions(true, 0));
  n.Contribute(1, 1);
  EXPECT_THAT(All<ParentNode::Apply>(n.Step(ParentNode::IdleChildren{{MemberId(2)}})), IsEmpty());
  const auto apply = Only<ParentNode::Apply>(n.Step(ParentNode::IdleChildren{{MemberId(2), MemberId(3)}}));
  EXPECT_THAT(Weights(apply), ElementsAre(NearWeight(1)));
}

TEST(ParentNodeQuorum, AQuorumOfKShrinksToTheChildrenThatAreAtWork) {
  Node n(ParentOptions(true, 3));
  n.Step(ParentNode::IdleChildren{{MemberId(2)}});
  n.Contribute(1, 1);
  EXPECT_EQ(All<ParentNode::Apply>(n.Contribute(3, 1)).size(), 1u);
  n.Step(ParentNode::IdleChildren{{MemberId(1), MemberId(2), MemberId(3)}});
  EXPECT_EQ(All<ParentNode::Apply>(n.Contribute(2, 1)).size(), 1u);
}

TEST(ParentNodeQuorum, AFencedChildIsNotWaitedFor) {
  Node n(ParentOptions(true, 0));
  n.Contribute(1, 1);
  n.Contribute(2, 1);
  EXPECT_EQ(All<ParentNode::Apply>(n.Step(ParentNode::ChildFenced{Node::Key(3)})).size(), 1u);
  EXPECT_EQ(n.node.live_children(), 2);
}

TEST(ParentNodeWeights, TokensAreSharesOfTheRoundsTokens) {
  ParentNode::Options options = ParentOptions(true, 0);
  options.level.set_weight(WEIGHT_TOKENS);
  Node n(options);
  Actions actions;
  const int64_t tokens[] = {100, 300, 600};
  for (int64_t child = 1; child <= 3; ++child) {
    Manifest manifest = n.Make(child, 1);
    manifest.tokens = tokens[child - 1];
    actions = n.OfferAndAccept(manifest);
  }
  EXPECT_THAT(Weights(Only<ParentNode::Apply>(actions)),
              ElementsAre(NearWeight(0.1), NearWeight(0.3), NearWeight(0.6)));
  EXPECT_EQ(n.node.stats().tokens_merged, 1000);
}

TEST(ParentNodeWeights, TokensWithoutARoundAreMeasuredByTheRecentMean) {
  ParentNode::Options options = ParentOptions(true, 1);
  options.level.set_weight(WEIGHT_TOKENS);
  Node n(options);
  double sum = 0;
  const int64_t tokens[] = {100, 300, 200, 400};  // Their mean is 250; a window of 16 holds four rounds of them.
  for (int64_t i = 1; i <= 400; ++i) {
    Manifest manifest = n.Make(1 + i % 3, 1 + (i - 1) / 3);
    manifest.tokens = tokens[i % 4];
    const auto apply = Only<ParentNode::Apply>(n.OfferAndAccept(manifest));
    n.Step(ParentNode::FollowersReady{});
    if (i > 100) sum += Weights(apply).at(0);
    if (i > 100) {
      EXPECT_NEAR(Weights(apply).at(0), static_cast<double>(manifest.tokens) / 250 / 3, 1e-9);
    }
  }
  EXPECT_NEAR(sum, 100, 1e-6) << "300 contributions of three children are 100 rounds";
}

TEST(ParentNodeWeights, StaleContributionsCountLessAndTheRestIsNotMadeUp) {
  ParentNode::Options options = ParentOptions(true, 1);
  options.level.set_staleness_decay(STALENESS_DECAY_POLYNOMIAL);
  Node n(options);
  Manifest old = n.Make(1, 1);
  for (int i = 1; i <= 3; ++i) {
    n.Contribute(2, i);
    n.Step(ParentNode::FollowersReady{});
  }
  ASSERT_EQ(n.node.version(), Version(4));
  const auto apply = Only<ParentNode::Apply>(n.OfferAndAccept(old));
  EXPECT_THAT(Weights(apply), ElementsAre(NearWeight(1.0 / 3 / 2)));  // 1 / sqrt(1 + 3)
  EXPECT_EQ(apply.staleness_max, 3);
  EXPECT_EQ(n.node.stats().staleness.at(3), 1);
}

TEST(ParentNodeWeights, ARoundMovesByTheLearningRateTimesTheMeanHoweverItIsCut) {
  for (int64_t quorum = 0; quorum <= 4; ++quorum) {
    Node n(ParentOptions(true, quorum), 4);
    double sum = 0;
    int merged = 0;
    const int rounds = 12;  // A multiple of every cut.
    for (int round = 1; round <= rounds; ++round) {
      for (int64_t child = 1; child <= 4; ++child) {
        for (const auto& apply : All<ParentNode::Apply>(n.Contribute(child, round))) {
          for (const double weight : Weights(apply)) sum += weight;
          merged += static_cast<int>(apply.manifests.size());
        }
      }
    }
    EXPECT_EQ(merged, 4 * rounds);
    EXPECT_NEAR(sum, rounds, 1e-9) << "quorum " << quorum;
  }
}

TEST(ParentNodeMomentum, StepsAtEveryDelaythMergeOrOncePerRound) {
  const struct {
    int64_t delay;
    std::vector<bool> steps;
  } rows[] = {{1, {true, true, true, true, true, true}},
              {2, {false, true, false, true, false, true}},
              {0, {false, false, true, false, false, true}}};  // Three children.
  for (const auto& row : rows) {
    ParentNode::Options options = ParentOptions(true, 1);
    options.level.set_momentum(0.9);
    options.level.set_momentum_delay(row.delay);
    Node n(options);
    std::vector<bool> steps;
    for (int i = 0; i < 6; ++i) {
      const auto apply = Only<ParentNode::Apply>(n.Contribute(1 + i % 3, 1 + i / 3));
      EXPECT_EQ(apply.merge.momentum, 0.9);
      steps.push_back(apply.merge.momentum_step);
    }
    EXPECT_EQ(steps, row.steps) << "delay " << row.delay;
  }
}

TEST(ParentNodeVerdicts, ARepeatGetsTheFirstVerdict) {
  Node n(ParentOptions(true, 1));
  const Manifest good = n.Make(1, 1), bad = n.Make(1, 2);
  n.OfferAndAccept(good);
  n.Offer(bad);
  n.Step(ParentNode::Checked{Handle(n.handle), VERDICT_NON_FINITE, "NaN"});
  const Actions again = n.Offer(good);
  EXPECT_EQ(Only<ParentNode::Reply>(again).verdict, VERDICT_ACCEPTED);
  EXPECT_FALSE(Only<ParentNode::Reply>(again).keep_payload) << "it is in the parameters already";
  EXPECT_THAT(All<ParentNode::Apply>(again), IsEmpty());
  EXPECT_EQ(Only<ParentNode::Reply>(n.Offer(bad)).verdict, VERDICT_NON_FINITE);
  EXPECT_EQ(n.node.stats().contributions.at(VERDICT_ACCEPTED), 1) << "repeats are not counted";
  EXPECT_EQ(n.node.stats().contributions.at(VERDICT_NON_FINITE), 1);
}

TEST(ParentNodeGuards, AnAbsurdNormIsMeasuredAgainstTheMedianOfTheLastOnes) {
  ParentNode::Options options = ParentOptions(true, 1);
  options.norm_ratio_max = 10;
  Node n(options);
  for (int sequence = 1; sequence <= 16; ++sequence) {
    const auto check = Only<ParentNode::Check>(n.Offer(n.Make(1, sequence)));
    EXPECT_EQ(check.norm_max, 0) << "too few to know what is usual";
    // One that is far out does not move the median.
    n.Step(ParentNode::Checked{check.handle, VERDICT_ACCEPTED, "", sequence == 3 ? 1e6 : 2.0});
  }
  EXPECT_DOUBLE_EQ(Only<ParentNode::Check>(n.Offer(n.Make(1, 17))).norm_max, 20.0);
}

// Training that comes to a steep place makes all gradients large: to refuse them all would be to stop for ever.
TEST(ParentNodeGuards, NormsThatHalfOfTheOthersHaveAreNoDamage) {
  ParentNode::Options options = ParentOptions(true, 1);
  options.norm_ratio_max = 10;
  Node n(options, 4);
  std::map<int64_t, int64_t> sequence;
  const auto bound = [&](int64_t child) {
    return Only<ParentNode::Check>(n.Offer(n.Make(child, ++sequence[child]))).norm_max;
  };
  const auto check = [&](Verdict verdict, double norm) {
    n.Step(ParentNode::Checked{Handle(n.handle), verdict, "", norm});
  };
  for (int i = 0; i < 20; ++i) {
    bound(1 + i % 4);
    check(VERDICT_ACCEPTED, 2);
  }
  EXPECT_DOUBLE_EQ(bound(1), 20);
  check(VERDICT_NORM, 0);
  EXPECT_DOUBLE_EQ(bound(2), 20) << "one of the three others may be damaged";
  check(VERDICT_NORM, 0);
  EXPECT_EQ(bound(3), 0) << "two of three are not";
  check(VERDICT_ACCEPTED, 90);
  EXPECT_EQ(bound(4), 0);
  check(VERDICT_ACCEPTED, 2);
  EXPECT_EQ(bound(1), 0) << "two of the three others still are";
  check(VERDICT_ACCEPTED, 2);
  EXPECT_DOUBLE_EQ(bound(3), 20) << "the place is behind them: one of three is not enough";
}

// Parts of the parameters have norms of their own: what is usual for one is absurd for another.
TEST(ParentNodeGuards, WithPartsTheLargestPartIsTheMeasure) {
  ParentNode::Options options = ParentOptions(true, 1);
  options.norm_ratio_max = 10;
  options.parts = 4;
  Node n(options, 1);
  for (int sequence = 1; sequence <= 16; ++sequence) {
    n.Offer(n.Make(1, sequence));
    n.Step(ParentNode::Checked{Handle(n.handle), VERDICT_ACCEPTED, "", sequence % 4 == 1 ? 7.0 : 0.01});
  }
  EXPECT_DOUBLE_EQ(Only<ParentNode::Check>(n.Offer(n.Make(1, 17))).norm_max, 70);
}

TEST(ParentNodeGuards, AnOnlyChildIsBelievedTheSecondTime) {
  ParentNode::Options options = ParentOptions(true, 1);
  options.norm_ratio_max = 10;
  Node n(options, 1);
  for (int sequence = 1; sequence <= 16; ++sequence) {
    n.Offer(n.Make(1, sequence));
    n.Step(ParentNode::Checked{Handle(n.handle), VERDICT_ACCEPTED, "", 2.0});
  }
  EXPECT_DOUBLE_EQ(Only<ParentNode::Check>(n.Offer(n.Make(1, 17))).norm_max, 20);
  n.Step(ParentNode::Checked{Handle(n.handle), VERDICT_NORM, "", 0});
  EXPECT_EQ(Only<ParentNode::Check>(n.Offer(n.Make(1, 18))).norm_max, 0);
}

TEST(ParentNodeGuards, WhoSendsDamageAgainAndAgainIsLeftOutForAWhile) {
  ParentNode::Options options = ParentOptions(true, 1);
  options.quarantine = absl::Seconds(30);
  Node n(options);
  int64_t sequence = 0;
  const auto send = [&](Verdict verdict) {
    const Actions offered = n.Offer(n.Make(1, ++sequence));
    if (All<ParentNode::Check>(offered).empty()) return Only<ParentNode::Reply>(offered).verdict;
    return Only<ParentNode::Reply>(n.Step(ParentNode::Checked{Handle(n.handle), verdict, ""})).verdict;
  };
  send(VERDICT_NON_FINITE);
  send(VERDICT_NORM);
  EXPECT_EQ(send(VERDICT_ACCEPTED), VERDICT_ACCEPTED) << "two are an accident";
  send(VERDICT_NORM);
  send(VERDICT_NON_FINITE);
  EXPECT_EQ(send(VERDICT_NORM), VERDICT_NORM);
  n.now += absl::Seconds(29);
  EXPECT_EQ(send(VERDICT_ACCEPTED), VERDICT_QUARANTINED);
  EXPECT_EQ(Only<ParentNode::Reply>(n.Contribute(2, 1)).verdict, VERDICT_ACCEPTED) << "others are not touched";
  n.now += absl::Seconds(2);
  EXPECT_EQ(send(VERDICT_ACCEPTED), VERDICT_ACCEPTED);
  EXPECT_EQ(n.node.stats().contributions.at(VERDICT_QUARANTINED), 1);
  EXPECT_THAT(n.node.stats().refused, UnorderedElementsAre(Pair(Pair(MemberId(1), VERDICT_NON_FINITE), 2),
                                                           Pair(Pair(MemberId(1), VERDICT_NORM), 3),
                                                           Pair(Pair(MemberId(1), VERDICT_QUARANTINED), 1)));
}

TEST(ParentNodeGuards, NoQuorumWaitsForWhoIsInQuarantine) {
  ParentNode::Options options = ParentOptions(true, 0);  // All of three.
  options.quarantine = absl::Seconds(30);
  Node n(options);
  n.Contribute(2, 1);
  EXPECT_THAT(All<ParentNode::Apply>(n.Contribute(3, 1)), IsEmpty()) << "1 is still to come";
  for (int sequence = 1; sequence <= 3; ++sequence) {
    EXPECT_THAT(n.node.Quarantined(n.now), IsEmpty());
    n.Offer(n.Make(1, sequence));
    const Actions refused = n.Step(ParentNode::Checked{Handle(n.handle), VERDICT_NON_FINITE, ""});
    EXPECT_EQ(All<ParentNode::Apply>(refused).size(), sequence == 3 ? 1u : 0u);
  }
  EXPECT_THAT(n.node.Quarantined(n.now), ElementsAre(MemberId(1)));
  n.Contribute(2, 2);
  EXPECT_EQ(Only<ParentNode::Apply>(n.Contribute(3, 2)).manifests.size(), 2u);
  n.now += absl::Seconds(31);
  EXPECT_THAT(n.node.Quarantined(n.now), IsEmpty());
  n.Contribute(2, 3);
  EXPECT_THAT(All<ParentNode::Apply>(n.Contribute(3, 3)), IsEmpty()) << "it is one of them again";
  EXPECT_EQ(Only<ParentNode::Apply>(n.Contribute(1, 4)).manifests.size(), 3u);
}

TEST(ParentNodeGuards, RefusalsOfMoreSendersThanCanBeToldApartAreStillCounted) {
  Node n(ParentOptions(true, 1));
  for (int64_t stranger = 100; stranger < 100 + 5000; ++stranger) n.Offer(n.Make(stranger, 1));
  int64_t counted = 0;
  for (const auto& [who, count] : n.node.stats().refused) counted += count;
  EXPECT_EQ(counted, 5000);
  EXPECT_LE(n.node.stats().refused.size(), 4097u);
  EXPECT_GT(n.node.stats().refused.at({MemberId(0), VERDICT_FENCED}), 0);
}

TEST(ParentNodeRestored, RemembersItsChildrenTheirAnswersAndWhatWaitsForItsQuorum) {
  RootState state;
  state.set_version(7);
  state.set_tokens_merged(500);
  for (int member = 1; member <= 2; ++member) {
    RootMember* child = state.add_members();
    child->set_member(member);
    child->set_incarnation(2);
    child->set_fenced_below(2);
    child->set_role(ROLE_AGGREGATOR);
    child->set_offered(4);
    child->set_included(3);
    VerdictKept* kept = child->add_verdicts();
    kept->set_sequence(4);
    kept->set_verdict(member == 1 ? VERDICT_ACCEPTED : VERDICT_STALE);
  }
  ContributionHeader* waiting = state.add_unmerged()->mutable_header();
  waiting->set_member(1);
  waiting->set_incarnation(2);
  waiting->set_sequence(4);
  waiting->set_tokens(100);
  waiting->set_base_version(7);

  Node n(ParentOptions(true, 0), 0);
  n.node.Restore(state, {Handle(1)});
  n.handle = 1;
  const auto published = Only<ParentNode::Publish>(n.Step(ParentNode::Tick{}));
  EXPECT_EQ(published.version, Version(8)) << "what was merged last may not have been told";
  EXPECT_EQ(published.notes.included.at(Node::Key(1, 2)), Sequence(3));
  EXPECT_EQ(Only<ParentNode::Reply>(n.Offer(n.Make(1, 4, 2))).verdict, VERDICT_ACCEPTED) << "a repeat";
  EXPECT_EQ(Only<ParentNode::Reply>(n.Offer(n.Make(2, 4, 2))).verdict, VERDICT_STALE);
  EXPECT_EQ(Only<ParentNode::Reply>(n.Offer(n.Make(2, 5, 1))).verdict, VERDICT_FENCED);
  const auto apply = Only<ParentNode::Apply>(n.Contribute(2, 5, 2));
  ASSERT_EQ(apply.manifests.size(), 2u) << "with what had been accepted before";
  EXPECT_EQ(apply.manifests[0].sequence, Sequence(4));
  EXPECT_EQ(n.node.stats().tokens_merged, 700);
}

// A version without anything new would make older what waits for its quorum, beyond the bound where that is 0.
TEST(ParentNodeRestored, TellsAgainOnlyWhatWasNotTold) {
  RootState state;
  state.set_version(7);
  RootMember* child = state.add_members();
  child->set_member(1);
  child->set_incarnation(2);
  child->set_role(ROLE_AGGREGATOR);
  child->set_included(3);
  child->set_told(2);
  const VersionNotes notes = NotesOf(state);
  EXPECT_THAT(notes.included, ElementsAre(Pair(Node::Key(1, 2), Sequence(2)))) << "3 was merged after version 7";
  EXPECT_EQ(notes.root_version, Version(7));
  for (const bool told : {false, true}) {
    state.set_told(told);
    Node n(ParentOptions(true, 0), 0);
    n.node.Restore(state, {});
    EXPECT_EQ(All<ParentNode::Publish>(n.Step(ParentNode::Tick{})).size(), told ? 0u : 1u);
  }
}

TEST(ParentNodeVerdicts, ARepeatWhileItIsBeingCheckedWaitsForTheSameVerdict) {
  for (const Verdict verdict : {VERDICT_ACCEPTED, VERDICT_RANGES}) {
    Node n(ParentOptions(true, 1));
    const Manifest manifest = n.Make(1, 1);
    n.Offer(manifest);
    EXPECT_THAT(n.Offer(manifest), IsEmpty());
    EXPECT_THAT(n.Offer(manifest), IsEmpty());
    const Actions actions = n.Step(ParentNode::Checked{Handle(1), verdict, ""});
    std::vector<std::pair<Handle, Verdict>> replies;
    int kept = 0;
    for (const auto& reply : All<ParentNode::Reply>(actions)) {
      replies.emplace_back(reply.handle, reply.verdict);
      kept += reply.keep_payload ? 1 : 0;
    }
    EXPECT_THAT(replies,
                UnorderedElementsAre(Pair(Handle(1), verdict), Pair(Handle(2), verdict), Pair(Handle(3), verdict)));
    EXPECT_EQ(kept, verdict == VERDICT_ACCEPTED ? 1 : 0);
    EXPECT_EQ(All<ParentNode::Apply>(actions).size(), verdict == VERDICT_ACCEPTED ? 1u : 0u);
  }
}

ParentNode::Options WithInFlight(int in_flight_max) {
  ParentNode::Options options = ParentOptions(true, 1);
  options.in_flight_max = in_flight_max;
  return options;
}

TEST(ParentNodeVerdicts, WhatOvertookOthersIsTakenUpAfterThem) {
  Node n(WithInFlight(3));
  const Manifest first = n.Make(1, 1), second = n.Make(1, 2), third = n.Make(1, 3);
  for (const Manifest& early : {third, second}) {
    const Actions actions = n.Offer(early);
    ASSERT_EQ(actions.size(), 1u);
    EXPECT_EQ(Only<ParentNode::Keep>(actions).handle, Handle(n.handle));
  }
  n.Contribute(2, 1);  // Another sender's are none of its business.
  Actions actions = n.Offer(first);
  for (const int64_t handle : {4, 2, 1}) {
    EXPECT_EQ(Only<ParentNode::Check>(actions).handle, Handle(handle)) << "one at a time: decisions have an order";
    const Verdict verdict = handle == 4 ? VERDICT_NON_FINITE : VERDICT_ACCEPTED;
    actions = n.Step(ParentNode::Checked{Handle(handle), verdict, ""});
    EXPECT_EQ(Only<ParentNode::Reply>(actions).verdict, verdict);
    EXPECT_EQ(All<ParentNode::Apply>(actions).size(), handle == 4 ? 0u : 1u);
  }
  EXPECT_EQ(Only<ParentNode::Reply>(n.Offer(third)).verdict, VERDICT_ACCEPTED) << "a repeat";
}

TEST(ParentNodeVerdicts, TheNextWaitsWhileOneIsBeingChecked) {
  Node n(WithInFlight(2));
  n.Offer(n.Make(1, 1));
  EXPECT_EQ(Only<ParentNode::Keep>(n.Offer(n.Make(1, 2))).handle, Handle(2));
  EXPECT_EQ(Only<ParentNode::Check>(n.Offer(n.Make(2, 1))).handle, Handle(3)) << "another sender's";
  const Actions actions = n.Step(ParentNode::Checked{Handle(1), VERDICT_NORM, ""});
  EXPECT_EQ(Only<ParentNode::Check>(actions).handle, Handle(2));
}

TEST(ParentNodeVerdicts, WhatIsSentAgainBeforeItsTurnTakesThePlaceOfTheFirst) {
  Node n(WithInFlight(2));
  const Manifest first = n.Make(1, 1), second = n.Make(1, 2);
  n.Offer(second);
  const Actions again = n.Offer(second);
  EXPECT_EQ(Only<ParentNode::Reply>(again).handle, Handle(1)) << "nobody waits for this one any more";
  EXPECT_EQ(Only<ParentNode::Reply>(again).verdict, VERDICT_OUT_OF_ORDER);
  EXPECT_EQ(Only<ParentNode::Keep>(again).handle, Handle(2));
  n.Offer(first);
  const Actions checked = n.Step(ParentNode::Checked{Handle(3), VERDICT_ACCEPTED, ""});
  EXPECT_EQ(Only<ParentNode::Check>(checked).handle, Handle(2));
}

TEST(ParentNodeVerdicts, WhatIsRefusedHoldsNothingUp) {
  ParentNode::Options options = WithInFlight(2);
  options.level.set_staleness_max(0);
  Node n(options);
  const Manifest stale = n.Make(1, 1);
  n.Contribute(2, 1);
  n.Step(ParentNode::FollowersReady{});
  const Manifest fresh = n.Make(1, 2);
  n.Offer(fresh);
  const Actions actions = n.Offer(stale);
  EXPECT_EQ(Only<ParentNode::Reply>(actions).verdict, VERDICT_STALE);
  EXPECT_EQ(Only<ParentNode::Check>(actions).handle, Handle(2));
}

// It would be merged a version later than the bound allows otherwise.
TEST(ParentNodeVerdicts, WhatWaitedForTheOneBeforeItIsJudgedByTheVersionThatThatOneMade) {
  ParentNode::Options options = WithInFlight(2);
  options.level.set_staleness_max(0);
  Node n(options);
  const Manifest first = n.Make(1, 1), second = n.Make(1, 2);
  n.Step(ParentNode::FollowersReady{});
  EXPECT_EQ(All<ParentNode::Keep>(n.Offer(second)).size(), 1u);
  EXPECT_EQ(Only<ParentNode::Check>(n.Offer(first)).handle, Handle(2));
  const Actions actions = n.Step(ParentNode::Checked{Handle(2), VERDICT_ACCEPTED, ""});
  EXPECT_EQ(All<ParentNode::Publish>(actions).size(), 1u);
  EXPECT_THAT(All<ParentNode::Check>(actions), IsEmpty());
  std::vector<std::pair<Handle, Verdict>> replies;
  for (const auto& reply : All<ParentNode::Reply>(actions)) replies.emplace_back(reply.handle, reply.verdict);
  EXPECT_THAT(replies, UnorderedElementsAre(Pair(Handle(1), VERDICT_STALE), Pair(Handle(2), VERDICT_ACCEPTED)));
}

TEST(ParentNodeVerdicts, AFencedLifesEarlyContributionsAreRefused) {
  for (const bool by_a_new_life : {false, true}) {
    Node n(WithInFlight(3));
    n.Offer(n.Make(1, 3));
    n.Offer(n.Make(1, 2));
    const Actions actions = by_a_new_life ? n.Attach(1, 2) : n.Step(ParentNode::ChildFenced{Node::Key(1)});
    std::vector<std::pair<Handle, Verdict>> replies;
    for (const auto& reply : All<ParentNode::Reply>(actions)) {
      replies.emplace_back(reply.handle, reply.verdict);
      EXPECT_FALSE(reply.decided) << "a log has never heard of it";
    }
    EXPECT_THAT(replies, UnorderedElementsAre(Pair(Handle(1), VERDICT_FENCED), Pair(Handle(2), VERDICT_FENCED)));
    if (by_a_new_life) n.Contribute(1, 1, 2);
  }
}

TEST(ParentNodeVerdicts, NoMoreAreKeptThanASenderMayHaveInFlight) {
  Node n(WithInFlight(3));
  EXPECT_EQ(Only<ParentNode::Reply>(n.Offer(n.Make(1, 4))).verdict, VERDICT_OUT_OF_ORDER);
  EXPECT_EQ(All<ParentNode::Keep>(n.Offer(n.Make(1, 3))).size(), 1u);
}

TEST(ParentNodeVerdicts, StaleContributionsAreRefusedWithoutACheck) {
  ParentNode::Options options = ParentOptions(true, 1);
  options.level.set_staleness_max(2);
  Node n(options);
  const Manifest within = n.Make(1, 1), beyond = n.Make(3, 1);
  for (int i = 1; i <= 2; ++i) {
    n.Contribute(2, i);
    n.Step(ParentNode::FollowersReady{});
  }
  EXPECT_EQ(All<ParentNode::Apply>(n.OfferAndAccept(within)).size(), 1u);
  n.Step(ParentNode::FollowersReady{});
  const Actions actions = n.Offer(beyond);
  EXPECT_THAT(All<ParentNode::Check>(actions), IsEmpty());
  const auto reply = Only<ParentNode::Reply>(actions);
  EXPECT_EQ(reply.verdict, VERDICT_STALE);
  EXPECT_THAT(reply.detail, testing::HasSubstr("3 versions behind, staleness_max is 2"));
  EXPECT_EQ(Only<ParentNode::Reply>(n.Offer(beyond)).verdict, VERDICT_STALE);
  n.Contribute(3, 2);  // The next sequence is welcome.
}

TEST(ParentNodeVerdicts, ALateCheckOfWhatWasRefusedMeanwhileChangesNothing) {
  Node n(ParentOptions(true, 1));
  n.Offer(n.Make(1, 1));
  const Actions fenced = n.Step(ParentNode::ChildFenced{Node::Key(1)});
  EXPECT_EQ(Only<ParentNode::Reply>(fenced).verdict, VERDICT_FENCED);
  EXPECT_THAT(n.Step(ParentNode::Checked{Handle(1), VERDICT_ACCEPTED, ""}), IsEmpty());
  EXPECT_EQ(n.node.live_children(), 2);
}

TEST(ParentNodeFencing, StrangersAndFencedLivesAreRefused) {
  Node n(ParentOptions(true, 1));
  EXPECT_EQ(Only<ParentNode::Reply>(n.Offer(n.Make(9, 1))).verdict, VERDICT_FENCED);
  n.Step(ParentNode::ChildFenced{Node::Key(1)});
  n.Attach(1, 1);
  EXPECT_EQ(Only<ParentNode::Reply>(n.Offer(n.Make(1, 1))).verdict, VERDICT_FENCED) << "it may not come back";
  n.Attach(1, 2);
  EXPECT_EQ(All<ParentNode::Apply>(n.Contribute(1, 1, 2)).size(), 1u);
}

TEST(ParentNodeFencing, ANewLifeFencesTheOlderOnes) {
  Node n(ParentOptions(true, 1));
  n.Offer(n.Make(1, 1));
  const Actions actions = n.Attach(1, 2);
  EXPECT_EQ(Only<ParentNode::Reply>(actions).verdict, VERDICT_FENCED) << "what is being checked is not taken any more";
  EXPECT_EQ(Only<ParentNode::Reply>(n.Offer(n.Make(1, 2))).verdict, VERDICT_FENCED);
  EXPECT_EQ(All<ParentNode::Apply>(n.Contribute(1, 1, 2)).size(), 1u) << "sequences begin at 1 again";
  n.Attach(1, 1);
  EXPECT_EQ(All<ParentNode::Apply>(n.Contribute(1, 2, 2)).size(), 1u) << "an older life does not replace it";
}

TEST(ParentNodeFencing, AFenceOfALifeThatNeverAttachedCoversTheOnesBefore) {
  Node n(ParentOptions(true, 0));
  n.Offer(n.Make(1, 1));
  EXPECT_EQ(Only<ParentNode::Reply>(n.Step(ParentNode::ChildFenced{Node::Key(1, 2)})).verdict, VERDICT_FENCED);
  n.Step(ParentNode::Checked{Handle(1), VERDICT_ACCEPTED, ""});
  EXPECT_EQ(n.node.live_children(), 2) << "a fenced child must not be waited for again";
  n.Contribute(2, 1);
  EXPECT_EQ(All<ParentNode::Apply>(n.Contribute(3, 1)).size(), 1u);
}

TEST(ParentNodeFencing, FollowingAgainIsTheSameLife) {
  Node n(ParentOptions(true, 1));
  n.Contribute(1, 1);
  n.Attach(1, 1);
  EXPECT_EQ(All<ParentNode::Apply>(n.Contribute(1, 2)).size(), 1u);
}

TEST(ParentNodeFencing, WhatWasAcceptedBeforeTheFenceIsMergedButIsNotTheNewLifes) {
  Node n(ParentOptions(true, 0));
  n.Contribute(1, 1);
  n.Contribute(1, 2);
  n.Attach(1, 2);
  n.Contribute(2, 1);
  const Actions actions = n.Contribute(3, 1);
  EXPECT_EQ(Only<ParentNode::Apply>(actions).manifests.size(), 4u);
  const auto included = Only<ParentNode::Publish>(actions).notes.included;
  EXPECT_EQ(included.count(Node::Key(1, 2)), 0u)
      << "the new life has sent nothing: told that its 2 is included, it would take its first two for merged";
  EXPECT_EQ(included.at(Node::Key(2)), Sequence(1));
}

TEST(ParentNodePublish, VersionsOnlyRiseAndWaitForAFollower) {
  Node n(ParentOptions(true, 1));
  EXPECT_EQ(Only<ParentNode::Publish>(n.Contribute(1, 1)).version, Version(2));
  EXPECT_THAT(All<ParentNode::Publish>(n.Contribute(2, 1)), IsEmpty()) << "nobody has taken version 2 yet";
  EXPECT_THAT(All<ParentNode::Publish>(n.Contribute(1, 2)), IsEmpty());
  const auto publish = Only<ParentNode::Publish>(n.Step(ParentNode::FollowersReady{}));
  EXPECT_EQ(publish.version, Version(3)) << "two merges, one version";
  EXPECT_THAT(publish.notes.included,
              UnorderedElementsAre(Pair(Node::Key(1), Sequence(2)), Pair(Node::Key(2), Sequence(1))));
  EXPECT_EQ(publish.notes.root_version, Version(3));
  EXPECT_EQ(publish.notes.tokens_committed, 300);
  EXPECT_THAT(All<ParentNode::Publish>(n.Step(ParentNode::FollowersReady{})), IsEmpty()) << "there is nothing new";
}

// ---- a region

TEST(ParentNodeRegion, SendsAfterSoManyContributions) {
  ParentNode::Options options = ParentOptions(false, 1);
  options.level.set_send_every(3);
  Node n(options);
  n.root_base = Version(9);
  EXPECT_THAT(All<ParentNode::SendUp>(n.Contribute(1, 1)), IsEmpty());
  n.root_base = Version(7);
  EXPECT_THAT(All<ParentNode::SendUp>(n.Contribute(2, 1)), IsEmpty());
  n.root_base = Version(8);
  const auto send = Only<ParentNode::SendUp>(n.Contribute(1, 2));
  EXPECT_EQ(send.manifest.sequence, Sequence(1));
  EXPECT_EQ(send.manifest.base, Version(7)) << "the oldest of the root's versions that any step began from";
  EXPECT_EQ(send.manifest.root_base, Version(7));
  EXPECT_EQ(send.manifest.steps, 3);
  EXPECT_EQ(send.manifest.tokens, 300);
  EXPECT_THAT(send.manifest.ranges,
              ElementsAre(LeasedRange{0, 2, 1000}, LeasedRange{2, 4, 1002}, LeasedRange{4, 6, 1004}));
}

TEST(ParentNodeRegion, SendEveryAllIsOncePerWorkerAtWork) {
  ParentNode::Options options = ParentOptions(false, 1);
  options.level.set_send_every(0);
  Node n(options);
  n.Step(ParentNode::IdleChildren{{MemberId(3)}});
  EXPECT_THAT(All<ParentNode::SendUp>(n.Contribute(1, 1)), IsEmpty());
  EXPECT_EQ(All<ParentNode::SendUp>(n.Contribute(1, 2)).size(), 1u);
}

// Else those who are left would wait for the root, and their region for who is gone.
TEST(ParentNodeRegion, WhereSendersWaitNoMoreIsWaitedForThanCanCome) {
  ParentNode::Options options = ParentOptions(false, 0);
  options.level.set_send_every(3);
  options.waits = true;
  Node n(options);
  EXPECT_THAT(All<ParentNode::SendUp>(n.Contribute(1, 1)), IsEmpty());
  EXPECT_THAT(All<ParentNode::SendUp>(n.Contribute(2, 1)), IsEmpty());
  EXPECT_EQ(All<ParentNode::SendUp>(n.Step(ParentNode::ChildFenced{Node::Key(3)})).size(), 1u);
}

TEST(ParentNodeRegion, WhereNobodyIsLeftNothingIsWaitedFor) {
  ParentNode::Options options = ParentOptions(false, 1);
  options.level.set_send_every(2);
  options.waits = true;
  options.in_flight_max = 2;
  Node n(options);
  EXPECT_THAT(All<ParentNode::SendUp>(n.Contribute(1, 1)), IsEmpty());
  size_t sent = 0;
  for (const int64_t child : {1, 2, 3}) {
    sent += All<ParentNode::SendUp>(n.Step(ParentNode::ChildFenced{Node::Key(child)})).size();
  }
  EXPECT_EQ(sent, 1u);
}

TEST(ParentNodeRegion, ProgressThatIsOldEnoughIsSent) {
  ParentNode::Options options = ParentOptions(false, 1);
  options.level.set_send_every(100);
  options.level.set_flush_age_ns(5'000'000'000);
  Node n(options);
  n.now += absl::Seconds(60);
  EXPECT_THAT(All<ParentNode::SendUp>(n.Step(ParentNode::Tick{})), IsEmpty());
  n.Contribute(1, 1);
  n.now += absl::Seconds(4);
  EXPECT_THAT(All<ParentNode::SendUp>(n.Contribute(2, 1)), IsEmpty());
  n.now += absl::Seconds(1);
  EXPECT_EQ(Only<ParentNode::SendUp>(n.Step(ParentNode::Tick{})).manifest.steps, 2);
  n.now += absl::Seconds(60);
  EXPECT_THAT(All<ParentNode::SendUp>(n.Step(ParentNode::Tick{})), IsEmpty());
}

TEST(ParentNodeRegion, DrainingSendsWhatThereIs) {
  ParentNode::Options options = ParentOptions(false, 1);
  options.level.set_send_every(100);
  Node n(options);
  n.Contribute(1, 1);
  EXPECT_EQ(All<ParentNode::SendUp>(n.Step(ParentNode::Drain{true})).size(), 1u);
  EXPECT_THAT(All<ParentNode::SendUp>(n.Step(ParentNode::Drain{true})), IsEmpty());
  n.Step(ParentNode::Drain{false});
  EXPECT_THAT(All<ParentNode::SendUp>(n.Contribute(2, 1)), IsEmpty());
}

TEST(ParentNodeRegion, SomebodysLastContributionWaitsForNoOthers) {
  ParentNode::Options options = ParentOptions(false, 1);
  options.level.set_send_every(100);
  options.in_flight_max = 2;
  Node n(options);
  EXPECT_THAT(All<ParentNode::SendUp>(n.Contribute(1, 1)), IsEmpty());
  Manifest last = n.Make(1, 2);
  last.last = true;
  const ParentNode::SendUp sent = Only<ParentNode::SendUp>(n.OfferAndAccept(last));
  EXPECT_EQ(sent.manifest.steps, 2);
  EXPECT_TRUE(sent.whole) << "nothing may come after it that would bring the other parts";
  n.Step(ParentNode::Written{Sequence(1)});
  EXPECT_THAT(All<ParentNode::SendUp>(n.Contribute(2, 1)), IsEmpty()) << "the others have data";
}

// What the root lost with its life is not the region's to know; what it holds itself is safe only once it is there.
TEST(ParentNodeRegion, WhenTheRootIsBackTheNextWaitsForNoOthers) {
  ParentNode::Options options = ParentOptions(false, 1);
  options.level.set_send_every(3);
  options.in_flight_max = 2;
  Node n(options);
  n.Contribute(1, 1);
  EXPECT_EQ(Only<ParentNode::SendUp>(n.Step(ParentNode::ParentBack{})).manifest.steps, 1) << "what it holds";
  n.Step(ParentNode::Written{Sequence(1)});
  EXPECT_THAT(All<ParentNode::SendUp>(n.Contribute(2, 1)), IsEmpty()) << "one is enough";
  n.Step(ParentNode::Answered{Sequence(1), VERDICT_ACCEPTED});
  n.Contribute(3, 1);
  EXPECT_EQ(Only<ParentNode::SendUp>(n.Contribute(1, 2)).manifest.steps, 3);
  n.Step(ParentNode::Written{Sequence(2)});
  n.Step(ParentNode::Answered{Sequence(2), VERDICT_ACCEPTED});
  EXPECT_THAT(All<ParentNode::SendUp>(n.Step(ParentNode::ParentBack{})), IsEmpty()) << "there is nothing to send";
  EXPECT_EQ(Only<ParentNode::SendUp>(n.Contribute(2, 2)).manifest.steps, 1) << "what comes first after that";
  EXPECT_THAT(All<ParentNode::SendUp>(n.Contribute(3, 2)), IsEmpty());

  options.waits = true;
  Node waiting(options);
  waiting.Contribute(1, 1);
  EXPECT_THAT(All<ParentNode::SendUp>(waiting.Step(ParentNode::ParentBack{})), IsEmpty()) << "a round is of all";
}

TEST(ParentNodeRegion, HoldsBackWhileTooManyAreUnanswered) {
  ParentNode::Options options = ParentOptions(false, 1);
  options.in_flight_max = 2;
  Node n(options);
  EXPECT_EQ(All<ParentNode::SendUp>(n.Contribute(1, 1)).size(), 1u);
  n.Step(ParentNode::Written{Sequence(1)});
  EXPECT_EQ(All<ParentNode::SendUp>(n.Contribute(2, 1)).size(), 1u);
  n.Step(ParentNode::Written{Sequence(2)});
  EXPECT_THAT(All<ParentNode::SendUp>(n.Contribute(3, 1)), IsEmpty());
  EXPECT_THAT(All<ParentNode::SendUp>(n.Contribute(1, 2)), IsEmpty());
  const auto send = Only<ParentNode::SendUp>(n.Step(ParentNode::Answered{Sequence(1), VERDICT_ACCEPTED}));
  EXPECT_EQ(send.manifest.sequence, Sequence(3));
  EXPECT_EQ(send.manifest.steps, 2);
}

// Behind one that is being written it would only grow old.
TEST(ParentNodeRegion, WhatComesWhileOneIsBeingWrittenJoinsTheNext) {
  ParentNode::Options options = ParentOptions(false, 1);
  options.in_flight_max = 4;
  Node n(options);
  n.Contribute(1, 1);
  EXPECT_THAT(All<ParentNode::SendUp>(n.Contribute(2, 1)), IsEmpty());
  EXPECT_THAT(All<ParentNode::SendUp>(n.Contribute(3, 1)), IsEmpty());
  const auto second = Only<ParentNode::SendUp>(n.Step(ParentNode::Written{Sequence(1)}));
  EXPECT_EQ(second.manifest.steps, 2);
  n.Contribute(1, 2);
  EXPECT_THAT(All<ParentNode::SendUp>(n.Step(ParentNode::Written{Sequence(1)})), IsEmpty()) << "the second is not";
  EXPECT_THAT(All<ParentNode::SendUp>(n.Step(ParentNode::Answered{Sequence(1), VERDICT_ACCEPTED})), IsEmpty());
  EXPECT_EQ(All<ParentNode::SendUp>(n.Step(ParentNode::Answered{Sequence(2), VERDICT_ACCEPTED})).size(), 1u)
      << "whoever answers has read all of it";
}

TEST(ParentNodeRegion, WhereSendersWaitEachRoundIsAContributionOfItsOwn) {
  ParentNode::Options options = ParentOptions(false, 1);
  options.waits = true;
  options.in_flight_max = 2;
  Node n(options);
  EXPECT_EQ(All<ParentNode::SendUp>(n.Contribute(1, 1)).size(), 1u);
  EXPECT_EQ(All<ParentNode::SendUp>(n.Contribute(1, 2)).size(), 1u);
  EXPECT_THAT(All<ParentNode::SendUp>(n.Contribute(1, 3)), IsEmpty());
}

TEST(ParentNodeRegion, WhereChildrenWaitOnlyTheRootsWordIsPublished) {
  ParentNode::Options options = ParentOptions(false, 0);
  options.waits = true;
  Node n(options, 1);
  EXPECT_THAT(All<ParentNode::Publish>(n.Contribute(1, 1)), IsEmpty());
  EXPECT_THAT(All<ParentNode::Publish>(n.Step(ParentNode::Answered{Sequence(1), VERDICT_ACCEPTED})), IsEmpty());
  const Actions actions = n.Step(ParentNode::ParentMoved{Version(5), 777});
  ASSERT_EQ(actions.size(), 2u);
  EXPECT_TRUE(std::holds_alternative<ParentNode::Rebase>(actions[0])) << "what is published must hold it";
  const auto publish = Only<ParentNode::Publish>(actions);
  EXPECT_EQ(publish.notes.root_version, Version(5));
  EXPECT_EQ(publish.notes.tokens_committed, 777);
  EXPECT_THAT(publish.notes.included, ElementsAre(Pair(Node::Key(1), Sequence(1))));
}

TEST(ParentNodeRegion, WhatTheRootRefusesIsDroppedAndPublished) {
  for (const bool waits : {false, true}) {
    ParentNode::Options options = ParentOptions(false, 1);
    options.waits = waits;
    Node n(options);
    n.Contribute(1, 1);
    n.Step(ParentNode::FollowersReady{});
    EXPECT_EQ(n.node.CustodyOf(Node::Key(1)).size(), 1u);
    const Actions actions = n.Step(ParentNode::Answered{Sequence(1), VERDICT_STALE});
    EXPECT_EQ(Only<ParentNode::Drop>(actions).sequence, Sequence(1));
    EXPECT_EQ(Only<ParentNode::Drop>(actions).verdict, VERDICT_STALE);
    EXPECT_EQ(All<ParentNode::Publish>(actions).size(), 1u) << "children that wait would wait for ever";
    EXPECT_THAT(n.node.CustodyOf(Node::Key(1)), IsEmpty());
    EXPECT_THAT(All<ParentNode::Drop>(n.Step(ParentNode::Answered{Sequence(1), VERDICT_STALE})), IsEmpty());
  }
}

TEST(ParentNodeRegion, CustodyCoversWhatIsReadyUnsentAndUnanswered) {
  ParentNode::Options options = ParentOptions(false, 2);
  options.level.set_send_every(4);
  Node n(options);
  EXPECT_THAT(n.node.CustodyOf(Node::Key(1)), IsEmpty());
  n.Contribute(1, 1);  // [0, 2): ready.
  EXPECT_THAT(n.node.CustodyOf(Node::Key(1)), ElementsAre(LeasedRange{0, 2, 1000}));
  n.Contribute(2, 1);  // [2, 4): both are merged, and unsent.
  EXPECT_THAT(n.node.CustodyOf(Node::Key(1)), ElementsAre(LeasedRange{0, 2, 1000}));
  n.Contribute(1, 2);                       // [4, 6)
  const Actions sent = n.Contribute(2, 2);  // [6, 8): all four are sent.
  ASSERT_EQ(All<ParentNode::SendUp>(sent).size(), 1u);
  n.Contribute(1, 3);  // [8, 10): ready again.
  EXPECT_THAT(n.node.CustodyOf(Node::Key(1)),
              ElementsAre(LeasedRange{0, 2, 1000}, LeasedRange{4, 6, 1004}, LeasedRange{8, 10, 1008}));
  n.Offer(n.Make(1, 4));
  n.Step(ParentNode::ChildFenced{Node::Key(1)});
  EXPECT_EQ(n.node.CustodyOf(Node::Key(1)).size(), 3u) << "what was not accepted is not in custody";
  n.Step(ParentNode::Answered{Sequence(1), VERDICT_ACCEPTED});
  EXPECT_THAT(n.node.CustodyOf(Node::Key(1)), ElementsAre(LeasedRange{8, 10, 1008}));
  EXPECT_THAT(n.node.CustodyOf(Node::Key(1, 2)), IsEmpty());
}

}  // namespace
}  // namespace wukong
