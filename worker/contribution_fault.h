// What a broken machine sends: contributions that are damaged after every check of their sender.
#ifndef WUKONG_WORKER_CONTRIBUTION_FAULT_H_
#define WUKONG_WORKER_CONTRIBUTION_FAULT_H_

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "runtime/base/fault_point.h"
#include "runtime/fault/active_faults.h"
#include "runtime/model/parameter_layout.h"
#include "runtime/sync/damaged_payload.h"
#include "runtime/sync/replica.h"

namespace wukong {

// What this machine's damage is to make of the next contribution; nothing where it is whole. Beside what was ordered,
// the fault points worker.nan_contribution and worker.scale_contribution (a million times).
using Spoil = std::function<std::shared_ptr<const EncodedVector>(const EncodedVector& payload)>;
inline Spoil NextSpoil(std::vector<FragmentSpan> fragments, const Damage& damage) {
  if (damage.nan || FaultHappens("worker.nan_contribution")) return WithNan;
  const double factor = FaultHappens("worker.scale_contribution") ? 1e6 : damage.scale;
  if (factor == 1) return nullptr;
  return [fragments = std::move(fragments), factor](const EncodedVector& payload) {
    return Scaled(payload, fragments, factor);
  };
}

}  // namespace wukong

#endif  // WUKONG_WORKER_CONTRIBUTION_FAULT_H_
