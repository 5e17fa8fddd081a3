#include "runtime/storage/file_system.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <memory>
#include <string>
#include <thread>

#include "runtime/base/stop_signal.h"
#include "runtime/data/test_directory.h"

namespace wukong {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string Message(const absl::Status& status) { return std::string(status.message()); }

TEST(FileSystemTest, ErrorsNameTheFileAndWhatWasBeingDone) {
  FileSystem* files = FileSystem::Real();
  const TestDirectory scratch;
  const std::string path = scratch.path() + "/file", missing = scratch.path() + "/missing";
  auto file = files->Create(path);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE((*file)->Append("abcdef").ok());
  EXPECT_EQ(files->Create(path).status().code(), absl::StatusCode::kAlreadyExists);
  for (const absl::Status& status :
       {files->Open(missing).status(), files->Read(missing).status(), files->Size(missing).status(),
        files->Rename(missing, path), files->Remove(missing), files->List(missing).status(),
        files->SyncDirectory(missing), files->Create(missing + "/file").status(),
        files->Lock(missing + "/lock", "us").status()}) {
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
    EXPECT_THAT(Message(status), AllOf(HasSubstr("cannot "), HasSubstr(missing)));
  }
  auto full = files->Open("/dev/full");
  ASSERT_TRUE(full.ok()) << full.status();
  const absl::Status status = (*full)->Append("x");
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), HasSubstr("/dev/full"));
}

TEST(FileSystemTest, WhatIsAppendedIsAtTheEndAlsoAfterACut) {
  FileSystem* files = FileSystem::Real();
  const TestDirectory scratch;
  const std::string directory = scratch.path() + "/a/b/c", path = directory + "/file";
  ASSERT_TRUE(files->MakeDirectories(directory).ok());
  ASSERT_TRUE(files->MakeDirectories(directory).ok());
  auto file = files->Create(path);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE((*file)->Append("abcdef").ok());
  ASSERT_TRUE((*file)->Truncate(2).ok());
  ASSERT_TRUE((*file)->Append("xy").ok());
  ASSERT_TRUE((*file)->Sync().ok());
  file = files->Open(path);
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE((*file)->Append("z").ok());
  EXPECT_EQ(files->Read(path).value(), "abxyz");
  EXPECT_EQ(files->Size(path).value(), 5);
  ASSERT_TRUE(files->Rename(path, directory + "/a").ok());
  ASSERT_TRUE(files->Create(path).ok());
  EXPECT_THAT(files->List(directory).value(), ElementsAre("a", "file"));
  ASSERT_TRUE(files->SyncDirectory(directory).ok());
  ASSERT_TRUE(files->Remove(path).ok());
  EXPECT_THAT(files->List(directory).value(), ElementsAre("a"));
}

TEST(FileSystemTest, ALockIsHeldByOneAndSaysByWhom) {
  FileSystem* files = FileSystem::Real();
  const TestDirectory scratch;
  const std::string path = scratch.path() + "/lock";
  auto first = files->Lock(path, "coordinator 17 on here");
  ASSERT_TRUE(first.ok()) << first.status();
  const auto second = files->Lock(path, "coordinator 18 on here");
  EXPECT_EQ(second.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(Message(second.status()), AllOf(HasSubstr(path), HasSubstr("coordinator 17 on here")));
  first->reset();
  EXPECT_TRUE(files->Lock(path, "x").ok());
  EXPECT_EQ(files->Read(path).value(), "x");
}

// Who waits, in a thread; `holder` keeps the lock until it is reset.
class LockWaiter {
 public:
  LockWaiter(const std::string& path, const StopSignal& stop)
      : thread_([this, path, &stop] {
          lock_ = FileSystem::Real()->WaitForLock(path, "standby 18 on here", stop);
          done_ = true;
        }) {}
  ~LockWaiter() { thread_.join(); }
  bool done() const { return done_; }
  // Once it has ended.
  const absl::StatusOr<std::unique_ptr<FileLock>>& Result() {
    while (!done_) std::this_thread::yield();
    return lock_;
  }

 private:
  absl::StatusOr<std::unique_ptr<FileLock>> lock_;
  std::atomic<bool> done_{false};
  std::thread thread_;
};

TEST(FileSystemTest, WhoWaitsForALockGetsItFromTheHolder) {
  FileSystem* files = FileSystem::Real();
  const TestDirectory scratch;
  const std::string path = scratch.path() + "/lock";
  auto holder = files->Lock(path, "coordinator 17 on here");
  ASSERT_TRUE(holder.ok()) << holder.status();
  const StopSignal stop;
  LockWaiter waiter(path, stop);
  EXPECT_FALSE(waiter.done());
  EXPECT_EQ(files->Read(path).value(), "coordinator 17 on here");
  holder->reset();
  EXPECT_TRUE(waiter.Result().ok()) << waiter.Result().status();
  EXPECT_EQ(files->Read(path).value(), "standby 18 on here");
  EXPECT_EQ(files->Lock(path, "x").status().code(), absl::StatusCode::kFailedPrecondition) << "it is held";
}

TEST(FileSystemTest, ASignalEndsTheWaitForALock) {
  FileSystem* files = FileSystem::Real();
  const TestDirectory scratch;
  const std::string path = scratch.path() + "/lock";
  const auto holder = files->Lock(path, "coordinator 17 on here");
  ASSERT_TRUE(holder.ok()) << holder.status();
  const StopSignal stop;
  LockWaiter waiter(path, stop);
  ::kill(::getpid(), SIGTERM);
  EXPECT_EQ(waiter.Result().status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(files->Read(path).value(), "coordinator 17 on here");
}

}  // namespace
}  // namespace wukong
