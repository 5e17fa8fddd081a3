// What is left of an experiment: a folder to read, to compare and to publish from.
#ifndef WUKONG_LAUNCH_EXPERIMENT_REPORT_H_
#define WUKONG_LAUNCH_EXPERIMENT_REPORT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"

namespace wukong {

struct ExperimentReport {
  struct FaultSpan {
    std::string fault;   // "kill"
    std::string target;  // "beijing/worker-1"
    int number = 0;      // In the timeline.
    double begin = 0;    // Seconds since training began.
    std::optional<double> end;
    std::optional<double> detected;  // When the coordinator knew.
    std::optional<double> back;      // When the process had joined again; for the root, when it merged again.
  };
  struct Point {
    double seconds = 0;
    int64_t samples = 0;  // Committed by then.
    std::optional<double> loss;
  };
  std::string name;
  nlohmann::ordered_json result;  // Verdicts, goodput and so on.
  std::string scenario_yaml;      // With everything filled in.
  std::vector<FaultSpan> faults;
  std::vector<Point> progress;
};

// Writes into `folder`: scenario.yaml, result.json, faults.csv, progress.csv and plot.gp; and plot.svg, where gnuplot
// is installed. Returns what could not be written; that there is no gnuplot is no error, and is said in `*note`.
absl::Status WriteExperimentReport(const std::string& folder, const ExperimentReport& report, std::string* note);

// SHA-256 of the file that this process runs; empty when it cannot be read.
std::string OwnBinarySha256();

}  // namespace wukong

#endif  // WUKONG_LAUNCH_EXPERIMENT_REPORT_H_
