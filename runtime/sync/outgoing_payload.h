// A contribution's payload on its way out. Its first fragments may be on their way while later ones are being encoded.
#ifndef WUKONG_RUNTIME_SYNC_OUTGOING_PAYLOAD_H_
#define WUKONG_RUNTIME_SYNC_OUTGOING_PAYLOAD_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "runtime/base/mutex.h"
#include "runtime/sync/replica.h"

namespace wukong {

// Thread-safe: one thread encodes, any number send.
class OutgoingPayload {
 public:
  // All of it is there.
  explicit OutgoingPayload(std::shared_ptr<const EncodedVector> payload);
  // Its fragments will have `sizes` bytes, and come in their order: Encoded says when.
  OutgoingPayload(std::shared_ptr<const EncodedVector> payload, std::vector<int64_t> sizes);

  CodecKind codec() const { return payload_->codec; }
  const std::vector<int64_t>& sizes() const { return sizes_; }
  int64_t bytes() const { return bytes_; }

  // The next fragment is there, and is not written to any more.
  void Encoded();
  // The rest will not come. No effect when all is there.
  void Abandon();

  // Waits until fragment f is there; null when it will not be.
  const std::string* Fragment(size_t f) const;
  // Waits for all of it: EncodedVector::checksum(), or empty when it will not be there.
  std::optional<uint64_t> Checksum() const;
  bool abandoned() const;

 private:
  const std::shared_ptr<const EncodedVector> payload_;
  const std::vector<int64_t> sizes_;
  const int64_t bytes_;
  mutable Mutex mutex_;
  mutable CondVar changed_;
  size_t there_ ABSL_GUARDED_BY(mutex_) = 0;       // Fragments.
  uint64_t checksum_ ABSL_GUARDED_BY(mutex_) = 0;  // Of them.
  bool abandoned_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SYNC_OUTGOING_PAYLOAD_H_
