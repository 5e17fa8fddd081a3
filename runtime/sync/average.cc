#include "runtime/sync/average.h"

#include <algorithm>
#include <cmath>

#include "glog/logging.h"

namespace wukong {
namespace {

double Norm(absl::Span<const float> values) {
  double squares = 0;
  for (const float value : values) squares += static_cast<double>(value) * static_cast<double>(value);
  return std::sqrt(squares);
}

double Sum(const std::vector<double>& weights) {
  double sum = 0;
  for (const double weight : weights) sum += weight;
  return sum;
}

// The middle of `values`, or the mean of the two in the middle. Reorders them.
template <typename Number>
Number Median(std::vector<Number>* values) {
  const auto middle = values->begin() + static_cast<std::ptrdiff_t>(values->size() / 2);
  std::nth_element(values->begin(), middle, values->end());
  if (values->size() % 2 == 1) return *middle;
  return (*std::max_element(values->begin(), middle) + *middle) / 2;
}

void Mean(const std::vector<absl::Span<const float>>& contributions, const std::vector<double>& weights,
          absl::Span<float> out) {
  for (size_t p = 0; p < contributions.size(); ++p) {
    const float* c = contributions[p].data();
    const auto weight = static_cast<float>(weights[p]);
    for (size_t i = 0; i < out.size(); ++i) out[i] += weight * c[i];
  }
}

void DirectionNorm(const std::vector<absl::Span<const float>>& contributions, const std::vector<double>& weights,
                   absl::Span<float> out) {
  std::vector<double> by_norm(weights.size());
  double norm = 0;
  for (size_t p = 0; p < contributions.size(); ++p) {
    const double own = Norm(contributions[p]);
    // Below it there is no direction to speak of, and its inverse is no float.
    by_norm[p] = own > 1e-30 ? weights[p] / own : 0;
    norm += weights[p] * own;
  }
  Mean(contributions, by_norm, out);
  const double direction = Norm(out);
  // Directions that cancel each other leave none to go to.
  const auto factor = static_cast<float>(direction > 1e-6 * Sum(weights) ? norm / direction : 0);
  for (float& value : out) value *= factor;
}

// `trim` of each end are left out; all but the middle is the median.
void ByCoordinate(const std::vector<absl::Span<const float>>& contributions, double weight, bool median,
                  absl::Span<float> out) {
  const size_t trim = std::max<size_t>(1, contributions.size() / 5);
  std::vector<float> column(contributions.size());
  for (size_t i = 0; i < out.size(); ++i) {
    for (size_t p = 0; p < contributions.size(); ++p) column[p] = contributions[p][i];
    double middle = 0;
    if (median || column.size() <= 2 * trim) {
      middle = static_cast<double>(Median(&column));
    } else {
      std::sort(column.begin(), column.end());
      for (size_t p = trim; p < column.size() - trim; ++p) middle += static_cast<double>(column[p]);
      middle /= static_cast<double>(column.size() - 2 * trim);
    }
    out[i] = static_cast<float>(weight * middle);
  }
}

void CenteredClip(const std::vector<absl::Span<const float>>& contributions, double weight, absl::Span<float> out) {
  std::vector<float> center(out.size());
  ByCoordinate(contributions, 1.0, /*median=*/true, absl::MakeSpan(center));
  std::vector<double> distances;
  std::vector<float> difference(out.size());
  const auto from_center = [&](absl::Span<const float> contribution) {
    for (size_t i = 0; i < out.size(); ++i) difference[i] = contribution[i] - center[i];
  };
  for (const absl::Span<const float>& contribution : contributions) {
    from_center(contribution);
    distances.push_back(Norm(difference));
  }
  std::vector<double> sorted = distances;
  const double largest = Median(&sorted);
  for (size_t p = 0; p < contributions.size(); ++p) {
    from_center(contributions[p]);
    const auto factor = static_cast<float>((distances[p] > largest ? largest / distances[p] : 1.0) /
                                           static_cast<double>(contributions.size()));
    for (size_t i = 0; i < out.size(); ++i) out[i] += factor * difference[i];
  }
  const auto all = static_cast<float>(weight);
  for (size_t i = 0; i < out.size(); ++i) out[i] = all * (center[i] + out[i]);
}

}  // namespace

AverageRule AverageRuleOf(const Level& level) {
  switch (level.robust()) {
    case ROBUST_MEDIAN:
      return AverageRule::kMedian;
    case ROBUST_TRIMMED_MEAN:
      return AverageRule::kTrimmedMean;
    case ROBUST_CENTERED_CLIP:
      return AverageRule::kCenteredClip;
    default:
      return level.average() == AVERAGE_DIRECTION_NORM ? AverageRule::kDirectionNorm : AverageRule::kMean;
  }
}

void AverageContributions(AverageRule how, const std::vector<absl::Span<const float>>& contributions,
                          const std::vector<double>& weights, absl::Span<float> out) {
  CHECK_EQ(contributions.size(), weights.size());
  std::fill(out.begin(), out.end(), 0.0f);
  if (contributions.empty()) return;
  switch (how) {
    case AverageRule::kMean:
      return Mean(contributions, weights, out);
    case AverageRule::kDirectionNorm:
      return DirectionNorm(contributions, weights, out);
    case AverageRule::kMedian:
      return ByCoordinate(contributions, Sum(weights), /*median=*/true, out);
    case AverageRule::kTrimmedMean:
      return ByCoordinate(contributions, Sum(weights), /*median=*/false, out);
    case AverageRule::kCenteredClip:
      return CenteredClip(contributions, Sum(weights), out);
  }
}

}  // namespace wukong
