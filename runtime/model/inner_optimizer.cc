#include "runtime/model/inner_optimizer.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <sstream>
#include <string>
#include <type_traits>
#include <utility>

#include "absl/strings/str_format.h"

namespace wukong {
namespace {

constexpr char kMomentum[] = "momentum";
constexpr char kFirstMoment[] = "first_moment";
constexpr char kSecondMoment[] = "second_moment";

// A key of torch::optim: the pointer itself (libtorch 2) or its text (libtorch 1).
template <typename Key>
Key Address(void* pointer) {
  if constexpr (std::is_convertible_v<void*, Key>) {
    return pointer;
  } else {
    std::ostringstream text;
    text << pointer;
    return text.str();
  }
}

// A contiguous piece of the flat vector whose values are all treated alike.
struct Piece {
  int64_t begin = 0;
  int64_t size = 0;
  bool decays = false;
};

int64_t TotalSize(const std::vector<Piece>& pieces) {
  int64_t size = 0;
  for (const Piece& piece : pieces) size += piece.size;
  return size;
}

// Neighbours that decay alike are one piece.
void AddPiece(const OptimizedTensor& tensor, std::vector<Piece>* pieces) {
  if (!pieces->empty() && pieces->back().begin + pieces->back().size == tensor.offset &&
      pieces->back().decays == tensor.decays) {
    pieces->back().size += tensor.size;
  } else {
    pieces->push_back({tensor.offset, tensor.size, tensor.decays});
  }
}

std::vector<float> ToHost(const torch::Tensor& tensor) {
  const torch::Tensor host = tensor.cpu().contiguous();
  return {host.data_ptr<float>(), host.data_ptr<float>() + host.numel()};
}

// A tensor of its own on the device of `like`.
torch::Tensor ToDevice(const float* values, int64_t size, const torch::Tensor& like) {
  return torch::from_blob(const_cast<float*>(values), {size}, torch::kFloat32).clone().to(like.device());
}

// That `saved` holds exactly the vectors of these sizes, or nothing before the first step.
absl::Status CheckState(const Trainer::OptimizerState& saved, const std::map<std::string, int64_t>& sizes) {
  for (const auto& [name, size] : sizes) {
    const auto found = saved.vectors.find(name);
    const int64_t expected = saved.steps == 0 ? 0 : size;
    const int64_t got = found == saved.vectors.end() ? 0 : static_cast<int64_t>(found->second.size());
    if (got != expected) {
      return absl::InvalidArgumentError(
          absl::StrFormat("trainer: the state of the optimizer after %d steps: expected %d values of %s, got %d; it "
                          "must be of the same "
                          "model and optimizer.kind",
                          saved.steps, expected, name, got));
    }
  }
  for (const auto& [name, values] : saved.vectors) {
    if (values.empty() || sizes.count(name) > 0) continue;
    return absl::InvalidArgumentError(absl::StrFormat(
        "trainer: the state of the optimizer: expected no vector %s, got %d values; it must be of the same "
        "optimizer.kind",
        name, values.size()));
  }
  return absl::OkStatus();
}

class AdamW final : public InnerOptimizer {
 public:
  AdamW(const Optimizer& config, const torch::Tensor& parameters, const torch::Tensor& gradient,
        const std::vector<Piece>& pieces)
      : parameters_(parameters), size_(TotalSize(pieces)) {
    std::vector<torch::optim::OptimizerParamGroup> groups;
    for (const Piece& piece : pieces) {
      auto options = std::make_unique<torch::optim::AdamWOptions>(config.learning_rate());
      options->betas({config.beta1(), config.beta2()})
          .eps(config.epsilon())
          .weight_decay(piece.decays ? config.weight_decay() : 0.0);
      torch::Tensor leaf = parameters.narrow(0, piece.begin, piece.size).detach();
      leaf.set_requires_grad(true);
      leaf.mutable_grad() = gradient.narrow(0, piece.begin, piece.size);
      groups.emplace_back(std::vector<torch::Tensor>{std::move(leaf)}, std::move(options));
    }
    optimizer_ = std::make_unique<torch::optim::AdamW>(std::move(groups));
  }

  void Step(double learning_rate) override {
    for (torch::optim::OptimizerParamGroup& group : optimizer_->param_groups()) {
      static_cast<torch::optim::AdamWOptions&>(group.options()).lr(learning_rate);
    }
    optimizer_->step();
  }

  Trainer::OptimizerState Save() const override {
    Trainer::OptimizerState saved;
    for (const torch::optim::OptimizerParamGroup& group : optimizer_->param_groups()) {
      const auto found = optimizer_->state().find(StateKey(group));
      if (found == optimizer_->state().end()) return Trainer::OptimizerState();
      const auto& state = static_cast<const torch::optim::AdamWParamState&>(*found->second);
      saved.steps = state.step();
      for (const auto& [name, tensor] :
           {std::pair{kFirstMoment, state.exp_avg()}, std::pair{kSecondMoment, state.exp_avg_sq()}}) {
        const std::vector<float> values = ToHost(tensor);
        std::vector<float>& to = saved.vectors[name];
        to.insert(to.end(), values.begin(), values.end());
      }
    }
    return saved;
  }

  std::map<std::string, int64_t> Sizes() const { return {{kFirstMoment, size_}, {kSecondMoment, size_}}; }

  absl::Status Load(const Trainer::OptimizerState& saved) override {
    if (absl::Status status = CheckState(saved, Sizes()); !status.ok()) return status;
    optimizer_->state().clear();
    if (saved.steps == 0) return absl::OkStatus();
    int64_t begin = 0;
    for (const torch::optim::OptimizerParamGroup& group : optimizer_->param_groups()) {
      const int64_t count = group.params()[0].numel();
      auto state = std::make_unique<torch::optim::AdamWParamState>();
      state->step(saved.steps);
      state->exp_avg(ToDevice(saved.vectors.at(kFirstMoment).data() + begin, count, parameters_));
      state->exp_avg_sq(ToDevice(saved.vectors.at(kSecondMoment).data() + begin, count, parameters_));
      optimizer_->state()[StateKey(group)] = std::move(state);
      begin += count;
    }
    return absl::OkStatus();
  }

 private:
  using States = std::decay_t<decltype(std::declval<torch::optim::AdamW&>().state())>;

  // As torch::optim keeps its state: by the parameter's address. Each group is one flat tensor.
  static States::key_type StateKey(const torch::optim::OptimizerParamGroup& group) {
    return Address<States::key_type>(group.params()[0].unsafeGetTensorImpl());
  }

  const torch::Tensor parameters_;
  const int64_t size_;
  std::unique_ptr<torch::optim::AdamW> optimizer_;
};

class Sgd final : public InnerOptimizer {
 public:
  Sgd(const Optimizer& config, torch::Tensor parameters, torch::Tensor gradient, std::vector<Piece> pieces)
      : config_(config),
        parameters_(std::move(parameters)),
        gradient_(std::move(gradient)),
        pieces_(std::move(pieces)) {}

  void Step(double learning_rate) override {
    for (const Piece& piece : pieces_) {
      if (!piece.decays) continue;
      parameters_.narrow(0, piece.begin, piece.size).mul_(1 - learning_rate * config_.weight_decay());
    }
    parameters_.sub_(gradient_, learning_rate);
    if (config_.momentum() > 0) {
      if (!momentum_.defined()) momentum_ = torch::zeros_like(parameters_);
      momentum_.mul_(config_.momentum()).add_(gradient_);
      parameters_.sub_(momentum_, learning_rate * config_.momentum());
    }
    ++steps_;
  }

  Trainer::OptimizerState Save() const override {
    Trainer::OptimizerState saved;
    saved.steps = steps_;
    if (momentum_.defined()) saved.vectors[kMomentum] = ToHost(momentum_);
    return saved;
  }

  absl::Status Load(const Trainer::OptimizerState& saved) override {
    const int64_t size = config_.momentum() > 0 ? parameters_.numel() : 0;
    if (absl::Status status = CheckState(saved, {{kMomentum, size}}); !status.ok()) return status;
    steps_ = saved.steps;
    momentum_ = torch::Tensor();
    if (steps_ > 0 && size > 0) momentum_ = ToDevice(saved.vectors.at(kMomentum).data(), size, parameters_);
    return absl::OkStatus();
  }

 private:
  const Optimizer config_;
  torch::Tensor parameters_, gradient_;
  const std::vector<Piece> pieces_;
  int64_t steps_ = 0;
  torch::Tensor momentum_;  // Undefined before the first step.
};

// The orthogonal matrix nearest to `matrix` [rows, columns], about: its singular values come to between 0.7 and 1.2.
// Five steps of the quintic Newton-Schulz iteration with the coefficients of Jordan et al. 2024.
torch::Tensor Orthogonalize(const torch::Tensor& matrix) {
  constexpr double kA = 3.4445, kB = -4.7750, kC = 2.0315;
  constexpr int kSteps = 5;
  const bool tall = matrix.size(0) > matrix.size(1);
  torch::Tensor x = tall ? matrix.t().contiguous() : matrix.clone();
  x.div_(x.norm() + 1e-7);  // No singular value is then above 1, where the iteration begins to converge.
  for (int step = 0; step < kSteps; ++step) {
    const torch::Tensor gram = at::mm(x, x.t());
    x = at::addmm(x, at::addmm(gram, gram, gram, kB, kC), x, kA, 1.0);
  }
  return tall ? x.t() : x;
}

class Muon final : public InnerOptimizer {
 public:
  Muon(const Optimizer& config, const torch::Tensor& parameters, const torch::Tensor& gradient,
       const std::vector<OptimizedTensor>& tensors, const std::vector<Piece>& others)
      : config_(config), adamw_(config, parameters, gradient, others) {
    for (const OptimizedTensor& tensor : tensors) {
      if (tensor.matrices == 0) continue;
      const int64_t rows = tensor.shape[0] / tensor.matrices, size = tensor.size / tensor.matrices;
      for (int64_t i = 0; i < tensor.matrices; ++i) {
        const auto matrix = [&](const torch::Tensor& flat) {
          return flat.narrow(0, tensor.offset + i * size, size).view({rows, size / rows});
        };
        matrices_.push_back({matrix(parameters), matrix(gradient), tensor.decays, torch::Tensor()});
        size_ += size;
      }
    }
    momentum_ = torch::zeros({size_}, parameters.options().requires_grad(false));
    int64_t begin = 0;
    for (Matrix& matrix : matrices_) {
      matrix.momentum = momentum_.narrow(0, begin, matrix.parameters.numel()).view(matrix.parameters.sizes());
      begin += matrix.parameters.numel();
    }
  }

  void Step(double learning_rate) override {
    adamw_.Step(learning_rate);
    const double rate = learning_rate * config_.matrix_learning_rate() / config_.learning_rate();
    for (Matrix& matrix : matrices_) {
      matrix.momentum.mul_(config_.momentum()).add_(matrix.gradient);
      const torch::Tensor step = Orthogonalize(matrix.gradient.add(matrix.momentum, /*alpha=*/config_.momentum()));
      if (matrix.decays) matrix.parameters.mul_(1 - rate * config_.weight_decay());
      const auto larger = static_cast<double>(std::max(step.size(0), step.size(1)));
      matrix.parameters.sub_(step, rate * 0.2 * std::sqrt(larger));
    }
    ++steps_;
  }

  Trainer::OptimizerState Save() const override {
    Trainer::OptimizerState saved = adamw_.Save();
    saved.steps = steps_;
    if (steps_ > 0 && size_ > 0) saved.vectors[kMomentum] = ToHost(momentum_);
    return saved;
  }

  absl::Status Load(const Trainer::OptimizerState& saved) override {
    std::map<std::string, int64_t> sizes = adamw_.Sizes();
    sizes[kMomentum] = size_;
    if (absl::Status status = CheckState(saved, sizes); !status.ok()) return status;
    Trainer::OptimizerState others = saved;
    others.vectors.erase(kMomentum);
    if (absl::Status status = adamw_.Load(others); !status.ok()) return status;
    steps_ = saved.steps;
    if (steps_ == 0 || size_ == 0) {
      momentum_.zero_();
    } else {
      momentum_.copy_(ToDevice(saved.vectors.at(kMomentum).data(), size_, momentum_));
    }
    return absl::OkStatus();
  }

 private:
  struct Matrix {
    torch::Tensor parameters, gradient;  // [rows, columns], views of the flat vectors.
    bool decays = false;
    torch::Tensor momentum;  // A view of momentum_.
  };

  const Optimizer config_;
  AdamW adamw_;  // Of all that is no hidden matrix.
  std::vector<Matrix> matrices_;
  int64_t size_ = 0;  // Of all matrices.
  torch::Tensor momentum_;
  int64_t steps_ = 0;
};

}  // namespace

std::unique_ptr<InnerOptimizer> MakeInnerOptimizer(const Optimizer& config, const torch::Tensor& parameters,
                                                   const torch::Tensor& gradient,
                                                   const std::vector<OptimizedTensor>& tensors) {
  std::vector<Piece> all, others;
  for (const OptimizedTensor& tensor : tensors) {
    AddPiece(tensor, &all);
    if (tensor.matrices == 0) AddPiece(tensor, &others);
  }
  switch (config.kind()) {
    case OPTIMIZER_KIND_SGD:
      return std::make_unique<Sgd>(config, parameters, gradient, all);
    case OPTIMIZER_KIND_MUON:
      return std::make_unique<Muon>(config, parameters, gradient, tensors, others);
    default:
      return std::make_unique<AdamW>(config, parameters, gradient, all);
  }
}

}  // namespace wukong
