#include "worker/node_report.h"

#include <gtest/gtest.h>

#include <deque>
#include <functional>
#include <utility>

#include "runtime/base/manual_clock.h"

namespace wukong {
namespace {

// An executor that runs what it was given when the test says so.
class NodeReporterTest : public ::testing::Test {
 protected:
  static ParentNode::Options NodeOptions() {
    ParentNode::Options options;
    options.level.set_quorum(1);
    options.level.set_learning_rate(1);
    return options;
  }
  void Refuse(int64_t sequence) {
    ParentNode::Offered offer;
    offer.handle = Handle(sequence);
    offer.manifest.sender = {MemberId(3), Incarnation(1)};  // Never attached: its contributions are refused.
    offer.manifest.sequence = Sequence(sequence);
    node_.Step(offer, clock_.Now());
  }
  void RunPosted() {
    for (auto& work : std::exchange(posted_, {})) work(node_);
  }
  int64_t Refused(const NodeReporter::Report& report) {
    HeartbeatRequest request;
    FillNodeReport(report, &request);
    int64_t count = 0;
    for (const RefusedCount& one : request.usage().refused()) count += one.count();
    return count;
  }

  ManualClock clock_;
  ParentNode node_{NodeOptions()};
  std::deque<std::function<void(const ParentNode&)>> posted_;
  NodeReporter reporter_{[this](auto work) { posted_.push_back(std::move(work)); }, &clock_};
};

TEST_F(NodeReporterTest, WhileTheNodeIsBusyTheLastReportIsSaidAgain) {
  EXPECT_EQ(reporter_.Newest(0, absl::ZeroDuration()), nullptr) << "there was none yet";
  Refuse(1);
  RunPosted();
  const auto first = reporter_.Newest(0, absl::ZeroDuration());
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(Refused(*first), 1);
  Refuse(2);
  EXPECT_EQ(reporter_.Newest(0, absl::ZeroDuration()), first);
  EXPECT_EQ(reporter_.Newest(0, absl::ZeroDuration()), first);
  EXPECT_EQ(posted_.size(), 1U) << "asked again while the node had not answered";
  RunPosted();
  EXPECT_EQ(Refused(*reporter_.Newest(0, absl::ZeroDuration())), 2);
}

TEST_F(NodeReporterTest, CustodyIsOfATimeAfterItWasAskedFor) {
  reporter_.Newest(0, absl::ZeroDuration());  // Under way when the question comes.
  EXPECT_EQ(reporter_.Newest(7, absl::ZeroDuration()), nullptr);
  RunPosted();
  const auto before = reporter_.Newest(7, absl::ZeroDuration());
  ASSERT_NE(before, nullptr);
  EXPECT_EQ(before->custody_term, 0) << "it was under way before the question";
  EXPECT_EQ(reporter_.Newest(7, absl::ZeroDuration()), before);
  RunPosted();
  EXPECT_EQ(reporter_.Newest(7, absl::ZeroDuration())->custody_term, 7);
}

TEST_F(NodeReporterTest, WhatIsPostedMayOutliveIt) {
  {
    NodeReporter gone([this](auto work) { posted_.push_back(std::move(work)); }, &clock_);
    gone.Newest(0, absl::ZeroDuration());
  }
  RunPosted();
}

}  // namespace
}  // namespace wukong
