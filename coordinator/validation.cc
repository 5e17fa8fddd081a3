#include "coordinator/validation.h"

#include <algorithm>
#include <limits>

namespace wukong {

absl::StatusOr<Validation> Validation::Open(const Job& job) {
  if (job.model().synthetic() != SYNTHETIC_KIND_UNSPECIFIED) return Validation(SampleReader::Numbers());
  const absl::StatusOr<DataFiles> files = FindDataFiles(job.data());
  if (!files.ok()) return files.status();
  absl::StatusOr<std::unique_ptr<TokenFile>> validation = TokenFile::Open(files->validation);
  if (!validation.ok()) return validation.status();
  absl::StatusOr<std::unique_ptr<TokenFile>> train = TokenFile::Open(files->train);
  if (!train.ok()) return train.status();
  const std::shared_ptr<const TokenFile> shared = *std::move(validation);
  absl::StatusOr<SampleReader> reader = SampleReader::Make(shared, job.model().context(), job.seed());
  if (!reader.ok()) return reader.status();
  Validation opened(*std::move(reader));
  opened.train_ = *std::move(train);
  opened.validation_ = shared;
  opened.vocabulary_ = job.model().vocabulary();
  return opened;
}

absl::StatusOr<double> Validation::Loss(Trainer* trainer, int64_t tokens) const {
  constexpr int64_t kBatch = 16;
  const int64_t samples = std::clamp<int64_t>(tokens / reader_.context(), 1, reader_.samples_per_epoch());
  double sum = 0;
  for (int64_t first = 0; first < samples; first += kBatch) {
    Batch batch;
    batch.context = reader_.context();
    for (int64_t i = first; i < std::min(samples, first + kBatch); ++i) {
      reader_.AppendInOrder(i * reader_.samples_per_epoch() / samples, &batch.tokens, &batch.targets);
      ++batch.samples;
    }
    const absl::StatusOr<double> loss = trainer->Evaluate(batch);
    if (!loss.ok()) return loss.status();
    sum += *loss * static_cast<double>(batch.samples);
  }
  return sum / static_cast<double>(samples);
}

double Validation::UnigramLoss() const {
  if (train_ == nullptr) return std::numeric_limits<double>::quiet_NaN();
  return wukong::UnigramLoss(train_->tokens(), validation_->tokens(), vocabulary_);
}

}  // namespace wukong
