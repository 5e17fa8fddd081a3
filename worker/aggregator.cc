#include "worker/aggregator.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
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
#include "worker/node_report.h"
#include "worker/session.h"

namespace wukong {
namespace {

bool IsLoopback(absl::string_view address) {
  return absl::StartsWith(address, "127.") || absl::StartsWith(address, "localhost:") ||
         absl::StartsWith(address, "[::1]:");
}

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
  options.tokens_per_sample = job.model().context();
  options.samples_per_step = LargestStep(job);
  options.self = self;
  options.in_flight_bytes = job.limits().in_flight_bytes();
  return options;
}

// One life of an aggregator, from joining to the end.
class AggregatorLife {
 public:
  AggregatorLife(const AggregatorOptions& options, const StopSignal& stop)
      : options_(options), stop_(stop), session_(options.coordinator, options.region) {}

  absl::Status Run();

 private:
  absl::Status Listen();
  absl::Status Join();
  void Connect();
  void StartHeartbeats();
  // Until the run is over, a signal has come, or it cannot go on.
  absl::Status Serve();
  // The first version makes the node, unless it was damaged meanwhile and is being fetched anew.
  void OpenNode();
  absl::Status Finish(absl::Status outcome);

  // The heartbeat thread's.
  void Fill(HeartbeatRequest* request);
  void FillFromNode(ParameterServer* node, HeartbeatRequest* request);
  void TakeReply(const HeartbeatReply& reply);
  void Fence(MemberKey child);
  // Any thread.
  void OnVersion();
  void End(const absl::Status& status);
  const Job& job() const { return fetched_.job(); }
  template <typename Use>
  void WithNode(Use use) {
    if (ParameterServer* node = node_; node != nullptr) use(*node);
  }

  const AggregatorOptions& options_;
  const StopSignal& stop_;
  const RealClock clock_;
  const absl::Time started_ = clock_.Now();
  Session session_;
  GetJobReply fetched_;
  std::vector<FragmentSpan> fragments_;
  std::string address_;
  MemberKey self_;
  NodeGate gate_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<ParentLink> link_;
  std::vector<float> theta_;
  std::unique_ptr<ParameterServer> parameter_server_;
  std::atomic<ParameterServer*> node_{nullptr};  // The same, once it is open.
  bool stopped_ = false;                         // By a signal.

  // The heartbeat thread's.
  int64_t asking_term_ = 0;  // Of the coordinator that asks what this region owes the root; 0: nobody does.
  std::unique_ptr<NodeReporter> reporter_;

  // What the other threads tell the one that serves.
  Mutex mutex_;
  bool version_ ABSL_GUARDED_BY(mutex_) = false;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status outcome_ ABSL_GUARDED_BY(mutex_);
  std::vector<FenceDone> fence_done_ ABSL_GUARDED_BY(mutex_);
  std::set<MemberKey> fencing_ ABSL_GUARDED_BY(mutex_);
  std::vector<MemberKey> fenced_early_ ABSL_GUARDED_BY(mutex_);  // Before there was a node that would remember it.
};

absl::Status AggregatorLife::Run() {
  absl::StatusOr<GetJobReply> fetched = session_.FetchJob(options_.new_region, options_.connect_timeout, stop_);
  if (!fetched.ok()) return fetched.status();
  fetched_ = *std::move(fetched);
  fragments_ = FragmentsOf(job(), fetched_.parameters());
  if (absl::Status status = Listen(); !status.ok()) return status;
  if (absl::Status status = Join(); !status.ok()) return status;
  Connect();
  StartHeartbeats();
  return Finish(Serve());
}

absl::Status AggregatorLife::Listen() {
  int port = 0;
  server_ = wukong::Listen(options_.listen, {&gate_}, &port);
  if (server_ == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("the aggregator of ", options_.region, " cannot listen on ",
                                                   options_.listen,
                                                   ": the port is in use, or the address is not of this machine"));
  }
  const std::string host = options_.listen.substr(0, options_.listen.rfind(':'));
  address_ = !options_.advertise.empty()           ? options_.advertise
             : host == "0.0.0.0" || host == "[::]" ? absl::StrCat(HostName(), ":", port)
                                                   : absl::StrCat(host, ":", port);
  LOG_IF(WARNING, IsLoopback(address_) && !IsLoopback(options_.coordinator))
      << "the coordinator is on another machine, and workers on others than this one cannot reach " << address_
      << ": give --listen 0.0.0.0:PORT, or --advertise";
  return absl::OkStatus();
}

absl::Status AggregatorLife::Join() {
  JoinRequest join;
  join.set_role(ROLE_AGGREGATOR);
  join.set_name("aggregator");
  join.set_address(address_);
  join.set_new_region(options_.new_region);
  join.set_schema_digest(fetched_.schema_digest());
  const absl::StatusOr<JoinReply> joined = session_.Join(join, options_.connect_timeout, stop_);
  if (!joined.ok()) return joined.status();
  self_ = {MemberId(joined->member()), Incarnation(joined->incarnation())};
  LOG(INFO) << "aggregator of " << options_.region << " is member " << self_.member << ", listens on " << address_
            << (TlsInUse() ? " with TLS" : " without TLS");
  return absl::OkStatus();
}

void AggregatorLife::Connect() {
  ParentLink::Options options;
  options.address = options_.coordinator;
  options.parent_name = "root";
  options.self = self_;
  options.schema_digest = fetched_.schema_digest();
  options.fragments = fragments_;
  options.rpc_timeout = absl::Nanoseconds(job().limits().rpc_ns());
  options.streams_max = job().limits().streams_max();
  options.in_flight_max = job().strategy().in_flight_max();
  options.versions_ahead = VersionsAhead(/*parent_is_root=*/true, fragments_);
  options.round_trip = session_.round_trip();
  options.silence = kBulkSilence;
  options.seed = DeriveSeed(job().seed(), options_.region);
  ParentLink::Callbacks callbacks;
  callbacks.on_version = [this] { OnVersion(); };
  callbacks.on_back = [this] { WithNode([](ParameterServer& node) { node.OnParentBack(); }); };
  callbacks.on_written = [this](Sequence sequence) {
    WithNode([&](ParameterServer& node) { node.OnParentWritten(sequence); });
  };
  callbacks.on_answer = [this](Sequence sequence, Verdict verdict, const std::string&) {
    WithNode([&](ParameterServer& node) { node.OnParentAnswer(sequence, verdict); });
  };
  callbacks.on_fatal = [this](const absl::Status& status) { End(status); };
  link_ = std::make_unique<ParentLink>(options, std::move(callbacks));
}

void AggregatorLife::StartHeartbeats() {
  Session::Callbacks callbacks;
  callbacks.fill = [this](HeartbeatRequest* request) { Fill(request); };
  callbacks.on_reply = [this](const HeartbeatReply& reply) { TakeReply(reply); };
  callbacks.on_lost = [this](const absl::Status& status) { End(status); };
  session_.StartHeartbeats(self_, absl::Nanoseconds(job().limits().heartbeat_ns()), CoordinatorPatience(job().limits()),
                           std::move(callbacks));
}

absl::Status AggregatorLife::Serve() {
  while (true) {
    if (stop_.WaitFor(absl::Seconds(1))) {
      stopped_ = true;
      return absl::OkStatus();
    }
    {
      MutexLock lock(mutex_);
      if (over_) return outcome_;
      if (!version_ || parameter_server_ != nullptr) continue;
      version_ = false;  // Before it is looked at: another may come meanwhile.
    }
    OpenNode();
  }
}

void AggregatorLife::OpenNode() {
  VersionNotes notes;
  bool whole = false;
  link_->parameters().With([&](absl::Span<const float> values, const FollowedParameters::Snapshot& snapshot) {
    whole = snapshot.version.value() > 0;
    theta_.assign(values.begin(), values.end());
    notes.root_version = snapshot.root_version;
    notes.tokens_committed = snapshot.tokens_committed;
  });
  if (!whole) return;
  ParameterServer::Hooks hooks;
  hooks.on_fatal = [this](const absl::Status& status) { End(status); };
  parameter_server_ =
      std::make_unique<ParameterServer>(NodeOptions(job(), fragments_, fetched_.schema_digest(), self_),
                                        std::move(hooks), absl::MakeSpan(theta_), notes, link_.get(), &clock_);
  {
    MutexLock lock(mutex_);
    for (const MemberKey child : fenced_early_) {
      parameter_server_->Fence(child, [](const std::vector<LeasedRange>&) {});
    }
    node_ = parameter_server_.get();
  }
  gate_.Open(parameter_server_.get());
  parameter_server_->OnParentVersion();
}

absl::Status AggregatorLife::Finish(absl::Status outcome) {
  session_.StopHeartbeats(absl::Milliseconds(200));
  if (stopped_ && parameter_server_ != nullptr) {
    parameter_server_->RunExclusive([&](const ParentNode& node) {
      if (node.Custody().empty()) return;
      outcome = RestartSafe(absl::CancelledError(absl::StrCat("preempted: what the workers of ", options_.region,
                                                              " had contributed was not all at the root")));
    });
  }
  link_->Shutdown();
  if (parameter_server_ != nullptr) parameter_server_->Shutdown();
  server_->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(1));
  server_->Wait();
  return outcome;
}

void AggregatorLife::Fill(HeartbeatRequest* request) {
  MemberUsage* usage = request->mutable_usage();
  usage->set_wall_seconds(absl::ToDoubleSeconds(clock_.Now() - started_));
  usage->set_cpu_seconds(ProcessCpuSeconds());
  usage->set_payload_bytes_up(link_->payload_bytes_up());
  usage->set_payload_bytes_down(link_->payload_bytes_down());
  usage->set_contributions_sent(link_->contributions_sent());
  usage->set_peak_memory_bytes(PeakMemoryBytes());
  if (ParameterServer* node = node_; node != nullptr) {
    FillFromNode(node, request);
  } else if (asking_term_ != 0) {  // Who has no node owes nothing.
    request->mutable_holdings()->set_term(std::exchange(asking_term_, 0));
  }
  MutexLock lock(mutex_);
  for (FenceDone& done : fence_done_) {
    // A coordinator that asks again after this is another one, and does not know the answer.
    fencing_.erase({MemberId(done.member()), Incarnation(done.incarnation())});
    *request->add_fence_done() = std::move(done);
  }
  fence_done_.clear();
}

void AggregatorLife::FillFromNode(ParameterServer* node, HeartbeatRequest* request) {
  if (reporter_ == nullptr) {
    const auto post = [node](std::function<void(const ParentNode&)> work) { node->PostExclusive(std::move(work)); };
    reporter_ = std::make_unique<NodeReporter>(post, &clock_);
  }
  const auto report = reporter_->Newest(asking_term_, absl::Nanoseconds(job().limits().heartbeat_ns()));
  if (report == nullptr) return;
  FillNodeReport(*report, request);
  if (asking_term_ == 0 || report->custody_term != asking_term_) return;
  request->mutable_holdings()->set_term(std::exchange(asking_term_, 0));
  for (const LeasedRange& range : report->custody) *request->mutable_holdings()->add_ranges() = RangeToProto(range);
}

void AggregatorLife::TakeReply(const HeartbeatReply& reply) {
  if (reply.assert_holdings()) {
    // What the root has of it already, and what it will not take, it says when this node sends it (again).
    asking_term_ = reply.term();
    session_.Kick();
  }
  for (const Life& fence : reply.fence()) Fence({MemberId(fence.member()), Incarnation(fence.incarnation())});
  WithNode([&](ParameterServer& node) {
    std::set<MemberId> idle;
    for (const int64_t member : reply.idle_members()) idle.insert(MemberId(member));
    node.SetIdle(idle);
    node.SetDraining(reply.drain());  // And looks at the time, whether or not anything changed.
  });
  if (reply.finish()) End(StatusOfFinish(reply));
}

void AggregatorLife::Fence(MemberKey child) {
  {
    MutexLock lock(mutex_);
    if (!fencing_.insert(child).second) return;  // Under way, or done and about to be said.
  }
  const auto done = [this, child](const std::vector<LeasedRange>& custody) {
    FenceDone message;
    message.set_member(child.member.value());
    message.set_incarnation(child.incarnation.value());
    for (const LeasedRange& range : custody) *message.add_custody() = RangeToProto(range);
    MutexLock lock(mutex_);
    fence_done_.push_back(std::move(message));
  };
  gate_.Forget(child);
  LOG(INFO) << "fencing member " << child.member << " incarnation " << child.incarnation;
  ParameterServer* node = nullptr;
  {
    MutexLock lock(mutex_);
    node = node_;  // It is opened under this lock.
    if (node == nullptr) fenced_early_.push_back(child);
  }
  if (node != nullptr) {
    node->Fence(child, done);
  } else {
    done({});
  }
}

void AggregatorLife::OnVersion() {
  WithNode([](ParameterServer& node) { node.OnParentVersion(); });
  MutexLock lock(mutex_);
  if (version_) return;
  version_ = true;
  stop_.Wake();
}

void AggregatorLife::End(const absl::Status& status) {
  MutexLock lock(mutex_);
  if (!over_) outcome_ = status;
  over_ = true;
  stop_.Wake();
}

}  // namespace

absl::Status RunAggregator(const AggregatorOptions& options, const StopSignal& stop) {
  return AggregatorLife(options, stop).Run();
}

}  // namespace wukong
