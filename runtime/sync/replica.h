// A node's parameters theta and the base b that it last agreed on with its parent: the numeric half of being a child.
//
// Progress is theta - b. Sending takes c = decode(encode(theta - b)) and moves b by c; what the codec left out stays in
// theta - b, which is the error feedback. A newer public version P of the parent moves theta and b by the same vector
//   v = mix * (public + pending - b),   pending = the sum of c that the parent has not yet included,
// so that progress is neither lost nor counted twice, whatever the order of messages (docs/architecture.md).
//
// With gradient progress (ddp) a contribution is a gradient made anew at each step; b does not move when it is sent,
// and what the codec left out is kept by an ErrorFeedback.
//
// Thread-compatible: one thread at a time.
#ifndef WUKONG_RUNTIME_SYNC_REPLICA_H_
#define WUKONG_RUNTIME_SYNC_REPLICA_H_

#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/job.pb.h"
#include "runtime/base/ids.h"
#include "runtime/codec/codec.h"
#include "runtime/model/parameter_layout.h"

namespace wukong {

// A contribution as it travels: one payload per fragment.
struct EncodedVector {
  CodecKind codec = CODEC_KIND_UNSPECIFIED;
  std::vector<std::string> fragments;  // Empty: it is not the turn of this one, and all its values are zero.
  int64_t bytes() const;
  uint64_t checksum() const;  // XXH3 over the payloads in order.
};

// Fills `values` with fragment f, which is `span`. INVALID_ARGUMENT for a payload that the codec does not take.
absl::Status DecodeFragment(const EncodedVector& vector, size_t f, const FragmentSpan& span, absl::Span<float> values);

class OutgoingPayload;

class Replica {
 public:
  struct Options {
    CodecKind codec = CODEC_KIND_FP32;
    double mix = 1.0;  // alpha, 0..1
    Progress progress = PROGRESS_PARAMETERS;
    // Contribution s carries the fragments f with f mod parts = s mod parts; the others' progress stays in theta - base
    // until it is their turn (Streaming DiLoCo, Douillard et al. 2025).
    int parts = 1;
    // Newer parameters overwrite what was learned while a contribution travelled, as in HALoS's released code:
    // theta <- (1 - mix) theta + mix public, base <- theta.
    bool replaces = false;
    // What a contribution in flight counts for when newer parameters are taken: 1, or what it will be worth at the
    // parent (eager updates, Kale et al. 2025).
    double pending_weight = 1.0;
  };
  // `theta` must outlive the replica and is moved by it. `fragments` cover theta.
  Replica(absl::Span<float> theta, std::vector<FragmentSpan> fragments, const Options& options);

  // theta := base := `public_parameters`; forgets what was sent.
  void Reset(absl::Span<const float> public_parameters);

  // Encodes the progress as contribution `sequence` (rising) and keeps it until a version includes it. `gradient` is
  // what is sent with gradient progress, and is unused otherwise. INVALID_ARGUMENT when the progress is not finite:
  // theta and base are then as before; the error feedback of a gradient begins anew.
  // `whole`: all parts. `begun`, where there is one, is called with what is going to be the payload before any of it is
  // encoded; it is filled then, or abandoned where Send fails. (Not called where Send fails before.)
  using Begun = std::function<void(std::shared_ptr<const OutgoingPayload>)>;
  absl::StatusOr<std::shared_ptr<const EncodedVector>> Send(Sequence sequence, absl::Span<const float> gradient = {},
                                                            bool whole = false, const Begun& begun = nullptr);

  // Takes the parent's newer public parameters, in which `included` is the last of our contributions. With mix < 1 a
  // version that includes nothing new changes nothing: the parent's weight is applied once per included contribution,
  // also where one version includes several. With parts that holds for each fragment and the contributions that carried
  // it.
  // Returns whether theta moved.
  absl::StatusOr<bool> Rebase(absl::Span<const float> public_parameters, Sequence included);

  // The parent refused `sequence` for good: theta and base lose it. No effect when it is not pending.
  absl::Status Drop(Sequence sequence);
  // As if it had not been sent: its progress counts as not sent again. No effect when it is not pending.
  absl::Status TakeBack(Sequence sequence);
  // Somewhere above it is counted in: the parent's parameters will hold it. Theta and base stay until then.
  void Included(Sequence sequence);

  // The parent is another one by now, and its first version is taken whole, whatever `mix` is. Of what was sent only
  // `undecided` stays pending, to be Included, Dropped or TakenBack before anything is sent to the new parent; of the
  // rest stays what the new parent's parameters hold.
  void ParentReplaced(const std::vector<Sequence>& undecided);
  // theta := base: what was not sent is thrown away.
  void Revert();

  // Contributions sent, neither included nor dropped.
  int pending() const { return static_cast<int>(pending_.size()); }
  absl::Span<const float> base() const { return base_; }

 private:
  struct Pending {
    Sequence sequence;
    std::shared_ptr<const EncodedVector> payload;
  };
  absl::Status Encode(size_t f, absl::Span<const float> gradient, std::string* payload);
  absl::Status AddToBase(const EncodedVector& payload, float sign, bool theta_too);
  std::shared_ptr<const EncodedVector> RemovePending(Sequence sequence);
  // Who trains again on the data of a gradient that was sent makes all of it again: what the codec left out of the
  // first one would count twice.
  void ForgetRemainder(Sequence sequence);
  bool moves_base() const { return options_.progress == PROGRESS_PARAMETERS; }
  bool HasItsTurn(Sequence sequence, size_t f) const {
    return sequence.value() % options_.parts == static_cast<int64_t>(f) % options_.parts;
  }
  void MoveTo(absl::Span<const float> target, const float* pending_sum, float mix, const FragmentSpan& span);

  const Options options_;
  const std::vector<FragmentSpan> fragments_;
  absl::Span<float> theta_;
  std::vector<float> base_;
  std::unique_ptr<ErrorFeedback> feedback_;  // Gradient progress only.
  std::deque<Pending> pending_;              // Rising sequences.
  std::vector<float> scratch_;               // One fragment.
  std::vector<float> pending_sum_;           // One fragment.
  Sequence included_;
  bool take_whole_ = false;  // The next version, although mix < 1.
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SYNC_REPLICA_H_
