// A child process that never outlives its parent.
#ifndef WUKONG_LAUNCH_SUBPROCESS_H_
#define WUKONG_LAUNCH_SUBPROCESS_H_

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace wukong {

class Subprocess {
 public:
  // Starts `arguments` (the program's path first) with standard output and error appended to `log`. The child is in a
  // process group of its own, so that Ctrl-C reaches it only through us, and is killed when this process dies. It is
  // `nicer` than this one (nice(2)), and in `network` (a descriptor for setns(2)) where that is not -1.
  static absl::StatusOr<Subprocess> Start(const std::vector<std::string>& arguments, const std::string& log,
                                          int nicer = 0, int network = -1);

  pid_t pid() const { return pid_; }
  // How it ended, once it has: the exit code, or 128 + the signal.
  std::optional<int> Poll();
  void Signal(int signal_number);

 private:
  explicit Subprocess(pid_t pid) : pid_(pid) {}
  pid_t pid_;
  std::optional<int> ended_;
};

}  // namespace wukong

#endif  // WUKONG_LAUNCH_SUBPROCESS_H_
