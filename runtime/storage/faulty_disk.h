// The machine's files on a disk that fails when told to, as disks do: full, syncs that fail, power that is lost. For
// experiments on real processes (docs/chaos.md); FaultFileSystem is the same in memory.
#ifndef WUKONG_RUNTIME_STORAGE_FAULTY_DISK_H_
#define WUKONG_RUNTIME_STORAGE_FAULTY_DISK_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/base/clock.h"
#include "runtime/base/mutex.h"
#include "runtime/base/random.h"
#include "runtime/storage/file_system.h"
#include "runtime/storage/power_loss.h"

namespace wukong {

// Knows of each file that it changes what is on the disk for certain. What is there when a file is first changed counts
// as that. Thread-safe; its files and locks need it.
class FaultyDisk final : public FileSystem {
 public:
  // `clock` outlives it. Everything random comes from the seed.
  FaultyDisk(const Clock* clock, uint64_t seed);
  ~FaultyDisk() override;

  // Until `end` no write succeeds: a part of the data is written; RESOURCE_EXHAUSTED.
  void FillUntil(absl::Time end);
  // Until `end` no sync succeeds (INTERNAL): some of the unsynced bytes of the file reach the disk and the rest never
  // will, although later syncs succeed; programs go on seeing them. Nor does the sync of a directory: nothing happens.
  void FailSyncsUntil(absl::Time end);
  // How many of either have failed.
  int64_t failed_writes() const;
  int64_t failed_syncs() const;
  // Called at the beginning of every sync of a file that has something to lose, by the thread that syncs. Null: no
  // more; returns when no call is under way.
  void OnSync(std::function<void()> hook);

  struct Loss {
    int64_t bytes_unsynced = 0;
    int64_t bytes_lost = 0;    // Of these: cut off, torn, or without a name.
    int64_t names_undone = 0;  // Renames, creations and removals.
  };
  // Power is lost: of what was not synced, each file has nothing, a part from the beginning, or torn sectors; and each
  // name that was not synced is as before or as after, as `seed` says. A sync that is under way has not happened. From
  // here on no call of another thread returns, so that nobody is told otherwise: the caller ends the process.
  Loss LosePower(uint64_t seed);

  absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& path) override;
  absl::StatusOr<std::unique_ptr<WritableFile>> Open(const std::string& path) override;
  absl::StatusOr<std::unique_ptr<ReadableFile>> OpenToRead(const std::string& path) override {
    return real_->OpenToRead(path);
  }
  absl::StatusOr<std::string> Read(const std::string& path) override { return real_->Read(path); }
  absl::StatusOr<int64_t> Size(const std::string& path) override { return real_->Size(path); }
  absl::Status Rename(const std::string& from, const std::string& to) override;
  absl::Status Remove(const std::string& path) override;
  absl::StatusOr<std::vector<std::string>> List(const std::string& directory) override {
    return real_->List(directory);
  }
  absl::Status MakeDirectories(const std::string& directory) override { return real_->MakeDirectories(directory); }
  absl::Status SyncDirectory(const std::string& directory) override;
  absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string& path, absl::string_view contents) override {
    return real_->Lock(path, contents);
  }
  absl::StatusOr<std::unique_ptr<FileLock>> WaitForLock(const std::string& path, absl::string_view contents,
                                                        const StopSignal& stop) override {
    return real_->WaitForLock(path, contents, stop);
  }

 private:
  class File;
  struct Inode;
  using Names = std::map<std::string, std::shared_ptr<Inode>>;

  // For ever once power is lost.
  void AwaitPower() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The file that `path` names; null when there is none.
  std::shared_ptr<Inode> Track(const std::string& path) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void CutBack(Inode* inode, Random* random, Loss* loss) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  FileSystem* const real_ = FileSystem::Real();
  const Clock* const clock_;

  Mutex hook_mutex_;  // Held while the hook runs; taken before mutex_.
  std::function<void()> on_sync_ ABSL_GUARDED_BY(hook_mutex_);

  // Not held while bytes are written or synced.
  mutable Mutex mutex_;
  CondVar changed_;
  Random random_ ABSL_GUARDED_BY(mutex_);
  Names names_ ABSL_GUARDED_BY(mutex_);          // As programs see them; of files that were changed.
  Names names_on_disk_ ABSL_GUARDED_BY(mutex_);  // The same, as far as directories were synced.
  absl::Time full_until_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  absl::Time syncs_fail_until_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  int64_t failed_writes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t failed_syncs_ ABSL_GUARDED_BY(mutex_) = 0;
  int writing_ ABSL_GUARDED_BY(mutex_) = 0;  // Threads that are changing a file.
  bool off_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_STORAGE_FAULTY_DISK_H_
