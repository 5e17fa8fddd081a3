#include "runtime/sync/stable_gain.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "glog/logging.h"

namespace wukong {
namespace {

// More behave like these, and cost more to run.
constexpr int64_t kChildrenMax = 32;
constexpr int64_t kRounds = 600;
constexpr double kLargest = 4;

bool Approaches(const DelayModel& model, double gain) {
  const int64_t children = model.children;
  const int64_t turns = kRounds * children;
  std::vector<double> theta(turns);       // After each turn; before the first it is 1.
  std::vector<double> sent(turns);        // By the child whose turn it was.
  std::vector<int64_t> merged_at(turns);  // Turn in which that was merged.
  double now = 1, momentum = 0, buffer = 0, largest_late = 0;
  int64_t merges = 0, ready_from = 0;
  for (int64_t turn = 0; turn < turns; ++turn) {
    // The child goes on from the version that its last contribution went into.
    const int64_t last = turn - children;
    sent[turn] = last < 0 ? -1.0 : -theta[merged_at[last]];
    merged_at[turn] = turns;
    if (turn + 1 - ready_from == model.quorum) {
      double step = 0;
      for (; ready_from <= turn; ++ready_from) {
        step += sent[ready_from] / static_cast<double>(children);
        merged_at[ready_from] = turn;
      }
      buffer += step;
      now += gain * step;
      if (++merges % model.momentum_delay == 0) {
        momentum = model.momentum * momentum + buffer;
        buffer = 0;
        now += gain * model.momentum * momentum;
      }
    }
    theta[turn] = now;
    if (!(std::abs(now) < 1e6)) return false;
    if (turn >= turns - turns / 4) largest_late = std::max(largest_late, std::abs(now));
  }
  return largest_late < 0.5;
}

double Bisect(const DelayModel& model) {
  double stable = 0, unstable = kLargest;
  while (unstable - stable > 0.005 * std::max(stable, 0.1)) {
    const double middle = (stable + unstable) / 2;
    (Approaches(model, middle) ? stable : unstable) = middle;
  }
  return stable;
}

}  // namespace

double LargestStableGain(const DelayModel& asked) {
  CHECK_GE(asked.quorum, 1);
  CHECK_LE(asked.quorum, asked.children);
  CHECK_GE(asked.momentum_delay, 1);
  DelayModel model = asked;
  model.children = std::min(asked.children, kChildrenMax);
  // The same share of them.
  model.quorum = std::max<int64_t>(1, asked.quorum * model.children / asked.children);
  const double stable = Bisect(model);
  if (model.children % model.quorum == 0) return stable;
  // Merges of ever other children damp each other in this model: no more is believed of them than of a merge of all.
  DelayModel together = model;
  together.quorum = together.children;
  return std::min(stable, Bisect(together));
}

}  // namespace wukong
