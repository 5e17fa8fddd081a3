// Values of the job file as people write them, and as the fields of the message hold them (proto/options.proto).
#ifndef WUKONG_LAUNCH_JOB_UNITS_H_
#define WUKONG_LAUNCH_JOB_UNITS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/message.h"
#include "proto/options.pb.h"

namespace wukong {

const FieldRule& RuleOf(const google::protobuf::FieldDescriptor& field);

// The key in the job file.
const std::string& KeyOf(const google::protobuf::FieldDescriptor& field);

// The values of an enum as the job file has them: lower case, without the prefix, without `unspecified`.
std::vector<std::string> EnumNames(const google::protobuf::EnumDescriptor& type);

// Sets (or, if the field is repeated, appends) the scalar `text`, by the field's type, unit and bounds.
// INVALID_ARGUMENT says what is wrong as "what (expected ..., got ...)"; the message is then as before.
absl::Status SetScalar(const google::protobuf::FieldDescriptor& field, absl::string_view text,
                       google::protobuf::Message* message);

// The field's value such that SetScalar reads the same back. `index` is for repeated fields.
std::string FormatScalar(const google::protobuf::Message& message, const google::protobuf::FieldDescriptor& field,
                         int index = 0);

// For the reference and for messages: "duration", "`fp32` or `bf16`", "list of numbers".
std::string TypeWords(const google::protobuf::FieldDescriptor& field);
// "0 < value <= 1", "at least 100ms", or nothing.
std::string BoundsWords(const google::protobuf::FieldDescriptor& field);

// The candidate that `word` most likely means: the one with the smallest edit distance (swapped neighbours count once),
// if near enough to be a slip of the pen, or else one that contains it. "" when there is none.
std::string Nearest(absl::string_view word, const std::vector<std::string>& candidates);

// "a, b or c".
std::string Alternatives(const std::vector<std::string>& words, absl::string_view quote = "");

}  // namespace wukong

#endif  // WUKONG_LAUNCH_JOB_UNITS_H_
