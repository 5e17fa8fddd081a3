#include "runtime/model/torch_trainer.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>
#include <set>
#include <utility>

#include "ATen/Version.h"
#include "ATen/autocast_mode.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "runtime/base/random.h"
#include "runtime/model/inner_optimizer.h"
#include "runtime/model/optimizer_kinds.h"
#include "torch/script.h"
#include "torch/torch.h"

#define WUKONG_TORCH_AT_LEAST(major, minor) \
  (TORCH_VERSION_MAJOR > (major) || (TORCH_VERSION_MAJOR == (major) && TORCH_VERSION_MINOR >= (minor)))

namespace wukong {
namespace {

// libtorch reports everything by exceptions; none of them leaves this file.
template <typename Body>
auto CatchTorch(absl::string_view doing, Body body) -> decltype(body()) {
  try {
    return body();
  } catch (const c10::Error& error) {
    return absl::InternalError(absl::StrCat("trainer: ", doing, ": libtorch: ", error.what_without_backtrace()));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        absl::StrCat("trainer: ", doing, ": out of memory; lower optimizer.micro_batch or the model's size"));
  } catch (const std::exception& error) {
    return absl::InternalError(absl::StrCat("trainer: ", doing, ": libtorch: ", error.what()));
  }
}

// Not every libtorch gives its name away by a function of its own.
std::string CpuCapability() {
  constexpr char kBefore[] = "CPU capability usage: ";
  const std::string config = at::show_config();
  const size_t at = config.find(kBefore);
  if (at == std::string::npos) return "";
  const size_t begin = at + sizeof(kBefore) - 1;
  const std::string name = config.substr(begin, config.find('\n', begin) - begin);
  return name == "NO AVX" ? "DEFAULT" : name;
}

absl::StatusOr<torch::Device> ParseDevice(const std::string& text) {
  if (text == "cpu") return torch::Device(torch::kCPU);
  absl::string_view rest = text;
  int index = 0;
  const bool cuda = absl::ConsumePrefix(&rest, "cuda");
  if (!cuda || (!rest.empty() && (!absl::ConsumePrefix(&rest, ":") || !absl::SimpleAtoi(rest, &index) || index < 0 ||
                                  index > std::numeric_limits<c10::DeviceIndex>::max()))) {
    return absl::InvalidArgumentError(
        absl::StrCat("trainer: device: expected cpu, cuda or cuda:N, got \"", text, "\""));
  }
  const int count = torch::cuda::is_available() ? static_cast<int>(torch::cuda::device_count()) : 0;
  if (index >= count) {
    return absl::FailedPreconditionError(absl::StrCat(
        "trainer: device \"", text, "\": expected a CUDA device with index ", index, ", but libtorch ", TORCH_VERSION,
        " sees ", count, " of them here; set the region's device to cpu, or build with a CUDA libtorch (Torch_DIR) on ",
        "a machine with an NVIDIA driver"));
  }
  return torch::Device(torch::kCUDA, static_cast<c10::DeviceIndex>(index));
}

// Autocast to bf16 while it lives, where `enabled`. The cache of cast weights is dropped at the end, because the
// parameters change under it.
class Autocast {
 public:
  Autocast(bool enabled, torch::DeviceType device) : enabled_(enabled), device_(device) {
    if (enabled_) Set(true);
  }
  ~Autocast() {
    if (!enabled_) return;
    at::autocast::clear_cache();
    Set(false);
  }
  Autocast(const Autocast&) = delete;
  Autocast& operator=(const Autocast&) = delete;

 private:
  void Set(bool on) const {
#if WUKONG_TORCH_AT_LEAST(2, 4)
    at::autocast::set_autocast_dtype(device_, at::kBFloat16);
    at::autocast::set_autocast_enabled(device_, on);
#else
    if (device_ == torch::kCUDA) {
      at::autocast::set_autocast_gpu_dtype(at::kBFloat16);
      at::autocast::set_enabled(on);
    } else {
      at::autocast::set_autocast_cpu_dtype(at::kBFloat16);
      at::autocast::set_cpu_enabled(on);
    }
#endif
  }
  const bool enabled_;
  const torch::DeviceType device_;
};

class LossModule {
 public:
  virtual ~LossModule() = default;
  // Mean loss of int64 tokens and targets [samples, context], a scalar.
  virtual torch::Tensor Loss(const torch::Tensor& tokens, const torch::Tensor& targets) = 0;
  virtual void SetTraining(bool /*training*/) {}
};

struct NamedTensor {
  std::string name;
  std::vector<int64_t> shape;
  int64_t matrices = 0;  // As OptimizedTensor has it.
  // Writes the initial values.
  std::function<void(torch::Tensor)> initialise;
  // Makes a leaf that aliases the flat vector known to the model.
  std::function<void(torch::Tensor)> bind;
};

// The flat vector begins with the tensors that weights decay in (two dimensions or more), so that an optimizer sees one
// range that decays and one that does not.
bool Decays(const NamedTensor& tensor) { return tensor.shape.size() >= 2; }

#if !WUKONG_TORCH_AT_LEAST(2, 1)
// Causal attention of softmax(mask + q k^T / sqrt(size)) v with its backward pass written out over libtorch's batched
// products: about 8% more tokens per second than autograd's, which stacks the three gradients and scores apart.
struct CausalAttention : public torch::autograd::Function<CausalAttention> {
  // qkv: [samples * context, 3 * width]; mask: [1, context, context]; returns [samples * context, width].
  static torch::Tensor forward(torch::autograd::AutogradContext* saved, const torch::Tensor& qkv,
                               const torch::Tensor& mask, int64_t heads) {
    const int64_t context = mask.size(1), samples = qkv.size(0) / context, size = qkv.size(1) / (3 * heads);
    // One copy for all three: batched products take matrices that lie at one distance from each other.
    const torch::Tensor split = qkv.view({samples, context, 3, heads, size})
                                    .permute({2, 0, 3, 1, 4})
                                    .reshape({3, samples * heads, context, size});
    torch::Tensor weights =
        at::baddbmm(mask.to(qkv.scalar_type()), split[0], split[1].transpose(1, 2), 1.0, Scale(size));
    at::softmax_out(weights, weights, -1);
    saved->save_for_backward({split, weights});
    saved->saved_data["heads"] = heads;
    return at::bmm(weights, split[2])
        .view({samples, heads, context, size})
        .transpose(1, 2)
        .reshape({samples * context, heads * size});
  }

  static torch::autograd::tensor_list backward(torch::autograd::AutogradContext* saved,
                                               torch::autograd::tensor_list gradients) {
    const torch::autograd::tensor_list kept = saved->get_saved_variables();
    const torch::Tensor& split = kept[0];
    const torch::Tensor& weights = kept[1];
    const int64_t heads = saved->saved_data["heads"].toInt(), context = split.size(2), size = split.size(3);
    const int64_t samples = split.size(1) / heads;
    const torch::Tensor d_mixed =
        gradients[0].view({samples, context, heads, size}).transpose(1, 2).reshape({samples * heads, context, size});
    torch::Tensor d_split = torch::empty_like(split);
    torch::Tensor d_query = d_split[0], d_key = d_split[1], d_value = d_split[2];
    at::bmm_out(d_value, weights.transpose(1, 2), d_mixed);
    torch::Tensor d_scores = at::bmm(d_mixed, split[2].transpose(1, 2));
    at::_softmax_backward_data_out(d_scores, d_scores, weights, -1, weights.scalar_type());
    d_scores.mul_(Scale(size));
    at::bmm_out(d_query, d_scores, split[1]);
    at::bmm_out(d_key, d_scores.transpose(1, 2), split[0]);
    return {d_split.view({3, samples, heads, context, size})
                .permute({1, 3, 0, 2, 4})
                .reshape({samples * context, 3 * heads * size}),
            torch::Tensor(), torch::Tensor()};
  }

  static double Scale(int64_t size) { return 1.0 / std::sqrt(static_cast<double>(size)); }
};
#endif

// GPT-2 (Radford et al. 2019): learned positions, pre-norm, GELU in its tanh form, the head tied to the embedding.
class Gpt final : public LossModule {
 public:
  Gpt(const Model& config, uint64_t seed)
      : heads_(config.heads()), width_(config.width()), context_(config.context()), layers_(config.layers()) {
    const auto normal = [this, seed](double deviation) {
      const uint64_t stream = DeriveSeed(seed, "parameters", tensors_.size());
      return [stream, deviation](torch::Tensor to) {
        Random random(stream);
        float* values = to.data_ptr<float>();
        for (int64_t i = 0; i < to.numel(); ++i) values[i] = static_cast<float>(deviation * random.Normal());
      };
    };
    const auto constant = [](double value) { return [value](torch::Tensor to) { to.fill_(value); }; };
    const auto add = [this](std::string name, std::vector<int64_t> shape, std::function<void(torch::Tensor)> initialise,
                            torch::Tensor* slot, int64_t matrices = 0) {
      tensors_.push_back({std::move(name), std::move(shape), matrices, std::move(initialise),
                          [slot](torch::Tensor leaf) { *slot = std::move(leaf); }});
    };
    const int64_t w = width_;
    const double residual = 0.02 / std::sqrt(2.0 * static_cast<double>(layers_.size()));
    add("wte.weight", {config.vocabulary(), w}, normal(0.02), &token_embedding_);
    add("wpe.weight", {context_, w}, normal(0.02), &position_embedding_);
    for (size_t l = 0; l < layers_.size(); ++l) {
      Layer& layer = layers_[l];
      const std::string at = absl::StrCat("h.", l, ".");
      add(at + "ln_1.weight", {w}, constant(1), &layer.norm1_gain);
      add(at + "ln_1.bias", {w}, constant(0), &layer.norm1_bias);
      add(at + "attn.c_attn.weight", {3 * w, w}, normal(0.02), &layer.qkv, 3);
      add(at + "attn.c_attn.bias", {3 * w}, constant(0), &layer.qkv_bias);
      add(at + "attn.c_proj.weight", {w, w}, normal(residual), &layer.projection, 1);
      add(at + "attn.c_proj.bias", {w}, constant(0), &layer.projection_bias);
      add(at + "ln_2.weight", {w}, constant(1), &layer.norm2_gain);
      add(at + "ln_2.bias", {w}, constant(0), &layer.norm2_bias);
      add(at + "mlp.c_fc.weight", {4 * w, w}, normal(0.02), &layer.expand, 1);
      add(at + "mlp.c_fc.bias", {4 * w}, constant(0), &layer.expand_bias);
      add(at + "mlp.c_proj.weight", {w, 4 * w}, normal(residual), &layer.contract, 1);
      add(at + "mlp.c_proj.bias", {w}, constant(0), &layer.contract_bias);
    }
    add("ln_f.weight", {w}, constant(1), &final_gain_);
    add("ln_f.bias", {w}, constant(0), &final_bias_);
  }
  Gpt(const Gpt&) = delete;  // The slots point into this object.
  Gpt& operator=(const Gpt&) = delete;

  // Valid once.
  std::vector<NamedTensor> TakeTensors() { return std::move(tensors_); }

  torch::Tensor Loss(const torch::Tensor& tokens, const torch::Tensor& targets) override {
    const int64_t samples = tokens.size(0);
    // The stream is [samples * context, width] throughout: linear layers are then one addmm each.
    torch::Tensor x = at::embedding(token_embedding_, tokens).add_(position_embedding_).view({-1, width_});
    for (const Layer& layer : layers_) {
      torch::Tensor y = at::layer_norm(x, {width_}, layer.norm1_gain, layer.norm1_bias);
      y = Attention(at::linear(y, layer.qkv, layer.qkv_bias), samples);
      x = Residual(at::linear(y, layer.projection, layer.projection_bias), x);
      y = at::layer_norm(x, {width_}, layer.norm2_gain, layer.norm2_bias);
      y = at::gelu(at::linear(y, layer.expand, layer.expand_bias), "tanh");
      x = Residual(at::linear(y, layer.contract, layer.contract_bias), x);
    }
    x = at::layer_norm(x, {width_}, final_gain_, final_bias_);
    return at::cross_entropy_loss(at::linear(x, token_embedding_), targets.view(-1));
  }

 private:
  struct Layer {
    torch::Tensor norm1_gain, norm1_bias, qkv, qkv_bias, projection, projection_bias;
    torch::Tensor norm2_gain, norm2_bias, expand, expand_bias, contract, contract_bias;
  };

  // No backward needs what a linear layer returned, so the sum can go there; under autocast the types differ.
  static torch::Tensor Residual(torch::Tensor change, const torch::Tensor& x) {
    return change.scalar_type() == x.scalar_type() ? change.add_(x) : x + change;
  }

  // qkv: [samples * context, 3 * width]; returns [samples * context, width].
  torch::Tensor Attention(const torch::Tensor& qkv, int64_t samples) {
#if WUKONG_TORCH_AT_LEAST(2, 1)
    const torch::Tensor split = qkv.view({samples, context_, 3, heads_, width_ / heads_}).permute({2, 0, 3, 1, 4});
    return at::scaled_dot_product_attention(split[0], split[1], split[2], {}, 0.0, true)
        .transpose(1, 2)
        .reshape({samples * context_, width_});
#else
    (void)samples;
    if (!mask_.defined()) {
      mask_ = at::full({1, context_, context_}, -std::numeric_limits<float>::infinity(),
                       qkv.options().dtype(torch::kFloat32).requires_grad(false))
                  .triu_(1);
    }
    return CausalAttention::apply(qkv, mask_, heads_);
#endif
  }

  const int64_t heads_;
  const int64_t width_;
  const int64_t context_;
  std::vector<NamedTensor> tensors_;
  torch::Tensor token_embedding_, position_embedding_;
  std::vector<Layer> layers_;
  torch::Tensor final_gain_, final_bias_;
  torch::Tensor mask_;  // [1, context, context]: -inf above the diagonal.
};

// A scripted module; its parameters are replaced by aliases of the flat vector.
class Script final : public LossModule {
 public:
  static absl::StatusOr<std::unique_ptr<Script>> Load(const std::string& path, int64_t vocabulary,
                                                      torch::Device device) {
    std::error_code error;
    if (!std::filesystem::is_regular_file(path, error)) {
      return absl::NotFoundError(absl::StrCat("trainer: model.torchscript: there is no file ", path,
                                              "; save one with torch.jit.script(module).save(\"", path, "\")"));
    }
    std::unique_ptr<Script> script(new Script);
    try {
      script->module_ = torch::jit::load(path, torch::kCPU);
    } catch (const c10::Error& failure) {
      return absl::InvalidArgumentError(absl::StrCat("trainer: model.torchscript: ", path,
                                                     " is not a TorchScript file that libtorch ", TORCH_VERSION,
                                                     " reads: ", failure.what_without_backtrace()));
    }
    const auto method = script->module_.find_method("forward");
    if (!method.has_value() || method->num_inputs() != 3) {
      return absl::InvalidArgumentError(absl::StrCat("trainer: model.torchscript: ", path,
                                                     ": expected forward(tokens, targets) -> mean loss, got ",
                                                     method.has_value() ? "other arguments" : "no forward"));
    }
    std::set<const void*> embeddings;  // Also the output head, where it is tied to one.
    for (const auto& module : script->module_.named_modules()) {
      if (!module.value.type()->name().has_value() || module.value.type()->name()->name() != "Embedding") continue;
      for (const auto& parameter : module.value.parameters(/*recurse=*/false)) embeddings.insert(parameter.data_ptr());
    }
    for (const auto& parameter : script->module_.named_parameters()) {
      if (!parameter.value.requires_grad()) continue;  // Frozen: every process has the file's values.
      if (parameter.value.scalar_type() != torch::kFloat32) {
        return absl::InvalidArgumentError(absl::StrCat("trainer: model.torchscript: ", path, ": parameter ",
                                                       parameter.name, ": expected float32, got ",
                                                       c10::toString(parameter.value.scalar_type())));
      }
      const torch::Tensor& value = parameter.value;
      const auto& sizes = value.sizes();
      const bool hidden = sizes.size() >= 2 && std::find(sizes.begin(), sizes.end(), vocabulary) == sizes.end() &&
                          embeddings.count(value.data_ptr()) == 0;
      script->AddParameter(parameter.name, value, hidden ? 1 : 0);
    }
    if (script->tensors_.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("trainer: model.torchscript: ", path, ": expected parameters that require gradients, got none"));
    }
    // Buffers and frozen parameters; what is trained moves when it is bound to the flat vector.
    script->module_.to(device);
    return script;
  }

  std::vector<NamedTensor> TakeTensors() { return std::move(tensors_); }

  torch::Tensor Loss(const torch::Tensor& tokens, const torch::Tensor& targets) override {
    const torch::jit::IValue result = module_.forward({tokens, targets});
    TORCH_CHECK(result.isTensor() && result.toTensor().numel() == 1,
                "model.torchscript: expected forward to return the mean loss, a tensor with one value, got ",
                result.tagKind());
    return result.toTensor().reshape({});
  }

  void SetTraining(bool training) override { module_.train(training); }

 private:
  Script() = default;

  // Two names of one tensor (tied weights) are one tensor of the layout, bound to both.
  void AddParameter(const std::string& name, const torch::Tensor& value, int64_t matrices) {
    const auto bind = [value](torch::Tensor leaf) {
      torch::Tensor parameter = value;
      parameter.set_data(leaf.detach());
      parameter.mutable_grad() = leaf.grad();
    };
    for (NamedTensor& known : tensors_) {
      torch::Tensor& first = storage_.at(&known - tensors_.data());
      if (first.data_ptr() != value.data_ptr() || first.sizes() != value.sizes()) continue;
      known.bind = [before = known.bind, bind](const torch::Tensor& leaf) {
        before(leaf);
        bind(leaf);
      };
      return;
    }
    storage_.push_back(value);
    const torch::Tensor initial = value.detach().clone();
    tensors_.push_back({name, value.sizes().vec(), matrices, [initial](torch::Tensor to) { to.copy_(initial); }, bind});
  }

  torch::jit::Module module_;
  std::vector<NamedTensor> tensors_;
  std::vector<torch::Tensor> storage_;
};

// The Euclidean norm of a flat tensor. In one go libtorch adds up float32 in as many numbers as a vector register has,
// of which each takes in a whole share of the model: what is small against the sum so far is lost.
double NormOf(const torch::Tensor& values) {
  constexpr int64_t kRow = 1024;
  const int64_t rows = values.numel() / kRow;
  const torch::Tensor whole = values.narrow(0, 0, rows * kRow).view({rows, kRow}).norm(2, {1}).to(torch::kFloat64);
  const double rest = values.narrow(0, rows * kRow, values.numel() - rows * kRow).norm().item<double>();
  return std::sqrt(whole.square().sum().item<double>() + rest * rest);
}

class TorchTrainer final : public Trainer {
 public:
  TorchTrainer(const Job& job, const TrainerOptions& options, torch::Device device, std::unique_ptr<LossModule> model,
               std::vector<NamedTensor> tensors)
      : config_(Resolved(job.optimizer())),
        seed_(job.seed()),
        context_(job.model().context()),
        vocabulary_(job.model().vocabulary()),
        options_(options),
        device_(device),
        model_(std::move(model)),
        layout_(Specs(&tensors)) {
    const auto on_host = torch::TensorOptions().dtype(torch::kFloat32).pinned_memory(device.is_cuda());
    host_parameters_ = torch::zeros({layout_.size()}, on_host);
    host_gradient_ = torch::zeros({layout_.size()}, on_host);
    {
      torch::NoGradGuard no_grad;
      for (size_t i = 0; i < tensors.size(); ++i) tensors[i].initialise(Slice(host_parameters_, i));
    }
    parameters_ = device.is_cpu() ? host_parameters_ : host_parameters_.to(device);
    gradient_ = device.is_cpu() ? host_gradient_ : host_gradient_.to(device);
    std::vector<OptimizedTensor> optimized;
    for (size_t i = 0; i < tensors.size(); ++i) {
      const TensorSpec& spec = layout_.tensors()[i];
      optimized.push_back({spec.offset, spec.size, spec.shape, Decays(tensors[i]), tensors[i].matrices});
      tensors[i].bind(Leaf(Slice(parameters_, i), Slice(gradient_, i)));
    }
    optimizer_ = MakeInnerOptimizer(config_, parameters_, gradient_, optimized);
  }

  const ParameterLayout& layout() const override { return layout_; }
  absl::Span<float> parameters() override { return Host(host_parameters_); }
  absl::Span<float> gradient() override { return Host(host_gradient_); }
  absl::Status PullParameters() override { return Copy("copying parameters", parameters_, &host_parameters_); }
  absl::Status PushParameters() override { return Copy("copying parameters", host_parameters_, &parameters_); }
  absl::Status PullGradient() override { return Copy("copying the gradient", gradient_, &host_gradient_); }
  absl::Status PushGradient() override { return Copy("copying the gradient", host_gradient_, &gradient_); }

  absl::StatusOr<double> AccumulateGradient(const Batch& batch, double scale) override {
    if (absl::Status status = Check(batch); !status.ok()) return status;
    return CatchTorch("computing a gradient", [&]() -> absl::StatusOr<double> {
      Start();
      const absl::Time begin = Now();
      model_->SetTraining(true);
      SeedPass(batch);
      torch::Tensor loss;
      {
        // The backward pass runs in the types that the forward pass left.
        Autocast autocast(options_.precision == PRECISION_BF16, device_.type());
        loss = model_->Loss(OnDevice(batch.tokens, batch), OnDevice(batch.targets, batch)).to(torch::kFloat32);
      }
      loss.backward(torch::full({}, scale, loss.options()));
      const double value = loss.item<double>();
      Count(begin, &TrainerTimes::gradient);
      return value;
    });
  }

  absl::StatusOr<double> OptimizerStep(double learning_rate) override {
    return CatchTorch("making an optimizer step", [&]() -> absl::StatusOr<double> {
      Start();
      torch::NoGradGuard no_grad;
      const absl::Time begin = Now();
      const double norm = NormOf(gradient_);
      if (std::isfinite(norm) && config_.clip_norm() > 0 && norm > config_.clip_norm()) {
        gradient_.mul_(config_.clip_norm() / norm);
      }
      const absl::Time clipped = Now();
      Count(begin, &TrainerTimes::clip);
      if (std::isfinite(norm)) optimizer_->Step(learning_rate);
      gradient_.zero_();
      Count(clipped, &TrainerTimes::optimizer);
      return norm;
    });
  }

  void ZeroGradient() override { gradient_.zero_(); }
  std::string cpu_capability() const override { return CpuCapability(); }

  absl::StatusOr<OptimizerState> SaveOptimizer() override {
    return CatchTorch("saving the optimizer", [&]() -> absl::StatusOr<OptimizerState> { return optimizer_->Save(); });
  }

  absl::Status LoadOptimizer(const OptimizerState& saved) override {
    return CatchTorch("loading the optimizer", [&] { return optimizer_->Load(saved); });
  }

  absl::StatusOr<double> Evaluate(const Batch& batch) override {
    if (absl::Status status = Check(batch); !status.ok()) return status;
    return CatchTorch("evaluating", [&]() -> absl::StatusOr<double> {
      Start();
      torch::NoGradGuard no_grad;
      model_->SetTraining(false);
      Autocast autocast(options_.precision == PRECISION_BF16, device_.type());
      return model_->Loss(OnDevice(batch.tokens, batch), OnDevice(batch.targets, batch)).item<double>();
    });
  }

 private:
  static Optimizer Resolved(Optimizer optimizer) {
    ResolveOptimizer(&optimizer);
    return optimizer;
  }

  // Sorts those that decay to the front, keeping the order otherwise.
  static std::vector<TensorSpec> Specs(std::vector<NamedTensor>* tensors) {
    std::stable_partition(tensors->begin(), tensors->end(), Decays);
    std::vector<TensorSpec> specs;
    for (const NamedTensor& tensor : *tensors) specs.push_back({tensor.name, tensor.shape});
    return specs;
  }

  torch::Tensor Slice(const torch::Tensor& flat, size_t index) const {
    const TensorSpec& spec = layout_.tensors()[index];
    return flat.narrow(0, spec.offset, spec.size).view(spec.shape);
  }

  // autograd adds to a gradient that is there in place, so this one stays a slice of the flat gradient.
  static torch::Tensor Leaf(const torch::Tensor& value, const torch::Tensor& gradient) {
    torch::Tensor leaf = value.detach();
    leaf.set_requires_grad(true);
    leaf.mutable_grad() = gradient;
    return leaf;
  }

  static absl::Span<float> Host(const torch::Tensor& flat) {
    return absl::MakeSpan(flat.data_ptr<float>(), static_cast<size_t>(flat.numel()));
  }

  absl::Status Copy(absl::string_view doing, const torch::Tensor& from, torch::Tensor* to) {
    if (device_.is_cpu()) return absl::OkStatus();
    return CatchTorch(doing, [&]() -> absl::Status {
      torch::NoGradGuard no_grad;
      to->copy_(from);
      return absl::OkStatus();
    });
  }

  // The number of threads belongs to the thread that calls. Each time that it is set, libtorch makes another pool of
  // threads, which spin for a while although nothing uses them.
  void Start() const {
    if (at::get_num_threads() != options_.threads) at::set_num_threads(options_.threads);
  }

  // What a scripted module draws (dropout's masks) it takes from libtorch's one generator, which begins alike in every
  // process and is shared by all trainers of one. Keyed by its place and its data, a pass draws the same whoever else
  // draws, and no two workers or epochs have the same masks.
  void SeedPass(const Batch& batch) {
    uint64_t seed = DeriveSeed(seed_, "forward pass", passes_++);
    for (const int64_t token : batch.tokens) seed = Mix64(seed ^ static_cast<uint64_t>(token));
    torch::manual_seed(seed);
  }

  absl::Time Now() const { return options_.clock == nullptr ? absl::Time() : options_.clock->Now(); }
  void Count(absl::Time begin, absl::Duration TrainerTimes::*part) const {
    if (options_.clock != nullptr && options_.times != nullptr) options_.times->*part += Now() - begin;
  }

  absl::Status Check(const Batch& batch) const {
    const auto size = static_cast<size_t>(std::max<int64_t>(0, batch.samples) * context_);
    if (batch.samples < 1 || batch.context != context_ || batch.tokens.size() != size || batch.targets.size() != size) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "trainer: expected a batch of one or more samples of %d tokens, got %d samples of %d with %d tokens and %d "
          "targets; the data's context must be model.context",
          context_, batch.samples, batch.context, batch.tokens.size(), batch.targets.size()));
    }
    for (const std::vector<int64_t>* values : {&batch.tokens, &batch.targets}) {
      for (size_t i = 0; i < size; ++i) {
        if ((*values)[i] >= 0 && (*values)[i] < vocabulary_) continue;
        return absl::InvalidArgumentError(absl::StrFormat(
            "trainer: expected tokens from 0 to %d, got %d in %s of sample %d at position %d; model.vocabulary must be "
            "that of the data",
            vocabulary_ - 1, (*values)[i], values == &batch.tokens ? "the tokens" : "the targets", i / context_,
            i % context_));
      }
    }
    return absl::OkStatus();
  }

  // Shares the batch's memory on a CPU.
  torch::Tensor OnDevice(const std::vector<int64_t>& values, const Batch& batch) const {
    return torch::from_blob(const_cast<int64_t*>(values.data()), {batch.samples, batch.context}, torch::kInt64)
        .to(device_);
  }

  const Optimizer config_;
  const uint64_t seed_;
  const int64_t context_;
  const int64_t vocabulary_;
  const TrainerOptions options_;
  const torch::Device device_;
  const std::unique_ptr<LossModule> model_;
  const ParameterLayout layout_;
  // Flat float32 [layout_.size()]. On a CPU both names of a pair are one tensor.
  torch::Tensor host_parameters_, host_gradient_;
  torch::Tensor parameters_, gradient_;
  uint64_t passes_ = 0;  // Calls of AccumulateGradient.
  std::unique_ptr<InnerOptimizer> optimizer_;
};

// Once per process, and not after parallel work began: libtorch throws then.
void UseOneInteropThread() {
  if (at::get_num_interop_threads() == 1) return;
  try {
    at::set_num_interop_threads(1);
  } catch (const c10::Error&) {
    // Only wasteful: trainers start no inter-op work.
  }
}

absl::StatusOr<std::unique_ptr<Trainer>> MakeTorchTrainer(const Job& job, const TrainerOptions& options) {
  return CatchTorch("making the model", [&]() -> absl::StatusOr<std::unique_ptr<Trainer>> {
    const absl::StatusOr<torch::Device> device = ParseDevice(options.device);
    if (!device.ok()) return device.status();
    UseOneInteropThread();
    at::set_num_threads(options.threads);
    if (!job.model().torchscript().empty()) {
      absl::StatusOr<std::unique_ptr<Script>> script =
          Script::Load(job.model().torchscript(), job.model().vocabulary(), *device);
      if (!script.ok()) return script.status();
      std::vector<NamedTensor> tensors = (*script)->TakeTensors();
      return std::make_unique<TorchTrainer>(job, options, *device, *std::move(script), std::move(tensors));
    }
    auto gpt = std::make_unique<Gpt>(job.model(), job.seed());
    std::vector<NamedTensor> tensors = gpt->TakeTensors();
    return std::make_unique<TorchTrainer>(job, options, *device, std::move(gpt), std::move(tensors));
  });
}

}  // namespace
}  // namespace wukong

void WukongMakeTorchTrainer(const wukong::Job* job, const wukong::TrainerOptions* options,
                            absl::StatusOr<std::unique_ptr<wukong::Trainer>>* trainer) {
  *trainer = wukong::MakeTorchTrainer(*job, *options);
}
