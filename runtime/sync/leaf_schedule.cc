#include "runtime/sync/leaf_schedule.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "glog/logging.h"
#include "runtime/base/mutation.h"

namespace wukong {
namespace {

constexpr int64_t kFirstSteps = 16;  // Of data, at most, for who does not know how long that lasts.

// The parts of `ranges`, in their order, that are not in `cut`. Samples that a parent's parent refused may have been
// leased to the same leaf again meanwhile: the token tells one lease from the other.
template <typename Ranges>
std::vector<LeasedRange> Subtract(const Ranges& ranges, std::vector<LeasedRange> cut) {
  std::sort(cut.begin(), cut.end(), [](const LeasedRange& a, const LeasedRange& b) { return a.begin < b.begin; });
  std::vector<LeasedRange> left;
  for (const LeasedRange& range : ranges) {
    int64_t from = range.begin;
    for (const LeasedRange& hole : cut) {
      if (hole.end <= from || hole.token != range.token) continue;
      if (hole.begin >= range.end) break;
      if (hole.begin > from) left.push_back({from, hole.begin, range.token});
      from = hole.end;
    }
    if (from < range.end) left.push_back({from, range.end, range.token});
  }
  return left;
}

template <typename Ranges>
int64_t Samples(const Ranges& ranges) {
  int64_t sum = 0;
  for (const LeasedRange& range : ranges) sum += range.size();
  return sum;
}

void Append(const std::vector<LeasedRange>& ranges, std::vector<LeasedRange>* to) {
  to->insert(to->end(), ranges.begin(), ranges.end());
}

}  // namespace

void LeafSchedule::Leased(const std::vector<LeasedRange>& ranges, bool exhausted) {
  untrained_.insert(untrained_.end(), ranges.begin(), ranges.end());
  exhausted_ = exhausted;
}

void LeafSchedule::Rebased(const ParentState& parent) {
  CHECK_GT(parent.version.value(), 0);
  base_ = parent;
  rebase_again_ = false;
  if (orphaned_) {
    orphaned_ = false;
    // The steps so far began from versions of another parent, which have nothing to do with those of this one.
    made_.base = base_.version;
  }
  for (auto it = sent_.begin(); it != sent_.end();) {
    it = it->first <= parent.included && it->second.answered ? sent_.erase(it) : std::next(it);
  }
}

void LeafSchedule::StepDone(double compute_seconds) {
  CHECK(!training_.empty());
  const int64_t samples = Samples(training_);
  Append(training_, &made_.ranges);
  training_.clear();
  made_.ranges = Coalesce(std::move(made_.ranges));
  const bool first = made_.steps == 0;
  made_.base = first ? base_.version : std::min(made_.base, base_.version);
  made_.root_base = first ? base_.root_version : std::min(made_.root_base, base_.root_version);
  ++made_.steps;
  made_.samples += samples;
  if (!MaySend()) ++orphan_steps_;
  if (compute_seconds > 0) {
    const double speed = static_cast<double>(samples) / compute_seconds;
    // A step's time is noisy where processes share cores: average over about ten steps.
    speed_ = speed_ == 0 ? speed : 0.9 * speed_ + 0.1 * speed;
  }
}

std::vector<LeasedRange> LeafSchedule::Answered(Sequence sequence, Verdict verdict) {
  const auto found = sent_.find(sequence);
  if (found == sent_.end()) return {};
  if (verdict == VERDICT_ACCEPTED) {
    found->second.answered = true;
    // Who leaves has no use for the version that it is in.
    const bool until_included = (options_.waits || options_.overlaps) && !stopping_;
    if (!until_included || base_.included >= sequence) sent_.erase(found);
    return {};
  }
  std::vector<LeasedRange> ranges = std::move(found->second.work.ranges);
  sent_.erase(found);
  if (Mutated("leaf.keeps_refused_leases")) return {};
  return ranges;
}

std::vector<LeasedRange> LeafSchedule::ProgressLost() {
  std::vector<LeasedRange> ranges = std::move(made_.ranges);
  Append(training_, &ranges);
  training_.clear();
  made_ = Work();
  return ranges;
}

void LeafSchedule::SentForgotten() {
  for (auto& [sequence, sent] : sent_) sent.forgotten = true;
  for (auto& [sequence, sent] : undecided_) sent.forgotten = true;
}

std::vector<Sequence> LeafSchedule::ParentLost() {
  if (MaySend()) orphan_steps_ = 0;
  awaits_decision_ = !Mutated("leaf.does_not_wait_for_the_decision");
  asserted_ = false;
  for (auto& [sequence, sent] : sent_) {
    if (sent.answered) continue;
    // A version that held it came before its answer: with that parent's parameters the progress is gone from ours.
    if (sequence <= base_.included) sent.forgotten = true;
    undecided_[sequence] = std::move(sent);
  }
  sent_.clear();
  if (options_.gradient_progress) {
    untrained_.insert(untrained_.begin(), made_.ranges.begin(), made_.ranges.end());
    made_ = Work();
  }
  orphaned_ = orphaned_ || base_.version.value() > 0;  // Without parameters there is nothing to go on with.
  arrived_ = ParentState();
  base_.version = Version(0);
  base_.included = Sequence(0);
  made_.base = Version(0);
  std::vector<Sequence> undecided;
  for (const auto& [sequence, sent] : undecided_) undecided.push_back(sequence);
  return undecided;
}

std::vector<LeasedRange> LeafSchedule::Holdings() {
  std::vector<LeasedRange> ranges(untrained_.begin(), untrained_.end());
  Append(training_, &ranges);
  Append(made_.ranges, &ranges);
  for (const auto& [sequence, sent] : sent_) {
    if (!sent.answered) Append(sent.work.ranges, &ranges);
  }
  if (!Mutated("leaf.forgets_what_is_undecided")) {
    for (const auto& [sequence, sent] : undecided_) Append(sent.work.ranges, &ranges);
  }
  asserted_ = true;
  return Coalesce(std::move(ranges));
}

LeafSchedule::Decision LeafSchedule::HoldingsAnswered(const std::vector<LeasedRange>& committed,
                                                      const std::vector<LeasedRange>& disowned) {
  CHECK(training_.empty()) << "the step under way has not been reported";
  std::vector<LeasedRange> taken = committed;
  Append(disowned, &taken);
  Decision decision;
  const std::vector<LeasedRange> untrained = Subtract(untrained_, taken);
  untrained_.assign(untrained.begin(), untrained.end());
  if (const auto left = Subtract(made_.ranges, taken); Samples(left) < Samples(made_.ranges)) {
    // Progress cannot be told apart by the data that it came from.
    decision.progress_lost = true;
    Append(left, &decision.released);
    made_ = Work();
  }
  if (!awaits_decision_ || !asserted_) return decision;
  awaits_decision_ = false;
  std::vector<LeasedRange> again;
  for (const auto& [sequence, sent] : undecided_) {
    const std::vector<LeasedRange> left = Subtract(sent.work.ranges, taken);
    if (Subtract(sent.work.ranges, committed).empty() && !Mutated("leaf.sends_committed_work_again")) {
      decision.included.push_back(sequence);
    } else if ((sent.forgotten || Samples(left) < Samples(sent.work.ranges)) &&
               !Mutated("leaf.sends_committed_work_again")) {
      decision.dropped.push_back(sequence);
      Append(left, &decision.released);
    } else {
      decision.taken_back.push_back(sequence);
      if (options_.gradient_progress) {
        Append(sent.work.ranges, &again);
      } else {
        TakeBack(sent.work);
      }
    }
  }
  undecided_.clear();
  untrained_.insert(untrained_.begin(), again.begin(), again.end());
  // The base holds what is included now beside the parent's parameters, which hold it too.
  if (!decision.included.empty() && base_.version.value() > 0) rebase_again_ = true;
  return decision;
}

void LeafSchedule::TakeBack(const Work& work) {
  made_.root_base = made_.steps == 0 ? work.root_base : std::min(made_.root_base, work.root_base);
  made_.base = made_.steps == 0 ? base_.version : std::min(made_.base, base_.version);
  made_.steps += work.steps;
  made_.samples += work.samples;
  Append(work.ranges, &made_.ranges);
  made_.ranges = Coalesce(std::move(made_.ranges));
}

std::vector<LeasedRange> LeafSchedule::StopTraining() {
  stopping_ = true;
  for (auto it = sent_.begin(); it != sent_.end();) it = it->second.answered ? sent_.erase(it) : std::next(it);
  std::vector<LeasedRange> ranges(untrained_.begin(), untrained_.end());
  untrained_.clear();
  return ranges;
}

int64_t LeafSchedule::steps_per_contribution() const {
  if (!options_.scale_steps_by_speed || speed_ <= 0 || reference_speed_ <= 0) return options_.inner_steps;
  // HALoS's dynamic local updates (Liu et al. 2024, section 5.2): H_w = floor(H * v_w / v_max). A worker within 10% of
  // the reference keeps H, since speeds are measured and noisy.
  const double ratio = speed_ / reference_speed_;
  if (ratio > 0.9) return options_.inner_steps;
  return std::max<int64_t>(1, static_cast<int64_t>(std::floor(static_cast<double>(options_.inner_steps) * ratio)));
}

int64_t LeafSchedule::untrained_samples() const { return Samples(untrained_); }

int64_t LeafSchedule::WantSamples(absl::Duration latency, int64_t range_samples) const {
  if (stopping_) return 0;
  const int64_t have = untrained_samples();
  const double speed = speed_ > 0 ? speed_ : expected_speed_;
  const int64_t meanwhile =
      speed > 0 ? static_cast<int64_t>(std::ceil(speed * absl::ToDoubleSeconds(latency + options_.prefetch)))
                : (std::min(options_.inner_steps, kFirstSteps) - 1) * options_.step_samples;
  const int64_t low = options_.step_samples + meanwhile;
  if (have > low) return 0;
  return std::max(range_samples, low + range_samples - have);
}

LeafSchedule::Contribute LeafSchedule::MakeContribution() {
  CHECK_GT(made_.base.value(), 0);
  sequence_ = next_sequence();
  steps_lost_ = 0;
  Contribute contribute;
  contribute.manifest.sequence = sequence_;
  contribute.manifest.base = made_.base;
  contribute.manifest.root_base = made_.root_base;
  contribute.manifest.steps = made_.steps;
  contribute.manifest.tokens = made_.samples * options_.tokens_per_sample;
  contribute.manifest.ranges = made_.ranges;
  contribute.manifest.last = exhausted_ && untrained_.empty();
  sent_[sequence_].work = std::move(made_);
  made_ = Work();
  return contribute;
}

LeafSchedule::Action LeafSchedule::Next() {
  CHECK(training_.empty()) << "the step under way has not been reported";
  const bool have_data = !untrained_.empty();
  const auto wait = [&](WaitReason reason) {
    return Wait{exhausted_ && !have_data ? WaitReason::kNothingLeft : reason};
  };
  if (arrived_.version.value() == 0 && !orphaned_) return wait(WaitReason::kParameters);
  // A leaf rebases only between two steps, and takes whatever came meanwhile.
  if (arrived_.version.value() > 0 && (base_.version < arrived_.version || rebase_again_)) return Rebase{};

  const bool whole = made_.steps >= steps_per_contribution();
  const bool last = made_.steps > 0 && !have_data && (exhausted_ || stopping_);
  if (whole || last) {
    if (MaySend() && static_cast<int>(sent_.size()) < options_.in_flight_max) {
      Contribute contribute = MakeContribution();
      contribute.whole = !have_data;
      return contribute;
    }
    // A worker that waits anyway cannot go on; progress can: the contribution grows meanwhile. But what a dead parent's
    // successor gets at once is bounded, as it is while a parent lives.
    const bool long_alone = !MaySend() && orphan_steps_ >= options_.in_flight_max * steps_per_contribution();
    if (options_.waits || options_.overlaps || last || long_alone) {
      return wait(orphaned_ ? WaitReason::kParameters : WaitReason::kAnswer);
    }
  }
  if (options_.waits && (!sent_.empty() || !undecided_.empty())) return wait(WaitReason::kAnswer);
  // A step is made of less than its samples only when there are no more.
  if (untrained_samples() < options_.step_samples && !exhausted_ && !stopping_) return wait(WaitReason::kData);
  if (!have_data) {
    return sent_.empty() && undecided_.empty() ? Wait{WaitReason::kNothingLeft, /*idle=*/true}
                                               : wait(WaitReason::kAnswer);
  }
  // By the time that there is a parent again the gradient would be of parameters that nobody has any more.
  if (orphaned_ && options_.gradient_progress) return wait(WaitReason::kParameters);
  if (made_.steps == 0 && TooFarAhead()) return wait(WaitReason::kOthers);
  Train train;
  int64_t missing = options_.step_samples;
  while (missing > 0 && !untrained_.empty()) {
    LeasedRange& front = untrained_.front();
    LeasedRange taken = front;
    taken.end = std::min(front.end, front.begin + missing);
    missing -= taken.size();
    front.begin = taken.end;
    if (front.size() == 0) untrained_.pop_front();
    train.samples.push_back(taken);
  }
  training_ = train.samples;
  return train;
}

}  // namespace wukong
