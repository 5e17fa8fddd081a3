// A child's connection to its parent node: it follows the parent's parameters and carries contributions up.
#ifndef WUKONG_RUNTIME_TRANSPORT_PARENT_LINK_H_
#define WUKONG_RUNTIME_TRANSPORT_PARENT_LINK_H_

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "proto/wire.grpc.pb.h"
#include "runtime/base/mutex.h"
#include "runtime/model/parameter_layout.h"
#include "runtime/sync/node_engine.h"
#include "runtime/sync/outgoing_payload.h"
#include "runtime/sync/public_copy.h"
#include "runtime/sync/replica.h"
#include "runtime/sync/stream_tuner.h"
#include "runtime/sync/types.h"

namespace wukong {

// Thread-safe. Calls that fail because the parent or the network is away are repeated with backoff until Shutdown; the
// receiver makes a repeated contribution a no-op. A parent that does not want this child (ABORTED) is away too: whether
// a process is fenced, it learns from the coordinator.
class ParentLink final : public ParentPort {
 public:
  struct Options {
    std::string address;
    std::string parent_name;  // For messages: "root", "aggregator of shenzhen".
    MemberKey self;
    MemberKey parent;  // Zero: the root. Another life of it at the same address is as good as away.
    std::string schema_digest;
    std::vector<FragmentSpan> fragments;
    Sequence first_sequence{1};  // Of the contributions that this parent will get.
    // How long its connections may say nothing (grpc_options.h): kSilence, or kBulkSilence over a wide area.
    absl::Duration silence = absl::Seconds(10);
    absl::Duration rpc_timeout = absl::Seconds(60);  // Of a contribution without bytes (TransferTimeout).
    int streams_max = 1;                             // Connections that the parameters of one direction go over.
    int in_flight_max = 1;                           // Contributions that are sent and not answered.
    int versions_ahead = 1;                          // That may come beyond the one that was looked at (VersionSeen).
    absl::Duration round_trip;                       // As far as is known, for the first guess at how many.
    uint64_t seed = 1;                               // Of the backoff's jitter.
  };
  // Called from the link's threads.
  struct Callbacks {
    std::function<void()> on_version;  // parameters() has a newer whole version.
    // The parent, or another life of it, lets this child follow again after the stream had broken off. May be null.
    std::function<void()> on_back;
    // All of it has been handed to the network: once for each, in their order, before on_answer. May be null.
    std::function<void(Sequence)> on_written;
    // In any order.
    std::function<void(Sequence, Verdict, const std::string& detail)> on_answer;
    // Nothing will come any more: this process runs another model, or another version of this program.
    std::function<void(const absl::Status&)> on_fatal;
  };

  ParentLink(const Options& options, Callbacks callbacks);
  ~ParentLink() override;

  const FollowedParameters& parameters() const override { return parameters_; }

  // Whoever does not call it when a version has come is sent no others, once versions_ahead have come.
  void VersionSeen() override;

  // Queues a contribution, and goes on while it is sent: its first fragments may leave while others are being encoded.
  // Up to in_flight_max are under way, and each begins when the one before it has been written; one that must be sent
  // again may be overtaken.
  absl::Status Send(const Manifest& manifest, const Encode& encode) override;
  // Likewise, of what is encoded.
  void Send(const Manifest& manifest, std::shared_ptr<const EncodedVector> payload);

  // Cancels what is under way and joins the threads: no callback comes any more. Not from a callback.
  void Shutdown();

  // How long the parent has not let this child follow; 0 while it does.
  absl::Duration away() const;

  int64_t payload_bytes_up() const { return bytes_up_; }
  int64_t payload_bytes_down() const { return bytes_down_; }
  int64_t contributions_sent() const { return contributions_sent_; }

 private:
  struct Outgoing {
    Manifest manifest;
    std::shared_ptr<const OutgoingPayload> payload;
  };
  struct Connection {
    std::shared_ptr<grpc::Channel> channel;
    std::unique_ptr<ParameterNode::Stub> stub;
  };
  using Connections = std::deque<Connection>;  // What is there stays where it is.
  // Bytes [offset, offset + length) of a fragment.
  struct Piece {
    int fragment = 0;
    int64_t offset = 0;
    int64_t length = 0;
  };
  class Following;
  class Sending;
  void FollowLoop();
  void SendLoop();
  FollowRequest MakeFollowRequest();
  void SetFollowing(bool following);
  int64_t VersionsArrived();
  void Queue(const Manifest& manifest, std::shared_ptr<const OutgoingPayload> payload);
  // Sends it until it is answered; false when nothing more is to be sent.
  bool Deliver(const Outgoing& outgoing);
  // What the next contribution goes over.
  std::vector<Connection*> SendConnections();
  // Opens connections until there are `count`.
  void Connect(Connections* connections, int count) const;
  PartOf PartOfTransfer(uint64_t transfer) const;
  // Registers the call for Shutdown to cancel; false when it is too late.
  bool Begin(grpc::ClientContext* context);
  void End(grpc::ClientContext* context);
  // False when shutting down.
  bool Backoff(int attempt);

  const Options options_;
  const Callbacks callbacks_;
  // Down and up have connections of their own, so that neither waits in the other's window.
  Connections follow_connections_;  // The follower's thread's. The first is that of Follow.
  StreamTuner follow_streams_;      // Likewise, while it follows under the merge's lock.
  std::atomic<uint64_t> transfers_{0};
  FollowedParameters parameters_;
  std::atomic<int64_t> bytes_up_{0};
  std::atomic<int64_t> bytes_down_{0};
  std::atomic<int64_t> contributions_sent_{0};

  mutable Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Time away_since_ ABSL_GUARDED_BY(mutex_) = absl::Now();  // Infinite while it is followed.
  int64_t versions_arrived_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t versions_seen_ ABSL_GUARDED_BY(mutex_) = 0;  // Of them.
  std::deque<Outgoing> outgoing_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;           // The last one taken from it is not written yet.
  std::set<Sequence> unanswered_ ABSL_GUARDED_BY(mutex_);  // Among outgoing_, or under way.
  Sequence next_sequence_ ABSL_GUARDED_BY(mutex_);         // After the last that came to be sent.
  Connections send_connections_ ABSL_GUARDED_BY(mutex_);
  StreamTuner send_streams_ ABSL_GUARDED_BY(mutex_);
  const absl::Duration follow_timeout_;
  std::set<grpc::ClientContext*> calls_ ABSL_GUARDED_BY(mutex_);  // Under way.

  std::thread follower_;
  std::vector<std::thread> senders_;  // One for each contribution that may be unanswered.
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_TRANSPORT_PARENT_LINK_H_
