// What the process's exit code says (README.md lists them).
#ifndef WUKONG_LAUNCH_EXIT_CODE_H_
#define WUKONG_LAUNCH_EXIT_CODE_H_

#include <cstdio>
#include <string>

#include "absl/status/status.h"
#include "runtime/base/restart.h"

namespace wukong {

enum ExitCode {
  kExitOk = 0,
  kExitFailed = 1,       // Training failed.
  kExitUsage = 2,        // The command line, the job file or the data is wrong.
  kExitMachine = 3,      // This machine lacks something: a device, disk space, a permission.
  kExitUnreachable = 4,  // No coordinator answers.
  kExitDiverged = 6,     // Loss or parameters are not finite.
  kExitCorrupt = 7,      // A log or a checkpoint is damaged.
  kExitRestart = 75,     // Start this process again: it lost its place, and may take another (sysexits.h: EX_TEMPFAIL).
};

inline int ExitCodeOf(const absl::Status& status) {
  if (IsRestartSafe(status)) return kExitRestart;
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kExitOk;
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kAlreadyExists:
      return kExitUsage;
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kResourceExhausted:
    case absl::StatusCode::kPermissionDenied:
      return kExitMachine;
    case absl::StatusCode::kUnavailable:
      return kExitUnreachable;
    case absl::StatusCode::kOutOfRange:
      return kExitDiverged;
    case absl::StatusCode::kDataLoss:
      return kExitCorrupt;
    default:
      return kExitFailed;
  }
}

// Prints an error as people should see it, and returns the exit code.
inline int ReportStatus(const absl::Status& status) {
  if (!status.ok()) std::fprintf(stderr, "wukong: error: %s\n", std::string(status.message()).c_str());
  return ExitCodeOf(status);
}

}  // namespace wukong

#endif  // WUKONG_LAUNCH_EXIT_CODE_H_
