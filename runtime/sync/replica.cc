#include "runtime/sync/replica.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "absl/strings/str_format.h"
#include "glog/logging.h"
#include "runtime/base/digest.h"
#include "runtime/base/mutation.h"
#include "runtime/sync/outgoing_payload.h"

namespace wukong {

int64_t EncodedVector::bytes() const {
  int64_t sum = 0;
  for (const std::string& fragment : fragments) sum += static_cast<int64_t>(fragment.size());
  return sum;
}

uint64_t EncodedVector::checksum() const {
  uint64_t sum = 0;
  for (const std::string& fragment : fragments) sum = Checksum(fragment.data(), fragment.size(), sum);
  return sum;
}

absl::Status DecodeFragment(const EncodedVector& vector, size_t f, const FragmentSpan& span, absl::Span<float> values) {
  if (!vector.fragments[f].empty()) return MakeCodec(vector.codec, span)->Decode(vector.fragments[f], values);
  std::fill(values.begin(), values.end(), 0.0f);
  return absl::OkStatus();
}

Replica::Replica(absl::Span<float> theta, std::vector<FragmentSpan> fragments, const Options& options)
    : options_(options), fragments_(std::move(fragments)), theta_(theta), base_(theta.begin(), theta.end()) {
  CHECK(!fragments_.empty());
  CHECK_EQ(fragments_.back().end, static_cast<int64_t>(theta.size()));
  int64_t largest = 0;
  for (const FragmentSpan& fragment : fragments_) largest = std::max(largest, fragment.size());
  scratch_.resize(largest);
  pending_sum_.resize(largest);
  if (!moves_base()) feedback_ = std::make_unique<ErrorFeedback>(theta.size());
}

void Replica::Reset(absl::Span<const float> public_parameters) {
  CHECK_EQ(public_parameters.size(), theta_.size());
  std::copy(public_parameters.begin(), public_parameters.end(), theta_.begin());
  std::copy(public_parameters.begin(), public_parameters.end(), base_.begin());
  pending_.clear();
  take_whole_ = false;
  if (feedback_ != nullptr) feedback_->Clear();
}

void Replica::Revert() { std::copy(base_.begin(), base_.end(), theta_.begin()); }

void Replica::ParentReplaced(const std::vector<Sequence>& undecided) {
  const auto known = [&](const Pending& pending) {
    return std::find(undecided.begin(), undecided.end(), pending.sequence) != undecided.end();
  };
  pending_.erase(std::remove_if(pending_.begin(), pending_.end(), std::not_fn(known)), pending_.end());
  take_whole_ = true;
}

void Replica::Included(Sequence sequence) {
  RemovePending(sequence);
  take_whole_ = true;
}

absl::StatusOr<std::shared_ptr<const EncodedVector>> Replica::Send(Sequence sequence, absl::Span<const float> gradient,
                                                                   bool whole, const Begun& begun) {
  CHECK(pending_.empty() || pending_.back().sequence < sequence);
  if (!moves_base()) {
    CHECK_EQ(gradient.size(), theta_.size());
    // Before the error feedback takes any fragment, which it would keep the remainder of.
    const auto bad = std::find_if(gradient.begin(), gradient.end(), [](float value) { return !std::isfinite(value); });
    if (bad != gradient.end()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("value %d of %d of the gradient is %g", bad - gradient.begin(), gradient.size(), *bad));
    }
  }
  const auto is_sent = [&](size_t f) { return !moves_base() || whole || HasItsTurn(sequence, f); };
  auto payload = std::make_shared<EncodedVector>();
  payload->codec = options_.codec;
  payload->fragments.resize(fragments_.size());
  std::shared_ptr<OutgoingPayload> outgoing;
  if (begun != nullptr) {
    std::vector<int64_t> sizes(fragments_.size());
    for (size_t f = 0; f < fragments_.size(); ++f) {
      if (!is_sent(f)) continue;
      sizes[f] = static_cast<int64_t>(EncodedBytes(options_.codec, absl::MakeConstSpan(fragments_).subspan(f, 1)));
    }
    outgoing = std::make_shared<OutgoingPayload>(payload, std::move(sizes));
    begun(outgoing);
  }
  for (size_t f = 0; f < fragments_.size(); ++f) {
    const absl::Status status = is_sent(f) ? Encode(f, gradient, &payload->fragments[f]) : absl::OkStatus();
    if (!status.ok()) {  // The base has not moved yet.
      if (feedback_ != nullptr) feedback_->Clear();
      if (outgoing != nullptr) outgoing->Abandon();
      return status;
    }
    if (outgoing != nullptr) outgoing->Encoded();
  }
  if (moves_base()) {
    const absl::Status status =
        Mutated("replica.base_stays") ? absl::OkStatus() : AddToBase(*payload, 1.0f, /*theta_too=*/false);
    CHECK(status.ok()) << "a codec cannot read what it wrote: " << status;
    pending_.push_back({sequence, payload});
  } else {
    pending_.push_back({sequence, nullptr});  // Nothing to take back: parameters do not hold it.
  }
  return payload;
}

absl::Status Replica::Encode(size_t f, absl::Span<const float> gradient, std::string* payload) {
  const FragmentSpan& span = fragments_[f];
  const std::unique_ptr<Codec> codec = MakeCodec(options_.codec, span);
  if (!moves_base()) {
    return feedback_->Encode(*codec, span.begin, gradient.subspan(span.begin, span.size()), payload);
  }
  const float* theta = theta_.data() + span.begin;
  const float* base = base_.data() + span.begin;
  float* difference = scratch_.data();
  for (int64_t i = 0; i < span.size(); ++i) difference[i] = theta[i] - base[i];
  return codec->Encode(absl::MakeConstSpan(scratch_).subspan(0, span.size()), payload);
}

absl::Status Replica::AddToBase(const EncodedVector& payload, float sign, bool theta_too) {
  for (size_t f = 0; f < fragments_.size(); ++f) {
    const FragmentSpan& span = fragments_[f];
    if (payload.fragments[f].empty()) continue;
    const absl::Status status =
        MakeCodec(options_.codec, span)->Decode(payload.fragments[f], absl::MakeSpan(scratch_).subspan(0, span.size()));
    if (!status.ok()) return status;
    const float* c = scratch_.data();
    float* base = base_.data() + span.begin;
    float* theta = theta_.data() + span.begin;
    for (int64_t i = 0; i < span.size(); ++i) base[i] += sign * c[i];
    if (theta_too) {
      for (int64_t i = 0; i < span.size(); ++i) theta[i] += sign * c[i];
    }
  }
  return absl::OkStatus();
}

std::shared_ptr<const EncodedVector> Replica::RemovePending(Sequence sequence) {
  const auto found = std::find_if(pending_.begin(), pending_.end(),
                                  [&](const Pending& pending) { return pending.sequence == sequence; });
  if (found == pending_.end()) return nullptr;
  std::shared_ptr<const EncodedVector> payload = std::move(found->payload);
  pending_.erase(found);
  return payload;
}

void Replica::ForgetRemainder(Sequence sequence) {
  const bool sent = std::any_of(pending_.begin(), pending_.end(),
                                [&](const Pending& pending) { return pending.sequence == sequence; });
  if (sent && feedback_ != nullptr) feedback_->Clear();
}

absl::Status Replica::Drop(Sequence sequence) {
  ForgetRemainder(sequence);
  const auto payload = RemovePending(sequence);
  // Who replaces does not know how much of it is left in theta; the parent's parameters take its place in time.
  return payload == nullptr || options_.replaces
             ? absl::OkStatus()
             : AddToBase(*payload, -1.0f, /*theta_too=*/!Mutated("replica.sends_refused_work_again"));
}

absl::Status Replica::TakeBack(Sequence sequence) {
  ForgetRemainder(sequence);
  const auto payload = RemovePending(sequence);
  return payload == nullptr ? absl::OkStatus() : AddToBase(*payload, -1.0f, /*theta_too=*/false);
}

absl::StatusOr<bool> Replica::Rebase(absl::Span<const float> public_parameters, Sequence included) {
  CHECK_EQ(public_parameters.size(), theta_.size());
  // Of each fragment, contributions that carried it and that this version is the first to include; where they are no
  // longer known (Reset), one stands for them.
  std::vector<int> newly_included(fragments_.size());
  bool any_included = included > included_;
  bool known = false;
  included_ = std::max(included_, included);
  while (!pending_.empty() && pending_.front().sequence <= included_ &&
         !Mutated("replica.counts_included_work_twice")) {
    const auto& payload = pending_.front().payload;
    for (size_t f = 0; f < fragments_.size(); ++f) {
      if (payload == nullptr || !payload->fragments[f].empty()) ++newly_included[f];
    }
    pending_.pop_front();
    any_included = known = true;
  }
  if (any_included && !known) std::fill(newly_included.begin(), newly_included.end(), 1);
  if (options_.mix < 1.0 && !any_included && !take_whole_) return false;

  for (const FragmentSpan& span : fragments_) {
    const size_t f = &span - fragments_.data();
    // Versions may be coalesced: n contributions in one of them weigh as in n versions, 1 - (1 - alpha)^n.
    double kept = 1.0;
    for (int i = 0; i < newly_included[f]; ++i) kept *= 1.0 - options_.mix;
    const auto mix = options_.mix < 1.0 && !take_whole_ ? static_cast<float>(1.0 - kept) : 1.0f;
    if (mix == 0.0f) continue;
    bool any_pending = false;
    const std::unique_ptr<Codec> codec = MakeCodec(options_.codec, span);
    for (const Pending& pending : pending_) {
      if (pending.payload == nullptr || pending.payload->fragments[f].empty() || options_.replaces) continue;
      const absl::Status status =
          codec->Decode(pending.payload->fragments[f], absl::MakeSpan(scratch_).subspan(0, span.size()));
      if (!status.ok()) return status;
      const auto weight = static_cast<float>(options_.pending_weight);
      if (any_pending) {
        for (int64_t i = 0; i < span.size(); ++i) pending_sum_[i] += weight * scratch_[i];
      } else {
        for (int64_t i = 0; i < span.size(); ++i) pending_sum_[i] = weight * scratch_[i];
      }
      any_pending = true;
    }
    MoveTo(public_parameters.subspan(span.begin, span.size()), any_pending ? pending_sum_.data() : nullptr, mix, span);
  }
  take_whole_ = false;
  return true;
}

void Replica::MoveTo(absl::Span<const float> target, const float* pending_sum, float mix, const FragmentSpan& span) {
  float* theta = theta_.data() + span.begin;
  float* base = base_.data() + span.begin;
  const int64_t n = span.size();
  if (options_.replaces) {
    for (int64_t i = 0; i < n; ++i) {
      theta[i] = mix == 1.0f ? target[i] : theta[i] + mix * (target[i] - theta[i]);
      base[i] = theta[i];
    }
  } else if (pending_sum != nullptr) {
    for (int64_t i = 0; i < n; ++i) {
      const float v = mix * (target[i] + pending_sum[i] - base[i]);
      theta[i] += v;
      base[i] += v;
    }
  } else if (mix == 1.0f) {
    // base + (target - base) is the target; saying so keeps nodes that agree bit-identical.
    for (int64_t i = 0; i < n; ++i) {
      const float progress = theta[i] - base[i];
      theta[i] = target[i] + (Mutated("replica.rebase_drops_progress") ? 0.0f : progress);
      base[i] = target[i];
    }
  } else {
    for (int64_t i = 0; i < n; ++i) {
      const float v = mix * (target[i] - base[i]);
      theta[i] += v;
      base[i] += v;
    }
  }
}

}  // namespace wukong
