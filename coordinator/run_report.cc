#include "coordinator/run_report.h"

#include <algorithm>
#include <string>

#include "runtime/sync/types.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

}  // namespace

void ReportNode(const ParentNode& node, Json* report) {
  (*report)["versions"] = node.version().value();
  Json rejected = Json::object();
  for (const auto& [verdict, count] : node.stats().contributions) {
    if (verdict != VERDICT_ACCEPTED) rejected[VerdictName(verdict)] = count;
  }
  const auto accepted = node.stats().contributions.find(VERDICT_ACCEPTED);
  (*report)["contributions"] = {{"accepted", accepted == node.stats().contributions.end() ? 0 : accepted->second},
                                {"rejected", rejected}};
  Json staleness = Json::object();
  for (const auto& [versions, count] : node.stats().staleness) staleness[std::to_string(versions)] = count;
  (*report)["staleness"] = staleness;
}

void ReportLog(const RootState& end, int64_t durable_index, Json* report) {
  (*report)["term"] = end.term();
  Json& by_sender = (*report)["contributions"]["rejected_by_sender"];  // At regions; what follows is at the root.
  for (const auto& [sender, count] : end.refused_by_sender()) {
    by_sender[sender] = by_sender.value(sender, int64_t{0}) + count;
  }
  // The account of the data: what is in the log, and what was computed besides. Of members that died under a
  // coordinator that died itself nobody knows what they had computed.
  const bool all_known = !end.usage_lost();
  const auto account = [all_known](int64_t computed, int64_t committed) {
    return Json{{"tokens_computed", computed},
                {"tokens_committed", committed},
                {"tokens_not_used", all_known ? Json(std::max<int64_t>(0, computed - committed)) : Json()}};
  };
  Json regions = Json::object();
  for (const auto& [region, usage] : (*report)["compute"]["regions"].items()) {
    const auto committed = end.tokens_by_region().find(region);
    regions[region] =
        account(usage["tokens_computed"], committed == end.tokens_by_region().end() ? 0 : committed->second);
  }
  (*report)["ledger"] = {{"all", account((*report)["tokens_computed"], end.tokens_accepted())}, {"regions", regions}};
  (*report)["log"] = {
      {"records", end.index()},
      {"durable_records", durable_index},
      {"bytes", end.bytes()},
      {"bytes_per_committed_token",
       end.tokens_merged() > 0 ? static_cast<double>(end.bytes()) / static_cast<double>(end.tokens_merged()) : 0.0}};
}

}  // namespace wukong
