// What a run reads besides its job stays what it was.
#include "coordinator/validation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "runtime/data/test_directory.h"

namespace wukong {
namespace {

using ::testing::HasSubstr;

TEST(CheckInputsTest, NamesTheFileThatIsNotWhatTheRunBeganWith) {
  const TestDirectory directory;
  const std::string tokens(2000, '\1');
  Job job;
  job.mutable_data()->set_train(directory.Write("train.bin", tokens));
  job.mutable_data()->set_validation(directory.Write("validation.bin", tokens));
  job.mutable_model()->set_torchscript(directory.Write("model.pt", "a model"));
  LogIdentity identity;
  ASSERT_TRUE(FingerprintInputs(job, &identity).ok());
  EXPECT_TRUE(CheckInputs(job, identity).ok()) << CheckInputs(job, identity);
  for (const std::string& path : {job.data().train(), job.data().validation(), job.model().torchscript()}) {
    const std::string name = path.substr(path.rfind('/') + 1);
    directory.Write(name, std::string(2000, '\2'));
    const absl::Status status = CheckInputs(job, identity);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_THAT(std::string(status.message()), HasSubstr(path));
    EXPECT_TRUE(CheckInputs(job, LogIdentity()).ok()) << "a run that was begun before these were kept";
    directory.Write(name, name == "model.pt" ? "a model" : tokens);
  }
  EXPECT_TRUE(CheckInputs(job, identity).ok()) << CheckInputs(job, identity);
}

}  // namespace
}  // namespace wukong
