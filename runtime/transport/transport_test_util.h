// A parameter node and its children for tests, joined by real gRPC on this machine.
#ifndef WUKONG_RUNTIME_TRANSPORT_TRANSPORT_TEST_UTIL_H_
#define WUKONG_RUNTIME_TRANSPORT_TRANSPORT_TEST_UTIL_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "glog/logging.h"
#include "gtest/gtest.h"
#include "runtime/base/clock.h"
#include "runtime/base/mutex.h"
#include "runtime/transport/parameter_server.h"
#include "runtime/transport/parent_link.h"
#include "runtime/transport/test_server.h"

namespace wukong {

inline constexpr char kSchema[] = "schema-of-the-test";
inline constexpr int64_t kValues = 1000;
inline constexpr int64_t kFragmentBytes = 1024;  // Four fragments, the last of another size.
// How long a condition may take before the test fails; reached only by what is broken. Longer than it takes a link to
// notice a connection that was opened while its server was being taken down and that nobody will ever answer on:
// kCallTimeout for a contribution, twice kSilence and what comes before it (grpc_options.h) for following.
inline constexpr absl::Duration kPatience = absl::Seconds(60);
inline constexpr absl::Duration kCallTimeout = absl::Seconds(5);

// State that one thread changes and the test waits for.
class Watched {
 public:
  template <typename Change>
  void Update(Change change) {
    MutexLock lock(mutex_);
    change();
    changed_.NotifyAll();
  }
  // False when `condition` did not come true in time.
  template <typename Condition>
  bool Await(Condition condition) {
    const absl::Time deadline = absl::Now() + kPatience;
    MutexLock lock(mutex_);
    while (!condition()) {
      if (absl::Now() > deadline) return false;
      changed_.WaitFor(mutex_, absl::Milliseconds(100));
    }
    return true;
  }
  template <typename Read>
  auto Get(Read read) {
    MutexLock lock(mutex_);
    return read();
  }

 private:
  Mutex mutex_;
  CondVar changed_;
};

// Quorum 0 is `all`.
inline Level TestLevel(int64_t quorum, CodecKind codec = CODEC_KIND_FP32) {
  Level level;
  level.set_quorum(quorum);
  level.set_learning_rate(1.0);
  level.set_momentum(0);
  level.set_momentum_delay(1);
  level.set_weight(WEIGHT_EQUAL);
  level.set_staleness_max(1000);
  level.set_staleness_decay(STALENESS_DECAY_NONE);
  level.set_mix(1.0);
  level.set_codec_up(codec);
  level.set_codec_down(codec);
  level.set_send_every(1);
  level.set_flush_age_ns(0);
  return level;
}

inline ParameterServer::Options TestNodeOptions(int64_t values, int64_t fragment_bytes, const Level& level) {
  ParameterServer::Options options;
  options.node.is_root = true;
  options.node.level = level;
  options.node.in_flight_max = 4;
  options.codec_up = level.codec_up();
  options.codec_down = level.codec_down();
  options.fragments = CutFragments(values, fragment_bytes);
  options.schema_digest = kSchema;
  return options;
}

// A node behind a gRPC server that can be stopped and started again on its port.
class TestNode {
 public:
  TestNode(const ParameterServer::Options& options, std::vector<float> theta, ParentLink* up = nullptr,
           const VersionNotes& notes = FirstNotes(), const Clock* clock = nullptr)
      : theta_(std::move(theta)) {
    ParameterServer::Hooks hooks;
    hooks.on_merged = [this](const ParentNode::Apply& apply) {
      watched_.Update([&] { merged_.insert(merged_.end(), apply.manifests.begin(), apply.manifests.end()); });
    };
    hooks.on_fatal = [this](const absl::Status& status) { watched_.Update([&] { fatal_.Update(status); }); };
    server_ = std::make_unique<ParameterServer>(options, std::move(hooks), absl::MakeSpan(theta_), notes, up,
                                                clock == nullptr ? &real_clock_ : clock);
    grpc_ = std::make_unique<TestServer>(server_.get());
  }
  ~TestNode() {
    server_->Shutdown();
    StopServing();
  }

  // Port 0 takes a free one.
  void Serve(int port = 0) { grpc_->Start(port); }
  // Cuts every call.
  void StopServing() { grpc_->Stop(); }

  int port() const { return grpc_->port(); }
  std::string address() const { return grpc_->address(); }
  ParameterServer& server() { return *server_; }

  // Read when nothing else is being done.
  std::vector<float> Theta() {
    std::vector<float> theta;
    server_->RunExclusive([&](const ParentNode&) { theta = theta_; });
    return theta;
  }
  Version version() {
    Version version;
    server_->RunExclusive([&](const ParentNode& node) { version = node.version(); });
    return version;
  }
  std::map<Verdict, int64_t> Verdicts() {
    std::map<Verdict, int64_t> verdicts;
    server_->RunExclusive([&](const ParentNode& node) { verdicts = node.stats().contributions; });
    return verdicts;
  }
  bool AwaitMerged(size_t count) {
    return watched_.Await([&] { return merged_.size() >= count; });
  }
  bool AwaitMergedTokens(int64_t tokens) {
    return watched_.Await([&] {
      int64_t sum = 0;
      for (const Manifest& manifest : merged_) sum += manifest.tokens;
      return sum >= tokens;
    });
  }
  std::vector<Manifest> merged() {
    return watched_.Get([&] { return merged_; });
  }
  absl::Status fatal() {
    return watched_.Get([&] { return fatal_; });
  }
  static VersionNotes FirstNotes() {
    VersionNotes notes;
    notes.root_version = Version(1);
    return notes;
  }

 private:
  const RealClock real_clock_;
  std::vector<float> theta_;
  Watched watched_;
  std::vector<Manifest> merged_;  // Under watched_.
  absl::Status fatal_;            // Under watched_.
  std::unique_ptr<ParameterServer> server_;
  std::unique_ptr<TestServer> grpc_;
};

// A ParentLink and what it called back.
class TestChild {
 public:
  using Answer = std::pair<Sequence, Verdict>;

  // `node`, when set later, is told of versions and answers as an aggregator's is.
  TestChild(const std::string& address, int64_t member, const std::vector<FragmentSpan>& fragments,
            const std::string& schema = kSchema, int streams = 1, int in_flight_max = 1, int versions_ahead = 1 << 30) {
    ParentLink::Options options;
    options.streams_max = streams;
    options.in_flight_max = in_flight_max;
    options.versions_ahead = versions_ahead;
    options.round_trip = absl::Seconds(streams > 1 ? 10 : 0);  // As many as may be from the start.
    options.address = address;
    options.parent_name = "node of the test";
    options.self = {MemberId(member), Incarnation(1)};
    options.schema_digest = schema;
    options.fragments = fragments;
    options.rpc_timeout = kCallTimeout;
    options.seed = static_cast<uint64_t>(member);
    ParentLink::Callbacks callbacks;
    callbacks.on_version = [this] {
      if (ParameterServer* node = node_; node != nullptr) node->OnParentVersion();
      watched_.Update([] {});
    };
    callbacks.on_back = [this] {
      if (ParameterServer* node = node_; node != nullptr) node->OnParentBack();
      watched_.Update([&] { ++backs_; });
    };
    callbacks.on_written = [this](Sequence sequence) {
      if (ParameterServer* node = node_; node != nullptr) node->OnParentWritten(sequence);
      watched_.Update([&] { written_.push_back(sequence); });
    };
    callbacks.on_answer = [this](Sequence sequence, Verdict verdict, const std::string&) {
      if (ParameterServer* node = node_; node != nullptr) node->OnParentAnswer(sequence, verdict);
      watched_.Update([&] { answers_.emplace_back(sequence, verdict); });
    };
    callbacks.on_fatal = [this](const absl::Status& status) { watched_.Update([&] { fatal_ = status; }); };
    link_ = std::make_unique<ParentLink>(options, std::move(callbacks));
  }

  ParentLink& link() { return *link_; }
  void SetNode(ParameterServer* node) { node_ = node; }

  FollowedParameters::Snapshot snapshot() const { return link_->parameters().snapshot(); }
  std::vector<float> Values() const {
    return link_->parameters().With([](absl::Span<const float> values, const FollowedParameters::Snapshot&) {
      return std::vector<float>(values.begin(), values.end());
    });
  }
  bool AwaitVersion(Version version) {
    return watched_.Await([&] { return snapshot().version >= version; });
  }
  bool AwaitIncluded(Sequence sequence) {
    return watched_.Await([&] { return snapshot().included >= sequence; });
  }
  bool AwaitBytesDown(int64_t bytes) {
    return AwaitBytes([&] { return link_->payload_bytes_down() >= bytes; });
  }
  bool AwaitBytesUp(int64_t bytes) {
    return AwaitBytes([&] { return link_->payload_bytes_up() >= bytes; });
  }
  bool AwaitValues(const std::vector<float>& values) {
    return watched_.Await([&] { return Values() == values; });
  }
  bool AwaitAnswers(size_t count) {
    return watched_.Await([&] { return answers_.size() >= count; });
  }
  bool AwaitWritten(size_t count) {
    return watched_.Await([&] { return written_.size() >= count; });
  }
  bool AwaitBack(int count) {
    return watched_.Await([&] { return backs_ >= count; });
  }
  bool AwaitFatal() {
    return watched_.Await([&] { return !fatal_.ok(); });
  }
  int backs() {
    return watched_.Get([&] { return backs_; });
  }
  std::vector<Sequence> written() {
    return watched_.Get([&] { return written_; });
  }
  std::vector<Answer> answers() {
    return watched_.Get([&] { return answers_; });
  }
  absl::Status fatal() {
    return watched_.Get([&] { return fatal_; });
  }

 private:
  // The link does not say when it counts a byte.
  template <typename Condition>
  bool AwaitBytes(Condition there) {
    const absl::Time deadline = absl::Now() + kPatience;
    while (!there()) {
      if (absl::Now() > deadline) return false;
      absl::SleepFor(absl::Milliseconds(1));
    }
    return true;
  }

  std::atomic<ParameterServer*> node_{nullptr};
  Watched watched_;
  std::vector<Answer> answers_;    // Under watched_.
  std::vector<Sequence> written_;  // Under watched_.
  int backs_ = 0;                  // Under watched_.
  absl::Status fatal_;             // Under watched_.
  std::unique_ptr<ParentLink> link_;
};

inline Manifest TestManifest(int64_t sequence, int64_t base = 1, int64_t tokens = 10) {
  Manifest manifest;
  manifest.sequence = Sequence(sequence);
  manifest.base = Version(base);
  manifest.root_base = Version(base);
  manifest.steps = 1;
  manifest.tokens = tokens;
  return manifest;
}

inline std::shared_ptr<EncodedVector> Encode(CodecKind kind, const std::vector<FragmentSpan>& fragments,
                                             const std::vector<float>& values) {
  auto encoded = std::make_shared<EncodedVector>();
  encoded->codec = kind;
  for (const FragmentSpan& span : fragments) {
    encoded->fragments.emplace_back();
    const absl::Status status =
        MakeCodec(kind, span)
            ->Encode(absl::MakeConstSpan(values).subspan(span.begin, span.size()), &encoded->fragments.back());
    CHECK(status.ok()) << status;
  }
  return encoded;
}

// The messages of one contribution, in order, for a test to spoil.
inline std::vector<ContributeMessage> Messages(MemberKey sender, Manifest manifest, const EncodedVector& payload) {
  manifest.sender = sender;
  std::vector<ContributeMessage> messages(1);
  ContributionHeader* header = messages[0].mutable_header();
  ManifestToProto(manifest, header);
  header->set_codec(payload.codec);
  header->set_schema_digest(kSchema);
  header->set_fragments(static_cast<int>(payload.fragments.size()));
  header->set_payload_bytes(payload.bytes());
  header->set_streams(1);
  header->set_transfer(manifest.sequence.value());
  for (size_t f = 0; f < payload.fragments.size(); ++f) {
    FragmentPayload* fragment = messages.emplace_back().mutable_fragment();
    fragment->set_index(static_cast<int>(f));
    fragment->set_payload(payload.fragments[f]);
  }
  messages.emplace_back().mutable_end()->set_payload_checksum(payload.checksum());
  return messages;
}

// One Contribute call by hand, meant for a life of the node, by LifeText, or for whoever is there.
inline grpc::Status SendByHand(ParameterNode::Stub* stub, const std::vector<ContributeMessage>& messages,
                               ContributeReply* reply, const std::string& meant_for = "") {
  grpc::ClientContext context;
  if (!meant_for.empty()) context.AddMetadata(kMeantFor, meant_for);
  SetDeadline(&context, kPatience);
  auto writer = stub->Contribute(&context, reply);
  for (const ContributeMessage& message : messages) {
    if (!writer->Write(message)) break;
  }
  writer->WritesDone();
  return writer->Finish();
}

}  // namespace wukong

#endif  // WUKONG_RUNTIME_TRANSPORT_TRANSPORT_TEST_UTIL_H_
