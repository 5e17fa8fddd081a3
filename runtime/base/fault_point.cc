#include "runtime/base/fault_point.h"

#include <signal.h>

#include <atomic>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "glog/logging.h"
#include "runtime/base/mutex.h"

namespace wukong {
namespace {

struct Point {
  const char* role;
  const char* name;
};
constexpr Point kPoints[] = {
    {"coordinator", "root.before_append"},    {"coordinator", "root.after_append"},
    {"coordinator", "root.before_fsync"},     {"coordinator", "root.after_fsync"},
    {"coordinator", "root.before_ack"},       {"coordinator", "root.after_ack"},
    {"coordinator", "root.before_publish"},   {"coordinator", "root.after_publish"},
    {"coordinator", "snapshot.before_write"}, {"coordinator", "snapshot.before_rename"},
    {"coordinator", "snapshot.after_rename"}, {"coordinator", "snapshot.before_prune"},
    {"coordinator", "snapshot.after_prune"},  {"worker", "worker.nan_contribution"},
    {"worker", "worker.scale_contribution"},
};

// Constant once armed.
const char* armed = nullptr;
std::atomic<int64_t> passes_left{0};

// Held while the watcher is called.
Mutex watcher_mutex;
std::function<void(absl::string_view)>& Watcher() ABSL_EXCLUSIVE_LOCKS_REQUIRED(watcher_mutex) {
  static auto* const watcher = new std::function<void(absl::string_view)>;
  return *watcher;
}

}  // namespace

namespace internal {

std::atomic<bool> fault_points_matter{false};

void PassFaultPoint(const char* point) {
  if (armed != nullptr && std::strcmp(armed, point) == 0 && --passes_left == 0) {
    LOG(WARNING) << "dying at fault point " << point;
    google::FlushLogFiles(google::INFO);
    ::raise(SIGKILL);
  }
  MutexLock lock(watcher_mutex);
  if (Watcher()) Watcher()(point);
}

}  // namespace internal

void WatchFaultPoints(std::function<void(absl::string_view)> watcher) {
  MutexLock lock(watcher_mutex);
  internal::fault_points_matter = watcher != nullptr || armed != nullptr;
  Watcher() = std::move(watcher);
}

absl::Status ArmFaultPoint(absl::string_view role, const std::string& point) {
#ifndef WUKONG_FAULT_POINTS
  return absl::FailedPreconditionError("this build has no fault points: configure it with -DWUKONG_FAULT_POINTS=ON");
#endif
  const std::string name = point.substr(0, point.find(':'));
  int64_t count = 1;
  if (name.size() < point.size() && (!absl::SimpleAtoi(point.substr(name.size() + 1), &count) || count < 1)) {
    return absl::InvalidArgumentError(absl::StrCat("'", point, "': expected POINT or POINT:N with N at least 1"));
  }
  std::vector<std::string> names;
  for (const Point& known : kPoints) {
    if (role != known.role) continue;
    names.emplace_back(known.name);
    if (name != known.name) continue;
    passes_left = count;
    armed = known.name;
    internal::fault_points_matter = true;
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("a ", role, " has no fault point '", name, "'; it has ", absl::StrJoin(names, ", ")));
}

#ifdef WUKONG_FAULT_POINTS
bool FaultHappens(const char* fault) {
  if (armed == nullptr || std::strcmp(armed, fault) != 0) return false;
  const int64_t left = --passes_left;
  LOG_IF(WARNING, left == 0) << "from here on this process does as told by fault " << fault;
  return left <= 0;
}
#endif

}  // namespace wukong
