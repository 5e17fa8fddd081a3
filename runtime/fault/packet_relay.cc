#include "runtime/fault/packet_relay.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <deque>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/mutex.h"
#include "runtime/fault/packet_model.h"

namespace wukong {
namespace {

constexpr size_t kPacketBytesMax = 65536;
// In one direction of the link; where its bandwidth is unlimited nothing else bounds it.
constexpr int64_t kLinkBytesMax = 64 << 20;

class PacketRelay final : public EmulatedLink {
 public:
  PacketRelay(JoinedNetwork* network, const PacketRelayOptions& options, int wake)
      : address_(absl::StrCat(network->near_address, ":", options.port)),
        near_(std::move(network->near_tun)),
        far_(std::move(network->far_tun)),
        wake_(wake),
        up_(options.up, options.seed, "up", far_.get(), near_.get()),
        down_(options.down, options.seed, "down", near_.get(), far_.get()) {
    thread_ = std::thread([this] { Run(); });
  }
  ~PacketRelay() override {
    {
      MutexLock lock(mutex_);
      stopping_ = true;
    }
    Wake();
    thread_.join();
  }

  std::string address() const override { return address_; }
  void SetShape(LinkDirection direction, const LinkShape& shape) override {
    MutexLock lock(mutex_);
    Of(direction).model.SetShape(shape, clock_.Now());
  }
  void SetCut(LinkDirection direction, bool cut) override {
    MutexLock lock(mutex_);
    Of(direction).model.SetCut(cut);
  }
  LinkStats stats(LinkDirection direction) const override {
    MutexLock lock(mutex_);
    const Direction& one = direction == LinkDirection::kUp ? up_ : down_;
    LinkStats stats;
    stats.bytes = one.delivered_bytes;
    stats.losses = one.model.lost() + one.model.overflown();
    stats.queued_max = one.model.queued_max();
    return stats;
  }

 private:
  struct Packet {
    absl::Time arrival;
    std::string bytes;
  };
  struct Direction {
    Direction(const LinkShape& shape, uint64_t seed, absl::string_view name, int from_tun, int to_tun)
        : model(shape, seed, name), from(from_tun), to(to_tun) {}
    PacketModel model;
    const int from;
    const int to;
    std::deque<Packet> in_flight;  // By arrival.
    int64_t in_flight_bytes = 0;
    int64_t delivered_bytes = 0;
  };

  Direction& Of(LinkDirection direction) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return direction == LinkDirection::kUp ? up_ : down_;
  }

  void Wake() const {
    const uint64_t one = 1;
    // It cannot be full: nobody adds more than a few.
    [[maybe_unused]] const ssize_t written = ::write(wake_.get(), &one, sizeof(one));
  }

  // Takes what came in, as long as there is something.
  void Receive(Direction* direction, absl::Duration rtt) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    ssize_t bytes = 0;
    while ((bytes = ::read(direction->from, buffer_.data(), buffer_.size())) > 0) {
      if ((static_cast<unsigned char>(buffer_[0]) >> 4) != 4) continue;  // Nobody here speaks IPv6.
      if (direction->in_flight_bytes + bytes > kLinkBytesMax) continue;
      const std::optional<absl::Time> arrival = direction->model.Send(bytes, rtt, clock_.Now());
      if (!arrival.has_value()) continue;
      direction->in_flight.push_back({*arrival, std::string(buffer_.data(), static_cast<size_t>(bytes))});
      direction->in_flight_bytes += bytes;
    }
  }

  // Hands over what has arrived.
  void Deliver(Direction* direction, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    std::deque<Packet>& packets = direction->in_flight;
    while (!packets.empty() && packets.front().arrival <= now) {
      const std::string& bytes = packets.front().bytes;
      // A device that does not take it drops it, as a router would.
      if (::write(direction->to, bytes.data(), bytes.size()) > 0) {
        direction->delivered_bytes += static_cast<int64_t>(bytes.size());
      }
      direction->in_flight_bytes -= static_cast<int64_t>(bytes.size());
      packets.pop_front();
    }
  }

  void Run() {
    while (true) {
      absl::Time next = absl::InfiniteFuture();
      {
        MutexLock lock(mutex_);
        if (stopping_) return;
        const absl::Duration rtt = up_.model.shape().delay + down_.model.shape().delay;
        for (Direction* direction : {&up_, &down_}) {
          Receive(direction, rtt);
          Deliver(direction, clock_.Now());
          if (!direction->in_flight.empty()) next = std::min(next, direction->in_flight.front().arrival);
        }
      }
      std::array<pollfd, 3> files = {{{near_.get(), POLLIN, 0}, {far_.get(), POLLIN, 0}, {wake_.get(), POLLIN, 0}}};
      const timespec wait = absl::ToTimespec(std::max(absl::ZeroDuration(), next - clock_.Now()));
      ::ppoll(files.data(), files.size(), next == absl::InfiniteFuture() ? nullptr : &wait, nullptr);
    }
  }

  const std::string address_;
  const OwnedDescriptor near_;
  const OwnedDescriptor far_;
  const OwnedDescriptor wake_;
  const RealClock clock_;

  mutable Mutex mutex_;
  Direction up_ ABSL_GUARDED_BY(mutex_);
  Direction down_ ABSL_GUARDED_BY(mutex_);
  std::array<char, kPacketBytesMax> buffer_ ABSL_GUARDED_BY(mutex_) = {};
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // Last: it uses the rest.
};

}  // namespace

absl::StatusOr<std::unique_ptr<EmulatedLink>> StartPacketRelay(JoinedNetwork* network,
                                                               const PacketRelayOptions& options) {
  const int wake = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (wake < 0) return ErrnoToStatus(errno, "cannot start the relay of packets");
  return std::make_unique<PacketRelay>(network, options, wake);
}

}  // namespace wukong
