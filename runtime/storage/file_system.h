// The only door to the disk for what must survive a crash, so that tests can make it fail: full disk, failing fsync,
// torn writes, lost unsynced writes.
#ifndef WUKONG_RUNTIME_STORAGE_FILE_SYSTEM_H_
#define WUKONG_RUNTIME_STORAGE_FILE_SYSTEM_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "runtime/base/stop_signal.h"

namespace wukong {

// A file that is appended to. Thread-compatible.
class WritableFile {
 public:
  virtual ~WritableFile() = default;
  // All or an error; after an error any part of `data` may be at the end of the file. RESOURCE_EXHAUSTED: no space.
  virtual absl::Status Append(absl::string_view data) = 0;
  // What was appended survives a loss of power. After an error the pages may be gone although a later call succeeds: do
  // not trust the file.
  virtual absl::Status Sync() = 0;
  virtual absl::Status Truncate(int64_t bytes) = 0;
};

// A file that is read from its beginning on. Thread-compatible.
class ReadableFile {
 public:
  virtual ~ReadableFile() = default;
  // Returns how many bytes there were: less than `size` only at the end of the file.
  virtual absl::StatusOr<size_t> Read(char* to, size_t size) = 0;
};

// Held until destroyed; the kernel gives it back when the process dies.
class FileLock {
 public:
  virtual ~FileLock() = default;
};

class FileSystem {
 public:
  virtual ~FileSystem() = default;
  // Creates the file; ALREADY_EXISTS when it is there.
  virtual absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& path) = 0;
  // Of an existing file, to append to it.
  virtual absl::StatusOr<std::unique_ptr<WritableFile>> Open(const std::string& path) = 0;
  virtual absl::StatusOr<std::unique_ptr<ReadableFile>> OpenToRead(const std::string& path) = 0;
  virtual absl::StatusOr<std::string> Read(const std::string& path) = 0;
  virtual absl::StatusOr<int64_t> Size(const std::string& path) = 0;
  virtual absl::Status Rename(const std::string& from, const std::string& to) = 0;
  virtual absl::Status Remove(const std::string& path) = 0;
  // Names, sorted. NOT_FOUND when there is no such directory.
  virtual absl::StatusOr<std::vector<std::string>> List(const std::string& directory) = 0;
  virtual absl::Status MakeDirectories(const std::string& directory) = 0;
  // Renames, creations and removals in it survive a loss of power.
  virtual absl::Status SyncDirectory(const std::string& directory) = 0;
  // Creates the file if needed. FAILED_PRECONDITION when another process holds it; its contents are then in the
  // message. `contents` says who holds it, for the message that another process gets.
  virtual absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string& path, absl::string_view contents) = 0;
  // The same, but while another process holds it, it sleeps, until that one gives it back or dies. CANCELLED when
  // `stop` got its signal first.
  virtual absl::StatusOr<std::unique_ptr<FileLock>> WaitForLock(const std::string& path, absl::string_view contents,
                                                                const StopSignal& stop) = 0;

  // The machine's. Lives for ever.
  static FileSystem* Real();
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_STORAGE_FILE_SYSTEM_H_
