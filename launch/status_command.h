// `wukong status`: how a run stands, or how it ended.
#ifndef WUKONG_LAUNCH_STATUS_COMMAND_H_
#define WUKONG_LAUNCH_STATUS_COMMAND_H_

#include <functional>

#include "CLI/CLI.hpp"

namespace wukong {

// Parsing the verb stores in `*action` what to run; it returns the exit code: 0 with something to show, 2 for what
// names no run, 4 when no coordinator answers and the run has not ended.
void AddStatusCommand(CLI::App& app, std::function<int()>* action);

}  // namespace wukong

#endif  // WUKONG_LAUNCH_STATUS_COMMAND_H_
