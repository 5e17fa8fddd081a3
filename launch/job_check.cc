#include "launch/job_check.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "launch/job_units.h"
#include "runtime/base/region_name.h"
#include "runtime/codec/codec.h"
#include "runtime/data/manifest.h"
#include "runtime/data/token_dataset.h"
#include "runtime/fault/link_shape.h"
#include "runtime/model/job_layout.h"
#include "runtime/model/optimizer_kinds.h"
#include "runtime/storage/checkpoint.h"
#include "runtime/storage/log.h"
#include "runtime/sync/presets.h"

namespace wukong {
namespace {

constexpr size_t kJobNameMax = 100;
// A connection whose peer does not answer is given up after 10 s (runtime/transport/grpc_options.h).
constexpr absl::Duration kRoundTripMax = absl::Seconds(9);
// AdamW and Muon move every weight by about this much per step, and weights begin near 0.02.
constexpr double kLearningRateMax = 0.1;

bool OnlyHas(absl::string_view text, absl::string_view punctuation) {
  return std::all_of(text.begin(), text.end(),
                     [&](char c) { return absl::ascii_isalnum(c) || absl::StrContains(punctuation, c); });
}

// The N of "cuda:N", 0 for "cuda"; -1 for the CPU, -2 for anything else.
int CudaIndex(absl::string_view device) {
  if (device == "cpu") {
    return -1;
  }
  if (device == "cuda") {
    return 0;
  }
  int index = 0;
  const bool number = absl::ConsumePrefix(&device, "cuda:") && !device.empty() && device.size() <= 3 &&
                      std::all_of(device.begin(), device.end(), absl::ascii_isdigit) &&
                      absl::SimpleAtoi(device, &index);
  return number ? index : -2;
}

// CUDA devices that this machine's driver shows. The driver is loaded by hand: a binary that is linked with it does not
// start where there is none.
int CountCudaDevices() {
  void* const driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (driver == nullptr) {
    return 0;
  }
  using Init = int (*)(unsigned);
  using Count = int (*)(int*);
  const auto init = reinterpret_cast<Init>(dlsym(driver, "cuInit"));
  const auto count = reinterpret_cast<Count>(dlsym(driver, "cuDeviceGetCount"));
  int devices = 0;
  if (init == nullptr || count == nullptr || init(0) != 0 || count(&devices) != 0) {
    return 0;
  }
  return devices;  // The driver stays loaded: it does not bear to be unloaded once initialised.
}

class JobChecker {
 public:
  explicit JobChecker(const JobSource& source) : source_(source), job_(source.job) {}

  absl::Status Run(const CheckOptions& options) {
    CheckName();
    if (options.check_model) CheckModel();
    CheckOptimizer();
    CheckRegions();
    CheckWan();
    CheckLimits();
    if (options.check_model) {
      CheckInFlightBytes();
      CheckParts();
    }
    for (const StrategyProblem& problem : FindStrategyProblems(job_)) {
      Add(problem.key, problem.reason);
    }
    CheckDataKeys();
    if (options.check_data) {
      CheckModelFile(options.check_beginning);
      CheckDataFiles(options.check_beginning);
    }
    if (!errors_.empty()) {
      return errors_.ToStatus();
    }
    return options.check_device ? CheckDevices() : absl::OkStatus();
  }

 private:
  void Add(absl::string_view key, absl::string_view what) { errors_.Add(source_.Where(key), what); }

  static std::string RegionKey(int index, absl::string_view key) { return absl::StrCat("regions[", index, "].", key); }

  void CheckName() {
    const std::string& name = job_.name();
    if (name.empty() || name.size() > kJobNameMax || !OnlyHas(name, "-_.") || !absl::ascii_isalnum(name[0])) {
      Add("name",
          absl::StrCat("not a name (expected at most ", kJobNameMax,
                       " letters, digits, '-', '_' and '.', beginning with a letter or digit, got \"", name, "\")"));
    }
  }

  void CheckModel() {
    const Model& model = job_.model();
    const std::pair<const char*, int32_t> sizes[] = {
        {"layers", model.layers()}, {"heads", model.heads()}, {"width", model.width()}};
    if (model.synthetic() != SYNTHETIC_KIND_UNSPECIFIED) {
      for (const auto& [key, value] : sizes) {
        if (value != 0) Add(absl::StrCat("model.", key), "means nothing beside synthetic (expected size and step)");
      }
      if (!model.torchscript().empty()) Add("model.torchscript", "another model is given as synthetic (expected one)");
      if (model.size() == 0) Add("model.size", "is missing (expected the number of parameters of the synthetic model)");
      if (model.context() != 1) Add("model.context", "a synthetic model has no text (expected 1)");
      return;
    }
    if (model.size() != 0) Add("model.size", "is of synthetic models only (expected no size, or synthetic beside it)");
    for (const auto& [key, value] : sizes) {
      if (model.torchscript().empty() && value == 0) {
        Add(absl::StrCat("model.", key),
            "is missing (expected layers, heads and width for the built-in GPT, or torchscript for another model)");
      } else if (!model.torchscript().empty() && value != 0) {
        Add(absl::StrCat("model.", key),
            absl::StrCat("the built-in GPT and torchscript exclude each other (expected no ", key,
                         " beside torchscript, got ", value, ")"));
      }
    }
    if (model.heads() > 0 && model.width() % model.heads() != 0) {
      Add("model.width", absl::StrCat("not divisible by model.heads (expected a multiple of ", model.heads(), ", got ",
                                      model.width(), ")"));
    }
  }

  void CheckModelFile(bool beginning) {
    const std::string& path = job_.model().torchscript();
    std::error_code error;
    if (!path.empty() && !std::filesystem::is_regular_file(path, error)) {
      Add("model.torchscript", absl::StrCat("no such file (expected a TorchScript module, got ", path, ")"));
    }
    const std::string& parameters = job_.model().parameters();
    if (beginning && !parameters.empty() && !std::filesystem::is_regular_file(parameters, error)) {
      Add("model.parameters", absl::StrCat("no such file (expected a safetensors file, got ", parameters, ")"));
      return;
    }
    // What a TorchScript module has in it, only libtorch knows; whoever begins the run looks then.
    if (!beginning || parameters.empty() || !path.empty() || job_.model().synthetic() != SYNTHETIC_KIND_UNSPECIFIED) {
      return;
    }
    const absl::Status fits = CheckParametersFile(FileSystem::Real(), parameters, GptTensors(job_.model()));
    if (!fits.ok()) Add("model.parameters", fits.message());
  }

  void CheckOptimizer() {
    const Optimizer& optimizer = job_.optimizer();
    for (const OptimizerProblem& problem : FindOptimizerProblems(optimizer)) {
      Add(absl::StrCat("optimizer.", problem.key), problem.reason);
    }
    std::vector<std::pair<const char*, double>> rates;
    if (optimizer.kind() != OPTIMIZER_KIND_SGD) rates.emplace_back("learning_rate", optimizer.learning_rate());
    // Where it is not said, it is the other one.
    if (optimizer.kind() == OPTIMIZER_KIND_MUON && optimizer.matrix_learning_rate() != optimizer.learning_rate()) {
      rates.emplace_back("matrix_learning_rate", optimizer.matrix_learning_rate());
    }
    for (const auto& [key, rate] : rates) {
      if (rate <= kLearningRateMax) continue;
      Add(absl::StrCat("optimizer.", key),
          absl::StrFormat("%s diverges at once (expected at most %g, usually 1e-4 to 1e-2, got %g)",
                          optimizer.kind() == OPTIMIZER_KIND_MUON ? "Muon" : "AdamW", kLearningRateMax, rate));
    }
  }

  void CheckRegions() {
    std::map<std::string, int> first;
    for (int i = 0; i < job_.regions_size(); ++i) {
      const Region& region = job_.regions(i);
      const std::string& name = region.name();
      if (!IsRegionName(name)) {
        Add(RegionKey(i, "name"), absl::StrCat("not a region's name (expected at most ", kRegionNameMax,
                                               " letters, digits and '-', got \"", name, "\")"));
      }
      const auto [other, is_new] = first.emplace(name, i);
      if (!is_new) {
        Add(RegionKey(i, "name"),
            absl::StrCat("region ", name, " is named twice (expected different names, but regions[", other->second,
                         "] has the same)"));
      }
      if (region.speed_size() > 1 && region.speed_size() != region.workers()) {
        Add(RegionKey(i, "speed"), absl::StrFormat("wrong number of speeds (expected 1 or %d, one per worker, got %d)",
                                                   region.workers(), region.speed_size()));
      }
      if (CudaIndex(region.device()) == -2) {
        Add(RegionKey(i, "device"),
            absl::StrCat("unknown device (expected cpu, cuda or cuda:N, got \"", region.device(), "\")"));
      }
    }
  }

  void CheckWan() {
    std::vector<std::string> names;
    for (const Region& region : job_.regions()) {
      names.push_back(region.name());
    }
    std::set<std::pair<std::string, Direction>> seen;
    for (int i = 0; i < job_.wan().links_size(); ++i) {
      const WanLink& link = job_.wan().links(i);
      const std::string key = absl::StrCat("wan.links[", i, "].region");
      if (std::find(names.begin(), names.end(), link.region()) == names.end()) {
        const std::string nearest = Nearest(link.region(), names);
        Add(key, absl::StrCat("unknown region", nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest, "?"),
                              " (expected ", Alternatives(names), ", got \"", link.region(), "\")"));
      } else if (!seen.emplace(link.region(), link.direction()).second) {
        Add(key, absl::StrCat("the link of ", link.region(),
                              " is given twice (expected one entry per region and direction)"));
      }
    }
  }

  void CheckLimits() {
    const Limits& limits = job_.limits();
    if (limits.fragment_bytes() % 4 != 0) {
      Add("limits.fragment_bytes",
          absl::StrCat("cuts a value (expected a multiple of 4, got ", limits.fragment_bytes(), ")"));
    }
    if (limits.lease_ns() < 2 * limits.heartbeat_ns()) {
      Add("limits.lease",
          absl::StrFormat("one late heartbeat would end it (expected at least twice limits.heartbeat, %gs, got %gs)",
                          2e-9 * static_cast<double>(limits.heartbeat_ns()),
                          1e-9 * static_cast<double>(limits.lease_ns())));
      return;
    }
    // The next one leaves a period after the last one was answered.
    for (const Region& region : job_.regions()) {
      const absl::Duration trip = ShapeOfLink(job_.wan(), region.name(), DIRECTION_UP).delay +
                                  ShapeOfLink(job_.wan(), region.name(), DIRECTION_DOWN).delay;
      if (trip > kRoundTripMax) {
        Add("wan.rtt",
            absl::StrFormat("%s is %gs away, and connections without an answer are given up (expected at most "
                            "%gs)",
                            region.name(), absl::ToDoubleSeconds(trip), absl::ToDoubleSeconds(kRoundTripMax)));
        return;
      }
      const absl::Duration least = 2 * (absl::Nanoseconds(limits.heartbeat_ns()) + trip);
      if (absl::Nanoseconds(limits.lease_ns()) >= least) continue;
      Add("limits.lease",
          absl::StrFormat("one late heartbeat of %s would end it, which is %gs away (expected at least twice its round "
                          "trip and limits.heartbeat, %gs, got %gs)",
                          region.name(), absl::ToDoubleSeconds(trip), absl::ToDoubleSeconds(least),
                          1e-9 * static_cast<double>(limits.lease_ns())));
      return;
    }
  }

  void CheckInFlightBytes() {
    const Limits& limits = job_.limits();
    const Strategy& strategy = job_.strategy();
    int64_t bytes = 0;
    for (const CodecKind codec : {strategy.region().codec_up(), strategy.root().codec_up()}) {
      bytes = std::max(bytes, ContributionBytes(job_, codec));
    }
    if (limits.in_flight_bytes() < bytes) {
      Add("limits.in_flight_bytes",
          absl::StrFormat("too small to hold one contribution of %d parameters (expected at least %d bytes, got %d)",
                          GptParameters(job_.model()), bytes, limits.in_flight_bytes()));
    }
    const int64_t logged = ContributionBytes(job_, strategy.root().codec_up());
    if (logged > kContributionBytesMax) {
      Add("strategy.root.codec_up",
          absl::StrFormat(
              "a contribution is one record of the root's log, and has %d bytes with this codec (expected at "
              "most %d)",
              logged, kContributionBytesMax));
    }
  }

  // A part without a fragment would never be sent.
  void CheckParts() {
    const int64_t values = std::max<int64_t>(1, job_.limits().fragment_bytes() / static_cast<int64_t>(sizeof(float)));
    int64_t fragments = 0;
    for (const FragmentSpan& span : UncutSpansOf(job_, GptParameters(job_.model()))) {
      fragments += (span.size() + values - 1) / values;
    }
    if (fragments > 0 && job_.strategy().parts() > fragments) {
      Add("strategy.parts", absl::StrFormat("there are fewer fragments than that (expected at most %d, or a smaller "
                                            "limits.fragment_bytes than %d, got %d)",
                                            fragments, job_.limits().fragment_bytes(), job_.strategy().parts()));
    }
  }

  // Sets data_keys_ok_ when it is clear where the data is.
  void CheckDataKeys() {
    const Data& data = job_.data();
    const bool files = !data.train().empty() || !data.validation().empty();
    if (job_.model().synthetic() != SYNTHETIC_KIND_UNSPECIFIED) {
      if (files || !data.directory().empty())
        Add("data", "a synthetic model takes no text (expected range_steps at most)");
      return;
    }
    if (!data.directory().empty() && files) {
      Add(data.train().empty() ? "data.validation" : "data.train",
          "given beside data.directory (expected data.directory, or data.train with data.validation)");
    } else if (data.directory().empty() && !files) {
      Add("data", "has no tokens (expected data.directory, or data.train with data.validation)");
    } else if (files && data.validation().empty()) {
      Add("data.validation", "is missing (expected a token file beside data.train)");
    } else if (files && data.train().empty()) {
      Add("data.train", "is missing (expected a token file beside data.validation)");
    } else {
      data_keys_ok_ = true;
    }
  }

  // A run that began with what was once accepted goes on with it.
  void CheckDataFiles(bool beginning) {
    const Data& data = job_.data();
    if (!data_keys_ok_) {
      return;
    }
    const bool directory = !data.directory().empty();
    if (directory) {
      const absl::StatusOr<DataManifest> manifest = ReadManifest(data.directory());
      if (manifest.ok() && manifest->vocabulary > job_.model().vocabulary()) {
        Add("model.vocabulary", absl::StrCat("smaller than the data's (expected at least ", manifest->vocabulary,
                                             ", as ", ManifestPath(data.directory()), " says of the ",
                                             manifest->tokenizer, " tokenizer, got ", job_.model().vocabulary(), ")"));
        return;  // Reading the tokens would only say it again.
      }
    }
    const absl::StatusOr<DataFiles> files = FindDataFiles(data);
    if (!files.ok()) {
      Add(directory ? "data.directory" : "data.train", files.status().message());
      return;
    }
    const std::shared_ptr<const TokenFile> train =
        CheckTokenFile(directory ? "data.directory" : "data.train", files->train, beginning);
    const std::shared_ptr<const TokenFile> validation =
        CheckTokenFile(directory ? "data.directory" : "data.validation", files->validation, beginning);
    if (directory || !beginning || train == nullptr || validation == nullptr) return;
    if (const absl::Status status = CheckApart(*train, *validation); !status.ok()) {
      Add("data.validation", status.message());
    }
  }

  // Null when it cannot be used.
  std::shared_ptr<const TokenFile> CheckTokenFile(absl::string_view key, const std::string& path, bool beginning) {
    absl::StatusOr<std::unique_ptr<TokenFile>> opened = TokenFile::Open(path);
    if (!opened.ok()) {
      Add(key, opened.status().message());
      return nullptr;
    }
    const std::shared_ptr<const TokenFile> file = std::move(*opened);
    if (beginning && job_.data().directory().empty()) {
      if (const absl::Status status = file->CheckContents(); !status.ok()) {
        Add(key, status.message());
        return nullptr;  // What its tokens are means nothing.
      }
    }
    if (const absl::Status status = file->CheckVocabulary(job_.model().vocabulary()); !status.ok()) {
      Add(key, status.message());
    }
    const absl::StatusOr<SampleReader> reader = SampleReader::Make(file, job_.model().context(), job_.seed());
    if (!reader.ok()) {
      Add(key, reader.status().message());
    }
    return file;
  }

  absl::Status CheckDevices() {
    int devices = -1;
    for (int i = 0; i < job_.regions_size(); ++i) {
      const int index = CudaIndex(job_.regions(i).device());
      if (index < 0) {
        continue;
      }
      devices = devices < 0 ? CountCudaDevices() : devices;
      if (index >= devices) {
        Add(RegionKey(i, "device"), absl::StrCat("not on this machine (expected one of its ", devices,
                                                 " CUDA devices, got ", job_.regions(i).device(), "); use cpu"));
      }
    }
    const absl::Status status = errors_.ToStatus();
    return status.ok() ? status : absl::FailedPreconditionError(status.message());
  }

  const JobSource& source_;
  const Job& job_;
  JobErrors errors_;
  bool data_keys_ok_ = false;
};

}  // namespace

std::vector<std::string> JobWarnings(const Job& job) {
  std::vector<std::string> warnings;
  // Allowed, for a trial of a few tokens.
  if (job.optimizer().warmup_tokens() >= job.stop().tokens()) {
    warnings.push_back(absl::StrCat("optimizer.warmup_tokens: warm-up does not end (expected fewer than stop.tokens, ",
                                    job.stop().tokens(), ", got ", job.optimizer().warmup_tokens(), ")"));
  }
  return warnings;
}

void PrintWarnings(const Job& job) {
  for (const std::string& warning : JobWarnings(job)) std::fprintf(stderr, "wukong: warning: %s\n", warning.c_str());
}

absl::Status CheckJob(const JobSource& source, const CheckOptions& options) { return JobChecker(source).Run(options); }

int64_t GptParameters(const Model& model) {
  if (model.synthetic() != SYNTHETIC_KIND_UNSPECIFIED) return model.size();
  if (!model.torchscript().empty()) return 0;
  // Per block: attention 4 d^2 + 4 d, MLP 8 d^2 + 5 d, two layer norms 4 d. Then the embeddings and the last norm.
  const int64_t d = model.width();
  return model.layers() * (12 * d * d + 13 * d) + (int64_t{model.vocabulary()} + model.context()) * d + 2 * d;
}

int64_t VectorBytes(const Job& given, int64_t parameters, CodecKind codec) {
  Job job = given;
  if (codec == CODEC_KIND_MIXED) job.mutable_strategy()->mutable_root()->set_codec_up(codec);  // It cuts by roles.
  const int64_t values = std::max<int64_t>(1, job.limits().fragment_bytes() / static_cast<int64_t>(sizeof(float)));
  // Not by a list of all fragments, which is long for a model with too many zeros.
  int64_t bytes = 0;
  for (const FragmentSpan& span : UncutSpansOf(job, parameters)) {
    const std::unique_ptr<Codec> made = MakeCodec(codec, span);
    const auto encoded = [&](int64_t count) {
      return static_cast<int64_t>(made->EncodedBytes(static_cast<size_t>(count)));
    };
    const int64_t rest = span.size() % values;
    bytes += span.size() / values * encoded(values) + (rest > 0 ? encoded(rest) : 0);
  }
  return bytes;
}

int64_t ContributionBytes(const Job& job, CodecKind codec) {
  return VectorBytes(job, GptParameters(job.model()), codec);
}

}  // namespace wukong
