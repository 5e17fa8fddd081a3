// `wukong coordinator`, `wukong aggregator` and `wukong worker`: one process of a job each.
#ifndef WUKONG_LAUNCH_ROLE_COMMANDS_H_
#define WUKONG_LAUNCH_ROLE_COMMANDS_H_

#include <functional>

#include "CLI/CLI.hpp"

namespace wukong {

// A limit on file sizes is then an error of write(), with a message, and not the end of the process (SIGXFSZ).
void MakeFileLimitAnError();

// Parsing one of the verbs stores in `*action` what to run; it returns the exit code.
void AddRoleCommands(CLI::App& app, std::function<int()>* action);

}  // namespace wukong

#endif  // WUKONG_LAUNCH_ROLE_COMMANDS_H_
