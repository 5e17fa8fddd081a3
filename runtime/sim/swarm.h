// Scenarios drawn at random: topologies, links, strategies, limits, faults. What they expect holds for every one of
// them.
#ifndef WUKONG_RUNTIME_SIM_SWARM_H_
#define WUKONG_RUNTIME_SIM_SWARM_H_

#include <cstdint>

#include "proto/scenario.pb.h"

namespace wukong {

// Number `index` of swarm `seed`: the same on every machine, and without problems (FindScenarioProblems). A fault of it
// may not come to pass in every run: its verdict "fired" means nothing.
Scenario DrawScenario(uint64_t seed, uint64_t index);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_SWARM_H_
