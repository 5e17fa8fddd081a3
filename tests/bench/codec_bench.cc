// How fast codecs and the outer optimizer are, in bytes of fp32 per second, beside memcpy of the same bytes.
// tests/bench/codecs runs it and prints the table.
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "benchmark/benchmark.h"
#include "glog/logging.h"
#include "runtime/base/random.h"
#include "runtime/codec/codec.h"
#include "runtime/sync/outer_optimizer.h"

namespace wukong {
namespace {

// A fragment of limits.fragment_bytes' default, out of a model that no cache holds.
constexpr size_t kFragmentValues = (size_t{1} << 20) / sizeof(float);
constexpr size_t kFragments = 64;
constexpr size_t kValues = kFragments * kFragmentValues;

const std::vector<float>& Values() {
  static const std::vector<float> values = [] {
    Random random(1);
    std::vector<float> made(kValues);
    for (float& value : made) value = static_cast<float>(1e-3 * random.Normal());
    return made;
  }();
  return values;
}

absl::Span<const float> Fragment(size_t f) {
  return absl::MakeConstSpan(Values()).subspan(f * kFragmentValues, kFragmentValues);
}

std::vector<std::string> Payloads(const Codec& codec) {
  std::vector<std::string> payloads(kFragments);
  for (size_t f = 0; f < kFragments; ++f) CHECK(codec.Encode(Fragment(f), &payloads[f]).ok());
  return payloads;
}

void Report(benchmark::State& state, size_t bytes) {
  state.SetBytesProcessed(static_cast<int64_t>(state.iterations()) * static_cast<int64_t>(bytes));
}

// Between two vectors that no cache holds.
void BM_Memcpy(benchmark::State& state) {
  std::vector<float> to(kValues);
  for (auto _ : state) {
    std::memcpy(to.data(), Values().data(), kValues * sizeof(float));
    benchmark::ClobberMemory();
  }
  Report(state, kValues * sizeof(float));
}

// Out of a vector that no cache holds into the same payloads again and again, as a sender's buffers are.
void BM_Encode(benchmark::State& state, CodecKind kind) {
  const std::unique_ptr<Codec> codec = MakeCodec(kind);
  std::vector<std::string> payloads = Payloads(*codec);
  for (auto _ : state) {
    for (size_t f = 0; f < kFragments; ++f) CHECK(codec->Encode(Fragment(f), &payloads[f]).ok());
    benchmark::ClobberMemory();
  }
  Report(state, kValues * sizeof(float));
}

void BM_Decode(benchmark::State& state, CodecKind kind) {
  const std::unique_ptr<Codec> codec = MakeCodec(kind);
  const std::vector<std::string> payloads = Payloads(*codec);
  std::vector<float> values(kValues);
  for (auto _ : state) {
    for (size_t f = 0; f < kFragments; ++f) {
      CHECK(codec->Decode(payloads[f], absl::MakeSpan(values).subspan(f * kFragmentValues, kFragmentValues)).ok());
    }
    benchmark::ClobberMemory();
  }
  Report(state, kValues * sizeof(float));
}

// One contribution is applied: decoded fragment by fragment, weighted, and added to theta.
void Apply(benchmark::State& state, CodecKind kind, double momentum) {
  auto contribution = std::make_shared<EncodedVector>();
  contribution->codec = kind;
  contribution->fragments = Payloads(*MakeCodec(kind));
  std::vector<float> theta(kValues);
  OuterOptimizer optimizer(absl::MakeSpan(theta), CutFragments(kValues, kFragmentValues * sizeof(float)),
                           PROGRESS_PARAMETERS, momentum > 0);
  Merge merge;
  merge.parts.push_back({Handle(1), 1.0, MemberId(1)});
  merge.learning_rate = 0.7;
  merge.momentum = momentum;
  merge.momentum_step = momentum > 0;
  for (auto _ : state) {
    CHECK(optimizer.Apply(merge, {contribution}).ok());
    benchmark::ClobberMemory();
  }
  Report(state, kValues * sizeof(float));
}

void BM_DecodeAndAccumulate(benchmark::State& state, CodecKind kind) { Apply(state, kind, 0); }
void BM_OuterNesterov(benchmark::State& state, CodecKind kind) { Apply(state, kind, 0.9); }

int Main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  benchmark::RegisterBenchmark("memcpy", BM_Memcpy);
  for (const auto& [name, kind] : {std::pair<const char*, CodecKind>{"fp32", CODEC_KIND_FP32},
                                   {"bf16", CODEC_KIND_BF16},
                                   {"int8", CODEC_KIND_INT8},
                                   {"int4", CODEC_KIND_INT4},
                                   {"int3", CODEC_KIND_INT3},
                                   {"int2", CODEC_KIND_INT2},
                                   {"topk", CODEC_KIND_TOPK}}) {
    const std::string suffix = std::string("/") + name;
    benchmark::RegisterBenchmark(("encode" + suffix).c_str(), BM_Encode, kind);
    benchmark::RegisterBenchmark(("decode" + suffix).c_str(), BM_Decode, kind);
    benchmark::RegisterBenchmark(("accumulate" + suffix).c_str(), BM_DecodeAndAccumulate, kind);
    benchmark::RegisterBenchmark(("nesterov" + suffix).c_str(), BM_OuterNesterov, kind);
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}

}  // namespace
}  // namespace wukong

int main(int argc, char** argv) { return wukong::Main(argc, argv); }
