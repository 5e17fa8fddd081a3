#include "runtime/fault/wan_relay.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <deque>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/mutex.h"
#include "runtime/fault/byte_queue.h"
#include "runtime/fault/link_model.h"
#include "runtime/fault/tcp_socket.h"

namespace wukong {
namespace {

// Indexes of a connection's two ends, and of its two streams: the stream of an index reads from the end of that index
// and writes to the other one.
constexpr size_t kClient = 0;  // And the stream up.
constexpr size_t kTarget = 1;  // And the stream down.

constexpr size_t kConnectionsMax = 4096;
constexpr int64_t kReadBytesPerTurn = 256 << 10;
constexpr int kPiecesPerWrite = 16;
// The wire is filled this far ahead, so that the thread need not wake for each turn of the queue.
constexpr absl::Duration kHorizon = absl::Milliseconds(1);
// Arrivals closer than this are one, and the thread does not wake more often: what the relay's timing is good for.
constexpr absl::Duration kGrain = absl::Microseconds(100);
constexpr absl::Duration kAcceptRetry = absl::Milliseconds(100);

// epoll's data for what is not an end of a connection; those are (id << 1 | end) with ids from 1.
constexpr uint64_t kListenerTag = 0;
constexpr uint64_t kWakeTag = 1;

// What stands behind the last byte of a stream.
enum class Mark { kNone, kFin, kReset };

struct Connection;

// One direction of one connection. Positions count the stream's bytes from its beginning:
// written <= released <= scheduled <= read, and `bytes` holds those from written to read.
struct Stream {
  Stream(Connection* owner, size_t which, uint64_t seed, uint64_t id)
      : connection(owner), index(which), model(seed, which == kClient ? "up" : "down", id) {}

  struct InFlight {
    int64_t end;
    absl::Time first;    // When the first part of it arrives; later parts are merged into it within kGrain.
    absl::Time arrival;  // When it is released.
    Mark mark;
  };
  struct Stamp {
    int64_t end;
    absl::Time time;  // When the bytes before `end` were read.
  };

  Connection* const connection;
  const size_t index;
  StreamModel model;
  ByteQueue bytes;
  int64_t read = 0;
  int64_t scheduled = 0;
  int64_t released = 0;
  int64_t written = 0;
  std::deque<Stamp> stamps;      // Of the bytes between scheduled and read.
  std::deque<InFlight> flight;   // Of the bytes between released and scheduled.
  Mark pending = Mark::kNone;    // Read from the source, not yet in flight.
  Mark delivered = Mark::kNone;  // Arrived.
  bool ended = false;            // Nothing more is read from the source.
  bool fin_written = false;
  bool discarded = false;                        // The end that it leads to is gone.
  bool full = false;                             // Not read again before a quarter of the room is free.
  bool in_ring = false;                          // Waits for its turn on the wire.
  absl::Time ready_at = absl::InfiniteFuture();  // End of the handshake.
  absl::Time wake_at = absl::InfiniteFuture();   // Its entry in timers_.

  bool HasWork() const { return !discarded && (read > scheduled || pending != Mark::kNone); }
  int64_t Buffered() const { return read - written; }
};

struct End {
  FileDescriptor fd;
  bool connected = false;
  bool readable = false;
  bool writable = false;
  bool hung_up = false;  // A short read does not mean that nothing is left: the end of the stream is there too.
  bool gone = false;
};

struct Connection {
  Connection(uint64_t number, uint64_t seed)
      : id(number), streams{{{this, kClient, seed, number}, {this, kTarget, seed, number}}} {}
  const uint64_t id;
  std::array<End, 2> ends;
  std::array<Stream, 2> streams;
  absl::Time connect_at = absl::InfiniteFuture();
  bool connect_begun = false;
  bool doomed = false;  // Closed, and freed at the end of the turn.
};

class EpollWanRelay final : public WanRelay {
 public:
  EpollWanRelay(const Options& options, const SocketAddress& target, FileDescriptor listener, std::string address)
      : target_(target),
        address_(std::move(address)),
        seed_(options.seed),
        listener_(std::move(listener)),
        epoll_(epoll_create1(EPOLL_CLOEXEC)),
        timer_(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)),
        wake_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)),
        links_{{Link(options.up), Link(options.down)}} {
    MutexLock lock(mutex_);
    SetLimits();
  }

  ~EpollWanRelay() override {
    {
      MutexLock lock(mutex_);
      stopping_ = true;
    }
    Wake();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Run() {
    if (!epoll_.valid() || !timer_.valid() || !wake_.valid()) {
      return ErrnoToStatus(errno, absl::StrCat("making the descriptors of the relay at ", address_));
    }
    // Edge-triggered throughout: an end that is not being read costs nothing, and neither timer nor wake-up need
    // reading.
    if (!Watch(listener_.get(), kListenerTag) || !Watch(timer_.get(), kWakeTag) || !Watch(wake_.get(), kWakeTag)) {
      return ErrnoToStatus(errno, absl::StrCat("watching the descriptors of the relay at ", address_));
    }
    // Signals are for the program's own threads.
    sigset_t all;
    sigset_t before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([this] { Loop(); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    pthread_setname_np(thread_.native_handle(), "wan-relay");
    return absl::OkStatus();
  }

  std::string address() const override { return address_; }

  void SetShape(LinkDirection direction, const LinkShape& shape) override {
    MutexLock lock(mutex_);
    const absl::Time now = clock_.Now();
    const size_t index = Index(direction);
    links_[index].model.SetShape(shape, now);
    SetLimits();
    // The round-trip time of both directions' models may have changed.
    for (auto& [id, connection] : connections_) {
      for (Stream& stream : connection->streams) stream.model.Restart(now);
    }
    refresh_ = true;
    Wake();
  }

  void SetCut(LinkDirection direction, bool cut) override {
    MutexLock lock(mutex_);
    const size_t index = Index(direction);
    Link& link = links_[index];
    if (link.cut == cut) return;
    link.cut = cut;
    const absl::Time now = clock_.Now();
    if (!cut) link.model.HoldUntil(now);
    for (auto& [id, connection] : connections_) {
      if (!connection->connect_begun) BeginHandshake(*connection, now);
      if (cut) continue;
      // What was under way when the link was cut is sent again now.
      Stream& stream = connection->streams[index];
      const absl::Time arrival = now + link.model.shape().delay;
      stream.model.HoldUntil(arrival);
      for (Stream::InFlight& part : stream.flight) part.arrival = std::max(part.arrival, arrival);
    }
    refresh_ = true;
    Wake();
  }

  void Reset() override {
    MutexLock lock(mutex_);
    for (auto& [id, connection] : connections_) Doom(*connection, /*reset=*/true);
    Reap();
  }

  LinkStats stats(LinkDirection direction) const override {
    MutexLock lock(mutex_);
    return links_[Index(direction)].stats;
  }

 private:
  struct Link {
    explicit Link(const LinkShape& shape) : model(shape) {}
    LinkModel model;
    bool cut = false;
    int64_t limit_bytes = 0;   // In flight, per connection.
    std::deque<Stream*> ring;  // Streams that may send now, in the order of their turns.
    LinkStats stats;
  };

  static size_t Index(LinkDirection direction) { return direction == LinkDirection::kUp ? kClient : kTarget; }

  bool Watch(int fd, uint64_t tag) {
    epoll_event event{};
    event.events = EPOLLIN | EPOLLET;
    if (tag > kWakeTag) event.events |= EPOLLOUT | EPOLLRDHUP;
    event.data.u64 = tag;
    return epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0;
  }

  void Wake() {
    const uint64_t one = 1;
    // A full counter has woken the thread already.
    [[maybe_unused]] const ssize_t written = write(wake_.get(), &one, sizeof one);
  }

  void Loop() {
    std::array<epoll_event, 128> events;
    bool more = false;
    while (true) {
      const int count = epoll_wait(epoll_.get(), events.data(), events.size(), more ? 0 : -1);
      MutexLock lock(mutex_);
      if (stopping_) {
        for (auto& [id, connection] : connections_) Doom(*connection, /*reset=*/false);
        Reap();
        return;
      }
      more = Turn(absl::MakeConstSpan(events.data(), count < 0 ? 0 : count));
    }
  }

  // One pass over all that is due; whether there is more to read at once.
  bool Turn(absl::Span<const epoll_event> events) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const absl::Time now = clock_.Now();
    if (std::exchange(refresh_, false)) {
      for (auto& [id, connection] : connections_) {
        for (Stream& stream : connection->streams) {
          if (!connection->doomed) OnTimer(stream, now);
          if (!connection->doomed) Read(stream, now);
        }
      }
    }
    RunTimers(now);
    for (const epoll_event& event : events) {
      if (event.data.u64 == kListenerTag) {
        accept_retry_ = absl::InfinitePast();
      } else if (event.data.u64 != kWakeTag) {
        const auto found = connections_.find(event.data.u64 >> 1);
        // An event may be older than the end of its connection.
        if (found != connections_.end()) OnEvent(*found->second, event.data.u64 & 1, event.events, now);
      }
    }
    if (accept_retry_ <= now) Accept(now);
    for (const uint64_t id : std::exchange(again_, {})) {
      const auto found = connections_.find(id);
      if (found == connections_.end()) continue;
      for (Stream& stream : found->second->streams) Read(stream, now);
    }
    Serve(links_[kClient], now);
    Serve(links_[kTarget], now);
    RunTimers(now);
    Reap();
    ArmTimer(now);
    return !again_.empty();
  }

  void RunTimers(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    while (!timers_.empty() && timers_.begin()->first <= now) OnTimer(*timers_.begin()->second, now);
  }

  void ArmTimer(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    absl::Time next = accept_retry_;
    if (!timers_.empty()) next = std::min(next, timers_.begin()->first);
    for (const Link& link : links_) {
      if (!link.ring.empty() && !link.cut) next = std::min(next, link.model.free_at());
    }
    if (next != absl::InfiniteFuture()) next = std::max(next, now + kGrain);
    if (next == armed_ && armed_ > now) return;
    armed_ = next;
    itimerspec setting{};  // Zero disarms.
    // The clock's origin is that of CLOCK_MONOTONIC.
    if (next != absl::InfiniteFuture()) setting.it_value = absl::ToTimespec(next);
    timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &setting, nullptr);
  }

  void SetLimits() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    for (Link& link : links_) link.limit_bytes = InFlightLimit(link.model.shape(), Rtt());
  }

  absl::Duration Rtt() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return links_[kClient].model.shape().delay + links_[kTarget].model.shape().delay;
  }

  void Accept(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    accept_retry_ = absl::InfiniteFuture();
    while (true) {
      // At the limit, or out of descriptors, connections wait in the kernel's backlog.
      if (connections_.size() >= kConnectionsMax) break;
      FileDescriptor fd(accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (!fd.valid()) {
        if (errno == EAGAIN || errno == EWOULDBLOCK) return;
        if (errno == EINTR || errno == ECONNABORTED || errno == EPROTO) continue;
        break;
      }
      TuneForRelay(fd.get());
      const uint64_t id = ++last_id_;
      auto connection = std::make_unique<Connection>(id, seed_);
      if (!Watch(fd.get(), id << 1 | kClient)) break;
      connection->ends[kClient].fd = std::move(fd);
      connection->ends[kClient].connected = true;
      connection->ends[kClient].writable = true;
      for (Link& link : links_) ++link.stats.connections;
      Connection& added = *connections_.emplace(id, std::move(connection)).first->second;
      BeginHandshake(added, now);
      OnTimer(added.streams[kClient], now);
    }
    accept_retry_ = now + kAcceptRetry;
  }

  // SYN up, SYN-ACK down, then data; the target learns of the connection when the SYN has gone up.
  void BeginHandshake(Connection& connection, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const bool cut = links_[kClient].cut || links_[kTarget].cut;
    const absl::Duration up = links_[kClient].model.shape().delay;
    connection.connect_at = cut ? absl::InfiniteFuture() : now + up;
    connection.streams[kClient].ready_at = cut ? absl::InfiniteFuture() : now + Rtt();
    connection.streams[kTarget].ready_at = cut ? absl::InfiniteFuture() : now + Rtt() + up;
  }

  void Connect(Connection& connection, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    connection.connect_begun = true;
    End& end = connection.ends[kTarget];
    if (end.gone) return;
    end.fd = BeginConnect(target_);
    if (!end.fd.valid() || !Watch(end.fd.get(), connection.id << 1 | kTarget)) Lose(connection, kTarget, now);
  }

  void OnEvent(Connection& connection, size_t index, uint32_t events, absl::Time now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    End& end = connection.ends[index];
    if (connection.doomed || end.gone) return;
    Stream& from = connection.streams[index];
    Stream& to = connection.streams[1 - index];
    if (!end.connected) {
      int error = 0;
      socklen_t size = sizeof error;
      getsockopt(end.fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
      if (error != 0) return Lose(connection, index, now);
      if ((events & EPOLLOUT) == 0) return;
      end.connected = true;
    }
    if ((events & EPOLLERR) != 0 && (from.ended || from.discarded)) return Lose(connection, index, now);
    if ((events & EPOLLOUT) != 0) end.writable = true;
    if ((events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) end.readable = true;
    if ((events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) end.hung_up = true;
    Read(from, now);
    if (!connection.doomed && !end.gone) Flush(to, now);
  }

  void OnTimer(Stream& stream, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Connection& connection = *stream.connection;
    if (stream.index == kClient && !connection.connect_begun && connection.connect_at <= now) Connect(connection, now);
    if (!connection.doomed) Release(stream, now);
    Schedule(stream, now);
  }

  void Read(Stream& stream, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Connection& connection = *stream.connection;
    End& source = connection.ends[stream.index];
    if (connection.doomed || source.gone || !source.readable || stream.ended || stream.discarded) return;
    const int64_t limit = links_[stream.index].limit_bytes;
    // Reading a little whenever a little was sent would cost a system call for each.
    if (stream.full && stream.Buffered() > limit / 4 * 3) return;
    stream.full = false;
    const int64_t before = stream.read;
    while (source.readable) {
      const int64_t room = limit - stream.Buffered();
      const int64_t budget = kReadBytesPerTurn - (stream.read - before);
      if (room <= 0) stream.full = true;
      if (room <= 0 || budget <= 0) break;
      const absl::Span<char> space = stream.bytes.Room(pool_, static_cast<size_t>(std::min(room, budget)));
      const ssize_t count = recv(source.fd.get(), space.data(), space.size(), 0);
      if (count > 0) {
        stream.bytes.Commit(static_cast<size_t>(count));
        stream.read += count;
        if (static_cast<size_t>(count) < space.size() && !source.hung_up) source.readable = false;
      } else if (count == 0) {
        source.readable = false;
        stream.ended = true;
        stream.pending = Mark::kFin;
      } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
        source.readable = false;
      } else if (errno != EINTR) {
        if (stream.read > before) Stamp(stream, now);
        return Lose(connection, stream.index, now);
      }
    }
    if (source.readable && !stream.full) again_.push_back(connection.id);
    if (stream.read > before) Stamp(stream, now);
    Schedule(stream, now);
  }

  static void Stamp(Stream& stream, absl::Time now) {
    if (!stream.stamps.empty() && now - stream.stamps.back().time <= kGrain) {
      stream.stamps.back().end = stream.read;
    } else {
      stream.stamps.push_back({stream.read, now});
    }
  }

  // An end was reset, or could not be reached: the other end learns of it behind the bytes that were under way.
  void Lose(Connection& connection, size_t index, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    End& end = connection.ends[index];
    end.gone = true;
    end.fd.Close();
    Stream& to = connection.streams[1 - index];
    to.discarded = true;
    to.bytes.Clear(pool_);
    to.stamps.clear();
    to.flight.clear();
    to.read = to.scheduled = to.released = to.written;
    if (connection.ends[1 - index].gone) return Doom(connection, /*reset=*/true);
    Stream& from = connection.streams[index];
    from.ended = true;
    from.pending = Mark::kReset;
    Schedule(to, now);
    Schedule(from, now);
  }

  // When the stream's next bytes may go on the wire, if it has work.
  static absl::Time EligibleAt(const Stream& stream) {
    if (stream.read > stream.scheduled) return std::max(stream.ready_at, stream.model.eligible_at());
    return stream.pending == Mark::kReset ? absl::InfinitePast() : stream.ready_at;
  }

  // Puts the stream into the ring when it may send, and sets its timer.
  void Schedule(Stream& stream, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Connection& connection = *stream.connection;
    Link& link = links_[stream.index];
    absl::Time wake = absl::InfiniteFuture();
    if (!connection.doomed) {
      if (stream.index == kClient && !connection.connect_begun) wake = connection.connect_at;
      if (!link.cut) {
        if (!stream.flight.empty()) wake = std::min(wake, stream.flight.front().arrival);
        if (stream.HasWork() && !stream.in_ring) {
          const absl::Time eligible = EligibleAt(stream);
          if (eligible <= now + kHorizon) {
            stream.in_ring = true;
            link.ring.push_back(&stream);
          } else {
            wake = std::min(wake, eligible);
          }
        }
      }
    }
    if (wake == stream.wake_at) return;
    if (stream.wake_at != absl::InfiniteFuture()) timers_.erase({stream.wake_at, &stream});
    stream.wake_at = wake;
    if (wake != absl::InfiniteFuture()) timers_.insert({wake, &stream});
  }

  // Fills the wire, turn by turn.
  void Serve(Link& link, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    while (!link.cut && !link.ring.empty() && link.model.free_at() <= now + kHorizon) {
      Stream& stream = *link.ring.front();
      link.ring.pop_front();
      stream.in_ring = false;
      if (stream.HasWork() && !stream.connection->doomed) Send(stream, link, now);
      Schedule(stream, now);
    }
  }

  void Send(Stream& stream, Link& link, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Mark mark = Mark::kNone;
    StreamModel::Sent sent;
    if (stream.read > stream.scheduled) {
      const int64_t bytes = stream.model.NextBytes(link.model.shape(),
                                                   std::min(stream.read - stream.scheduled, link.model.QuantumBytes()));
      const absl::Time earliest = std::max(stream.stamps.front().time, stream.ready_at);
      sent = stream.model.Send(link.model, Rtt(), earliest, bytes);
      stream.scheduled += bytes;
      while (!stream.stamps.empty() && stream.stamps.front().end <= stream.scheduled) stream.stamps.pop_front();
      link.stats.losses += sent.lost ? 1 : 0;
      link.stats.queued_max = std::max(link.stats.queued_max, sent.departure - earliest);
    } else {
      mark = std::exchange(stream.pending, Mark::kNone);
      sent = stream.model.Send(link.model, Rtt(), now, 0);
    }
    if (mark == Mark::kNone && !stream.flight.empty() && stream.flight.back().mark == Mark::kNone &&
        sent.arrival - stream.flight.back().first <= kGrain) {
      stream.flight.back().end = stream.scheduled;
      stream.flight.back().arrival = sent.arrival;
    } else {
      stream.flight.push_back({stream.scheduled, sent.arrival, sent.arrival, mark});
    }
  }

  void Release(Stream& stream, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (links_[stream.index].cut || stream.flight.empty() || stream.flight.front().arrival > now) return;
    while (!stream.flight.empty() && stream.flight.front().arrival <= now) {
      stream.released = stream.flight.front().end;
      if (stream.flight.front().mark != Mark::kNone) stream.delivered = stream.flight.front().mark;
      stream.flight.pop_front();
    }
    Flush(stream, now);
  }

  void Flush(Stream& stream, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Connection& connection = *stream.connection;
    End& sink = connection.ends[1 - stream.index];
    while (stream.written < stream.released && sink.connected && sink.writable) {
      std::array<iovec, kPiecesPerWrite> pieces;
      msghdr message{};
      message.msg_iov = pieces.data();
      message.msg_iovlen =
          stream.bytes.Gather(static_cast<size_t>(stream.released - stream.written), pieces.data(), pieces.size());
      const ssize_t count = sendmsg(sink.fd.get(), &message, MSG_NOSIGNAL);
      if (count >= 0) {
        stream.bytes.Pop(pool_, static_cast<size_t>(count));
        stream.written += count;
        links_[stream.index].stats.bytes += count;
      } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
        sink.writable = false;
      } else if (errno != EINTR) {
        return Lose(connection, 1 - stream.index, now);
      }
    }
    if (stream.delivered == Mark::kReset) return Doom(connection, /*reset=*/true);
    if (stream.delivered == Mark::kFin && !stream.fin_written && stream.written == stream.released && sink.connected) {
      stream.fin_written = true;
      shutdown(sink.fd.get(), SHUT_WR);
      if (connection.streams[1 - stream.index].fin_written) return Doom(connection, /*reset=*/false);
    }
    Read(stream, now);
  }

  void Doom(Connection& connection, bool reset) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (connection.doomed) return;
    connection.doomed = true;
    doomed_.push_back(connection.id);
    for (End& end : connection.ends) {
      if (reset && end.fd.valid()) ResetOnClose(end.fd.get());
      end.fd.Close();
    }
    for (Stream& stream : connection.streams) {
      stream.bytes.Clear(pool_);
      Schedule(stream, absl::InfinitePast());
    }
  }

  void Reap() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    for (const uint64_t id : std::exchange(doomed_, {})) {
      for (const Stream& stream : connections_.at(id)->streams) {
        std::deque<Stream*>& ring = links_[stream.index].ring;
        if (stream.in_ring) ring.erase(std::remove(ring.begin(), ring.end(), &stream), ring.end());
      }
      connections_.erase(id);
    }
  }

  const RealClock clock_;
  const SocketAddress target_;
  const std::string address_;
  const uint64_t seed_;
  const FileDescriptor listener_;
  const FileDescriptor epoll_;
  const FileDescriptor timer_;
  const FileDescriptor wake_;
  std::thread thread_;

  mutable Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  bool refresh_ ABSL_GUARDED_BY(mutex_) = false;  // Every stream's timer is to be set anew.
  BlockPool pool_ ABSL_GUARDED_BY(mutex_);
  std::array<Link, 2> links_ ABSL_GUARDED_BY(mutex_);
  uint64_t last_id_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::flat_hash_map<uint64_t, std::unique_ptr<Connection>> connections_ ABSL_GUARDED_BY(mutex_);
  std::set<std::pair<absl::Time, Stream*>> timers_ ABSL_GUARDED_BY(mutex_);
  std::vector<uint64_t> again_ ABSL_GUARDED_BY(mutex_);   // Connections with more to read at once.
  std::vector<uint64_t> doomed_ ABSL_GUARDED_BY(mutex_);  // Connections to free.
  absl::Time accept_retry_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
  absl::Time armed_ ABSL_GUARDED_BY(mutex_) = absl::InfiniteFuture();
};

}  // namespace

absl::StatusOr<std::unique_ptr<WanRelay>> WanRelay::Start(const Options& options) {
  absl::StatusOr<SocketAddress> target = ResolveAddress(options.target, /*to_listen=*/false);
  if (!target.ok()) {
    return absl::Status(target.status().code(), absl::StrCat("relay's target: ", target.status().message()));
  }
  absl::StatusOr<SocketAddress> listen = ResolveAddress(options.listen, /*to_listen=*/true);
  if (!listen.ok()) {
    return absl::Status(listen.status().code(), absl::StrCat("relay's own address: ", listen.status().message()));
  }
  absl::StatusOr<FileDescriptor> listener = ListenOn(*listen, options.listen);
  if (!listener.ok()) {
    return absl::Status(listener.status().code(), absl::StrCat("relay: ", listener.status().message()));
  }
  absl::StatusOr<std::string> address = LocalAddress(listener->get());
  if (!address.ok()) return address.status();
  auto relay = std::make_unique<EpollWanRelay>(options, *target, *std::move(listener), *std::move(address));
  if (absl::Status status = relay->Run(); !status.ok()) return status;
  return relay;
}

}  // namespace wukong
