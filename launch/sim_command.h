// `wukong sim`: a scenario on the simulator.
#ifndef WUKONG_LAUNCH_SIM_COMMAND_H_
#define WUKONG_LAUNCH_SIM_COMMAND_H_

#include <functional>

#include "CLI/CLI.hpp"

namespace wukong {

void AddSimCommand(CLI::App& app, std::function<int()>* action);

}  // namespace wukong

#endif  // WUKONG_LAUNCH_SIM_COMMAND_H_
