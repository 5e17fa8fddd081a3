#include "runtime/sync/presets.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/base/clock.h"

namespace wukong {
namespace {

// A level where every contribution of every child is merged as it is.
void FillLevel(int64_t quorum, int64_t staleness_max, CodecKind codec, Level* level) {
  level->set_quorum(quorum);
  level->set_grace_ns(0);
  level->set_learning_rate(1.0);
  level->set_momentum(0.0);
  level->set_momentum_delay(1);
  level->set_weight(WEIGHT_EQUAL);
  level->set_average(AVERAGE_MEAN);
  level->set_robust(ROBUST_NORM_CLIP);
  level->set_norm_ratio(3.0);
  level->set_staleness_max(staleness_max);
  level->set_staleness_decay(STALENESS_DECAY_NONE);
  level->set_mix(1.0);
  level->set_codec_up(codec);
  level->set_codec_down(codec);
}

void SetMomentum(double learning_rate, double momentum, int64_t delay, Level* level) {
  level->set_learning_rate(learning_rate);
  level->set_momentum(momentum);
  level->set_momentum_delay(delay);
}

// Everybody trains on while contributions travel; each is merged when it comes.
Strategy Asynchronous() {
  Strategy strategy;
  strategy.set_inner_steps(16);
  strategy.set_step_scaling(STEP_SCALING_SPEED);
  strategy.set_in_flight(IN_FLIGHT_KEEP);
  strategy.set_in_flight_max(2);
  strategy.set_progress(PROGRESS_PARAMETERS);
  FillLevel(1, 64, CODEC_KIND_INT8, strategy.mutable_region());
  FillLevel(1, 64, CODEC_KIND_INT8, strategy.mutable_root());
  strategy.mutable_region()->set_send_every(kAll);
  strategy.mutable_region()->set_flush_age_ns(5 * kSecond);
  return strategy;
}

// Everybody waits for everybody.
Strategy Synchronous() {
  Strategy strategy;
  strategy.set_inner_steps(16);
  strategy.set_step_scaling(STEP_SCALING_FIXED);
  strategy.set_in_flight(IN_FLIGHT_WAIT);
  strategy.set_in_flight_max(1);
  strategy.set_progress(PROGRESS_PARAMETERS);
  FillLevel(kAll, 0, CODEC_KIND_FP32, strategy.mutable_region());
  FillLevel(kAll, 0, CODEC_KIND_FP32, strategy.mutable_root());
  strategy.mutable_region()->set_send_every(1);
  strategy.mutable_region()->set_flush_age_ns(0);
  return strategy;
}

// Rounds of everybody, of which one is on its way while the next is trained.
Strategy Overlapped(int64_t staleness_max) {
  Strategy strategy = Synchronous();
  strategy.set_in_flight(IN_FLIGHT_OVERLAP);
  strategy.mutable_region()->set_staleness_max(staleness_max);
  strategy.mutable_root()->set_staleness_max(staleness_max);
  return strategy;
}

// docs/strategies.md has the papers and where these numbers come from.
Strategy KnobsOf(Preset preset, const Job& job) {
  Strategy strategy;
  int64_t leaves = 1;  // Of the largest region.
  for (const Region& region : job.regions()) leaves = std::max(leaves, RegionLeaves(region));
  const int64_t half = std::max(1, (job.regions_size() + 1) / 2);
  switch (preset) {
    case PRESET_DDP:
      strategy = Synchronous();
      strategy.set_inner_steps(1);
      strategy.set_progress(PROGRESS_GRADIENT);
      for (Level* level : {strategy.mutable_region(), strategy.mutable_root()}) {
        level->set_weight(WEIGHT_TOKENS);
        level->set_robust(ROBUST_NONE);
      }
      return strategy;
    case PRESET_LOCAL_SGD:
      return Synchronous();
    case PRESET_DILOCO:
      strategy = Synchronous();
      SetMomentum(0.7, 0.9, 1, strategy.mutable_root());
      return strategy;
    case PRESET_STREAMING_DILOCO:
      strategy = Overlapped(8);
      strategy.set_inner_steps(4);
      strategy.set_parts(4);
      strategy.set_in_flight_max(4);  // Each part once.
      SetMomentum(0.7, 0.9, 1, strategy.mutable_root());
      for (Level* level : {strategy.mutable_region(), strategy.mutable_root()}) {
        level->set_codec_up(CODEC_KIND_INT4);
        level->set_codec_down(CODEC_KIND_INT4);
      }
      return strategy;
    case PRESET_EAGER_DILOCO:
      strategy = Overlapped(4);
      strategy.set_pending(PENDING_SHARE);
      SetMomentum(0.7, 0.9, 1, strategy.mutable_root());
      return strategy;
    case PRESET_ASYNC_NESTEROV:
      strategy = Asynchronous();
      SetMomentum(0.7, 0.9, 1, strategy.mutable_root());
      strategy.set_unstable(UNSTABLE_ALLOWED);
      return strategy;
    case PRESET_FEDBUFF:
      strategy = Asynchronous();
      strategy.mutable_root()->set_quorum(half);
      for (Level* level : {strategy.mutable_region(), strategy.mutable_root()}) {
        level->set_staleness_decay(STALENESS_DECAY_POLYNOMIAL);
      }
      return strategy;
    case PRESET_HALOS:
      strategy = Asynchronous();
      strategy.set_inner_steps(8);
      strategy.set_rebase(REBASE_REPLACE);
      strategy.set_unstable(UNSTABLE_ALLOWED);
      SetMomentum(0.8, 0.9, 4 * leaves, strategy.mutable_region());
      SetMomentum(0.6, 0.5, 2, strategy.mutable_root());
      strategy.mutable_region()->set_send_every(8 * leaves);
      strategy.mutable_region()->set_flush_age_ns(30 * kSecond);
      strategy.mutable_root()->set_mix(0.25);
      return strategy;
    case PRESET_DECOUPLED:
      strategy = Asynchronous();
      SetMomentum(0.7, 0.5, 1, strategy.mutable_root());
      strategy.mutable_root()->set_quorum(half);
      strategy.mutable_root()->set_grace_ns(half < job.regions_size() ? kSecond / 2 : 0);
      strategy.mutable_root()->set_average(AVERAGE_DIRECTION_NORM);
      for (Level* level : {strategy.mutable_region(), strategy.mutable_root()}) {
        level->set_weight(WEIGHT_TOKENS_SQUARED_PER_STEP);
      }
      return strategy;
    case PRESET_SSP:
      strategy = Asynchronous();
      strategy.set_step_scaling(STEP_SCALING_FIXED);
      strategy.set_lead_max(3);
      return strategy;
    case PRESET_SPARSELOCO:
      strategy = Synchronous();
      strategy.mutable_root()->set_codec_up(CODEC_KIND_TOPK);
      strategy.mutable_root()->set_codec_down(CODEC_KIND_INT8);
      return strategy;
    default:
      strategy = Asynchronous();
      SetMomentum(0.7, 0.5, kAll, strategy.mutable_root());
      return strategy;
  }
}

}  // namespace

int64_t RegionLeaves(const Region& region) { return region.collective() == COLLECTIVE_GLOO ? 1 : region.workers(); }

absl::Status ResolveStrategy(Job* job) {
  const Preset preset = job->strategy().preset() == PRESET_UNSPECIFIED ? PRESET_ASYNC : job->strategy().preset();
  if (!Preset_IsValid(preset)) {
    std::vector<std::string> names;
    for (int value = PRESET_UNSPECIFIED + 1; value <= Preset_MAX; ++value) {
      names.push_back(absl::AsciiStrToLower(Preset_Name(static_cast<Preset>(value)).substr(sizeof("PRESET_") - 1)));
    }
    return absl::InvalidArgumentError(absl::StrCat("strategy.preset: unknown (expected one of ",
                                                   absl::StrJoin(names, ", "), ", got number ", preset, ")"));
  }
  Strategy resolved;
  resolved.set_parts(1);
  resolved.set_rebase(REBASE_MOVE);
  resolved.set_pending(PENDING_FULL);
  resolved.set_lead_max(0);
  resolved.set_unstable(UNSTABLE_REFUSED);
  resolved.MergeFrom(KnobsOf(preset, *job));
  resolved.MergeFrom(job->strategy());
  resolved.set_preset(preset);
  if (resolved.in_flight() == IN_FLIGHT_WAIT && !job->strategy().has_in_flight_max()) {
    resolved.set_in_flight_max(1);
  }
  // A sum of contributions is exact; who asks for it does not want them cut.
  const auto exact = [](const Level& asked, Level* level) {
    if (level->weight() == WEIGHT_SUM && !asked.has_robust()) level->set_robust(ROBUST_NONE);
  };
  exact(job->strategy().region(), resolved.mutable_region());
  exact(job->strategy().root(), resolved.mutable_root());
  *job->mutable_strategy() = std::move(resolved);
  return absl::OkStatus();
}

}  // namespace wukong
