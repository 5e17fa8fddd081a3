// Where the time of a leaf goes in which it makes no step: what it waits for. Pure.
#ifndef WUKONG_RUNTIME_SYNC_WAIT_ACCOUNT_H_
#define WUKONG_RUNTIME_SYNC_WAIT_ACCOUNT_H_

#include <array>
#include <cstddef>
#include <map>
#include <string>

#include "absl/time/time.h"

namespace wukong {

enum class WaitReason {
  kParameters,   // Of the parent, the first or another's.
  kData,         // Leases that are on their way.
  kAnswer,       // To what it contributed.
  kOthers,       // Leaves that are behind (lead_max).
  kNothingLeft,  // All data is leased: the end of the run, or somebody else's to give back.
};
inline constexpr std::array<const char*, 5> kWaitReasonNames = {"parameters", "data", "answer", "others",
                                                                "nothing_left"};

class WaitAccount {
 public:
  // From `now` on it waits, for `reason`.
  void Waits(WaitReason reason, absl::Time now) {
    Works(now);
    reason_ = reason;
    since_ = now;
  }
  // From `now` on it does not wait.
  void Works(absl::Time now) {
    if (since_ < now) sums_[static_cast<size_t>(reason_)] += now - since_;
    since_ = absl::InfiniteFuture();
  }
  // Seconds by name of the reason, those above zero; a wait that is not over counts up to `now`.
  std::map<std::string, double> Seconds(absl::Time now) const {
    WaitAccount account = *this;
    account.Works(now);
    std::map<std::string, double> seconds;
    for (size_t i = 0; i < sums_.size(); ++i) {
      const double sum = absl::ToDoubleSeconds(account.sums_[i]);
      if (sum > 0) seconds[kWaitReasonNames[i]] = sum;
    }
    return seconds;
  }

 private:
  std::array<absl::Duration, kWaitReasonNames.size()> sums_ = {};
  WaitReason reason_ = WaitReason::kParameters;
  absl::Time since_ = absl::InfiniteFuture();  // It does not wait.
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SYNC_WAIT_ACCOUNT_H_
