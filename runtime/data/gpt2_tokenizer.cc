#include "runtime/data/gpt2_tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <queue>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "glog/logging.h"
#include "nlohmann/json.hpp"
#include "runtime/base/file.h"
#include "runtime/data/utf8.h"

namespace wukong {
namespace {

constexpr char kMergesFile[] = "vocab.bpe";
constexpr char kVocabularyFile[] = "encoder.json";
constexpr char kEndOfText[] = "<|endoftext|>";

// Longer pieces are cut; the window behind a position is that and what a pattern may look at beyond it: a contraction
// or one character.
constexpr size_t kPieceMax = 1 << 16;
constexpr size_t kWindow = Tokenizer::kLookahead;
static_assert(kWindow >= kPieceMax + 8, "the end of a piece depends on what follows it");

// The cache keeps short pieces, up to this many, and then stays as it is: the common words came first.
constexpr size_t kCachedPieceBytesMax = 32;
constexpr size_t kCacheEntriesMax = 1 << 20;

// White_Space of Unicode, spelled out: PCRE2's own \s counts U+180E too.
#define WUKONG_SPACE R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})"
// The pieces of GPT-2 (Radford et al. 2019): contractions; letters, digits or other characters, each with one space
// before them; spaces up to the last before a word; spaces. Every character is in one of them.
constexpr char kPieces[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{L}\p{N})" WUKONG_SPACE
                           R"(]+|[)" WUKONG_SPACE R"(]+(?![^)" WUKONG_SPACE R"(])|[)" WUKONG_SPACE R"(]+)";
#undef WUKONG_SPACE

// GPT-2 writes every byte as a printable character: itself where it is printable in Latin-1, else U+0100 and on.
std::array<uint16_t, 256> ByteToCharacter() {
  std::array<uint16_t, 256> characters;
  uint16_t next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
    characters[static_cast<size_t>(byte)] = printable ? static_cast<uint16_t>(byte) : next++;
  }
  return characters;
}

// The bytes that a token of the two files stands for; false when it has a character that stands for none.
class TokenReader {
 public:
  TokenReader() {
    bytes_.fill(-1);
    const std::array<uint16_t, 256> characters = ByteToCharacter();
    for (size_t byte = 0; byte < 256; ++byte) bytes_[characters[byte]] = static_cast<int>(byte);
  }

  bool Read(absl::string_view written, std::string* bytes) const {
    bytes->clear();
    for (size_t i = 0; i < written.size();) {
      const size_t length = Utf8SequenceLength(written.substr(i));
      if (length < 1 || length > 2) return false;
      const auto at = [&](size_t k) { return static_cast<unsigned>(static_cast<uint8_t>(written[k])); };
      const unsigned character = length == 1 ? at(i) : (at(i) & 0x1f) << 6 | (at(i + 1) & 0x3f);
      if (character >= bytes_.size() || bytes_[character] < 0) return false;
      bytes->push_back(static_cast<char>(bytes_[character]));
      i += length;
    }
    return !bytes->empty();
  }

 private:
  std::array<int, 512> bytes_;  // By character; -1 where it stands for none.
};

struct Merge {
  uint32_t rank;  // Lower is earlier.
  uint16_t merged;
};

uint32_t PairKey(uint16_t left, uint16_t right) { return static_cast<uint32_t>(left) << 16 | right; }

struct Gpt2Tables {
  std::vector<std::string> bytes;               // By token.
  std::array<uint16_t, 256> byte_tokens;        // By byte.
  absl::flat_hash_map<uint32_t, Merge> merges;  // By PairKey.
  absl::optional<uint16_t> end_of_text;
};

class Pattern {
 public:
  Pattern() {
    int error = 0;
    PCRE2_SIZE offset = 0;
    // Anchored here and not at each match: for that the compiled code has no option, and the interpreter would run.
    code_ = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(kPieces), PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_ANCHORED,
                          &error, &offset, nullptr);
    CHECK(code_ != nullptr) << "pattern: error " << error << " at " << offset;
    // Where there is no just-in-time compiler the interpreter does the same, slower.
    compiled_ = pcre2_jit_compile(code_, PCRE2_JIT_COMPLETE) == 0;
    match_ = pcre2_match_data_create(1, nullptr);
    CHECK(match_ != nullptr);
  }
  ~Pattern() {
    pcre2_match_data_free(match_);
    pcre2_code_free(code_);
  }
  Pattern(const Pattern&) = delete;
  Pattern& operator=(const Pattern&) = delete;

  // Length of the piece at the start of `text`, which is valid UTF-8 and not empty.
  size_t Match(absl::string_view text) {
    // Not pcre2_match() for both, which takes the interpreter without a word when it does not like an option.
    const auto match = compiled_ ? pcre2_jit_match : pcre2_match;
    const int result =
        match(code_, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), 0, PCRE2_NO_UTF_CHECK, match_, nullptr);
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(match_);
    CHECK(result > 0 && ends[1] > 0) << "pattern: result " << result << " on " << absl::CHexEscape(text.substr(0, 40));
    return ends[1];
  }

  bool compiled() const { return compiled_; }

 private:
  pcre2_code* code_;
  pcre2_match_data* match_;
  bool compiled_ = false;
};

class Gpt2Tokenizer final : public Tokenizer {
 public:
  Gpt2Tokenizer(Gpt2Tables tables, std::vector<File> files) : tables_(std::move(tables)), files_(std::move(files)) {}

  std::string name() const override { return "gpt2"; }
  int64_t vocabulary() const override { return static_cast<int64_t>(tables_.bytes.size()); }
  absl::optional<uint16_t> end_of_text() const override { return tables_.end_of_text; }
  std::vector<File> files() const override { return files_; }

  size_t EncodePrefix(absl::string_view text, bool last, std::vector<uint16_t>* tokens) override {
    size_t position = 0;
    size_t valid_end = 0;  // Valid UTF-8 from `position` to here.
    while (position < text.size() && (last || text.size() - position >= kWindow)) {
      const size_t window_end = std::min(text.size(), position + kWindow);
      valid_end = SkipValidUtf8(text, std::max(valid_end, position), window_end);
      if (valid_end == position) {
        tokens->push_back(tables_.byte_tokens[static_cast<uint8_t>(text[position])]);
        ++position;
        continue;
      }
      const size_t end = valid_end <= window_end ? valid_end : WholeCharacters(text, window_end);
      size_t length = pattern_.Match(text.substr(position, end - position));
      if (length > kPieceMax) length = WholeCharacters(text, position + kPieceMax) - position;
      EncodePiece(text.substr(position, length), tokens);
      position += length;
    }
    return position;
  }

  absl::StatusOr<std::string> Decode(absl::Span<const uint16_t> tokens) const override {
    std::string text;
    for (const uint16_t token : tokens) {
      if (token >= tables_.bytes.size()) {
        return absl::InvalidArgumentError(
            absl::StrCat("tokenizer gpt2: token ", token, " is beyond the vocabulary of ", tables_.bytes.size()));
      }
      text += tables_.bytes[token];
    }
    return text;
  }

 private:
  struct Cached {
    uint32_t offset;  // In cached_tokens_.
    uint32_t count;
  };

  // The last start of a character at or before `end`, which is inside valid text.
  static size_t WholeCharacters(absl::string_view text, size_t end) {
    while (end > 0 && end < text.size() && (static_cast<uint8_t>(text[end]) & 0xc0) == 0x80) --end;
    return end;
  }

  void EncodePiece(absl::string_view piece, std::vector<uint16_t>* tokens) {
    if (piece.size() > kCachedPieceBytesMax) return MergePiece(piece, tokens);
    const auto found = cache_.find(piece);
    if (found != cache_.end()) {
      const auto begin = cached_tokens_.begin() + found->second.offset;
      tokens->insert(tokens->end(), begin, begin + found->second.count);
      return;
    }
    const size_t before = tokens->size();
    MergePiece(piece, tokens);
    if (cache_.size() >= kCacheEntriesMax) return;
    cache_.emplace(std::string(piece), Cached{static_cast<uint32_t>(cached_tokens_.size()),
                                              static_cast<uint32_t>(tokens->size() - before)});
    cached_tokens_.insert(cached_tokens_.end(), tokens->begin() + static_cast<int64_t>(before), tokens->end());
  }

  // Byte-pair encoding (Sennrich et al. 2016): of all neighbours the pair of lowest rank is merged, the leftmost first,
  // until no pair has a rank. O(n log n).
  void MergePiece(absl::string_view piece, std::vector<uint16_t>* tokens) {
    struct Symbol {
      uint16_t token;
      uint32_t previous;
      uint32_t next;
      bool alive;
    };
    const uint32_t count = static_cast<uint32_t>(piece.size());
    std::vector<Symbol> symbols(count);
    for (uint32_t i = 0; i < count; ++i) {
      symbols[i] = {tables_.byte_tokens[static_cast<uint8_t>(piece[i])], i - 1, i + 1, true};  // 0 - 1 is never used.
    }
    // Rank, place of the left one, and the pair, by which entries that a merge made obsolete are known.
    using Candidate = std::tuple<uint32_t, uint32_t, uint32_t>;
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<Candidate>> candidates;
    const auto consider = [&](uint32_t left) {
      if (symbols[left].next >= count) return;
      const uint32_t key = PairKey(symbols[left].token, symbols[symbols[left].next].token);
      const auto merge = tables_.merges.find(key);
      if (merge != tables_.merges.end()) candidates.emplace(merge->second.rank, left, key);
    };
    for (uint32_t i = 0; i < count; ++i) consider(i);
    while (!candidates.empty()) {
      const uint32_t left = std::get<1>(candidates.top());
      const uint32_t key = std::get<2>(candidates.top());
      candidates.pop();
      Symbol& symbol = symbols[left];
      if (!symbol.alive || symbol.next >= count || PairKey(symbol.token, symbols[symbol.next].token) != key) continue;
      symbol.token = tables_.merges.find(key)->second.merged;
      symbols[symbol.next].alive = false;
      symbol.next = symbols[symbol.next].next;
      if (symbol.next < count) symbols[symbol.next].previous = left;
      if (left > 0) consider(symbol.previous);
      consider(left);
    }
    for (uint32_t i = 0; i < count; i = symbols[i].next) tokens->push_back(symbols[i].token);
  }

  const Gpt2Tables tables_;
  const std::vector<File> files_;
  Pattern pattern_;
  absl::flat_hash_map<std::string, Cached> cache_;
  std::vector<uint16_t> cached_tokens_;
};

constexpr char kTakeBoth[] = ". Take both files from the same release of GPT-2";

// Fills tables->bytes, byte_tokens and end_of_text; `numbers` finds a token by its bytes.
absl::Status ParseVocabulary(const std::string& path, const std::string& contents, Gpt2Tables* tables,
                             absl::flat_hash_map<std::string, uint16_t>* numbers) {
  const nlohmann::json json = nlohmann::json::parse(contents, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object())
    return BadFile(path, "expected a JSON object from tokens to numbers; the file is damaged or cut");
  if (json.size() < 256 || json.size() > 65536) {
    return BadFile(path, absl::StrCat(json.size(), " tokens; expected 256 to 65536 (tokens are stored in 16 bits)"));
  }
  const TokenReader reader;
  tables->bytes.resize(json.size());
  for (const auto& [written, number] : json.items()) {
    if (!number.is_number_unsigned() || number.get<uint64_t>() >= json.size()) {
      return BadFile(path, absl::StrCat("token \"", written, "\" has the number ", number.dump(), "; expected 0 to ",
                                        json.size() - 1));
    }
    std::string bytes;
    if (!reader.Read(written, &bytes)) {
      return BadFile(
          path, absl::StrCat("token \"", written, "\" has a character that stands for no byte in GPT-2's alphabet"));
    }
    std::string& slot = tables->bytes[number.get<uint64_t>()];
    if (!slot.empty()) return BadFile(path, absl::StrCat("the number ", number.dump(), " is given to two tokens"));
    slot = bytes;
    numbers->emplace(std::move(bytes), static_cast<uint16_t>(number.get<uint64_t>()));
  }
  for (size_t byte = 0; byte < 256; ++byte) {
    const auto found = numbers->find(std::string(1, static_cast<char>(byte)));
    if (found == numbers->end()) return BadFile(path, absl::StrCat("there is no token for the single byte ", byte));
    tables->byte_tokens[byte] = found->second;
  }
  const auto end = numbers->find(kEndOfText);
  if (end != numbers->end()) tables->end_of_text = end->second;
  return absl::OkStatus();
}

// Fills tables->merges. Every part must be a byte or made by an earlier line: on that rests that one merge at a time,
// lowest rank first, is what GPT-2 does. Every token must be made by some line, or a cut file would pass unseen.
absl::Status ParseMerges(const std::string& path, const std::string& vocabulary_path, const std::string& contents,
                         const absl::flat_hash_map<std::string, uint16_t>& numbers, Gpt2Tables* tables) {
  const TokenReader reader;
  std::vector<bool> made(tables->bytes.size());
  for (const uint16_t token : tables->byte_tokens) made[token] = true;
  int64_t line_number = 0;
  for (absl::string_view line : absl::StrSplit(contents, '\n')) {
    ++line_number;
    absl::ConsumeSuffix(&line, "\r");
    if (line.empty() || (line_number == 1 && absl::StartsWith(line, "#version"))) continue;
    const std::string where = absl::StrCat(path, ":", line_number);
    const std::vector<absl::string_view> parts = absl::StrSplit(line, ' ');
    if (parts.size() != 2)
      return BadFile(where, absl::StrCat("\"", line, "\": expected two tokens and one space between them"));
    uint16_t tokens[2];
    std::string merged;
    for (size_t i = 0; i < 2; ++i) {
      std::string bytes;
      if (!reader.Read(parts[i], &bytes)) {
        return BadFile(where,
                       absl::StrCat("\"", parts[i], "\" has a character that stands for no byte in GPT-2's alphabet"));
      }
      const auto found = numbers.find(bytes);
      if (found == numbers.end() || !made[found->second]) {
        return BadFile(where, absl::StrCat("\"", parts[i], "\" is ",
                                           found == numbers.end() ? "not in " : "made by no earlier line, in ",
                                           found == numbers.end() ? vocabulary_path : path, kTakeBoth));
      }
      tokens[i] = found->second;
      merged += bytes;
    }
    const auto found = numbers.find(merged);
    if (found == numbers.end()) {
      return BadFile(
          where, absl::StrCat("\"", parts[0], parts[1], "\", which it makes, is not in ", vocabulary_path, kTakeBoth));
    }
    const Merge merge{static_cast<uint32_t>(tables->merges.size()), found->second};
    if (!tables->merges.emplace(PairKey(tokens[0], tokens[1]), merge).second) {
      return BadFile(where, absl::StrCat("\"", line, "\" stands in the file twice"));
    }
    made[found->second] = true;
  }
  for (size_t token = 0; token < made.size(); ++token) {
    const std::string& bytes = tables->bytes[token];
    const bool special = absl::StartsWith(bytes, "<|") && absl::EndsWith(bytes, "|>");
    if (!made[token] && !special) {
      return BadFile(path, absl::StrCat("no line makes token ", token, " (\"", absl::CHexEscape(bytes), "\") of ",
                                        vocabulary_path, ": the file is cut, or of another vocabulary", kTakeBoth));
    }
  }
  return absl::OkStatus();
}

}  // namespace

bool FindsPiecesByMachineCode() { return Pattern().compiled(); }

absl::StatusOr<std::unique_ptr<Tokenizer>> ReadGpt2Tokenizer(const std::string& directory) {
  const std::string merges_path = absl::StrCat(directory, "/", kMergesFile);
  const std::string vocabulary_path = absl::StrCat(directory, "/", kVocabularyFile);
  std::vector<Tokenizer::File> files;
  for (const char* name : {kMergesFile, kVocabularyFile}) {
    absl::StatusOr<std::string> contents = ReadFile(absl::StrCat(directory, "/", name));
    if (!contents.ok()) {
      return absl::Status(
          contents.status().code(),
          absl::StrCat("tokenizer gpt2: ", contents.status().message(),
                       ". --tokenizer-files names a directory with GPT-2's vocab.bpe and encoder.json"));
    }
    files.push_back({name, *std::move(contents)});
  }
  Gpt2Tables tables;
  absl::flat_hash_map<std::string, uint16_t> numbers;
  absl::Status status = ParseVocabulary(vocabulary_path, files[1].contents, &tables, &numbers);
  if (!status.ok()) return status;
  status = ParseMerges(merges_path, vocabulary_path, files[0].contents, numbers, &tables);
  if (!status.ok()) return status;
  return std::unique_ptr<Tokenizer>(std::make_unique<Gpt2Tokenizer>(std::move(tables), std::move(files)));
}

}  // namespace wukong
