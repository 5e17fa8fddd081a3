// Random orders of events, with a model beside the node that knows only what the words mean.
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <set>

#include "absl/strings/str_cat.h"
#include "runtime/base/random.h"
#include "runtime/sync/parent_node.h"

namespace wukong {
namespace {

constexpr uint64_t kParentBaseSeed = 31337;
constexpr int kChildren = 3;

class RandomRun {
 public:
  explicit RandomRun(uint64_t seed) : random_(seed), options_(RandomOptions(&random_)), node_(options_) {
    for (int child = 1; child <= kChildren; ++child) Attach(child);
  }

  void Go() {
    for (int event = 0; event < 400 && !testing::Test::HasFailure(); ++event) OneEvent();
    Finish();
  }
  int64_t merged() const { return static_cast<int64_t>(applied_.size()); }
  int64_t fences() const { return fences_; }
  int64_t kept() const { return kept_; }

 private:
  enum class Stage { kOffered, kAccepted, kRefused, kApplied };
  struct Offer {
    Manifest manifest;
    Stage stage = Stage::kOffered;
    bool accepted_before_fence = false;
  };
  struct ChildModel {
    int64_t incarnation = 0;
    int64_t next = 1;  // Sequence to offer.
    bool fenced = false;
    std::vector<Manifest> offered;
    std::vector<Manifest> held;  // Later ones overtake these.
  };

  static ParentNode::Options RandomOptions(Random* random) {
    ParentNode::Options options;
    options.is_root = random->Below(3) == 0;
    options.waits = random->Below(2) == 0;
    options.in_flight_max = 1 + static_cast<int>(random->Below(3));
    Level& level = options.level;
    level.set_quorum(static_cast<int64_t>(random->Below(4)));
    level.set_learning_rate(1);
    level.set_momentum_delay(static_cast<int64_t>(random->Below(3)));
    level.set_weight(random->Below(2) == 0 ? WEIGHT_EQUAL : WEIGHT_TOKENS);
    level.set_staleness_max(static_cast<int64_t>(random->Below(6)));
    level.set_staleness_decay(random->Below(2) == 0 ? STALENESS_DECAY_NONE : STALENESS_DECAY_POLYNOMIAL);
    level.set_send_every(static_cast<int64_t>(random->Below(4)));
    level.set_flush_age_ns(random->Below(2) == 0 ? 0 : 1'000'000'000);
    return options;
  }

  void Attach(int64_t id) {
    ChildModel& child = children_[id];
    const bool replaces = child.incarnation > 0 && !child.fenced;
    if (replaces) MarkFenced(id);
    child = ChildModel();
    child.incarnation = ++incarnations_;
    merged_in_this_life_[id] = 0;
    Step(ParentNode::ChildAttached{{MemberId(id), Incarnation(child.incarnation)}});
  }

  void MarkFenced(int64_t id) {
    children_[id].fenced = true;
    ++fences_;
    fenced_.insert({MemberId(id), Incarnation(children_[id].incarnation)});
  }

  void OneEvent() {
    const int64_t id = 1 + static_cast<int64_t>(random_.Below(kChildren));
    ChildModel& child = children_[id];
    now_ += absl::Milliseconds(static_cast<int64_t>(random_.Below(300)));
    switch (random_.Below(16)) {
      case 0:
      case 1:
      case 2:
      case 3: {
        Manifest manifest;
        manifest.sender = {MemberId(id), Incarnation(child.incarnation)};
        manifest.sequence = Sequence(child.next++);
        const auto behind = static_cast<int64_t>(random_.Below(7));
        manifest.base = Version(std::max<int64_t>(1, node_.version().value() - behind));
        manifest.root_base = manifest.base;
        manifest.steps = 1;
        manifest.tokens = 1 + static_cast<int64_t>(random_.Below(100));
        manifest.ranges = {{samples_, samples_ + 2, samples_}};
        samples_ += 4;
        if (random_.Below(4) == 0) {
          child.held.push_back(manifest);
          break;
        }
        child.offered.push_back(manifest);
        OfferNow(manifest);
        break;
      }
      case 4:  // A repeat, something that others have overtaken, or something from far ahead.
        if (!child.held.empty() && random_.Below(4) > 0) {
          const auto held = child.held.begin() + static_cast<std::ptrdiff_t>(random_.Below(child.held.size()));
          child.offered.push_back(*held);
          child.held.erase(held);
          OfferNow(child.offered.back());
        } else if (!child.offered.empty()) {
          Manifest manifest = child.offered[random_.Below(child.offered.size())];
          if (random_.Below(4) == 0) manifest.sequence = Sequence(child.next + 1000);
          OfferNow(manifest);
        }
        break;
      case 5:
      case 6:
      case 7:
      case 8:
        AnswerCheck();
        break;
      case 9:
        Step(ParentNode::FollowersReady{});
        break;
      case 10:
        if (options_.is_root || unanswered_.empty()) break;
        if (random_.Below(2) == 0) {
          AnswerUp();
        } else {
          writing_.reset();
          Step(ParentNode::Written{Sequence(sent_)});
        }
        break;
      case 11:
        if (options_.is_root) break;
        if (random_.Below(4) == 0) {
          Step(ParentNode::ParentBack{});
        } else {
          Step(ParentNode::ParentMoved{Version(++root_version_), 0});
        }
        break;
      case 12: {
        ParentNode::IdleChildren idle;
        for (int other = 1; other <= kChildren; ++other) {
          if (random_.Below(3) == 0) idle.idle.insert(MemberId(other));
        }
        Step(idle);
        break;
      }
      case 13:
        if (random_.Below(3) > 0) break;
        if (!child.fenced && random_.Below(2) == 0) {
          MarkFenced(id);
          Step(ParentNode::ChildFenced{{MemberId(id), Incarnation(child.incarnation)}});
        } else {
          Attach(id);
        }
        break;
      case 14:
        if (!options_.is_root) Step(ParentNode::Drain{random_.Below(4) == 0});
        break;
      default:
        Step(ParentNode::Tick{});
    }
  }

  void OfferNow(const Manifest& manifest) {
    const Handle handle(++handles_);
    offers_[handle].manifest = manifest;
    Step(ParentNode::Offered{handle, manifest});
  }

  void AnswerCheck() {
    if (checking_.empty()) return;
    // The driver checks one sender's contributions in their order.
    size_t which = random_.Below(checking_.size());
    const MemberKey sender = offers_.at(checking_[which]).manifest.sender;
    for (size_t i = 0; i < which; ++i) {
      if (offers_.at(checking_[i]).manifest.sender == sender) which = i;
    }
    const Handle handle = checking_[which];
    checking_.erase(checking_.begin() + static_cast<std::ptrdiff_t>(which));
    Step(ParentNode::Checked{handle, random_.Below(6) == 0 ? VERDICT_NON_FINITE : VERDICT_ACCEPTED, ""});
  }

  void AnswerUp() {
    const auto answered =
        std::next(unanswered_.begin(), static_cast<std::ptrdiff_t>(random_.Below(unanswered_.size())));
    const Sequence sequence = answered->first;
    const bool refused = random_.Below(5) == 0;
    for (const LeasedRange& range : answered->second) owed_.erase(range.begin);
    unanswered_.erase(answered);
    if (writing_ == sequence) writing_.reset();
    const size_t drops = drops_;
    Step(ParentNode::Answered{sequence, refused ? VERDICT_STALE : VERDICT_ACCEPTED});
    EXPECT_EQ(drops_ - drops, refused ? 1u : 0u);
  }

  void Step(const ParentNode::Event& event) {
    if (std::holds_alternative<ParentNode::FollowersReady>(event)) publishes_since_ready_ = 0;
    for (const ParentNode::Action& action : node_.Step(event, now_)) {
      std::visit([this](const auto& a) { On(a); }, action);
    }
    EXPECT_LE(static_cast<int>(unanswered_.size()), options_.in_flight_max);
    if (!options_.is_root) CheckCustody();
  }

  void On(const ParentNode::Check& check) {
    const Manifest& manifest = offers_.at(check.handle).manifest;
    int64_t& last = checked_[manifest.sender];
    EXPECT_LT(last, manifest.sequence.value()) << "one sender's contributions are taken up in their order";
    last = manifest.sequence.value();
    for (const Handle other : checking_) {
      if (offers_.at(other).stage != Stage::kOffered) continue;  // Refused by a fence since.
      EXPECT_FALSE(offers_.at(other).manifest.sender == manifest.sender) << "decisions would have no order";
    }
    checking_.push_back(check.handle);
  }
  void On(const ParentNode::Keep& keep) {
    EXPECT_EQ(offers_.at(keep.handle).stage, Stage::kOffered);
    ++kept_;
  }
  void On(const ParentNode::Reply& reply) {
    Offer& offer = offers_.at(reply.handle);
    EXPECT_TRUE(replied_.insert(reply.handle).second) << "handle " << reply.handle << " is answered twice";
    EXPECT_EQ(offer.stage, Stage::kOffered);
    offer.stage = reply.keep_payload ? Stage::kAccepted : Stage::kRefused;
    const std::pair<MemberKey, Sequence> name{offer.manifest.sender, offer.manifest.sequence};
    if (reply.keep_payload) {
      EXPECT_EQ(reply.verdict, VERDICT_ACCEPTED);
      EXPECT_EQ(fenced_.count(offer.manifest.sender), 0u) << "accepted after the fence";
      EXPECT_TRUE(accepted_.insert(name).second) << "one contribution is accepted twice";
      for (const LeasedRange& range : offer.manifest.ranges) owed_[range.begin] = offer.manifest.sender;
    }
    if (reply.verdict == VERDICT_OUT_OF_ORDER || fenced_.count(offer.manifest.sender) > 0) return;
    const auto [first, is_new] = verdicts_.emplace(name, reply.verdict);
    EXPECT_EQ(first->second, reply.verdict) << "a repeat got another verdict";
  }
  void On(const ParentNode::Apply& apply) {
    ASSERT_EQ(apply.manifests.size(), apply.merge.parts.size());
    for (size_t i = 0; i < apply.manifests.size(); ++i) {
      const Handle handle = apply.merge.parts[i].handle;
      Offer& offer = offers_.at(handle);
      EXPECT_EQ(offer.stage, Stage::kAccepted) << "applied twice, or never accepted: handle " << handle;
      offer.stage = Stage::kApplied;
      applied_.insert(handle);
      EXPECT_GE(apply.merge.parts[i].weight, 0);
      EXPECT_LE(apply.merge.parts[i].weight, 20) << "nobody's word counts for a whole round many times over";
      const MemberKey sender = offer.manifest.sender;
      EXPECT_EQ(apply.manifests[i].sender, sender);
      tokens_applied_ += offer.manifest.tokens;
      const ChildModel& child = children_[sender.member.value()];
      if (child.incarnation != sender.incarnation.value() || child.fenced) continue;
      int64_t& merged = merged_in_this_life_[sender.member.value()];
      EXPECT_LT(merged, offer.manifest.sequence.value()) << "one sender's contributions are merged in their order";
      merged = offer.manifest.sequence.value();
    }
    EXPECT_GE(node_.stats().tokens_merged, tokens_applied_);
  }
  void On(const ParentNode::Rebase&) {}
  void On(const ParentNode::Drop& drop) {
    EXPECT_TRUE(dropped_.insert(drop.sequence).second);
    ++drops_;
  }
  void On(const ParentNode::Publish& publish) {
    EXPECT_EQ(publish.version.value(), ++version_) << "versions rise by one";
    EXPECT_EQ(++publishes_since_ready_, 1) << "published before any follower was ready";
    for (const auto& [key, sequence] : publish.notes.included) {
      EXPECT_EQ(sequence.value(), merged_in_this_life_[key.member.value()]) << "member " << key.member;
      EXPECT_EQ(key.incarnation.value(), children_[key.member.value()].incarnation) << "member " << key.member;
    }
    for (const auto& [id, sequence] : merged_in_this_life_) {
      const MemberKey key{MemberId(id), Incarnation(children_[id].incarnation)};
      EXPECT_EQ(publish.notes.included.count(key), sequence > 0 ? 1u : 0u) << "member " << id;
    }
  }
  void On(const ParentNode::SendUp& send) {
    ASSERT_FALSE(options_.is_root);
    EXPECT_EQ(send.manifest.sequence.value(), ++sent_);
    if (!options_.waits) {
      EXPECT_FALSE(writing_.has_value()) << "it grows old behind another";
    }
    writing_ = send.manifest.sequence;
    for (const LeasedRange& range : send.manifest.ranges) {
      EXPECT_TRUE(sent_ranges_.insert(range.begin).second) << "range " << range.begin << " goes up twice";
      EXPECT_EQ(owed_.count(range.begin), 1u) << "range " << range.begin << " was never accepted";
    }
    tokens_sent_ += send.manifest.tokens;
    unanswered_[send.manifest.sequence] = send.manifest.ranges;
  }

  void CheckCustody() {
    std::map<MemberKey, std::set<int64_t>> expected;
    for (const auto& [begin, sender] : owed_) expected[sender].insert(begin);
    for (const auto& [id, child] : children_) {
      const MemberKey key{MemberId(id), Incarnation(child.incarnation)};
      std::set<int64_t> custody;
      for (const LeasedRange& range : node_.CustodyOf(key)) custody.insert(range.begin);
      EXPECT_EQ(custody, expected[key]) << "custody of member " << id << " incarnation " << child.incarnation;
    }
  }

  // Nobody is waited for any more, the root answers everything: then nothing may be left behind.
  void Finish() {
    while (!checking_.empty()) AnswerCheck();
    for (auto& [id, child] : children_) {
      if (!child.fenced) MarkFenced(id);
      Step(ParentNode::ChildFenced{{MemberId(id), Incarnation(child.incarnation)}});
    }
    if (!options_.is_root) {
      Step(ParentNode::Drain{true});
      for (int i = 0; i < 1000 && !unanswered_.empty(); ++i) AnswerUp();
      EXPECT_TRUE(owed_.empty()) << "accepted and never sent: " << owed_.size();
      EXPECT_EQ(tokens_sent_, tokens_applied_);
      EXPECT_EQ(sent_ranges_.size(), applied_.size());
    }
    EXPECT_EQ(node_.stats().tokens_merged, tokens_applied_);
    for (const auto& [handle, offer] : offers_) {
      EXPECT_TRUE(offer.stage == Stage::kApplied || offer.stage == Stage::kRefused)
          << "handle " << handle << " stopped at stage " << static_cast<int>(offer.stage);
    }
  }

  Random random_;
  const ParentNode::Options options_;
  ParentNode node_;
  absl::Time now_ = absl::UnixEpoch();

  std::map<int64_t, ChildModel> children_;
  std::map<int64_t, int64_t> merged_in_this_life_;
  std::map<Handle, Offer> offers_;
  std::set<Handle> replied_, applied_;
  std::set<MemberKey> fenced_;
  std::set<std::pair<MemberKey, Sequence>> accepted_;
  std::map<std::pair<MemberKey, Sequence>, Verdict> verdicts_;
  std::vector<Handle> checking_;
  std::map<MemberKey, int64_t> checked_;
  std::optional<Sequence> writing_;
  std::map<int64_t, MemberKey> owed_;  // Ranges that were accepted and for which the root has not answered, by begin.
  std::set<int64_t> sent_ranges_;
  std::map<Sequence, std::vector<LeasedRange>> unanswered_;
  std::set<Sequence> dropped_;
  size_t drops_ = 0;
  int64_t handles_ = 0, samples_ = 0, incarnations_ = 0, version_ = 1, root_version_ = 1, sent_ = 0, fences_ = 0,
          kept_ = 0;
  int64_t tokens_applied_ = 0, tokens_sent_ = 0;
  int publishes_since_ready_ = 0;
};

TEST(ParentNodeRandomTest, WhateverTheOrderOfEventsNothingIsLostOrCountedTwice) {
  int64_t merged = 0, fences = 0, kept = 0;
  for (uint64_t run = 0; run < 300; ++run) {
    const uint64_t seed = DeriveSeed(kParentBaseSeed, "parent node", run);
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    RandomRun one(seed);
    one.Go();
    merged += one.merged();
    fences += one.fences();
    kept += one.kept();
    if (testing::Test::HasFailure()) return;
  }
  EXPECT_GT(merged, 3000) << "too little happened to show anything";
  EXPECT_GT(fences, 1000);
  EXPECT_GT(kept, 1000);
}

}  // namespace
}  // namespace wukong
