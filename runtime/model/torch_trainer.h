// The trainer of real models. It alone is linked with libtorch, into libwukong_torch.so, which MakeTrainer loads when a
// process first needs it: libtorch costs every start 0.4 s of processor time, and most of what `wukong` does trains
// nothing.
//
// What that library takes from this project (trainer.cc lists it) is the program's own, which exports it.
#ifndef WUKONG_RUNTIME_MODEL_TORCH_TRAINER_H_
#define WUKONG_RUNTIME_MODEL_TORCH_TRAINER_H_

#include <memory>

#include "absl/status/statusor.h"
#include "proto/job.pb.h"
#include "runtime/model/trainer.h"

// Makes the model that the job, which is checked and not synthetic, asks for; errors as of MakeTrainer.
extern "C" void WukongMakeTorchTrainer(const wukong::Job* job, const wukong::TrainerOptions* options,
                                       absl::StatusOr<std::unique_ptr<wukong::Trainer>>* trainer);

#endif  // WUKONG_RUNTIME_MODEL_TORCH_TRAINER_H_
