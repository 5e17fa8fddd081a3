#include "runtime/model/trainer.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/base/random.h"
#include "runtime/model/trainer_test_util.h"

namespace wukong {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr uint64_t kSeed = 7;

Job TinyJob() {
  Job job;
  job.set_seed(kSeed);
  job.mutable_model()->set_layers(2);
  job.mutable_model()->set_heads(2);
  job.mutable_model()->set_width(8);
  job.mutable_model()->set_context(5);
  job.mutable_model()->set_vocabulary(11);
  Optimizer* optimizer = job.mutable_optimizer();
  optimizer->set_learning_rate(1e-3);
  optimizer->set_beta1(0.9);
  optimizer->set_beta2(0.95);
  optimizer->set_epsilon(1e-8);
  optimizer->set_weight_decay(0.1);
  optimizer->set_clip_norm(1.0);
  return job;
}

// Large enough that every gradient stands well above the rounding of float32.
void Scatter(Trainer* trainer, uint64_t seed) {
  Random random(seed);
  for (float& value : trainer->parameters()) value = static_cast<float>(0.4 * random.Normal());
}

double Accumulate(Trainer* trainer, const Batch& batch, double scale) {
  const absl::StatusOr<double> loss = trainer->AccumulateGradient(batch, scale);
  EXPECT_TRUE(loss.ok()) << loss.status();
  return loss.value_or(std::numeric_limits<double>::quiet_NaN());
}

double Step(Trainer* trainer, double learning_rate) {
  const absl::StatusOr<double> norm = trainer->OptimizerStep(learning_rate);
  EXPECT_TRUE(norm.ok()) << norm.status();
  return norm.value_or(std::numeric_limits<double>::quiet_NaN());
}

// GPT-2's loss in float64, token by token and without any library.
class ReferenceGpt {
 public:
  ReferenceGpt(const Model& model, const ParameterLayout& layout) : model_(model) {
    for (const TensorSpec& tensor : layout.tensors()) offsets_[tensor.name] = tensor.offset;
  }

  double Loss(const std::vector<double>& parameters, const Batch& batch) const {
    double sum = 0;
    for (int64_t s = 0; s < batch.samples; ++s) sum += SampleLoss(parameters, batch, s * batch.context);
    return sum / static_cast<double>(batch.samples * batch.context);
  }

 private:
  using Vector = std::vector<double>;

  const double* At(const Vector& p, const std::string& name) const { return p.data() + offsets_.at(name); }

  Vector Norm(const Vector& p, const Vector& x, const std::string& name) const {
    const double n = static_cast<double>(x.size());
    double mean = 0, variance = 0;
    for (const double value : x) mean += value / n;
    for (const double value : x) variance += (value - mean) * (value - mean) / n;
    const double *const weight = At(p, name + ".weight"), *const bias = At(p, name + ".bias");
    Vector y(x.size());
    for (size_t i = 0; i < x.size(); ++i) y[i] = (x[i] - mean) / std::sqrt(variance + 1e-5) * weight[i] + bias[i];
    return y;
  }

  Vector Linear(const Vector& p, const Vector& x, const std::string& name, size_t outputs) const {
    const double *const weight = At(p, name + ".weight"), *const bias = At(p, name + ".bias");
    Vector y(outputs);
    for (size_t o = 0; o < outputs; ++o) {
      y[o] = bias[o];
      for (size_t i = 0; i < x.size(); ++i) y[o] += weight[o * x.size() + i] * x[i];
    }
    return y;
  }

  static double Gelu(double x) {
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
  }

  static void Softmax(Vector* x) {
    const double largest = *std::max_element(x->begin(), x->end());
    double sum = 0;
    for (double& value : *x) sum += value = std::exp(value - largest);
    for (double& value : *x) value /= sum;
  }

  Vector Attention(const std::vector<Vector>& qkv, size_t query) const {
    const size_t width = model_.width(), size = width / model_.heads();
    Vector mixed(width, 0.0);
    for (size_t first = 0; first < width; first += size) {
      Vector weights(query + 1, 0.0);
      for (size_t key = 0; key <= query; ++key) {
        for (size_t i = first; i < first + size; ++i) weights[key] += qkv[query][i] * qkv[key][width + i];
        weights[key] /= std::sqrt(static_cast<double>(size));
      }
      Softmax(&weights);
      for (size_t key = 0; key <= query; ++key) {
        for (size_t i = first; i < first + size; ++i) mixed[i] += weights[key] * qkv[key][2 * width + i];
      }
    }
    return mixed;
  }

  double SampleLoss(const Vector& p, const Batch& batch, int64_t begin) const {
    const size_t width = model_.width(), context = model_.context(), vocabulary = model_.vocabulary();
    const double *const embedding = At(p, "wte.weight"), *const position = At(p, "wpe.weight");
    std::vector<Vector> x(context, Vector(width));
    for (size_t t = 0; t < context; ++t) {
      for (size_t i = 0; i < width; ++i)
        x[t][i] = embedding[batch.tokens[begin + t] * width + i] + position[t * width + i];
    }
    for (int l = 0; l < model_.layers(); ++l) {
      const std::string at = "h." + std::to_string(l) + ".";
      std::vector<Vector> qkv;
      for (const Vector& row : x) qkv.push_back(Linear(p, Norm(p, row, at + "ln_1"), at + "attn.c_attn", 3 * width));
      for (size_t t = 0; t < context; ++t) {
        const Vector change = Linear(p, Attention(qkv, t), at + "attn.c_proj", width);
        for (size_t i = 0; i < width; ++i) x[t][i] += change[i];
        Vector hidden = Linear(p, Norm(p, x[t], at + "ln_2"), at + "mlp.c_fc", 4 * width);
        for (double& value : hidden) value = Gelu(value);
        const Vector more = Linear(p, hidden, at + "mlp.c_proj", width);
        for (size_t i = 0; i < width; ++i) x[t][i] += more[i];
      }
    }
    double loss = 0;
    for (size_t t = 0; t < context; ++t) {
      const Vector y = Norm(p, x[t], "ln_f");
      Vector logits(vocabulary, 0.0);
      for (size_t v = 0; v < vocabulary; ++v) {
        for (size_t i = 0; i < width; ++i) logits[v] += embedding[v * width + i] * y[i];
      }
      Softmax(&logits);
      loss -= std::log(logits[batch.targets[begin + t]]);
    }
    return loss;
  }

  const Model model_;
  std::map<std::string, int64_t> offsets_;
};

TEST(GptTest, LossAndEveryGradientAgreeWithFloat64) {
  const Job job = TinyJob();
  const std::unique_ptr<Trainer> trainer = TestTrainer(job);
  Scatter(trainer.get(), 3);
  const Batch batch = RandomBatch(job, 2, 4);
  const ReferenceGpt reference(job.model(), trainer->layout());
  std::vector<double> parameters(trainer->parameters().begin(), trainer->parameters().end());

  const double expected = reference.Loss(parameters, batch);
  EXPECT_NEAR(Accumulate(trainer.get(), batch, 1.0), expected, 1e-5 * expected);
  EXPECT_NEAR(trainer->Evaluate(batch).value(), expected, 1e-5 * expected);

  double largest = 0;
  for (const TensorSpec& tensor : trainer->layout().tensors()) {
    double tensor_largest = 0;
    for (int64_t i = tensor.offset; i < tensor.offset + tensor.size; ++i) {
      const double h = 1e-5, kept = parameters[i];
      parameters[i] = kept + h;
      const double above = reference.Loss(parameters, batch);
      parameters[i] = kept - h;
      const double below = reference.Loss(parameters, batch);
      parameters[i] = kept;
      const double slope = (above - below) / (2 * h);
      ASSERT_NEAR(trainer->gradient()[i], slope, 2e-6 + 2e-5 * std::abs(slope))
          << tensor.name << " value " << i - tensor.offset;
      tensor_largest = std::max(tensor_largest, std::abs(slope));
    }
    EXPECT_GT(tensor_largest, 1e-4) << tensor.name << ": the case does not test it";
    largest = std::max(largest, tensor_largest);
  }
  EXPECT_GT(largest, 0.01);
}

TEST(GptTest, StartsAsGpt2Does) {
  Job job = TinyJob();
  job.mutable_model()->set_width(64);
  job.mutable_model()->set_vocabulary(100);
  const std::unique_ptr<Trainer> trainer = TestTrainer(job);
  bool vectors_began = false;
  for (const TensorSpec& tensor : trainer->layout().tensors()) {
    double sum = 0, squares = 0;
    for (int64_t i = tensor.offset; i < tensor.offset + tensor.size; ++i) {
      sum += trainer->parameters()[i];
      squares += trainer->parameters()[i] * trainer->parameters()[i];
    }
    const double mean = sum / static_cast<double>(tensor.size);
    const double root = std::sqrt(squares / static_cast<double>(tensor.size));
    if (tensor.shape.size() == 2) {
      EXPECT_FALSE(vectors_began) << tensor.name << " does not stand with the tensors that decay";
      const double deviation = tensor.name.find("c_proj") != std::string::npos ? 0.02 / std::sqrt(4.0) : 0.02;
      EXPECT_NEAR(root, deviation, 0.1 * deviation) << tensor.name;
      EXPECT_NEAR(mean, 0, 0.1 * deviation + 0.001) << tensor.name;
    } else {
      vectors_began = true;
      const bool gain =
          tensor.name.find("ln_") != std::string::npos && tensor.name.find(".weight") != std::string::npos;
      EXPECT_EQ(mean, gain ? 1.0 : 0.0) << tensor.name;
      EXPECT_EQ(root, gain ? 1.0 : 0.0) << tensor.name;
    }
  }
  EXPECT_NEAR(trainer->Evaluate(RandomBatch(job, 4, 1)).value(), std::log(100.0), 0.2);
}

TEST(GptTest, SameSeedGivesTheSameBytes) {
  std::vector<std::vector<float>> results;
  for (const uint64_t seed : {kSeed, kSeed, kSeed + 1}) {
    Job job = TinyJob();
    job.set_seed(seed);
    const std::unique_ptr<Trainer> trainer = TestTrainer(job);
    for (int step = 0; step < 3; ++step) {
      Accumulate(trainer.get(), RandomBatch(job, 2, step), 1.0);
      Step(trainer.get(), 1e-2);
    }
    results.push_back(Copy(trainer->parameters()));
  }
  EXPECT_EQ(results[0], results[1]);
  EXPECT_NE(results[0], results[2]);
}

TEST(TrainerTest, TheFlatVectorIsWhatTheModelComputesWith) {
  const Job job = TinyJob();
  for (const Precision precision : {PRECISION_FP32, PRECISION_BF16}) {
    TrainerOptions options;
    options.precision = precision;
    const std::unique_ptr<Trainer> trainer = TestTrainer(job, options);
    const std::unique_ptr<Trainer> other = TestTrainer(job, options);
    Scatter(other.get(), 3);
    const Batch batch = RandomBatch(job, 2, 5);
    const double before = Accumulate(trainer.get(), batch, 1.0);
    const double expected = Accumulate(other.get(), batch, 1.0);
    EXPECT_GT(std::abs(before - expected), 0.1);
    std::copy(other->parameters().begin(), other->parameters().end(), trainer->parameters().begin());
    ASSERT_TRUE(trainer->PushParameters().ok());
    EXPECT_EQ(trainer->Evaluate(batch).value(), other->Evaluate(batch).value());
    trainer->ZeroGradient();
    EXPECT_EQ(Accumulate(trainer.get(), batch, 1.0), expected);
    EXPECT_EQ(Copy(trainer->gradient()), Copy(other->gradient()));
  }
}

TEST(TrainerTest, MicroBatchesAddUpToOneBatch) {
  const Job job = TinyJob();
  const std::unique_ptr<Trainer> whole = TestTrainer(job), parts = TestTrainer(job);
  Scatter(whole.get(), 3);
  Scatter(parts.get(), 3);
  const Batch batch = RandomBatch(job, 4, 6);
  const double loss = Accumulate(whole.get(), batch, 1.0);
  double sum = 0;
  for (int part = 0; part < 2; ++part) {
    Batch half;
    half.samples = 2;
    half.context = batch.context;
    const int64_t begin = 2 * batch.context * part, end = begin + 2 * batch.context;
    half.tokens.assign(batch.tokens.begin() + begin, batch.tokens.begin() + end);
    half.targets.assign(batch.targets.begin() + begin, batch.targets.begin() + end);
    sum += Accumulate(parts.get(), half, 0.5);
  }
  EXPECT_NEAR(sum / 2, loss, 1e-5);
  for (size_t i = 0; i < whole->gradient().size(); ++i) {
    ASSERT_NEAR(whole->gradient()[i], parts->gradient()[i], 1e-6 + 1e-5 * std::abs(whole->gradient()[i])) << i;
  }
}

TEST(TrainerTest, AdamWClipsDecaysMatricesOnlyAndCorrectsItsBias) {
  const Job job = TinyJob();
  for (const double size : {5.0, 1e-4}) {  // With and without clipping.
    const std::unique_ptr<Trainer> trainer = TestTrainer(job);
    Scatter(trainer.get(), 8);
    std::vector<double> p(trainer->parameters().begin(), trainer->parameters().end());
    std::vector<double> m(p.size(), 0.0), v(p.size(), 0.0);
    Random random(9);
    for (int t = 1; t <= 3; ++t) {
      const double rate = 0.01 * t;
      double squares = 0;
      for (float& g : trainer->gradient()) {
        g = static_cast<float>(size * random.Normal());
        squares += static_cast<double>(g) * g;
      }
      const double norm = std::sqrt(squares);
      const double clip = std::min(1.0, 1.0 / norm);
      for (const TensorSpec& tensor : trainer->layout().tensors()) {
        const double decay = tensor.shape.size() >= 2 ? 0.1 : 0.0;
        for (int64_t i = tensor.offset; i < tensor.offset + tensor.size; ++i) {
          const double g = clip * trainer->gradient()[i];
          m[i] = 0.9 * m[i] + 0.1 * g;
          v[i] = 0.95 * v[i] + 0.05 * g * g;
          p[i] -= rate * decay * p[i];
          p[i] -= rate * (m[i] / (1 - std::pow(0.9, t))) / (std::sqrt(v[i] / (1 - std::pow(0.95, t))) + 1e-8);
        }
      }
      EXPECT_NEAR(Step(trainer.get(), rate), norm, 1e-5 * norm);
      for (size_t i = 0; i < p.size(); ++i) {
        ASSERT_NEAR(trainer->parameters()[i], p[i], 2e-6 + 1e-5 * std::abs(p[i])) << "step " << t << " value " << i;
        ASSERT_EQ(trainer->gradient()[i], 0.0f);
      }
    }
  }
}

TEST(TrainerTest, ANonFiniteGradientChangesNothingButIsReported) {
  const Job job = TinyJob();
  const std::unique_ptr<Trainer> trainer = TestTrainer(job);
  const std::vector<float> before = Copy(trainer->parameters());
  trainer->gradient()[17] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(Step(trainer.get(), 0.1)));
  EXPECT_EQ(Copy(trainer->parameters()), before);
  EXPECT_EQ(trainer->gradient()[17], 0.0f);
  trainer->parameters()[0] = std::numeric_limits<float>::infinity();
  Batch batch = RandomBatch(job, 1, 1);
  batch.tokens[0] = 0;
  EXPECT_FALSE(std::isfinite(Accumulate(trainer.get(), batch, 1.0)));
}

TEST(TrainerTest, LearnsABatchByHeart) {
  Job job = TinyJob();
  job.mutable_model()->set_width(32);
  for (const Precision precision : {PRECISION_FP32, PRECISION_BF16}) {
    TrainerOptions options;
    options.precision = precision;
    const std::unique_ptr<Trainer> trainer = TestTrainer(job, options);
    const Batch batch = RandomBatch(job, 2, 2);
    const double before = trainer->Evaluate(batch).value();
    for (int step = 0; step < 60; ++step) {
      Accumulate(trainer.get(), batch, 1.0);
      Step(trainer.get(), 1e-2);
    }
    EXPECT_LT(trainer->Evaluate(batch).value(), 0.3 * before) << Precision_Name(precision);
  }
}

TEST(TrainerTest, Bf16IsCloseToFp32) {
  Job job = TinyJob();
  job.mutable_model()->set_width(32);
  TrainerOptions options;
  options.precision = PRECISION_BF16;
  const std::unique_ptr<Trainer> exact = TestTrainer(job), rough = TestTrainer(job, options);
  const Batch batch = RandomBatch(job, 4, 2);
  const double exact_loss = Accumulate(exact.get(), batch, 1.0), rough_loss = Accumulate(rough.get(), batch, 1.0);
  EXPECT_NEAR(rough_loss, exact_loss, 0.01 * exact_loss);
  double product = 0, exact_squares = 0, rough_squares = 0;
  for (size_t i = 0; i < exact->gradient().size(); ++i) {
    product += static_cast<double>(exact->gradient()[i]) * rough->gradient()[i];
    exact_squares += static_cast<double>(exact->gradient()[i]) * exact->gradient()[i];
    rough_squares += static_cast<double>(rough->gradient()[i]) * rough->gradient()[i];
  }
  EXPECT_GT(product / std::sqrt(exact_squares * rough_squares), 0.999);
  EXPECT_NE(Copy(exact->gradient()), Copy(rough->gradient())) << "bf16 was not used";
}

TEST(TrainerTest, TimesAreCountedWhereAskedFor) {
  const Job job = TinyJob();
  const RealClock clock;
  TrainerTimes times;
  TrainerOptions options;
  options.clock = &clock;
  options.times = &times;
  const std::unique_ptr<Trainer> trainer = TestTrainer(job, options);
  Accumulate(trainer.get(), RandomBatch(job, 1, 1), 1.0);
  EXPECT_GT(times.gradient, absl::ZeroDuration());
  EXPECT_EQ(times.optimizer, absl::ZeroDuration());
  Step(trainer.get(), 0.1);
  EXPECT_GT(times.clip, absl::ZeroDuration());
  EXPECT_GT(times.optimizer, absl::ZeroDuration());
}

TEST(TrainerTest, TheNormOfALargeGradientHasItsSmallValuesInIt) {
  Job job = TinyJob();
  job.mutable_model()->set_width(256);
  job.mutable_model()->set_vocabulary(1000);
  const std::unique_ptr<Trainer> trainer = TestTrainer(job);
  const absl::Span<float> gradient = trainer->gradient();
  ASSERT_GT(gradient.size(), 1'000'000u);
  std::fill(gradient.begin(), gradient.end(), 1.0f);
  std::fill_n(gradient.begin(), 16, 4096.0f);
  ASSERT_TRUE(trainer->PushGradient().ok());
  const absl::StatusOr<double> norm = trainer->OptimizerStep(0);
  ASSERT_TRUE(norm.ok()) << norm.status();
  const double expected = std::sqrt(16.0 * 4096 * 4096 + static_cast<double>(gradient.size() - 16));
  EXPECT_NEAR(*norm, expected, 1e-5 * expected);
}

TEST(TrainerTest, RefusesBatchesThatDoNotFit) {
  const Job job = TinyJob();
  const std::unique_ptr<Trainer> trainer = TestTrainer(job);
  const Batch good = RandomBatch(job, 2, 1);
  std::vector<std::pair<Batch, std::string>> cases;
  cases.emplace_back(Batch(), "got 0 samples");
  cases.emplace_back(good, "got 2 samples of 4");
  cases.back().first.context = 4;
  cases.emplace_back(good, "9 targets");
  cases.back().first.targets.pop_back();
  cases.emplace_back(good, "got 3 samples");
  cases.back().first.samples = 3;
  cases.emplace_back(good, "got 11 in the tokens of sample 1 at position 2");
  cases.back().first.tokens[7] = 11;
  cases.emplace_back(good, "got -1 in the targets of sample 0 at position 0");
  cases.back().first.targets[0] = -1;
  for (const auto& [batch, text] : cases) {
    for (const absl::Status& status :
         {trainer->AccumulateGradient(batch, 1.0).status(), trainer->Evaluate(batch).status()}) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
      EXPECT_THAT(std::string(status.message()), HasSubstr(text));
    }
  }
  for (const float g : trainer->gradient()) ASSERT_EQ(g, 0.0f);
}

TEST(MakeTrainerTest, RefusesModelsThatCannotBe) {
  std::vector<std::pair<Job, std::string>> cases;
  const auto add = [&](const std::string& text) {
    cases.emplace_back(TinyJob(), text);
    return &cases.back().first;
  };
  add("model.layers")->mutable_model()->set_layers(0);
  add("model.heads")->mutable_model()->set_heads(0);
  add("a multiple of model.heads (2), got 9")->mutable_model()->set_width(9);
  add("model.context")->mutable_model()->set_context(0);
  add("model.vocabulary")->mutable_model()->set_vocabulary(1);
  add("optimizer.beta1")->mutable_optimizer()->set_beta1(1.0);
  add("optimizer.beta2")->mutable_optimizer()->set_beta2(-0.1);
  add("optimizer.epsilon")->mutable_optimizer()->set_epsilon(0);
  add("optimizer.weight_decay")->mutable_optimizer()->set_weight_decay(-1);
  add("optimizer.clip_norm")->mutable_optimizer()->set_clip_norm(-1);
  for (const auto& [job, text] : cases) {
    const absl::Status status = MakeTrainer(job, {}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
  }
  TrainerOptions options;
  options.threads = 0;
  EXPECT_EQ(MakeTrainer(TinyJob(), options).status().code(), absl::StatusCode::kInvalidArgument);
  options = TrainerOptions();
  options.precision = PRECISION_UNSPECIFIED;
  EXPECT_EQ(MakeTrainer(TinyJob(), options).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(MakeTrainerTest, SaysWhichDeviceIsNotThere) {
  TrainerOptions options;
  options.device = "cuda:99";  // Beyond what any one machine has.
  absl::Status status = MakeTrainer(TinyJob(), options).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("\"cuda:99\""), HasSubstr("Torch_DIR")));
  for (const char* device : {"tpu", "cuda:", "cuda:x", "cuda:-1", "cuda1", "", "cuda:1000"}) {
    options.device = device;
    status = MakeTrainer(TinyJob(), options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << device;
    EXPECT_THAT(std::string(status.message()), HasSubstr("cpu, cuda or cuda:N"));
  }
}

}  // namespace
}  // namespace wukong
