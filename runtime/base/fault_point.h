// Places where a test can make a process die, between one step of a protocol and the next, or do what a broken machine
// would. Compiled in with the CMake option WUKONG_FAULT_POINTS; otherwise nothing is left of them.
#ifndef WUKONG_RUNTIME_BASE_FAULT_POINT_H_
#define WUKONG_RUNTIME_BASE_FAULT_POINT_H_

#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace wukong {

// "POINT" or "POINT:N". A process that dies at a point kills itself (SIGKILL) when it passes it for the N-th time; a
// fault happens from the N-th time on. Before any thread that passes points. INVALID_ARGUMENT for a point that `role`
// ("coordinator", "worker") does not have; the message lists those that it has.
absl::Status ArmFaultPoint(absl::string_view role, const std::string& point);

#ifdef WUKONG_FAULT_POINTS
void FaultPoint(const char* point);
bool FaultHappens(const char* fault);
#else
inline void FaultPoint(const char* /*point*/) {}
constexpr bool FaultHappens(const char* /*fault*/) { return false; }
#endif

}  // namespace wukong

#endif  // WUKONG_RUNTIME_BASE_FAULT_POINT_H_
