// What a broken machine sends: contributions that are damaged after every check of their sender. For tests; compiled in
// with the fault points (runtime/base/fault_point.h), and nothing is left of it otherwise.
#ifndef WUKONG_WORKER_CONTRIBUTION_FAULT_H_
#define WUKONG_WORKER_CONTRIBUTION_FAULT_H_

#include <memory>

#include "absl/types/span.h"
#include "runtime/base/fault_point.h"
#include "runtime/model/parameter_layout.h"
#include "runtime/sync/replica.h"

namespace wukong {

// Every byte 0xff: not a number, in every codec.
std::shared_ptr<const EncodedVector> WithNan(const EncodedVector& payload);
// A million times what it was.
std::shared_ptr<const EncodedVector> Scaled(const EncodedVector& payload, absl::Span<const FragmentSpan> fragments);

// `payload`, or what this machine's damage makes of it: worker.nan_contribution, worker.scale_contribution.
inline std::shared_ptr<const EncodedVector> AsSent(std::shared_ptr<const EncodedVector> payload,
                                                   absl::Span<const FragmentSpan> fragments) {
  if (FaultHappens("worker.nan_contribution")) return WithNan(*payload);
  if (FaultHappens("worker.scale_contribution")) return Scaled(*payload, fragments);
  return payload;
}

}  // namespace wukong

#endif  // WUKONG_WORKER_CONTRIBUTION_FAULT_H_
