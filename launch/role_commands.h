// `wukong coordinator`, `wukong aggregator` and `wukong worker`: one process of a job each.
#ifndef WUKONG_LAUNCH_ROLE_COMMANDS_H_
#define WUKONG_LAUNCH_ROLE_COMMANDS_H_

#include <functional>

#include "CLI/CLI.hpp"

namespace wukong {

// A limit on file sizes (SIGXFSZ) and a reader that is gone (SIGPIPE) are then errors of write(), and not the end of
// the process: who watches a run may leave.
void MakeBrokenOutputsErrors();

// Parsing one of the verbs stores in `*action` what to run; it returns the exit code.
void AddRoleCommands(CLI::App& app, std::function<int()>* action);

}  // namespace wukong

#endif  // WUKONG_LAUNCH_ROLE_COMMANDS_H_
