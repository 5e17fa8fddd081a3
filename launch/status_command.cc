#include "launch/status_command.h"

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "launch/exit_code.h"
#include "launch/flag_checks.h"
#include "launch/job_file.h"
#include "launch/status_text.h"
#include "launch/tls_flag.h"
#include "proto/wire.grpc.pb.h"
#include "runtime/base/file.h"
#include "runtime/base/shell_word.h"
#include "runtime/transport/grpc_options.h"
#include "runtime/transport/tls.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

constexpr absl::Duration kCallTimeout = absl::Seconds(5);

// `--watch` of a coordinator that answered and does not any more: it may be starting again, or never come back.
constexpr absl::Duration kWatchPatience = absl::Minutes(1);

struct StatusFlags {
  std::string target;
  bool json = false;
  bool watch = false;
  double every = 2;  // Seconds between two looks.
};

// What one look has shown.
struct Look {
  std::string text;  // Without a failure.
  absl::Status failure;
  bool over = false;
};

absl::StatusOr<StatusReply> Ask(const std::string& address) {
  const auto coordinator = Coordinator::NewStub(MakeChannel(address));
  grpc::ClientContext context;
  SetDeadline(&context, kCallTimeout);
  StatusReply reply;
  const grpc::Status status = coordinator->GetStatus(&context, StatusRequest(), &reply);
  if (!status.ok()) {
    return absl::Status(
        static_cast<absl::StatusCode>(status.error_code()),
        absl::StrCat("no coordinator answers at ", address, ": ", status.error_message(), "; ", TlsQuestion(), "?"));
  }
  return reply;
}

std::string AsText(const Json& json, bool on_one_line) {
  return absl::StrCat(on_one_line ? json.dump(-1, ' ', false, Json::error_handler_t::replace) : JsonText(json), "\n");
}

Look OfReply(const StatusFlags& flags, const StatusReply& reply) {
  return {flags.json ? AsText(StatusJson(reply), flags.watch) : StatusText(reply), absl::OkStatus(),
          reply.phase() == "done" || reply.phase() == "failed"};
}

Look OfEnd(const StatusFlags& flags, const std::string& run_dir, const Json& report) {
  if (!flags.json) {
    std::string text = absl::StrCat("the run is over and its coordinator is gone; ", run_dir, "/report.json says\n",
                                    ReportSummary(report));
    if (WasStopped(report)) {
      const absl::StatusOr<std::string> address = ReadFile(run_dir + "/coordinator.address");
      absl::StrAppend(&text, "it goes on as it was begun: wukong up", TlsFlagText(), " --resume ", ShellWord(run_dir),
                      ", or wukong coordinator --run-dir ", ShellWord(run_dir),
                      address.ok() ? absl::StrCat(" --listen ", *address) : "", TlsFlagText(), " --resume\n");
    }
    return {std::move(text), absl::OkStatus(), true};
  }
  const Json end = {
      {"run", ReportRun(report)}, {"phase", ReportCompleted(report) ? "done" : "failed"}, {"report", report}};
  return {AsText(end, flags.watch), absl::OkStatus(), true};
}

Look Failed(absl::Status failure) { return {"", std::move(failure), false}; }

Look OfRunDirectory(const StatusFlags& flags) {
  std::string run_dir = flags.target;
  while (run_dir.size() > 1 && run_dir.back() == '/') run_dir.pop_back();
  if (const absl::Status status = CheckRunDirectory(run_dir); absl::IsInvalidArgument(status)) {
    return Failed(absl::InvalidArgumentError(absl::StrCat(status.message(), "; name another, or HOST:PORT")));
  } else if (!status.ok()) {
    return Failed(status);
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
  if (reply.ok() && !another) return OfReply(flags, *reply);
  if (report.is_object()) return OfEnd(flags, run_dir, report);
  if (absl::IsDeadlineExceeded(reply.status())) {
    const std::string owner(absl::StripAsciiWhitespace(ReadFile(run_dir + "/lock").value_or("its process")));
    return Failed(absl::UnavailableError(absl::StrCat(run_dir, ": ", reply.status().message(), "; the run is of ",
                                                      owner, ", which stands still or has no time")));
  }
  return Failed(absl::UnavailableError(absl::StrCat(
      run_dir, ": ", reply.status().message(),
      "; the run has not ended (there is no report.json): its coordinator is being started, or was killed, and then it "
      "goes on with: wukong up",
      TlsFlagText(), " --resume ", ShellWord(run_dir))));
}

Look LookAt(const StatusFlags& flags) {
  std::error_code error;
  if (std::filesystem::is_directory(flags.target, error)) return OfRunDirectory(flags);
  if (error == std::errc::permission_denied) {
    return Failed(ErrnoToStatus(error.value(), "cannot look into " + flags.target));
  }
  if (!absl::StrContains(flags.target, ':')) {
    return Failed(absl::InvalidArgumentError(
        absl::StrCat(flags.target, " is neither a run directory nor the HOST:PORT of a coordinator")));
  }
  const absl::StatusOr<StatusReply> reply = Ask(flags.target);
  return reply.ok() ? OfReply(flags, *reply) : Failed(absl::UnavailableError(reply.status().message()));
}

int Show(const std::string& text) {
  if (std::fputs(text.c_str(), stdout) >= 0 && std::fflush(stdout) == 0) return kExitOk;
  return ReportStatus(absl::ResourceExhaustedError("standard output cannot be written"));
}

// Until the run is over, or somebody has seen enough (Ctrl-C).
int Watch(const StatusFlags& flags) {
  const bool on_screen = !flags.json && ::isatty(STDOUT_FILENO) != 0;
  absl::Time answered = absl::InfinitePast();
  while (true) {
    const Look look = LookAt(flags);
    const absl::Time now = absl::Now();
    if (look.failure.ok()) {
      answered = now;
    } else if (!absl::IsUnavailable(look.failure) || now - answered > kWatchPatience) {
      return ReportStatus(look.failure);
    }
    if (on_screen) std::fputs("\033[H\033[J", stdout);  // What was there, and not what was above it.
    if (!look.failure.ok()) {
      std::fprintf(stderr, "wukong: %s\n", std::string(look.failure.message()).c_str());
    } else if (const int shown = Show(look.text); shown != kExitOk || look.over) {
      return shown;
    }
    absl::SleepFor(absl::Seconds(flags.every));
  }
}

int RunStatus(const StatusFlags& flags) {
  if (flags.watch) return Watch(flags);
  const Look look = LookAt(flags);
  return look.failure.ok() ? Show(look.text) : ReportStatus(look.failure);
}

}  // namespace

void AddStatusCommand(CLI::App& app, std::function<int()>* action) {
  auto flags = std::make_shared<StatusFlags>();
  CLI::App* verb = app.add_subcommand("status", "Show how a run stands, or how it ended");
  verb->add_option("RUN", flags->target, "A run directory, or HOST:PORT of the coordinator")->required();
  verb->add_flag("--json", flags->json, "Print it as JSON; with --watch one line each time");
  CLI::Option* const watch = verb->add_flag("--watch", flags->watch, "Show it again and again, until the run is over");
  verb->add_option("--every", flags->every, "With --watch: how far apart")
      ->default_str("2s")
      ->transform(Seconds())
      ->needs(watch);
  SetConnectingAction(verb, action, [flags] { return RunStatus(*flags); });
}

}  // namespace wukong
