// What the coordinator judges the parameters by: the validation split of the job's data.
#ifndef WUKONG_COORDINATOR_VALIDATION_H_
#define WUKONG_COORDINATOR_VALIDATION_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/job.pb.h"
#include "proto/log.pb.h"
#include "runtime/data/token_dataset.h"
#include "runtime/model/trainer.h"

namespace wukong {

class Validation {
 public:
  // The job's text, both splits, or numbers for a synthetic model. Errors are those of the files.
  static absl::StatusOr<Validation> Open(const Job& job);

  // Mean loss, nats per token, of the trainer's parameters over `tokens` tokens, spread evenly over the split; at least
  // one sample, at most all.
  absl::StatusOr<double> Loss(Trainer* trainer, int64_t tokens) const;
  // Of a model that knows only how often each token comes in the training split: as the data's manifest says, else by
  // reading both files. Nullopt where there is no text, or more of it than can be read in between (kCountedMax).
  std::optional<double> UnigramLoss() const;
  // TokenFile::Fingerprint of what is trained on; empty for a synthetic model.
  std::string TrainFingerprint() const { return train_ == nullptr ? "" : train_->Fingerprint(); }

 private:
  explicit Validation(SampleReader reader) : reader_(std::move(reader)) {}

  SampleReader reader_;
  // Null where there is no text.
  std::unique_ptr<TokenFile> train_;
  std::shared_ptr<const TokenFile> validation_;
  int vocabulary_ = 0;
  std::optional<double> manifest_unigram_loss_;
};

// Of what a job only names, its tokens and its TorchScript file: all lives of a run must find the same. Nothing for a
// synthetic model. Errors are those of the files.
absl::Status FingerprintInputs(const Job& job, LogIdentity* identity);
// INVALID_ARGUMENT: one is another than `identity` says; the message names the file. What it does not say is not
// looked at.
absl::Status CheckInputs(const Job& job, const LogIdentity& identity);

}  // namespace wukong

#endif  // WUKONG_COORDINATOR_VALIDATION_H_
