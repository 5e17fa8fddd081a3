#include "launch/run_directory.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"

namespace wukong {
namespace {

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

}  // namespace
}  // namespace wukong
