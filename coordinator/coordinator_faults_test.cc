// Orders of faults: who gets them, once, and who may not.
#include "coordinator/test_cluster.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace wukong {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

InjectFaultRequest Request(FaultKind kind, const std::string& target) {
  InjectFaultRequest request;
  request.mutable_order()->set_fault(kind);
  request.set_target(target);
  return request;
}

Job Allowing() {
  Job job = MakeJob();
  job.set_fault_injection(FAULT_INJECTION_ALLOWED);
  return job;
}

HeartbeatRequest Heard(int64_t number) {
  HeartbeatRequest request;
  request.set_fault_heard(number);
  return request;
}

TEST(InjectFaultTest, ReachesItsTargetUntilItIsHeard) {
  Cluster cluster(Allowing());
  cluster.Start();
  InjectFaultRequest request = Request(FAULT_KIND_SLOW, "beijing/b0");
  request.mutable_order()->set_factor(4);
  const auto reply = cluster.core.InjectFault(request);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(reply->number(), 1);
  EXPECT_THAT(reply->members(), ElementsAre("worker b0 of beijing"));
  EXPECT_EQ(cluster.Beat(&cluster.b1).faults_size(), 0);
  for (int beat = 0; beat < 2; ++beat) {
    const HeartbeatReply told = cluster.Beat(&cluster.b0);
    ASSERT_EQ(told.faults_size(), 1) << "again, until it is heard";
    EXPECT_EQ(told.faults(0).number(), 1);
    EXPECT_EQ(told.faults(0).factor(), 4);
  }
  EXPECT_EQ(cluster.Beat(&cluster.b0, Heard(1)).faults_size(), 0);
}

TEST(InjectFaultTest, WhatALaterLifeOfTheCoordinatorOrdersIsNewToMembersThatOutlivedTheOneBefore) {
  Cluster before(Allowing());
  before.Start();
  Cluster after(Allowing(), before.history.state());
  after.b0 = before.b0;
  const auto reply = after.core.InjectFault(Request(FAULT_KIND_NAN, "beijing/b0"));
  ASSERT_TRUE(reply.ok()) << reply.status();
  const HeartbeatReply told = after.Beat(&after.b0, Heard(5));
  ASSERT_EQ(told.faults_size(), 1);
  EXPECT_EQ(told.faults(0).number(), reply->number());
  EXPECT_GT(reply->number(), 5);
  EXPECT_EQ(after.Beat(&after.b0, Heard(reply->number())).faults_size(), 0);
}

TEST(InjectFaultTest, ANewLifeIsNotTheOneThatWasMeant) {
  Cluster cluster(Allowing());
  cluster.Start();
  ASSERT_TRUE(cluster.core.InjectFault(Request(FAULT_KIND_KILL, "beijing/b0")).ok());
  cluster.b0 = cluster.Join(ROLE_WORKER, "beijing", "b0");
  EXPECT_EQ(cluster.Beat(&cluster.b0).faults_size(), 0);
}

TEST(InjectFaultTest, PatternsNameSeveral) {
  Cluster cluster(Allowing());
  cluster.Start();
  const auto members = [&](const std::string& target) {
    const auto reply = cluster.core.InjectFault(Request(FAULT_KIND_KILL, target));
    EXPECT_TRUE(reply.ok()) << reply.status();
    return reply.ok() ? reply->members_size() : -1;
  };
  EXPECT_EQ(members("beijing"), 1);
  EXPECT_EQ(members("beijing/*"), 2);
  EXPECT_EQ(members("beijing/**"), 3);
  EXPECT_EQ(members("*/*"), 3);
  EXPECT_EQ(members("*/**"), 5);
  EXPECT_EQ(members("root"), 1);
}

TEST(InjectFaultTest, ErrorsSayWhatIsWrong) {
  Cluster forbidding(MakeJob());
  forbidding.Start();
  EXPECT_THAT(forbidding.core.InjectFault(Request(FAULT_KIND_KILL, "root")).status().message(),
              HasSubstr("fault_injection: allowed"));
  Cluster cluster(Allowing());
  cluster.Start();
  const auto error = [&](FaultKind kind, const std::string& target) {
    return std::string(cluster.core.InjectFault(Request(kind, target)).status().message());
  };
  EXPECT_THAT(error(FAULT_KIND_KILL, "beijing/b7"), HasSubstr("nobody called beijing/b7 lives (there are beijing,"));
  EXPECT_THAT(error(FAULT_KIND_CUT, "beijing"), HasSubstr("cut cannot be ordered"));
  EXPECT_THAT(error(FAULT_KIND_NAN, "beijing"), HasSubstr("nan happens to workers"));
  EXPECT_THAT(error(FAULT_KIND_SLOW, "beijing/b0"), HasSubstr("needs a factor"));
  InjectFaultRequest scale = Request(FAULT_KIND_SCALE, "beijing/b0");
  scale.mutable_order()->set_factor(1e40);
  EXPECT_THAT(cluster.core.InjectFault(scale).status().message(), HasSubstr("at most 1e9"));
  EXPECT_THAT(error(FAULT_KIND_FREEZE, "beijing/b0"), HasSubstr("needs a time"));
  EXPECT_THAT(error(FAULT_KIND_DISK_FULL, "root"), HasSubstr("disk_full needs a time"));
  EXPECT_THAT(error(FAULT_KIND_POWER_LOSS, "beijing"), HasSubstr("power_loss happens to the root's disk"));
  InjectFaultRequest request = Request(FAULT_KIND_KILL, "beijing/b0");
  request.mutable_order()->set_on(FAULT_PLACE_AFTER_ACK);
  EXPECT_THAT(cluster.core.InjectFault(request).status().message(), HasSubstr("kill happens to the root"));
}

TEST(InjectFaultTest, TheRootsDiskCanFail) {
  Cluster cluster(Allowing());
  cluster.Start();
  InjectFaultRequest request = Request(FAULT_KIND_DISK_ERROR, "root");
  request.mutable_order()->set_for_ns(1);
  request.mutable_order()->set_on(FAULT_PLACE_AFTER_PUBLISH);
  const auto reply = cluster.core.InjectFault(request);
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_THAT(reply->members(), ElementsAre("root"));
  EXPECT_TRUE(cluster.core.InjectFault(Request(FAULT_KIND_POWER_LOSS, "root")).ok());
}

}  // namespace
}  // namespace wukong
