#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "runtime/base/digest.h"
#include "runtime/base/file.h"
#include "runtime/base/random.h"
#include "runtime/base/shell_word.h"

namespace wukong {
namespace {

TEST(DigestTest, Sha256IsTheStandardsOne) {
  EXPECT_EQ(Sha256Hex(absl::string_view("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(DigestTest, FileAndMemoryAgree) {
  const std::string path = testing::TempDir() + "/digest";
  ASSERT_TRUE(WriteFileAtomic(path, "hello").ok());
  EXPECT_EQ(Sha256File(path).value(), Sha256Hex(absl::string_view("hello")));
}

TEST(FileTest, AMissingFileNamesItself) {
  const auto result = ReadFile("/nonexistent/file");
  EXPECT_EQ(result.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(result.status().message()), testing::HasSubstr("/nonexistent/file"));
}

TEST(FileTest, AFullDiskIsSaidAndLeavesTheOldContents) {
  const auto status = WriteFileAtomic("/dev/full/x", "x");
  EXPECT_FALSE(status.ok());
  auto writer = JsonLinesWriter::Open("/dev/full");
  ASSERT_TRUE(writer.ok());
  const auto write = (*writer)->Write({{"a", 1}});
  EXPECT_EQ(write.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ((*writer)->Write({{"a", 2}}), write) << "every lost line is said";
}

TEST(RandomTest, AStreamIsTheSameEverywhere) {
  Random random(42);
  EXPECT_EQ(random(), 13679457532755275413ULL);
  EXPECT_EQ(random(), 2949826092126892291ULL);
}

TEST(RandomTest, MomentsAreRight) {
  Random random(7);
  double sum = 0, squares = 0, uniform = 0, exponential = 0;
  const int n = 100000;
  for (int i = 0; i < n; ++i) {
    const double x = random.Normal();
    sum += x;
    squares += x * x;
    uniform += random.Uniform();
    exponential += random.Exponential(3.0);
  }
  EXPECT_NEAR(sum / n, 0, 0.02);
  EXPECT_NEAR(squares / n, 1, 0.03);
  EXPECT_NEAR(uniform / n, 0.5, 0.01);
  EXPECT_NEAR(exponential / n, 3.0, 0.06);
}

TEST(ShellWordTest, AShellReadsItAsOneWord) {
  EXPECT_EQ(ShellWord("runs/job-20260101T000000Z"), "runs/job-20260101T000000Z");
  EXPECT_EQ(ShellWord("my runs/a"), "'my runs/a'");
  EXPECT_EQ(ShellWord("it's $HOME"), "'it'\\''s $HOME'");
  EXPECT_EQ(ShellWord(""), "''");
}

TEST(PermutationTest, EveryIndexComesOnce) {
  for (const uint64_t size : {1ULL, 2ULL, 3ULL, 5ULL, 64ULL, 1000ULL, 4097ULL}) {
    const Permutation permutation(size * 31, size);
    std::vector<uint64_t> image(size);
    for (uint64_t i = 0; i < size; ++i) image[i] = permutation(i);
    std::vector<uint64_t> sorted = image;
    std::sort(sorted.begin(), sorted.end());
    std::vector<uint64_t> expected(size);
    std::iota(expected.begin(), expected.end(), 0);
    EXPECT_EQ(sorted, expected);
    if (size > 100) {
      EXPECT_NE(image, expected);
    }
  }
}

}  // namespace
}  // namespace wukong
