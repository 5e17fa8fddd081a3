#include "runtime/sync/outgoing_payload.h"

#include <numeric>
#include <utility>

#include "glog/logging.h"
#include "runtime/base/digest.h"

namespace wukong {
namespace {

std::vector<int64_t> SizesOf(const EncodedVector& payload) {
  std::vector<int64_t> sizes;
  sizes.reserve(payload.fragments.size());
  for (const std::string& fragment : payload.fragments) sizes.push_back(static_cast<int64_t>(fragment.size()));
  return sizes;
}

}  // namespace

OutgoingPayload::OutgoingPayload(std::shared_ptr<const EncodedVector> payload)
    : OutgoingPayload(payload, SizesOf(*payload)) {
  MutexLock lock(mutex_);
  there_ = sizes_.size();
  checksum_ = payload_->checksum();
}

OutgoingPayload::OutgoingPayload(std::shared_ptr<const EncodedVector> payload, std::vector<int64_t> sizes)
    : payload_(std::move(payload)),
      sizes_(std::move(sizes)),
      bytes_(std::accumulate(sizes_.begin(), sizes_.end(), int64_t{0})) {
  CHECK_EQ(payload_->fragments.size(), sizes_.size());
}

void OutgoingPayload::Encoded() {
  MutexLock lock(mutex_);
  CHECK_LT(there_, sizes_.size());
  const std::string& fragment = payload_->fragments[there_];
  CHECK_EQ(static_cast<int64_t>(fragment.size()), sizes_[there_]) << "fragment " << there_;
  checksum_ = wukong::Checksum(fragment.data(), fragment.size(), checksum_);
  ++there_;
  changed_.NotifyAll();
}

void OutgoingPayload::Abandon() {
  MutexLock lock(mutex_);
  abandoned_ = there_ < sizes_.size();
  changed_.NotifyAll();
}

const std::string* OutgoingPayload::Fragment(size_t f) const {
  MutexLock lock(mutex_);
  while (there_ <= f && !abandoned_) changed_.Wait(mutex_);
  return there_ > f ? &payload_->fragments[f] : nullptr;
}

std::optional<uint64_t> OutgoingPayload::Checksum() const {
  MutexLock lock(mutex_);
  while (there_ < sizes_.size() && !abandoned_) changed_.Wait(mutex_);
  if (abandoned_) return std::nullopt;
  return checksum_;
}

bool OutgoingPayload::abandoned() const {
  MutexLock lock(mutex_);
  return abandoned_;
}

}  // namespace wukong
