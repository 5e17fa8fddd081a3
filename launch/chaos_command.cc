#include "launch/chaos_command.h"

namespace wukong {

void AddChaosCommand(CLI::App& app, std::function<int()>* action) {
  CLI::App* chaos = app.add_subcommand("chaos", "Experiments with faults (docs/chaos.md)");
  chaos->require_subcommand(1);
  AddChaosRunCommand(*chaos, action);
  AddChaosInjectCommand(*chaos, action);
  AddChaosShrinkCommand(*chaos, action);
  AddChaosReplayCommand(*chaos, action);
}

}  // namespace wukong
