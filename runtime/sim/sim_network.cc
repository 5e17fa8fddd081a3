#include "runtime/sim/sim_network.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace wukong {
namespace {

constexpr absl::Duration kLocalDelay = absl::Microseconds(100);  // One way inside a region.
constexpr double kLocalBytesPerSecond = 1.25e9;
constexpr int64_t kFrameBytes = 64;  // Of headers, about.

}  // namespace

SimLink::SimLink(EventQueue* queue, const LinkShape& shape, uint64_t seed, std::string name)
    : queue_(queue), seed_(seed), name_(std::move(name)), model_(shape) {}

int64_t SimLink::Open() {
  const int64_t connection = next_connection_++;
  connections_.emplace(connection, StreamModel(seed_, name_, static_cast<uint64_t>(connection)));
  return connection;
}

void SimLink::Send(int64_t connection, int64_t bytes, std::function<void()> departed, std::function<void()> arrived) {
  Connection& from = connections_.at(connection);
  if (from.messages.empty()) turns_.push_back(connection);
  from.messages.push_back({bytes + kFrameBytes, std::move(departed), std::move(arrived)});
  bytes_ += bytes + kFrameBytes;
  Pump();
}

void SimLink::SetShape(const LinkShape& shape) {
  model_.SetShape(shape, queue_->Now());
  for (auto& [number, connection] : connections_) connection.model.Restart(queue_->Now());
  WakeAt(queue_->Now());
}

void SimLink::SetCut(bool cut) {
  cut_ = cut;
  if (cut) return;
  std::deque<std::function<void()>> held = std::move(held_);
  held_.clear();
  model_.HoldUntil(queue_->Now());
  for (auto& arrived : held) queue_->After(model_.shape().delay, std::move(arrived));
  for (auto& [number, connection] : connections_) connection.model.HoldUntil(queue_->Now() + model_.shape().delay);
  WakeAt(queue_->Now());
}

void SimLink::Arrive(std::function<void()> arrived) {
  if (cut_) {
    held_.push_back(std::move(arrived));
  } else {
    arrived();
  }
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
      const absl::Time eligible = connections_.at(*turn).model.eligible_at();
      if (eligible <= now) break;
      soonest = std::min(soonest, eligible);
    }
    if (turn == turns_.end()) {
      WakeAt(soonest);
      return;
    }
    const int64_t number = *turn;
    turns_.erase(turn);
    Connection& connection = connections_.at(number);
    Message& message = connection.messages.front();
    const int64_t bytes = connection.model.NextBytes(model_.shape(), std::min(message.left, model_.QuantumBytes()));
    const StreamModel::Sent sent = connection.model.Send(model_, rtt_, now, bytes);
    message.left -= bytes;
    if (message.left > 0) {
      turns_.push_back(number);
      continue;
    }
    if (message.departed) queue_->At(sent.departure, std::move(message.departed));
    queue_->At(sent.arrival, [this, arrived = std::move(message.arrived)] { Arrive(arrived); });
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

std::shared_ptr<SimNetwork::Stream> SimNetwork::OpenStream(SimProcess* from, SimProcess* to) {
  auto stream = std::make_shared<Stream>();
  stream->queue_ = queue_;
  stream->from_ = from;
  stream->to_ = to;
  stream->from_life_ = from->life();
  stream->to_life_ = to->life();
  stream->link_ = LinkBetween(from->site(), to->site());
  if (stream->link_ != nullptr) stream->connection_ = stream->link_->Open();
  return stream;
}

void SimNetwork::Stream::Send(int64_t bytes, std::function<void()> departed, std::function<void()> receive) {
  auto arrived = [to = to_, life = to_life_, receive = std::move(receive)] {
    if (to->alive() && to->life() == life) to->Deliver(receive);
  };
  std::function<void()> left;
  if (departed) {
    left = [from = from_, life = from_life_, departed = std::move(departed)] {
      if (from->alive() && from->life() == life) from->Deliver(departed);
    };
  }
  if (link_ != nullptr) {
    link_->Send(connection_, bytes, std::move(left), std::move(arrived));
    return;
  }
  const absl::Time departure =
      std::max(queue_->Now(), last_) + absl::Seconds(static_cast<double>(bytes + kFrameBytes) / kLocalBytesPerSecond);
  last_ = departure;
  if (left) queue_->At(departure, std::move(left));
  queue_->At(departure + kLocalDelay, std::move(arrived));
}

void SimNetwork::Carry(SimProcess* from, SimProcess* to, int64_t bytes, std::function<void()> arrived) {
  SimLink* link = LinkBetween(from->site(), to->site());
  if (link == nullptr) {
    queue_->After(kLocalDelay + absl::Seconds(static_cast<double>(bytes + kFrameBytes) / kLocalBytesPerSecond),
                  std::move(arrived));
    return;
  }
  int64_t& connection = connections_[{from, to}];
  if (connection == 0) connection = link->Open();
  link->Send(connection, bytes, nullptr, std::move(arrived));
}

void SimNetwork::Call(SimProcess* from, SimProcess* to, int64_t bytes, absl::Duration timeout,
                      const std::function<void(const Respond&)>& serve,
                      const std::function<void(absl::Status)>& failed) {
  struct State {
    bool over = false;
    int64_t hook = 0;  // At the server, for when it dies.
  };
  auto state = std::make_shared<State>();
  const auto fail = [state, from, life = from->life(), failed](const absl::Status& status) {
    if (state->over || !from->alive() || from->life() != life) return;
    state->over = true;
    from->Deliver([failed, status] { failed(status); });
  };
  from->After(timeout, [fail] { fail(absl::DeadlineExceededError("no answer in time")); });

  const auto arrive = [this, state, from, to, serve, fail, from_life = from->life()](bool first) {
    if (!to->alive()) {
      if (first) Carry(to, from, 0, [fail] { fail(absl::UnavailableError("nobody listens")); });
      return;
    }
    if (first) {
      state->hook = to->OnDeath([this, from, to, fail] {
        Carry(to, from, 0, [fail] { fail(absl::UnavailableError("the connection broke")); });
      });
    }
    to->Deliver([this, state, from, to, serve, from_life, first] {
      serve([this, state, from, to, from_life, first](int64_t reply_bytes, const std::function<void()>& done) {
        if (!first) return;  // Nobody waits for the answer to a second copy.
        to->Forget(state->hook);
        Carry(to, from, reply_bytes, [state, from, from_life, done] {
          if (state->over || !from->alive() || from->life() != from_life) return;
          state->over = true;
          from->Deliver(done);
        });
      });
    });
  };
  const Faults faults = FaultsBetween(from->site(), to->site());
  const absl::Duration rtt = RoundTrip(from->site(), to->site());
  const auto late = [this, rtt] { return absl::Seconds(random_.Exponential(absl::ToDoubleSeconds(rtt) + 0.001)); };
  if (Happens(faults.duplicate)) {
    ++duplicated_;
    queue_->After(late(), [this, from, to, bytes, arrive] { Carry(from, to, bytes, [arrive] { arrive(false); }); });
  }
  absl::Duration delay;
  if (Happens(faults.reorder)) {
    ++reordered_;
    delay = late();
  }
  if (delay > absl::ZeroDuration()) {
    queue_->After(delay, [this, from, to, bytes, arrive] { Carry(from, to, bytes, [arrive] { arrive(true); }); });
  } else {
    Carry(from, to, bytes, [arrive] { arrive(true); });
  }
}

}  // namespace wukong
