#include "runtime/sim/sim_network.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/sync/stream_tuner.h"

namespace wukong {
namespace {

constexpr absl::Duration kLocalDelay = absl::Microseconds(100);  // One way inside a region.
constexpr double kLocalBytesPerSecond = 1.25e9;
constexpr int64_t kFrameBytes = 64;  // Of headers, about.
constexpr size_t kSharesQueued = 2;  // Before each of several connections, as FollowSpread has it.

size_t SharesOf(int64_t bytes, size_t connections) {
  return std::clamp<size_t>(static_cast<size_t>(bytes / kPieceBytesMin), 1, connections);
}

}  // namespace

SimLink::SimLink(EventQueue* queue, const LinkShape& shape, uint64_t seed, std::string name)
    : queue_(queue), seed_(seed), name_(std::move(name)), model_(shape) {}

int64_t SimLink::Open() {
  // They are numbered from 1 where their random streams are chosen.
  connections_.emplace_back(StreamModel(seed_, name_, connections_.size() + 1));
  return static_cast<int64_t>(connections_.size()) - 1;
}

void SimLink::Send(int64_t connection, int64_t bytes, Arrival departed, Arrival arrived) {
  Connection& from = At(connection);
  Message message{bytes + kFrameBytes, std::move(departed), std::move(arrived)};
  bytes_ += message.left;
  const absl::Time now = queue_->Now();
  const bool free = turns_.empty() && !cut_ && model_.free_at() <= now && from.model.eligible_at() <= now;
  if (free && SendPart(&from, &message)) return;
  if (from.messages.empty()) turns_.push_back(connection);
  from.messages.push_back(std::move(message));
  Pump();
}

void SimLink::SetShape(const LinkShape& shape) {
  model_.SetShape(shape, queue_->Now());
  for (Connection& connection : connections_) connection.model.Restart(queue_->Now());
  WakeAt(queue_->Now());
}

void SimLink::SetCut(bool cut) {
  cut_ = cut;
  if (cut) return;
  std::vector<size_t> held;
  held.swap(held_);
  model_.HoldUntil(queue_->Now());
  for (const size_t message : held) {
    queue_->After(model_.shape().delay, Action(), this, static_cast<int64_t>(message));
  }
  for (Connection& connection : connections_) connection.model.HoldUntil(queue_->Now() + model_.shape().delay);
  WakeAt(queue_->Now());
}

void SimLink::Arrive(size_t message) {
  if (cut_) {
    held_.push_back(message);
    return;
  }
  Arrival arrival = std::move(in_flight_[message]);
  free_.push_back(message);
  arrival.Happen();
}

void SimLink::WakeAt(absl::Time time) {
  if (time >= wake_) return;
  wake_ = time;
  queue_->At(time, [this, time] {
    if (wake_ != time) return;  // An earlier one came between.
    wake_ = absl::InfiniteFuture();
    Pump();
  });
}

bool SimLink::SendPart(Connection* connection, Message* message) {
  const int64_t bytes = connection->model.NextBytes(model_.shape(), std::min(message->left, model_.QuantumBytes()));
  const StreamModel::Sent sent = connection->model.Send(model_, rtt_, queue_->Now(), bytes);
  message->left -= bytes;
  if (message->left > 0) return false;
  if (Arrival& departed = message->departed; departed.action) {
    queue_->At(sent.departure, std::move(departed.action), departed.to,
               SimProcess::TagOf(departed.life, /*on_arrival=*/true));
  }
  size_t place = in_flight_.size();
  if (free_.empty()) {
    in_flight_.push_back(std::move(message->arrived));
  } else {
    place = free_.back();
    free_.pop_back();
    in_flight_[place] = std::move(message->arrived);
  }
  queue_->At(sent.arrival, Action(), this, static_cast<int64_t>(place));
  return true;
}

void SimLink::Pump() {
  const absl::Time now = queue_->Now();
  while (!turns_.empty() && !cut_) {
    if (model_.free_at() > now) {
      WakeAt(model_.free_at());
      return;
    }
    // The first whose turn it is and that its own loss lets send.
    absl::Time soonest = absl::InfiniteFuture();
    auto turn = turns_.begin();
    for (; turn != turns_.end(); ++turn) {
      const absl::Time eligible = At(*turn).model.eligible_at();
      if (eligible <= now) break;
      soonest = std::min(soonest, eligible);
    }
    if (turn == turns_.end()) {
      WakeAt(soonest);
      return;
    }
    const int64_t number = *turn;
    turns_.erase(turn);
    Connection& connection = At(number);
    if (!SendPart(&connection, &connection.messages.front())) {
      turns_.push_back(number);
      continue;
    }
    connection.messages.pop_front();
    if (!connection.messages.empty()) turns_.push_back(number);
  }
}

void SimNetwork::AddRegion(const std::string& name, const LinkShape& up, const LinkShape& down) {
  Region region;
  region.up = std::make_unique<SimLink>(queue_, up, seed_, absl::StrCat(name, ".up"));
  region.down = std::make_unique<SimLink>(queue_, down, seed_, absl::StrCat(name, ".down"));
  for (SimLink* link : {region.up.get(), region.down.get()}) link->SetRoundTrip(up.delay + down.delay);
  regions_.push_back(std::move(region));
}

SimLink* SimNetwork::LinkBetween(int from, int to) {
  if (from == to) return nullptr;
  return to < 0 ? regions_[from].up.get() : regions_[to].down.get();
}

SimNetwork::Faults SimNetwork::FaultsBetween(int from, int to) {
  const int region = std::max(from, to);
  return region < 0 ? Faults() : regions_[region].faults;
}

absl::Duration SimNetwork::RoundTrip(int from, int to) {
  if (from == to) return 2 * kLocalDelay;
  const int region = std::max(from, to);
  return regions_[region].up->shape().delay + regions_[region].down->shape().delay;
}

bool SimNetwork::Happens(double probability) { return probability > 0 && random_.Uniform() < probability; }

std::shared_ptr<SimNetwork::Stream> SimNetwork::OpenStream(SimProcess* from, SimProcess* to, int connections) {
  auto stream = std::make_shared<Stream>();
  stream->queue_ = queue_;
  stream->from_ = from;
  stream->to_ = to;
  stream->from_life_ = from->life();
  stream->to_life_ = to->life();
  stream->link_ = LinkBetween(from->site(), to->site());
  for (int i = 0; i < connections && stream->link_ != nullptr; ++i) {
    stream->connections_.push_back(stream->link_->Open());
  }
  return stream;
}

void SimNetwork::Stream::Send(int64_t bytes, Action ready, Action receive) {
  if (link_ == nullptr) {
    const absl::Time departure =
        std::max(queue_->Now(), last_) + absl::Seconds(static_cast<double>(bytes + kFrameBytes) / kLocalBytesPerSecond);
    last_ = departure;
    if (ready) queue_->At(departure, std::move(ready), from_, SimProcess::TagOf(from_life_, /*on_arrival=*/true));
    queue_->At(departure + kLocalDelay, std::move(receive), to_, SimProcess::TagOf(to_life_, /*on_arrival=*/true));
    return;
  }
  const size_t connections = connections_.size();
  if (connections == 1) {
    link_->Send(connections_[0], bytes, {from_, from_life_, std::move(ready)}, {to_, to_life_, std::move(receive)});
    return;
  }
  const size_t shares = SharesOf(bytes, connections);
  std::shared_ptr<Spread> spread = spread_.lock();
  if (spread == nullptr) {
    spread_ = spread = std::make_shared<Spread>();
    spread->queued.resize(connections);
  }
  const int64_t number = spread->delivered + static_cast<int64_t>(spread->messages.size());
  spread->messages.push_back({shares, std::move(receive)});
  for (size_t i = 0; i < shares; ++i) {
    const size_t at = turn_++ % connections;
    ++spread->queued[at];
    link_->Send(connections_[at], bytes / static_cast<int64_t>(shares),
                {from_, from_life_,
                 [spread, at] {
                   --spread->queued[at];
                   if (!spread->ready || spread->queued[spread->ready_at] >= kSharesQueued) return;
                   std::exchange(spread->ready, Action())();
                 }},
                {to_, to_life_, [spread, number] {
                   --spread->messages[number - spread->delivered].missing;
                   while (!spread->messages.empty() && spread->messages.front().missing == 0) {
                     Action next = std::move(spread->messages.front().receive);
                     spread->messages.pop_front();
                     ++spread->delivered;
                     next();
                   }
                 }});
  }
  if (!ready) return;
  const size_t next = turn_ % connections;
  if (spread->queued[next] < kSharesQueued) {
    queue_->At(queue_->Now(), std::move(ready), from_, SimProcess::TagOf(from_life_, /*on_arrival=*/true));
  } else {
    spread->ready = std::move(ready);
    spread->ready_at = next;
  }
}

void SimNetwork::Carry(SimProcess* from, SimProcess* to, int64_t bytes, Action arrived, int connections,
                       Action departed) {
  SimLink* link = LinkBetween(from->site(), to->site());
  if (link == nullptr) {
    const absl::Duration wire = absl::Seconds(static_cast<double>(bytes + kFrameBytes) / kLocalBytesPerSecond);
    if (departed) {
      queue_->After(wire, std::move(departed), from, SimProcess::TagOf(from->life(), /*on_arrival=*/true));
    }
    queue_->After(kLocalDelay + wire, std::move(arrived));
    return;
  }
  const size_t shares = SharesOf(bytes, static_cast<size_t>(connections));
  SimProcess::Connections& open = to->site() < 0 ? from->to_root() : to->from_root();
  while (open.size() < shares) open.push_back(link->Open());
  if (shares == 1) {
    Arrival arrival{nullptr, 0, std::move(arrived)};
    if (to->site() >= 0) {
      arrival.memory = {to->object(), to->memory()};
    } else {
      arrival.memory[0] = from->memory_at_root();
      if (!from->from_root().empty()) arrival.memory[1] = regions_[from->site()].down->Memory(from->from_root()[0]);
    }
    link->Send(open[0], bytes, {from, from->life(), std::move(departed)}, std::move(arrival));
    return;
  }
  const auto when_last = [shares](Action action) {
    return [left = std::make_shared<std::pair<size_t, Action>>(shares, std::move(action))] {
      if (--left->first == 0 && left->second) left->second();
    };
  };
  const auto last_departed = when_last(std::move(departed)), last_arrived = when_last(std::move(arrived));
  for (size_t i = 0; i < shares; ++i) {
    link->Send(open[i], bytes / static_cast<int64_t>(shares), {from, from->life(), last_departed},
               {nullptr, 0, last_arrived});
  }
}

// A call under way. Everything that happens on its behalf holds it and nothing else, so that its events are small.
struct SimNetwork::PendingCall {
  SimNetwork* network = nullptr;
  SimProcess* from = nullptr;
  SimProcess* to = nullptr;
  int64_t from_life = 0;
  int64_t hook = 0;  // At the server, for when it dies.
  EventQueue::EventId timeout;
  bool over = false;
  int connections = 1;
  Serve serve;
  Action done;
  Failed failed;
  absl::Status status;
  int64_t bytes = 0;
  std::unique_ptr<Action> departed;  // Of a request that is late.

  // False when nobody waits for the end of the call any more.
  bool End() {
    if (over || !from->alive() || from->life() != from_life) return false;
    over = true;
    network->queue_->Cancel(timeout);
    return true;
  }
  static void Fail(const std::shared_ptr<PendingCall>& call, absl::Status status) {
    if (!call->End()) return;
    call->status = std::move(status);
    call->from->Deliver([call] { call->failed(call->status); });
  }
  static void Arrive(const std::shared_ptr<PendingCall>& call, bool first) {
    SimNetwork* const network = call->network;
    if (!call->to->alive()) {
      if (!first) return;
      network->Carry(call->to, call->from, 0, [call] { Fail(call, absl::UnavailableError("nobody listens")); });
      return;
    }
    if (first) {
      call->hook = call->to->OnDeath([call] {
        call->network->Carry(call->to, call->from, 0,
                             [call] { Fail(call, absl::UnavailableError("the connection broke")); });
      });
      call->to->Deliver([call] { call->serve(Respond(call, true)); });
    } else {
      call->to->Deliver([call] { call->serve(Respond(call, false)); });
    }
  }
};

void SimNetwork::Respond::operator()(int64_t bytes, Action done) const {
  if (!first_) return;
  call_->to->Forget(call_->hook);
  call_->done = std::move(done);
  call_->network->Carry(call_->to, call_->from, bytes, [call = call_] {
    if (call->End()) call->from->Deliver(std::move(call->done));
  });
}

void SimNetwork::Call(SimProcess* from, SimProcess* to, int64_t bytes, absl::Duration timeout, Serve serve,
                      Failed failed, int connections, Action departed) {
  auto call = std::make_shared<PendingCall>();
  call->network = this;
  call->from = from;
  call->to = to;
  call->from_life = from->life();
  call->bytes = bytes;
  call->connections = connections;
  call->serve = std::move(serve);
  call->failed = std::move(failed);
  call->timeout =
      from->After(timeout, [call] { PendingCall::Fail(call, absl::DeadlineExceededError("no answer in time")); });

  const Faults faults = FaultsBetween(from->site(), to->site());
  const absl::Duration rtt = RoundTrip(from->site(), to->site());
  const auto late = [this, rtt] { return absl::Seconds(random_.Exponential(absl::ToDoubleSeconds(rtt) + 0.001)); };
  if (Happens(faults.duplicate)) {
    ++regions_[std::max(from->site(), to->site())].happened.duplicated;
    queue_->After(late(), [call] {
      call->network->Carry(
          call->from, call->to, call->bytes, [call] { PendingCall::Arrive(call, false); }, call->connections);
    });
  }
  absl::Duration delay;
  if (Happens(faults.reorder)) {
    ++regions_[std::max(from->site(), to->site())].happened.reordered;
    delay = late();
  }
  if (delay > absl::ZeroDuration()) {
    call->departed = std::make_unique<Action>(std::move(departed));
    queue_->After(delay, [call] {
      call->network->Carry(
          call->from, call->to, call->bytes, [call] { PendingCall::Arrive(call, true); }, call->connections,
          std::move(*call->departed));
    });
  } else {
    Carry(
        from, to, bytes, [call = std::move(call)] { PendingCall::Arrive(call, true); }, connections,
        std::move(departed));
  }
}

}  // namespace wukong
