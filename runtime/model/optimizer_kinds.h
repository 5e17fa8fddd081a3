// Which keys of job.optimizer belong to which inner optimizer, and what they are where the job does not say.
#ifndef WUKONG_RUNTIME_MODEL_OPTIMIZER_KINDS_H_
#define WUKONG_RUNTIME_MODEL_OPTIMIZER_KINDS_H_

#include <string>
#include <vector>

#include "proto/job.pb.h"

namespace wukong {

// Fills every unset key that belongs to the kind; what is set stays, and keys of other kinds stay unset. An unspecified
// kind becomes AdamW. Calling it again changes nothing.
void ResolveOptimizer(Optimizer* optimizer);

// Why an optimizer cannot work: the key below `optimizer` and the reason in words, "what (expected ..., got ...)".
struct OptimizerProblem {
  std::string key;
  std::string reason;
};

// Keys that are set and mean nothing for the kind.
std::vector<OptimizerProblem> FindOptimizerProblems(const Optimizer& optimizer);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_MODEL_OPTIMIZER_KINDS_H_
