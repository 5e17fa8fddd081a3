// What report.json says beside what the coordinator's core does: of the root's node, and of the log.
#ifndef WUKONG_COORDINATOR_RUN_REPORT_H_
#define WUKONG_COORDINATOR_RUN_REPORT_H_

#include <cstdint>

#include "nlohmann/json.hpp"
#include "proto/log.pb.h"
#include "runtime/sync/parent_node.h"

namespace wukong {

void ReportNode(const ParentNode& node, nlohmann::ordered_json* report);

// Once what the node and the core say is in the report: the account of the data sets it against what the log says.
void ReportLog(const RootState& end, int64_t durable_index, nlohmann::ordered_json* report);

}  // namespace wukong

#endif  // WUKONG_COORDINATOR_RUN_REPORT_H_
