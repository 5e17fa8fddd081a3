// Named tensors in one file that any safetensors reader opens, with metadata and a digest of every byte.
//
// Layout: u64 LE N; N bytes of JSON {"__metadata__": {...}, name: {"dtype": "F32", "shape": [...], "data_offsets":
// [begin, end]}}, padded with spaces to a multiple of 8; then the values. `__metadata__` has a key "digest": SHA-256,
// in hexadecimal, of the whole file with the digest's own 64 digits read as zeros, and a key "digest_algorithm":
// "sha256", so that damage to the name of the one cannot pass for a file without it. A file made elsewhere is read
// without both; what it calls "digest" is its own affair, and is not checked.
#ifndef WUKONG_RUNTIME_STORAGE_SAFETENSORS_H_
#define WUKONG_RUNTIME_STORAGE_SAFETENSORS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "runtime/storage/file_system.h"

namespace wukong {

struct NamedValues {
  std::string name;
  std::vector<int64_t> shape;
  absl::Span<const float> values;  // Row-major; as many as the shape says.
};

// The file is wholly there or not at all: written beside `path`, synced, renamed, its directory synced. The values are
// read twice and must not change meanwhile. The same tensors and metadata give the same bytes, in whatever order they
// come. A "digest" among `metadata` is replaced. INVALID_ARGUMENT: values that do not fit their shape, a name that is
// there twice, text that is not UTF-8, a header of more than 100 MB. Otherwise what `files` said.
absl::Status WriteSafetensors(FileSystem* files, const std::string& path, const std::vector<NamedValues>& tensors,
                              const std::map<std::string, std::string>& metadata);

struct Safetensors {
  struct Tensor {
    std::vector<int64_t> shape;
    std::vector<float> values;  // float32; F16 and BF16 files are widened. Empty where they were not wanted.
  };
  std::map<std::string, Tensor> tensors;
  std::map<std::string, std::string> metadata;  // Also what is said above of the digest.
  bool has_digest = false;
};

// NOT_FOUND; DATA_LOSS: truncated, malformed or of another digest, the message says what and where.
// UNIMPLEMENTED: a whole file with tensors of another type than F32, F16 and BF16, also among those not wanted. Besides
// the values of tensors that are `wanted` (null: all), it takes the memory of the header and of one piece of the file.
absl::StatusOr<Safetensors> ReadSafetensors(FileSystem* files, const std::string& path,
                                            const std::function<bool(const std::string& name)>& wanted = nullptr);

// For messages: text out of a file may be anything, and of any length.
std::string QuotedStart(absl::string_view text);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_STORAGE_SAFETENSORS_H_
