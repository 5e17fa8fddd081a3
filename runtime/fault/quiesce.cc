#include "runtime/fault/quiesce.h"

namespace wukong {

Core DrawCore(const Scenario& scenario, Random* random) {
  Core core;
  const auto certain_region = static_cast<int>(random->Below(static_cast<uint64_t>(scenario.regions_size())));
  for (int r = 0; r < scenario.regions_size(); ++r) {
    core.regions.push_back(random->Below(2) == 0 || r == certain_region);
    std::vector<bool>& workers = core.workers.emplace_back();
    const int count = scenario.regions(r).workers();
    const auto certain_worker = static_cast<int>(random->Below(static_cast<uint64_t>(count)));
    for (int w = 0; w < count; ++w) {
      workers.push_back(core.regions.back() && (random->Below(2) == 0 || w == certain_worker));
    }
  }
  return core;
}

std::vector<LeftOut> DrawLeftOut(const Scenario& scenario, uint64_t seed) {
  Random random(DeriveSeed(seed, "quiesce"));
  const Core core = DrawCore(scenario, &random);
  std::vector<LeftOut> left_out;
  for (size_t r = 0; r < core.regions.size(); ++r) {
    const auto region = static_cast<int>(r);
    if (!core.regions[r] && random.Below(2) == 0) {
      left_out.push_back({{region, -1}, LeftOut::How::kCutOff});
      continue;
    }
    if (!core.regions[r]) left_out.push_back({{region, -1}, LeftOut::How::kDead});
    for (size_t w = 0; w < core.workers[r].size(); ++w) {
      if (core.workers[r][w]) continue;
      const bool frozen = core.regions[r] && random.Below(3) == 0;
      left_out.push_back({{region, static_cast<int>(w)}, frozen ? LeftOut::How::kFrozen : LeftOut::How::kDead});
    }
  }
  return left_out;
}

std::string HowName(LeftOut::How how) {
  switch (how) {
    case LeftOut::How::kDead:
      return "dead";
    case LeftOut::How::kFrozen:
      return "frozen";
    case LeftOut::How::kCutOff:
      return "cut off";
  }
  return "";
}

}  // namespace wukong
