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
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "coordinator/shard_ledger.h"
#include "nlohmann/json.hpp"
#include "proto/job.pb.h"
#include "proto/log.pb.h"
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
    Incarnation incarnation;  // Its life, of which the times and numbers of steps count.
    std::vector<StepRecord> steps;
    Version root_version;  // When they came.
  };
  using Effect = std::variant<FenceChild, SetIdle, Record, RecordSteps>;

  struct RoundTrips {
    std::deque<double> seconds;  // The newest 10,000.
  };

  // What is to be written down; called in the order of the decisions, with the decision not yet known to anybody. It
  // must not call back, and must not block.
  using Journal = std::function<void(const LogRecord&)>;

  // `job` is resolved and checked. `samples` in all, a multiple of the optimizer step's samples. `state` is where an
  // earlier life ended, or empty; the term of this one is then already begun.
  CoordinatorCore(const Job& job, std::string run, std::string schema_digest, int64_t parameters, absl::Time now,
                  const RootState& state = RootState(), Journal journal = nullptr);

  absl::StatusOr<GetJobReply> GetJob(const GetJobRequest& request) const;
  absl::StatusOr<JoinReply> Join(const JoinRequest& request, absl::Time now);
  // `answer` is filled anew; it says nothing when this fails.
  absl::Status Heartbeat(const HeartbeatRequest& request, absl::Time now, HeartbeatReply* answer);
  // What another life of this coordinator must know before `answer` to this member leaves, or it would say otherwise.
  enum class Rests {
    kOnNothing,
    kOnAFence,  // Another life would take for live whom it names. Without the disk the answer can leave without it.
    // Work is committed, of which the member throws its copy away; or its parent is another one than it was last told,
    // and another life would give it back the one before, to which it has abandoned contributions.
    kAltogether,
  };
  Rests RestsOnTheLog(MemberKey member, const HeartbeatReply& answer) const;
  // Such an answer leaves now.
  void Told(MemberKey member, const HeartbeatReply& answer);
  // While held, training does not begin although everybody is ready.
  void HoldStart(bool held, absl::Time now);
  // Notices who is silent and what did not happen in time. Call every 100 ms or so. A gap of more than half a lease
  // means that this process was away (stopped, or its machine was): nobody could be heard meanwhile, and it counts
  // against nobody.
  void Tick(absl::Time now);

  // From the root node. What is admitted is recorded, as `accepted`.
  Verdict Admit(const Manifest& manifest, const LogRecord& accepted, std::string* detail);
  void Merged(const std::vector<Manifest>& manifests, absl::Time now);
  // A region's contribution was refused for good (it is too old, or not finite): its samples go to others.
  void Refused(const Manifest& manifest);
  void SetRootVersion(Version version) { root_version_ = version; }

  // As Coordinator.InjectFault of wire.proto. For "root" it only says whether it may be: the process is the driver's.
  absl::StatusOr<InjectFaultReply> InjectFault(const InjectFaultRequest& request);

  // Training began before this life of the coordinator.
  void BackdateStart(absl::Time started) { training_started_ = started; }
  void Fail(const std::string& reason, absl::Time now);
  // As Fail, and members may come back: the run is to be resumed.
  void Stop(const std::string& reason, absl::Time now);
  // For the log, once no member will be heard any more: the next coordinator goes on counting from here.
  RunStopped StopRecord(absl::Time wall_now) const;
  std::vector<Effect> TakeEffects();

  Phase phase() const { return phase_; }
  int64_t term() const { return term_; }
  const std::string& failure() const { return failure_; }
  const ShardLedger& ledger() const { return ledger_; }
  int64_t total_tokens() const;
  int64_t committed_tokens() const;
  // No member is waited for any more: all that live have been told that the run is over.
  bool AllToldFinish() const;
  // How long that may take: somebody's heartbeat may just have left without it.
  absl::Duration FarewellMax() const;
  // What a heartbeat of this member will need, as bytes: memory can be asked for ahead. Empty: nobody knows it.
  absl::Span<const char> MemoryOf(MemberId id) const {
    const Member* const member = Find(id);
    if (member == nullptr) return {};
    const auto* const begin = reinterpret_cast<const char*>(member);
    return {begin, static_cast<size_t>(reinterpret_cast<const char*>(&member->name) - begin)};
  }
  // Some holder of an earlier term has not yet said what it holds.
  bool recovering() const { return ledger_.unknown() > 0; }
  absl::Time training_started() const { return training_started_; }
  absl::Time training_ended() const { return training_ended_; }

  // Contributions that aggregators refused: "worker-1 of beijing: norm" -> count.
  std::map<std::string, int64_t> RefusedBySender() const;
  void FillStatus(StatusReply* status, absl::Time now) const;
  // The parts of report.json that the coordinator knows: tokens, compute_share, ranges, links' round trips.
  void FillReport(nlohmann::ordered_json* report) const;

 private:
  enum class State { kLive, kFencing, kGone };
  struct Member {
    // What every heartbeat looks at comes first, and together.
    MemberKey key;
    MemberKey told_parent;  // As it was last told; all that led to it is on the disk.
    Role role = ROLE_UNSPECIFIED;
    int region = 0;
    State state = State::kLive;
    bool wants = false;  // Has asked for data: it is ready.
    bool idle = false;
    bool told_finish = false;
    bool quarantined = false;  // Its aggregator takes nothing from it for a while.
    bool must_assert = false;  // It gets no data before it has said what it holds.
    absl::Time last_seen;
    int64_t beat = 0;
    double speed = 0;
    double counted_speed = 0;        // What speeds_ has of it; 0 for nothing.
    std::vector<FaultOrder> faults;  // Of this life; those that it has not heard.
    MemberUsage usage;
    HeartbeatReply last_reply;

    std::string name;
    std::string address;
    int64_t pid = 0;
    std::string host;
    int rank = 0;
    MemberUsage usage_of_earlier_lives;
    // Of contributions that the root refused before their sender said what it holds: it may not have known of that.
    std::vector<LeasedRange> refused_unspoken;
    std::string why_gone;             // The last life that was fenced; empty: an earlier coordinator fenced it.
    bool is_another_process = false;  // Than the life before.
  };
  // The members of a region, and what heartbeats ask about them all: nothing that comes from each of thousands of
  // members may look at thousands of them.
  struct RegionMembers {
    std::vector<Member*> workers, aggregators;  // By id.
    Member* aggregator = nullptr;               // The live one.
    int live_workers = 0;
    int ready = 0;        // Live workers that have asked for data, or need not.
    int takes_data = 0;   // Live workers that are not in quarantine.
    int must_assert = 0;  // Live workers that have not yet said what they hold.
    bool aggregator_must_assert = false;
  };

  std::string Describe(const Member& member) const;
  // What a life that is fenced is answered. ALREADY_EXISTS: another process has its place now.
  absl::Status Fenced(const Member& member, int64_t incarnation) const;
  // Who must be there before training begins, and is not ready yet.
  std::string WaitsFor() const;
  const std::string& RegionOf(const Member& member) const { return regions_[member.region].name(); }
  int regions() const { return static_cast<int>(regions_.size()); }
  int RegionIndex(const std::string& name) const;  // -1: there is none.
  // Whether a member of region `name` may come, which exists or is to be made with its coming.
  absl::Status CheckRegion(const std::string& name, bool may_be_new) const;
  int AddRegion(const std::string& name);
  Member* Aggregator(int region) const { return by_region_[region].aggregator; }
  Member* Find(MemberId id) const {
    const auto found = by_id_.find(id);
    return found == by_id_.end() ? nullptr : found->second;
  }
  // `id` is new.
  Member* AddMember(MemberId id, Role role, int region);
  // After members of `region` changed in what RegionMembers counts.
  void Recount(int region);
  void CountSpeed(Member* member);
  bool CollectiveFollower(const Member& member) const;
  void Restore(const RootState& state, absl::Time now);
  // What an aggregator refused since its last heartbeat, and whom it has in quarantine.
  void TakeRefusals(const Member& aggregator, const HeartbeatRequest& request);
  void TakeHoldings(Member* member, const Holdings& holdings, HeartbeatReply* reply);
  // Whether its workers have all spoken, so that what they passed on to it is in its own account.
  bool AggregatorMaySpeak(int region) const;
  // Its place may not be taken from `host`: it is on another one and was heard within half a lease. On its own host
  // whoever comes under its name is what was started in its place.
  bool LivesElsewhere(const Member& member, const std::string& host, absl::Time now) const;
  // Drops the orders that `member` has heard, and passes on the others.
  void TellFaults(Member* member, int64_t heard, HeartbeatReply* reply);
  void MaybeEndRecovery();
  void RaiseCeiling();
  void Excuse(absl::Time now);
  // Nobody waits for ever for an aggregator that does not come back: the data of its region's workers goes to others.
  void GiveUpRegionsWithoutAggregator(absl::Time now);
  void Write(const LogRecord& record) const {
    if (journal_) journal_(record);
  }
  void Log(nlohmann::ordered_json event) { effects_.push_back(Record{std::move(event)}); }
  // `event`: "lost" or "left".
  void Expire(Member* member, const char* event, const std::string& reason);
  void MaybeStart(absl::Time now);
  void MaybeFinish(absl::Time now);
  double ReferenceSpeed() const;
  // What a worker that asks for data gets now, as far as there is any.
  int64_t SamplesFor(const Member& member, const HeartbeatRequest& request) const;
  void UpdateRootIdle();
  bool RegionIdle(int region) const;
  MemberUsage TotalUsage(const Member& member) const;

  const Job job_;
  std::vector<Region> regions_;  // The job file's, and after them those that came later (--new-region).
  const std::string run_;
  const std::string schema_digest_;
  const int64_t parameters_;
  const int64_t term_;
  const Journal journal_;
  ShardLedger ledger_;
  int64_t lease_ceiling_ = 0;
  Phase phase_ = Phase::kStarting;
  bool held_ = false;
  std::string failure_;
  bool stopped_ = false;  // That is no fault of the run.
  absl::Time created_;
  absl::Time training_started_;
  absl::Time training_ended_;
  absl::Time nobody_since_;
  absl::Time last_tick_;
  absl::Time all_heard_until_ =
      absl::InfinitePast();  // No live member is silent for too long before then (`now` never goes back).

  std::vector<std::unique_ptr<Member>> members_;  // By id.
  absl::flat_hash_map<MemberId, Member*> by_id_;  // Looked into at each heartbeat of each of thousands.
  std::vector<RegionMembers> by_region_;
  int live_workers_ = 0;         // Of all regions.
  int regions_taking_data_ = 0;  // In which some live worker is not in quarantine.
  std::vector<double> speeds_;   // Of live workers, sorted.
  double speed_sum_ = 0;         // Of the same.
  int64_t tokens_computed_ = 0;  // By all members in all their lives.
  int64_t next_member_ = 1;
  int64_t fault_orders_;                        // The number of the last one.
  std::map<int, std::set<MemberKey>> fencing_;  // Per region: its aggregator must confirm these.
  std::map<int, absl::Time> aggregator_seen_;   // Per region: when it last had one.
  std::vector<MemberId> root_idle_;             // By id.
  std::vector<RoundTrips> round_trips_;         // Per region, of all its members' heartbeats.
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
