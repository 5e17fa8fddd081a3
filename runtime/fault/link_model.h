// The arithmetic of an emulated link: when bytes that are handed to it leave, and when they arrive. No I/O, no clock.
//
//   bytes -> [ fair queue of the connections ] -> LinkModel: pacing -> StreamModel: delay, jitter, loss -> arrival
//
// docs/wan.md has the formulas and what they leave out.
#ifndef WUKONG_RUNTIME_FAULT_LINK_MODEL_H_
#define WUKONG_RUNTIME_FAULT_LINK_MODEL_H_

#include <cstdint>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/base/random.h"
#include "runtime/fault/wan_relay.h"

namespace wukong {

// Payload of one TCP segment: an MTU of 1,500 bytes less the headers of IPv4 and TCP with timestamps.
inline constexpr int64_t kSegmentBytes = 1448;

// The nearest shape that can be emulated: no negative or absurd times, loss in [0, 0.9].
LinkShape Sanitized(const LinkShape& shape);

// Most bytes of one connection and direction that may be inside the link: max(256 KiB, twice the bandwidth-delay
// product), at most 64 MiB. An unlimited bandwidth counts as 10 Gbit/s.
int64_t InFlightLimit(const LinkShape& shape, absl::Duration rtt);

// The bound of Mathis, Semke, Mahdavi and Ott 1997 on one connection's rate, in bytes per second: MSS / RTT * 1.22 /
// sqrt(loss). 0 where there is no bound (no loss, or no round-trip time).
double MathisBytesPerSecond(double loss, absl::Duration rtt);

// What all connections through one direction share: the wire. A virtual clock, so that a caller who comes late does not
// cost bandwidth.
class LinkModel {
 public:
  explicit LinkModel(const LinkShape& shape) : shape_(Sanitized(shape)) {}

  const LinkShape& shape() const { return shape_; }
  // What the wire was still to send at the old rate counts as sent at `now`.
  void SetShape(const LinkShape& shape, absl::Time now);

  // When the wire has sent all that it was given.
  absl::Time free_at() const { return free_at_; }
  // The wire is not free before `time` (a cut ended).
  void HoldUntil(absl::Time time);
  // Puts `bytes` on the wire, not before `earliest`; the time when the last bit has left.
  absl::Time Transmit(absl::Time earliest, int64_t bytes);
  // What one connection may send before it is the next one's turn: about 4 ms of the wire, 4 to 64 KiB.
  int64_t QuantumBytes() const;

 private:
  LinkShape shape_;
  absl::Time free_at_ = absl::InfinitePast();
};

// One direction of one connection. Arrivals never go back in time.
class StreamModel {
 public:
  // `name` and `index` choose the streams of random numbers under `seed`.
  StreamModel(uint64_t seed, absl::string_view name, uint64_t index);

  // The soonest that this connection may send again under its loss bound.
  absl::Time eligible_at() const { return eligible_at_; }
  // Most bytes that the next Send may take: up to the next lost segment, or that segment; at most half a congestion
  // window.
  int64_t NextBytes(const LinkShape& shape, int64_t bytes_wanted);

  struct Sent {
    absl::Time departure;  // Of the last bit.
    absl::Time arrival;
    bool lost = false;  // Lost once and sent again; the arrival is that of the retransmission.
  };
  // Sends `bytes` (at most NextBytes; 0 for a FIN or a RST) over `link`, not before `earliest`.
  Sent Send(LinkModel& link, absl::Duration rtt, absl::Time earliest, int64_t bytes);
  // Nothing arrives before `time` any more (a cut ended).
  void HoldUntil(absl::Time time);
  // The link's shape changed at `now`: what the loss bound of the old one made the connection wait is over.
  void Restart(absl::Time now);

 private:
  absl::Duration Jitter(const LinkShape& shape, absl::Time time);

  Random jitter_random_;
  Random loss_random_;
  double jitter_state_ = 0;  // In standard deviations.
  absl::Time jitter_time_ = absl::InfinitePast();
  double loss_ = 0;                   // What segments_until_loss_ was drawn for.
  int64_t segments_until_loss_ = -1;  // -1: not drawn yet; 0: the next one is lost.
  absl::Time eligible_at_ = absl::InfinitePast();
  absl::Time blocked_until_ = absl::InfinitePast();  // Arrival of the last byte, or of the retransmission before it.
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_FAULT_LINK_MODEL_H_
