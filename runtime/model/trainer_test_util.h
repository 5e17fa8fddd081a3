// A trainer for tests, and what to feed it.
#ifndef WUKONG_RUNTIME_MODEL_TRAINER_TEST_UTIL_H_
#define WUKONG_RUNTIME_MODEL_TRAINER_TEST_UTIL_H_

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "gtest/gtest.h"
#include "runtime/base/random.h"
#include "runtime/model/trainer.h"

namespace wukong {

inline std::unique_ptr<Trainer> TestTrainer(const Job& job, const TrainerOptions& options = {}) {
  absl::StatusOr<std::unique_ptr<Trainer>> trainer = MakeTrainer(job, options);
  EXPECT_TRUE(trainer.ok()) << trainer.status();
  return trainer.ok() ? *std::move(trainer) : nullptr;
}

inline Batch RandomBatch(const Job& job, int64_t samples, uint64_t seed) {
  Random random(seed);
  Batch batch;
  batch.samples = samples;
  batch.context = job.model().context();
  for (int64_t i = 0; i < samples * batch.context; ++i) {
    batch.tokens.push_back(static_cast<int64_t>(random.Below(job.model().vocabulary())));
    batch.targets.push_back(static_cast<int64_t>(random.Below(job.model().vocabulary())));
  }
  return batch;
}

inline std::vector<float> Copy(absl::Span<const float> values) { return {values.begin(), values.end()}; }

}  // namespace wukong

#endif  // WUKONG_RUNTIME_MODEL_TRAINER_TEST_UTIL_H_
