#include "runtime/storage/safetensors.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"
#include "runtime/base/digest.h"
#include "runtime/base/fault_point.h"

namespace wukong {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the format is little-endian, and values are copied as is");
static_assert(sizeof(float) == 4 && std::numeric_limits<float>::is_iec559, "F32 is IEEE 754's");

constexpr int64_t kLengthBytes = 8;
constexpr int64_t kHeaderBytesMax = 100'000'000;  // The format's own limit.
constexpr int64_t kAlignment = 8;
constexpr int64_t kPieceBytes = 4 << 20;
constexpr size_t kDigestDigits = 64;
constexpr char kMetadataName[] = "__metadata__";
constexpr char kDigest[] = "digest";
// A second witness that there is a digest: damage to the key of the one cannot pass for a file made without it.
constexpr char kDigestAlgorithm[] = "digest_algorithm";
constexpr char kSha256[] = "sha256";
// How the header of every file written here begins; the digits of the digest follow.
constexpr char kBeforeDigest[] = R"({"__metadata__":{"digest":")";
// Without what stands before it in the header: other programs order the keys as they like.
constexpr char kDigestMember[] = R"("digest":")";

// 0: no such type.
int64_t BytesOfType(absl::string_view dtype) {
  if (dtype == "F64" || dtype == "I64" || dtype == "U64" || dtype == "C64") return 8;
  if (dtype == "F32" || dtype == "I32" || dtype == "U32") return 4;
  if (dtype == "F16" || dtype == "BF16" || dtype == "I16" || dtype == "U16") return 2;
  if (dtype == "I8" || dtype == "U8" || dtype == "BOOL" || dtype == "F8_E4M3" || dtype == "F8_E5M2") return 1;
  return 0;
}

std::string ListText(absl::Span<const int64_t> list) {
  constexpr size_t kShown = 16;
  return absl::StrCat("[", absl::StrJoin(list.subspan(0, kShown), ", "), list.size() > kShown ? ", ..." : "", "]");
}

// False: more than an int64 holds, or a negative extent.
bool Product(const std::vector<int64_t>& shape, int64_t* product) {
  *product = 1;
  for (const int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(*product, extent, product)) return false;
  }
  return true;
}

float FromBFloat16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

float FromFloat16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  uint32_t exponent = (bits >> 10) & 0x1f;
  uint32_t fraction = bits & 0x3ff;
  if (exponent == 0x1f) {
    exponent = 0xff;  // Infinity or NaN; the payload stays.
  } else if (exponent != 0) {
    exponent += 127 - 15;
  } else if (fraction != 0) {
    // Subnormal there, normal here: shift until the leading one is the implicit one.
    exponent = 127 - 15 + 1;
    while ((fraction & 0x400) == 0) {
      fraction <<= 1;
      --exponent;
    }
    fraction &= 0x3ff;
  }
  const uint32_t wide = sign | exponent << 23 | fraction << 13;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

// ---------------------------------------------------------------------------------------------------------- reading

struct Entry {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::vector<int64_t> offsets;
  bool has_dtype = false;
  bool has_shape = false;
  bool has_offsets = false;
};

// Takes exactly what a header may be. An ordinary JSON reader takes more: of a key that is there twice it keeps one.
class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;
  std::string error;  // What is wrong, when the parse returned false.

  bool null() override { return Unexpected("null"); }
  bool boolean(bool) override { return Unexpected("a truth value"); }
  bool number_integer(number_integer_t value) override { return Unexpected(absl::StrCat(value)); }
  bool number_float(number_float_t, const string_t& text) override { return Unexpected(text); }
  bool binary(binary_t&) override { return Unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (place_ != Place::kShape && place_ != Place::kOffsets) return Unexpected(absl::StrCat(value));
    if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return Unexpected(absl::StrCat(value));
    (place_ == Place::kShape ? entries.back().shape : entries.back().offsets).push_back(static_cast<int64_t>(value));
    return true;
  }

  bool string(string_t& value) override {
    if (place_ == Place::kMetadata) {
      metadata[key_] = std::move(value);
      return true;
    }
    if (place_ != Place::kTensor || key_ != "dtype") return Unexpected(QuotedStart(value));
    entries.back().dtype = std::move(value);
    return true;
  }

  bool start_object(std::size_t) override {
    switch (place_) {
      case Place::kOutside:
        place_ = Place::kTop;
        return true;
      case Place::kTop:
        place_ = key_ == kMetadataName ? Place::kMetadata : Place::kTensor;
        if (place_ == Place::kTensor) {
          entries.emplace_back();
          entries.back().name = key_;
        }
        return true;
      default:
        return Unexpected("an object");
    }
  }

  bool end_object() override {
    if (place_ == Place::kTensor) {
      const Entry& entry = entries.back();
      if (!entry.has_dtype) return Missing("dtype");
      if (!entry.has_shape) return Missing("shape");
      if (!entry.has_offsets) return Missing("data_offsets");
      if (entry.offsets.size() != 2) {
        error = absl::StrCat("tensor ", QuotedStart(entry.name), ": \"data_offsets\" are ", ListText(entry.offsets),
                             " (expected two: begin and end)");
        return false;
      }
    }
    place_ = place_ == Place::kTop ? Place::kOutside : Place::kTop;
    return true;
  }

  bool start_array(std::size_t) override {
    if (place_ != Place::kTensor || key_ == "dtype") return Unexpected("a list");
    place_ = key_ == "shape" ? Place::kShape : Place::kOffsets;
    return true;
  }

  bool end_array() override {
    place_ = Place::kTensor;
    return true;
  }

  bool key(string_t& name) override {
    if (place_ == Place::kTop) {
      if (!names_.insert(name).second)
        return Twice(name == kMetadataName ? kMetadataName : absl::StrCat("tensor ", QuotedStart(name)));
    } else if (place_ == Place::kMetadata) {
      if (!metadata.emplace(name, "").second) return Twice(absl::StrCat("metadata key ", QuotedStart(name)));
    } else {
      Entry& entry = entries.back();
      bool* const seen = name == "dtype"          ? &entry.has_dtype
                         : name == "shape"        ? &entry.has_shape
                         : name == "data_offsets" ? &entry.has_offsets
                                                  : nullptr;
      if (seen == nullptr) {
        error = absl::StrCat("tensor ", QuotedStart(entry.name), " has a key ", QuotedStart(name),
                             " (expected \"dtype\", \"shape\" and \"data_offsets\")");
        return false;
      }
      if (*seen) return Twice(absl::StrCat("tensor ", QuotedStart(entry.name), ": ", QuotedStart(name)));
      *seen = true;
    }
    key_ = std::move(name);
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& exception) override {
    // The library's text quotes the token it read, which may be megabytes of garbage.
    const std::string what = absl::Utf8SafeCEscape(absl::string_view(exception.what()).substr(0, 200));
    error = absl::StrCat("no JSON at byte ", position, " (", what, ")");
    return false;
  }

 private:
  enum class Place { kOutside, kTop, kMetadata, kTensor, kShape, kOffsets };

  bool Unexpected(absl::string_view found) {
    found = found.substr(0, 200);
    switch (place_) {
      case Place::kOutside:
        error = absl::StrCat("is ", found, " (expected an object)");
        break;
      case Place::kTop:
        error = absl::StrCat(QuotedStart(key_), " is ", found, " (expected an object)");
        break;
      case Place::kMetadata:
        error = absl::StrCat("metadata key ", QuotedStart(key_), " is ", found, " (expected a string)");
        break;
      case Place::kTensor:
        error = absl::StrCat("tensor ", QuotedStart(entries.back().name), ": ", QuotedStart(key_), " is ", found,
                             " (expected ", key_ == "dtype" ? "a string" : "a list of numbers", ")");
        break;
      case Place::kShape:
      case Place::kOffsets:
        error = absl::StrCat("tensor ", QuotedStart(entries.back().name), ": ", QuotedStart(key_), " has ", found,
                             " (expected whole numbers from 0 to 2^63 - 1)");
        break;
    }
    return false;
  }

  bool Missing(absl::string_view what) {
    error = absl::StrCat("tensor ", QuotedStart(entries.back().name), " has no \"", what, "\"");
    return false;
  }

  bool Twice(absl::string_view what) {
    error = absl::StrCat(what, " is there twice");
    return false;
  }

  Place place_ = Place::kOutside;
  std::string key_;  // The last one read.
  std::set<std::string> names_;
};

template <typename... Args>
absl::Status Damaged(const std::string& path, const Args&... args) {
  return absl::DataLossError(absl::StrCat(path, ": ", args...));
}

// Shapes, types and offsets fit each other, and the entries cover the buffer: no hole, no overlap, nothing left over.
// Sorts the entries by offset.
absl::Status CheckEntries(const std::string& path, int64_t header_bytes, int64_t buffer_bytes,
                          std::vector<Entry>* entries) {
  for (const Entry& entry : *entries) {
    const int64_t value_bytes = BytesOfType(entry.dtype);
    if (value_bytes == 0) {
      return Damaged(path, "tensor ", QuotedStart(entry.name), " is of an unknown type ", QuotedStart(entry.dtype));
    }
    int64_t values = 0;
    int64_t bytes = 0;
    if (!Product(entry.shape, &values) || __builtin_mul_overflow(values, value_bytes, &bytes)) {
      return Damaged(path, "tensor ", QuotedStart(entry.name), " of shape ", ListText(entry.shape),
                     " is larger than any file");
    }
    const int64_t begin = entry.offsets[0];
    const int64_t end = entry.offsets[1];
    if (begin > end) {
      return Damaged(path, "tensor ", QuotedStart(entry.name), " begins at byte ", begin, " and ends before it, at ",
                     end);
    }
    if (end - begin != bytes) {
      return Damaged(path, "tensor ", QuotedStart(entry.name), " of shape ", ListText(entry.shape), " and type ",
                     entry.dtype, " has ", end - begin, " bytes (expected ", bytes, ")");
    }
  }
  std::sort(entries->begin(), entries->end(), [](const Entry& a, const Entry& b) { return a.offsets < b.offsets; });
  int64_t covered = 0;
  const Entry* before = nullptr;
  for (const Entry& entry : *entries) {
    if (entry.offsets[0] > covered) {
      return Damaged(path, "a hole of ", entry.offsets[0] - covered, " bytes before tensor ", QuotedStart(entry.name),
                     ", at byte ", covered, " of the values");
    }
    if (entry.offsets[0] < covered) {
      return Damaged(path, "tensors ", QuotedStart(before->name), " and ", QuotedStart(entry.name), " overlap by ",
                     covered - entry.offsets[0], " bytes");
    }
    covered = entry.offsets[1];
    before = &entry;
  }
  if (covered != buffer_bytes) {
    // Unsigned: an offset may be as large as an int64 holds.
    const uint64_t expected =
        static_cast<uint64_t>(kLengthBytes) + static_cast<uint64_t>(header_bytes) + static_cast<uint64_t>(covered);
    return Damaged(path, covered > buffer_bytes ? "cut off: " : "has more than its tensors: ",
                   kLengthBytes + header_bytes + buffer_bytes, " bytes (expected ", expected, ")");
  }
  return absl::OkStatus();
}

// What the metadata say of the digest.
struct Digest {
  std::string expected;  // Empty: the file has none.
  size_t at = 0;         // Of its digits in the header.
};

// `header` is what the metadata came from.
absl::StatusOr<Digest> FindDigest(const std::string& path, absl::string_view header,
                                  const std::map<std::string, std::string>& metadata) {
  const auto digest = metadata.find(kDigest);
  const auto algorithm = metadata.find(kDigestAlgorithm);
  if (digest == metadata.end() && algorithm == metadata.end()) return Digest();
  if (algorithm == metadata.end()) {
    // Any program may have a digest of its own there. Of ours a name was damaged.
    const bool ours =
        absl::StartsWith(header, kBeforeDigest) &&
        std::any_of(metadata.begin(), metadata.end(), [](const auto& member) { return member.second == kSha256; });
    if (!ours) return Digest();
    return Damaged(path, "the metadata have a \"", kDigest, "\" and no \"", kDigestAlgorithm, "\"");
  }
  if (digest == metadata.end()) {
    return Damaged(path, "the metadata have a \"", kDigestAlgorithm, "\" and no \"", kDigest, "\"");
  }
  if (algorithm->second != kSha256) {
    return Damaged(path, "the digest is of an unknown kind ", QuotedStart(algorithm->second), " (expected \"", kSha256,
                   "\")");
  }
  // Nowhere else can this text be: inside of a string its quotation marks are escaped, and the values of the other
  // objects are no strings under such a key.
  const size_t at = header.find(absl::StrCat(kDigestMember, digest->second, "\""));
  if (digest->second.size() != kDigestDigits || at == absl::string_view::npos) {
    return Damaged(path, "the digest is ", QuotedStart(digest->second), " (expected ", kDigestDigits,
                   " hexadecimal digits, with no space before them)");
  }
  return Digest{digest->second, at + std::strlen(kDigestMember)};
}

bool IsRead(absl::string_view dtype) { return dtype == "F32" || dtype == "F16" || dtype == "BF16"; }

// Appends `bytes`, whole values of the entry's type.
void AppendWidened(const Entry& entry, absl::string_view bytes, std::vector<float>* values) {
  const bool brain = entry.dtype == "BF16";
  for (size_t at = 0; at < bytes.size(); at += sizeof(uint16_t)) {
    uint16_t bits;
    std::memcpy(&bits, bytes.data() + at, sizeof(bits));
    values->push_back(brain ? FromBFloat16(bits) : FromFloat16(bits));
  }
}

// A file, read in pieces that are hashed as they come.
class HashedFile {
 public:
  HashedFile(std::string path, ReadableFile* file) : path_(std::move(path)), file_(file) {}

  // All of it, or DATA_LOSS.
  absl::Status Read(char* to, size_t size) {
    const absl::StatusOr<size_t> count = file_->Read(to, size);
    if (!count.ok()) return count.status();
    if (*count < size) return Damaged(path_, "cut off while it was read");
    return absl::OkStatus();
  }
  absl::Status ReadHashed(char* to, size_t size) {
    for (size_t at = 0; at < size; at += kPieceBytes) {
      const size_t piece = std::min<size_t>(kPieceBytes, size - at);
      if (absl::Status status = Read(to + at, piece); !status.ok()) return status;
      Hash(absl::string_view(to + at, piece));
    }
    return absl::OkStatus();
  }
  void Hash(absl::string_view bytes) {
    if (!bytes.empty()) sha_.Update(bytes.data(), bytes.size());
  }
  std::string Finish() { return sha_.Finish(); }

 private:
  const std::string path_;
  ReadableFile* const file_;
  Sha256 sha_;
};

// The values of the entry, or none where they are not wanted.
absl::StatusOr<std::vector<float>> ReadValues(const Entry& entry, bool wanted, HashedFile* file) {
  std::vector<float> values;
  const auto bytes = static_cast<size_t>(entry.offsets[1] - entry.offsets[0]);
  if (wanted && entry.dtype == "F32") {
    values.resize(bytes / sizeof(float));
    if (absl::Status status = file->ReadHashed(reinterpret_cast<char*>(values.data()), bytes); !status.ok()) {
      return status;
    }
    return values;
  }
  wanted = wanted && IsRead(entry.dtype);
  if (wanted) values.reserve(bytes / sizeof(uint16_t));
  std::string piece;
  for (size_t at = 0; at < bytes; at += piece.size()) {
    piece.resize(std::min<size_t>(kPieceBytes, bytes - at));
    if (absl::Status status = file->ReadHashed(piece.data(), piece.size()); !status.ok()) return status;
    if (wanted) AppendWidened(entry, piece, &values);
  }
  return values;
}

// ---------------------------------------------------------------------------------------------------------- writing

// The header with zeros for the digest, padded; kBeforeDigest and the digits are its beginning. `tensors` are sorted.
absl::StatusOr<std::string> MakeHeader(const std::string& path, const std::vector<NamedValues>& tensors,
                                       std::map<std::string, std::string> metadata) {
  metadata.erase(kDigest);
  metadata[kDigestAlgorithm] = kSha256;
  std::string header = absl::StrCat(kBeforeDigest, std::string(kDigestDigits, '0'), "\"");
  try {
    for (const auto& [key, value] : metadata) {
      absl::StrAppend(&header, ",", nlohmann::json(key).dump(), ":", nlohmann::json(value).dump());
    }
    absl::StrAppend(&header, "}");
    int64_t begin = 0;
    for (const NamedValues& tensor : tensors) {
      const int64_t end = begin + static_cast<int64_t>(tensor.values.size() * sizeof(float));
      absl::StrAppend(&header, ",", nlohmann::json(tensor.name).dump(), ":{\"dtype\":\"F32\",\"shape\":[",
                      absl::StrJoin(tensor.shape, ","), "],\"data_offsets\":[", begin, ",", end, "]}");
      begin = end;
    }
  } catch (const nlohmann::json::exception& exception) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot write ", path, ": a name or the metadata are no UTF-8 (", exception.what(), ")"));
  }
  absl::StrAppend(&header, "}");
  header.resize((header.size() + kAlignment - 1) / kAlignment * kAlignment, ' ');
  if (static_cast<int64_t>(header.size()) > kHeaderBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("cannot write ", path, ": names and metadata take ", header.size(),
                                                   " bytes (the format allows ", kHeaderBytesMax, ")"));
  }
  return header;
}

absl::Status CheckTensors(const std::string& path, const std::vector<NamedValues>& sorted) {
  const std::string* before = nullptr;
  for (const NamedValues& tensor : sorted) {
    const auto invalid = [&](absl::string_view what) {
      return absl::InvalidArgumentError(
          absl::StrCat("cannot write ", path, ": tensor ", QuotedStart(tensor.name), " ", what));
    };
    int64_t values = 0;
    if (tensor.name == kMetadataName) return invalid("has the name that the format keeps for metadata");
    if (before != nullptr && *before == tensor.name) return invalid("is there twice");
    if (!Product(tensor.shape, &values) || values != static_cast<int64_t>(tensor.values.size())) {
      return invalid(
          absl::StrCat("has ", tensor.values.size(), " values, which do not fit its shape ", ListText(tensor.shape)));
    }
    before = &tensor.name;
  }
  return absl::OkStatus();
}

// Of the memory itself.
absl::string_view BytesOf(absl::Span<const float> values) {
  return absl::string_view(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
}

absl::Status AppendAll(WritableFile* file, absl::string_view bytes) {
  for (size_t at = 0; at < bytes.size(); at += kPieceBytes) {
    if (absl::Status status = file->Append(bytes.substr(at, kPieceBytes)); !status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status WriteTemporary(FileSystem* files, const std::string& temporary, absl::string_view prefix,
                            const std::vector<NamedValues>& tensors) {
  absl::StatusOr<std::unique_ptr<WritableFile>> file = files->Create(temporary);
  if (!file.ok()) return file.status();
  if (absl::Status status = AppendAll(file->get(), prefix); !status.ok()) return status;
  for (const NamedValues& tensor : tensors) {
    if (absl::Status status = AppendAll(file->get(), BytesOf(tensor.values)); !status.ok()) return status;
  }
  return (*file)->Sync();
}

std::string DirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

std::string QuotedStart(absl::string_view text) {
  constexpr size_t kShown = 100;
  return absl::StrCat("\"", absl::Utf8SafeCEscape(text.substr(0, kShown)), text.size() > kShown ? "..." : "", "\"");
}

absl::Status WriteSafetensors(FileSystem* files, const std::string& path, const std::vector<NamedValues>& tensors,
                              const std::map<std::string, std::string>& metadata) {
  std::vector<NamedValues> sorted = tensors;
  std::sort(sorted.begin(), sorted.end(), [](const NamedValues& a, const NamedValues& b) { return a.name < b.name; });
  if (absl::Status status = CheckTensors(path, sorted); !status.ok()) return status;
  absl::StatusOr<std::string> header = MakeHeader(path, sorted, metadata);
  if (!header.ok()) return header.status();

  const uint64_t header_bytes = header->size();
  std::string prefix(reinterpret_cast<const char*>(&header_bytes), sizeof(header_bytes));
  prefix += *header;
  Sha256 sha;
  sha.Update(prefix.data(), prefix.size());
  for (const NamedValues& tensor : sorted) {
    if (!tensor.values.empty()) sha.Update(tensor.values.data(), tensor.values.size() * sizeof(float));
  }
  prefix.replace(kLengthBytes + std::strlen(kBeforeDigest), kDigestDigits, sha.Finish());

  // What a crash left under this name would make Create fail.
  const std::string temporary = path + ".tmp";
  if (absl::Status status = files->Remove(temporary); !status.ok() && !absl::IsNotFound(status)) return status;
  absl::Status status = WriteTemporary(files, temporary, prefix, sorted);
  FaultPoint("snapshot.before_rename");
  if (status.ok()) status = files->Rename(temporary, path);
  FaultPoint("snapshot.after_rename");
  if (!status.ok()) {
    // If this fails too, the next write of the same file removes it.
    files->Remove(temporary).IgnoreError();
    return status;
  }
  return files->SyncDirectory(DirectoryOf(path));
}

absl::StatusOr<Safetensors> ReadSafetensors(FileSystem* files, const std::string& path,
                                            const std::function<bool(const std::string& name)>& wanted) {
  const absl::StatusOr<std::unique_ptr<ReadableFile>> opened = files->OpenToRead(path);
  if (!opened.ok()) return opened.status();
  const absl::StatusOr<int64_t> size = files->Size(path);
  if (!size.ok()) return size.status();
  HashedFile file(path, opened->get());
  uint64_t announced = 0;
  if (*size < kLengthBytes) {
    return Damaged(path, "has ", *size, " bytes (expected at least ", kLengthBytes + 2, ")");
  }
  std::string prefix(sizeof(announced), '\0');
  if (absl::Status status = file.Read(prefix.data(), prefix.size()); !status.ok()) return status;
  std::memcpy(&announced, prefix.data(), sizeof(announced));
  if (announced > static_cast<uint64_t>(kHeaderBytesMax)) {
    return Damaged(path, "no safetensors file, or damaged: says that its header has ", announced,
                   " bytes (the format allows ", kHeaderBytesMax, ")");
  }
  const auto header_bytes = static_cast<int64_t>(announced);
  if (header_bytes > *size - kLengthBytes) {
    return Damaged(path, "cut off: has ", *size, " bytes, of which the header alone should be ", announced);
  }
  std::string header(announced, '\0');
  if (absl::Status status = file.Read(header.data(), header.size()); !status.ok()) return status;
  if (header.empty() || header[0] != '{') {
    return Damaged(path, "no safetensors file, or damaged: the header does not begin with {");
  }
  // The JSON library takes a zero byte for the end, whatever follows.
  if (const size_t zero = header.find('\0'); zero != std::string::npos) {
    return Damaged(path, "the header has a zero byte at byte ", zero);
  }
  HeaderReader reader;
  if (!nlohmann::json::sax_parse(header.begin(), header.end(), &reader)) {
    return Damaged(path, "the header: ", reader.error);
  }
  if (absl::Status status = CheckEntries(path, header_bytes, *size - kLengthBytes - header_bytes, &reader.entries);
      !status.ok()) {
    return status;
  }
  const absl::StatusOr<Digest> digest = FindDigest(path, header, reader.metadata);
  if (!digest.ok()) return digest.status();
  if (!digest->expected.empty()) header.replace(digest->at, kDigestDigits, kDigestDigits, '0');
  file.Hash(prefix);
  file.Hash(header);

  Safetensors result;
  result.has_digest = !digest->expected.empty();
  const Entry* unknown = nullptr;
  for (Entry& entry : reader.entries) {
    absl::StatusOr<std::vector<float>> values = ReadValues(entry, wanted == nullptr || wanted(entry.name), &file);
    if (!values.ok()) return values.status();
    if (!IsRead(entry.dtype) && unknown == nullptr) unknown = &entry;
    result.tensors[entry.name] = {entry.shape, *std::move(values)};
  }
  if (result.has_digest) {
    if (const std::string found = file.Finish(); found != digest->expected) {
      return Damaged(path, "its bytes have the digest ", found, " and not ", digest->expected,
                     " as its metadata say: it was damaged, or changed by a program that kept the old digest");
    }
  }
  if (unknown != nullptr) {
    return absl::UnimplementedError(absl::StrCat(path, ": tensor ", QuotedStart(unknown->name), " is of type ",
                                                 unknown->dtype, " (expected F32, F16 or BF16): convert the file"));
  }
  result.metadata = std::move(reader.metadata);
  return result;
}

}  // namespace wukong
