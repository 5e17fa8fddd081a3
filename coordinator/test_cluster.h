// A coordinator and the processes around it, for tests: a clock that only moves when told, and no network.
#ifndef WUKONG_COORDINATOR_TEST_CLUSTER_H_
#define WUKONG_COORDINATOR_TEST_CLUSTER_H_

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "coordinator/coordinator_core.h"
#include "runtime/storage/root_history.h"

namespace wukong {

inline constexpr char kDigest[] = "0123456789abcdef";

// Two regions of two workers and one; 40 samples in ranges of 4, steps of 2, 4 tokens each.
inline Job MakeJob() {
  Job job;
  job.mutable_model()->set_context(4);
  job.mutable_data()->set_range_steps(2);
  job.mutable_optimizer()->set_micro_batch(2);
  job.mutable_optimizer()->set_accumulation(1);
  Region* beijing = job.add_regions();
  beijing->set_name("beijing");
  beijing->set_workers(2);
  Region* shenzhen = job.add_regions();
  shenzhen->set_name("shenzhen");
  shenzhen->set_workers(1);
  job.mutable_stop()->set_tokens(160);
  job.mutable_limits()->set_lease_ns(10'000'000'000);
  job.mutable_limits()->set_start_ns(60'000'000'000);
  return job;
}

struct Process {
  MemberKey key;
  int64_t beat = 0;
  std::vector<LeasedRange> held;
};

struct Cluster {
  explicit Cluster(const Job& job = MakeJob(), const RootState& state = RootState(),
                   absl::Time begin = absl::UnixEpoch() + absl::Hours(1))
      : now(begin),
        history(state),
        records(state.index()),
        core(job, "run-1", kDigest, 1000, now, Term(), [this](const LogRecord& r) {
          if (r.kind_case() != LogRecord::KIND_NOT_SET) Journal(r);
        }) {}

  void Journal(LogRecord record) {
    if (record.has_run_started()) record.mutable_run_started()->set_unix_ns(1);
    const absl::Status status = history.Add(++records, record);
    ASSERT_TRUE(status.ok()) << status << "; " << LogRecordToJson(records, record);
  }
  RootState Term() {
    LogRecord record;
    record.mutable_term_begun()->set_term(history.term() + 1);
    Journal(record);
    return history.state();
  }
  static LogRecord RecordOf(const Manifest& manifest) {
    LogRecord record;
    ManifestToProto(manifest, record.mutable_accepted()->mutable_header());
    return record;
  }
  void NoteMerged(const Manifest& manifest) {
    LogRecord record;
    MergedPart* part = record.mutable_merged()->add_parts();
    part->set_member(manifest.sender.member.value());
    part->set_incarnation(manifest.sender.incarnation.value());
    part->set_sequence(manifest.sequence.value());
    Journal(record);
  }

  absl::StatusOr<JoinReply> TryJoin(Role role, const std::string& region, const std::string& name,
                                    const std::string& digest = kDigest, bool new_region = false) {
    JoinRequest request;
    request.set_new_region(new_region);
    request.set_role(role);
    request.set_region(region);
    request.set_name(name);
    request.set_address(region + ":1");
    request.set_schema_digest(digest);
    request.set_pid(++pids);
    request.set_host(host);
    return core.Join(request, now);
  }
  Process Join(Role role, const std::string& region, const std::string& name, bool new_region = false) {
    const auto reply = TryJoin(role, region, name, kDigest, new_region);
    EXPECT_TRUE(reply.ok()) << reply.status();
    return {{MemberId(reply->member()), Incarnation(reply->incarnation())}, 0, {}};
  }

  absl::StatusOr<HeartbeatReply> TryBeat(Process* process, HeartbeatRequest request = {}) {
    request.set_member(process->key.member.value());
    request.set_incarnation(process->key.incarnation.value());
    request.set_beat(++process->beat);
    HeartbeatReply reply;
    if (const absl::Status status = core.Heartbeat(request, now, &reply); !status.ok()) return status;
    return reply;
  }
  HeartbeatReply Beat(Process* process, const HeartbeatRequest& request = {}) {
    const auto reply = TryBeat(process, request);
    EXPECT_TRUE(reply.ok()) << reply.status();
    if (!reply.ok()) return {};
    for (const SampleRange& range : reply->granted()) process->held.push_back(RangeFromProto(range));
    return *reply;
  }
  HeartbeatReply Want(Process* worker, int64_t samples) {
    HeartbeatRequest request;
    request.set_want_samples(samples);
    return Beat(worker, request);
  }
  // Says what it holds, attached to `parent` (a worker).
  HeartbeatReply Assert(Process* process, MemberKey parent = {}) {
    HeartbeatRequest request;
    request.mutable_holdings()->set_term(history.term());
    request.mutable_holdings()->set_parent_member(parent.member.value());
    request.mutable_holdings()->set_parent_incarnation(parent.incarnation.value());
    for (const LeasedRange& range : process->held) *request.mutable_holdings()->add_ranges() = RangeToProto(range);
    return Beat(process, request);
  }
  HeartbeatReply BeIdle(Process* worker) {
    HeartbeatRequest request;
    request.set_idle(true);
    return Beat(worker, request);
  }

  // All join; with the last one's question the run starts, and then each worker holds two samples.
  void Start() {
    aggregator_b = Join(ROLE_AGGREGATOR, "beijing", "agg");
    aggregator_s = Join(ROLE_AGGREGATOR, "shenzhen", "agg");
    b0 = Join(ROLE_WORKER, "beijing", "b0");
    b1 = Join(ROLE_WORKER, "beijing", "b1");
    s0 = Join(ROLE_WORKER, "shenzhen", "s0");
    for (Process* worker : {&b0, &b1, &s0}) Want(worker, 2);
    for (Process* worker : {&b0, &b1}) Want(worker, 2);
    EXPECT_EQ(core.phase(), CoordinatorCore::Phase::kTraining);
    (void)core.TakeEffects();
  }
  // The region contributes all that the worker holds.
  Manifest ManifestOf(const Process& aggregator, const Process& worker) {
    Manifest manifest;
    manifest.sender = aggregator.key;
    manifest.sequence = Sequence(++sequences[aggregator.key]);
    manifest.ranges = worker.held;
    return manifest;
  }
  void Commit(const Process& aggregator, Process* worker) {
    const Manifest manifest = ManifestOf(aggregator, *worker);
    std::string detail;
    ASSERT_EQ(core.Admit(manifest, RecordOf(manifest), &detail), VERDICT_ACCEPTED) << detail;
    NoteMerged(manifest);
    core.Merged({manifest}, now);
    worker->held.clear();
  }
  // The worker takes everything that is available.
  void TakeAll(Process* worker) {
    for (int i = 0; i < 100 && core.ledger().available() > 0; ++i) Want(worker, 40);
  }
  void BeatAllBut(const Process* silent) {
    for (Process* process : {&aggregator_b, &aggregator_s, &b0, &b1, &s0}) {
      if (process != silent) Beat(process);
    }
  }
  template <typename T>
  std::vector<T> Effects() {
    std::vector<T> found;
    for (const CoordinatorCore::Effect& effect : core.TakeEffects()) {
      if (const T* one = std::get_if<T>(&effect)) found.push_back(*one);
    }
    return found;
  }

  absl::Time now;
  int64_t pids = 0;
  std::string host = "a-host";  // Of who joins next.
  RootHistory history;          // Of what the core wrote down.
  int64_t records = 0;
  CoordinatorCore core;
  Process aggregator_b, aggregator_s, b0, b1, s0;
  std::map<MemberKey, int64_t> sequences;
};

inline HeartbeatRequest FenceDoneFor(MemberKey key, const std::vector<LeasedRange>& custody) {
  HeartbeatRequest request;
  FenceDone* done = request.add_fence_done();
  done->set_member(key.member.value());
  done->set_incarnation(key.incarnation.value());
  for (const LeasedRange& range : custody) *done->add_custody() = RangeToProto(range);
  return request;
}

// The (member, incarnation) pairs that an aggregator is told to fence.
inline std::vector<std::pair<int64_t, int64_t>> Fences(const HeartbeatReply& reply) {
  std::vector<std::pair<int64_t, int64_t>> fences;
  for (const Life& fence : reply.fence()) fences.emplace_back(fence.member(), fence.incarnation());
  return fences;
}
inline std::pair<int64_t, int64_t> FenceOf(const Process& process) {
  return {process.key.member.value(), process.key.incarnation.value()};
}

}  // namespace wukong

#endif  // WUKONG_COORDINATOR_TEST_CLUSTER_H_
