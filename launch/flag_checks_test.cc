#include "launch/flag_checks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace wukong {
namespace {

using testing::HasSubstr;

TEST(FlagChecksTest, AnAddressHasAHostAndAPort) {
  for (const char* good : {"10.0.0.1:7700", "localhost:1", "[::]:65535", "a-host.example:7700"}) {
    EXPECT_EQ(HostPort()(std::string(good)), "") << good;
  }
  for (const char* bad : {"7700", "0.0.0.0", "localhost", ":7700", "localhost:", "localhost:99999", "localhost:0",
                          "localhost:x", "localhost:-1", "::1:7700", ""}) {
    EXPECT_THAT(HostPort()(std::string(bad)), HasSubstr("expected HOST:PORT with a port of 1 to 65535, got")) << bad;
  }
  EXPECT_EQ(HostPort(/*may_be_any=*/true)(std::string("localhost:0")), "");
}

TEST(FlagChecksTest, ATimeHasAUnitOrIsOfSeconds) {
  const std::vector<std::pair<std::string, std::string>> good = {
      {"30", "30"}, {"30s", "30"}, {"500ms", "0.5"}, {"1.5m", "90"}, {"0.25", "0.25"}, {"1.08e+06", "1.08e+06"}};
  for (const auto& [text, seconds] : good) {
    std::string value = text;
    EXPECT_EQ(Seconds()(value), "") << text;
    EXPECT_EQ(value, seconds);
  }
  for (const char* bad : {"", "0", "-1s", "soon", "1 s", "inf"}) {
    EXPECT_THAT(Seconds()(std::string(bad)), HasSubstr("expected a time above 0, such as 30s, got")) << bad;
  }
}

TEST(FlagChecksTest, AMemberHasANameThatOthersCanWrite) {
  for (const char* good : {"worker-0", "node_1.example"}) EXPECT_EQ(MemberName()(std::string(good)), "") << good;
  for (const char* bad : {"a/b", "", "-a", "a b"}) EXPECT_NE(MemberName()(std::string(bad)), "") << bad;
}

TEST(FlagChecksTest, AWordThatIsNoCommandIsAnsweredWithTheNearest) {
  CLI::App app("", "wukong");
  app.add_subcommand("up", "");
  CLI::App* const log = app.add_subcommand("log", "");
  log->add_subcommand("dump", "");
  log->add_subcommand("verify", "");
  const auto unknown = [&](std::vector<const char*> words) {
    words.insert(words.begin(), "wukong");
    return UnknownCommand(app, static_cast<int>(words.size()), words.data());
  };
  EXPECT_EQ(unknown({"upp", "job.yaml"}), "no command is called upp; did you mean up? (expected up or log)");
  EXPECT_EQ(unknown({"log", "dmp", "run"}),
            "log: no command is called dmp; did you mean dump? (expected dump or verify)");
  for (const auto& good : std::vector<std::vector<const char*>>{
           {}, {"up"}, {"up", "log"}, {"--help"}, {"log", "--help"}, {"log", "dump", "x"}}) {
    EXPECT_EQ(unknown(good), "");
  }
}

}  // namespace
}  // namespace wukong
