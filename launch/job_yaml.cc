// The job as text: ResolvedYaml and KeyReference, both driven by the fields' rules.
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "launch/job_file.h"
#include "launch/job_units.h"
#include "nlohmann/json.hpp"

namespace wukong {
namespace {

using ::google::protobuf::Descriptor;
using ::google::protobuf::FieldDescriptor;
using ::google::protobuf::Message;

// A scalar as YAML. JSON's quoting is YAML's as well.
std::string Quoted(const std::string& text) {
  bool plain = !text.empty() && (absl::ascii_isalnum(text[0]) || text[0] == '/');
  for (const char c : text) {
    plain = plain && (absl::ascii_isalnum(c) || absl::StrContains("_./-+%", c));
  }
  for (const char* special : {"null", "Null", "NULL"}) {
    plain = plain && text != special;
  }
  return plain ? text : nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

// Whether a field holds something that belongs into the file: the zero of a field without a presence of its own is a
// value only where a default or a bound says that zero can be meant.
bool IsSet(const Message& message, const FieldDescriptor& field) {
  if (message.GetReflection()->HasField(message, &field)) {
    return true;
  }
  const FieldRule& field_rule = RuleOf(field);
  const bool number = field.cpp_type() != FieldDescriptor::CPPTYPE_STRING &&
                      field.cpp_type() != FieldDescriptor::CPPTYPE_ENUM &&
                      field.cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE;
  return number && !field.has_presence() && !field_rule.default_().empty();
}

// A field without messages in it, as YAML.
std::string ValueText(const Message& message, const FieldDescriptor& field) {
  if (!field.is_repeated()) return IsSet(message, field) ? Quoted(FormatScalar(message, field)) : "not set";
  std::vector<std::string> values;
  for (int i = 0; i < message.GetReflection()->FieldSize(message, &field); ++i) {
    values.push_back(Quoted(FormatScalar(message, field, i)));
  }
  return absl::StrCat("[", absl::StrJoin(values, ", "), "]");
}

void WriteMessage(const Message& message, int indent, bool in_list, std::string* out) {
  const auto* reflection = message.GetReflection();
  const Descriptor* type = message.GetDescriptor();
  bool first = true;
  for (int i = 0; i < type->field_count(); ++i) {
    const FieldDescriptor& field = *type->field(i);
    const int size = field.is_repeated() ? reflection->FieldSize(message, &field) : 0;
    if (field.is_repeated() ? size == 0 : !IsSet(message, field)) {
      continue;
    }
    absl::StrAppend(out, std::string(in_list && first ? indent - 2 : indent, ' '), in_list && first ? "- " : "",
                    KeyOf(field), ":");
    first = false;
    if (field.cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
      absl::StrAppend(out, " ", ValueText(message, field), "\n");
    } else if (field.is_repeated()) {
      *out += "\n";
      for (int j = 0; j < size; ++j) {
        WriteMessage(reflection->GetRepeatedMessage(message, &field, j), indent + 4, true, out);
      }
    } else {
      std::string inner;
      WriteMessage(reflection->GetMessage(message, &field), indent + 2, false, &inner);
      absl::StrAppend(out, inner.empty() ? " {}\n" : "\n", inner);
    }
  }
}

void Compare(const Message& before, const Message& after, const std::string& prefix, std::vector<JobDifference>* out) {
  const auto* reflection = before.GetReflection();
  for (int i = 0; i < before.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor& field = *before.GetDescriptor()->field(i);
    const std::string key = absl::StrCat(prefix, KeyOf(field));
    if (field.cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) {
      const std::string was = ValueText(before, field), is = ValueText(after, field);
      if (was != is) out->push_back({key, was, is});
    } else if (!field.is_repeated()) {
      Compare(reflection->GetMessage(before, &field), reflection->GetMessage(after, &field), key + ".", out);
    } else {
      const int was = reflection->FieldSize(before, &field), is = reflection->FieldSize(after, &field);
      if (was != is) out->push_back({key, absl::StrCat(was, " entries"), absl::StrCat(is, " entries")});
      for (int j = 0; was == is && j < was; ++j) {
        Compare(reflection->GetRepeatedMessage(before, &field, j), reflection->GetRepeatedMessage(after, &field, j),
                absl::StrCat(key, "[", j, "]."), out);
      }
    }
  }
}

// A cell of a Markdown table.
std::string Cell(std::string text) {
  for (size_t at = 0; (at = text.find('|', at)) != std::string::npos; at += 2) {
    text.replace(at, 1, "\\|");
  }
  return text;
}

// `unset`: where what is not set comes from: "by preset" below the strategy, "by kind" in the optimizer.
void WriteReference(const Descriptor& type, const std::string& prefix, const std::string& unset, std::string* out) {
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    const FieldRule& field_rule = RuleOf(field);
    const bool is_message = field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    const std::string key = absl::StrCat(prefix, KeyOf(field), is_message && field.is_repeated() ? "[]" : "");
    std::string fallback;
    if (field_rule.required()) {
      fallback = "required";
    } else if (!field_rule.default_().empty()) {
      fallback = absl::StrCat("`", field_rule.default_(), "`");
    } else if (!is_message) {
      fallback = unset;
    }
    absl::StrAppend(out, "| `", key, "` | ", Cell(TypeWords(field)), " | ", Cell(fallback), " | ",
                    Cell(is_message ? "" : BoundsWords(field)), " | ", Cell(field_rule.doc()), " |\n");
    if (is_message) {
      std::string below = unset;
      if (field.message_type() == Strategy::descriptor()) below = "by preset";
      if (field.message_type() == Optimizer::descriptor()) below = "by kind";
      WriteReference(*field.message_type(), key + ".", below, out);
    }
  }
}

}  // namespace

std::string ResolvedYaml(const Job& job) {
  std::string text;
  WriteMessage(job, 0, false, &text);
  return text;
}

std::vector<JobDifference> JobDifferences(const Job& before, const Job& after) {
  std::vector<JobDifference> differences;
  Compare(before, after, "", &differences);
  return differences;
}

std::string ScenarioYaml(const Scenario& scenario) {
  std::string text;
  WriteMessage(scenario, 0, false, &text);
  return text;
}

std::string KeyReference() {
  std::string text = "| Key | Type | Default | Bounds | Meaning |\n|---|---|---|---|---|\n";
  WriteReference(*Job::descriptor(), "", "", &text);
  return text;
}

}  // namespace wukong
