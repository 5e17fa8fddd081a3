#include "launch/plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "coordinator/member_usage.h"
#include "glog/logging.h"
#include "launch/job_check.h"
#include "launch/job_units.h"
#include "runtime/fault/link_model.h"
#include "runtime/fault/link_shape.h"
#include "runtime/storage/log.h"
#include "runtime/sync/presets.h"
#include "runtime/sync/stream_tuner.h"

namespace wukong {
namespace {

constexpr double kHour = 3600;
constexpr double kValueBytes = 4;
// More than this under way on one connection needs larger buffers than Linux gives by itself (net.ipv4.tcp_wmem).
constexpr double kUsualWindowBytes = 4 << 20;

// What one leaf of the tree does between two contributions.
struct Leaf {
  int64_t workers = 1;  // More where they act as one.
  double busy = 1;      // Mean share of a step in which its workers compute: they wait for the slowest one.
  double step_seconds = 0;
  double tokens_per_step = 0;
  int64_t steps = 1;  // H.
  double compute_seconds() const { return static_cast<double>(steps) * step_seconds; }
};

// `all` is kept as 0.
int64_t Quorum(int64_t value, int64_t children) {
  return value == 0 ? children : std::clamp<int64_t>(value, 1, children);
}

// The n-th smallest, n from 1.
double Smallest(std::vector<double> values, int64_t n) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(std::clamp<int64_t>(n, 1, static_cast<int64_t>(values.size())) - 1)];
}

// What is expected to be missing of a round trip when the last segment is lost, or one that was sent within a round
// trip before it: docs/wan.md, "Loss". Losses come at random, `rate` of them per second of the transfer.
double RecoverySeconds(double loss, double rtt, double transfer, int64_t bytes) {
  if (loss <= 0 || rtt <= 0 || bytes <= 0) return 0;
  const double segments = std::ceil(static_cast<double>(bytes) / static_cast<double>(kSegmentBytes));
  if (transfer <= 0) return rtt * -std::expm1(segments * std::log1p(-loss));
  const double rate = loss * segments / transfer, within = std::min(rtt, transfer);
  const double some = -std::expm1(-rate * within);
  return rtt * some - (some / rate - within * std::exp(-rate * within));
}

// How many connections the transfers are spread over in the end (runtime/sync/stream_tuner.h): as many as it takes to
// fill the link, a power of two.
int StreamsFor(const LinkShape& shape, double rtt, int64_t bytes, int streams_max) {
  const double mathis = MathisBytesPerSecond(shape.loss, absl::Seconds(rtt));
  if (rtt <= 0 || (mathis <= 0 && shape.bandwidth_bits_per_s <= 0)) return 1;
  const double one = mathis > 0 ? std::min(mathis, kUsualWindowBytes / rtt) : kUsualWindowBytes / rtt;
  const auto most = static_cast<int>(std::clamp<int64_t>(bytes / kPieceBytesMin, 1, streams_max));
  int streams = 1;
  while (streams < most && (shape.bandwidth_bits_per_s <= 0 || streams * one < shape.bandwidth_bits_per_s / 8)) {
    streams = std::min(2 * streams, most);
  }
  return streams;
}

LinkPlan MakeLink(const LinkShape& given, double rtt, int64_t bytes, int streams_max) {
  const LinkShape shape = Sanitized(given);
  LinkPlan link;
  link.bytes = bytes;
  link.streams = StreamsFor(shape, rtt, bytes, streams_max);
  link.rate_bytes_per_second = shape.bandwidth_bits_per_s / 8;
  const double size = static_cast<double>(bytes);
  double transfer = shape.bandwidth_bits_per_s > 0 ? size / link.rate_bytes_per_second : 0;
  const double mathis = link.streams * MathisBytesPerSecond(shape.loss, absl::Seconds(rtt));
  if (mathis > 0 && (link.rate_bytes_per_second == 0 || mathis < link.rate_bytes_per_second)) {
    link.rate_bytes_per_second = mathis;
    link.bound_by_loss = true;
    // After the pause before it, one congestion window of each connection leaves at once.
    transfer = std::max(transfer, size / mathis - rtt);
  }
  link.transfer_seconds = transfer;
  link.recovery_seconds = RecoverySeconds(shape.loss, rtt, transfer, bytes);
  link.seconds = transfer + link.recovery_seconds + absl::ToDoubleSeconds(shape.delay);
  link.window_bytes = link.rate_bytes_per_second * rtt / link.streams;
  return link;
}

void SetInterval(double seconds, LinkPlan* link) {
  link->interval_seconds = seconds;
  link->bytes_per_hour = kHour / seconds * static_cast<double>(link->bytes);
  link->busy = link->transfer_seconds / seconds;
}

// The job without what only a person reads: shares and rates.
class Planner {
 public:
  explicit Planner(const PlanInput& input)
      : input_(input), job_(input.job), strategy_(job_.strategy()), regions_(job_.regions_size()) {}

  Plan Run() {
    plan_.parameters = input_.parameters;
    plan_.tokens_per_step =
        int64_t{job_.optimizer().micro_batch()} * job_.optimizer().accumulation() * job_.model().context();
    MakeLeaves();
    for (int r = 0; r < job_.regions_size(); ++r) AddRegion(r);
    if (strategy_.in_flight() != IN_FLIGHT_KEEP) {
      PlanWaiting();
    } else {
      PlanKeeping();
    }
    Finish();
    return std::move(plan_);
  }

 private:
  double BaseStep(const Region& region) const {
    const auto found = input_.region_step_seconds.find(region.name());
    return found == input_.region_step_seconds.end() ? input_.step_seconds : found->second;
  }

  void MakeLeaves() {
    const auto tokens = static_cast<double>(plan_.tokens_per_step);
    std::vector<double> speeds;  // Tokens per second while computing.
    for (int r = 0; r < job_.regions_size(); ++r) {
      const Region& region = job_.regions(r);
      const double base = BaseStep(region);
      const auto speed = [&](int worker) {
        if (region.speed_size() == 0) return 1.0;
        return region.speed(region.speed_size() == 1 ? 0 : worker);
      };
      if (region.collective() == COLLECTIVE_GLOO) {
        double slowest = 1;
        for (int w = 0; w < region.workers(); ++w) slowest = std::min(slowest, speed(w));
        double busy = 0;
        for (int w = 0; w < region.workers(); ++w) busy += slowest / speed(w) / region.workers();
        regions_[r].push_back({region.workers(), busy, base / slowest, tokens * region.workers(), 1});
      } else {
        for (int w = 0; w < region.workers(); ++w) regions_[r].push_back({1, 1, base / speed(w), tokens, 1});
      }
      for (const Leaf& leaf : regions_[r]) speeds.push_back(leaf.tokens_per_step / leaf.step_seconds);
    }
    std::sort(speeds.begin(), speeds.end());
    const double reference = PercentileOfSorted(speeds, 80);  // As CoordinatorCore and LeafSchedule have it.
    for (std::vector<Leaf>& leaves : regions_) {
      for (Leaf& leaf : leaves) {
        leaf.steps = strategy_.inner_steps();
        const double ratio = leaf.tokens_per_step / leaf.step_seconds / reference;
        if (strategy_.step_scaling() == STEP_SCALING_SPEED && ratio <= 0.9) {
          leaf.steps = std::max<int64_t>(1, static_cast<int64_t>(std::floor(static_cast<double>(leaf.steps) * ratio)));
        }
      }
    }
  }

  void AddRegion(int r) {
    const Region& region = job_.regions(r);
    RegionPlan plan;
    plan.name = region.name();
    plan.workers = region.workers();
    plan.leaves = static_cast<int64_t>(regions_[r].size());
    const LinkShape up = ShapeOfLink(job_.wan(), region.name(), DIRECTION_UP);
    const LinkShape down = ShapeOfLink(job_.wan(), region.name(), DIRECTION_DOWN);
    plan.rtt_seconds = absl::ToDoubleSeconds(up.delay + down.delay);
    // Of fragments that take turns, one part travels at a time.
    const int64_t parts = std::max(1, strategy_.parts());
    const auto bytes = [&](CodecKind codec) {
      return (VectorBytes(job_, input_.parameters, codec) + parts - 1) / parts;
    };
    plan.up = MakeLink(up, plan.rtt_seconds, bytes(strategy_.root().codec_up()), job_.limits().streams_max());
    plan.down = MakeLink(down, plan.rtt_seconds, bytes(strategy_.root().codec_down()), job_.limits().streams_max());
    plan.inner_steps_min = std::numeric_limits<int64_t>::max();
    for (const Leaf& leaf : regions_[r]) {
      plan.inner_steps_min = std::min(plan.inner_steps_min, leaf.steps);
      plan.inner_steps_max = std::max(plan.inner_steps_max, leaf.steps);
      plan.compute_seconds = std::max(plan.compute_seconds, leaf.compute_seconds());
    }
    plan_.regions.push_back(std::move(plan));
  }

  // Leaves' contributions that one of the region's is made of: whole merges, until there are enough.
  int64_t Gathered(int64_t leaves) const {
    const int64_t quorum = Quorum(strategy_.region().quorum(), leaves);
    const int64_t every = strategy_.region().send_every() == 0 ? leaves : strategy_.region().send_every();
    return (every + quorum - 1) / quorum * quorum;
  }

  // Everybody who sent waits for a version that holds it. A quorum of k of n waits for the k quickest.
  void PlanWaiting() {
    const bool overlaps = strategy_.in_flight() == IN_FLIGHT_OVERLAP;
    std::vector<double> ready, paths;
    const auto count = static_cast<int64_t>(regions_.size());
    const int64_t quorum = Quorum(strategy_.root().quorum(), count);
    int64_t leaves = 0;
    for (const std::vector<Leaf>& region : regions_) leaves += static_cast<int64_t>(region.size());
    for (size_t r = 0; r < regions_.size(); ++r) {
      std::vector<double> computing;
      for (const Leaf& leaf : regions_[r]) computing.push_back(leaf.compute_seconds());
      const int64_t size = plan_.regions[r].leaves, gathered = std::min(Gathered(size), size);
      // Chance makes some leaf late in every round; where all wait for all, some leaf of the whole job.
      const bool for_all = quorum == count && gathered == size;
      const double late = for_all ? NormalOrderStatistic(leaves, leaves) : NormalOrderStatistic(gathered, size);
      const double spread = input_.step_jitter / std::sqrt(static_cast<double>(plan_.regions[r].inner_steps_max));
      ready.push_back(Smallest(computing, gathered) * (1 + std::max(0.0, late) * spread));
      const LinkPlan& up = plan_.regions[r].up;
      const LinkPlan& down = plan_.regions[r].down;
      const double travel = up.seconds + down.seconds;
      const double path = overlaps ? std::max(ready[r], travel / strategy_.in_flight_max()) : ready[r] + travel;
      // However many are under way: the wire takes the region's contributions of a round one after the other.
      const double sends = static_cast<double>(size) / static_cast<double>(gathered);
      paths.push_back(std::max({path, sends * up.transfer_seconds, down.transfer_seconds}));
    }
    const double whole = Smallest(paths, quorum);
    double per_second = 0;
    std::vector<double> rounds;
    for (size_t r = 0; r < regions_.size(); ++r) {
      RegionPlan& plan = plan_.regions[r];
      const double round = std::max(paths[r], whole);
      double sends = 0;
      for (const Leaf& leaf : regions_[r]) {
        const double computing = leaf.compute_seconds();
        const double cycle = round + std::max(0.0, computing - ready[r]);
        AddLeaf(leaf, cycle, &plan);
        sends += 1 / cycle;
      }
      const int64_t gathered = std::min(Gathered(plan.leaves), plan.leaves);
      SetInterval(static_cast<double>(gathered) / sends, &plan.up);
      rounds.push_back(plan.up.interval_seconds);
      per_second += 1 / plan.up.interval_seconds;
    }
    plan_.round_seconds = static_cast<double>(quorum) / per_second;
    for (size_t r = 0; r < regions_.size(); ++r) {
      RegionPlan& plan = plan_.regions[r];
      SetInterval(std::max(plan_.round_seconds, plan.down.transfer_seconds), &plan.down);
      const int64_t ahead = overlaps ? strategy_.in_flight_max() : 0;
      plan.staleness_versions = std::max(0.0, rounds[r] / plan_.round_seconds - 1) + static_cast<double>(ahead);
      plan.staleness_steps = static_cast<double>(plan.inner_steps_max * (1 + ahead));
    }
  }

  // Nobody waits; what is limited is how often the root hears of it, and how old that is by then.
  void PlanKeeping() {
    std::vector<double> gather;  // From a region's first contribution of a leaf to its last, seconds.
    double per_second = 0, soonest = std::numeric_limits<double>::infinity();
    for (size_t r = 0; r < regions_.size(); ++r) {
      RegionPlan& plan = plan_.regions[r];
      double rate = 0;
      for (const Leaf& leaf : regions_[r]) {
        AddLeaf(leaf, leaf.compute_seconds(), &plan);
        rate += 1 / leaf.compute_seconds();
      }
      const auto gathered = static_cast<double>(Gathered(plan.leaves));
      const double age = 1e-9 * static_cast<double>(strategy_.region().flush_age_ns());
      gather.push_back((gathered - 1) / rate);
      double interval = gathered / rate;
      if (age > 0 && gather[r] > age) {
        gather[r] = age;
        interval = age + 1 / rate;
      }
      // One is written at a time, and in_flight_max of them wait for their answers.
      const double answered = plan.up.seconds + absl::ToDoubleSeconds(DownDelay(plan.name));
      const double least = std::max(plan.up.transfer_seconds, answered / strategy_.in_flight_max());
      plan.link_limits = least > interval;
      SetInterval(std::max(interval, least), &plan.up);
      // What comes before the next may be written joins it.
      if (plan.link_limits) gather[r] = std::max(gather[r], plan.up.interval_seconds);
      per_second += 1 / plan.up.interval_seconds;
      soonest = std::min(soonest, plan.down.transfer_seconds);
    }
    const int64_t quorum = Quorum(strategy_.root().quorum(), static_cast<int64_t>(regions_.size()));
    // The next version is made when some child has all of the last one.
    plan_.round_seconds = std::max(static_cast<double>(quorum) / per_second, soonest);
    for (size_t r = 0; r < regions_.size(); ++r) {
      RegionPlan& plan = plan_.regions[r];
      SetInterval(std::max(plan_.round_seconds, plan.down.transfer_seconds), &plan.down);
      const double quorum_wait = 0.5 * static_cast<double>(quorum - 1) / per_second;
      const double age = plan.down.interval_seconds / 2 + plan.down.seconds + plan.compute_seconds + gather[r] +
                         plan.up.seconds + quorum_wait;
      plan.staleness_versions = age / plan_.round_seconds;
      double step = std::numeric_limits<double>::infinity();
      for (const Leaf& leaf : regions_[r]) step = std::min(step, leaf.step_seconds);
      plan.staleness_steps = age / step;
    }
  }

  absl::Duration DownDelay(const std::string& region) const {
    return ShapeOfLink(job_.wan(), region, DIRECTION_DOWN).delay;
  }

  // `cycle`: seconds between its contributions.
  static void AddLeaf(const Leaf& leaf, double cycle, RegionPlan* plan) {
    const double share = static_cast<double>(leaf.workers) / static_cast<double>(plan->workers);
    plan->wait_seconds += share * (cycle - leaf.compute_seconds());
    plan->compute_share += share * leaf.busy * leaf.compute_seconds() / cycle;
    plan->tokens_per_second += static_cast<double>(leaf.steps) * leaf.tokens_per_step / cycle;
  }

  void Finish() {
    double workers = 0;
    for (const RegionPlan& region : plan_.regions) {
      workers += static_cast<double>(region.workers);
      plan_.compute_share += static_cast<double>(region.workers) * region.compute_share;
      plan_.tokens_per_second += region.tokens_per_second;
      plan_.log_bytes_per_hour += region.up.bytes_per_hour;
    }
    plan_.compute_share /= workers;
    plan_.rounds_per_hour = kHour / plan_.round_seconds;
  }

  const PlanInput& input_;
  const Job& job_;
  const Strategy& strategy_;
  std::vector<std::vector<Leaf>> regions_;
  Plan plan_;
};

// Vectors of the inner optimizer's state (runtime/model/inner_optimizer.h). What of a model is hidden matrices is known
// of the built-in GPT; of others it is taken as all, as it nearly is of large ones.
double OptimizerVectors(const PlanInput& input) {
  const Optimizer& optimizer = input.job.optimizer();
  if (optimizer.kind() == OPTIMIZER_KIND_SGD) return optimizer.momentum() > 0 ? 1 : 0;
  if (optimizer.kind() != OPTIMIZER_KIND_MUON) return 2;
  const Model& model = input.job.model();
  const double width = model.width();
  const bool known = GptParameters(model) == input.parameters && model.layers() > 0;
  const double hidden = known ? 12 * width * width * model.layers() / static_cast<double>(input.parameters) : 1;
  return hidden + 2 * (1 - hidden);
}

void AddMemory(const PlanInput& input, Plan* plan) {
  const Strategy& strategy = input.job.strategy();
  const bool gradient = strategy.progress() == PROGRESS_GRADIENT;
  const double state = OptimizerVectors(input);
  const double vector = kValueBytes * static_cast<double>(input.parameters);
  const auto add = [&](const char* role, double vectors, double more) {
    plan->memory.push_back(
        {role, vectors, static_cast<int64_t>(vectors * vector), static_cast<int64_t>(vectors * vector + more)});
  };
  const auto momentum = [](const Level& level) { return level.momentum() > 0 ? 2.0 : 0.0; };
  // Parents also hold staged contributions (of which one may go on beyond the bound), differences of one model's bytes
  // and two replaced versions at most.
  const double parent = static_cast<double>(input.job.limits().in_flight_bytes()) + 3 * vector;
  const double in_flight = static_cast<double>(strategy.in_flight_max());
  const auto one = [&](const Level& level) {
    return static_cast<double>(VectorBytes(input.job, input.parameters, level.codec_up()));
  };
  // What was accepted no longer counts as staged: one that is being merged, and before it in_flight_max of each of the
  // others that a merge waits for, of which the last has all parts.
  const auto accepted = [&](const Level& level, int64_t children) {
    const double whole = one(level);
    const double each = whole * (1 + (in_flight - 1) / std::max(1, strategy.parts()));
    const int64_t merged = level.grace_ns() > 0 ? children : Quorum(level.quorum(), children);
    return whole + static_cast<double>(merged - 1) * each;
  };
  int64_t leaves = 1;
  for (const RegionPlan& region : plan->regions) leaves = std::max(leaves, region.leaves);
  const double root_accepted = accepted(strategy.root(), input.job.regions_size());
  // Theta, gradient, base, the followed copy; what a gradient's codec left out, or the optimizer's state.
  add("worker", 4 + (gradient ? 1 : state), in_flight * one(strategy.region()));
  // Theta, base, the followed and the public copy; the summed gradient and what its codec left out.
  add("aggregator", 4 + (gradient ? 2 : momentum(strategy.region())),
      parent + one(strategy.region()) + accepted(strategy.region(), leaves) + in_flight * one(strategy.root()));
  // Theta, the public copy, and what the optimizer at the root has: a copy of them while it is being written.
  const double snapshot = vector * (2 + (gradient ? state : momentum(strategy.root())));
  // Theta, the trainer's gradient and the public copy; momentum and its buffer, or the summed gradient and the state.
  // What was accepted is also in the history of the log, and in a snapshot.
  add("coordinator", 3 + (gradient ? 1 + state : momentum(strategy.root())),
      parent + one(strategy.root()) + snapshot + 3 * root_accepted);

  // Each stands on whole contributions, at least one.
  const int64_t contribution = plan->regions[0].up.bytes;
  const int64_t logged = (input.job.limits().snapshot_bytes() + contribution - 1) / contribution * contribution;
  plan->snapshot_bytes_per_hour = plan->log_bytes_per_hour / static_cast<double>(logged) * snapshot;
  plan->join_bytes = static_cast<int64_t>(vector);
}

// What a changed job comes to.
struct Forecast {
  double share = 0;
  bool enough = false;  // The share that is wanted, and links that take contributions as often as they are made.
};

Forecast ForecastOf(const PlanInput& input) {
  const Plan plan = Planner(input).Run();
  Forecast forecast;
  forecast.share = plan.compute_share;
  forecast.enough = plan.compute_share >= kPlanShareWanted &&
                    std::none_of(plan.regions.begin(), plan.regions.end(),
                                 [](const RegionPlan& region) { return region.link_limits; });
  return forecast;
}

// A field's value as a person writes it.
std::string JobFileValue(const google::protobuf::Message& message, const char* field) {
  return FormatScalar(message, *message.GetDescriptor()->FindFieldByName(field));
}

Remedy StepsRemedy(const PlanInput& given) {
  constexpr int32_t kStepsMax = 1'000'000;  // The bound of strategy.inner_steps.
  Remedy remedy;
  remedy.key = "strategy.inner_steps";
  if (given.job.strategy().progress() == PROGRESS_GRADIENT) {
    remedy.share = ForecastOf(given).share;
    remedy.reason = "it must be 1 with progress: gradient";
    return remedy;
  }
  PlanInput input = given;
  const auto with = [&](int32_t steps) {
    input.job.mutable_strategy()->set_inner_steps(steps);
    return ForecastOf(input);
  };
  remedy.share = with(kStepsMax).share;
  if (!with(kStepsMax).enough) {
    PlanInput near = input;
    near.job.clear_wan();
    remedy.reason = ForecastOf(near).enough ? "the links stay too slow" : "workers also wait for slower ones";
    return remedy;
  }
  int32_t low = 0, high = kStepsMax;  // Not enough, enough.
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    (with(middle).enough ? high : low) = middle;
  }
  remedy.possible = true;
  remedy.share = with(high).share;
  remedy.value = absl::StrCat(high);
  return remedy;
}

Remedy BandwidthRemedy(const PlanInput& given) {
  Remedy remedy;
  remedy.key = "wan.bandwidth";
  PlanInput input = given;
  for (WanLink& link : *input.job.mutable_wan()->mutable_links()) link.clear_bandwidth_bps();
  const auto with = [&](int64_t bits) {
    input.job.mutable_wan()->set_bandwidth_bps(bits);
    return ForecastOf(input);
  };
  remedy.share = with(0).share;  // Unlimited.
  if (!with(0).enough) {
    remedy.reason = "the round trip, loss or slower workers cost more than that";
    return remedy;
  }
  remedy.possible = true;
  // Two digits, rounded up: 1, 1.1, ... 9.9 times a power of ten, from 1 kbit/s.
  constexpr int64_t kPowers = 14;
  const auto bits = [](int64_t step) {
    int64_t value = 10 + step % 90;
    for (int64_t i = 0; i < step / 90 + 2; ++i) value *= 10;
    return value;
  };
  int64_t low = -1, high = 90 * kPowers;
  if (!with(bits(high)).enough) {
    remedy.value = "unlimited";
    return remedy;
  }
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (with(bits(middle)).enough ? high : low) = middle;
  }
  remedy.share = with(bits(high)).share;
  remedy.value = JobFileValue(input.job.wan(), "bandwidth_bps");
  return remedy;
}

// Of the codecs that are enough and with which the job would not be refused, the one that leaves out least: that with
// the most bytes.
Remedy CodecRemedy(const PlanInput& given) {
  Remedy remedy;
  remedy.key = "strategy.root.codec_up and codec_down";
  remedy.share = ForecastOf(given).share;
  remedy.reason = "with no codec the root's log takes a contribution";
  // The refusal says what must be raised for the codec that is there.
  const int64_t held_max = std::max(given.job.limits().in_flight_bytes(),
                                    VectorBytes(given.job, given.parameters, given.job.strategy().root().codec_up()));
  int64_t most = -1;
  const google::protobuf::EnumDescriptor* kinds = CodecKind_descriptor();
  for (int i = 0; i < kinds->value_count(); ++i) {
    const auto kind = static_cast<CodecKind>(kinds->value(i)->number());
    if (kind == CODEC_KIND_UNSPECIFIED) continue;
    PlanInput input = given;
    input.job.mutable_strategy()->mutable_root()->set_codec_up(kind);
    input.job.mutable_strategy()->mutable_root()->set_codec_down(kind);
    if (!FindStrategyProblems(input.job).empty()) continue;
    const int64_t bytes = VectorBytes(input.job, given.parameters, kind);
    if (bytes > std::min(held_max, kContributionBytesMax)) continue;
    const Forecast forecast = ForecastOf(input);
    if (!forecast.enough) {
      if (remedy.possible) continue;
      remedy.share = std::max(remedy.share, forecast.share);
      remedy.reason = "no codec is enough";
    } else if (bytes > most) {
      most = bytes;
      remedy.possible = true;
      remedy.share = forecast.share;
      remedy.value = JobFileValue(input.job.strategy().root(), "codec_up");
      remedy.reason.clear();
    }
  }
  return remedy;
}

void AddNotes(const PlanInput& input, Plan* plan) {
  const Job& job = input.job;
  const auto note = [plan](std::string text) { plan->notes.push_back(std::move(text)); };
  const int64_t staleness_max = job.strategy().root().staleness_max();
  // Also of fragments that take turns: a worker's last contribution has all of them.
  const int64_t logged = VectorBytes(job, input.parameters, job.strategy().root().codec_up());
  const int64_t held = std::max(logged, VectorBytes(job, input.parameters, job.strategy().region().codec_up()));
  if (logged > kContributionBytesMax) {
    plan->refusal = absl::StrFormat(
        "a contribution is one record of the root's log, and has %d bytes with strategy.root.codec_up (expected at "
        "most %d)",
        logged, kContributionBytesMax);
  } else if (held > job.limits().in_flight_bytes()) {
    plan->refusal = absl::StrFormat("limits.in_flight_bytes (%d) does not hold one contribution of %d bytes: raise it",
                                    job.limits().in_flight_bytes(), held);
  }
  for (const RegionPlan& region : plan->regions) {
    if (region.link_limits) {
      note(
          absl::StrFormat("%s: its workers make a contribution faster than its link to the root takes one (%.3g s): "
                          "contributions grow, and arrive with %.0f steps of delay",
                          region.name, region.up.interval_seconds, region.staleness_steps));
    }
    if (region.staleness_versions > static_cast<double>(staleness_max) + 0.5) {
      note(
          absl::StrFormat("%s: contributions would be %.0f versions old, more than strategy.root.staleness_max allows "
                          "(%d): the root would refuse them",
                          region.name, region.staleness_versions, staleness_max));
    }
    for (const LinkPlan* link : {&region.up, &region.down}) {
      const char* way = link == &region.up ? "up" : "down";
      const double deadline =
          absl::ToDoubleSeconds(TransferTimeout(absl::Nanoseconds(job.limits().rpc_ns()), link->bytes));
      if (link->seconds > deadline) {
        note(absl::StrFormat("%s: %s takes %.3g s, longer than limits.rpc allows for it (%.3g s): raise it",
                             region.name, way, link->seconds, deadline));
      }
      if (link->window_bytes > kUsualWindowBytes) {
        note(
            absl::StrFormat("%s: %s needs %.3g MB under way on each connection: TCP's buffers (net.ipv4.tcp_wmem, "
                            "tcp_rmem) must allow that, or limits.streams_max more connections",
                            region.name, way, link->window_bytes / 1e6));
      }
    }
  }
}

}  // namespace

double NormalOrderStatistic(int64_t k, int64_t n) {
  const double share = (static_cast<double>(k) - 0.375) / (static_cast<double>(n) + 0.25);
  double low = -40, high = 40;
  for (int i = 0; i < 100; ++i) {
    const double middle = (low + high) / 2;
    (0.5 * std::erfc(-middle / std::sqrt(2.0)) < share ? low : high) = middle;
  }
  return (low + high) / 2;
}

Plan MakePlan(const PlanInput& input) {
  CHECK(input.parameters > 0 && input.parameters <= kPlanParametersMax) << input.parameters;
  CHECK_GT(input.step_seconds, 0);
  CHECK_GT(input.job.regions_size(), 0);
  Plan plan = Planner(input).Run();
  AddMemory(input, &plan);
  plan.remedies = {StepsRemedy(input), BandwidthRemedy(input), CodecRemedy(input)};
  AddNotes(input, &plan);
  return plan;
}

}  // namespace wukong
