// A parent node at work, the same for the root and for a region's aggregator: carries out what the pure ParentNode
// decides on the vectors behind it. Knows neither threads nor network: the process driver
// (runtime/transport/parameter_server.h) and the simulator (runtime/sim) stand around it.
#ifndef WUKONG_RUNTIME_SYNC_NODE_ENGINE_H_
#define WUKONG_RUNTIME_SYNC_NODE_ENGINE_H_

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/job.pb.h"
#include "proto/log.pb.h"
#include "proto/wire.pb.h"
#include "runtime/base/clock.h"
#include "runtime/sync/outer_optimizer.h"
#include "runtime/sync/parent_node.h"
#include "runtime/sync/public_copy.h"
#include "runtime/sync/replica.h"

namespace wukong {

// A child's way to its parent.
class ParentPort {
 public:
  virtual ~ParentPort() = default;
  virtual const FollowedParameters& parameters() const = 0;
  // The newest version that came was looked at: there is room for others.
  virtual void VersionSeen() = 0;
  // Takes a contribution along, which `encode` makes (Replica::Send), beginning while it does so or afterwards; each is
  // answered sometime. Returns what `encode` did. One that failed and was begun is abandoned by then, never counts at
  // the parent, and is not answered.
  using Encode = std::function<absl::StatusOr<std::shared_ptr<const EncodedVector>>(const Replica::Begun& begun)>;
  virtual absl::Status Send(const Manifest& manifest, const Encode& encode) = 0;
};

// Thread-compatible.
class NodeEngine {
 public:
  struct Options {
    ParentNode::Options node;
    Progress progress = PROGRESS_PARAMETERS;
    CodecKind codec_down = CODEC_KIND_FP32;  // Of versions that go out.
    std::vector<FragmentSpan> fragments;
    // Region: how its own progress goes to the root.
    Replica::Options replica;
  };
  // What the owner does.
  struct Hooks {
    // Root: does the sender hold these ranges? Called once per contribution that is otherwise good. Where the node has
    // a log, `accepted` is recorded in the same breath, so that no fence comes between.
    std::function<Verdict(const Manifest&, LogRecord accepted, std::string* detail)> admit;
    // Root with a log. `record` puts a record into it, without I/O. `make_durable` returns when all records so far are
    // on the disk, with UNAVAILABLE when they are not yet (Resume tries again), or with another error when the node is
    // to stop; it is called before anything that follows from a record leaves this node: answers, versions, and
    // on_merged.
    std::function<void(const LogRecord&)> record;
    std::function<absl::Status()> make_durable;
    // After a merge is in the parameters (and durable).
    std::function<void(const ParentNode::Apply&)> on_merged;
    // A contribution was refused for good.
    std::function<void(const Manifest&, Verdict, const std::string& detail)> on_refused;
    // Root with gradient progress: the learning rate for a merge, and an optimizer step on theta with its gradient.
    std::function<double(const ParentNode::Apply&)> gradient_rate;
    std::function<absl::Status(absl::Span<float> gradient, double learning_rate)> gradient_step;
    // The node cannot go on.
    std::function<void(const absl::Status&)> on_fatal;
  };

  // Root: where an earlier life ended. Theta is already there.
  struct Restored {
    RootState state;
    std::vector<float> public_values;
    std::vector<float> momentum;  // Empty without momentum.
    std::vector<float> buffer;
  };

  // One contribution, whole and undamaged.
  struct Contribution {
    ContributionHeader header;
    std::shared_ptr<const EncodedVector> payload;
    // What CheckContribution says of it, where that is known already.
    std::optional<absl::StatusOr<double>> norm;
    std::function<void()> released;  // It no longer counts among those that may hold others up.
    std::function<void(Verdict, const std::string& detail)> answer;
  };

  struct Vectors {
    absl::Span<const float> theta;
    std::vector<float> public_values;
    uint64_t public_checksum = 0;
    absl::Span<const float> momentum;
    absl::Span<const float> buffer;
  };

  // `theta` (values of the model, initialised) and `clock` outlive the engine. `up` is null for the root; otherwise it
  // outlives the engine. `restored` may be null.
  NodeEngine(const Options& options, Hooks hooks, absl::Span<float> theta, const VersionNotes& notes, ParentPort* up,
             const Clock* clock, const Restored* restored = nullptr);

  void Take(Contribution contribution);
  void Handle(const ParentNode::Event& event);
  // Fences the child; what this node owes the root of the child's ranges.
  std::vector<LeasedRange> Fence(MemberKey child);
  // Makes everything so far durable and lets out what waits for it. False when that cannot be (yet).
  bool Flush();
  // Tries again what had to wait for the disk.
  void Resume();
  bool blocked() const { return blocked_; }
  // What waits for the next Flush.
  size_t outbox() const { return outbox_.size(); }

  const ParentNode& node() const { return node_; }
  PublicParameters& public_parameters() { return public_; }
  const PublicParameters& public_parameters() const { return public_; }
  Vectors CopyVectors();

 private:
  // `effect` happens when what it follows from is durable.
  void WhenDurable(std::function<void()> effect);
  void Pump();
  LogRecord AcceptedRecord(const Contribution& contribution, double norm) const;
  void Do(const ParentNode::Check& check);
  void Do(const ParentNode::Keep& keep);
  void Do(const ParentNode::Reply& reply);
  void Do(const ParentNode::Apply& apply);
  void Do(const ParentNode::Rebase& rebase);
  void Do(const ParentNode::Drop& drop);
  void Do(const ParentNode::Publish& publish);
  void Do(const ParentNode::SendUp& send);
  void PublishNow(const ParentNode::Publish& publish);
  void Fatal(const absl::Status& status);

  struct Offer {
    Manifest manifest;
    Contribution contribution;
    void Release() {
      if (contribution.released) std::exchange(contribution.released, nullptr)();
    }
  };

  const Options options_;
  const Hooks hooks_;
  const Clock* const clock_;
  ParentPort* const up_;
  absl::Span<float> theta_;
  ParentNode node_;
  OuterOptimizer outer_;
  std::unique_ptr<Replica> replica_;  // Region.
  int64_t next_handle_ = 1;
  std::map<wukong::Handle, std::shared_ptr<Offer>> offers_;
  std::deque<ParentNode::Event> events_;    // Not handled yet.
  std::deque<ParentNode::Action> actions_;  // Of the last Step, not carried out yet.
  std::function<void()> continuation_;      // Of the action that waits for the disk.
  std::vector<std::function<void()>> outbox_;
  bool recorded_ = false;  // Since the last sync.
  bool handling_ = false;
  bool blocked_ = false;
  bool failed_ = false;
  PublicParameters public_;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SYNC_NODE_ENGINE_H_
