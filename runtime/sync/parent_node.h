// What a parameter node decides as a parent: which contributions count, when they are merged and with what weights,
// when its children hear of it, and (in a region) when its own progress goes up to the root.
//
// Pure: no clock, no threads, no I/O, no vectors. The driver (runtime/transport/parameter_server.h) feeds events and
// carries out the actions of one Step in their order, and those of one Step before those of the next.
//
//   Offered -> Check -> Checked -> Reply + Apply + Publish (+ SendUp)
//
#ifndef WUKONG_RUNTIME_SYNC_PARENT_NODE_H_
#define WUKONG_RUNTIME_SYNC_PARENT_NODE_H_

#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "absl/container/btree_map.h"
#include "absl/time/time.h"
#include "proto/job.pb.h"
#include "proto/log.pb.h"
#include "runtime/base/ids.h"
#include "runtime/sync/outer_optimizer.h"
#include "runtime/sync/public_copy.h"
#include "runtime/sync/types.h"

namespace wukong {

class ParentNode {
 public:
  struct Options {
    bool is_root = false;
    Level level;              // All knobs set (presets.h).
    bool waits = false;       // Senders wait for versions: a region says nothing of its own until the root has spoken.
    int in_flight_max = 1;    // Region: contributions that the root has not answered. One is written at a time, but
                              // for where senders wait.
    int parts = 1;            // Contribution s carries part s mod parts of the parameters, or all of them.
    bool tells_lead = false;  // Children wait when they are too far ahead of the slowest one.
    // A contribution whose norm is more than this many times the median of the last ones is taken for damage; 0 takes
    // every finite one. One of more tokens than the median may be larger in proportion: progress adds up. Where half of
    // the other senders' last ones were as large (without others: the sender's own last one), it is no damage: the
    // model is somewhere steep, and to refuse everybody would be to stop for ever.
    double norm_ratio_max = 0;
    // After this many such or not finite ones in a row, a sender is left out for that long.
    int quarantine_after = 3;
    absl::Duration quarantine = absl::Seconds(30);
  };

  // ---- events
  struct ChildAttached {  // It follows this node. A newer incarnation fences the older ones.
    MemberKey child;
    Sequence next{1};  // Where its contributions begin, if this node does not know it yet.
  };
  struct ChildFenced {
    MemberKey child;
  };
  struct IdleChildren {  // All of them, as the coordinator knows it: no quorum waits for these.
    std::set<MemberId> idle;
  };
  struct Offered {
    Handle handle;
    Manifest manifest;
  };
  struct Checked {  // ACCEPTED, or why not.
    Handle handle;
    Verdict verdict = VERDICT_UNSPECIFIED;
    std::string detail;
    double norm = 0;
  };
  // Some follower has the newest version and room for another, or there is none: a next one is worth making.
  struct FollowersReady {};
  struct ParentMoved {  // Region: the root has a newer version.
    Version root_version;
    int64_t tokens_committed = 0;
    int64_t lead = 0;  // Contributions that this region is ahead of the slowest.
  };
  struct Written {  // Region: all of this contribution is on its way. What a next one brings would not wait behind it.
    Sequence sequence;
  };
  struct Answered {  // Region: the root's verdict on a contribution.
    Sequence sequence;
    Verdict verdict = VERDICT_UNSPECIFIED;
  };
  // Region: the root, or the way there, was away and is there again. What is held here is safe only there: the next
  // contribution waits for no others to go with it.
  struct ParentBack {};
  struct Drain {  // Region: send what there is, for its workers have no more data.
    bool on = false;
  };
  struct Tick {};
  using Event = std::variant<ChildAttached, ChildFenced, IdleChildren, Offered, Checked, FollowersReady, ParentMoved,
                             Written, Answered, ParentBack, Drain, Tick>;

  // ---- actions
  // Finite, right shape, norm, and (root) ranges that the sender holds; then feed Checked, before any other event: how
  // stale the contribution is has been judged, and no other may be merged in between.
  struct Check {
    Handle handle;
    double norm_max = 0;  // 0: any.
  };
  struct Keep {  // The one before it is on its way, or being checked. It is taken up after that one.
    Handle handle;
  };
  struct Reply {
    Handle handle;
    Verdict verdict = VERDICT_UNSPECIFIED;
    std::string detail;
    bool keep_payload = false;  // An Apply will name it; otherwise it is forgotten.
    bool decided = false;       // Now, and for all repeats: this is what a log records.
  };
  struct Apply {  // Then the payloads are forgotten.
    Merge merge;
    std::vector<Manifest> manifests;  // Of merge.parts.
    std::vector<double> raw_weights;  // Of merge.parts, before they were set against others.
    std::vector<int64_t> staleness;   // Versions behind, of merge.parts.
    int64_t staleness_max = 0;        // Largest among them.
  };
  struct Rebase {};  // Region: onto the root's newest version, dropping or keeping what is pending.
  struct Drop {      // Region: the root refused this contribution for good.
    Sequence sequence;
    Verdict verdict = VERDICT_UNSPECIFIED;
  };
  struct Publish {
    Version version;
    VersionNotes notes;
  };
  struct SendUp {
    Manifest manifest;   // The sender is for the driver to fill in.
    bool whole = false;  // All parts of the parameters, whose turn it is or not: nothing may be left behind.
  };
  using Action = std::variant<Check, Keep, Reply, Apply, Rebase, Drop, Publish, SendUp>;

  // How the node stands.
  struct Stats {
    std::map<Verdict, int64_t> contributions;
    // Those refused, by sender; of more senders than can be kept, under member 0.
    std::map<std::pair<MemberId, Verdict>, int64_t> refused;
    std::map<int64_t, int64_t> staleness;  // Versions behind -> contributions merged.
    int64_t tokens_merged = 0;
    int64_t clipped = 0;  // Contributions that were merged with a smaller weight for their norm.
  };

  explicit ParentNode(const Options& options);

  std::vector<Action> Step(const Event& event, absl::Time now);

  Version version() const { return version_; }
  const Stats& stats() const { return stats_; }
  int live_children() const { return static_cast<int>(children_.size()); }
  // Left out for a while: what they send is refused, and no quorum waits for them.
  std::set<MemberId> Quarantined(absl::Time now) const;

  // Region: ranges of this sender, or of all, that the node accepted and that the root has not yet answered for.
  std::vector<LeasedRange> CustodyOf(MemberKey sender) const;
  std::vector<LeasedRange> Custody() const;

  // Root: goes on where the log ended. `unmerged` are the handles of state.unmerged, in order. Before the first Step.
  void Restore(const RootState& state, const std::vector<Handle>& unmerged);

 private:
  struct Child {
    Incarnation incarnation;
    Sequence offered;                      // Last sequence taken in.
    bool checking = false;                 // One of its contributions, and no more than one.
    std::map<Sequence, Offered> early;     // Later ones, which wait for their turn.
    int64_t clock = 0;                     // Contributions merged, and those of the slowest when it came.
    std::map<Sequence, Verdict> verdicts;  // Of the last sequences, to answer repeats.
    int damaged_in_a_row = 0;
    bool large = false;  // The last one's norm was beyond the bound.
    absl::Time quarantined_until = absl::InfinitePast();
  };
  struct Staged {
    Manifest manifest;
    std::vector<Handle> repeats;  // The same sequence, offered again while it was being checked.
  };
  struct Ready {  // Accepted, waiting for the quorum.
    Handle handle;
    Manifest manifest;
    double norm = 0;
  };
  struct Size {
    int64_t part = 0;
    double norm = 0;
    double tokens = 0;
  };
  // Progress that was merged here and is not yet in a contribution to the root, or is in one that is not yet answered.
  struct Cargo {
    std::vector<std::pair<MemberKey, LeasedRange>> ranges;
    std::optional<Version> root_base;
    int64_t steps = 0;
    int64_t tokens = 0;
    int64_t contributions = 0;
    absl::Time since;
    bool last = false;  // Somebody's last one is among them: no other may come to go with it.
  };

  void On(const ChildAttached& event, std::vector<Action>* actions);
  void On(const ChildFenced& event, std::vector<Action>* actions);
  void On(const Offered& event, absl::Time now, std::vector<Action>* actions);
  void TakeUp(const Offered& event, Child* child, absl::Time now, std::vector<Action>* actions);
  // Of those that wait for their turn, whose turn it is.
  void TakeUpEarly(MemberId sender, absl::Time now, std::vector<Action>* actions);
  // Whose it was, unless it was refused meanwhile.
  std::optional<MemberId> On(const Checked& event, absl::Time now, std::vector<Action>* actions);
  void Settle(const Checked& event, absl::Time now, std::vector<Action>* actions);
  void On(const ParentMoved& event, std::vector<Action>* actions);
  void On(const Answered& event, std::vector<Action>* actions);

  void Refuse(Handle handle, MemberId sender, Verdict verdict, std::string detail, std::vector<Action>* actions);
  void FenceChild(MemberKey child, std::vector<Action>* actions);
  int64_t Staleness(const Manifest& manifest) const;
  // `ratio` times the usual norm of a contribution of so many tokens, of the part where that is largest; 0 while there
  // is nothing to compare with.
  double NormMax(double ratio, int64_t tokens) const;
  // Others send norms beyond the bound as well.
  bool LargeIsUsual(MemberId sender) const;
  double RawWeight(const Manifest& manifest) const;
  int64_t SlowestClock(absl::Time now) const;
  bool GraceIsOver(bool everybody, absl::Time now);
  template <typename Use>
  void ForEachInCustody(Use use) const;
  // Whether it may still contribute to what is about to be merged.
  bool TakesPart(MemberId member, const Child& child, absl::Time now) const {
    return idle_.count(member) == 0 && now >= child.quarantined_until;
  }
  int ActiveChildren(absl::Time now) const;
  void MaybeMerge(absl::Time now, std::vector<Action>* actions);
  void MaybeSendUp(absl::Time now, std::vector<Action>* actions);

  const Options options_;
  Version version_{1};
  absl::btree_map<MemberId, Child> children_;       // Live ones.
  std::map<MemberId, Incarnation> oldest_allowed_;  // Older incarnations are fenced.
  absl::btree_map<MemberKey, Sequence> included_;   // Of the newest life of each child.
  std::set<MemberId> idle_;
  std::map<Handle, Staged> staged_;  // Being checked.
  std::vector<Ready> ready_;
  std::optional<absl::Time> quorum_since_;
  std::deque<double> recent_weights_;  // Raw ones, for a quorum of fewer than all.
  std::deque<Size> recent_sizes_;
  int64_t merges_since_momentum_ = 0;

  bool followers_ready_ = true;
  bool publish_wanted_ = false;

  // Region only.
  Version root_version_;
  int64_t tokens_committed_ = 0;
  int64_t region_lead_ = 0;
  Cargo unsent_;
  std::map<Sequence, Cargo> unanswered_;
  Sequence sent_;
  bool writing_ = false;  // sent_ is not on its way as a whole.
  bool draining_ = false;
  bool parent_was_away_ = false;  // Nothing went up since.

  Stats stats_;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SYNC_PARENT_NODE_H_
