// The coordinator's gRPC service: the core behind a mutex, its effects carried out in the order in which they were
// decided.
#ifndef WUKONG_COORDINATOR_COORDINATOR_SERVICE_H_
#define WUKONG_COORDINATOR_COORDINATOR_SERVICE_H_

#include <atomic>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/coordinator_core.h"
#include "coordinator/root_faults.h"
#include "coordinator/root_log.h"
#include "proto/wire.grpc.pb.h"
#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/mutex.h"
#include "runtime/transport/parameter_server.h"

namespace wukong {

// Thread-safe. What is passed by pointer outlives it.
class CoordinatorService final : public Coordinator::Service {
 public:
  CoordinatorService(const Job& job, const std::string& run, const std::string& schema_digest, int64_t parameters,
                     const RootState& state, RootLog* log, const Clock* clock, JsonLinesWriter* events,
                     JsonLinesWriter* metrics);

  // Before the first call that has effects on the root.
  void SetRoot(ParameterServer* root) {
    MutexLock lock(mutex_);
    root_ = root;
  }
  // Before the first call, where the job allows faults: who carries out those that are ordered of the root.
  void SetFaults(RootFaults* faults) {
    MutexLock lock(mutex_);
    faults_ = faults;
  }
  // Before the first call: TokenFile::Fingerprint of what workers train on.
  void SetTrainFingerprint(std::string fingerprint) {
    MutexLock lock(mutex_);
    train_fingerprint_ = std::move(fingerprint);
  }
  // Before training starts: what the log says of the parameters that it starts from.
  void SetInitialLoss(double loss) {
    MutexLock lock(mutex_);
    initial_loss_ = loss;
  }

  grpc::Status GetJob(grpc::ServerContext* context, const GetJobRequest* request, GetJobReply* reply) override;
  grpc::Status Join(grpc::ServerContext* context, const JoinRequest* request, JoinReply* reply) override;
  grpc::Status Heartbeat(grpc::ServerContext* context, const HeartbeatRequest* request, HeartbeatReply* reply) override;
  grpc::Status GetStatus(grpc::ServerContext* context, const StatusRequest* request, StatusReply* reply) override;

  grpc::Status InjectFault(grpc::ServerContext* context, const InjectFaultRequest* request,
                           InjectFaultReply* reply) override;

  // Runs `use(core, now)` alone, then the effects. `use` must not call the root.
  template <typename Use>
  void With(Use use) {
    std::vector<CoordinatorCore::Effect> effects;
    {
      MutexLock lock(mutex_);
      use(core_, clock_->Now());
      effects = core_.TakeEffects();
      // In the order of the decisions: the root goes by the last set of idle children that it was told.
      for (const CoordinatorCore::Effect& effect : effects) TellRoot(effect);
    }
    for (const CoordinatorCore::Effect& effect : effects) WriteDown(effect);
  }

  StatusReply Status();

  void RecordEvent(nlohmann::ordered_json event) { WriteDown(CoordinatorCore::Record{std::move(event)}); }
  // Lines of events and metrics that could not be written. They are for people; what counts is in the log.
  int64_t lines_dropped() const { return lines_dropped_; }

 private:
  template <typename Reply, typename Use>
  grpc::Status Call(Reply* reply, Use use);
  double Seconds() const { return absl::ToDoubleSeconds(clock_->Now() - started_); }
  void Keep(const absl::Status& status);
  // What concerns the root, which only queues it, and what concerns the files.
  void TellRoot(const CoordinatorCore::Effect& effect) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::string WallTime() const;
  void WriteDown(const CoordinatorCore::Effect& effect);
  void Journal(LogRecord record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Clock* const clock_;
  const absl::Time started_;
  RootLog* const log_;
  JsonLinesWriter* const events_;
  JsonLinesWriter* const metrics_;
  std::atomic<int64_t> lines_dropped_{0};
  Mutex mutex_;
  std::string train_fingerprint_ ABSL_GUARDED_BY(mutex_);
  double initial_loss_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t ceiling_index_ ABSL_GUARDED_BY(mutex_) = 0;  // Record that the newest ceiling of the leases is in.
  CoordinatorCore core_ ABSL_GUARDED_BY(mutex_);
  ParameterServer* root_ ABSL_GUARDED_BY(mutex_) = nullptr;
  RootFaults* faults_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace wukong

#endif  // WUKONG_COORDINATOR_COORDINATOR_SERVICE_H_
