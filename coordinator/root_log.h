// The root's log as the coordinator uses it: the records, what they add up to, and the snapshots that keep it short.
#ifndef WUKONG_COORDINATOR_ROOT_LOG_H_
#define WUKONG_COORDINATOR_ROOT_LOG_H_

#include <map>
#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/log.pb.h"
#include "runtime/base/mutex.h"
#include "runtime/base/stop_signal.h"
#include "runtime/storage/checkpoint.h"
#include "runtime/storage/file_system.h"
#include "runtime/storage/log.h"
#include "runtime/storage/root_history.h"

namespace wukong {

// RUN_DIR/log and RUN_DIR/checkpoints.
std::string LogDirectory(const std::string& run_dir);
std::string CheckpointDirectory(const std::string& run_dir);

// Thread-safe.
class RootLog {
 public:
  struct Options {
    bool fsync = true;
    int64_t snapshot_bytes = 64 << 20;
    // Of records since the newest snapshot that are in the log already: who dies again and again before it has written
    // enough for a snapshot of its own would replay more each time.
    int64_t bytes_since_snapshot = 0;
    const StopSignal* stop = nullptr;  // Ends MakeDurable as Stop does. May be null; outlives the log.
  };

  // Goes on after `state`, the fold of every record up to the end of the log.
  static absl::StatusOr<std::unique_ptr<RootLog>> Open(FileSystem* files, const std::string& run_dir,
                                                       const LogIdentity& identity, const RootState& state,
                                                       const LogSummary& end, const Options& options);

  // Numbers the record and adds it to the state. No I/O; the order of calls is the order of the log.
  void Append(const LogRecord& record);

  // Blocks until every record so far is on the disk: while there is no space, or the disk fails, it says so in
  // trouble() and tries again. CANCELLED once Stop was called or a signal has come.
  absl::Status MakeDurable();
  void Stop();
  // The same without trying again: for the start, where an error is for the person who started it.
  absl::Status MakeDurableOnce() { return writer_->Sync(); }

  // Why nothing is acknowledged at the moment; empty when all is well.
  std::string trouble() const;
  int64_t durable_index() const { return writer_->durable_index(); }
  int64_t bytes_written() const { return writer_->bytes_written(); }

  // Of the last record.
  int64_t index() const;
  // Whether this is the newest life of a member that has joined.
  bool Joined(int64_t member, int64_t incarnation) const;
  // With everything a snapshot needs, or without what waits for its quorum.
  RootState state() const;
  RootState Summary() const;
  const LogIdentity& identity() const { return identity_; }

  // Enough has been written since the last snapshot, and none is being taken. Claims the next one.
  bool ClaimSnapshot();
  // Has what the snapshot stands on in the log, writes it, reads it back, and only then removes what is no longer
  // needed: all but the newest two snapshots, and the segments before them. Gives the claim back, also of one that
  // could not be made.
  absl::Status WriteSnapshot(const absl::StatusOr<Checkpoint>& checkpoint);

 private:
  RootLog(FileSystem* files, std::string run_dir, LogIdentity identity, const RootState& state,
          std::unique_ptr<LogWriter> writer, const Options& options);
  absl::Status WriteAndPrune(const Checkpoint& checkpoint);
  absl::Status Prune();

  FileSystem* const files_;
  const std::string run_dir_;
  const LogIdentity identity_;
  const Options options_;
  const std::unique_ptr<LogWriter> writer_;
  std::map<std::string, int64_t> verified_;  // Snapshots that read back, and their index. WriteAndPrune's.

  mutable Mutex mutex_;
  CondVar changed_;
  RootHistory history_ ABSL_GUARDED_BY(mutex_);
  int64_t bytes_since_snapshot_ ABSL_GUARDED_BY(mutex_);
  bool snapshot_claimed_ ABSL_GUARDED_BY(mutex_) = false;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::string trouble_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace wukong

#endif  // WUKONG_COORDINATOR_ROOT_LOG_H_
