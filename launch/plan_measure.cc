// How long a step takes here: apart from the command, which needs no trainer.
#include <algorithm>
#include <memory>
#include <vector>

#include "launch/plan_command.h"
#include "runtime/base/clock.h"
#include "runtime/base/random.h"
#include "runtime/model/trainer.h"

namespace wukong {

absl::StatusOr<absl::Duration> MeasureTrainerStep(const Job& job) {
  constexpr int kWarmUpSteps = 2, kStepsMin = 3;
  constexpr absl::Duration kTime = absl::Seconds(3);
  TrainerOptions options;
  const Region& region = job.regions(0);
  options.precision = region.precision() == PRECISION_UNSPECIFIED ? job.optimizer().precision() : region.precision();
  options.device = region.device();
  options.threads = region.threads();
  absl::StatusOr<std::unique_ptr<Trainer>> trainer = MakeTrainer(job, options);
  if (!trainer.ok()) return trainer.status();
  Batch batch;
  batch.samples = job.optimizer().micro_batch();
  batch.context = job.model().context();
  Random random(job.seed());
  for (int64_t i = 0; i < batch.samples * batch.context; ++i) {
    batch.tokens.push_back(static_cast<int64_t>(random.Below(static_cast<uint64_t>(job.model().vocabulary()))));
    batch.targets.push_back(static_cast<int64_t>(random.Below(static_cast<uint64_t>(job.model().vocabulary()))));
  }
  // With averaged gradients a worker makes no optimizer step.
  const bool steps = job.strategy().progress() != PROGRESS_GRADIENT;
  const RealClock clock;
  std::vector<absl::Duration> times;
  absl::Time begin = clock.Now();
  for (int step = 0; step < kWarmUpSteps + kStepsMin || clock.Now() - begin < kTime; ++step) {
    if (step == kWarmUpSteps) begin = clock.Now();
    const absl::Time start = clock.Now();
    for (int i = 0; i < job.optimizer().accumulation(); ++i) {
      const absl::StatusOr<double> loss = (*trainer)->AccumulateGradient(batch, 1.0 / job.optimizer().accumulation());
      if (!loss.ok()) return loss.status();
    }
    if (steps) {
      const absl::StatusOr<double> norm = (*trainer)->OptimizerStep(job.optimizer().learning_rate());
      if (!norm.ok()) return norm.status();
    } else {
      (*trainer)->ZeroGradient();
    }
    if (step >= kWarmUpSteps) times.push_back(clock.Now() - start);
  }
  std::nth_element(times.begin(), times.begin() + static_cast<std::ptrdiff_t>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

}  // namespace wukong
