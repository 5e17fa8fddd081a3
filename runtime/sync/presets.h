// Training methods by name: each preset is a choice of the strategy's knobs, and any knob can be set by itself.
#ifndef WUKONG_RUNTIME_SYNC_PRESETS_H_
#define WUKONG_RUNTIME_SYNC_PRESETS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/job.pb.h"

namespace wukong {

// How `all` (children) is kept in a knob.
constexpr int64_t kAll = 0;

// Fills every knob of job.strategy that is unset, both levels included, with its preset's value; what is set stays.
// Where in_flight ends up as `wait`, an unset in_flight_max becomes 1. Calling it again changes nothing.
// INVALID_ARGUMENT for a preset that does not exist.
//
// What the knobs of a level mean: of M live children, a merge of the set S of contributions c (|S| = quorum) takes
//     g = (|S| / M) * weighted_mean(c over S),   theta += learning_rate * g
// (with weight `sum`, g = the sum of c over S), and with momentum beta, at every momentum_delay-th merge, m <- beta * m
// + (sum of the g since the last time) and theta += learning_rate * beta * m: delayed Nesterov (Liu et al. 2024,
// "Asynchronous Local-SGD Training for Language Modeling"), which is DiLoCo's Nesterov (Douillard et al. 2023) where
// momentum_delay is 1 and all children are merged.
absl::Status ResolveStrategy(Job* job);

// Why a strategy cannot work: the key in the job file ("strategy.root.momentum") and the reason in words.
struct StrategyProblem {
  std::string key;
  std::string reason;
};

// For a job whose strategy is resolved. Needs job.regions for the number of children; without any, what depends on the
// number is not checked.
std::vector<StrategyProblem> FindStrategyProblems(const Job& job);

// The same as one status: INVALID_ARGUMENT with one "key: reason" a line.
absl::Status CheckStrategy(const Job& job);

// Leaves that the region's aggregator has: its workers, or one when they act as one by a collective.
int64_t RegionLeaves(const Region& region);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SYNC_PRESETS_H_
