#include "launch/subprocess.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "runtime/base/file.h"

namespace wukong {

absl::StatusOr<Subprocess> Subprocess::Start(const std::vector<std::string>& arguments, const std::string& log,
                                             int nicer, int network) {
  const int file = ::open(log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (file < 0) return ErrnoToStatus(errno, "cannot open " + log);
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const pid_t parent = ::getpid();
  const pid_t pid = ::fork();
  if (pid < 0) {
    const int error = errno;
    ::close(file);
    return ErrnoToStatus(error, "cannot start " + arguments[0]);
  }
  if (pid == 0) {
    // Only async-signal-safe calls from here on.
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(127);
    ::setpgid(0, 0);
    if (network >= 0 && ::setns(network, CLONE_NEWNET) != 0) ::_exit(127);
    if (nicer > 0 && ::nice(nicer) < 0) {
      // It runs as it is.
    }
    const int null = ::open("/dev/null", O_RDONLY);
    ::dup2(null, STDIN_FILENO);
    ::dup2(file, STDOUT_FILENO);
    ::dup2(file, STDERR_FILENO);
    ::execv(argv[0], argv.data());
    // Only what may be called after a fork.
    for (const char* text :
         {"cannot execute ", static_cast<const char*>(argv[0]), ": ", ::strerrordesc_np(errno), "\n"}) {
      if (text != nullptr && ::write(STDERR_FILENO, text, ::strlen(text)) < 0) break;
    }
    ::_exit(127);
  }
  ::close(file);
  return Subprocess(pid);
}

std::optional<int> Subprocess::Poll() {
  if (ended_.has_value()) return ended_;
  int status = 0;
  if (::waitpid(pid_, &status, WNOHANG) == pid_) {
    ended_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  return ended_;
}

void Subprocess::Signal(int signal_number) {
  if (!Poll().has_value()) ::kill(pid_, signal_number);
}

}  // namespace wukong
