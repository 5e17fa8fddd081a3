#include "runtime/fault/network_namespace.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"

namespace wukong {
namespace {

constexpr char kNeeds[] = "network namespaces need root with CAP_SYS_ADMIN, or user namespaces, and /dev/net/tun";

absl::Status CannotDo(const std::string& what, int error) {
  return absl::FailedPreconditionError(absl::StrCat("cannot ", what, ": ", std::strerror(error), " (", kNeeds, ")"));
}

void SetName(const std::string& name, ifreq* request) {
  std::snprintf(request->ifr_name, sizeof(request->ifr_name), "%s", name.c_str());
}

absl::Status SetAddress(int socket, const std::string& name, unsigned long operation, const std::string& address) {
  ifreq request = {};
  SetName(name, &request);
  sockaddr_in inet = {};
  inet.sin_family = AF_INET;
  ::inet_pton(AF_INET, address.c_str(), &inet.sin_addr);
  std::memcpy(&request.ifr_addr, &inet, sizeof(inet));
  if (::ioctl(socket, operation, &request) == 0) return absl::OkStatus();
  return CannotDo(absl::StrCat("give device ", name, " the address ", address), errno);
}

absl::Status BringUp(int socket, const std::string& name) {
  ifreq request = {};
  SetName(name, &request);
  if (::ioctl(socket, SIOCGIFFLAGS, &request) == 0) {
    request.ifr_flags = static_cast<short>(request.ifr_flags | IFF_UP);
    if (::ioctl(socket, SIOCSIFFLAGS, &request) == 0) return absl::OkStatus();
  }
  return CannotDo(absl::StrCat("bring up device ", name), errno);
}

absl::Status BringUpLoopback() {
  const OwnedDescriptor socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  return BringUp(socket.get(), "lo");
}

// In the calling thread's network: a point-to-point device to `peer`.
absl::StatusOr<OwnedDescriptor> MakeTun(const std::string& name, const std::string& address, const std::string& peer) {
  OwnedDescriptor tun(::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (tun.get() < 0) return CannotDo("open /dev/net/tun", errno);
  ifreq request = {};
  SetName(name, &request);
  request.ifr_flags = IFF_TUN | IFF_NO_PI;
  if (::ioctl(tun.get(), TUNSETIFF, &request) != 0) return CannotDo("make a TUN device", errno);
  const OwnedDescriptor socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  absl::Status status = SetAddress(socket.get(), name, SIOCSIFADDR, address);
  if (status.ok()) status = SetAddress(socket.get(), name, SIOCSIFDSTADDR, peer);
  if (status.ok()) status = BringUp(socket.get(), name);
  if (!status.ok()) return status;
  return tun;
}

bool WriteTo(const char* path, const std::string& text) {
  const OwnedDescriptor file(::open(path, O_WRONLY | O_CLOEXEC));
  return file.get() >= 0 && ::write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

}  // namespace

OwnedDescriptor::~OwnedDescriptor() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

absl::Status EnterOwnNetwork() {
  if (::access("/dev/net/tun", R_OK | W_OK) != 0) return CannotDo("use /dev/net/tun", errno);
  const uid_t user = ::geteuid();
  const gid_t group = ::getegid();
  if (::unshare(user == 0 ? CLONE_NEWNET : CLONE_NEWUSER | CLONE_NEWNET) != 0) {
    return CannotDo("make a network namespace", errno);
  }
  if (user != 0 &&
      (!WriteTo("/proc/self/setgroups", "deny") || !WriteTo("/proc/self/uid_map", absl::StrCat("0 ", user, " 1")) ||
       !WriteTo("/proc/self/gid_map", absl::StrCat("0 ", group, " 1")))) {
    return CannotDo("map this user into a user namespace", errno);
  }
  return BringUpLoopback();
}

absl::StatusOr<JoinedNetwork> JoinNetwork(int index) {
  if (index < 0 || index > 255) {
    return absl::FailedPreconditionError(
        absl::StrCat("there are addresses for 256 networks, and this is number ", index));
  }
  const std::string near = absl::StrCat("10.87.", index, ".1"), far = absl::StrCat("10.87.", index, ".2");
  JoinedNetwork joined;
  joined.near_address = near;
  joined.near_device = absl::StrCat("wan", index);
  joined.far_device = "wan";
  absl::Status status;
  // A thread may have a network of its own, and a TUN device is of the network in which it was made.
  std::thread([&] {
    if (::unshare(CLONE_NEWNET) != 0) {
      status = CannotDo("make a network namespace", errno);
      return;
    }
    joined.network = OwnedDescriptor(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
    if (joined.network.get() < 0) status = CannotDo("open /proc/thread-self/ns/net", errno);
    if (status.ok()) status = BringUpLoopback();
    if (!status.ok()) return;
    absl::StatusOr<OwnedDescriptor> tun = MakeTun(joined.far_device, far, near);
    status = tun.status();
    if (tun.ok()) joined.far_tun = *std::move(tun);
  }).join();
  if (!status.ok()) return status;
  absl::StatusOr<OwnedDescriptor> tun = MakeTun(joined.near_device, near, far);
  if (!tun.ok()) return tun.status();
  joined.near_tun = *std::move(tun);
  return joined;
}

}  // namespace wukong
