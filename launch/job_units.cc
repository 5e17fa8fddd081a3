#include "launch/job_units.h"

#include <glog/logging.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "absl/types/span.h"

namespace wukong {
namespace {

using ::google::protobuf::EnumDescriptor;
using ::google::protobuf::EnumValueDescriptor;
using ::google::protobuf::FieldDescriptor;
using ::google::protobuf::Message;

// Longer words than any key or value that they could be meant for.
constexpr size_t kKeyBytesMax = 100;

struct UnitName {
  const char* name;
  int64_t factor;
};

// What a unit's values look like. Names are from small to large; a value is written with the largest that divides it.
struct UnitTable {
  const char* kind;
  const char* examples;
  absl::Span<const UnitName> names;
  bool plain_number;  // A number without a unit is right.
  bool ignore_case;
};

constexpr UnitName kDurations[] = {{"ns", 1},
                                   {"us", 1'000},
                                   {"ms", 1'000'000},
                                   {"s", 1'000'000'000},
                                   {"min", 60'000'000'000},
                                   {"h", 3'600'000'000'000}};
// A rate has no milli and bytes are not meant: "100mbit" can only be one thing.
constexpr UnitName kBandwidths[] = {
    {"bit", 1}, {"kbit", 1'000}, {"Mbit", 1'000'000}, {"Gbit", 1'000'000'000}, {"Tbit", 1'000'000'000'000}};
constexpr UnitName kBytes[] = {{"B", 1},
                               {"kB", 1'000},
                               {"KiB", int64_t{1} << 10},
                               {"MB", 1'000'000},
                               {"MiB", int64_t{1} << 20},
                               {"GB", 1'000'000'000},
                               {"GiB", int64_t{1} << 30}};
constexpr UnitName kCounts[] = {{"", 1}, {"k", 1'000}, {"M", 1'000'000}, {"G", 1'000'000'000}};
constexpr UnitName kPlain[] = {{"", 1}};

UnitTable TableOf(Unit unit) {
  switch (unit) {
    case UNIT_DURATION:
      return {"duration", "150ms, 2s, 5min or 1h", kDurations, false, false};
    case UNIT_BANDWIDTH:
      return {"bandwidth", "100Mbit, 1.5Gbit or unlimited", kBandwidths, false, true};
    case UNIT_BYTES:
      return {"size", "512, 64KiB or 4MiB", kBytes, true, false};
    case UNIT_COUNT:
      return {"count", "4096, 1.5k or 2M", kCounts, true, false};
    default:
      return {"whole number", "8", kPlain, true, false};
  }
}

absl::Status Wrong(absl::string_view what, absl::string_view expected, absl::string_view got) {
  return absl::InvalidArgumentError(absl::StrCat(what, " (expected ", expected, ", got \"", got, "\")"));
}

absl::Status NotA(const UnitTable& table, absl::string_view got) {
  return Wrong(absl::StrCat("not a ", table.kind), absl::StrCat("a ", table.kind, " such as ", table.examples), got);
}

// `all` is read where the field's own documentation says what it means.
bool AcceptsAll(const FieldDescriptor& field) {
  const FieldRule& field_rule = RuleOf(field);
  return field_rule.unit() == UNIT_COUNT && absl::StrContains(field_rule.doc(), "`all`");
}

bool IsReal(const FieldDescriptor& field) { return field.cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE; }

// The length of the decimal number that `text` begins with: sign, digits, point, exponent.
size_t NumberLength(absl::string_view text) {
  const auto digits = [text](size_t at) {
    while (at < text.size() && absl::ascii_isdigit(text[at])) ++at;
    return at;
  };
  const size_t start = !text.empty() && (text[0] == '-' || text[0] == '+') ? 1 : 0;
  size_t end = digits(start);
  size_t count = end - start;
  if (end < text.size() && text[end] == '.') {
    const size_t fraction_end = digits(end + 1);
    count += fraction_end - end - 1;
    end = fraction_end;
  }
  if (count == 0) {
    return 0;
  }
  if (end < text.size() && (text[end] == 'e' || text[end] == 'E')) {
    const size_t sign = end + 1 < text.size() && (text[end + 1] == '-' || text[end + 1] == '+') ? 1 : 0;
    const size_t exponent_end = digits(end + 1 + sign);
    if (exponent_end > end + 1 + sign) {
      end = exponent_end;
    }
  }
  return end;
}

// number * factor when that is a whole number that fits; exact for digits without a point.
std::optional<int64_t> Multiply(absl::string_view number, int64_t factor) {
  int64_t whole = 0;
  if (absl::SimpleAtoi(number, &whole)) {
    const __int128 product = static_cast<__int128>(whole) * factor;
    if (product < std::numeric_limits<int64_t>::min() || product > std::numeric_limits<int64_t>::max()) {
      return std::nullopt;
    }
    return static_cast<int64_t>(product);
  }
  double real = 0;
  if (!absl::SimpleAtod(number, &real)) {
    return std::nullopt;
  }
  const double product = real * static_cast<double>(factor);
  const double rounded = std::round(product);
  // 0.3 * 1e9 is not quite whole; what is off by more than its own rounding is.
  if (!(std::abs(product) < 9e18) || std::abs(product - rounded) > 1e-9 * std::max(1.0, std::abs(product))) {
    return std::nullopt;
  }
  return static_cast<int64_t>(rounded);
}

absl::StatusOr<int64_t> ParseInteger(const FieldDescriptor& field, absl::string_view text) {
  const Unit unit = RuleOf(field).unit();
  const UnitTable table = TableOf(unit);
  if (AcceptsAll(field) && text == "all") {
    return 0;
  }
  if (unit == UNIT_BANDWIDTH && text == "unlimited") {
    return 0;
  }
  const size_t length = NumberLength(text);
  if (length == 0) {
    return NotA(table, text);
  }
  const absl::string_view number = text.substr(0, length);
  absl::string_view name = absl::StripLeadingAsciiWhitespace(text.substr(length));
  if (unit == UNIT_BANDWIDTH && name.size() > 2) {
    name = absl::StripSuffix(name, "/s");
  }
  if (name.empty() && unit == UNIT_DURATION && Multiply(number, 1) == 0) {
    return 0;  // Nothing is nothing in every unit.
  }
  std::optional<int64_t> factor;
  if (name.empty() && table.plain_number) {
    factor = 1;
  } else if (name.empty()) {
    return Wrong("a unit is missing", absl::StrCat("a ", table.kind, " such as ", table.examples), text);
  }
  std::vector<std::string> known;
  for (const UnitName& candidate : table.names) {
    if (!factor && (table.ignore_case ? absl::EqualsIgnoreCase(name, candidate.name) : name == candidate.name)) {
      factor = candidate.factor;
    }
    if (*candidate.name != 0) {
      known.push_back(candidate.name);
    }
  }
  if (!factor && known.empty()) {
    return NotA(table, text);
  }
  if (!factor) {
    return Wrong(absl::StrCat("unknown unit \"", name, "\""), Alternatives(known), text);
  }
  const std::optional<int64_t> value = Multiply(number, *factor);
  if (!value) {
    const std::string smallest = known.empty() || *table.names[0].name == 0 ? "" : absl::StrCat(" of ", known[0]);
    return Wrong("not a whole number that fits", absl::StrCat("a whole number", smallest), text);
  }
  if (AcceptsAll(field) && *value == 0) {
    return Wrong("too small", BoundsWords(field), text);  // 0 is how `all` is kept; a 0 in the file is a mistake.
  }
  if (unit == UNIT_BANDWIDTH && *value == 0) {
    return Wrong("a link without bandwidth carries nothing", "more than 0, or unlimited", text);
  }
  return *value;
}

absl::StatusOr<double> ParseReal(const FieldDescriptor& field, absl::string_view text) {
  const bool fraction = RuleOf(field).unit() == UNIT_FRACTION;
  const char* kind = fraction ? "fraction" : "number";
  const char* expected = fraction ? "a fraction such as 0.1% or 0.001" : "a number such as 0.5 or 1e-3";
  absl::string_view number = text;
  const bool percent = fraction && absl::ConsumeSuffix(&number, "%");
  number = absl::StripAsciiWhitespace(number);
  double value = 0;
  if (number.empty() || NumberLength(number) != number.size() || !absl::SimpleAtod(number, &value) ||
      !std::isfinite(value)) {
    return Wrong(absl::StrCat("not a ", kind), expected, text);
  }
  return percent ? value / 100 : value;
}

// The shortest decimal that reads back as the same number; without an exponent where that is readable.
std::string FormatDouble(double value) {
  const bool plain = std::abs(value) >= 1e-4 && std::abs(value) < 1e6;
  for (int digits = 1; digits < 17; ++digits) {
    std::string text = absl::StrFormat("%.*g", digits, value);
    double back = 0;
    if (absl::SimpleAtod(text, &back) && back == value && !(plain && absl::StrContains(text, 'e'))) {
      return text;
    }
  }
  return absl::StrFormat("%.17g", value);
}

std::string FormatInteger(const FieldDescriptor& field, int64_t value) {
  const Unit unit = RuleOf(field).unit();
  if (value == 0 && unit == UNIT_BANDWIDTH) {
    return "unlimited";
  }
  if (value == 0 && AcceptsAll(field)) {
    return "all";
  }
  const UnitTable table = TableOf(unit);
  if (value == 0) {
    return unit == UNIT_DURATION ? "0s" : "0";
  }
  // The largest unit that divides the value; plain bytes have no name.
  const UnitName* best = &table.names[0];
  for (const UnitName& candidate : table.names) {
    if (value % candidate.factor == 0) {
      best = &candidate;
    }
  }
  const bool bytes = unit == UNIT_BYTES && best->factor == 1;
  return absl::StrCat(value / best->factor, bytes ? "" : best->name);
}

// A bound in the words of the field's unit.
std::string FormatBound(const FieldDescriptor& field, double bound) {
  if (IsReal(field)) {
    return FormatDouble(bound);
  }
  if (AcceptsAll(field) && bound == 0) {
    return "0";
  }
  return FormatInteger(field, static_cast<int64_t>(bound));
}

absl::Status CheckBounds(const FieldDescriptor& field, double value, absl::string_view text) {
  const FieldRule& field_rule = RuleOf(field);
  const bool low =
      field_rule.has_min() && (field_rule.min_exclusive() ? value <= field_rule.min() : value < field_rule.min());
  const bool high = field_rule.has_max() && value > field_rule.max();
  if (!low && !high) {
    return absl::OkStatus();
  }
  return Wrong(low ? "too small" : "too large", BoundsWords(field), text);
}

// "STALENESS_DECAY_" of the enum whose first value is STALENESS_DECAY_UNSPECIFIED.
std::string EnumPrefix(const EnumDescriptor& type) {
  return std::string(absl::StripSuffix(type.value(0)->name(), "UNSPECIFIED"));
}

std::string EnumName(const EnumValueDescriptor& value) {
  return absl::AsciiStrToLower(absl::StripPrefix(value.name(), EnumPrefix(*value.type())));
}

absl::StatusOr<const EnumValueDescriptor*> ParseEnum(const EnumDescriptor& type, absl::string_view text) {
  for (int i = 1; i < type.value_count(); ++i) {
    if (EnumName(*type.value(i)) == text) {
      return type.value(i);
    }
  }
  const std::vector<std::string> names = EnumNames(type);
  const std::string nearest = Nearest(text, names);
  return Wrong(nearest.empty() ? "unknown value" : absl::StrCat("unknown value; did you mean ", nearest, "?"),
               Alternatives(names), text);
}

// Insertions, deletions, substitutions and swaps of neighbours that make `b` of `a` (optimal string alignment).
size_t EditDistance(absl::string_view a, absl::string_view b) {
  if (a.size() > kKeyBytesMax) {
    return a.size();
  }
  std::vector<std::vector<size_t>> table(a.size() + 1, std::vector<size_t>(b.size() + 1));
  for (size_t i = 0; i <= a.size(); ++i) {
    for (size_t j = 0; j <= b.size(); ++j) {
      if (i == 0 || j == 0) {
        table[i][j] = i + j;
        continue;
      }
      table[i][j] =
          std::min({table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1)});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
        table[i][j] = std::min(table[i][j], table[i - 2][j - 2] + 1);
      }
    }
  }
  return table[a.size()][b.size()];
}

template <typename T>
absl::Status CheckRange(int64_t value, absl::string_view text) {
  if (value < std::numeric_limits<T>::min() || value > std::numeric_limits<T>::max()) {
    return Wrong("too large for this key", "fewer digits", text);
  }
  return absl::OkStatus();
}

}  // namespace

const FieldRule& RuleOf(const FieldDescriptor& field) { return field.options().GetExtension(rule); }

const std::string& KeyOf(const FieldDescriptor& field) {
  return RuleOf(field).key().empty() ? field.name() : RuleOf(field).key();
}

std::vector<std::string> EnumNames(const EnumDescriptor& type) {
  std::vector<std::string> names;
  for (int i = 1; i < type.value_count(); ++i) {
    names.push_back(EnumName(*type.value(i)));
  }
  return names;
}

absl::Status SetScalar(const FieldDescriptor& field, absl::string_view text, Message* message) {
  const auto* reflection = message->GetReflection();
  const bool repeated = field.is_repeated();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
    case FieldDescriptor::CPPTYPE_INT64: {
      const absl::StatusOr<int64_t> value = ParseInteger(field, text);
      if (!value.ok()) return value.status();
      // `all` and `unlimited` are 0, which the rules of their fields let pass.
      if (absl::Status status = CheckBounds(field, static_cast<double>(*value), text); !status.ok()) return status;
      if (field.cpp_type() == FieldDescriptor::CPPTYPE_INT64) {
        repeated ? reflection->AddInt64(message, &field, *value) : reflection->SetInt64(message, &field, *value);
        return absl::OkStatus();
      }
      if (absl::Status status = CheckRange<int32_t>(*value, text); !status.ok()) return status;
      const int32_t narrow = static_cast<int32_t>(*value);
      repeated ? reflection->AddInt32(message, &field, narrow) : reflection->SetInt32(message, &field, narrow);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_UINT64: {
      uint64_t value = 0;
      if (!absl::SimpleAtoi(text, &value)) {
        return Wrong("not a whole number", "0 to 18446744073709551615", text);
      }
      repeated ? reflection->AddUInt64(message, &field, value) : reflection->SetUInt64(message, &field, value);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      const absl::StatusOr<double> value = ParseReal(field, text);
      if (!value.ok()) return value.status();
      if (absl::Status status = CheckBounds(field, *value, text); !status.ok()) return status;
      repeated ? reflection->AddDouble(message, &field, *value) : reflection->SetDouble(message, &field, *value);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_ENUM: {
      const absl::StatusOr<const EnumValueDescriptor*> value = ParseEnum(*field.enum_type(), text);
      if (!value.ok()) return value.status();
      repeated ? reflection->AddEnum(message, &field, *value) : reflection->SetEnum(message, &field, *value);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_STRING: {
      if (text.empty()) {
        return absl::InvalidArgumentError("is empty (expected some text)");
      }
      repeated ? reflection->AddString(message, &field, std::string(text))
               : reflection->SetString(message, &field, std::string(text));
      return absl::OkStatus();
    }
    default:
      LOG(FATAL) << "the job file's parser knows no fields of type " << field.cpp_type_name() << ", but "
                 << field.full_name() << " is one";
      return absl::InternalError("unreachable");
  }
}

std::string FormatScalar(const Message& message, const FieldDescriptor& field, int index) {
  const auto* reflection = message.GetReflection();
  const bool repeated = field.is_repeated();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT32:
      return FormatInteger(field, repeated ? reflection->GetRepeatedInt32(message, &field, index)
                                           : reflection->GetInt32(message, &field));
    case FieldDescriptor::CPPTYPE_INT64:
      return FormatInteger(field, repeated ? reflection->GetRepeatedInt64(message, &field, index)
                                           : reflection->GetInt64(message, &field));
    case FieldDescriptor::CPPTYPE_UINT64:
      return absl::StrCat(repeated ? reflection->GetRepeatedUInt64(message, &field, index)
                                   : reflection->GetUInt64(message, &field));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return FormatDouble(repeated ? reflection->GetRepeatedDouble(message, &field, index)
                                   : reflection->GetDouble(message, &field));
    case FieldDescriptor::CPPTYPE_ENUM:
      return EnumName(
          *(repeated ? reflection->GetRepeatedEnum(message, &field, index) : reflection->GetEnum(message, &field)));
    case FieldDescriptor::CPPTYPE_STRING:
      return repeated ? reflection->GetRepeatedString(message, &field, index) : reflection->GetString(message, &field);
    default:
      LOG(FATAL) << "the job file's writer knows no fields of type " << field.cpp_type_name() << ", but "
                 << field.full_name() << " is one";
      return "";
  }
}

std::string TypeWords(const FieldDescriptor& field) {
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
    return field.is_repeated() ? "list of maps" : "map";
  }
  std::string type;
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_ENUM) {
    type = Alternatives(EnumNames(*field.enum_type()), "`");
  } else if (field.cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
    type = "text";
  } else if (IsReal(field)) {
    type = RuleOf(field).unit() == UNIT_FRACTION ? "fraction" : "number";
  } else {
    type = TableOf(RuleOf(field).unit()).kind;
    if (AcceptsAll(field)) {
      type += " or `all`";
    } else if (RuleOf(field).unit() == UNIT_BANDWIDTH) {
      type += " or `unlimited`";
    }
  }
  return field.is_repeated() ? absl::StrCat(type, ", or a list of them") : type;
}

std::string BoundsWords(const FieldDescriptor& field) {
  const FieldRule& field_rule = RuleOf(field);
  // The zero of a bandwidth is `unlimited`, and so no bound; that of a count with `all` is `all`.
  const bool min_says_nothing = field_rule.unit() == UNIT_BANDWIDTH && field_rule.min() == 0;
  std::vector<std::string> words;
  if (field_rule.has_min() && !min_says_nothing) {
    const bool all = AcceptsAll(field) && field_rule.min() == 0;
    words.push_back(absl::StrCat(field_rule.min_exclusive() ? "more than " : "at least ",
                                 all ? "1, or all" : FormatBound(field, field_rule.min())));
  }
  if (field_rule.has_max()) {
    words.push_back(absl::StrCat("at most ", FormatBound(field, field_rule.max())));
  }
  return absl::StrJoin(words, ", ");
}

std::string Nearest(absl::string_view word, const std::vector<std::string>& candidates) {
  std::string best;
  size_t best_distance = std::max<size_t>(1, word.size() / 3) + 1;
  for (const std::string& candidate : candidates) {
    const size_t distance = EditDistance(word, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  for (const std::string& candidate : candidates) {
    if (best.empty() && word.size() >= 3 && absl::StrContains(candidate, word)) {
      best = candidate;
    }
  }
  return best;
}

std::string Alternatives(const std::vector<std::string>& words, absl::string_view quote) {
  std::string text;
  for (size_t i = 0; i < words.size(); ++i) {
    const char* separator = i == 0 ? "" : i + 1 == words.size() ? " or " : ", ";
    absl::StrAppend(&text, separator, quote, words[i], quote);
  }
  return text;
}

}  // namespace wukong
