// What the values of command-line options must look like. A wrong one is answered before anything starts.
#ifndef WUKONG_LAUNCH_FLAG_CHECKS_H_
#define WUKONG_LAUNCH_FLAG_CHECKS_H_

#include <cstdint>
#include <limits>
#include <string>

#include "CLI/CLI.hpp"

namespace wukong {

// HOST:PORT, as in 10.0.0.1:7700 or [::]:7700; port 0 (a free one) only where `may_be_any`.
CLI::Validator HostPort(bool may_be_any = false);

// HOST:PORT that others can connect to: not 0.0.0.0 or [::], which each machine takes for itself.
CLI::Validator ReachableHostPort();

// A number alone is of seconds: "30" becomes "30s", and all else stays. For the parser of the job file.
std::string WithUnit(const std::string& text);

// A duration with its unit, as in job files ("30s"); a number alone is of seconds. Becomes a number of seconds.
CLI::Validator Seconds();

// A whole number from `min` to `max`, both included; by default at most what an int holds.
CLI::Validator WholeNumber(int64_t min, int64_t max = std::numeric_limits<int>::max());

// A name that logs and REGION/NAME can hold.
CLI::Validator MemberName();

// Empty, or what is wrong with the first words of a command line: a command that `app` does not have, with the one that
// was probably meant.
std::string UnknownCommand(const CLI::App& app, int argc, const char* const* argv);

}  // namespace wukong

#endif  // WUKONG_LAUNCH_FLAG_CHECKS_H_
