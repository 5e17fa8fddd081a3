// A node's public parameters: what it tells its children, moved only by what it broadcasts.
#ifndef WUKONG_RUNTIME_SYNC_PUBLIC_COPY_H_
#define WUKONG_RUNTIME_SYNC_PUBLIC_COPY_H_

#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/wire.pb.h"
#include "runtime/base/ids.h"
#include "runtime/base/mutex.h"
#include "runtime/codec/codec.h"
#include "runtime/model/parameter_layout.h"
#include "runtime/sync/types.h"

namespace wukong {

// What a version says besides the numbers.
struct VersionNotes {
  // Per life of a child, its last contribution in it. Each life numbers its own: to a later one the number would mean
  // another contribution.
  absl::btree_map<MemberKey, Sequence> included;
  absl::btree_map<MemberKey, int64_t> lead;  // Contributions ahead of the slowest, where children are to know.
  Version root_version;
  int64_t tokens_committed = 0;
};

// The parent's side. Publishing moves the public copy by C(theta - public): what the codec leaves out stays in
// theta - public and goes with the next version, so the copy has no other residue. With fp32 the values themselves are
// sent, and the copy equals theta bit for bit. Fragments that did not change are not sent.
//
// A child is brought to one version at a time, its target, although newer ones are published meanwhile: one whose link
// is slower than the versions come would otherwise never have a whole one. Of the past there is kept
// - of differences, at most the bytes of one model. They serve a child whose every fragment they reach.
// - of whole copies, at most two, each shared by all children that are being brought to its version. Publish makes one
//   when the version that it replaces is going to some child by whole fragments; it goes with the last such child.
// So a child gets at most the bytes of two models and a fragment from one whole version to the next, however fast
// versions come. Where two copies are under way already and neither is newer than what a further child has, that one
// takes the newest version, and begins again when it is replaced.
//
// A child says how many versions it has room for (Allow). Without that, many children who look at one version a second
// would each be brought the contributions of all the others one by one. Thread-safe.
class PublicParameters {
 private:
  // What a version is told with.
  struct Edition {
    Version version;
    uint64_t checksum = 0;
    VersionNotes notes;
  };
  // A version whose values stay until nobody holds this any more.
  struct Frozen {
    std::shared_ptr<const Edition> edition;
    std::vector<float> values;  // Empty as long as the version is the newest.
  };

 public:
  // What a child has.
  struct Position {
    std::vector<Version> fragments;  // What it got of each; 0 for nothing.
    Version complete;                // The last version that it was told is whole; 0 for none.
  };
  // Where one child stands, and what it is being brought to. The child's stream owns it; frozen values go with it.
  class Cursor {
   private:
    friend class PublicParameters;
    Position at_;
    // No target is older: the child may have had any version that there was when its stream began, and forgotten it.
    Version oldest_;
    std::shared_ptr<const Edition> target_;  // Null between two.
    std::shared_ptr<const Frozen> frozen_;   // Keeps the target when it is replaced; null for none.
    int64_t completed_ = 0;                  // Whole versions that it was sent.
    int64_t allowed_ = std::numeric_limits<int64_t>::max();
  };

  // Begins as `values`, which were `version`; version 1 of a new run is theta, broadcast to nobody.
  PublicParameters(absl::Span<const float> values, std::vector<FragmentSpan> fragments, CodecKind codec,
                   VersionNotes notes, Version version = Version(1));

  // Makes the next version from theta. INVALID_ARGUMENT when theta is not finite; the public copy is then as before.
  absl::Status Publish(absl::Span<const float> theta, VersionNotes notes);

  // For a child that says where it stands; no `have.fragments` stands for `have.complete` of all. What this node cannot
  // have said (a later version, another number of fragments) counts as nothing, and is sent anew. As many versions may
  // be sent as there are, until Allow says otherwise. `broken`: the cursor of the child's last stream, which broke off;
  // where it was being brought to a version that the child still lacks, it goes on with that one. Null for none.
  Cursor CursorAt(Position have, const Cursor* broken = nullptr) const;

  // The child has room for `versions` whole ones in all since its cursor was made; fewer than before changes nothing.
  void Allow(Cursor* cursor, int64_t versions);
  // For more than it was sent.
  bool HasRoom(const Cursor& cursor) const;

  // The next message for this cursor; moves it. Empty when the child is up to date, or has room for nothing. Waits up
  // to `timeout` for a newer version, and for room.
  std::optional<FollowMessage> Next(Cursor* cursor, MemberKey child, absl::Duration timeout);

  // Wakes every waiting Next.
  void Shutdown();

  Version version() const;
  // Called, from any thread and with no lock held, when the first follower got all of the newest version and has room
  // for another one, or the last follower left: a next version is worth making. Set once, before the first follower.
  void OnTaken(std::function<void()> callback) { on_taken_ = std::move(callback); }
  void AddFollower();
  void RemoveFollower();
  int followers() const;
  // A copy of the public parameters and the checksum that followers check.
  std::vector<float> Copy(uint64_t* checksum) const;
  uint64_t checksum() const;
  // Whole copies of older versions.
  int frozen() const;

 private:
  struct Delta {
    Version version;
    std::vector<std::string> fragments;  // Empty where nothing changed.
    int64_t bytes = 0;
  };
  // There is nothing to send.
  bool Rests(const Cursor& cursor) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Its child is the first that would take a next version.
  bool IsFirstReady(const Cursor& cursor) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The newest version has the same values of this fragment as `have`.
  bool Unchanged(size_t f, Version have) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The retained differences lead from `have` to every later version.
  bool Reaches(Version have) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Chooses the cursor's next target, a version that its child does not have.
  void Aim(Cursor* cursor) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Empty when the target is beyond reach: it was replaced, and neither differences nor frozen values are left.
  std::optional<FragmentUpdate> Update(const Cursor& cursor, size_t f) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  VersionComplete Complete(Cursor* cursor, MemberKey child) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // `taken`: the cursor is the first that is ready for a next version.
  std::optional<FollowMessage> NextLocked(Cursor* cursor, MemberKey child, absl::Duration timeout, bool* taken);

  const std::vector<FragmentSpan> fragments_;
  const CodecKind codec_;
  mutable Mutex mutex_;
  std::map<const Cursor*, CondVar*> waiting_ ABSL_GUARDED_BY(mutex_);  // In Next.
  std::vector<float> values_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const Edition> newest_ ABSL_GUARDED_BY(mutex_);            // What values_ are.
  std::vector<Version> last_change_ ABSL_GUARDED_BY(mutex_);                 // Of each fragment, as far as is known.
  std::deque<std::shared_ptr<const Delta>> deltas_ ABSL_GUARDED_BY(mutex_);  // Rising; at most one model's bytes.
  int64_t delta_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<std::weak_ptr<Frozen>> frozen_ ABSL_GUARDED_BY(mutex_);  // Rising; at most two.
  Version taken_ ABSL_GUARDED_BY(mutex_);                              // The newest of which on_taken_ was told.
  int followers_ ABSL_GUARDED_BY(mutex_) = 0;
  std::function<void()> on_taken_;  // Constant once there are followers.
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

// The child's side: the same bytes as the parent's public copy, moved only by whole versions. Thread-safe.
class FollowedParameters {
 public:
  struct Snapshot {
    Version version;  // Of the parent; 0 before the first.
    Sequence included;
    Version root_version;
    int64_t tokens_committed = 0;
    int64_t lead = 0;
  };

  explicit FollowedParameters(std::vector<FragmentSpan> fragments);

  // Takes a message of the stream. DATA_LOSS when a version does not check out: everything is then forgotten as by
  // Reset, and the caller begins anew. Returns true when a version was completed.
  absl::StatusOr<bool> Take(FollowMessage message);
  // Where a new stream goes on. What the one before it brought of a version that was not completed stays staged.
  PublicParameters::Position Resume();
  // Forgets everything, so that the parent sends the whole.
  void Reset();

  Snapshot snapshot() const;
  // Runs `use` with the values of the newest whole version, which stay put meanwhile.
  template <typename Use>
  auto With(Use use) const {
    MutexLock lock(mutex_);
    return use(absl::MakeConstSpan(values_), snapshot_);
  }

 private:
  absl::StatusOr<bool> TakeLocked(FollowMessage* message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Stage(FragmentUpdate update) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Apply(const FragmentUpdate& update) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ResetLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::vector<FragmentSpan> fragments_;
  mutable Mutex mutex_;
  std::vector<float> values_ ABSL_GUARDED_BY(mutex_);
  std::vector<float> scratch_ ABSL_GUARDED_BY(mutex_);
  std::vector<Version> fragment_versions_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::vector<FragmentUpdate>> staged_ ABSL_GUARDED_BY(mutex_);  // Per fragment, in order.
  // Staged when the stream began, and what came since: it bounds both what is kept and what a stream may bring without
  // completing a version.
  int64_t staged_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  Snapshot snapshot_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SYNC_PUBLIC_COPY_H_
