// Who holds which samples: the account of the data. Pure: no clock, no threads, no I/O.
//
//   available --Lease--> leased --Admit--> admitted --Commit--> committed
//       ^                   |                  (a merge at the root)
//       +-- Release, fence -+
//
// After the coordinator restarted it is unknown who holds what was leased before. Unknown samples are given to nobody
// until their holders have said so (Assert) or can no longer speak (EndRecovery); a contribution that names them is
// admitted, since whoever may send it held them.
//
// A worker's leased samples may be in the custody of its region's aggregator, which accepted them and owes them to the
// root; they are then no longer released with the worker, only with the region.
#ifndef WUKONG_COORDINATOR_SHARD_LEDGER_H_
#define WUKONG_COORDINATOR_SHARD_LEDGER_H_

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "coordinator/commit_account.h"
#include "runtime/sync/types.h"

namespace wukong {

class ShardLedger {
 public:
  // Samples [0, total) of the run, accounted for in ranges of `range_samples`. Tokens begin at `first_token`; those of
  // earlier terms are below it.
  ShardLedger(int64_t total, int64_t range_samples, int64_t first_token = 1);

  // What the log says: `committed`, of which `admitted` are not merged yet; other samples below `ceiling` are unknown.
  void Restore(const std::vector<LeasedRange>& committed, const std::vector<LeasedRange>& admitted, int64_t ceiling);

  struct Claim {
    std::vector<LeasedRange> committed;  // Admitted or committed already.
    std::vector<LeasedRange> disowned;   // Another's, or nobody's any more.
  };
  // The holder says that it has `ranges` and nothing else: what is unknown becomes its own, and what it was thought to
  // hold besides is available again. With `custody` the holder is an aggregator, which has them in place of whoever
  // leased them, and says nothing of the leases of others.
  Claim Assert(MemberKey holder, int region, const std::vector<LeasedRange>& ranges, bool custody);
  // Everybody who may hold something has spoken: the rest is available.
  void EndRecovery();

  // At most `want` samples, lowest first, none crossing a multiple of range_samples; fewer or none when there are no
  // more.
  std::vector<LeasedRange> Lease(MemberKey holder, int region, int64_t want);

  // Gives back what `holder` still holds of `ranges` under their tokens, and ignores the rest.
  void Release(MemberKey holder, const std::vector<LeasedRange>& ranges);

  // The holder is fenced at its aggregator, which has `custody` of some of its ranges: the others are available again.
  void ReleaseFenced(MemberKey holder, const std::vector<LeasedRange>& custody);

  // The root refused a contribution of `region` for good: what the region still holds of `ranges` under their tokens is
  // available again, for nobody will send it a second time.
  void ReleaseRefused(int region, const std::vector<LeasedRange>& ranges);

  // The region's aggregator is fenced at the root: what it had accepted and not delivered is available again, and so is
  // what was leased in the region to anybody but `speaking`, who will say what they hold.
  void ReleaseRegion(int region, const std::set<MemberKey>& speaking = {});

  // Whether `region` holds every sample of `ranges` under their tokens; if so, all of them are admitted, else none, and
  // `detail` says which is not.
  bool Admit(int region, const std::vector<LeasedRange>& ranges, std::string* detail);

  // Admitted ranges are merged. CHECK-fails on ranges that were not admitted.
  void Commit(const std::vector<LeasedRange>& ranges);

  int64_t total() const { return total_; }
  int64_t available() const { return count_[kAvailable]; }
  int64_t unknown() const { return count_[kUnknown]; }
  // One past the last sample that was ever leased.
  int64_t leased_end() const { return leased_end_; }
  int64_t leased() const { return count_[kLeased]; }
  int64_t committed() const { return count_[kCommitted]; }
  int64_t LeasedIn(int region) const;
  bool done() const { return committed() == total_; }

  // A count of the committed ranges of range_samples, made from the committed manifests alone and not from the states
  // above.
  using Audit = CommitAccount::Audit;
  Audit MakeAudit() const { return commits_.MakeAudit(); }

 private:
  enum State { kAvailable, kUnknown, kLeased, kAdmitted, kCommitted, kStates };
  struct Entry {
    int64_t end = 0;
    State state = kAvailable;
    MemberKey holder;
    int region = -1;
    int64_t token = 0;
    bool custody = false;
  };
  using Entries = absl::btree_map<int64_t, Entry>;  // By begin; they cover [0, total).

  // Makes `at` the beginning of an entry. Other iterators end with it.
  Entries::iterator SplitAt(int64_t at);
  void SetState(Entries::iterator entry, State state);
  // From any state to leased.
  void Hold(Entries::iterator entry, MemberKey holder, int region, int64_t token, bool custody);
  void MakeAvailable(Entries::iterator entry);
  // The begins of what this holder has leased, as they are now.
  std::vector<int64_t> HeldBy(MemberKey holder) const;
  // What this holder has leased and nobody has custody of, but for what begins in `kept`, is available again.
  void ReleaseHeld(MemberKey holder, const std::set<int64_t>& kept);
  // Joins entries that touch [begin, end] with their neighbours, where nothing tells them apart.
  void Merge(int64_t begin, int64_t end);
  // Calls use(entry) for every entry of [begin, end), cut to fit; nothing for a malformed range.
  template <typename Use>
  void ForEach(const LeasedRange& range, Use use);

  const int64_t total_;
  const int64_t range_samples_;
  const int64_t first_token_;
  int64_t leased_end_ = 0;
  Entries entries_;
  // The same once more, so that no lease and no contribution looks at all entries.
  absl::btree_set<int64_t> available_;                             // Begins.
  absl::flat_hash_map<MemberKey, absl::btree_set<int64_t>> held_;  // Begins of what is leased, by holder.
  std::vector<int64_t> leased_in_;                                 // Samples, by region.
  int64_t count_[kStates] = {};
  int64_t next_token_;
  CommitAccount commits_;
};

}  // namespace wukong

#endif  // WUKONG_COORDINATOR_SHARD_LEDGER_H_
