// The invariants of docs/architecture.md, each checked on its own over the tape of a run.
#ifndef WUKONG_RUNTIME_SIM_CHECKERS_H_
#define WUKONG_RUNTIME_SIM_CHECKERS_H_

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runtime/sim/tape.h"

namespace wukong {

class Checker {
 public:
  virtual ~Checker() = default;
  // "I1"
  virtual const char* name() const = 0;
  virtual void See(const TapeEvent& event) = 0;
  // What is wrong, in words; empty while nothing is.
  const std::string& violation() const { return violation_; }

 protected:
  void Violated(const TapeEvent& event, const std::string& what);

 private:
  std::string violation_;  // The first.
};

// Those that need nothing but the tape: I1, I2, I4, I5, I6, I7, I12, and I10 where the model counts.
// `staleness_max` is the bound at the root.
std::vector<std::unique_ptr<Checker>> MakeCheckers(int64_t staleness_max);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_CHECKERS_H_
