// What a scenario asks for that cannot be, and the job that it is about.
#ifndef WUKONG_RUNTIME_SIM_SCENARIO_PROBLEMS_H_
#define WUKONG_RUNTIME_SIM_SCENARIO_PROBLEMS_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/job.pb.h"
#include "proto/scenario.pb.h"

namespace wukong {

// The job that a scenario is about: one token a sample, no text.
absl::StatusOr<Job> JobOfScenario(const Scenario& scenario);

// What is wrong with a scenario for this backend, beyond single values: the key ("timeline[2].target") and the reason.
// Empty when all is well.
struct ScenarioProblem {
  std::string key;
  std::string reason;
};
std::vector<ScenarioProblem> FindScenarioProblems(const Scenario& scenario, Backend backend = BACKEND_SIM);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_SCENARIO_PROBLEMS_H_
