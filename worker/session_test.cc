// A member's conversation with a coordinator that does not answer.
#include "worker/session.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>

#include "absl/strings/str_cat.h"
#include "proto/wire.grpc.pb.h"
#include "runtime/base/executor.h"
#include "runtime/transport/grpc_options.h"

namespace wukong {
namespace {

// Takes heartbeats and stands still.
class FrozenCoordinator final : public Coordinator::Service {
 public:
  FrozenCoordinator() {
    grpc::ServerBuilder builder;
    ConfigureServer(&builder);
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FrozenCoordinator() override {
    thaw_.Notify();
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
  }
  grpc::Status Heartbeat(grpc::ServerContext* context, const HeartbeatRequest*, HeartbeatReply*) override {
    deadline_ = context->deadline();
    asked_.Notify();
    thaw_.WaitFor(absl::InfiniteDuration());
    return grpc::Status::OK;
  }
  std::string address() const { return absl::StrCat("127.0.0.1:", port_); }
  // When the member's patience with its first heartbeat ends. After the first heartbeat has come.
  std::chrono::system_clock::time_point deadline() {
    asked_.WaitFor(absl::InfiniteDuration());
    return deadline_;
  }

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  std::chrono::system_clock::time_point deadline_;
  Notification asked_, thaw_;
};

TEST(SessionTest, AMemberThatStopsDoesNotWaitForACoordinatorThatStandsStill) {
  FrozenCoordinator coordinator;
  Session session(coordinator.address(), "beijing");
  Session::Callbacks callbacks;
  callbacks.fill = [](HeartbeatRequest*) {};
  callbacks.on_reply = [](const HeartbeatReply&) { ADD_FAILURE() << "nobody answered"; };
  callbacks.on_lost = [](const absl::Status&) {};
  session.StartHeartbeats({MemberId(1), Incarnation(1)}, absl::Milliseconds(10), absl::Seconds(60), callbacks);
  const std::chrono::system_clock::time_point deadline = coordinator.deadline();
  session.StopHeartbeats(absl::Milliseconds(50));
  EXPECT_LT(std::chrono::system_clock::now(), deadline) << "it waited for the call's own deadline";
}

}  // namespace
}  // namespace wukong
