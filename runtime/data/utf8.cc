#include "runtime/data/utf8.h"

#include <cstdint>
#include <cstring>

namespace wukong {

size_t Utf8SequenceLength(absl::string_view text) {
  const auto byte = [&](size_t i) { return i < text.size() ? static_cast<uint8_t>(text[i]) : uint8_t{0}; };
  const auto continues = [&](size_t i) { return (byte(i) & 0xc0) == 0x80; };
  const uint8_t lead = byte(0);
  if (text.empty()) return 0;
  if (lead < 0x80) return 1;
  if (lead < 0xc2 || lead > 0xf4) return 0;
  if (lead < 0xe0) return continues(1) ? 2 : 0;
  if (lead < 0xf0) {
    const bool first_fits = (lead != 0xe0 || byte(1) >= 0xa0) && (lead != 0xed || byte(1) < 0xa0);
    return first_fits && continues(1) && continues(2) ? 3 : 0;
  }
  const bool first_fits = (lead != 0xf0 || byte(1) >= 0x90) && (lead != 0xf4 || byte(1) < 0x90);
  return first_fits && continues(1) && continues(2) && continues(3) ? 4 : 0;
}

size_t SkipValidUtf8(absl::string_view text, size_t begin, size_t enough) {
  size_t end = begin;
  while (end < enough) {
    uint64_t eight;
    if (end + sizeof(eight) <= text.size()) {
      std::memcpy(&eight, text.data() + end, sizeof(eight));
      if ((eight & 0x8080808080808080ULL) == 0) {
        end += sizeof(eight);
        continue;
      }
    }
    const size_t length = Utf8SequenceLength(text.substr(end));
    if (length == 0) break;
    end += length;
  }
  return end;
}

}  // namespace wukong
