#include "runtime/data/input_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "runtime/base/file.h"
#include "runtime/base/shell_word.h"
#include "runtime/data/packing.h"

namespace wukong {

absl::StatusOr<std::unique_ptr<InputFile>> InputFile::Open(const std::string& path) {
  struct stat info;
  // Asked before opening: opening a named pipe would wait for its other end.
  if (::stat(path.c_str(), &info) != 0) return ErrnoToStatus(errno, "cannot read input " + path);
  if (!S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat("input ", path,
                                                   S_ISDIR(info.st_mode) ? " is a directory" : " is not a regular file",
                                                   "; expected a text file, plain or gzip"));
  }
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return ErrnoToStatus(errno, "cannot open input " + path);
  char head[kPackingMagicMax];
  const ssize_t there = ::pread(descriptor, head, sizeof head, 0);
  const Packing* const packing = there > 0 ? FindPacking({head, static_cast<size_t>(there)}) : nullptr;
  // What is not gzip would be read as if its packed bytes were text.
  if (packing != nullptr && absl::string_view(packing->name) != "gzip") {
    ::close(descriptor);
    return absl::InvalidArgumentError(absl::StrCat(
        "input ", path, " is packed by ", packing->name,
        " (expected a text file, plain or gzip); unpack it: ", packing->unpack, " ", ShellWord(path), " > FILE"));
  }
  gzFile file = gzdopen(descriptor, "rb");
  if (file == nullptr) {
    ::close(descriptor);
    return absl::ResourceExhaustedError("cannot open input " + path + ": out of memory");
  }
  gzbuffer(file, 1 << 18);
  return std::unique_ptr<InputFile>(new InputFile(path, file, static_cast<int64_t>(info.st_size)));
}

InputFile::~InputFile() { gzclose_r(file_); }

absl::StatusOr<size_t> InputFile::Read(size_t bytes_max, std::string* text) {
  const size_t before = text->size();
  bytes_max = std::min(bytes_max, static_cast<size_t>(std::numeric_limits<int>::max()));
  text->resize(before + bytes_max);
  errno = 0;
  const int got = gzread(file_, text->data() + before, static_cast<unsigned>(bytes_max));
  const int read_error = errno;
  text->resize(before + static_cast<size_t>(std::max(got, 0)));
  int code = Z_OK;
  const char* message = gzerror(file_, &code);
  if (code == Z_ERRNO) return ErrnoToStatus(read_error, "cannot read input " + path_);
  // Z_BUF_ERROR is how zlib says that the file ends amid the packed data.
  if (got < 0 || code == Z_BUF_ERROR || code == Z_DATA_ERROR) {
    return absl::InvalidArgumentError(
        absl::StrCat("input ", path_, " begins like gzip but is damaged or cut (", message, "). Fetch the file again"));
  }
  return static_cast<size_t>(got);
}

int64_t InputFile::file_bytes_read() const { return std::max<int64_t>(0, gzoffset(file_)); }

}  // namespace wukong
