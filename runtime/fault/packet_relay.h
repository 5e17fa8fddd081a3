// An emulated wide-area link between two network namespaces: IP packets are delayed, paced and dropped, and the
// kernel's own TCP does what it does about that.
#ifndef WUKONG_RUNTIME_FAULT_PACKET_RELAY_H_
#define WUKONG_RUNTIME_FAULT_PACKET_RELAY_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "runtime/fault/network_namespace.h"
#include "runtime/fault/wan_relay.h"

namespace wukong {

struct PacketRelayOptions {
  int port = 0;  // Of the target, in the near network.
  LinkShape up;  // From the far network to the near one.
  LinkShape down;
  uint64_t seed = 1;
};
// Of `network` it takes the TUN devices. Its own thread does the work until it is destroyed.
absl::StatusOr<std::unique_ptr<EmulatedLink>> StartPacketRelay(JoinedNetwork* network,
                                                               const PacketRelayOptions& options);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_FAULT_PACKET_RELAY_H_
