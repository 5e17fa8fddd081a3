// Random numbers that are the same on every machine: streams are keyed by (seed, what they are for).
#ifndef WUKONG_RUNTIME_BASE_RANDOM_H_
#define WUKONG_RUNTIME_BASE_RANDOM_H_

#include <cstdint>

#include "absl/strings/string_view.h"

namespace wukong {

// Mixes 64 bits into 64 bits; a bijection (SplitMix64's finalizer, Steele et al. 2014).
uint64_t Mix64(uint64_t x);

// A seed for the stream `name` of `seed`.
uint64_t DeriveSeed(uint64_t seed, absl::string_view name, uint64_t index = 0);

// SplitMix64. Not for cryptography. Satisfies UniformRandomBitGenerator, but the standard distributions differ
// between libraries: use the members here.
class Random {
 public:
  using result_type = uint64_t;
  explicit Random(uint64_t seed) : state_(seed) {}
  static constexpr uint64_t min() { return 0; }
  static constexpr uint64_t max() { return ~uint64_t{0}; }
  uint64_t operator()();
  double Uniform();                 // [0, 1)
  uint64_t Below(uint64_t bound);   // [0, bound), bound > 0
  double Normal();                  // mean 0, variance 1
  double Exponential(double mean);  // > 0

 private:
  uint64_t state_;
};

// A pseudo-random permutation of [0, size) that needs no table: a Feistel network with cycle walking.
class Permutation {
 public:
  Permutation(uint64_t seed, uint64_t size);
  uint64_t size() const { return size_; }
  uint64_t operator()(uint64_t index) const;  // index < size

 private:
  uint64_t seed_;
  uint64_t size_;
  int half_bits_;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_BASE_RANDOM_H_
