#include "launch/status_command.h"

#include <grpcpp/grpcpp.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "launch/exit_code.h"
#include "launch/status_text.h"
#include "proto/wire.grpc.pb.h"
#include "runtime/base/file.h"
#include "runtime/base/shell_word.h"
#include "runtime/transport/grpc_options.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

constexpr absl::Duration kCallTimeout = absl::Seconds(5);

struct StatusFlags {
  std::string target;
  bool json = false;
};

absl::StatusOr<StatusReply> Ask(const std::string& address) {
  const auto coordinator = Coordinator::NewStub(MakeChannel(address));
  grpc::ClientContext context;
  SetDeadline(&context, kCallTimeout);
  StatusReply reply;
  const grpc::Status status = coordinator->GetStatus(&context, StatusRequest(), &reply);
  if (!status.ok()) {
    return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                        absl::StrCat("no coordinator answers at ", address, ": ", status.error_message()));
  }
  return reply;
}

int Show(const StatusReply& reply, bool json) {
  std::fputs(json ? absl::StrCat(JsonText(StatusJson(reply)), "\n").c_str() : StatusText(reply).c_str(), stdout);
  return kExitOk;
}

int ShowEnd(const std::string& run_dir, const Json& report, bool json) {
  if (json) {
    const Json end = {
        {"run", ReportRun(report)}, {"phase", ReportCompleted(report) ? "done" : "failed"}, {"report", report}};
    std::printf("%s\n", JsonText(end).c_str());
  } else {
    std::printf("the run is over and its coordinator is gone; %s/report.json says\n%s", run_dir.c_str(),
                ReportSummary(report).c_str());
  }
  return kExitOk;
}

int OfRunDirectory(const StatusFlags& flags) {
  std::string run_dir = flags.target;
  while (run_dir.size() > 1 && run_dir.back() == '/') run_dir.pop_back();
  std::error_code error;
  if (!std::filesystem::exists(run_dir + "/config.resolved.yaml", error)) {
    return ReportStatus(absl::InvalidArgumentError(
        absl::StrCat(run_dir, " is no run directory: it has no config.resolved.yaml; name another, or HOST:PORT")));
  }
  Json report;
  if (const absl::StatusOr<std::string> text = ReadFile(run_dir + "/report.json"); text.ok()) {
    report = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  }
  absl::StatusOr<StatusReply> reply = absl::UnavailableError("no coordinator has listened there yet");
  if (const absl::StatusOr<std::string> address = ReadFile(run_dir + "/coordinator.address"); address.ok()) {
    reply = Ask(*address);
  }
  // The coordinator of another run may have come to the same port since.
  const bool another = reply.ok() && report.is_object() && ReportRun(report) != reply->run();
  if (reply.ok() && !another) return Show(*reply, flags.json);
  if (report.is_object()) return ShowEnd(run_dir, report, flags.json);
  if (absl::IsDeadlineExceeded(reply.status())) {
    const std::string owner(absl::StripAsciiWhitespace(ReadFile(run_dir + "/lock").value_or("its process")));
    return ReportStatus(absl::UnavailableError(absl::StrCat(run_dir, ": ", reply.status().message(), "; the run is of ",
                                                            owner, ", which stands still or has no time")));
  }
  return ReportStatus(absl::UnavailableError(absl::StrCat(
      run_dir, ": ", reply.status().message(),
      "; the run has not ended (there is no report.json): its coordinator is being started, or was killed, and then it "
      "goes on with: wukong up --resume ",
      ShellWord(run_dir))));
}

int RunStatus(const StatusFlags& flags) {
  std::error_code error;
  if (std::filesystem::is_directory(flags.target, error)) return OfRunDirectory(flags);
  if (!absl::StrContains(flags.target, ':')) {
    return ReportStatus(absl::InvalidArgumentError(
        absl::StrCat(flags.target, " is neither a run directory nor the HOST:PORT of a coordinator")));
  }
  const absl::StatusOr<StatusReply> reply = Ask(flags.target);
  return reply.ok() ? Show(*reply, flags.json) : ReportStatus(absl::UnavailableError(reply.status().message()));
}

}  // namespace

void AddStatusCommand(CLI::App& app, std::function<int()>* action) {
  auto flags = std::make_shared<StatusFlags>();
  CLI::App* verb = app.add_subcommand("status", "Show how a run stands, or how it ended");
  verb->add_option("run", flags->target, "host:port of the coordinator, or a run directory")->required();
  verb->add_flag("--json", flags->json, "Print it as JSON");
  verb->callback([flags, action] { *action = [flags] { return RunStatus(*flags); }; });
}

}  // namespace wukong
