// An emulated wide-area link of packets by the kernel's own emulator, netem, where there is one (`tc` of iproute2).
#ifndef WUKONG_RUNTIME_FAULT_NETEM_H_
#define WUKONG_RUNTIME_FAULT_NETEM_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "runtime/fault/network_namespace.h"
#include "runtime/fault/packet_relay.h"
#include "runtime/fault/wan_relay.h"

namespace wukong {

// What `tc qdisc replace dev DEVICE root` gets for one direction: "netem limit ... delay ... loss ... rate ...". `rtt`:
// the delays of both directions. There is always a rate, with which netem keeps packets in order.
std::string NetemArguments(const LinkShape& shape, bool cut, absl::Duration rtt);

// Whether there is a netem for the calling thread's network, which is its own (EnterOwnNetwork): tries it at the
// loopback device. FAILED_PRECONDITION says what is missing.
absl::Status TryNetem();

// As StartPacketRelay, which carries the packets here too, but it is netem at both devices that delays, paces and drops
// them; which it drops does not depend on the seed. FAILED_PRECONDITION: this machine has no netem, or no tc.
absl::StatusOr<std::unique_ptr<EmulatedLink>> StartNetemLink(JoinedNetwork* network, const PacketRelayOptions& options);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_FAULT_NETEM_H_
