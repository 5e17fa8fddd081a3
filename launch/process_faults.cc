#include "launch/process_faults.h"

#include <signal.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "runtime/fault/link_shape.h"
#include "runtime/transport/grpc_options.h"

namespace wukong {

ProcessFaults::ProcessFaults(const Scenario& scenario, const Job& job, uint64_t seed)
    : scenario_(scenario), job_(job), schedule_(scenario, seed), links_(static_cast<size_t>(scenario.regions_size())) {}

void ProcessFaults::Poll(LocalRun* run, absl::Duration elapsed) {
  for (const FaultSchedule::Act& act : schedule_.Take(elapsed)) {
    const FaultKind kind = scenario_.timeline(static_cast<int>(act.number)).fault();
    const bool ordered =
        kind == FAULT_KIND_SLOW || kind == FAULT_KIND_NAN || kind == FAULT_KIND_SIGN_FLIP || kind == FAULT_KIND_SCALE;
    if (ordered) {
      if (act.begins) orders_.push_back(act);  // Its end is part of the order.
    } else {
      Carry(run, act, elapsed);
    }
  }
  if (!orders_.empty() && Order(run, orders_.front())) {
    observed_.push_back({absl::Now(), elapsed, orders_.front()});
    orders_.pop_front();
  }
}

bool ProcessFaults::Carry(LocalRun* run, const FaultSchedule::Act& act, absl::Duration elapsed) {
  const Fault& fault = scenario_.timeline(static_cast<int>(act.number));
  bool done = true;
  switch (fault.fault()) {
    case FAULT_KIND_KILL:
      done = run->supervisor().Signal(ProcessName(act.target), SIGKILL);
      break;
    case FAULT_KIND_FREEZE:
      done = run->supervisor().Signal(ProcessName(act.target), act.begins ? SIGSTOP : SIGCONT);
      break;
    default: {
      LinkFaults& link = links_[static_cast<size_t>(act.target.region)];
      act.begins ? link.Begin(act.number, fault) : link.End(act.number);
      Reshape(run, act.target.region);
      break;
    }
  }
  if (!done) return false;  // The process is not there now: nothing happened to it.
  observed_.push_back({absl::Now(), elapsed, act});
  return true;
}

bool ProcessFaults::Order(LocalRun* run, const FaultSchedule::Act& act) {
  const Fault& fault = scenario_.timeline(static_cast<int>(act.number));
  InjectFaultRequest request;
  request.set_target(TargetName(scenario_, act.target));
  request.mutable_order()->set_fault(fault.fault());
  request.mutable_order()->set_factor(fault.factor());
  request.mutable_order()->set_for_ns(fault.for_ns());
  grpc::ClientContext context;
  SetDeadline(&context, absl::Seconds(1));
  InjectFaultReply reply;
  const grpc::Status status = run->coordinator()->InjectFault(&context, request, &reply);
  if (status.ok()) return true;
  // A member that is dead now, and a coordinator that is away, will be back.
  if (status.error_code() == grpc::StatusCode::INVALID_ARGUMENT ||
      status.error_code() == grpc::StatusCode::FAILED_PRECONDITION) {
    run->Say(absl::StrCat("warning: timeline[", act.number, "]: ", status.error_message()));
  }
  return false;
}

void ProcessFaults::Reshape(LocalRun* run, int region) {
  const std::string& name = scenario_.regions(region).name();
  const LinkFaults& faults = links_[static_cast<size_t>(region)];
  WanRelay* relay = run->relay(name);
  for (const LinkDirection direction : {LinkDirection::kUp, LinkDirection::kDown}) {
    const LinkShape healthy =
        ShapeOfLink(job_.wan(), name, direction == LinkDirection::kUp ? DIRECTION_UP : DIRECTION_DOWN);
    relay->SetShape(direction, faults.Shape(healthy, direction));
    relay->SetCut(direction, faults.Cut(direction));
  }
}

std::string ProcessFaults::ProcessName(const FaultTarget& target) const {
  if (target.root()) return "coordinator";
  const std::string& region = scenario_.regions(target.region).name();
  return target.worker < 0 ? LocalRun::AggregatorName(region) : LocalRun::WorkerName(region, target.worker);
}

int64_t ProcessFaults::Count(size_t number) const {
  return std::count_if(observed_.begin(), observed_.end(),
                       [&](const ObservedFault& seen) { return seen.act.number == number && seen.act.begins; });
}

}  // namespace wukong
