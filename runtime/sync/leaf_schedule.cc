#include "runtime/sync/leaf_schedule.h"

#include <algorithm>
#include <cmath>

#include "glog/logging.h"

namespace wukong {

void LeafSchedule::Leased(const std::vector<LeasedRange>& ranges, bool exhausted) {
  untrained_.insert(untrained_.end(), ranges.begin(), ranges.end());
  exhausted_ = exhausted && ranges.empty();
}

void LeafSchedule::Rebased(const ParentState& parent) {
  base_ = parent;
  for (auto it = sent_.begin(); it != sent_.end();) {
    it = it->first <= parent.included && it->second.answered ? sent_.erase(it) : std::next(it);
  }
}

void LeafSchedule::StepDone(double compute_seconds) {
  CHECK(!training_.empty());
  int64_t samples = 0;
  for (const LeasedRange& range : training_) samples += range.size();
  trained_.insert(trained_.end(), training_.begin(), training_.end());
  training_.clear();
  trained_ = Coalesce(std::move(trained_));
  ++steps_;
  samples_ += samples;
  if (!oldest_base_.has_value()) oldest_base_ = base_;
  oldest_base_->version = std::min(oldest_base_->version, base_.version);
  oldest_base_->root_version = std::min(oldest_base_->root_version, base_.root_version);
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
    if (!options_.waits || base_.included >= sequence) sent_.erase(found);
    return {};
  }
  std::vector<LeasedRange> ranges = std::move(found->second.ranges);
  sent_.erase(found);
  return ranges;
}

std::vector<LeasedRange> LeafSchedule::ProgressLost() {
  std::vector<LeasedRange> ranges = std::move(trained_);
  trained_.clear();
  ranges.insert(ranges.end(), training_.begin(), training_.end());
  training_.clear();
  steps_ = 0;
  samples_ = 0;
  oldest_base_.reset();
  return ranges;
}

std::vector<LeasedRange> LeafSchedule::StopTraining() {
  stopping_ = true;
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

int64_t LeafSchedule::untrained_samples() const {
  int64_t sum = 0;
  for (const LeasedRange& range : untrained_) sum += range.size();
  return sum;
}

int64_t LeafSchedule::WantSamples(absl::Duration latency, int64_t range_samples) const {
  if (stopping_) return 0;
  const int64_t have = untrained_samples();
  const auto during_latency = static_cast<int64_t>(std::ceil(speed_ * absl::ToDoubleSeconds(latency)));
  const int64_t low = options_.step_samples + during_latency;
  if (have > low) return 0;
  return std::max(range_samples, low + range_samples - have);
}

LeafSchedule::Action LeafSchedule::Next() {
  CHECK(training_.empty()) << "the step under way has not been reported";
  if (arrived_.version.value() == 0) return Wait{Reason::kParameters};
  // A leaf rebases only between two steps, and takes whatever came meanwhile.
  if (base_.version < arrived_.version) return Rebase{};

  const bool have_data = !untrained_.empty();
  const bool whole = steps_ >= steps_per_contribution();
  const bool last = steps_ > 0 && !have_data && (exhausted_ || stopping_);
  if (whole || last) {
    if (static_cast<int>(sent_.size()) < options_.in_flight_max) {
      sequence_ = Sequence(sequence_.value() + 1);
      Contribute contribute;
      contribute.manifest.sequence = sequence_;
      contribute.manifest.base = oldest_base_->version;
      contribute.manifest.root_base = oldest_base_->root_version;
      contribute.manifest.steps = steps_;
      contribute.manifest.tokens = samples_ * options_.tokens_per_sample;
      contribute.manifest.ranges = trained_;
      sent_[sequence_].ranges = std::move(trained_);
      trained_.clear();
      steps_ = 0;
      samples_ = 0;
      oldest_base_.reset();
      return contribute;
    }
    // A gradient, or a worker that waits anyway, cannot go on; progress can: the contribution grows meanwhile.
    if (options_.waits || last) return Wait{Reason::kAnswer};
  }
  if (options_.waits && !sent_.empty()) return Wait{Reason::kAnswer};
  // A step is made of less than its samples only when there are no more.
  if (untrained_samples() < options_.step_samples && !exhausted_ && !stopping_) return Wait{Reason::kData};
  if (!have_data) {
    return sent_.empty() ? Action(Idle{}) : Action(Wait{Reason::kAnswer});
  }
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
