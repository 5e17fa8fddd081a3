// What a worker does next: train, contribute, take newer parameters, or wait. Pure: no clock, no threads, no I/O.
//
//   waiting for parameters --VersionArrived--> training <--> contributing
//        ^                                        |
//        +----- in_flight: wait, after sending ---+---- no data left, nothing in flight ----> idle
//
// A leaf whose parent is gone (ParentLost) trains on for a while without contributing. What the parent had not answered
// is undecided: the root may have it. The coordinator says so in its answer to Holdings (HoldingsAnswered), and until
// then no contribution is made, also to a new parent: what that accepted would not be among the holdings, and the
// coordinator would give it to others.
//
#ifndef WUKONG_RUNTIME_SYNC_LEAF_SCHEDULE_H_
#define WUKONG_RUNTIME_SYNC_LEAF_SCHEDULE_H_

#include <cstdint>
#include <deque>
#include <map>
#include <variant>
#include <vector>

#include "absl/time/time.h"
#include "proto/job.pb.h"
#include "runtime/base/ids.h"
#include "runtime/sync/types.h"
#include "runtime/sync/wait_account.h"

namespace wukong {

class LeafSchedule {
 public:
  struct Options {
    int64_t inner_steps = 1;
    bool scale_steps_by_speed = false;
    bool waits = false;     // Each contribution waits for a version that includes it.
    bool overlaps = false;  // The next is trained meanwhile, and waits when in_flight_max are in no version.
    int in_flight_max = 1;
    int64_t lead_max = 0;      // Contributions ahead of the slowest leaf at which this one waits; 0: it never does.
    int64_t step_samples = 1;  // micro_batch * accumulation
    int64_t tokens_per_sample = 1;
    // A contribution is a gradient: it cannot become a part of the next one, and is worth nothing to another parent.
    bool gradient_progress = false;
    // Data in hand is enough for this long at the leaf's own speed, beyond the latency of a request.
    absl::Duration prefetch;
  };

  // What the worker's copy of its aggregator's parameters says.
  struct ParentState {
    Version version;
    Sequence included;
    Version root_version;
    int64_t lead = 0;  // Of this leaf before the slowest, in contributions merged.
  };

  // ---- actions; Next returns one at a time, and the caller reports its end
  struct Train {  // One optimizer step; then StepDone.
    std::vector<LeasedRange> samples;
  };
  struct Contribute {  // Encode and send; the manifest's sender is for the caller to fill in. Then go on.
    Manifest manifest;
    bool whole = false;  // All parts of the parameters: there may be no later one.
  };
  struct Rebase {};  // Take the newest version; then Rebased with what was taken.
  struct Wait {      // Until some event.
    WaitReason reason;
    bool idle = false;  // No data, and nothing in flight: the coordinator may count on it.
    // Whatever the parent has to say does not end it.
    bool for_data() const { return idle || reason == WaitReason::kData; }
  };
  using Action = std::variant<Train, Contribute, Rebase, Wait>;

  explicit LeafSchedule(const Options& options) : options_(options) {}

  // ---- events
  // `exhausted`: beside these there is nothing to lease now. Whoever has trained them contributes without asking again.
  void Leased(const std::vector<LeasedRange>& ranges, bool exhausted);
  void VersionArrived(const ParentState& parent) { arrived_ = parent; }
  void Rebased(const ParentState& parent);
  // `compute_seconds` of the step, emulated slowness included.
  void StepDone(double compute_seconds);
  // The parent's verdict. A refused contribution's ranges are returned: they are to be released.
  std::vector<LeasedRange> Answered(Sequence sequence, Verdict verdict);
  // Loss or gradient of the step under way were not finite: the progress is to be thrown away (ProgressLost). True:
  // that was the third time since the last contribution; where there are none, the leaf has diverged.
  bool StepLost() { return ++steps_lost_ >= 3; }
  // The local progress was thrown away (it was not finite): what it was made from is to be released.
  std::vector<LeasedRange> ProgressLost();
  // The parameters do not hold any more what was sent (Replica::Reset): it cannot be sent a second time.
  void SentForgotten();

  // The parent is gone for good; versions that arrive from now on are another's, who knows nothing of what was sent.
  // Returns the sequences that are undecided now. What the parent had answered is not this leaf's any more: it is in
  // the root, or lost with the parent. With gradient progress the gradient being made is to be thrown away; its data is
  // trained on again.
  std::vector<Sequence> ParentLost();

  // All data that this leaf answers for, to be told to the coordinator.
  std::vector<LeasedRange> Holdings();

  // What becomes of undecided contributions and of the progress; the numbers are for the caller to move, in this order.
  struct Decision {
    bool progress_lost = false;         // The contribution being made was from data of others: theta becomes the base.
    std::vector<Sequence> included;     // The root has them: the parent's parameters will say so.
    std::vector<Sequence> dropped;      // They must not count: theta and base lose them.
    std::vector<Sequence> taken_back;   // They are in the contribution being made again.
    std::vector<LeasedRange> released;  // To be released.
  };
  // The coordinator's answer to Holdings, with the tokens as they were there; what is in neither is this leaf's.
  // Decides nothing about contributions when a parent was lost after the last call of Holdings. Between two steps.
  Decision HoldingsAnswered(const std::vector<LeasedRange>& committed, const std::vector<LeasedRange>& disowned);

  // What a step is expected to take before there was one: what an earlier life measured.
  void ExpectSpeed(double samples_per_second) { expected_speed_ = samples_per_second; }
  void SpeedReference(double samples_per_second) { reference_speed_ = samples_per_second; }
  // No more training: what was trained is contributed, and the data that is left is returned.
  std::vector<LeasedRange> StopTraining();

  Action Next();

  // Samples to ask the coordinator for, so that `latency` passes without a wait; 0 when there is enough. While its
  // speed is unknown, one contribution's, of at most 16 steps: it would wait a round trip after its first step
  // otherwise.
  int64_t WantSamples(absl::Duration latency, int64_t range_samples) const;

  // While computing; 0 before the first step.
  double samples_per_second() const { return speed_; }
  // Steps per contribution now.
  int64_t steps_per_contribution() const;
  int64_t untrained_samples() const;
  Version base_root_version() const { return base_.root_version; }
  // Of the next contribution.
  Sequence next_sequence() const { return Sequence(sequence_.value() + 1); }

 private:
  // What a contribution is made of.
  struct Work {
    std::vector<LeasedRange> ranges;
    int64_t steps = 0;
    int64_t samples = 0;
    Version base;  // Oldest of its steps; 0 while there is no parent. Means nothing before the first step.
    Version root_base;
  };
  struct Sent {
    Work work;
    bool answered = false;
    bool forgotten = false;  // Its progress is not in theta any more, and cannot be taken back.
  };
  bool MaySend() const { return !orphaned_ && !awaits_decision_; }
  // Without a parent nobody says how far the others are.
  bool TooFarAhead() const {
    return options_.lead_max > 0 && MaySend() && base_.lead + static_cast<int64_t>(sent_.size()) >= options_.lead_max;
  }
  void TakeBack(const Work& work);
  Contribute MakeContribution();

  const Options options_;
  std::deque<LeasedRange> untrained_;
  std::vector<LeasedRange> training_;  // Of the step under way.
  bool exhausted_ = false;
  bool stopping_ = false;

  Work made_;  // The contribution being made.
  ParentState arrived_;
  ParentState base_;
  bool rebase_again_ = false;  // The version that was taken means something else by now.
  Sequence sequence_;
  std::map<Sequence, Sent> sent_;       // Not answered, or (when the schedule waits or overlaps) not included.
  std::map<Sequence, Sent> undecided_;  // Sent to parents that are gone.
  bool awaits_decision_ = false;        // On what this leaf holds, since a parent was lost.
  bool asserted_ = false;               // It has said so since.
  bool orphaned_ = false;               // The parent is gone, and no version of another was taken.
  int64_t orphan_steps_ = 0;            // Made while nothing could be sent.
  int steps_lost_ = 0;                  // Since the last contribution.
  double speed_ = 0;                    // Measured.
  double expected_speed_ = 0;
  double reference_speed_ = 0;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SYNC_LEAF_SCHEDULE_H_
