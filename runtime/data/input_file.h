// Text as it comes: plain, gzip or dictzip, read in pieces.
#ifndef WUKONG_RUNTIME_DATA_INPUT_FILE_H_
#define WUKONG_RUNTIME_DATA_INPUT_FILE_H_

#include <zlib.h>

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace wukong {

// Unpacks what begins like gzip, whatever its name is; anything else is read as it is.
class InputFile {
 public:
  // NOT_FOUND, PERMISSION_DENIED, or INVALID_ARGUMENT for what is not a regular file; the path is named.
  static absl::StatusOr<std::unique_ptr<InputFile>> Open(const std::string& path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  // Appends up to `bytes_max` unpacked bytes to `text` and returns their number; 0 at the end. INVALID_ARGUMENT when
  // packed data are damaged or cut.
  absl::StatusOr<size_t> Read(size_t bytes_max, std::string* text);

  // Of the file as it lies on the disk.
  int64_t file_bytes() const { return file_bytes_; }
  int64_t file_bytes_read() const;

 private:
  InputFile(std::string path, gzFile file, int64_t file_bytes)
      : path_(std::move(path)), file_(file), file_bytes_(file_bytes) {}
  const std::string path_;
  const gzFile file_;
  const int64_t file_bytes_;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_DATA_INPUT_FILE_H_
