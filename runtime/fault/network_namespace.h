// Network namespaces: a network of this process's own, and others beside it that are joined to it by links whose
// packets pass through this process. Linux; needs root, or user namespaces.
#ifndef WUKONG_RUNTIME_FAULT_NETWORK_NAMESPACE_H_
#define WUKONG_RUNTIME_FAULT_NETWORK_NAMESPACE_H_

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace wukong {

// A file descriptor that is closed with it.
class OwnedDescriptor {
 public:
  OwnedDescriptor() = default;
  explicit OwnedDescriptor(int descriptor) : descriptor_(descriptor) {}
  OwnedDescriptor(OwnedDescriptor&& other) noexcept : descriptor_(std::exchange(other.descriptor_, -1)) {}
  OwnedDescriptor& operator=(OwnedDescriptor&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~OwnedDescriptor();
  int get() const { return descriptor_; }

 private:
  int descriptor_ = -1;
};

// Moves the calling thread, and those that it starts, into a network of its own, where there is only the loopback
// device. Not as root: while the process has no other thread. FAILED_PRECONDITION says what the machine does not allow.
absl::Status EnterOwnNetwork();

// A network beside that of the calling thread. What is sent to `near_address` there can be read from `far` as IP
// packets, and the other way round.
struct JoinedNetwork {
  OwnedDescriptor network;   // For setns(2).
  OwnedDescriptor near_tun;  // The TUN device in the calling thread's network; reads do not block.
  OwnedDescriptor far_tun;   // And that in the other one.
  std::string near_address;  // "10.87.I.1"
  std::string near_device;   // The devices' names.
  std::string far_device;
};
// `index`: 0 to 255, of its own for each. FAILED_PRECONDITION as above.
absl::StatusOr<JoinedNetwork> JoinNetwork(int index);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_FAULT_NETWORK_NAMESPACE_H_
