// What a broken machine makes of a contribution, after every check of its sender.
#ifndef WUKONG_RUNTIME_SYNC_DAMAGED_PAYLOAD_H_
#define WUKONG_RUNTIME_SYNC_DAMAGED_PAYLOAD_H_

#include <memory>

#include "absl/types/span.h"
#include "runtime/model/parameter_layout.h"
#include "runtime/sync/replica.h"

namespace wukong {

// Every byte 0xff: not a number, in every codec.
std::shared_ptr<const EncodedVector> WithNan(const EncodedVector& payload);
// `factor`, which is no NaN, times what it was; finite, since no codec takes anything else: what would be larger is
// 3e38.
std::shared_ptr<const EncodedVector> Scaled(const EncodedVector& payload, absl::Span<const FragmentSpan> fragments,
                                            double factor);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SYNC_DAMAGED_PAYLOAD_H_
