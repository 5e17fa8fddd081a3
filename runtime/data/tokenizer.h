// Text to tokens and back.
#ifndef WUKONG_RUNTIME_DATA_TOKENIZER_H_
#define WUKONG_RUNTIME_DATA_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/optional.h"
#include "absl/types/span.h"

namespace wukong {

// Lossless for any bytes: Decode(Encode(text)) == text. Not thread-safe (encoding keeps a cache).
class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  virtual std::string name() const = 0;

  // Tokens are below this; at most 65,536.
  virtual int64_t vocabulary() const = 0;

  // Appends the tokens of a beginning of `text` and returns that beginning's size in bytes. Encoding the rest with more
  // text behind it then gives the same tokens as encoding all in one piece. Without `last` some bytes may be left, at
  // most kLookahead; with it none is.
  virtual size_t EncodePrefix(absl::string_view text, bool last, std::vector<uint16_t>* tokens) = 0;
  static constexpr size_t kLookahead = (1 << 16) + 16;

  std::vector<uint16_t> Encode(absl::string_view text);

  // INVALID_ARGUMENT for a token beyond the vocabulary.
  virtual absl::StatusOr<std::string> Decode(absl::Span<const uint16_t> tokens) const = 0;

  // What stands between two documents, where the tokenizer has such a token.
  virtual absl::optional<uint16_t> end_of_text() const { return absl::nullopt; }

  // What it was read from: names without a directory, and the contents.
  struct File {
    std::string name;
    std::string contents;
  };
  virtual std::vector<File> files() const { return {}; }
};

// `byte`: the 256 bytes. `gpt2`: the byte-pair encoding of GPT-2, from vocab.bpe and encoder.json in `directory`.
// INVALID_ARGUMENT or NOT_FOUND with what is wrong with the name, the directory or its files.
absl::StatusOr<std::unique_ptr<Tokenizer>> MakeTokenizer(const std::string& name, const std::string& directory);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_DATA_TOKENIZER_H_
