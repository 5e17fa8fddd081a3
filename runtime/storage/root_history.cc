#include "runtime/storage/root_history.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "runtime/sync/types.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kVerdictsKept = 256;  // As the parameter node keeps them.
constexpr int kRecentKept = 64;

absl::Status Broken(const char* invariant, const std::string& what) {
  return absl::DataLossError(absl::StrCat(invariant, " is broken: ", what));
}

template <typename Field>
void PushBounded(double value, Field* field) {
  field->Add(value);
  if (field->size() > kRecentKept) field->erase(field->begin());
}

}  // namespace

RootHistory::RootHistory(const RootState& state) : state_(state), unmerged_(state.unmerged()) {
  for (const RootMember& member : state.members()) {
    members_[member.member()] = member;
    if (member.told() != member.included()) untold_.insert(member.member());
  }
  for (const SampleRange& range : state.committed()) Commit(range.begin(), range.end());
  state_.clear_members();
  state_.clear_committed();
  state_.clear_unmerged();
  if (state_.version() == 0) state_.set_version(1);
  if (state_.next_member() == 0) state_.set_next_member(1);
}

RootState RootHistory::Summary() const {
  RootState state = state_;
  for (const auto& [id, member] : members_) *state.add_members() = member;
  for (const auto& [begin, end] : committed_) {
    SampleRange* range = state.add_committed();
    range->set_begin(begin);
    range->set_end(end);
  }
  for (const ContributionAccepted& accepted : unmerged_) {
    ContributionAccepted* unmerged = state.add_unmerged();
    *unmerged->mutable_header() = accepted.header();
    unmerged->set_norm(accepted.norm());
  }
  return state;
}

RootState RootHistory::state() const {
  RootState state = Summary();
  *state.mutable_unmerged() = unmerged_;
  return state;
}

const RootMember* RootHistory::FindMember(int64_t member) const {
  const auto found = members_.find(member);
  return found == members_.end() ? nullptr : &found->second;
}

bool RootHistory::Joined(int64_t member, int64_t incarnation) const {
  const RootMember* const found = FindMember(member);
  return found != nullptr && found->incarnation() == incarnation;
}

RootMember* RootHistory::Member(int64_t member) { return &members_.at(member); }

bool RootHistory::Overlaps(int64_t begin, int64_t end) const {
  auto next = committed_.lower_bound(begin);
  if (next != committed_.end() && next->first < end) return true;
  return next != committed_.begin() && std::prev(next)->second > begin;
}

void RootHistory::Commit(int64_t begin, int64_t end) {
  samples_committed_ += end - begin;
  auto next = committed_.lower_bound(begin);
  if (next != committed_.begin() && std::prev(next)->second == begin) {
    --next;
    begin = next->first;
    next = committed_.erase(next);
  }
  if (next != committed_.end() && next->first == end) {
    end = next->second;
    committed_.erase(next);
  }
  committed_[begin] = end;
}

absl::Status RootHistory::CheckSender(const ContributionHeader& header) const {
  const RootMember* member = FindMember(header.member());
  const auto who = [&] {
    return absl::StrFormat("contribution %d of member %d incarnation %d", header.sequence(), header.member(),
                           header.incarnation());
  };
  if (!Joined(header.member(), header.incarnation())) {
    return Broken("I7", absl::StrCat(who(), " comes from nobody who joined"));
  }
  if (header.sequence() != member->offered() + 1) {
    return Broken("I7", absl::StrFormat("%s follows %d", who(), member->offered()));
  }
  return absl::OkStatus();
}

absl::Status RootHistory::Check(const LogRecord& record) const {
  if (record.has_term_begun()) {
    if (record.term_begun().term() == state_.term() + 1) return absl::OkStatus();
    return Broken("I6", absl::StrFormat("term %d follows term %d", record.term_begun().term(), state_.term()));
  }
  if (record.has_member_joined()) {
    const MemberJoined& joined = record.member_joined();
    const RootMember* member = FindMember(joined.member());
    const int64_t before = member == nullptr ? 0 : member->incarnation();
    if (joined.incarnation() != before + 1) {
      return Broken("I6", absl::StrFormat("member %d incarnation %d joined after incarnation %d", joined.member(),
                                          joined.incarnation(), before));
    }
    return absl::OkStatus();
  }
  if (record.has_member_fenced()) {
    if (FindMember(record.member_fenced().member()) != nullptr) return absl::OkStatus();
    return Broken("I7", absl::StrFormat("member %d is fenced and never joined", record.member_fenced().member()));
  }
  if (record.has_accepted()) {
    const ContributionHeader& header = record.accepted().header();
    if (absl::Status status = CheckSender(header); !status.ok()) return status;
    if (header.incarnation() < FindMember(header.member())->fenced_below()) {
      return Broken("I7", absl::StrFormat("contribution %d of member %d incarnation %d is accepted after its fence",
                                          header.sequence(), header.member(), header.incarnation()));
    }
    std::vector<std::pair<int64_t, int64_t>> ranges;
    for (const SampleRange& range : header.ranges()) ranges.emplace_back(range.begin(), range.end());
    std::sort(ranges.begin(), ranges.end());
    int64_t last = 0;
    for (const auto& [begin, end] : ranges) {
      if (begin < last || begin >= end || Overlaps(begin, end)) {
        return Broken("I1", absl::StrFormat("contribution %d of member %d commits samples [%d, %d), of which some were "
                                            "committed before",
                                            header.sequence(), header.member(), begin, end));
      }
      last = end;
    }
    return absl::OkStatus();
  }
  if (record.has_refused()) {
    // An earlier life may still be told that it is fenced; that changes nothing of the new one.
    const ContributionHeader& header = record.refused().header();
    const RootMember* member = FindMember(header.member());
    if (member != nullptr && header.incarnation() < member->incarnation()) return absl::OkStatus();
    return CheckSender(header);
  }
  if (record.has_merged()) {
    if (record.merged().parts_size() > unmerged_.size()) {
      return Broken("I10", absl::StrFormat("%d contributions are merged and %d were there",
                                           record.merged().parts_size(), unmerged_.size()));
    }
    for (int i = 0; i < record.merged().parts_size(); ++i) {
      const MergedPart& part = record.merged().parts(i);
      const ContributionHeader& header = unmerged_[i].header();
      if (part.member() != header.member() || part.incarnation() != header.incarnation() ||
          part.sequence() != header.sequence()) {
        return Broken("I10", absl::StrFormat("contribution %d of member %d is merged where %d of member %d was due",
                                             part.sequence(), part.member(), header.sequence(), header.member()));
      }
    }
    return absl::OkStatus();
  }
  if (record.has_published()) {
    if (record.published().version() == state_.version() + 1) return absl::OkStatus();
    return Broken("I4", absl::StrFormat("version %d follows %d", record.published().version(), state_.version()));
  }
  if (record.has_run_stopped()) {
    for (const MemberUsed& used : record.run_stopped().used()) {
      if (FindMember(used.member()) != nullptr) continue;
      return Broken("I7", absl::StrFormat("member %d used something and never joined", used.member()));
    }
    return absl::OkStatus();
  }
  if (record.has_lease_ceiling() || record.has_run_started()) return absl::OkStatus();
  return absl::DataLossError("a record of an unknown kind; was it written by a newer wukong?");
}

void RootHistory::Keep(RootMember* member, int64_t sequence, Verdict verdict) {
  member->set_offered(sequence);
  VerdictKept* kept = member->add_verdicts();
  kept->set_sequence(sequence);
  kept->set_verdict(verdict);
  if (member->verdicts_size() > kVerdictsKept) member->mutable_verdicts()->erase(member->verdicts().begin());
}

absl::Status RootHistory::Add(int64_t index, const LogRecord& record) {
  if (index != state_.index() + 1) {
    return Broken("I3", absl::StrFormat("record %d follows record %d", index, state_.index()));
  }
  if (absl::Status status = Check(record); !status.ok()) {
    return absl::Status(status.code(), absl::StrFormat("record %d: %s", index, status.message()));
  }
  state_.set_index(index);
  state_.set_bytes(state_.bytes() + static_cast<int64_t>(record.ByteSizeLong()));
  if (record.has_term_begun()) {
    state_.set_term(record.term_begun().term());
    state_.set_terms_begun(state_.terms_begun() + 1);
    if (state_.stopped_unix_ns() == 0) {
      state_.set_usage_lost(state_.usage_lost() || state_.started_unix_ns() > 0);
    } else {
      // A clock that was put back makes no pause.
      const int64_t pause = record.term_begun().unix_ns() - state_.stopped_unix_ns();
      state_.set_paused_ns(state_.paused_ns() + std::max<int64_t>(0, pause));
      state_.set_stopped_unix_ns(0);
    }
  } else if (record.has_member_joined()) {
    const MemberJoined& joined = record.member_joined();
    RootMember member;
    if (const RootMember* known = FindMember(joined.member()); known != nullptr) {
      member.set_fenced_below(known->fenced_below());
      if (known->has_used()) *member.mutable_used() = known->used();
    }
    member.set_member(joined.member());
    member.set_incarnation(joined.incarnation());
    // A new life fences the ones before it.
    member.set_fenced_below(std::max(member.fenced_below(), joined.incarnation()));
    member.set_role(joined.role());
    member.set_region(joined.region());
    member.set_name(joined.name());
    member.set_rank(joined.rank());
    member.set_address(joined.address());
    member.set_pid(joined.pid());
    member.set_host(joined.host());
    members_[joined.member()] = std::move(member);
    state_.set_next_member(std::max(state_.next_member(), joined.member() + 1));
  } else if (record.has_member_fenced()) {
    RootMember* member = Member(record.member_fenced().member());
    member->set_fenced_below(std::max(member->fenced_below(), record.member_fenced().incarnation() + 1));
  } else if (record.has_accepted()) {
    const ContributionHeader& header = record.accepted().header();
    RootMember* member = Member(header.member());
    Keep(member, header.sequence(), VERDICT_ACCEPTED);
    for (const SampleRange& range : header.ranges()) {
      Commit(range.begin(), range.end());
      state_.set_samples_accepted(state_.samples_accepted() + range.end() - range.begin());
    }
    state_.set_contributions_accepted(state_.contributions_accepted() + 1);
    state_.set_tokens_accepted(state_.tokens_accepted() + header.tokens());
    (*state_.mutable_tokens_by_region())[member->region()] += header.tokens();
    PushBounded(record.accepted().norm(), state_.mutable_recent_norms());
    PushBounded(static_cast<double>(header.tokens()), state_.mutable_recent_tokens());
    *unmerged_.Add() = record.accepted();
  } else if (record.has_refused()) {
    const ContributionHeader& header = record.refused().header();
    RootMember* member = Member(header.member());
    if (member->incarnation() == header.incarnation()) Keep(member, header.sequence(), record.refused().verdict());
    const char* const reason = VerdictName(record.refused().verdict());
    ++(*state_.mutable_refused())[reason];
    ++(*state_.mutable_refused_by_sender())[absl::StrCat(member->name(), " of ", member->region(), ": ", reason)];
  } else if (record.has_merged()) {
    const Merged& merged = record.merged();
    for (int i = 0; i < merged.parts_size(); ++i) {
      const ContributionHeader& header = unmerged_[i].header();
      RootMember* member = Member(header.member());
      if (member->incarnation() == header.incarnation()) {
        member->set_included(header.sequence());
        untold_.insert(header.member());
      }
      state_.set_tokens_merged(state_.tokens_merged() + header.tokens());
      PushBounded(merged.parts(i).raw_weight(), state_.mutable_recent_weights());
      ++(*state_.mutable_staleness())[merged.parts(i).staleness()];
    }
    state_.set_told(false);
    state_.set_contributions_merged(state_.contributions_merged() + merged.parts_size());
    unmerged_.erase(unmerged_.begin(), unmerged_.begin() + merged.parts_size());
    state_.set_merges_since_momentum(merged.momentum_step() ? 0 : state_.merges_since_momentum() + 1);
  } else if (record.has_published()) {
    state_.set_version(record.published().version());
    state_.set_told(true);
    for (const int64_t id : untold_) Member(id)->set_told(Member(id)->included());
    untold_.clear();
  } else if (record.has_lease_ceiling()) {
    state_.set_lease_ceiling(std::max(state_.lease_ceiling(), record.lease_ceiling().sample()));
  } else if (record.has_run_started()) {
    state_.set_started_unix_ns(record.run_started().unix_ns());
    state_.set_validation_loss_initial(record.run_started().validation_loss());
  } else if (record.has_run_stopped()) {
    if (state_.started_unix_ns() > 0) state_.set_stopped_unix_ns(record.run_stopped().unix_ns());
    for (const MemberUsed& used : record.run_stopped().used()) *Member(used.member())->mutable_used() = used;
  }
  return absl::OkStatus();
}

std::string LogRecordToJson(int64_t index, const LogRecord& record) {
  Json json = {{"index", index}};
  const auto header = [&](const ContributionHeader& contribution) {
    Json ranges = Json::array();
    for (const SampleRange& range : contribution.ranges()) {
      ranges.push_back({range.begin(), range.end(), range.token()});
    }
    json["member"] = contribution.member();
    json["incarnation"] = contribution.incarnation();
    json["sequence"] = contribution.sequence();
    json["base_version"] = contribution.base_version();
    json["root_base_version"] = contribution.root_base_version();
    json["steps"] = contribution.steps();
    json["tokens"] = contribution.tokens();
    json["ranges"] = ranges;
  };
  if (record.has_term_begun()) {
    json["kind"] = "term_begun";
    json["term"] = record.term_begun().term();
    json["unix_ns"] = record.term_begun().unix_ns();
    json["host"] = record.term_begun().host();
    json["pid"] = record.term_begun().pid();
  } else if (record.has_member_joined()) {
    const MemberJoined& joined = record.member_joined();
    json["kind"] = "member_joined";
    json["member"] = joined.member();
    json["incarnation"] = joined.incarnation();
    json["role"] = joined.role() == ROLE_AGGREGATOR ? "aggregator" : "worker";
    json["region"] = joined.region();
    json["name"] = joined.name();
    json["rank"] = joined.rank();
    json["address"] = joined.address();
    json["pid"] = joined.pid();
    json["host"] = joined.host();
    if (joined.new_region()) json["new_region"] = true;
  } else if (record.has_member_fenced()) {
    json["kind"] = "member_fenced";
    json["member"] = record.member_fenced().member();
    json["incarnation"] = record.member_fenced().incarnation();
    json["reason"] = record.member_fenced().reason();
  } else if (record.has_accepted()) {
    json["kind"] = "accepted";
    header(record.accepted().header());
    int64_t bytes = 0;
    for (const std::string& fragment : record.accepted().fragments()) bytes += static_cast<int64_t>(fragment.size());
    json["norm"] = record.accepted().norm();
    json["payload_bytes"] = bytes;
    json["payload_checksum"] = absl::StrFormat("%016x", record.accepted().header().payload_checksum());
  } else if (record.has_refused()) {
    json["kind"] = "refused";
    header(record.refused().header());
    json["reason"] = VerdictName(record.refused().verdict());
    json["detail"] = record.refused().detail();
  } else if (record.has_merged()) {
    const Merged& merged = record.merged();
    json["kind"] = "merged";
    Json parts = Json::array();
    for (const MergedPart& part : merged.parts()) {
      parts.push_back({{"member", part.member()},
                       {"incarnation", part.incarnation()},
                       {"sequence", part.sequence()},
                       {"weight", part.weight()},
                       {"staleness", part.staleness()}});
    }
    json["parts"] = parts;
    json["learning_rate"] = merged.learning_rate();
    json["momentum"] = merged.momentum();
    json["momentum_step"] = merged.momentum_step();
    if (merged.inner_learning_rate() > 0) json["inner_learning_rate"] = merged.inner_learning_rate();
    json["staleness_max"] = merged.staleness_max();
  } else if (record.has_published()) {
    json["kind"] = "published";
    json["version"] = record.published().version();
    json["previous_checksum"] = absl::StrFormat("%016x", record.published().previous_checksum());
  } else if (record.has_lease_ceiling()) {
    json["kind"] = "lease_ceiling";
    json["sample"] = record.lease_ceiling().sample();
  } else if (record.has_run_started()) {
    json["kind"] = "run_started";
    json["unix_ns"] = record.run_started().unix_ns();
    json["validation_loss"] = record.run_started().validation_loss();
  } else if (record.has_run_stopped()) {
    json["kind"] = "run_stopped";
    json["unix_ns"] = record.run_stopped().unix_ns();
  } else {
    json["kind"] = "unknown";
  }
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace wukong
