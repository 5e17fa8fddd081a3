// The faults of a scenario, brought about on real processes and emulated links of this machine.
#ifndef WUKONG_LAUNCH_PROCESS_FAULTS_H_
#define WUKONG_LAUNCH_PROCESS_FAULTS_H_

#include <cstdint>
#include <deque>
#include <ios>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "launch/local_run.h"
#include "proto/scenario.pb.h"
#include "runtime/fault/fault_schedule.h"
#include "runtime/fault/freezes.h"
#include "runtime/fault/link_faults.h"
#include "runtime/fault/quiesce.h"

namespace wukong {

// A fault that came to pass, or one that ended.
struct ObservedFault {
  absl::Time time;         // On the wall.
  absl::Duration elapsed;  // Since training began.
  FaultSchedule::Act act;
};

class ProcessFaults {
 public:
  // `scenario` is checked (FindScenarioProblems) and outlives this, as does `job`. `run_dir`: of the run.
  ProcessFaults(const Scenario& scenario, const Job& job, uint64_t seed, std::string run_dir);

  // Does what is due. What the coordinator has not taken yet it tries again each time, unless that stands still.
  void Poll(LocalRun* run, absl::Duration elapsed);
  // Reads what the coordinator wrote of faults that struck the root since the last call. Poll does; once more when the
  // run is over.
  void ReadStruck();
  const std::vector<ObservedFault>& observed() const { return observed_; }
  // How often the fault began.
  int64_t Count(size_t number) const;
  // Since then faults have ended and some are left out, for good; nothing: not yet.
  std::optional<absl::Duration> quiet_since() const { return quiet_since_; }
  const std::vector<LeftOut>& left_out() const { return left_out_; }

 private:
  // What the coordinator is to do to itself, or to tell of. It forgets that when it dies, and is then told again.
  struct RootOrder {
    FaultSchedule::Act act;
    absl::Duration end = absl::InfiniteDuration();  // Since training began; of what lasts.
    int64_t number = 0;                             // In this life of the coordinator; 0: it was not told.
    absl::Time told;
    bool tells = false;  // Others are to fail then.
    bool struck = false;
  };
  void Quiesce(LocalRun* run, absl::Duration elapsed);
  // Until faults end; infinite where they have no common end.
  absl::Duration Left(absl::Duration elapsed) const;
  bool IsOver(const RootOrder& order, absl::Duration elapsed) const;
  void Carry(LocalRun* run, const FaultSchedule::Act& act, absl::Duration elapsed);
  // Has the coordinator pass on what waits for it.
  void PassOn(LocalRun* run, absl::Duration elapsed);
  // The number of the order. It is over when `left` has passed, if it is the root's. NOT_FOUND: its target does not
  // live. INVALID_ARGUMENT, FAILED_PRECONDITION: it never happens, which has been said. Otherwise the coordinator does
  // not answer now.
  absl::StatusOr<int64_t> Order(LocalRun* run, const FaultSchedule::Act& act, FaultPlace on, absl::Duration lasts,
                                absl::Duration left, bool tells = false);
  void OrderRoot(LocalRun* run, absl::Duration elapsed);
  void Reshape(LocalRun* run, int region);
  std::string ProcessName(const FaultTarget& target) const;

  const Scenario& scenario_;
  const Job& job_;
  const std::string run_dir_;
  const uint64_t seed_;
  FaultSchedule schedule_;
  std::deque<FaultSchedule::Act> orders_;  // For the coordinator to pass on.
  std::vector<RootOrder> root_orders_;
  std::vector<size_t> due_;         // Faults of others whose place the root has come to.
  int coordinator_starts_ = 0;      // As far as root_orders_ say who was told.
  std::streamoff events_read_ = 0;  // Bytes of events.jsonl.
  absl::Time began_;
  std::vector<LinkFaults> links_;  // By region.
  Freezes freezes_;
  std::vector<ObservedFault> observed_;
  std::optional<absl::Duration> quiet_since_;
  std::vector<LeftOut> left_out_;
  std::vector<std::string> to_freeze_;  // Processes that are to be frozen for good, once they run.
};

}  // namespace wukong

#endif  // WUKONG_LAUNCH_PROCESS_FAULTS_H_
