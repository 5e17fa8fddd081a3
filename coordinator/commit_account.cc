#include "coordinator/commit_account.h"

#include <algorithm>
#include <iterator>

namespace wukong {

void CommitAccount::Add(int64_t begin, int64_t end) { Join(begin, end, &once_, &twice_); }

void CommitAccount::Join(int64_t begin, int64_t end, Intervals* intervals, Intervals* twice) {
  if (begin >= end) return;
  auto it = intervals->upper_bound(begin);
  if (it != intervals->begin() && std::prev(it)->second >= begin) --it;
  int64_t joined_begin = begin, joined_end = end;
  while (it != intervals->end() && it->first <= end) {
    if (twice != nullptr) Join(std::max(begin, it->first), std::min(end, it->second), twice, nullptr);
    joined_begin = std::min(joined_begin, it->first);
    joined_end = std::max(joined_end, it->second);
    it = intervals->erase(it);
  }
  intervals->emplace(joined_begin, joined_end);
}

CommitAccount::Audit CommitAccount::MakeAudit() const {
  Audit audit;
  audit.total = (total_ + range_samples_ - 1) / range_samples_;
  // Ranges [first, last) are whole in an interval. No range is whole in two.
  const auto first = [&](int64_t begin) { return (begin + range_samples_ - 1) / range_samples_; };
  const auto last = [&](int64_t end) { return end == total_ ? audit.total : end / range_samples_; };
  for (const auto& [begin, end] : once_) audit.committed_once += std::max<int64_t>(0, last(end) - first(begin));
  int64_t counted = 0;
  for (const auto& [begin, end] : twice_) {
    for (int64_t range = std::max(counted, begin / range_samples_); range * range_samples_ < end; ++range) {
      ++audit.committed_more_than_once;
      counted = range + 1;
      const auto around = std::prev(once_.upper_bound(std::max(begin, range * range_samples_)));
      if (first(around->first) <= range && range < last(around->second)) --audit.committed_once;
    }
  }
  audit.not_committed = audit.total - audit.committed_once - audit.committed_more_than_once;
  return audit;
}

}  // namespace wukong
