// A node's public parameters: what it tells its children, moved only by what it broadcasts.
#ifndef WUKONG_RUNTIME_SYNC_PUBLIC_COPY_H_
#define WUKONG_RUNTIME_SYNC_PUBLIC_COPY_H_

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/wire.pb.h"
#include "runtime/base/ids.h"
#include "runtime/base/mutex.h"
#include "runtime/codec/codec.h"
#include "runtime/model/parameter_layout.h"

namespace wukong {

// What a version says besides the numbers.
struct VersionNotes {
  std::map<MemberId, Sequence> included;  // Per child, its last contribution in it.
  Version root_version;
  int64_t tokens_committed = 0;
};

// The parent's side. Publishing moves the public copy by C(theta - public): what the codec leaves out stays in
// theta - public and goes with the next version, so the copy has no other residue. With fp32 the values themselves are
// sent, and the copy equals theta bit for bit. Thread-safe.
class PublicParameters {
 public:
  // Where one child stands: the version of each fragment that it has, 0 for none.
  struct Cursor {
    std::vector<Version> fragments;
    Version complete;
  };

  // Version 1 is `theta`, broadcast to nobody.
  PublicParameters(absl::Span<const float> theta, std::vector<FragmentSpan> fragments, CodecKind codec,
                   VersionNotes notes);

  // Makes the next version from theta. INVALID_ARGUMENT when theta is not finite; the public copy is then as before.
  absl::Status Publish(absl::Span<const float> theta, VersionNotes notes);

  // A child that has all of `have` (0: nothing). A version that this node never published counts as nothing.
  Cursor CursorAt(Version have) const;

  // The next message for this cursor; moves it. Empty when the child is up to date. Waits up to `timeout` for a newer
  // version. A child that is further behind than the retained differences gets fragments as a whole.
  std::optional<FollowMessage> Next(Cursor* cursor, MemberId child, absl::Duration timeout);

  // Wakes every waiting Next.
  void Shutdown();

  Version version() const;
  // Called, from any thread and with no lock held, when some follower got all of the newest version or the last
  // follower left: a next version is worth making. Set once, before the first follower.
  void OnTaken(std::function<void()> callback) { on_taken_ = std::move(callback); }
  void AddFollower();
  void RemoveFollower();
  int followers() const;
  // A copy of the public parameters and the checksum that followers check.
  std::vector<float> Copy(uint64_t* checksum) const;

 private:
  struct Delta {
    Version version;
    std::vector<std::string> fragments;
  };
  std::optional<FollowMessage> NextLocked(Cursor* cursor, MemberId child, absl::Duration timeout);

  const std::vector<FragmentSpan> fragments_;
  const std::unique_ptr<Codec> codec_;
  mutable Mutex mutex_;
  CondVar changed_;
  std::vector<float> values_ ABSL_GUARDED_BY(mutex_);
  Version version_ ABSL_GUARDED_BY(mutex_){1};
  VersionNotes notes_ ABSL_GUARDED_BY(mutex_);
  uint64_t checksum_ ABSL_GUARDED_BY(mutex_) = 0;
  std::deque<std::shared_ptr<const Delta>> deltas_ ABSL_GUARDED_BY(mutex_);  // Rising; at most one model's bytes.
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
  };

  explicit FollowedParameters(std::vector<FragmentSpan> fragments);

  // Takes a message of the stream. DATA_LOSS when a version does not check out: everything is then forgotten as by
  // Reset, and the caller begins anew. Returns true when a version was completed.
  absl::StatusOr<bool> Take(const FollowMessage& message);
  // Forgets what was staged; the values stay at the last whole version, from which the stream may go on.
  void DropStaged();
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
  absl::StatusOr<bool> TakeLocked(const FollowMessage& message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Apply(const FragmentUpdate& update) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void ResetLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::vector<FragmentSpan> fragments_;
  mutable Mutex mutex_;
  std::vector<float> values_ ABSL_GUARDED_BY(mutex_);
  std::vector<float> scratch_ ABSL_GUARDED_BY(mutex_);
  std::vector<Version> fragment_versions_ ABSL_GUARDED_BY(mutex_);
  std::vector<FragmentUpdate> staged_ ABSL_GUARDED_BY(mutex_);
  int64_t staged_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  Snapshot snapshot_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SYNC_PUBLIC_COPY_H_
