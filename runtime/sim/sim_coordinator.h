// The coordinator with the root in the simulator: the production core, engine, log, snapshots and recovery, on a disk
// that can fail.
#ifndef WUKONG_RUNTIME_SIM_SIM_COORDINATOR_H_
#define WUKONG_RUNTIME_SIM_SIM_COORDINATOR_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "coordinator/coordinator_core.h"
#include "coordinator/root_log.h"
#include "runtime/model/synthetic_trainer.h"
#include "runtime/sim/sim_node.h"
#include "runtime/sim/sim_session.h"
#include "runtime/storage/fault_file_system.h"

namespace wukong {

class SimCoordinator final : public SimProcess {
 public:
  SimCoordinator(SimWorld* world, const Workload& workload, absl::Duration sync_time);
  ~SimCoordinator() override;

  const SimCoordinatorDoor& door() const { return door_; }
  // Null while there is no life, or no engine yet.
  SimNode* node() const;
  FaultFileSystem& disk() { return disk_; }
  // Every sync fails until further notice.
  void SetDiskError(bool on) { disk_error_ = on; }

  enum class Place { kAfterAppendBeforeAck, kAfterAck, kAfterPublish };
  // Called when the root, at version `version` or later, gets to `place`.
  void OnPlace(std::function<void(Place, Version)> hook) { on_place_ = std::move(hook); }
  // Whoever is started by it again ends when the run does.
  bool done() const { return done_; }
  // Some life knew that nothing is left to do.
  bool budget_committed() const { return budget_committed_; }
  // Why this life could not begin or go on; the run has failed then.
  const std::string& failure() const { return failure_; }
  std::vector<float> parameters() const;
  // Of the log, by the life that had to replay the most.
  int64_t most_bytes_replayed() const { return most_bytes_replayed_; }

 private:
  struct Life;
  void Begin() override;
  void End() override;
  void Fail(const absl::Status& status);
  void CannotBegin(const absl::Status& status);
  void With(absl::FunctionRef<void(CoordinatorCore&)> use);
  void Tick();
  void NoteLeases(const HeartbeatReply& reply, int64_t member);
  // Runs `work` when every record so far is on the disk.
  void WhenDurable(Action work);
  absl::Status MakeDurable();
  void SyncLater();
  void TakeSnapshotIfDue();
  void AtPlace(Place place, Version version);
  std::unique_ptr<NodeEngine> MakeEngine(const NodeEngine::Restored& restored);

  SimWorld* const world_;
  const Workload workload_;
  const absl::Duration sync_time_;
  FaultFileSystem disk_;
  bool disk_error_ = false;
  SimCoordinatorDoor door_;
  std::function<void(Place, Version)> on_place_;
  std::unique_ptr<Life> life_state_;
  bool done_ = false;
  bool budget_committed_ = false;
  std::string failure_;
  int64_t most_bytes_replayed_ = 0;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_SIM_COORDINATOR_H_
