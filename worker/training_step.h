// One optimizer step on leased samples, alone or with the other ranks of a region's group.
#ifndef WUKONG_WORKER_TRAINING_STEP_H_
#define WUKONG_WORKER_TRAINING_STEP_H_

#include <functional>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "proto/job.pb.h"
#include "runtime/base/clock.h"
#include "runtime/data/token_dataset.h"
#include "runtime/model/trainer.h"
#include "runtime/sync/types.h"
#include "worker/region_group.h"

namespace wukong {

// 0 < speed <= 1 of the region's worker `rank`: how fast it is emulated to be.
double EmulatedSpeed(const Region& region, int rank);

class TrainingStep {
 public:
  struct Options {
    int64_t micro_batch = 1;         // Samples per forward and backward pass.
    bool gradient_progress = false;  // The gradient is what is contributed: no optimizer step here.
    double speed = 1;                // Emulated: 0 < speed <= 1.
  };
  struct Result {
    bool finite = true;  // False: no step was made, and the gradient must be thrown away.
    double loss = 0;     // Nats per token, mean over the step's samples on all ranks.
    double gradient_norm = 0;
    int64_t samples = 0;         // That this rank computed.
    double compute_seconds = 0;  // Of this rank, emulated slowness included, without the wait for other ranks.
  };
  // `wait` returns after the time given, or when the run is over. What is pointed to outlives this; `group` may be
  // null.
  TrainingStep(const Options& options, Trainer* trainer, const SampleReader* reader,
               std::function<void(absl::Duration)> wait)
      : options_(options), trainer_(trainer), reader_(reader), wait_(std::move(wait)) {}
  void set_group(RegionGroup* group) { group_ = group; }
  // Steps take so many times longer than the emulated speed makes them; at least 1.
  void set_slowness(double times) { slowness_ = times; }

  // All ranks are given the same samples, of which each computes its share. Errors: the trainer's and the group's;
  // OUT_OF_RANGE: the gradient is not finite.
  absl::StatusOr<Result> Run(absl::Span<const LeasedRange> samples, double learning_rate);

 private:
  // The mean loss over all samples, as far as [share.first, share.last) make it; the gradient likewise.
  absl::StatusOr<double> Accumulate(const std::vector<int64_t>& samples, const SampleShare& share);
  // Makes what began at `begin` take as long as it would at the emulated speed; seconds since `begin`.
  double SlowDown(absl::Time begin);

  const Options options_;
  const RealClock clock_;
  Trainer* const trainer_;
  const SampleReader* const reader_;
  const std::function<void(absl::Duration)> wait_;
  RegionGroup* group_ = nullptr;
  double slowness_ = 1;
};

}  // namespace wukong

#endif  // WUKONG_WORKER_TRAINING_STEP_H_
