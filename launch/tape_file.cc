#include "launch/tape_file.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "google/protobuf/util/json_util.h"
#include "launch/job_check.h"
#include "launch/job_file.h"
#include "nlohmann/json.hpp"
#include "runtime/base/digest.h"
#include "runtime/sim/scenario_problems.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kFormat = 1;

std::string BinaryHash() { return Sha256File("/proc/self/exe").value_or("unknown"); }

std::string LastLine(int64_t events, uint64_t hash) {
  return Json({{"events", events}, {"tape_hash", absl::StrFormat("%016x", hash)}}).dump();
}

}  // namespace

absl::StatusOr<Scenario> LoadCheckedScenario(const std::string& path, const std::vector<std::string>& overrides,
                                             Backend backend) {
  absl::StatusOr<ScenarioSource> source = LoadScenarioFile(path, overrides);
  if (!source.ok()) return source.status();
  JobErrors errors;
  for (const ScenarioProblem& problem : FindScenarioProblems(source->scenario, backend)) {
    errors.Add(source->Where(problem.key), problem.reason);
  }
  if (!errors.empty()) return errors.ToStatus();
  if (source->scenario.workload().fidelity() == FIDELITY_GPT) {
    // Model, data and optimizer have the keys that they have in a job file.
    JobSource job;
    static_cast<YamlSource&>(job) = *source;
    job.job = *JobOfScenario(source->scenario);
    CheckOptions check;
    check.check_data = true;
    if (absl::Status status = CheckJob(job, check); !status.ok()) return status;
  }
  return std::move(source->scenario);
}

absl::Status TapeWriter::Open(const std::string& path, const Scenario& scenario, uint64_t seed) {
  path_ = path;
  file_.open(path);
  if (!file_) return absl::InvalidArgumentError(absl::StrCat("cannot write the tape to ", path));
  std::string json;
  const auto status = google::protobuf::util::MessageToJsonString(scenario, &json);
  if (!status.ok()) return absl::InternalError(absl::StrCat("the scenario as JSON: ", status.ToString()));
  file_ << Json({{"tape", kFormat}, {"seed", seed}, {"binary_sha256", BinaryHash()}, {"scenario", Json::parse(json)}})
               .dump()
        << "\n";
  return absl::OkStatus();
}

absl::Status TapeWriter::Finish(const SimulationResult& result) {
  file_ << LastLine(result.tape_events, result.tape_hash) << "\n";
  if (!file_.flush()) return absl::ResourceExhaustedError(absl::StrCat("cannot write ", path_));
  return absl::OkStatus();
}

absl::StatusOr<Replay> ReplayTape(const std::string& path) {
  std::ifstream file(path);
  if (!file) return absl::InvalidArgumentError(absl::StrCat("cannot read ", path));
  const auto no_tape = [&](const std::string& why) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ":1: is no tape: ", why, " (expected a file that `wukong sim SCENARIO --tape FILE` has written)"));
  };
  std::string line;
  std::getline(file, line);
  const Json header = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!header.is_object() || !header.contains("tape")) return no_tape("it does not begin with what was run");
  if (header["tape"] != kFormat) return no_tape("it was written by another version of wukong");
  if (!header.contains("seed") || !header["seed"].is_number_unsigned() || !header.contains("scenario")) {
    return no_tape("its first line lacks the seed or the scenario");
  }
  Scenario scenario;
  const auto parsed = google::protobuf::util::JsonStringToMessage(header["scenario"].dump(), &scenario);
  if (!parsed.ok()) return no_tape(absl::StrCat("its scenario cannot be read: ", parsed.ToString()));

  Replay replay;
  replay.other_binary = !header.contains("binary_sha256") || header["binary_sha256"] != BinaryHash();
  bool differs = false;
  const auto compare = [&](const std::string& now) {
    std::string on_tape;
    std::getline(file, on_tape);
    if (on_tape == now) return;
    differs = true;
    replay.on_tape = std::move(on_tape);
    replay.now = now;
  };
  const absl::StatusOr<SimulationResult> result =
      RunSimulation(scenario, header["seed"].get<uint64_t>(), [&](const TapeEvent& event) {
        if (differs) return;
        ++replay.events;
        compare(TapeEventToJson(event));
      });
  if (!result.ok()) return result.status();
  replay.tape_hash = result->tape_hash;
  if (differs) return replay;
  // A run that was interrupted has no last line; what it has is the same.
  replay.complete = file.peek() != std::ifstream::traits_type::eof();
  if (replay.complete) compare(LastLine(result->tape_events, result->tape_hash));
  replay.same = !differs;
  if (differs) ++replay.events;
  return replay;
}

}  // namespace wukong
