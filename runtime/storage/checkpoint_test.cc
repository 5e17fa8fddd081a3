#include "runtime/storage/checkpoint.h"

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/message_differencer.h"
#include "gtest/gtest.h"
#include "runtime/base/file.h"
#include "runtime/data/test_directory.h"
#include "runtime/storage/file_system.h"
#include "runtime/storage/safetensors.h"
#include "runtime/storage/safetensors_test_util.h"

namespace wukong {
namespace {

using ::google::protobuf::util::MessageDifferencer;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

// The names are not in alphabetical order: the file keeps that of the flat vector.
ParameterLayout TestLayout() {
  return ParameterLayout(
      {{"wte.weight", {2, 3}}, {"head.weight", {3, 2}}, {"empty", {0}}, {"block.bias", {2}}, {"scale", {}}});
}

Checkpoint TestCheckpoint() {
  Checkpoint checkpoint;
  checkpoint.tensors = TestLayout().tensors();
  for (int i = 0; i < 15; ++i) checkpoint.parameters.push_back(static_cast<float>(i) - 7.5f);
  checkpoint.parameters[3] = FromBits(0x7fc01234);
  checkpoint.extra_vectors["public"] = std::vector<float>(15, 0.25f);
  checkpoint.extra_vectors["optimizer.first"] = {1.0f, FromBits(0x80000000)};
  checkpoint.extra_vectors["state"] = {4.0f};
  checkpoint.extra_vectors["buffer"] = {};
  checkpoint.identity.set_format(1);
  checkpoint.identity.set_run("run-7");
  checkpoint.identity.set_job_digest("job");
  checkpoint.identity.set_schema_digest(TestLayout().schema_digest());
  checkpoint.identity.set_parameters(15);
  checkpoint.state.set_index(99);
  checkpoint.state.set_term(3);
  checkpoint.state.set_version(42);
  for (const char* region : {"tokyo", "oregon", "frankfurt", "mumbai", "sydney"}) {
    (*checkpoint.state.mutable_tokens_by_region())[region] = 1000;
  }
  checkpoint.state.add_unmerged()->add_fragments(std::string("\0\xff\x80payload", 10));
  checkpoint.notes["committed_tokens"] = "123456";
  checkpoint.notes["title"] = "\xe6\x82\x9f\xe7\xa9\xba";
  return checkpoint;
}

void ExpectSame(const Checkpoint& read, const Checkpoint& written) {
  ASSERT_EQ(read.tensors.size(), written.tensors.size());
  for (size_t i = 0; i < written.tensors.size(); ++i) {
    EXPECT_EQ(read.tensors[i].name, written.tensors[i].name);
    EXPECT_EQ(read.tensors[i].shape, written.tensors[i].shape);
    EXPECT_EQ(read.tensors[i].offset, written.tensors[i].offset);
    EXPECT_EQ(read.tensors[i].size, written.tensors[i].size);
  }
  EXPECT_EQ(Bits(read.parameters), Bits(written.parameters));
  ASSERT_EQ(read.extra_vectors.size(), written.extra_vectors.size());
  for (const auto& [name, values] : written.extra_vectors) {
    ASSERT_EQ(read.extra_vectors.count(name), 1u) << name;
    EXPECT_EQ(Bits(read.extra_vectors.at(name)), Bits(values)) << name;
  }
  EXPECT_TRUE(MessageDifferencer::Equals(read.identity, written.identity)) << read.identity.DebugString();
  EXPECT_TRUE(MessageDifferencer::Equals(read.state, written.state));
  EXPECT_EQ(read.notes, written.notes);
}

class CheckpointTest : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) const { return directory_.path() + "/" + name; }

  absl::Status Write(const Checkpoint& checkpoint) { return WriteCheckpoint(files_, path_, checkpoint); }

  // The file that `checkpoint` gives, with other tensors or metadata, and a digest that fits them.
  std::string Doctored(const Checkpoint& checkpoint, const std::function<void(Safetensors*)>& change) {
    const absl::Status written = Write(checkpoint);
    EXPECT_TRUE(written.ok()) << written;
    absl::StatusOr<Safetensors> file = ReadSafetensors(files_, path_);
    EXPECT_TRUE(file.ok()) << file.status();
    change(&*file);
    std::vector<NamedValues> tensors;
    for (const auto& [name, tensor] : file->tensors) tensors.push_back({name, tensor.shape, tensor.values});
    const absl::Status rewritten = WriteSafetensors(files_, path_, tensors, file->metadata);
    EXPECT_TRUE(rewritten.ok()) << rewritten;
    return path_;
  }

  const TestDirectory directory_;
  FileSystem* const files_ = FileSystem::Real();
  const std::string path_ = Path("version-000000000042.safetensors");
};

TEST_F(CheckpointTest, ReturnsWhatWasWritten) {
  const Checkpoint written = TestCheckpoint();
  const absl::Status status = Write(written);
  ASSERT_TRUE(status.ok()) << status;
  const absl::StatusOr<Checkpoint> read = ReadCheckpoint(files_, path_);
  ASSERT_TRUE(read.ok()) << read.status();
  ExpectSame(*read, written);
}

TEST_F(CheckpointTest, ReturnsAnEmptyOne) {
  ASSERT_TRUE(Write(Checkpoint()).ok());
  const absl::StatusOr<Checkpoint> read = ReadCheckpoint(files_, path_);
  ASSERT_TRUE(read.ok()) << read.status();
  ExpectSame(*read, Checkpoint());
}

// Base64 of it in the header would hit the limit of the format: 100 MB, whatever the size of the model.
TEST_F(CheckpointTest, ReturnsAStateTooLargeForTheHeader) {
  for (const int64_t extra_bytes : {0, 1, 2, 3}) {
    Checkpoint written = TestCheckpoint();
    std::string payload(static_cast<size_t>(kStateBytesInHeaderMax + extra_bytes), '\0');
    for (size_t i = 0; i < payload.size(); ++i) payload[i] = static_cast<char>(i * 2654435761u >> 13);
    written.state.add_unmerged()->add_fragments(payload);
    written.parameters[3] = -4.5f;  // For the last line: a value that is not finite would be refused.
    ASSERT_TRUE(Write(written).ok());
    const absl::StatusOr<Checkpoint> read = ReadCheckpoint(files_, path_);
    ASSERT_TRUE(read.ok()) << read.status();
    ExpectSame(*read, written);
    const absl::StatusOr<Safetensors> file = ReadSafetensors(files_, path_);
    EXPECT_EQ(file->metadata.count("state"), 0u);
    EXPECT_EQ(file->tensors.count("wukong:state"), 1u);
    EXPECT_TRUE(ReadParametersFrom(files_, path_, TestLayout()).ok());
  }
}

TEST_F(CheckpointTest, ReturnsTheStateWithoutTheVectors) {
  Checkpoint written = TestCheckpoint();
  for (const bool large : {false, true}) {
    if (large) written.state.mutable_unmerged(0)->add_fragments(std::string(kStateBytesInHeaderMax, 'x'));
    ASSERT_TRUE(Write(written).ok());
    const absl::StatusOr<Checkpoint> read = ReadCheckpointState(files_, path_);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_TRUE(MessageDifferencer::Equals(read->identity, written.identity)) << read->identity.DebugString();
    EXPECT_TRUE(MessageDifferencer::Equals(read->state, written.state));
    EXPECT_EQ(read->notes, written.notes);
    EXPECT_THAT(read->parameters, IsEmpty());
    EXPECT_THAT(read->extra_vectors, IsEmpty());
  }
}

TEST_F(CheckpointTest, WritesTheSameBytesForTheSameCheckpoint) {
  ASSERT_TRUE(Write(TestCheckpoint()).ok());
  const std::string first = ReadFile(path_).value();
  // A map that was filled in another order.
  Checkpoint again = TestCheckpoint();
  again.state.clear_tokens_by_region();
  for (const char* region : {"sydney", "mumbai", "frankfurt", "oregon", "tokyo"}) {
    (*again.state.mutable_tokens_by_region())[region] = 1000;
  }
  ASSERT_TRUE(Write(again).ok());
  EXPECT_TRUE(ReadFile(path_).value() == first);
}

TEST_F(CheckpointTest, IsAFileThatOtherProgramsUnderstand) {
  ASSERT_TRUE(Write(TestCheckpoint()).ok());
  const absl::StatusOr<Safetensors> file = ReadSafetensors(files_, path_);
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<std::string> names;
  for (const auto& [name, tensor] : file->tensors) names.push_back(name);
  EXPECT_THAT(names, ElementsAre("block.bias", "empty", "head.weight", "scale", "wte.weight", "wukong.buffer",
                                 "wukong.optimizer.first", "wukong.public", "wukong.state"));
  EXPECT_THAT(file->tensors.at("head.weight").shape, ElementsAre(3, 2));
  EXPECT_THAT(file->tensors.at("head.weight").values, ElementsAre(-1.5f, -0.5f, 0.5f, 1.5f, 2.5f, 3.5f));
  EXPECT_THAT(file->tensors.at("scale").shape, IsEmpty());
  std::map<std::string, std::string> metadata = file->metadata;
  for (const char* key : {"digest", "digest_algorithm", "state", "identity", "schema_digest"}) {
    EXPECT_EQ(metadata.erase(key), 1u) << key;
  }
  EXPECT_THAT(metadata,
              UnorderedElementsAre(Pair("format", "pt"), Pair("wukong_format", "1"), Pair("version", "42"),
                                   Pair("run", "run-7"), Pair("job_digest", "job"),
                                   Pair("layout", R"(["wte.weight","head.weight","empty","block.bias","scale"])"),
                                   Pair("committed_tokens", "123456"), Pair("title", "\xe6\x82\x9f\xe7\xa9\xba")));
}

TEST_F(CheckpointTest, RefusesToWriteWhatCouldNotBeRead) {
  const auto refusal = [&](const std::function<void(Checkpoint*)>& change) {
    Checkpoint checkpoint = TestCheckpoint();
    change(&checkpoint);
    const absl::Status status = Write(checkpoint);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(path_));
    return std::string(status.message());
  };
  EXPECT_THAT(refusal([](Checkpoint* c) { c->parameters.pop_back(); }),
              HasSubstr("tensor \"scale\" of shape [] is at value 14 of 14 parameters"));
  EXPECT_THAT(refusal([](Checkpoint* c) { c->parameters.push_back(0); }),
              HasSubstr("the tensors have 15 values and there are 16 parameters"));
  EXPECT_THAT(refusal([](Checkpoint* c) {
                c->tensors[0].shape = {-2, -3};
              }),
              HasSubstr("tensor \"wte.weight\" has the shape [-2, -3]"));
  EXPECT_THAT(refusal([](Checkpoint* c) { c->tensors[0].shape = {int64_t{1} << 62, 4}; }), HasSubstr("has the shape"));
  EXPECT_THAT(refusal([](Checkpoint* c) { c->tensors[0].name = "wukong.public"; }),
              HasSubstr("tensor \"wukong.public\" of the model"));
  EXPECT_THAT(refusal([](Checkpoint* c) { c->tensors[0].name = "wukong:state"; }),
              HasSubstr("tensor \"wukong:state\" of the model"));
  EXPECT_THAT(refusal([](Checkpoint* c) { c->tensors[0].name = "scale"; }), HasSubstr("\"scale\" is there twice"));
  EXPECT_THAT(refusal([](Checkpoint* c) { c->tensors[0].name = "\xff"; }), HasSubstr("no UTF-8"));
  for (const char* key : {"format", "wukong_format", "layout", "version", "run", "job_digest", "schema_digest", "state",
                          "state_bytes", "identity", "digest", "digest_algorithm"}) {
    EXPECT_THAT(refusal([&](Checkpoint* c) { c->notes[key] = "x"; }),
                HasSubstr(absl::StrCat("note \"", key, "\" has a key that the file uses itself")));
  }
  EXPECT_THAT(files_->List(directory_.path()).value(), IsEmpty());
}

TEST_F(CheckpointTest, FindsDamage) {
  ASSERT_TRUE(Write(TestCheckpoint()).ok());
  const std::string whole = ReadFile(path_).value();
  for (size_t at = 0; at < whole.size(); at += 61) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 4);
    const std::string path = directory_.Write("damaged", damaged);
    EXPECT_EQ(ReadCheckpoint(files_, path).status().code(), absl::StatusCode::kDataLoss) << "byte " << at;
    EXPECT_EQ(ReadCheckpointState(files_, path).status().code(), absl::StatusCode::kDataLoss) << "byte " << at;
    EXPECT_EQ(ReadParametersFrom(files_, path, TestLayout()).status().code(), absl::StatusCode::kDataLoss);
  }
  EXPECT_EQ(ReadCheckpoint(files_, Path("none")).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(CheckpointTest, FindsMetadataThatDoNotFitTheTensors) {
  const auto damage = [&](const std::function<void(Safetensors*)>& change) {
    const absl::StatusOr<Checkpoint> read = ReadCheckpoint(files_, Doctored(TestCheckpoint(), change));
    EXPECT_EQ(read.status().code(), absl::StatusCode::kDataLoss) << read.status();
    EXPECT_THAT(std::string(read.status().message()), HasSubstr(path_));
    return std::string(read.status().message());
  };
  EXPECT_THAT(damage([](Safetensors* f) { f->metadata.erase("layout"); }), HasSubstr("no \"layout\""));
  EXPECT_THAT(damage([](Safetensors* f) { f->metadata["layout"] = "["; }), HasSubstr("no JSON list"));
  EXPECT_THAT(damage([](Safetensors* f) { f->metadata["layout"] = "{}"; }), HasSubstr("no JSON list"));
  EXPECT_THAT(damage([](Safetensors* f) { f->metadata["layout"] = "[1]"; }), HasSubstr("a name that is no string"));
  EXPECT_THAT(damage([](Safetensors* f) { f->metadata["layout"] = "[\"x\"]"; }),
              HasSubstr("names \"x\", which is no tensor of the model"));
  EXPECT_THAT(damage([](Safetensors* f) { f->metadata["layout"] = "[\"wukong.public\"]"; }),
              HasSubstr("which is no tensor of the model"));
  EXPECT_THAT(damage([](Safetensors* f) { f->metadata["layout"] = "[\"scale\",\"scale\"]"; }),
              HasSubstr("names \"scale\" twice"));
  EXPECT_THAT(damage([](Safetensors* f) { f->metadata["layout"] = "[\"scale\"]"; }),
              HasSubstr("does not name tensor \"block.bias\""));
  EXPECT_THAT(damage([](Safetensors* f) { f->metadata.erase("state"); }), HasSubstr("no \"state\""));
  EXPECT_THAT(damage([](Safetensors* f) { f->metadata.erase("identity"); }), HasSubstr("no \"identity\""));
  EXPECT_THAT(damage([](Safetensors* f) { f->metadata["identity"] = "!"; }),
              HasSubstr("\"identity\" of the metadata is no wukong.LogIdentity in base64"));
  EXPECT_THAT(damage([](Safetensors* f) { f->metadata["state"] = "////"; }),
              HasSubstr("\"state\" of the metadata is no wukong.RootState in base64"));
  EXPECT_THAT(damage([](Safetensors* f) { f->metadata["state_bytes"] = "4"; }),
              HasSubstr("no tensor \"wukong:state\""));
  const auto with_large_state = [](Safetensors* f, const std::string& bytes) {
    f->metadata["state_bytes"] = bytes;
    f->tensors["wukong:state"] = {{1}, {FromBits(0xffffffff)}};
  };
  EXPECT_THAT(damage([&](Safetensors* f) { with_large_state(f, "5"); }), HasSubstr("\"5\" (expected 0 to 4"));
  EXPECT_THAT(damage([&](Safetensors* f) { with_large_state(f, "-1"); }), HasSubstr("\"-1\" (expected 0 to 4"));
  EXPECT_THAT(damage([&](Safetensors* f) { with_large_state(f, "four"); }), HasSubstr("\"four\" (expected 0 to 4"));
  EXPECT_THAT(damage([&](Safetensors* f) { with_large_state(f, "4"); }), HasSubstr("is no wukong.RootState"));
}

TEST_F(CheckpointTest, RefusesANewerFormat) {
  Checkpoint newer = TestCheckpoint();
  newer.identity.set_format(2);
  ASSERT_TRUE(Write(newer).ok());
  absl::StatusOr<Checkpoint> read = ReadCheckpoint(files_, path_);
  EXPECT_EQ(read.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(read.status().message()), HasSubstr("of a run of format 2 (this build reads up to 1)"));

  read = ReadCheckpoint(files_, Doctored(TestCheckpoint(), [](Safetensors* f) { f->metadata["wukong_format"] = "2"; }));
  EXPECT_EQ(read.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(read.status().message()), HasSubstr("a checkpoint of format \"2\" (this build reads 1)"));
}

TEST_F(CheckpointTest, InsistsOnADigestUnlessToldOtherwise) {
  const std::string path =
      directory_.Write("copied.safetensors",
                       FileOf(R"({"__metadata__":{"wukong_format":"1","identity":"","state":"","layout":"[\"a\"]"},)"
                              R"("a":{"dtype":"BF16","shape":[1,2],"data_offsets":[0,4]}})",
                              absl::string_view("\x80\x3f\0\xc0", 4)));
  const absl::StatusOr<Checkpoint> refused = ReadCheckpoint(files_, path);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("no digest"));
  const absl::StatusOr<Checkpoint> read = ReadCheckpoint(files_, path, /*require_digest=*/false);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_THAT(read->parameters, ElementsAre(1.0f, -2.0f));
}

TEST_F(CheckpointTest, SaysThatAForeignFileIsNoCheckpoint) {
  const std::string path = directory_.Write("foreign.safetensors", FileOf("{}", ""));
  const absl::StatusOr<Checkpoint> read = ReadCheckpoint(files_, path);
  EXPECT_EQ(read.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(read.status().message()), HasSubstr("no checkpoint of Wukong's"));
}

TEST_F(CheckpointTest, TakesTheParametersOfAForeignFileInTheOrderOfTheModel) {
  // b as F16, a as BF16, c as F32; the file's order is another one than the model's.
  const std::string path = directory_.Write(
      "foreign.safetensors",
      FileOf(R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},)"
             R"("b":{"dtype":"F16","shape":[1,2],"data_offsets":[4,8]},)"
             R"("c":{"dtype":"F32","shape":[],"data_offsets":[8,12]}})",
             absl::string_view("\x80\x3f\0\xc0\0\x3c\0\xb8\0\0\x40\x40", 12)));
  const absl::StatusOr<std::vector<float>> read =
      ReadParametersFrom(files_, path, ParameterLayout({{"c", {}}, {"a", {2}}, {"b", {1, 2}}}));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_THAT(*read, ElementsAre(3.0f, 1.0f, -2.0f, 1.0f, -0.5f));
}

TEST_F(CheckpointTest, TakesNoParametersThatAreNotFinite) {
  const std::string path = directory_.Write(
      "foreign.safetensors",
      FileOf(R"({"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}})", absl::string_view("\x80\x3f\xc0\x7f", 4)));
  const absl::Status status = ReadParametersFrom(files_, path, ParameterLayout({{"a", {2}}})).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("value 1 of tensor \"a\" is nan"));
}

TEST_F(CheckpointTest, TakesTheParametersOfACheckpointInTheOrderOfTheModel) {
  Checkpoint written = TestCheckpoint();
  written.parameters[3] = -4.5f;  // A value that is not finite would be refused.
  ASSERT_TRUE(Write(written).ok());
  const absl::StatusOr<std::vector<float>> same = ReadParametersFrom(files_, path_, TestLayout());
  ASSERT_TRUE(same.ok()) << same.status();
  EXPECT_EQ(Bits(*same), Bits(written.parameters));
  const absl::StatusOr<std::vector<float>> other = ReadParametersFrom(
      files_, path_,
      ParameterLayout(
          {{"scale", {}}, {"block.bias", {2}}, {"wte.weight", {2, 3}}, {"head.weight", {3, 2}}, {"empty", {0}}}));
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ((*other)[0], 6.5f);
  EXPECT_EQ((*other)[1], 4.5f);
  EXPECT_EQ((*other)[3], -7.5f);
}

TEST_F(CheckpointTest, NamesTheTensorsThatDoNotFitTheModel) {
  ASSERT_TRUE(Write(TestCheckpoint()).ok());
  const auto mismatch = [&](std::vector<TensorSpec> tensors) {
    const absl::StatusOr<std::vector<float>> read =
        ReadParametersFrom(files_, path_, ParameterLayout(std::move(tensors)));
    EXPECT_EQ(read.status().code(), absl::StatusCode::kFailedPrecondition) << read.status();
    return std::string(read.status().message());
  };
  EXPECT_EQ(mismatch({{"wte.weight", {3, 2}}, {"head.weight", {3, 2}}, {"empty", {0}}, {"bias", {2}}, {"scale", {}}}),
            absl::StrCat(path_,
                         " does not fit the model: tensor \"wte.weight\" has shape [2, 3] (expected [3, 2]); "
                         "tensor \"bias\" is missing (expected shape [2]); "
                         "tensor \"block.bias\" of shape [2] is not of the model (expected none of this name)"));
  std::vector<TensorSpec> many;
  for (int i = 0; i < 20; ++i) many.push_back({absl::StrCat("layer.", i), {1}});
  EXPECT_THAT(mismatch(many), HasSubstr("tensor \"layer.4\" is missing (expected shape [1]); and 20 more"));
}

TEST_F(CheckpointTest, IgnoresItsOwnTensorsInACheckpointOnly) {
  const std::string path = directory_.Write(
      "foreign.safetensors",
      FileOf(R"({"wukong.a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}})", absl::string_view("\0\0\0\0", 4)));
  const absl::StatusOr<std::vector<float>> read = ReadParametersFrom(files_, path, ParameterLayout({}));
  EXPECT_THAT(std::string(read.status().message()), HasSubstr("tensor \"wukong.a\" of shape [] is not of the model"));
}

TEST_F(CheckpointTest, AreListedByVersion) {
  for (const char* name :
       {"version-000000000010.safetensors", "version-000000000009.safetensors", "version-1000000000000.safetensors",
        "version-000000000000.safetensors",
        // None of ours.
        "version-000000000011.safetensors.tmp", "version-11.safetensors", "version-0000000000011.safetensors",
        "version--00000000011.safetensors", "version-+00000000011.safetensors", "version- 00000000011.safetensors",
        "version-00000000001x.safetensors", "version-.safetensors", "version-99999999999999999999.safetensors",
        "xversion-000000000011.safetensors", "model.safetensors", "version-000000000011", "notes.txt"}) {
    directory_.Write(name, "");
  }
  const absl::StatusOr<std::vector<CheckpointFile>> listed = ListCheckpoints(files_, directory_.path());
  ASSERT_TRUE(listed.ok()) << listed.status();
  std::vector<int64_t> versions;
  for (const CheckpointFile& file : *listed) {
    versions.push_back(file.version);
    EXPECT_EQ(file.path, CheckpointPath(directory_.path(), file.version));
    EXPECT_TRUE(ReadFile(file.path).ok()) << file.path;
  }
  EXPECT_THAT(versions, ElementsAre(0, 9, 10, 1000000000000));
  EXPECT_EQ(CheckpointPath("run/checkpoints", 42), "run/checkpoints/version-000000000042.safetensors");
}

TEST_F(CheckpointTest, AreNoneWhereThereIsNoDirectory) {
  const absl::StatusOr<std::vector<CheckpointFile>> listed = ListCheckpoints(files_, Path("none"));
  ASSERT_TRUE(listed.ok()) << listed.status();
  EXPECT_THAT(*listed, IsEmpty());
}

}  // namespace
}  // namespace wukong
