#include "launch/checkpoint_command.h"

#include <cstdio>
#include <filesystem>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/root_log.h"
#include "coordinator/root_recovery.h"
#include "launch/exit_code.h"
#include "launch/flag_checks.h"
#include "launch/job_check.h"
#include "launch/job_file.h"
#include "launch/job_units.h"
#include "launch/run_directory.h"
#include "launch/status_text.h"
#include "nlohmann/json.hpp"
#include "runtime/base/clock.h"
#include "runtime/base/digest.h"
#include "runtime/base/file.h"
#include "runtime/base/shell_word.h"
#include "runtime/storage/checkpoint.h"
#include "runtime/storage/safetensors.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

struct CheckpointFlags {
  std::string path;  // A run directory, or a file.
  std::string output;
  std::string job;
  std::string from;
  std::vector<std::string> set;
  int64_t version = 0;
  bool json = false;
};

absl::StatusOr<std::vector<CheckpointFile>> FilesIn(const std::string& run_dir) {
  if (absl::Status status = CheckRunHas(run_dir, "checkpoints"); !status.ok()) return status;
  absl::StatusOr<std::vector<CheckpointFile>> files = ListCheckpoints(FileSystem::Real(), CheckpointDirectory(run_dir));
  if (files.ok() && files->empty()) {
    return absl::InvalidArgumentError(absl::StrCat("there is no checkpoint in ", CheckpointDirectory(run_dir)));
  }
  return files;
}

absl::StatusOr<std::vector<CheckpointFile>> FilesOf(const std::string& path) {
  std::error_code error;  // Where nothing may be looked at, the listing says so.
  if (std::filesystem::is_regular_file(path, error)) return std::vector<CheckpointFile>{{path, 0}};
  return FilesIn(path);
}

// What there is to say of one file; `digest` is "right" or "none", "damaged", "unsupported" (whole, with values that
// nothing here reads) or "unreadable".
Json Describe(const CheckpointFile& file, absl::Status* worst) {
  const absl::StatusOr<Safetensors> read =
      ReadSafetensors(FileSystem::Real(), file.path, [](const std::string&) { return false; });
  worst->Update(absl::IsUnimplemented(read.status()) ? absl::InvalidArgumentError(read.status().message())
                                                     : read.status());
  const absl::StatusOr<int64_t> bytes = FileSystem::Real()->Size(file.path);
  Json one = {{"file", file.path},
              {"bytes", bytes.ok() ? *bytes : 0},
              {"version", nullptr},
              {"committed_tokens", nullptr},
              {"digest", read.ok()                              ? read->has_digest ? "right" : "none"
                         : absl::IsDataLoss(read.status())      ? "damaged"
                         : absl::IsUnimplemented(read.status()) ? "unsupported"
                                                                : "unreadable"},
              {"failure", std::string(read.status().message())}};
  for (const char* key : {"version", "committed_tokens"}) {
    int64_t number = 0;
    if (read.ok() && read->metadata.count(key) > 0 && absl::SimpleAtoi(read->metadata.at(key), &number)) {
      one[key] = number;
    }
  }
  return one;
}

void PrintListed(const Json& one) {
  const auto field = [&](const char* key) -> std::string {
    if (!one["failure"].get<std::string>().empty()) return one["digest"].get<std::string>();
    return one[key].is_null() ? "-" : one[key].dump();
  };
  std::printf("%10s %16s %12lld  %s\n", field("version").c_str(), field("committed_tokens").c_str(),
              static_cast<long long>(one["bytes"].get<int64_t>()), one["file"].get<std::string>().c_str());
}

void PrintVerified(const Json& one) {
  std::printf("%s: %s\n", one["file"].get<std::string>().c_str(),
              one["digest"] == "right"         ? "whole, the digest is right"
              : one["digest"] == "none"        ? "readable; it has no digest to check"
              : one["digest"] == "damaged"     ? "DAMAGED"
              : one["digest"] == "unsupported" ? "unsupported: whole, with values of a type that is not read here"
                                               : "cannot be read");
}

int ForEach(const CheckpointFlags& flags, const char* header, void (*print)(const Json&)) {
  const absl::StatusOr<std::vector<CheckpointFile>> files = FilesOf(flags.path);
  if (!files.ok()) return ReportStatus(files.status());
  absl::Status worst;
  Json all = Json::array();
  if (!flags.json) std::printf("%s", header);
  for (const CheckpointFile& file : *files) {
    all.push_back(Describe(file, &worst));
    if (!flags.json) print(all.back());
  }
  if (flags.json) std::printf("%s\n", JsonText(all).c_str());
  return ReportStatus(worst);
}

int List(const CheckpointFlags& flags) {
  return ForEach(flags, absl::StrFormat("%10s %16s %12s  %s\n", "version", "tokens", "bytes", "file").c_str(),
                 PrintListed);
}

int Verify(const CheckpointFlags& flags) { return ForEach(flags, "", PrintVerified); }

// The model alone, under the names that its modules have: what other tools want.
absl::Status WriteModel(const std::string& path, const Checkpoint& checkpoint) {
  Checkpoint model = checkpoint;
  model.extra_vectors.clear();
  model.state.clear_unmerged();
  return WriteCheckpoint(FileSystem::Real(), path, model);
}

// What is there may be replaced by newer parameters, and is not lost to a slip of the keyboard.
absl::Status CheckOutput(const std::string& path) {
  const absl::StatusOr<int64_t> bytes = FileSystem::Real()->Size(path);
  if (absl::IsNotFound(bytes.status())) return absl::OkStatus();
  if (!bytes.ok()) return bytes.status();
  const absl::Status read =
      ReadSafetensors(FileSystem::Real(), path, [](const std::string&) { return false; }).status();
  if (read.ok() || absl::IsUnimplemented(read)) return absl::OkStatus();
  return absl::AlreadyExistsError(
      absl::StrCat("--output ", path, " is there and is no safetensors file; name another, or remove it"));
}

absl::Status CheckVersion(const CheckpointFlags& flags) {
  const absl::StatusOr<std::vector<CheckpointFile>> files = FilesIn(flags.path);
  if (!files.ok()) return files.status();
  std::vector<std::string> versions;
  for (const CheckpointFile& file : *files) {
    if (file.version == flags.version) return absl::OkStatus();
    versions.push_back(absl::StrCat(file.version));
  }
  return absl::InvalidArgumentError(absl::StrCat("there is no checkpoint of version ", flags.version, " in ",
                                                 CheckpointDirectory(flags.path), " (expected ", Alternatives(versions),
                                                 ")"));
}

int Export(const CheckpointFlags& flags) {
  FileSystem* const files = FileSystem::Real();
  if (absl::Status status = CheckOutput(flags.output); !status.ok()) return ReportStatus(status);
  if (flags.version > 0) {
    if (absl::Status status = CheckVersion(flags); !status.ok()) return ReportStatus(status);
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
  const absl::StatusOr<std::vector<std::string>> there = FileSystem::Real()->List(flags.path);
  if (!there.ok() && !absl::IsNotFound(there.status())) return ReportStatus(there.status());
  if (there.ok() && !there->empty()) {
    return ReportStatus(absl::AlreadyExistsError(absl::StrCat(flags.path, " is not empty; name a new run directory")));
  }
  Job& job = source->job;
  std::error_code error;
  const std::filesystem::path from = std::filesystem::absolute(flags.from, error);
  if (error) return ReportStatus(absl::FailedPreconditionError(absl::StrCat(flags.from, ": ", error.message())));
  job.mutable_model()->set_parameters(from.lexically_normal().string());
  absl::StatusOr<std::unique_ptr<Trainer>> trainer = MakeTrainer(job, TrainerOptions());
  if (!trainer.ok()) return ReportStatus(trainer.status());
  if (absl::Status status = CheckContributionBytes(job, (*trainer)->layout()); !status.ok()) {
    return ReportStatus(status);
  }
  const RealClock clock;
  if (absl::Status status = MakeDirectories(flags.path); !status.ok()) return ReportStatus(status);
  const absl::StatusOr<RecoveredRoot> begun = BeginRun(FileSystem::Real(), flags.path, job, clock, trainer->get());
  if (!begun.ok()) return ReportStatus(begun.status());
  const absl::Status status = WriteFileAtomic(flags.path + "/config.resolved.yaml", ResolvedYaml(job));
  if (!status.ok()) return ReportStatus(status);
  std::printf("%s begins with the parameters of %s: wukong up --resume %s\n", flags.path.c_str(), flags.from.c_str(),
              ShellWord(flags.path).c_str());
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
  const auto add_with_json = [&](const char* name, const char* help, const char* path_help, auto run) {
    auto [verb, flags] = add(name, help, path_help, run);
    verb->add_flag("--json", flags->json, "Print JSON");
  };
  add_with_json("list", "The checkpoints of a run", "The run directory", List);
  add_with_json("verify", "Read every byte and check the digests", "The run directory, or a safetensors file", Verify);
  {
    auto [verb, flags] = add("export", "The newest parameters (or those of a version) as one safetensors file",
                             "The run directory", Export);
    verb->add_option("--output,-o", flags->output, "The file to write")->required();
    verb->add_option("--version", flags->version, "One of `list`; by default all that is in the log")
        ->check(WholeNumber(1, std::numeric_limits<int64_t>::max()));
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
