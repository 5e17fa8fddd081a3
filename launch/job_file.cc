#include "launch/job_file.h"

#include <glog/logging.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "launch/job_units.h"
#include "launch/yaml_tree.h"
#include "nlohmann/json.hpp"
#include "runtime/base/file.h"
#include "runtime/model/optimizer_kinds.h"
#include "runtime/sync/presets.h"

namespace wukong {
namespace {

using ::google::protobuf::Descriptor;
using ::google::protobuf::FieldDescriptor;
using ::google::protobuf::Message;

constexpr size_t kErrorsMax = 20;
constexpr size_t kFileBytesMax = 1 << 20;
// A key that every scenario has and no job, and one that every job has and no scenario.
constexpr char kOfScenarios[] = "workload";
constexpr char kOfJobs[] = "stop";

bool IsUtf8(const std::string& text) {
  using Json = nlohmann::json;
  return Json(text).dump(-1, ' ', false, Json::error_handler_t::ignore) ==
         Json(text).dump(-1, ' ', false, Json::error_handler_t::replace);
}

const FieldDescriptor* FindField(const Descriptor& type, absl::string_view key) {
  for (int i = 0; i < type.field_count(); ++i) {
    if (KeyOf(*type.field(i)) == key) {
      return type.field(i);
    }
  }
  return nullptr;
}

bool IsMessage(const FieldDescriptor& field) { return field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE; }

std::vector<std::string> KeysOf(const Descriptor& type) {
  std::vector<std::string> keys;
  for (int i = 0; i < type.field_count(); ++i) {
    keys.push_back(KeyOf(*type.field(i)));
  }
  return keys;
}

std::string Join(const std::string& path, absl::string_view key) {
  return path.empty() ? std::string(key) : absl::StrCat(path, ".", key);
}

// Where a key of this name stands, for one that was written at the wrong level: "wan.rtt" for "rtt".
std::string FindElsewhere(const Descriptor& type, const std::string& path, absl::string_view key) {
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    const std::string here = Join(path, KeyOf(field));
    if (!path.empty() && KeyOf(field) == key) {
      return here;
    }
    if (IsMessage(field)) {
      const std::string found = FindElsewhere(*field.message_type(), field.is_repeated() ? here + "[0]" : here, key);
      if (!found.empty()) {
        return found;
      }
    }
  }
  return "";
}

// The key that is abbreviated so, "learning_rate" for "lr"; empty when there is none.
std::string FindAbbreviated(const std::vector<std::string>& keys, absl::string_view key) {
  for (const std::string& candidate : keys) {
    std::string initials;
    for (const absl::string_view word : absl::StrSplit(candidate, '_')) absl::StrAppend(&initials, word.substr(0, 1));
    if (key.size() > 1 && initials == key) return candidate;
  }
  return "";
}

// What to say of a key that `type` does not have.
std::string UnknownKey(const Descriptor& type, absl::string_view key) {
  const std::vector<std::string> keys = KeysOf(type);
  const std::string abbreviated = FindAbbreviated(keys, key);
  const std::string nearest = abbreviated.empty() ? Nearest(key, keys) : abbreviated;
  const std::string elsewhere = nearest.empty() ? FindElsewhere(*Job::descriptor(), "", key) : "";
  std::string hint;
  if (!nearest.empty()) {
    hint = absl::StrCat("; did you mean ", nearest, "?");
  } else if (!elsewhere.empty()) {
    hint = absl::StrCat("; did you mean ", elsewhere, "?");
  }
  return absl::StrCat("unknown key", hint, " (expected one of ", absl::StrJoin(keys, ", "), ")");
}

std::string KindWords(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::kNull:
      return "nothing";
    case YamlNode::Kind::kScalar:
      return absl::StrCat("\"", node.scalar, "\"");
    case YamlNode::Kind::kList:
      return "a list";
    case YamlNode::Kind::kMap:
      return "a map";
  }
  return "";
}

// "regions[0].speed" and "regions.0.speed" alike as {"regions", "0", "speed"}; empty when it is not a key path.
std::vector<std::string> SplitPath(absl::string_view path) {
  std::vector<std::string> parts(1);
  bool in_brackets = false;
  bool closed = false;  // After a bracket only '.' or another bracket may follow.
  for (const char c : path) {
    if (c == '[' && !in_brackets && !(parts.back().empty() && !closed)) {
      parts.emplace_back();
      in_brackets = true;
      closed = false;
    } else if (c == ']' && in_brackets && !parts.back().empty()) {
      in_brackets = false;
      closed = true;
    } else if (c == '.' && !in_brackets && !parts.back().empty()) {
      parts.emplace_back();
      closed = false;
    } else if (c == '[' || c == ']' || c == '.' || closed) {
      return {};
    } else {
      parts.back() += c;
    }
  }
  return in_brackets || parts.back().empty() ? std::vector<std::string>() : parts;
}

void MarkOverride(const std::string& text, YamlNode* node) {
  node->override_text = text;
  for (YamlNode& item : node->items) {
    MarkOverride(text, &item);
  }
}

// Puts one --set into the tree of the file, before anything is read from it.
class Override {
 public:
  Override(const std::string& text, const Descriptor* type, YamlNode* root, JobErrors* errors)
      : text_(text), type_(type), root_(root), errors_(errors) {}

  void Apply() {
    const size_t equals = text_.find('=');
    key_ = std::string(absl::StripAsciiWhitespace(absl::string_view(text_).substr(0, equals)));
    if (equals == std::string::npos) {
      return Fail("has no value (expected key.path=value, such as wan.rtt=150ms)");
    }
    const std::vector<std::string> parts = SplitPath(key_);
    if (parts.empty()) {
      return Fail("not a key path (expected key.path=value, such as wan.rtt=150ms or regions[0].speed=0.5)");
    }
    YamlNode value;
    const std::vector<YamlProblem> problems = ParseYaml(text_.substr(equals + 1), &value);
    if (!problems.empty()) {
      return Fail(problems[0].text);
    }
    MarkOverride(text_, &value);
    YamlNode* target = Walk(parts);
    if (target != nullptr) {
      *target = std::move(value);
    }
  }

 private:
  void Fail(absl::string_view what) { errors_->Add(absl::StrCat("--set ", text_, ": ", key_, ": "), what); }

  // The node that the path names, made where the file has none. Null after an error, also after one that reading the
  // file will report.
  YamlNode* Walk(const std::vector<std::string>& parts) {
    YamlNode* node = root_;
    const Descriptor* type = type_;
    const FieldDescriptor* list = nullptr;  // Set where `node` is a list's value.
    for (const std::string& part : parts) {
      if (list != nullptr) {
        node = Element(*list, part, node);
        if (node == nullptr) {
          return nullptr;
        }
        type = IsMessage(*list) ? list->message_type() : nullptr;
        list = nullptr;
        continue;
      }
      if (type == nullptr) {
        Fail(absl::StrCat("a single value has no key ", part));
        return nullptr;
      }
      const FieldDescriptor* field = FindField(*type, part);
      if (field == nullptr) {
        Fail(UnknownKey(*type, part));
        return nullptr;
      }
      if (node->kind == YamlNode::Kind::kNull) {
        node->kind = YamlNode::Kind::kMap;
      }
      if (node->kind != YamlNode::Kind::kMap) {
        return nullptr;
      }
      YamlNode* child = node->Find(part);
      if (child == nullptr) {
        node->keys.push_back(part);
        node->items.emplace_back();
        child = &node->items.back();
        child->line = node->line;
        child->override_text = text_;
      }
      node = child;
      list = field->is_repeated() ? field : nullptr;
      type = IsMessage(*field) ? field->message_type() : nullptr;
    }
    return node;
  }

  // An element by its number, or by the name (of a region) that it has or belongs to.
  YamlNode* Element(const FieldDescriptor& list, const std::string& part, YamlNode* node) {
    if (node->kind == YamlNode::Kind::kScalar && !IsMessage(list)) {
      YamlNode single = *node;
      node->kind = YamlNode::Kind::kList;
      node->items = {std::move(single)};
    }
    if (node->kind == YamlNode::Kind::kMap || node->kind == YamlNode::Kind::kScalar) {
      return nullptr;
    }
    uint32_t index = 0;
    if (absl::SimpleAtoi(part, &index) && index < node->items.size()) {
      return &node->items[index];
    }
    std::vector<std::string> names;
    for (YamlNode& item : node->items) {
      for (const char* key : {"name", "region"}) {
        const YamlNode* name = IsMessage(list) ? item.Find(key) : nullptr;
        if (name != nullptr && name->kind == YamlNode::Kind::kScalar) {
          if (name->scalar == part) {
            return &item;
          }
          names.push_back(name->scalar);
        }
      }
    }
    const std::string nearest = Nearest(part, names);
    std::string what = absl::StrCat(KeyOf(list), " has no element ", part);
    if (!nearest.empty()) {
      absl::StrAppend(&what, "; did you mean ", nearest, "?");
    }
    if (node->items.empty()) {
      absl::StrAppend(&what, " (it is empty)");
    } else {
      absl::StrAppend(&what, " (expected 0 to ", node->items.size() - 1, names.empty() ? "" : ", or ",
                      Alternatives(names), ")");
    }
    Fail(what);
    return nullptr;
  }

  const std::string& text_;
  const Descriptor* const type_;
  YamlNode* const root_;
  JobErrors* const errors_;
  std::string key_;
};

class MessageReader {
 public:
  MessageReader(YamlSource* source, JobErrors* errors) : source_(source), errors_(errors) {}

  // Fills `message` from `node`, or from the defaults alone where the file has no such key (`node` is null).
  void ReadMessage(const YamlNode* node, const std::string& path, Message* message) {
    const Descriptor& type = *message->GetDescriptor();
    if (node != nullptr && node->kind != YamlNode::Kind::kMap && node->kind != YamlNode::Kind::kNull) {
      Fail(*node, path,
           absl::StrCat("wrong type", KeyOfValue(type, *node, path), " (expected a map with keys such as ",
                        absl::StrJoin(FirstKeys(type), ", "), ", got ", KindWords(*node), ")"));
      return;
    }
    std::vector<const YamlNode*> values(type.field_count(), nullptr);
    for (size_t i = 0; node != nullptr && i < node->keys.size(); ++i) {
      const std::string& key = node->keys[i];
      const YamlNode& value = node->items[i];
      const FieldDescriptor* field = FindField(type, key);
      if (field == nullptr) {
        Fail(value, Join(path, key), UnknownKey(type, key));
      } else if (values[field->index()] != nullptr) {
        Fail(value, Join(path, key),
             absl::StrCat("is given twice (the first is on line ", values[field->index()]->line, ")"));
      } else {
        values[field->index()] = &value;
      }
    }
    for (int i = 0; i < type.field_count(); ++i) {
      ReadField(*type.field(i), values[i], node, Join(path, KeyOf(*type.field(i))), message);
    }
  }

  // Remembers where `path` was written.
  void Note(const YamlNode& node, const std::string& path) {
    if (node.override_text.empty()) {
      source_->lines[path] = node.line;
    } else {
      source_->overrides[path] = node.override_text;
    }
  }

 private:
  void Fail(const YamlNode& node, const std::string& path, absl::string_view what) {
    if (!node.override_text.empty()) {
      errors_->Add(absl::StrCat("--set ", node.override_text, ": ", path, ": "), what);
    } else {
      errors_->Add(absl::StrCat(source_->path, ":", node.line, ": ", path, path.empty() ? "" : ": "), what, node.line);
    }
  }

  // "; did you mean strategy.preset?" where a value stands for the map that has it under one of its keys.
  static std::string KeyOfValue(const Descriptor& type, const YamlNode& node, const std::string& path) {
    for (int i = 0; node.kind == YamlNode::Kind::kScalar && i < type.field_count(); ++i) {
      const FieldDescriptor& field = *type.field(i);
      if (field.cpp_type() != FieldDescriptor::CPPTYPE_ENUM) continue;
      const std::vector<std::string> names = EnumNames(*field.enum_type());
      if (std::find(names.begin(), names.end(), node.scalar) == names.end()) continue;
      return absl::StrCat("; did you mean ", Join(path, KeyOf(field)), "?");
    }
    return "";
  }

  static std::vector<std::string> FirstKeys(const Descriptor& type) {
    std::vector<std::string> keys = KeysOf(type);
    keys.resize(std::min<size_t>(keys.size(), 4));
    return keys;
  }

  void ReadField(const FieldDescriptor& field, const YamlNode* value, const YamlNode* parent, const std::string& path,
                 Message* message) {
    const FieldRule& field_rule = RuleOf(field);
    auto* reflection = message->GetReflection();
    if (value == nullptr) {
      if (field_rule.required()) {
        // A message that is itself missing has been reported; only what is there can lack something.
        if (parent != nullptr) {
          Fail(*parent, path, absl::StrCat("is missing (expected ", TypeWords(field), ": ", field_rule.doc(), ")"));
        }
      } else if (IsMessage(field) && !field.is_repeated()) {
        ReadMessage(nullptr, path, reflection->MutableMessage(message, &field));
      } else if (!field_rule.default_().empty()) {
        const absl::Status status = SetScalar(field, field_rule.default_(), message);
        CHECK(status.ok()) << "the default of " << field.full_name() << " breaks its own rule: " << status;
      }
      return;
    }
    Note(*value, path);
    if (IsMessage(field) && !field.is_repeated()) {
      ReadMessage(value, path, reflection->MutableMessage(message, &field));
    } else if (field.is_repeated()) {
      ReadList(field, *value, path, message);
    } else {
      ReadScalar(field, *value, path, message);
    }
  }

  void ReadList(const FieldDescriptor& field, const YamlNode& value, const std::string& path, Message* message) {
    if (value.kind == YamlNode::Kind::kScalar && !IsMessage(field)) {
      return ReadScalar(field, value, path, message);
    }
    if (value.kind == YamlNode::Kind::kMap || value.kind == YamlNode::Kind::kScalar) {
      Fail(value, path, absl::StrCat("wrong type (expected a ", TypeWords(field), ", got ", KindWords(value), ")"));
      return;
    }
    if (value.items.empty() && RuleOf(field).required()) {
      Fail(value, path, absl::StrCat("is empty (expected a ", TypeWords(field), ": ", RuleOf(field).doc(), ")"));
    }
    for (size_t i = 0; i < value.items.size(); ++i) {
      const YamlNode& item = value.items[i];
      const std::string item_path = absl::StrCat(path, "[", i, "]");
      Note(item, item_path);
      if (IsMessage(field)) {
        ReadMessage(&item, item_path, message->GetReflection()->AddMessage(message, &field));
      } else {
        ReadScalar(field, item, item_path, message);
      }
    }
  }

  void ReadScalar(const FieldDescriptor& field, const YamlNode& value, const std::string& path, Message* message) {
    if (value.kind == YamlNode::Kind::kNull) {
      Fail(value, path, absl::StrCat("has no value (expected ", TypeWords(field), ", got nothing)"));
      return;
    }
    if (value.kind != YamlNode::Kind::kScalar) {
      Fail(value, path, absl::StrCat("wrong type (expected ", TypeWords(field), ", got ", KindWords(value), ")"));
      return;
    }
    const bool is_path = path == "data.directory" || path == "data.train" || path == "data.validation" ||
                         path == "model.torchscript" || path == "model.parameters";
    const bool resolve = is_path && !value.scalar.empty();
    const std::string text = resolve ? Resolve(value) : value.scalar;
    if (field.type() == FieldDescriptor::TYPE_STRING && !IsUtf8(text)) {
      Fail(value, path,
           absl::StrCat("is not UTF-8, which the run's own files are written in (expected another name, got \"",
                        absl::CHexEscape(text), "\")"));
      return;
    }
    const absl::Status status = SetScalar(field, text, message);
    if (!status.ok()) {
      Fail(value, path, status.message());
    }
  }

  // An absolute path, without "..", from a relative one.
  std::string Resolve(const YamlNode& value) const {
    namespace fs = std::filesystem;
    const fs::path base = value.override_text.empty() ? fs::path(source_->path).parent_path() : fs::path();
    std::error_code error;
    const fs::path absolute = fs::absolute(base / value.scalar, error);
    std::string text = (error ? base / value.scalar : absolute).lexically_normal().string();
    while (text.size() > 1 && text.back() == '/') {
      text.pop_back();
    }
    return text;
  }

  YamlSource* const source_;
  JobErrors* const errors_;
};

}  // namespace

std::string YamlSource::Where(absl::string_view key) const {
  std::string at(key);
  while (true) {
    if (const auto found = overrides.find(at); found != overrides.end()) {
      return absl::StrCat("--set ", found->second, ": ", key, ": ");
    }
    if (const auto found = lines.find(at); found != lines.end()) {
      return absl::StrCat(path, ":", found->second, ": ", key, ": ");
    }
    const size_t end = at.find_last_of(".[");
    if (end == std::string::npos) {
      return absl::StrCat(path, ":1: ", key, ": ");
    }
    at.resize(end);
  }
}

void JobErrors::Add(absl::string_view where, absl::string_view what, int line) {
  errors_.emplace_back(line, absl::StrCat(where, what));
}

absl::Status JobErrors::ToStatus() const {
  if (errors_.empty()) {
    return absl::OkStatus();
  }
  std::vector<std::pair<int, std::string>> sorted = errors_;
  std::stable_sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> texts;
  for (size_t i = 0; i < std::min(sorted.size(), kErrorsMax); ++i) {
    texts.push_back(sorted[i].second);
  }
  if (sorted.size() > kErrorsMax) {
    texts.push_back(absl::StrCat("... and ", sorted.size() - kErrorsMax, " more"));
  }
  return absl::InvalidArgumentError(absl::StrJoin(texts, "\n"));
}

namespace {

// `what` names the kind of file, `expected` what the least of them holds.
absl::Status LoadMessage(const std::string& path, const std::vector<std::string>& overrides, absl::string_view what,
                         absl::string_view expected, YamlSource* source, Message* message) {
  std::error_code error;
  const auto kind = std::filesystem::status(path, error).type();
  if (kind == std::filesystem::file_type::directory) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": reading the ", what, " file: is a directory (expected a file)"));
  }
  const absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("reading the ", what, " file: ", text.status().message()));
  }
  if (text->size() > kFileBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": reading the ", what, " file: too large (expected at most ",
                                                   kFileBytesMax, " bytes, got ", text->size(), ")"));
  }
  source->path = path;
  JobErrors errors;
  YamlNode root;
  for (const YamlProblem& problem : ParseYaml(*text, &root)) {
    errors.Add(absl::StrCat(path, ":", problem.line, ": "), problem.text, problem.line);
  }
  if (!errors.empty()) {
    return errors.ToStatus();
  }
  if (root.kind == YamlNode::Kind::kNull) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ":1: the file is empty (expected a ", what, " with ", expected, ")"));
  }
  const bool is_scenario = root.Find(kOfScenarios) != nullptr;
  if (is_scenario && what == "job") {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is a scenario, not a job (it has a ", kOfScenarios,
                     "): `wukong sim` runs it in virtual time, `wukong chaos run` on real processes"));
  }
  if (!is_scenario && what == "scenario" && root.Find(kOfJobs) != nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is a job, not a scenario (it has a ", kOfJobs, " and no ",
                                                   kOfScenarios, "): `wukong up` runs it"));
  }
  for (const std::string& text_of_override : overrides) {
    Override(text_of_override, message->GetDescriptor(), &root, &errors).Apply();
  }
  MessageReader(source, &errors).ReadMessage(&root, "", message);
  return errors.ToStatus();
}

}  // namespace

absl::StatusOr<JobSource> LoadJobFile(const std::string& path, const std::vector<std::string>& overrides) {
  JobSource source;
  absl::Status status =
      LoadMessage(path, overrides, "job", "name, model, data, regions and stop", &source, &source.job);
  if (status.ok()) status = ResolveStrategy(&source.job);
  if (!status.ok()) return status;
  ResolveOptimizer(source.job.mutable_optimizer());
  return source;
}

absl::StatusOr<ScenarioSource> LoadScenarioFile(const std::string& path, const std::vector<std::string>& overrides) {
  ScenarioSource source;
  const absl::Status status =
      LoadMessage(path, overrides, "scenario", "name, workload and regions", &source, &source.scenario);
  if (!status.ok()) return status;
  // Defaults of what is not there would say that it is.
  if (source.scenario.workload().fidelity() != FIDELITY_GPT) {
    const auto written = [&](const char* key) {
      return source.lines.count(key) > 0 || source.overrides.count(key) > 0;
    };
    if (!written("model")) source.scenario.clear_model();
    if (!written("data")) source.scenario.clear_data();
    if (!written("optimizer")) source.scenario.clear_optimizer();
  }
  return source;
}

bool IsScenarioFile(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) return false;
  const absl::StatusOr<std::string> text = ReadFile(path);
  YamlNode root;
  return text.ok() && text->size() <= kFileBytesMax && ParseYaml(*text, &root).empty() &&
         root.Find(kOfScenarios) != nullptr;
}

absl::Status CheckRunDirectory(const std::string& run_dir) {
  std::error_code error;
  const bool is_there = std::filesystem::exists(run_dir, error);
  if (!error && !is_there) return absl::InvalidArgumentError(absl::StrCat("there is no run directory ", run_dir));
  const bool has_config = !error && std::filesystem::exists(run_dir + "/config.resolved.yaml", error);
  if (error) return ErrnoToStatus(error.value(), "cannot look into run directory " + run_dir);
  if (has_config) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(run_dir, " is no run directory: it has no config.resolved.yaml"));
}

absl::StatusOr<JobSource> LoadRunJob(const std::string& run_dir) {
  if (absl::Status status = CheckRunDirectory(run_dir); !status.ok()) return status;
  return LoadJobFile(run_dir + "/config.resolved.yaml", {});
}

}  // namespace wukong
