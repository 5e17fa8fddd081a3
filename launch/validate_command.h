// `wukong validate`: everything that can be checked of a job without starting it.
#ifndef WUKONG_LAUNCH_VALIDATE_COMMAND_H_
#define WUKONG_LAUNCH_VALIDATE_COMMAND_H_

#include <functional>

#include "CLI/CLI.hpp"

namespace wukong {

// Adds the command to `app`. When it is the one that the user gave, parsing sets *action to a function that runs it and
// returns the exit code: 0, 2 for a job that is wrong, 3 for a device that this machine lacks.
void AddValidateCommand(CLI::App& app, std::function<int()>* action);

}  // namespace wukong

#endif  // WUKONG_LAUNCH_VALIDATE_COMMAND_H_
