// What `wukong data prepare` made: manifest.json beside train.bin and validation.bin.
#ifndef WUKONG_RUNTIME_DATA_MANIFEST_H_
#define WUKONG_RUNTIME_DATA_MANIFEST_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace wukong {

struct DataManifest {
  static constexpr char kFile[] = "manifest.json";
  // Raised when older readers must not read it.
  static constexpr int64_t kVersion = 1;

  struct TokenFileEntry {
    std::string file;  // Relative to the directory.
    int64_t tokens = 0;
    std::string sha256;
    int64_t bytes() const { return tokens * 2; }
  };
  struct Input {
    std::string path;         // As it was named; for people only.
    int64_t bytes = 0;        // Unpacked.
    std::string sha256;       // Of the unpacked bytes.
    std::string file_sha256;  // Of the file as it lies on the disk.
  };
  struct TokenizerFile {
    std::string file;
    std::string sha256;
  };

  std::string tokenizer;
  int64_t vocabulary = 0;
  std::vector<TokenizerFile> tokenizer_files;  // Copies, relative to the directory.
  double validation_fraction = 0;              // As asked for; the split is moved to the end of a line.
  std::vector<Input> inputs;
  TokenFileEntry train;
  TokenFileEntry validation;
  double unigram_loss = 0;  // Nats per token of `validation`; see UnigramLoss.
};

nlohmann::ordered_json ManifestToJson(const DataManifest& manifest);

// NOT_FOUND when there is no manifest, INVALID_ARGUMENT when it cannot be read; both name the file and say what to do.
absl::StatusOr<DataManifest> ReadManifest(const std::string& directory);

// Whether `contents` are of a manifest that `wukong data prepare` wrote, of whatever version, whole or damaged.
bool IsManifest(const std::string& contents);

// Written last and atomically: where there is a manifest, the files beside it are whole.
absl::Status WriteManifest(const std::string& directory, const DataManifest& manifest);

std::string ManifestPath(const std::string& directory);

// Whether the sizes of the two token files are those of the manifest. Reads no contents.
absl::Status CheckManifestSizes(const std::string& directory, const DataManifest& manifest);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_DATA_MANIFEST_H_
