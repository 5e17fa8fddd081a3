// Who of several processes is frozen by which faults, when faults overlap and processes die meanwhile. Pure.
#ifndef WUKONG_RUNTIME_FAULT_FREEZES_H_
#define WUKONG_RUNTIME_FAULT_FREEZES_H_

#include <sys/types.h>

#include <algorithm>
#include <cstddef>
#include <deque>
#include <map>
#include <string>
#include <utility>

namespace wukong {

class Freezes {
 public:
  // Fault `number` begins on process `name`, whose life has this pid; 0: it is not there now, and what does not begin
  // has an end all the same.
  void Begin(const std::string& name, size_t number, pid_t pid) { of_[name].emplace_back(number, pid); }

  struct Ended {
    bool began = false;    // It was a freeze.
    bool goes_on = false;  // The process of `pid` is to go on: this was the last freeze of that life.
  };
  // The first freeze of that number of that process ends (all of one number last equally long). `pid` is the process'
  // life now, or 0.
  Ended End(const std::string& name, size_t number, pid_t pid) {
    std::deque<Freeze>& freezes = of_[name];
    const auto first =
        std::find_if(freezes.begin(), freezes.end(), [&](const Freeze& one) { return one.first == number; });
    if (first == freezes.end()) return Ended();
    const pid_t frozen = first->second;
    freezes.erase(first);
    const bool others =
        std::any_of(freezes.begin(), freezes.end(), [&](const Freeze& one) { return one.second == frozen; });
    return {frozen != 0, frozen != 0 && frozen == pid && !others};
  }

  // This life of it stands still.
  bool IsFrozen(const std::string& name, pid_t pid) const {
    const auto found = of_.find(name);
    return pid != 0 && found != of_.end() &&
           std::any_of(found->second.begin(), found->second.end(),
                       [&](const Freeze& one) { return one.second == pid; });
  }

 private:
  using Freeze = std::pair<size_t, pid_t>;
  std::map<std::string, std::deque<Freeze>> of_;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_FAULT_FREEZES_H_
