// What a worker does next: train, contribute, take newer parameters, or wait. Pure: no clock, no threads, no I/O.
//
//   waiting for parameters --VersionArrived--> training <--> contributing
//        ^                                        |
//        +----- in_flight: wait, after sending ---+---- no data left, nothing in flight ----> idle
//
#ifndef WUKONG_RUNTIME_SYNC_LEAF_SCHEDULE_H_
#define WUKONG_RUNTIME_SYNC_LEAF_SCHEDULE_H_

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <variant>
#include <vector>

#include "absl/time/time.h"
#include "proto/job.pb.h"
#include "runtime/base/ids.h"
#include "runtime/sync/types.h"

namespace wukong {

class LeafSchedule {
 public:
  struct Options {
    int64_t inner_steps = 1;
    bool scale_steps_by_speed = false;
    bool waits = false;  // Each contribution waits for a version that includes it.
    int in_flight_max = 1;
    int64_t step_samples = 1;  // micro_batch * accumulation
    int64_t tokens_per_sample = 1;
  };

  // What the worker's copy of its aggregator's parameters says.
  struct ParentState {
    Version version;
    Sequence included;
    Version root_version;
  };

  // ---- actions; Next returns one at a time, and the caller reports its end
  struct Train {  // One optimizer step; then StepDone.
    std::vector<LeasedRange> samples;
  };
  struct Contribute {  // Encode and send; the manifest's sender is for the caller to fill in. Then go on.
    Manifest manifest;
  };
  struct Rebase {};  // Take the newest version; then Rebased with what was taken.
  enum class Reason { kParameters, kData, kAnswer };
  struct Wait {  // Until some event.
    Reason reason;
  };
  struct Idle {};  // No data, nothing in flight. As Wait, and the coordinator may count on it.
  using Action = std::variant<Train, Contribute, Rebase, Wait, Idle>;

  explicit LeafSchedule(const Options& options) : options_(options) {}

  // ---- events
  void Leased(const std::vector<LeasedRange>& ranges, bool exhausted);
  void VersionArrived(const ParentState& parent) { arrived_ = parent; }
  void Rebased(const ParentState& parent);
  // `compute_seconds` of the step, emulated slowness included.
  void StepDone(double compute_seconds);
  // The parent's verdict. A refused contribution's ranges are returned: they are to be released.
  std::vector<LeasedRange> Answered(Sequence sequence, Verdict verdict);
  // The local progress was thrown away (it was not finite): what it was made from is to be released.
  std::vector<LeasedRange> ProgressLost();
  void SpeedReference(double samples_per_second) { reference_speed_ = samples_per_second; }
  // No more training: what was trained is contributed, and the data that is left is returned.
  std::vector<LeasedRange> StopTraining();

  Action Next();

  // Samples to ask the coordinator for, so that `latency` passes without a wait; 0 when there is enough.
  int64_t WantSamples(absl::Duration latency, int64_t range_samples) const;

  // While computing; 0 before the first step.
  double samples_per_second() const { return speed_; }
  // Steps per contribution now.
  int64_t steps_per_contribution() const;
  int64_t untrained_samples() const;
  Version base_root_version() const { return base_.root_version; }

 private:
  struct Sent {
    std::vector<LeasedRange> ranges;
    bool answered = false;
  };

  const Options options_;
  std::deque<LeasedRange> untrained_;
  std::vector<LeasedRange> training_;  // Of the step under way.
  bool exhausted_ = false;
  bool stopping_ = false;

  // The contribution being made.
  std::vector<LeasedRange> trained_;
  int64_t steps_ = 0;
  int64_t samples_ = 0;
  std::optional<ParentState> oldest_base_;

  ParentState arrived_;
  ParentState base_;
  Sequence sequence_;
  std::map<Sequence, Sent> sent_;  // Not answered, or (when the schedule waits) not included.
  double speed_ = 0;
  double reference_speed_ = 0;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SYNC_LEAF_SCHEDULE_H_
