// Whether a server could listen at an address.
#ifndef WUKONG_RUNTIME_TRANSPORT_CAN_BIND_H_
#define WUKONG_RUNTIME_TRANSPORT_CAN_BIND_H_

#include <string>

#include "absl/status/status.h"

namespace wukong {

// Takes "HOST:PORT" and gives it back at once, without ever listening there. INVALID_ARGUMENT: the port is in use, the
// host is unknown, or not of this machine.
absl::Status CanBind(const std::string& address);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_TRANSPORT_CAN_BIND_H_
