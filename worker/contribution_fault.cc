#include "worker/contribution_fault.h"

#include <utility>
#include <vector>

#include "glog/logging.h"
#include "runtime/codec/codec.h"

namespace wukong {

std::shared_ptr<const EncodedVector> WithNan(const EncodedVector& payload) {
  auto damaged = std::make_shared<EncodedVector>(payload);
  for (std::string& fragment : damaged->fragments) fragment.assign(fragment.size(), '\xff');
  return damaged;
}

std::shared_ptr<const EncodedVector> Scaled(const EncodedVector& payload, absl::Span<const FragmentSpan> fragments,
                                            float factor) {
  auto damaged = std::make_shared<EncodedVector>(payload);
  for (size_t f = 0; f < fragments.size(); ++f) {
    if (payload.fragments[f].empty()) continue;
    const auto codec = MakeCodec(payload.codec, fragments[f]);
    std::vector<float> values(fragments[f].size());
    absl::Status status = codec->Decode(payload.fragments[f], absl::MakeSpan(values));
    for (float& value : values) value *= factor;
    if (status.ok()) status = codec->Encode(values, &damaged->fragments[f]);
    CHECK(status.ok()) << status;
  }
  return damaged;
}

}  // namespace wukong
