#include "runtime/sync/presets.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace wukong {
namespace {

// How `all` is kept in a message.
constexpr int64_t kAll = 0;

// What the presets have in common at every level.
void FillLevel(int64_t quorum, double learning_rate, double momentum, int64_t momentum_delay, Weight weight,
               int64_t staleness_max, CodecKind codec, Level* level) {
  level->set_quorum(quorum);
  level->set_learning_rate(learning_rate);
  level->set_momentum(momentum);
  level->set_momentum_delay(momentum_delay);
  level->set_weight(weight);
  level->set_staleness_max(staleness_max);
  level->set_staleness_decay(STALENESS_DECAY_NONE);
  level->set_mix(1.0);
  level->set_codec_up(codec);
  level->set_codec_down(codec);
}

Strategy MakePreset(Preset preset) {
  Strategy strategy;
  strategy.set_preset(preset);
  Level* region = strategy.mutable_region();
  Level* root = strategy.mutable_root();
  if (preset == PRESET_ASYNC) {
    strategy.set_inner_steps(16);
    strategy.set_step_scaling(STEP_SCALING_SPEED);
    strategy.set_in_flight(IN_FLIGHT_KEEP);
    strategy.set_in_flight_max(2);
    strategy.set_progress(PROGRESS_PARAMETERS);
    FillLevel(1, 1.0, 0.0, 1, WEIGHT_EQUAL, 64, CODEC_KIND_INT8, region);
    FillLevel(1, 0.7, 0.5, kAll, WEIGHT_EQUAL, 64, CODEC_KIND_INT8, root);
    region->set_send_every(kAll);
    region->set_flush_age_ns(5'000'000'000);
    return strategy;
  }
  strategy.set_step_scaling(STEP_SCALING_FIXED);
  strategy.set_in_flight(IN_FLIGHT_WAIT);
  strategy.set_in_flight_max(1);
  if (preset == PRESET_DILOCO) {
    strategy.set_inner_steps(16);
    strategy.set_progress(PROGRESS_PARAMETERS);
    FillLevel(kAll, 1.0, 0.0, 1, WEIGHT_EQUAL, 0, CODEC_KIND_FP32, region);
    FillLevel(kAll, 0.7, 0.9, 1, WEIGHT_EQUAL, 0, CODEC_KIND_FP32, root);
  } else {
    strategy.set_inner_steps(1);
    strategy.set_progress(PROGRESS_GRADIENT);
    FillLevel(kAll, 1.0, 0.0, 1, WEIGHT_TOKENS, 0, CODEC_KIND_FP32, region);
    FillLevel(kAll, 1.0, 0.0, 1, WEIGHT_TOKENS, 0, CODEC_KIND_FP32, root);
  }
  region->set_send_every(1);
  region->set_flush_age_ns(0);
  return strategy;
}

class Checker {
 public:
  explicit Checker(const Job& job) : strategy_(job.strategy()), keeps_(strategy_.in_flight() == IN_FLIGHT_KEEP) {
    for (const Region& region : job.regions()) {
      most_leaves_ = std::max(most_leaves_, RegionLeaves(region));
      if (fewest_leaves_ == 0 || RegionLeaves(region) < fewest_leaves_) {
        fewest_leaves_ = RegionLeaves(region);
        fewest_leaves_region_ = region.name();
      }
    }
    regions_ = job.regions_size();
  }

  std::vector<StrategyProblem> Run() {
    CheckWhole();
    CheckLevel("strategy.region", strategy_.region(), most_leaves_);
    CheckLevel("strategy.root", strategy_.root(), regions_);
    CheckQuorumCanFill();
    if (strategy_.progress() == PROGRESS_GRADIENT) {
      CheckGradient();
    }
    return std::move(problems_);
  }

 private:
  void Add(std::string key, std::string reason) { problems_.push_back({std::move(key), std::move(reason)}); }

  // Contributions of `children` that one merge takes.
  static int64_t Quorum(const Level& level, int64_t children) {
    return level.quorum() == kAll ? children : std::min(level.quorum(), children);
  }

  void CheckWhole() {
    if (!keeps_ && strategy_.in_flight_max() > 1) {
      Add("strategy.in_flight_max", absl::StrCat("a sender that waits has one contribution in flight (expected 1 with "
                                                 "in_flight: wait, got ",
                                                 strategy_.in_flight_max(), "); set in_flight: keep for more"));
    }
    if (strategy_.region().momentum() > 0 && strategy_.root().momentum() > 0) {
      Add("strategy.region.momentum",
          absl::StrFormat(
              "two levels of momentum diverge at small delays (expected 0 at the region or at the root, got "
              "%g and %g); set one of them to 0",
              strategy_.region().momentum(), strategy_.root().momentum()));
    }
    if (strategy_.root().has_send_every()) {
      Add("strategy.root.send_every", "the root sends to nobody above it; set strategy.region.send_every");
    }
    if (strategy_.root().has_flush_age_ns()) {
      Add("strategy.root.flush_age", "the root sends to nobody above it; set strategy.region.flush_age");
    }
  }

  void CheckLevel(const std::string& key, const Level& level, int64_t children) {
    if (level.mix() <= 0) {
      Add(key + ".mix", "with 0 no child would ever take its parent's parameters (expected more than 0, up to 1)");
    }
    // With contributions that reach the optimum of their own data (the strongest there are), Nesterov without any delay
    // is stable below 2 (1 + beta) / (1 + 2 beta): 2 at beta = 0 and 1.36 at 0.9.
    const double limit = 2 * (1 + level.momentum()) / (1 + 2 * level.momentum());
    if (level.learning_rate() >= limit) {
      Add(key + ".learning_rate",
          absl::StrFormat("overshoots even without delay (expected less than %.3g with momentum "
                          "%g, got %g); 0.7 is usual",
                          limit, level.momentum(), level.learning_rate()));
    }
    if (children == 0) {
      return;
    }
    const int64_t quorum = Quorum(level, children);
    if (level.momentum() > 0.5 && quorum < children && level.momentum_delay() == 1) {
      Add(key + ".momentum",
          absl::StrFormat(
              "Nesterov at every arrival is unstable under delay: with momentum 0.9 the largest stable gain falls from "
              "1.36 to 0.045 at 3 merges of delay and to 0.018 at 7 (expected at most 0.5, momentum_delay: all, or "
              "quorum: all; got momentum %g with quorum %d of %d and momentum_delay 1)",
              level.momentum(), quorum, children));
    }
    // At equal speeds the others' merges between two contributions of one child, and one more where it goes on from
    // an older base while its last contribution is in flight.
    const int64_t usual = (children - quorum + quorum - 1) / quorum + (keeps_ ? 1 : 0);
    if (level.staleness_max() < usual) {
      Add(key + ".staleness_max",
          absl::StrFormat("would refuse the contributions of children of equal speed (expected at least %d with quorum "
                          "%d of %d and in_flight: %s, got %d)",
                          usual, quorum, children, keeps_ ? "keep" : "wait", level.staleness_max()));
    }
  }

  void CheckQuorumCanFill() {
    if (fewest_leaves_ > 0 && strategy_.region().quorum() > fewest_leaves_) {
      Add("strategy.region.quorum",
          absl::StrFormat("can never be reached in region %s (expected at most its %d %s or `all`, got %d)",
                          fewest_leaves_region_, fewest_leaves_, fewest_leaves_ == 1 ? "leaf" : "leaves",
                          strategy_.region().quorum()));
    }
    if (regions_ > 0 && strategy_.root().quorum() > regions_) {
      Add("strategy.root.quorum",
          absl::StrFormat("can never be reached (expected at most the job's %d %s or `all`, got %d)", regions_,
                          regions_ == 1 ? "region" : "regions", strategy_.root().quorum()));
    }
  }

  // Averaged gradients are one optimizer step of the whole job: nobody may be ahead, behind or left out.
  void CheckGradient() {
    if (strategy_.inner_steps() != 1) {
      Add("strategy.inner_steps",
          absl::StrCat("gradients are averaged at every step (expected 1 with progress: gradient, got ",
                       strategy_.inner_steps(), "); set progress: parameters for more"));
    }
    if (keeps_) {
      Add("strategy.in_flight",
          "a step needs the averaged gradient before the next one starts (expected wait with progress: gradient, got "
          "keep)");
    }
    if (strategy_.region().send_every() != 1) {
      Add("strategy.region.send_every",
          absl::StrFormat("every step's gradient goes to the root (expected 1 with progress: gradient, got %s)",
                          strategy_.region().send_every() == kAll ? std::string("all")
                                                                  : absl::StrCat(strategy_.region().send_every())));
    }
    const std::pair<const char*, const Level*> levels[] = {{"strategy.region", &strategy_.region()},
                                                           {"strategy.root", &strategy_.root()}};
    for (const auto& [key, level] : levels) {
      if (level->quorum() != kAll) {
        Add(absl::StrCat(key, ".quorum"),
            absl::StrCat("a gradient that is left out of its step is lost (expected all with progress: gradient, got ",
                         level->quorum(), ")"));
      }
      if (level->momentum() != 0) {
        Add(absl::StrCat(key, ".momentum"),
            absl::StrFormat(
                "the inner optimizer has the momentum of averaged gradients (expected 0 with progress: gradient, "
                "got %g)",
                level->momentum()));
      }
      if (level->learning_rate() != 1) {
        Add(absl::StrCat(key, ".learning_rate"),
            absl::StrFormat("would scale the gradient (expected 1 with progress: gradient, got %g); set "
                            "optimizer.learning_rate",
                            level->learning_rate()));
      }
      if (level->mix() != 1) {
        Add(absl::StrCat(key, ".mix"), absl::StrFormat("everybody takes the same averaged gradient (expected 1 with "
                                                       "progress: gradient, got %g)",
                                                       level->mix()));
      }
    }
  }

  const Strategy& strategy_;
  const bool keeps_;
  int64_t regions_ = 0;
  int64_t most_leaves_ = 0;
  int64_t fewest_leaves_ = 0;
  std::string fewest_leaves_region_;
  std::vector<StrategyProblem> problems_;
};

}  // namespace

int64_t RegionLeaves(const Region& region) { return region.collective() == COLLECTIVE_GLOO ? 1 : region.workers(); }

absl::Status ResolveStrategy(Job* job) {
  const Preset preset = job->strategy().preset() == PRESET_UNSPECIFIED ? PRESET_ASYNC : job->strategy().preset();
  if (preset != PRESET_ASYNC && preset != PRESET_DILOCO && preset != PRESET_DDP) {
    return absl::InvalidArgumentError(
        absl::StrCat("strategy.preset: unknown (expected async, diloco or ddp, got number ", preset, ")"));
  }
  Strategy resolved = MakePreset(preset);
  resolved.MergeFrom(job->strategy());
  resolved.set_preset(preset);
  if (resolved.in_flight() == IN_FLIGHT_WAIT && !job->strategy().has_in_flight_max()) {
    resolved.set_in_flight_max(1);
  }
  *job->mutable_strategy() = std::move(resolved);
  return absl::OkStatus();
}

std::vector<StrategyProblem> FindStrategyProblems(const Job& job) { return Checker(job).Run(); }

absl::Status CheckStrategy(const Job& job) {
  std::string text;
  for (const StrategyProblem& problem : FindStrategyProblems(job)) {
    absl::StrAppend(&text, text.empty() ? "" : "\n", problem.key, ": ", problem.reason);
  }
  return text.empty() ? absl::OkStatus() : absl::InvalidArgumentError(text);
}

}  // namespace wukong
