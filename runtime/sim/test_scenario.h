// What scenarios that tests make in code have in common: what the file format fills in by itself.
#ifndef WUKONG_RUNTIME_SIM_TEST_SCENARIO_H_
#define WUKONG_RUNTIME_SIM_TEST_SCENARIO_H_

#include <cstdint>

#include "proto/scenario.pb.h"

namespace wukong {

// Limits (with small fragments), the disk, restarts, and an hour in which to end.
inline void SetTestDefaults(Scenario* scenario) {
  Limits* limits = scenario->mutable_limits();
  limits->set_heartbeat_ns(500'000'000);
  limits->set_lease_ns(10'000'000'000);
  limits->set_start_ns(60'000'000'000);
  limits->set_rpc_ns(60'000'000'000);
  limits->set_fragment_bytes(1024);
  limits->set_in_flight_bytes(64 << 20);
  limits->set_snapshot_bytes(1 << 20);
  limits->set_streams_max(16);
  limits->set_norm_ratio_max(20);
  limits->set_quarantine_ns(30'000'000'000);
  scenario->mutable_disk()->set_sync_ns(2'000'000);
  scenario->mutable_restarts()->set_after_ns(1'000'000'000);
  scenario->mutable_expect()->set_within_ns(int64_t{3'600'000'000'000});
}

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_TEST_SCENARIO_H_
