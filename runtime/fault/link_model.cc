#include "runtime/fault/link_model.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace wukong {
namespace {

constexpr double kUnlimitedBitsPerSecond = 10e9;
constexpr int64_t kInFlightBytesMin = 256 << 10;
constexpr int64_t kInFlightBytesMax = 64 << 20;
// Jitter comes from queues elsewhere on the path, which fill and drain over about this time. Independent draws for
// bytes that leave together would mostly be undone by keeping them in order, and would lengthen the delay instead.
constexpr absl::Duration kJitterCorrelation = absl::Milliseconds(100);
constexpr double kJitterDeviationsMax = 4;

absl::Duration Clamp(absl::Duration value) { return std::clamp(value, absl::ZeroDuration(), absl::Hours(1)); }

}  // namespace

LinkShape Sanitized(const LinkShape& shape) {
  LinkShape result;
  result.delay = Clamp(shape.delay);
  result.jitter = Clamp(shape.jitter);
  // Written so that a NaN becomes 0.
  result.bandwidth_bits_per_s = shape.bandwidth_bits_per_s > 0 ? shape.bandwidth_bits_per_s : 0;
  if (std::isinf(result.bandwidth_bits_per_s)) result.bandwidth_bits_per_s = 0;
  result.loss = shape.loss > 0 ? std::min(shape.loss, 0.9) : 0;
  return result;
}

int64_t InFlightLimit(const LinkShape& shape, absl::Duration rtt) {
  const double bits_per_s = shape.bandwidth_bits_per_s > 0 ? shape.bandwidth_bits_per_s : kUnlimitedBitsPerSecond;
  const double bytes = 2 * bits_per_s / 8 * absl::ToDoubleSeconds(rtt);
  if (bytes >= static_cast<double>(kInFlightBytesMax)) return kInFlightBytesMax;
  return std::max(kInFlightBytesMin, static_cast<int64_t>(bytes));
}

double MathisBytesPerSecond(double loss, absl::Duration rtt) {
  if (loss <= 0 || rtt <= absl::ZeroDuration()) return 0;
  return static_cast<double>(kSegmentBytes) / absl::ToDoubleSeconds(rtt) * 1.22 / std::sqrt(loss);
}

void LinkModel::HoldUntil(absl::Time time) { free_at_ = std::max(free_at_, time); }

void LinkModel::SetShape(const LinkShape& shape, absl::Time now) {
  shape_ = Sanitized(shape);
  free_at_ = std::min(free_at_, now);
}

absl::Time LinkModel::Transmit(absl::Time earliest, int64_t bytes) {
  free_at_ = std::max(free_at_, earliest);
  if (shape_.bandwidth_bits_per_s > 0) {
    free_at_ += absl::Seconds(static_cast<double>(bytes) * 8 / shape_.bandwidth_bits_per_s);
  }
  return free_at_;
}

int64_t LinkModel::QuantumBytes() const {
  constexpr double kTurnSeconds = 0.004;
  constexpr double kMin = 3 * kSegmentBytes;
  constexpr double kMax = 45 * kSegmentBytes;
  if (shape_.bandwidth_bits_per_s <= 0) return static_cast<int64_t>(kMax);
  return static_cast<int64_t>(std::clamp(shape_.bandwidth_bits_per_s / 8 * kTurnSeconds, kMin, kMax));
}

StreamModel::StreamModel(uint64_t seed, absl::string_view name, uint64_t index)
    : jitter_random_(DeriveSeed(seed, absl::StrCat("wan.jitter.", name), index)),
      loss_random_(DeriveSeed(seed, absl::StrCat("wan.loss.", name), index)) {}

int64_t StreamModel::NextBytes(const LinkShape& shape, int64_t bytes_wanted) {
  if (shape.loss != loss_) {
    loss_ = shape.loss;
    segments_until_loss_ = -1;
  }
  if (loss_ <= 0) return bytes_wanted;
  if (segments_until_loss_ < 0) {
    // Geometric: the number of segments that pass before one is lost.
    const double draw = std::log1p(-loss_random_.Uniform()) / std::log1p(-loss_);
    segments_until_loss_ = static_cast<int64_t>(std::min(draw, 1e15));
  }
  const auto half_window = static_cast<int64_t>(0.61 / std::sqrt(loss_));
  const int64_t segments = std::max<int64_t>(std::min(segments_until_loss_, half_window), 1);
  return std::min(bytes_wanted, segments * kSegmentBytes);
}

StreamModel::Sent StreamModel::Send(LinkModel& link, absl::Duration rtt, absl::Time earliest, int64_t bytes) {
  const LinkShape& shape = link.shape();
  Sent sent;
  absl::Time start = earliest;
  if (bytes > 0) {
    start = std::max(earliest, eligible_at_);
    const double rate = MathisBytesPerSecond(shape.loss, rtt);
    if (rate > 0) {
      // After a pause a whole congestion window (the rate times one round trip) may leave at once.
      eligible_at_ = std::max(eligible_at_, start - rtt) + absl::Seconds(static_cast<double>(bytes) / rate);
    } else {
      eligible_at_ = absl::InfinitePast();
    }
    sent.departure = link.Transmit(start, bytes);
    if (loss_ > 0) {
      sent.lost = segments_until_loss_ == 0;
      segments_until_loss_ -= sent.lost ? 1 : (bytes + kSegmentBytes - 1) / kSegmentBytes;
      // A segment cut short by the end of what was there may have counted as a whole one.
      if (!sent.lost && segments_until_loss_ < 0) segments_until_loss_ = 0;
    }
  } else {
    sent.departure = start;
  }
  absl::Time arrival = sent.departure + std::max(absl::ZeroDuration(), shape.delay + Jitter(shape, sent.departure));
  // The receiver's duplicate acknowledgements bring the segment again after one round trip; what was sent behind it
  // waits for it in the receiver's kernel.
  if (sent.lost) arrival += rtt;
  blocked_until_ = std::max(blocked_until_, arrival);
  sent.arrival = blocked_until_;
  return sent;
}

void StreamModel::HoldUntil(absl::Time time) { blocked_until_ = std::max(blocked_until_, time); }

void StreamModel::Restart(absl::Time now) { eligible_at_ = std::min(eligible_at_, now); }

absl::Duration StreamModel::Jitter(const LinkShape& shape, absl::Time time) {
  if (shape.jitter <= absl::ZeroDuration()) return absl::ZeroDuration();
  // An Ornstein-Uhlenbeck process, sampled exactly: normal with the given deviation at any one time.
  const double keep = jitter_time_ == absl::InfinitePast()
                          ? 0
                          : std::exp(-std::max(0.0, absl::FDivDuration(time - jitter_time_, kJitterCorrelation)));
  jitter_state_ = keep * jitter_state_ + std::sqrt(1 - keep * keep) * jitter_random_.Normal();
  jitter_time_ = std::max(jitter_time_, time);
  return shape.jitter * std::clamp(jitter_state_, -kJitterDeviationsMax, kJitterDeviationsMax);
}

}  // namespace wukong
