#include "runtime/sim/scenario_problems.h"

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "runtime/fault/fault_schedule.h"
#include "runtime/fault/link_shape.h"
#include "runtime/model/optimizer_kinds.h"
#include "runtime/sync/presets.h"

namespace wukong {
namespace {

constexpr int kGptWorkersMax = 32;  // Each has a model of its own.

}  // namespace

absl::StatusOr<Job> JobOfScenario(const Scenario& scenario) {
  Job job;
  job.set_name(scenario.name());
  job.set_seed(scenario.seed());
  const Workload& workload = scenario.workload();
  Optimizer* optimizer = job.mutable_optimizer();
  int64_t context = 1;
  if (workload.fidelity() == FIDELITY_GPT) {
    *job.mutable_model() = scenario.model();
    *job.mutable_data() = scenario.data();
    *optimizer = scenario.optimizer();
    context = std::max(1, scenario.model().context());
  } else {
    Model* model = job.mutable_model();
    model->set_context(1);
    model->set_vocabulary(2);
    model->set_synthetic(workload.fidelity() == FIDELITY_TOY ? SYNTHETIC_KIND_TOY : SYNTHETIC_KIND_COUNTER);
    model->set_size(workload.parameters());
    model->set_step_ns(workload.step_ns());
    model->set_step_jitter(workload.step_jitter());
    if (workload.fidelity() == FIDELITY_TOY) model->set_noise(workload.noise());
    optimizer->set_learning_rate(workload.learning_rate());
    optimizer->set_final_learning_rate_fraction(1);
    optimizer->set_decay(DECAY_CONSTANT);
  }
  job.mutable_data()->set_range_steps(workload.range_steps());
  optimizer->set_micro_batch(workload.micro_batch());
  optimizer->set_accumulation(1);
  *job.mutable_strategy() = scenario.strategy();
  if (workload.fidelity() == FIDELITY_COUNTER) {
    for (Level* level : {job.mutable_strategy()->mutable_region(), job.mutable_strategy()->mutable_root()}) {
      if (!level->has_weight()) level->set_weight(WEIGHT_SUM);
      if (!level->has_learning_rate()) level->set_learning_rate(1);
      if (!level->has_momentum()) level->set_momentum(0);
      if (!level->has_codec_up()) level->set_codec_up(CODEC_KIND_FP32);
      if (!level->has_codec_down()) level->set_codec_down(CODEC_KIND_FP32);
      if (!level->has_staleness_decay()) level->set_staleness_decay(STALENESS_DECAY_NONE);
      if (!level->has_average()) level->set_average(AVERAGE_MEAN);
      if (!level->has_mix()) level->set_mix(1);
    }
  }
  *job.mutable_regions() = scenario.regions();
  *job.mutable_wan() = scenario.wan();
  job.mutable_stop()->set_tokens(workload.samples() * context);
  *job.mutable_limits() = scenario.limits();
  if (absl::Status status = ResolveStrategy(&job); !status.ok()) return status;
  ResolveOptimizer(optimizer);
  return job;
}

namespace {

// Why a fault of links would change nothing, or not what it says.
struct LinkProblem {
  const char* key = nullptr;
  const char* reason = nullptr;  // Null: it does something.
};

LinkProblem FindLinkProblem(const Scenario& scenario, Backend backend, const Fault& fault) {
  const FaultKind kind = fault.fault();
  if (kind == FAULT_KIND_BANDWIDTH && fault.has_factor() && fault.factor() >= 1) {
    return {"factor", "is the share of the bandwidth that is left (expected below 1)"};
  }
  if (kind == FAULT_KIND_LATENCY && fault.has_factor() && fault.factor() <= 1) {
    return {"factor", "is how many times longer the way takes (expected above 1)"};
  }
  if (kind == FAULT_KIND_LOSS && fault.probability() > 0.9) {
    return {"probability", "is more than the emulated links have (expected at most 90%, or a cut)"};
  }
  if (kind != FAULT_KIND_BANDWIDTH && kind != FAULT_KIND_LATENCY && kind != FAULT_KIND_LOSS) return {};
  // It is enough that one of the links that it may happen to is changed by it.
  bool any = false;
  for (const std::string& text : fault.target()) {
    const auto targets = ResolveTarget(scenario, text);
    if (!targets.ok()) return {};  // That is said elsewhere.
    for (const FaultTarget& target : *targets) {
      if (target.root()) return {};  // Likewise.
      const std::string& region = scenario.regions(target.region).name();
      const LinkShape up = ShapeOfLink(scenario.wan(), region, DIRECTION_UP);
      const LinkShape down = ShapeOfLink(scenario.wan(), region, DIRECTION_DOWN);
      const auto meant = [&](const auto& of) {
        return (fault.direction() != DIRECTION_DOWN && of(up)) || (fault.direction() != DIRECTION_UP && of(down));
      };
      any |= kind == FAULT_KIND_BANDWIDTH ? meant([](const LinkShape& link) { return link.bandwidth_bits_per_s > 0; })
             : kind == FAULT_KIND_LATENCY
                 ? meant([](const LinkShape& link) { return link.delay > absl::ZeroDuration(); })
                 : backend == BACKEND_PROCESS || up.delay + down.delay > absl::ZeroDuration();  // Packets may be lost.
    }
  }
  if (any || fault.target_size() == 0) return {};
  switch (kind) {
    case FAULT_KIND_BANDWIDTH:
      return {"fault", "the link's bandwidth is unlimited (set wan.bandwidth)"};
    case FAULT_KIND_LATENCY:
      return {"fault", "the link has no latency that could grow (set wan.rtt)"};
    default:
      return {"fault", "loss costs a link without a round trip nothing (set wan.rtt)"};
  }
}

// What cannot be done to real processes, or not be checked on them.
void AddProcessProblems(const Scenario& scenario, std::vector<ScenarioProblem>* problems) {
  static const std::set<FaultKind> kPossible = {
      FAULT_KIND_KILL,       FAULT_KIND_FREEZE,    FAULT_KIND_CUT,       FAULT_KIND_BANDWIDTH, FAULT_KIND_LATENCY,
      FAULT_KIND_LOSS,       FAULT_KIND_SLOW,      FAULT_KIND_NAN,       FAULT_KIND_SIGN_FLIP, FAULT_KIND_SCALE,
      FAULT_KIND_POWER_LOSS, FAULT_KIND_DISK_FULL, FAULT_KIND_DISK_ERROR};
  const auto names = [](const std::set<FaultKind>& kinds) {
    return absl::StrJoin(kinds, ", ", [](std::string* out, FaultKind kind) { out->append(FaultName(kind)); });
  };
  for (int i = 0; i < scenario.timeline_size(); ++i) {
    const Fault& fault = scenario.timeline(i);
    const std::string key = absl::StrCat("timeline[", i, "]");
    if (kPossible.count(fault.fault()) == 0) {
      problems->push_back({key + ".fault", absl::StrCat("cannot be done to real processes (expected ", names(kPossible),
                                                        "; wukong sim has this one)")});
    }
  }
  if (scenario.quiesce().after_ns() > 0 && scenario.restarts().after_ns() <= 0) {
    problems->push_back({"quiesce",
                         "real processes that died must come back by themselves (expected restarts.after above 0s; "
                         "wukong sim starts them again when faults end)"});
  }
  if (scenario.expect().goodput_min() > 0 && scenario.workload().fidelity() == FIDELITY_GPT) {
    problems->push_back({"expect.goodput_min",
                         "the speed of real training is the machine's (expected no bound on real "
                         "processes with fidelity gpt)"});
  }
  static const std::set<std::string> kInvariants = {"I1", "I3", "I4", "I6", "I7", "I8", "I9", "I10", "I12"};
  for (int i = 0; i < scenario.expect().invariants_size(); ++i) {
    if (kInvariants.count(scenario.expect().invariants(i)) == 0) {
      problems->push_back({absl::StrCat("expect.invariants[", i, "]"),
                           absl::StrCat("cannot be checked on real processes (expected ",
                                        absl::StrJoin(kInvariants, ", "), "; wukong sim checks this one)")});
    }
  }
}

}  // namespace

std::vector<ScenarioProblem> FindScenarioProblems(const Scenario& scenario, Backend backend) {
  std::vector<ScenarioProblem> problems;
  const auto add = [&](const std::string& key, const std::string& reason) { problems.push_back({key, reason}); };
  std::set<std::string> names;
  for (int r = 0; r < scenario.regions_size(); ++r) {
    const Region& region = scenario.regions(r);
    const std::string key = absl::StrCat("regions[", r, "]");
    if (!names.insert(region.name()).second) add(key + ".name", "another region has this name");
    if (region.name() == "root") add(key + ".name", "root is the root's");
    if (region.speed_size() > 1 && region.speed_size() != region.workers()) {
      add(key + ".speed", absl::StrCat(region.speed_size(), " speeds for ", region.workers(), " workers"));
    }
    if (region.collective() == COLLECTIVE_GLOO) add(key + ".collective", "collectives are not simulated");
  }
  for (int l = 0; l < scenario.wan().links_size(); ++l) {
    if (names.count(scenario.wan().links(l).region()) == 0) {
      add(absl::StrCat("wan.links[", l, "].region"), "there is no such region");
    }
  }
  const bool counts = scenario.workload().fidelity() == FIDELITY_COUNTER;
  if (counts && scenario.workload().samples() >= (1 << 24)) {
    add("workload.samples", "a counter is exact below 16777216 samples");
  }
  const bool is_gpt = scenario.workload().fidelity() == FIDELITY_GPT;
  if (scenario.expect().gap_max() > 0 && scenario.workload().fidelity() != FIDELITY_TOY) {
    add("expect.gap_max", "no optimum is known; this can be checked with fidelity toy");
  }
  if (scenario.expect().loss_max() > 0 && !is_gpt) {
    add("expect.loss_max", "there is no validation loss (expected fidelity gpt; toy has gap_max)");
  }
  int workers = 0;
  for (const Region& region : scenario.regions()) workers += region.workers();
  if (is_gpt && workers > kGptWorkersMax) {
    add("regions",
        absl::StrCat("too many workers for fidelity gpt (expected at most ", kGptWorkersMax, ", got ", workers, ")"));
  }
  if (is_gpt && scenario.model().context() == 0) {
    add("model", "is missing (expected a model, data and optimizer as in a job file, for fidelity gpt)");
  }
  if (!is_gpt && scenario.has_model()) add("model", "means nothing here (expected fidelity gpt, or no model)");
  if (!is_gpt && scenario.has_data()) add("data", "means nothing here (expected fidelity gpt, or no data)");
  if (!is_gpt && scenario.has_optimizer())
    add("optimizer", "means nothing here (expected fidelity gpt, or no optimizer)");
  static const std::set<std::string> kInvariants = {"I1", "I2", "I3", "I4", "I5", "I6", "I7", "I8", "I9", "I10", "I12"};
  for (int i = 0; i < scenario.expect().invariants_size(); ++i) {
    if (kInvariants.count(scenario.expect().invariants(i)) == 0) {
      add(absl::StrCat("expect.invariants[", i, "]"),
          absl::StrCat("cannot be checked (expected ", absl::StrJoin(kInvariants, ", "), ")"));
    }
  }
  for (int i = 0; i < scenario.timeline_size(); ++i) {
    const Fault& fault = scenario.timeline(i);
    const std::string key = absl::StrCat("timeline[", i, "]");
    const int triggers =
        (fault.has_at_ns() ? 1 : 0) + (fault.has_every_ns() ? 1 : 0) + (fault.on() != FAULT_PLACE_UNSPECIFIED ? 1 : 0);
    if (triggers != 1) add(key, "says when in more than one way, or not at all (expected one of at, every and on)");
    if (fault.has_until_ns() && !fault.has_every_ns()) add(key + ".until", "is for faults that happen every so often");
    const FaultKind kind = fault.fault();
    const bool on_disk = kind == FAULT_KIND_POWER_LOSS || kind == FAULT_KIND_DISK_FULL || kind == FAULT_KIND_DISK_ERROR;
    const bool on_worker =
        kind == FAULT_KIND_SLOW || kind == FAULT_KIND_NAN || kind == FAULT_KIND_SIGN_FLIP || kind == FAULT_KIND_SCALE;
    const bool on_process = kind == FAULT_KIND_KILL || kind == FAULT_KIND_FREEZE || kind == FAULT_KIND_CLOCK_SKEW;
    if (fault.target_size() == 0 && !on_disk) add(key, "has no target");
    for (int t = 0; t < fault.target_size(); ++t) {
      const std::string at = absl::StrCat(key, ".target[", t, "]");
      const auto targets = ResolveTarget(scenario, fault.target(t));
      if (!targets.ok()) {
        add(at, std::string(targets.status().message()));
        continue;
      }
      for (const FaultTarget& target : *targets) {
        const char* wrong = nullptr;
        if (on_disk && !target.root()) wrong = "only the root has a disk";
        if (on_worker && (target.root() || target.worker < 0))
          wrong = "this happens to workers (expected REGION/worker-N)";
        if (!on_disk && !on_worker && !on_process && (target.root() || target.worker >= 0)) {
          wrong = "this happens to a region's link (expected REGION)";
        }
        if (wrong != nullptr) {
          add(at, wrong);
          break;
        }
      }
    }
    const bool needs_factor = kind == FAULT_KIND_SLOW || kind == FAULT_KIND_BANDWIDTH || kind == FAULT_KIND_LATENCY ||
                              kind == FAULT_KIND_SCALE || kind == FAULT_KIND_CLOCK_SKEW;
    if (needs_factor != fault.has_factor()) {
      add(key + ".factor", needs_factor ? "is missing: how much?" : "means nothing for this fault");
    }
    const bool needs_probability = kind == FAULT_KIND_LOSS || kind == FAULT_KIND_DUPLICATE ||
                                   kind == FAULT_KIND_REORDER || kind == FAULT_KIND_CORRUPT;
    if (needs_probability != fault.has_probability()) {
      add(key + ".probability", needs_probability ? "is missing: how often?" : "means nothing for this fault");
    }
    if (const LinkProblem problem = FindLinkProblem(scenario, backend, fault); problem.reason != nullptr) {
      add(absl::StrCat(key, ".", problem.key), problem.reason);
    }
    if (kind == FAULT_KIND_SLOW && fault.has_factor() && fault.factor() < 1) {
      add(key + ".factor", "is how many times longer a step takes (expected at least 1)");
    }
    if (kind == FAULT_KIND_CLOCK_SKEW && fault.factor() > 0.5)
      add(key + ".factor", "a clock may be off by at most 0.5");
    const bool lasts = kind != FAULT_KIND_KILL && kind != FAULT_KIND_POWER_LOSS;
    if (!lasts && fault.has_for_ns()) add(key + ".for", "means nothing here: restarts.after says when it comes back");
    if (lasts && !fault.has_for_ns() &&
        (kind == FAULT_KIND_FREEZE || kind == FAULT_KIND_CUT || kind == FAULT_KIND_DISK_FULL ||
         kind == FAULT_KIND_DISK_ERROR)) {
      add(key + ".for", "is missing: without an end the run cannot go on");
    }
  }
  const absl::StatusOr<Job> job = JobOfScenario(scenario);
  if (!job.ok()) {
    add("strategy", std::string(job.status().message()));
  } else {
    for (const StrategyProblem& problem : FindStrategyProblems(*job)) add(problem.key, problem.reason);
    for (const Level* level : {&job->strategy().region(), &job->strategy().root()}) {
      const bool exact = level->weight() == WEIGHT_SUM && level->learning_rate() == 1 && level->momentum() == 0 &&
                         level->codec_up() == CODEC_KIND_FP32 && level->codec_down() == CODEC_KIND_FP32 &&
                         level->staleness_decay() == STALENESS_DECAY_NONE && level->mix() == 1;
      if (counts && !exact) {
        add(level == &job->strategy().root() ? "strategy.root" : "strategy.region",
            "a counter needs weight sum, learning_rate 1, momentum 0, codecs fp32, staleness_decay none and mix 1 "
            "(leave them unset)");
      }
    }
    if (counts && job->strategy().parts() > 1) {
      add("strategy.parts",
          absl::StrCat(
              "a counter's contribution adds what its manifest names, and with parts it adds only some of that "
              "(expected 1 with fidelity counter, got ",
              job->strategy().parts(), "; toy has no such bound)"));
    }
    if (counts && job->strategy().pending() == PENDING_SHARE) {
      add("strategy.pending",
          "shares of what is in flight are rounded, and a counter is exact (expected full with "
          "fidelity counter, got share; toy has no such bound)");
    }
  }
  if (scenario.backend() != BACKEND_UNSPECIFIED && scenario.backend() != backend) {
    add("backend", backend == BACKEND_SIM ? "this scenario is for real processes (run it by: wukong chaos run)"
                                          : "this scenario is for the simulator (run it by: wukong sim)");
  }
  if (backend == BACKEND_PROCESS) AddProcessProblems(scenario, &problems);
  return problems;
}

}  // namespace wukong
