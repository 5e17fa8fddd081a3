#include "runtime/base/file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace wukong {

absl::Status ErrnoToStatus(int error, absl::string_view what) {
  const std::string text = absl::StrCat(what, ": ", std::strerror(error));
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(text);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(text);
    case EEXIST:
      return absl::AlreadyExistsError(text);
    case ENOSPC:
    case EDQUOT:
    case EMFILE:
    case ENOMEM:
    case EFBIG:
      return absl::ResourceExhaustedError(text);
    case EADDRINUSE:
      return absl::FailedPreconditionError(text);
    case ECONNREFUSED:
    case ECONNRESET:
    case EPIPE:
      return absl::UnavailableError(text);
    default:
      return absl::InternalError(text);
  }
}

bool IsFullDisk(const absl::Status& status) {
  return absl::IsResourceExhausted(status) && (absl::StrContains(status.message(), std::strerror(ENOSPC)) ||
                                               absl::StrContains(status.message(), std::strerror(EDQUOT)));
}

absl::Status BadFile(const std::string& path, absl::string_view text) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", text));
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) return ErrnoToStatus(EISDIR, "cannot read " + path);
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) return ErrnoToStatus(errno, "cannot open " + path);
  std::string contents;
  char buffer[1 << 16];
  size_t read = 0;
  while ((read = std::fread(buffer, 1, sizeof(buffer), file)) > 0) contents.append(buffer, read);
  const int error_number = std::ferror(file) != 0 ? errno : 0;
  std::fclose(file);
  if (error_number != 0) return ErrnoToStatus(error_number, "cannot read " + path);
  return contents;
}

absl::Status WriteFileAtomic(const std::string& path, absl::string_view contents) {
  const std::string temporary = absl::StrCat(path, ".tmp.", ::getpid());
  const int file = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0) return ErrnoToStatus(errno, "cannot create " + temporary);
  size_t written = 0;
  int error = 0;
  while (written < contents.size()) {
    const ssize_t n = ::write(file, contents.data() + written, contents.size() - written);
    if (n < 0) {
      if (errno == EINTR) continue;
      error = errno;
      break;
    }
    written += static_cast<size_t>(n);
  }
  if (error == 0 && ::fsync(file) != 0) error = errno;
  if (::close(file) != 0 && error == 0) error = errno;
  if (error == 0 && ::rename(temporary.c_str(), path.c_str()) != 0) error = errno;
  if (error != 0) {
    ::unlink(temporary.c_str());
    return ErrnoToStatus(error, "cannot write " + path);
  }
  return absl::OkStatus();
}

absl::Status MakeDirectories(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (error) return ErrnoToStatus(error.value(), "cannot make directory " + path);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<JsonLinesWriter>> JsonLinesWriter::Open(const std::string& path) {
  std::FILE* file = std::fopen(path.c_str(), "ae");
  if (file == nullptr) return ErrnoToStatus(errno, "cannot open " + path);
  return std::unique_ptr<JsonLinesWriter>(new JsonLinesWriter(path, file));
}

JsonLinesWriter::~JsonLinesWriter() { std::fclose(file_); }

absl::Status JsonLinesWriter::Write(const nlohmann::ordered_json& object) {
  std::string line = object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  MutexLock lock(mutex_);
  if (torn_) line.insert(line.begin(), '\n');
  if (std::fwrite(line.data(), 1, line.size(), file_) == line.size() && std::fflush(file_) == 0) {
    torn_ = false;
    return absl::OkStatus();
  }
  const int error = errno;
  std::clearerr(file_);
  torn_ = true;
  return ErrnoToStatus(error, "cannot write " + path_);
}

}  // namespace wukong
