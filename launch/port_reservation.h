// A port that stays the same process's, however often its listener dies.
#ifndef WUKONG_LAUNCH_PORT_RESERVATION_H_
#define WUKONG_LAUNCH_PORT_RESERVATION_H_

#include <string>

#include "absl/status/statusor.h"

namespace wukong {

// Holds a free port of 127.0.0.1 without listening on it: connections are refused until somebody with SO_REUSEADDR, as
// every gRPC server has it, listens there, again and again. Without this, one of the many connections that are tried
// while the listener is away gets the very port as its own end, and the next listener finds it in use.
class PortReservation {
 public:
  static absl::StatusOr<PortReservation> Make();
  ~PortReservation();
  PortReservation(PortReservation&& other) noexcept;
  PortReservation& operator=(PortReservation&&) = delete;

  const std::string& address() const { return address_; }  // host:port

 private:
  PortReservation(int socket, std::string address) : socket_(socket), address_(std::move(address)) {}
  int socket_;
  std::string address_;
};

}  // namespace wukong

#endif  // WUKONG_LAUNCH_PORT_RESERVATION_H_
