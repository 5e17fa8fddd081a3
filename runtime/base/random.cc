#include "runtime/base/random.h"

#include <cmath>

#include "glog/logging.h"
#include "runtime/base/digest.h"

namespace wukong {

uint64_t Mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

uint64_t DeriveSeed(uint64_t seed, absl::string_view name, uint64_t index) {
  return Mix64(Checksum(name.data(), name.size(), seed) + Mix64(index + 0x9e3779b97f4a7c15ULL));
}

uint64_t Random::operator()() {
  state_ += 0x9e3779b97f4a7c15ULL;
  return Mix64(state_);
}

double Random::Uniform() { return static_cast<double>((*this)() >> 11) * 0x1.0p-53; }

uint64_t Random::Below(uint64_t bound) {
  DCHECK_GT(bound, 0u);
  const uint64_t limit = max() - max() % bound;
  uint64_t draw = (*this)();
  while (draw >= limit) draw = (*this)();
  return draw % bound;
}

double Random::Normal() {
  // Box and Muller; one of the two values is enough here.
  const double radius = std::sqrt(-2.0 * std::log(1.0 - Uniform()));
  return radius * std::cos(2.0 * M_PI * Uniform());
}

double Random::Exponential(double mean) { return -mean * std::log(1.0 - Uniform()); }

Permutation::Permutation(uint64_t seed, uint64_t size) : seed_(seed), size_(size), half_bits_(1) {
  CHECK_GT(size, 0u);
  while ((uint64_t{1} << (2 * half_bits_)) < size && half_bits_ < 31) ++half_bits_;
}

uint64_t Permutation::operator()(uint64_t index) const {
  DCHECK_LT(index, size_);
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  do {  // The network permutes a power of four that is at most four times `size`: a few walks are enough.
    uint64_t left = index >> half_bits_;
    uint64_t right = index & mask;
    for (uint64_t round = 0; round < 4; ++round) {
      const uint64_t next = left ^ (Mix64(right + (seed_ ^ Mix64(round + 1))) & mask);
      left = right;
      right = next;
    }
    index = (left << half_bits_) | right;
  } while (index >= size_);
  return index;
}

}  // namespace wukong
