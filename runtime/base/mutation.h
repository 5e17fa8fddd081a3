// Deliberate bugs, one of which a test can switch on to see that the checkers of the simulator notice it
// (tests/sim/mutants). Compiled in with the CMake option WUKONG_MUTATIONS; otherwise nothing is left of them.
#ifndef WUKONG_RUNTIME_BASE_MUTATION_H_
#define WUKONG_RUNTIME_BASE_MUTATION_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace wukong {

// Their names, and what each does wrong.
std::vector<std::pair<std::string, std::string>> Mutations();
// From now on the program has this bug. INVALID_ARGUMENT: there is none of this name. FAILED_PRECONDITION: not compiled
// in. Before any other thread begins.
absl::Status SetMutation(const std::string& name);
// How often the program came to a place where the bug that is on could show.
int64_t MutationPasses();

#ifdef WUKONG_MUTATIONS
// Whether the program has the bug `name`.
bool Mutated(const char* name);
#else
constexpr bool Mutated(const char* /*name*/) { return false; }
#endif

}  // namespace wukong

#endif  // WUKONG_RUNTIME_BASE_MUTATION_H_
