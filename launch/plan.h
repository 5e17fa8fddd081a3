// A model of what a job's links, codecs and schedule allow, before anything is started. Pure.
//
//   a leaf:    C = H * step, then its contribution goes to its region (a network that is taken as free)
//   a region:  bytes -> up link -> root merges -> version -> down link -> the leaves take it
//
// docs/plan.md has the formulas with their sources, and what they leave out.
#ifndef WUKONG_LAUNCH_PLAN_H_
#define WUKONG_LAUNCH_PLAN_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "proto/job.pb.h"

namespace wukong {

// The largest model that is planned for: byte counts of any codec, times what a plan multiplies them by, stay in 63
// bits.
inline constexpr int64_t kPlanParametersMax = 1'000'000'000'000'000;
// The share of their time that workers are to compute.
inline constexpr double kPlanShareWanted = 0.98;

struct PlanInput {
  Job job;                 // Resolved and checked.
  int64_t parameters = 0;  // 1 to kPlanParametersMax; the model's own, or any other.
  // One optimizer step of a worker of speed 1, seconds; more than 0. Exceptions by region.
  double step_seconds = 0;
  std::map<std::string, double> region_step_seconds;
  // Standard deviation of a step's time, as a share of it; steps are taken as independent. 0 or more.
  double step_jitter = 0;
};

// One direction of the link between a region and the root.
struct LinkPlan {
  int streams = 1;                   // Connections that a transfer is spread over.
  double rate_bytes_per_second = 0;  // Of all of them together; 0: unlimited.
  bool bound_by_loss = false;        // The rate is that which loss leaves, not the bandwidth.
  int64_t bytes = 0;                 // Payload of one contribution, or of one version.
  double transfer_seconds = 0;       // The wire is busy.
  double recovery_seconds = 0;       // Expected wait for a lost segment at the end.
  double seconds = 0;                // From the first byte sent to the last one arrived.
  double interval_seconds = 0;       // Between two of them.
  double bytes_per_hour = 0;
  double busy = 0;          // Share of the time, 0 to 1.
  double window_bytes = 0;  // Under way on each connection: rate * round-trip time; 0 for an unlimited rate.
};

struct RegionPlan {
  std::string name;
  int64_t workers = 0;
  int64_t leaves = 0;
  double rtt_seconds = 0;
  LinkPlan up, down;
  int64_t inner_steps_min = 0, inner_steps_max = 0;  // Of its leaves, per contribution.
  double compute_seconds = 0;                        // The slowest leaf's, between two contributions.
  double wait_seconds = 0;                           // Exposed, between two contributions; mean of the workers.
  double compute_share = 0;                          // Mean of the workers.
  double tokens_per_second = 0;
  bool link_limits = false;  // Contributions are made faster than the link takes them, and grow.
  double staleness_versions = 0;
  double staleness_steps = 0;  // Inner steps of its fastest leaf from the base of the oldest step to the merge.
};

struct MemoryPlan {
  std::string role;
  double vectors = 0;     // Of float32, of the model's size.
  int64_t bytes = 0;      // These vectors.
  int64_t bytes_max = 0;  // With staged and accepted contributions, and what is kept for slow children.
};

// What alone brings the compute share to kPlanShareWanted, with links that take contributions as often as they are
// made.
struct Remedy {
  std::string key;  // In the job file.
  bool possible = false;
  std::string value;   // As the job file has it; empty where nothing is possible.
  double share = 0;    // With that value, or the most that this key can reach.
  std::string reason;  // Where it is not possible.
};

struct Plan {
  int64_t parameters = 0;
  int64_t tokens_per_step = 0;  // Of one worker.
  double tokens_per_second = 0;
  double compute_share = 0;
  double rounds_per_hour = 0;  // Versions of the root.
  double round_seconds = 0;
  double log_bytes_per_hour = 0;       // Payloads of contributions.
  double snapshot_bytes_per_hour = 0;  // Written, beside the log.
  int64_t join_bytes = 0;              // Of a region that has nothing yet, down.
  std::vector<RegionPlan> regions;
  std::vector<MemoryPlan> memory;
  std::vector<Remedy> remedies;
  std::string refusal;  // Why `wukong up` would refuse the job; empty: it would not. All else is as if it did not.
  std::vector<std::string> notes;  // What will not work, or not as it is meant.
};

Plan MakePlan(const PlanInput& input);

// Expected value of the k-th smallest of n independent standard normal numbers, 1 <= k <= n: Blom 1958, "Statistical
// estimates and transformed beta-variables", within 0.02 of the true one.
double NormalOrderStatistic(int64_t k, int64_t n);

}  // namespace wukong

#endif  // WUKONG_LAUNCH_PLAN_H_
