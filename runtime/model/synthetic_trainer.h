// Models that cost nothing to train, so that what the runtime does to them can be seen.
#ifndef WUKONG_RUNTIME_MODEL_SYNTHETIC_TRAINER_H_
#define WUKONG_RUNTIME_MODEL_SYNTHETIC_TRAINER_H_

#include <cstdint>
#include <memory>

#include "absl/types/span.h"
#include "proto/job.pb.h"
#include "runtime/model/trainer.h"

namespace wukong {

// Batches hold the numbers of samples in place of tokens (SampleReader::Numbers), and take the time that the model
// says. There is no inner optimizer state.
class SyntheticTrainer : public Trainer {
 public:
  // As AccumulateGradient of the samples from `begin` up to `end`, in no time. Returns their mean loss.
  virtual double AccumulateSamples(int64_t begin, int64_t end, double scale) = 0;
  // Of the parameters, without noise.
  virtual double Loss(absl::Span<const float> parameters) const = 0;
};

// What model.synthetic asks for.
//
// counter: every parameter is the number of samples that were trained on, an exact integer below 2^24; the learning
// rate
//   is of no account, and a gradient is minus the number of samples.
// toy: f(x) = 1/2 * mean of curvature_i * (x_i - 1)^2 with curvatures from 0.1 to 1, from x = 0, by plain SGD; the
//   gradient of a sample has normal noise that depends on the sample alone. The optimum is 1 everywhere, with loss 0.
std::unique_ptr<SyntheticTrainer> MakeSyntheticTrainer(const Model& model, uint64_t seed);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_MODEL_SYNTHETIC_TRAINER_H_
