#include "runtime/data/manifest.h"

#include <filesystem>
#include <system_error>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/file.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kFormat[] = "wukong-data";
constexpr char kAgain[] = "Make the directory again with `wukong data prepare`";

Json EntryToJson(const DataManifest::TokenFileEntry& entry) {
  return {{"file", entry.file}, {"tokens", entry.tokens}, {"bytes", entry.bytes()}, {"sha256", entry.sha256}};
}

// The parser below may throw: it is called inside one try block.
DataManifest::TokenFileEntry EntryFromJson(const Json& json) {
  DataManifest::TokenFileEntry entry;
  entry.file = json.at("file").get<std::string>();
  entry.tokens = json.at("tokens").get<int64_t>();
  entry.sha256 = json.at("sha256").get<std::string>();
  return entry;
}

DataManifest ManifestFromJson(const Json& json) {
  DataManifest manifest;
  manifest.tokenizer = json.at("tokenizer").get<std::string>();
  manifest.vocabulary = json.at("vocabulary").get<int64_t>();
  for (const Json& file : json.at("tokenizer_files")) {
    manifest.tokenizer_files.push_back({file.at("file").get<std::string>(), file.at("sha256").get<std::string>()});
  }
  manifest.validation_fraction = json.at("validation_fraction").get<double>();
  for (const Json& input : json.at("inputs")) {
    manifest.inputs.push_back({input.at("path").get<std::string>(), input.at("bytes").get<int64_t>(),
                               input.at("sha256").get<std::string>(), input.at("file_sha256").get<std::string>()});
  }
  manifest.train = EntryFromJson(json.at("train"));
  manifest.validation = EntryFromJson(json.at("validation"));
  manifest.unigram_loss = json.at("unigram_loss").get<double>();
  return manifest;
}

// Files are beside the manifest: a manifest from elsewhere must not point at other places.
bool IsPlainName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && !absl::StrContains(name, '/');
}

absl::Status CheckSize(const std::string& directory, const DataManifest::TokenFileEntry& entry) {
  const std::string path = absl::StrCat(directory, "/", entry.file);
  std::error_code error;
  const uintmax_t bytes = std::filesystem::file_size(path, error);
  if (error) return ErrnoToStatus(error.value(), absl::StrCat(path, " (named by ", ManifestPath(directory), ")"));
  if (bytes == static_cast<uintmax_t>(entry.bytes())) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", bytes, " bytes, but ", ManifestPath(directory), " says ",
                                                 entry.bytes(), " (", entry.tokens,
                                                 " tokens of 2 bytes): it was cut or replaced. ", kAgain));
}

}  // namespace

std::string ManifestPath(const std::string& directory) { return absl::StrCat(directory, "/", DataManifest::kFile); }

Json ManifestToJson(const DataManifest& manifest) {
  Json json = {{"format", kFormat},
               {"version", DataManifest::kVersion},
               {"tokenizer", manifest.tokenizer},
               {"vocabulary", manifest.vocabulary},
               {"tokenizer_files", Json::array()},
               {"validation_fraction", manifest.validation_fraction},
               {"inputs", Json::array()},
               {"train", EntryToJson(manifest.train)},
               {"validation", EntryToJson(manifest.validation)},
               {"unigram_loss", manifest.unigram_loss}};
  for (const DataManifest::TokenizerFile& file : manifest.tokenizer_files) {
    json["tokenizer_files"].push_back({{"file", file.file}, {"sha256", file.sha256}});
  }
  for (const DataManifest::Input& input : manifest.inputs) {
    json["inputs"].push_back(
        {{"path", input.path}, {"bytes", input.bytes}, {"sha256", input.sha256}, {"file_sha256", input.file_sha256}});
  }
  return json;
}

absl::StatusOr<DataManifest> ReadManifest(const std::string& directory) {
  const std::string path = ManifestPath(directory);
  std::error_code error;
  if (!std::filesystem::is_directory(directory, error)) {
    return absl::NotFoundError(absl::StrCat(
        directory, ": there is no such directory. Make it with `wukong data prepare --output ", directory, "`"));
  }
  absl::StatusOr<std::string> contents = ReadFile(path);
  if (!contents.ok()) {
    return absl::Status(contents.status().code(),
                        absl::StrCat(contents.status().message(), ". A data directory has a manifest. ", kAgain));
  }
  const Json json = Json::parse(*contents, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || json.value("format", Json()) != kFormat) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": expected a JSON object with \"format\": \"", kFormat, "\". ", kAgain));
  }
  const Json version = json.value("version", Json());
  if (version != DataManifest::kVersion) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": version ", version.dump(), ", this program reads version ",
                                                   DataManifest::kVersion, ". ", kAgain));
  }
  DataManifest manifest;
  try {
    manifest = ManifestFromJson(json);
  } catch (const nlohmann::json::exception& exception) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", exception.what(), ". ", kAgain));
  }
  for (const DataManifest::TokenFileEntry* entry : {&manifest.train, &manifest.validation}) {
    if (!IsPlainName(entry->file) || entry->tokens < 0 || entry->tokens > INT64_MAX / 2) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": bad entry of a token file (file \"", entry->file,
                                                     "\", tokens ", entry->tokens, "). ", kAgain));
    }
  }
  for (const DataManifest::TokenizerFile& file : manifest.tokenizer_files) {
    if (!IsPlainName(file.file)) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": bad tokenizer file \"", file.file, "\". ", kAgain));
    }
  }
  return manifest;
}

bool IsManifest(const std::string& contents) {
  const Json json = Json::parse(contents, nullptr, /*allow_exceptions=*/false);
  if (json.is_object()) return json.value("format", Json()) == kFormat;
  // Damaged; as WriteManifest begins it.
  return contents.empty() || absl::StartsWith(contents, absl::StrCat("{\n  \"format\": \"", kFormat, "\""));
}

absl::Status WriteManifest(const std::string& directory, const DataManifest& manifest) {
  const std::string text = ManifestToJson(manifest).dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
  return WriteFileAtomic(ManifestPath(directory), text + "\n");
}

absl::Status CheckManifestSizes(const std::string& directory, const DataManifest& manifest) {
  absl::Status status = CheckSize(directory, manifest.train);
  status.Update(CheckSize(directory, manifest.validation));
  return status;
}

}  // namespace wukong
