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
  options.node.waits = strategy.in_flight() != IN_FLIGHT_KEEP;
  options.node.in_flight_max = strategy.in_flight_max();
  options.node.tells_lead = strategy.lead_max() > 0;
  options.node.norm_ratio_max = job.limits().norm_ratio_max();
  options.node.quarantine = absl::Nanoseconds(job.limits().quarantine_ns());
  options.progress = strategy.progress();
  options.codec_down = level.codec_down();
  options.fragments = std::move(fragments);
  options.node.parts = std::max(1, strategy.parts());
  if (is_root) return options;
  options.replica = ReplicaOptionsOf(job, /*parent_is_root=*/true, job.regions_size());
  return options;
}

Replica::Options ReplicaOptionsOf(const Job& job, bool parent_is_root, int64_t siblings) {
  const Strategy& strategy = job.strategy();
  const Level& level = parent_is_root ? strategy.root() : strategy.region();
  Replica::Options options;
  options.codec = level.codec_up();
  options.mix = level.mix();
  options.progress = strategy.progress();
  options.parts = std::max(1, strategy.parts());
  options.replaces = strategy.rebase() == REBASE_REPLACE;
  if (strategy.pending() == PENDING_SHARE) {
    // At the merge that takes it; what its momentum does later is not counted.
    const double at_once = level.momentum_delay() == 1 ? 1 + level.momentum() : 1;
    options.pending_weight = std::min(1.0, level.learning_rate() * at_once / static_cast<double>(siblings));
  }
  return options;
}

int64_t LargestStep(const Job& job) {
  int64_t most = 1;  // Ranks that act as one leaf.
  for (const Region& region : job.regions()) {
    if (region.collective() == COLLECTIVE_GLOO) most = std::max<int64_t>(most, region.workers());
  }
  return most * job.optimizer().micro_batch() * std::max(1, job.optimizer().accumulation());
}

LeafSchedule::Options LeafOptionsOf(const Job& job, int64_t group_size, absl::Duration prefetch) {
  const Strategy& strategy = job.strategy();
  LeafSchedule::Options options;
  options.inner_steps = strategy.inner_steps();
  options.scale_steps_by_speed = strategy.step_scaling() == STEP_SCALING_SPEED;
  options.waits = strategy.in_flight() == IN_FLIGHT_WAIT;
  options.overlaps = strategy.in_flight() == IN_FLIGHT_OVERLAP;
  options.in_flight_max = strategy.in_flight_max();
  options.lead_max = strategy.lead_max();
  options.step_samples =
      int64_t{job.optimizer().micro_batch()} * std::max(1, job.optimizer().accumulation()) * group_size;
  options.tokens_per_sample = job.model().context();
  options.gradient_progress = strategy.progress() == PROGRESS_GRADIENT;
  options.prefetch = prefetch;
  return options;
}

int VersionsAhead(bool parent_is_root, absl::Span<const FragmentSpan> fragments) {
  constexpr int64_t kLeast = 2, kMost = 8;
  constexpr int64_t kBytes = int64_t{64} << 20;
  if (!parent_is_root) return kLeast;
  const auto model_bytes = fragments.back().end * static_cast<int64_t>(sizeof(float));
  return static_cast<int>(std::clamp(kBytes / model_bytes, kLeast, kMost));
}

LeafSchedule::ParentState ParentStateOf(const FollowedParameters::Snapshot& snapshot) {
  return {snapshot.version, snapshot.included, snapshot.root_version, snapshot.lead};
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
