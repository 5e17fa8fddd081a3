// `wukong chaos`: looking for what breaks a run, and looking closer at what did.
#ifndef WUKONG_LAUNCH_CHAOS_COMMAND_H_
#define WUKONG_LAUNCH_CHAOS_COMMAND_H_

#include <functional>

#include "CLI/CLI.hpp"

namespace wukong {

void AddChaosCommand(CLI::App& app, std::function<int()>* action);

// Its subcommands, each in a file of its own.
void AddChaosShrinkCommand(CLI::App& chaos, std::function<int()>* action);
void AddChaosReplayCommand(CLI::App& chaos, std::function<int()>* action);

}  // namespace wukong

#endif  // WUKONG_LAUNCH_CHAOS_COMMAND_H_
