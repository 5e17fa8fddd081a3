// A snapshot of a run in one safetensors file: the model by its tensors' names, so that any reader of the format can
// load it, and beside it what a new life of the root needs (docs/durability.md).
//
//   tensors    the model's, by name and shape; "wukong.NAME" of one dimension for each extra vector
//   metadata   "format" "pt", "wukong_format" "1", "layout" (JSON list of the model's tensors in the order of the flat
//              vector), "version", "run", "job_digest", "schema_digest", "state" and "identity" (base64 of RootState
//              and LogIdentity, proto/log.proto), and the notes
//
// A state of more than kStateBytesInHeaderMax is not in the metadata: it would not fit the header, which is bounded by
// the format. It is then the bytes of a tensor "wukong:state", padded with zeros to whole values; the metadata have
// "state_bytes".
//
// Functions only; thread-safe as far as `files` is, but one path has one writer at a time.
#ifndef WUKONG_RUNTIME_STORAGE_CHECKPOINT_H_
#define WUKONG_RUNTIME_STORAGE_CHECKPOINT_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "proto/log.pb.h"
#include "runtime/model/parameter_layout.h"
#include "runtime/storage/file_system.h"

namespace wukong {

inline constexpr int64_t kStateBytesInHeaderMax = 1 << 20;

struct Checkpoint {
  std::vector<TensorSpec> tensors;  // In the order of the flat vector.
  std::vector<float> parameters;    // Flat, in that order.
  // Flat vectors of any length: "public", "momentum", "buffer", "optimizer.first", ...
  std::map<std::string, std::vector<float>> extra_vectors;
  LogIdentity identity;
  RootState state;
  // More metadata, for people and tools: "committed_tokens", ... Not a key that the file uses itself.
  std::map<std::string, std::string> notes;
};

// The same without copies, to write from. What it points to must not change while it is written.
struct CheckpointView {
  absl::Span<const TensorSpec> tensors;  // Only names and shapes are looked at.
  absl::Span<const float> parameters;
  std::map<std::string, absl::Span<const float>> extra_vectors;
  const LogIdentity* identity = nullptr;  // Not null.
  const RootState* state = nullptr;       // Not null.
  std::map<std::string, std::string> notes;
};

// Valid as long as `checkpoint` is.
CheckpointView ViewOf(const Checkpoint& checkpoint);

// The file is wholly there or not at all, and durable when this returns OK. The same checkpoint gives the same bytes.
// INVALID_ARGUMENT: sizes that do not fit, a name that is taken, a note under a key that the file uses itself, text
// that is not UTF-8. RESOURCE_EXHAUSTED: no space. Otherwise what `files` said.
absl::Status WriteCheckpoint(FileSystem* files, const std::string& path, const CheckpointView& checkpoint);
absl::Status WriteCheckpoint(FileSystem* files, const std::string& path, const Checkpoint& checkpoint);

// NOT_FOUND. DATA_LOSS: truncated, malformed, of another digest, or (with `require_digest`) of none.
// FAILED_PRECONDITION: no checkpoint of Wukong's, or one of a newer format. Whether it belongs to this run and model is
// for the caller to say, from `identity`.
absl::StatusOr<Checkpoint> ReadCheckpoint(FileSystem* files, const std::string& path, bool require_digest = true);

// Only identity, state and notes; every byte of the file is read all the same, and its digest checked. As
// ReadCheckpoint, without its memory.
absl::StatusOr<Checkpoint> ReadCheckpointState(FileSystem* files, const std::string& path);

// Whether a safetensors file has exactly these tensors, with these shapes. FAILED_PRECONDITION: the message names each
// of the first few that are missing, too many or of another shape. Otherwise as ReadSafetensors, without its memory.
absl::Status CheckParametersFile(FileSystem* files, const std::string& path, const std::vector<TensorSpec>& tensors);

// The flat vector of a model from any safetensors file with exactly the tensors of `layout`, in float32, bfloat16 or
// float16: a file made elsewhere, or a checkpoint (of which only the model is used). A digest is checked if there is
// one. FAILED_PRECONDITION: tensors missing, too many or of other shapes; the message names each of the first few with
// the expected shape and the one found. Also a value that is not finite. Otherwise as ReadSafetensors.
absl::StatusOr<std::vector<float>> ReadParametersFrom(FileSystem* files, const std::string& path,
                                                      const ParameterLayout& layout);

struct CheckpointFile {
  std::string path;
  int64_t version = 0;
};

// DIRECTORY/version-000000000042.safetensors
std::string CheckpointPath(absl::string_view directory, int64_t version);

// By version, rising. Other names are ignored, and so is what a crash left half written. Empty when there is no such
// directory.
absl::StatusOr<std::vector<CheckpointFile>> ListCheckpoints(FileSystem* files, const std::string& directory);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_STORAGE_CHECKPOINT_H_
