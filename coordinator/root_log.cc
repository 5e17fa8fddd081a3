#include "coordinator/root_log.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "glog/logging.h"
#include "runtime/base/fault_point.h"
#include "runtime/base/mutation.h"

namespace wukong {
namespace {

constexpr absl::Duration kRetry = absl::Milliseconds(200);
constexpr size_t kSnapshotsKept = 2;

}  // namespace

std::string LogDirectory(const std::string& run_dir) { return run_dir + "/log"; }
std::string CheckpointDirectory(const std::string& run_dir) { return run_dir + "/checkpoints"; }

RootLog::RootLog(FileSystem* files, std::string run_dir, LogIdentity identity, const RootState& state,
                 std::unique_ptr<LogWriter> writer, const Options& options)
    : files_(files),
      run_dir_(std::move(run_dir)),
      identity_(std::move(identity)),
      options_(options),
      writer_(std::move(writer)),
      history_(state),
      bytes_since_snapshot_(options.bytes_since_snapshot) {}

absl::StatusOr<std::unique_ptr<RootLog>> RootLog::Open(FileSystem* files, const std::string& run_dir,
                                                       const LogIdentity& identity, const RootState& state,
                                                       const LogSummary& end, const Options& options) {
  for (const std::string& directory : {LogDirectory(run_dir), CheckpointDirectory(run_dir)}) {
    if (absl::Status status = files->MakeDirectories(directory); !status.ok()) return status;
  }
  // What was made by a life that did not come to this.
  if (absl::Status status = files->SyncDirectory(run_dir); !status.ok()) return status;
  absl::StatusOr<std::vector<std::string>> names = files->List(CheckpointDirectory(run_dir));
  if (!names.ok()) return names.status();
  for (const std::string& name : *names) {
    if (!absl::EndsWith(name, ".tmp")) continue;  // A snapshot in whose middle a life ended.
    if (absl::Status status = files->Remove(CheckpointDirectory(run_dir) + "/" + name); !status.ok()) return status;
  }
  LogOptions log_options;
  log_options.sync = options.fsync;
  auto writer = LogWriter::Open(files, LogDirectory(run_dir), identity, end, log_options);
  if (!writer.ok()) return writer.status();
  return std::unique_ptr<RootLog>(new RootLog(files, run_dir, identity, state, *std::move(writer), options));
}

void RootLog::Append(const LogRecord& record) {
  std::string bytes;
  CHECK(record.SerializeToString(&bytes)) << "a record of " << record.ByteSizeLong() << " bytes";
  MutexLock lock(mutex_);
  // Before it is in the log, where every later life would find the contradiction.
  const int64_t index = history_.index() + 1;
  const absl::Status status = history_.Add(index, record);
  CHECK(status.ok()) << "this coordinator contradicts its own log: " << status << "; "
                     << LogRecordToJson(index, record);
  bytes_since_snapshot_ += static_cast<int64_t>(bytes.size());
  CHECK_EQ(writer_->Append(std::move(bytes)), index);
}

bool RootLog::Joined(int64_t member, int64_t incarnation) const {
  MutexLock lock(mutex_);
  return history_.Joined(member, incarnation);
}

absl::Status RootLog::MakeDurable() {
  while (true) {
    FaultPoint("root.before_fsync");
    const absl::Status status = writer_->Sync();
    FaultPoint("root.after_fsync");
    MutexLock lock(mutex_);
    if (status.ok()) {
      if (!trouble_.empty()) LOG(WARNING) << "the log can be written again";
      trouble_.clear();
      return absl::OkStatus();
    }
    if (trouble_ != status.message()) LOG(ERROR) << "nothing is acknowledged: " << status;
    trouble_ = std::string(status.message());
    const bool stopping = stopping_ || (options_.stop != nullptr && options_.stop->received() != 0);
    if (stopping) return absl::CancelledError(absl::StrCat("stopped while the log could not be written: ", trouble_));
    changed_.WaitFor(mutex_, kRetry);
  }
}

void RootLog::Stop() {
  MutexLock lock(mutex_);
  stopping_ = true;
  changed_.NotifyAll();
}

std::string RootLog::trouble() const {
  MutexLock lock(mutex_);
  return trouble_;
}

int64_t RootLog::index() const {
  MutexLock lock(mutex_);
  return history_.index();
}

RootState RootLog::state() const {
  MutexLock lock(mutex_);
  return history_.state();
}

RootState RootLog::Summary() const {
  MutexLock lock(mutex_);
  return history_.Summary();
}

bool RootLog::ClaimSnapshot() {
  MutexLock lock(mutex_);
  if (snapshot_claimed_ || bytes_since_snapshot_ < options_.snapshot_bytes) return false;
  snapshot_claimed_ = true;
  bytes_since_snapshot_ = 0;
  return true;
}

absl::Status RootLog::WriteSnapshot(const absl::StatusOr<Checkpoint>& checkpoint) {
  const absl::Status status = checkpoint.ok() ? WriteAndPrune(*checkpoint) : checkpoint.status();
  MutexLock lock(mutex_);
  snapshot_claimed_ = false;
  return status;
}

absl::Status RootLog::WriteAndPrune(const Checkpoint& checkpoint) {
  const std::string directory = CheckpointDirectory(run_dir_);
  const std::string path = CheckpointPath(directory, checkpoint.state.version());
  // The state has records that nobody waited for. A log that ends before its snapshot has lost something.
  if (absl::Status status = writer_->Sync(); !status.ok()) return status;
  FaultPoint("snapshot.before_write");
  if (absl::Status status = WriteCheckpoint(files_, path, checkpoint); !status.ok()) return status;
  if (const absl::Status read = ReadCheckpointState(files_, path).status(); !read.ok()) {
    return absl::DataLossError(absl::StrCat("the snapshot does not read back: ", read.message()));
  }
  verified_[path] = checkpoint.state.index();
  const absl::Status pruned = Prune();
  return pruned.ok() ? pruned
                     : absl::Status(pruned.code(), absl::StrCat("the snapshot was taken, and what it makes superfluous "
                                                                "is still there: ",
                                                                pruned.message()));
}

absl::Status RootLog::Prune() {
  const std::string directory = CheckpointDirectory(run_dir_);
  if (absl::Status status = writer_->StartSegment(); !status.ok()) return status;
  absl::StatusOr<std::vector<CheckpointFile>> snapshots = ListCheckpoints(files_, directory);
  if (!snapshots.ok()) return snapshots.status();
  FaultPoint("snapshot.before_prune");
  // Each of the newest two that can be read may be the one that a restart begins with. A damaged one counts for
  // neither.
  std::vector<int64_t> kept;  // Their last records.
  for (auto snapshot = snapshots->rbegin(); snapshot != snapshots->rend(); ++snapshot) {
    if (kept.size() == kSnapshotsKept) {
      if (absl::Status status = files_->Remove(snapshot->path); !status.ok()) return status;
      verified_.erase(snapshot->path);
      continue;
    }
    if (verified_.count(snapshot->path) == 0) {
      const absl::StatusOr<Checkpoint> read = ReadCheckpointState(files_, snapshot->path);
      if (absl::IsDataLoss(read.status())) continue;
      if (!read.ok()) return read.status();  // Another time it may be readable.
      verified_[snapshot->path] = read->state.index();
    }
    kept.push_back(verified_[snapshot->path]);
  }
  if (Mutated("snapshot.older_one_loses_its_log")) kept.resize(1);
  // No segment may be gone while a snapshot that needs it can come back.
  if (absl::Status status = files_->SyncDirectory(directory); !status.ok()) return status;
  const int64_t needed = *std::min_element(kept.begin(), kept.end()) + 1;
  if (absl::Status status = writer_->RemoveBefore(needed); !status.ok()) return status;
  FaultPoint("snapshot.after_prune");
  return absl::OkStatus();
}

}  // namespace wukong
