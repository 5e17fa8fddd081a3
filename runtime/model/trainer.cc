#include "runtime/model/trainer.h"

#include <dlfcn.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "runtime/base/random.h"
#include "runtime/model/optimizer_kinds.h"
#include "runtime/model/synthetic_trainer.h"
#include "runtime/model/torch_trainer.h"

namespace wukong {
namespace {

absl::Status CheckJob(const Job& job, const TrainerOptions& options) {
  const auto wrong = [](absl::string_view key, absl::string_view expected, const auto& got) {
    return absl::InvalidArgumentError(absl::StrCat("trainer: ", key, ": expected ", expected, ", got ", got));
  };
  const Model& model = job.model();
  if (model.context() < 1) return wrong("model.context", "at least 1", model.context());
  if (model.vocabulary() < 2) return wrong("model.vocabulary", "at least 2", model.vocabulary());
  if (model.torchscript().empty()) {
    if (model.layers() < 1) return wrong("model.layers", "at least 1", model.layers());
    if (model.heads() < 1) return wrong("model.heads", "at least 1", model.heads());
    if (model.width() < 1 || model.width() % model.heads() != 0) {
      return wrong("model.width", absl::StrCat("a multiple of model.heads (", model.heads(), ")"), model.width());
    }
  }
  Optimizer optimizer = job.optimizer();
  ResolveOptimizer(&optimizer);
  if (!OptimizerKind_IsValid(optimizer.kind())) {
    return wrong("optimizer.kind", "adamw, sgd or muon", static_cast<int>(optimizer.kind()));
  }
  for (const OptimizerProblem& problem : FindOptimizerProblems(optimizer)) {
    return absl::InvalidArgumentError(absl::StrCat("trainer: optimizer.", problem.key, ": ", problem.reason));
  }
  const auto fraction = [](double value) { return value >= 0 && value < 1; };
  if (!fraction(optimizer.beta1())) return wrong("optimizer.beta1", "0 <= beta1 < 1", optimizer.beta1());
  if (!fraction(optimizer.beta2())) return wrong("optimizer.beta2", "0 <= beta2 < 1", optimizer.beta2());
  if (!fraction(optimizer.momentum())) return wrong("optimizer.momentum", "0 <= momentum < 1", optimizer.momentum());
  if (optimizer.has_epsilon() && !(optimizer.epsilon() > 0)) {
    return wrong("optimizer.epsilon", "more than 0", optimizer.epsilon());
  }
  if (!(optimizer.weight_decay() >= 0)) return wrong("optimizer.weight_decay", "0 or more", optimizer.weight_decay());
  if (!(optimizer.clip_norm() >= 0)) return wrong("optimizer.clip_norm", "0 or more", optimizer.clip_norm());
  if (options.threads < 1) return wrong("threads", "at least 1", options.threads);
  if (options.precision != PRECISION_FP32 && options.precision != PRECISION_BF16) {
    return wrong("precision", "fp32 or bf16", static_cast<int>(options.precision));
  }
  return absl::OkStatus();
}

// What libwukong_torch takes from the program besides job.proto: named here, so that the linker puts it into the
// program.
[[gnu::used]] void KeepForTorchTrainer() {
  Random(DeriveSeed(0, "", 0)).Normal();
  Optimizer optimizer;
  ResolveOptimizer(&optimizer);
  ParameterLayout layout({});
}

// Loaded once, and never let go of. Errors: FAILED_PRECONDITION.
absl::StatusOr<decltype(&WukongMakeTorchTrainer)> LoadTorchTrainer() {
  constexpr char kLibrary[] = "libwukong_torch.so";
  void* const library = ::dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);
  void* const make = library == nullptr ? nullptr : ::dlsym(library, "WukongMakeTorchTrainer");
  if (make == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("trainer: cannot load ", kLibrary, ", which trains real models: ", ::dlerror(),
                     "; it belongs beside wukong, where the build puts it, and needs libtorch"));
  }
  return reinterpret_cast<decltype(&WukongMakeTorchTrainer)>(make);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Trainer>> MakeTrainer(const Job& job, const TrainerOptions& options) {
  if (job.model().synthetic() != SYNTHETIC_KIND_UNSPECIFIED) return MakeSyntheticTrainer(job.model(), job.seed());
  if (absl::Status status = CheckJob(job, options); !status.ok()) return status;
  static const auto make = LoadTorchTrainer();
  if (!make.ok()) return make.status();
  absl::StatusOr<std::unique_ptr<Trainer>> trainer;
  (*make)(&job, &options, &trainer);
  return trainer;
}

}  // namespace wukong
