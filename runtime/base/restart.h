// Errors after which the same process may be started again and go on: it lost its place, and nothing is wrong with it.
#ifndef WUKONG_RUNTIME_BASE_RESTART_H_
#define WUKONG_RUNTIME_BASE_RESTART_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/cord.h"

namespace wukong {

inline constexpr char kRestartPayload[] = "wukong.restart";

// Marks an error; what is OK stays OK. The code and the text are unchanged. The process that returns it ends with exit
// code 75 (launch/exit_code.h), which asks whoever started it for another start.
inline absl::Status RestartSafe(absl::Status status) {
  if (!status.ok()) status.SetPayload(kRestartPayload, absl::Cord());
  return status;
}

inline bool IsRestartSafe(const absl::Status& status) { return status.GetPayload(kRestartPayload).has_value(); }

}  // namespace wukong

#endif  // WUKONG_RUNTIME_BASE_RESTART_H_
