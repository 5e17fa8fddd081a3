#include "runtime/storage/file_system.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <filesystem>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "runtime/base/file.h"

namespace wukong {
namespace {

// -1 and errno, as open(2).
int OpenRetrying(const std::string& path, int flags) {
  int descriptor;
  do {
    descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0644);
  } while (descriptor < 0 && errno == EINTR);
  return descriptor;
}

// 0 or the error.
int WriteAll(int descriptor, absl::string_view data) {
  while (!data.empty()) {
    const ssize_t n = ::write(descriptor, data.data(), data.size());
    if (n < 0) {
      if (errno == EINTR) continue;
      return errno;
    }
    data.remove_prefix(static_cast<size_t>(n));
  }
  return 0;
}

class RealWritableFile final : public WritableFile {
 public:
  RealWritableFile(std::string path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}
  // What close(2) could report was either synced before, or nobody relies on it.
  ~RealWritableFile() override { ::close(descriptor_); }

  absl::Status Append(absl::string_view data) override {
    const int error = WriteAll(descriptor_, data);
    if (error != 0) return ErrnoToStatus(error, absl::StrCat("cannot write ", data.size(), " bytes to ", path_));
    return absl::OkStatus();
  }

  absl::Status Sync() override {
    // Not repeated on EINTR: the kernel reports a failed write of a page only once, so a second call may lie.
    if (::fdatasync(descriptor_) != 0) return ErrnoToStatus(errno, "cannot sync " + path_);
    return absl::OkStatus();
  }

  absl::Status Truncate(int64_t bytes) override {
    int result;
    do {
      result = ::ftruncate(descriptor_, bytes);
    } while (result != 0 && errno == EINTR);
    if (result != 0) return ErrnoToStatus(errno, absl::StrCat("cannot cut ", path_, " to ", bytes, " bytes"));
    return absl::OkStatus();
  }

 private:
  const std::string path_;
  const int descriptor_;
};

class RealReadableFile final : public ReadableFile {
 public:
  RealReadableFile(std::string path, int descriptor) : path_(std::move(path)), descriptor_(descriptor) {}
  ~RealReadableFile() override { ::close(descriptor_); }

  absl::StatusOr<size_t> Read(char* to, size_t size) override {
    size_t done = 0;
    while (done < size) {
      const ssize_t count = ::read(descriptor_, to + done, size - done);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return ErrnoToStatus(errno, "cannot read " + path_);
      if (count == 0) break;
      done += static_cast<size_t>(count);
    }
    return done;
  }

 private:
  const std::string path_;
  const int descriptor_;
};

class RealFileLock final : public FileLock {
 public:
  // Of the file at `path`, which is made if it is not there; nobody has locked it yet.
  static absl::StatusOr<std::unique_ptr<RealFileLock>> Open(const std::string& path) {
    const int descriptor = OpenRetrying(path, O_RDWR | O_CREAT);
    if (descriptor < 0) return ErrnoToStatus(errno, "cannot open the lock file " + path);
    return std::unique_ptr<RealFileLock>(new RealFileLock(descriptor));
  }
  // The file stays: removing it would let two processes lock two files of the same name.
  ~RealFileLock() override { ::close(descriptor_); }

  int descriptor() const { return descriptor_; }

 private:
  explicit RealFileLock(int descriptor) : descriptor_(descriptor) {}
  const int descriptor_;
};

class RealFileSystem final : public FileSystem {
 public:
  absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& path) override {
    const int descriptor = OpenRetrying(path, O_WRONLY | O_APPEND | O_CREAT | O_EXCL);
    if (descriptor < 0) return ErrnoToStatus(errno, "cannot create " + path);
    return std::make_unique<RealWritableFile>(path, descriptor);
  }

  absl::StatusOr<std::unique_ptr<WritableFile>> Open(const std::string& path) override {
    const int descriptor = OpenRetrying(path, O_WRONLY | O_APPEND);
    if (descriptor < 0) return ErrnoToStatus(errno, "cannot open " + path);
    return std::make_unique<RealWritableFile>(path, descriptor);
  }

  absl::StatusOr<std::unique_ptr<ReadableFile>> OpenToRead(const std::string& path) override {
    const int descriptor = OpenRetrying(path, O_RDONLY);
    if (descriptor < 0) return ErrnoToStatus(errno, "cannot open " + path);
    return std::make_unique<RealReadableFile>(path, descriptor);
  }

  absl::StatusOr<std::string> Read(const std::string& path) override { return ReadFile(path); }

  absl::StatusOr<int64_t> Size(const std::string& path) override {
    struct stat entry;
    if (::stat(path.c_str(), &entry) != 0) return ErrnoToStatus(errno, "cannot get the size of " + path);
    return static_cast<int64_t>(entry.st_size);
  }

  absl::Status Rename(const std::string& from, const std::string& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0) {
      return ErrnoToStatus(errno, absl::StrCat("cannot rename ", from, " to ", to));
    }
    return absl::OkStatus();
  }

  absl::Status Remove(const std::string& path) override {
    if (::unlink(path.c_str()) != 0) return ErrnoToStatus(errno, "cannot remove " + path);
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<std::string>> List(const std::string& directory) override {
    std::vector<std::string> names;
    std::error_code error;
    std::filesystem::directory_iterator entry(directory, error);
    for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
      names.push_back(entry->path().filename().string());
    }
    if (error) return ErrnoToStatus(error.value(), "cannot list directory " + directory);
    std::sort(names.begin(), names.end());
    return names;
  }

  // The new directories survive a loss of power, or what is synced in them would be nowhere.
  absl::Status MakeDirectories(const std::string& directory) override {
    std::error_code error;
    std::filesystem::path path = std::filesystem::absolute(directory, error).lexically_normal();
    if (error) return ErrnoToStatus(error.value(), "cannot make directory " + directory);
    std::vector<std::string> parents;  // Of what is not there yet.
    while (!std::filesystem::exists(path, error) && !error && path != path.parent_path()) {
      path = path.parent_path();
      parents.push_back(path.string());
    }
    absl::Status status = wukong::MakeDirectories(directory);
    for (const std::string& parent : parents) {
      if (status.ok()) status = SyncDirectory(parent);
    }
    return status;
  }

  absl::Status SyncDirectory(const std::string& directory) override {
    const int descriptor = OpenRetrying(directory, O_RDONLY | O_DIRECTORY);
    if (descriptor < 0) return ErrnoToStatus(errno, "cannot open directory " + directory);
    const int error = ::fsync(descriptor) != 0 ? errno : 0;
    ::close(descriptor);
    if (error != 0) return ErrnoToStatus(error, "cannot sync directory " + directory);
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string& path, absl::string_view contents) override {
    absl::StatusOr<std::unique_ptr<RealFileLock>> lock = RealFileLock::Open(path);
    if (!lock.ok()) return lock.status();
    int result;
    do {
      result = ::flock((*lock)->descriptor(), LOCK_EX | LOCK_NB);
    } while (result != 0 && errno == EINTR);
    if (result != 0) {
      if (errno != EWOULDBLOCK) return ErrnoToStatus(errno, "cannot lock " + path);
      const absl::StatusOr<std::string> owner = ReadFile(path);
      return absl::FailedPreconditionError(
          absl::StrCat(path, " is locked by another process: ",
                       owner.ok() ? std::string(absl::StripAsciiWhitespace(*owner)) : owner.status().ToString()));
    }
    return Sign(path, contents, *std::move(lock));
  }

  absl::StatusOr<std::unique_ptr<FileLock>> WaitForLock(const std::string& path, absl::string_view contents,
                                                        const StopSignal& stop) override {
    absl::StatusOr<std::unique_ptr<RealFileLock>> lock = RealFileLock::Open(path);
    if (!lock.ok()) return lock.status();
    // flock(2) can wait for nothing else beside the lock: a thread of its own sleeps there, and a signal to it, which
    // StopSignal has made harmless, interrupts its sleep.
    std::atomic<bool> given_up{false}, ended{false};
    int error = 0;
    std::thread sleeper([&] {
      int result;
      do {
        result = ::flock((*lock)->descriptor(), LOCK_EX);
      } while (result != 0 && errno == EINTR && !given_up);
      error = result != 0 ? errno : 0;
      ended = true;
      stop.Wake();
    });
    while (!ended && !stop.WaitFor(absl::Hours(1))) {
    }
    given_up = true;
    // Once may be too early: between its look at `given_up` and its call.
    for (; !ended; absl::SleepFor(absl::Milliseconds(1))) ::pthread_kill(sleeper.native_handle(), stop.received());
    sleeper.join();
    if (stop.received() != 0) return absl::CancelledError(absl::StrCat("a signal came before the lock of ", path));
    if (error != 0) return ErrnoToStatus(error, "cannot lock " + path);
    return Sign(path, contents, *std::move(lock));
  }

 private:
  static absl::StatusOr<std::unique_ptr<FileLock>> Sign(const std::string& path, absl::string_view contents,
                                                        std::unique_ptr<RealFileLock> lock) {
    // Over what is there: a full disk has room for that.
    int error = WriteAll(lock->descriptor(), contents);
    if (error == 0 && ::ftruncate(lock->descriptor(), static_cast<off_t>(contents.size())) != 0) error = errno;
    if (error != 0) return ErrnoToStatus(error, "cannot write the lock file " + path);
    return lock;
  }
};

}  // namespace

FileSystem* FileSystem::Real() {
  static RealFileSystem* const files = new RealFileSystem;
  return files;
}

}  // namespace wukong
