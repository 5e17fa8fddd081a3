// A gRPC service on a port of this machine, for tests.
#ifndef WUKONG_RUNTIME_TRANSPORT_TEST_SERVER_H_
#define WUKONG_RUNTIME_TRANSPORT_TEST_SERVER_H_

#include <grpcpp/grpcpp.h>

#include <chrono>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "runtime/transport/grpc_options.h"

namespace wukong {

// Where the service owns it, its last member: calls end before anything that they read dies.
class TestServer {
 public:
  explicit TestServer(grpc::Service* service) : service_(service) {}
  ~TestServer() { Stop(); }

  // On a free port the first time, and on the same one from then on; so `port` says what another server had.
  void Start(int port = 0) {
    if (port != 0) port_ = port;
    server_ = Listen(address(), {service_}, &port_);
    ASSERT_NE(server_, nullptr) << "cannot listen on " << address();
  }
  // Cuts every call, and waits for all that are being served.
  void Stop() {
    if (server_ == nullptr) return;
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
    server_.reset();
  }
  int port() const { return port_; }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }

 private:
  grpc::Service* const service_;
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_TRANSPORT_TEST_SERVER_H_
