#include "launch/flag_checks.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "launch/job_units.h"

namespace wukong {
namespace {

constexpr size_t kMemberNameMax = 63;

}  // namespace

CLI::Validator HostPort(bool may_be_any) {
  return CLI::Validator(
      [may_be_any](std::string& text) -> std::string {
        const size_t colon = text.rfind(':');
        int port = -1;
        const bool has_host = colon != std::string::npos && colon > 0 &&
                              (text.find(':') == colon || (text.front() == '[' && text[colon - 1] == ']'));
        if (has_host && absl::SimpleAtoi(text.substr(colon + 1), &port) && port >= (may_be_any ? 0 : 1) &&
            port <= 65535) {
          return "";
        }
        return absl::StrCat("expected HOST:PORT with a port of ", may_be_any ? "0" : "1", " to 65535, got \"", text,
                            "\"");
      },
      "HOST:PORT");
}

CLI::Validator ReachableHostPort() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        if (std::string wrong = HostPort()(text); !wrong.empty()) return wrong;
        std::string host = text.substr(0, text.rfind(':'));
        if (host.front() == '[') host = host.substr(1, host.size() - 2);
        in6_addr address = {};  // Of either kind: the wildcard is all zeros.
        const bool is_ip =
            ::inet_pton(AF_INET, host.c_str(), &address) == 1 || ::inet_pton(AF_INET6, host.c_str(), &address) == 1;
        if (!is_ip || !IN6_IS_ADDR_UNSPECIFIED(&address)) return "";
        return absl::StrCat("expected a HOST:PORT that others can connect to, such as gpu7.example:7701, got \"", text,
                            "\", which is no address of one machine");
      },
      "HOST:PORT");
}

std::string WithUnit(const std::string& text) {
  double seconds = 0;
  return absl::SimpleAtod(text, &seconds) && std::isfinite(seconds) ? absl::StrCat(text, "s") : text;
}

CLI::Validator Seconds() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        absl::Duration time;
        double seconds = 0;
        const bool is_number = absl::SimpleAtod(text, &seconds);
        if (is_number) time = absl::Seconds(seconds);
        // Job files say "min" where the library says "m".
        const std::string in_library = absl::EndsWith(text, "min") ? text.substr(0, text.size() - 2) : text;
        const bool is_one = is_number || absl::ParseDuration(in_library, &time);
        if (!is_one || time <= absl::ZeroDuration() || time == absl::InfiniteDuration()) {
          return absl::StrCat("expected a time above 0, such as 30s, got \"", text, "\"");
        }
        text = absl::StrCat(absl::ToDoubleSeconds(time));
        return "";
      },
      "DURATION");
}

CLI::Validator WholeNumber(int64_t min, int64_t max) {
  return CLI::Validator(
      [min, max](std::string& text) -> std::string {
        int64_t number = 0;
        const bool is_one = absl::SimpleAtoi(text, &number);
        if (is_one && number >= min && number <= max) return "";
        const bool is_large = is_one ? number > max : number == std::numeric_limits<int64_t>::max();
        return absl::StrCat("expected a whole number of at ",
                            is_large ? absl::StrCat("most ", max) : absl::StrCat("least ", min), ", got ", text);
      },
      "NUMBER");
}

CLI::Validator MemberName() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        const bool fits = !text.empty() && text.size() <= kMemberNameMax && text[0] != '-' &&
                          std::all_of(text.begin(), text.end(), [](char c) {
                            return absl::ascii_isalnum(c) || c == '-' || c == '_' || c == '.';
                          });
        if (fits) return "";
        return absl::StrCat("expected at most ", kMemberNameMax, " letters, digits, '-', '_' and '.', got \"", text,
                            "\"");
      },
      "NAME");
}

std::string UnknownCommand(const CLI::App& app, int argc, const char* const* argv) {
  const CLI::App* at = &app;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    std::vector<std::string> names;
    const CLI::App* next = nullptr;
    for (const CLI::App* command : at->get_subcommands([](const CLI::App*) { return true; })) {
      names.push_back(command->get_name());
      if (command->get_name() == word) next = command;
    }
    if (names.empty() || word.empty() || word[0] == '-') return "";
    if (next == nullptr) {
      const std::string nearest = Nearest(word, names);
      return absl::StrCat(at->get_parent() == nullptr ? "" : absl::StrCat(at->get_name(), ": "),
                          "no command is called ", word,
                          nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest, "?"), " (expected ",
                          Alternatives(names), ")");
    }
    at = next;
  }
  return "";
}

}  // namespace wukong
