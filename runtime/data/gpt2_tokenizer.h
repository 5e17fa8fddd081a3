// GPT-2's byte-pair encoding.
#ifndef WUKONG_RUNTIME_DATA_GPT2_TOKENIZER_H_
#define WUKONG_RUNTIME_DATA_GPT2_TOKENIZER_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/data/tokenizer.h"

namespace wukong {

// Reads vocab.bpe (the merges, in order) and encoder.json (token to number) in `directory`, both with bytes written as
// GPT-2 writes them, and checks that they belong together.
//
// Text that is not valid UTF-8 is not replaced: each byte outside a valid sequence is a token of its own, and the text
// on its two sides is encoded as if it ended there. Pieces (words, runs of spaces, ...) above 64 KiB are cut there.
// `<|endoftext|>` in the text is text; the token of that name only comes from end_of_text().
absl::StatusOr<std::unique_ptr<Tokenizer>> ReadGpt2Tokenizer(const std::string& directory);

// Whether PCRE2's just-in-time compiler finds the pieces, which it does wherever it can; for tests.
bool FindsPiecesByMachineCode();

}  // namespace wukong

#endif  // WUKONG_RUNTIME_DATA_GPT2_TOKENIZER_H_
