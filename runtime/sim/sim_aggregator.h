// A region's aggregator in the simulator, as worker/aggregator.h has it in production.
#ifndef WUKONG_RUNTIME_SIM_SIM_AGGREGATOR_H_
#define WUKONG_RUNTIME_SIM_SIM_AGGREGATOR_H_

#include <memory>
#include <string>

#include "runtime/sim/sim_coordinator.h"
#include "runtime/sim/sim_node.h"
#include "runtime/sim/sim_session.h"

namespace wukong {

class SimAggregator final : public SimProcess {
 public:
  SimAggregator(SimWorld* world, SimCoordinator* root, const ParameterLayout& layout, std::string region, int site);
  ~SimAggregator() override;

  // The node of this member's life, or null: whoever looks for an earlier one finds nobody.
  SimNode* NodeOf(MemberKey member);

 private:
  struct Life;
  void Begin() override;
  void End() override;
  void Joined(const JoinReply& reply);
  void Fill(HeartbeatRequest* request);
  void TakeReply(const HeartbeatReply& reply);
  void OnVersion();

  SimWorld* const world_;
  SimCoordinator* const root_;
  const ParameterLayout& layout_;
  const std::string region_;
  std::unique_ptr<Life> life_state_;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_SIM_AGGREGATOR_H_
