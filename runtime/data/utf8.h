// Where text is UTF-8, and where it is not.
#ifndef WUKONG_RUNTIME_DATA_UTF8_H_
#define WUKONG_RUNTIME_DATA_UTF8_H_

#include <cstddef>

#include "absl/strings/string_view.h"

namespace wukong {

// Length in bytes of the UTF-8 sequence at the start of `text`; 0 when it is cut, overlong, a surrogate or otherwise
// not valid (The Unicode Standard, table 3-7).
size_t Utf8SequenceLength(absl::string_view text);

// The valid UTF-8 from `begin` on, as far as `enough`: the end of what was checked, at the end of a sequence.
size_t SkipValidUtf8(absl::string_view text, size_t begin, size_t enough);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_DATA_UTF8_H_
