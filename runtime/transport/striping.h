// One transfer over several connections: a contribution on its way up, a node's public parameters on their way down.
// What is large is cut into pieces, which connections take in turn. Thread-safe, without I/O.
#ifndef WUKONG_RUNTIME_TRANSPORT_STRIPING_H_
#define WUKONG_RUNTIME_TRANSPORT_STRIPING_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "proto/wire.pb.h"
#include "runtime/base/mutex.h"
#include "runtime/model/parameter_layout.h"
#include "runtime/sync/replica.h"

namespace wukong {

// Size of the pieces of something of `bytes` that goes over `streams` connections: its share, but 2 to 256 KiB, and
// the whole where there is one connection.
int64_t PieceBytes(int64_t bytes, int streams);

// A contribution whose pieces come in, in any order.
class ContributionAssembly {
 public:
  // `partial`: fragments may be missing. `bytes` of all fragments, over `streams` connections.
  ContributionAssembly(CodecKind codec, absl::Span<const FragmentSpan> fragments, bool partial, int64_t bytes,
                       int streams);

  // INVALID_ARGUMENT when the piece does not fit in. CANCELLED after TakeWhole.
  absl::Status Add(FragmentPayload piece);
  // One of the connections has brought all that it had to bring, or broke off. The first error stays.
  void StreamEnded(const absl::Status& status);
  // Empty: not yet. OK when all bytes are there. The checksum is the caller's to compare. CANCELLED after TakeWhole.
  std::optional<absl::Status> Wait(absl::Duration timeout);
  // After Wait said OK.
  std::shared_ptr<EncodedVector> payload() const { return payload_; }
  // For the next transfer of the same contribution: the fragments that are whole, by index. This one is over. Nullopt
  // once Wait said OK: then this one is the contribution.
  std::optional<std::map<int, std::string>> TakeWhole();
  // Whether TakeWhole would bring something.
  bool has_whole() const;
  // After Wait said OK: what CheckContribution says. Each fragment was looked at when its last piece came, by whoever
  // brought it.
  absl::StatusOr<double> norm() const;

 private:
  absl::Status Missing(const std::string& what) const;

  const std::vector<FragmentSpan> fragments_;
  const std::vector<int64_t> sizes_;
  const bool partial_;
  const int64_t bytes_;
  const int streams_;
  const std::shared_ptr<EncodedVector> payload_ = std::make_shared<EncodedVector>();  // Written under mutex_.
  mutable Mutex mutex_;
  CondVar changed_;
  std::vector<int64_t> received_ ABSL_GUARDED_BY(mutex_);  // Per fragment.
  int64_t received_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::set<int> whole_ ABSL_GUARDED_BY(mutex_);          // Fragments that were looked at.
  std::vector<double> squares_ ABSL_GUARDED_BY(mutex_);  // Per fragment.
  enum class State { kComing, kThere, kTaken };
  State state_ ABSL_GUARDED_BY(mutex_) = State::kComing;
  absl::Status unsound_ ABSL_GUARDED_BY(mutex_);  // Of the first fragment that was not as it should be.
  int ended_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
};

// The sending side of a Follow: numbers its messages, and cuts and deals them out to the connections that take part.
class FollowSpread {
 public:
  // A further connection; its number, from 0.
  int Attach();
  // How many there are. Waits until there are `parts` of them, at most `timeout`.
  int AwaitParts(int parts, absl::Duration timeout);
  // Deals a fragment out. Waits while the connection whose turn it is has two pieces before it. False when broken. To
  // be called by one thread, when a connection is there.
  bool Put(FollowMessage message);
  // What the connection is to send next. Empty after `timeout`, or when broken.
  std::optional<FollowMessage> Take(int part, absl::Duration timeout);
  // Numbers a message that goes over the Follow's own connection.
  void Number(FollowMessage* message) { message->set_number(++last_number_); }
  // A connection is gone, and pieces with it.
  void Break();
  bool broken() const;

 private:
  int64_t last_number_ = 0;  // The thread's that calls Put.
  size_t turn_ = 0;          // Likewise.
  struct Part {
    std::deque<FollowMessage> queue;
    CondVar filled;
  };
  mutable Mutex mutex_;
  CondVar changed_;                                 // A part came, or took something.
  std::deque<Part> parts_ ABSL_GUARDED_BY(mutex_);  // Grows only.
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;
};

// The receiving side of a Follow: puts messages of several connections in order, and pieces together.
class FollowMerge {
 public:
  // `take` gets whole messages in order, one at a time, and when the first piece of each came; what it returns ends the
  // stream unless it is OK.
  using TakeMessage = std::function<absl::Status(FollowMessage message, absl::Time arrived)>;
  explicit FollowMerge(TakeMessage take) : take_(std::move(take)) {}

  // Every connection calls this with its messages, in its order. Waits while too much is there that others' messages
  // must come before. DATA_LOSS where pieces do not fit; CANCELLED after Break.
  absl::Status Put(FollowMessage message, absl::Time now);
  // Ends all waiting.
  void Break();
  // What ended the stream, OK when nothing did.
  absl::Status status() const;
  // The number of the message that is to come next; all before it were taken.
  int64_t next() const;

 private:
  struct Early {
    FollowMessage message;
    absl::Time arrived;
  };
  absl::Status Deliver(FollowMessage message, absl::Time arrived) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const TakeMessage take_;
  mutable Mutex mutex_;
  CondVar changed_;
  int64_t next_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<int64_t, Early> early_ ABSL_GUARDED_BY(mutex_);  // By number.
  int64_t early_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::optional<Early> begun_ ABSL_GUARDED_BY(mutex_);  // An update of which the last piece is missing.
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_TRANSPORT_STRIPING_H_
