#include "launch/data_command.h"

#include <unistd.h>

#include <csignal>
#include <iostream>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "launch/exit_code.h"
#include "nlohmann/json.hpp"
#include "runtime/base/clock.h"
#include "runtime/data/inspect.h"
#include "runtime/data/prepare.h"

namespace wukong {
namespace {

int Fail(const absl::Status& status) {
  std::cerr << "wukong: error: " << status.message() << std::endl;
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kAlreadyExists:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kFailedPrecondition:
      return kExitUsage;
    default:
      return kExitFailed;
  }
}

// A result that could not be written is not a success: `wukong data inspect DIR > /dev/full`.
int Print(const std::string& text) {
  std::cout << text << std::flush;
  if (std::cout.good()) return kExitOk;
  return Fail(absl::ResourceExhaustedError("cannot write the result to standard output"));
}

// One line on standard error that is written over, a few times a second.
class PrepareProgress {
 public:
  void Show(int64_t done, int64_t total) {
    const absl::Time now = clock_.Now();
    if (now < next_) return;
    next_ = now + absl::Milliseconds(100);
    shown_ = true;
    const double share = total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 1;
    std::cerr << absl::StrFormat("\rpreparing: %3.0f%% of %.1f MB", 100 * share, static_cast<double>(total) / 1e6)
              << std::flush;
  }
  void Clear() {
    if (shown_) std::cerr << "\r\x1b[K" << std::flush;
  }

 private:
  RealClock clock_;
  absl::Time next_ = absl::InfinitePast();
  bool shown_ = false;
};

int Prepare(PrepareOptions options, bool quiet) {
  // A limit on file sizes is then an error of write(), with a message, and not the end of the process.
  std::signal(SIGXFSZ, SIG_IGN);
  PrepareProgress progress;
  if (!quiet && ::isatty(STDERR_FILENO) != 0) {
    options.progress = [&progress](int64_t done, int64_t total) { progress.Show(done, total); };
  }
  const absl::StatusOr<PrepareResult> result = PrepareData(options);
  progress.Clear();
  if (!result.ok()) return Fail(result.status());
  if (quiet) return kExitOk;
  const DataManifest& manifest = result->manifest;
  std::string text;
  if (result->up_to_date) {
    absl::StrAppend(&text, options.output, " is up to date\n");
  } else if (!result->reason.empty()) {
    absl::StrAppend(&text, options.output, " was made again: ", result->reason, "\n");
  }
  absl::StrAppendFormat(&text, "%-16s%d tokens\n%-16s%d tokens\n%-16s%s, vocabulary %d\n%-16s%.4f nats per token\n",
                        "train", manifest.train.tokens, "validation", manifest.validation.tokens, "tokenizer",
                        manifest.tokenizer, manifest.vocabulary, "unigram loss", manifest.unigram_loss);
  return Print(text);
}

int Inspect(const std::string& path, bool json) {
  const absl::StatusOr<Inspection> inspection = InspectData(path);
  if (!inspection.ok()) return Fail(inspection.status());
  const int printed = Print(json ? inspection->json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n"
                                 : inspection->text);
  return inspection->verdict.ok() ? printed : Fail(inspection->verdict);
}

}  // namespace

void AddDataCommand(CLI::App& app, std::function<int()>* action) {
  CLI::App* data = app.add_subcommand("data", "Make token files from text, and look into them");
  data->require_subcommand(1);

  // Shared with the callbacks, which run after this function has returned.
  const auto options = std::make_shared<PrepareOptions>();
  const auto quiet = std::make_shared<bool>(false);
  CLI::App* prepare = data->add_subcommand("prepare", "Tokenize text files into train.bin and validation.bin");
  prepare->add_option("--tokenizer", options->tokenizer, "byte, or gpt2 (needs --tokenizer-files)")->required();
  prepare->add_option("--tokenizer-files", options->tokenizer_files,
                      "Directory with GPT-2's vocab.bpe and encoder.json");
  prepare->add_option("--input", options->inputs, "Text files, plain, gzip or dictzip, in this order")->required();
  prepare->add_option("--output", options->output, "Directory to write to")->required();
  prepare->add_option("--validation-fraction", options->validation_fraction, "Share of the tokens, from the end")
      ->capture_default_str();
  prepare->add_option("--sha256", options->sha256, "SHA-256 that the only input must have when unpacked");
  prepare->add_flag("--quiet", *quiet, "Print errors only");
  prepare->callback([options, quiet, action] { *action = [options, quiet] { return Prepare(*options, *quiet); }; });

  const auto path = std::make_shared<std::string>();
  const auto json = std::make_shared<bool>(false);
  CLI::App* inspect = data->add_subcommand("inspect", "Describe a data directory or a token file, and check it");
  inspect->add_option("PATH", *path, "Directory made by `wukong data prepare`, or a token file")->required();
  inspect->add_flag("--json", *json, "Print JSON");
  inspect->callback([path, json, action] { *action = [path, json] { return Inspect(*path, *json); }; });
}

}  // namespace wukong
