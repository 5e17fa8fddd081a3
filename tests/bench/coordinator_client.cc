// Many workers' calls to a coordinator from one process, and an echo of the same messages to compare with: the load of
// tests/bench/coordinator_load, which starts both ends.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "nlohmann/json.hpp"
#include "proto/wire.grpc.pb.h"
#include "runtime/base/clock.h"
#include "runtime/transport/grpc_options.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string coordinator, echo;  // host:port
  int workers = 10000;
  int regions = 10;
  int threads = 16;  // Calls that are under way at once.
  int channels = 4;
  int rounds = 3;
  double seconds = 3;
  int64_t want_samples = 4;
  bool serve_echo = false;
};

// A heartbeat, or one that also brings the record of a step and asks for data: what a worker sends once per range.
enum class Kind { kHeartbeat, kLease };
const char* KindName(Kind kind) { return kind == Kind::kHeartbeat ? "heartbeat" : "lease"; }

// Answers as a coordinator would, without deciding anything.
class Echo final : public Coordinator::Service {
 public:
  grpc::Status Heartbeat(grpc::ServerContext* /*context*/, const HeartbeatRequest* request,
                         HeartbeatReply* reply) override {
    reply->set_term(1);
    reply->set_parent_address("127.0.0.1:65535");
    reply->set_parent_member(1);
    reply->set_parent_incarnation(1);
    reply->set_samples_per_second_reference(request->samples_per_second());
    if (request->want_samples() > 0) {
      SampleRange* range = reply->add_granted();
      range->set_begin(request->beat() << 20);
      range->set_end((request->beat() << 20) + request->want_samples());
      range->set_token((int64_t{1} << 40) + request->beat());
    }
    return grpc::Status::OK;
  }
};

// Until standard input ends, so that it never outlives who started it.
int ServeEcho() {
  Echo echo;
  int port = 0;
  const std::unique_ptr<grpc::Server> server = Listen("127.0.0.1:0", {&echo}, &port);
  if (server == nullptr) {
    std::fprintf(stderr, "coordinator_client: the echo cannot listen on 127.0.0.1\n");
    return 1;
  }
  std::printf("127.0.0.1:%d\n", port);
  std::fflush(stdout);
  while (std::getchar() != EOF) {
  }
  server->Shutdown();
  return 0;
}

struct Worker {
  int64_t member = 0, incarnation = 0;
  int64_t beat = 0;       // The last one to the coordinator.
  int64_t echo_beat = 0;  // And to the echo.
  int64_t step = 0;
};

HeartbeatRequest MakeBeat(const Options& options, Kind kind, bool to_echo, Worker* worker) {
  HeartbeatRequest request;
  request.set_member(worker->member);
  request.set_incarnation(worker->incarnation);
  request.set_beat(to_echo ? ++worker->echo_beat : ++worker->beat);
  request.set_samples_per_second(100 + static_cast<double>(worker->member % 7));
  MemberUsage* usage = request.mutable_usage();
  usage->set_wall_seconds(100.5);
  usage->set_compute_seconds(99.5);
  usage->set_cpu_seconds(99.1);
  usage->set_tokens_computed(1000 * request.beat());
  usage->set_payload_bytes_up(123456789);
  usage->set_payload_bytes_down(123456789);
  usage->set_peak_memory_bytes(400'000'000);
  usage->set_round_trip_seconds(0.151);
  usage->set_contributions_sent(request.beat());
  if (kind == Kind::kHeartbeat) return request;
  request.set_want_samples(options.want_samples);
  StepRecord* step = request.add_steps();
  step->set_time_seconds(100.25);
  step->set_step(++worker->step);
  step->set_tokens(1024);
  step->set_loss(2.5);
  step->set_compute_seconds(0.125);
  step->set_wait_seconds(0.0625);
  step->set_learning_rate(1e-3);
  step->set_gradient_norm(0.5);
  return request;
}

// One thread's share of the workers, and what became of its calls.
struct Lane {
  std::unique_ptr<Coordinator::Stub> coordinator, echo;
  std::vector<Worker> workers;
  size_t next = 0;
  std::vector<double> call_seconds;
  int64_t granted = 0;  // Ranges.
  size_t request_bytes = 0, reply_bytes = 0;
  absl::Status status;

  absl::Status Call(const Options& options, Kind kind, bool to_echo, const Clock& clock) {
    const HeartbeatRequest request = MakeBeat(options, kind, to_echo, &workers[next]);
    next = (next + 1) % workers.size();
    grpc::ClientContext context;
    SetDeadline(&context, absl::Seconds(60));
    HeartbeatReply reply;
    const absl::Time begin = clock.Now();
    const grpc::Status got = (to_echo ? echo : coordinator)->Heartbeat(&context, request, &reply);
    call_seconds.push_back(absl::ToDoubleSeconds(clock.Now() - begin));
    granted += reply.granted_size();
    request_bytes = request.ByteSizeLong();
    reply_bytes = reply.ByteSizeLong();
    return FromGrpc(got, absl::StrCat(to_echo ? "echo" : "coordinator", ", heartbeat of member ", request.member()));
  }
};

absl::StatusOr<JoinReply> JoinRun(Coordinator::Stub* stub, Role role, const std::string& region,
                                  const std::string& digest) {
  JoinRequest request;
  request.set_role(role);
  request.set_region(region);
  request.set_schema_digest(digest);
  request.set_pid(1);
  request.set_host("load");
  if (role == ROLE_AGGREGATOR) request.set_address("127.0.0.1:65535");  // Nobody connects to it.
  grpc::ClientContext context;
  SetDeadline(&context, absl::Seconds(60));
  JoinReply reply;
  const grpc::Status got = stub->Join(&context, request, &reply);
  if (!got.ok()) return FromGrpc(got, absl::StrCat("coordinator, joining ", region));
  return reply;
}

std::string RegionNameOf(int region) { return absl::StrCat("r", region); }

absl::StatusOr<std::string> SchemaDigest(Coordinator::Stub* stub) {
  GetJobRequest request;
  request.set_region(RegionNameOf(0));
  grpc::ClientContext context;
  SetDeadline(&context, absl::Seconds(60));
  GetJobReply reply;
  const grpc::Status got = stub->GetJob(&context, request, &reply);
  if (!got.ok()) return FromGrpc(got, "coordinator, asking for the job");
  return reply.schema_digest();
}

// Runs `body(lane)` on a thread for each lane; the first error.
template <typename Body>
absl::Status OnEachLane(std::vector<Lane>* lanes, Body body) {
  std::vector<std::thread> threads;
  for (Lane& lane : *lanes) threads.emplace_back([&lane, &body] { lane.status = body(&lane); });
  for (std::thread& thread : threads) thread.join();
  for (const Lane& lane : *lanes) {
    if (!lane.status.ok()) return lane.status;
  }
  return absl::OkStatus();
}

double Percentile(const std::vector<double>& sorted, double percent) {
  return sorted[static_cast<size_t>(percent / 100 * static_cast<double>(sorted.size() - 1))];
}

absl::StatusOr<Json> Measure(const Options& options, Kind kind, bool to_echo, std::vector<Lane>* lanes) {
  const RealClock clock;
  for (Lane& lane : *lanes) {
    lane.call_seconds.clear();
    lane.granted = 0;
  }
  const absl::Time begin = clock.Now();
  const absl::Time end = begin + absl::Seconds(options.seconds);
  absl::Status status = OnEachLane(lanes, [&](Lane* lane) {
    while (clock.Now() < end) {
      if (absl::Status called = lane->Call(options, kind, to_echo, clock); !called.ok()) return called;
    }
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  const double seconds = absl::ToDoubleSeconds(clock.Now() - begin);
  std::vector<double> calls;
  int64_t granted = 0;
  for (const Lane& lane : *lanes) {
    calls.insert(calls.end(), lane.call_seconds.begin(), lane.call_seconds.end());
    granted += lane.granted;
  }
  std::sort(calls.begin(), calls.end());
  return Json{{"to", to_echo ? "echo" : "coordinator"},
              {"kind", KindName(kind)},
              {"calls_per_second", static_cast<double>(calls.size()) / seconds},
              {"granted_per_second", static_cast<double>(granted) / seconds},
              {"p50_ms", 1e3 * Percentile(calls, 50)},
              {"p99_ms", 1e3 * Percentile(calls, 99)},
              {"max_ms", 1e3 * calls.back()},
              {"request_bytes", lanes->front().request_bytes},
              {"reply_bytes", lanes->front().reply_bytes}};
}

absl::StatusOr<double> JoinAll(const Options& options, std::vector<Lane>* lanes) {
  const RealClock clock;
  Coordinator::Stub* const stub = lanes->front().coordinator.get();
  const absl::StatusOr<std::string> digest = SchemaDigest(stub);
  if (!digest.ok()) return digest.status();
  for (int region = 0; region < options.regions; ++region) {
    const auto joined = JoinRun(stub, ROLE_AGGREGATOR, RegionNameOf(region), *digest);
    if (!joined.ok()) return joined.status();
  }
  const absl::Time begin = clock.Now();
  int first = 0;
  for (Lane& lane : *lanes) {
    for (int i = first++; i < options.workers; i += static_cast<int>(lanes->size())) {
      lane.workers.emplace_back();
      lane.workers.back().step = i;  // Its number, until it has joined.
    }
  }
  const absl::Status status = OnEachLane(lanes, [&](Lane* lane) {
    for (Worker& worker : lane->workers) {
      const std::string region = RegionNameOf(static_cast<int>(worker.step % options.regions));
      const auto joined = JoinRun(lane->coordinator.get(), ROLE_WORKER, region, *digest);
      if (!joined.ok()) return joined.status();
      worker.member = joined->member();
      worker.incarnation = joined->incarnation();
      worker.step = 0;
    }
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  return absl::ToDoubleSeconds(clock.Now() - begin);
}

absl::Status Run(const Options& options) {
  std::vector<std::shared_ptr<grpc::Channel>> coordinator, echo;
  for (int i = 0; i < options.channels; ++i) {
    coordinator.push_back(MakeChannel(options.coordinator));
    echo.push_back(MakeChannel(options.echo));
  }
  std::vector<Lane> lanes(options.threads);
  for (int i = 0; i < options.threads; ++i) {
    lanes[i].coordinator = Coordinator::NewStub(coordinator[i % options.channels]);
    lanes[i].echo = Coordinator::NewStub(echo[i % options.channels]);
  }
  const absl::StatusOr<double> join_seconds = JoinAll(options, &lanes);
  if (!join_seconds.ok()) return join_seconds.status();
  // Training begins when the last of them has asked for data.
  const RealClock clock;
  absl::Status status = OnEachLane(&lanes, [&](Lane* lane) {
    for (size_t i = 0; i < lane->workers.size(); ++i) {
      if (absl::Status called = lane->Call(options, Kind::kLease, false, clock); !called.ok()) return called;
    }
    return absl::OkStatus();
  });
  if (!status.ok()) return status;

  Json json = {{"workers", options.workers}, {"join_seconds", *join_seconds}, {"measurements", Json::array()}};
  for (int round = 0; round < options.rounds; ++round) {
    for (const Kind kind : {Kind::kHeartbeat, Kind::kLease}) {
      for (const bool second : {false, true}) {
        const bool to_echo = second == (round % 2 == 0);  // Drift of the machine falls on both.
        absl::StatusOr<Json> measured = Measure(options, kind, to_echo, &lanes);
        if (!measured.ok()) return measured.status();
        if (kind == Kind::kLease && (*measured)["granted_per_second"] == 0.0) {
          return absl::InternalError("nothing was leased; is stop.tokens of the job large enough?");
        }
        (*measured)["round"] = round;
        json["measurements"].push_back(*std::move(measured));
      }
    }
  }
  std::printf("%s\n", json.dump().c_str());
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Many workers' heartbeats to a coordinator and to an echo, alternating; prints JSON.");
  app.add_option("--coordinator", options.coordinator, "host:port");
  app.add_option("--echo", options.echo, "host:port of another of these with --serve-echo");
  app.add_option("--workers", options.workers, "Simulated workers")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--regions", options.regions, "Regions r0, r1, ... of the job")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--threads", options.threads, "Calls that are under way at once")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--channels", options.channels, "Connections")->check(CLI::Range(1, 1000))->capture_default_str();
  app.add_option("--rounds", options.rounds)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--seconds", options.seconds, "Of one measurement")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--want-samples", options.want_samples, "Of one lease")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_flag("--serve-echo", options.serve_echo,
               "Be the echo: print its address, and serve until standard input ends");
  CLI11_PARSE(app, argc, argv);
  if (options.serve_echo) return ServeEcho();
  if (options.workers < options.threads) {
    std::fprintf(stderr, "coordinator_client: --workers: expected at least --threads (%d), got %d\n", options.threads,
                 options.workers);
    return 2;
  }
  if (options.coordinator.empty() || options.echo.empty()) {
    std::fprintf(stderr, "coordinator_client: expected --coordinator and --echo, or --serve-echo\n");
    return 2;
  }
  if (const absl::Status status = Run(options); !status.ok()) {
    std::fprintf(stderr, "coordinator_client: %s\n", std::string(status.message()).c_str());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace wukong

int main(int argc, char** argv) { return wukong::Main(argc, argv); }
