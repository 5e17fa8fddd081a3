// What the records of the root's log add up to, and whether they contradict each other. Pure: no I/O, no vectors.
//
// The coordinator feeds it every record that it appends; recovery and `wukong log verify` feed it the records that they
// read, without the coordinator's memory of them.
#ifndef WUKONG_RUNTIME_STORAGE_ROOT_HISTORY_H_
#define WUKONG_RUNTIME_STORAGE_ROOT_HISTORY_H_

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/log.pb.h"

namespace wukong {

class RootHistory {
 public:
  // Goes on from a snapshot's state; from nothing by default.
  explicit RootHistory(const RootState& state = RootState());

  // Adds record `index`. DATA_LOSS when it contradicts the records before it; the message names the invariant of
  // docs/durability.md and the record. The history is then as before.
  //   I1  a sample is accepted once           I4  versions rise by one, and are never told twice
  //   I6  terms rise by one                   I7  sequences of one sender rise by one; a fenced sender has no say
  //   I10 merged is what was accepted, once
  absl::Status Add(int64_t index, const LogRecord& record);

  // For a snapshot.
  RootState state() const;
  // Without the payloads of what waits for its quorum.
  RootState Summary() const;

  int64_t index() const { return state_.index(); }
  int64_t term() const { return state_.term(); }
  int64_t version() const { return state_.version(); }
  int64_t samples_committed() const { return samples_committed_; }
  // Whether this is the newest life of a member that has joined: who else sends anything is a stranger.
  bool Joined(int64_t member, int64_t incarnation) const;
  // Accepted and not merged, in order, with payloads.
  const google::protobuf::RepeatedPtrField<ContributionAccepted>& unmerged() const { return unmerged_; }

 private:
  absl::Status Check(const LogRecord& record) const;
  RootMember* Member(int64_t member);
  const RootMember* FindMember(int64_t member) const;
  absl::Status CheckSender(const ContributionHeader& header) const;
  void Commit(int64_t begin, int64_t end);
  bool Overlaps(int64_t begin, int64_t end) const;
  void Keep(RootMember* member, int64_t sequence, Verdict verdict);

  RootState state_;  // Without what follows.
  google::protobuf::RepeatedPtrField<ContributionAccepted> unmerged_;
  std::map<int64_t, RootMember> members_;  // By member.
  std::set<int64_t> untold_;               // Members of whom something was merged since the last version.
  std::map<int64_t, int64_t> committed_;   // begin -> end; disjoint, not touching.
  int64_t samples_committed_ = 0;
};

// One line of JSON, without payloads.
std::string LogRecordToJson(int64_t index, const LogRecord& record);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_STORAGE_ROOT_HISTORY_H_
