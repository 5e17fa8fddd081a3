// The least that a failing scenario needs in order to fail: its timeline, cut down by trying.
#ifndef WUKONG_RUNTIME_SIM_SHRINK_H_
#define WUKONG_RUNTIME_SIM_SHRINK_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "proto/scenario.pb.h"
#include "runtime/sim/tape.h"

namespace wukong {

// One time at which a fault of a timeline began.
struct FaultStrike {
  int fault = 0;  // Its number in the timeline.
  std::string target;
  absl::Duration time;
};
// Adds `event` to `strikes` if it is one.
void CollectStrike(const TapeEvent& event, std::vector<FaultStrike>* strikes);

// The scenario with each of its random faults (`every`) replaced by faults at the times at which they began: those that
// are left do not change when one is taken away.
Scenario WithFaultTimes(const Scenario& scenario, const std::vector<FaultStrike>& strikes);

struct ShrinkOptions {
  // Whether this scenario fails in the way that is looked for. Called once per try.
  std::function<bool(const Scenario&)> fails;
  // After each try (may be null): what was tried, and whether it still failed.
  std::function<void(const std::string& what, bool failed)> on_try;
  int tries_max = 1000;
};
struct ShrinkResult {
  Scenario scenario;
  int tries = 0;
  bool exhausted = false;  // The tries were used up before nothing more could be taken away.
};
// `scenario` fails, and so does what is returned, from which no single fault and no single target can be taken away:
// delta debugging (Zeller and Hildebrandt 2002, ddmin) over faults and then over their targets, in turn with simpler
// faults (shorter, in one direction, at rounder times), until nothing changes any more.
ShrinkResult ShrinkScenario(const Scenario& scenario, const ShrinkOptions& options);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_SHRINK_H_
