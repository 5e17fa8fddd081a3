#include "runtime/model/compute_process.h"

#include <sched.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>

#if __has_include(<malloc.h>)
#include <malloc.h>
#endif

namespace wukong {
namespace {

constexpr uint64_t kSliceNs = 100'000'000;  // The longest that the kernel grants.
constexpr uintptr_t kHugePage = uintptr_t{2} << 20;

void UseWideVectors() {
#if defined(__x86_64__)
  // Processors that came with these instructions (Ice Lake, Zen 4) run 512 bits at their usual clock.
  if (__builtin_cpu_supports("avx512vbmi2") != 0) ::setenv("ATEN_CPU_CAPABILITY", "avx512", /*replace=*/0);
#endif
}

// The kernel's struct sched_attr (sched_setattr(2)), which glibc 2.36 does not declare.
struct SchedulingAttributes {
  uint32_t size = sizeof(SchedulingAttributes);
  uint32_t policy = SCHED_OTHER;
  uint64_t flags = 1;  // SCHED_FLAG_RESET_ON_FORK: threads that this one makes are as others are.
  int32_t nice = 0;
  uint32_t priority = 0;
  uint64_t runtime_ns = kSliceNs;
  uint64_t deadline_ns = 0;
  uint64_t period_ns = 0;
};

void TakeLongTimeSlices() {
#if defined(SYS_sched_setattr)
  SchedulingAttributes attributes;
  attributes.nice = ::getpriority(PRIO_PROCESS, 0);
  // Kernels before 6.12 ignore the runtime of this policy.
  ::syscall(SYS_sched_setattr, 0, &attributes, 0);
#endif
}

}  // namespace

void KeepMemoryInHugePages() {
#if defined(__GLIBC__)
  // glibc would map and unmap what libtorch uses, and the kernel clear it anew.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  // Address space only, until it is written to. The heap grows by this much at once, so that it can be advised at once.
  mallopt(M_TOP_PAD, 512 << 20);
  void* const first = std::malloc(1 << 20);
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(first) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = reinterpret_cast<uintptr_t>(::sbrk(0)) / kHugePage * kHugePage;
  std::free(first);
  mallopt(M_TOP_PAD, 64 << 20);  // Beyond that it grows in fewer, larger steps than the 128 KiB of the default.
  // Without huge pages it is only slower.
  if (first != nullptr && begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

void TuneForComputing() {
  UseWideVectors();
  KeepMemoryInHugePages();
  TakeLongTimeSlices();
}

}  // namespace wukong
