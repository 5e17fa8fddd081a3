// A rank other than 0 of a region's group: it computes what rank 0 orders, and holds no data of its own.
#ifndef WUKONG_WORKER_GROUP_FOLLOWER_H_
#define WUKONG_WORKER_GROUP_FOLLOWER_H_

#include "absl/status/status.h"
#include "proto/job.pb.h"
#include "proto/wire.pb.h"
#include "runtime/base/stop_signal.h"
#include "runtime/data/token_dataset.h"
#include "runtime/model/trainer.h"
#include "worker/session.h"

namespace wukong {

// Until rank 0 ends the group (OK) or the run is over. ABORTED: the group has lost a rank, this worker is fenced, or
// the job failed. Other errors are those of forming the group and of training.
absl::Status RunGroupFollower(const Job& job, const Region& region, const JoinReply& joined, Trainer* trainer,
                              const SampleReader* reader, Session* session, const StopSignal& stop);

}  // namespace wukong

#endif  // WUKONG_WORKER_GROUP_FOLLOWER_H_
