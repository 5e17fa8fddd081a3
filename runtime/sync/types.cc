#include "runtime/sync/types.h"

#include <algorithm>

namespace wukong {

std::vector<LeasedRange> Coalesce(std::vector<LeasedRange> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const LeasedRange& a, const LeasedRange& b) { return a.begin < b.begin; });
  std::vector<LeasedRange> joined;
  for (const LeasedRange& range : ranges) {
    if (!joined.empty() && joined.back().end == range.begin && joined.back().token == range.token) {
      joined.back().end = range.end;
    } else {
      joined.push_back(range);
    }
  }
  return joined;
}

LeasedRange RangeFromProto(const SampleRange& range) { return {range.begin(), range.end(), range.token()}; }

SampleRange RangeToProto(const LeasedRange& range) {
  SampleRange proto;
  proto.set_begin(range.begin);
  proto.set_end(range.end);
  proto.set_token(range.token);
  return proto;
}

Manifest ManifestFromProto(const ContributionHeader& header) {
  Manifest manifest;
  manifest.sender = {MemberId(header.member()), Incarnation(header.incarnation())};
  manifest.sequence = Sequence(header.sequence());
  manifest.base = Version(header.base_version());
  manifest.root_base = Version(header.root_base_version());
  manifest.steps = header.steps();
  manifest.tokens = header.tokens();
  for (const SampleRange& range : header.ranges()) manifest.ranges.push_back(RangeFromProto(range));
  manifest.last = header.last();
  return manifest;
}

void ManifestToProto(const Manifest& manifest, ContributionHeader* header) {
  header->set_member(manifest.sender.member.value());
  header->set_incarnation(manifest.sender.incarnation.value());
  header->set_sequence(manifest.sequence.value());
  header->set_base_version(manifest.base.value());
  header->set_root_base_version(manifest.root_base.value());
  header->set_steps(manifest.steps);
  header->set_tokens(manifest.tokens);
  for (const LeasedRange& range : manifest.ranges) *header->add_ranges() = RangeToProto(range);
  header->set_last(manifest.last);
}

const char* VerdictName(Verdict verdict) {
  switch (verdict) {
    case VERDICT_ACCEPTED:
      return "accepted";
    case VERDICT_STALE:
      return "stale";
    case VERDICT_FENCED:
      return "fenced";
    case VERDICT_NON_FINITE:
      return "non_finite";
    case VERDICT_RANGES:
      return "ranges";
    case VERDICT_NORM:
      return "norm";
    case VERDICT_QUARANTINED:
      return "quarantined";
    case VERDICT_OUT_OF_ORDER:
      return "out_of_order";
    default:
      return "unspecified";
  }
}

}  // namespace wukong
