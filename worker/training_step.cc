#include "worker/training_step.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace wukong {

double EmulatedSpeed(const Region& region, int rank) {
  if (region.speed_size() == 0) return 1.0;
  return region.speed(rank % region.speed_size());
}

double TrainingStep::SlowDown(absl::Time begin) {
  const absl::Duration computed = clock_.Now() - begin;
  const double longer = slowness_ / options_.speed;
  if (longer > 1) wait_(computed * (longer - 1));
  return absl::ToDoubleSeconds(clock_.Now() - begin);
}

absl::StatusOr<double> TrainingStep::Accumulate(const std::vector<int64_t>& samples, const SampleShare& share) {
  double loss = 0;
  for (int64_t first = share.first; first < share.last; first += options_.micro_batch) {
    Batch batch;
    batch.context = reader_->context();
    for (int64_t i = first; i < std::min(share.last, first + options_.micro_batch); ++i) {
      reader_->Append(samples[static_cast<size_t>(i)], &batch.tokens, &batch.targets);
      ++batch.samples;
    }
    const double weight = static_cast<double>(batch.samples) / static_cast<double>(samples.size());
    const absl::StatusOr<double> part = trainer_->AccumulateGradient(batch, weight);
    if (!part.ok()) return part.status();
    loss += weight * *part;
  }
  return loss;
}

absl::StatusOr<TrainingStep::Result> TrainingStep::Run(absl::Span<const LeasedRange> ranges, double learning_rate) {
  absl::Time begin = clock_.Now();
  std::vector<int64_t> samples;
  for (const LeasedRange& range : ranges) {
    for (int64_t i = range.begin; i < range.end; ++i) samples.push_back(i);
  }
  const auto count = static_cast<int64_t>(samples.size());
  const SampleShare share = group_ == nullptr ? SampleShare{0, count} : ShareOf(count, group_->rank(), group_->size());
  Result result;
  result.samples = share.last - share.first;
  const absl::StatusOr<double> part = Accumulate(samples, share);
  if (!part.ok()) return part.status();
  result.loss = *part;
  result.compute_seconds = SlowDown(begin);
  if (group_ != nullptr) {
    // The loss first: a rank's that is not finite ends the step on all ranks alike.
    const absl::StatusOr<double> sum = group_->SumLoss(result.loss);
    if (!sum.ok()) return sum.status();
    result.loss = *sum;
  }
  result.finite = std::isfinite(result.loss);
  if (!result.finite) return result;
  if (group_ != nullptr) {
    if (absl::Status status = group_->SumGradient(trainer_); !status.ok()) return status;
  }
  if (options_.gradient_progress) {
    if (absl::Status status = trainer_->PullGradient(); !status.ok()) return status;
    const absl::Span<const float> gradient = trainer_->gradient();
    result.finite = std::all_of(gradient.begin(), gradient.end(), [](float value) { return std::isfinite(value); });
    // The sum is rank 0's to contribute; what others kept of it would be in the next sum once more.
    if (group_ != nullptr && group_->rank() != 0) trainer_->ZeroGradient();
    return result;
  }
  begin = clock_.Now();
  const absl::StatusOr<double> norm = trainer_->OptimizerStep(learning_rate);
  if (!norm.ok()) return norm.status();
  result.finite = std::isfinite(*norm);  // Of a group, the same on all ranks.
  if (!result.finite) return result;
  result.gradient_norm = *norm;
  result.compute_seconds += SlowDown(begin);
  return result;
}

}  // namespace wukong
