// A run whose connections are encrypted, and who is kept out of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/integration/wukong_process.h"

namespace wukong::integration {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class TlsTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* job : {"ours", "theirs"}) {
      Process script(workspace_.path(),
                     {absl::StrCat(WUKONG_SOURCE_DIR, "/deploy/make_certificates"), workspace_.Path(job), "a", "b"}, {},
                     "/usr/bin/env");
      ASSERT_EQ(script.Wait(), 0) << script.err();
    }
  }
  std::string Of(const char* machine) const { return workspace_.Path(machine); }

  const Workspace workspace_;
};

TEST_F(TlsTest, WhoHasNoCertificateOfTheJobIsKeptOut) {
  TinyJob job;
  job.regions = {{"beijing", 2}, {"shenzhen", 1}};
  job.tokens = 300000;
  job.speed = 0.3;
  const auto up =
      workspace_.Start({"up", workspace_.WriteJob(job), "--run-dir", workspace_.Path("run"), "--tls", Of("ours/a")});
  const RunRecord record(workspace_.Path("run"));
  ASSERT_TRUE(Await([&] { return record.Merged() >= 1 || up->ended(); })) << up->err();
  const std::string address = record.CoordinatorAddress();
  const auto status = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"status", address});
    return workspace_.Start(more);
  };
  const auto worker = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"worker", "--join", address, "--region", "beijing", "--connect-timeout", "1"});
    return workspace_.Start(more);
  };
  const auto inject = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"chaos", "inject", "kill", "root", "--coordinator", address});
    return workspace_.Start(more);
  };
  {  // A stranger who believes us: it is the server that does not let it in.
    std::ofstream file(Of("theirs/b/ca.crt"), std::ios::app);
    file << std::ifstream(Of("ours/a/ca.crt")).rdbuf();
  }
  const auto member = status({"--tls", Of("ours/b")});
  EXPECT_EQ(member->Wait(), 0) << member->err();
  EXPECT_THAT(member->out(), HasSubstr("shenzhen"));
  for (const auto& start : {std::function(status), std::function(worker), std::function(inject)}) {
    const auto open = start({});
    EXPECT_EQ(open->Wait(), 4) << open->err();
    EXPECT_THAT(open->err(), AllOf(HasSubstr(address), HasSubstr("--tls"))) << "which is what is missing";
    const auto stranger = start({"--tls", Of("theirs/b")});
    EXPECT_EQ(stranger->Wait(), 4) << stranger->err();
    EXPECT_THAT(stranger->err(), AllOf(HasSubstr(address), HasSubstr("TLS")));
  }
  const auto after = status({"--tls", Of("ours/b")});
  EXPECT_EQ(after->Wait(), 0) << "somebody was there all the time: " << after->err();
  EXPECT_EQ(up->Wait(), 0) << up->err();
  ExpectBudgetCommittedOnce(record.Report(), Budget(job));
}

TEST_F(TlsTest, WhatCannotBeUsedIsNamedBeforeAnythingStarts) {
  const std::string job = workspace_.WriteJob(OneRegion(1));
  const auto none = workspace_.Start({"up", job, "--run-dir", workspace_.Path("run"), "--tls", Of("nowhere")});
  EXPECT_EQ(none->Wait(), 2) << none->err();
  EXPECT_THAT(none->err(), AllOf(HasSubstr("nowhere/ca.crt"), HasSubstr("deploy/make_certificates")));
  const auto unset = workspace_.Start({"up", job, "--run-dir", workspace_.Path("run"), "--tls", ""});
  EXPECT_EQ(unset->Wait(), 2) << "it must not go without: " << unset->err();
  EXPECT_THAT(unset->err(), HasSubstr("--tls: expected a directory"));
  std::filesystem::copy_file(Of("theirs/a/node.key"), Of("ours/a/node.key"),
                             std::filesystem::copy_options::overwrite_existing);
  for (const std::vector<std::string>& verb :
       {std::vector<std::string>{"up", job, "--run-dir", workspace_.Path("run")},
        std::vector<std::string>{"coordinator", "--job", job, "--run-dir", workspace_.Path("run"), "--listen",
                                 "127.0.0.1:0"},
        std::vector<std::string>{"aggregator", "--coordinator", "127.0.0.1:1", "--region", "beijing"},
        std::vector<std::string>{"chaos", "inject", "kill", "root", "--coordinator", "127.0.0.1:1"}}) {
    // By the variable, as services have it.
    std::vector<std::string> command = {absl::StrCat("WUKONG_TLS=", Of("ours/a")), WUKONG_BINARY};
    command.insert(command.end(), verb.begin(), verb.end());
    Process process(workspace_.path(), command, {}, "/usr/bin/env");
    EXPECT_EQ(process.Wait(), 2) << process.err();
    EXPECT_THAT(process.err(), HasSubstr("ours/a/node.key: for TLS, it is not the key of the node.crt beside it"));
  }
  EXPECT_FALSE(std::filesystem::exists(workspace_.Path("run")));
}

}  // namespace
}  // namespace wukong::integration
