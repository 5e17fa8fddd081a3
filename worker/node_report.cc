#include "worker/node_report.h"

#include <utility>

namespace wukong {

std::shared_ptr<const NodeReporter::Report> NodeReporter::Newest(int64_t custody_term, absl::Duration patience) {
  if (pending_ == nullptr) {
    pending_ = std::make_shared<Pending>();
    post_([pending = pending_, custody_term, clock = clock_](const ParentNode& node) {
      pending->report.stats = node.stats();
      pending->report.quarantined = node.Quarantined(clock->Now());
      if (custody_term != 0) pending->report.custody = node.Custody();
      pending->report.custody_term = custody_term;
      pending->made.Notify();
    });
  }
  if (pending_->made.WaitFor(patience)) {
    newest_ = std::shared_ptr<const Report>(pending_, &pending_->report);
    pending_.reset();
  }
  return newest_;
}

void FillNodeReport(const NodeReporter::Report& report, HeartbeatRequest* request) {
  MemberUsage& usage = *request->mutable_usage();
  for (const auto& [verdict, count] : report.stats.contributions) {
    (*usage.mutable_contributions_received())[VerdictName(verdict)] = count;
  }
  for (const auto& [who, count] : report.stats.refused) {
    RefusedCount* refused = usage.add_refused();
    refused->set_member(who.first.value());
    refused->set_verdict(who.second);
    refused->set_count(count);
  }
  for (const MemberId member : report.quarantined) request->add_quarantined(member.value());
}

}  // namespace wukong
