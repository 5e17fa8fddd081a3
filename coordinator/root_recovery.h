// Where a run stands, from its log and snapshots alone.
#ifndef WUKONG_COORDINATOR_ROOT_RECOVERY_H_
#define WUKONG_COORDINATOR_ROOT_RECOVERY_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "proto/job.pb.h"
#include "proto/log.pb.h"
#include "runtime/base/clock.h"
#include "runtime/model/trainer.h"
#include "runtime/storage/checkpoint.h"
#include "runtime/storage/file_system.h"
#include "runtime/storage/log.h"
#include "runtime/storage/root_history.h"
#include "runtime/sync/outer_optimizer.h"
#include "runtime/sync/public_copy.h"
#include "runtime/transport/parameter_server.h"

namespace wukong {

// What the root of `job` is made of; also what a replay needs.
ParameterServer::Options RootOptions(const Job& job, const ParameterLayout& layout);
// What a run's lives must have in common: everything but stop.wall, report, wan, and limits but limits.fragment_bytes.
Job CommonJob(const Job& job);
// Its SHA-256.
std::string JobDigest(const Job& job);

// The root's vectors, moved by records as the root moved them: the same bits. The parameters are the trainer's, and so
// is the optimizer of gradient progress.
class RootReplay {
 public:
  // From a snapshot, or (null) from the trainer's parameters as version 1 of a new run.
  static absl::StatusOr<std::unique_ptr<RootReplay>> Make(const Job& job, Trainer* trainer, const Checkpoint* snapshot);

  // DATA_LOSS: the record contradicts what came before it, or the parameters are not those that the root had.
  absl::Status Add(int64_t index, const LogRecord& record);

  const RootHistory& history() const { return history_; }
  uint64_t public_checksum() const { return public_->checksum(); }
  // For the server of the next life.
  ParameterServer::Restored Restored();
  // As a snapshot of now.
  absl::StatusOr<Checkpoint> Snapshot(const LogIdentity& identity);

 private:
  RootReplay(const Job& job, Trainer* trainer, const RootState& state);

  const Job job_;
  Trainer* const trainer_;
  const ParameterServer::Options options_;
  RootHistory history_;
  OuterOptimizer outer_;
  std::unique_ptr<PublicParameters> public_;
};

struct RecoveredRoot {
  std::unique_ptr<RootReplay> replay;
  LogIdentity identity;
  LogSummary log;
  std::string snapshot;  // Path; empty when there was none.
  int64_t records_replayed = 0;
  int64_t bytes_replayed = 0;
  std::vector<std::string> warnings;  // A damaged snapshot that was passed over, a torn tail.
};

// Whether there is anything of a run in the directory: who does not resume leaves it alone.
bool HoldsRun(FileSystem* files, const std::string& run_dir);

// INVALID_ARGUMENT: a contribution of the model is more than one record of the log, or limits.in_flight_bytes, holds.
// The job file alone does not tell where the model is a TorchScript file.
absl::Status CheckContributionBytes(const Job& job, const ParameterLayout& layout);

// A new run: its first snapshot, from the trainer's parameters or from the file that job.model.parameters names.
// INVALID_ARGUMENT: a file that does not fit the model.
absl::StatusOr<RecoveredRoot> BeginRun(FileSystem* files, const std::string& run_dir, const Job& job,
                                       const Clock& clock, Trainer* trainer);

// From the newest snapshot that is whole, and the log after it. NOT_FOUND: the directory holds no run, neither log nor
// snapshot nor events. DATA_LOSS: no whole snapshot with its log, or a damaged log; FAILED_PRECONDITION: another job or
// model, a newer format, or a processor on which the log gives other bits.
absl::StatusOr<RecoveredRoot> RecoverRoot(FileSystem* files, const std::string& run_dir, const Job& job,
                                          Trainer* trainer);

// The snapshot of a root's vectors as they stand; `state` is that of the log at the same moment.
absl::StatusOr<Checkpoint> MakeSnapshot(const LogIdentity& identity, RootState state, int64_t context, Trainer* trainer,
                                        Progress progress, ParameterServer::Vectors vectors);

// Reads the whole log, and the snapshots, without any memory of the coordinator's; replays them, and compares: each
// snapshot with the replay, each version with the checksum that its children got, the samples with the budget. `report`
// says what was found, also beside an error, which is that of the first violation.
absl::Status VerifyRun(FileSystem* files, const std::string& run_dir, const Job& job, Trainer* trainer,
                       nlohmann::ordered_json* report);

}  // namespace wukong

#endif  // WUKONG_COORDINATOR_ROOT_RECOVERY_H_
