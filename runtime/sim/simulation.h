// A scenario on the simulator: everything is made, faults happen, the run is watched and judged.
#ifndef WUKONG_RUNTIME_SIM_SIMULATION_H_
#define WUKONG_RUNTIME_SIM_SIMULATION_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/scenario.pb.h"
#include "runtime/sim/tape.h"

namespace wukong {

struct SimulationResult {
  // Invariant or expectation ("I1", "completes", "fired", "goodput_min") -> what is wrong; empty when it holds.
  std::map<std::string, std::string> verdicts;
  bool passed() const;

  absl::Duration virtual_time;  // Until the budget was committed, or the end.
  int64_t events = 0;           // Of the queue.
  int64_t tape_events = 0;
  uint64_t tape_hash = 0;
  std::string parameters_sha256;
  int64_t samples_committed = 0;
  int64_t samples_trained = 0;
  double goodput = 0;                     // Committed over what workers could have made without faults in that time.
  double compute_share = 0;               // Of the workers' time since the first step of each life.
  std::map<std::string, double> waiting;  // Shares of the same time, by what was waited for (wait_account.h).
  double loss = 0;                        // toy: of the final parameters.
  absl::Duration longest_pause;           // Between merges at the root.
  int64_t versions = 0;
  int64_t deaths = 0;
  int64_t most_bytes_replayed = 0;                 // Of the log, by one start of the coordinator.
  std::map<int64_t, int64_t> staleness;            // Of merges at the root: versions -> contributions.
  std::map<std::string, int64_t> faults_observed;  // By kind.
  struct Point {
    absl::Duration time;
    int64_t samples = 0;  // Committed by then.
    double loss = 0;      // toy: of the root's parameters then.
  };
  std::vector<Point> progress;  // One per version of the root; of a real model, some 200.
};

// `watcher` (may be null) sees the tape as it is written. INVALID_ARGUMENT: the scenario has problems.
absl::StatusOr<SimulationResult> RunSimulation(const Scenario& scenario, uint64_t seed, const Tape::Watcher& watcher);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_SIMULATION_H_
