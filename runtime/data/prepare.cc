#include "runtime/data/prepare.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <memory>
#include <set>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/digest.h"
#include "runtime/base/file.h"
#include "runtime/data/input_file.h"
#include "runtime/data/token_dataset.h"
#include "runtime/data/tokenizer.h"

namespace wukong {
namespace {

constexpr char kTrain[] = "train.bin";
constexpr char kValidation[] = "validation.bin";
constexpr char kPartial[] = ".partial";  // Behind the name of a token file that is being written.
// Stands in the output while it is being written, and after an interruption: what has no manifest then is ours.
constexpr char kMarker[] = ".wukong-preparing";
constexpr size_t kChunkBytes = size_t{4} << 20;
// How far the split may move to the end of a line: this many tokens, and this share of the smaller part.
constexpr size_t kSplitShiftMax = 1 << 16;
constexpr size_t kSplitShiftShare = 20;

// Also for a symbolic link to nowhere.
bool Exists(const std::string& path) {
  struct stat info;
  return ::lstat(path.c_str(), &info) == 0;
}

// A file under a temporary name until Commit(); gone when that never comes.
class NewFile {
 public:
  static absl::StatusOr<std::unique_ptr<NewFile>> Create(const std::string& path) {
    std::unique_ptr<NewFile> file(new NewFile(path));
    file->descriptor_ = ::open(file->temporary().c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (file->descriptor_ < 0) return ErrnoToStatus(errno, "cannot create " + file->temporary());
    return file;
  }
  ~NewFile() {
    if (descriptor_ < 0) return;
    ::close(descriptor_);
    ::unlink(temporary().c_str());
  }
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  // Fixed, so that what a killed process left is written over; the lock on the directory keeps others away.
  std::string temporary() const { return path_ + kPartial; }
  size_t tokens() const { return tokens_; }  // Written so far.

  absl::Status Write(absl::Span<const uint16_t> tokens) {
    const char* data = reinterpret_cast<const char*>(tokens.data());
    size_t left = tokens.size() * sizeof(uint16_t);
    while (left > 0) {
      const ssize_t written = ::write(descriptor_, data, left);
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return Error();
      data += written;
      left -= static_cast<size_t>(written);
    }
    tokens_ += tokens.size();
    return absl::OkStatus();
  }

  absl::Status Truncate(size_t tokens) {
    return ::ftruncate(descriptor_, static_cast<off_t>(tokens * sizeof(uint16_t))) == 0 ? absl::OkStatus() : Error();
  }

  absl::Status Sync() { return ::fsync(descriptor_) == 0 ? absl::OkStatus() : Error(); }

  absl::Status Commit() {
    if (::rename(temporary().c_str(), path_.c_str()) != 0) return Error();
    ::close(descriptor_);
    descriptor_ = -1;
    return absl::OkStatus();
  }

 private:
  explicit NewFile(std::string path) : path_(std::move(path)) {}
  absl::Status Error() const { return ErrnoToStatus(errno, "cannot write " + temporary()); }

  const std::string path_;
  int descriptor_ = -1;
  size_t tokens_ = 0;
};

// Held while one process writes to a directory; the kernel gives it up with the process.
class DirectoryLock {
 public:
  static absl::StatusOr<std::unique_ptr<DirectoryLock>> Take(const std::string& directory) {
    std::unique_ptr<DirectoryLock> lock(new DirectoryLock());
    lock->descriptor_ = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (lock->descriptor_ < 0) return ErrnoToStatus(errno, "cannot open " + directory);
    if (::flock(lock->descriptor_, LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) return ErrnoToStatus(errno, "cannot lock " + directory);
      return absl::FailedPreconditionError(absl::StrCat(
          directory,
          ": another `wukong data prepare` is writing here; wait until it ends, or choose another --output"));
    }
    return lock;
  }
  ~DirectoryLock() {
    if (descriptor_ >= 0) ::close(descriptor_);
  }
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

 private:
  DirectoryLock() = default;
  int descriptor_ = -1;
};

// The file kMarker. It is removed at the end, unless the directory was left half made, now or before.
class Marker {
 public:
  explicit Marker(const std::string& directory)
      : path_(absl::StrCat(directory, "/", kMarker)), left_(Exists(path_)), keep_(left_) {}
  ~Marker() {
    if (!keep_) ::unlink(path_.c_str());
  }
  Marker(const Marker&) = delete;
  Marker& operator=(const Marker&) = delete;

  // By an interrupted process.
  bool left() const { return left_; }
  void set_keep(bool keep) { keep_ = keep; }

  absl::Status Write() const {
    return WriteFileAtomic(path_,
                           "`wukong data prepare` is writing to this directory, or was interrupted: run it again.\n");
  }

 private:
  const std::string path_;
  const bool left_;
  bool keep_;
};

absl::Status CheckOptions(const PrepareOptions& options) {
  if (options.inputs.empty()) return absl::InvalidArgumentError("no input; name at least one file with --input");
  if (options.output.empty()) return absl::InvalidArgumentError("no output; name a directory with --output");
  // So that NaN is refused too.
  if (!(options.validation_fraction > 0 && options.validation_fraction < 1)) {
    return absl::InvalidArgumentError(absl::StrCat("--validation-fraction ", options.validation_fraction,
                                                   "; expected a number above 0 and below 1, such as 0.05"));
  }
  if (options.sha256.empty()) return absl::OkStatus();
  if (options.sha256.size() != 64 || !std::all_of(options.sha256.begin(), options.sha256.end(), absl::ascii_isxdigit)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--sha256 ", options.sha256, "; expected 64 hexadecimal digits, got ", options.sha256.size()));
  }
  if (options.inputs.size() != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("--sha256 is of one input, but ", options.inputs.size(), " are named; prepare them one by one"));
  }
  return absl::OkStatus();
}

absl::Status CheckSha256(const PrepareOptions& options, const DataManifest::Input& input) {
  if (options.sha256.empty() || absl::EqualsIgnoreCase(options.sha256, input.sha256)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("input ", input.path, ": SHA-256 of the unpacked text is ", input.sha256, " (", input.bytes,
                   " bytes); expected ", absl::AsciiStrToLower(options.sha256),
                   ". It is another version of the file, or damaged; fetch it again or correct --sha256"));
}

// Names in the output that are written to; those of token files first under another name.
std::vector<std::string> OutputNames(const std::vector<Tokenizer::File>& tokenizer_files) {
  std::vector<std::string> names = {kTrain, kValidation, absl::StrCat(kTrain, kPartial),
                                    absl::StrCat(kValidation, kPartial)};
  for (const Tokenizer::File& file : tokenizer_files) names.push_back(file.name);
  return names;
}

// INVALID_ARGUMENT when an input is a file that would be replaced, under whatever name.
absl::Status CheckInputsStay(const PrepareOptions& options, std::vector<std::string> names) {
  names.insert(names.end(), {DataManifest::kFile, kMarker});
  for (const std::string& name : names) {
    const std::string path = absl::StrCat(options.output, "/", name);
    struct stat there;
    if (::stat(path.c_str(), &there) != 0) continue;
    for (const std::string& input : options.inputs) {
      struct stat info;
      if (::stat(input.c_str(), &info) != 0 || info.st_dev != there.st_dev || info.st_ino != there.st_ino) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("input ", input, " would be overwritten by the output: it is ", path,
                       ". Choose another --output, or move the input out of this directory"));
    }
  }
  return absl::OkStatus();
}

// FAILED_PRECONDITION when one of `names`, or the manifest, is in `directory` and was not made here. Ours is what the
// manifest names, and all of it when that is damaged.
absl::Status CheckOwner(const std::string& directory, const std::vector<std::string>& names,
                        const std::vector<Tokenizer::File>& tokenizer_files) {
  const auto foreign = [&](absl::string_view name) {
    return absl::FailedPreconditionError(
        absl::StrCat(directory, "/", name, " was not made by `wukong data prepare`",
                     name == DataManifest::kFile ? "" : " (no manifest names it)",
                     ", which would overwrite it. Choose another --output, or move the file away"));
  };
  std::set<std::string> ours;
  if (Exists(ManifestPath(directory))) {
    const absl::StatusOr<std::string> contents = ReadFile(ManifestPath(directory));
    if (!contents.ok()) return contents.status();
    if (!IsManifest(*contents)) return foreign(DataManifest::kFile);
    const absl::StatusOr<DataManifest> manifest = ReadManifest(directory);
    if (!manifest.ok()) return absl::OkStatus();
    for (const std::string& file : {manifest->train.file, manifest->validation.file}) {
      ours.insert({file, file + kPartial});
    }
    for (const DataManifest::TokenizerFile& file : manifest->tokenizer_files) ours.insert(file.file);
  }
  // Writing the same again does no harm: GPT-2's files may be read from where their copies go.
  for (const Tokenizer::File& file : tokenizer_files) {
    const absl::StatusOr<std::string> contents = ReadFile(absl::StrCat(directory, "/", file.name));
    if (contents.ok() && *contents == file.contents) ours.insert(file.name);
  }
  for (const std::string& name : names) {
    if (absl::EndsWith(name, kPartial)) continue;  // Nobody else calls a file so.
    if (ours.count(name) == 0 && Exists(absl::StrCat(directory, "/", name))) return foreign(name);
  }
  return absl::OkStatus();
}

// OK when `directory` already holds what `wanted` (without token files) would become; otherwise why not, with NOT_FOUND
// when nothing was made there before.
absl::Status CheckUpToDate(const std::string& directory, const DataManifest& wanted, DataManifest* found) {
  absl::StatusOr<DataManifest> manifest = ReadManifest(directory);
  if (!manifest.ok()) return manifest.status();
  if (manifest->tokenizer != wanted.tokenizer) return absl::AbortedError("the tokenizer is another");
  if (manifest->validation_fraction != wanted.validation_fraction) {
    return absl::AbortedError("the validation fraction is another");
  }
  const auto same_file = [](const DataManifest::TokenizerFile& a, const DataManifest::TokenizerFile& b) {
    return a.file == b.file && a.sha256 == b.sha256;
  };
  if (!std::equal(manifest->tokenizer_files.begin(), manifest->tokenizer_files.end(), wanted.tokenizer_files.begin(),
                  wanted.tokenizer_files.end(), same_file)) {
    return absl::AbortedError("the tokenizer's files are others");
  }
  const auto same_input = [](const DataManifest::Input& a, const DataManifest::Input& b) {
    return a.file_sha256 == b.file_sha256;
  };
  if (!std::equal(manifest->inputs.begin(), manifest->inputs.end(), wanted.inputs.begin(), wanted.inputs.end(),
                  same_input)) {
    return absl::AbortedError("the inputs are others, or have changed");
  }
  std::vector<std::pair<std::string, std::string>> files = {{manifest->train.file, manifest->train.sha256},
                                                            {manifest->validation.file, manifest->validation.sha256}};
  for (const DataManifest::TokenizerFile& file : manifest->tokenizer_files) files.emplace_back(file.file, file.sha256);
  for (const auto& [file, sha256] : files) {
    const absl::StatusOr<std::string> got = Sha256File(absl::StrCat(directory, "/", file));
    if (!got.ok() || *got != sha256) return absl::AbortedError(file + " is missing or damaged");
  }
  *found = *std::move(manifest);
  return absl::OkStatus();
}

// Writes the tokens of all inputs to `out`, and fills in sizes and digests of `inputs`.
absl::Status Tokenize(const PrepareOptions& options, Tokenizer* tokenizer, NewFile* out,
                      std::vector<DataManifest::Input>* inputs) {
  std::vector<std::unique_ptr<InputFile>> files;
  int64_t bytes_total = 0, bytes_before = 0;
  for (const DataManifest::Input& input : *inputs) {
    absl::StatusOr<std::unique_ptr<InputFile>> file = InputFile::Open(input.path);
    if (!file.ok()) return file.status();
    bytes_total += (*file)->file_bytes();
    files.push_back(*std::move(file));
  }
  std::vector<uint16_t> tokens;
  for (size_t i = 0; i < files.size(); ++i) {
    DataManifest::Input& input = (*inputs)[i];
    input.bytes = 0;
    Sha256 sha;
    std::string text;
    for (bool last = false; !last;) {
      const size_t kept = text.size();
      const absl::StatusOr<size_t> got = files[i]->Read(kChunkBytes, &text);
      if (!got.ok()) return got.status();
      last = *got == 0;
      input.bytes += static_cast<int64_t>(*got);
      sha.Update(text.data() + kept, *got);
      tokens.clear();
      text.erase(0, tokenizer->EncodePrefix(text, last, &tokens));
      if (last && i + 1 < files.size() && tokenizer->end_of_text().has_value()) {
        tokens.push_back(*tokenizer->end_of_text());
      }
      const absl::Status status = out->Write(tokens);
      if (!status.ok()) return status;
      if (options.progress) options.progress(bytes_before + files[i]->file_bytes_read(), bytes_total);
    }
    input.sha256 = sha.Finish();
    const absl::Status status = CheckSha256(options, input);
    if (!status.ok()) return status;
    bytes_before += files[i]->file_bytes();
    files[i].reset();
  }
  return absl::OkStatus();
}

// Where the validation tokens begin: the end of a line nearest to the fraction asked for, or exactly there.
size_t FindSplit(absl::Span<const uint16_t> tokens, double validation_fraction, const Tokenizer& tokenizer) {
  const size_t validation = std::min(
      std::max<size_t>(1, static_cast<size_t>(std::llround(validation_fraction * static_cast<double>(tokens.size())))),
      tokens.size() - 1);
  const size_t split = tokens.size() - validation;
  std::vector<bool> ends_line(static_cast<size_t>(tokenizer.vocabulary()));
  for (size_t token = 0; token < ends_line.size(); ++token) {
    const absl::StatusOr<std::string> text = tokenizer.Decode({static_cast<uint16_t>(token)});
    ends_line[token] = text.ok() && absl::EndsWith(*text, "\n");
  }
  const size_t shift_max = std::min(kSplitShiftMax, std::min(split, validation) / kSplitShiftShare);
  for (size_t shift = 0; shift <= shift_max; ++shift) {
    if (ends_line[tokens[split - shift - 1]]) return split - shift;
    if (ends_line[tokens[split + shift - 1]]) return split + shift;
  }
  return split;
}

absl::Status WriteOutput(const PrepareOptions& options, Tokenizer* tokenizer, Marker* marker, DataManifest* manifest) {
  const std::string directory = options.output + "/";
  if (absl::Status status = marker->Write(); !status.ok()) return status;
  absl::StatusOr<std::unique_ptr<NewFile>> train = NewFile::Create(directory + kTrain);
  if (!train.ok()) return train.status();
  // All tokens go to the training file at first: where to split is known when they are counted.
  absl::Status status = Tokenize(options, tokenizer, train->get(), &manifest->inputs);
  if (!status.ok()) return status;
  absl::StatusOr<std::unique_ptr<NewFile>> validation = NewFile::Create(directory + kValidation);
  if (!validation.ok()) return validation.status();
  size_t split = 0;
  {
    const size_t count = (*train)->tokens();
    if (count < 2) {
      return absl::InvalidArgumentError(
          absl::StrCat("the inputs hold ", count,
                       " tokens in all; expected at least 2, for training and validation. Are the files empty?"));
    }
    const absl::StatusOr<std::unique_ptr<TokenFile>> all = TokenFile::Open((*train)->temporary());
    if (!all.ok()) return all.status();
    const absl::Span<const uint16_t> tokens = (*all)->tokens();
    split = FindSplit(tokens, options.validation_fraction, *tokenizer);
    manifest->train.tokens = static_cast<int64_t>(split);
    manifest->validation.tokens = static_cast<int64_t>(count - split);
    manifest->unigram_loss = UnigramLoss(tokens.first(split), tokens.subspan(split), tokenizer->vocabulary());
    status = (*validation)->Write(tokens.subspan(split));
    if (!status.ok()) return status;
  }  // Unmapped before it is cut.
  status = (*train)->Truncate(split);
  for (const auto& [file, entry] : {std::pair<NewFile*, DataManifest::TokenFileEntry*>{train->get(), &manifest->train},
                                    {validation->get(), &manifest->validation}}) {
    if (status.ok()) status = file->Sync();
    if (!status.ok()) return status;
    absl::StatusOr<std::string> sha256 = Sha256File(file->temporary());
    if (!sha256.ok()) return sha256.status();
    entry->sha256 = *std::move(sha256);
  }
  manifest->train.file = kTrain;
  manifest->validation.file = kValidation;

  // From here on old and new would mix: without a manifest there is no data directory, until the new one stands.
  if (::unlink(ManifestPath(options.output).c_str()) != 0 && errno != ENOENT) {
    return ErrnoToStatus(errno, "cannot replace " + ManifestPath(options.output));
  }
  marker->set_keep(true);
  status = (*train)->Commit();
  if (status.ok()) status = (*validation)->Commit();
  for (const Tokenizer::File& file : tokenizer->files()) {
    if (status.ok()) status = WriteFileAtomic(directory + file.name, file.contents);
  }
  if (status.ok()) status = WriteManifest(options.output, *manifest);
  if (status.ok()) marker->set_keep(false);
  return status;
}

}  // namespace

absl::StatusOr<PrepareResult> PrepareData(const PrepareOptions& options) {
  absl::Status status = CheckOptions(options);
  if (!status.ok()) return status;
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = MakeTokenizer(options.tokenizer, options.tokenizer_files);
  if (!tokenizer.ok()) return tokenizer.status();

  PrepareResult result;
  DataManifest& manifest = result.manifest;
  manifest.tokenizer = (*tokenizer)->name();
  manifest.vocabulary = (*tokenizer)->vocabulary();
  manifest.validation_fraction = options.validation_fraction;
  for (const Tokenizer::File& file : (*tokenizer)->files()) {
    manifest.tokenizer_files.push_back({file.name, Sha256Hex(file.contents)});
  }
  for (const std::string& path : options.inputs) {
    const absl::StatusOr<std::unique_ptr<InputFile>> readable = InputFile::Open(path);
    if (!readable.ok()) return readable.status();
    absl::StatusOr<std::string> sha256 = Sha256File(path);
    if (!sha256.ok()) return sha256.status();
    manifest.inputs.push_back({path, 0, "", *std::move(sha256)});
  }

  status = MakeDirectories(options.output);
  if (!status.ok()) return status;
  const absl::StatusOr<std::unique_ptr<DirectoryLock>> lock = DirectoryLock::Take(options.output);
  if (!lock.ok()) return lock.status();
  const std::vector<std::string> names = OutputNames((*tokenizer)->files());
  status = CheckInputsStay(options, names);
  if (!status.ok()) return status;
  Marker marker(options.output);
  if (!marker.left()) {
    status = CheckOwner(options.output, names, (*tokenizer)->files());
    if (!status.ok()) return status;
  }
  DataManifest found;
  status = CheckUpToDate(options.output, manifest, &found);
  if (status.ok()) {
    marker.set_keep(false);
    status = CheckSha256(options, found.inputs[0]);
    if (!status.ok()) return status;
    result.manifest = std::move(found);
    result.up_to_date = true;
    return result;
  }
  if (!absl::IsNotFound(status)) result.reason = std::string(status.message());
  status = WriteOutput(options, tokenizer->get(), &marker, &manifest);
  if (!status.ok()) return status;
  return result;
}

}  // namespace wukong
