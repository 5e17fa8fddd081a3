#include "launch/chaos_command.h"

namespace wukong {

void AddChaosCommand(CLI::App& app, std::function<int()>* action) {
  CLI::App* chaos = app.add_subcommand("chaos", "Faults: what is the least that breaks a run, and does it break again");
  chaos->require_subcommand(1);
  AddChaosShrinkCommand(*chaos, action);
  AddChaosReplayCommand(*chaos, action);
}

}  // namespace wukong
