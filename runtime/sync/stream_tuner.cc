#include "runtime/sync/stream_tuner.h"

#include <algorithm>

namespace wukong {
namespace {

// At 0.1% of loss one connection carries 45 Mbit/s over 10 ms, and so do so many together over longer ways.
constexpr absl::Duration kRoundTripPerStream = absl::Milliseconds(10);
// Below it a transfer is all round trip.
constexpr int64_t kBytesMin = 16 << 10;
constexpr double kWorthMore = 1.2;  // Twice as many must be so many times as fast.
constexpr double kAsGood = 0.9;     // Half as many do when they are.
constexpr double kNewest = 0.5;     // Weight of the newest transfer in the average.
constexpr int kPatienceMax = 64;

int PowerOfTwoFrom(double value) {
  int result = 1;
  while (result < value && result < 1 << 10) result *= 2;
  return result;
}

}  // namespace

StreamTuner::StreamTuner(int max, absl::Duration round_trip)
    : max_(std::max(1, max)),
      streams_(std::min(max_, PowerOfTwoFrom(absl::FDivDuration(round_trip, kRoundTripPerStream)))) {}

int StreamTuner::More() const { return std::min(max_, PowerOfTwoFrom(streams_ + 1)); }

int StreamTuner::Fewer() const { return std::max(1, PowerOfTwoFrom(streams_) / 2); }

void StreamTuner::Broke(int streams) {
  if (streams <= 1) return;
  streams_ = std::min(streams_, std::max(1, PowerOfTwoFrom(streams) / 2));
  trial_ = 0;
  upwards_ = true;
  until_trial_ = patience_;
}

void StreamTuner::Observe(int streams, int64_t bytes, absl::Duration took) {
  if (streams < 1 || bytes < kBytesMin || took <= absl::ZeroDuration()) return;
  const double rate = static_cast<double>(bytes) / absl::ToDoubleSeconds(took);
  const auto [known, is_new] = rate_.try_emplace(streams, rate);
  // What was seen of a number long ago says little: a trial counts by itself.
  if (!is_new) known->second = streams == trial_ ? rate : known->second + kNewest * (rate - known->second);
  if (trial_ != 0) {
    if (streams != trial_) return;  // Not all of them are connected yet.
    const double now = rate_.count(streams_) != 0 ? rate_[streams_] : 0;
    const bool better = rate > (trial_ > streams_ ? kWorthMore : kAsGood) * now;
    if (better) streams_ = trial_;
    patience_ = better ? 1 : std::min(kPatienceMax, 2 * patience_);
    // On in the direction that helped, else the other one.
    if (!better) upwards_ = !upwards_;
    trial_ = 0;
    until_trial_ = patience_;
    return;
  }
  if (streams != streams_ || --until_trial_ > 0) return;
  if (upwards_ ? More() == streams_ : Fewer() == streams_) upwards_ = !upwards_;
  const int next = upwards_ ? More() : Fewer();
  if (next != streams_) trial_ = next;
  until_trial_ = patience_;
}

}  // namespace wukong
