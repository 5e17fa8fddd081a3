#include "worker/aggregator.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "runtime/base/clock.h"
#include "runtime/base/process_info.h"
#include "runtime/base/random.h"
#include "runtime/base/restart.h"
#include "runtime/model/job_layout.h"
#include "runtime/sync/node_options.h"
#include "runtime/transport/grpc_options.h"
#include "runtime/transport/parameter_server.h"
#include "runtime/transport/parent_link.h"
#include "runtime/transport/rendezvous.h"
#include "worker/session.h"

namespace wukong {
namespace {

// The port must be known before the coordinator says who we are, and that before there are parameters to serve.
class NodeGate final : public ParameterNode::Service {
 public:
  void Open(ParameterServer* node) { node_ = node; }

  grpc::Status Contribute(grpc::ServerContext* context, grpc::ServerReader<ContributeMessage>* reader,
                          ContributeReply* reply) override {
    ParameterServer* node = node_;
    return node == nullptr ? NotYet() : node->Contribute(context, reader, reply);
  }
  grpc::Status ContributePart(grpc::ServerContext* context, grpc::ServerReader<ContributePartMessage>* reader,
                              ContributePartReply* reply) override {
    ParameterServer* node = node_;
    return node == nullptr ? NotYet() : node->ContributePart(context, reader, reply);
  }
  grpc::Status Follow(grpc::ServerContext* context, const FollowRequest* request,
                      grpc::ServerWriter<FollowMessage>* writer) override {
    ParameterServer* node = node_;
    return node == nullptr ? NotYet() : node->Follow(context, request, writer);
  }
  grpc::Status FollowPart(grpc::ServerContext* context, const FollowPartRequest* request,
                          grpc::ServerWriter<FollowMessage>* writer) override {
    ParameterServer* node = node_;
    return node == nullptr ? NotYet() : node->FollowPart(context, request, writer);
  }
  grpc::Status FollowMore(grpc::ServerContext* context, const FollowMoreRequest* request,
                          FollowMoreReply* reply) override {
    ParameterServer* node = node_;
    return node == nullptr ? NotYet() : node->FollowMore(context, request, reply);
  }
  grpc::Status StoreSet(grpc::ServerContext*, const StoreSetRequest* request, StoreSetReply*) override {
    return ServeStoreSet(&store_, *request);
  }
  grpc::Status StoreGet(grpc::ServerContext*, const StoreGetRequest* request, StoreGetReply* reply) override {
    return ServeStoreGet(&store_, *request, reply);
  }
  void Forget(MemberKey worker) { store_.Forget(worker); }

 private:
  static grpc::Status NotYet() {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the aggregator has no parameters yet");
  }
  std::atomic<ParameterServer*> node_{nullptr};
  MemoryStore store_;  // Where the region's workers find one another.
};

ParameterServer::Options NodeOptions(const Job& job, const std::vector<FragmentSpan>& fragments,
                                     const std::string& schema_digest, MemberKey self) {
  ParameterServer::Options options;
  static_cast<NodeEngine::Options&>(options) = NodeOptionsOf(job, /*is_root=*/false, fragments);
  options.codec_up = job.strategy().region().codec_up();
  options.schema_digest = schema_digest;
  options.self = self;
  options.in_flight_bytes = job.limits().in_flight_bytes();
  return options;
}

}  // namespace

absl::Status RunAggregator(const AggregatorOptions& options, const StopSignal& stop) {
  const RealClock clock;
  const absl::Time started = clock.Now();
  Session session(options.coordinator, options.region);
  const absl::StatusOr<GetJobReply> fetched = session.FetchJob(options.new_region, options.connect_timeout, stop);
  if (!fetched.ok()) return fetched.status();
  const Job& job = fetched->job();

  NodeGate gate;
  int port = 0;
  const std::unique_ptr<grpc::Server> server = Listen(options.listen, {&gate}, &port);
  if (server == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("the aggregator of ", options.region, " cannot listen on ",
                                                   options.listen,
                                                   ": the port is in use, or the address is not of this machine"));
  }
  const std::string host = options.listen.substr(0, options.listen.rfind(':'));
  const std::string address = !options.advertise.empty()            ? options.advertise
                              : host == "0.0.0.0" || host == "[::]" ? absl::StrCat(HostName(), ":", port)
                                                                    : absl::StrCat(host, ":", port);

  JoinRequest join;
  join.set_role(ROLE_AGGREGATOR);
  join.set_name("aggregator");
  join.set_address(address);
  join.set_new_region(options.new_region);
  join.set_schema_digest(fetched->schema_digest());
  const absl::StatusOr<JoinReply> joined = session.Join(join, options.connect_timeout, stop);
  if (!joined.ok()) return joined.status();
  const MemberKey self{MemberId(joined->member()), Incarnation(joined->incarnation())};
  LOG(INFO) << "aggregator of " << options.region << " is member " << self.member << ", listens on " << address;

  // What the threads below tell this one.
  struct Shared {
    Mutex mutex;
    bool version ABSL_GUARDED_BY(mutex) = false;
    bool over ABSL_GUARDED_BY(mutex) = false;
    absl::Status outcome ABSL_GUARDED_BY(mutex);
    std::vector<FenceDone> fence_done ABSL_GUARDED_BY(mutex);
    std::set<MemberKey> fencing ABSL_GUARDED_BY(mutex);
    std::vector<MemberKey> fenced_early ABSL_GUARDED_BY(mutex);  // Before there was a node that would remember it.
  } shared;
  const auto end = [&](const absl::Status& status) {
    MutexLock lock(shared.mutex);
    if (!shared.over) shared.outcome = status;
    shared.over = true;
    stop.Wake();
  };

  const std::vector<FragmentSpan> fragments = FragmentsOf(job, fetched->parameters());
  std::atomic<ParameterServer*> node{nullptr};
  int64_t asking_term = 0;  // The heartbeat thread's: to be told what this region owes the root; 0: nobody asks.
  ParentLink::Options link_options;
  link_options.address = options.coordinator;
  link_options.parent_name = "root";
  link_options.self = self;
  link_options.schema_digest = fetched->schema_digest();
  link_options.fragments = fragments;
  link_options.rpc_timeout = absl::Nanoseconds(job.limits().rpc_ns());
  link_options.streams_max = job.limits().streams_max();
  link_options.in_flight_max = job.strategy().in_flight_max();
  link_options.versions_ahead = VersionsAhead(/*parent_is_root=*/true, fragments);
  link_options.round_trip = session.round_trip();
  link_options.seed = DeriveSeed(job.seed(), options.region);
  ParentLink::Callbacks link_callbacks;
  link_callbacks.on_version = [&] {
    if (ParameterServer* open = node; open != nullptr) open->OnParentVersion();
    MutexLock lock(shared.mutex);
    if (shared.version) return;
    shared.version = true;
    stop.Wake();
  };
  link_callbacks.on_back = [&] {
    if (ParameterServer* open = node; open != nullptr) open->OnParentBack();
  };
  link_callbacks.on_written = [&](Sequence sequence) {
    if (ParameterServer* open = node; open != nullptr) open->OnParentWritten(sequence);
  };
  link_callbacks.on_answer = [&](Sequence sequence, Verdict verdict, const std::string&) {
    if (ParameterServer* open = node; open != nullptr) open->OnParentAnswer(sequence, verdict);
  };
  link_callbacks.on_fatal = end;
  ParentLink link(link_options, std::move(link_callbacks));

  Session::Callbacks heartbeat;
  heartbeat.fill = [&](HeartbeatRequest* request) {
    MemberUsage* usage = request->mutable_usage();
    usage->set_wall_seconds(absl::ToDoubleSeconds(clock.Now() - started));
    usage->set_cpu_seconds(ProcessCpuSeconds());
    usage->set_payload_bytes_up(link.payload_bytes_up());
    usage->set_payload_bytes_down(link.payload_bytes_down());
    usage->set_contributions_sent(link.contributions_sent());
    usage->set_peak_memory_bytes(PeakMemoryBytes());
    if (ParameterServer* open = node; open != nullptr) {
      open->RunExclusive([&](const ParentNode& parent) {
        for (const auto& [verdict, count] : parent.stats().contributions) {
          (*usage->mutable_contributions_received())[VerdictName(verdict)] = count;
        }
        for (const auto& [who, count] : parent.stats().refused) {
          RefusedCount* refused = usage->add_refused();
          refused->set_member(who.first.value());
          refused->set_verdict(who.second);
          refused->set_count(count);
        }
        for (const MemberId member : parent.Quarantined(clock.Now())) request->add_quarantined(member.value());
        if (asking_term == 0) return;
        for (const LeasedRange& range : parent.Custody()) {
          *request->mutable_holdings()->add_ranges() = RangeToProto(range);
        }
      });
    }
    if (asking_term != 0) request->mutable_holdings()->set_term(asking_term);
    asking_term = 0;
    MutexLock lock(shared.mutex);
    for (FenceDone& done : shared.fence_done) {
      // A coordinator that asks again after this is another one, and does not know the answer.
      shared.fencing.erase({MemberId(done.member()), Incarnation(done.incarnation())});
      *request->add_fence_done() = std::move(done);
    }
    shared.fence_done.clear();
  };
  heartbeat.on_reply = [&](const HeartbeatReply& reply) {
    ParameterServer* open = node;
    if (reply.assert_holdings()) {
      // What the root has of it already, and what it will not take, it says when this node sends it (again).
      asking_term = reply.term();
      session.Kick();
    }
    for (const Life& fence : reply.fence()) {
      const MemberKey child{MemberId(fence.member()), Incarnation(fence.incarnation())};
      {
        MutexLock lock(shared.mutex);
        if (!shared.fencing.insert(child).second) continue;  // Under way, or done and about to be said.
      }
      const auto done = [&shared, child](const std::vector<LeasedRange>& custody) {
        FenceDone message;
        message.set_member(child.member.value());
        message.set_incarnation(child.incarnation.value());
        for (const LeasedRange& range : custody) *message.add_custody() = RangeToProto(range);
        MutexLock lock(shared.mutex);
        shared.fence_done.push_back(std::move(message));
      };
      gate.Forget(child);
      LOG(INFO) << "fencing member " << child.member << " incarnation " << child.incarnation;
      ParameterServer* there = nullptr;
      {
        MutexLock lock(shared.mutex);
        there = node;  // It is opened under this lock.
        if (there == nullptr) shared.fenced_early.push_back(child);
      }
      if (there != nullptr) {
        there->Fence(child, done);
      } else {
        done({});
      }
    }
    if (open != nullptr) {
      std::set<MemberId> idle;
      for (const int64_t member : reply.idle_members()) idle.insert(MemberId(member));
      open->SetIdle(idle);
      open->SetDraining(reply.drain());  // And looks at the time, whether or not anything changed.
    }
    if (reply.finish()) {
      end(StatusOfFinish(reply));
    }
  };
  heartbeat.on_lost = end;
  session.StartHeartbeats(self, absl::Nanoseconds(job.limits().heartbeat_ns()),
                          absl::Nanoseconds(job.limits().start_ns()), std::move(heartbeat));

  // The first version makes the node.
  std::vector<float> theta;
  std::unique_ptr<ParameterServer> parameter_server;
  absl::Status outcome;
  bool stopped = false;
  while (true) {
    stopped = stop.WaitFor(absl::Seconds(1));
    if (stopped) break;
    MutexLock lock(shared.mutex);
    if (shared.over) {
      outcome = shared.outcome;
      break;
    }
    if (shared.version && parameter_server == nullptr) {
      VersionNotes notes;
      bool whole = false;
      link.parameters().With([&](absl::Span<const float> values, const FollowedParameters::Snapshot& snapshot) {
        whole = snapshot.version.value() > 0;
        theta.assign(values.begin(), values.end());
        notes.root_version = snapshot.root_version;
        notes.tokens_committed = snapshot.tokens_committed;
      });
      if (!whole) {  // Damaged meanwhile, and being fetched anew.
        shared.version = false;
        continue;
      }
      ParameterServer::Hooks hooks;
      hooks.on_fatal = end;
      parameter_server =
          std::make_unique<ParameterServer>(NodeOptions(job, fragments, fetched->schema_digest(), self),
                                            std::move(hooks), absl::MakeSpan(theta), notes, &link, &clock);
      for (const MemberKey child : shared.fenced_early) {
        parameter_server->Fence(child, [](const std::vector<LeasedRange>&) {});
      }
      node = parameter_server.get();
      gate.Open(parameter_server.get());
      parameter_server->OnParentVersion();
    }
  }
  session.StopHeartbeats(absl::Milliseconds(200));
  if (stopped && parameter_server != nullptr) {
    parameter_server->RunExclusive([&](const ParentNode& parent) {
      if (parent.Custody().empty()) return;
      outcome = RestartSafe(absl::CancelledError(
          absl::StrCat("preempted: what the workers of ", options.region, " had contributed was not all at the root")));
    });
  }
  link.Shutdown();
  if (parameter_server != nullptr) parameter_server->Shutdown();
  server->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
  server->Wait();
  return outcome;
}

}  // namespace wukong
