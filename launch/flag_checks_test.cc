#include "launch/flag_checks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "launch/chaos_command.h"
#include "launch/checkpoint_command.h"
#include "launch/log_command.h"
#include "launch/role_commands.h"
#include "launch/up_command.h"

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

TEST(FlagChecksTest, AnAddressForOthersIsNoWildcard) {
  for (const char* good : {"10.0.0.1:7700", "localhost:1", "[fe80::1]:7700", "[::1]:7700", "0.example:7700"}) {
    EXPECT_EQ(ReachableHostPort()(std::string(good)), "") << good;
  }
  for (const char* bad : {"0.0.0.0:7703", "[::]:7703", "[0:0:0:0:0:0:0:0]:7703"}) {
    EXPECT_THAT(ReachableHostPort()(std::string(bad)), HasSubstr("expected a HOST:PORT that others can connect to"))
        << bad;
  }
  EXPECT_THAT(ReachableHostPort()(std::string("0.0.0.0")), HasSubstr("expected HOST:PORT with a port"));
}

TEST(FlagChecksTest, ATimeHasAUnitOrIsOfSeconds) {
  const std::vector<std::pair<std::string, std::string>> good = {
      {"30", "30"},     {"30s", "30"},    {"500ms", "0.5"},        {"1.5m", "90"},
      {"1.5min", "90"}, {"0.25", "0.25"}, {"1.08e+06", "1.08e+06"}};
  for (const auto& [text, seconds] : good) {
    std::string value = text;
    EXPECT_EQ(Seconds()(value), "") << text;
    EXPECT_EQ(value, seconds);
  }
  for (const char* bad : {"", "0", "-1s", "soon", "1 s", "inf"}) {
    EXPECT_THAT(Seconds()(std::string(bad)), HasSubstr("expected a time above 0, such as 30s, got")) << bad;
  }
}

TEST(FlagChecksTest, ANumberAloneIsOfSecondsForTheJobFilesParserAsWell) {
  EXPECT_EQ(WithUnit("5"), "5s");
  EXPECT_EQ(WithUnit("0.25"), "0.25s");
  for (const char* other : {"5s", "5min", "soon", "", "inf"}) EXPECT_EQ(WithUnit(other), other);
}

TEST(FlagChecksTest, AWholeNumberHasBoundsThatAreNamed) {
  for (const char* good : {"0", "7", "2147483647"}) EXPECT_EQ(WholeNumber(0)(std::string(good)), "") << good;
  EXPECT_EQ(WholeNumber(0, std::numeric_limits<int64_t>::max())(std::string("9223372036854775807")), "");
  for (const char* bad : {"-1", "1.5", "many", "", "1e3"}) {
    EXPECT_EQ(WholeNumber(0)(std::string(bad)), absl::StrCat("expected a whole number of at least 0, got ", bad));
  }
  EXPECT_EQ(WholeNumber(1)(std::string("0")), "expected a whole number of at least 1, got 0");
  for (const char* bad : {"2147483648", "99999999999999999999"}) {
    EXPECT_EQ(WholeNumber(0)(std::string(bad)),
              absl::StrCat("expected a whole number of at most 2147483647, got ", bad));
  }
}

// CLI11's own checks answer with the largest double, of 309 digits.
TEST(FlagChecksTest, CommandsSayWhichNumbersTheyExpect) {
  const auto answer = [](const std::function<void(CLI::App&, std::function<int()>*)>& add,
                         std::vector<std::string> words) -> std::string {
    CLI::App app("", "wukong");
    std::function<int()> action;
    add(app, &action);
    std::reverse(words.begin(), words.end());  // CLI11 wants it so.
    try {
      app.parse(words);
    } catch (const CLI::ParseError& error) {
      return error.what();
    }
    return "";
  };
  const std::string least0 = ": expected a whole number of at least 0, got -1";
  const std::string least1 = ": expected a whole number of at least 1, got 0";
  EXPECT_EQ(answer(AddUpCommand, {"up", "job.yaml", "--restarts", "-1"}), "--restarts" + least0);
  EXPECT_EQ(answer(AddLogCommand, {"log", "dump", "run", "--from", "-1"}), "--from" + least0);
  EXPECT_EQ(answer(AddCheckpointCommand, {"checkpoint", "export", "run", "-o", "x", "--version", "0"}),
            "--version" + least1);
  EXPECT_EQ(answer(AddRoleCommands, {"worker", "--join", "a:1", "--region", "b", "--rank", "-1"}), "--rank" + least0);
  EXPECT_EQ(answer(AddRoleCommands, {"coordinator", "--run-dir", "run", "--threads", "0"}), "--threads" + least1);
  EXPECT_EQ(answer(AddChaosCommand, {"chaos", "inject", "kill", "root", "--version", "0"}), "--version" + least1);
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
