#include "runtime/transport/can_bind.h"

#include <netdb.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace wukong {

absl::Status CanBind(const std::string& address) {
  const size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  addrinfo hints = {};
  hints.ai_flags = AI_PASSIVE;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int unknown = ::getaddrinfo(host.c_str(), address.substr(colon + 1).c_str(), &hints, &found);
  if (unknown != 0) {
    return absl::InvalidArgumentError(absl::StrCat("cannot listen on ", address, ": ", ::gai_strerror(unknown)));
  }
  int error = 0;
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    const int socket = ::socket(one->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int on = 1;  // As servers do: a port whose last connections are just ending is free.
    const bool bound = socket >= 0 && ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) == 0 &&
                       ::bind(socket, one->ai_addr, one->ai_addrlen) == 0;
    error = bound ? 0 : errno;
    if (socket >= 0) ::close(socket);
    if (bound) break;
  }
  ::freeaddrinfo(found);
  // Of anything else (no IPv6 on this machine) a server may make something.
  if (error != EADDRINUSE && error != EADDRNOTAVAIL) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("cannot listen on ", address, ": ", ::strerror(error)));
}

}  // namespace wukong
