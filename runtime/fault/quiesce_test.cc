#include "runtime/fault/quiesce.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace wukong {
namespace {

Scenario ThreeRegions() {
  Scenario scenario;
  for (const char* name : {"beijing", "shenzhen", "guizhou"}) {
    Region* region = scenario.add_regions();
    region->set_name(name);
    region->set_workers(2);
  }
  return scenario;
}

TEST(QuiesceTest, TheCoreHasARegionWithAWorkerAndIsNotAlwaysAll) {
  const Scenario scenario = ThreeRegions();
  int regions = 0, workers = 0;
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    Random random(seed);
    const Core core = DrawCore(scenario, &random);
    int workers_here = 0;
    for (size_t r = 0; r < core.regions.size(); ++r) {
      regions += core.regions[r] ? 1 : 0;
      const auto here = std::count(core.workers[r].begin(), core.workers[r].end(), true);
      EXPECT_EQ(here > 0, core.regions[r]) << "a region without a worker is no core, and a worker needs its region";
      workers_here += static_cast<int>(here);
    }
    EXPECT_GE(workers_here, 1);
    workers += workers_here;
  }
  EXPECT_LT(regions, 250);
  EXPECT_LT(workers, 450);
}

TEST(QuiesceTest, SomebodyIsAlwaysLeftAndTheOthersEndInAllWays) {
  const Scenario scenario = ThreeRegions();
  std::set<LeftOut::How> ways;
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    std::set<std::pair<int, int>> gone;  // Workers.
    std::set<int> regions;
    for (const LeftOut& left : DrawLeftOut(scenario, seed)) {
      ways.insert(left.how);
      if (left.target.worker < 0) {
        EXPECT_TRUE(regions.insert(left.target.region).second);
        EXPECT_NE(left.how, LeftOut::How::kFrozen);
        for (int w = 0; left.how == LeftOut::How::kCutOff && w < 2; ++w) gone.insert({left.target.region, w});
      } else {
        EXPECT_TRUE(gone.insert({left.target.region, left.target.worker}).second);
        EXPECT_NE(left.how, LeftOut::How::kCutOff);
      }
    }
    EXPECT_LT(gone.size(), 6u);
    for (const int region : regions) {
      EXPECT_EQ(gone.count({region, 0}) + gone.count({region, 1}), 2u) << "nobody works for a dead aggregator";
    }
  }
  EXPECT_EQ(ways.size(), 3u);
}

}  // namespace
}  // namespace wukong
