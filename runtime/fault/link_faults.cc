#include "runtime/fault/link_faults.h"

#include <algorithm>

namespace wukong {
namespace {

bool Concerns(const Fault& fault, LinkDirection direction) {
  return fault.direction() != (direction == LinkDirection::kUp ? DIRECTION_DOWN : DIRECTION_UP);
}

}  // namespace

LinkShape LinkFaults::Shape(LinkShape healthy, LinkDirection direction) const {
  LinkShape shape = healthy;
  double bandwidth = 1, latency = 1;
  for (const auto& [number, fault] : active_) {
    if (!Concerns(*fault, direction)) continue;
    if (fault->fault() == FAULT_KIND_BANDWIDTH) bandwidth = std::min(bandwidth, fault->factor());
    if (fault->fault() == FAULT_KIND_LATENCY) latency = std::max(latency, fault->factor());
    if (fault->fault() == FAULT_KIND_LOSS) shape.loss = std::max(shape.loss, fault->probability());
  }
  shape.bandwidth_bits_per_s *= bandwidth;
  shape.delay *= latency;
  return shape;
}

bool LinkFaults::Cut(LinkDirection direction) const {
  return std::any_of(active_.begin(), active_.end(), [&](const auto& entry) {
    return entry.second->fault() == FAULT_KIND_CUT && Concerns(*entry.second, direction);
  });
}

const Fault* LinkFaults::Find(FaultKind kind) const {
  const Fault* found = nullptr;
  for (const auto& [number, fault] : active_) {
    if (fault->fault() == kind) found = fault;
  }
  return found;
}

}  // namespace wukong
