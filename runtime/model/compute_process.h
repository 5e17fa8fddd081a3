// What a process that trains on a CPU asks of libtorch, the C library and the kernel.
#ifndef WUKONG_RUNTIME_MODEL_COMPUTE_PROCESS_H_
#define WUKONG_RUNTIME_MODEL_COMPUTE_PROCESS_H_

namespace wukong {

// Tunes this process for training on the calling thread; every part is skipped where the machine does not have it, and
// docs/results.md says what each is worth:
// - libtorch's AVX-512 kernels, which 1.13 leaves to the user (ATEN_CPU_CAPABILITY), where they do not lower the
//   processor's clock; a value from outside wins.
// - Memory as KeepMemoryInHugePages has it: libtorch takes and returns the same megabytes at every step.
// - Time slices of 100 ms in place of some 3 ms (Linux 6.12), so that workers on one core do not share its caches
//   hundreds of times per second. Other threads keep theirs, and still come first when they wake.
// Call it from main, before the process's first tensor and its first thread.
void TuneForComputing();

// Freed memory stays in the process, and the first 512 MB of it are in huge pages. Call it from main, likewise.
void KeepMemoryInHugePages();

}  // namespace wukong

#endif  // WUKONG_RUNTIME_MODEL_COMPUTE_PROCESS_H_
