// How several contributions become one: the mean, and averages that a damaged or hostile contribution cannot pull far.
#ifndef WUKONG_RUNTIME_SYNC_AVERAGE_H_
#define WUKONG_RUNTIME_SYNC_AVERAGE_H_

#include <vector>

#include "absl/types/span.h"
#include "proto/job.pb.h"

namespace wukong {

// What a level's knobs `average` and `robust` mean for the numbers. (norm_clip is in the weights: parent_node.h.)
enum class AverageRule {
  kMean,           // sum of w_i c_i
  kDirectionNorm,  // n d / |d|,  d = sum of w_i c_i / |c_i|,  n = sum of w_i |c_i|: contributions that differ in
                   // direction do not shrink each other (Decoupled DiLoCo, Douillard et al. 2026, arXiv 2604.21428)
  kMedian,         // W median(c_i), each coordinate on its own (Yin et al. 2018, arXiv 1803.01498); W = sum of w_i
  kTrimmedMean,    // W times the mean of what is left without the largest and the smallest fifth, at least one of each,
                   // of each coordinate (ibid.)
  kCenteredClip,   // W (v + mean of (c_i - v) min(1, t / |c_i - v|)),  v the median and t the median of |c_i - v|: one
                   // iteration of Karimireddy et al. 2021 (arXiv 2012.10333) from a center that needs no memory
};
AverageRule AverageRuleOf(const Level& level);

// `contributions[i]`, with `weights[i]`, are `out.size()` finite values each; |.| is the Euclidean norm over these
// values. The order of contributions fixes the rounding. Without contributions `out` becomes zero.
void AverageContributions(AverageRule how, const std::vector<absl::Span<const float>>& contributions,
                          const std::vector<double>& weights, absl::Span<float> out);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SYNC_AVERAGE_H_
