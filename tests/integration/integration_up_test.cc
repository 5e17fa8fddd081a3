// `wukong up` from the job file to the report, for every preset.
#include <filesystem>
#include <map>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/integration/wukong_process.h"

namespace wukong::integration {
namespace {

struct Case {
  std::string name;
  TinyJob job;
  std::vector<std::string> set;
  bool below_unigram = false;  // Enough training to beat the unigram model; otherwise the loss just falls.
};

std::ostream& operator<<(std::ostream& out, const Case& the_case) { return out << the_case.name; }

TinyJob Preset(const std::string& preset, int64_t tokens) {
  TinyJob job;
  job.preset = preset;
  job.tokens = tokens;
  // Steps of 10 ms and not 2, or the round trip would be four rounds and more: momentum may then do harm.
  job.speed = 0.2;
  return job;
}

class UpTest : public ::testing::TestWithParam<Case> {};

// Every number that the report has to hold, with what it has to be.
void ExpectWholeReport(const Json& report, const TinyJob& job, bool computed_is_committed) {
  for (const char* key : {"tokens_committed", "tokens_computed", "wall_seconds", "validation_loss_initial",
                          "validation_loss_final", "validation_loss_unigram", "compute_share", "tokens_per_second"}) {
    ASSERT_TRUE(report.contains(key) && report[key].is_number()) << key;
    EXPECT_GT(report[key].get<double>(), 0) << key;
  }
  if (computed_is_committed) {
    EXPECT_EQ(report["tokens_computed"], report["tokens_committed"]);
  }
  EXPECT_NEAR(report["tokens_per_second"].get<double>() * report["wall_seconds"].get<double>(),
              report["tokens_committed"].get<double>(), 1);
  EXPECT_EQ(report["parameters_sha256"].get<std::string>().find_first_not_of("0123456789abcdef"), std::string::npos);
  EXPECT_EQ(report["parameters_sha256"].get<std::string>().size(), 64u);
  EXPECT_GT(report["contributions"]["accepted"], 0);
  EXPECT_TRUE(report["contributions"]["rejected"].is_object());

  int64_t computed = 0, received = 0;
  double compute_seconds = 0, wall_seconds = 0;
  for (const auto& [region, workers] : job.regions) {
    SCOPED_TRACE(region);
    const Json& compute = report["compute"]["regions"][region];
    EXPECT_GT(compute["compute_share"].get<double>(), 0);
    EXPECT_LE(compute["compute_share"].get<double>(), 1);
    EXPECT_GT(compute["cpu_seconds"].get<double>(), 0);
    computed += compute["tokens_computed"].get<int64_t>();
    compute_seconds += compute["compute_seconds"].get<double>();
    wall_seconds += compute["wall_seconds"].get<double>();
    received += report["contributions"]["regions"][region]["accepted"].get<int64_t>();

    const Json& link = report["wan"][region];
    for (const char* key :
         {"payload_bytes_up", "payload_bytes_down", "wire_bytes_up", "wire_bytes_down", "goodput_bits_per_second_up",
          "goodput_bits_per_second_down", "round_trip_ms_p50", "round_trip_ms_p99"}) {
      ASSERT_TRUE(link.contains(key) && link[key].is_number()) << key;
      EXPECT_GT(link[key].get<double>(), 0) << key;
    }
    // What passed the relay is the payload and what carries it.
    EXPECT_GT(link["wire_bytes_up"], link["payload_bytes_up"]);
    EXPECT_GT(link["wire_bytes_down"], link["payload_bytes_down"]);
    EXPECT_GE(link["round_trip_ms_p50"].get<double>(), 29) << "the emulated round trip is 30 ms";
    EXPECT_GE(link["round_trip_ms_p99"], link["round_trip_ms_p50"]);
  }
  EXPECT_EQ(report["tokens_computed"], computed);
  EXPECT_NEAR(report["compute_share"].get<double>(), compute_seconds / wall_seconds, 1e-9);
  EXPECT_GT(report["compute"]["all"]["cpu_seconds"].get<double>(), 0);
  EXPECT_GE(received, report["contributions"]["accepted"].get<int64_t>())
      << "regions merge before they contribute to the root";
}

TEST_P(UpTest, CommitsItsBudgetAndReportsIt) {
  const TinyJob& job = GetParam().job;
  const Workspace workspace;
  std::vector<std::string> arguments = {"up", workspace.WriteJob(job), "--run-dir", workspace.Path("run"), "--json"};
  for (const std::string& set : GetParam().set) {
    arguments.push_back("--set");
    arguments.push_back(set);
  }
  const auto up = workspace.Start(arguments);
  const RunRecord record(workspace.Path("run"));
  std::set<pid_t> processes;  // All that were ever seen.
  ASSERT_TRUE(Await([&] {
    for (const pid_t child : ChildrenOf(up->pid())) processes.insert(child);
    return up->ended();
  })) << up->err();
  ASSERT_EQ(up->Wait(), 0) << up->err();

  // ---- the report, and its sums
  const Json report = record.Report();
  ExpectBudgetCommittedOnce(report, Budget(job));
  ExpectWholeReport(report, job, /*computed_is_committed=*/true);
  EXPECT_EQ(Json::parse(up->out()), report) << "--json prints the report";
  EXPECT_EQ(report["preset"], job.preset) << "as the job file has it";
  const double initial = report["validation_loss_initial"], final = report["validation_loss_final"];
  EXPECT_NEAR(initial, std::log(256.0), 0.3) << "nothing is known at the beginning";
  EXPECT_LT(final, initial - 1);
  if (GetParam().below_unigram) {
    EXPECT_LT(final, report["validation_loss_unigram"].get<double>());
  }

  // ---- metrics: every token is in a step
  std::map<std::string, int64_t> tokens;
  for (const Json& step : record.Metrics()) {
    tokens[absl::StrCat(step["region"].get<std::string>(), "/", step["worker"].get<std::string>())] +=
        step["tokens"].get<int64_t>();
    for (const char* key : {"time", "step", "loss", "compute_seconds", "wait_seconds", "staleness"}) {
      ASSERT_TRUE(step.contains(key) && step[key].is_number()) << key << " in " << step;
    }
    EXPECT_EQ(step["incarnation"], 1) << "nobody died";
    EXPECT_EQ(step["heard"].get<std::string>().size(), std::string("2000-01-01T00:00:00.000Z").size());
  }
  int workers = 0;
  for (const Json& process : report["processes"]) {
    if (process["role"] != "worker") continue;
    ++workers;
    const std::string name =
        absl::StrCat(process["region"].get<std::string>(), "/", process["name"].get<std::string>());
    EXPECT_EQ(process["tokens_computed"], tokens[name]) << name;
    EXPECT_GT(tokens[name], 0) << name;
  }
  EXPECT_EQ(workers, 6);

  // ---- events: what the log of merges says is what the report says
  int64_t committed = 0, contributions = 0;
  for (const Json& event : record.Events("merged")) {
    for (const Json& part : event["contributions"]) {
      committed += part["tokens"].get<int64_t>();
      ++contributions;
    }
  }
  EXPECT_EQ(report["tokens_committed"], committed);
  EXPECT_EQ(report["contributions"]["accepted"], contributions);
  EXPECT_EQ(record.Events("joined").size(), 9u);
  EXPECT_TRUE(record.Events("lost").empty());
  EXPECT_EQ(record.Events("budget_committed").size(), 1u);

  // ---- what a person looks into
  const auto validate = workspace.Start({"validate", workspace.Path("run/config.resolved.yaml")});
  EXPECT_EQ(validate->Wait(), 0) << validate->err();
  const auto verify = workspace.Start({"log", "verify", workspace.Path("run")});
  EXPECT_EQ(verify->Wait(), 0) << verify->out() << verify->err();
  int logs = 0;
  for (const auto& log : std::filesystem::directory_iterator(workspace.Path("run/logs"))) {
    EXPECT_GT(log.file_size(), 0u) << log.path();
    ++logs;
  }
  EXPECT_EQ(logs, 10) << "coordinator, three aggregators, six workers";

  // ---- nobody is left
  for (const Json& event : record.Events("joined")) processes.insert(event["pid"].get<pid_t>());
  EXPECT_GE(processes.size(), 10u);
  for (const pid_t pid : processes) EXPECT_FALSE(IsRunning(pid)) << CommandLine(pid);
}

TEST(PlanTest, MeasuresTheModelAndKnowsTheBytesThatUpThenSends) {
  TinyJob job;
  job.tokens = 40000;
  const Workspace workspace;
  const std::string path = workspace.WriteJob(job);
  const auto plan = workspace.Start({"plan", path, "--json"});
  ASSERT_EQ(plan->Wait(), 0) << plan->err();
  const Json planned = Json::parse(plan->out());
  EXPECT_EQ(planned["step_seconds_from"], "measured on this machine");
  EXPECT_GT(planned["step_seconds"], 0);
  const auto up = workspace.Start({"up", path, "--run-dir", workspace.Path("run")});
  ASSERT_EQ(up->Wait(), 0) << up->err();
  int64_t bytes = 0, contributions = 0, aggregators = 0;
  const Json report = RunRecord(workspace.Path("run")).Report();
  for (const Json& process : report["processes"]) {
    if (process["role"] != "aggregator") continue;
    bytes += process["payload_bytes_up"].get<int64_t>();
    contributions += process["contributions_sent"].get<int64_t>();
    ++aggregators;
  }
  ASSERT_GT(contributions, 0);
  // An aggregator's last report may come between a contribution, which is one piece here, and its answer.
  const auto one = planned["regions"][0]["up"]["bytes"].get<int64_t>();
  EXPECT_EQ(bytes % one, 0);
  EXPECT_GE(bytes / one, contributions);
  EXPECT_LE(bytes / one, contributions + aggregators);
}

INSTANTIATE_TEST_SUITE_P(
    Presets, UpTest,
    ::testing::Values(Case{"async", Preset("async", 80000), {}, true},
                      // Two regions whose workers act as one leaf, and one of two leaves.
                      Case{"async_gloo",
                           Preset("async", 60000),
                           {"regions.beijing.collective=gloo", "regions.guizhou.collective=gloo"}},
                      Case{"async_mixed",
                           Preset("async", 60000),
                           {"strategy.region.codec_up=int4", "strategy.region.codec_down=int4",
                            "strategy.root.codec_up=mixed", "strategy.root.codec_down=mixed"}},
                      // Contributions of some fragments only, rounds that overlap, a quorum with grace, a bounded lead.
                      Case{"streaming_diloco", Preset("streaming_diloco", 40000), {"limits.fragment_bytes=8KiB"}},
                      Case{"eager_diloco", Preset("eager_diloco", 60000), {"optimizer.learning_rate=5e-3"}},
                      Case{"decoupled", Preset("decoupled", 40000), {}}, Case{"ssp", Preset("ssp", 40000), {}},
                      // Two round trips and more pass before anybody has connected.
                      Case{"async_far", Preset("async", 40000), {"wan.rtt=1500ms", "limits.lease=4s"}},
                      Case{"diloco", Preset("diloco", 30000), {}}, Case{"ddp", Preset("ddp", 15000), {}},
                      // Snapshots on the way hold the state of the root's optimizer.
                      Case{"ddp_muon", Preset("ddp", 15000), {"optimizer.kind=muon", "limits.snapshot_bytes=256KiB"}},
                      Case{"ddp_sgd",
                           Preset("ddp", 30000),
                           {"optimizer.kind=sgd", "optimizer.learning_rate=0.3", "limits.snapshot_bytes=256KiB"}},
                      Case{"ddp_bf16",
                           Preset("ddp", 15000),
                           {"strategy.region.codec_up=bf16", "strategy.region.codec_down=bf16",
                            "strategy.root.codec_up=bf16", "strategy.root.codec_down=bf16"}}),
    [](const auto& the_case) { return the_case.param.name; });

}  // namespace
}  // namespace wukong::integration
