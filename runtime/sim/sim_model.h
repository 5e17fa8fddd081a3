// What is trained in a simulation: a synthetic model, or a real one on real data. Only its time is made up.
#ifndef WUKONG_RUNTIME_SIM_SIM_MODEL_H_
#define WUKONG_RUNTIME_SIM_SIM_MODEL_H_

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "proto/job.pb.h"
#include "runtime/data/token_dataset.h"
#include "runtime/model/synthetic_trainer.h"
#include "runtime/model/trainer.h"
#include "runtime/sync/types.h"

namespace wukong {

class SimModel {
 public:
  // The job's. Errors: those of MakeTrainer and of the data.
  static absl::StatusOr<std::unique_ptr<SimModel>> Make(const Job& job);

  const ParameterLayout& layout() const { return trainer_->layout(); }
  // For one process in one life.
  std::unique_ptr<Trainer> NewTrainer() const;
  // Adds the mean gradient of the samples to the trainer's. Returns their mean loss. Errors: the trainer's.
  absl::StatusOr<double> Accumulate(Trainer* trainer, const std::vector<LeasedRange>& samples) const;
  enum class Effort { kQuick, kThorough };
  // Of these parameters: without noise, or over some of the validation split, and more of it at the end.
  double Loss(absl::Span<const float> parameters, Effort effort);

 private:
  explicit SimModel(const Job& job) : job_(job) {}

  const Job job_;
  std::unique_ptr<Trainer> trainer_;       // For the layout, and to evaluate with.
  SyntheticTrainer* synthetic_ = nullptr;  // The same, where it is one.
  std::unique_ptr<SampleReader> train_;    // Null for a synthetic model.
  std::unique_ptr<SampleReader> validation_;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_SIM_MODEL_H_
