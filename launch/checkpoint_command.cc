#include "launch/checkpoint_command.h"

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/root_log.h"
#include "coordinator/root_recovery.h"
#include "launch/exit_code.h"
#include "launch/job_check.h"
#include "launch/job_file.h"
#include "launch/run_directory.h"
#include "runtime/base/clock.h"
#include "runtime/base/digest.h"
#include "runtime/base/file.h"
#include "runtime/storage/checkpoint.h"
#include "runtime/storage/safetensors.h"

namespace wukong {
namespace {

struct CheckpointFlags {
  std::string path;  // A run directory, or a file.
  std::string output;
  std::string job;
  std::string from;
  std::vector<std::string> set;
  int64_t version = 0;
};

absl::StatusOr<std::vector<CheckpointFile>> FilesOf(const std::string& path) {
  if (std::filesystem::is_regular_file(path)) return std::vector<CheckpointFile>{{path, 0}};
  absl::StatusOr<std::vector<CheckpointFile>> files = ListCheckpoints(FileSystem::Real(), CheckpointDirectory(path));
  if (files.ok() && files->empty()) {
    return absl::InvalidArgumentError(absl::StrCat("there is no checkpoint in ", CheckpointDirectory(path)));
  }
  return files;
}

int List(const CheckpointFlags& flags) {
  const absl::StatusOr<std::vector<CheckpointFile>> files = FilesOf(flags.path);
  if (!files.ok()) return ReportStatus(files.status());
  std::printf("%10s %16s %12s  %s\n", "version", "tokens", "bytes", "file");
  absl::Status worst;
  for (const CheckpointFile& file : *files) {
    const absl::StatusOr<Safetensors> read = ReadSafetensors(FileSystem::Real(), file.path);
    worst.Update(read.status());
    const auto field = [&](const char* key) -> std::string {
      if (!read.ok()) return "damaged";
      const auto found = read->metadata.find(key);
      return found == read->metadata.end() ? "-" : found->second;
    };
    const absl::StatusOr<int64_t> bytes = FileSystem::Real()->Size(file.path);
    std::printf("%10s %16s %12lld  %s\n", field("version").c_str(), field("committed_tokens").c_str(),
                static_cast<long long>(bytes.ok() ? *bytes : 0), file.path.c_str());
  }
  return ReportStatus(worst);
}

int Verify(const CheckpointFlags& flags) {
  const absl::StatusOr<std::vector<CheckpointFile>> files = FilesOf(flags.path);
  if (!files.ok()) return ReportStatus(files.status());
  absl::Status worst;
  for (const CheckpointFile& file : *files) {
    const absl::StatusOr<Safetensors> read = ReadSafetensors(FileSystem::Real(), file.path);
    worst.Update(read.status());
    std::printf("%s: %s\n", file.path.c_str(),
                !read.ok()          ? "DAMAGED"
                : !read->has_digest ? "readable; it has no digest to check"
                                    : "whole, the digest is right");
  }
  return ReportStatus(worst);
}

// The model alone, under the names that its modules have: what other tools want.
absl::Status WriteModel(const std::string& path, const Checkpoint& checkpoint) {
  Checkpoint model = checkpoint;
  model.extra_vectors.clear();
  model.state.clear_unmerged();
  return WriteCheckpoint(FileSystem::Real(), path, model);
}

int Export(const CheckpointFlags& flags) {
  FileSystem* const files = FileSystem::Real();
  if (flags.version > 0) {
    const absl::StatusOr<Checkpoint> read =
        ReadCheckpoint(files, CheckpointPath(CheckpointDirectory(flags.path), flags.version));
    if (!read.ok()) return ReportStatus(read.status());
    if (absl::Status status = WriteModel(flags.output, *read); !status.ok()) return ReportStatus(status);
    std::printf("version %lld: %s\n", static_cast<long long>(flags.version), flags.output.c_str());
    return 0;
  }
  const absl::StatusOr<OpenedRun> run = OpenRun(flags.path);
  if (!run.ok()) return ReportStatus(run.status());
  const absl::StatusOr<RecoveredRoot> recovered = RecoverRoot(files, flags.path, run->job, run->trainer.get());
  if (!recovered.ok()) return ReportStatus(recovered.status());
  const absl::StatusOr<Checkpoint> now = recovered->replay->Snapshot(recovered->identity);
  if (!now.ok()) return ReportStatus(now.status());
  if (absl::Status status = WriteModel(flags.output, *now); !status.ok()) return ReportStatus(status);
  std::printf("version %lld, %s tokens, parameters SHA-256 %s: %s\n", static_cast<long long>(now->state.version()),
              now->notes.at("committed_tokens").c_str(), Sha256Hex(absl::MakeConstSpan(now->parameters)).c_str(),
              flags.output.c_str());
  return 0;
}

int Import(const CheckpointFlags& flags) {
  absl::StatusOr<JobSource> source = LoadJobFile(flags.job, flags.set);
  if (!source.ok()) return ReportStatus(source.status());
  CheckOptions check;
  check.check_data = true;
  if (absl::Status status = CheckJob(*source, check); !status.ok()) return ReportStatus(status);
  if (std::filesystem::exists(flags.path) && !std::filesystem::is_empty(flags.path)) {
    return ReportStatus(absl::AlreadyExistsError(absl::StrCat(flags.path, " is not empty; name a new run directory")));
  }
  Job& job = source->job;
  job.mutable_model()->set_parameters(std::filesystem::absolute(flags.from).lexically_normal().string());
  absl::StatusOr<std::unique_ptr<Trainer>> trainer = MakeTrainer(job, TrainerOptions());
  if (!trainer.ok()) return ReportStatus(trainer.status());
  const RealClock clock;
  if (absl::Status status = MakeDirectories(flags.path); !status.ok()) return ReportStatus(status);
  const absl::StatusOr<RecoveredRoot> begun = BeginRun(FileSystem::Real(), flags.path, job, clock, trainer->get());
  if (!begun.ok()) return ReportStatus(begun.status());
  const absl::Status status = WriteFileAtomic(flags.path + "/config.resolved.yaml", ResolvedYaml(job));
  if (!status.ok()) return ReportStatus(status);
  std::printf("%s begins with the parameters of %s: wukong up --resume %s\n", flags.path.c_str(), flags.from.c_str(),
              flags.path.c_str());
  return 0;
}

}  // namespace

void AddCheckpointCommand(CLI::App& app, std::function<int()>* action) {
  CLI::App* checkpoint = app.add_subcommand("checkpoint", "Parameters to take away, and to begin with (safetensors)");
  checkpoint->require_subcommand(1);
  const auto add = [&](const char* name, const char* help, const char* path_help, int (*run)(const CheckpointFlags&)) {
    auto flags = std::make_shared<CheckpointFlags>();
    CLI::App* verb = checkpoint->add_subcommand(name, help);
    verb->add_option("RUN_DIR", flags->path, path_help)->required();
    verb->callback([flags, action, run] { *action = [flags, run] { return run(*flags); }; });
    return std::make_pair(verb, flags);
  };
  add("list", "The checkpoints of a run", "The run directory", List);
  add("verify", "Read every byte and check the digests", "The run directory, or a safetensors file", Verify);
  {
    auto [verb, flags] = add("export", "The newest parameters (or those of a version) as one safetensors file",
                             "The run directory", Export);
    verb->add_option("--output,-o", flags->output, "The file to write")->required();
    verb->add_option("--version", flags->version, "One of `list`; by default all that is in the log");
  }
  {
    auto [verb, flags] = add("import", "Make a run directory that begins with the parameters of a safetensors file",
                             "The run directory to make", Import);
    verb->add_option("--from", flags->from, "The safetensors file")->required();
    verb->add_option("--job", flags->job, "The job file")->required();
    verb->add_option("--set", flags->set, "Set one key of the job, as key.path=value; may be repeated")
        ->allow_extra_args(false);
  }
}

}  // namespace wukong
