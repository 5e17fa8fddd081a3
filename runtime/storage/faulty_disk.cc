#include "runtime/storage/faulty_disk.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "runtime/base/file.h"

namespace wukong {
namespace {

absl::string_view DirectoryOf(absl::string_view path) {
  const size_t slash = path.rfind('/');
  return slash == absl::string_view::npos ? absl::string_view() : path.substr(0, slash);
}

int64_t Bytes(const std::vector<ByteRange>& ranges) {
  int64_t bytes = 0;
  for (const ByteRange& range : ranges) bytes += range.end - range.begin;
  return bytes;
}

// What goes wrong here makes the experiment another one than was ordered; the log says so.
void ZeroGaps(int descriptor, const std::vector<ByteRange>& kept, int64_t size) {
  std::vector<ByteRange> gaps;
  int64_t at = 0;
  for (const ByteRange& range : kept) {
    if (range.begin > at) gaps.push_back({at, range.begin});
    at = std::max(at, range.end);
  }
  if (at < size) gaps.push_back({at, size});
  if (gaps.empty()) return;
  void* const bytes = ::mmap(nullptr, static_cast<size_t>(size), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (bytes == MAP_FAILED) {
    PLOG(ERROR) << "fault injection: a file keeps bytes that were not synced";
    return;
  }
  for (const ByteRange& gap : gaps) {
    std::memset(static_cast<char*>(bytes) + gap.begin, 0, static_cast<size_t>(gap.end - gap.begin));
  }
  ::munmap(bytes, static_cast<size_t>(size));
}

// A file `path` with the contents of another one, which may have no name any more.
absl::Status CopyTo(int descriptor, const std::string& path) {
  const int copy = ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
  if (copy < 0) return ErrnoToStatus(errno, "cannot create " + path);
  std::vector<char> buffer(1 << 20);
  off_t at = 0;
  ssize_t read = 0;
  int error = 0;
  while (error == 0 && (read = ::pread(descriptor, buffer.data(), buffer.size(), at)) > 0) {
    at += read;
    if (::write(copy, buffer.data(), static_cast<size_t>(read)) != read) error = errno != 0 ? errno : ENOSPC;
  }
  if (read < 0) error = errno;
  ::close(copy);
  return error == 0 ? absl::OkStatus() : ErrnoToStatus(error, "cannot write " + path);
}

}  // namespace

struct FaultyDisk::Inode {
  explicit Inode(int open_descriptor) : descriptor(open_descriptor) {}
  ~Inode() { ::close(descriptor); }
  Inode(const Inode&) = delete;
  Inode& operator=(const Inode&) = delete;

  int64_t size() const {
    struct stat info = {};
    return ::fstat(descriptor, &info) == 0 ? static_cast<int64_t>(info.st_size) : 0;
  }

  // `kept` is at or behind `clean`.
  void Keep(const std::vector<ByteRange>& kept) {
    for (const ByteRange& range : kept) {
      if (!on_disk.empty() && on_disk.back().end == range.begin) {
        on_disk.back().end = range.end;
      } else {
        on_disk.push_back(range);
      }
    }
  }

  const int descriptor;            // To read and write: the file is there whatever becomes of its name.
  int64_t clean = 0;               // The kernel believes that the bytes before this are on the disk.
  std::vector<ByteRange> on_disk;  // And these are. Rising.
};

class FaultyDisk::File final : public WritableFile {
 public:
  File(FaultyDisk* disk, std::string path, std::unique_ptr<WritableFile> real, std::shared_ptr<Inode> inode)
      : disk_(disk), path_(std::move(path)), real_(std::move(real)), inode_(std::move(inode)) {}

  absl::Status Append(absl::string_view data) override {
    bool full = false;
    {
      MutexLock lock(disk_->mutex_);
      disk_->AwaitPower();
      full = disk_->clock_->Now() < disk_->full_until_;
      ++disk_->writing_;
      if (full) {
        ++disk_->failed_writes_;
        data = data.substr(0, disk_->random_.Below(data.size() + 1));
      }
    }
    absl::Status status = real_->Append(data);
    MutexLock lock(disk_->mutex_);
    --disk_->writing_;
    disk_->changed_.NotifyAll();
    disk_->AwaitPower();
    if (full) status.Update(ErrnoToStatus(ENOSPC, absl::StrCat("cannot write to ", path_, " (fault injection)")));
    return status;
  }

  absl::Status Sync() override {
    if (inode_->size() > inode_->clean) {
      MutexLock hold(disk_->hook_mutex_);
      if (disk_->on_sync_) disk_->on_sync_();
    }
    int64_t size = 0;
    bool fails = false;
    {
      MutexLock lock(disk_->mutex_);
      disk_->AwaitPower();
      size = inode_->size();
      fails = disk_->clock_->Now() < disk_->syncs_fail_until_;
    }
    absl::Status status =
        fails ? ErrnoToStatus(EIO, absl::StrCat("cannot sync ", path_, " (fault injection)")) : real_->Sync();
    MutexLock lock(disk_->mutex_);
    disk_->AwaitPower();
    if (fails) ++disk_->failed_syncs_;
    inode_->Keep(status.ok() ? std::vector<ByteRange>{ByteRange{inode_->clean, size}}
                             : SomeSectors(inode_->clean, size, &disk_->random_));
    inode_->clean = size;
    return status;
  }

  // What is cut off is gone from the disk as well: a crash may leave it or not, and nobody counts on either.
  absl::Status Truncate(int64_t bytes) override {
    {
      MutexLock lock(disk_->mutex_);
      disk_->AwaitPower();
      ++disk_->writing_;
    }
    absl::Status status = real_->Truncate(bytes);
    MutexLock lock(disk_->mutex_);
    --disk_->writing_;
    disk_->changed_.NotifyAll();
    disk_->AwaitPower();
    if (!status.ok()) return status;
    inode_->clean = std::min(inode_->clean, bytes);
    std::vector<ByteRange>& on_disk = inode_->on_disk;
    while (!on_disk.empty() && on_disk.back().begin >= bytes) on_disk.pop_back();
    if (!on_disk.empty()) on_disk.back().end = std::min(on_disk.back().end, bytes);
    return status;
  }

 private:
  FaultyDisk* const disk_;
  const std::string path_;
  const std::unique_ptr<WritableFile> real_;
  const std::shared_ptr<Inode> inode_;  // Changed by the thread that uses the file, under the disk's mutex.
};

FaultyDisk::FaultyDisk(const Clock* clock, uint64_t seed) : clock_(clock), random_(seed) {}

FaultyDisk::~FaultyDisk() = default;

void FaultyDisk::FillUntil(absl::Time end) {
  MutexLock lock(mutex_);
  full_until_ = std::max(full_until_, end);
}

void FaultyDisk::FailSyncsUntil(absl::Time end) {
  MutexLock lock(mutex_);
  syncs_fail_until_ = std::max(syncs_fail_until_, end);
}

int64_t FaultyDisk::failed_writes() const {
  MutexLock lock(mutex_);
  return failed_writes_;
}

int64_t FaultyDisk::failed_syncs() const {
  MutexLock lock(mutex_);
  return failed_syncs_;
}

void FaultyDisk::OnSync(std::function<void()> hook) {
  MutexLock hold(hook_mutex_);
  on_sync_ = std::move(hook);
}

void FaultyDisk::AwaitPower() {
  while (off_) changed_.Wait(mutex_);
}

std::shared_ptr<FaultyDisk::Inode> FaultyDisk::Track(const std::string& path) {
  if (const auto known = names_.find(path); known != names_.end()) return known->second;
  if (names_on_disk_.count(path) != 0) return nullptr;  // Removed, and the directory is not synced.
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (descriptor < 0) return nullptr;
  auto inode = std::make_shared<Inode>(descriptor);
  inode->clean = inode->size();
  inode->on_disk.push_back({0, inode->clean});
  names_[path] = inode;
  names_on_disk_[path] = inode;
  return inode;
}

absl::StatusOr<std::unique_ptr<WritableFile>> FaultyDisk::Create(const std::string& path) {
  MutexLock lock(mutex_);
  AwaitPower();
  absl::StatusOr<std::unique_ptr<WritableFile>> real = real_->Create(path);
  if (!real.ok()) return real.status();
  const int descriptor = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  if (descriptor < 0) return ErrnoToStatus(errno, "cannot open " + path);
  auto inode = std::make_shared<Inode>(descriptor);
  names_[path] = inode;
  return std::make_unique<File>(this, path, *std::move(real), std::move(inode));
}

absl::StatusOr<std::unique_ptr<WritableFile>> FaultyDisk::Open(const std::string& path) {
  MutexLock lock(mutex_);
  AwaitPower();
  absl::StatusOr<std::unique_ptr<WritableFile>> real = real_->Open(path);
  if (!real.ok()) return real.status();
  std::shared_ptr<Inode> inode = Track(path);
  if (inode == nullptr) return absl::InternalError(absl::StrCat("cannot open ", path, " a second time"));
  return std::make_unique<File>(this, path, *std::move(real), std::move(inode));
}

absl::Status FaultyDisk::Rename(const std::string& from, const std::string& to) {
  MutexLock lock(mutex_);
  AwaitPower();
  std::shared_ptr<Inode> inode = Track(from);
  Track(to);
  if (absl::Status status = real_->Rename(from, to); !status.ok()) return status;
  names_.erase(from);
  names_.erase(to);
  if (inode != nullptr) names_[to] = std::move(inode);
  return absl::OkStatus();
}

absl::Status FaultyDisk::Remove(const std::string& path) {
  MutexLock lock(mutex_);
  AwaitPower();
  Track(path);
  if (absl::Status status = real_->Remove(path); !status.ok()) return status;
  names_.erase(path);
  return absl::OkStatus();
}

absl::Status FaultyDisk::SyncDirectory(const std::string& directory) {
  Names synced;
  {
    MutexLock lock(mutex_);
    AwaitPower();
    if (clock_->Now() < syncs_fail_until_) {
      ++failed_syncs_;
      return ErrnoToStatus(EIO, absl::StrCat("cannot sync directory ", directory, " (fault injection)"));
    }
    for (const auto& [path, inode] : names_) {
      if (DirectoryOf(path) == directory) synced[path] = inode;
    }
  }
  absl::Status status = real_->SyncDirectory(directory);
  MutexLock lock(mutex_);
  AwaitPower();
  if (!status.ok()) return status;
  for (auto entry = names_on_disk_.begin(); entry != names_on_disk_.end();) {
    entry = DirectoryOf(entry->first) == directory ? names_on_disk_.erase(entry) : std::next(entry);
  }
  names_on_disk_.merge(synced);
  return status;
}

void FaultyDisk::CutBack(Inode* inode, Random* random, Loss* loss) {
  const int64_t size = inode->size();
  loss->bytes_unsynced += size - Bytes(inode->on_disk);
  std::vector<ByteRange> kept = inode->on_disk;
  const std::vector<ByteRange> unsynced = LeftByPowerLoss(inode->clean, size, random);
  kept.insert(kept.end(), unsynced.begin(), unsynced.end());
  loss->bytes_lost += size - Bytes(kept);
  const int64_t end = kept.empty() ? 0 : kept.back().end;
  if (::ftruncate(inode->descriptor, end) != 0) PLOG(ERROR) << "fault injection: a file cannot be cut";
  ZeroGaps(inode->descriptor, kept, end);
}

FaultyDisk::Loss FaultyDisk::LosePower(uint64_t seed) {
  MutexLock lock(mutex_);
  off_ = true;
  while (writing_ > 0) changed_.Wait(mutex_);
  Random random(seed);
  Loss loss;
  std::set<std::string> paths;
  for (const Names* names : {&names_, &names_on_disk_}) {
    for (const auto& [path, inode] : *names) paths.insert(path);
  }
  Names left;
  for (const std::string& path : paths) {
    const Names& from = random.Below(2) == 0 ? names_ : names_on_disk_;
    const auto entry = from.find(path);
    left[path] = entry == from.end() ? nullptr : entry->second;
  }
  std::set<const Inode*> cut;
  for (const auto& [path, inode] : left) {
    if (inode != nullptr && cut.insert(inode.get()).second) CutBack(inode.get(), &random, &loss);
  }
  for (const auto& [path, inode] : names_) {
    if (cut.count(inode.get()) != 0) continue;  // The others are lost with their names.
    loss.bytes_unsynced += inode->size() - Bytes(inode->on_disk);
    loss.bytes_lost += inode->size() - Bytes(inode->on_disk);
  }
  for (const auto& [path, inode] : left) {
    const auto seen = names_.find(path);
    if (inode == (seen == names_.end() ? nullptr : seen->second)) continue;
    ++loss.names_undone;
    if (seen != names_.end()) ::unlink(path.c_str());
    if (inode == nullptr) continue;
    const absl::Status status = CopyTo(inode->descriptor, path);
    LOG_IF(ERROR, !status.ok()) << "fault injection: a file does not come back: " << status;
  }
  return loss;
}

}  // namespace wukong
