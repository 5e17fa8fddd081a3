// Files, with errors that name the path and the reason.
#ifndef WUKONG_RUNTIME_BASE_FILE_H_
#define WUKONG_RUNTIME_BASE_FILE_H_

#include <cstdio>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"
#include "runtime/base/mutex.h"

namespace wukong {

// `what` + ": " + the text of the error, with the status code that fits it (ENOENT: NOT_FOUND, ENOSPC:
// RESOURCE_EXHAUSTED, EACCES: PERMISSION_DENIED, ...).
absl::Status ErrnoToStatus(int error, absl::string_view what);

// The disk is full, or what somebody may have of it: of all that RESOURCE_EXHAUSTED stands for, what may end by itself.
// Goes by the text, which others have added to.
bool IsFullDisk(const absl::Status& status);

// INVALID_ARGUMENT: what a file holds is not what it should be.
absl::Status BadFile(const std::string& path, absl::string_view text);

absl::StatusOr<std::string> ReadFile(const std::string& path);

// The file is wholly there or not at all: written beside it, synced, then renamed. Makes no directories.
absl::Status WriteFileAtomic(const std::string& path, absl::string_view contents);

// mkdir -p.
absl::Status MakeDirectories(const std::string& path);

// One JSON object a line, flushed line by line. Thread-safe. A line that could not be written is lost as a whole; later
// ones may be written again.
class JsonLinesWriter {
 public:
  static absl::StatusOr<std::unique_ptr<JsonLinesWriter>> Open(const std::string& path);
  ~JsonLinesWriter();
  absl::Status Write(const nlohmann::ordered_json& object);

 private:
  JsonLinesWriter(std::string path, std::FILE* file) : path_(std::move(path)), file_(file) {}
  const std::string path_;
  Mutex mutex_;
  std::FILE* const file_ ABSL_GUARDED_BY(mutex_);
  bool torn_ ABSL_GUARDED_BY(mutex_) = false;  // The file may end within a line.
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_BASE_FILE_H_
