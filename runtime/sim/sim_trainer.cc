#include "runtime/sim/sim_trainer.h"

#include <algorithm>
#include <cmath>

#include "runtime/base/random.h"

namespace wukong {
namespace {

int64_t Samples(const std::vector<LeasedRange>& ranges) {
  int64_t sum = 0;
  for (const LeasedRange& range : ranges) sum += range.size();
  return sum;
}

class FlatTrainer : public SimTrainer {
 public:
  explicit FlatTrainer(int64_t size)
      : layout_({TensorSpec{"x", {size}, 0, size}}), parameters_(size), gradient_(size) {}
  const ParameterLayout& layout() const override { return layout_; }
  absl::Span<float> parameters() override { return absl::MakeSpan(parameters_); }
  absl::Span<float> gradient() override { return absl::MakeSpan(gradient_); }
  void ZeroGradient() override { std::fill(gradient_.begin(), gradient_.end(), 0.0f); }

 protected:
  const ParameterLayout layout_;
  std::vector<float> parameters_;
  std::vector<float> gradient_;
};

class CounterTrainer final : public FlatTrainer {
 public:
  explicit CounterTrainer(const Workload& workload) : FlatTrainer(workload.parameters()) {}
  double AccumulateSamples(const std::vector<LeasedRange>& samples, double) override {
    const auto count = static_cast<float>(Samples(samples));
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
  ToyTrainer(const Workload& workload, uint64_t seed)
      : FlatTrainer(workload.parameters()), noise_(workload.noise()), seed_(DeriveSeed(seed, "toy")) {}
  double AccumulateSamples(const std::vector<LeasedRange>& samples, double scale) override {
    const int64_t count = Samples(samples);
    const double share = scale / static_cast<double>(std::max<int64_t>(1, count));
    for (size_t i = 0; i < parameters_.size(); ++i) {
      gradient_[i] += static_cast<float>(scale * Curvature(i) * (parameters_[i] - 1.0));
    }
    for (const LeasedRange& range : samples) {
      for (int64_t sample = range.begin; sample < range.end; ++sample) {
        Random random(DeriveSeed(seed_, "sample", static_cast<uint64_t>(sample)));
        for (float& value : gradient_) value += static_cast<float>(share * noise_ * random.Normal());
      }
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

std::unique_ptr<SimTrainer> MakeSimTrainer(const Workload& workload, uint64_t seed) {
  if (workload.fidelity() == FIDELITY_TOY) return std::make_unique<ToyTrainer>(workload, seed);
  return std::make_unique<CounterTrainer>(workload);
}

}  // namespace wukong
