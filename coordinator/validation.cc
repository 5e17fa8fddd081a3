#include "coordinator/validation.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/base/digest.h"
#include "runtime/data/manifest.h"

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
  if (!job.data().directory().empty()) {
    const absl::StatusOr<DataManifest> manifest = ReadManifest(job.data().directory());
    if (manifest.ok() && manifest->vocabulary == opened.vocabulary_) {
      opened.manifest_unigram_loss_ = manifest->unigram_loss;
    }
  }
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

std::optional<double> Validation::UnigramLoss() const {
  constexpr size_t kCountedMax = size_t{1} << 29;
  if (manifest_unigram_loss_.has_value()) return manifest_unigram_loss_;
  if (train_ == nullptr || train_->tokens().size() > kCountedMax) return std::nullopt;
  return wukong::UnigramLoss(train_->tokens(), validation_->tokens(), vocabulary_);
}

absl::Status FingerprintInputs(const Job& job, LogIdentity* identity) {
  if (job.model().synthetic() != SYNTHETIC_KIND_UNSPECIFIED) return absl::OkStatus();
  const absl::StatusOr<DataFiles> files = FindDataFiles(job.data());
  if (!files.ok()) return files.status();
  const absl::StatusOr<std::unique_ptr<TokenFile>> train = TokenFile::Open(files->train);
  if (!train.ok()) return train.status();
  identity->set_train_fingerprint((*train)->Fingerprint());
  const absl::StatusOr<std::unique_ptr<TokenFile>> validation = TokenFile::Open(files->validation);
  if (!validation.ok()) return validation.status();
  identity->set_validation_fingerprint((*validation)->Fingerprint());
  if (job.model().torchscript().empty()) return absl::OkStatus();
  const absl::StatusOr<std::string> digest = Sha256File(job.model().torchscript());
  if (!digest.ok()) return digest.status();
  identity->set_torchscript_digest(*digest);
  return absl::OkStatus();
}

absl::Status CheckInputs(const Job& job, const LogIdentity& identity) {
  LogIdentity now;
  if (absl::Status status = FingerprintInputs(job, &now); !status.ok()) return status;
  const absl::StatusOr<DataFiles> files = FindDataFiles(job.data());
  const auto check = [](const std::string& path, const std::string& was, const std::string& is) {
    if (was.empty() || was == is) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat(path, " is not what the run began with: it was ", was, ", and is ",
                                                   is, " now. A run goes on with the same data and model: put the ",
                                                   "file back, or begin a new run"));
  };
  absl::Status status = check(files.ok() ? files->train : "", identity.train_fingerprint(), now.train_fingerprint());
  status.Update(
      check(files.ok() ? files->validation : "", identity.validation_fingerprint(), now.validation_fingerprint()));
  status.Update(check(job.model().torchscript(), identity.torchscript_digest(), now.torchscript_digest()));
  return status;
}

}  // namespace wukong
