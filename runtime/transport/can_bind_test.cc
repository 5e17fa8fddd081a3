#include "runtime/transport/can_bind.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "proto/wire.grpc.pb.h"
#include "runtime/transport/test_server.h"

namespace wukong {
namespace {

using testing::HasSubstr;

TEST(CanBindTest, OnlyWhereNobodyListensOnThisMachine) {
  ParameterNode::Service service;
  TestServer server(&service);
  server.Start();
  const absl::Status taken = CanBind(server.address());
  EXPECT_EQ(taken.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(taken.message()), testing::AllOf(HasSubstr(server.address()), HasSubstr("in use")));
  server.Stop();
  EXPECT_TRUE(CanBind(server.address()).ok());
  server.Start();  // And it is given back.
  EXPECT_TRUE(CanBind("localhost:0").ok());
  EXPECT_THAT(std::string(CanBind("192.0.2.1:0").message()), HasSubstr("192.0.2.1:0: Cannot assign"));
  EXPECT_FALSE(CanBind("no-such-host.invalid:0").ok());
}

}  // namespace
}  // namespace wukong
