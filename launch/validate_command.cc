#include "launch/validate_command.h"

#include <cstdint>
#include <iostream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "launch/job_check.h"
#include "launch/job_file.h"
#include "launch/job_units.h"
#include "launch/tape_file.h"
#include "nlohmann/json.hpp"

namespace wukong {
namespace {

constexpr int kExitBadJob = 2;
constexpr int kExitMissingOnMachine = 3;

struct ValidateOptions {
  std::string job;
  std::vector<std::string> overrides;
  bool keys = false;
  bool resolved = false;
  bool json = false;
  bool no_data = false;
  bool device = false;
};

// 1234567 as "1,234,567".
std::string Grouped(int64_t value) {
  std::string digits = absl::StrCat(value);
  for (int at = static_cast<int>(digits.size()) - 3; at > 0; at -= 3) {
    digits.insert(static_cast<size_t>(at), ",");
  }
  return digits;
}

// The value of a field by its name in the message, in the words of the job file.
std::string Word(const google::protobuf::Message& message, const std::string& field) {
  return FormatScalar(message, *message.GetDescriptor()->FindFieldByName(field));
}

nlohmann::ordered_json Summary(const JobSource& source) {
  const Job& job = source.job;
  nlohmann::ordered_json json;
  json["path"] = source.path;
  json["ok"] = true;
  json["name"] = job.name();
  json["parameters"] = GptParameters(job.model());
  int64_t workers = 0;
  json["regions"] = nlohmann::ordered_json::array();
  for (const Region& region : job.regions()) {
    json["regions"].push_back({{"name", region.name()}, {"workers", region.workers()}});
    workers += region.workers();
  }
  json["workers"] = workers;
  json["tokens"] = job.stop().tokens();
  json["tokens_per_step"] =
      int64_t{job.optimizer().micro_batch()} * job.optimizer().accumulation() * job.model().context();
  json["preset"] = Word(job.strategy(), "preset");
  json["inner_steps"] = job.strategy().inner_steps();
  json["contribution_bytes"] = {{"region", ContributionBytes(job, job.strategy().region().codec_up())},
                                {"root", ContributionBytes(job, job.strategy().root().codec_up())}};
  return json;
}

void PrintSummary(const JobSource& source, const nlohmann::ordered_json& summary) {
  const Job& job = source.job;
  std::cout << source.path << ": ok\n";
  if (job.model().synthetic() != SYNTHETIC_KIND_UNSPECIFIED) {
    std::cout << "  model     " << Word(job.model(), "synthetic") << ", " << Grouped(job.model().size())
              << " parameters\n";
  } else if (job.model().torchscript().empty()) {
    std::cout << "  model     GPT, " << Grouped(summary["parameters"].get<int64_t>()) << " parameters ("
              << job.model().layers() << " layers, " << job.model().heads() << " heads, width " << job.model().width()
              << ", context " << job.model().context() << ")\n";
  } else {
    std::cout << "  model     " << job.model().torchscript() << "\n";
  }
  std::vector<std::string> regions;
  for (const Region& region : job.regions()) {
    regions.push_back(absl::StrCat(region.name(), " x ", region.workers()));
  }
  std::cout << "  regions   " << absl::StrJoin(regions, ", ") << " (" << summary["workers"].get<int64_t>()
            << " workers)\n";
  std::cout << "  tokens    " << Grouped(job.stop().tokens()) << ", "
            << Grouped(summary["tokens_per_step"].get<int64_t>()) << " per worker and step\n";
  std::cout << "  strategy  " << Word(job.strategy(), "preset") << ", " << job.strategy().inner_steps()
            << (job.strategy().inner_steps() == 1 ? " step" : " steps") << " per contribution\n";
  std::cout << "  wan       rtt " << Word(job.wan(), "rtt_ns") << ", jitter " << Word(job.wan(), "jitter_ns")
            << ", bandwidth " << Word(job.wan(), "bandwidth_bps") << ", loss " << Word(job.wan(), "loss") << "\n";
  if (job.model().torchscript().empty()) {
    std::cout << "  sends     " << Grouped(summary["contribution_bytes"]["region"].get<int64_t>())
              << " bytes per contribution in a region (" << Word(job.strategy().region(), "codec_up") << "), "
              << Grouped(summary["contribution_bytes"]["root"].get<int64_t>()) << " to the root ("
              << Word(job.strategy().root(), "codec_up") << ")\n";
  }
}

int Refuse(const ValidateOptions& options, const absl::Status& status) {
  const std::string text(status.message());
  if (options.json) {
    nlohmann::ordered_json json;
    json["path"] = options.job;
    json["ok"] = false;
    json["errors"] = std::vector<std::string>(absl::StrSplit(text, '\n'));
    std::cout << json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
  }
  std::cerr << "wukong: error: " << text << "\n";
  return status.code() == absl::StatusCode::kFailedPrecondition ? kExitMissingOnMachine : kExitBadJob;
}

// One of `wukong sim` and `wukong chaos run`.
int ValidateScenario(const ValidateOptions& options) {
  if (options.no_data || options.device) {
    return Refuse(options, absl::InvalidArgumentError(absl::StrCat(
                               options.job, " is a scenario: --no-data and --device are for jobs (expected neither)")));
  }
  const absl::StatusOr<ScenarioSource> source = LoadScenarioFile(options.job, options.overrides);
  if (!source.ok()) return Refuse(options, source.status());
  const Scenario* const scenario = &source->scenario;
  std::vector<std::string> run_by;
  absl::Status refused;
  for (const auto& [backend, command] : {std::pair(BACKEND_SIM, "wukong sim"), {BACKEND_PROCESS, "wukong chaos run"}}) {
    if (scenario->backend() != BACKEND_UNSPECIFIED && scenario->backend() != backend) continue;
    const absl::Status status = LoadCheckedScenario(options.job, options.overrides, backend).status();
    if (status.ok()) run_by.emplace_back(command);
    refused.Update(status);
  }
  if (run_by.empty()) return Refuse(options, refused);
  if (options.resolved) {
    std::cout << ScenarioYaml(*scenario);
    return 0;
  }
  nlohmann::ordered_json summary = {{"path", options.job}, {"ok", true}, {"scenario", scenario->name()}};
  summary["fidelity"] = Word(scenario->workload(), "fidelity");
  summary["samples"] = scenario->workload().samples();
  summary["regions"] = scenario->regions_size();
  summary["faults"] = scenario->timeline_size();
  summary["run_by"] = run_by;
  if (options.json) {
    std::cout << summary.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
    return 0;
  }
  std::cout << options.job << ": ok, a scenario\n"
            << "  workload  " << Word(scenario->workload(), "fidelity") << ", "
            << Grouped(scenario->workload().samples()) << " samples\n"
            << "  regions   " << scenario->regions_size() << "\n"
            << "  faults    " << scenario->timeline_size() << " in the timeline\n"
            << "  run by    " << absl::StrJoin(run_by, ", ") << "\n";
  return 0;
}

int Validate(const ValidateOptions& options) {
  if (options.keys) {
    std::cout << KeyReference();
    return 0;
  }
  if (options.job.empty()) {
    std::cerr << "wukong: error: validate: no job file (expected wukong validate JOB.yaml, or --keys)\n";
    return kExitBadJob;
  }
  if (IsScenarioFile(options.job)) return ValidateScenario(options);
  const absl::StatusOr<JobSource> source = LoadJobFile(options.job, options.overrides);
  if (!source.ok()) {
    return Refuse(options, source.status());
  }
  CheckOptions check;
  check.check_data = !options.no_data;
  check.check_device = options.device;
  if (const absl::Status status = CheckJob(*source, check); !status.ok()) {
    return Refuse(options, status);
  }
  PrintWarnings(source->job);
  if (options.resolved) {
    std::cout << ResolvedYaml(source->job);
    return 0;
  }
  const nlohmann::ordered_json summary = Summary(*source);
  if (options.json) {
    std::cout << summary.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
  } else {
    PrintSummary(*source, summary);
  }
  return 0;
}

}  // namespace

void AddValidateCommand(CLI::App& app, std::function<int()>* action) {
  auto options = std::make_shared<ValidateOptions>();
  CLI::App* command =
      app.add_subcommand("validate", "Check a job file or a scenario, and the data it names, without starting it");
  command->add_option("JOB", options->job, "The job file (docs/job-file.md), or a scenario (docs/simulation.md)");
  // One value per flag: a value of its own may look like another argument.
  command->add_option("--set", options->overrides, "key.path=value in place of what the file says; may be repeated")
      ->expected(1)
      ->take_all()
      ->allow_extra_args(false);
  command->add_flag("--keys", options->keys, "Print the table of all keys; needs no job file");
  command->add_flag("--resolved", options->resolved, "Print the job with every default filled in");
  command->add_flag("--json", options->json, "Print the summary, or the errors, as JSON");
  command->add_flag("--no-data", options->no_data, "Do not look at the data");
  command->add_flag("--device", options->device, "Also look for the CUDA devices on this machine");
  command->callback([options, action] { *action = [options] { return Validate(*options); }; });
}

}  // namespace wukong
