// From text files to token files.
#ifndef WUKONG_RUNTIME_DATA_PREPARE_H_
#define WUKONG_RUNTIME_DATA_PREPARE_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/data/manifest.h"

namespace wukong {

struct PrepareOptions {
  std::string tokenizer;              // byte or gpt2
  std::string tokenizer_files;        // gpt2: a directory with vocab.bpe and encoder.json
  std::vector<std::string> inputs;    // plain text, gzip or dictzip, in this order
  std::string output;                 // a directory, made where it is missing
  double validation_fraction = 0.05;  // of the tokens, from the end; above 0 and below 1
  std::string sha256;                 // 64 hexadecimal digits: of the only input, unpacked; empty to not check
  // Called now and then, with bytes of the input files.
  std::function<void(int64_t bytes_done, int64_t bytes_total)> progress;
};

struct PrepareResult {
  DataManifest manifest;
  bool up_to_date = false;  // Nothing was written.
  std::string reason;       // Why what stood in the output was made again; empty when nothing stood there.
};

// Writes train.bin and validation.bin (nanoGPT's layout), copies of the tokenizer's files, and last manifest.json, each
// whole or not at all. Where the output has a manifest of the same inputs (by SHA-256) and options and its files are
// undamaged, does nothing. Between two inputs stands the tokenizer's end-of-text token, if it has one. The split is at
// the end of a line where there is one near. Memory does not grow with the inputs.
//
// Replaces only what it made: what the output's manifest names, or what an interrupted call left, which a file tells
// that stands there as long as a call lasts.
//
// INVALID_ARGUMENT or NOT_FOUND for options and inputs, of which none may be a file of the output. FAILED_PRECONDITION
// when another process writes to the output, or a file of somebody else is in the way. RESOURCE_EXHAUSTED for a full
// disk.
absl::StatusOr<PrepareResult> PrepareData(const PrepareOptions& options);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_DATA_PREPARE_H_
