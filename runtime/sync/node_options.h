// What a job says of the nodes and leaves of its tree.
#ifndef WUKONG_RUNTIME_SYNC_NODE_OPTIONS_H_
#define WUKONG_RUNTIME_SYNC_NODE_OPTIONS_H_

#include <vector>

#include "proto/job.pb.h"
#include "runtime/sync/leaf_schedule.h"
#include "runtime/sync/node_engine.h"

namespace wukong {

// Of the root, or of a region's aggregator. `job` is resolved.
NodeEngine::Options NodeOptionsOf(const Job& job, bool is_root, std::vector<FragmentSpan> fragments);

// How a child of the root (a region) or of a region (a worker) sends its progress and takes parameters.
// `siblings` is the number of children that its parent has, itself included.
Replica::Options ReplicaOptionsOf(const Job& job, bool parent_is_root, int64_t siblings);

// The most samples that one optimizer step of some leaf has.
int64_t LargestStep(const Job& job);

// Of a leaf of `group_size` workers. `prefetch`: data in hand is enough for so long at the leaf's own speed.
LeafSchedule::Options LeafOptionsOf(const Job& job, int64_t group_size, absl::Duration prefetch);

// Versions that a child (ReplicaOptionsOf) has room for beyond the last one that it looked at. A leaf, which looks once
// per step, gets by with one to take and one to come. A region hears from the root after a round trip: it has more on
// their way, while they are small.
int VersionsAhead(bool parent_is_root, absl::Span<const FragmentSpan> fragments);

// What a version of the parent says to a leaf's schedule.
LeafSchedule::ParentState ParentStateOf(const FollowedParameters::Snapshot& snapshot);

// What the root's newest version said, in the life before this one; of a new run, its first. What was merged after that
// version is not in it, and must not be said to be.
VersionNotes NotesOf(const RootState& state);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SYNC_NODE_OPTIONS_H_
