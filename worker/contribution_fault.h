// What a broken machine sends: contributions that are damaged after every check of their sender.
#ifndef WUKONG_WORKER_CONTRIBUTION_FAULT_H_
#define WUKONG_WORKER_CONTRIBUTION_FAULT_H_

#include <memory>

#include "absl/types/span.h"
#include "runtime/base/fault_point.h"
#include "runtime/fault/active_faults.h"
#include "runtime/model/parameter_layout.h"
#include "runtime/sync/replica.h"

namespace wukong {

// Every byte 0xff: not a number, in every codec.
std::shared_ptr<const EncodedVector> WithNan(const EncodedVector& payload);
// `factor` times what it was.
std::shared_ptr<const EncodedVector> Scaled(const EncodedVector& payload, absl::Span<const FragmentSpan> fragments,
                                            float factor);

// `payload`, or what this machine's damage makes of it. Beside what was ordered, the fault points
// worker.nan_contribution and worker.scale_contribution (a million times).
inline std::shared_ptr<const EncodedVector> AsSent(std::shared_ptr<const EncodedVector> payload,
                                                   absl::Span<const FragmentSpan> fragments, const Damage& damage) {
  if (damage.nan || FaultHappens("worker.nan_contribution")) return WithNan(*payload);
  if (FaultHappens("worker.scale_contribution")) return Scaled(*payload, fragments, 1e6f);
  if (damage.scale != 1) return Scaled(*payload, fragments, static_cast<float>(damage.scale));
  return payload;
}

}  // namespace wukong

#endif  // WUKONG_WORKER_CONTRIBUTION_FAULT_H_
