// Parameters on their way over a link, with the transport of the product and nothing else. tests/bench/goodput runs it.
//   transfer_bench relay --target HOST:PORT --rtt 150ms ...   an emulated link; prints its address, and what it carried
//   transfer_bench serve --bytes N                            a root; prints its address
//   transfer_bench send --to HOST:PORT --bytes N ...          a region; prints what it saw as JSON
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <iostream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/ascii.h"
#include "absl/time/clock.h"
#include "glog/logging.h"
#include "nlohmann/json.hpp"
#include "runtime/base/clock.h"
#include "runtime/base/mutex.h"
#include "runtime/base/random.h"
#include "runtime/fault/wan_relay.h"
#include "runtime/transport/grpc_options.h"
#include "runtime/transport/parameter_server.h"
#include "runtime/transport/parent_link.h"

namespace wukong {
namespace {

constexpr char kSchema[] = "transfer_bench";
constexpr int64_t kFragmentBytes = 1 << 20;

std::vector<FragmentSpan> Fragments(int64_t bytes) {
  return CutFragments(bytes / static_cast<int64_t>(sizeof(float)), kFragmentBytes);
}

// Until standard input ends: whoever started this is gone.
void AwaitEnd() {
  std::string line;
  while (std::getline(std::cin, line)) {
  }
}

int Relay(const WanRelay::Options& options) {
  const auto relay = WanRelay::Start(options);
  CHECK(relay.ok()) << relay.status();
  std::cout << (*relay)->address() << std::endl;
  AwaitEnd();
  nlohmann::json carried;
  carried["up_bytes"] = (*relay)->stats(LinkDirection::kUp).bytes;
  carried["down_bytes"] = (*relay)->stats(LinkDirection::kDown).bytes;
  std::cout << carried << std::endl;
  return 0;
}

int Serve(int64_t bytes, CodecKind codec) {
  const RealClock clock;
  std::vector<float> theta(bytes / sizeof(float), 0.5F);
  ParameterServer::Options options;
  options.node.is_root = true;
  Level* level = &options.node.level;
  level->set_quorum(1);
  level->set_learning_rate(1);
  level->set_momentum_delay(1);
  level->set_weight(WEIGHT_EQUAL);
  level->set_staleness_max(1000);
  level->set_staleness_decay(STALENESS_DECAY_NONE);
  level->set_mix(1);
  level->set_send_every(1);
  options.node.in_flight_max = 4;
  options.codec_up = codec;
  options.codec_down = CODEC_KIND_FP32;
  options.fragments = Fragments(bytes);
  options.schema_digest = kSchema;
  options.in_flight_bytes = 2 * bytes;
  VersionNotes notes;
  notes.root_version = Version(1);
  ParameterServer server(options, {}, absl::MakeSpan(theta), notes, nullptr, &clock);
  int port = 0;
  const std::unique_ptr<grpc::Server> listening = Listen("127.0.0.1:0", {&server}, &port);
  CHECK(listening != nullptr);
  std::cout << "127.0.0.1:" << port << std::endl;
  AwaitEnd();
  server.Shutdown();
  listening->Shutdown(std::chrono::system_clock::now());
  return 0;
}

// What the link's threads tell.
struct Heard {
  Mutex mutex;
  CondVar changed;
  bool version ABSL_GUARDED_BY(mutex) = false;
  int64_t answers ABSL_GUARDED_BY(mutex) = 0;
  absl::Status fatal ABSL_GUARDED_BY(mutex);
};

struct SendOptions {
  std::string to;
  int64_t bytes = 64 << 20;
  CodecKind codec = CODEC_KIND_FP32;
  int count = 3;
  int streams = 16;
  double round_trip_seconds = 0.15;
  bool whole = false;
};

int Send(const SendOptions& sending) {
  const std::vector<FragmentSpan> fragments = Fragments(sending.bytes);
  std::vector<float> theta(sending.bytes / sizeof(float));
  Replica::Options replica_options;
  replica_options.codec = sending.codec;
  Replica replica(absl::MakeSpan(theta), fragments, replica_options);
  Random random(1);
  for (float& value : theta) value = static_cast<float>(1e-3 * random.Normal());
  const std::vector<float> trained = theta;
  ParentLink::Options options;
  options.address = sending.to;
  options.parent_name = "root";
  options.self = {MemberId(1), Incarnation(1)};
  options.schema_digest = kSchema;
  options.fragments = fragments;
  options.streams_max = sending.streams;
  options.versions_ahead = 1 << 30;
  options.round_trip = absl::Seconds(sending.round_trip_seconds);
  Heard heard;
  ParentLink::Callbacks callbacks;
  callbacks.on_version = [&] {
    MutexLock lock(heard.mutex);
    heard.version = true;
    heard.changed.NotifyAll();
  };
  callbacks.on_answer = [&](Sequence, Verdict verdict, const std::string& detail) {
    CHECK_EQ(verdict, VERDICT_ACCEPTED) << detail;
    MutexLock lock(heard.mutex);
    ++heard.answers;
    heard.changed.NotifyAll();
  };
  callbacks.on_fatal = [&](const absl::Status& status) { LOG(FATAL) << status; };
  const absl::Time began = absl::Now();
  ParentLink link(options, std::move(callbacks));
  // The start of a connection, its windows' growth among it, apart from the rest.
  absl::Time under_way = began;
  int64_t before = 0;
  {
    MutexLock lock(heard.mutex);
    while (!heard.version) {
      heard.changed.WaitFor(heard.mutex, absl::Milliseconds(2));
      if (before > 0 || link.payload_bytes_down() < sending.bytes / 4) continue;
      before = link.payload_bytes_down();
      under_way = absl::Now();
    }
  }
  const absl::Time whole = absl::Now();
  nlohmann::json result;
  result["down_seconds"] = absl::ToDoubleSeconds(whole - began);
  result["down_under_way"] = {{"bytes", link.payload_bytes_down() - before},
                              {"seconds", absl::ToDoubleSeconds(whole - under_way)}};
  for (int i = 1; i <= sending.count; ++i) {
    std::fill(theta.begin(), theta.end(), 0.0F);
    replica.Reset(theta);
    std::copy(trained.begin(), trained.end(), theta.begin());
    Manifest manifest;
    manifest.sequence = Sequence(i);
    manifest.base = manifest.root_base = Version(1);
    manifest.steps = manifest.tokens = 1;
    const absl::Time sent = absl::Now();
    if (sending.whole) {
      const auto payload = replica.Send(manifest.sequence);
      CHECK(payload.ok()) << payload.status();
      result["encode_seconds"].push_back(absl::ToDoubleSeconds(absl::Now() - sent));
      link.Send(manifest, *payload);
    } else {
      const absl::Status encoded = link.Send(manifest, [&](const Replica::Begun& begun) {
        return replica.Send(manifest.sequence, {}, /*whole=*/false, begun);
      });
      CHECK(encoded.ok()) << encoded;
    }
    MutexLock lock(heard.mutex);
    while (heard.answers < i) heard.changed.Wait(heard.mutex);
    result["up_seconds"].push_back(absl::ToDoubleSeconds(absl::Now() - sent));
  }
  link.Shutdown();
  std::cout << result << std::endl;
  return 0;
}

int Main(int argc, char** argv) {
  CLI::App app("Parameters on their way over a link.");
  app.require_subcommand(1);
  SendOptions sent;
  double bandwidth = 1e9;
  std::string codec = "fp32";
  WanRelay::Options relay;
  CLI::App* relaying = app.add_subcommand("relay", "an emulated link");
  relaying->add_option("--target", relay.target, "HOST:PORT that it leads to")->required();
  relaying->add_option("--rtt", sent.round_trip_seconds, "seconds");
  relaying->add_option("--bandwidth", bandwidth, "bits per second");
  relaying->add_option("--loss", relay.up.loss, "share of the segments");
  CLI::App* serving = app.add_subcommand("serve", "a root");
  serving->add_option("--bytes", sent.bytes, "of the parameters as fp32");
  serving->add_option("--codec", codec, "of contributions");
  CLI::App* sending = app.add_subcommand("send", "a region");
  sending->add_option("--to", sent.to, "HOST:PORT")->required();
  sending->add_option("--bytes", sent.bytes, "of the parameters as fp32");
  sending->add_option("--codec", codec, "of contributions");
  sending->add_option("--count", sent.count, "contributions");
  sending->add_option("--streams", sent.streams, "connections at most");
  sending->add_option("--rtt", sent.round_trip_seconds, "seconds, as a region measures it when it joins");
  sending->add_flag("--whole", sent.whole, "encode all of a contribution before it is sent");
  CLI11_PARSE(app, argc, argv);
  if (*relaying) {
    relay.up.delay = absl::Seconds(sent.round_trip_seconds / 2);
    relay.up.bandwidth_bits_per_s = bandwidth;
    relay.down = relay.up;
    return Relay(relay);
  }
  CHECK(CodecKind_Parse("CODEC_KIND_" + absl::AsciiStrToUpper(codec), &sent.codec)) << "no codec is called " << codec;
  return *serving ? Serve(sent.bytes, sent.codec) : Send(sent);
}

}  // namespace
}  // namespace wukong

int main(int argc, char** argv) {
  google::InitGoogleLogging(argv[0]);
  FLAGS_logtostderr = true;
  return wukong::Main(argc, argv);
}
