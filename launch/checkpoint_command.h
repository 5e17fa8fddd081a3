// `wukong checkpoint`: parameters that a user can take away, and bring along.
#ifndef WUKONG_LAUNCH_CHECKPOINT_COMMAND_H_
#define WUKONG_LAUNCH_CHECKPOINT_COMMAND_H_

#include <functional>

#include "CLI/CLI.hpp"

namespace wukong {

void AddCheckpointCommand(CLI::App& app, std::function<int()>* action);

}  // namespace wukong

#endif  // WUKONG_LAUNCH_CHECKPOINT_COMMAND_H_
