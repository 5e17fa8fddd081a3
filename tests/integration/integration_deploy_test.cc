// The units of deploy/systemd: what they start, started as a service manager would.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "runtime/base/file.h"
#include "tests/integration/wukong_process.h"

namespace wukong::integration {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

using Words = std::map<std::string, std::string>;  // "%i" and "${NAME}": what stands for them.

class SystemdTest : public ::testing::Test {
 protected:
  // The values of `key` in a unit.
  static std::vector<std::string> Values(const std::string& unit, const std::string& key) {
    const auto text = ReadFile(absl::StrCat(WUKONG_SOURCE_DIR, "/deploy/systemd/", unit));
    EXPECT_TRUE(text.ok()) << text.status();
    std::vector<std::string> values;
    for (const absl::string_view line : absl::StrSplit(text.value_or(""), '\n')) {
      if (absl::StartsWith(line, key + "=")) values.emplace_back(line.substr(key.size() + 1));
    }
    return values;
  }

  // What the unit's ExecStart gives the program, which is in /opt/wukong.
  std::unique_ptr<Process> Start(const std::string& unit, const Words& words) const {
    const std::vector<std::string> commands = Values(unit, "ExecStart");
    EXPECT_EQ(commands.size(), 1u) << unit;
    std::vector<std::string> arguments = absl::StrSplit(commands[0], ' ');
    EXPECT_EQ(arguments[0], "/opt/wukong/wukong");
    arguments.erase(arguments.begin());
    EXPECT_EQ(arguments.back(), "$WUKONG_OPTIONS") << unit;
    arguments.pop_back();  // As where it is not set.
    for (std::string& argument : arguments) {
      argument = absl::StrReplaceAll(argument, words);
      EXPECT_THAT(argument, AllOf(Not(HasSubstr("%")), Not(HasSubstr("$")))) << unit;
    }
    return workspace_.Start(arguments);
  }

  const Workspace workspace_;
};

TEST_F(SystemdTest, WhatCannotGoOnIsNotStartedAgain) {
  const std::map<std::string, std::string> last_codes = {{"wukong-coordinator.service", "2 3 6 7"},
                                                         {"wukong-aggregator@.service", "2 3 7"},
                                                         {"wukong-worker@.service", "2 3 7"}};
  for (const auto& [unit, codes] : last_codes) {
    EXPECT_EQ(Values(unit, "Restart"), std::vector<std::string>{"on-failure"}) << unit;
    EXPECT_EQ(Values(unit, "RestartPreventExitStatus"), std::vector<std::string>{codes}) << unit;
  }
}

TEST_F(SystemdTest, ARunOfServicesOutlivesItsCoordinatorAndIsOverOnce) {
  const TinyJob job = OneRegion(2, 150000);
  const RunRecord record(workspace_.Path("run"));
  Words words = {{"${WUKONG_JOB}", workspace_.WriteJob(job)},
                 {"${WUKONG_RUN_DIR}", record.directory()},
                 {"${WUKONG_LISTEN}", "127.0.0.1:0"},
                 {"${WUKONG_DATA}", workspace_.Path("data")},
                 {"${WUKONG_REGION}", "beijing"},
                 {"%H", "host"}};
  auto coordinator = Start("wukong-coordinator.service", words);
  words["${WUKONG_COORDINATOR}"] = record.CoordinatorAddress();
  const auto with = [&](const std::string& key, const std::string& value) {
    Words more = words;
    more[key] = value;
    return more;
  };
  const auto aggregator = Start("wukong-aggregator@.service", with("%i", "beijing"));
  const auto first = Start("wukong-worker@.service", with("%i", "0"));
  const auto second = Start("wukong-worker@.service", with("%i", "1"));
  ASSERT_TRUE(Await([&] { return record.Merged() >= 3 || coordinator->ended(); })) << coordinator->err();
  coordinator->Signal(SIGKILL);
  EXPECT_EQ(coordinator->Wait(), 128 + SIGKILL) << "the budget is too small to be interrupted";
  words["${WUKONG_LISTEN}"] = words["${WUKONG_COORDINATOR}"];
  coordinator = Start("wukong-coordinator.service", words);
  EXPECT_EQ(coordinator->Wait(), 0) << coordinator->err();
  for (Process* member : {aggregator.get(), first.get(), second.get()}) EXPECT_EQ(member->Wait(), 0) << member->err();
  ExpectBudgetCommittedOnce(record.Report(), Budget(job));
  EXPECT_EQ(record.Events("joined").size(), 3u) << "nobody had to come again";
  EXPECT_TRUE(record.PidOf("beijing", "host-0") == first->pid() && record.PidOf("beijing", "host-1") == second->pid());
  const auto over = Start("wukong-coordinator.service", words);
  EXPECT_EQ(over->Wait(), 0) << "it stays ended: " << over->err();
}

}  // namespace
}  // namespace wukong::integration
