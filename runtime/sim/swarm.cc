#include "runtime/sim/swarm.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "runtime/base/clock.h"
#include "runtime/base/random.h"
#include "runtime/sim/scenario_problems.h"
#include "runtime/sim/simulation.h"

namespace wukong {
namespace {

constexpr double kSlowMost = 128;
constexpr double kTrainedBy = 40;  // Seconds; by then all members have come, faults or not.

class Drawing {
 public:
  Drawing(uint64_t seed, uint64_t index) : random_(DeriveSeed(seed, "swarm", index)) {
    scenario_.set_name(absl::StrCat("swarm-", seed, "-", index));
    scenario_.set_seed(random_.Below(1'000'000'000) + 1);
  }

  Scenario Draw() {
    DrawRegions();
    DrawLinks();
    DrawLimits();
    DrawWorkload();
    DrawStrategy();
    scenario_.mutable_restarts()->set_after_ns(Milliseconds(0.1, 5));
    scenario_.mutable_disk()->set_sync_ns(Milliseconds(0.001, 0.02));
    quiet_after_ = Chance(0.6) ? Seconds(kTrainedBy + 10 * rtt_, std::max(0.8 * seconds_, kTrainedBy + 10 * rtt_)) : 0;
    faults_until_ = quiet_after_ > 0 ? quiet_after_ : Seconds(0.3 * seconds_, seconds_);
    const int64_t faults = Between(0, 8);
    for (int64_t i = 0; i < faults; ++i) DrawFault();
    if (quiet_after_ > 0) {
      scenario_.mutable_quiesce()->set_after_ns(Nanoseconds(quiet_after_));
      scenario_.mutable_quiesce()->set_within_ns(Nanoseconds(LongestQuiet()));
    } else {
      scenario_.mutable_quiesce()->set_within_ns(Nanoseconds(60));
    }
    scenario_.mutable_expect()->set_within_ns(Nanoseconds(6 * 3600));
    return scenario_;
  }

 private:
  bool Chance(double probability) { return random_.Uniform() < probability; }
  int64_t Between(int64_t least, int64_t most) {
    return least + static_cast<int64_t>(random_.Below(static_cast<uint64_t>(most - least + 1)));
  }
  // With three decimals, so that a file can say it.
  double Real(double least, double most) {
    return std::round(1000 * (least + (most - least) * random_.Uniform())) / 1000;
  }
  double Seconds(double least, double most) { return Real(least, most); }
  double LogReal(double least, double most) {
    const double drawn = least * std::exp(std::log(most / least) * random_.Uniform());
    return std::max(0.001, std::round(1000 * drawn) / 1000);
  }
  static int64_t Nanoseconds(double seconds) {
    return static_cast<int64_t>(std::llround(seconds * 1000)) * kMillisecond;
  }
  int64_t Milliseconds(double least, double most) { return Nanoseconds(LogReal(least, most)); }
  template <typename T>
  T OneOf(const std::vector<T>& values) {
    return values[random_.Below(values.size())];
  }
  int regions() const { return scenario_.regions_size(); }

  void DrawRegions() {
    static constexpr const char* kNames[] = {"beijing", "shenzhen", "guizhou", "chengdu"};
    const int64_t count = Between(1, 4);
    for (int64_t r = 0; r < count; ++r) {
      Region* region = scenario_.add_regions();
      region->set_name(kNames[r]);
      region->set_workers(static_cast<int>(Between(1, 4)));
      region->set_device("cpu");
      region->set_collective(COLLECTIVE_NONE);
      region->set_threads(1);
      const bool differ = Chance(0.3);
      for (int w = 0; differ && w < region->workers(); ++w) region->add_speed(Real(0.2, 1));
      for (int w = 0; w < region->workers(); ++w) {
        const double speed = differ ? region->speed(w) : 1;
        speed_ += speed;
        slowest_ = std::min(slowest_, speed);
      }
      workers_ += region->workers();
    }
  }

  void DrawLinks() {
    Wan* wan = scenario_.mutable_wan();
    rtt_ = LogReal(0.001, 1);
    wan->set_rtt_ns(Nanoseconds(rtt_));
    wan->set_jitter_ns(Chance(0.5) ? Nanoseconds(rtt_ * 0.1) : 0);
    wan->set_bandwidth_bps(Chance(0.2) ? 0 : OneOf<int64_t>({1, 10, 100, 1000}) * 1'000'000);
    wan->set_loss(Chance(0.5) ? Real(0, 0.02) : 0);
    if (!Chance(0.3)) return;
    WanLink* link = wan->add_links();
    link->set_region(scenario_.regions(static_cast<int>(Between(0, regions() - 1))).name());
    link->set_direction(OneOf<Direction>({DIRECTION_BOTH, DIRECTION_UP, DIRECTION_DOWN}));
    const double rtt = LogReal(0.001, 1);
    link->set_rtt_ns(Nanoseconds(rtt));
    rtt_ = std::max(rtt_, rtt);
  }

  void DrawLimits() {
    Limits* limits = scenario_.mutable_limits();
    const double heartbeat = LogReal(0.1, 2);
    lease_ = std::max(5.0, 5 * heartbeat + 8 * rtt_) + Seconds(0, 10);
    limits->set_heartbeat_ns(Nanoseconds(heartbeat));
    limits->set_lease_ns(Nanoseconds(lease_));
    limits->set_start_ns(Nanoseconds(120));
    limits->set_rpc_ns(Nanoseconds(Seconds(10, 30)));
    limits->set_fragment_bytes(Between(1, 4) * 1024);
    limits->set_in_flight_bytes(64 << 20);
    limits->set_snapshot_bytes(OneOf<int64_t>({4, 16, 64, 256, 1024}) * 1024);
    limits->set_norm_ratio_max(Chance(0.8) ? 20 : 0);
    limits->set_quarantine_ns(Nanoseconds(Seconds(1, 20)));
    limits->set_streams_max(16);
  }

  void DrawWorkload() {
    Workload* workload = scenario_.mutable_workload();
    workload->set_fidelity(Chance(0.7) ? FIDELITY_COUNTER : FIDELITY_TOY);
    const bool counts = workload->fidelity() == FIDELITY_COUNTER;
    step_ = LogReal(0.05, 0.5);
    workload->set_step_ns(Nanoseconds(step_));
    workload->set_step_jitter(Real(0, 0.2));
    workload->set_micro_batch(static_cast<int>(Between(1, 8)));
    workload->set_range_steps(static_cast<int>(Between(1, 16)));
    workload->set_parameters(static_cast<int>(counts ? Between(1, 2000) : Between(1, 300)));
    workload->set_learning_rate(0.05);
    workload->set_noise(1);
    seconds_ = Seconds(60, 150);
    const double samples = speed_ / step_ * workload->micro_batch() * seconds_;
    workload->set_samples(std::max<int64_t>(100, static_cast<int64_t>(samples)));
  }

  // What does not go together with what was drawn before is not drawn.
  template <typename Change>
  void Try(double probability, Change change) {
    if (!Chance(probability)) return;
    const Strategy before = scenario_.strategy();
    change(scenario_.mutable_strategy());
    if (!FindScenarioProblems(scenario_).empty()) *scenario_.mutable_strategy() = before;
  }

  void DrawStrategy() {
    Strategy* strategy = scenario_.mutable_strategy();
    strategy->mutable_region();
    strategy->mutable_root();
    strategy->set_preset(Chance(0.4) ? PRESET_ASYNC : static_cast<Preset>(Between(PRESET_ASYNC, Preset_MAX)));
    const bool counts = scenario_.workload().fidelity() == FIDELITY_COUNTER;
    if (counts) {  // What a counter is exact with.
      strategy->set_parts(1);
      strategy->set_pending(PENDING_FULL);
      strategy->set_rebase(REBASE_MOVE);
    }
    // Some presets are not for every number of regions and workers.
    if (!FindScenarioProblems(scenario_).empty()) strategy->set_preset(PRESET_ASYNC);
    if (strategy->preset() == PRESET_DDP) return;
    Try(1, [&](Strategy* s) { s->set_inner_steps(static_cast<int>(Between(1, 32))); });
    if (strategy->preset() == PRESET_SSP) Try(0.5, [&](Strategy* s) { s->set_lead_max(Between(1, 6)); });
    const absl::StatusOr<Job> job = JobOfScenario(scenario_);
    CHECK(job.ok()) << job.status();
    const bool waits = job->strategy().in_flight() == IN_FLIGHT_WAIT;
    const bool keeps = job->strategy().in_flight() == IN_FLIGHT_KEEP;
    if (!waits) Try(0.5, [&](Strategy* s) { s->set_in_flight_max(static_cast<int>(Between(1, 4))); });
    if (keeps) {
      Try(0.5, [&](Strategy* s) { s->set_step_scaling(STEP_SCALING_FIXED); });
      // Who waits for a version waits for what its region has not sent.
      Try(0.5, [&](Strategy* s) { s->mutable_region()->set_send_every(Between(0, 4)); });
      Try(0.5, [&](Strategy* s) { s->mutable_region()->set_flush_age_ns(Nanoseconds(Seconds(1, 10))); });
    }
    if (!counts) {
      Try(0.25, [&](Strategy* s) { s->set_parts(static_cast<int>(Between(2, 4))); });
      Try(0.25, [&](Strategy* s) { s->set_rebase(REBASE_REPLACE); });
      Try(0.25, [&](Strategy* s) { s->set_pending(PENDING_SHARE); });
    }
    for (const bool root : {false, true}) DrawLevel(root, waits, counts, job->strategy().lead_max() > 0);
  }

  void DrawLevel(bool root, bool waits, bool counts, bool leads) {
    const auto try_level = [&](double probability, auto change) {
      Try(probability, [&](Strategy* s) { change(root ? s->mutable_root() : s->mutable_region()); });
    };
    if (!waits) try_level(0.5, [&](Level* level) { level->set_staleness_max(Between(2, 64)); });
    // Who may not be ahead of the others sends nothing that would fill a quorum of theirs.
    if (!waits && !leads) {
      try_level(0.3, [&](Level* level) { level->set_quorum(Between(0, 4)); });
      try_level(0.3, [&](Level* level) { level->set_grace_ns(Milliseconds(0.05, 3)); });
    }
    if (counts) return;
    const std::vector<CodecKind> kinds = {CODEC_KIND_FP32, CODEC_KIND_BF16, CODEC_KIND_INT8, CODEC_KIND_INT4,
                                          CODEC_KIND_INT2, CODEC_KIND_TOPK, CODEC_KIND_MIXED};
    try_level(0.5, [&](Level* level) {
      level->set_codec_up(OneOf<CodecKind>(kinds));
      level->set_codec_down(OneOf<CodecKind>(kinds));
    });
    try_level(0.25, [&](Level* level) { level->set_momentum(Real(0, 0.9)); });
    try_level(0.25, [&](Level* level) {
      level->set_robust(OneOf<Robust>({ROBUST_NONE, ROBUST_MEDIAN, ROBUST_TRIMMED_MEAN, ROBUST_CENTERED_CLIP}));
    });
    try_level(0.25, [&](Level* level) {
      level->set_weight(OneOf<Weight>({WEIGHT_EQUAL, WEIGHT_TOKENS, WEIGHT_TOKENS_SQUARED_PER_STEP}));
    });
    if (waits) return;
    try_level(0.3, [&](Level* level) { level->set_mix(Real(0.25, 1)); });
    try_level(0.3, [&](Level* level) { level->set_staleness_decay(STALENESS_DECAY_POLYNOMIAL); });
  }

  std::string OneRegion() { return scenario_.regions(static_cast<int>(Between(0, regions() - 1))).name(); }
  std::string OneWorker() {
    const Region& region = scenario_.regions(static_cast<int>(Between(0, regions() - 1)));
    return absl::StrCat(region.name(), "/worker-", Between(0, region.workers() - 1));
  }
  std::string SomeProcesses() {
    switch (Between(0, 6)) {
      case 0:
        return "root";
      case 1:
        return OneRegion();
      case 2:
        return OneWorker();
      case 3:
        return OneRegion() + "/*";
      case 4:
        return OneRegion() + "/**";
      case 5:
        return "*/*";
      default:
        return "*/**";
    }
  }

  void DrawFault() {
    std::vector<FaultKind> kinds;
    const bool counts = scenario_.workload().fidelity() == FIDELITY_COUNTER;
    for (int k = FaultKind_MIN + 1; k <= FaultKind_MAX; ++k) {
      const auto kind = static_cast<FaultKind>(k);
      if (kind == FAULT_KIND_BANDWIDTH && scenario_.wan().bandwidth_bps() == 0) continue;
      // A counter that is damaged is no longer exact; and few others would not bring a damaged model back.
      const bool damages = kind == FAULT_KIND_SIGN_FLIP || kind == FAULT_KIND_SCALE;
      if (damages && (counts || workers_ < 3)) continue;
      kinds.push_back(kind);
    }
    const FaultKind kind = OneOf(kinds);
    Fault fault;
    fault.set_fault(kind);
    fault.set_version(1);
    fault.set_direction(DIRECTION_BOTH);
    // What stops somebody must end soon, or he would be given up although he is not in the wrong.
    const bool stops = kind == FAULT_KIND_FREEZE || kind == FAULT_KIND_CUT || kind == FAULT_KIND_DISK_FULL ||
                       kind == FAULT_KIND_DISK_ERROR;
    const bool lasts = kind != FAULT_KIND_KILL && kind != FAULT_KIND_POWER_LOSS;
    bool damages = false;
    switch (kind) {
      case FAULT_KIND_KILL:
      case FAULT_KIND_FREEZE:
      case FAULT_KIND_CLOCK_SKEW:
        fault.add_target(SomeProcesses());
        break;
      case FAULT_KIND_SLOW:
        fault.add_target(Chance(0.5) ? OneWorker() : OneRegion() + "/*");
        break;
      case FAULT_KIND_NAN:
      case FAULT_KIND_SIGN_FLIP:
      case FAULT_KIND_SCALE:
        damages = true;
        fault.add_target(OneWorker());
        break;
      case FAULT_KIND_POWER_LOSS:
      case FAULT_KIND_DISK_FULL:
      case FAULT_KIND_DISK_ERROR:
        break;
      default:
        fault.add_target(Chance(0.7) ? OneRegion() : "*");
        fault.set_direction(OneOf<Direction>({DIRECTION_BOTH, DIRECTION_UP, DIRECTION_DOWN}));
        break;
    }
    if (kind == FAULT_KIND_SLOW) fault.set_factor(Real(1.5, 8));
    if (kind == FAULT_KIND_BANDWIDTH) fault.set_factor(Real(0.02, 0.5));
    if (kind == FAULT_KIND_LATENCY) fault.set_factor(Real(1.5, std::max(2.0, std::min(8.0, 3 / rtt_))));
    if (kind == FAULT_KIND_SCALE) fault.set_factor(Real(1.5, 4));
    if (kind == FAULT_KIND_CLOCK_SKEW) fault.set_factor(Real(0.01, 0.5));
    if (kind == FAULT_KIND_LOSS) fault.set_probability(Real(0.01, 0.2));
    if (kind == FAULT_KIND_DUPLICATE || kind == FAULT_KIND_REORDER) fault.set_probability(Real(0.05, 0.5));
    if (kind == FAULT_KIND_CORRUPT) fault.set_probability(Real(0.005, 0.1));
    const double lasting = stops ? Seconds(0.5, 12) : damages ? Seconds(1, 5) : Seconds(1, 30);
    const double when = random_.Uniform();
    // What multiplies must not pile up: a step that was begun goes on when faults have ended.
    const bool piles_up = kind == FAULT_KIND_SLOW && when >= 0.4;
    const bool ends = stops || damages || piles_up || quiet_after_ == 0;
    if (lasts && (ends || Chance(0.5))) fault.set_for_ns(Nanoseconds(lasting));
    if (when < 0.4) {
      fault.set_at_ns(Nanoseconds(Seconds(0, faults_until_)));
    } else if (when < 0.85) {
      fault.set_every_ns(Nanoseconds(std::max(stops || damages || piles_up ? 5 * lasting : 0.0, LogReal(2, 40))));
      fault.set_until_ns(Nanoseconds(faults_until_));
    } else {
      fault.set_on(
          OneOf<FaultPlace>({FAULT_PLACE_AFTER_APPEND_BEFORE_ACK, FAULT_PLACE_AFTER_ACK, FAULT_PLACE_AFTER_PUBLISH}));
      fault.set_version(static_cast<int64_t>(LogReal(1, 50)));
    }
    if (kind == FAULT_KIND_SLOW) {
      // Three of those that come every so often are hardly ever there at once.
      const double most = slow_ * std::pow(fault.factor(), fault.has_every_ns() ? 3 : 1);
      if (most > kSlowMost) return;
      slow_ = most;
    }
    *scenario_.add_timeline() = std::move(fault);
  }

  // What may pass between two merges of a healed core: members that are gone are noticed, calls that hang end, who was
  // damaged is let in again, a quorum has its grace, and the slowest worker that is left makes its rounds.
  double LongestQuiet() const {
    const absl::StatusOr<Job> job = JobOfScenario(scenario_);
    CHECK(job.ok()) << job.status();
    const Strategy& strategy = job->strategy();
    const double step = step_ / slowest_;
    const int64_t rounds = 2 + std::max<int64_t>(4, strategy.region().send_every()) + strategy.in_flight_max();
    return 3 * lease_ +
           1e-9 * static_cast<double>(scenario_.limits().start_ns() + scenario_.limits().rpc_ns() +
                                      scenario_.limits().quarantine_ns() + strategy.region().flush_age_ns() +
                                      strategy.region().grace_ns() + strategy.root().grace_ns()) +
           step * (slow_ + static_cast<double>(rounds * strategy.inner_steps())) + 30 * rtt_ + 60;
  }

  Random random_;
  Scenario scenario_;
  int workers_ = 0;
  double speed_ = 0;    // Of all workers.
  double slowest_ = 1;  // Of one.
  double slow_ = 1;     // By how much all faults together slow a step down, at most.
  // Seconds.
  double rtt_ = 0, lease_ = 0, step_ = 0;
  double seconds_ = 0;  // That the run would take if nobody ever waited.
  double quiet_after_ = 0, faults_until_ = 0;
};

}  // namespace

Scenario DrawScenario(uint64_t seed, uint64_t index) { return Drawing(seed, index).Draw(); }

}  // namespace wukong
