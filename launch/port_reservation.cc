#include "launch/port_reservation.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/file.h"

namespace wukong {

absl::StatusOr<PortReservation> PortReservation::Make() {
  const int socket = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (socket < 0) return ErrnoToStatus(errno, "cannot make a socket");
  PortReservation reservation(socket, "");  // Closes it on the way out.
  const int on = 1;
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  if (::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
      ::bind(socket, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      ::getsockname(socket, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    return ErrnoToStatus(errno, "cannot take a port of 127.0.0.1 for the coordinator");
  }
  reservation.address_ = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
  return reservation;
}

PortReservation::PortReservation(PortReservation&& other) noexcept
    : socket_(std::exchange(other.socket_, -1)), address_(std::move(other.address_)) {}

PortReservation::~PortReservation() {
  if (socket_ >= 0) ::close(socket_);
}

}  // namespace wukong
