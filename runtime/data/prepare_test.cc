#include "runtime/data/prepare.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <csignal>
#include <filesystem>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/base/digest.h"
#include "runtime/base/file.h"
#include "runtime/base/random.h"
#include "runtime/data/inspect.h"
#include "runtime/data/test_directory.h"
#include "runtime/data/token_dataset.h"

namespace wukong {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Lines of words.
std::string Text(size_t lines) {
  Random random(11);
  constexpr const char* kWords[] = {"monkey", "king", "staff", "cloud", "peach", "mountain", "of", "the"};
  std::string text;
  for (size_t line = 0; line < lines; ++line) {
    for (int word = 0; word < 9; ++word) absl::StrAppend(&text, kWords[random.Below(8)], word < 8 ? " " : ".\n");
  }
  return text;
}

std::string Gzip(const std::string& text) {
  z_stream stream = {};
  EXPECT_EQ(deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string packed(deflateBound(&stream, text.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

std::string TextOf(const std::string& path) {
  const auto file = TokenFile::Open(path);
  EXPECT_TRUE(file.ok()) << file.status();
  return std::string((*file)->tokens().begin(), (*file)->tokens().end());
}

class PrepareTest : public ::testing::Test {
 protected:
  PrepareTest() {
    options_.tokenizer = "byte";
    options_.inputs = {directory_.Write("input.txt", text_)};
    options_.output = directory_.path() + "/made/data";
  }
  PrepareResult Prepare() {
    const auto result = PrepareData(options_);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.value_or(PrepareResult());
  }
  std::string Error(absl::StatusCode code) {
    const absl::Status status = PrepareData(options_).status();
    EXPECT_EQ(status.code(), code) << status;
    return std::string(status.message());
  }
  std::string Output(const std::string& name) { return options_.output + "/" + name; }
  bool Exists(const std::string& name) { return std::filesystem::exists(Output(name)); }

  TestDirectory directory_;
  const std::string text_ = Text(2000);
  PrepareOptions options_;
};

TEST_F(PrepareTest, WritesTheTextAsTrainingAndValidationTokens) {
  const PrepareResult result = Prepare();
  EXPECT_FALSE(result.up_to_date);
  EXPECT_EQ(result.reason, "");
  const std::string train = TextOf(Output("train.bin")), validation = TextOf(Output("validation.bin"));
  EXPECT_TRUE(train + validation == text_);
  EXPECT_EQ(train.back(), '\n');  // The split is between two lines.
  EXPECT_NEAR(static_cast<double>(validation.size()), 0.05 * static_cast<double>(text_.size()), 200);

  const DataManifest& manifest = result.manifest;
  EXPECT_EQ(manifest.vocabulary, 256);
  EXPECT_EQ(manifest.train.tokens, static_cast<int64_t>(train.size()));
  EXPECT_EQ(manifest.validation.tokens, static_cast<int64_t>(validation.size()));
  EXPECT_EQ(manifest.train.sha256, *Sha256File(Output("train.bin")));
  EXPECT_EQ(manifest.validation.sha256, *Sha256File(Output("validation.bin")));
  EXPECT_EQ(manifest.inputs[0].sha256, Sha256Hex(text_));
  EXPECT_EQ(manifest.inputs[0].bytes, static_cast<int64_t>(text_.size()));
  EXPECT_GT(manifest.unigram_loss, 2.0);
  EXPECT_LT(manifest.unigram_loss, 3.5);

  Data data;
  data.set_directory(options_.output);
  EXPECT_EQ(FindDataFiles(data)->train, Output("train.bin"));
  EXPECT_FALSE(Exists("train.bin.partial"));
  EXPECT_FALSE(Exists("validation.bin.partial"));
}

TEST_F(PrepareTest, TheBytesOfTextInUtf16AreTokensLikeOthers) {
  std::string text;
  for (const char c : text_) text += {c, '\0'};
  options_.inputs = {directory_.Write("input.txt", text)};
  Prepare();
  EXPECT_TRUE(InspectData(options_.output)->verdict.ok());
}

TEST_F(PrepareTest, SplitsWhereAskedWhenThereAreNoLines) {
  options_.inputs = {directory_.Write("one.txt", std::string(10000, 'x'))};
  options_.validation_fraction = 0.25;
  EXPECT_EQ(Prepare().manifest.validation.tokens, 2500);
  options_.inputs = {directory_.Write("two.txt", "ab")};
  const PrepareResult result = Prepare();
  EXPECT_EQ(result.manifest.train.tokens, 1);
  EXPECT_EQ(result.manifest.validation.tokens, 1);
}

TEST_F(PrepareTest, ReadsGzipWhateverItsNameAndSeveralInputsInOrder) {
  options_.inputs = {directory_.Write("a.gz", Gzip("first\n" + text_)), directory_.Write("b.txt", "plain\n"),
                     directory_.Write("c.dz", Gzip("third") + Gzip(" member\n"))};
  const PrepareResult result = Prepare();
  EXPECT_TRUE(TextOf(Output("train.bin")) + TextOf(Output("validation.bin")) ==
              "first\n" + text_ + "plain\n" + "third member\n");
  EXPECT_EQ(result.manifest.inputs[0].sha256, Sha256Hex("first\n" + text_));
  EXPECT_EQ(result.manifest.inputs[0].file_sha256, *Sha256File(options_.inputs[0]));
}

TEST_F(PrepareTest, DoesNothingTheSecondTime) {
  const PrepareResult first = Prepare();
  const auto before = std::filesystem::last_write_time(Output("train.bin"));
  const PrepareResult second = Prepare();
  EXPECT_TRUE(second.up_to_date);
  EXPECT_EQ(second.manifest.train.sha256, first.manifest.train.sha256);
  EXPECT_EQ(std::filesystem::last_write_time(Output("train.bin")), before);
}

TEST_F(PrepareTest, MakesDamagedFilesAgain) {
  Prepare();
  const std::string train = *ReadFile(Output("train.bin"));
  for (const std::string& damaged : {train.substr(2), "x" + train.substr(1), std::string()}) {
    ASSERT_TRUE(WriteFileAtomic(Output("train.bin"), damaged).ok());
    const PrepareResult result = Prepare();
    EXPECT_FALSE(result.up_to_date);
    EXPECT_EQ(result.reason, "train.bin is missing or damaged");
    EXPECT_TRUE(*ReadFile(Output("train.bin")) == train);
  }
  std::filesystem::remove(Output("validation.bin"));
  EXPECT_EQ(Prepare().reason, "validation.bin is missing or damaged");
  const std::string manifest = *ReadFile(Output("manifest.json"));
  ASSERT_TRUE(WriteFileAtomic(Output("manifest.json"), manifest.substr(0, manifest.size() / 2)).ok());
  EXPECT_THAT(Prepare().reason, HasSubstr("manifest.json"));
  EXPECT_TRUE(Prepare().up_to_date);
}

TEST_F(PrepareTest, WhatAProgramWithoutTheMarkerLeftHalfMadeIsMadeAgain) {
  std::filesystem::create_directories(options_.output);
  ASSERT_TRUE(WriteFileAtomic(Output("train.bin.partial"), "half").ok());
  ASSERT_TRUE(WriteFileAtomic(Output("manifest.json"), "").ok());  // Cut by a loss of power.
  EXPECT_FALSE(Prepare().up_to_date);
  EXPECT_TRUE(Prepare().up_to_date);
  EXPECT_FALSE(std::filesystem::exists(Output("train.bin.partial")));
}

TEST_F(PrepareTest, WhatItDidNotMakeIsNotOverwritten) {
  for (const char* name : {"train.bin", "validation.bin", "manifest.json"}) {
    options_.output = directory_.path() + "/others " + name;
    std::filesystem::create_directory(options_.output);
    const std::string contents = "{\"format\": \"theirs\", \"made by\": \"wukong-data\"}";
    ASSERT_TRUE(WriteFileAtomic(Output(name), contents).ok());
    for (int i = 0; i < 2; ++i) {  // Being refused does not make it ours.
      EXPECT_THAT(Error(absl::StatusCode::kFailedPrecondition),
                  AllOf(HasSubstr(Output(name) + " was not made by `wukong data prepare`"),
                        HasSubstr("Choose another --output, or move the file away")));
    }
    EXPECT_EQ(*ReadFile(Output(name)), contents);
    EXPECT_EQ(std::distance(std::filesystem::directory_iterator(options_.output), {}), 1) << name;
    std::filesystem::remove(Output(name));
    Prepare();
  }
}

TEST_F(PrepareTest, AnInputIsNotOverwritten) {
  Prepare();
  for (const char* name : {"train.bin", "validation.bin", "train.bin.partial", "manifest.json"}) {
    ASSERT_TRUE(WriteFileAtomic(Output(name), text_).ok());
    // By its name, by another way to it, and by a link.
    const std::string link = directory_.path() + "/link to " + name;
    std::filesystem::create_hard_link(Output(name), link);
    for (const std::string& input : {Output(name), options_.output + "/../data/" + name, link}) {
      options_.inputs = {directory_.path() + "/input.txt", input};
      EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument),
                  HasSubstr("input " + input + " would be overwritten by the output: it is " + Output(name)));
      EXPECT_TRUE(*ReadFile(Output(name)) == text_);
    }
    std::filesystem::remove(Output(name));
  }
}

TEST_F(PrepareTest, WhatAnInterruptionLeftIsMadeAgain) {
  // As a process leaves it that is killed between the old manifest and the new one.
  const DataManifest whole = Prepare().manifest;
  std::filesystem::remove(Output("manifest.json"));
  Error(absl::StatusCode::kFailedPrecondition);
  const std::string marker = Output(".wukong-preparing");
  ASSERT_TRUE(WriteFileAtomic(marker, "").ok());
  ASSERT_TRUE(WriteFileAtomic(Output("train.bin.partial"), "half").ok());
  // A second one that comes to nothing changes nothing.
  options_.sha256 = Sha256Hex("something else");
  Error(absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(std::filesystem::exists(marker));
  options_.sha256.clear();
  EXPECT_FALSE(Prepare().up_to_date);
  EXPECT_EQ(*Sha256File(Output("train.bin")), whole.train.sha256);
  EXPECT_FALSE(std::filesystem::exists(marker));
  // Killed when all was done.
  ASSERT_TRUE(WriteFileAtomic(marker, "").ok());
  EXPECT_TRUE(Prepare().up_to_date);
  EXPECT_FALSE(std::filesystem::exists(marker));
}

TEST_F(PrepareTest, AKilledProcessLeavesWhatTheNextOneMakesAgain) {
  // Killed before anything was replaced, and with half of the files replaced: the second name is taken by a directory.
  options_.progress = [](int64_t, int64_t) { ::kill(::getpid(), SIGKILL); };
  EXPECT_EXIT(PrepareData(options_).IgnoreError(), ::testing::KilledBySignal(SIGKILL), "");
  EXPECT_TRUE(Exists("train.bin.partial"));
  options_.progress = nullptr;
  Prepare();
  std::filesystem::remove(Output("validation.bin"));
  std::filesystem::create_directories(Output("validation.bin/in the way"));
  EXPECT_FALSE(PrepareData(options_).ok());
  EXPECT_FALSE(Exists("manifest.json"));
  std::filesystem::remove_all(Output("validation.bin"));
  Prepare();
  EXPECT_TRUE(Prepare().up_to_date);
}

TEST_F(PrepareTest, MakesThemAgainForOtherInputsOrOptions) {
  Prepare();
  options_.validation_fraction = 0.1;
  EXPECT_THAT(Prepare().reason, HasSubstr("fraction"));
  options_.inputs.push_back(directory_.Write("more.txt", "more\n"));
  EXPECT_THAT(Prepare().reason, HasSubstr("inputs"));
  directory_.Write("more.txt", "changed\n");
  EXPECT_THAT(Prepare().reason, HasSubstr("inputs"));
  EXPECT_TRUE(Prepare().up_to_date);
}

TEST_F(PrepareTest, OtherPackedFilesAreNotReadAsIfTheyWereText) {
  // As these programs begin what they write; an empty input has less than any of them.
  const std::pair<std::string, std::string> packed[] = {{std::string("\xfd\x37zXZ\0\0\4", 8), "xz -dc "},
                                                        {"\x28\xb5\x2f\xfd\x24\x06", "zstd -dc "},
                                                        {"BZh91AY&SY\x5a", "bzip2 -dc "},
                                                        {"PK\x03\x04\x14", "unzip -p "}};
  for (const auto& [bytes, unpack] : packed) {
    options_.inputs = {directory_.Write("a b", bytes + text_)};
    EXPECT_THAT(
        Error(absl::StatusCode::kInvalidArgument),
        AllOf(HasSubstr("a b is packed by "), HasSubstr("unpack it: " + unpack + "'"), HasSubstr("a b' > FILE")));
    EXPECT_FALSE(Exists("train.bin"));
  }
  options_.inputs = {directory_.Write("a b", "BZh is how this text begins\n" + text_)};
  Prepare();
}

TEST_F(PrepareTest, ChecksTheSha256OfTheUnpackedText) {
  options_.inputs = {directory_.Write("a.gz", Gzip(text_))};
  options_.sha256 = Sha256Hex("something else");
  EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument),
              AllOf(HasSubstr("a.gz"), HasSubstr(Sha256Hex(text_)), HasSubstr(options_.sha256)));
  EXPECT_FALSE(Exists("manifest.json"));
  EXPECT_FALSE(Exists("train.bin.partial"));
  options_.sha256 = absl::AsciiStrToUpper(Sha256Hex(text_));
  Prepare();
  EXPECT_TRUE(Prepare().up_to_date);
  options_.sha256 = Sha256Hex("something else");  // Also when there is nothing to do.
  Error(absl::StatusCode::kInvalidArgument);
}

TEST_F(PrepareTest, RefusesBadOptions) {
  const PrepareOptions good = options_;
  options_.validation_fraction = 1;
  EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument), HasSubstr("--validation-fraction"));
  options_.validation_fraction = 0;
  Error(absl::StatusCode::kInvalidArgument);
  options_ = good;
  options_.sha256 = "802beb66";
  EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument), HasSubstr("64 hexadecimal digits, got 8"));
  options_.sha256 = Sha256Hex("");
  options_.inputs.push_back(options_.inputs[0]);
  EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument), HasSubstr("of one input"));
  options_ = good;
  options_.inputs.clear();
  Error(absl::StatusCode::kInvalidArgument);
  options_ = good;
  options_.tokenizer = "words";
  EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument), HasSubstr("expected byte or gpt2"));
}

TEST_F(PrepareTest, NamesABadInput) {
  options_.inputs = {directory_.path() + "/nowhere.txt"};
  EXPECT_THAT(Error(absl::StatusCode::kNotFound), HasSubstr("nowhere.txt"));
  options_.inputs = {directory_.path()};
  EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument), HasSubstr("is a directory"));
  const std::string pipe = directory_.path() + "/pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  options_.inputs = {pipe};
  EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument), HasSubstr("not a regular file"));
  options_.inputs = {directory_.Write("empty.txt", "")};
  EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument), HasSubstr("0 tokens"));
  const std::string packed = Gzip(text_);
  options_.inputs = {directory_.Write("cut.gz", packed.substr(0, packed.size() / 2))};
  EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument), AllOf(HasSubstr("cut.gz"), HasSubstr("damaged or cut")));
  std::string flipped = packed;
  flipped[flipped.size() / 2] = static_cast<char>(~flipped[flipped.size() / 2]);
  options_.inputs = {directory_.Write("flipped.gz", flipped)};
  EXPECT_THAT(Error(absl::StatusCode::kInvalidArgument), HasSubstr("flipped.gz"));
  EXPECT_FALSE(Exists("train.bin.partial"));
}

TEST_F(PrepareTest, NamesABadOutput) {
  options_.output = options_.inputs[0] + "/below";
  EXPECT_THAT(Error(absl::StatusCode::kNotFound), HasSubstr(options_.output));
}

TEST_F(PrepareTest, ASecondProcessIsTurnedAway) {
  Prepare();
  const int other = ::open(options_.output.c_str(), O_RDONLY | O_DIRECTORY);
  ASSERT_EQ(::flock(other, LOCK_EX | LOCK_NB), 0);
  EXPECT_THAT(Error(absl::StatusCode::kFailedPrecondition), HasSubstr("another"));
  ::close(other);
  EXPECT_TRUE(Prepare().up_to_date);
}

TEST_F(PrepareTest, AFullDiskLeavesTheOldDataWhole) {
  const DataManifest before = Prepare().manifest;
  options_.inputs = {directory_.Write("larger.txt", Text(20000))};
  // The same error path as a full disk, without needing one: no file may grow beyond 100 kB.
  struct rlimit old_limit;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit small_limit = {100000, old_limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small_limit), 0);
  const absl::Status status = PrepareData(options_).status();
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old_limit), 0);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("train.bin"));
  EXPECT_FALSE(Exists("train.bin.partial"));
  EXPECT_EQ(ReadManifest(options_.output)->train.sha256, before.train.sha256);
  EXPECT_EQ(*Sha256File(Output("train.bin")), before.train.sha256);
}

TEST_F(PrepareTest, ReportsProgressUpToTheWhole) {
  int64_t last = 0, total = 0;
  options_.progress = [&](int64_t done, int64_t bytes_total) {
    EXPECT_GE(done, last);
    last = done;
    total = bytes_total;
  };
  Prepare();
  EXPECT_EQ(total, static_cast<int64_t>(text_.size()));
  EXPECT_EQ(last, total);
}

TEST_F(PrepareTest, InspectDescribesADirectory) {
  const DataManifest manifest = Prepare().manifest;
  const auto inspection = InspectData(options_.output);
  ASSERT_TRUE(inspection.ok()) << inspection.status();
  EXPECT_TRUE(inspection->verdict.ok()) << inspection->verdict;
  EXPECT_THAT(inspection->text, AllOf(HasSubstr("nanoGPT"), HasSubstr(manifest.train.sha256),
                                      HasSubstr("vocabulary 256"), HasSubstr(absl::StrCat(manifest.train.tokens)),
                                      HasSubstr(text_.substr(0, 30)), HasSubstr("nats per token"), HasSubstr("none")));
  EXPECT_EQ(inspection->json["validation"]["tokens"], manifest.validation.tokens);
  EXPECT_EQ(inspection->json["unigram_loss"], manifest.unigram_loss);
  EXPECT_TRUE(inspection->json["problems"].empty());
}

TEST_F(PrepareTest, InspectNamesEveryKindOfDamage) {
  Prepare();
  const std::string train = *ReadFile(Output("train.bin"));
  const struct {
    std::string contents;
    const char* expected;
  } cases[] = {{train.substr(2), "says"},
               {train.substr(1), "size is odd"},
               {"", "is empty"},
               {"z" + train.substr(1), "SHA-256 is not the one"},
               {std::string("\x00\x10", 2) + train.substr(2), "token 4096 at position 0"}};
  for (const auto& damage : cases) {
    ASSERT_TRUE(WriteFileAtomic(Output("train.bin"), damage.contents).ok());
    const auto inspection = InspectData(options_.output);
    ASSERT_TRUE(inspection.ok()) << inspection.status();
    EXPECT_EQ(inspection->verdict.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(inspection->text, AllOf(HasSubstr("problem"), HasSubstr("train.bin"), HasSubstr(damage.expected)));
  }
  ASSERT_TRUE(WriteFileAtomic(Output("train.bin"), train).ok());
  DataManifest manifest = *ReadManifest(options_.output);
  manifest.unigram_loss += 0.1;
  ASSERT_TRUE(WriteManifest(options_.output, manifest).ok());
  EXPECT_THAT(std::string(InspectData(options_.output)->verdict.message()), HasSubstr("unigram_loss"));
  std::filesystem::remove(Output("train.bin"));
  EXPECT_EQ(InspectData(options_.output)->verdict.code(), absl::StatusCode::kNotFound);
}

TEST_F(PrepareTest, InspectDescribesATokenFile) {
  const auto inspection = InspectData(directory_.Write("a.bin", absl::string_view("h\0i\0\n\0", 6)));
  ASSERT_TRUE(inspection.ok()) << inspection.status();
  EXPECT_THAT(inspection->text, AllOf(HasSubstr("nanoGPT"), HasSubstr("\"hi\\n\""), HasSubstr("105")));
  EXPECT_EQ(inspection->json["tokens"], 3);
  EXPECT_EQ(InspectData(directory_.path() + "/nowhere").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(InspectData(directory_.Write("b.bin", "abc")).status().message()), HasSubstr("odd"));
  EXPECT_THAT(std::string(InspectData(directory_.Write("c.bin", text_))->verdict.message()), HasSubstr("like text"));
  EXPECT_EQ(InspectData(directory_.path()).status().code(), absl::StatusCode::kNotFound);  // No manifest.
}

}  // namespace
}  // namespace wukong
