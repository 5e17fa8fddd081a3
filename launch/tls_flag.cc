#include "launch/tls_flag.h"

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "launch/exit_code.h"
#include "runtime/base/shell_word.h"
#include "runtime/transport/tls.h"

namespace wukong {
namespace {

constexpr char kVariable[] = "WUKONG_TLS";

std::string& GivenDirectory() {
  static auto* const directory = new std::string;
  return *directory;
}

// Who asks for TLS and names no directory, as a script does whose variable is not set, must not go without it.
absl::Status UseTlsOf(bool given, std::string directory) {
  GivenDirectory() = directory;
  const char* const variable = std::getenv(kVariable);
  if (!given && variable == nullptr) return absl::OkStatus();
  if (!given) directory = variable;
  if (directory.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        given ? "--tls" : kVariable,
        ": expected a directory with certificates, got nothing; leave it out altogether to go without TLS"));
  }
  absl::StatusOr<TlsIdentity> identity = LoadTlsIdentity(directory);
  if (!identity.ok()) return identity.status();
  UseTls(*std::move(identity));
  std::error_code error;
  const std::string absolute = std::filesystem::absolute(directory, error);
  if (error || ::setenv(kVariable, absolute.c_str(), 1) != 0) {
    return absl::FailedPreconditionError(absl::StrCat("TLS: ", kVariable, " cannot be set"));
  }
  return absl::OkStatus();
}

}  // namespace

void SetConnectingAction(CLI::App* verb, std::function<int()>* action, std::function<int()> run) {
  auto directory = std::make_shared<std::string>();
  const CLI::Option* const option = verb->add_option(
      "--tls", *directory,
      "Encrypt all connections, with the ca.crt, node.crt and node.key of this directory, and take nobody "
      "for a member who has none such (deploy/README.md); by default what the variable WUKONG_TLS says");
  verb->callback([directory, option, action, run] {
    *action = [directory, option, run]() -> int {
      const absl::Status status = UseTlsOf(option->count() > 0, *directory);
      return status.ok() ? run() : ReportStatus(status);
    };
  });
}

std::string TlsFlagText() {
  return GivenDirectory().empty() ? "" : absl::StrCat(" --tls ", ShellWord(GivenDirectory()));
}

}  // namespace wukong
