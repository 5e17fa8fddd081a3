#include "runtime/data/tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <filesystem>
#include <functional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/base/random.h"
#include "runtime/data/gpt2_tokenizer.h"
#include "runtime/data/test_directory.h"

namespace wukong {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// How GPT-2 writes a byte, as UTF-8; an independent spelling of the table in the tokenizer.
std::string Written(uint8_t byte) {
  int character = byte;
  if (byte <= 32) character = 256 + byte;
  if (byte >= 127 && byte <= 160) character = 256 + 33 + (byte - 127);
  if (byte == 173) character = 256 + 33 + 34;
  if (character < 128) return std::string(1, static_cast<char>(character));
  return {static_cast<char>(0xc0 | character >> 6), static_cast<char>(0x80 | (character & 0x3f))};
}

// A tiny GPT-2: the bytes are tokens 0 to 255 in order of their values, then the merges, then <|endoftext|>.
// "\xc4\xa0" is how a space is written.
constexpr char kMerges[] =
    "#version: 0.2\n"
    "l l\n"                // 256 ll
    "h e\n"                // 257 he
    "ll o\n"               // 258 llo
    "\xc4\xa0 w\n"         // 259 " w"
    "he llo\n"             // 260 hello
    "o r\n"                // 261 or
    "\xc4\xa0w or\n"       // 262 " wor"
    "\xc4\xa0 \xc4\xa0\n"  // 263 "  "
    "a a\n"                // 264 aa
    "aa a\n"               // 265 aaa
    "\xc3\x83 \xc2\xa9\n"  // 266, the two bytes of U+00E9
    "' ll\n";              // 267 'll

constexpr const char* kMerged[] = {
    "ll", "he", "llo", "\xc4\xa0w", "hello", "or", "\xc4\xa0wor", "\xc4\xa0\xc4\xa0", "aa", "aaa", "\xc3\x83\xc2\xa9",
    "'ll"};

class Gpt2TokenizerTest : public ::testing::Test {
 protected:
  Gpt2TokenizerTest() {
    for (int byte = 0; byte < 256; ++byte) vocabulary_[Written(static_cast<uint8_t>(byte))] = byte;
    for (const char* merged : kMerged) vocabulary_[merged] = vocabulary_.size();
    vocabulary_["<|endoftext|>"] = vocabulary_.size();
    Write();
  }
  void Write() {
    directory_.Write("vocab.bpe", merges_);
    directory_.Write("encoder.json", vocabulary_.dump());
  }
  std::unique_ptr<Tokenizer> Make() {
    auto tokenizer = MakeTokenizer("gpt2", directory_.path());
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    return *std::move(tokenizer);
  }
  std::string Error() {
    Write();
    const auto tokenizer = MakeTokenizer("gpt2", directory_.path());
    EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(tokenizer.status().message());
  }
  TestDirectory directory_;
  std::string merges_ = kMerges;
  nlohmann::json vocabulary_ = nlohmann::json::object();
};

std::string RandomBytes(Random* random, size_t count) {
  std::string bytes(count, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random->Below(256));
  return bytes;
}

// Text that meets the borders between the kinds of pieces, characters of one to four bytes, and bytes that are no
// UTF-8.
std::string RandomText(Random* random, size_t parts) {
  constexpr const char* kParts[] = {"hello",
                                    " ",
                                    "  ",
                                    "\n",
                                    "'ll",
                                    "'",
                                    "a",
                                    "aaaa",
                                    "7",
                                    "42",
                                    "!?",
                                    "\xc3\xa9",
                                    "\xe4\xbd\xa0\xe5\xa5\xbd",
                                    "\xf0\x9f\x90\x92",
                                    "\xc2\xa0",
                                    "\xe3\x80\x80",
                                    "\xff",
                                    "\xc3",
                                    "\xe4\xbd",
                                    "\xed\xa0\x80",
                                    " wor",
                                    "\t",
                                    "ld"};
  std::string text;
  for (size_t i = 0; i < parts; ++i) text += kParts[random->Below(std::size(kParts))];
  return text;
}

TEST(ByteTokenizerTest, RoundTripsArbitraryBytes) {
  auto tokenizer = *MakeTokenizer("byte", "");
  Random random(5);
  const std::string bytes = RandomBytes(&random, 5000);
  const std::vector<uint16_t> tokens = tokenizer->Encode(bytes);
  EXPECT_EQ(tokens.size(), bytes.size());
  EXPECT_EQ(*tokenizer->Decode(tokens), bytes);
  EXPECT_EQ(tokenizer->vocabulary(), 256);
  EXPECT_EQ(tokenizer->Decode({65, 256}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(tokenizer->Encode("A\xff"), ElementsAre(65, 255));
}

TEST(MakeTokenizerTest, RefusesUnknownNamesAndWrongUse) {
  EXPECT_THAT(std::string(MakeTokenizer("gpt3", "").status().message()), HasSubstr("expected byte or gpt2"));
  EXPECT_THAT(std::string(MakeTokenizer("gpt2", "").status().message()), HasSubstr("--tokenizer-files"));
  EXPECT_EQ(MakeTokenizer("byte", "somewhere").status().code(), absl::StatusCode::kInvalidArgument);
  const absl::Status missing = MakeTokenizer("gpt2", "/nowhere").status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.message()), AllOf(HasSubstr("/nowhere/vocab.bpe"), HasSubstr("encoder.json")));
}

TEST_F(Gpt2TokenizerTest, MergesAsComputedByHand) {
  auto tokenizer = Make();
  EXPECT_EQ(tokenizer->vocabulary(), 269);
  EXPECT_EQ(tokenizer->end_of_text(), 268);
  EXPECT_THAT(tokenizer->Encode(""), ElementsAre());
  EXPECT_THAT(tokenizer->Encode("hello world"), ElementsAre(260, 262, 'l', 'd'));
  // `l l` is before `h e`; "hell" then has no `hello`.
  EXPECT_THAT(tokenizer->Encode("hell"), ElementsAre(257, 256));
  // The leftmost pair of a rank first: (aa)(aa)a, then aa+a.
  EXPECT_THAT(tokenizer->Encode("aaaaa"), ElementsAre(264, 265));
  EXPECT_THAT(tokenizer->Encode("aaaa"), ElementsAre(264, 264));
  // The last of several spaces goes to the word behind them.
  EXPECT_THAT(tokenizer->Encode("   wor"), ElementsAre(263, 262));
  EXPECT_THAT(tokenizer->Encode("   "), ElementsAre(263, ' '));
  // Contractions are pieces, in lower case only: "'LL" is ' and LL.
  EXPECT_THAT(tokenizer->Encode("he'll"), ElementsAre(257, 267));
  EXPECT_THAT(tokenizer->Encode("'llo"), ElementsAre(267, 'o'));
  EXPECT_THAT(tokenizer->Encode("'LL"), ElementsAre('\'', 'L', 'L'));
  // Letters and digits are pieces of their own: no merge over their border.
  EXPECT_THAT(tokenizer->Encode("h3e"), ElementsAre('h', '3', 'e'));
  EXPECT_THAT(tokenizer->Encode("\xc3\xa9"), ElementsAre(266));
  EXPECT_THAT(tokenizer->Encode("<|endoftext|>").size(), 13);
}

TEST_F(Gpt2TokenizerTest, AByteOutsideUtf8IsATokenOfItsOwn) {
  auto tokenizer = Make();
  EXPECT_THAT(tokenizer->Encode("he\xffllo"), ElementsAre(257, 0xff, 258));
  EXPECT_THAT(tokenizer->Encode("\xc3"), ElementsAre(0xc3));
  EXPECT_THAT(tokenizer->Encode("\xc3l"), ElementsAre(0xc3, 'l'));
  EXPECT_THAT(tokenizer->Encode("a\xed\xa0\x80"), ElementsAre('a', 0xed, 0xa0, 0x80));  // A surrogate.
  EXPECT_THAT(tokenizer->Encode("\xc0\xaf"), ElementsAre(0xc0, 0xaf));                  // Overlong.
}

TEST_F(Gpt2TokenizerTest, RoundTripsTextAndArbitraryBytes) {
  auto tokenizer = Make();
  Random random(7);
  for (int trial = 0; trial < 300; ++trial) {
    const std::string text = trial % 2 == 0 ? RandomText(&random, 60) : RandomBytes(&random, 200);
    EXPECT_EQ(*tokenizer->Decode(tokenizer->Encode(text)), text) << "trial " << trial;
  }
  EXPECT_EQ(tokenizer->Decode({1, 269}).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(Gpt2TokenizerTest, PiecewiseEncodingGivesTheTokensOfTheWhole) {
  auto tokenizer = Make();
  Random random(9);
  std::string text = RandomText(&random, 60000);
  // Pieces beyond the largest, of every kind: words, spaces, characters of three bytes, garbage.
  text += std::string(200000, 'a') + std::string(150000, ' ') + "hello" + std::string(100000, '!') + "'s";
  for (int i = 0; i < 50000; ++i) text += "\xe4\xbd\xa0";
  text += std::string(70000, '\x80') + RandomText(&random, 60000);
  const std::vector<uint16_t> expected = tokenizer->Encode(text);
  EXPECT_EQ(*tokenizer->Decode(expected), text);
  for (int trial = 0; trial < 5; ++trial) {
    std::vector<uint16_t> tokens;
    std::string rest;
    size_t read = 0;
    while (read < text.size()) {
      const size_t more = std::min<size_t>(text.size() - read, 1 + random.Below(100000));
      rest.append(text, read, more);
      read += more;
      rest.erase(0, tokenizer->EncodePrefix(rest, /*last=*/false, &tokens));
      ASSERT_LE(rest.size(), Tokenizer::kLookahead);
    }
    ASSERT_EQ(tokenizer->EncodePrefix(rest, /*last=*/true, &tokens), rest.size());
    ASSERT_TRUE(tokens == expected) << "trial " << trial;
  }
}

TEST(FindsPiecesByMachineCodeTest, WhereThisMachineCan) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>("a"), 1, 0, &error, &offset, nullptr);
  ASSERT_NE(code, nullptr);
  const bool can = pcre2_jit_compile(code, PCRE2_JIT_COMPLETE) == 0;
  pcre2_code_free(code);
  EXPECT_EQ(FindsPiecesByMachineCode(), can);
}

TEST_F(Gpt2TokenizerTest, AcceptsLineEndsOfOtherSystems) {
  merges_ = absl::StrReplaceAll(merges_, {{"\n", "\r\n"}});
  Write();
  EXPECT_THAT(Make()->Encode("hello"), ElementsAre(260));
}

TEST_F(Gpt2TokenizerTest, NamesTheLineOfABadMerge) {
  merges_ = std::string(kMerges) + "x y z\n";
  EXPECT_THAT(Error(), AllOf(HasSubstr("vocab.bpe:14"), HasSubstr("two tokens")));
  merges_ = std::string(kMerges) + "x y\n";
  EXPECT_THAT(Error(), AllOf(HasSubstr("vocab.bpe:14: \"xy\""), HasSubstr("is not in"), HasSubstr("encoder.json")));
  merges_ = std::string(kMerges) + "l l\n";
  EXPECT_THAT(Error(), HasSubstr("twice"));
  merges_ = std::string("#version: 0.2\nhe llo\n");
  EXPECT_THAT(Error(), AllOf(HasSubstr("vocab.bpe:2"), HasSubstr("\"he\""), HasSubstr("made by no earlier line")));
  merges_ = std::string("#version: 0.2\nl \xe4\xbd\xa0\n");
  EXPECT_THAT(Error(), HasSubstr("stands for no byte"));
}

TEST_F(Gpt2TokenizerTest, RefusesMergesThatAreCutBetweenLines) {
  merges_.resize(merges_.size() - 5);  // Without the last line.
  EXPECT_THAT(Error(), AllOf(HasSubstr("no line makes token 267"), HasSubstr("same release")));
}

TEST_F(Gpt2TokenizerTest, RefusesADamagedVocabulary) {
  const nlohmann::json good = vocabulary_;
  vocabulary_["hello"] = 257;
  EXPECT_THAT(Error(), AllOf(HasSubstr("encoder.json"), HasSubstr("257 is given to two tokens")));
  vocabulary_ = good;
  vocabulary_["hello"] = 5000;
  EXPECT_THAT(Error(), HasSubstr("expected 0 to 268"));
  vocabulary_["hello"] = "x";
  EXPECT_THAT(Error(), HasSubstr("encoder.json"));
  vocabulary_ = good;
  vocabulary_.erase("q");
  vocabulary_["qq"] = 'q';
  EXPECT_THAT(Error(), HasSubstr("single byte 113"));
  vocabulary_ = nlohmann::json::object({{"a", 0}});
  EXPECT_THAT(Error(), HasSubstr("1 tokens"));
  vocabulary_ = nlohmann::json::array();
  EXPECT_THAT(Error(), HasSubstr("expected a JSON object"));
  vocabulary_ = good;
  Write();
  std::filesystem::remove(directory_.path() + "/encoder.json");
  EXPECT_EQ(MakeTokenizer("gpt2", directory_.path()).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace wukong
