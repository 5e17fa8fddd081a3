// `wukong chaos replay`: runs a tape's scenario again and says whether the same happens.
#include <cstdio>
#include <memory>
#include <string>

#include "glog/logging.h"
#include "launch/chaos_command.h"
#include "launch/exit_code.h"
#include "launch/tape_file.h"

namespace wukong {
namespace {

int ReplayOne(const std::string& path) {
  FLAGS_minloglevel = google::GLOG_FATAL;  // What nodes say to their logs is on the tape.
  const absl::StatusOr<Replay> replay = ReplayTape(path);
  if (!replay.ok()) return ReportStatus(replay.status());
  if (replay->other_binary) {
    std::fprintf(stderr, "wukong: warning: %s was written by another build of wukong\n", path.c_str());
  }
  if (replay->same) {
    std::printf("same %lld events, %s %016llx\n", static_cast<long long>(replay->events),
                replay->complete ? "same hash" : "but the tape has no end to compare with; hash",
                static_cast<unsigned long long>(replay->tape_hash));
    return kExitOk;
  }
  const auto side = [](const std::string& line) { return line.empty() ? "(nothing more)" : line.c_str(); };
  std::printf("event %lld differs\n  tape: %s\n  now:  %s\n", static_cast<long long>(replay->events),
              side(replay->on_tape), side(replay->now));
  return kExitFailed;
}

}  // namespace

void AddChaosReplayCommand(CLI::App& chaos, std::function<int()>* action) {
  auto path = std::make_shared<std::string>();
  CLI::App* command =
      chaos.add_subcommand("replay", "Run what is on a tape again, and find the first event that differs");
  command->add_option("TAPE", *path, "What `wukong sim --tape` has written")->required();
  command->callback([path, action] { *action = [path] { return ReplayOne(*path); }; });
}

}  // namespace wukong
