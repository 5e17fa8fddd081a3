// `wukong log`: what the root wrote down.
#ifndef WUKONG_LAUNCH_LOG_COMMAND_H_
#define WUKONG_LAUNCH_LOG_COMMAND_H_

#include <functional>

#include "CLI/CLI.hpp"

namespace wukong {

void AddLogCommand(CLI::App& app, std::function<int()>* action);

}  // namespace wukong

#endif  // WUKONG_LAUNCH_LOG_COMMAND_H_
