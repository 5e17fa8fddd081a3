// `wukong up`: a whole job on this machine, with the links between regions emulated.
#ifndef WUKONG_LAUNCH_UP_COMMAND_H_
#define WUKONG_LAUNCH_UP_COMMAND_H_

#include <functional>

#include "CLI/CLI.hpp"

namespace wukong {

// Parsing the verb stores in `*action` what to run; it returns the exit code.
void AddUpCommand(CLI::App& app, std::function<int()>* action);

}  // namespace wukong

#endif  // WUKONG_LAUNCH_UP_COMMAND_H_
