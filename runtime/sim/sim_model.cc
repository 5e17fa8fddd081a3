#include "runtime/sim/sim_model.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "glog/logging.h"

namespace wukong {
namespace {

constexpr int64_t kCurveTokens = 8192;  // A curve has hundreds of points.
constexpr int64_t kFinalTokens = 65536;

bool IsSynthetic(const Job& job) { return job.model().synthetic() != SYNTHETIC_KIND_UNSPECIFIED; }

absl::StatusOr<std::shared_ptr<const TokenFile>> OpenTokens(const std::string& path, const Job& job) {
  absl::StatusOr<std::unique_ptr<TokenFile>> file = TokenFile::Open(path);
  if (!file.ok()) return file.status();
  if (job.data().directory().empty()) {
    if (absl::Status status = (*file)->CheckContents(); !status.ok()) return status;
  }
  if (absl::Status status = (*file)->CheckVocabulary(job.model().vocabulary()); !status.ok()) return status;
  return std::shared_ptr<const TokenFile>(*std::move(file));
}

absl::StatusOr<std::unique_ptr<SampleReader>> MakeReader(const std::shared_ptr<const TokenFile>& file, const Job& job) {
  absl::StatusOr<SampleReader> reader = SampleReader::Make(file, job.model().context(), job.seed());
  if (!reader.ok()) return reader.status();
  return std::make_unique<SampleReader>(*std::move(reader));
}

}  // namespace

absl::StatusOr<std::unique_ptr<SimModel>> SimModel::Make(const Job& job) {
  auto model = std::unique_ptr<SimModel>(new SimModel(job));
  if (IsSynthetic(job)) {
    auto trainer = MakeSyntheticTrainer(job.model(), job.seed());
    model->synthetic_ = trainer.get();
    model->trainer_ = std::move(trainer);
    return model;
  }
  absl::StatusOr<std::unique_ptr<Trainer>> trainer = MakeTrainer(job, TrainerOptions());
  if (!trainer.ok()) return trainer.status();
  model->trainer_ = *std::move(trainer);
  const absl::StatusOr<DataFiles> files = FindDataFiles(job.data());
  if (!files.ok()) return files.status();
  const absl::StatusOr<std::shared_ptr<const TokenFile>> train_file = OpenTokens(files->train, job);
  if (!train_file.ok()) return train_file.status();
  const absl::StatusOr<std::shared_ptr<const TokenFile>> validation_file = OpenTokens(files->validation, job);
  if (!validation_file.ok()) return validation_file.status();
  if (job.data().directory().empty()) {
    if (absl::Status status = CheckApart(**train_file, **validation_file); !status.ok()) return status;
  }
  absl::StatusOr<std::unique_ptr<SampleReader>> train = MakeReader(*train_file, job);
  if (!train.ok()) return train.status();
  absl::StatusOr<std::unique_ptr<SampleReader>> validation = MakeReader(*validation_file, job);
  if (!validation.ok()) return validation.status();
  model->train_ = *std::move(train);
  model->validation_ = *std::move(validation);
  return model;
}

std::unique_ptr<Trainer> SimModel::NewTrainer() const {
  if (synthetic_ != nullptr) return MakeSyntheticTrainer(job_.model(), job_.seed());
  absl::StatusOr<std::unique_ptr<Trainer>> trainer = MakeTrainer(job_, TrainerOptions());
  CHECK(trainer.ok()) << trainer.status();  // The first could be made.
  return *std::move(trainer);
}

absl::StatusOr<double> SimModel::Accumulate(Trainer* trainer, const std::vector<LeasedRange>& samples) const {
  int64_t count = 0;
  for (const LeasedRange& range : samples) count += range.size();
  double loss = 0;
  for (const LeasedRange& range : samples) {
    const double share = static_cast<double>(range.size()) / static_cast<double>(count);
    if (synthetic_ != nullptr) {
      // One range at a time and not by its samples, which would be slower.
      loss += share * static_cast<SyntheticTrainer*>(trainer)->AccumulateSamples(range.begin, range.end, share);
      continue;
    }
    Batch batch;
    batch.context = train_->context();
    for (int64_t i = range.begin; i < range.end; ++i) train_->Append(i, &batch.tokens, &batch.targets);
    batch.samples = range.size();
    const absl::StatusOr<double> part = trainer->AccumulateGradient(batch, share);
    if (!part.ok()) return part.status();
    loss += share * *part;
  }
  return loss;
}

double SimModel::Loss(absl::Span<const float> parameters, Effort effort) {
  if (synthetic_ != nullptr) return synthetic_->Loss(parameters);
  std::copy(parameters.begin(), parameters.end(), trainer_->parameters().begin());
  const int64_t tokens = effort == Effort::kThorough ? kFinalTokens : kCurveTokens;
  const int64_t samples = std::clamp<int64_t>(tokens / validation_->context(), 1, validation_->samples_per_epoch());
  Batch batch;
  batch.context = validation_->context();
  batch.samples = samples;
  for (int64_t i = 0; i < samples; ++i) {
    validation_->AppendInOrder(i * validation_->samples_per_epoch() / samples, &batch.tokens, &batch.targets);
  }
  const absl::StatusOr<double> loss = trainer_->Evaluate(batch);
  return loss.ok() ? *loss : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace wukong
