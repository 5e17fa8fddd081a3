#include "runtime/data/token_dataset.h"

#include <cmath>
#include <filesystem>
#include <functional>
#include <set>
#include <string>

#include "absl/strings/string_view.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "runtime/base/file.h"
#include "runtime/base/random.h"
#include "runtime/data/manifest.h"
#include "runtime/data/test_directory.h"

namespace wukong {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Bytes(const std::vector<uint16_t>& tokens) {
  return std::string(reinterpret_cast<const char*>(tokens.data()), tokens.size() * 2);
}

std::string LlmC(const std::vector<uint16_t>& tokens, int32_t magic = 20240520, int32_t version = 1,
                 int32_t extra = 0) {
  std::vector<int32_t> header(256);
  header[0] = magic;
  header[1] = version;
  header[2] = static_cast<int32_t>(tokens.size()) + extra;
  return std::string(reinterpret_cast<const char*>(header.data()), header.size() * 4) + Bytes(tokens);
}

std::vector<uint16_t> Iota(size_t count) {
  std::vector<uint16_t> tokens(count);
  for (size_t i = 0; i < count; ++i) tokens[i] = static_cast<uint16_t>(i);
  return tokens;
}

class TokenFileTest : public ::testing::Test {
 protected:
  TestDirectory directory_;
};

TEST_F(TokenFileTest, ReadsNanoGptsLayout) {
  const auto file = TokenFile::Open(directory_.Write("a.bin", Bytes({1, 65535, 3})));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->layout(), TokenFile::Layout::kNanoGpt);
  EXPECT_THAT((*file)->tokens(), ElementsAre(1, 65535, 3));
}

TEST_F(TokenFileTest, ReadsLlmCsLayoutByItsHeader) {
  const auto file = TokenFile::Open(directory_.Write("a.bin", LlmC({7, 8, 9})));
  ASSERT_TRUE(file.ok()) << file.status();
  EXPECT_EQ((*file)->layout(), TokenFile::Layout::kLlmC);
  EXPECT_THAT((*file)->tokens(), ElementsAre(7, 8, 9));
}

TEST_F(TokenFileTest, TheFingerprintTellsTokensApartAndNotLayouts) {
  const auto fingerprint = [&](const std::string& bytes) {
    const auto file = TokenFile::Open(directory_.Write("a.bin", bytes));
    EXPECT_TRUE(file.ok()) << file.status();
    return file.ok() ? (*file)->Fingerprint() : "";
  };
  std::vector<uint16_t> tokens = Iota(200000);
  const std::string first = fingerprint(Bytes(tokens));
  EXPECT_THAT(first, ::testing::StartsWith("200000 tokens "));
  EXPECT_EQ(fingerprint(LlmC(tokens)), first);
  for (const size_t changed : {size_t{0}, tokens.size() - 1}) {
    std::vector<uint16_t> others = tokens;
    ++others[changed];
    EXPECT_NE(fingerprint(Bytes(others)), first) << changed;
  }
  tokens.pop_back();
  EXPECT_NE(fingerprint(Bytes(tokens)), first);
  EXPECT_THAT(fingerprint(Bytes({5})), ::testing::StartsWith("1 tokens "));
}

TEST_F(TokenFileTest, TheSameTokensDoNotTrainAndValidate) {
  const std::vector<uint16_t> tokens = Iota(5000);
  const auto train = TokenFile::Open(directory_.Write("train.bin", Bytes(tokens))).value();
  const auto copy = TokenFile::Open(directory_.Write("copy.bin", LlmC(tokens))).value();
  const auto other = TokenFile::Open(directory_.Write("other.bin", Bytes(Iota(5001)))).value();
  EXPECT_THAT(std::string(CheckApart(*train, *copy).message()),
              ::testing::AllOf(::testing::HasSubstr("/train.bin has, got "), ::testing::HasSubstr("/copy.bin")));
  EXPECT_TRUE(CheckApart(*train, *other).ok());
}

TEST_F(TokenFileTest, NamesTheFileAndTheDamage) {
  const struct {
    const char* name;
    std::string contents;
    const char* expected;
  } cases[] = {
      {"empty", "", "is empty"},
      {"one byte", "x", "size is odd, 1 bytes"},
      {"odd", Bytes({1, 2}) + "x", "size is odd, 5 bytes"},
      {"header cut", LlmC({1, 2}).substr(0, 1022), "header is cut: 1022 bytes"},
      {"tokens cut", LlmC({1, 2, 3}).substr(0, 1028),
       "says 3 tokens, which is 1030 bytes with the header, but the file has 1028"},
      {"cut in a token", LlmC({1, 2, 3}).substr(0, 1029), "the file has 1029"},
      {"too long", LlmC({1, 2, 3}) + "xx", "the file has 1032"},
      {"count too high", LlmC({1, 2}, 20240520, 1, 5), "says 7 tokens"},
      {"count negative", LlmC({1, 2}, 20240520, 1, -9), "says -7 tokens"},
      {"no tokens", LlmC({}), "says 0 tokens"},
      {"version", LlmC({1, 2}, 20240520, 2), "version 2; this program reads version 1"},
      {"32 bits", LlmC({1, 2}, 20240801, 7), "only 16-bit tokens"},
      {"megatron", std::string("MMIDIDX\0\0\1", 10), "Megatron"},
      {"numpy", std::string("\x93NUMPY\1\0v\0", 10), "numpy\").astype(numpy.uint16).tofile("},
      {"gzip", std::string("\x1f\x8b\x08\0\0\0\0\0\0\3", 10),
       "is packed by gzip; expected unsigned 16-bit tokens. Unpack it: gzip -dc "},
      {"xz", std::string("\xfd\x37zXZ\0\0\4", 8), "xz -dc "},
      {"zstd", "\x28\xb5\x2f\xfd\x24\x06", "zstd -dc "},
      {"bzip2", "BZh91AY&SY", "bzip2 -dc "},
      {"zip, odd", "PK\x03\x04\x14", "unzip -p "},
  };
  for (const auto& damage : cases) {
    const std::string path = directory_.Write(damage.name, damage.contents);
    const auto file = TokenFile::Open(path);
    EXPECT_EQ(file.status().code(), absl::StatusCode::kInvalidArgument) << damage.name;
    EXPECT_THAT(std::string(file.status().message()), AllOf(HasSubstr(path), HasSubstr(damage.expected)));
  }
  const auto missing = TokenFile::Open(directory_.path() + "/nowhere.bin");
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("nowhere.bin"));
  EXPECT_THAT(std::string(TokenFile::Open(directory_.path()).status().message()), HasSubstr("is a directory"));
}

// `count` tokens of `bytes` each, as GPT-2's are distributed: small ones come often.
std::string Gpt2Tokens(size_t count, size_t bytes, uint64_t below = 50257) {
  Random random(3);
  std::string result;
  for (size_t i = 0; i < count; ++i) {
    uint64_t token = random.Below(1 + random.Below(below));
    for (size_t k = 0; k < bytes; ++k, token >>= 8) result.push_back(static_cast<char>(token & 255));
  }
  return result;
}

// Each byte as a token.
std::string ByteTokens(absl::string_view text) {
  std::string bytes;
  for (const char c : text) bytes += {c, '\0'};
  return bytes;
}

TEST_F(TokenFileTest, TextAndWiderTokensAreNotTakenForTokens) {
  std::string text, chinese;
  while (text.size() < 100000) text += "Call me Ishmael.\tSome years ago,\r\nnever mind how long, ";
  while (chinese.size() < 100000) chinese += "\xe4\xbd\xa0\xe5\xa5\xbd, ";
  const struct {
    const char* name;
    std::string contents;
    const char* expected;  // Empty: it may be tokens.
  } cases[] = {
      {"text", text.substr(0, 100000), "looks like text"},
      {"short text", text.substr(0, 4096), "wukong data prepare"},
      {"text that is cut within a character", chinese.substr(0, 5002), "looks like text"},
      {"32 bits", Gpt2Tokens(3000, 4), "looks like tokens of 32 bits"},
      {"32 bits, a larger vocabulary", Gpt2Tokens(30000, 4, 128256), "numpy.uint32).astype(numpy.uint16).tofile("},
      {"32 bits, bytes", Gpt2Tokens(3000, 4, 256), "32 bits"},
      {"64 bits", Gpt2Tokens(3000, 8), "numpy.uint64)"},
      {"GPT-2", Gpt2Tokens(50000, 2), ""},
      {"GPT-2, short", Gpt2Tokens(2048, 2), ""},
      {"small vocabulary", Gpt2Tokens(50000, 2, 65), ""},
      {"two tokens", Gpt2Tokens(50000, 2, 2), ""},
      {"bytes", ByteTokens(text), ""},
      {"bytes of UTF-8", ByteTokens(chinese), ""},
      {"all the same", Bytes(std::vector<uint16_t>(5000, 7)), ""},
      {"all zero", Bytes(std::vector<uint16_t>(5000)), ""},
      {"with a header", LlmC(std::vector<uint16_t>(5000, 0x2020)), ""},
      {"too short to judge", text.substr(0, 4094), ""},
      {"32 bits, too short to judge", Gpt2Tokens(1023, 4), ""},
  };
  for (const auto& one : cases) {
    SCOPED_TRACE(one.name);
    const std::string path = directory_.Write("a.bin", one.contents);
    const auto file = TokenFile::Open(path);
    ASSERT_TRUE(file.ok()) << file.status();
    const absl::Status status = (*file)->CheckContents();
    EXPECT_EQ(status.ok(), *one.expected == '\0') << status;
    if (status.ok()) continue;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(path), HasSubstr(one.expected)));
  }
}

TEST_F(TokenFileTest, NamesTheFirstTokenBeyondTheVocabulary) {
  const auto file = TokenFile::Open(directory_.Write("a.bin", Bytes({1, 255, 256, 9, 300})));
  ASSERT_TRUE(file.ok());
  EXPECT_TRUE((*file)->CheckVocabulary(301).ok());
  EXPECT_TRUE((*file)->CheckVocabulary(65536).ok());
  const absl::Status status = (*file)->CheckVocabulary(256);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("a.bin"), HasSubstr("token 256 at position 2 of 5"), HasSubstr("largest token is 300")));
}

class SampleReaderTest : public ::testing::Test {
 protected:
  SampleReader Make(size_t tokens, int64_t context, uint64_t seed) {
    auto file = TokenFile::Open(directory_.Write("tokens.bin", Bytes(Iota(tokens))));
    auto reader = SampleReader::Make(*std::move(file), context, seed);
    EXPECT_TRUE(reader.ok()) << reader.status();
    return *reader;
  }
  // The first token of each sample of an epoch.
  static std::vector<int64_t> Starts(const SampleReader& reader, int64_t epoch) {
    std::vector<int64_t> starts;
    for (int64_t i = 0; i < reader.samples_per_epoch(); ++i) {
      std::vector<int64_t> tokens, targets;
      reader.Append(epoch * reader.samples_per_epoch() + i, &tokens, &targets);
      EXPECT_EQ(tokens.size(), static_cast<size_t>(reader.context()));
      for (size_t k = 0; k < tokens.size(); ++k) EXPECT_EQ(targets[k], tokens[k] + 1);
      starts.push_back(tokens[0]);
    }
    return starts;
  }
  TestDirectory directory_;
};

TEST_F(SampleReaderTest, AnEpochVisitsEverySampleOnceInAnotherOrderThanTheFile) {
  const SampleReader reader = Make(1001, 8, 1);
  ASSERT_EQ(reader.samples_per_epoch(), 125);
  const std::vector<int64_t> starts = Starts(reader, 0);
  std::set<int64_t> expected;
  for (int64_t i = 0; i < 125; ++i) expected.insert(i * 8);
  EXPECT_EQ(std::set<int64_t>(starts.begin(), starts.end()), expected);
  EXPECT_FALSE(std::is_sorted(starts.begin(), starts.end()));
}

TEST_F(SampleReaderTest, TheOrderDependsOnSeedAndEpochOnly) {
  const SampleReader reader = Make(1001, 8, 1);
  EXPECT_EQ(Starts(reader, 0), Starts(Make(1001, 8, 1), 0));
  EXPECT_EQ(Starts(reader, 3), Starts(Make(1001, 8, 1), 3));
  EXPECT_NE(Starts(reader, 0), Starts(reader, 1));
  EXPECT_NE(Starts(reader, 0), Starts(Make(1001, 8, 2), 0));
}

TEST_F(SampleReaderTest, ReadsInFileOrderForValidation) {
  const SampleReader reader = Make(13, 4, 1);  // Three samples; the last target is the last token.
  ASSERT_EQ(reader.samples_per_epoch(), 3);
  std::vector<int64_t> tokens = {100}, targets;
  reader.AppendInOrder(0, &tokens, &targets);
  reader.AppendInOrder(2, &tokens, &targets);
  EXPECT_THAT(tokens, ElementsAre(100, 0, 1, 2, 3, 8, 9, 10, 11));
  EXPECT_THAT(targets, ElementsAre(1, 2, 3, 4, 9, 10, 11, 12));
}

TEST_F(SampleReaderTest, RefusesAFileTooShortForOneSample) {
  const std::string path = directory_.Write("short.bin", Bytes({1, 2, 3, 4}));
  std::shared_ptr<const TokenFile> file = *TokenFile::Open(path);
  EXPECT_TRUE(SampleReader::Make(file, 3, 1).ok());
  const auto reader = SampleReader::Make(file, 4, 1);
  EXPECT_EQ(reader.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(reader.status().message()), AllOf(HasSubstr(path), HasSubstr("4 tokens")));
  EXPECT_EQ(SampleReader::Make(file, 0, 1).status().code(), absl::StatusCode::kInvalidArgument);
}

class FindDataFilesTest : public ::testing::Test {
 protected:
  FindDataFilesTest() {
    directory_.Write("train.bin", Bytes(Iota(20)));
    directory_.Write("validation.bin", Bytes(Iota(10)));
    DataManifest manifest;
    manifest.tokenizer = "byte";
    manifest.vocabulary = 256;
    manifest.inputs.push_back({"a.txt", 30, "aa", "bb"});
    manifest.train = {"train.bin", 20, "cc"};
    manifest.validation = {"validation.bin", 10, "dd"};
    EXPECT_TRUE(WriteManifest(directory_.path(), manifest).ok());
    data_.set_directory(directory_.path());
  }
  void EditManifest(const std::function<void(nlohmann::ordered_json*)>& edit) {
    nlohmann::ordered_json json = nlohmann::ordered_json::parse(*ReadFile(ManifestPath(directory_.path())));
    edit(&json);
    directory_.Write("manifest.json", json.dump());
  }
  std::string Message() { return std::string(FindDataFiles(data_).status().message()); }
  TestDirectory directory_;
  Data data_;
};

TEST_F(FindDataFilesTest, FindsThemThroughTheManifest) {
  const auto files = FindDataFiles(data_);
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_EQ(files->train, directory_.path() + "/train.bin");
  EXPECT_EQ(files->validation, directory_.path() + "/validation.bin");
}

TEST_F(FindDataFilesTest, TakesTwoFilesByName) {
  Data data;
  data.set_train("a.bin");
  EXPECT_THAT(std::string(FindDataFiles(data).status().message()), HasSubstr("data.validation is not set"));
  data.set_validation("b.bin");
  EXPECT_EQ(FindDataFiles(data)->validation, "b.bin");
  data.set_directory("c");
  EXPECT_THAT(std::string(FindDataFiles(data).status().message()), HasSubstr("one or the other"));
  EXPECT_THAT(std::string(FindDataFiles(Data()).status().message()), HasSubstr("data.train is not set"));
}

TEST_F(FindDataFilesTest, NamesWhatIsMissing) {
  std::filesystem::remove(directory_.path() + "/validation.bin");
  EXPECT_EQ(FindDataFiles(data_).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(), HasSubstr("validation.bin"));
  std::filesystem::remove(directory_.path() + "/manifest.json");
  EXPECT_EQ(FindDataFiles(data_).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(), AllOf(HasSubstr("manifest.json"), HasSubstr("wukong data prepare")));
  data_.set_directory(directory_.path() + "/nowhere");
  EXPECT_EQ(FindDataFiles(data_).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Message(), HasSubstr("/nowhere: there is no such directory"));
}

TEST_F(FindDataFilesTest, RefusesFilesThatDisagreeWithTheManifest) {
  directory_.Write("train.bin", Bytes(Iota(19)));
  EXPECT_EQ(FindDataFiles(data_).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(), AllOf(HasSubstr("train.bin: 38 bytes"), HasSubstr("says 40")));
}

TEST_F(FindDataFilesTest, RefusesADamagedManifest) {
  const std::function<void(nlohmann::ordered_json*)> edits[] = {
      [](nlohmann::ordered_json* json) { (*json)["format"] = "other"; },
      [](nlohmann::ordered_json* json) { (*json)["version"] = 2; },
      [](nlohmann::ordered_json* json) { json->erase("version"); },
      [](nlohmann::ordered_json* json) { json->erase("train"); },
      [](nlohmann::ordered_json* json) { (*json)["train"]["tokens"] = "many"; },
      [](nlohmann::ordered_json* json) { (*json)["train"]["tokens"] = -1; },
      [](nlohmann::ordered_json* json) { (*json)["train"]["file"] = "../train.bin"; },
      [](nlohmann::ordered_json* json) { (*json)["tokenizer_files"] = 3; },
      [](nlohmann::ordered_json* json) { *json = 5; },
  };
  const std::string good = *ReadFile(ManifestPath(directory_.path()));
  for (const auto& edit : edits) {
    directory_.Write("manifest.json", good);
    EditManifest(edit);
    EXPECT_EQ(FindDataFiles(data_).status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(Message(), AllOf(HasSubstr("manifest.json"), HasSubstr("wukong data prepare")));
  }
  directory_.Write("manifest.json", good.substr(0, good.size() / 2));
  EXPECT_EQ(FindDataFiles(data_).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(UnigramLossTest, MatchesHandComputedValues) {
  // Add-one over 4: p = (3+1, 1+1, 0+1, 0+1) / 8.
  const std::vector<uint16_t> train = {0, 0, 0, 1}, validation = {0, 1, 2, 2};
  const double expected = (std::log(2.0) + std::log(4.0) + 2 * std::log(8.0)) / 4;
  EXPECT_NEAR(UnigramLoss(train, validation, 4), expected, 1e-12);
  // Nothing seen: uniform.
  EXPECT_NEAR(UnigramLoss({}, validation, 256), std::log(256.0), 1e-12);
  EXPECT_EQ(UnigramLoss(train, {}, 4), 0);
}

}  // namespace
}  // namespace wukong
