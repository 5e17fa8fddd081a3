// Models that cost nothing to train, so that what the runtime does to them can be seen.
#ifndef WUKONG_RUNTIME_SIM_SIM_TRAINER_H_
#define WUKONG_RUNTIME_SIM_SIM_TRAINER_H_

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/scenario.pb.h"
#include "runtime/model/trainer.h"
#include "runtime/sync/types.h"

namespace wukong {

// Batches are not tokens: a step is made of samples by number.
class SimTrainer : public Trainer {
 public:
  // Adds `scale` * the mean gradient of these samples to the gradient; returns their mean loss.
  virtual double AccumulateSamples(const std::vector<LeasedRange>& samples, double scale) = 0;
  // Of the parameters, without noise.
  virtual double Loss(absl::Span<const float> parameters) const = 0;

  absl::StatusOr<double> AccumulateGradient(const Batch&, double) final {
    return absl::UnimplementedError("a simulated model has no tokens");
  }
  absl::StatusOr<double> Evaluate(const Batch&) final { return Loss(parameters()); }
  absl::StatusOr<OptimizerState> SaveOptimizer() final { return OptimizerState(); }
  absl::Status LoadOptimizer(const OptimizerState&) final { return absl::OkStatus(); }
};

// counter: every parameter is the number of samples that were trained on, an exact integer below 2^24; the learning
// rate
//   is of no account, and a gradient is minus the number of samples.
// toy: f(x) = 1/2 * sum of curvature_i * (x_i - 1)^2 with curvatures from 0.1 to 1, from x = 0, by plain SGD; the
// gradient
//   of a sample has normal noise that depends on the sample alone. The optimum is 1 everywhere, with loss 0.
std::unique_ptr<SimTrainer> MakeSimTrainer(const Workload& workload, uint64_t seed);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_SIM_TRAINER_H_
