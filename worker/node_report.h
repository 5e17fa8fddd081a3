// What an aggregator's heartbeats say of its node. The node's executor may be busy for long (a merge of a large model
// takes seconds), and a heartbeat that waits for it would be taken for a dead aggregator's: one that finds it busy says
// what the last one said.
#ifndef WUKONG_WORKER_NODE_REPORT_H_
#define WUKONG_WORKER_NODE_REPORT_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <vector>

#include "absl/time/time.h"
#include "proto/wire.pb.h"
#include "runtime/base/clock.h"
#include "runtime/base/executor.h"
#include "runtime/sync/parent_node.h"

namespace wukong {

// One thread's, but for what it posts.
class NodeReporter {
 public:
  struct Report {
    ParentNode::Stats stats;
    std::set<MemberId> quarantined;
    std::vector<LeasedRange> custody;  // All of it, at some time after it was asked for, in that term.
    int64_t custody_term = 0;          // 0: it was not asked for.
  };
  // Runs `work` on the node's executor sometime, or drops it when the node is shut down.
  using Post = std::function<void(std::function<void(const ParentNode& node)> work)>;

  // `clock` outlives this and what was posted.
  NodeReporter(Post post, const Clock* clock) : post_(std::move(post)), clock_(clock) {}

  // The newest report. A new one is asked for unless one is under way, and waited for at most `patience`. Null: there
  // was none yet. `custody_term`: the term of a coordinator that asks for the custody, or 0.
  std::shared_ptr<const Report> Newest(int64_t custody_term, absl::Duration patience);

 private:
  struct Pending {
    Report report;
    Notification made;
  };
  const Post post_;
  const Clock* const clock_;
  std::shared_ptr<Pending> pending_;
  std::shared_ptr<const Report> newest_;
};

// Adds to `request` what `report` says, but for the custody.
void FillNodeReport(const NodeReporter::Report& report, HeartbeatRequest* request);

}  // namespace wukong

#endif  // WUKONG_WORKER_NODE_REPORT_H_
