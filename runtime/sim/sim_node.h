// The network's side of nodes in the simulator: what gRPC carries between a parent and its children in production.
#ifndef WUKONG_RUNTIME_SIM_SIM_NODE_H_
#define WUKONG_RUNTIME_SIM_SIM_NODE_H_

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "proto/job.pb.h"
#include "runtime/base/random.h"
#include "runtime/sim/sim_beat.h"
#include "runtime/sim/sim_model.h"
#include "runtime/sim/sim_network.h"
#include "runtime/sim/sim_process.h"
#include "runtime/sim/tape.h"
#include "runtime/sync/node_engine.h"
#include "runtime/sync/stream_tuner.h"

namespace wukong {

// What every simulated process can reach.
struct SimWorld {
  // `the_model` is the job's and outlives this.
  SimWorld(const Job& the_job, uint64_t the_seed, SimModel* the_model)
      : job(the_job), seed(the_seed), model(the_model), network(&queue, the_seed) {}
  void Note(TapeEvent::Kind kind, absl::string_view who, std::array<int64_t, 4> values = {}, std::string text = {}) {
    tape.Add({queue.elapsed(), kind, who, values, std::move(text)});
  }
  const Job job;
  const uint64_t seed;
  SimModel* const model;
  bool counts = false;  // The model is a counter: contributions can be checked against their manifests.
  SimBeats beats;       // Outlives the queue, the network and all processes, which hold them.
  EventQueue queue;
  SimNetwork network;
  Tape tape;
};

// A child's connection to its parent, which both ends hold: whether it is still open.
class SimConnection {
 public:
  bool open() const { return open_; }
  void Close() {
    if (open_ && closed_ != nullptr) ++*closed_;
    open_ = false;
  }
  // Counted there when it is closed.
  void CountIn(std::shared_ptr<int64_t> closed) { closed_ = std::move(closed); }

 private:
  bool open_ = true;
  std::shared_ptr<int64_t> closed_;
};

// The parent's side: contributions come in, versions go out. Lives as long as its process does.
class SimNode {
 public:
  // `engine` may not be there yet: children are then told to come again.
  SimNode(SimWorld* world, SimProcess* process, MemberKey self = {}) : world_(world), process_(process), self_(self) {}

  void SetEngine(NodeEngine* engine);
  NodeEngine* engine() const { return engine_; }

  void Contribute(const ContributionHeader& header, const std::shared_ptr<const EncodedVector>& payload,
                  absl::AnyInvocable<void(absl::StatusOr<ContributeReply>)> respond);
  // Messages go to `child` until either dies or closes the connection; each is given to `take` there.
  struct Follower {
    FollowRequest request;
    std::shared_ptr<SimNetwork::Stream> stream;
    std::shared_ptr<SimConnection> connection;
    std::function<void(FollowMessage)> take;
  };
  // Null when there is nothing to follow yet. Otherwise the child gives what is returned with what it has room for.
  struct Following;
  std::shared_ptr<Following> Follow(Follower follower);
  void FollowMore(const std::shared_ptr<Following>& following, int64_t versions);
  // Sends what there is to send. After everything that may have made a version.
  void Pump();

 private:
  void PumpOne(const std::shared_ptr<Following>& following);
  // Region: what it published since.
  void NotePublished();

  SimWorld* const world_;
  SimProcess* const process_;
  const MemberKey self_;  // Of a region's aggregator.
  NodeEngine* engine_ = nullptr;
  Version published_;
  std::vector<std::shared_ptr<Following>> followers_;
  std::vector<std::shared_ptr<Following>> waiting_;  // For the next version.
  // Since the last Pump: connections that were closed, and the version then.
  std::shared_ptr<int64_t> closed_ = std::make_shared<int64_t>(0);
  Version pumped_;
};

// The child's side, as ParentLink is in production.
class SimUplink final : public ParentPort {
 public:
  struct Options {
    MemberKey self;
    std::vector<FragmentSpan> fragments;
    std::string schema_digest;
    Sequence first_sequence{1};
    int in_flight_max = 1;
    int versions_ahead = 1;
  };
  struct Callbacks {
    std::function<void()> on_version;
    std::function<void()> on_back;             // May be null.
    std::function<void(Sequence)> on_written;  // May be null.
    std::function<void(Sequence, Verdict)> on_answer;
  };
  // `parent()` is the node at `process`, or null while it has none.
  SimUplink(SimWorld* world, SimProcess* self, SimProcess* process, std::function<SimNode*()> parent, Options options,
            Callbacks callbacks);
  ~SimUplink() override {
    *open_ = false;
    connection_->Close();
  }

  const FollowedParameters& parameters() const override { return parameters_; }
  void VersionSeen() override;
  // Begins when it is encoded.
  absl::Status Send(const Manifest& manifest, const Encode& encode) override;
  void Send(const Manifest& manifest, std::shared_ptr<const EncodedVector> payload);

 private:
  struct Outgoing {
    Manifest manifest;
    std::shared_ptr<const EncodedVector> payload;
    bool begun = false;
    int attempt = 0;
  };
  // A contribution on its way, again and again until it is answered.
  struct Sent {
    ContributionHeader header;
    std::shared_ptr<const EncodedVector> payload;
  };
  void Written(Sequence sequence);
  void Answered(Sequence sequence, const absl::StatusOr<ContributeReply>& reply);
  void Connect();
  void ConnectLater();
  void Followed(const std::shared_ptr<SimNode::Following>& following);
  void Take(FollowMessage message, int connections);
  void SendNext();
  void SendOnce(Sequence sequence);
  void SendLater(Sequence sequence);
  // For callbacks that may come when this is gone.
  Action Guard(Action work) {
    return [open = open_, work = std::move(work)]() mutable {
      if (*open) work();
    };
  }

  SimWorld* const world_;
  SimProcess* const self_;
  SimProcess* const process_;
  const std::function<SimNode*()> parent_;
  const Options options_;
  const Callbacks callbacks_;
  FollowedParameters parameters_;
  StreamTuner follow_streams_;
  StreamTuner send_streams_;
  int64_t version_bytes_ = 0;  // Of the version that is coming in.
  absl::Time version_began_;
  // By the connection that is open.
  int64_t versions_arrived_ = 0;
  int64_t versions_seen_ = 0;
  std::function<void(int64_t versions)> follow_more_;  // Null until the parent lets this one follow.
  std::map<Sequence, Outgoing> outgoing_;              // What is not answered.
  std::optional<Sequence> writing_;
  Sequence next_sequence_;  // After the last that came to be sent.
  std::shared_ptr<SimConnection> connection_ =
      std::make_shared<SimConnection>();  // What earlier ones bring is not taken.
  int follow_attempt_ = 0;
  bool away_ = false;  // The connection before this one broke off, or was never made.
  std::shared_ptr<bool> open_ = std::make_shared<bool>(true);
  Random random_;
};

// Of the child `self`, which takes its parent's version as it stands.
void NoteTaken(SimWorld* world, const SimProcess* self, const FollowedParameters& followed, Incarnation parent);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_SIM_NODE_H_
