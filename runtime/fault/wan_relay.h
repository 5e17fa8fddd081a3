// An emulated wide-area link: a TCP relay that delays, paces and jitters the bytes that pass, and can be cut.
#ifndef WUKONG_RUNTIME_FAULT_WAN_RELAY_H_
#define WUKONG_RUNTIME_FAULT_WAN_RELAY_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace wukong {

// One direction of a link.
struct LinkShape {
  absl::Duration delay;             // One way.
  absl::Duration jitter;            // Standard deviation of the delay. Bytes never overtake each other.
  double bandwidth_bits_per_s = 0;  // Shared by all connections through the link; 0 is unlimited.
  double loss = 0;                  // Share of packets lost, as TCP makes the reader feel it (docs/wan.md).
};

enum class LinkDirection { kUp, kDown };  // Up: from whoever connects to the relay, to the target.

struct LinkStats {
  int64_t bytes = 0;          // Delivered.
  int64_t connections = 0;    // Accepted so far; of a TCP relay.
  int64_t losses = 0;         // Emulated.
  absl::Duration queued_max;  // Longest time that bytes waited for bandwidth.
};

// A link as whoever runs an experiment handles it. Thread-safe; the destructor ends all that passes.
class EmulatedLink {
 public:
  virtual ~EmulatedLink() = default;

  virtual std::string address() const = 0;  // host:port that clients connect to
  virtual void SetShape(LinkDirection direction, const LinkShape& shape) = 0;
  // A cut link carries nothing: connections stay open, and bytes wait or are sent again, as under a partition.
  virtual void SetCut(LinkDirection direction, bool cut) = 0;
  virtual LinkStats stats(LinkDirection direction) const = 0;
};

// By a TCP relay. Its own threads do the work; the destructor closes every connection and joins them.
class WanRelay : public EmulatedLink {
 public:
  struct Options {
    std::string listen = "127.0.0.1:0";
    std::string target;  // host:port
    LinkShape up;
    LinkShape down;
    uint64_t seed = 1;
  };
  static absl::StatusOr<std::unique_ptr<WanRelay>> Start(const Options& options);

  // Closes every connection with a reset.
  virtual void Reset() = 0;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_FAULT_WAN_RELAY_H_
