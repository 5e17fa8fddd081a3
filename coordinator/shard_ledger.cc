#include "coordinator/shard_ledger.h"

#include <algorithm>
#include <iterator>
#include <map>

#include "absl/strings/str_format.h"
#include "glog/logging.h"
#include "runtime/base/mutation.h"

namespace wukong {

ShardLedger::ShardLedger(int64_t total, int64_t range_samples, int64_t first_token)
    : total_(total),
      range_samples_(range_samples),
      first_token_(first_token),
      next_token_(first_token),
      commits_(total, range_samples) {
  CHECK_GT(total, 0);
  CHECK_GT(range_samples, 0);
  Entry all;
  all.end = total;
  entries_[0] = all;
  available_.insert(0);
  count_[kAvailable] = total;
}

ShardLedger::Entries::iterator ShardLedger::SplitAt(int64_t at) {
  if (at >= total_) return entries_.end();
  const auto next = entries_.upper_bound(at);
  const auto entry = std::prev(next);
  if (entry->first == at) return entry;
  const Entry right = entry->second;
  entry->second.end = at;
  if (right.state == kAvailable) available_.insert(at);
  if (right.state == kLeased) held_[right.holder].insert(at);
  return entries_.emplace_hint(next, at, right);
}

void ShardLedger::SetState(Entries::iterator entry, State state) {
  const int64_t size = entry->second.end - entry->first;
  count_[entry->second.state] -= size;
  count_[state] += size;
  if (entry->second.state == kAvailable) available_.erase(entry->first);
  if (entry->second.state == kLeased) {
    leased_in_[entry->second.region] -= size;
    const auto held = held_.find(entry->second.holder);
    held->second.erase(entry->first);
    if (held->second.empty()) held_.erase(held);
  }
  if (state == kAvailable) available_.insert(entry->first);
  entry->second.state = state;
}

void ShardLedger::Hold(Entries::iterator entry, MemberKey holder, int region, int64_t token, bool custody) {
  CHECK_GE(region, 0);
  SetState(entry, kLeased);
  entry->second.holder = holder;
  entry->second.region = region;
  entry->second.token = token;
  entry->second.custody = custody;
  held_[holder].insert(entry->first);
  if (leased_in_.size() <= static_cast<size_t>(region)) leased_in_.resize(static_cast<size_t>(region) + 1);
  leased_in_[region] += entry->second.end - entry->first;
}

void ShardLedger::MakeAvailable(Entries::iterator entry) {
  SetState(entry, kAvailable);
  entry->second = Entry{entry->second.end, kAvailable, MemberKey(), -1, 0, false};
}

std::vector<int64_t> ShardLedger::HeldBy(MemberKey holder) const {
  const auto held = held_.find(holder);
  if (held == held_.end()) return {};
  return {held->second.begin(), held->second.end()};
}

void ShardLedger::Merge(int64_t begin, int64_t end) {
  auto entry = entries_.lower_bound(std::max<int64_t>(0, begin));
  if (entry != entries_.begin()) --entry;
  while (entry != entries_.end() && entry->first <= end) {
    const auto next = std::next(entry);
    if (next == entries_.end()) return;
    const bool same =
        entry->second.state == next->second.state &&
        (entry->second.state == kAvailable || entry->second.state == kUnknown || entry->second.state == kCommitted);
    if (same) {
      entry->second.end = next->second.end;
      available_.erase(next->first);
      entry = std::prev(entries_.erase(next));
    } else {
      entry = next;
    }
  }
}

std::vector<LeasedRange> ShardLedger::Lease(MemberKey holder, int region, int64_t want) {
  std::vector<LeasedRange> granted;
  while (want > 0 && !available_.empty()) {
    const int64_t begin = *available_.begin();
    SplitAt(std::min({entries_.find(begin)->second.end, (begin / range_samples_ + 1) * range_samples_, begin + want}));
    const auto entry = entries_.find(begin);
    const int64_t token = Mutated("ledger.gives_a_token_twice") ? next_token_ : next_token_++;
    Hold(entry, holder, region, token, /*custody=*/false);
    leased_end_ = std::max(leased_end_, entry->second.end);
    granted.push_back({begin, entry->second.end, entry->second.token});
    want -= granted.back().size();
  }
  return granted;
}

template <typename Use>
void ShardLedger::ForEach(const LeasedRange& range, Use use) {
  if (range.begin < 0 || range.end > total_ || range.begin >= range.end) return;
  SplitAt(range.end);
  for (auto entry = SplitAt(range.begin); entry != entries_.end() && entry->first < range.end; ++entry) use(entry);
}

void ShardLedger::Restore(const std::vector<LeasedRange>& committed, const std::vector<LeasedRange>& admitted,
                          int64_t ceiling) {
  leased_end_ = std::min(ceiling, total_);
  if (!Mutated("ledger.forgets_leases_at_restart")) {
    ForEach({0, leased_end_, 0}, [&](Entries::iterator entry) { SetState(entry, kUnknown); });
  }
  for (const LeasedRange& range : committed) {
    if (Mutated("ledger.forgets_a_commit_at_restart") && &range == &committed.back()) continue;
    ForEach(range, [&](Entries::iterator entry) { SetState(entry, kCommitted); });
  }
  for (const LeasedRange& range : admitted) {
    ForEach(range, [&](Entries::iterator entry) { SetState(entry, kAdmitted); });
  }
  Merge(0, total_);
  for (const auto& [begin, entry] : entries_) {
    if (entry.state == kCommitted) commits_.Add(begin, entry.end);
  }
}

ShardLedger::Claim ShardLedger::Assert(MemberKey holder, int region, const std::vector<LeasedRange>& ranges,
                                       bool custody) {
  Claim claim;
  std::set<int64_t> kept;  // By begin.
  for (const LeasedRange& range : ranges) {
    ForEach(range, [&](Entries::iterator at) {
      Entry& entry = at->second;
      const LeasedRange part{at->first, entry.end, range.token};
      if (entry.state == kCommitted || entry.state == kAdmitted) {
        claim.committed.push_back(part);
      } else if (entry.state == kUnknown && range.token < first_token_) {
        Hold(at, holder, region, range.token, custody);
        kept.insert(at->first);
      } else if (entry.state == kLeased && entry.region == region && entry.token == range.token &&
                 (custody || entry.holder == holder)) {
        kept.insert(at->first);
      } else {
        claim.disowned.push_back(part);
      }
    });
  }
  if (!custody) ReleaseHeld(holder, kept);
  for (const LeasedRange& range : ranges) Merge(range.begin, range.end);
  claim.committed = Coalesce(std::move(claim.committed));
  claim.disowned = Coalesce(std::move(claim.disowned));
  return claim;
}

void ShardLedger::ReleaseHeld(MemberKey holder, const std::set<int64_t>& kept) {
  for (const int64_t begin : HeldBy(holder)) {
    const auto entry = entries_.find(begin);
    if (entry->second.custody || kept.count(begin) > 0) continue;
    const int64_t end = entry->second.end;
    MakeAvailable(entry);
    Merge(begin, end);
  }
}

void ShardLedger::EndRecovery() {
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    if (entry->second.state == kUnknown) MakeAvailable(entry);
  }
  Merge(0, total_);
}

void ShardLedger::Release(MemberKey holder, const std::vector<LeasedRange>& ranges) {
  for (const LeasedRange& range : ranges) {
    if (Mutated("ledger.keeps_released_leases")) break;
    ForEach(range, [&](Entries::iterator entry) {
      if (entry->second.state == kLeased && entry->second.holder == holder && entry->second.token == range.token &&
          !entry->second.custody) {
        MakeAvailable(entry);
      }
    });
    Merge(range.begin, range.end);
  }
}

void ShardLedger::ReleaseFenced(MemberKey holder, const std::vector<LeasedRange>& custody) {
  for (const LeasedRange& range : custody) {
    ForEach(range, [&](Entries::iterator entry) {
      if (entry->second.state == kLeased && entry->second.holder == holder && entry->second.token == range.token) {
        entry->second.custody = !Mutated("ledger.ignores_custody");
      }
    });
    Merge(range.begin, range.end);
  }
  ReleaseHeld(holder, {});
}

void ShardLedger::ReleaseRefused(int region, const std::vector<LeasedRange>& ranges) {
  if (Mutated("ledger.keeps_refused_ranges")) return;
  for (const LeasedRange& range : ranges) {
    ForEach(range, [&](Entries::iterator entry) {
      if (entry->second.state == kLeased && entry->second.region == region && entry->second.token == range.token) {
        MakeAvailable(entry);
      }
    });
    Merge(range.begin, range.end);
  }
}

void ShardLedger::ReleaseRegion(int region, const std::set<MemberKey>& speaking) {
  if (Mutated("ledger.keeps_a_lost_region")) return;
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    if (entry->second.state == kLeased && entry->second.region == region &&
        (entry->second.custody || speaking.count(entry->second.holder) == 0)) {
      MakeAvailable(entry);
    }
  }
  Merge(0, total_);
}

bool ShardLedger::Admit(int region, const std::vector<LeasedRange>& ranges, std::string* detail) {
  int64_t last_end = 0;
  const std::vector<LeasedRange> joined = Coalesce(ranges);
  for (const LeasedRange& range : joined) {
    if (range.begin < last_end || range.end > total_ || range.begin >= range.end) {
      *detail = absl::StrFormat("samples [%d, %d) are malformed or named twice", range.begin, range.end);
      return false;
    }
    last_end = range.end;
    SplitAt(range.end);
    for (auto entry = SplitAt(range.begin); entry != entries_.end() && entry->first < range.end; ++entry) {
      const bool held =
          entry->second.state == kLeased && entry->second.region == region && entry->second.token == range.token;
      const bool may_be_held = entry->second.state == kUnknown && range.token < first_token_;
      if (!held && !may_be_held && !Mutated("ledger.admits_anything")) {
        static constexpr const char* kNames[] = {"available", "unknown", "leased", "admitted", "committed"};
        *detail = absl::StrFormat("samples [%d, %d) under token %d are %s under token %d", entry->first,
                                  entry->second.end, range.token, kNames[entry->second.state], entry->second.token);
        Merge(joined.front().begin, range.end);
        return false;
      }
    }
  }
  for (const LeasedRange& range : joined) {
    for (auto entry = entries_.find(range.begin); entry != entries_.end() && entry->first < range.end; ++entry) {
      SetState(entry, kAdmitted);
    }
  }
  return true;
}

void ShardLedger::Commit(const std::vector<LeasedRange>& ranges) {
  for (const LeasedRange& range : ranges) {
    commits_.Add(range.begin, range.end);
    SplitAt(range.end);
    for (auto entry = SplitAt(range.begin); entry != entries_.end() && entry->first < range.end; ++entry) {
      CHECK_EQ(entry->second.state, kAdmitted) << "samples [" << entry->first << ", " << entry->second.end << ")";
      if (Mutated("ledger.counts_the_budget_twice")) count_[kCommitted] += entry->second.end - entry->first;
      SetState(entry, kCommitted);
    }
    Merge(range.begin, range.end);
  }
}

int64_t ShardLedger::LeasedIn(int region) const {
  return static_cast<size_t>(region) < leased_in_.size() ? leased_in_[region] : 0;
}

}  // namespace wukong
