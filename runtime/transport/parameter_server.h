// The process driver of a parent node, the same for the root and for a region's aggregator: gRPC in front of a
// NodeEngine. All decisions and all work on the vectors run on one executor, in order; gRPC's threads only carry bytes.
#ifndef WUKONG_RUNTIME_TRANSPORT_PARAMETER_SERVER_H_
#define WUKONG_RUNTIME_TRANSPORT_PARAMETER_SERVER_H_

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/job.pb.h"
#include "proto/log.pb.h"
#include "proto/wire.grpc.pb.h"
#include "runtime/base/clock.h"
#include "runtime/base/executor.h"
#include "runtime/base/mutex.h"
#include "runtime/sync/node_engine.h"
#include "runtime/sync/parent_node.h"
#include "runtime/sync/public_copy.h"
#include "runtime/transport/parent_link.h"
#include "runtime/transport/staging_room.h"
#include "runtime/transport/striping.h"

namespace wukong {

class ParameterServer final : public ParameterNode::Service {
 public:
  struct Options : NodeEngine::Options {
    CodecKind codec_up = CODEC_KIND_FP32;  // Of contributions that come in.
    std::string schema_digest;
    int64_t tokens_per_sample = 0;  // What a contribution's tokens must be of its samples; 0: anything.
    int64_t samples_per_step = 0;   // At most; 0: any number. Steps count in weights.
    MemberKey self;                 // Zero at the root.
    // Of contributions, from when their bytes come to their verdict; senders wait beyond it, but for one at a time.
    int64_t in_flight_bytes = 64 << 20;
  };
  using Hooks = NodeEngine::Hooks;  // All run on the node's executor.
  using Restored = NodeEngine::Restored;
  using Vectors = NodeEngine::Vectors;

  // `theta` (values of the model, initialised) and `clock` outlive the server. `up` is null for the root; otherwise a
  // link that outlives it and whose callbacks call OnParentVersion, OnParentBack, OnParentWritten and
  // OnParentAnswer. `restored` may be null.
  ParameterServer(const Options& options, Hooks hooks, absl::Span<float> theta, const VersionNotes& notes,
                  ParentLink* up, const Clock* clock, const Restored* restored = nullptr);
  ~ParameterServer() override;

  // gRPC
  grpc::Status Contribute(grpc::ServerContext* context, grpc::ServerReader<ContributeMessage>* reader,
                          ContributeReply* reply) override;
  grpc::Status ContributePart(grpc::ServerContext* context, grpc::ServerReader<ContributePartMessage>* reader,
                              ContributePartReply* reply) override;
  grpc::Status Follow(grpc::ServerContext* context, const FollowRequest* request,
                      grpc::ServerWriter<FollowMessage>* writer) override;
  grpc::Status FollowPart(grpc::ServerContext* context, const FollowPartRequest* request,
                          grpc::ServerWriter<FollowMessage>* writer) override;
  grpc::Status FollowMore(grpc::ServerContext* context, const FollowMoreRequest* request,
                          FollowMoreReply* reply) override;

  // Any thread.
  void OnParentVersion();
  void OnParentWritten(Sequence sequence);
  void OnParentAnswer(Sequence sequence, Verdict verdict);
  void OnParentBack();
  void SetIdle(const std::set<MemberId>& idle);
  void SetDraining(bool on);
  void Tick();
  // Fences the child, and then calls `done` on the executor with what this node owes the root of the child's ranges.
  void Fence(MemberKey child, std::function<void(std::vector<LeasedRange> custody)> done);
  // Runs `work` on the executor, when everything before it is done and durable, and waits for it.
  void RunExclusive(const std::function<void(const ParentNode& node)>& work);
  // As RunExclusive, and does not wait. False: the server is shut down, and `work` will not run.
  bool PostExclusive(std::function<void(const ParentNode& node)> work);
  // As PostExclusive. `work` gets the vectors beside theta.
  void PostSnapshot(std::function<void(Vectors)> work);
  // Contributions that were not taken up yet are refused from now on, for another life of this node to take.
  void TakeNoMore();
  // The newest published version. Any thread.
  Version version() const { return public_.version(); }

  // Ends every call; no work is taken any more.
  void Shutdown();

  // Contributions that broke off, and of which something is kept.
  int broken_off() const;
  // The most that in_flight_bytes had to bound so far.
  int64_t staged_bytes_max() const { return room_.used_max(); }

 private:
  struct Offer;
  struct Incoming;
  struct Following;
  class Reading;
  // What several calls of one child work on together; there for as long as the first of them lasts.
  using TransferKey = std::tuple<MemberId, Incarnation, uint64_t>;
  template <typename T>
  using Transfers = std::map<TransferKey, std::shared_ptr<T>>;
  void Post(const ParentNode::Event& event);
  // Everything that runs on the executor.
  // UNAVAILABLE: the call is meant for another life of this node.
  absl::Status CheckMeant(const grpc::ServerContext& context) const;
  bool PostWork(std::function<void()> work);
  absl::Status ReadContribution(grpc::ServerContext* context, grpc::ServerReader<ContributeMessage>* reader,
                                const std::shared_ptr<Offer>& offer);
  // Ends all earlier transfers of the contribution. The fragments that they have brought, which are whole, by index;
  // `to` takes over their room.
  std::map<int, std::string> TakeOver(MemberKey sender, Sequence sequence, StagingRoom::Share* to);
  void BeginTransfer(const TransferKey& key, std::shared_ptr<Incoming> incoming);
  // Its call is over. True when what it brought is kept for the next one.
  bool EndTransfer(const TransferKey& key, const std::shared_ptr<Incoming>& incoming, const absl::Status& status);
  // True when one was there.
  bool DropOldestBrokenOff();
  // Waits for room.
  absl::Status AddPiece(grpc::ServerContext* context, Incoming* incoming, FragmentPayload piece);

  // Where a child's Follow broke off, and until when it is kept: what it was being brought to is worth keeping for one
  // that comes back soon, and holds a copy of the parameters.
  struct LeftOff {
    PublicParameters::Cursor cursor;
    absl::Time until;
  };
  PublicParameters::Cursor CursorOf(MemberKey child, PublicParameters::Position have);
  // Null: the child does not follow.
  std::shared_ptr<Following> NewestFollowing(MemberKey child) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What children that broke off have not come back for.
  void DropOld(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The one after it.
  Transfers<Incoming>::iterator Drop(Transfers<Incoming>::iterator transfer) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The contribution was accepted by this node before, and nothing of it need be sent again.
  bool WasAccepted(MemberKey sender, Sequence sequence);

  static TransferKey KeyOf(const PartOf& part);
  // Waits for the transfer, at most `timeout` and as long as the call lives. NOT_FOUND, CANCELLED, UNAVAILABLE.
  template <typename T>
  absl::StatusOr<std::shared_ptr<T>> Await(grpc::ServerContext* context, Transfers<T> ParameterServer::*transfers,
                                           const TransferKey& key, absl::Duration timeout);

  const Options options_;
  ParentLink* const up_;
  NodeEngine engine_;           // The executor's alone, but for the public parameters.
  bool takes_no_more_ = false;  // Likewise.
  PublicParameters& public_ = engine_.public_parameters();
  StagingRoom room_{options_.in_flight_bytes, [this] { return DropOldestBrokenOff(); }};

  mutable Mutex mutex_;
  CondVar transfer_opened_;
  Transfers<Incoming> incoming_ ABSL_GUARDED_BY(mutex_);  // Under way, or broken off.
  Transfers<Following> followings_ ABSL_GUARDED_BY(mutex_);
  std::multimap<MemberKey, grpc::ServerContext*> reading_ ABSL_GUARDED_BY(mutex_);  // Contributions and their parts.
  std::map<MemberKey, std::set<Sequence>> accepted_ ABSL_GUARDED_BY(mutex_);        // The last ones that were answered.
  std::map<MemberKey, LeftOff> left_off_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;

  Executor executor_;  // Last: its thread uses the rest.
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_TRANSPORT_PARAMETER_SERVER_H_
