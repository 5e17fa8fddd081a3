// The driver of a parent node, the same for the root and for a region's aggregator: gRPC in front, the pure ParentNode
// in the middle, vectors behind. All decisions and all work on the vectors run on one executor, in order; gRPC's
// threads only carry bytes.
#ifndef WUKONG_RUNTIME_TRANSPORT_PARAMETER_SERVER_H_
#define WUKONG_RUNTIME_TRANSPORT_PARAMETER_SERVER_H_

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "proto/job.pb.h"
#include "proto/wire.grpc.pb.h"
#include "runtime/base/clock.h"
#include "runtime/base/executor.h"
#include "runtime/base/mutex.h"
#include "runtime/sync/outer_optimizer.h"
#include "runtime/sync/parent_node.h"
#include "runtime/sync/public_copy.h"
#include "runtime/sync/replica.h"
#include "runtime/transport/parent_link.h"

namespace wukong {

class ParameterServer final : public ParameterNode::Service {
 public:
  struct Options {
    ParentNode::Options node;
    Progress progress = PROGRESS_PARAMETERS;
    CodecKind codec_up = CODEC_KIND_FP32;    // Of contributions that come in.
    CodecKind codec_down = CODEC_KIND_FP32;  // Of versions that go out.
    std::vector<FragmentSpan> fragments;
    std::string schema_digest;
    // Of contributions between their first byte and their verdict; senders wait beyond it.
    int64_t in_flight_bytes = 64 << 20;
    // Region: how its own progress goes to the root.
    Replica::Options replica;
  };
  // What the owner does; all run on the node's executor.
  struct Hooks {
    // Root: does the sender hold these ranges? Called once per contribution that is otherwise good.
    std::function<Verdict(const Manifest&, std::string* detail)> admit;
    // After a merge is in the parameters.
    std::function<void(const ParentNode::Apply&)> on_merged;
    // A contribution was refused for good.
    std::function<void(const Manifest&, Verdict, const std::string& detail)> on_refused;
    // Root with gradient progress: an optimizer step on theta with the merged gradient.
    std::function<absl::Status(absl::Span<float> gradient)> gradient_step;
    // The node cannot go on.
    std::function<void(const absl::Status&)> on_fatal;
  };

  // `theta` (values of the model, initialised) and `clock` outlive the server. `up` is null for the root; otherwise a
  // link that outlives it and whose callbacks call OnParentVersion and OnParentAnswer.
  ParameterServer(const Options& options, Hooks hooks, absl::Span<float> theta, const VersionNotes& notes,
                  ParentLink* up, const Clock* clock);
  ~ParameterServer() override;

  // gRPC
  grpc::Status Contribute(grpc::ServerContext* context, grpc::ServerReader<ContributeMessage>* reader,
                          ContributeReply* reply) override;
  grpc::Status Follow(grpc::ServerContext* context, const FollowRequest* request,
                      grpc::ServerWriter<FollowMessage>* writer) override;

  // Any thread.
  void OnParentVersion();
  void OnParentAnswer(Sequence sequence, Verdict verdict);
  void SetIdle(const std::set<MemberId>& idle);
  void SetDraining(bool on);
  void Tick();
  // Fences the child, and then calls `done` on the executor with what this node owes the root of the child's ranges.
  void Fence(MemberKey child, std::function<void(std::vector<LeasedRange> custody)> done);
  // Runs `work` on the executor, when everything before it is done, and waits for it.
  void RunExclusive(const std::function<void(const ParentNode& node)>& work);

  // Ends every call; no work is taken any more.
  void Shutdown();

  // The most that in_flight_bytes had to bound so far.
  int64_t staged_bytes_max() const {
    MutexLock lock(mutex_);
    return staged_bytes_max_;
  }

 private:
  struct Offer;
  void Post(const ParentNode::Event& event);
  void Handle(const ParentNode::Event& event);
  void Do(const ParentNode::Check& check);
  void Do(const ParentNode::Reply& reply);
  void Do(const ParentNode::Apply& apply);
  void Do(const ParentNode::Rebase& rebase);
  void Do(const ParentNode::Drop& drop);
  void Do(const ParentNode::Publish& publish);
  void Do(const ParentNode::SendUp& send);
  void Fatal(const absl::Status& status);
  absl::Status ReadContribution(grpc::ServerContext* context, grpc::ServerReader<ContributeMessage>* reader,
                                Offer* offer);

  const Options options_;
  const Hooks hooks_;
  const Clock* const clock_;
  ParentLink* const up_;

  // The executor's alone.
  absl::Span<float> theta_;
  ParentNode node_;
  OuterOptimizer outer_;
  std::unique_ptr<Replica> replica_;  // Region.
  std::map<wukong::Handle, std::shared_ptr<Offer>> offers_;
  std::deque<ParentNode::Event> events_;  // Not handled yet.
  bool handling_ = false;
  bool failed_ = false;

  PublicParameters public_;
  mutable Mutex mutex_;
  CondVar budget_changed_;
  int64_t staged_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t staged_bytes_max_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t next_handle_ ABSL_GUARDED_BY(mutex_) = 1;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;

  Executor executor_;  // Last: its thread uses the rest.
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_TRANSPORT_PARAMETER_SERVER_H_
