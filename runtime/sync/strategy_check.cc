// Which choices of knobs cannot work, and why.
#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/sync/presets.h"
#include "runtime/sync/stable_gain.h"

namespace wukong {
namespace {

class Checker {
 public:
  explicit Checker(const Job& job)
      : job_(job),
        strategy_(job.strategy()),
        keeps_(strategy_.in_flight() != IN_FLIGHT_WAIT),
        unstable_(strategy_.unstable() == UNSTABLE_ALLOWED),
        norm_ratio_limit_(job.limits().norm_ratio_max()) {
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
    CheckRegionSends();
    if (strategy_.progress() == PROGRESS_GRADIENT) {
      CheckGradient();
    }
    return std::move(problems_);
  }

 private:
  const char* InFlightName() const {
    return !keeps_ ? "wait" : strategy_.in_flight() == IN_FLIGHT_OVERLAP ? "overlap" : "keep";
  }
  void Add(std::string key, std::string reason) { problems_.push_back({std::move(key), std::move(reason)}); }

  // Contributions of `children` that one merge takes.
  static int64_t Quorum(const Level& level, int64_t children) {
    return level.quorum() == kAll ? children : std::min(level.quorum(), children);
  }

  void CheckWhole() {
    if (!keeps_ && strategy_.in_flight_max() > 1) {
      Add("strategy.in_flight_max",
          absl::StrCat("a sender that waits has one contribution in flight (expected 1 with "
                       "in_flight: wait, got ",
                       strategy_.in_flight_max(), "); set in_flight: keep or overlap for more"));
    }
    if (strategy_.region().momentum() > 0 && strategy_.root().momentum() > 0 && !unstable_) {
      Add("strategy.region.momentum",
          absl::StrFormat(
              "two levels of momentum diverge at small delays (expected 0 at the region or at the root, got "
              "%g and %g); set one of them to 0, or strategy.unstable: allowed",
              strategy_.region().momentum(), strategy_.root().momentum()));
    }
    if (strategy_.root().has_send_every()) {
      Add("strategy.root.send_every", "the root sends to nobody above it; set strategy.region.send_every");
    }
    if (strategy_.root().has_flush_age_ns()) {
      Add("strategy.root.flush_age", "the root sends to nobody above it; set strategy.region.flush_age");
    }
    if (strategy_.lead_max() > 0 && !keeps_) {
      Add("strategy.lead_max", absl::StrCat("who waits for everybody is never ahead (expected 0 with in_flight: wait, "
                                            "got ",
                                            strategy_.lead_max(), ")"));
    }
    if (strategy_.pending() == PENDING_SHARE && !keeps_) {
      Add("strategy.pending",
          "nothing is in flight when a child that waits takes parameters (expected full with "
          "in_flight: wait, got share)");
    }
    if (strategy_.rebase() == REBASE_REPLACE) CheckReplace();
  }

  // What a child does while its contribution travels is overwritten.
  void CheckReplace() {
    if (strategy_.pending() == PENDING_SHARE) {
      Add("strategy.pending",
          "parameters that are replaced hold nothing of what is in flight (expected full with "
          "rebase: replace, got share)");
    }
    if (strategy_.region().weight() == WEIGHT_SUM || strategy_.root().weight() == WEIGHT_SUM) {
      Add("strategy.rebase",
          "throws progress away, and a sum counts every sample (expected move with weight: sum, got "
          "replace)");
    }
  }

  void CheckLevel(const std::string& key, const Level& level, int64_t children) {
    if (level.mix() <= 0 && !unstable_) {
      Add(key + ".mix",
          "with 0 no child would ever take its parent's parameters (expected more than 0, up to 1; "
          "strategy.unstable: allowed keeps them apart)");
    }
    if (level.weight() == WEIGHT_SUM && level.robust() != ROBUST_NONE) {
      Add(key + ".robust", "a sum counts every contribution as it is (expected none with weight: sum)");
    }
    if (level.weight() == WEIGHT_SUM && level.average() != AVERAGE_MEAN) {
      Add(key + ".average", "a sum counts every contribution as it is (expected mean with weight: sum)");
    }
    const bool by_coordinate = level.robust() == ROBUST_MEDIAN || level.robust() == ROBUST_TRIMMED_MEAN ||
                               level.robust() == ROBUST_CENTERED_CLIP;
    if (by_coordinate && level.average() != AVERAGE_MEAN) {
      Add(key + ".average", "this choice of robust is itself a way to average (expected mean)");
    }
    if (by_coordinate && strategy_.parts() > 1) {
      Add(key + ".robust", absl::StrCat("a contribution of another part says nothing of a coordinate, and would be "
                                        "counted as zero (expected none or norm_clip with strategy.parts: ",
                                        strategy_.parts(), ")"));
    }
    if (level.norm_ratio() > norm_ratio_limit_ && norm_ratio_limit_ > 0 && level.robust() == ROBUST_NORM_CLIP) {
      Add(key + ".norm_ratio",
          absl::StrFormat("contributions beyond limits.norm_ratio_max (%g) are refused before they "
                          "are clipped (expected at most that, got %g)",
                          norm_ratio_limit_, level.norm_ratio()));
    }
    if (children == 0) {
      CheckGain(key, level, 1, 1);
      return;
    }
    const int64_t quorum = Quorum(level, children);
    if (strategy_.lead_max() > 0 && keeps_ && quorum > 1) {
      Add(key + ".quorum",
          absl::StrFormat("whoever is ahead waits for the slowest, whose contribution would wait for the others' "
                          "(expected 1 with strategy.lead_max: %d, got %d)",
                          strategy_.lead_max(), quorum));
    }
    if (strategy_.lead_max() > 0 && keeps_ && level.grace_ns() > 0) {
      Add(key + ".grace",
          absl::StrCat("versions that tell who is ahead would come while a contribution waits, until it "
                       "is too old (expected 0 with strategy.lead_max: ",
                       strategy_.lead_max(), ")"));
    }
    CheckGain(key, level, children, quorum);
    // The smallest region has the fewest voices.
    const bool of_regions = &level == &strategy_.region();
    const int64_t fewest = of_regions ? fewest_leaves_ : children;
    if (const int64_t voices = Quorum(level, fewest); by_coordinate && voices < 3) {
      Add(key + ".robust",
          absl::StrFormat("the middle of fewer than three contributions tells nothing (expected a quorum of at least "
                          "3, got %d of %d%s)",
                          voices, fewest, of_regions ? absl::StrCat(" in ", fewest_leaves_region_) : ""));
    }
    if (level.grace_ns() > 0 && quorum == children) {
      Add(key + ".grace", absl::StrFormat("everybody's contributions are there when the quorum is (expected 0 with a "
                                          "quorum of %d of %d)",
                                          quorum, children));
    }
    // At equal speeds the others' merges between two contributions of one child, and one more where it goes on from
    // an older base while its last contribution is in flight.
    const int64_t usual = (children - quorum + quorum - 1) / quorum + (keeps_ ? 1 : 0);
    if (level.staleness_max() < usual) {
      Add(key + ".staleness_max",
          absl::StrFormat("would refuse the contributions of children of equal speed (expected at least %d with quorum "
                          "%d of %d and in_flight: %s, got %d)",
                          usual, quorum, children, InFlightName(), level.staleness_max()));
    }
  }

  void CheckGain(const std::string& key, const Level& level, int64_t children, int64_t quorum) {
    if (unstable_ || level.weight() == WEIGHT_SUM || strategy_.progress() == PROGRESS_GRADIENT) return;
    DelayModel model;
    model.children = children;
    model.quorum = quorum;
    const double without_momentum = LargestStableGain(model);
    model.momentum = level.momentum();
    model.momentum_delay = level.momentum_delay() == kAll ? children : level.momentum_delay();
    const double limit = LargestStableGain(model);
    if (level.learning_rate() < limit) return;
    const std::string where = absl::StrFormat(
        "expected a learning rate below %.3g with momentum %g, momentum_delay %d and a quorum of %d of %d, got %g",
        limit, level.momentum(), model.momentum_delay, quorum, children, level.learning_rate());
    const bool by_momentum = quorum < children && level.learning_rate() < without_momentum;
    Add(key + (by_momentum ? ".momentum" : ".learning_rate"),
        absl::StrCat(by_momentum ? "diverges under the delay of an asynchronous merge" : "overshoots", " (", where,
                     by_momentum ? "); lower it, set momentum_delay: all or quorum: all" : "); 0.7 is usual",
                     ", or strategy.unstable: allowed to try it"));
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

  // Who waits for the root to include its contribution makes no further one for its region to send.
  void CheckRegionSends() {
    if (strategy_.in_flight() == IN_FLIGHT_KEEP || strategy_.region().flush_age_ns() > 0) return;
    for (const Region& region : job_.regions()) {
      const int64_t leaves = RegionLeaves(region);
      const int64_t quorum = std::max<int64_t>(1, Quorum(strategy_.region(), leaves));
      const int64_t rounds = keeps_ ? strategy_.in_flight_max() : 1;
      const bool all = strategy_.region().send_every() == kAll;
      // Whole merges: who is left over waits for others who wait for the root.
      const int64_t most = leaves / quorum * quorum * rounds;
      if ((all ? leaves : strategy_.region().send_every()) <= most) continue;
      Add("strategy.region.send_every",
          absl::StrFormat("the workers of %s wait for the root after %d contributions, which their region would keep "
                          "(expected at most %d%s with in_flight: %s, got %s); set strategy.region.flush_age for more",
                          region.name(), most, most, leaves <= most ? " or all" : "", InFlightName(),
                          all ? "all" : absl::StrCat(strategy_.region().send_every())));
      return;
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
          absl::StrCat("a step needs the averaged gradient before the next one starts (expected wait with progress: "
                       "gradient, got ",
                       InFlightName(), ")"));
    }
    if (strategy_.parts() != 1) {
      Add("strategy.parts", absl::StrCat("a step needs the whole gradient (expected 1 with progress: gradient, got ",
                                         strategy_.parts(), ")"));
    }
    if (strategy_.rebase() != REBASE_MOVE) {
      Add("strategy.rebase", "a gradient is no progress that could be kept (expected move with progress: gradient)");
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
        Add(absl::StrCat(key, ".momentum"), absl::StrFormat("the inner optimizer has the momentum of averaged "
                                                            "gradients (expected 0 with progress: gradient, got %g)",
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

  const Job& job_;
  const Strategy& strategy_;
  const bool keeps_;  // Senders train on while a contribution is in flight.
  const bool unstable_;
  const double norm_ratio_limit_;  // 0 for none.
  int64_t regions_ = 0;
  int64_t most_leaves_ = 0;
  int64_t fewest_leaves_ = 0;
  std::string fewest_leaves_region_;
  std::vector<StrategyProblem> problems_;
};

}  // namespace

std::vector<StrategyProblem> FindStrategyProblems(const Job& job) { return Checker(job).Run(); }

absl::Status CheckStrategy(const Job& job) {
  std::string text;
  for (const StrategyProblem& problem : FindStrategyProblems(job)) {
    absl::StrAppend(&text, text.empty() ? "" : "\n", problem.key, ": ", problem.reason);
  }
  return text.empty() ? absl::OkStatus() : absl::InvalidArgumentError(text);
}

}  // namespace wukong
