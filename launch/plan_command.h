// `wukong plan`: what a job's links, codecs and schedule allow, before anything is started.
#ifndef WUKONG_LAUNCH_PLAN_COMMAND_H_
#define WUKONG_LAUNCH_PLAN_COMMAND_H_

#include <functional>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/job.pb.h"

namespace wukong {

// Time of one optimizer step of a worker of this job on this machine, measured with nothing beside it for some seconds.
// INVALID_ARGUMENT or FAILED_PRECONDITION where the model cannot be made.
using MeasureStep = std::function<absl::StatusOr<absl::Duration>(const Job&)>;

// Adds the command to `app`; where it is chosen, `*action` is what runs it and gives the exit code. `measure` is asked
// where neither the command line nor a synthetic model says how long a step takes.
void AddPlanCommand(CLI::App& app, const MeasureStep& measure, std::function<int()>* action);

// What `measure` is in the real command: the job's trainer on tokens at random.
absl::StatusOr<absl::Duration> MeasureTrainerStep(const Job& job);

}  // namespace wukong

#endif  // WUKONG_LAUNCH_PLAN_COMMAND_H_
