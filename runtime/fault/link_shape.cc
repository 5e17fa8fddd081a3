#include "runtime/fault/link_shape.h"

namespace wukong {

LinkShape ShapeOfLink(const Wan& wan, const std::string& region, Direction direction) {
  int64_t rtt = wan.rtt_ns(), jitter = wan.jitter_ns(), bandwidth = wan.bandwidth_bps();
  double loss = wan.loss();
  // What is said of one direction wins over what is said of both.
  for (const Direction said : {DIRECTION_BOTH, direction}) {
    for (const WanLink& link : wan.links()) {
      if (link.region() != region || link.direction() != said) continue;
      if (link.has_rtt_ns()) rtt = link.rtt_ns();
      if (link.has_jitter_ns()) jitter = link.jitter_ns();
      if (link.has_bandwidth_bps()) bandwidth = link.bandwidth_bps();
      if (link.has_loss()) loss = link.loss();
    }
  }
  LinkShape shape;
  shape.delay = absl::Nanoseconds(rtt) / 2;
  // The job file gives the round trip's standard deviation; two independent directions add up to it.
  shape.jitter = absl::Nanoseconds(jitter) / 1.4142135623730951;
  shape.bandwidth_bits_per_s = static_cast<double>(bandwidth);
  shape.loss = loss;
  return shape;
}

}  // namespace wukong
