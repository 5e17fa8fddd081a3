#include "launch/job_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "google/protobuf/util/message_differencer.h"
#include "launch/job_units.h"
#include "runtime/base/file.h"

namespace wukong {
namespace {

using ::google::protobuf::util::MessageDifferencer;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr char kJob[] = R"(name: tiny
model:
  layers: 2
  heads: 2
  width: 8
  context: 16
  vocabulary: 256
data:
  directory: tokens
regions:
  - name: beijing
    workers: 2
    speed: [1, 0.5]
  - name: shenzhen
    workers: 1
stop:
  tokens: 1M
)";

class JobFileTest : public testing::Test {
 protected:
  JobFileTest()
      : folder_(std::filesystem::path(absl::StrCat(testing::TempDir(), "/job_file_test.", getpid(), ".",
                                                   testing::UnitTest::GetInstance()->current_test_info()->name()))
                    .lexically_normal()
                    .string()),
        path_(folder_ + "/job.yaml") {
    std::filesystem::create_directories(folder_);
  }
  ~JobFileTest() override { std::filesystem::remove_all(folder_); }

  absl::StatusOr<JobSource> Load(const std::string& text, const std::vector<std::string>& overrides = {}) {
    EXPECT_TRUE(WriteFileAtomic(path_, text).ok());
    return LoadJobFile(path_, overrides);
  }

  // The job, which must load.
  Job Good(const std::string& text, const std::vector<std::string>& overrides = {}) {
    const absl::StatusOr<JobSource> source = Load(text, overrides);
    EXPECT_TRUE(source.ok()) << source.status();
    return source.ok() ? source->job : Job();
  }

  // The errors, which there must be, with FILE for the path of the file.
  std::vector<std::string> Bad(const std::string& text, const std::vector<std::string>& overrides = {}) {
    const absl::StatusOr<JobSource> source = Load(text, overrides);
    EXPECT_EQ(source.status().code(), absl::StatusCode::kInvalidArgument);
    return absl::StrSplit(absl::StrReplaceAll(source.status().message(), {{path_, "FILE"}}), '\n');
  }

  const std::string folder_;
  const std::string path_;
};

// kJob with one piece replaced, which must be there.
std::string With(absl::string_view what, absl::string_view by) {
  EXPECT_TRUE(absl::StrContains(kJob, what)) << what;
  return absl::StrReplaceAll(kJob, {{what, by}});
}

std::string Plus(absl::string_view more) { return absl::StrCat(kJob, more); }

TEST_F(JobFileTest, FillsInDefaultsAndThePreset) {
  const Job job = Good(kJob);
  EXPECT_EQ(job.name(), "tiny");
  EXPECT_EQ(job.seed(), 1u);
  EXPECT_EQ(job.optimizer().learning_rate(), 1e-3);
  EXPECT_EQ(job.optimizer().decay(), DECAY_COSINE);
  EXPECT_EQ(job.strategy().preset(), PRESET_ASYNC);
  EXPECT_EQ(job.strategy().inner_steps(), 16);
  EXPECT_EQ(job.strategy().root().momentum(), 0.5);
  EXPECT_EQ(job.stop().tokens(), 1'000'000);
  EXPECT_EQ(job.report().validation_tokens(), 64'000);
  EXPECT_EQ(job.limits().fragment_bytes(), 1 << 20);
  EXPECT_EQ(job.limits().heartbeat_ns(), 500'000'000);
  ASSERT_EQ(job.regions_size(), 2);
  EXPECT_EQ(job.regions(0).speed(1), 0.5);
  EXPECT_EQ(job.regions(1).speed_size(), 0);
  EXPECT_EQ(job.regions(1).device(), "cpu");
  EXPECT_EQ(job.regions(1).precision(), PRECISION_UNSPECIFIED) << "optimizer.precision is the region's";
  EXPECT_EQ(job.wan().bandwidth_bps(), 0);
}

TEST_F(JobFileTest, APathThatIsNotUtf8IsRefused) {
  EXPECT_THAT(
      Bad(kJob, {"data.directory=/tmp/Gie\xdf"}),
      testing::ElementsAre("--set data.directory=/tmp/Gie\xdf: data.directory: is not UTF-8, which the run's own "
                           "files are written in (expected another name, got \"/tmp/Gie\\xdf\")"));
  Good(kJob, {"data.directory=/tmp/Gie\xc3\x9f"});
}

TEST_F(JobFileTest, ReadsEveryUnit) {
  const Job job = Good(Plus(R"(
seed: 18446744073709551615
wan: {rtt: 1.5ms, jitter: 250us, bandwidth: 1.5Gbit, loss: 0.1%, links: [{region: beijing, bandwidth: unlimited}]}
optimizer: {learning_rate: 3e-3, warmup_tokens: 1.5k, final_learning_rate_fraction: 0.25}
limits: {fragment_bytes: 64KiB, in_flight_bytes: 5MB, lease: 1min, start: 1h, rpc: 2s}
strategy: {root: {quorum: all, momentum_delay: 4}, region: {send_every: all}}
report: {validation_tokens: 12345}
)"));
  EXPECT_EQ(job.seed(), ~uint64_t{0});
  EXPECT_EQ(job.wan().rtt_ns(), 1'500'000);
  EXPECT_EQ(job.wan().jitter_ns(), 250'000);
  EXPECT_EQ(job.wan().bandwidth_bps(), 1'500'000'000);
  EXPECT_EQ(job.wan().loss(), 0.001);
  EXPECT_TRUE(job.wan().links(0).has_bandwidth_bps());
  EXPECT_EQ(job.wan().links(0).bandwidth_bps(), 0);
  EXPECT_FALSE(job.wan().links(0).has_rtt_ns());
  EXPECT_EQ(job.optimizer().learning_rate(), 0.003);
  EXPECT_EQ(job.optimizer().warmup_tokens(), 1'500);
  EXPECT_EQ(job.optimizer().final_learning_rate_fraction(), 0.25);
  EXPECT_EQ(job.limits().fragment_bytes(), 65'536);
  EXPECT_EQ(job.limits().in_flight_bytes(), 5'000'000);
  EXPECT_EQ(job.limits().lease_ns(), 60'000'000'000);
  EXPECT_EQ(job.limits().start_ns(), 3'600'000'000'000);
  EXPECT_EQ(job.strategy().root().quorum(), 0);
  EXPECT_EQ(job.strategy().root().momentum_delay(), 4);
  EXPECT_EQ(job.strategy().region().send_every(), 0);
  EXPECT_EQ(job.report().validation_tokens(), 12'345);
}

TEST_F(JobFileTest, ASingleSpeedIsAListOfOne) {
  const Job job = Good(With("[1, 0.5]", "0.25"));
  ASSERT_EQ(job.regions(0).speed_size(), 1);
  EXPECT_EQ(job.regions(0).speed(0), 0.25);
}

TEST_F(JobFileTest, ASectionMayBeEmptyAndAnchorsAreFollowed) {
  const Job job = Good(Plus("wan:\noptimizer: {beta1: &b 0.8, beta2: *b}\n"));
  EXPECT_TRUE(job.has_wan());
  EXPECT_EQ(job.optimizer().beta2(), 0.8);
}

TEST_F(JobFileTest, KnowsTheLineOfEveryKey) {
  const absl::StatusOr<JobSource> source = Load(kJob, {"wan.rtt=5ms"});
  ASSERT_TRUE(source.ok());
  EXPECT_EQ(source->lines.at("model.width"), 5);
  EXPECT_EQ(source->lines.at("regions[0].speed[1]"), 13);
  EXPECT_EQ(source->lines.at("regions[1].name"), 14);
  EXPECT_EQ(source->lines.at("stop.tokens"), 17);
  EXPECT_EQ(source->Where("model.width"), path_ + ":5: model.width: ");
  EXPECT_EQ(source->Where("regions[1].device"), path_ + ":14: regions[1].device: ") << "the region that it would be in";
  EXPECT_EQ(source->Where("strategy.root.mix"), path_ + ":1: strategy.root.mix: ");
  EXPECT_EQ(source->Where("wan.rtt"), "--set wan.rtt=5ms: wan.rtt: ");
}

struct BadFile {
  std::string text;
  std::string first_error;  // All of it, or its beginning.
};

TEST_F(JobFileTest, EveryErrorNamesLineKeyAndWhatIsWrong) {
  const BadFile table[] = {
      {Plus("nam: x\n"), "FILE:18: nam: unknown key; did you mean name? (expected one of name, seed, model,"},
      {With("  width: 8", "  widht: 8"),
       "FILE:5: model.widht: unknown key; did you mean width? (expected one of layers,"},
      {Plus("rtt: 5ms\n"), "FILE:18: rtt: unknown key; did you mean wan.rtt? (expected"},
      {Plus("optimizer: {warmup: 5}\n"), "FILE:18: optimizer.warmup: unknown key; did you mean warmup_tokens? ("},
      {Plus("zebra: 5\n"), "FILE:18: zebra: unknown key (expected one of name, seed"},
      {With("    workers: 1", "    worker: 1\n    workers: 1"),
       "FILE:15: regions[1].worker: unknown key; did you mean workers? (expected"},
      {Plus("name: x\n"), "FILE:18: name: is given twice (the first is on line 1)"},
      {With("name: tiny\n", ""), "FILE:1: name: is missing (expected text: Name of the job"},
      {With("  context: 16\n", ""), "FILE:2: model.context: is missing (expected whole number: Tokens per sample.)"},
      {With("  - name: shenzhen\n    workers: 1", "  - workers: 1"), "FILE:14: regions[1].name: is missing ("},
      {With("data:\n  directory: tokens", "data: tokens"),
       "FILE:8: data: wrong type (expected a map with keys such as directory, train, validation, range_steps, got "
       "\"tokens\")"},
      {With("  layers: 2", "  layers: [2]"), "FILE:3: model.layers: wrong type (expected whole number, got a list)"},
      {With("  layers: 2", "  layers: {a: 2}"), "FILE:3: model.layers: wrong type (expected whole number, got a map)"},
      {With("  layers: 2", "  layers:"), "FILE:3: model.layers: has no value (expected whole number, got nothing)"},
      {With("  layers: 2", "  layers: ''"),
       "FILE:3: model.layers: not a whole number (expected a whole number such as 8, got \"\")"},
      {With("  layers: 2", "  layers: two"),
       "FILE:3: model.layers: not a whole number (expected a whole number such as 8, got \"two\")"},
      {With("  layers: 2", "  layers: 2.5"), "FILE:3: model.layers: not a whole number"},
      {With("  layers: 2", "  layers: 2k"), "FILE:3: model.layers: not a whole number"},
      {With("  layers: 2", "  layers: 0"),
       "FILE:3: model.layers: too small (expected at least 1, at most 1000, got \"0\")"},
      {With("  layers: 2", "  layers: 99999999999"),
       "FILE:3: model.layers: too large (expected at least 1, at most 1000"},
      {With("    workers: 2", "    workers: 0"), "FILE:12: regions[0].workers: too small (expected at least 1,"},
      {With("[1, 0.5]", "[1, 0]"),
       "FILE:13: regions[0].speed[1]: too small (expected more than 0, at most 1, got \"0\")"},
      {With("[1, 0.5]", "[1, [2]]"), "FILE:13: regions[0].speed[1]: wrong type (expected number"},
      {With("[1, 0.5]", "{a: 1}"),
       "FILE:13: regions[0].speed: wrong type (expected a number, or a list of them, got a map)"},
      {With("  tokens: 1M", "  tokens: 1.0000001k"), "FILE:17: stop.tokens: not a whole number that fits"},
      {With("  tokens: 1M", "  tokens: 99999999999G"), "FILE:17: stop.tokens: not a whole number that fits"},
      {With("  tokens: 1M", "  tokens: 9223372036854775807"),
       "FILE:17: stop.tokens: too large (expected at least 1, at most 1000000G, got \"9223372036854775807\")"},
      {With("  tokens: 1M", "  tokens: 1T"),
       "FILE:17: stop.tokens: unknown unit \"T\" (expected k, M or G, got \"1T\")"},
      {With("  tokens: 1M", "  tokens: all"), "FILE:17: stop.tokens: not a count (expected a count such as 4096"},
      {Plus("seed: -1\n"), "FILE:18: seed: not a whole number (expected 0 to 18446744073709551615, got \"-1\")"},
      {Plus("wan: {rtt: 150}\n"),
       "FILE:18: wan.rtt: a unit is missing (expected a duration such as 150ms, 2s, 5min or 1h, got \"150\")"},
      {Plus("wan:\n  rtt: 5Mbit\n"), "FILE:19: wan.rtt: unknown unit \"Mbit\" (expected ns, us, ms, s, min or h, got"},
      {Plus("wan:\n  rtt: -5ms\n"), "FILE:19: wan.rtt: too small (expected at least 0s, at most 1min, got \"-5ms\")"},
      {Plus("wan:\n  rtt: 2min\n"), "FILE:19: wan.rtt: too large (expected at least 0s, at most 1min, got \"2min\")"},
      {Plus("wan: {bandwidth: 100MB}\n"),
       "FILE:18: wan.bandwidth: unknown unit \"MB\" (expected bit, kbit, Mbit, Gbit or Tbit, got \"100MB\")"},
      {Plus("wan: {bandwidth: 0Mbit}\n"), "FILE:18: wan.bandwidth: a link without bandwidth carries nothing (expected"},
      {Plus("wan: {loss: 60%}\n"), "FILE:18: wan.loss: too large (expected at least 0, at most 0.5, got \"60%\")"},
      {Plus("wan: {loss: 5ms}\n"), "FILE:18: wan.loss: not a fraction (expected a fraction such as 0.1% or 0.001, got"},
      {Plus("optimizer: {clip_norm: nan}\n"), "FILE:18: optimizer.clip_norm: not a number (expected a number such as"},
      {Plus("optimizer: {epsilon: 0}\n"), "FILE:18: optimizer.epsilon: too small (expected more than 0, at most 1,"},
      {Plus("optimizer: {precision: bf61}\n"),
       "FILE:18: optimizer.precision: unknown value; did you mean bf16? (expected fp32 or bf16, got \"bf61\")"},
      {Plus("strategy: {preset: PRESET_DDP}\n"),
       "FILE:18: strategy.preset: unknown value (expected async, diloco, ddp,"},
      {Plus("strategy: {preset: unspecified}\n"), "FILE:18: strategy.preset: unknown value (expected async, diloco,"},
      {Plus("strategy: {root: {quorum: 0}}\n"),
       "FILE:18: strategy.root.quorum: too small (expected at least 1, or all, got \"0\")"},
      {Plus("limits: {fragment_bytes: 4Mib}\n"),
       "FILE:18: limits.fragment_bytes: unknown unit \"Mib\" (expected B, kB,"},
      {Plus("limits: {fragment_bytes: 8MiB}\n"),
       "FILE:18: limits.fragment_bytes: too large (expected at least 1KiB, at most 4MB, got \"8MiB\")"},
      {With("  - name: beijing\n    workers: 2\n    speed: [1, 0.5]\n  - name: shenzhen\n    workers: 1\n", "  3\n"),
       "FILE:10: regions: wrong type (expected a list of maps, got \"3\")"},
      {With("  - name: beijing\n    workers: 2\n    speed: [1, 0.5]\n  - name: shenzhen\n    workers: 1\n", "  []\n"),
       "FILE:10: regions: is empty (expected a list of maps: One entry per data center.)"},
      {"", "FILE:1: the file is empty (expected a job with name, model, data, regions and stop)"},
      {"# nothing\n", "FILE:1: the file is empty"},
      {"- a\n- b\n", "FILE:1: wrong type (expected a map with keys such as name, seed, model, data, got a list)"},
      {"just text\n",
       "FILE:1: wrong type (expected a map with keys such as name, seed, model, data, got \"just text\")"},
      {"name: x\nmodel: [1, 2\nstop: 3\n", "FILE:3: not valid YAML: "},
      {"name: x\n  model: y\n", "FILE:2: not valid YAML: "},
      {"name: *who\n", "FILE:1: not valid YAML: "},
      {"name: x\nmodel:\n\tlayers: 2\n", "FILE:3: a tab is used as indentation (expected spaces only)"},
      {"name: x\n---\nname: y\n", "FILE:3: a second document begins (expected one job per file)"},
      {"? [a]\n: b\n", "FILE:1: a key must be a plain name"},
      {"name: &x [*x]\n", "FILE:1: an alias stands inside the value that it names"},
      {absl::StrCat("name: ", std::string(200, '[')),
       "FILE:1: values are nested too deep (expected at most 100 levels)"},
  };
  for (const BadFile& row : table) {
    SCOPED_TRACE(row.text);
    EXPECT_THAT(Bad(row.text)[0], StartsWith(row.first_error));
  }
}

TEST_F(JobFileTest, AllErrorsAreReportedInTheOrderOfTheFile) {
  const std::vector<std::string> errors =
      Bad(absl::StrReplaceAll(kJob, {{"layers: 2", "layers: x"}, {"workers: 1", "workers: y"}, {"1M", "z"}}) +
          "colour: red\n");
  ASSERT_EQ(errors.size(), 4u);
  EXPECT_THAT(errors[0], StartsWith("FILE:3: model.layers: "));
  EXPECT_THAT(errors[1], StartsWith("FILE:15: regions[1].workers: "));
  EXPECT_THAT(errors[2], StartsWith("FILE:17: stop.tokens: "));
  EXPECT_THAT(errors[3], StartsWith("FILE:18: colour: "));
}

TEST_F(JobFileTest, ALongListOfErrorsIsCut) {
  std::string text = kJob;
  for (int i = 0; i < 30; ++i) {
    absl::StrAppend(&text, "zebra", i, ": 1\n");
  }
  const std::vector<std::string> errors = Bad(text);
  ASSERT_EQ(errors.size(), 21u);
  EXPECT_EQ(errors[20], "... and 10 more");
}

TEST_F(JobFileTest, ABombOfAliasesIsRefused) {
  std::string text = "a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n";
  for (int i = 1; i < 9; ++i) {
    const std::string last = absl::StrCat("*a", i - 1);
    absl::StrAppend(&text, "a", i, ": &a", i, " [", last, ", ", last, ", ", last, ", ", last, ", ", last, ", ", last,
                    "]\n");
  }
  EXPECT_THAT(Bad(text)[0], HasSubstr("the file has too many values (expected at most 100000)"));
}

TEST_F(JobFileTest, AFileThatCannotBeReadNamesItself) {
  const absl::Status missing = LoadJobFile(folder_ + "/none.yaml", {}).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(missing.message()), AllOf(HasSubstr("none.yaml"), HasSubstr("No such file")));
  const absl::Status folder = LoadJobFile(folder_, {}).status();
  EXPECT_EQ(folder.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(folder.message()), HasSubstr("is a directory (expected a file)"));
  EXPECT_THAT(Bad(std::string((1 << 20) + 1, '#'))[0], HasSubstr("too large (expected at most 1048576 bytes"));
}

TEST_F(JobFileTest, OverridesWinAndTheLastOneMost) {
  const Job job =
      Good(Plus("wan: {rtt: 10ms}\n"), {"wan.rtt=20ms", "wan.rtt=30ms", "seed=7", "strategy.preset=ddp",
                                        "wan.loss=0.1%", "wan.bandwidth=100Mbit", "stop.tokens=2M", "name=other"});
  EXPECT_EQ(job.wan().rtt_ns(), 30'000'000);
  EXPECT_EQ(job.wan().loss(), 0.001);
  EXPECT_EQ(job.wan().bandwidth_bps(), 100'000'000);
  EXPECT_EQ(job.seed(), 7u);
  EXPECT_EQ(job.strategy().preset(), PRESET_DDP);
  EXPECT_EQ(job.strategy().inner_steps(), 1) << "the preset is resolved after the overrides";
  EXPECT_EQ(job.stop().tokens(), 2'000'000);
  EXPECT_EQ(job.name(), "other");
}

TEST_F(JobFileTest, OverridesReachIntoListsByNumberAndByName) {
  const Job job = Good(Plus("wan: {links: [{region: beijing, rtt: 1ms}]}\n"),
                       {"regions.0.workers=3", "regions[1].workers=4", "regions.shenzhen.device=cuda",
                        "regions[beijing].threads=2", "regions.beijing.speed[1]=0.25", "wan.links.beijing.rtt=9ms"});
  EXPECT_EQ(job.regions(0).workers(), 3);
  EXPECT_EQ(job.regions(1).workers(), 4);
  EXPECT_EQ(job.regions(1).device(), "cuda");
  EXPECT_EQ(job.regions(0).threads(), 2);
  EXPECT_EQ(job.regions(0).speed(0), 1.0);
  EXPECT_EQ(job.regions(0).speed(1), 0.25);
  EXPECT_EQ(job.wan().links(0).rtt_ns(), 9'000'000);
}

TEST_F(JobFileTest, AnOverrideOfAListOrAMapReplacesIt) {
  const Job job = Good(Plus("wan: {rtt: 10ms, jitter: 1ms}\n"),
                       {"regions=[{name: one, workers: 1}]", "wan={rtt: 5ms}", "regions.0.speed=0.5"});
  ASSERT_EQ(job.regions_size(), 1);
  EXPECT_EQ(job.regions(0).name(), "one");
  EXPECT_EQ(job.regions(0).speed(0), 0.5);
  EXPECT_EQ(job.wan().rtt_ns(), 5'000'000);
  EXPECT_EQ(job.wan().jitter_ns(), 0) << "the default, not what the file said";
}

TEST_F(JobFileTest, AnOverrideRepairsTheFile) {
  EXPECT_EQ(Good(With("layers: 2", "layers: x"), {"model.layers=3"}).model().layers(), 3);
}

TEST_F(JobFileTest, EveryWrongOverrideNamesItself) {
  const std::pair<const char*, const char*> table[] = {
      {"wan.rtt=5", "wan.rtt: a unit is missing (expected a duration such as"},
      {"wan.rrt=5ms", "wan.rrt: unknown key; did you mean rtt? (expected one of rtt, jitter, bandwidth, loss, links)"},
      {"wan.rtt", "wan.rtt: has no value (expected key.path=value, such as wan.rtt=150ms)"},
      {"wan.rtt=", "wan.rtt: has no value (expected duration, got nothing)"},
      {"wan.rtt=[1, 2", "wan.rtt: not valid YAML: "},
      {"wan.rtt.x=5ms", "wan.rtt.x: a single value has no key x"},
      {"wan=5", "wan: wrong type (expected a map with keys such as rtt, jitter, bandwidth, loss, got \"5\")"},
      {"wan={rtt: 5}", "wan.rtt: a unit is missing"},
      {"=5", ": not a key path (expected key.path=value"},
      {"wan..rtt=5ms", "wan..rtt: not a key path"},
      {"regions[0=5", "regions[0: not a key path"},
      {"regions.2.workers=1", "regions.2.workers: regions has no element 2 (expected 0 to 1, or beijing or shenzhen)"},
      {"regions.bejing.workers=1", "regions.bejing.workers: regions has no element bejing; did you mean beijing? ("},
      {"regions.0.workers=0", "regions[0].workers: too small (expected at least 1, at most 100000, got \"0\")"},
      {"regions=[]", "regions: is empty (expected a list of maps"},
      {"wan.links.0.rtt=1ms", "wan.links.0.rtt: links has no element 0 (it is empty)"},
      {"strategy=diloco", "strategy: wrong type; did you mean strategy.preset? (expected a map with keys such as"},
      {"optimizer.lr=1", "optimizer.lr: unknown key; did you mean learning_rate? (expected one of"},
      {"optimizer.wd=1", "optimizer.wd: unknown key; did you mean weight_decay? (expected one of"},
      {"strategy.preset=dpp", "strategy.preset: unknown value; did you mean ddp? (expected async, diloco, ddp,"},
  };
  for (const auto& [text, error] : table) {
    SCOPED_TRACE(text);
    EXPECT_THAT(Bad(kJob, {text})[0], StartsWith(absl::StrCat("--set ", text, ": ", error)));
  }
}

TEST_F(JobFileTest, RelativePathsStartAtTheFileAndThoseOfOverridesAtTheCurrentDirectory) {
  EXPECT_EQ(Good(kJob).data().directory(), folder_ + "/tokens");
  EXPECT_EQ(Good(With("directory: tokens", "directory: ../x/./y/")).data().directory(),
            std::filesystem::path(folder_).parent_path().string() + "/x/y");
  EXPECT_EQ(Good(With("directory: tokens", "directory: /abs/z")).data().directory(), "/abs/z");
  EXPECT_EQ(Good(kJob, {"data.directory=some/where"}).data().directory(),
            (std::filesystem::current_path() / "some/where").string());
  const Job job = Good(With("directory: tokens", "{train: a.bin, validation: b.bin}"), {"model.torchscript=m.pt"});
  EXPECT_EQ(job.data().train(), folder_ + "/a.bin");
  EXPECT_EQ(job.data().validation(), folder_ + "/b.bin");
  EXPECT_EQ(job.model().torchscript(), (std::filesystem::current_path() / "m.pt").string());
}

TEST_F(JobFileTest, WhatIsWrittenBackReadsAsTheSameJob) {
  const std::string jobs[] = {
      kJob,
      Plus("strategy: {preset: ddp, root: {codec_up: bf16}}\n"),
      Plus("strategy: {preset: diloco, region: {mix: 0.3333333333333333}}\nseed: 18446744073709551615\n"),
      Plus(R"(wan: {rtt: 1500001ns, jitter: 90s, bandwidth: 1234567bit, loss: 0.3%, links: [
  {region: beijing, direction: up, loss: 0}, {region: shenzhen, bandwidth: unlimited, rtt: 0ms}]}
optimizer: {clip_norm: 0, weight_decay: 0, warmup_tokens: 1001, learning_rate: 0.0012345678901234567, precision: bf16}
limits: {fragment_bytes: 4100, in_flight_bytes: 5000001}
)"),
      absl::StrReplaceAll(kJob, {{"directory: tokens", "{train: 'a b #\"c\".bin', validation: 'null'}"},
                                 {"layers: 2", "torchscript: 'm: ü.pt'"},
                                 {"  heads: 2\n  width: 8\n", ""}}),
  };
  for (std::string text : jobs) {
    text = absl::StrReplaceAll(text, {{"jitter: 90s", "jitter: 59.5s"}});
    SCOPED_TRACE(text);
    const Job job = Good(text);
    const std::string resolved = ResolvedYaml(job);
    SCOPED_TRACE(resolved);
    const Job again = Good(resolved);
    std::string difference;
    MessageDifferencer differencer;
    differencer.ReportDifferencesToString(&difference);
    EXPECT_TRUE(differencer.Compare(job, again)) << difference;
    EXPECT_EQ(ResolvedYaml(again), resolved);
  }
}

TEST_F(JobFileTest, TheResolvedFileIsForPeople) {
  const std::string text = ResolvedYaml(Good(Plus("wan: {rtt: 150ms, bandwidth: 100Mbit}\n")));
  for (const char* line : {"  rtt: 150ms\n", "  bandwidth: 100Mbit\n", "  tokens: 1M\n", "  fragment_bytes: 1MiB\n",
                           "    momentum_delay: all\n", "    speed: [1, 0.5]\n", "  - name: beijing\n",
                           "  heartbeat: 500ms\n", "  learning_rate: 0.001\n"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
  EXPECT_THAT(text, Not(HasSubstr("torchscript"))) << "what is not set is not written";
}

TEST(ExamplesTest, AllLoadAndAreWhatTheirNamesSay) {
  const std::string folder = absl::StrCat(WUKONG_SOURCE_DIR, "/launch/examples/");
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    const absl::StatusOr<JobSource> source = LoadJobFile(entry.path(), {});
    ASSERT_TRUE(source.ok()) << source.status();
    EXPECT_EQ(source->job.name(), entry.path().stem());
    EXPECT_EQ(source->job.data().directory(),
              std::filesystem::path(absl::StrCat(WUKONG_SOURCE_DIR, "/data/gcide")).lexically_normal().string());
    ++files;
  }
  EXPECT_GE(files, 3);
  const Job job = LoadJobFile(folder + "three-regions.yaml", {})->job;
  EXPECT_EQ(job.regions_size(), 3);
  EXPECT_EQ(job.wan().rtt_ns(), 150'000'000);
  EXPECT_EQ(job.wan().jitter_ns(), 10'000'000);
  EXPECT_EQ(job.wan().bandwidth_bps(), 100'000'000);
  EXPECT_EQ(job.stop().tokens(), 3'000'000);
}

TEST(KeyReferenceTest, HasARowForEveryKeyWithItsRule) {
  const std::string table = KeyReference();
  for (const char* row : {"| `name` | text | required |  | Name of the job",
                          "| `wan.rtt` | duration | `0ms` | at least 0s, at most 1min |",
                          "| `regions[].speed` | number, or a list of them |  | more than 0, at most 1 |",
                          "| `strategy.preset` | `async`, `diloco`, `ddp`, `local_sgd`,",
                          "| `strategy.root.quorum` | count or `all` | by preset | at least 1, or all |",
                          "| `wan.links[].bandwidth` | bandwidth or `unlimited` |  |  |",
                          "| `limits.fragment_bytes` | size | `1MiB` | at least 1KiB, at most 4MB |"}) {
    EXPECT_THAT(table, HasSubstr(row));
  }
}

TEST(KeyReferenceTest, TheDocumentationHasTheTableAsItIs) {
  const absl::StatusOr<std::string> docs = ReadFile(absl::StrCat(WUKONG_SOURCE_DIR, "/docs/job-file.md"));
  ASSERT_TRUE(docs.ok()) << docs.status();
  EXPECT_THAT(*docs, HasSubstr(KeyReference())) << "paste the output of `wukong validate --keys` into docs/job-file.md";
}

TEST(NearestTest, FindsSlipsAndParts) {
  const std::vector<std::string> words = {"learning_rate", "micro_batch", "warmup_tokens", "rtt"};
  EXPECT_EQ(Nearest("learing_rate", words), "learning_rate");
  EXPECT_EQ(Nearest("trt", words), "rtt");
  EXPECT_EQ(Nearest("batch", words), "micro_batch");
  EXPECT_EQ(Nearest("zebra", words), "");
  EXPECT_EQ(Nearest(std::string(100'000, 'a'), words), "") << "and does not take for ever";
}

}  // namespace
}  // namespace wukong
