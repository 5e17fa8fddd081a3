// A model with its inner optimizer, behind a flat vector of parameters.
#ifndef WUKONG_RUNTIME_MODEL_TRAINER_H_
#define WUKONG_RUNTIME_MODEL_TRAINER_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/job.pb.h"
#include "runtime/base/clock.h"
#include "runtime/model/parameter_layout.h"

namespace wukong {

// `samples` sequences; tokens[s * context + t] is followed by targets[s * context + t].
struct Batch {
  int64_t samples = 0;
  int64_t context = 0;
  std::vector<int64_t> tokens;
  std::vector<int64_t> targets;
};

// Thread-compatible: one thread at a time.
class Trainer {
 public:
  virtual ~Trainer() = default;

  virtual const ParameterLayout& layout() const = 0;

  // The flat parameters and gradient in host memory, float32, layout().size() values. On a CPU these are the very
  // memory that the model computes with; on a device they are a mirror, see PullParameters.
  virtual absl::Span<float> parameters() = 0;
  virtual absl::Span<float> gradient() = 0;
  // Device to host and back; nothing to do on a CPU.
  virtual absl::Status PullParameters() { return absl::OkStatus(); }
  virtual absl::Status PushParameters() { return absl::OkStatus(); }
  virtual absl::Status PullGradient() { return absl::OkStatus(); }
  virtual absl::Status PushGradient() { return absl::OkStatus(); }

  // Adds scale * d(mean loss)/d(parameters) to the gradient and returns the mean loss in nats per token.
  // With k micro-batches of equal size per step, pass scale = 1/k. INVALID_ARGUMENT for a batch of the wrong shape or
  // with a token outside the vocabulary. A loss that is not finite is returned as it is.
  virtual absl::StatusOr<double> AccumulateGradient(const Batch& batch, double scale) = 0;

  // Clips the gradient to the job's clip_norm, makes one step of the job's inner optimizer (inner_optimizer.h has the
  // rules) with `learning_rate`, and clears the gradient. Returns the gradient's norm before clipping. Where that norm
  // is not finite, parameters and optimizer stay as they were and only the gradient is cleared: one bad batch must not
  // end the run.
  virtual absl::StatusOr<double> OptimizerStep(double learning_rate) = 0;

  virtual void ZeroGradient() = 0;

  // Which vector instructions OptimizerStep works with: with the same ones, the same steps give the same bits. One of
  // ATEN_CPU_CAPABILITY's names in capitals; empty where it does not matter.
  virtual std::string cpu_capability() const { return ""; }

  // The inner optimizer's state. Loading what was saved, the next steps give the same bits as without.
  struct OptimizerState {
    int64_t steps = 0;
    // None before the first step. adamw: "first_moment" and "second_moment", flat as the parameters. sgd: "momentum",
    // flat as the parameters, unless the momentum is 0. muon: "momentum" of the hidden matrices, one after another, and
    // AdamW's two of all other tensors.
    std::map<std::string, std::vector<float>> vectors;
  };
  virtual absl::StatusOr<OptimizerState> SaveOptimizer() = 0;
  // INVALID_ARGUMENT for the state of another kind, or of another size.
  virtual absl::Status LoadOptimizer(const OptimizerState& state) = 0;

  // Mean loss in nats per token, without a gradient.
  virtual absl::StatusOr<double> Evaluate(const Batch& batch) = 0;
};

// Where the time of a trainer went.
struct TrainerTimes {
  absl::Duration gradient;   // Forward and backward.
  absl::Duration clip;       // The gradient's norm, and scaling by it.
  absl::Duration optimizer;  // The inner optimizer, and clearing the gradient.
};

struct TrainerOptions {
  Precision precision = PRECISION_FP32;
  std::string device = "cpu";  // "cpu", "cuda" or "cuda:N"
  int threads = 1;             // Compute threads; also sets libtorch's, which are the process's.
  // Where both are set, each call adds its time to `times`. They outlive the trainer.
  const Clock* clock = nullptr;
  TrainerTimes* times = nullptr;
};

// The built-in GPT or the scripted module that `job.model` asks for, initialised from job.seed (a scripted module keeps
// the parameters of its file). Errors: INVALID_ARGUMENT for a model that cannot be; NOT_FOUND for a missing file;
// FAILED_PRECONDITION for a device that this machine or this build does not have.
absl::StatusOr<std::unique_ptr<Trainer>> MakeTrainer(const Job& job, const TrainerOptions& options);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_MODEL_TRAINER_H_
