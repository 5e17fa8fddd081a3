// Which samples were committed, and how often, from what was committed alone.
#ifndef WUKONG_COORDINATOR_COMMIT_ACCOUNT_H_
#define WUKONG_COORDINATOR_COMMIT_ACCOUNT_H_

#include <cstdint>
#include <map>

namespace wukong {

// Memory and time go with the gaps between what was committed, not with the samples. Thread-compatible.
class CommitAccount {
 public:
  // Samples [0, total), counted in ranges of `range_samples`, of which the last may be shorter.
  CommitAccount(int64_t total, int64_t range_samples) : total_(total), range_samples_(range_samples) {}

  // Samples [begin, end) of [0, total) are committed.
  void Add(int64_t begin, int64_t end);

  // Of ranges. One of which a sample was committed twice is committed more than once; of the others one is committed
  // once when each of its samples is.
  struct Audit {
    int64_t total = 0;
    int64_t committed_once = 0;
    int64_t committed_more_than_once = 0;
    int64_t not_committed = 0;
  };
  Audit MakeAudit() const;

 private:
  using Intervals = std::map<int64_t, int64_t>;  // End by begin; they do not touch.
  // Adds [begin, end), and to `twice`, unless it is null, what was there already.
  static void Join(int64_t begin, int64_t end, Intervals* intervals, Intervals* twice);

  const int64_t total_;
  const int64_t range_samples_;
  Intervals once_;   // At least.
  Intervals twice_;  // Likewise.
};

}  // namespace wukong

#endif  // WUKONG_COORDINATOR_COMMIT_ACCOUNT_H_
