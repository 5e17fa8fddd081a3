// Digests: SHA-256 where people compare them, XXH3 where two processes check bytes against accidents.
#ifndef WUKONG_RUNTIME_BASE_DIGEST_H_
#define WUKONG_RUNTIME_BASE_DIGEST_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace wukong {

class Sha256 {
 public:
  Sha256();
  ~Sha256();
  void Update(const void* data, size_t bytes);
  // 64 lower-case hexadecimal digits. Ends the use of this object.
  std::string Finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string Sha256Hex(absl::string_view data);
std::string Sha256Hex(absl::Span<const float> values);
absl::StatusOr<std::string> Sha256File(const std::string& path);

// XXH3 of 64 bits, over several pieces: pass the last result as `seed`.
uint64_t Checksum(const void* data, size_t bytes, uint64_t seed = 0);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_BASE_DIGEST_H_
