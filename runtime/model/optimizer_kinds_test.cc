#include "runtime/model/optimizer_kinds.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace wukong {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(OptimizerKindsTest, EachKindGetsItsOwnKeysAndNoOthers) {
  Optimizer adamw;
  ResolveOptimizer(&adamw);
  EXPECT_EQ(adamw.kind(), OPTIMIZER_KIND_ADAMW);
  EXPECT_EQ(adamw.learning_rate(), 1e-3);
  EXPECT_EQ(adamw.beta1(), 0.9);
  EXPECT_EQ(adamw.beta2(), 0.95);
  EXPECT_EQ(adamw.epsilon(), 1e-8);
  EXPECT_FALSE(adamw.has_momentum() || adamw.has_matrix_learning_rate());

  Optimizer sgd;
  sgd.set_kind(OPTIMIZER_KIND_SGD);
  ResolveOptimizer(&sgd);
  EXPECT_EQ(sgd.learning_rate(), 0.1);
  EXPECT_EQ(sgd.momentum(), 0.9);
  EXPECT_FALSE(sgd.has_beta1() || sgd.has_beta2() || sgd.has_epsilon() || sgd.has_matrix_learning_rate());

  Optimizer muon;
  muon.set_kind(OPTIMIZER_KIND_MUON);
  muon.set_learning_rate(3e-3);
  ResolveOptimizer(&muon);
  EXPECT_EQ(muon.momentum(), 0.95);
  EXPECT_EQ(muon.matrix_learning_rate(), 3e-3) << "as the rate of all else";
  EXPECT_EQ(muon.beta1(), 0.9);

  for (Optimizer* optimizer : {&adamw, &sgd, &muon}) {
    const std::string once = optimizer->SerializeAsString();
    ResolveOptimizer(optimizer);
    EXPECT_EQ(optimizer->SerializeAsString(), once);
    EXPECT_THAT(FindOptimizerProblems(*optimizer), IsEmpty());
  }
}

TEST(OptimizerKindsTest, WhatIsSetStaysAlsoAtZero) {
  Optimizer optimizer;
  optimizer.set_kind(OPTIMIZER_KIND_MUON);
  optimizer.set_momentum(0);
  optimizer.set_beta1(0);
  optimizer.set_matrix_learning_rate(0.02);
  ResolveOptimizer(&optimizer);
  EXPECT_EQ(optimizer.momentum(), 0);
  EXPECT_EQ(optimizer.beta1(), 0);
  EXPECT_EQ(optimizer.matrix_learning_rate(), 0.02);
}

TEST(OptimizerKindsTest, KeysOfAnotherKindAreRefusedOnlyWhereTheyAreSet) {
  const auto problems = [](OptimizerKind kind) {
    Optimizer optimizer;
    optimizer.set_kind(kind);
    optimizer.set_beta1(0.9);
    optimizer.set_beta2(0.9);
    optimizer.set_epsilon(1e-8);
    optimizer.set_momentum(0.9);
    optimizer.set_matrix_learning_rate(0.02);
    std::vector<std::string> keys;
    for (const OptimizerProblem& problem : FindOptimizerProblems(optimizer)) keys.push_back(problem.key);
    return keys;
  };
  EXPECT_THAT(problems(OPTIMIZER_KIND_ADAMW), ElementsAre("momentum", "matrix_learning_rate"));
  EXPECT_THAT(problems(OPTIMIZER_KIND_SGD), ElementsAre("beta1", "beta2", "epsilon", "matrix_learning_rate"));
  EXPECT_THAT(problems(OPTIMIZER_KIND_MUON), IsEmpty());
}

}  // namespace
}  // namespace wukong
