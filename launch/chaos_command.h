// `wukong chaos`: experiments with faults, and a closer look at what they found.
#ifndef WUKONG_LAUNCH_CHAOS_COMMAND_H_
#define WUKONG_LAUNCH_CHAOS_COMMAND_H_

#include <functional>

#include "CLI/CLI.hpp"

namespace wukong {

// Parsing the verb stores in `*action` what to run; it returns the exit code.
void AddChaosCommand(CLI::App& app, std::function<int()>* action);

// Its subcommands, each in a file of its own.
void AddChaosRunCommand(CLI::App& chaos, std::function<int()>* action);
void AddChaosInjectCommand(CLI::App& chaos, std::function<int()>* action);
void AddChaosShrinkCommand(CLI::App& chaos, std::function<int()>* action);
void AddChaosReplayCommand(CLI::App& chaos, std::function<int()>* action);

}  // namespace wukong

#endif  // WUKONG_LAUNCH_CHAOS_COMMAND_H_
