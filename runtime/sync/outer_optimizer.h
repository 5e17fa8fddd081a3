// How a parent's parameters move by its children's contributions: the numeric half of being a parent.
#ifndef WUKONG_RUNTIME_SYNC_OUTER_OPTIMIZER_H_
#define WUKONG_RUNTIME_SYNC_OUTER_OPTIMIZER_H_

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "runtime/base/ids.h"
#include "runtime/model/parameter_layout.h"
#include "runtime/sync/average.h"
#include "runtime/sync/replica.h"

namespace wukong {

// One decision to apply contributions, in numbers.
struct Merge {
  struct Part {
    Handle handle;
    double weight = 0;
    MemberId sender;
  };
  std::vector<Part> parts;  // Applied in this order, which fixes the rounding.
  double learning_rate = 1;
  double momentum = 0;
  bool momentum_step = false;
};

// With c = sum of weight * contribution:
//   parameters:  buffer += c;  at a momentum step  m <- momentum * m + buffer, buffer <- 0  and
//                theta += learning_rate * (c + momentum * m),  otherwise  theta += learning_rate * c
//                (delayed Nesterov: Liu et al. 2024, "Asynchronous Local-SGD Training for Language Modeling", algorithm
//                3; with a momentum step at every merge it is DiLoCo's Nesterov, Douillard et al. 2023)
//   gradient:    gradient += c; whoever owns the optimizer takes it from there.
// c is the mean unless `average` says otherwise, each fragment on its own. A fragment that is in no contribution of a
// merge (it was not its turn) stays where it is, but for what its buffer gives to a momentum step. Thread-compatible.
class OuterOptimizer {
 public:
  OuterOptimizer(absl::Span<float> theta, std::vector<FragmentSpan> fragments, Progress progress, bool with_momentum,
                 AverageRule average = AverageRule::kMean);

  // `payloads` are the contributions of merge.parts in order. INVALID_ARGUMENT for a payload that cannot be decoded:
  // check contributions first, for some fragments have then been applied.
  absl::Status Apply(const Merge& merge, const std::vector<std::shared_ptr<const EncodedVector>>& payloads);

  // Gradient progress only.
  absl::Span<float> gradient() { return absl::MakeSpan(gradient_); }
  // The state beside theta, to be saved and restored; empty without momentum.
  absl::Span<float> momentum() { return absl::MakeSpan(momentum_); }
  absl::Span<float> buffer() { return absl::MakeSpan(buffer_); }

 private:
  const std::vector<FragmentSpan> fragments_;
  const Progress progress_;
  const AverageRule rule_;
  absl::Span<float> theta_;
  std::vector<float> momentum_;  // Empty without momentum.
  std::vector<float> buffer_;
  std::vector<float> gradient_;
  // The fragment's c, of those contributions that carry it; false when there are none.
  absl::StatusOr<bool> Average(const Merge& merge, const std::vector<std::shared_ptr<const EncodedVector>>& payloads,
                               size_t f);

  std::vector<float> merged_;   // One fragment.
  std::vector<float> scratch_;  // One fragment; of all contributions, where the rule is not the mean.
};

// The Euclidean norm of a contribution. INVALID_ARGUMENT when it cannot be decoded, is not finite, or does not have the
// fragments' sizes.
absl::StatusOr<double> CheckContribution(const EncodedVector& payload, const std::vector<FragmentSpan>& fragments);
// The same in steps, for who has fragments before the whole is there: the squared norm of fragment f, which is `span`,
// and the norm from those of all fragments in order. The same bits.
absl::StatusOr<double> CheckFragment(const EncodedVector& payload, size_t f, const FragmentSpan& span);
absl::StatusOr<double> NormOfChecked(absl::Span<const double> squares);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SYNC_OUTER_OPTIMIZER_H_
