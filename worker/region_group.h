// The workers of a region as one leaf of the tree (job file: collective). Rank 0 is the leaf to the coordinator and the
// aggregator; it tells the others what to do, and all of them make the same optimizer steps on the sum of their
// gradients, so that all hold the same parameters and optimizer state, bit for bit.
//
//   rank 0:  order --broadcast--> all:  train       loss and gradient all-reduced, then everybody's own optimizer step
//                                       parameters  broadcast by rank 0, which took newer ones from the aggregator
//                                       wait        who wants to leave?
//                                       finish
//
// A group that has lost a rank cannot go on: all its workers leave. They hear of it by the connection that ends, or
// from the coordinator, which takes who is silent for gone: a machine without power ends no connection.
#ifndef WUKONG_WORKER_REGION_GROUP_H_
#define WUKONG_WORKER_REGION_GROUP_H_

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "proto/job.pb.h"
#include "proto/wire.pb.h"
#include "runtime/base/clock.h"
#include "runtime/base/mutex.h"
#include "runtime/base/stop_signal.h"
#include "runtime/model/trainer.h"
#include "runtime/transport/collective.h"
#include "worker/mailbox.h"

namespace wukong {

// Calls block until all ranks have made them; one thread. Errors are ABORTED, safe to start again
// (runtime/base/restart.h), and name region and rank.
class RegionGroup {
 public:
  struct Callbacks {
    // This worker has been asked to leave; the others are told.
    std::function<bool()> leaving;
    // Why this worker leaves now whatever the group does, and calls under way are ended; empty: it does not. Is told
    // whether all ranks know that one leaves. From a thread of the group's own.
    std::function<std::string(bool somebody_leaves)> give_up;
  };
  RegionGroup(std::string region, std::unique_ptr<Communicator> communicator, Callbacks callbacks);
  ~RegionGroup();

  int rank() const { return communicator_->rank(); }
  int size() const { return communicator_->size(); }

  // Rank 0, and the others.
  absl::Status Announce(const GroupOrder& order);
  absl::StatusOr<GroupOrder> NextOrder();

  // Those of rank 0, into every trainer.
  absl::Status ShareParameters(Trainer* trainer);
  // The sum over the ranks. Also learns who wants to leave.
  absl::StatusOr<double> SumLoss(double part);
  absl::Status SumGradient(Trainer* trainer);
  // Nothing but who wants to leave.
  absl::Status AskWhoLeaves() { return SumLoss(0).status(); }

  // After the order to finish: until all have heard of it, or some are gone already.
  void Part();

  // Some rank wanted to leave when it was last asked.
  bool somebody_leaves() const { return somebody_leaves_; }
  bool broken() const { return broken_; }
  // When rank 0 last gave an order.
  absl::Time last_order() const { return last_order_; }

 private:
  absl::Status Check(const absl::Status& status);
  void Watch();

  const std::string region_;
  const std::unique_ptr<Communicator> communicator_;
  const Callbacks callbacks_;
  std::atomic<bool> somebody_leaves_ = false;
  bool broken_ = false;
  absl::Time last_order_;

  Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::string given_up_ ABSL_GUARDED_BY(mutex_);
  std::thread watch_;
};

// Samples [first, last) of a step of `samples` that `rank` computes: as even as can be.
struct SampleShare {
  int64_t first = 0;
  int64_t last = 0;
};
SampleShare ShareOf(int64_t samples, int rank, int size);

// Why a worker leaves its group though that has not ended in order. Not thread-safe.
class ReasonToLeave {
 public:
  // `mail` and `stop` outlive this.
  ReasonToLeave(std::vector<MemberKey> ranks, Mailbox* mail, const StopSignal* stop);

  // Empty: it stays. When the run is over, rank 0 has some time to end the group; likewise when this worker is told to
  // leave, from when all know it, which they do not before the step under way is done, however long that takes. A rank
  // that is lost, or that has lost its own place, ends it at once: Gloo does not wake every call that waits for a rank
  // whose connection has closed, and nobody would come.
  std::string Find(absl::Time now, bool somebody_leaves);

 private:
  const std::vector<MemberKey> ranks_;
  Mailbox* const mail_;
  const StopSignal* const stop_;
  std::optional<absl::Time> over_since_;
  std::optional<absl::Time> leaves_since_;
};

// Forms the group of `region` at the aggregator of `joined`: blocks until all of its workers have joined, at most for
// limits.start. CANCELLED when `stop` or the end of the run comes first; ABORTED, and safe to start again, when that
// aggregator is gone meanwhile. `mail` and `stop` outlive the group.
absl::StatusOr<std::unique_ptr<RegionGroup>> FormRegionGroup(const Job& job, const Region& region,
                                                             const JoinReply& joined, Mailbox* mail,
                                                             const StopSignal* stop);

}  // namespace wukong

#endif  // WUKONG_WORKER_REGION_GROUP_H_
