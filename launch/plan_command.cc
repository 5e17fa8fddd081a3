#include "launch/plan_command.h"

#include <algorithm>
#include <cmath>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "launch/exit_code.h"
#include "launch/flag_checks.h"
#include "launch/job_check.h"
#include "launch/job_file.h"
#include "launch/job_units.h"
#include "launch/plan.h"
#include "nlohmann/json.hpp"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

// A larger model would take a minute and its memory only to be measured.
constexpr int64_t kMeasuredParametersMax = 50'000'000;

struct PlanOptions {
  std::string job;
  std::vector<std::string> overrides;
  std::vector<std::string> step_times;
  double tokens_per_second = 0;
  std::string step_jitter;
  std::string parameters;
  bool json = false;
};

absl::Status Wrong(absl::string_view flag, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("plan: ", flag, ": ", what));
}

// "1T", "7B", "124M" or any count of the job file.
absl::StatusOr<int64_t> ParseParameters(const std::string& text) {
  double scale = 1;
  std::string number = text;
  if (!text.empty() && (text.back() == 'T' || text.back() == 'B')) {
    scale = text.back() == 'T' ? 1e12 : 1e9;
    number.pop_back();
  }
  double value = 0;
  if (scale > 1) {
    if (!absl::SimpleAtod(number, &value)) value = std::nan("");
  } else {
    Stop stop;
    const auto* field = Stop::descriptor()->FindFieldByName("tokens");
    value = SetScalar(*field, text, &stop).ok() ? static_cast<double>(stop.tokens()) : std::nan("");
  }
  value = std::round(value * scale);
  if (!(value >= 1 && value <= static_cast<double>(kPlanParametersMax))) {
    return Wrong(
        "--parameters",
        absl::StrCat("not a number of parameters (expected 1 to 1000T, such as 124M, 7B or 1T, got \"", text, "\")"));
  }
  return static_cast<int64_t>(value);
}

absl::StatusOr<double> ParseStepTime(const std::string& text) {
  Model model;
  const absl::Status status = SetScalar(*Model::descriptor()->FindFieldByName("step_ns"), WithUnit(text), &model);
  if (!status.ok()) return Wrong("--step-time", status.message());
  if (model.step_ns() == 0) {
    return Wrong("--step-time", absl::StrCat("a step takes time (expected more than 0, got \"", text, "\")"));
  }
  return 1e-9 * static_cast<double>(model.step_ns());
}

// Fills the times of a step. True when the one for all regions is known then.
absl::StatusOr<bool> ReadStepTimes(const PlanOptions& options, int64_t tokens_per_step, PlanInput* input) {
  std::vector<std::string> names;
  for (const Region& region : input->job.regions()) names.push_back(region.name());
  bool known = false;
  for (const std::string& text : options.step_times) {
    const size_t equals = text.find('=');
    const absl::StatusOr<double> seconds = ParseStepTime(equals == std::string::npos ? text : text.substr(equals + 1));
    if (!seconds.ok()) return seconds.status();
    if (equals == std::string::npos) {
      if (known)
        return Wrong("--step-time", "given twice for all regions (expected one, and REGION=TIME for exceptions)");
      input->step_seconds = *seconds;
      known = true;
      continue;
    }
    const std::string region = text.substr(0, equals);
    if (std::find(names.begin(), names.end(), region) == names.end()) {
      const std::string nearest = Nearest(region, names);
      return Wrong("--step-time",
                   absl::StrCat("unknown region", nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest, "?"),
                                " (expected ", Alternatives(names), ", got \"", region, "\")"));
    }
    if (!input->region_step_seconds.emplace(region, *seconds).second) {
      return Wrong("--step-time", absl::StrCat("given twice for ", region, " (expected one time per region)"));
    }
  }
  if (options.tokens_per_second != 0) {
    if (known) return Wrong("--tokens-per-second", "given beside --step-time (expected one of them)");
    if (!(options.tokens_per_second > 0) || !std::isfinite(options.tokens_per_second)) {
      return Wrong("--tokens-per-second",
                   absl::StrFormat("expected more than 0, of one worker, got %g", options.tokens_per_second));
    }
    input->step_seconds = static_cast<double>(tokens_per_step) / options.tokens_per_second;
    known = true;
  }
  // Every region has a time of its own: there is nobody left whom the common one would be for.
  if (!known && input->region_step_seconds.size() == names.size()) {
    input->step_seconds = input->region_step_seconds.begin()->second;
    known = true;
  }
  return known;
}

// The spread of steps, as the command line or a synthetic model says.
absl::StatusOr<double> FindStepJitter(const PlanOptions& options, const Job& job) {
  if (options.step_jitter.empty()) return job.model().step_jitter();
  Model model;
  const absl::Status status =
      SetScalar(*Model::descriptor()->FindFieldByName("step_jitter"), options.step_jitter, &model);
  if (!status.ok()) return Wrong("--step-jitter", status.message());
  return model.step_jitter();
}

// How long a step takes, and who says so.
absl::StatusOr<std::string> FindStepTime(const PlanOptions& options, const MeasureStep& measure, PlanInput* input) {
  const Job& job = input->job;
  const int64_t tokens =
      int64_t{job.optimizer().micro_batch()} * job.optimizer().accumulation() * job.model().context();
  const absl::StatusOr<bool> known = ReadStepTimes(options, tokens, input);
  if (!known.ok()) return known.status();
  if (*known) return std::string("as given");
  const absl::string_view expected = "give --step-time, or --tokens-per-second of one worker";
  if (job.model().synthetic() != SYNTHETIC_KIND_UNSPECIFIED) {
    if (job.model().step_ns() == 0)
      return Wrong("model.step", absl::StrCat("the synthetic model's step takes no time; ", expected));
    input->step_seconds = 1e-9 * static_cast<double>(job.model().step_ns());
    return std::string("model.step");
  }
  if (!options.parameters.empty()) {
    return Wrong("--parameters", absl::StrCat("a step of a model that is not there cannot be measured; ", expected));
  }
  if (input->parameters > kMeasuredParametersMax) {
    return absl::InvalidArgumentError(
        absl::StrFormat("plan: a step of %d parameters is not measured (expected at most %d); %s", input->parameters,
                        kMeasuredParametersMax, expected));
  }
  std::cerr << "wukong: measuring a step of the model on this machine; --step-time or --tokens-per-second saves that\n";
  const absl::StatusOr<absl::Duration> step = measure(job);
  if (!step.ok()) return step.status();
  input->step_seconds = absl::ToDoubleSeconds(*step);
  int64_t busy = 0;
  for (const Region& region : job.regions()) busy += int64_t{region.workers()} * region.threads();
  const int64_t cores = std::max(1U, std::thread::hardware_concurrency());
  if (busy > cores) {
    std::cerr << absl::StrFormat(
        "wukong: measured with nothing beside it; `wukong up` puts %d compute threads on the %d cores of this machine, "
        "where a step takes about %.1f times as long\n",
        busy, cores, static_cast<double>(busy) / static_cast<double>(cores));
  }
  return std::string("measured on this machine");
}

Json LinkJson(const LinkPlan& link) {
  return {{"bytes", link.bytes},
          {"streams", link.streams},
          {"rate_bytes_per_second", link.rate_bytes_per_second},
          {"bound_by_loss", link.bound_by_loss},
          {"transfer_seconds", link.transfer_seconds},
          {"recovery_seconds", link.recovery_seconds},
          {"seconds", link.seconds},
          {"interval_seconds", link.interval_seconds},
          {"bytes_per_hour", link.bytes_per_hour},
          {"busy", link.busy},
          {"window_bytes", link.window_bytes}};
}

Json PlanJson(const JobSource& source, const PlanInput& input, const std::string& origin, const Plan& plan) {
  Json json;
  json["path"] = source.path;
  json["ok"] = true;
  json["parameters"] = plan.parameters;
  json["tokens_per_step"] = plan.tokens_per_step;
  json["step_seconds"] = input.step_seconds;
  json["step_seconds_by_region"] = input.region_step_seconds;
  json["step_seconds_from"] = origin;
  json["step_jitter"] = input.step_jitter;
  json["tokens_per_second"] = plan.tokens_per_second;
  json["compute_share"] = plan.compute_share;
  json["round_seconds"] = plan.round_seconds;
  json["rounds_per_hour"] = plan.rounds_per_hour;
  json["log_bytes_per_hour"] = plan.log_bytes_per_hour;
  json["snapshot_bytes_per_hour"] = plan.snapshot_bytes_per_hour;
  json["join_bytes"] = plan.join_bytes;
  json["regions"] = Json::array();
  for (const RegionPlan& region : plan.regions) {
    json["regions"].push_back({{"name", region.name},
                               {"workers", region.workers},
                               {"leaves", region.leaves},
                               {"rtt_seconds", region.rtt_seconds},
                               {"inner_steps", {region.inner_steps_min, region.inner_steps_max}},
                               {"compute_seconds", region.compute_seconds},
                               {"wait_seconds", region.wait_seconds},
                               {"compute_share", region.compute_share},
                               {"tokens_per_second", region.tokens_per_second},
                               {"link_limits", region.link_limits},
                               {"staleness_versions", region.staleness_versions},
                               {"staleness_steps", region.staleness_steps},
                               {"up", LinkJson(region.up)},
                               {"down", LinkJson(region.down)}});
  }
  json["memory"] = Json::array();
  for (const MemoryPlan& memory : plan.memory) {
    json["memory"].push_back(
        {{"role", memory.role}, {"vectors", memory.vectors}, {"bytes", memory.bytes}, {"bytes_max", memory.bytes_max}});
  }
  json["compute_share_wanted"] = kPlanShareWanted;
  json["remedies"] = Json::array();
  for (const Remedy& remedy : plan.remedies) {
    Json entry = {{"key", remedy.key}, {"possible", remedy.possible}, {"compute_share", remedy.share}};
    if (remedy.possible) {
      entry["value"] = remedy.value;
    } else {
      entry["reason"] = remedy.reason;
    }
    json["remedies"].push_back(std::move(entry));
  }
  json["refusal"] = plan.refusal;
  json["notes"] = plan.notes;
  return json;
}

// 1234567 as "1.23 MB".
std::string Bytes(double bytes) {
  const char* const units[] = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
  size_t unit = 0;
  while (bytes >= 1000 && unit + 1 < std::size(units)) {
    bytes /= 1000;
    ++unit;
  }
  return absl::StrFormat("%.*g %s", unit == 0 ? 4 : 3, bytes, units[unit]);
}

std::string Seconds(double seconds) {
  if (seconds <= 0) return "0 s";
  if (seconds < 1) return absl::StrFormat("%.3g ms", 1e3 * seconds);
  if (seconds < 3600) return absl::StrFormat("%.3g s", seconds);
  return absl::StrFormat("%.3g h", seconds / 3600);
}

std::string Percent(double share) { return absl::StrFormat("%.1f%%", 100 * share); }

using Rows = std::vector<std::vector<std::string>>;

// Columns as wide as they must be, the first to the left and the others to the right.
void PrintTable(const Rows& rows) {
  std::vector<size_t> widths(rows[0].size(), 0);
  for (const auto& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  for (const auto& row : rows) {
    std::cout << "  " << row[0] << std::string(widths[0] - row[0].size(), ' ');
    for (size_t i = 1; i < row.size(); ++i) std::cout << "  " << std::string(widths[i] - row[i].size(), ' ') << row[i];
    std::cout << "\n";
  }
}

void PrintPlan(const JobSource& source, const PlanInput& input, const std::string& origin, const Plan& plan) {
  std::vector<std::string> exceptions;
  for (const auto& [region, seconds] : input.region_step_seconds) {
    exceptions.push_back(absl::StrCat(region, " ", Seconds(seconds)));
  }
  std::cout << source.path << ": what its links, codecs and schedule allow\n"
            << (plan.refusal.empty() ? "" : "  REFUSED        by `wukong up`: " + plan.refusal + "; else:\n")
            << absl::StrFormat("  model          %.4g parameters, %d tokens per worker and step\n",
                               static_cast<double>(plan.parameters), plan.tokens_per_step)
            << "  step           " << Seconds(input.step_seconds) << " (" << origin << ")"
            << (exceptions.empty() ? "" : "; " + absl::StrJoin(exceptions, ", ")) << "\n"
            << absl::StrFormat("  tokens         %.0f per second\n", plan.tokens_per_second) << "  computing      "
            << Percent(plan.compute_share) << " of the workers' time\n"
            << absl::StrFormat("  rounds         %.4g per hour, one in %s\n", plan.rounds_per_hour,
                               Seconds(plan.round_seconds))
            << "  root's disk    " << Bytes(plan.log_bytes_per_hour) << " of log and "
            << Bytes(plan.snapshot_bytes_per_hour) << " of snapshots per hour\n\n";
  Rows links = {{"link", "bytes", "streams", "rate", "takes", "every", "busy", "per hour"}};
  Rows regions = {
      {"region", "workers", "steps", "computes", "waits", "computing", "tokens/s", "versions late", "steps late"}};
  for (const RegionPlan& region : plan.regions) {
    for (const LinkPlan* link : {&region.up, &region.down}) {
      links.push_back(
          {absl::StrCat(region.name, link == &region.up ? " up" : " down"), Bytes(static_cast<double>(link->bytes)),
           absl::StrCat(link->streams),
           link->rate_bytes_per_second > 0
               ? absl::StrCat(Bytes(link->rate_bytes_per_second), "/s", link->bound_by_loss ? " (loss)" : "")
               : "unlimited",
           Seconds(link->seconds), Seconds(link->interval_seconds), Percent(link->busy), Bytes(link->bytes_per_hour)});
    }
    regions.push_back({region.name, absl::StrCat(region.workers),
                       region.inner_steps_min == region.inner_steps_max
                           ? absl::StrCat(region.inner_steps_max)
                           : absl::StrCat(region.inner_steps_min, "-", region.inner_steps_max),
                       Seconds(region.compute_seconds), Seconds(region.wait_seconds), Percent(region.compute_share),
                       absl::StrFormat("%.0f", region.tokens_per_second),
                       absl::StrFormat("%.1f", region.staleness_versions),
                       absl::StrFormat("%.1f", region.staleness_steps)});
  }
  PrintTable(links);
  std::cout << "\n";
  PrintTable(regions);
  std::cout << "\n";
  Rows memory = {{"memory of a", "vectors", "they take", "at most"}};
  for (const MemoryPlan& role : plan.memory) {
    memory.push_back({role.role, absl::StrFormat("%.3g", role.vectors), Bytes(static_cast<double>(role.bytes)),
                      Bytes(static_cast<double>(role.bytes_max))});
  }
  PrintTable(memory);
  std::cout << absl::StrFormat("\n  for %s computing, and links that keep up, each alone:\n",
                               Percent(kPlanShareWanted));
  for (const Remedy& remedy : plan.remedies) {
    if (remedy.possible) {
      std::cout << "    " << remedy.key << ": " << remedy.value << " (" << Percent(remedy.share) << ")\n";
    } else {
      std::cout << "    " << remedy.key << ": not by this alone (" << remedy.reason << "), " << Percent(remedy.share)
                << " at most\n";
    }
  }
  for (const std::string& note : plan.notes) std::cout << "  note: " << note << "\n";
}

int Refuse(const PlanOptions& options, const absl::Status& status) {
  if (options.json) {
    Json json;
    json["path"] = options.job;
    json["ok"] = false;
    json["errors"] = std::vector<std::string>(absl::StrSplit(std::string(status.message()), '\n'));
    std::cout << json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
  }
  std::cerr << "wukong: error: " << status.message() << "\n";
  return ExitCodeOf(status);
}

int RunPlan(const PlanOptions& options, const MeasureStep& measure) {
  const absl::StatusOr<JobSource> source = LoadJobFile(options.job, options.overrides);
  if (!source.ok()) return Refuse(options, source.status());
  CheckOptions check;
  check.check_data = false;
  check.check_model = options.parameters.empty();
  if (const absl::Status status = CheckJob(*source, check); !status.ok()) return Refuse(options, status);
  PlanInput input;
  input.job = source->job;
  if (options.parameters.empty()) {
    input.parameters = GptParameters(input.job.model());
    if (input.parameters == 0) {
      return Refuse(options, Wrong("model.torchscript", "its size is not known without running it; give --parameters"));
    }
  } else {
    const absl::StatusOr<int64_t> parameters = ParseParameters(options.parameters);
    if (!parameters.ok()) return Refuse(options, parameters.status());
    input.parameters = *parameters;
  }
  const absl::StatusOr<double> jitter = FindStepJitter(options, input.job);
  if (!jitter.ok()) return Refuse(options, jitter.status());
  input.step_jitter = *jitter;
  const absl::StatusOr<std::string> origin = FindStepTime(options, measure, &input);
  if (!origin.ok()) return Refuse(options, origin.status());
  const Plan plan = MakePlan(input);
  if (options.json) {
    std::cout << PlanJson(*source, input, *origin, plan).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
              << "\n";
  } else {
    PrintPlan(*source, input, *origin, plan);
  }
  return kExitOk;
}

}  // namespace

void AddPlanCommand(CLI::App& app, const MeasureStep& measure, std::function<int()>* action) {
  auto options = std::make_shared<PlanOptions>();
  CLI::App* command =
      app.add_subcommand("plan", "Predict bytes, rounds, waits and memory of a job without starting it");
  command->add_option("JOB", options->job, "The job file (docs/job-file.md)")->required();
  const auto repeated = [&](const char* flag, std::vector<std::string>* to, const char* text) {
    command->add_option(flag, *to, text)->expected(1)->take_all()->allow_extra_args(false);
  };
  repeated("--set", &options->overrides, "key.path=value in place of what the file says; may be repeated");
  repeated(
      "--step-time", &options->step_times,
      "Time of one optimizer step of a worker of speed 1, such as 250ms; REGION=TIME for one region; may be repeated");
  command->add_option("--tokens-per-second", options->tokens_per_second,
                      "In place of --step-time: tokens per second of one worker of speed 1");
  command->add_option("--step-jitter", options->step_jitter,
                      "Standard deviation of a step's time, such as 5%: whoever waits for all waits for the slowest");
  command->add_option("--parameters", options->parameters,
                      "Plan for a model of this size in place of the job's, such as 7B or 1T");
  command->add_flag("--json", options->json, "Print the plan, or the errors, as JSON");
  command->callback(
      [options, measure, action] { *action = [options, measure] { return RunPlan(*options, measure); }; });
}

}  // namespace wukong
