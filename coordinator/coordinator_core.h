// What the coordinator decides: who is a member, who holds which data, when the run begins, ends or has failed.
// Pure and single-threaded: the service (coordinator/coordinator.h) brings requests and the time.
//
//   starting --all expected members ask for data--> training --all committed--> done
//      +------------- nobody came in time -------------+--- nobody is left ---> failed
//
#ifndef WUKONG_COORDINATOR_COORDINATOR_CORE_H_
#define WUKONG_COORDINATOR_COORDINATOR_CORE_H_

#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "coordinator/shard_ledger.h"
#include "nlohmann/json.hpp"
#include "proto/job.pb.h"
#include "proto/wire.pb.h"
#include "runtime/sync/types.h"

namespace wukong {

class CoordinatorCore {
 public:
  enum class Phase { kStarting, kTraining, kDone, kFailed };

  // What the driver must do after a call, in order.
  struct FenceChild {  // At the root.
    MemberKey child;
  };
  struct SetIdle {  // At the root.
    std::set<MemberId> idle;
  };
  struct Record {  // Into events.jsonl; the driver adds the time.
    nlohmann::ordered_json event;
  };
  struct RecordSteps {  // Into metrics.jsonl.
    std::string region;
    std::string worker;
    std::vector<StepRecord> steps;
    Version root_version;  // When they came.
  };
  using Effect = std::variant<FenceChild, SetIdle, Record, RecordSteps>;

  struct RoundTrips {
    std::vector<double> seconds;  // The newest 10,000.
  };

  // `job` is resolved and checked. `samples` in all, a multiple of the optimizer step's samples.
  CoordinatorCore(const Job& job, std::string run, std::string schema_digest, int64_t parameters, absl::Time now);

  absl::StatusOr<GetJobReply> GetJob(const GetJobRequest& request) const;
  absl::StatusOr<JoinReply> Join(const JoinRequest& request, absl::Time now);
  absl::StatusOr<HeartbeatReply> Heartbeat(const HeartbeatRequest& request, absl::Time now);
  // Notices who is silent and what did not happen in time. Call every 100 ms or so.
  void Tick(absl::Time now);

  // From the root node.
  Verdict Admit(const Manifest& manifest, std::string* detail);
  void Merged(const std::vector<Manifest>& manifests, absl::Time now);
  // A region's contribution was refused for good (it is too old, or not finite): its samples go to others.
  void Refused(const Manifest& manifest);
  void SetRootVersion(Version version) { root_version_ = version; }

  void Fail(const std::string& reason, absl::Time now);
  std::vector<Effect> TakeEffects();

  Phase phase() const { return phase_; }
  const std::string& failure() const { return failure_; }
  const ShardLedger& ledger() const { return ledger_; }
  int64_t total_tokens() const;
  int64_t committed_tokens() const;
  // No member is waited for any more: all that live have been told that the run is over.
  bool AllToldFinish() const;
  absl::Time training_started() const { return training_started_; }
  absl::Time training_ended() const { return training_ended_; }

  void FillStatus(StatusReply* status, absl::Time now) const;
  // The parts of report.json that the coordinator knows: tokens, compute_share, ranges, links' round trips.
  void FillReport(nlohmann::ordered_json* report) const;

 private:
  enum class State { kLive, kFencing, kGone };
  struct Member {
    MemberKey key;
    Role role = ROLE_UNSPECIFIED;
    int region = 0;
    std::string name;
    std::string address;
    int64_t pid = 0;
    std::string host;
    int rank = 0;
    State state = State::kLive;
    absl::Time last_seen;
    bool wants = false;  // Has asked for data: it is ready.
    bool idle = false;
    bool told_finish = false;
    double speed = 0;
    MemberUsage usage;
    MemberUsage usage_of_earlier_lives;
    int64_t beat = 0;
    HeartbeatReply last_reply;
  };

  std::string Describe(const Member& member) const;
  Member* Aggregator(int region);
  int RegionIndex(const std::string& name) const;
  bool CollectiveFollower(const Member& member) const;
  void Log(nlohmann::ordered_json event) { effects_.push_back(Record{std::move(event)}); }
  void Expire(Member* member, const std::string& reason);
  void MaybeStart(absl::Time now);
  void MaybeFinish(absl::Time now);
  double ReferenceSpeed() const;
  int LiveWorkers() const;
  void UpdateRootIdle();
  bool RegionIdle(int region) const;
  MemberUsage TotalUsage(const Member& member) const;

  const Job job_;
  const std::string run_;
  const std::string schema_digest_;
  const int64_t parameters_;
  ShardLedger ledger_;
  Phase phase_ = Phase::kStarting;
  std::string failure_;
  absl::Time created_;
  absl::Time training_started_;
  absl::Time training_ended_;
  absl::Time nobody_since_;

  std::map<MemberId, Member> members_;
  int64_t next_member_ = 1;
  std::map<int, std::set<MemberKey>> fencing_;  // Per region: its aggregator must confirm these.
  std::set<MemberId> root_idle_;
  std::vector<RoundTrips> round_trips_;  // Per region, of all its members' heartbeats.
  std::deque<double> recent_losses_;
  std::deque<int64_t> recent_staleness_;
  struct Sample {
    absl::Time time;
    int64_t tokens;
  };
  std::deque<Sample> recent_tokens_;  // Computed tokens over the last seconds.
  Version root_version_{1};
  std::vector<Effect> effects_;
};

// micro_batch * accumulation, in samples.
int64_t StepSamples(const Job& job);
// Samples of the whole run: stop.tokens rounded up to whole optimizer steps.
int64_t TotalSamples(const Job& job);

}  // namespace wukong

#endif  // WUKONG_COORDINATOR_COORDINATOR_CORE_H_
