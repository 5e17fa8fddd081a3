#include "coordinator/commit_account.h"

#include <algorithm>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/base/random.h"

namespace wukong {
namespace {

TEST(CommitAccountTest, CountsAsOneDoesByHand) {
  for (uint64_t seed = 1; seed <= 300; ++seed) {
    SCOPED_TRACE(seed);
    Random random(seed);
    const int64_t total = 1 + static_cast<int64_t>(random() % 60), range = 1 + static_cast<int64_t>(random() % 9);
    CommitAccount account(total, range);
    std::vector<int> commits(total);
    for (int commit = 0; commit < 8; ++commit) {
      const auto begin = static_cast<int64_t>(random() % static_cast<uint64_t>(total));
      const int64_t end = begin + 1 + static_cast<int64_t>(random() % static_cast<uint64_t>(total - begin));
      account.Add(begin, end);
      for (int64_t i = begin; i < end; ++i) ++commits[i];
      CommitAccount::Audit expected;
      for (int64_t from = 0; from < total; from += range) {
        const auto first = commits.begin() + from, last = commits.begin() + std::min(total, from + range);
        ++expected.total;
        ++(*std::max_element(first, last) > 1    ? expected.committed_more_than_once
           : *std::min_element(first, last) == 0 ? expected.not_committed
                                                 : expected.committed_once);
      }
      const CommitAccount::Audit audit = account.MakeAudit();
      EXPECT_EQ(audit.total, expected.total);
      EXPECT_EQ(audit.committed_once, expected.committed_once);
      EXPECT_EQ(audit.not_committed, expected.not_committed);
      EXPECT_EQ(audit.committed_more_than_once, expected.committed_more_than_once);
    }
  }
}

// Who wants a run to go on until it is stopped asks for a budget that it will never reach.
TEST(CommitAccountTest, ABudgetThatIsNeverReachedCostsNothing) {
  CommitAccount account(int64_t{1} << 50, 32);
  for (int64_t i = 0; i < 100000; ++i) account.Add(i * 16, (i + 1) * 16);
  const CommitAccount::Audit audit = account.MakeAudit();
  EXPECT_EQ(audit.total, int64_t{1} << 45);
  EXPECT_EQ(audit.committed_once, 50000);
  EXPECT_EQ(audit.not_committed, (int64_t{1} << 45) - 50000);
}

}  // namespace
}  // namespace wukong
