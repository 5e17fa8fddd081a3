// Apart from trainer_test.cc because libtorch's headers are slow to compile.
#include <unistd.h>

#include <cmath>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/base/random.h"
#include "runtime/model/trainer.h"
#include "torch/script.h"
#include "torch/torch.h"

namespace wukong {
namespace {

using ::testing::HasSubstr;

constexpr char kBigram[] = R"(
def forward(self, tokens, targets):
    logits = torch.matmul(torch.embedding(self.table, tokens), self.head) + self.bias
    chosen = torch.gather(torch.log_softmax(logits, -1), -1, targets.unsqueeze(-1))
    return -chosen.mean()
)";

class TorchScriptTest : public ::testing::Test {
 protected:
  void SetUp() override {
    torch::manual_seed(11);
    directory_ = ::testing::TempDir() + "wukong_torchscript_" + std::to_string(getpid());
    path_ = directory_ + ".pt";
    job_.set_seed(1);
    job_.mutable_model()->set_context(6);
    job_.mutable_model()->set_vocabulary(9);
    job_.mutable_model()->set_torchscript(path_);
    Optimizer* optimizer = job_.mutable_optimizer();
    optimizer->set_learning_rate(1e-2);
    optimizer->set_beta1(0.9);
    optimizer->set_beta2(0.95);
    optimizer->set_epsilon(1e-8);
    Random random(5);
    batch_.samples = 4;
    batch_.context = 6;
    for (int i = 0; i < 24; ++i) {
      batch_.tokens.push_back(static_cast<int64_t>(random.Below(9)));
      batch_.targets.push_back((batch_.tokens.back() * 2 + 1) % 9);
    }
  }
  void TearDown() override { unlink(path_.c_str()); }

  torch::jit::Module Bigram(torch::ScalarType type = torch::kFloat32) {
    torch::jit::Module module("Bigram");
    module.register_parameter("bias", torch::zeros({9}, type), false);
    module.register_parameter("table", torch::randn({9, 4}, type), false);
    module.register_parameter("head", torch::randn({4, 9}, type), false);
    for (const auto& parameter : module.named_parameters()) parameter.value.set_requires_grad(true);
    module.define(kBigram);
    return module;
  }

  absl::Status MakeStatus() const { return MakeTrainer(job_, {}).status(); }

  // The slope of the loss along one parameter.
  double Slope(Trainer* trainer, size_t index) {
    const float kept = trainer->parameters()[index], h = 1e-2f;
    trainer->parameters()[index] = kept + h;
    const double above = trainer->Evaluate(batch_).value();
    trainer->parameters()[index] = kept - h;
    const double below = trainer->Evaluate(batch_).value();
    trainer->parameters()[index] = kept;
    return (above - below) / (2.0 * static_cast<double>(h));
  }

  std::string directory_, path_;
  Job job_;
  Batch batch_;
};

TEST_F(TorchScriptTest, KeepsTheParametersOfItsFileAndTrains) {
  torch::jit::Module module = Bigram();
  module.save(path_);
  const absl::StatusOr<std::unique_ptr<Trainer>> made = MakeTrainer(job_, {});
  ASSERT_TRUE(made.ok()) << made.status();
  Trainer& trainer = **made;
  // Matrices first, in the module's order otherwise.
  ASSERT_EQ(trainer.layout().tensors().size(), 3u);
  EXPECT_EQ(trainer.layout().tensors()[0].name, "table");
  EXPECT_EQ(trainer.layout().tensors()[1].name, "head");
  EXPECT_EQ(trainer.layout().tensors()[2].name, "bias");
  const torch::Tensor table = module.attr("table").toTensor().contiguous();
  for (int i = 0; i < 36; ++i) ASSERT_EQ(trainer.parameters()[i], table.data_ptr<float>()[i]);

  const double first = trainer.AccumulateGradient(batch_, 1.0).value();
  for (size_t i = 0; i < trainer.parameters().size(); ++i) {
    ASSERT_NEAR(trainer.gradient()[i], Slope(&trainer, i), 1e-3) << i;
  }
  for (int step = 0; step < 150; ++step) {
    ASSERT_TRUE(trainer.OptimizerStep(0.05).ok());
    ASSERT_TRUE(trainer.AccumulateGradient(batch_, 1.0).ok());
  }
  EXPECT_LT(trainer.Evaluate(batch_).value(), 0.2 * first);
}

TEST_F(TorchScriptTest, TiedParametersAreOneTensor) {
  torch::jit::Module module("Tied");
  const torch::Tensor table = torch::randn({9, 4}).set_requires_grad(true);
  module.register_parameter("table", table, false);
  module.register_parameter("head", table, false);
  module.define(R"(
def forward(self, tokens, targets):
    logits = torch.matmul(torch.embedding(self.table, tokens), self.head.t())
    chosen = torch.gather(torch.log_softmax(logits, -1), -1, targets.unsqueeze(-1))
    return -chosen.mean()
)");
  module.save(path_);
  const absl::StatusOr<std::unique_ptr<Trainer>> made = MakeTrainer(job_, {});
  ASSERT_TRUE(made.ok()) << made.status();
  ASSERT_EQ((*made)->layout().size(), 36);
  ASSERT_TRUE((*made)->AccumulateGradient(batch_, 1.0).ok());
  for (size_t i = 0; i < 36; ++i) ASSERT_NEAR((*made)->gradient()[i], Slope(made->get(), i), 2e-3) << i;
}

TEST_F(TorchScriptTest, FrozenParametersAreNotTrained) {
  torch::jit::Module module = Bigram();
  module.attr("head").toTensor().set_requires_grad(false);
  module.save(path_);
  const absl::StatusOr<std::unique_ptr<Trainer>> made = MakeTrainer(job_, {});
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ((*made)->layout().size(), 36 + 9);
  EXPECT_TRUE((*made)->AccumulateGradient(batch_, 1.0).ok());
}

TEST_F(TorchScriptTest, DropoutIsKeyedByTheSeedThePassAndTheBatch) {
  // The loss says which positions were kept, whatever the tokens are.
  torch::jit::Module module("Dropout");
  module.register_parameter("scale", torch::ones({1}).set_requires_grad(true), false);
  module.register_attribute("training", c10::BoolType::get(), true);
  module.define(R"(
def forward(self, tokens, targets):
    return torch.dropout(self.scale * torch.arange(tokens.numel()).float(), 0.5, self.training).sum()
)");
  module.save(path_);
  const auto losses = [&](uint64_t seed, bool others_draw) {
    job_.set_seed(seed);
    const std::unique_ptr<Trainer> trainer = MakeTrainer(job_, {}).value();
    std::vector<double> found;
    for (int pass = 0; pass < 3; ++pass) {
      if (others_draw) torch::rand({3});
      found.push_back(trainer->AccumulateGradient(batch_, 1.0).value());
    }
    return found;
  };
  const std::vector<double> first = losses(1, false);
  EXPECT_EQ(losses(1, true), first);
  EXPECT_NE(losses(2, false), first);
  EXPECT_NE(first[0], first[1]);
  batch_.tokens[23] = (batch_.tokens[23] + 1) % 9;  // Another worker's.
  EXPECT_NE(losses(1, false)[0], first[0]);
}

TEST_F(TorchScriptTest, MuonTurnsWhatIsNoEmbeddingHeadOrVector) {
  const auto parameter = [](torch::IntArrayRef shape) { return torch::randn(shape).set_requires_grad(true); };
  torch::jit::Module positions("__torch__.torch.nn.modules.sparse.Embedding");
  positions.register_parameter("weight", parameter({6, 4}), false);
  torch::jit::Module module("Small");
  module.register_module("positions", positions);
  module.register_parameter("table", parameter({9, 4}), false);
  module.register_parameter("hidden", parameter({4, 4}), false);
  module.register_parameter("filters", parameter({4, 2, 2}), false);
  module.register_parameter("head", parameter({4, 9}), false);
  module.register_parameter("bias", parameter({9}), false);
  module.define(R"(
def forward(self, tokens, targets):
    x = torch.embedding(self.table, tokens) + self.positions.weight
    logits = torch.matmul(torch.matmul(x, self.hidden) + self.filters.sum(), self.head) + self.bias
    return -torch.gather(torch.log_softmax(logits, -1), -1, targets.unsqueeze(-1)).mean()
)");
  module.save(path_);
  job_.mutable_optimizer()->set_kind(OPTIMIZER_KIND_MUON);
  const absl::StatusOr<std::unique_ptr<Trainer>> made = MakeTrainer(job_, {});
  ASSERT_TRUE(made.ok()) << made.status();
  const double first = (*made)->AccumulateGradient(batch_, 1.0).value();
  ASSERT_TRUE((*made)->OptimizerStep(1e-2).ok());
  const Trainer::OptimizerState state = (*made)->SaveOptimizer().value();
  EXPECT_EQ(state.vectors.at("momentum").size(), 4u * 4 + 4 * 2 * 2);
  EXPECT_EQ(state.vectors.at("first_moment").size(), 6u * 4 + 9 * 4 + 4 * 9 + 9);
  for (int step = 0; step < 100; ++step) {
    ASSERT_TRUE((*made)->AccumulateGradient(batch_, 1.0).ok());
    ASSERT_TRUE((*made)->OptimizerStep(0.05).ok());
  }
  EXPECT_LT((*made)->Evaluate(batch_).value(), 0.5 * first);
}

TEST_F(TorchScriptTest, SaysWhatIsWrongWithTheFile) {
  absl::Status status = MakeStatus();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), HasSubstr(path_));

  std::ofstream(path_) << "this is no archive";
  status = MakeStatus();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("is not a TorchScript file"));

  torch::jit::Module empty("Empty");
  empty.define("def forward(self, tokens, targets):\n    return tokens.sum().float()\n");
  empty.save(path_);
  status = MakeStatus();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("expected parameters"));

  torch::jit::Module one_argument("OneArgument");
  one_argument.define("def forward(self, tokens):\n    return tokens\n");
  one_argument.save(path_);
  status = MakeStatus();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("forward(tokens, targets)"));

  Bigram(torch::kFloat64).save(path_);
  status = MakeStatus();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("expected float32"));
}

TEST_F(TorchScriptTest, AFailureInsideTheModuleIsAStatus) {
  torch::jit::Module module("Vector");
  module.register_parameter("table", torch::randn({9, 4}).set_requires_grad(true), false);
  module.define("def forward(self, tokens, targets):\n    return torch.embedding(self.table, tokens)\n");
  module.save(path_);
  const absl::StatusOr<std::unique_ptr<Trainer>> made = MakeTrainer(job_, {});
  ASSERT_TRUE(made.ok()) << made.status();
  const absl::Status status = (*made)->AccumulateGradient(batch_, 1.0).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(status.message()), HasSubstr("a tensor with one value"));
}

}  // namespace
}  // namespace wukong
