#include "worker/worker.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "glog/logging.h"
#include "runtime/base/fault_point.h"
#include "runtime/data/token_dataset.h"
#include "runtime/model/trainer.h"
#include "runtime/transport/tls.h"
#include "worker/group_follower.h"
#include "worker/leaf.h"
#include "worker/session.h"

namespace wukong {
namespace {

// `fingerprint` of the coordinator's tokens: a sample is the same text on every machine.
absl::StatusOr<SampleReader> OpenSamples(const Job& job, const std::string& fingerprint) {
  if (job.model().synthetic() != SYNTHETIC_KIND_UNSPECIFIED) return SampleReader::Numbers();
  const absl::StatusOr<DataFiles> files = FindDataFiles(job.data());
  if (!files.ok()) return files.status();
  absl::StatusOr<std::unique_ptr<TokenFile>> file = TokenFile::Open(files->train);
  if (!file.ok()) return file.status();
  if (fingerprint.empty()) {
    return absl::InvalidArgumentError(
        "the coordinator does not say which tokens the job has: it is of another version");
  }
  if ((*file)->Fingerprint() != fingerprint) {
    return absl::InvalidArgumentError(absl::StrCat(files->train, ": not the tokens of this job (here ",
                                                   (*file)->Fingerprint(), ", the coordinator has ", fingerprint,
                                                   "): copy its data to this machine, or name the copy by --data"));
  }
  return SampleReader::Make(std::shared_ptr<const TokenFile>(*std::move(file)), job.model().context(), job.seed());
}

}  // namespace

absl::Status RunWorker(const WorkerOptions& options, const StopSignal& stop) {
  if (!options.fault.empty()) {
    if (absl::Status status = ArmFaultPoint("worker", options.fault); !status.ok()) return status;
  }
  Session session(options.coordinator, options.region);
  absl::StatusOr<GetJobReply> fetched = session.FetchJob(/*new_region=*/false, options.connect_timeout, stop);
  if (!fetched.ok()) return fetched.status();
  Job job = fetched->job();
  if (!options.local.model().torchscript().empty()) *job.mutable_model() = options.local.model();
  if (options.local.has_data()) {
    const int range_steps = job.data().range_steps();
    *job.mutable_data() = options.local.data();
    job.mutable_data()->set_range_steps(range_steps);
  }
  const auto region = std::find_if(job.regions().begin(), job.regions().end(),
                                   [&](const Region& candidate) { return candidate.name() == options.region; });
  if (region == job.regions().end()) {
    return absl::InternalError(absl::StrCat("the coordinator's job does not hold region ", options.region));
  }
  absl::StatusOr<SampleReader> reader = OpenSamples(job, fetched->train_fingerprint());
  if (!reader.ok()) return reader.status();

  TrainerOptions trainer_options;
  trainer_options.precision =
      region->precision() == PRECISION_UNSPECIFIED ? job.optimizer().precision() : region->precision();
  trainer_options.device = options.device.empty() ? region->device() : options.device;
  trainer_options.threads = region->threads();
  absl::StatusOr<std::unique_ptr<Trainer>> trainer = MakeTrainer(job, trainer_options);
  if (!trainer.ok()) return trainer.status();

  JoinRequest join;
  join.set_role(ROLE_WORKER);
  join.set_name(options.name);
  if (options.rank >= 0) join.set_rank(options.rank);
  join.set_schema_digest((*trainer)->layout().schema_digest());
  const absl::StatusOr<JoinReply> joined = session.Join(join, options.connect_timeout, stop);
  if (!joined.ok()) {
    // Another model is a mistake in how this worker was started.
    return joined.status().code() == absl::StatusCode::kFailedPrecondition
               ? absl::InvalidArgumentError(joined.status().message())
               : joined.status();
  }
  LOG(INFO) << "worker " << joined->name() << " of " << options.region << " is member " << joined->member()
            << " incarnation " << joined->incarnation() << ", its aggregator is at " << joined->parent_address();
  const int group_size = region->collective() == COLLECTIVE_GLOO ? region->workers() : 1;
  if (group_size > 1 && joined->rank() >= group_size) {
    return absl::InvalidArgumentError(
        absl::StrFormat("the %d workers of %s act as one (collective), and %s would be one more (rank %d); --name "
                        "takes the place of one "
                        "that is gone, as in worker-0",
                        group_size, options.region, joined->name(), joined->rank()));
  }
  if (group_size > 1 && TlsInUse()) {
    LOG(WARNING) << "the gradients that the workers of " << options.region
                 << " exchange at each step (collective: gloo) are not encrypted";
  }
  if (group_size > 1 && joined->rank() > 0) {
    return RunGroupFollower(job, *region, *joined, trainer->get(), &*reader, &session, stop);
  }
  Leaf leaf(job, *region, *joined, group_size, *std::move(trainer), *std::move(reader), &session, &stop);
  return leaf.Run(*joined);
}

}  // namespace wukong
