// A file system in memory that fails as disks do. It knows what programs see (the page cache) and what is on the disk,
// which is all that is left after Crash.
#ifndef WUKONG_RUNTIME_STORAGE_FAULT_FILE_SYSTEM_H_
#define WUKONG_RUNTIME_STORAGE_FAULT_FILE_SYSTEM_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/base/mutex.h"
#include "runtime/base/random.h"
#include "runtime/base/stop_signal.h"
#include "runtime/storage/file_system.h"
#include "runtime/storage/power_loss.h"

namespace wukong {

// Thread-safe. Must outlive its files and locks. Everything random comes from the seed.
class FaultFileSystem final : public FileSystem {
 public:
  enum Operation { kWrite, kSync, kTruncate, kCreate, kRename, kRemove, kSyncDirectory, kOperations };

  explicit FaultFileSystem(uint64_t seed) : random_(seed) {}

  // From the `nth` such operation from now on (0: the very next) `times` of them fail. What failed:
  //   kWrite: a part of the data is written; RESOURCE_EXHAUSTED.
  //   kSync: some of the unsynced bytes reach the disk and the rest never will, although later syncs succeed; programs
  //     go on seeing them, or not.
  //   others: nothing happened.
  void Fail(Operation operation, int nth = 0, int times = 1) {
    MutexLock lock(mutex_);
    skip_[operation] = nth;
    fail_[operation] = times;
  }
  // Every operation fails with this probability, beside the others.
  void FailRandomly(double probability) {
    MutexLock lock(mutex_);
    probability_ = probability;
  }
  // No write succeeds any more.
  void SetFull(bool full) {
    MutexLock lock(mutex_);
    full_ = full;
  }
  // The process dies after so many operations, perhaps in the middle of a write: later ones do nothing and fail, until
  // Crash or Revive.
  void DieAfter(int operations) {
    MutexLock lock(mutex_);
    left_to_live_ = operations;
  }
  // A new process on the same machine.
  void Revive() {
    MutexLock lock(mutex_);
    left_to_live_ = -1;
  }
  // Called at the beginning of every sync of a file, by the thread that syncs.
  void OnSync(std::function<void()> hook) {
    MutexLock lock(mutex_);
    on_sync_ = std::move(hook);
  }
  // Faults that came to pass: a test whose faults never fired proves nothing.
  int failures(Operation operation) const {
    MutexLock lock(mutex_);
    return failures_[operation];
  }
  int calls(Operation operation) const {
    MutexLock lock(mutex_);
    return calls_[operation];
  }

  // The machine loses power and starts again: of what was not synced, each file has nothing, a part from the beginning,
  // or torn sectors; and each name that was not synced is as before or as after. Open files are dead. Locks are free.
  void Crash() {
    MutexLock lock(mutex_);
    std::set<std::string> paths;
    for (const auto& [path, inode] : names_) paths.insert(path);
    for (const auto& [path, inode] : names_on_disk_) paths.insert(path);
    std::map<std::string, std::shared_ptr<Inode>> names;
    std::map<const Inode*, std::shared_ptr<Inode>> restarted;
    for (const std::string& path : paths) {
      const auto& from = random_.Below(2) == 0 ? names_ : names_on_disk_;
      const auto entry = from.find(path);
      if (entry == from.end()) continue;
      std::shared_ptr<Inode>& inode = restarted[entry->second.get()];
      if (inode == nullptr) inode = Restarted(*entry->second);
      names[path] = inode;
    }
    names_ = names;
    names_on_disk_ = names;
    locks_.clear();
    left_to_live_ = -1;
  }

  // What is on the disk and what programs see become `contents`.
  void Put(const std::string& path, const std::string& contents) {
    MutexLock lock(mutex_);
    auto inode = std::make_shared<Inode>();
    inode->cache = contents;
    inode->disk = contents;
    inode->clean = inode->size();
    names_[path] = inode;
    names_on_disk_[path] = inode;
    directories_.insert(path.substr(0, path.rfind('/')));
  }

  absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& path) override {
    MutexLock lock(mutex_);
    absl::Status status = MayFail(kCreate, "create " + path);
    if (!status.ok()) return status;
    if (directories_.count(path.substr(0, path.rfind('/'))) == 0)
      return absl::NotFoundError("no directory for " + path);
    if (names_.count(path) != 0) return absl::AlreadyExistsError(path);
    names_[path] = std::make_shared<Inode>();
    return std::make_unique<File>(this, path, names_[path]);
  }

  absl::StatusOr<std::unique_ptr<WritableFile>> Open(const std::string& path) override {
    MutexLock lock(mutex_);
    const auto entry = names_.find(path);
    if (entry == names_.end()) return absl::NotFoundError(path);
    return std::make_unique<File>(this, path, entry->second);
  }

  absl::StatusOr<std::string> Read(const std::string& path) override {
    MutexLock lock(mutex_);
    const auto entry = names_.find(path);
    if (entry == names_.end()) return absl::NotFoundError(path);
    return entry->second->cache;
  }

  absl::StatusOr<std::unique_ptr<ReadableFile>> OpenToRead(const std::string& path) override {
    absl::StatusOr<std::string> contents = Read(path);
    if (!contents.ok()) return contents.status();
    return std::make_unique<ContentsReader>(*std::move(contents));
  }

  absl::StatusOr<int64_t> Size(const std::string& path) override {
    const auto contents = Read(path);
    if (!contents.ok()) return contents.status();
    return static_cast<int64_t>(contents->size());
  }

  absl::Status Rename(const std::string& from, const std::string& to) override {
    MutexLock lock(mutex_);
    absl::Status status = MayFail(kRename, absl::StrCat("rename ", from, " to ", to));
    if (!status.ok()) return status;
    const auto entry = names_.find(from);
    if (entry == names_.end()) return absl::NotFoundError(from);
    names_[to] = entry->second;
    names_.erase(from);
    return absl::OkStatus();
  }

  absl::Status Remove(const std::string& path) override {
    MutexLock lock(mutex_);
    absl::Status status = MayFail(kRemove, "remove " + path);
    if (!status.ok()) return status;
    if (names_.erase(path) == 0) return absl::NotFoundError(path);
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<std::string>> List(const std::string& directory) override {
    MutexLock lock(mutex_);
    if (directories_.count(directory) == 0) return absl::NotFoundError(directory);
    std::vector<std::string> names;
    for (const auto& [path, inode] : names_) {
      const size_t slash = path.rfind('/');
      if (path.substr(0, slash) == directory) names.push_back(path.substr(slash + 1));
    }
    return names;
  }

  absl::Status MakeDirectories(const std::string& directory) override {
    MutexLock lock(mutex_);
    for (size_t slash = directory.find('/', 1); slash != std::string::npos; slash = directory.find('/', slash + 1)) {
      directories_.insert(directory.substr(0, slash));
    }
    directories_.insert(directory);
    return absl::OkStatus();
  }

  absl::Status SyncDirectory(const std::string& directory) override {
    MutexLock lock(mutex_);
    absl::Status status = MayFail(kSyncDirectory, "sync directory " + directory);
    if (!status.ok()) return status;
    const auto in_directory = [&directory](const std::string& path) {
      return path.substr(0, path.rfind('/')) == directory;
    };
    for (auto entry = names_on_disk_.begin(); entry != names_on_disk_.end();) {
      entry = in_directory(entry->first) ? names_on_disk_.erase(entry) : std::next(entry);
    }
    for (const auto& [path, inode] : names_) {
      if (in_directory(path)) names_on_disk_[path] = inode;
    }
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string& path, absl::string_view contents) override {
    MutexLock lock(mutex_);
    const std::shared_ptr<const std::string> owner = locks_[path].lock();
    if (owner != nullptr) return absl::FailedPreconditionError(absl::StrCat(path, " is locked: ", *owner));
    auto held = std::make_unique<Held>();
    held->contents = std::make_shared<const std::string>(contents);
    locks_[path] = held->contents;
    return held;
  }

  absl::StatusOr<std::unique_ptr<FileLock>> WaitForLock(const std::string& path, absl::string_view contents,
                                                        const StopSignal& stop) override {
    while (true) {
      absl::StatusOr<std::unique_ptr<FileLock>> held = Lock(path, contents);
      if (!absl::IsFailedPrecondition(held.status())) return held;
      if (stop.WaitFor(absl::Milliseconds(1))) return absl::CancelledError("a signal came before the lock");
    }
  }

 private:
  // Of what the file was when it was opened.
  class ContentsReader final : public ReadableFile {
   public:
    explicit ContentsReader(std::string contents) : contents_(std::move(contents)) {}
    absl::StatusOr<size_t> Read(char* to, size_t size) override {
      const size_t count = contents_.copy(to, size, at_);
      at_ += count;
      return count;
    }

   private:
    const std::string contents_;
    size_t at_ = 0;
  };

  static constexpr int kDead = -2;

  struct Inode {
    std::string cache;
    std::string disk;
    int64_t clean = 0;  // The kernel believes that the bytes of the cache before this are on the disk.
    int64_t size() const { return static_cast<int64_t>(cache.size()); }
  };

  struct Held final : FileLock {
    std::shared_ptr<const std::string> contents;
  };

  class File final : public WritableFile {
   public:
    File(FaultFileSystem* files, std::string path, std::shared_ptr<Inode> inode)
        : files_(files), path_(std::move(path)), inode_(std::move(inode)) {}

    absl::Status Append(absl::string_view data) override {
      MutexLock lock(files_->mutex_);
      absl::Status status = files_->MayFail(kWrite, "write to " + path_);
      if (absl::IsAborted(status)) return status;  // Dead.
      if (!status.ok()) data = data.substr(0, files_->random_.Below(data.size() + 1));
      inode_->cache.append(data.data(), data.size());
      return status;
    }

    absl::Status Sync() override {
      std::function<void()> hook;
      {
        MutexLock lock(files_->mutex_);
        hook = files_->on_sync_;
      }
      if (hook) hook();
      MutexLock lock(files_->mutex_);
      absl::Status status = files_->MayFail(kSync, "sync " + path_);
      if (absl::IsAborted(status)) return status;  // Dead.
      if (status.ok()) {
        inode_->disk.resize(inode_->cache.size());
        WriteBack({ByteRange{inode_->clean, inode_->size()}}, inode_.get());
      } else {
        WriteBack(SomeSectors(inode_->clean, inode_->size(), &files_->random_), inode_.get());
        if (files_->random_.Below(2) == 0) inode_->cache = inode_->disk;
      }
      inode_->clean = inode_->size();
      return status;
    }

    absl::Status Truncate(int64_t bytes) override {
      MutexLock lock(files_->mutex_);
      absl::Status status = files_->MayFail(kTruncate, "truncate " + path_);
      if (!status.ok()) return status;
      inode_->cache.resize(static_cast<size_t>(bytes));
      inode_->clean = std::min(inode_->clean, inode_->size());
      return absl::OkStatus();
    }

   private:
    FaultFileSystem* const files_;
    const std::string path_;
    const std::shared_ptr<Inode> inode_;
  };

  absl::Status MayFail(Operation operation, absl::string_view what) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (left_to_live_ == 0 || left_to_live_ == kDead) {
      const bool half_done = operation == kWrite && left_to_live_ == 0;
      left_to_live_ = kDead;
      const std::string text = absl::StrCat("cannot ", what, ": this process is dead");
      return half_done ? absl::ResourceExhaustedError(text) : absl::AbortedError(text);
    }
    if (left_to_live_ > 0) --left_to_live_;
    ++calls_[operation];
    bool fails = operation == kWrite && full_;
    if (fail_[operation] > 0 && --skip_[operation] < 0) {
      --fail_[operation];
      fails = true;
    }
    if (probability_ > 0 && random_.Uniform() < probability_) fails = true;
    if (!fails) return absl::OkStatus();
    ++failures_[operation];
    const std::string text = absl::StrCat("cannot ", what, ": injected fault");
    return operation == kWrite ? absl::ResourceExhaustedError(text) : absl::InternalError(text);
  }

  static void WriteBack(const std::vector<ByteRange>& kept, Inode* inode) {
    for (const ByteRange& range : kept) {
      const auto begin = static_cast<size_t>(range.begin), end = static_cast<size_t>(range.end);
      if (inode->disk.size() < end) inode->disk.resize(end);
      inode->disk.replace(begin, end - begin, inode->cache, begin, end - begin);
    }
  }

  // The file as the restarted machine finds it.
  std::shared_ptr<Inode> Restarted(Inode inode) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    WriteBack(LeftByPowerLoss(inode.clean, inode.size(), &random_), &inode);
    inode.cache = inode.disk;
    inode.clean = inode.size();
    return std::make_shared<Inode>(std::move(inode));
  }

  mutable Mutex mutex_;
  Random random_ ABSL_GUARDED_BY(mutex_);
  std::set<std::string> directories_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::shared_ptr<Inode>> names_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::shared_ptr<Inode>> names_on_disk_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::weak_ptr<const std::string>> locks_ ABSL_GUARDED_BY(mutex_);
  std::function<void()> on_sync_ ABSL_GUARDED_BY(mutex_);
  int skip_[kOperations] ABSL_GUARDED_BY(mutex_) = {};
  int fail_[kOperations] ABSL_GUARDED_BY(mutex_) = {};
  int calls_[kOperations] ABSL_GUARDED_BY(mutex_) = {};
  int failures_[kOperations] ABSL_GUARDED_BY(mutex_) = {};
  double probability_ ABSL_GUARDED_BY(mutex_) = 0;
  int left_to_live_ ABSL_GUARDED_BY(mutex_) = -1;  // Operations; -1: no end is in sight.
  bool full_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_STORAGE_FAULT_FILE_SYSTEM_H_
