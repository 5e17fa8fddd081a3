// For tests of commands: an example's path, and a command that runs in this process.
#ifndef WUKONG_LAUNCH_COMMAND_TESTING_H_
#define WUKONG_LAUNCH_COMMAND_TESTING_H_

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"

namespace wukong {

inline std::string ThreeRegions() { return absl::StrCat(WUKONG_SOURCE_DIR, "/launch/examples/three-regions.yaml"); }

struct CommandOutcome {
  int exit_code = -1;
  std::string out;
  std::string err;
};

// `arguments` begin with the command's name; `add` adds it to the program.
inline CommandOutcome RunCommand(const std::function<void(CLI::App& app, std::function<int()>* action)>& add,
                                 const std::vector<std::string>& arguments) {
  CLI::App app("wukong");
  std::function<int()> action;
  add(app, &action);
  std::vector<std::string> reversed(arguments.rbegin(), arguments.rend());  // CLI11 wants it so.
  app.parse(reversed);
  CommandOutcome outcome;
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  outcome.exit_code = action();
  outcome.out = testing::internal::GetCapturedStdout();
  outcome.err = testing::internal::GetCapturedStderr();
  return outcome;
}

}  // namespace wukong

#endif  // WUKONG_LAUNCH_COMMAND_TESTING_H_
