// What several faults at once make of a region's link.
#ifndef WUKONG_RUNTIME_FAULT_LINK_FAULTS_H_
#define WUKONG_RUNTIME_FAULT_LINK_FAULTS_H_

#include <map>

#include "proto/scenario.pb.h"
#include "runtime/fault/wan_relay.h"

namespace wukong {

// Pure. Faults of kind cut, bandwidth, latency and loss, known by their number in the timeline; each may be there more
// than once.
class LinkFaults {
 public:
  // `fault` outlives this.
  void Begin(size_t number, const Fault& fault) { active_.emplace(number, &fault); }
  void End(size_t number) {
    if (const auto found = active_.find(number); found != active_.end()) active_.erase(found);
  }
  // Of a direction that has `healthy` without faults. Of several faults of a kind the strongest counts.
  LinkShape Shape(LinkShape healthy, LinkDirection direction) const;
  bool Cut(LinkDirection direction) const;
  // The last fault of this kind, or null.
  const Fault* Find(FaultKind kind) const;

 private:
  std::multimap<size_t, const Fault*> active_;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_FAULT_LINK_FAULTS_H_
