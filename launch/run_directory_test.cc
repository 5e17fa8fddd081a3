#include "launch/run_directory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "launch/chaos_command.h"
#include "launch/checkpoint_command.h"
#include "launch/command_testing.h"
#include "launch/log_command.h"
#include "runtime/storage/checkpoint.h"

namespace wukong {
namespace {

using testing::HasSubstr;

TEST(RunDirectoryTest, RunsOfOneSecondHaveDirectoriesOfTheirOwn) {
  const std::filesystem::path folder = absl::StrCat(testing::TempDir(), "/run_directory_test.", getpid());
  std::filesystem::create_directories(folder);
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(folder);
  std::set<std::string> paths;
  for (int i = 0; i < 20; ++i) {
    const absl::StatusOr<std::string> path = MakeRunDirectory("tiny");
    ASSERT_TRUE(path.ok()) << path.status();
    EXPECT_EQ(path->rfind("runs/tiny-", 0), 0u) << *path;
    EXPECT_TRUE(std::filesystem::is_empty(*path));
    paths.insert(*path);
  }
  EXPECT_EQ(paths.size(), 20u);
  std::filesystem::current_path(before);
  std::filesystem::remove_all(folder);
}

class WrongDirectoryTest : public testing::Test {
 protected:
  WrongDirectoryTest() { std::filesystem::create_directories(folder_); }
  ~WrongDirectoryTest() override { std::filesystem::remove_all(folder_); }

  const std::string folder_ = absl::StrCat(testing::TempDir(), "/wrong_directory_test.", getpid());
};

TEST_F(WrongDirectoryTest, IsAnsweredAlikeByAllWhoReadOne) {
  const std::vector<std::pair<void (*)(CLI::App&, std::function<int()>*), std::vector<std::string>>> commands = {
      {AddLogCommand, {"log", "verify"}},
      {AddLogCommand, {"log", "dump"}},
      {AddCheckpointCommand, {"checkpoint", "list"}},
      {AddCheckpointCommand, {"checkpoint", "verify"}},
      {AddCheckpointCommand, {"checkpoint", "export", "--output", folder_ + "/model"}},
      {AddCheckpointCommand, {"checkpoint", "export", "--version", "3", "--output", folder_ + "/model"}},
      {AddChaosCommand, {"chaos", "inject", "kill", "root", "--run-dir"}},
  };
  const std::string absent = folder_ + "/nope";
  for (const auto& [add, words] : commands) {
    for (const std::string& directory : {absent, folder_}) {
      std::vector<std::string> arguments = words;
      arguments.push_back(directory);
      const CommandOutcome outcome = RunCommand(add, arguments);
      EXPECT_EQ(outcome.exit_code, 2);
      EXPECT_EQ(outcome.err,
                absl::StrCat("wukong: error: ",
                             directory == absent ? absl::StrCat("there is no run directory ", absent)
                                                 : folder_ + " is no run directory: it has no config.resolved.yaml",
                             "\n"))
          << words[0] << " " << words[1];
    }
  }
}

TEST_F(WrongDirectoryTest, AVersionThatIsNotThereIsAnsweredWithThoseThatAre) {
  std::filesystem::create_directories(folder_ + "/checkpoints");
  for (const int version : {2, 10}) std::ofstream(CheckpointPath(folder_ + "/checkpoints", version)) << "x";
  const CommandOutcome outcome = RunCommand(
      AddCheckpointCommand, {"checkpoint", "export", "--version", "3", "--output", folder_ + "/model", folder_});
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.err, HasSubstr(absl::StrCat("there is no checkpoint of version 3 in ", folder_,
                                                  "/checkpoints (expected 2 or 10)")));
}

TEST_F(WrongDirectoryTest, AFaultNeedsOneRunThatIsNotOver) {
  const auto inject = [](std::vector<std::string> flags) {
    std::vector<std::string> arguments = {"chaos", "inject", "kill", "root"};
    arguments.insert(arguments.end(), flags.begin(), flags.end());
    return RunCommand(AddChaosCommand, arguments);
  };
  const std::string expected = " (expected either --run-dir DIR or --coordinator HOST:PORT)\n";
  EXPECT_EQ(inject({}).err, "wukong: error: chaos inject: say which run is meant" + expected);
  EXPECT_EQ(inject({"--run-dir", folder_, "--coordinator", "localhost:1"}).err,
            "wukong: error: chaos inject: the run is named twice" + expected);
  std::ofstream(folder_ + "/config.resolved.yaml") << "x";
  EXPECT_THAT(inject({"--run-dir", folder_}).err, HasSubstr("no coordinator has listened there yet"));
  std::ofstream(folder_ + "/coordinator.address") << "localhost:1";
  std::ofstream(folder_ + "/report.json") << "{}";
  const CommandOutcome over = inject({"--run-dir", folder_});
  EXPECT_EQ(over.exit_code, 4);
  EXPECT_THAT(over.err, HasSubstr(absl::StrCat("is over: wukong status ", folder_, " shows how it ended")));
}

}  // namespace
}  // namespace wukong
