// The simulated network: one link per region and direction with the arithmetic of the emulated WAN
// (runtime/fault/link_model.h), shared turn by turn among the connections on it, and fast lines inside a region.
#ifndef WUKONG_RUNTIME_SIM_SIM_NETWORK_H_
#define WUKONG_RUNTIME_SIM_SIM_NETWORK_H_

#include <algorithm>
#include <array>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "runtime/base/random.h"
#include "runtime/fault/link_model.h"
#include "runtime/sim/event_queue.h"
#include "runtime/sim/sim_process.h"

namespace wukong {

// Where bytes arrive: at a process in one of its lives, or (no process) in the network itself.
struct Arrival {
  SimProcess* to = nullptr;
  int64_t life = 0;
  Action action;
  // Memory that it will need.
  std::array<absl::Span<const char>, 2> memory = {};
  void Happen() {
    if (to == nullptr) {
      action();
    } else {
      to->Happen(SimProcess::TagOf(life, /*on_arrival=*/true), std::move(action));
    }
  }
};

// One direction of a link. A cut link holds what is on it, as TCP does under a partition, and delivers when it heals.
class SimLink final : public EventQueue::Place {
 public:
  SimLink(EventQueue* queue, const LinkShape& shape, uint64_t seed, std::string name);

  // Bytes of one connection arrive in the order in which they were sent.
  int64_t Open();
  // `departed` (its action may be null) when the last byte is on the wire; `arrived` at the other end.
  void Send(int64_t connection, int64_t bytes, Arrival departed, Arrival arrived);

  const LinkShape& shape() const { return model_.shape(); }
  void SetShape(const LinkShape& shape);
  void SetRoundTrip(absl::Duration rtt) { rtt_ = rtt; }
  void SetCut(bool cut);
  int64_t bytes() const { return bytes_; }
  // Of a connection; until another one is opened.
  absl::Span<const char> Memory(int64_t connection) const {
    return {reinterpret_cast<const char*>(&connections_[static_cast<size_t>(connection)]), sizeof(Connection)};
  }

 private:
  struct Message {
    int64_t left = 0;
    Arrival departed;
    Arrival arrived;
  };
  struct Connection {
    explicit Connection(const StreamModel& stream) : model(stream) {}
    StreamModel model;
    std::list<Message> messages;
  };
  Connection& At(int64_t connection) { return connections_[static_cast<size_t>(connection)]; }
  // Now. True when it was the last part of the message.
  bool SendPart(Connection* connection, Message* message);
  void Pump();
  void WakeAt(absl::Time time);
  // What is on the link arrives: `tag` is its place in in_flight_.
  void Happen(int64_t tag, Action&& /*none*/) override { Arrive(static_cast<size_t>(tag)); }
  void Soon(int64_t tag) const override {
    const Arrival& arrival = in_flight_[static_cast<size_t>(tag)];
    EventQueue::Prefetch({reinterpret_cast<const char*>(&arrival), sizeof arrival});
  }
  void VerySoon(int64_t tag) const override {
    const Arrival& arrival = in_flight_[static_cast<size_t>(tag)];
    if (arrival.action) EventQueue::PrefetchCaptures(arrival.action);
    for (const absl::Span<const char> memory : arrival.memory) EventQueue::Prefetch(memory);
  }
  void Arrive(size_t message);

  EventQueue* const queue_;
  const uint64_t seed_;
  const std::string name_;
  LinkModel model_;
  absl::Duration rtt_;
  std::vector<Connection> connections_;
  std::deque<int64_t> turns_;       // Connections that have something to send.
  std::vector<Arrival> in_flight_;  // Between departure and arrival; what is not is in free_.
  std::vector<size_t> free_;
  bool cut_ = false;
  std::vector<size_t> held_;  // In in_flight_: what would have arrived while the link was cut.
  absl::Time wake_ = absl::InfiniteFuture();
  int64_t bytes_ = 0;
};

class SimNetwork {
 public:
  // Of messages, both on the WAN and inside regions.
  struct Faults {
    double duplicate = 0;  // A call's request arrives twice.
    double reorder = 0;    // A call's request is late by about a round trip, and others overtake it.
    double corrupt = 0;    // Bytes of a payload change.
  };
  // Messages to which that happened.
  struct Happened {
    int64_t duplicated = 0, reordered = 0, corrupted = 0;
  };

  SimNetwork(EventQueue* queue, uint64_t seed) : queue_(queue), seed_(seed) {}

  // Regions are numbered in the order of coming.
  void AddRegion(const std::string& name, const LinkShape& up, const LinkShape& down);
  SimLink& up(int region) { return *regions_[region].up; }
  SimLink& down(int region) { return *regions_[region].down; }
  Faults& faults(int region) { return regions_[region].faults; }
  // From `from` to `to`; null inside a region, or at the root.
  SimLink* LinkBetween(int from, int to);
  Faults FaultsBetween(int from, int to);
  absl::Duration RoundTrip(int from, int to);
  // What a call from this process to the root needs here.
  absl::Span<const char> MemoryOfCalls(const SimProcess& process) const {
    if (process.to_root().empty()) return {};
    return regions_[process.site()].up->Memory(process.to_root()[0]);
  }

  // An ordered stream of messages, each spread over `connections`. It ends with either process; after that nothing is
  // delivered.
  class Stream {
   public:
    // `receive` runs in the receiving process, `ready` in the sender's when the next message can be sent: this one has
    // departed, or, where there are several connections, the one whose turn it is has fewer than two shares before it.
    void Send(int64_t bytes, Action ready, Action receive);
    SimProcess* receiver() const { return to_; }

   private:
    friend class SimNetwork;
    EventQueue* queue_ = nullptr;
    SimProcess* from_ = nullptr;
    SimProcess* to_ = nullptr;
    int64_t from_life_ = 0;
    int64_t to_life_ = 0;
    SimLink* link_ = nullptr;
    std::vector<int64_t> connections_;
    // Messages of which shares are on the way, where there are several connections; the first is number `delivered`.
    // Held by the shares: what `receive` holds may hold this stream.
    struct Spread {
      struct Message {
        size_t missing = 0;
        Action receive;
      };
      std::deque<Message> messages;
      int64_t delivered = 0;
      std::vector<size_t> queued;  // Shares per connection that have not departed.
      Action ready;                // Waits for room at this connection.
      size_t ready_at = 0;
    };
    std::weak_ptr<Spread> spread_;
    size_t turn_ = 0;                         // Connections take turns.
    absl::Time last_ = absl::InfinitePast();  // Arrival of the last message, on a line inside a region.
  };
  std::shared_ptr<Stream> OpenStream(SimProcess* from, SimProcess* to, int connections = 1);

  // A call: `serve(respond)` runs at `to`, `respond(bytes, done)` runs `done` at `from` when the answer is there.
  // `failed` runs at `from` when the answer does not come within `timeout`, or `to` is dead or dies. One of the two
  // runs, once; `serve` runs twice for a request that is duplicated. The request is spread over `connections`;
  // `departed` (may be null) runs at `from` when all of it is on the wire.
  class Respond;
  using Serve = absl::AnyInvocable<void(const Respond&)>;
  using Failed = absl::AnyInvocable<void(const absl::Status&)>;
  void Call(SimProcess* from, SimProcess* to, int64_t bytes, absl::Duration timeout, Serve serve, Failed failed,
            int connections = 1, Action departed = {});

  // Draws whether something with this probability happens to a message.
  bool Happens(double probability);
  const Happened& happened(int region) const { return regions_[region].happened; }
  void NoteCorrupted(int from, int to) { ++regions_[std::max(from, to)].happened.corrupted; }

 private:
  struct Region {
    std::unique_ptr<SimLink> up, down;
    Faults faults;
    Happened happened;
  };
  struct PendingCall;
  // A message on the connections that two processes have for their calls.
  void Carry(SimProcess* from, SimProcess* to, int64_t bytes, Action arrived, int connections = 1,
             Action departed = {});

  EventQueue* const queue_;
  const uint64_t seed_;
  Random random_{DeriveSeed(seed_, "sim.network")};
  std::vector<Region> regions_;
};

// Answers a call; may be kept for later.
class SimNetwork::Respond {
 public:
  void operator()(int64_t bytes, Action done) const;
  // Nobody waits for the answer to a second copy.
  bool wanted() const { return first_; }

 private:
  friend class SimNetwork;
  Respond(std::shared_ptr<PendingCall> call, bool first) : call_(std::move(call)), first_(first) {}
  std::shared_ptr<PendingCall> call_;
  bool first_;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_SIM_NETWORK_H_
