#include "runtime/data/inspect.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/digest.h"
#include "runtime/data/manifest.h"
#include "runtime/data/token_dataset.h"
#include "runtime/data/tokenizer.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kSampleTokens = 64;
// The recorded loss is a sum of logarithms, whose last digits differ between machines.
constexpr double kLossTolerance = 1e-6;

const char* LayoutName(TokenFile::Layout layout) {
  return layout == TokenFile::Layout::kLlmC ? "llm.c (header, unsigned 16-bit)"
                                            : "nanoGPT (no header, unsigned 16-bit)";
}

// Collects findings as lines, as JSON and as problems.
class Findings {
 public:
  void Line(absl::string_view key, absl::string_view value) { absl::StrAppendFormat(&text_, "%-16s%s\n", key, value); }
  void Problem(const absl::Status& status) {
    verdict_.Update(status);
    problems_.push_back(std::string(status.message()));
  }

  Inspection Finish(Json json) {
    json["problems"] = problems_;
    for (const std::string& problem : problems_) Line("problem", problem);
    if (problems_.empty()) Line("problems", "none");
    return {std::move(text_), std::move(json), std::move(verdict_)};
  }

 private:
  std::string text_;
  std::vector<std::string> problems_;
  absl::Status verdict_;
};

uint16_t Largest(absl::Span<const uint16_t> tokens) {
  uint16_t largest = 0;
  for (const uint16_t token : tokens) largest = std::max(largest, token);
  return largest;
}

// The beginning as text, or as numbers where there is no tokenizer.
Json Sample(const Tokenizer* tokenizer, absl::Span<const uint16_t> tokens) {
  const absl::Span<const uint16_t> first = tokens.first(std::min(tokens.size(), kSampleTokens));
  if (tokenizer != nullptr) {
    absl::StatusOr<std::string> text = tokenizer->Decode(first);
    if (text.ok()) return *std::move(text);
  }
  return std::vector<uint16_t>(first.begin(), first.end());
}

// On one line; what is not UTF-8, such as a character that the sample cuts, becomes U+FFFD.
std::string OneLine(const Json& sample) { return sample.dump(-1, ' ', false, Json::error_handler_t::replace); }

// Describes the token file at `path` under `name`; null when it cannot be opened.
std::unique_ptr<TokenFile> Describe(const std::string& name, const std::string& path, Findings* findings, Json* json) {
  absl::StatusOr<std::unique_ptr<TokenFile>> file = TokenFile::Open(path);
  if (!file.ok()) {
    findings->Problem(file.status());
    return nullptr;
  }
  const absl::Span<const uint16_t> tokens = (*file)->tokens();
  const absl::StatusOr<std::string> sha256 = Sha256File(path);
  if (!sha256.ok()) findings->Problem(sha256.status());
  const uint16_t largest = Largest(tokens);
  findings->Line(name, path);
  findings->Line("  layout", LayoutName((*file)->layout()));
  findings->Line("  tokens", absl::StrCat(tokens.size()));
  findings->Line("  largest token", absl::StrCat(largest));
  findings->Line("  sha256", sha256.value_or("unreadable"));
  *json = {{"path", path},
           {"layout", (*file)->layout() == TokenFile::Layout::kLlmC ? "llm.c" : "nanogpt"},
           {"tokens", tokens.size()},
           {"largest_token", largest},
           {"sha256", sha256.value_or("")}};
  return *std::move(file);
}

void CheckEntry(const std::string& directory, const DataManifest::TokenFileEntry& entry, const TokenFile& file,
                const Json& described, int64_t vocabulary, Findings* findings) {
  const std::string manifest = ManifestPath(directory);
  if (static_cast<int64_t>(file.tokens().size()) != entry.tokens) {
    findings->Problem(absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": ", file.tokens().size(), " tokens, but ", manifest, " says ", entry.tokens)));
  } else if (described["sha256"] != entry.sha256) {
    findings->Problem(absl::InvalidArgumentError(
        absl::StrCat(file.path(), ": SHA-256 is not the one in ", manifest, " (", entry.sha256,
                     "): the file was damaged or replaced. Make the directory again with `wukong data prepare`")));
  }
  const absl::Status range = file.CheckVocabulary(vocabulary);
  if (!range.ok()) findings->Problem(range);
}

Inspection InspectDirectory(const std::string& directory, const DataManifest& manifest) {
  Findings findings;
  Json json = ManifestToJson(manifest);
  int64_t text_bytes = 0;
  for (const DataManifest::Input& input : manifest.inputs) text_bytes += input.bytes;
  const int64_t tokens = manifest.train.tokens + manifest.validation.tokens;
  findings.Line("directory", directory);
  findings.Line("tokenizer", absl::StrCat(manifest.tokenizer, ", vocabulary ", manifest.vocabulary));
  for (const DataManifest::Input& input : manifest.inputs) {
    findings.Line("input", absl::StrCat(input.path, ", ", input.bytes, " bytes of text, sha256 ", input.sha256));
  }
  if (tokens > 0) {
    findings.Line("bytes per token",
                  absl::StrFormat("%.3f", static_cast<double>(text_bytes) / static_cast<double>(tokens)));
  }

  std::string tokenizer_directory;
  for (const DataManifest::TokenizerFile& file : manifest.tokenizer_files) {
    tokenizer_directory = directory;
    const absl::StatusOr<std::string> sha256 = Sha256File(absl::StrCat(directory, "/", file.file));
    if (!sha256.ok()) {
      findings.Problem(sha256.status());
    } else if (*sha256 != file.sha256) {
      findings.Problem(absl::InvalidArgumentError(
          absl::StrCat(directory, "/", file.file, ": SHA-256 is not the one in ", ManifestPath(directory))));
    }
  }
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = MakeTokenizer(manifest.tokenizer, tokenizer_directory);
  if (!tokenizer.ok()) {
    findings.Problem(tokenizer.status());
  } else if ((*tokenizer)->vocabulary() != manifest.vocabulary) {
    findings.Problem(
        absl::InvalidArgumentError(absl::StrCat(ManifestPath(directory), ": vocabulary ", manifest.vocabulary,
                                                ", but the tokenizer has ", (*tokenizer)->vocabulary())));
  }

  const std::unique_ptr<TokenFile> train =
      Describe("train", absl::StrCat(directory, "/", manifest.train.file), &findings, &json["train"]);
  const std::unique_ptr<TokenFile> validation =
      Describe("validation", absl::StrCat(directory, "/", manifest.validation.file), &findings, &json["validation"]);
  if (train != nullptr) {
    CheckEntry(directory, manifest.train, *train, json["train"], manifest.vocabulary, &findings);
  }
  if (validation != nullptr) {
    CheckEntry(directory, manifest.validation, *validation, json["validation"], manifest.vocabulary, &findings);
  }
  if (train != nullptr && validation != nullptr) {
    const double loss = UnigramLoss(train->tokens(), validation->tokens(), manifest.vocabulary);
    json["unigram_loss"] = loss;
    findings.Line("unigram loss", absl::StrFormat("%.4f nats per token of validation", loss));
    if (!(std::fabs(loss - manifest.unigram_loss) <= kLossTolerance)) {
      findings.Problem(absl::InvalidArgumentError(absl::StrFormat(
          "%s: unigram_loss %.9g, but the files give %.9g", ManifestPath(directory), manifest.unigram_loss, loss)));
    }
  }
  if (train != nullptr) {
    const Json sample = Sample(tokenizer.ok() ? tokenizer->get() : nullptr, train->tokens());
    json["sample"] = sample;
    findings.Line("begins", OneLine(sample));
  }
  return findings.Finish(std::move(json));
}

}  // namespace

absl::StatusOr<Inspection> InspectData(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) {
    const absl::StatusOr<DataManifest> manifest = ReadManifest(path);
    if (!manifest.ok()) return manifest.status();
    return InspectDirectory(path, *manifest);
  }
  Findings findings;
  Json json;
  const std::unique_ptr<TokenFile> file = Describe("token file", path, &findings, &json);
  if (file == nullptr) return findings.Finish(std::move(json)).verdict;
  if (const absl::Status contents = file->CheckContents(); !contents.ok()) findings.Problem(contents);
  const int64_t vocabulary_min = int64_t{json["largest_token"].get<uint16_t>()} + 1;
  const double entropy = UnigramLoss(file->tokens(), file->tokens(), vocabulary_min);
  json["unigram_loss"] = entropy;
  findings.Line("unigram loss", absl::StrFormat("%.4f nats per token, on itself", entropy));
  absl::StatusOr<std::unique_ptr<Tokenizer>> bytes = MakeTokenizer("byte", "");
  json["sample"] = Sample(vocabulary_min <= 256 && bytes.ok() ? bytes->get() : nullptr, file->tokens());
  findings.Line("begins", OneLine(json["sample"]));
  return findings.Finish(std::move(json));
}

}  // namespace wukong
