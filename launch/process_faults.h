// The faults of a scenario, brought about on real processes and emulated links of this machine.
#ifndef WUKONG_LAUNCH_PROCESS_FAULTS_H_
#define WUKONG_LAUNCH_PROCESS_FAULTS_H_

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "launch/local_run.h"
#include "proto/scenario.pb.h"
#include "runtime/fault/fault_schedule.h"
#include "runtime/fault/link_faults.h"

namespace wukong {

// A fault that came to pass, or one that ended.
struct ObservedFault {
  absl::Time time;         // On the wall.
  absl::Duration elapsed;  // Since training began.
  FaultSchedule::Act act;
};

class ProcessFaults {
 public:
  // `scenario` is checked (FindScenarioProblems) and outlives this, as does `job`.
  ProcessFaults(const Scenario& scenario, const Job& job, uint64_t seed);

  // Does what is due. Of what waits for the coordinator to answer it tries the first again each time.
  void Poll(LocalRun* run, absl::Duration elapsed);
  const std::vector<ObservedFault>& observed() const { return observed_; }
  // How often the fault began.
  int64_t Count(size_t number) const;

 private:
  // False: it must be tried again.
  bool Carry(LocalRun* run, const FaultSchedule::Act& act, absl::Duration elapsed);
  bool Order(LocalRun* run, const FaultSchedule::Act& act);
  void Reshape(LocalRun* run, int region);
  std::string ProcessName(const FaultTarget& target) const;

  const Scenario& scenario_;
  const Job& job_;
  FaultSchedule schedule_;
  std::deque<FaultSchedule::Act> orders_;  // For the coordinator to pass on.
  std::vector<LinkFaults> links_;          // By region.
  std::vector<ObservedFault> observed_;
};

}  // namespace wukong

#endif  // WUKONG_LAUNCH_PROCESS_FAULTS_H_
