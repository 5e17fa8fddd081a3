// What a job says of the nodes of its tree.
#ifndef WUKONG_RUNTIME_SYNC_NODE_OPTIONS_H_
#define WUKONG_RUNTIME_SYNC_NODE_OPTIONS_H_

#include <vector>

#include "proto/job.pb.h"
#include "runtime/sync/node_engine.h"

namespace wukong {

// Of the root, or of a region's aggregator. `job` is resolved.
NodeEngine::Options NodeOptionsOf(const Job& job, bool is_root, std::vector<FragmentSpan> fragments);

// What the root's newest version said, in the life before this one; of a new run, its first. What was merged after that
// version is not in it, and must not be said to be.
VersionNotes NotesOf(const RootState& state);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SYNC_NODE_OPTIONS_H_
