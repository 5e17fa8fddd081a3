// What a member has used up, added and put into words.
#ifndef WUKONG_COORDINATOR_MEMBER_USAGE_H_
#define WUKONG_COORDINATOR_MEMBER_USAGE_H_

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>
#include <vector>

#include "proto/wire.pb.h"

namespace wukong {

inline const char* RoleName(Role role) { return role == ROLE_AGGREGATOR ? "aggregator" : "worker"; }

// The p-th percentile by nearest rank; 0 of nothing.
inline double PercentileOfSorted(const std::vector<double>& values, double p) {
  if (values.empty()) return 0;
  const auto rank = static_cast<size_t>(std::ceil(p / 100.0 * static_cast<double>(values.size())));
  return values[std::min(values.size() - 1, rank == 0 ? 0 : rank - 1)];
}
template <typename Values>
double Percentile(const Values& values, double p) {
  std::vector<double> sorted(values.begin(), values.end());
  std::sort(sorted.begin(), sorted.end());
  return PercentileOfSorted(sorted, p);
}

inline void Add(const MemberUsage& from, MemberUsage* to) {
  to->set_wall_seconds(to->wall_seconds() + from.wall_seconds());
  to->set_compute_seconds(to->compute_seconds() + from.compute_seconds());
  to->set_cpu_seconds(to->cpu_seconds() + from.cpu_seconds());
  to->set_tokens_computed(to->tokens_computed() + from.tokens_computed());
  to->set_payload_bytes_up(to->payload_bytes_up() + from.payload_bytes_up());
  to->set_payload_bytes_down(to->payload_bytes_down() + from.payload_bytes_down());
  to->set_contributions_sent(to->contributions_sent() + from.contributions_sent());
  for (const auto& [verdict, count] : from.contributions_received()) {
    (*to->mutable_contributions_received())[verdict] += count;
  }
  for (const auto& [reason, seconds] : from.waiting_seconds()) (*to->mutable_waiting_seconds())[reason] += seconds;
  std::map<std::pair<int64_t, Verdict>, int64_t> refused;
  for (const MemberUsage* usage : {&from, static_cast<const MemberUsage*>(to)}) {
    for (const RefusedCount& one : usage->refused()) refused[{one.member(), one.verdict()}] += one.count();
  }
  to->clear_refused();
  for (const auto& [who, count] : refused) {
    RefusedCount* sum = to->add_refused();
    sum->set_member(who.first);
    sum->set_verdict(who.second);
    sum->set_count(count);
  }
  to->set_peak_memory_bytes(std::max(to->peak_memory_bytes(), from.peak_memory_bytes()));
}

}  // namespace wukong

#endif  // WUKONG_COORDINATOR_MEMBER_USAGE_H_
