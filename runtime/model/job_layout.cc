#include "runtime/model/job_layout.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace wukong {

std::vector<TensorSpec> GptTensors(const Model& model) {
  const int64_t w = model.width();
  std::vector<TensorSpec> tensors = {{"wte.weight", {model.vocabulary(), w}}, {"wpe.weight", {model.context(), w}}};
  for (int l = 0; l < model.layers(); ++l) {
    const std::string at = absl::StrCat("h.", l, ".");
    tensors.insert(tensors.end(), {{at + "ln_1.weight", {w}},
                                   {at + "ln_1.bias", {w}},
                                   {at + "attn.c_attn.weight", {3 * w, w}},
                                   {at + "attn.c_attn.bias", {3 * w}},
                                   {at + "attn.c_proj.weight", {w, w}},
                                   {at + "attn.c_proj.bias", {w}},
                                   {at + "ln_2.weight", {w}},
                                   {at + "ln_2.bias", {w}},
                                   {at + "mlp.c_fc.weight", {4 * w, w}},
                                   {at + "mlp.c_fc.bias", {4 * w}},
                                   {at + "mlp.c_proj.weight", {w, 4 * w}},
                                   {at + "mlp.c_proj.bias", {w}}});
  }
  tensors.insert(tensors.end(), {{"ln_f.weight", {w}}, {"ln_f.bias", {w}}});
  std::stable_partition(tensors.begin(), tensors.end(),
                        [](const TensorSpec& tensor) { return tensor.shape.size() >= 2; });
  return tensors;
}

std::vector<FragmentSpan> RolesOf(const Model& model, int64_t parameters) {
  const std::vector<FragmentSpan> all_other = {{0, parameters, ParameterRole::kOther}};
  if (model.synthetic() != SYNTHETIC_KIND_UNSPECIFIED || !model.torchscript().empty()) return all_other;
  const ParameterLayout layout(GptTensors(model));
  if (layout.size() != parameters) return all_other;
  std::vector<FragmentSpan> roles;
  for (const TensorSpec& tensor : layout.tensors()) {
    const bool feed_forward = tensor.shape.size() == 2 && absl::StrContains(tensor.name, ".mlp.");
    const ParameterRole role = feed_forward ? ParameterRole::kFeedForward : ParameterRole::kOther;
    if (roles.empty() || roles.back().role != role) roles.push_back({tensor.offset, tensor.offset, role});
    roles.back().end = tensor.offset + tensor.size;
  }
  return roles;
}

std::vector<FragmentSpan> UncutSpansOf(const Job& job, int64_t parameters) {
  const Strategy& strategy = job.strategy();
  for (const Level* level : {&strategy.region(), &strategy.root()}) {
    if (level->codec_up() == CODEC_KIND_MIXED || level->codec_down() == CODEC_KIND_MIXED) {
      return RolesOf(job.model(), parameters);
    }
  }
  return {{0, parameters}};
}

std::vector<FragmentSpan> FragmentsOf(const Job& job, int64_t parameters) {
  return CutFragments(UncutSpansOf(job, parameters), job.limits().fragment_bytes());
}

}  // namespace wukong
