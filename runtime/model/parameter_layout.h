// Which tensor lives where in the flat parameter vector, and how the vector is cut into fragments.
#ifndef WUKONG_RUNTIME_MODEL_PARAMETER_LAYOUT_H_
#define WUKONG_RUNTIME_MODEL_PARAMETER_LAYOUT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/types/span.h"

namespace wukong {

struct TensorSpec {
  std::string name;
  std::vector<int64_t> shape;  // Row-major.
  int64_t offset = 0;          // First value in the flat vector.
  int64_t size = 0;            // Product of the shape.
};

// What parameters are for, as far as a codec asks (CODEC_KIND_MIXED).
enum class ParameterRole { kOther, kFeedForward };

// A half-open interval of the flat vector. All of it has one role; kOther where nobody asks.
struct FragmentSpan {
  int64_t begin = 0;
  int64_t end = 0;
  ParameterRole role = ParameterRole::kOther;
  int64_t size() const { return end - begin; }
};

class ParameterLayout {
 public:
  // Tensors in the order of the flat vector; the offsets are set here.
  explicit ParameterLayout(std::vector<TensorSpec> tensors);

  const std::vector<TensorSpec>& tensors() const { return tensors_; }
  int64_t size() const { return size_; }  // Values in all.

  // Two processes can exchange parameters exactly when this is equal: SHA-256 over names, shapes and order.
  const std::string& schema_digest() const { return schema_digest_; }

 private:
  std::vector<TensorSpec> tensors_;
  int64_t size_ = 0;
  std::string schema_digest_;
};

// Cuts [0, size) into fragments of at most `fragment_bytes` as fp32 (at least one value each).
std::vector<FragmentSpan> CutFragments(int64_t size, int64_t fragment_bytes);
// The same of each of `spans`, one after the other: no fragment crosses a border between them, and each has the role of
// its span.
std::vector<FragmentSpan> CutFragments(absl::Span<const FragmentSpan> spans, int64_t fragment_bytes);

// Values of the largest; 0 of none.
int64_t LargestFragment(absl::Span<const FragmentSpan> fragments);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_MODEL_PARAMETER_LAYOUT_H_
