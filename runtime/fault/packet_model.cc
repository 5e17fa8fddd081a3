#include "runtime/fault/packet_model.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace wukong {
namespace {

constexpr int64_t kQueuePacketsMin = 64;

LinkShape WithoutLoss(LinkShape shape) {
  shape.loss = 0;
  return shape;
}

}  // namespace

int64_t PacketQueueBytes(const LinkShape& shape, absl::Duration rtt) {
  const auto product = static_cast<int64_t>(shape.bandwidth_bits_per_s / 8 * absl::ToDoubleSeconds(rtt));
  return std::max(product, kQueuePacketsMin * kFullPacketBytes);
}

PacketModel::PacketModel(const LinkShape& shape, uint64_t seed, absl::string_view name)
    : shape_(Sanitized(shape)),
      wire_(WithoutLoss(shape)),
      stream_(seed, absl::StrCat("packets.", name), 0),
      loss_random_(DeriveSeed(seed, absl::StrCat("wan.loss.packets.", name))) {}

void PacketModel::SetShape(const LinkShape& shape, absl::Time now) {
  shape_ = Sanitized(shape);
  wire_.SetShape(WithoutLoss(shape), now);
}

std::optional<absl::Time> PacketModel::Send(int64_t bytes, absl::Duration rtt, absl::Time now) {
  if (cut_) return std::nullopt;
  if (shape_.loss > 0 && loss_random_.Uniform() < shape_.loss) {
    ++lost_;
    return std::nullopt;
  }
  const absl::Duration waits = std::max(absl::ZeroDuration(), wire_.free_at() - now);
  if (shape_.bandwidth_bits_per_s > 0 &&
      absl::ToDoubleSeconds(waits) * shape_.bandwidth_bits_per_s / 8 + static_cast<double>(bytes) >
          static_cast<double>(PacketQueueBytes(shape_, rtt))) {
    ++overflown_;
    return std::nullopt;
  }
  queued_max_ = std::max(queued_max_, waits);
  return stream_.Send(wire_, rtt, now, bytes).arrival;
}

}  // namespace wukong
