#include "runtime/sync/damaged_payload.h"

#include <algorithm>
#include <vector>

#include "glog/logging.h"
#include "runtime/codec/codec.h"

namespace wukong {
namespace {

// What every codec can write.
constexpr double kLargest = 3e38;

}  // namespace

std::shared_ptr<const EncodedVector> WithNan(const EncodedVector& payload) {
  auto damaged = std::make_shared<EncodedVector>(payload);
  for (std::string& fragment : damaged->fragments) fragment.assign(fragment.size(), '\xff');
  return damaged;
}

std::shared_ptr<const EncodedVector> Scaled(const EncodedVector& payload, absl::Span<const FragmentSpan> fragments,
                                            double factor) {
  factor = std::clamp(factor, -kLargest, kLargest);
  auto damaged = std::make_shared<EncodedVector>(payload);
  for (size_t f = 0; f < fragments.size(); ++f) {
    if (payload.fragments[f].empty()) continue;
    const auto codec = MakeCodec(payload.codec, fragments[f]);
    std::vector<float> values(static_cast<size_t>(fragments[f].size()));
    absl::Status status = codec->Decode(payload.fragments[f], absl::MakeSpan(values));
    for (float& value : values) value = static_cast<float>(std::clamp(value * factor, -kLargest, kLargest));
    if (status.ok()) status = codec->Encode(values, &damaged->fragments[f]);
    CHECK(status.ok()) << status;
  }
  return damaged;
}

}  // namespace wukong
