// How large an outer learning rate may be before delay makes it diverge.
#ifndef WUKONG_RUNTIME_SYNC_STABLE_GAIN_H_
#define WUKONG_RUNTIME_SYNC_STABLE_GAIN_H_

#include <cstdint>

namespace wukong {

// A parent and its children, which are equally fast and take turns.
struct DelayModel {
  int64_t children = 1;
  int64_t quorum = 1;          // Contributions per merge, 1..children.
  double momentum = 0;         // Outer Nesterov.
  int64_t momentum_delay = 1;  // Merges between momentum updates.
};

// The largest outer learning rate with which the parameters still approach the optimum, to two digits; at most 4.
//
// The model is one parameter of a quadratic. Each child's contribution leads from its base to the optimum: the
// strongest one there is, so that a real job, whose contributions are a part of that, is stable below this rate. A
// child goes on from the version that includes its last contribution; the others' merges since then are the delay. (The
// network's delay comes on top, and is not known here.) Found by running the recursion and bisecting. Without delay
// this is 2 (1 + beta) / (1 + 2 beta), where the polynomial of Nesterov's recursion gets a root at -1. Of a quorum that
// does not divide the children it is at most that of a quorum of all.
double LargestStableGain(const DelayModel& model);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SYNC_STABLE_GAIN_H_
