#include "coordinator/shard_ledger.h"

#include <algorithm>

#include "absl/strings/str_format.h"
#include "glog/logging.h"
#include "runtime/base/mutation.h"

namespace wukong {

ShardLedger::ShardLedger(int64_t total, int64_t range_samples, int64_t first_token)
    : total_(total), range_samples_(range_samples), first_token_(first_token), next_token_(first_token) {
  CHECK_GT(total, 0);
  CHECK_GT(range_samples, 0);
  Entry all;
  all.end = total;
  entries_[0] = all;
  count_[kAvailable] = total;
}

ShardLedger::Entries::iterator ShardLedger::SplitAt(int64_t at) {
  if (at >= total_) return entries_.end();
  const auto next = entries_.upper_bound(at);
  const auto entry = std::prev(next);
  if (entry->first == at) return entry;
  Entry right = entry->second;
  entry->second.end = at;
  return entries_.emplace_hint(next, at, right);
}

void ShardLedger::SetState(Entries::iterator entry, State state) {
  const int64_t size = entry->second.end - entry->first;
  count_[entry->second.state] -= size;
  count_[state] += size;
  entry->second.state = state;
}

void ShardLedger::MakeAvailable(Entries::iterator entry) {
  SetState(entry, kAvailable);
  entry->second = Entry{entry->second.end, kAvailable, MemberKey(), -1, 0, false};
}

void ShardLedger::MergeAvailable() {
  for (auto entry = entries_.begin(); entry != entries_.end();) {
    const auto next = std::next(entry);
    if (next == entries_.end()) return;
    const bool same =
        entry->second.state == next->second.state &&
        (entry->second.state == kAvailable || entry->second.state == kUnknown || entry->second.state == kCommitted);
    if (same) {
      entry->second.end = next->second.end;
      entries_.erase(next);
    } else {
      entry = next;
    }
  }
}

std::vector<LeasedRange> ShardLedger::Lease(MemberKey holder, int region, int64_t want) {
  std::vector<LeasedRange> granted;
  auto entry = entries_.begin();
  while (want > 0 && entry != entries_.end()) {
    if (entry->second.state != kAvailable) {
      ++entry;
      continue;
    }
    const int64_t begin = entry->first;
    const int64_t cut = std::min({entry->second.end, (begin / range_samples_ + 1) * range_samples_, begin + want});
    SplitAt(cut);
    SetState(entry, kLeased);
    entry->second.holder = holder;
    entry->second.region = region;
    entry->second.token = Mutated("ledger.gives_a_token_twice") ? next_token_ : next_token_++;
    entry->second.custody = false;
    leased_end_ = std::max(leased_end_, entry->second.end);
    granted.push_back({begin, entry->second.end, entry->second.token});
    want -= granted.back().size();
    ++entry;
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
  MergeAvailable();
  for (const auto& [begin, entry] : entries_) {
    if (entry.state == kCommitted) commits_.push_back({begin, entry.end, 0});
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
        SetState(at, kLeased);
        entry.holder = holder;
        entry.region = region;
        entry.token = range.token;
        entry.custody = custody;
        kept.insert(at->first);
      } else if (entry.state == kLeased && entry.region == region && entry.token == range.token &&
                 (custody || entry.holder == holder)) {
        kept.insert(at->first);
      } else {
        claim.disowned.push_back(part);
      }
    });
  }
  if (!custody) {
    for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
      if (entry->second.state == kLeased && entry->second.holder == holder && !entry->second.custody &&
          kept.count(entry->first) == 0) {
        MakeAvailable(entry);
      }
    }
  }
  MergeAvailable();
  claim.committed = Coalesce(std::move(claim.committed));
  claim.disowned = Coalesce(std::move(claim.disowned));
  return claim;
}

void ShardLedger::EndRecovery() {
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    if (entry->second.state == kUnknown) MakeAvailable(entry);
  }
  MergeAvailable();
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
  }
  MergeAvailable();
}

void ShardLedger::ReleaseFenced(MemberKey holder, const std::vector<LeasedRange>& custody) {
  for (const LeasedRange& range : custody) {
    ForEach(range, [&](Entries::iterator entry) {
      if (entry->second.state == kLeased && entry->second.holder == holder && entry->second.token == range.token) {
        entry->second.custody = !Mutated("ledger.ignores_custody");
      }
    });
  }
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    if (entry->second.state == kLeased && entry->second.holder == holder && !entry->second.custody) {
      MakeAvailable(entry);
    }
  }
  MergeAvailable();
}

void ShardLedger::ReleaseRefused(int region, const std::vector<LeasedRange>& ranges) {
  if (Mutated("ledger.keeps_refused_ranges")) return;
  for (const LeasedRange& range : ranges) {
    ForEach(range, [&](Entries::iterator entry) {
      if (entry->second.state == kLeased && entry->second.region == region && entry->second.token == range.token) {
        MakeAvailable(entry);
      }
    });
  }
  MergeAvailable();
}

void ShardLedger::ReleaseRegion(int region, const std::set<MemberKey>& speaking) {
  if (Mutated("ledger.keeps_a_lost_region")) return;
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    if (entry->second.state == kLeased && entry->second.region == region &&
        (entry->second.custody || speaking.count(entry->second.holder) == 0)) {
      MakeAvailable(entry);
    }
  }
  MergeAvailable();
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
    commits_.push_back(range);
    SplitAt(range.end);
    for (auto entry = SplitAt(range.begin); entry != entries_.end() && entry->first < range.end; ++entry) {
      CHECK_EQ(entry->second.state, kAdmitted) << "samples [" << entry->first << ", " << entry->second.end << ")";
      if (Mutated("ledger.counts_the_budget_twice")) count_[kCommitted] += entry->second.end - entry->first;
      SetState(entry, kCommitted);
    }
  }
  MergeAvailable();
}

int64_t ShardLedger::LeasedIn(int region) const {
  int64_t sum = 0;
  for (const auto& [begin, entry] : entries_) {
    if (entry.state == kLeased && entry.region == region) sum += entry.end - begin;
  }
  return sum;
}

ShardLedger::Audit ShardLedger::MakeAudit() const {
  // Sweeps over the ends of all committed intervals; `depth` is how often the samples between two ends were committed.
  std::map<int64_t, int> change;
  for (const LeasedRange& range : commits_) {
    ++change[range.begin];
    --change[range.end];
  }
  for (int64_t cut = 0; cut <= total_; cut += range_samples_) change.emplace(cut, 0);
  change.emplace(total_, 0);
  Audit audit;
  audit.total = (total_ + range_samples_ - 1) / range_samples_;
  int depth = 0;
  bool never = false, twice = false;
  for (auto it = change.begin(); it != change.end(); ++it) {
    if (it->first > 0 && (it->first % range_samples_ == 0 || it->first == total_) && it->first <= total_) {
      if (twice) {
        ++audit.committed_more_than_once;
      } else if (never) {
        ++audit.not_committed;
      } else {
        ++audit.committed_once;
      }
      never = twice = false;
    }
    depth += it->second;
    never = never || depth == 0;
    twice = twice || depth > 1;
  }
  return audit;
}

}  // namespace wukong
