// One direction of a link that carries packets: which are dropped, and when the others arrive. No I/O, no clock.
#ifndef WUKONG_RUNTIME_FAULT_PACKET_MODEL_H_
#define WUKONG_RUNTIME_FAULT_PACKET_MODEL_H_

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/base/random.h"
#include "runtime/fault/link_model.h"
#include "runtime/fault/wan_relay.h"

namespace wukong {

inline constexpr int64_t kFullPacketBytes = 1500;  // With its headers.

// Bytes that may wait for a wire: the queue of a router. One bandwidth-delay product, at least 64 full packets.
int64_t PacketQueueBytes(const LinkShape& shape, absl::Duration rtt);

class PacketModel {
 public:
  // `name` chooses the streams of random numbers under `seed`.
  PacketModel(const LinkShape& shape, uint64_t seed, absl::string_view name);

  const LinkShape& shape() const { return shape_; }
  void SetShape(const LinkShape& shape, absl::Time now);
  // A direction that is cut drops everything.
  void SetCut(bool cut) { cut_ = cut; }

  // When a packet of `bytes`, headers included, that comes in at `now` arrives at the other end; nothing: it is
  // dropped. `rtt`: the delays of both directions. Packets do not overtake each other.
  std::optional<absl::Time> Send(int64_t bytes, absl::Duration rtt, absl::Time now);

  int64_t lost() const { return lost_; }                     // By the share of packets that is.
  int64_t overflown() const { return overflown_; }           // Dropped by a full queue.
  absl::Duration queued_max() const { return queued_max_; }  // Longest time that a packet waited for the wire.

 private:
  LinkShape shape_;
  bool cut_ = false;
  LinkModel wire_;  // Without loss: that is decided here.
  StreamModel stream_;
  Random loss_random_;
  int64_t lost_ = 0;
  int64_t overflown_ = 0;
  absl::Duration queued_max_;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_FAULT_PACKET_MODEL_H_
