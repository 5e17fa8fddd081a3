// What `wukong up` and `wukong status` show of a run.
#ifndef WUKONG_LAUNCH_STATUS_TEXT_H_
#define WUKONG_LAUNCH_STATUS_TEXT_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "nlohmann/json.hpp"
#include "proto/wire.pb.h"

namespace wukong {

// Over all wide-area links.
struct WanBytes {
  int64_t up = 0;
  int64_t down = 0;
};

// One line, without its end. While the root acknowledges nothing, that is what the line says in place of how well the
// run does.
std::string ProgressLine(const StatusReply& status, const std::optional<WanBytes>& wan = std::nullopt);

// A table of the run and its members, with its last line end.
std::string StatusText(const StatusReply& status);
nlohmann::ordered_json StatusJson(const StatusReply& status);

// "; waiting for data 5.1%, no data left 2.0%" of shares of workers' time by what was waited for (names of
// runtime/sync/wait_account.h); empty when there is nothing to say.
std::string WaitingText(const std::map<std::string, double>& shares);

// A run's report.json, in whole or what there is of it: nothing in it can be wrong enough for a crash.
bool ReportCompleted(const nlohmann::ordered_json& report);
// A signal has ended it.
bool WasStopped(const nlohmann::ordered_json& report);
std::string ReportRun(const nlohmann::ordered_json& report);
// With its last line end.
std::string ReportSummary(const nlohmann::ordered_json& report);
// And where all of it is.
std::string ReportSummary(const nlohmann::ordered_json& report, const std::string& run_dir);
// As people and programs read it, indented; bytes that are not UTF-8, as a path may hold them, are replaced.
std::string JsonText(const nlohmann::ordered_json& json);

}  // namespace wukong

#endif  // WUKONG_LAUNCH_STATUS_TEXT_H_
