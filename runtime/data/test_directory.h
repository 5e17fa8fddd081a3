// A directory of its own for a test, gone at its end.
#ifndef WUKONG_RUNTIME_DATA_TEST_DIRECTORY_H_
#define WUKONG_RUNTIME_DATA_TEST_DIRECTORY_H_

#include <stdlib.h>

#include <filesystem>
#include <string>
#include <system_error>

#include "absl/strings/string_view.h"
#include "glog/logging.h"
#include "gtest/gtest.h"
#include "runtime/base/file.h"

namespace wukong {

class TestDirectory {
 public:
  TestDirectory() : path_(::testing::TempDir() + "/wukong_data_XXXXXX") {
    CHECK(::mkdtemp(path_.data()) != nullptr) << path_;
  }
  ~TestDirectory() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  TestDirectory(const TestDirectory&) = delete;
  TestDirectory& operator=(const TestDirectory&) = delete;

  const std::string& path() const { return path_; }

  // Returns the path of the file.
  std::string Write(const std::string& name, absl::string_view contents) const {
    const std::string path = path_ + "/" + name;
    const absl::Status status = WriteFileAtomic(path, contents);
    CHECK(status.ok()) << status;
    return path;
  }

 private:
  std::string path_;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_DATA_TEST_DIRECTORY_H_
