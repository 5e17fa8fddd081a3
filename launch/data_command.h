// `wukong data prepare` and `wukong data inspect`.
#ifndef WUKONG_LAUNCH_DATA_COMMAND_H_
#define WUKONG_LAUNCH_DATA_COMMAND_H_

#include <functional>

#include "CLI/CLI.hpp"

namespace wukong {

// Adds the verb `data` to `app`. Parsing one of its subverbs stores in `*action` what to run, which returns the exit
// code: 0, 2 for bad usage or data, 1 for what the machine does (a full disk). `action` must outlive the parse.
void AddDataCommand(CLI::App& app, std::function<int()>* action);

}  // namespace wukong

#endif  // WUKONG_LAUNCH_DATA_COMMAND_H_
