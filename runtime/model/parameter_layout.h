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

// A half-open interval of the flat vector.
struct FragmentSpan {
  int64_t begin = 0;
  int64_t end = 0;
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

}  // namespace wukong

#endif  // WUKONG_RUNTIME_MODEL_PARAMETER_LAYOUT_H_
