#include "runtime/storage/safetensors.h"

#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/base/digest.h"
#include "runtime/data/test_directory.h"
#include "runtime/storage/fault_file_system.h"
#include "runtime/storage/file_system.h"
#include "runtime/storage/safetensors_test_util.h"

namespace wukong {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

absl::StatusOr<Safetensors> ReadBytes(const std::string& contents) {
  FaultFileSystem files(0);
  files.Put("/run/some.safetensors", contents);
  return ReadSafetensors(&files, "/run/some.safetensors");
}

std::string WrittenBytes(const std::vector<NamedValues>& tensors, const std::map<std::string, std::string>& metadata) {
  FaultFileSystem files(0);
  EXPECT_TRUE(files.MakeDirectories("/run").ok());
  const absl::Status status = WriteSafetensors(&files, "/run/some.safetensors", tensors, metadata);
  EXPECT_TRUE(status.ok()) << status;
  return files.Read("/run/some.safetensors").value_or("");
}

std::string SmallFile() {
  static const std::vector<float> weights = {1.0f, -2.5f, FromBits(0x7fc00001)};
  return WrittenBytes({{"b", {3}, weights}, {"a", {}, absl::MakeConstSpan(weights).subspan(0, 1)}}, {{"run", "r"}});
}

TEST(SafetensorsTest, ReturnsEveryBitThatWasWritten) {
  const std::vector<float> odd = {0.0f,
                                  -0.0f,
                                  std::numeric_limits<float>::infinity(),
                                  -std::numeric_limits<float>::infinity(),
                                  std::numeric_limits<float>::denorm_min(),
                                  FromBits(0x7fc12345),  // NaNs with payloads: quiet, signalling, negative.
                                  FromBits(0x7f812345),
                                  FromBits(0xffffffff)};
  const std::vector<float> scalar = {3.25f};
  const std::string name = "a \"name\" with \\, a line\nbreak, \xc3\xa9 and \xe6\x82\x9f\xe7\xa9\xba";
  const TestDirectory directory;
  const std::string path = directory.path() + "/x.safetensors";
  const std::vector<NamedValues> tensors = {
      {"matrix", {2, 4}, odd}, {name, {8, 1, 1}, odd}, {"scalar", {}, scalar}, {"", {0}, {}}, {"none", {3, 0, 2}, {}}};
  const std::map<std::string, std::string> metadata = {{"quoted", "{\"digest\":\"00\"}"}, {"", "\xe7\xa9\xba"}};
  const absl::Status status = WriteSafetensors(FileSystem::Real(), path, tensors, metadata);
  ASSERT_TRUE(status.ok()) << status;

  const absl::StatusOr<Safetensors> read = ReadSafetensors(FileSystem::Real(), path);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_TRUE(read->has_digest);
  EXPECT_EQ(read->tensors.size(), tensors.size());
  for (const NamedValues& tensor : tensors) {
    ASSERT_EQ(read->tensors.count(tensor.name), 1u) << tensor.name;
    EXPECT_EQ(read->tensors.at(tensor.name).shape, tensor.shape) << tensor.name;
    EXPECT_EQ(Bits(read->tensors.at(tensor.name).values), Bits(tensor.values)) << tensor.name;
  }
  EXPECT_THAT(read->metadata, UnorderedElementsAre(Pair("quoted", "{\"digest\":\"00\"}"), Pair("", "\xe7\xa9\xba"),
                                                   Pair("digest_algorithm", "sha256"), Pair("digest", testing::_)));
}

TEST(SafetensorsTest, ReturnsMoreThanOnePieceOfATensor) {
  std::vector<float> large(3'000'001);
  for (size_t i = 0; i < large.size(); ++i) large[i] = static_cast<float>(i) * 0.5f;
  const absl::StatusOr<Safetensors> read =
      ReadBytes(WrittenBytes({{"large", {static_cast<int64_t>(large.size())}, large}}, {}));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_TRUE(read->tensors.at("large").values == large);
}

TEST(SafetensorsTest, ReturnsAFileWithoutTensors) {
  const absl::StatusOr<Safetensors> read = ReadBytes(WrittenBytes({}, {}));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_TRUE(read->tensors.empty());
}

// Byte by byte against the description of the format, with no code of the reader's or writer's.
TEST(SafetensorsTest, WritesWhatTheFormatSays) {
  const std::string contents = SmallFile();
  const std::string before = "{\"__metadata__\":{\"digest\":\"";
  const std::string after =
      "\",\"digest_algorithm\":\"sha256\",\"run\":\"r\"},"
      "\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
      "\"b\":{\"dtype\":\"F32\",\"shape\":[3],\"data_offsets\":[4,16]}}";
  std::string header = absl::StrCat(before, std::string(64, '0'), after);
  while (header.size() % 8 != 0) header += ' ';
  const std::string values("\0\0\x80\x3f\0\0\x80\x3f\0\0\x20\xc0\x01\0\xc0\x7f", 16);
  std::string expected(8, '\0');
  expected[0] = static_cast<char>(header.size() % 256);
  expected[1] = static_cast<char>(header.size() / 256);
  expected += header + values;
  const std::string digest = Sha256Hex(absl::string_view(expected));
  expected.replace(8 + before.size(), 64, digest);
  EXPECT_EQ(contents, expected);
}

TEST(SafetensorsTest, WritesTheSameBytesWhateverTheOrder) {
  const std::vector<float> one = {1.0f};
  const std::vector<float> two = {2.0f, 3.0f};
  EXPECT_EQ(WrittenBytes({{"a", {1}, one}, {"b", {2}, two}}, {{"digest", "of another file"}}),
            WrittenBytes({{"b", {2}, two}, {"a", {1}, one}}, {}));
}

TEST(SafetensorsTest, FindsEveryFlippedBitOfASmallFile) {
  const std::string whole = SmallFile();
  ASSERT_TRUE(ReadBytes(whole).ok());
  for (size_t at = 0; at < whole.size(); ++at) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] ^ (1 << bit));
      const absl::StatusOr<Safetensors> read = ReadBytes(damaged);
      ASSERT_EQ(read.status().code(), absl::StatusCode::kDataLoss)
          << "byte " << at << " bit " << bit << ": " << read.status();
      ASSERT_THAT(std::string(read.status().message()), HasSubstr("/run/some.safetensors: ")) << "byte " << at;
    }
  }
}

TEST(SafetensorsTest, FindsEveryOtherValueOfEveryByteOfTheHeader) {
  const std::string whole = SmallFile();
  for (size_t at = 0; at + 16 < whole.size(); ++at) {
    for (int other = 1; other < 256; ++other) {
      std::string damaged = whole;
      damaged[at] = static_cast<char>(damaged[at] ^ other);
      const absl::StatusOr<Safetensors> read = ReadBytes(damaged);
      ASSERT_EQ(read.status().code(), absl::StatusCode::kDataLoss)
          << "byte " << at << " xor " << other << ": " << read.status();
    }
  }
}

TEST(SafetensorsTest, FindsAChangeOfAnyByteAmongTheValues) {
  std::vector<float> values(1000);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  const std::string whole = WrittenBytes({{"layer.weight", {10, 100}, values}}, {});
  for (size_t at = 0; at < whole.size(); ++at) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ (1 << (at % 8)));
    ASSERT_EQ(ReadBytes(damaged).status().code(), absl::StatusCode::kDataLoss) << "byte " << at;
  }
}

TEST(SafetensorsTest, FindsATruncationAtEveryByte) {
  const std::string whole = SmallFile();
  for (size_t bytes = 0; bytes < whole.size(); ++bytes) {
    const absl::StatusOr<Safetensors> read = ReadBytes(whole.substr(0, bytes));
    ASSERT_EQ(read.status().code(), absl::StatusCode::kDataLoss) << bytes << " bytes: " << read.status();
    ASSERT_THAT(std::string(read.status().message()), HasSubstr("/run/some.safetensors: ")) << bytes;
  }
  EXPECT_THAT(std::string(ReadBytes(whole.substr(0, whole.size() - 1)).status().message()), HasSubstr("cut off"));
}

TEST(SafetensorsTest, FindsBytesAfterTheEnd) {
  const std::string whole = SmallFile();
  for (const std::string& more : {std::string("x"), std::string(1, '\0'), std::string(4096, ' '), whole}) {
    const absl::StatusOr<Safetensors> read = ReadBytes(whole + more);
    EXPECT_EQ(read.status().code(), absl::StatusCode::kDataLoss) << read.status();
    EXPECT_THAT(std::string(read.status().message()), HasSubstr("more than its tensors"));
  }
}

TEST(SafetensorsTest, ReadsAFileMadeElsewhere) {
  // Spaced, not padded, not in the order of the values, no metadata.
  const std::vector<float> values = {1.0f, 2.0f, 3.0f};
  const absl::string_view buffer(reinterpret_cast<const char*>(values.data()), 12);
  const absl::StatusOr<Safetensors> read =
      ReadBytes(FileOf(R"({ "z": {"shape": [2, 1], "data_offsets": [0, 8], "dtype": "F32"},
                  "empty": {"dtype": "F32", "shape": [0], "data_offsets": [8, 8]},
                  "a": {"data_offsets": [8, 12], "dtype": "F32", "shape": []} }   )",
                       buffer));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_FALSE(read->has_digest);
  EXPECT_TRUE(read->metadata.empty());
  EXPECT_THAT(read->tensors.at("z").shape, ElementsAre(2, 1));
  EXPECT_THAT(read->tensors.at("z").values, ElementsAre(1.0f, 2.0f));
  EXPECT_THAT(read->tensors.at("a").values, ElementsAre(3.0f));
  EXPECT_TRUE(read->tensors.at("empty").values.empty());
}

TEST(SafetensorsTest, WidensEveryHalf) {
  std::string buffer;
  for (int i = 0; i < 65536; ++i) {
    buffer.push_back(static_cast<char>(i & 0xff));
    buffer.push_back(static_cast<char>(i >> 8));
  }
  for (const std::string type : {"F16", "BF16"}) {
    const absl::StatusOr<Safetensors> read = ReadBytes(FileOf(
        absl::StrCat("{\"x\":{\"dtype\":\"", type, "\",\"shape\":[65536],\"data_offsets\":[0,131072]}}"), buffer));
    ASSERT_TRUE(read.ok()) << read.status();
    const std::vector<float>& values = read->tensors.at("x").values;
    const std::vector<uint32_t> bits = Bits(values);
    ASSERT_EQ(bits.size(), 65536u);
    for (uint32_t half = 0; half < 65536; ++half) {
      if (type == "BF16") {
        ASSERT_EQ(bits[half], half << 16);
        continue;
      }
      const uint32_t sign = (half & 0x8000) << 16;
      const int exponent = static_cast<int>(half >> 10 & 31);
      const uint32_t fraction = half & 0x3ff;
      if (exponent == 31) {
        ASSERT_EQ(bits[half], sign | 0x7f800000 | fraction << 13);
      } else {
        const double size = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024.0 + fraction, exponent - 25);
        ASSERT_EQ(values[half], static_cast<float>(sign == 0 ? size : -size)) << half;
        ASSERT_EQ(bits[half] >> 31, half >> 15) << half;
      }
    }
  }
}

TEST(SafetensorsTest, SaysWhichTensorIsOfATypeItDoesNotRead) {
  const absl::StatusOr<Safetensors> read =
      ReadBytes(FileOf(R"({"ids":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})", std::string(8, '\0')));
  EXPECT_EQ(read.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(read.status().message()), HasSubstr("tensor \"ids\" is of type I64 (expected F32"));
}

struct MalformedCase {
  const char* header;
  size_t buffer_bytes;
  const char* message;
};

TEST(SafetensorsTest, SaysWhatIsWrongWithAMalformedHeader) {
  const MalformedCase cases[] = {
      {"", 0, "does not begin with {"},
      {" {}", 0, "does not begin with {"},
      {"[]", 0, "does not begin with {"},
      {"\xef\xbb\xbf{}", 0, "does not begin with {"},
      {"{", 0, "no JSON at byte"},
      {"{} x", 0, "no JSON at byte"},
      {"{}{}", 0, "no JSON at byte"},
      {"{\"\xff\":1}", 0, "no JSON at byte"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
       8, "tensor \"a\" is there twice"},
      {R"({"__metadata__":{},"__metadata__":{}})", 0, "__metadata__ is there twice"},
      {R"({"__metadata__":{"k":"1","k":"1"}})", 0, "metadata key \"k\" is there twice"},
      {R"({"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 4,
       "tensor \"a\": \"dtype\" is there twice"},
      {R"({"__metadata__":{"k":1}})", 0, "metadata key \"k\" is 1 (expected a string)"},
      {R"({"__metadata__":{"k":{}}})", 0, "metadata key \"k\" is an object (expected a string)"},
      {R"({"__metadata__":[]})", 0, "\"__metadata__\" is a list (expected an object)"},
      {R"({"a":null})", 0, "\"a\" is null (expected an object)"},
      {R"({"a":{"shape":[1],"data_offsets":[0,4]}})", 4, "tensor \"a\" has no \"dtype\""},
      {R"({"a":{"dtype":"F32","data_offsets":[0,4]}})", 4, "tensor \"a\" has no \"shape\""},
      {R"({"a":{"dtype":"F32","shape":[1]}})", 4, "tensor \"a\" has no \"data_offsets\""},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"offset":0}})", 4, "tensor \"a\" has a key \"offset\""},
      {R"({"a":{"dtype":4,"shape":[1],"data_offsets":[0,4]}})", 4, "tensor \"a\": \"dtype\" is 4 (expected a string)"},
      {R"({"a":{"dtype":["F32"],"shape":[1],"data_offsets":[0,4]}})", 4, "\"dtype\" is a list (expected a string)"},
      {R"({"a":{"dtype":"F32","shape":1,"data_offsets":[0,4]}})", 4, "\"shape\" is 1 (expected a list of numbers)"},
      {R"({"a":{"dtype":"F32","shape":"1","data_offsets":[0,4]}})", 4, "\"shape\" is \"1\" (expected a list"},
      {R"({"a":{"dtype":"F32","shape":[[1]],"data_offsets":[0,4]}})", 4, "\"shape\" has a list (expected whole"},
      {R"({"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4, "\"shape\" has -1 (expected whole numbers"},
      {R"({"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}})", 4, "\"shape\" has 1.0 (expected whole numbers"},
      {R"({"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}})", 4, "\"shape\" has a truth value"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}})", 4, "\"data_offsets\" has -4 (expected whole"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,18446744073709551615]}})", 4,
       "\"data_offsets\" has 18446744073709551615 (expected whole numbers from 0"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,99999999999999999999]}})", 4,
       "\"data_offsets\" has 99999999999999999999 (expected whole numbers from 0"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4]}})", 4, "\"data_offsets\" are [4] (expected two"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}})", 4,
       "\"data_offsets\" are [0, 4, 8] (expected two"},
      {R"({"a":{"dtype":"F33","shape":[1],"data_offsets":[0,4]}})", 4, "tensor \"a\" is of an unknown type \"F33\""},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4,
       "tensor \"a\" of shape [2] and type F32 has 4 bytes (expected 8)"},
      {R"({"a":{"dtype":"F32","shape":[0],"data_offsets":[4,0]}})", 4,
       "tensor \"a\" begins at byte 4 and ends before it, at 0"},
      {R"({"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}})", 0,
       "tensor \"a\" of shape [4294967296, 4294967296] is larger than any file"},
      {R"({"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,0]}})", 0, "larger than any file"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8,
       "a hole of 4 bytes before tensor \"a\", at byte 0"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})",
       12, "a hole of 4 bytes before tensor \"b\", at byte 4"},
      {R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
       12, "tensors \"a\" and \"b\" overlap by 4 bytes"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
       4, "overlap by 4 bytes"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 5, "has more than its tensors"},
      {R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 3, "cut off"},
      {R"({"a":{"dtype":"I8","shape":[9223372036854775807],"data_offsets":[0,9223372036854775807]}})", 3, "cut off"},
      {R"({"__metadata__":{"digest":"12","digest_algorithm":"sha256"}})", 0, "the digest is \"12\" (expected 64"},
      {R"({"__metadata__":{"digest_algorithm":"sha256"}})", 0, "a \"digest_algorithm\" and no \"digest\""},
      {R"({"__metadata__":{"digest":"12","digest_algorithm":"md5"}})", 0, "the digest is of an unknown kind \"md5\""},
  };
  for (const MalformedCase& test : cases) {
    const absl::StatusOr<Safetensors> read = ReadBytes(FileOf(test.header, std::string(test.buffer_bytes, 'x')));
    EXPECT_EQ(read.status().code(), absl::StatusCode::kDataLoss) << test.header << ": " << read.status();
    EXPECT_THAT(std::string(read.status().message()), HasSubstr("/run/some.safetensors: ")) << test.header;
    EXPECT_THAT(std::string(read.status().message()), HasSubstr(test.message)) << test.header;
  }
}

TEST(SafetensorsTest, FindsWhatIsHiddenBehindAZeroByteInTheHeader) {
  const absl::StatusOr<Safetensors> read = ReadBytes(FileOf(absl::string_view("{}\0garbage", 10), ""));
  EXPECT_EQ(read.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(read.status().message()), HasSubstr("zero byte at byte 2"));
}

TEST(SafetensorsTest, FindsAnImpossibleLengthOfTheHeader) {
  std::string contents = FileOf("{}", "");
  contents[3] = '\x06';  // 100,663,298
  EXPECT_THAT(std::string(ReadBytes(contents).status().message()), HasSubstr("its header has 100663298 bytes"));
  contents[7] = '\xff';
  EXPECT_THAT(std::string(ReadBytes(contents).status().message()), HasSubstr("(the format allows 100000000)"));
  EXPECT_THAT(std::string(ReadBytes("GIF").status().message()), HasSubstr("has 3 bytes"));
  EXPECT_EQ(ReadBytes(contents).status().code(), absl::StatusCode::kDataLoss);
}

TEST(SafetensorsTest, KeepsMessagesShortHoweverLongTheNonsense) {
  for (const std::string& nonsense :
       {std::string(1 << 20, 'x'), absl::StrCat("[", std::string(1 << 20, '[')), std::string(1 << 20, '9')}) {
    for (const std::string& header :
         {absl::StrCat("{\"", nonsense, "\":1}"), absl::StrCat("{\"a\":", nonsense, "}"),
          absl::StrCat("{\"a\":{\"dtype\":\"", nonsense, "\",\"shape\":[],\"data_offsets\":[0,0]}}"),
          absl::StrCat("{\"a\":{\"dtype\":\"F32\",\"shape\":[", nonsense, "]}}")}) {
      const absl::StatusOr<Safetensors> read = ReadBytes(FileOf(header, ""));
      EXPECT_EQ(read.status().code(), absl::StatusCode::kDataLoss);
      EXPECT_LT(read.status().message().size(), 1000u) << header.substr(0, 40);
    }
  }
}

TEST(SafetensorsTest, RefusesADigestThatAnotherProgramCopied) {
  const std::string digest(64, 'a');
  for (const std::string& header :
       {absl::StrCat("{\"__metadata__\":{\"digest\":\"", digest, "\", \"digest_algorithm\":\"sha256\"}}"),
        absl::StrCat("{\"__metadata__\": {\"digest\": \"", digest, "\", \"digest_algorithm\": \"sha256\"}}")}) {
    EXPECT_EQ(ReadBytes(FileOf(header, "")).status().code(), absl::StatusCode::kDataLoss) << header;
  }
}

TEST(SafetensorsTest, ADigestOfAnotherKindIsItsMakersAffair) {
  const std::string digest(64, 'a');
  for (const std::string& header :
       {std::string(R"({"__metadata__":{"digest":"12"}})"),
        absl::StrCat("{\"__metadata__\":{\"digest\":\"", digest, "\"}}"),
        absl::StrCat("{\"__metadata__\": {\"digest\":\"", digest, "\", \"by\": \"sha256\"}}")}) {
    const absl::StatusOr<Safetensors> read = ReadBytes(FileOf(header, ""));
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_FALSE(read->has_digest);
  }
}

TEST(SafetensorsTest, AMissingFileIsNotFoundAndNamed) {
  const absl::StatusOr<Safetensors> read = ReadSafetensors(FileSystem::Real(), "/nonexistent/x.safetensors");
  EXPECT_EQ(read.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(read.status().message()), HasSubstr("/nonexistent/x.safetensors"));
}

TEST(SafetensorsTest, RefusesToWriteWhatNoReaderWouldTake) {
  const TestDirectory directory;
  const std::string path = directory.path() + "/x.safetensors";
  const std::vector<float> values = {1.0f, 2.0f};
  const auto refusal = [&](const std::vector<NamedValues>& tensors,
                           const std::map<std::string, std::string>& metadata) {
    const absl::Status status = WriteSafetensors(FileSystem::Real(), path, tensors, metadata);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(path));
    return std::string(status.message());
  };
  EXPECT_THAT(refusal({{"a", {3}, values}}, {}),
              HasSubstr("tensor \"a\" has 2 values, which do not fit its shape [3]"));
  EXPECT_THAT(refusal({{"a", {-1, -2}, values}}, {}), HasSubstr("do not fit its shape [-1, -2]"));
  EXPECT_THAT(refusal({{"a", {int64_t{1} << 62, 4}, {}}}, {}), HasSubstr("do not fit its shape"));
  EXPECT_THAT(refusal({{"a", {2}, values}, {"b", {2}, values}, {"a", {2}, values}}, {}),
              HasSubstr("tensor \"a\" is there twice"));
  EXPECT_THAT(refusal({{"__metadata__", {2}, values}}, {}), HasSubstr("the format keeps for metadata"));
  EXPECT_THAT(refusal({{"\xff", {2}, values}}, {}), HasSubstr("no UTF-8"));
  EXPECT_THAT(refusal({}, {{"k", "\xc3"}}), HasSubstr("no UTF-8"));
  EXPECT_THAT(FileSystem::Real()->List(directory.path()).value(), ElementsAre());
}

TEST(SafetensorsTest, RefusesToWriteMoreMetadataThanTheFormatAllows) {
  const TestDirectory directory;
  std::string longest;
  longest.resize(100'000'000, 'x');
  const absl::Status status =
      WriteSafetensors(FileSystem::Real(), directory.path() + "/x.safetensors", {}, {{"k", longest}});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("(the format allows 100000000)"));
}

const std::vector<float>& OldValues() {
  static const auto* const kValues = new std::vector<float>(100, 1.0f);
  return *kValues;
}

const std::vector<float>& NewValues() {
  static const auto* const kValues = new std::vector<float>(100, 2.0f);
  return *kValues;
}

void PutOld(FaultFileSystem* files) {
  ASSERT_TRUE(files->MakeDirectories("/run").ok());
  ASSERT_TRUE(WriteSafetensors(files, "/run/x.safetensors", {{"a", {100}, OldValues()}}, {}).ok());
}

absl::Status WriteNew(FaultFileSystem* files) {
  return WriteSafetensors(files, "/run/x.safetensors", {{"a", {100}, NewValues()}, {"b", {10, 10}, NewValues()}}, {});
}

TEST(SafetensorsTest, AFailingWriteLeavesTheOldFileAndNothingElse) {
  for (const auto operation : {FaultFileSystem::kRemove, FaultFileSystem::kCreate, FaultFileSystem::kWrite,
                               FaultFileSystem::kSync, FaultFileSystem::kRename, FaultFileSystem::kSyncDirectory}) {
    // How many there are in one write.
    int calls = 0;
    {
      FaultFileSystem files(0);
      PutOld(&files);
      calls = -files.calls(operation);
      ASSERT_TRUE(WriteNew(&files).ok());
      calls += files.calls(operation);
      ASSERT_GE(calls, 1) << operation;
    }
    for (int nth = 0; nth < calls; ++nth) {
      SCOPED_TRACE(absl::StrCat("operation ", operation, " number ", nth));
      FaultFileSystem files(0);
      PutOld(&files);
      files.Fail(operation, nth);
      const absl::Status status = WriteNew(&files);
      EXPECT_EQ(files.failures(operation), 1);
      EXPECT_EQ(status.code(), operation == FaultFileSystem::kWrite ? absl::StatusCode::kResourceExhausted
                                                                    : absl::StatusCode::kInternal);
      EXPECT_THAT(files.List("/run").value(), ElementsAre("x.safetensors"));
      const absl::StatusOr<Safetensors> read = ReadSafetensors(&files, "/run/x.safetensors");
      ASSERT_TRUE(read.ok()) << read.status();
      // Once renamed the new one is there, whole; only that this outlives a loss of power is not known.
      EXPECT_EQ(read->tensors.at("a").values, operation == FaultFileSystem::kSyncDirectory ? NewValues() : OldValues());
    }
  }
}

TEST(SafetensorsTest, ALossOfPowerLeavesTheOldFileOrTheNewOneWhole) {
  int kept_old = 0;
  int kept_new = 0;
  for (uint64_t seed = 0; seed < 500; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    FaultFileSystem files(seed);
    PutOld(&files);
    files.FailRandomly(0.15);
    const absl::Status written = WriteNew(&files);
    files.FailRandomly(0);
    files.Crash();
    const absl::StatusOr<Safetensors> read = ReadSafetensors(&files, "/run/x.safetensors");
    ASSERT_TRUE(read.ok()) << read.status();
    const bool is_new = read->tensors.at("a").values == NewValues();
    if (!is_new) {
      EXPECT_FALSE(written.ok());
      EXPECT_EQ(read->tensors.at("a").values, OldValues());
    }
    ++(is_new ? kept_new : kept_old);
    // Whatever was left beside it is no hindrance.
    const absl::Status again = WriteNew(&files);
    EXPECT_TRUE(again.ok()) << again;
    EXPECT_THAT(files.List("/run").value(), ElementsAre("x.safetensors"));
  }
  EXPECT_GT(kept_old, 50);
  EXPECT_GT(kept_new, 50);
}

TEST(SafetensorsTest, WritesOverWhatACrashLeft) {
  const TestDirectory directory;
  const std::string path = directory.path() + "/x.safetensors";
  directory.Write("x.safetensors.tmp", "half of a file");
  const std::vector<float> values = {1.0f};
  const absl::Status status = WriteSafetensors(FileSystem::Real(), path, {{"a", {1}, values}}, {});
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_TRUE(ReadSafetensors(FileSystem::Real(), path).ok());
  EXPECT_THAT(FileSystem::Real()->List(directory.path()).value(), ElementsAre("x.safetensors"));
}

}  // namespace
}  // namespace wukong
