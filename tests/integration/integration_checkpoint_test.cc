// Parameters that are taken away and brought along, damaged files, and a disk that is full for a while.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/integration/wukong_process.h"

namespace wukong::integration {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// Of a finished command.
struct Result {
  int code;
  std::string out, err;
};
Result RunToEnd(const Workspace& workspace, std::vector<std::string> arguments) {
  const auto process = workspace.Start(std::move(arguments));
  return {process->Wait().value_or(-1), process->out(), process->err()};
}

std::string Newest(const std::string& directory) {
  std::string newest;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    newest = std::max(newest, entry.path().string());
  }
  return newest;
}

void FlipByte(const std::string& path, int64_t at) {
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(at);
  const char old = static_cast<char>(file.get());
  file.seekp(at);
  file.put(static_cast<char>(old ^ 0x10));
  ASSERT_TRUE(file.good()) << path;
}

// After the "parameters SHA-256" of what was exported.
std::string Sha(const std::string& out) {
  const size_t at = out.find("SHA-256 ");
  return at == std::string::npos ? "" : out.substr(at + 8, 64);
}

class CheckpointCommandTest : public testing::Test {
 protected:
  void Train(const TinyJob& job) {
    const Result up = RunToEnd(workspace_, {"up", workspace_.WriteJob(job), "--run-dir", run_});
    ASSERT_EQ(up.code, 0) << up.err;
  }
  const Workspace workspace_;
  const std::string run_ = workspace_.Path("run");
};

TEST_F(CheckpointCommandTest, AnExportedFileBeginsAnotherRun) {
  Train(OneRegion(2));
  const std::string file = workspace_.Path("model.safetensors");
  const Result exported = RunToEnd(workspace_, {"checkpoint", "export", run_, "--output", file});
  ASSERT_EQ(exported.code, 0) << exported.err;
  const Json report = RunRecord(run_).Report();
  EXPECT_EQ(Sha(exported.out), report["parameters_sha256"]);
  EXPECT_EQ(RunToEnd(workspace_, {"checkpoint", "verify", file}).code, 0);
  const Result listed = RunToEnd(workspace_, {"checkpoint", "list", run_});
  EXPECT_THAT(listed.out, HasSubstr(absl::StrCat(report["tokens_committed"].get<int64_t>())));
  const Json newest = Json::parse(RunToEnd(workspace_, {"checkpoint", "list", "--json", run_}).out).back();
  EXPECT_EQ(newest["committed_tokens"], report["tokens_committed"]);

  const std::string next = workspace_.Path("next");
  const Result imported =
      RunToEnd(workspace_, {"checkpoint", "import", next, "--from", file, "--job", workspace_.Path("job.yaml")});
  ASSERT_EQ(imported.code, 0) << imported.err;
  const Result again =
      RunToEnd(workspace_, {"checkpoint", "import", next, "--from", file, "--job", workspace_.Path("job.yaml")});
  EXPECT_EQ(again.code, 2);
  EXPECT_THAT(again.err, HasSubstr("is not empty"));
  const Result over = RunToEnd(workspace_, {"up", workspace_.Path("job.yaml"), "--run-dir", next});
  EXPECT_EQ(over.code, 2) << "an imported run is not written over";
  EXPECT_THAT(over.err, AllOf(HasSubstr("holds another run"), HasSubstr("--resume")));
  const Result coordinator = RunToEnd(
      workspace_, {"coordinator", "--job", workspace_.Path("job.yaml"), "--run-dir", next, "--listen", "127.0.0.1:0"});
  EXPECT_EQ(coordinator.code, 2);
  EXPECT_THAT(coordinator.err, HasSubstr("holds another run"));
  std::filesystem::remove(file);  // The first snapshot has what was in it.
  const Result up = RunToEnd(workspace_, {"up", "--resume", next});
  ASSERT_EQ(up.code, 0) << up.err;
  const Json second = RunRecord(next).Report();
  EXPECT_NEAR(second["validation_loss_initial"].get<double>(), report["validation_loss_final"].get<double>(), 1e-6)
      << "it began where the first one ended";
  EXPECT_LT(second["validation_loss_final"].get<double>(), second["validation_loss_initial"].get<double>());
  EXPECT_EQ(RunToEnd(workspace_, {"log", "verify", next}).code, 0);
}

TEST_F(CheckpointCommandTest, AFileOfAnotherModelIsRefusedByItsTensors) {
  Train(OneRegion(2));
  const std::string file = workspace_.Path("model.safetensors");
  ASSERT_EQ(RunToEnd(workspace_, {"checkpoint", "export", run_, "-o", file}).code, 0);
  EXPECT_EQ(RunToEnd(workspace_, {"checkpoint", "export", run_, "-o", file}).code, 0) << "newer ones replace it";
  const Result over = RunToEnd(workspace_, {"checkpoint", "export", run_, "-o", workspace_.Path("job.yaml")});
  EXPECT_EQ(over.code, 2);
  EXPECT_THAT(over.err, HasSubstr("job.yaml is there and is no safetensors file"));
  const Result imported = RunToEnd(workspace_, {"checkpoint", "import", workspace_.Path("next"), "--from", file,
                                                "--job", workspace_.Path("job.yaml"), "--set", "model.width=16"});
  EXPECT_EQ(imported.code, 2);
  EXPECT_THAT(imported.err, HasSubstr("model.parameters")) << imported.err;
}

TEST_F(CheckpointCommandTest, DamageIsNamedAndWhatIsWholeIsUsed) {
  Train(OneRegion(2));
  const std::string file = workspace_.Path("model.safetensors");
  const Result before = RunToEnd(workspace_, {"checkpoint", "export", run_, "-o", file});
  ASSERT_EQ(before.code, 0) << before.err;
  ASSERT_EQ(RunToEnd(workspace_, {"log", "verify", run_}).code, 0);

  const std::string snapshot = Newest(run_ + "/checkpoints");
  FlipByte(snapshot, static_cast<int64_t>(std::filesystem::file_size(snapshot)) / 2);
  const Result verified = RunToEnd(workspace_, {"checkpoint", "verify", run_});
  EXPECT_EQ(verified.code, 7);
  EXPECT_THAT(verified.out, HasSubstr(absl::StrCat(snapshot, ": DAMAGED")));
  const Result as_json = RunToEnd(workspace_, {"checkpoint", "verify", "--json", run_});
  EXPECT_EQ(as_json.code, 7);
  std::map<std::string, std::string> digests;
  for (const Json& one : Json::parse(as_json.out)) digests[one["file"]] = one["digest"];
  ASSERT_GT(digests.size(), 1U);
  for (const auto& [path, digest] : digests) EXPECT_EQ(digest, path == snapshot ? "damaged" : "right") << path;
  EXPECT_EQ(RunToEnd(workspace_, {"log", "verify", run_}).code, 7);
  const Result after = RunToEnd(workspace_, {"checkpoint", "export", run_, "-o", file});
  EXPECT_EQ(after.code, 0) << "the one before it and the log are whole: " << after.err;
  EXPECT_EQ(Sha(after.out), Sha(before.out));

  std::filesystem::remove(snapshot);
  ASSERT_EQ(RunToEnd(workspace_, {"log", "verify", run_}).code, 0);
  std::string segment;  // The largest has the records.
  for (const auto& entry : std::filesystem::directory_iterator(run_ + "/log")) {
    if (segment.empty() || entry.file_size() > std::filesystem::file_size(segment)) segment = entry.path().string();
  }
  FlipByte(segment, static_cast<int64_t>(std::filesystem::file_size(segment)) / 3);
  const Result log = RunToEnd(workspace_, {"log", "verify", run_});
  EXPECT_EQ(log.code, 7);
  EXPECT_THAT(log.err, AllOf(HasSubstr(segment), HasSubstr("byte")));
  const Result resumed =
      RunToEnd(workspace_, {"coordinator", "--resume", "--run-dir", run_, "--listen", "127.0.0.1:0"});
  EXPECT_EQ(resumed.code, 7) << "a damaged log stops the start";
  EXPECT_THAT(resumed.err, HasSubstr(segment));
}

TEST_F(CheckpointCommandTest, ARunGoesOnOnlyWithTheJobThatItBeganWith) {
  Train(OneRegion(2));
  TinyJob other = OneRegion(2);
  other.tokens = 40000;
  const std::string job = workspace_.Write("other.yaml", workspace_.Yaml(other));
  const Result resumed =
      RunToEnd(workspace_, {"coordinator", "--resume", "--run-dir", run_, "--job", job, "--listen", "127.0.0.1:0"});
  EXPECT_EQ(resumed.code, 2) << resumed.err;
  EXPECT_THAT(resumed.err,
              AllOf(HasSubstr(run_), HasSubstr("other.yaml:"), HasSubstr("stop.tokens: "), HasSubstr("got 40")));
  EXPECT_EQ(RunToEnd(workspace_, {"log", "verify", run_}).code, 0) << "nothing is damaged";
}

TEST_F(CheckpointCommandTest, ARunGoesOnOnlyWithTheDataThatItBeganWith) {
  Train(OneRegion(2));
  const std::string tokens = workspace_.Path("data/train.bin");
  FlipByte(tokens, static_cast<int64_t>(std::filesystem::file_size(tokens)) - 2);
  const std::vector<std::string> resume = {"coordinator", "--resume", "--run-dir", run_, "--listen", "127.0.0.1:0"};
  const Result resumed = RunToEnd(workspace_, resume);
  EXPECT_EQ(resumed.code, 2) << resumed.err;
  EXPECT_THAT(resumed.err, AllOf(HasSubstr("data/train.bin"), HasSubstr("not what the run began with")));
  std::filesystem::remove_all(workspace_.Path("data"));
  EXPECT_EQ(RunToEnd(workspace_, {"log", "verify", run_}).code, 0) << "the log needs no data";
  EXPECT_EQ(RunToEnd(workspace_, {"checkpoint", "export", run_, "-o", workspace_.Path("model")}).code, 0);
}

TEST_F(CheckpointCommandTest, ARunWhoseLogAndSnapshotsAreGoneIsNotBegunAnew) {
  Train(OneRegion(2));
  const Result beyond = RunToEnd(workspace_, {"log", "dump", run_, "--from", "100000"});
  EXPECT_EQ(beyond.code, 2) << beyond.err;
  EXPECT_THAT(beyond.err, AllOf(HasSubstr("ends with record"), HasSubstr("100000")));
  const std::vector<std::string> resume = {"coordinator", "--resume", "--run-dir", run_, "--listen", "127.0.0.1:0"};
  for (const char* name : {"/log", "/checkpoints"}) {
    std::filesystem::remove_all(run_ + name);
    const Result resumed = RunToEnd(workspace_, resume);
    EXPECT_EQ(resumed.code, 7) << resumed.err;
    EXPECT_THAT(resumed.err, HasSubstr(run_ + name));
    EXPECT_EQ(RunToEnd(workspace_, {"log", "verify", run_}).code, 7);
  }
  EXPECT_FALSE(std::filesystem::exists(run_ + "/log"));
}

TEST_F(CheckpointCommandTest, AGradientRunGoesOnOnlyWithTheVectorInstructionsThatItBeganWith) {
  std::ifstream file("/proc/cpuinfo");
  const std::string processor{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!absl::StrContains(processor, "avx2")) GTEST_SKIP() << "this machine has no other vector instructions";
  TinyJob job = OneRegion(2, 10000);
  job.preset = "ddp";
  Train(job);
  const auto run_elsewhere = [&](std::vector<std::string> arguments) -> Result {
    arguments.insert(arguments.begin(), {"ATEN_CPU_CAPABILITY=default", WUKONG_BINARY});
    Process process(workspace_.path(), std::move(arguments), {}, "/usr/bin/env");
    return {process.Wait().value_or(-1), process.out(), process.err()};
  };
  ASSERT_EQ(RunToEnd(workspace_, {"log", "verify", run_}).code, 0);
  const Result verified = run_elsewhere({"log", "verify", run_});
  EXPECT_EQ(verified.code, 2) << verified.err;
  const Result resumed = run_elsewhere({"coordinator", "--resume", "--run-dir", run_, "--listen", "127.0.0.1:0"});
  const Result exported = run_elsewhere({"checkpoint", "export", run_, "-o", workspace_.Path("model")});
  EXPECT_EQ(resumed.code, 2) << resumed.err;
  EXPECT_EQ(exported.code, 3) << exported.err;
  for (const Result& result : {verified, resumed, exported}) {
    EXPECT_THAT(result.err, AllOf(HasSubstr("it uses DEFAULT"), HasSubstr("ATEN_CPU_CAPABILITY=avx")));
  }
  EXPECT_EQ(RunToEnd(workspace_, {"log", "verify", run_}).code, 0) << "nothing was changed";
}

TEST_F(CheckpointCommandTest, AFileOfAnotherProgramIsNotDamaged) {
  const auto write = [&](const std::string& header, const std::string& values) {
    const uint64_t bytes = header.size();
    return workspace_.Write("foreign.safetensors",
                            std::string(reinterpret_cast<const char*>(&bytes), sizeof(bytes)) + header + values);
  };
  const Result digest =
      RunToEnd(workspace_, {"checkpoint", "verify", write(R"({"__metadata__":{"digest":"of some kind"}})", "")});
  EXPECT_EQ(digest.code, 0) << digest.err;
  const Result other = RunToEnd(
      workspace_, {"checkpoint", "verify", "--json",
                   write(R"({"ids":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}})", std::string(8, '\1'))});
  EXPECT_EQ(other.code, 2) << other.err;
  EXPECT_EQ(Json::parse(other.out)[0]["digest"], "unsupported");
  const Result version = RunToEnd(workspace_, {"checkpoint", "export", run_, "-o", "x", "--version", "-3"});
  EXPECT_EQ(version.code, 2) << version.err;
}

TEST_F(CheckpointCommandTest, ADirectoryWithoutPermissionIsNamed) {
  std::filesystem::create_directories(run_ + "/checkpoints");
  ASSERT_EQ(::chmod(workspace_.path().c_str(), 0700), 0);
  for (const char* verb : {"list", "verify"}) {
    const auto process = workspace_.Start({"checkpoint", verb, run_}, [] {
      if (::geteuid() != 0) ::_exit(99);  // Who owns the directory may look into it.
      if (::setgid(65534) != 0 || ::setuid(65534) != 0 || ::access(WUKONG_BINARY, X_OK) != 0) ::_exit(99);
    });
    const int code = process->Wait().value_or(-1);
    if (code == 99) GTEST_SKIP() << "nobody else can run this build";
    EXPECT_EQ(code, 3) << process->err();
    EXPECT_THAT(process->err(), HasSubstr(run_));
  }
}

// A file system of its own that the test fills up and empties again, from outside of its mount namespace.
TEST_F(CheckpointCommandTest, AFullDiskStopsTheAcknowledgingAndNothingElse) {
  std::filesystem::create_directories(run_);
  const std::string logs = workspace_.Path("logs"), link = run_ + "/logs";  // Where there is room.
  std::filesystem::create_directories(logs);
  const auto up = workspace_.Start(
      {"up", workspace_.WriteJob(OneRegion(2, 60000, 0.3)), "--run-dir", run_, "--set", "report.progress_every=200ms"},
      [path = run_.c_str(), logs = logs.c_str(), link = link.c_str()] {
        const bool mounted = ::unshare(CLONE_NEWNS) == 0 &&
                             ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
                             ::mount("tmpfs", path, "tmpfs", 0, "size=64m") == 0 && ::symlink(logs, link) == 0;
        if (!mounted) ::_exit(99);
      });
  const std::string seen = absl::StrCat("/proc/", up->pid(), "/root", run_);
  const RunRecord record(seen);
  ASSERT_TRUE(Await([&] { return up->ended() || record.Merged() >= 2; })) << up->err();
  if (up->Wait(absl::ZeroDuration()) == 99) GTEST_SKIP() << "no file system may be mounted here";
  ASSERT_FALSE(up->ended()) << up->err();
  const std::string filler = seen + "/filler";
  const auto fill = [&] {
    std::ofstream file(filler, std::ios::binary | std::ios::app);
    const std::string block(4096, 'x');
    while (file.write(block.data(), static_cast<std::streamsize>(block.size())) && file.flush()) {
    }
  };
  fill();
  EXPECT_TRUE(Await([&] { return up->ended() || absl::StrContains(up->err(), "NOT ACKNOWLEDGING"); })) << up->err();
  ASSERT_FALSE(up->ended()) << up->err();
  fill();  // What a write that did not come to its end has given back.
  for (const pid_t coordinator : ChildrenWith(*up, " coordinator ")) ASSERT_EQ(::kill(coordinator, SIGKILL), 0);
  const auto coordinator_said = [&](const char* text) {
    std::ifstream file(logs + "/coordinator.log");
    return absl::StrContains(std::string(std::istreambuf_iterator<char>(file), {}), text);
  };
  EXPECT_TRUE(Await([&] { return up->ended() || coordinator_said("the run goes on when there is room"); }))
      << up->err();
  EXPECT_TRUE(Await([&] { return up->ended() || absl::StrContains(up->err(), "and waits for room"); })) << up->err();
  ASSERT_FALSE(up->ended()) << up->err();
  ASSERT_TRUE(std::filesystem::remove(filler));
  // Its file system goes with the last of its processes: what it said must do.
  EXPECT_EQ(up->Wait(), 0) << up->err();
  EXPECT_THAT(up->out(), HasSubstr("more than once 0, lost 0")) << up->err();
}

}  // namespace
}  // namespace wukong::integration
