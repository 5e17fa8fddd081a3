// What a process says of itself: CPU time, memory, host.
#ifndef WUKONG_RUNTIME_BASE_PROCESS_INFO_H_
#define WUKONG_RUNTIME_BASE_PROCESS_INFO_H_

#include <cstdint>
#include <string>

namespace wukong {

// Of all threads, in user and kernel mode.
double ProcessCpuSeconds();
// The largest resident set so far.
int64_t PeakMemoryBytes();
std::string HostName();

}  // namespace wukong

#endif  // WUKONG_RUNTIME_BASE_PROCESS_INFO_H_
