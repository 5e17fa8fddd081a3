#include "launch/job_check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "runtime/base/file.h"
#include "runtime/codec/codec.h"
#include "runtime/data/manifest.h"
#include "runtime/model/job_layout.h"
#include "runtime/storage/safetensors.h"

namespace wukong {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;

constexpr char kWithFiles[] = R"(name: tiny
model:
  layers: 2
  heads: 2
  width: 8
  context: 16
  vocabulary: 256
data:
  train: train.bin
  validation: validation.bin
regions:
  - name: beijing
    workers: 2
  - name: shenzhen
    workers: 1
stop:
  tokens: 1M
)";

// `count` tokens 0, 1, 2, ... below `vocabulary`, as the file has them.
std::string Tokens(int count, int vocabulary) {
  std::string bytes;
  for (int i = 0; i < count; ++i) {
    const int token = i % vocabulary;
    bytes += static_cast<char>(token & 255);
    bytes += static_cast<char>(token >> 8);
  }
  return bytes;
}

class JobCheckTest : public testing::Test {
 protected:
  JobCheckTest()
      : folder_(std::filesystem::path(absl::StrCat(testing::TempDir(), "/job_check_test.", getpid(), ".",
                                                   testing::UnitTest::GetInstance()->current_test_info()->name()))
                    .lexically_normal()
                    .string()),
        path_(folder_ + "/job.yaml") {
    std::filesystem::create_directories(folder_);
    Write("train.bin", Tokens(1000, 256));
    Write("validation.bin", Tokens(100, 256));
  }
  ~JobCheckTest() override { std::filesystem::remove_all(folder_); }

  void Write(const std::string& name, absl::string_view bytes) {
    ASSERT_TRUE(WriteFileAtomic(folder_ + "/" + name, bytes).ok());
  }

  absl::Status Check(const std::string& text, const std::vector<std::string>& overrides = {},
                     CheckOptions options = CheckOptions()) {
    Write("job.yaml", text);
    const absl::StatusOr<JobSource> source = LoadJobFile(path_, overrides);
    EXPECT_TRUE(source.ok()) << source.status();
    return source.ok() ? CheckJob(*source, options) : source.status();
  }

  // The errors, with FILE for the path of the job and DIR for its folder.
  std::vector<std::string> Errors(const std::string& text, const std::vector<std::string>& overrides = {}) {
    const absl::Status status = Check(text, overrides);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return absl::StrSplit(
        absl::StrReplaceAll(absl::StrReplaceAll(status.message(), {{path_, "FILE"}}), {{folder_, "DIR"}}), '\n');
  }

  const std::string folder_;
  const std::string path_;
};

std::string Changed(absl::string_view what, absl::string_view by) {
  EXPECT_THAT(std::string(kWithFiles), HasSubstr(std::string(what)));
  return absl::StrReplaceAll(kWithFiles, {{what, by}});
}

std::string Extended(absl::string_view more) { return absl::StrCat(kWithFiles, more); }

TEST_F(JobCheckTest, AGoodJobPasses) { EXPECT_EQ(Check(kWithFiles).message(), ""); }

TEST_F(JobCheckTest, EveryRuleNamesLineKeyAndWhatIsWrong) {
  const std::pair<std::string, std::string> table[] = {
      {Changed("name: tiny", "name: 'a b'"),
       "FILE:1: name: not a name (expected at most 100 letters, digits, '-', '_' and"},
      {Changed("name: tiny", "name: ../up"), "FILE:1: name: not a name"},
      {Changed("  layers: 2\n", ""),
       "FILE:2: model.layers: is missing (expected layers, heads and width for the built-in"},
      {Changed("  layers: 2\n  heads: 2\n  width: 8\n", "  torchscript: train.bin\n  layers: 2\n"),
       "FILE:4: model.layers: the built-in GPT and torchscript exclude each other (expected no layers beside"},
      {Changed("  layers: 2\n  heads: 2\n  width: 8\n", "  torchscript: m.pt\n"),
       "FILE:3: model.torchscript: no such file (expected a TorchScript module, got DIR/m.pt)"},
      {Changed("  width: 8", "  width: 9"),
       "FILE:5: model.width: not divisible by model.heads (expected a multiple of 2, got 9)"},
      {Extended("optimizer: {learning_rate: 1}\n"),
       "FILE:18: optimizer.learning_rate: AdamW diverges at once (expected at most 0.1, usually 1e-4 to 1e-2, got 1)"},
      {Extended("optimizer: {kind: muon, matrix_learning_rate: 1}\n"),
       "FILE:18: optimizer.matrix_learning_rate: Muon diverges at once (expected at most 0.1, usually 1e-4 to 1e-2, "
       "got "
       "1)"},
      {Extended("optimizer:\n  kind: sgd\n  beta1: 0.9\n"),
       "FILE:20: optimizer.beta1: sgd has no moments of AdamW (expected momentum, or kind: adamw or muon, got 0.9)"},
      {Extended("optimizer:\n  momentum: 0.9\n"),
       "FILE:19: optimizer.momentum: the momentum of adamw is beta1 (expected beta1, or kind: sgd or muon, got 0.9)"},
      {Extended("optimizer:\n  kind: sgd\n  matrix_learning_rate: 0.01\n"),
       "FILE:20: optimizer.matrix_learning_rate: only muon treats matrices apart (expected learning_rate, or kind: "
       "muon, "
       "got 0.01)"},
      {Changed("name: shenzhen", "name: beijing"),
       "FILE:14: regions[1].name: region beijing is named twice (expected different names, but regions[0] has the "
       "same)"},
      {Changed("name: shenzhen", "name: shen_zhen"),
       "FILE:14: regions[1].name: not a region's name (expected at most 63 letters, digits and '-', got "
       "\"shen_zhen\")"},
      {Changed("name: shenzhen\n    workers: 1", "name: shenzhen\n    workers: 3\n    speed: [1, 1]"),
       "FILE:16: regions[1].speed: wrong number of speeds (expected 1 or 3, one per worker, got 2)"},
      {Changed("    workers: 1", "    workers: 1\n    device: gpu"),
       "FILE:16: regions[1].device: unknown device (expected cpu, cuda or cuda:N, got \"gpu\")"},
      {Changed("    workers: 1", "    workers: 1\n    device: 'cuda:-1'"),
       "FILE:16: regions[1].device: unknown device"},
      {Changed("    workers: 1", "    workers: 1\n    device: 'cuda:'"), "FILE:16: regions[1].device: unknown device"},
      {Extended("wan:\n  links:\n    - region: bejing\n"),
       "FILE:20: wan.links[0].region: unknown region; did you mean beijing? (expected beijing or shenzhen, got "
       "\"bejing\")"},
      {Extended("wan:\n  links:\n    - {region: beijing, direction: up}\n    - {region: beijing, direction: up}\n"),
       "FILE:21: wan.links[1].region: the link of beijing is given twice"},
      {Extended("limits: {fragment_bytes: 1025}\n"),
       "FILE:18: limits.fragment_bytes: cuts a value (expected a multiple of 4, got 1025)"},
      {Extended("limits: {heartbeat: 10s}\n"),
       "FILE:18: limits.lease: one late heartbeat would end it (expected at least twice"},
      {Extended("wan:\n  rtt: 10s\nlimits: {lease: 9s}\n"),
       "FILE:19: wan.rtt: beijing is 10s away, and connections without an answer are given up (expected at most 9s)"},
      {Extended("wan:\n  links:\n    - {region: shenzhen, direction: up, rtt: 9s}\nlimits: {lease: 9s}\n"),
       "FILE:21: limits.lease: one late heartbeat of shenzhen would end it, which is 4.5s away (expected at least "
       "twice "
       "its round trip and limits.heartbeat, 10s, got 9s)"},
      {Extended("strategy:\n  root:\n    quorum: 3\n"),
       "FILE:20: strategy.root.quorum: can never be reached (expected at most the job's 2 regions or `all`, got 3)"},
      {Extended("strategy: {preset: ddp, inner_steps: 2}\n"),
       "FILE:18: strategy.inner_steps: gradients are averaged at every step (expected 1 with progress: gradient, got "
       "2)"},
      {Changed("  train: train.bin\n", "  directory: d\n  train: train.bin\n"),
       "FILE:10: data.train: given beside data.directory (expected data.directory, or data.train with"},
      {Changed("  train: train.bin\n", ""),
       "FILE:8: data.train: is missing (expected a token file beside data.validation)"},
      {Changed("  validation: validation.bin\n", ""),
       "FILE:8: data.validation: is missing (expected a token file beside data.train)"},
      {Changed("  train: train.bin\n  validation: validation.bin\n", "  range_steps: 3\n"),
       "FILE:8: data: has no tokens (expected data.directory, or data.train with data.validation)"},
  };
  for (const auto& [text, error] : table) {
    SCOPED_TRACE(text);
    const std::vector<std::string> errors = Errors(text);
    EXPECT_THAT(errors, testing::Contains(StartsWith(error)));
    EXPECT_EQ(errors.size(), 1u) << testing::PrintToString(errors);
  }
}

TEST_F(JobCheckTest, OnlyASyntheticModelNeedsNoData) {
  const std::string without = Changed("data:\n  train: train.bin\n  validation: validation.bin\n", "");
  EXPECT_THAT(Errors(without),
              testing::ElementsAre(StartsWith("FILE:1: data: has no tokens (expected data.directory")));
  EXPECT_EQ(Check(without, {"model={synthetic: counter, size: 100, step: 2s, context: 1, vocabulary: 2}"}).message(),
            "");
}

TEST_F(JobCheckTest, EveryKindOfOptimizerPassesAlsoAsItIsResolved) {
  for (const char* kind : {"adamw", "sgd", "muon"}) {
    const std::string override = absl::StrCat("optimizer.kind=", kind);
    EXPECT_EQ(Check(kWithFiles, {override}).message(), "") << kind;
    Write("job.yaml", kWithFiles);
    const absl::StatusOr<JobSource> source = LoadJobFile(path_, {override});
    ASSERT_TRUE(source.ok()) << source.status();
    EXPECT_EQ(Check(ResolvedYaml(source->job)).message(), "") << kind << ": defaults are no choices of the user";
  }
  EXPECT_EQ(Check(kWithFiles, {"optimizer.kind=sgd", "optimizer.learning_rate=0.5"}).message(), "") << "usual for SGD";
}

TEST_F(JobCheckTest, AnOverrideIsNamedInPlaceOfALine) {
  EXPECT_THAT(Errors(kWithFiles, {"model.width=9"})[0], StartsWith("--set model.width=9: model.width: not divisible"));
  EXPECT_THAT(Errors(kWithFiles, {"strategy={root: {quorum: 9}}"})[0],
              StartsWith("--set strategy={root: {quorum: 9}}: strategy.root.quorum: can never"));
}

TEST_F(JobCheckTest, AllErrorsAreReported) {
  EXPECT_EQ(Errors(kWithFiles, {"model.width=9", "regions.1.name=beijing", "optimizer.learning_rate=5"}).size(), 3u);
}

TEST_F(JobCheckTest, OneContributionFitsIntoTheBytesInFlight) {
  const std::vector<std::string> large = {"model.width=512", "model.layers=4", "limits.in_flight_bytes=13MB"};
  EXPECT_EQ(Check(kWithFiles, large).message(), "") << "as int8";
  std::vector<std::string> larger = large;
  larger.push_back("strategy.root.codec_up=fp32");
  EXPECT_THAT(
      Errors(kWithFiles, larger)[0],
      StartsWith("--set limits.in_flight_bytes=13MB: limits.in_flight_bytes: too small to hold one contribution of "
                 "12749824 parameters (expected at least 50999296 bytes, got 13000000)"));
}

TEST_F(JobCheckTest, OneContributionFitsIntoARecordOfTheLog) {
  const std::string job =
      Changed("  layers: 2\n  heads: 2\n  width: 8\n", "  layers: 24\n  heads: 16\n  width: 1024\n");
  EXPECT_THAT(Errors(job + "limits: {in_flight_bytes: 2GiB}\nstrategy: {preset: local_sgd}\n"),
              testing::ElementsAre(StartsWith(
                  "FILE:19: strategy.root.codec_up: a contribution is one record of the root's log, and has 1210359808 "
                  "bytes with this codec (expected at most 1056964608)")));
  EXPECT_EQ(Check(job + "limits: {in_flight_bytes: 2GiB}\nstrategy: {preset: async}\n").message(), "");
}

TEST_F(JobCheckTest, EveryPartHasAFragment) {
  const std::vector<std::string> few = {"model.width=64", "model.layers=2", "strategy.preset=streaming_diloco"};
  EXPECT_THAT(Errors(kWithFiles, few)[0],
              HasSubstr("strategy.parts: there are fewer fragments than that (expected at most 1, or "
                        "a smaller limits.fragment_bytes than 1048576, got 4)"));
  std::vector<std::string> enough = few;
  enough.push_back("limits.fragment_bytes=64KiB");
  EXPECT_EQ(Check(kWithFiles, enough).message(), "");
}

TEST_F(JobCheckTest, TheBytesOfAContributionAreThoseOfItsFragments) {
  for (const char* codec : {"fp32", "int8", "int4", "topk", "mixed"}) {
    for (const char* fragment : {"1KiB", "100000", "1MiB"}) {
      SCOPED_TRACE(absl::StrCat(codec, " in fragments of ", fragment));
      const absl::StatusOr<JobSource> source = LoadJobFile(
          absl::StrCat(WUKONG_SOURCE_DIR, "/launch/examples/two-regions.yaml"),
          {absl::StrCat("strategy.root.codec_up=", codec), absl::StrCat("limits.fragment_bytes=", fragment)});
      ASSERT_TRUE(source.ok()) << source.status();
      const Job& job = source->job;
      const std::vector<FragmentSpan> fragments = FragmentsOf(job, GptParameters(job.model()));
      const CodecKind kind = job.strategy().root().codec_up();
      EXPECT_EQ(ContributionBytes(job, kind), static_cast<int64_t>(EncodedBytes(kind, fragments)));
      int64_t feed_forward = 0;
      for (const FragmentSpan& span : fragments) {
        feed_forward += span.role == ParameterRole::kFeedForward ? span.size() : 0;
      }
      const int64_t width = job.model().width();
      EXPECT_EQ(feed_forward, kind == CODEC_KIND_MIXED ? 8 * width * width * job.model().layers() : 0);
    }
  }
}

TEST_F(JobCheckTest, ATrialMayEndBeforeItsWarmUp) {
  EXPECT_EQ(Check(Extended("optimizer: {warmup_tokens: 100k}\n"), {"stop.tokens=10k"}).message(), "");
}

TEST_F(JobCheckTest, BadTokenFilesAreNamed) {
  Write("train.bin", Tokens(1000, 256) + "x");
  EXPECT_THAT(Errors(kWithFiles)[0],
              AllOf(StartsWith("FILE:9: data.train: "), HasSubstr("DIR/train.bin"), HasSubstr("odd")));

  Write("train.bin", Tokens(1000, 300));
  EXPECT_THAT(Errors(kWithFiles)[0],
              AllOf(StartsWith("FILE:9: data.train: "), HasSubstr("token 256 at position 256"), HasSubstr("256")));

  Write("train.bin", Tokens(16, 256));
  EXPECT_THAT(Errors(kWithFiles)[0], AllOf(StartsWith("FILE:9: data.train: "), HasSubstr("16")));

  Write("train.bin", "");
  EXPECT_THAT(Errors(kWithFiles)[0], AllOf(StartsWith("FILE:9: data.train: "), HasSubstr("DIR/train.bin")));

  std::string text;
  while (text.size() < 5000) text += "not yet tokens\n";
  Write("train.bin", text);
  EXPECT_THAT(Errors(kWithFiles),
              testing::ElementsAre(AllOf(StartsWith("FILE:9: data.train: "), HasSubstr("looks like text"))));

  Write("train.bin", Tokens(1000, 256));
  std::filesystem::remove(folder_ + "/validation.bin");
  EXPECT_THAT(Errors(kWithFiles)[0], AllOf(StartsWith("FILE:10: data.validation: "), HasSubstr("DIR/validation.bin"),
                                           HasSubstr("No such file")));
}

TEST_F(JobCheckTest, TheTokensThatAreTrainedOnDoNotValidate) {
  const auto refused = testing::ElementsAre(AllOf(StartsWith("FILE:10: data.validation: the same tokens as data.train"),
                                                  HasSubstr("other text than DIR/train.bin has, got DIR/")));
  EXPECT_THAT(Errors(Changed("validation: validation.bin", "validation: train.bin")), refused);
  Write("validation.bin", Tokens(1000, 256));  // A copy.
  EXPECT_THAT(Errors(kWithFiles), refused);
  CheckOptions options;
  options.check_beginning = false;
  EXPECT_EQ(Check(kWithFiles, {}, options).message(), "");
  Write("validation.bin", Tokens(1001, 256));
  EXPECT_EQ(Check(kWithFiles).message(), "");
}

TEST_F(JobCheckTest, DataIsNotReadWhenNotAskedFor) {
  std::filesystem::remove(folder_ + "/train.bin");
  CheckOptions options;
  options.check_data = false;
  EXPECT_TRUE(Check(kWithFiles, {}, options).ok());
}

TEST_F(JobCheckTest, AFileToBeginWithHasTheTensorsOfTheModel) {
  Write("job.yaml", kWithFiles);
  const absl::StatusOr<JobSource> source = LoadJobFile(path_, {});
  ASSERT_TRUE(source.ok()) << source.status();
  std::vector<NamedValues> tensors;
  const std::vector<TensorSpec> specs = GptTensors(source->job.model());
  const std::vector<float> zeros(8192);
  for (const TensorSpec& spec : specs) {
    int64_t size = 1;
    for (const int64_t side : spec.shape) size *= side;
    tensors.push_back({spec.name, spec.shape, absl::MakeConstSpan(zeros).first(static_cast<size_t>(size))});
  }
  ASSERT_TRUE(WriteSafetensors(FileSystem::Real(), folder_ + "/fits.safetensors", tensors, {}).ok());
  EXPECT_EQ(Check(kWithFiles, {absl::StrCat("model.parameters=", folder_, "/fits.safetensors")}).message(), "");
  tensors.pop_back();
  ASSERT_TRUE(WriteSafetensors(FileSystem::Real(), folder_ + "/less.safetensors", tensors, {}).ok());
  const std::string less = absl::StrCat("model.parameters=", folder_, "/less.safetensors");
  EXPECT_THAT(std::string(Check(kWithFiles, {less}).message()),
              AllOf(StartsWith(absl::StrCat("--set ", less, ": model.parameters: ")),
                    HasSubstr(absl::StrCat("does not fit the model: tensor \"", specs.back().name, "\" is missing"))));
  CheckOptions options;
  options.check_data = false;
  EXPECT_TRUE(Check(kWithFiles, {less}, options).ok());
  Write("none.safetensors", "not one of these");
  EXPECT_THAT(
      std::string(Check(kWithFiles, {absl::StrCat("model.parameters=", folder_, "/none.safetensors")}).message()),
      HasSubstr("none.safetensors"));
}

TEST_F(JobCheckTest, WhatARunBeganWithIsNotNeededAfterIt) {
  const std::vector<std::string> set = {"model.parameters=gone.safetensors"};
  EXPECT_THAT(std::string(Check(kWithFiles, set).message()), HasSubstr("model.parameters: no such file"));
  CheckOptions options;
  options.check_beginning = false;
  EXPECT_EQ(Check(kWithFiles, set, options).message(), "");
}

TEST_F(JobCheckTest, ADirectoryIsFoundThroughItsManifest) {
  const std::string job = Changed("  train: train.bin\n  validation: validation.bin\n", "  directory: .\n");
  EXPECT_THAT(Errors(job)[0], AllOf(StartsWith("FILE:9: data.directory: "), HasSubstr("DIR")));

  DataManifest manifest;
  manifest.tokenizer = "byte";
  manifest.vocabulary = 256;
  manifest.train = {"train.bin", 1000, std::string(64, '0')};
  manifest.validation = {"validation.bin", 100, std::string(64, '0')};
  ASSERT_TRUE(WriteManifest(folder_, manifest).ok());
  EXPECT_EQ(Check(job).message(), "");
  EXPECT_THAT(
      Errors(job, {"model.vocabulary=100"})[0],
      AllOf(StartsWith("--set model.vocabulary=100: model.vocabulary: smaller than the data's (expected at least "
                       "256, as DIR/manifest.json says of the byte tokenizer, got 100)")));

  Write("train.bin", Tokens(999, 256));
  EXPECT_THAT(Errors(job)[0], AllOf(StartsWith("FILE:9: data.directory: "), HasSubstr("DIR/train.bin")));
}

TEST_F(JobCheckTest, ADeviceThatIsNotThereIsNotTheFilesFault) {
  CheckOptions options;
  EXPECT_TRUE(Check(kWithFiles, {"regions.0.device=cuda:999"}, options).ok()) << "it may be on another machine";
  options.check_device = true;
  EXPECT_TRUE(Check(kWithFiles, {}, options).ok());
  const absl::Status status = Check(kWithFiles, {"regions.0.device=cuda:999"}, options);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(
      std::string(status.message()),
      StartsWith("--set regions.0.device=cuda:999: regions[0].device: not on this machine (expected one of its "));
}

TEST(JobWarningsTest, AWarmUpThatDoesNotEndIsAllowedAlsoInTheResolvedJob) {
  const std::string path = absl::StrCat(WUKONG_SOURCE_DIR, "/launch/examples/two-regions.yaml");
  for (const char* tokens : {"stop.tokens=100k", "stop.tokens=10M"}) {
    const absl::StatusOr<JobSource> source = LoadJobFile(path, {tokens, "optimizer.warmup_tokens=200k"});
    ASSERT_TRUE(source.ok()) << source.status();
    CheckOptions options;
    options.check_data = false;
    EXPECT_EQ(CheckJob(*source, options).message(), "");
    const bool ends = source->job.stop().tokens() > 200'000;
    EXPECT_EQ(JobWarnings(source->job).size(), ends ? 0u : 1u);
    if (!ends) {
      EXPECT_THAT(JobWarnings(source->job)[0],
                  StartsWith("optimizer.warmup_tokens: warm-up does not end (expected fewer than stop.tokens, 100"));
    }
  }
}

TEST(ExamplesTest, AllPass) {
  CheckOptions options;
  options.check_data = false;
  for (const auto& entry : std::filesystem::directory_iterator(absl::StrCat(WUKONG_SOURCE_DIR, "/launch/examples"))) {
    if (!entry.is_regular_file()) continue;
    const absl::StatusOr<JobSource> source = LoadJobFile(entry.path(), {});
    ASSERT_TRUE(source.ok()) << source.status();
    EXPECT_EQ(CheckJob(*source, options).message(), "");
  }
}

TEST(ExamplesTest, TheMainOneHasOneToFourMillionParametersAndRunsUnderEveryPreset) {
  CheckOptions options;
  options.check_data = false;
  for (const char* preset : {"async", "diloco", "ddp"}) {
    const absl::StatusOr<JobSource> source =
        LoadJobFile(absl::StrCat(WUKONG_SOURCE_DIR, "/launch/examples/three-regions.yaml"),
                    {absl::StrCat("strategy.preset=", preset), "wan.rtt=0ms"});
    ASSERT_TRUE(source.ok()) << source.status();
    EXPECT_EQ(CheckJob(*source, options).message(), "");
    const int64_t parameters = GptParameters(source->job.model());
    EXPECT_GE(parameters, 1'000'000);
    EXPECT_LE(parameters, 4'000'000);
    EXPECT_EQ(ContributionBytes(source->job, CODEC_KIND_FP32), 4 * parameters);
  }
}

}  // namespace
}  // namespace wukong
