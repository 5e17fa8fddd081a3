#include "coordinator/root_log.h"

#include <algorithm>
#include <utility>
#include <vector>

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
  LogOptions log_options;
  log_options.sync = options.fsync;
  auto writer = LogWriter::Open(files, LogDirectory(run_dir), identity, end, log_options);
  if (!writer.ok()) return writer.status();
  return std::unique_ptr<RootLog>(new RootLog(files, run_dir, identity, state, *std::move(writer), options));
}

void RootLog::Append(const LogRecord& record) {
  std::string bytes = record.SerializeAsString();
  MutexLock lock(mutex_);
  bytes_since_snapshot_ += static_cast<int64_t>(bytes.size());
  const int64_t index = writer_->Append(std::move(bytes));
  const absl::Status status = history_.Add(index, record);
  CHECK(status.ok()) << "this coordinator contradicts its own log: " << status << "; "
                     << LogRecordToJson(index, record);
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
  if (absl::Status status = writer_->StartSegment(); !status.ok()) return status;
  absl::StatusOr<std::vector<CheckpointFile>> snapshots = ListCheckpoints(files_, directory);
  if (!snapshots.ok()) return snapshots.status();
  FaultPoint("snapshot.before_prune");
  while (snapshots->size() > kSnapshotsKept) {
    if (absl::Status status = files_->Remove(snapshots->front().path); !status.ok()) return status;
    verified_.erase(snapshots->front().path);
    snapshots->erase(snapshots->begin());
  }
  // Both that are kept can be the one that a restart begins with.
  int64_t needed = checkpoint.state.index() + 1;
  const std::string& older = snapshots->front().path;
  if (older != path && !Mutated("snapshot.older_one_loses_its_log")) {
    if (verified_.count(older) == 0) {
      const absl::StatusOr<Checkpoint> read = ReadCheckpointState(files_, older);
      if (read.ok()) verified_[older] = read->state.index();
    }
    const auto found = verified_.find(older);
    if (found != verified_.end()) needed = std::min(needed, found->second + 1);
  }
  if (absl::Status status = writer_->RemoveBefore(needed); !status.ok()) return status;
  FaultPoint("snapshot.after_prune");
  return absl::OkStatus();
}

}  // namespace wukong
