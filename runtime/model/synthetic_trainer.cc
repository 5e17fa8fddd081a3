#include "runtime/model/synthetic_trainer.h"

#include <algorithm>
#include <cmath>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "runtime/base/random.h"

namespace wukong {
namespace {

class FlatTrainer : public SyntheticTrainer {
 public:
  FlatTrainer(const Model& model, uint64_t seed)
      : layout_({TensorSpec{"x", {model.size()}, 0, model.size()}}),
        parameters_(model.size()),
        gradient_(model.size()),
        step_(absl::Nanoseconds(model.step_ns())),
        jitter_(model.step_jitter()),
        step_seed_(DeriveSeed(seed, "synthetic step")) {}
  const ParameterLayout& layout() const override { return layout_; }
  absl::Span<float> parameters() override { return absl::MakeSpan(parameters_); }
  absl::Span<float> gradient() override { return absl::MakeSpan(gradient_); }
  void ZeroGradient() override { std::fill(gradient_.begin(), gradient_.end(), 0.0f); }

  absl::StatusOr<double> AccumulateGradient(const Batch& batch, double scale) override {
    if (batch.context != 1 || batch.samples != static_cast<int64_t>(batch.tokens.size())) {
      return absl::InvalidArgumentError("a synthetic model takes the numbers of its samples, one each");
    }
    if (batch.tokens.empty()) return 0.0;
    Random random(DeriveSeed(step_seed_, "time", static_cast<uint64_t>(batch.tokens[0])));
    absl::SleepFor(scale * step_ * std::max(0.0, 1 + jitter_ * random.Normal()));
    double loss = 0;
    const double share = scale / static_cast<double>(batch.samples);
    for (const int64_t sample : batch.tokens) loss += AccumulateSamples(sample, sample + 1, share);
    return loss / static_cast<double>(batch.samples);
  }
  absl::StatusOr<double> Evaluate(const Batch&) override { return Loss(parameters_); }
  absl::StatusOr<OptimizerState> SaveOptimizer() override { return OptimizerState(); }
  absl::Status LoadOptimizer(const OptimizerState&) override { return absl::OkStatus(); }

 protected:
  const ParameterLayout layout_;
  std::vector<float> parameters_;
  std::vector<float> gradient_;

 private:
  const absl::Duration step_;
  const double jitter_;
  const uint64_t step_seed_;
};

class CounterTrainer final : public FlatTrainer {
 public:
  using FlatTrainer::FlatTrainer;
  double AccumulateSamples(int64_t begin, int64_t end, double) override {
    const auto count = static_cast<float>(end - begin);
    for (float& value : gradient_) value -= count;
    return 1;
  }
  absl::StatusOr<double> OptimizerStep(double) override {
    for (size_t i = 0; i < parameters_.size(); ++i) parameters_[i] -= gradient_[i];
    ZeroGradient();
    return 1.0;
  }
  double Loss(absl::Span<const float> parameters) const override { return parameters[0]; }
};

class ToyTrainer final : public FlatTrainer {
 public:
  ToyTrainer(const Model& model, uint64_t seed)
      : FlatTrainer(model, seed), noise_(model.noise()), seed_(DeriveSeed(seed, "toy")) {}
  double AccumulateSamples(int64_t begin, int64_t end, double scale) override {
    const double share = scale / static_cast<double>(std::max<int64_t>(1, end - begin));
    for (size_t i = 0; i < parameters_.size(); ++i) {
      gradient_[i] += static_cast<float>(scale * Curvature(i) * (parameters_[i] - 1.0));
    }
    for (int64_t sample = begin; sample < end; ++sample) {
      Random random(DeriveSeed(seed_, "sample", static_cast<uint64_t>(sample)));
      for (float& value : gradient_) value += static_cast<float>(share * noise_ * random.Normal());
    }
    return Loss(parameters_);
  }
  absl::StatusOr<double> OptimizerStep(double learning_rate) override {
    double norm = 0;
    for (size_t i = 0; i < parameters_.size(); ++i) {
      norm += static_cast<double>(gradient_[i]) * gradient_[i];
      parameters_[i] -= static_cast<float>(learning_rate) * gradient_[i];
    }
    ZeroGradient();
    return std::sqrt(norm);
  }
  double Loss(absl::Span<const float> parameters) const override {
    double sum = 0;
    for (size_t i = 0; i < parameters.size(); ++i) {
      const double distance = parameters[i] - 1.0;
      sum += 0.5 * Curvature(i) * distance * distance;
    }
    return sum / static_cast<double>(parameters.size());
  }

 private:
  double Curvature(size_t i) const {
    return 0.1 + 0.9 * static_cast<double>(i) / static_cast<double>(std::max<size_t>(1, parameters_.size() - 1));
  }
  const double noise_;
  const uint64_t seed_;
};

}  // namespace

std::unique_ptr<SyntheticTrainer> MakeSyntheticTrainer(const Model& model, uint64_t seed) {
  if (model.synthetic() == SYNTHETIC_KIND_TOY) return std::make_unique<ToyTrainer>(model, seed);
  return std::make_unique<CounterTrainer>(model, seed);
}

}  // namespace wukong
