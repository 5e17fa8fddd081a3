// A leaf among parents that die, a root that remembers and a coordinator that keeps the account, in random order: every
// sample that was ever leased ends up committed exactly once or with the coordinator again, and a contribution claims
// exactly the samples whose progress is in it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <utility>
#include <variant>
#include <vector>

#include "runtime/base/random.h"
#include "runtime/sync/leaf_schedule.h"

namespace wukong {
namespace {

constexpr uint64_t kLeafBaseSeed = 20261122;

// (sample, token)
using Samples = std::set<std::pair<int64_t, int64_t>>;

Samples SamplesOf(const std::vector<LeasedRange>& ranges) {
  Samples samples;
  for (const LeasedRange& range : ranges) {
    for (int64_t i = range.begin; i < range.end; ++i) {
      EXPECT_TRUE(samples.emplace(i, range.token).second) << "sample " << i << " is named twice";
    }
  }
  return samples;
}

std::vector<LeasedRange> RangesOf(const Samples& samples) {
  std::vector<LeasedRange> ranges;
  for (const auto& [sample, token] : samples) ranges.push_back({sample, sample + 1, token});
  return Coalesce(std::move(ranges));
}

class World {
 public:
  World(uint64_t seed, const LeafSchedule::Options& options) : random_(seed), options_(options), schedule_(options) {
    NewParent();
  }

  void RunRandomly(int events) {
    for (int i = 0; i < events && !testing::Test::HasFailure(); ++i) {
      switch (random_.Below(14)) {
        case 0:
          LeaseMore();
          break;
        case 1:
          ParentTakes();
          break;
        case 2:
          ParentPublishes();
          break;
        case 3:
          ParentDelivers();
          break;
        case 4:
          AnswerArrives();
          break;
        case 5:
          if (random_.Below(4) == 0) LoseParent();
          break;
        case 6:
          if (!parent_alive_ && random_.Below(2) == 0) NewParent();
          break;
        case 7:
          SayHoldings();
          break;
        case 8:
          AnswerHoldings(/*disown=*/random_.Below(3) == 0);
          break;
        case 9:
          if (random_.Below(20) == 0) LoseProgress();
          break;
        default:
          Act();
      }
    }
  }

  // The faults are over: all that is under way ends.
  void Settle() {
    if (!parent_alive_) NewParent();
    for (int round = 0; round < 400 && !testing::Test::HasFailure(); ++round) {
      SayHoldings();
      AnswerHoldings(false);
      schedule_.Leased({}, /*exhausted=*/true);
      for (int i = 0; i < 4; ++i) Act();
      ParentTakes();
      AnswerArrives();
      ParentDelivers();
      ParentPublishes();
      if (idle_) break;
    }
    EXPECT_TRUE(idle_) << "it never ends";
    for (const auto& [sample, lease] : leases_) {
      EXPECT_NE(lease.state, kLeased) << "sample " << sample << " is lost";
    }
    EXPECT_THAT(schedule_.Holdings(), testing::IsEmpty());
    EXPECT_THAT(progress_, testing::IsEmpty());
  }

  int64_t committed() const {
    return std::count_if(leases_.begin(), leases_.end(),
                         [](const auto& entry) { return entry.second.state == kCommitted; });
  }
  int losses = 0, taken_back = 0, included = 0, dropped = 0, progress_lost = 0, contributions = 0;

 private:
  enum State { kFree, kLeased, kCommitted, kAnothers };
  struct Lease {
    State state = kFree;
    int64_t token = 0;
  };
  bool Holds(const std::pair<int64_t, int64_t>& sample) {
    const Lease& lease = leases_[sample.first];
    return lease.state == kLeased && lease.token == sample.second;
  }
  void Free(const Samples& samples) {
    for (const auto& sample : samples) {
      if (Holds(sample)) leases_[sample.first].state = kFree;
    }
  }

  // ---- the leaf
  void Act() {
    const LeafSchedule::Action action = schedule_.Next();
    const auto* wait = std::get_if<LeafSchedule::Wait>(&action);
    idle_ = wait != nullptr && wait->idle;
    if (const auto* train = std::get_if<LeafSchedule::Train>(&action)) {
      schedule_.StepDone(1);
      if (has_parent_) steps_alone_ = 0;
      for (const auto& sample : SamplesOf(train->samples)) {
        EXPECT_TRUE(progress_.insert(sample).second) << "sample " << sample.first << " was trained on twice";
      }
      if (!has_parent_) ++steps_alone_;
      EXPECT_LE(steps_alone_, (options_.in_flight_max + 1) * options_.inner_steps);
    } else if (const auto* contribute = std::get_if<LeafSchedule::Contribute>(&action)) {
      const Manifest& manifest = contribute->manifest;
      ++contributions;
      EXPECT_TRUE(has_parent_ && !asked_) << "nobody may get it";
      EXPECT_EQ(SamplesOf(manifest.ranges), progress_);
      EXPECT_EQ(manifest.sequence, last_sequence_ = Sequence(last_sequence_.value() + 1));
      EXPECT_GE(manifest.base, Version(1));
      EXPECT_LE(manifest.base, told_.version) << "a version of another parent";
      EXPECT_GE(manifest.root_base, Version(1));
      pending_[manifest.sequence] = std::move(progress_);
      progress_.clear();
      up_.emplace_back(manifest.sequence, SamplesOf(manifest.ranges));
    } else if (std::holds_alternative<LeafSchedule::Rebase>(action)) {
      EXPECT_TRUE(has_parent_);
      // Replica::Rebase: what is included is not pending any more.
      pending_.erase(pending_.begin(), pending_.upper_bound(told_.included));
      schedule_.Rebased(told_);
    }
  }
  void LoseProgress() {
    // Replica::Reset, or Revert where there are no public parameters.
    if (has_parent_) {
      pending_.clear();
      schedule_.SentForgotten();
    }
    EXPECT_EQ(SamplesOf(schedule_.ProgressLost()), progress_);
    Free(progress_);
    progress_.clear();
    steps_alone_ = 0;
  }

  // ---- its parent
  void NewParent() {
    parent_alive_ = has_parent_ = true;
    published_ = told_ = {Version(0), Sequence(0), Version(1)};
    accepted_ = Sequence(0);
    ParentPublishes();
    ParentDelivers();
  }
  void ParentTakes() {
    if (!parent_alive_ || up_.empty()) return;
    const auto [sequence, samples] = up_.front();
    up_.pop_front();
    const bool refused = random_.Below(8) == 0;
    if (!refused) {
      accepted_ = sequence;
      custody_.push_back(samples);
    }
    answers_.emplace_back(sequence, refused ? VERDICT_STALE : VERDICT_ACCEPTED);
    if (random_.Below(2) == 0) DeliverToRoot();
  }
  void DeliverToRoot() {
    if (custody_.empty()) return;
    const bool refused = random_.Below(8) == 0;
    for (const Samples& samples : custody_) {
      for (const auto& sample : samples) {
        EXPECT_TRUE(Holds(sample)) << "sample " << sample.first << " counts twice, or is another's";
        leases_[sample.first].state = refused ? kFree : kCommitted;
      }
    }
    custody_.clear();
    ++root_version_;
  }
  void ParentPublishes() {
    if (!parent_alive_) return;
    published_ = {Version(published_.version.value() + 1), accepted_, Version(root_version_)};
    DeliverToRoot();
  }
  void ParentDelivers() {
    if (!has_parent_ || told_.version == published_.version) return;
    told_ = published_;
    schedule_.VersionArrived(told_);
  }
  void AnswerArrives() {
    if (!has_parent_ || answers_.empty()) return;
    const auto [sequence, verdict] = answers_.front();
    answers_.pop_front();
    const std::vector<LeasedRange> released = schedule_.Answered(sequence, verdict);
    if (verdict == VERDICT_ACCEPTED) {
      EXPECT_THAT(released, testing::IsEmpty());
      return;
    }
    pending_.erase(sequence);
    Free(SamplesOf(released));
  }
  void LoseParent() {
    if (!has_parent_) return;
    ++losses;
    // Its contributions to the root may arrive until the fence is there.
    if (random_.Below(2) == 0) {
      ParentTakes();
      DeliverToRoot();
    }
    if (random_.Below(2) == 0) AnswerArrives();
    parent_alive_ = has_parent_ = false;
    steps_alone_ = 0;
    up_.clear();
    custody_.clear();  // What nobody says that he holds is free again.
    answers_.clear();
    const std::vector<Sequence> undecided = schedule_.ParentLost();
    // Replica::ParentReplaced.
    for (auto it = pending_.begin(); it != pending_.end();) {
      const bool kept = std::find(undecided.begin(), undecided.end(), it->first) != undecided.end();
      it = kept ? std::next(it) : pending_.erase(it);
    }
    if (options_.gradient_progress) progress_.clear();
    asked_ = true;
    said_.reset();
    if (random_.Below(2) == 0) NewParent();
  }

  // ---- the coordinator
  void LeaseMore() {
    if (asked_) return;
    const int64_t token = ++last_token_;
    int64_t want = 1 + static_cast<int64_t>(random_.Below(16));
    Samples granted;
    for (auto& [sample, lease] : leases_) {
      if (lease.state != kFree || want <= 0) continue;
      --want;
      lease = {kLeased, token};
      granted.emplace(sample, token);
    }
    for (; want > 0; --want) {
      const auto sample = static_cast<int64_t>(leases_.size());
      leases_[sample] = {kLeased, token};
      granted.emplace(sample, token);
    }
    schedule_.Leased(RangesOf(granted), /*exhausted=*/random_.Below(4) == 0);  // Others may give some back.
  }
  void SayHoldings() {
    if (said_.has_value()) return;
    if (!asked_ && random_.Below(4) > 0) return;  // A new coordinator asks those with a parent too.
    if (!asked_ && !has_parent_) return;
    said_ = SamplesOf(schedule_.Holdings());
  }
  void AnswerHoldings(bool disown) {
    if (!said_.has_value()) return;
    Samples committed, disowned;
    for (const auto& sample : *said_) {
      Lease& lease = leases_[sample.first];
      if (lease.state == kCommitted) {
        committed.insert(sample);
      } else if (!Holds(sample)) {
        disowned.insert(sample);
      } else if (disown && asked_ && random_.Below(8) == 0) {
        lease.state = kAnothers;
        disowned.insert(sample);
      }
    }
    if (asked_) {
      for (auto& [sample, lease] : leases_) {
        if (lease.state == kLeased && said_->count({sample, lease.token}) == 0) lease.state = kFree;
      }
    }
    said_.reset();
    asked_ = false;
    const LeafSchedule::Decision decision = schedule_.HoldingsAnswered(RangesOf(committed), RangesOf(disowned));
    if (decision.progress_lost) {
      ++progress_lost;
      progress_.clear();
      steps_alone_ = 0;
    }
    for (const Sequence sequence : decision.included) {
      ++included;
      pending_.erase(sequence);
    }
    for (const Sequence sequence : decision.dropped) {
      ++dropped;
      pending_.erase(sequence);
    }
    for (const Sequence sequence : decision.taken_back) {
      ++taken_back;
      EXPECT_EQ(pending_.count(sequence), 1u) << "there is nothing to take back";
      if (!options_.gradient_progress) progress_.merge(pending_[sequence]);
      pending_.erase(sequence);
    }
    Free(SamplesOf(decision.released));
  }

  Random random_;
  const LeafSchedule::Options options_;
  LeafSchedule schedule_;
  bool idle_ = false;

  // As the worker's Replica holds it: whose progress was not sent, and whose was and is not included.
  Samples progress_;
  std::map<Sequence, Samples> pending_;
  Sequence last_sequence_;
  int64_t steps_alone_ = 0;

  bool parent_alive_ = false;  // It takes and publishes.
  bool has_parent_ = false;    // The leaf is attached to it.
  LeafSchedule::ParentState published_, told_;
  Sequence accepted_;
  std::deque<std::pair<Sequence, Samples>> up_;
  std::deque<std::pair<Sequence, Verdict>> answers_;
  std::vector<Samples> custody_;
  int64_t root_version_ = 1;

  std::map<int64_t, Lease> leases_;  // Of every sample that was ever leased.
  int64_t last_token_ = 0;
  bool asked_ = false;
  std::optional<Samples> said_;
};

LeafSchedule::Options MakeOptions(int64_t inner_steps, bool waits, int in_flight_max, bool gradient = false) {
  LeafSchedule::Options options;
  options.inner_steps = inner_steps;
  options.waits = waits;
  options.in_flight_max = in_flight_max;
  options.step_samples = 3;
  options.gradient_progress = gradient;
  return options;
}

TEST(LeafScheduleRandomTest, EverySampleIsCommittedOnceOrGivenBackWhoeverDies) {
  const LeafSchedule::Options kinds[] = {MakeOptions(3, false, 1), MakeOptions(2, false, 3), MakeOptions(1, false, 4),
                                         MakeOptions(2, true, 1), MakeOptions(1, true, 1, /*gradient=*/true)};
  int64_t kind = 0;
  for (const LeafSchedule::Options& options : kinds) {
    int losses = 0, taken_back = 0, included = 0, dropped = 0, progress_lost = 0;
    int64_t committed = 0;
    for (uint64_t run = 0; run < 300; ++run) {
      const uint64_t seed = DeriveSeed(kLeafBaseSeed, "leaf", run);
      SCOPED_TRACE(testing::Message() << "kind " << kind << ", seed " << seed);
      World world(seed, options);
      world.RunRandomly(400);
      world.Settle();
      if (HasFailure()) return;
      losses += world.losses;
      taken_back += world.taken_back;
      included += world.included;
      dropped += world.dropped;
      progress_lost += world.progress_lost;
      committed += world.committed();
    }
    SCOPED_TRACE(testing::Message() << "kind " << kind++);
    EXPECT_GT(losses, 500) << "the orders tried are too tame to show anything";
    EXPECT_GT(taken_back, 30);
    EXPECT_GT(included, 30);
    EXPECT_GT(dropped, 10);
    if (!options.gradient_progress) {
      EXPECT_GT(progress_lost, 10);
    }
    EXPECT_GT(committed, 3000);
  }
}

}  // namespace
}  // namespace wukong
