// The few socket calls that the relay needs, with errors that name the address.
#ifndef WUKONG_RUNTIME_FAULT_TCP_SOCKET_H_
#define WUKONG_RUNTIME_FAULT_TCP_SOCKET_H_

#include <sys/socket.h>

#include <string>

#include "absl/status/statusor.h"

namespace wukong {

// Owns a file descriptor.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() { Close(); }
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
  FileDescriptor& operator=(FileDescriptor&& other) noexcept;
  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  void Close();

 private:
  int fd_ = -1;
};

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
};

// `address` is host:port, or [host]:port for IPv6; the name is looked up now. INVALID_ARGUMENT when it is not of that
// form, NOT_FOUND when the host is unknown.
absl::StatusOr<SocketAddress> ResolveAddress(const std::string& address, bool to_listen);

// A listening, non-blocking socket. `name` is what errors call the address.
absl::StatusOr<FileDescriptor> ListenOn(const SocketAddress& address, const std::string& name);

// A non-blocking socket on its way to `address`. An invalid one, with errno set, when there is no way.
FileDescriptor BeginConnect(const SocketAddress& address);

// No Nagle delay, and kernel buffers that stay small, so that what is in flight is in the relay and not in the kernel.
void TuneForRelay(int fd);

// The next close() sends a reset.
void ResetOnClose(int fd);

// host:port of the local end.
absl::StatusOr<std::string> LocalAddress(int fd);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_FAULT_TCP_SOCKET_H_
