#include "runtime/model/optimizer_kinds.h"

#include "absl/strings/str_format.h"

namespace wukong {

void ResolveOptimizer(Optimizer* optimizer) {
  if (optimizer->kind() == OPTIMIZER_KIND_UNSPECIFIED) optimizer->set_kind(OPTIMIZER_KIND_ADAMW);
  const bool sgd = optimizer->kind() == OPTIMIZER_KIND_SGD, muon = optimizer->kind() == OPTIMIZER_KIND_MUON;
  if (!optimizer->has_learning_rate()) optimizer->set_learning_rate(sgd ? 0.1 : 1e-3);
  if (!sgd) {
    if (!optimizer->has_beta1()) optimizer->set_beta1(0.9);
    if (!optimizer->has_beta2()) optimizer->set_beta2(0.95);
    if (!optimizer->has_epsilon()) optimizer->set_epsilon(1e-8);
  }
  if ((sgd || muon) && !optimizer->has_momentum()) optimizer->set_momentum(muon ? 0.95 : 0.9);
  if (muon && !optimizer->has_matrix_learning_rate()) optimizer->set_matrix_learning_rate(optimizer->learning_rate());
}

std::vector<OptimizerProblem> FindOptimizerProblems(const Optimizer& optimizer) {
  std::vector<OptimizerProblem> problems;
  const auto refuse = [&](bool is_set, const char* key, const char* reason, double value) {
    if (is_set) problems.push_back({key, absl::StrFormat("%s, got %g)", reason, value)});
  };
  if (optimizer.kind() == OPTIMIZER_KIND_SGD) {
    constexpr char kNoMoments[] = "sgd has no moments of AdamW (expected momentum, or kind: adamw or muon";
    refuse(optimizer.has_beta1(), "beta1", kNoMoments, optimizer.beta1());
    refuse(optimizer.has_beta2(), "beta2", kNoMoments, optimizer.beta2());
    refuse(optimizer.has_epsilon(), "epsilon", "sgd divides by nothing (expected no epsilon, or kind: adamw or muon",
           optimizer.epsilon());
  }
  if (optimizer.kind() == OPTIMIZER_KIND_ADAMW) {
    refuse(optimizer.has_momentum(), "momentum", "the momentum of adamw is beta1 (expected beta1, or kind: sgd or muon",
           optimizer.momentum());
  }
  if (optimizer.kind() != OPTIMIZER_KIND_MUON) {
    refuse(optimizer.has_matrix_learning_rate(), "matrix_learning_rate",
           "only muon treats matrices apart (expected learning_rate, or kind: muon", optimizer.matrix_learning_rate());
  }
  return problems;
}

}  // namespace wukong
