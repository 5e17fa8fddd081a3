#include "runtime/fault/link_faults.h"

#include "gtest/gtest.h"

namespace wukong {
namespace {

Fault Make(FaultKind kind, Direction direction, double factor = 1, double probability = 0) {
  Fault fault;
  fault.set_fault(kind);
  fault.set_direction(direction);
  fault.set_factor(factor);
  fault.set_probability(probability);
  return fault;
}

TEST(LinkFaultsTest, AddUpPerDirectionAndGoOneByOne) {
  LinkShape healthy;
  healthy.delay = absl::Milliseconds(10);
  healthy.bandwidth_bits_per_s = 1e8;
  healthy.loss = 0.01;
  const Fault thin = Make(FAULT_KIND_BANDWIDTH, DIRECTION_UP, 0.1);
  const Fault far = Make(FAULT_KIND_LATENCY, DIRECTION_BOTH, 3);
  const Fault lossy = Make(FAULT_KIND_LOSS, DIRECTION_DOWN, 1, 0.2);
  const Fault cut = Make(FAULT_KIND_CUT, DIRECTION_DOWN);
  LinkFaults faults;
  faults.Begin(0, thin);
  faults.Begin(0, thin);
  faults.Begin(1, far);
  faults.Begin(2, lossy);
  faults.Begin(3, cut);
  EXPECT_DOUBLE_EQ(faults.Shape(healthy, LinkDirection::kUp).bandwidth_bits_per_s, 1e7) << "of two the strongest";
  EXPECT_DOUBLE_EQ(faults.Shape(healthy, LinkDirection::kDown).bandwidth_bits_per_s, 1e8);
  EXPECT_EQ(faults.Shape(healthy, LinkDirection::kUp).delay, absl::Milliseconds(30));
  EXPECT_EQ(faults.Shape(healthy, LinkDirection::kDown).delay, absl::Milliseconds(30));
  EXPECT_DOUBLE_EQ(faults.Shape(healthy, LinkDirection::kUp).loss, 0.01);
  EXPECT_DOUBLE_EQ(faults.Shape(healthy, LinkDirection::kDown).loss, 0.2);
  EXPECT_FALSE(faults.Cut(LinkDirection::kUp));
  EXPECT_TRUE(faults.Cut(LinkDirection::kDown));
  EXPECT_EQ(faults.Find(FAULT_KIND_CORRUPT), nullptr);
  EXPECT_EQ(faults.Find(FAULT_KIND_LOSS), &lossy);
  faults.End(0);
  faults.End(3);
  faults.End(3);  // Is not there any more.
  EXPECT_DOUBLE_EQ(faults.Shape(healthy, LinkDirection::kUp).bandwidth_bits_per_s, 1e7);
  EXPECT_FALSE(faults.Cut(LinkDirection::kDown));
}

}  // namespace
}  // namespace wukong
