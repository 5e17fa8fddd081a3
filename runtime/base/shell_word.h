// Commands that a message gives the reader to copy.
#ifndef WUKONG_RUNTIME_BASE_SHELL_WORD_H_
#define WUKONG_RUNTIME_BASE_SHELL_WORD_H_

#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"

namespace wukong {

// `text` as one word of a POSIX shell: as it is where that is safe, else in single quotes.
inline std::string ShellWord(absl::string_view text) {
  const auto safe = [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
           absl::string_view("_-./:=,+@%").find(c) != absl::string_view::npos;
  };
  bool plain = !text.empty();
  for (const char c : text) plain = plain && safe(c);
  if (plain) return std::string(text);
  return absl::StrCat("'", absl::StrReplaceAll(text, {{"'", "'\\''"}}), "'");
}

}  // namespace wukong

#endif  // WUKONG_RUNTIME_BASE_SHELL_WORD_H_
