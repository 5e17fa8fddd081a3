#include "runtime/sync/outer_optimizer.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "glog/logging.h"
#include "runtime/base/mutation.h"

namespace wukong {
OuterOptimizer::OuterOptimizer(absl::Span<float> theta, std::vector<FragmentSpan> fragments, Progress progress,
                               bool with_momentum, AverageRule average)
    : fragments_(std::move(fragments)),
      progress_(progress),
      rule_(average),
      theta_(theta),
      merged_(LargestFragment(fragments_)),
      scratch_(LargestFragment(fragments_)) {
  if (progress_ == PROGRESS_GRADIENT) {
    CHECK(!with_momentum) << "momentum belongs to the optimizer that takes the gradient";
    gradient_.assign(theta.size(), 0.0f);
  } else if (with_momentum) {
    momentum_.assign(theta.size(), 0.0f);
    buffer_.assign(theta.size(), 0.0f);
  }
}

namespace {

// A sender that is in a merge more than once has one voice: the mean of its contributions, with all their weight. In
// place, in `contributions`, which lie in memory that may be written.
void JoinSenders(const Merge& merge, const std::vector<size_t>& carriers, std::vector<absl::Span<float>>* contributions,
                 std::vector<double>* weights) {
  std::map<MemberId, size_t> first;
  size_t kept = 0;
  std::vector<double> own = *weights;
  for (size_t c = 0; c < carriers.size(); ++c) {
    const auto [found, is_new] = first.emplace(merge.parts[carriers[c]].sender, kept);
    if (is_new) {
      (*contributions)[kept] = (*contributions)[c];
      (*weights)[kept++] = own[c];
      continue;
    }
    const size_t into = found->second;
    const double sum = (*weights)[into] + own[c];
    const auto share = static_cast<float>(sum > 0 ? own[c] / sum : 0.5);
    const absl::Span<float> all = (*contributions)[into], more = (*contributions)[c];
    for (size_t i = 0; i < all.size(); ++i) all[i] += share * (more[i] - all[i]);
    (*weights)[into] = sum;
  }
  contributions->resize(kept);
  weights->resize(kept);
}

}  // namespace

absl::StatusOr<bool> OuterOptimizer::Average(const Merge& merge,
                                             const std::vector<std::shared_ptr<const EncodedVector>>& payloads,
                                             size_t f) {
  const int64_t n = fragments_[f].size();
  std::fill_n(merged_.begin(), n, 0.0f);
  std::vector<double> weights;
  std::vector<size_t> carriers;
  for (size_t p = 0; p < payloads.size(); ++p) {
    if (payloads[p]->fragments[f].empty()) continue;
    carriers.push_back(p);
    weights.push_back(merge.parts[p].weight);
  }
  if (rule_ == AverageRule::kMean) {
    for (size_t c = 0; c < carriers.size(); ++c) {
      const absl::Status status =
          DecodeFragment(*payloads[carriers[c]], f, fragments_[f], absl::MakeSpan(scratch_).subspan(0, n));
      if (!status.ok()) return status;
      const auto weight = static_cast<float>(weights[c]);
      for (int64_t i = 0; i < n; ++i) merged_[i] += weight * scratch_[i];
    }
    return !carriers.empty();
  }
  scratch_.resize(std::max<size_t>(scratch_.size(), carriers.size() * n));
  std::vector<absl::Span<float>> contributions;
  for (size_t c = 0; c < carriers.size(); ++c) {
    const auto values = absl::MakeSpan(scratch_).subspan(c * n, n);
    const absl::Status status = DecodeFragment(*payloads[carriers[c]], f, fragments_[f], values);
    if (!status.ok()) return status;
    contributions.push_back(values);
  }
  if (rule_ != AverageRule::kDirectionNorm) JoinSenders(merge, carriers, &contributions, &weights);
  AverageContributions(rule_, {contributions.begin(), contributions.end()}, weights,
                       absl::MakeSpan(merged_).subspan(0, n));
  return !carriers.empty();
}

absl::Status OuterOptimizer::Apply(const Merge& merge,
                                   const std::vector<std::shared_ptr<const EncodedVector>>& payloads) {
  CHECK_EQ(merge.parts.size(), payloads.size());
  const auto rate = static_cast<float>(merge.learning_rate);
  const auto momentum = static_cast<float>(merge.momentum);
  for (size_t f = 0; f < fragments_.size(); ++f) {
    const FragmentSpan& span = fragments_[f];
    const int64_t n = span.size();
    const absl::StatusOr<bool> carried = Average(merge, payloads, f);
    if (!carried.ok()) return carried.status();
    const float* c = merged_.data();
    if (progress_ == PROGRESS_GRADIENT) {
      float* gradient = gradient_.data() + span.begin;
      for (int64_t i = 0; i < n; ++i) gradient[i] += c[i];
      continue;
    }
    float* theta = theta_.data() + span.begin;
    if (momentum_.empty()) {
      for (int64_t i = 0; i < n; ++i) theta[i] += rate * c[i];
      continue;
    }
    float* m = momentum_.data() + span.begin;
    float* buffer = buffer_.data() + span.begin;
    if (!*carried && std::all_of(buffer, buffer + n, [](float value) { return value == 0; })) continue;
    if (merge.momentum_step) {
      for (int64_t i = 0; i < n; ++i) {
        m[i] = momentum * m[i] + (buffer[i] + c[i]);
        buffer[i] = 0;
        theta[i] += rate * (c[i] + momentum * m[i]);
      }
    } else {
      for (int64_t i = 0; i < n; ++i) {
        buffer[i] += c[i];
        theta[i] += rate * c[i];
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<double> CheckFragment(const EncodedVector& payload, size_t f, const FragmentSpan& span) {
  // Made here and not by the caller, who may be one of many threads.
  std::vector<float> values(span.size());
  const absl::Status status = DecodeFragment(payload, f, span, absl::MakeSpan(values));
  if (!status.ok() && !Mutated("engine.skips_the_finite_check")) {
    return absl::InvalidArgumentError(absl::StrFormat("fragment %d: %s", f, status.message()));
  }
  // Four sums, since one would wait for each of its additions.
  std::array<double, 4> sums = {};
  for (size_t i = 0; i < values.size(); ++i) {
    sums[i % sums.size()] += static_cast<double>(values[i]) * static_cast<double>(values[i]);
  }
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

absl::StatusOr<double> NormOfChecked(absl::Span<const double> squares) {
  double sum = 0;
  for (const double of_fragment : squares) sum += of_fragment;
  if (!std::isfinite(sum) && !Mutated("engine.skips_the_finite_check")) {
    return absl::InvalidArgumentError("the norm is not finite");
  }
  return std::sqrt(sum);
}

absl::StatusOr<double> CheckContribution(const EncodedVector& payload, const std::vector<FragmentSpan>& fragments) {
  if (payload.fragments.size() != fragments.size()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d fragments, expected %d", payload.fragments.size(), fragments.size()));
  }
  std::vector<double> squares;
  squares.reserve(fragments.size());
  for (size_t f = 0; f < fragments.size(); ++f) {
    const absl::StatusOr<double> of_fragment = CheckFragment(payload, f, fragments[f]);
    if (!of_fragment.ok()) return of_fragment.status();
    squares.push_back(*of_fragment);
  }
  return NormOfChecked(squares);
}

}  // namespace wukong
