// wukong: trains one model across data centers that are far apart.
#include <gflags/gflags.h>
#include <grpc/support/log.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "glog/logging.h"
#include "launch/chaos_command.h"
#include "launch/checkpoint_command.h"
#include "launch/data_command.h"
#include "launch/exit_code.h"
#include "launch/flag_checks.h"
#include "launch/log_command.h"
#include "launch/plan_command.h"
#include "launch/role_commands.h"
#include "launch/sim_command.h"
#include "launch/status_command.h"
#include "launch/up_command.h"
#include "launch/validate_command.h"

int main(int argc, char** argv) {
  FLAGS_logtostderr = true;
  google::InitGoogleLogging(argv[0]);

  // gRPC says in its own format what our messages say of the same calls: unless somebody looks into gRPC, only what it
  // dies of is of interest.
  if (std::getenv("GRPC_VERBOSITY") == nullptr) {
    gpr_set_log_function([](gpr_log_func_args* log) {
      if (std::strstr(log->message, "assertion failed") != nullptr) std::fprintf(stderr, "gRPC: %s\n", log->message);
    });
  }

  CLI::App app("Wukong trains one model across data centers that are far apart.", "wukong");
  app.require_subcommand(1);
  app.set_version_flag("-v,--version", std::string("wukong 0.1.0"));
  app.footer(
      "Start with: wukong up launch/examples/three-regions.yaml\nExit codes: 0 done, 1 training failed or was stopped, "
      "2 "
      "usage or job or data wrong, 3 this machine lacks something, 4 no coordinator answers, 6 diverged, 7 log or "
      "checkpoint damaged, 75 start it again.");
  std::function<int()> action;
  wukong::AddUpCommand(app, &action);
  wukong::AddStatusCommand(app, &action);
  wukong::AddValidateCommand(app, &action);
  wukong::AddPlanCommand(app, wukong::MeasureTrainerStep, &action);
  wukong::AddDataCommand(app, &action);
  wukong::AddLogCommand(app, &action);
  wukong::AddCheckpointCommand(app, &action);
  wukong::AddSimCommand(app, &action);
  wukong::AddChaosCommand(app, &action);
  wukong::AddRoleCommands(app, &action);
  // `wukong help log` is `wukong log --help`.
  std::vector<const char*> words(argv, argv + argc);
  if (argc > 1 && std::strcmp(argv[1], "help") == 0) {
    words.erase(words.begin() + 1);
    words.push_back("--help");
  }
  if (const std::string unknown = wukong::UnknownCommand(app, argc, words.data()); !unknown.empty()) {
    std::fprintf(stderr, "wukong: error: %s\nRun with --help for more.\n", unknown.c_str());
    return wukong::kExitUsage;
  }
  try {
    app.parse(argc, words.data());
  } catch (const CLI::ParseError& error) {
    const int code = error.get_exit_code();
    if (code == 0) return app.exit(error);  // --help, --version
    std::fprintf(stderr, "wukong: error: %s\nRun with --help for more.\n", error.what());
    return wukong::kExitUsage;
  }
  int code = action ? action() : wukong::kExitUsage;
  // What a script was to read and cannot is no success: `wukong up JOB.yaml --json > /dev/full`.
  if ((std::fflush(stdout) != 0 || std::ferror(stdout) != 0) && code == wukong::kExitOk) {
    std::fprintf(stderr, "wukong: error: standard output cannot be written\n");
    code = wukong::kExitMachine;
  }
  std::fflush(nullptr);
  // Everything of ours is closed. Leaving now spares the libraries' teardown, where gRPC 1.51 and OpenMP can trip.
  ::_exit(code);
}
