#include "runtime/model/parameter_layout.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "glog/logging.h"
#include "runtime/base/digest.h"

namespace wukong {

ParameterLayout::ParameterLayout(std::vector<TensorSpec> tensors) : tensors_(std::move(tensors)) {
  // Lengths stand before names, so that no two schemas are written alike.
  std::string schema;
  for (TensorSpec& tensor : tensors_) {
    tensor.offset = size_;
    tensor.size = 1;
    for (const int64_t extent : tensor.shape) {
      CHECK_GE(extent, 0) << "tensor " << tensor.name;
      tensor.size *= extent;
    }
    size_ += tensor.size;
    absl::StrAppend(&schema, tensor.name.size(), ":", tensor.name, "[", absl::StrJoin(tensor.shape, ","), "];");
  }
  schema_digest_ = Sha256Hex(schema);
}

std::vector<FragmentSpan> CutFragments(int64_t size, int64_t fragment_bytes) {
  CHECK_GE(size, 0);
  return CutFragments(std::vector<FragmentSpan>{{0, size}}, fragment_bytes);
}

std::vector<FragmentSpan> CutFragments(absl::Span<const FragmentSpan> spans, int64_t fragment_bytes) {
  const int64_t step = std::max<int64_t>(1, fragment_bytes / static_cast<int64_t>(sizeof(float)));
  std::vector<FragmentSpan> fragments;
  for (const FragmentSpan& span : spans) {
    for (int64_t begin = span.begin; begin < span.end; begin += std::min(step, span.end - begin)) {
      fragments.push_back({begin, begin + std::min(step, span.end - begin), span.role});
    }
  }
  return fragments;
}

int64_t LargestFragment(absl::Span<const FragmentSpan> fragments) {
  int64_t largest = 0;
  for (const FragmentSpan& fragment : fragments) largest = std::max(largest, fragment.size());
  return largest;
}

}  // namespace wukong
