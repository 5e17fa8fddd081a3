// A member's conversation with a coordinator that does not answer.
#include "worker/session.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <string>

#include "proto/wire.grpc.pb.h"
#include "runtime/base/executor.h"
#include "runtime/transport/test_server.h"

namespace wukong {
namespace {

// Takes heartbeats and stands still.
class FrozenCoordinator final : public Coordinator::Service {
 public:
  FrozenCoordinator() { server_.Start(); }
  ~FrozenCoordinator() override { thaw_.Notify(); }
  grpc::Status Heartbeat(grpc::ServerContext* context, const HeartbeatRequest*, HeartbeatReply*) override {
    deadline_ = context->deadline();
    asked_.Notify();
    thaw_.WaitFor(absl::InfiniteDuration());
    return grpc::Status::OK;
  }
  std::string address() const { return server_.address(); }
  // When the member's patience with its first heartbeat ends. After the first heartbeat has come.
  std::chrono::system_clock::time_point deadline() {
    asked_.WaitFor(absl::InfiniteDuration());
    return deadline_;
  }

 private:
  std::chrono::system_clock::time_point deadline_;
  Notification asked_, thaw_;
  TestServer server_{this};
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
