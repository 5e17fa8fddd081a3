#include "runtime/sync/node_options.h"

#include <algorithm>
#include <utility>

#include "runtime/base/mutation.h"

namespace wukong {

NodeEngine::Options NodeOptionsOf(const Job& job, bool is_root, std::vector<FragmentSpan> fragments) {
  const Strategy& strategy = job.strategy();
  const Level& level = is_root ? strategy.root() : strategy.region();
  NodeEngine::Options options;
  options.node.is_root = is_root;
  options.node.level = level;
  options.node.waits = strategy.in_flight() == IN_FLIGHT_WAIT;
  options.node.in_flight_max = strategy.in_flight_max();
  options.node.norm_ratio_max = job.limits().norm_ratio_max();
  options.node.quarantine = absl::Nanoseconds(job.limits().quarantine_ns());
  options.progress = strategy.progress();
  options.codec_down = level.codec_down();
  options.fragments = std::move(fragments);
  if (is_root) return options;
  options.replica.codec = strategy.root().codec_up();
  options.replica.mix = strategy.root().mix();
  options.replica.progress = strategy.progress();
  return options;
}

VersionNotes NotesOf(const RootState& state) {
  VersionNotes notes;
  notes.root_version = Version(std::max<int64_t>(1, state.version()));
  notes.tokens_committed = state.tokens_merged();
  for (const RootMember& member : state.members()) {
    if (member.told() == 0 || Mutated("recovery.forgets_the_notes")) continue;
    notes.included[{MemberId(member.member()), Incarnation(member.incarnation())}] = Sequence(member.told());
  }
  return notes;
}

}  // namespace wukong
