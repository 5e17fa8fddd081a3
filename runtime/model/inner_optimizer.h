// The inner optimizers over the flat vector of parameters. Includes libtorch: for the trainer alone.
#ifndef WUKONG_RUNTIME_MODEL_INNER_OPTIMIZER_H_
#define WUKONG_RUNTIME_MODEL_INNER_OPTIMIZER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "proto/job.pb.h"
#include "runtime/model/trainer.h"
#include "torch/torch.h"

namespace wukong {

// One tensor of the flat vector, as an optimizer sees it.
struct OptimizedTensor {
  int64_t offset = 0;
  int64_t size = 0;
  std::vector<int64_t> shape;
  bool decays = false;
  // Hidden matrices in it, stacked along the first dimension: 1 for most, 3 where queries, keys and values are one
  // tensor. 0 for embeddings, the output head, gains and biases. More than two dimensions are [first, all others].
  int64_t matrices = 0;
};

// One rule that turns the gradient into a step. `rate` is the learning rate of the step, lambda the weight decay, which
// is decoupled (Loshchilov and Hutter 2019) and only of tensors that decay: p <- p - rate * lambda * p before the step.
//
// adamw: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
// sgd:   m <- mu * m + g,  p <- p - rate * (g + mu * m): Nesterov's momentum in the form of Sutskever et al. 2013, "On
//        the importance of initialization and momentum in deep learning", with the gradient taken at p.
// muon:  of each hidden matrix [rows, columns] m <- mu * m + g,  p <- p - rate' * 0.2 * sqrt(max(rows, columns)) *
//        Orthogonalize(g + mu * m), where rate' = rate * matrix_learning_rate / learning_rate; AdamW with `rate` of all
//        else. Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". The factor makes the root
//        mean square of a step that of AdamW's, so that both take the same rates and weight decay: Liu et al. 2025,
//        "Muon is scalable for LLM training" (arXiv 2502.16982), equation 4.
//
// Thread-compatible. libtorch's exceptions pass through.
class InnerOptimizer {
 public:
  virtual ~InnerOptimizer() = default;
  // The gradient is finite, and is read only.
  virtual void Step(double learning_rate) = 0;
  virtual Trainer::OptimizerState Save() const = 0;
  // INVALID_ARGUMENT names the vector that is missing, of the wrong size or of another kind; the state is then as
  // before.
  virtual absl::Status Load(const Trainer::OptimizerState& saved) = 0;
};

// `config` is resolved and checked (optimizer_kinds.h). `parameters` and `gradient` are flat float32 on one device, and
// are shared, not copied; `tensors` cut them without a gap, those that decay before those that do not.
std::unique_ptr<InnerOptimizer> MakeInnerOptimizer(const Optimizer& config, const torch::Tensor& parameters,
                                                   const torch::Tensor& gradient,
                                                   const std::vector<OptimizedTensor>& tensors);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_MODEL_INNER_OPTIMIZER_H_
