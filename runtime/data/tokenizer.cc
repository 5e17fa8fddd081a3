#include "runtime/data/tokenizer.h"

#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "runtime/data/gpt2_tokenizer.h"

namespace wukong {
namespace {

class ByteTokenizer final : public Tokenizer {
 public:
  std::string name() const override { return "byte"; }
  int64_t vocabulary() const override { return 256; }

  size_t EncodePrefix(absl::string_view text, bool /*last*/, std::vector<uint16_t>* tokens) override {
    const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
    tokens->insert(tokens->end(), bytes, bytes + text.size());
    return text.size();
  }

  absl::StatusOr<std::string> Decode(absl::Span<const uint16_t> tokens) const override {
    std::string text;
    text.reserve(tokens.size());
    for (const uint16_t token : tokens) {
      if (token > 255) {
        return absl::InvalidArgumentError(
            absl::StrCat("tokenizer byte: token ", token, " is beyond the vocabulary of 256"));
      }
      text.push_back(static_cast<char>(token));
    }
    return text;
  }
};

}  // namespace

std::vector<uint16_t> Tokenizer::Encode(absl::string_view text) {
  std::vector<uint16_t> tokens;
  CHECK_EQ(EncodePrefix(text, /*last=*/true, &tokens), text.size());
  return tokens;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> MakeTokenizer(const std::string& name, const std::string& directory) {
  if (name == "byte") {
    if (!directory.empty()) {
      return absl::InvalidArgumentError("tokenizer byte reads no files; leave out --tokenizer-files");
    }
    return std::unique_ptr<Tokenizer>(std::make_unique<ByteTokenizer>());
  }
  if (name == "gpt2") {
    if (directory.empty()) {
      return absl::InvalidArgumentError(
          "tokenizer gpt2 needs --tokenizer-files DIR, a directory with GPT-2's vocab.bpe and encoder.json");
    }
    return ReadGpt2Tokenizer(directory);
  }
  return absl::InvalidArgumentError(absl::StrCat("unknown tokenizer \"", name, "\"; expected byte or gpt2"));
}

}  // namespace wukong
