// `wukong chaos`: experiments with faults on real processes.
#ifndef WUKONG_LAUNCH_CHAOS_COMMAND_H_
#define WUKONG_LAUNCH_CHAOS_COMMAND_H_

#include <functional>

#include "CLI/CLI.hpp"

namespace wukong {

// Parsing the verb stores in `*action` what to run; it returns the exit code.
void AddChaosCommand(CLI::App& app, std::function<int()>* action);

// Its parts, one file each.
void AddChaosRun(CLI::App* chaos, std::function<int()>* action);
void AddChaosInject(CLI::App* chaos, std::function<int()>* action);

}  // namespace wukong

#endif  // WUKONG_LAUNCH_CHAOS_COMMAND_H_
