#include "worker/mailbox.h"

#include <gtest/gtest.h>

#include <optional>
#include <vector>

namespace wukong {
namespace {

MemberKey Rank(int64_t member, int64_t incarnation) { return {MemberId(member), Incarnation(incarnation)}; }

HeartbeatReply Naming(const std::vector<MemberKey>& lives) {
  HeartbeatReply reply;
  for (const MemberKey& key : lives) {
    Life* life = reply.add_group();
    life->set_member(key.member.value());
    life->set_incarnation(key.incarnation.value());
  }
  return reply;
}

class MailboxGroupTest : public ::testing::Test {
 protected:
  void Ask() {
    HeartbeatRequest request;
    mail_.Fill(&request);
  }
  void Hear(const std::vector<MemberKey>& lives) { mail_.TakeReply(Naming(lives)); }

  const std::vector<MemberKey> group_ = {Rank(3, 1), Rank(4, 2)};
  Mailbox mail_;
};

TEST_F(MailboxGroupTest, ARankWithAnotherLifeOrNoneIsLost) {
  mail_.AskWhoLives();
  Ask();
  Hear({Rank(4, 2), Rank(3, 1), Rank(5, 1)});
  EXPECT_EQ(mail_.LostRank(group_), std::nullopt);
  Ask();
  Hear({Rank(3, 1), Rank(4, 3)});
  EXPECT_EQ(mail_.LostRank(group_), 1);
  Ask();
  Hear({Rank(4, 2)});
  EXPECT_EQ(mail_.LostRank(group_), 0);
}

TEST_F(MailboxGroupTest, WhatWasAskedBeforeTheGroupFormedSaysNothingOfIt) {
  EXPECT_EQ(mail_.LostRank(group_), std::nullopt) << "nothing was heard";
  Ask();
  Hear({Rank(3, 1)});
  mail_.AskWhoLives();
  EXPECT_EQ(mail_.LostRank(group_), std::nullopt) << "heard before";
  Ask();
  mail_.AskWhoLives();
  Hear({Rank(3, 1)});
  EXPECT_EQ(mail_.LostRank(group_), std::nullopt) << "asked before, and answered after";
  Ask();
  Hear({Rank(3, 1)});
  EXPECT_EQ(mail_.LostRank(group_), 1);
}

// Of a coordinator that was away for minutes, or of steps that take less than a millisecond.
TEST(MailboxTest, MoreStepsThanOneHeartbeatCarriesComeWithTheNext) {
  Mailbox mail;
  {
    MutexLock lock(mail.mutex);
    for (int64_t step = 1; step <= 100000; ++step) {
      StepRecord& record = mail.steps.emplace_back();
      record.set_step(step);
      record.set_time_seconds(1e-3);
      record.set_tokens(1 << 20);
      record.set_loss(2.5);
      record.set_compute_seconds(1e-3);
      record.set_wait_seconds(1e-3);
      record.set_root_base_version(1 << 20);
      record.set_learning_rate(1e-3);
      record.set_gradient_norm(1.5);
    }
  }
  int64_t next = 1;
  for (const int count : {40000, 40000, 20000, 0}) {
    HeartbeatRequest request;
    mail.Fill(&request);
    EXPECT_EQ(request.steps_size(), count);
    EXPECT_LT(request.ByteSizeLong(), 7u << 19);
    for (const StepRecord& step : request.steps()) ASSERT_EQ(step.step(), next++);
  }
}

}  // namespace
}  // namespace wukong
