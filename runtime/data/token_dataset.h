// Token files and the order in which they are read.
#ifndef WUKONG_RUNTIME_DATA_TOKEN_DATASET_H_
#define WUKONG_RUNTIME_DATA_TOKEN_DATASET_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/job.pb.h"

namespace wukong {

// A file of unsigned 16-bit little-endian tokens, mapped into memory. Thread-safe after opening.
class TokenFile {
 public:
  enum class Layout { kNanoGpt, kLlmC };

  // The layout is found by llm.c's magic number. Errors name the file, what was expected and what was found: missing,
  // empty, odd-sized, header and size disagree, unknown version, the magic number of something else.
  static absl::StatusOr<std::unique_ptr<TokenFile>> Open(const std::string& path);
  ~TokenFile();
  TokenFile(const TokenFile&) = delete;
  TokenFile& operator=(const TokenFile&) = delete;

  Layout layout() const { return layout_; }
  absl::Span<const uint16_t> tokens() const { return tokens_; }
  const std::string& path() const { return path_; }

  // INVALID_ARGUMENT when what has no header looks like text, or like tokens of 32 or 64 bits. A guess by the first
  // 64 KiB, and never of a short file; not for what a manifest names, where the byte tokens of UTF-16 text are no
  // mistake.
  absl::Status CheckContents() const;

  // Reads the whole file. INVALID_ARGUMENT names the first token that is not below `vocabulary`, and where it stands.
  absl::Status CheckVocabulary(int64_t vocabulary) const;

  // Tells these tokens from another text's, whatever the layout: how many they are, and the SHA-256 of 64 evenly spaced
  // pieces of 1024, the first and the last of them included. Reads no more than that.
  std::string Fingerprint() const;

 private:
  TokenFile() = default;
  std::string path_;
  Layout layout_ = Layout::kNanoGpt;
  absl::Span<const uint16_t> tokens_;
  void* mapping_ = nullptr;
  size_t mapping_bytes_ = 0;
};

// INVALID_ARGUMENT when both have the same tokens, in whatever layout.
absl::Status CheckApart(const TokenFile& training, const TokenFile& validation);

// Samples of `context` tokens with their targets, in a pseudo-random order that depends on the seed and the epoch only.
// Sample `index` runs over all epochs: epoch = index / samples_per_epoch. Thread-safe.
class SampleReader {
 public:
  // INVALID_ARGUMENT when the file is too short for one sample.
  static absl::StatusOr<SampleReader> Make(std::shared_ptr<const TokenFile> file, int64_t context, uint64_t seed);
  // Of no text: sample i is the token i. For synthetic models.
  static SampleReader Numbers();

  int64_t samples_per_epoch() const { return samples_per_epoch_; }
  int64_t context() const { return context_; }

  // Appends one sample: `context` tokens and the `context` tokens that follow each of them.
  void Append(int64_t index, std::vector<int64_t>* tokens, std::vector<int64_t>* targets) const;

  // Like Append in file order, for validation: sample i starts at token i * context.
  void AppendInOrder(int64_t sample, std::vector<int64_t>* tokens, std::vector<int64_t>* targets) const;

 private:
  SampleReader() = default;
  std::shared_ptr<const TokenFile> file_;
  int64_t context_ = 0;
  int64_t samples_per_epoch_ = 0;
  uint64_t seed_ = 0;
};

// Where a job's tokens are: data.directory (through its manifest, whose sizes are checked) or data.train and
// data.validation.
struct DataFiles {
  std::string train;
  std::string validation;
};
absl::StatusOr<DataFiles> FindDataFiles(const Data& data);

// Loss in nats per token of the best model that knows only how often each token of `train` occurs (add-one smoothed
// over `vocabulary`), on `validation`.
double UnigramLoss(absl::Span<const uint16_t> train, absl::Span<const uint16_t> validation, int64_t vocabulary);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_DATA_TOKEN_DATASET_H_
