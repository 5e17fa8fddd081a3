#include "runtime/model/compute_process.h"

#include <sched.h>
#include <sys/resource.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "absl/base/config.h"
#include "gtest/gtest.h"

namespace wukong {
namespace {

#define REQUIRE(condition)                              \
  do {                                                  \
    if (!(condition)) {                                 \
      std::fprintf(stderr, "not so: " #condition "\n"); \
      std::_Exit(1);                                    \
    }                                                   \
  } while (false)

#if defined(ABSL_HAVE_ADDRESS_SANITIZER)
constexpr bool kGlibcAllocates = false;
#else
constexpr bool kGlibcAllocates = true;
#endif

int64_t MinorFaults() {
  struct rusage usage = {};
  ::getrusage(RUSAGE_SELF, &usage);
  return usage.ru_minflt;
}

// What a training step does with memory: takes some megabytes, writes all of them, and gives them back.
void UseSomeMegabytes() {
  for (const size_t megabytes : {1, 8, 2, 16}) {
    void* const memory = std::malloc(megabytes << 20);
    std::memset(memory, 1, megabytes << 20);
    // The compiler would leave out what nobody looks at.
    asm volatile("" : : "r"(memory) : "memory");
    std::free(memory);
  }
}

// In a process of its own, since it is tuned for good.
TEST(ComputeProcessTest, KeepsItsMemoryAndItsNiceness) {
  EXPECT_EXIT(
      {
        ::setpriority(PRIO_PROCESS, 0, 5);
        TuneForComputing();
        REQUIRE(::getpriority(PRIO_PROCESS, 0) == 5);
        REQUIRE(::sched_getscheduler(0) == (SCHED_OTHER | SCHED_RESET_ON_FORK));
        std::thread([] { REQUIRE(::sched_getscheduler(0) == SCHED_OTHER); }).join();
        UseSomeMegabytes();
        const int64_t before = MinorFaults();
        for (int step = 0; step < 100; ++step) UseSomeMegabytes();
        REQUIRE(!kGlibcAllocates || MinorFaults() - before < 100);
        std::_Exit(0);
      },
      ::testing::ExitedWithCode(0), "");
}

TEST(ComputeProcessTest, WhatWasSetFromOutsideWins) {
  EXPECT_EXIT(
      {
        ::setenv("ATEN_CPU_CAPABILITY", "default", 1);
        TuneForComputing();
        REQUIRE(std::strcmp(std::getenv("ATEN_CPU_CAPABILITY"), "default") == 0);
        std::_Exit(0);
      },
      ::testing::ExitedWithCode(0), "");
}

}  // namespace
}  // namespace wukong
