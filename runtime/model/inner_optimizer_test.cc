// The inner optimizers through the trainer that runs them, against float64.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/base/random.h"
#include "runtime/model/optimizer_kinds.h"
#include "runtime/model/trainer_test_util.h"

namespace wukong {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr double kDecay = 0.1;
const OptimizerKind kKinds[] = {OPTIMIZER_KIND_ADAMW, OPTIMIZER_KIND_SGD, OPTIMIZER_KIND_MUON};

Job TinyJob(OptimizerKind kind) {
  Job job;
  job.set_seed(7);
  job.mutable_model()->set_layers(2);
  job.mutable_model()->set_heads(2);
  job.mutable_model()->set_width(8);
  job.mutable_model()->set_context(5);
  job.mutable_model()->set_vocabulary(8);  // As large as the width: shapes alone do not tell what is hidden.
  job.mutable_optimizer()->set_kind(kind);
  job.mutable_optimizer()->set_weight_decay(kDecay);
  ResolveOptimizer(job.mutable_optimizer());
  return job;
}

// Fills parameters, and later each gradient, with normal values of this deviation.
void Fill(absl::Span<float> values, double deviation, Random* random) {
  for (float& value : values) value = static_cast<float>(deviation * random->Normal());
}

// Row by row.
struct Matrix {
  int64_t rows = 0, columns = 0;
  std::vector<double> values;
  double& at(int64_t r, int64_t c) { return values[r * columns + c]; }
  double at(int64_t r, int64_t c) const { return values[r * columns + c]; }
};

Matrix Zeros(int64_t rows, int64_t columns) {
  return {rows, columns, std::vector<double>(static_cast<size_t>(rows * columns), 0.0)};
}

Matrix Times(const Matrix& a, const Matrix& b) {
  Matrix product = Zeros(a.rows, b.columns);
  for (int64_t r = 0; r < a.rows; ++r) {
    for (int64_t c = 0; c < b.columns; ++c) {
      for (int64_t k = 0; k < a.columns; ++k) product.at(r, c) += a.at(r, k) * b.at(k, c);
    }
  }
  return product;
}

Matrix Transposed(const Matrix& a) {
  Matrix result = Zeros(a.columns, a.rows);
  for (int64_t r = 0; r < a.rows; ++r) {
    for (int64_t c = 0; c < a.columns; ++c) result.at(c, r) = a.at(r, c);
  }
  return result;
}

// Newton-Schulz as it is written in the paper, on the left of the matrix: X <- a X + (b X X^T + c (X X^T)^2) X. The
// implementation may work on the transposed one, which gives the same.
Matrix NewtonSchulz(Matrix x) {
  double squares = 0;
  for (const double value : x.values) squares += value * value;
  for (double& value : x.values) value /= std::sqrt(squares) + 1e-7;
  for (int step = 0; step < 5; ++step) {
    const Matrix gram = Times(x, Transposed(x));
    const Matrix gram2 = Times(gram, gram);
    Matrix polynomial = Zeros(x.rows, x.rows);
    for (size_t i = 0; i < gram.values.size(); ++i) {
      polynomial.values[i] = -4.7750 * gram.values[i] + 2.0315 * gram2.values[i];
    }
    const Matrix more = Times(polynomial, x);
    for (size_t i = 0; i < x.values.size(); ++i) x.values[i] = 3.4445 * x.values[i] + more.values[i];
  }
  return x;
}

// Squares of the singular values: the eigenvalues of the smaller Gram matrix, by Jacobi's rotations.
std::vector<double> SquaredSingularValues(const Matrix& x) {
  Matrix a = x.rows <= x.columns ? Times(x, Transposed(x)) : Times(Transposed(x), x);
  for (int sweep = 0; sweep < 50; ++sweep) {
    for (int64_t p = 0; p < a.rows; ++p) {
      for (int64_t q = p + 1; q < a.rows; ++q) {
        if (std::abs(a.at(p, q)) < 1e-14) continue;
        const double angle = 0.5 * std::atan2(2 * a.at(p, q), a.at(q, q) - a.at(p, p));
        const double c = std::cos(angle), s = std::sin(angle);
        for (int64_t k = 0; k < a.rows; ++k) {
          const double kp = a.at(k, p), kq = a.at(k, q);
          a.at(k, p) = c * kp - s * kq;
          a.at(k, q) = s * kp + c * kq;
        }
        for (int64_t k = 0; k < a.rows; ++k) {
          const double pk = a.at(p, k), qk = a.at(q, k);
          a.at(p, k) = c * pk - s * qk;
          a.at(q, k) = s * pk + c * qk;
        }
      }
    }
  }
  std::vector<double> values;
  for (int64_t i = 0; i < a.rows; ++i) values.push_back(a.at(i, i));
  return values;
}

// The matrices that Muon turns; queries, keys and values are three.
int64_t HiddenMatrices(const TensorSpec& tensor) {
  if (tensor.shape.size() != 2 || tensor.name.find("h.") != 0) return 0;
  return tensor.name.find("c_attn") != std::string::npos ? 3 : 1;
}

// One optimizer in float64. `m` and `v` are flat as the parameters.
struct Reference {
  explicit Reference(const Optimizer& optimizer, size_t size) : config(optimizer), m(size, 0.0), v(size, 0.0) {}

  void Step(const ParameterLayout& layout, const std::vector<double>& g, double rate, std::vector<double>* p) {
    ++t;
    for (const TensorSpec& tensor : layout.tensors()) {
      const double decay = tensor.shape.size() >= 2 ? kDecay : 0.0;
      const int64_t matrices = config.kind() == OPTIMIZER_KIND_MUON ? HiddenMatrices(tensor) : 0;
      const double own = matrices > 0 ? rate * config.matrix_learning_rate() / config.learning_rate() : rate;
      for (int64_t i = tensor.offset; i < tensor.offset + tensor.size; ++i) (*p)[i] *= 1 - own * decay;
      if (matrices > 0) {
        Muon(tensor, matrices, g, own, p);
      } else if (config.kind() == OPTIMIZER_KIND_SGD) {
        for (int64_t i = tensor.offset; i < tensor.offset + tensor.size; ++i) {
          m[i] = config.momentum() * m[i] + g[i];
          (*p)[i] -= rate * (g[i] + config.momentum() * m[i]);
        }
      } else {
        for (int64_t i = tensor.offset; i < tensor.offset + tensor.size; ++i) {
          m[i] = 0.9 * m[i] + 0.1 * g[i];
          v[i] = 0.95 * v[i] + 0.05 * g[i] * g[i];
          (*p)[i] -= rate * (m[i] / (1 - std::pow(0.9, t))) / (std::sqrt(v[i] / (1 - std::pow(0.95, t))) + 1e-8);
        }
      }
    }
  }

  void Muon(const TensorSpec& tensor, int64_t matrices, const std::vector<double>& g, double rate,
            std::vector<double>* p) {
    const int64_t size = tensor.size / matrices, columns = tensor.shape[1];
    for (int64_t begin = tensor.offset; begin < tensor.offset + tensor.size; begin += size) {
      Matrix step = Zeros(size / columns, columns);
      for (int64_t i = 0; i < size; ++i) {
        m[begin + i] = config.momentum() * m[begin + i] + g[begin + i];
        step.values[i] = g[begin + i] + config.momentum() * m[begin + i];
      }
      step = NewtonSchulz(step);
      const double scale = 0.2 * std::sqrt(static_cast<double>(std::max(step.rows, step.columns)));
      for (int64_t i = 0; i < size; ++i) (*p)[begin + i] -= rate * scale * step.values[i];
    }
  }

  const Optimizer config;
  std::vector<double> m, v;
  int t = 0;
};

TEST(InnerOptimizerTest, EveryRuleAgreesWithFloat64OverSeveralSteps) {
  for (const OptimizerKind kind : kKinds) {
    for (const double momentum : {-1.0, 0.0, 0.5}) {  // -1: the kind's own.
      if (kind == OPTIMIZER_KIND_ADAMW && momentum >= 0) continue;
      SCOPED_TRACE(OptimizerKind_Name(kind) + " momentum " + std::to_string(momentum));
      Job job = TinyJob(kind);
      if (momentum >= 0) job.mutable_optimizer()->set_momentum(momentum);
      if (kind == OPTIMIZER_KIND_MUON) job.mutable_optimizer()->set_matrix_learning_rate(2e-3);
      const std::unique_ptr<Trainer> trainer = TestTrainer(job);
      Random random(3);
      Fill(trainer->parameters(), 0.4, &random);
      std::vector<double> p(trainer->parameters().begin(), trainer->parameters().end());
      Reference reference(job.optimizer(), p.size());
      for (int step = 1; step <= 4; ++step) {
        Fill(trainer->gradient(), 1e-2, &random);
        const std::vector<double> g(trainer->gradient().begin(), trainer->gradient().end());
        const double rate = 0.01 * step;
        ASSERT_TRUE(trainer->OptimizerStep(rate).ok());
        reference.Step(trainer->layout(), g, rate, &p);
        for (const TensorSpec& tensor : trainer->layout().tensors()) {
          for (int64_t i = tensor.offset; i < tensor.offset + tensor.size; ++i) {
            ASSERT_NEAR(trainer->parameters()[i], p[i], 2e-5) << tensor.name << " step " << step << " value " << i;
          }
        }
      }
    }
  }
}

TEST(InnerOptimizerTest, MuonsStepIsNearlyOrthogonal) {
  Job job = TinyJob(OPTIMIZER_KIND_MUON);
  job.mutable_model()->set_width(16);
  job.mutable_optimizer()->set_weight_decay(0);
  const std::unique_ptr<Trainer> trainer = TestTrainer(job);
  std::fill(trainer->parameters().begin(), trainer->parameters().end(), 0.0f);
  Random random(5);
  Fill(trainer->gradient(), 1, &random);
  ASSERT_TRUE(trainer->OptimizerStep(1).ok());
  int matrices = 0;
  for (const TensorSpec& tensor : trainer->layout().tensors()) {
    const int64_t count = HiddenMatrices(tensor);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t size = tensor.size / count;
      Matrix step = Zeros(size / tensor.shape[1], tensor.shape[1]);
      const double scale = 0.2 * std::sqrt(static_cast<double>(std::max(step.rows, step.columns)));
      for (int64_t k = 0; k < size; ++k) step.values[k] = -trainer->parameters()[tensor.offset + i * size + k] / scale;
      for (const double square : SquaredSingularValues(step)) {
        EXPECT_GT(std::sqrt(square), 0.65) << tensor.name;
        EXPECT_LT(std::sqrt(square), 1.25) << tensor.name;
      }
      ++matrices;
    }
  }
  EXPECT_EQ(matrices, 2 * (3 + 1 + 1 + 1));
}

TEST(InnerOptimizerTest, EveryKindLowersTheLossTheSameWayEachTime) {
  for (const OptimizerKind kind : kKinds) {
    SCOPED_TRACE(OptimizerKind_Name(kind));
    Job job = TinyJob(kind);
    job.mutable_model()->set_width(32);
    job.mutable_optimizer()->set_clip_norm(1);
    std::vector<std::vector<float>> results;
    for (int run = 0; run < 2; ++run) {
      const std::unique_ptr<Trainer> trainer = TestTrainer(job);
      const Batch batch = RandomBatch(job, 2, 2);
      const double before = trainer->Evaluate(batch).value();
      for (int step = 0; step < 60; ++step) {
        ASSERT_TRUE(trainer->AccumulateGradient(batch, 1.0).ok());
        ASSERT_TRUE(trainer->OptimizerStep(kind == OPTIMIZER_KIND_SGD ? 0.1 : 1e-2).ok());
      }
      EXPECT_LT(trainer->Evaluate(batch).value(), 0.3 * before);
      results.push_back(Copy(trainer->parameters()));
    }
    EXPECT_EQ(results[0], results[1]);
  }
}

TEST(InnerOptimizerTest, LoadedStateGivesTheSameBits) {
  for (const OptimizerKind kind : kKinds) {
    SCOPED_TRACE(OptimizerKind_Name(kind));
    const Job job = TinyJob(kind);
    const std::unique_ptr<Trainer> trainer = TestTrainer(job), loaded = TestTrainer(job);
    const auto step = [&](Trainer* which, uint64_t seed) {
      Random random(seed);
      Fill(which->gradient(), 1, &random);
      ASSERT_TRUE(which->OptimizerStep(1e-2).ok());
    };
    const absl::StatusOr<Trainer::OptimizerState> fresh = trainer->SaveOptimizer();
    ASSERT_TRUE(fresh.ok());
    EXPECT_EQ(fresh->steps, 0);
    EXPECT_TRUE(fresh->vectors.empty());
    for (int i = 0; i < 3; ++i) step(trainer.get(), i);
    step(loaded.get(), 99);  // What it did before must not show.
    const absl::StatusOr<Trainer::OptimizerState> saved = trainer->SaveOptimizer();
    ASSERT_TRUE(saved.ok());
    EXPECT_EQ(saved->steps, 3);
    EXPECT_FALSE(saved->vectors.empty());
    ASSERT_TRUE(loaded->LoadOptimizer(*saved).ok());
    std::copy(trainer->parameters().begin(), trainer->parameters().end(), loaded->parameters().begin());
    for (int i = 10; i < 12; ++i) {
      step(trainer.get(), i);
      step(loaded.get(), i);
      EXPECT_EQ(Copy(trainer->parameters()), Copy(loaded->parameters()));
    }
    // Back to before the first step.
    const std::unique_ptr<Trainer> other = TestTrainer(job);
    ASSERT_TRUE(loaded->LoadOptimizer(*fresh).ok());
    std::copy(other->parameters().begin(), other->parameters().end(), loaded->parameters().begin());
    step(other.get(), 5);
    step(loaded.get(), 5);
    EXPECT_EQ(Copy(other->parameters()), Copy(loaded->parameters()));
  }
}

TEST(InnerOptimizerTest, TheStateHasWhatItsRuleNeeds) {
  const auto sizes = [](const Job& job) {
    const std::unique_ptr<Trainer> trainer = TestTrainer(job);
    Random random(1);
    Fill(trainer->gradient(), 1, &random);
    EXPECT_TRUE(trainer->OptimizerStep(1e-2).ok());
    std::map<std::string, int64_t> found;
    const Trainer::OptimizerState state = trainer->SaveOptimizer().value();
    for (const auto& [name, values] : state.vectors) found[name] = static_cast<int64_t>(values.size());
    return found;
  };
  const Job job = TinyJob(OPTIMIZER_KIND_ADAMW);
  const int64_t all = TestTrainer(job)->layout().size(), w = job.model().width();
  const int64_t hidden = int64_t{12} * job.model().layers() * w * w;
  using Pair = std::pair<const std::string, int64_t>;
  EXPECT_THAT(sizes(job), ElementsAre(Pair("first_moment", all), Pair("second_moment", all)));
  EXPECT_THAT(sizes(TinyJob(OPTIMIZER_KIND_SGD)), ElementsAre(Pair("momentum", all)));
  Job plain = TinyJob(OPTIMIZER_KIND_SGD);
  plain.mutable_optimizer()->set_momentum(0);
  EXPECT_TRUE(sizes(plain).empty());
  EXPECT_THAT(
      sizes(TinyJob(OPTIMIZER_KIND_MUON)),
      ElementsAre(Pair("first_moment", all - hidden), Pair("momentum", hidden), Pair("second_moment", all - hidden)));
}

TEST(InnerOptimizerTest, RefusesTheStateOfAnotherKindOrSize) {
  for (const OptimizerKind from : kKinds) {
    const std::unique_ptr<Trainer> source = TestTrainer(TinyJob(from));
    Random random(1);
    Fill(source->gradient(), 1, &random);
    ASSERT_TRUE(source->OptimizerStep(1e-2).ok());
    const Trainer::OptimizerState state = source->SaveOptimizer().value();
    for (const OptimizerKind to : kKinds) {
      const std::unique_ptr<Trainer> target = TestTrainer(TinyJob(to));
      EXPECT_EQ(target->LoadOptimizer(state).ok(), from == to) << OptimizerKind_Name(from) << OptimizerKind_Name(to);
    }
    for (const auto& [name, values] : state.vectors) {
      Trainer::OptimizerState wrong = state;
      wrong.vectors[name].pop_back();
      const absl::Status status = source->LoadOptimizer(wrong);
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(status.message()), HasSubstr("values of " + name));
    }
  }
}

TEST(InnerOptimizerTest, ANonFiniteGradientLeavesTheStateAsItWas) {
  for (const OptimizerKind kind : kKinds) {
    SCOPED_TRACE(OptimizerKind_Name(kind));
    const std::unique_ptr<Trainer> trainer = TestTrainer(TinyJob(kind));
    Random random(1);
    Fill(trainer->gradient(), 1, &random);
    ASSERT_TRUE(trainer->OptimizerStep(1e-2).ok());
    const Trainer::OptimizerState before = trainer->SaveOptimizer().value();
    const std::vector<float> parameters = Copy(trainer->parameters());
    Fill(trainer->gradient(), 1, &random);
    trainer->gradient()[40] = std::numeric_limits<float>::infinity();
    ASSERT_TRUE(trainer->OptimizerStep(1e-2).ok());
    EXPECT_EQ(Copy(trainer->parameters()), parameters);
    const Trainer::OptimizerState after = trainer->SaveOptimizer().value();
    EXPECT_EQ(after.steps, before.steps);
    EXPECT_EQ(after.vectors, before.vectors);
  }
}

TEST(InnerOptimizerTest, KeysOfAnotherKindDoNotReachTheTrainer) {
  Job job = TinyJob(OPTIMIZER_KIND_SGD);
  job.mutable_optimizer()->set_beta1(0.9);
  const absl::Status status = MakeTrainer(job, {}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("optimizer.beta1: sgd has no moments of AdamW"));
  job = TinyJob(OPTIMIZER_KIND_MUON);
  job.mutable_optimizer()->set_momentum(1);
  EXPECT_THAT(std::string(MakeTrainer(job, {}).status().message()), HasSubstr("optimizer.momentum"));
}

}  // namespace
}  // namespace wukong
