#include "runtime/storage/checkpoint.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "glog/logging.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "nlohmann/json.hpp"
#include "runtime/storage/safetensors.h"

namespace wukong {
namespace {

constexpr char kCheckpointFormat[] = "1";
constexpr int kIdentityFormat = 1;
constexpr char kExtraPrefix[] = "wukong.";
constexpr char kStateTensor[] = "wukong:state";  // Not of the prefix: an extra vector may be called "state".
constexpr char kFilePrefix[] = "version-";
constexpr char kFileSuffix[] = ".safetensors";
constexpr size_t kMismatchesShown = 5;

constexpr char kFormatKey[] = "wukong_format";
constexpr char kIdentityKey[] = "identity";
constexpr char kLayoutKey[] = "layout";
constexpr char kStateKey[] = "state";
constexpr char kStateBytesKey[] = "state_bytes";

bool IsOwnKey(absl::string_view key) {
  static constexpr const char* kKeys[] = {kFormatKey,     kIdentityKey,    kLayoutKey, kStateKey,
                                          kStateBytesKey, "format",        "version",  "run",
                                          "job_digest",   "schema_digest", "digest",   "digest_algorithm"};
  return std::find(std::begin(kKeys), std::end(kKeys), key) != std::end(kKeys);
}

bool IsOwnTensor(absl::string_view name) { return absl::StartsWith(name, kExtraPrefix) || name == kStateTensor; }

std::string ShapeText(const std::vector<int64_t>& shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

// Maps in a message have no order of their own; the same checkpoint is to give the same bytes.
absl::StatusOr<std::string> Serialized(const google::protobuf::Message& message) {
  // Beyond this protobuf fails, and only logs why.
  if (message.ByteSizeLong() > static_cast<size_t>(std::numeric_limits<int>::max())) {
    return absl::InvalidArgumentError(
        absl::StrCat(message.GetTypeName(), " of ", message.ByteSizeLong(), " bytes: more than protobuf writes"));
  }
  std::string bytes;
  {
    google::protobuf::io::StringOutputStream stream(&bytes);
    google::protobuf::io::CodedOutputStream coded(&stream);
    coded.SetSerializationDeterministic(true);
    CHECK(message.SerializeToCodedStream(&coded)) << message.GetTypeName();
  }
  return bytes;
}

absl::Status CannotWrite(const std::string& path, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("cannot write ", path, ": ", why));
}

// The model's tensors, cut out of the flat vector.
absl::StatusOr<std::vector<NamedValues>> ModelTensors(const std::string& path, const CheckpointView& checkpoint) {
  std::vector<NamedValues> tensors;
  const int64_t total = static_cast<int64_t>(checkpoint.parameters.size());
  int64_t offset = 0;
  for (const TensorSpec& spec : checkpoint.tensors) {
    if (IsOwnTensor(spec.name)) {
      return CannotWrite(path, absl::StrCat("tensor ", QuotedStart(spec.name), " of the model begins with \"",
                                            kExtraPrefix, "\", which checkpoints keep for themselves"));
    }
    int64_t size = 1;
    for (const int64_t extent : spec.shape) {
      if (extent < 0 || __builtin_mul_overflow(size, extent, &size)) {
        return CannotWrite(path,
                           absl::StrCat("tensor ", QuotedStart(spec.name), " has the shape ", ShapeText(spec.shape)));
      }
    }
    if (size > total - offset) {
      return CannotWrite(path, absl::StrCat("tensor ", QuotedStart(spec.name), " of shape ", ShapeText(spec.shape),
                                            " is at value ", offset, " of ", total, " parameters"));
    }
    tensors.push_back(
        {spec.name, spec.shape, checkpoint.parameters.subspan(static_cast<size_t>(offset), static_cast<size_t>(size))});
    offset += size;
  }
  if (offset != total) {
    return CannotWrite(path, absl::StrCat("the tensors have ", offset, " values and there are ", total, " parameters"));
  }
  return tensors;
}

absl::Status Damaged(const std::string& path, absl::string_view what) {
  return absl::DataLossError(absl::StrCat(path, ": ", what));
}

absl::StatusOr<std::string> Metadata(const std::string& path, const Safetensors& file, const char* key) {
  const auto found = file.metadata.find(key);
  if (found == file.metadata.end()) return Damaged(path, absl::StrCat("the metadata have no \"", key, "\""));
  return found->second;
}

// A message that is in the metadata as base64.
absl::Status ReadMessage(const std::string& path, const Safetensors& file, const char* key,
                         google::protobuf::Message* message) {
  const absl::StatusOr<std::string> text = Metadata(path, file, key);
  if (!text.ok()) return text.status();
  std::string bytes;
  if (!absl::Base64Unescape(*text, &bytes) || !message->ParseFromString(bytes)) {
    return Damaged(path, absl::StrCat("\"", key, "\" of the metadata is no ", message->GetTypeName(), " in base64"));
  }
  return absl::OkStatus();
}

// The state from its own tensor.
absl::Status ReadLargeState(const std::string& path, const Safetensors& file, const std::string& bytes_text,
                            RootState* state) {
  const auto tensor = file.tensors.find(kStateTensor);
  if (tensor == file.tensors.end()) return Damaged(path, absl::StrCat("there is no tensor \"", kStateTensor, "\""));
  const std::vector<float>& values = tensor->second.values;
  int64_t bytes = 0;
  const int64_t bytes_max =
      std::min<int64_t>(static_cast<int64_t>(values.size() * sizeof(float)), std::numeric_limits<int>::max());
  if (!absl::SimpleAtoi(bytes_text, &bytes) || bytes < 0 || bytes > bytes_max) {
    return Damaged(path, absl::StrCat("\"", kStateBytesKey, "\" is ", QuotedStart(bytes_text), " (expected 0 to ",
                                      bytes_max, ", the bytes of tensor \"", kStateTensor, "\")"));
  }
  if (!state->ParseFromArray(values.data(), static_cast<int>(bytes))) {
    return Damaged(path, absl::StrCat("tensor \"", kStateTensor, "\" is no ", state->GetTypeName()));
  }
  return absl::OkStatus();
}

// Names and shapes of the model in the order of the flat vector.
absl::StatusOr<std::vector<TensorSpec>> ReadLayout(const std::string& path, const Safetensors& file) {
  const absl::StatusOr<std::string> text = Metadata(path, file, kLayoutKey);
  if (!text.ok()) return text.status();
  const nlohmann::json names = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!names.is_array()) return Damaged(path, "\"layout\" of the metadata is no JSON list");
  std::vector<TensorSpec> tensors;
  std::set<std::string> seen;
  int64_t offset = 0;
  for (const nlohmann::json& name : names) {
    if (!name.is_string()) return Damaged(path, "\"layout\" of the metadata has a name that is no string");
    TensorSpec spec;
    spec.name = name.get<std::string>();
    const auto tensor = file.tensors.find(spec.name);
    if (tensor == file.tensors.end() || IsOwnTensor(spec.name)) {
      return Damaged(path, absl::StrCat("\"layout\" of the metadata names ", QuotedStart(spec.name),
                                        ", which is no tensor of the model"));
    }
    if (!seen.insert(spec.name).second) {
      return Damaged(path, absl::StrCat("\"layout\" of the metadata names ", QuotedStart(spec.name), " twice"));
    }
    spec.shape = tensor->second.shape;
    spec.offset = offset;
    spec.size = static_cast<int64_t>(tensor->second.values.size());
    offset += spec.size;
    tensors.push_back(std::move(spec));
  }
  for (const auto& [name, tensor] : file.tensors) {
    if (!IsOwnTensor(name) && seen.count(name) == 0) {
      return Damaged(path, absl::StrCat("\"layout\" of the metadata does not name tensor ", QuotedStart(name)));
    }
  }
  return tensors;
}

// A checkpoint, of a format that this build reads.
absl::Status CheckFormat(const std::string& path, const Safetensors& file, bool require_digest) {
  const auto format = file.metadata.find(kFormatKey);
  if (format == file.metadata.end()) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, ": no checkpoint of Wukong's: the metadata have no \"", kFormatKey, "\""));
  }
  if (require_digest && !file.has_digest) {
    return Damaged(path, "has no digest, so that damage to it would not be found");
  }
  if (format->second != kCheckpointFormat) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": a checkpoint of format ", QuotedStart(format->second),
                                                      " (this build reads ", kCheckpointFormat,
                                                      "): use the build that wrote it"));
  }
  return absl::OkStatus();
}

// Empties each tensor as it is copied: a checkpoint is not in memory twice.
std::vector<float> TakeFlat(const std::vector<TensorSpec>& tensors, Safetensors* file) {
  size_t size = 0;
  for (const TensorSpec& spec : tensors) size += file->tensors[spec.name].values.size();
  std::vector<float> flat;
  flat.reserve(size);
  for (const TensorSpec& spec : tensors) {
    const std::vector<float> values = std::move(file->tensors[spec.name].values);
    flat.insert(flat.end(), values.begin(), values.end());
  }
  CHECK_EQ(flat.size(), size) << "two tensors of a layout have one name";
  return flat;
}

// Identity, state and notes.
absl::StatusOr<Checkpoint> WithoutVectors(const std::string& path, bool require_digest, const Safetensors& file) {
  if (absl::Status status = CheckFormat(path, file, require_digest); !status.ok()) return status;
  Checkpoint checkpoint;
  if (absl::Status status = ReadMessage(path, file, kIdentityKey, &checkpoint.identity); !status.ok()) return status;
  if (checkpoint.identity.format() > kIdentityFormat) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": of a run of format ", checkpoint.identity.format(),
                                                      " (this build reads up to ", kIdentityFormat,
                                                      "): use the build that wrote it"));
  }
  const auto state_bytes = file.metadata.find(kStateBytesKey);
  const absl::Status state = state_bytes == file.metadata.end()
                                 ? ReadMessage(path, file, kStateKey, &checkpoint.state)
                                 : ReadLargeState(path, file, state_bytes->second, &checkpoint.state);
  if (!state.ok()) return state;
  for (const auto& [key, value] : file.metadata) {
    if (!IsOwnKey(key)) checkpoint.notes[key] = value;
  }
  return checkpoint;
}

}  // namespace

CheckpointView ViewOf(const Checkpoint& checkpoint) {
  CheckpointView view;
  view.tensors = checkpoint.tensors;
  view.parameters = checkpoint.parameters;
  for (const auto& [name, values] : checkpoint.extra_vectors) view.extra_vectors[name] = values;
  view.identity = &checkpoint.identity;
  view.state = &checkpoint.state;
  view.notes = checkpoint.notes;
  return view;
}

absl::Status WriteCheckpoint(FileSystem* files, const std::string& path, const CheckpointView& checkpoint) {
  CHECK(checkpoint.identity != nullptr && checkpoint.state != nullptr) << path;
  absl::StatusOr<std::vector<NamedValues>> tensors = ModelTensors(path, checkpoint);
  if (!tensors.ok()) return tensors.status();
  for (const auto& [name, values] : checkpoint.extra_vectors) {
    tensors->push_back({absl::StrCat(kExtraPrefix, name), {static_cast<int64_t>(values.size())}, values});
  }

  std::map<std::string, std::string> metadata;
  for (const auto& [key, value] : checkpoint.notes) {
    if (IsOwnKey(key)) {
      return CannotWrite(path, absl::StrCat("note ", QuotedStart(key), " has a key that the file uses itself"));
    }
    metadata[key] = value;
  }
  std::vector<std::string> names;
  for (const TensorSpec& spec : checkpoint.tensors) names.push_back(spec.name);
  metadata[kLayoutKey] =
      // A name that is not UTF-8 is found when the tensors are written.
      nlohmann::json(names).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  metadata[kFormatKey] = kCheckpointFormat;
  metadata["format"] = "pt";  // Some readers insist on it.
  metadata["version"] = absl::StrCat(checkpoint.state->version());
  metadata["run"] = checkpoint.identity->run();
  metadata["job_digest"] = checkpoint.identity->job_digest();
  metadata["schema_digest"] = checkpoint.identity->schema_digest();
  const absl::StatusOr<std::string> identity = Serialized(*checkpoint.identity);
  if (!identity.ok()) return CannotWrite(path, identity.status().message());
  metadata[kIdentityKey] = absl::Base64Escape(*identity);
  const absl::StatusOr<std::string> state = Serialized(*checkpoint.state);
  if (!state.ok()) return CannotWrite(path, state.status().message());
  std::vector<float> large_state;  // Its bytes.
  if (static_cast<int64_t>(state->size()) <= kStateBytesInHeaderMax) {
    metadata[kStateKey] = absl::Base64Escape(*state);
  } else {
    metadata[kStateBytesKey] = absl::StrCat(state->size());
    large_state.resize((state->size() + sizeof(float) - 1) / sizeof(float));
    std::memcpy(large_state.data(), state->data(), state->size());
    tensors->push_back({kStateTensor, {static_cast<int64_t>(large_state.size())}, large_state});
  }
  return WriteSafetensors(files, path, *tensors, metadata);
}

absl::Status WriteCheckpoint(FileSystem* files, const std::string& path, const Checkpoint& checkpoint) {
  return WriteCheckpoint(files, path, ViewOf(checkpoint));
}

absl::StatusOr<Checkpoint> ReadCheckpoint(FileSystem* files, const std::string& path, bool require_digest) {
  absl::StatusOr<Safetensors> file = ReadSafetensors(files, path);
  if (!file.ok()) return file.status();
  absl::StatusOr<Checkpoint> checkpoint = WithoutVectors(path, require_digest, *file);
  if (!checkpoint.ok()) return checkpoint.status();
  absl::StatusOr<std::vector<TensorSpec>> tensors = ReadLayout(path, *file);
  if (!tensors.ok()) return tensors.status();
  checkpoint->tensors = *std::move(tensors);
  checkpoint->parameters = TakeFlat(checkpoint->tensors, &*file);
  for (auto& [name, tensor] : file->tensors) {
    absl::string_view extra = name;
    if (absl::ConsumePrefix(&extra, kExtraPrefix)) {
      checkpoint->extra_vectors[std::string(extra)] = std::move(tensor.values);
    }
  }
  return *std::move(checkpoint);
}

absl::StatusOr<Checkpoint> ReadCheckpointState(FileSystem* files, const std::string& path) {
  absl::StatusOr<Safetensors> file =
      ReadSafetensors(files, path, [](const std::string& name) { return name == kStateTensor; });
  if (!file.ok()) return file.status();
  return WithoutVectors(path, /*require_digest=*/true, *file);
}

namespace {

// OK, or FAILED_PRECONDITION: what of names and shapes is not the model's.
absl::Status CheckTensors(const std::string& path, const Safetensors& file, const std::vector<TensorSpec>& tensors) {
  const bool checkpoint = file.metadata.count(kFormatKey) > 0;
  std::vector<std::string> mismatches;
  std::set<std::string> expected;
  for (const TensorSpec& spec : tensors) {
    expected.insert(spec.name);
    const auto tensor = file.tensors.find(spec.name);
    if (tensor == file.tensors.end()) {
      mismatches.push_back(
          absl::StrCat("tensor ", QuotedStart(spec.name), " is missing (expected shape ", ShapeText(spec.shape), ")"));
    } else if (tensor->second.shape != spec.shape) {
      mismatches.push_back(absl::StrCat("tensor ", QuotedStart(spec.name), " has shape ",
                                        ShapeText(tensor->second.shape), " (expected ", ShapeText(spec.shape), ")"));
    }
  }
  for (const auto& [name, tensor] : file.tensors) {
    if (expected.count(name) > 0 || (checkpoint && IsOwnTensor(name))) continue;
    mismatches.push_back(absl::StrCat("tensor ", QuotedStart(name), " of shape ", ShapeText(tensor.shape),
                                      " is not of the model (expected none of this name)"));
  }
  if (!mismatches.empty()) {
    const size_t hidden = mismatches.size() - std::min(mismatches.size(), kMismatchesShown);
    mismatches.resize(mismatches.size() - hidden);
    return absl::FailedPreconditionError(absl::StrCat(path,
                                                      " does not fit the model: ", absl::StrJoin(mismatches, "; "),
                                                      hidden > 0 ? absl::StrCat("; and ", hidden, " more") : ""));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckParametersFile(FileSystem* files, const std::string& path, const std::vector<TensorSpec>& tensors) {
  const absl::StatusOr<Safetensors> file = ReadSafetensors(files, path, [](const std::string&) { return false; });
  return file.ok() ? CheckTensors(path, *file, tensors) : file.status();
}

absl::StatusOr<std::vector<float>> ReadParametersFrom(FileSystem* files, const std::string& path,
                                                      const ParameterLayout& layout) {
  absl::StatusOr<Safetensors> file = ReadSafetensors(files, path);
  if (!file.ok()) return file.status();
  if (absl::Status status = CheckTensors(path, *file, layout.tensors()); !status.ok()) return status;
  for (const TensorSpec& spec : layout.tensors()) {
    const std::vector<float>& values = file->tensors[spec.name].values;
    const auto bad = std::find_if(values.begin(), values.end(), [](float value) { return !std::isfinite(value); });
    if (bad == values.end()) continue;
    return absl::FailedPreconditionError(absl::StrCat(path, ": value ", bad - values.begin(), " of tensor ",
                                                      QuotedStart(spec.name), " is ", *bad,
                                                      " (expected finite values)"));
  }
  return TakeFlat(layout.tensors(), &*file);
}

std::string CheckpointPath(absl::string_view directory, int64_t version) {
  return absl::StrFormat("%s/%s%012d%s", directory, kFilePrefix, version, kFileSuffix);
}

absl::StatusOr<std::vector<CheckpointFile>> ListCheckpoints(FileSystem* files, const std::string& directory) {
  const absl::StatusOr<std::vector<std::string>> names = files->List(directory);
  if (absl::IsNotFound(names.status())) return std::vector<CheckpointFile>();
  if (!names.ok()) return names.status();
  std::vector<CheckpointFile> checkpoints;
  for (const std::string& name : *names) {
    absl::string_view digits = name;
    CheckpointFile file;
    if (!absl::ConsumePrefix(&digits, kFilePrefix) || !absl::ConsumeSuffix(&digits, kFileSuffix) ||
        !absl::SimpleAtoi(digits, &file.version) || file.version < 0) {
      continue;
    }
    file.path = CheckpointPath(directory, file.version);
    // Numbers can be written in other ways; only what WriteCheckpoint's callers write is one of ours.
    if (file.path == absl::StrCat(directory, "/", name)) checkpoints.push_back(std::move(file));
  }
  std::sort(checkpoints.begin(), checkpoints.end(),
            [](const CheckpointFile& a, const CheckpointFile& b) { return a.version < b.version; });
  return checkpoints;
}

}  // namespace wukong
