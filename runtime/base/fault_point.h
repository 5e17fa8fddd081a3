// Places between one step of a protocol and the next, where something can be made to go wrong. As long as nobody asks
// for that, passing one is to read a flag.
#ifndef WUKONG_RUNTIME_BASE_FAULT_POINT_H_
#define WUKONG_RUNTIME_BASE_FAULT_POINT_H_

#include <atomic>
#include <functional>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace wukong {

// Calls `watcher` with the name of every point that this process passes, by the thread that passes it, one call at a
// time. Null: nobody watches any more; returns when no call is under way. There is one watcher.
void WatchFaultPoints(std::function<void(absl::string_view point)> watcher);

// "POINT" or "POINT:N". A process that dies at a point kills itself (SIGKILL) when it passes it for the N-th time; a
// fault happens from the N-th time on. Before any thread that passes points. INVALID_ARGUMENT for a point that `role`
// ("coordinator", "worker") does not have; the message lists those that it has. FAILED_PRECONDITION: not compiled in
// (CMake option WUKONG_FAULT_POINTS).
absl::Status ArmFaultPoint(absl::string_view role, const std::string& point);

namespace internal {
extern std::atomic<bool> fault_points_matter;
void PassFaultPoint(const char* point);
}  // namespace internal

inline void FaultPoint(const char* point) {
  if (internal::fault_points_matter.load(std::memory_order_relaxed)) internal::PassFaultPoint(point);
}

#ifdef WUKONG_FAULT_POINTS
bool FaultHappens(const char* fault);
#else
constexpr bool FaultHappens(const char* /*fault*/) { return false; }
#endif

}  // namespace wukong

#endif  // WUKONG_RUNTIME_BASE_FAULT_POINT_H_
