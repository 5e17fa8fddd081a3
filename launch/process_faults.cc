#include "launch/process_faults.h"

#include <signal.h>

#include <algorithm>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "nlohmann/json.hpp"
#include "runtime/fault/link_shape.h"
#include "runtime/transport/grpc_options.h"

namespace wukong {

namespace {

using Json = nlohmann::ordered_json;

constexpr absl::Duration kEventTime = absl::Milliseconds(1);  // What times in events.jsonl are rounded to.

// Workers, by way of the coordinator's heartbeats.
bool IsPassedOn(FaultKind kind) {
  return kind == FAULT_KIND_SLOW || kind == FAULT_KIND_NAN || kind == FAULT_KIND_SIGN_FLIP || kind == FAULT_KIND_SCALE;
}

bool IsOfDisk(FaultKind kind) { return kind == FAULT_KIND_DISK_FULL || kind == FAULT_KIND_DISK_ERROR; }

// The coordinator's process does it to itself.
bool IsOfRoot(const Fault& fault) {
  if (IsOfDisk(fault.fault()) || fault.fault() == FAULT_KIND_POWER_LOSS) return true;
  return fault.on() != FAULT_PLACE_UNSPECIFIED &&
         std::all_of(fault.target().begin(), fault.target().end(),
                     [](const std::string& target) { return target == "root"; });
}

}  // namespace

ProcessFaults::ProcessFaults(const Scenario& scenario, const Job& job, uint64_t seed, std::string run_dir)
    : scenario_(scenario),
      job_(job),
      run_dir_(std::move(run_dir)),
      seed_(seed),
      schedule_(scenario, seed),
      links_(static_cast<size_t>(scenario.regions_size())) {
  for (int i = 0; i < scenario.timeline_size(); ++i) {
    if (scenario.timeline(i).on() == FAULT_PLACE_UNSPECIFIED) continue;
    RootOrder order;
    order.act.number = static_cast<size_t>(i);
    order.tells = !IsOfRoot(scenario.timeline(i));
    root_orders_.push_back(order);
  }
}

void ProcessFaults::Poll(LocalRun* run, absl::Duration elapsed) {
  began_ = absl::Now() - elapsed;
  ReadStruck();
  for (const size_t number : std::exchange(due_, {})) schedule_.Trigger(number, elapsed);
  const bool ends = Left(elapsed) <= absl::ZeroDuration() && !quiet_since_.has_value();
  for (const FaultSchedule::Act& act : schedule_.Take(elapsed + std::min(absl::ZeroDuration(), Left(elapsed)))) {
    const Fault& fault = scenario_.timeline(static_cast<int>(act.number));
    if (IsOfRoot(fault)) {
      if (!act.begins) continue;  // Its end is part of the order.
      RootOrder order;
      order.act = act;
      if (fault.has_for_ns()) order.end = elapsed + absl::Nanoseconds(fault.for_ns());
      root_orders_.push_back(order);
    } else if (IsPassedOn(fault.fault())) {
      if (act.begins) orders_.push_back(act);
    } else {
      Carry(run, act, elapsed);
    }
  }
  if (ends) Quiesce(run, elapsed);
  const auto freezes = [&](const std::string& name) { return run->supervisor().Signal(name, SIGSTOP); };
  to_freeze_.erase(std::remove_if(to_freeze_.begin(), to_freeze_.end(), freezes), to_freeze_.end());
  const std::string root = ProcessName(FaultTarget());
  run->ExpectNoAnswer(freezes_.IsFrozen(root, run->supervisor().RunningPid(root)));
  if (run->expects_no_answer()) return;
  PassOn(run, elapsed);
  OrderRoot(run, elapsed);
}

void ProcessFaults::PassOn(LocalRun* run, absl::Duration elapsed) {
  for (auto order = orders_.begin(); order != orders_.end();) {
    const Fault& fault = scenario_.timeline(static_cast<int>(order->number));
    const absl::Duration lasts =
        std::min(fault.has_for_ns() ? absl::Nanoseconds(fault.for_ns()) : absl::InfiniteDuration(), Left(elapsed));
    const absl::StatusOr<int64_t> number =
        Order(run, *order, FAULT_PLACE_UNSPECIFIED, lasts == absl::InfiniteDuration() ? absl::ZeroDuration() : lasts,
              absl::InfiniteDuration());
    if (number.ok()) observed_.push_back({absl::Now(), elapsed, *order});
    if (number.ok() || absl::IsInvalidArgument(number.status()) || absl::IsFailedPrecondition(number.status())) {
      order = orders_.erase(order);
    } else if (absl::IsNotFound(number.status())) {
      ++order;  // It will be back.
    } else {
      return;
    }
  }
}

absl::Duration ProcessFaults::Left(absl::Duration elapsed) const {
  const auto after = absl::Nanoseconds(scenario_.quiesce().after_ns());
  return after > absl::ZeroDuration() ? after - elapsed : absl::InfiniteDuration();
}

void ProcessFaults::Quiesce(LocalRun* run, absl::Duration elapsed) {
  quiet_since_ = elapsed;
  // What was ordered ends by itself.
  schedule_.Heal(elapsed);
  for (const FaultSchedule::Act& act : schedule_.Take(elapsed)) {
    const Fault& fault = scenario_.timeline(static_cast<int>(act.number));
    if (!IsOfRoot(fault) && !IsPassedOn(fault.fault())) Carry(run, act, elapsed);
  }
  for (size_t r = 0; r < links_.size(); ++r) {
    links_[r] = LinkFaults();  // Also those without an end.
    Reshape(run, static_cast<int>(r));
  }
  orders_.clear();
  left_out_ = DrawLeftOut(scenario_, seed_);
  for (const LeftOut& left : left_out_) {
    switch (left.how) {
      case LeftOut::How::kDead:
        run->supervisor().Abandon(ProcessName(left.target));
        run->supervisor().Signal(ProcessName(left.target), SIGKILL);
        break;
      case LeftOut::How::kFrozen:
        to_freeze_.push_back(ProcessName(left.target));
        break;
      case LeftOut::How::kCutOff:
        for (const LinkDirection direction : {LinkDirection::kUp, LinkDirection::kDown}) {
          run->link(scenario_.regions(left.target.region).name())->SetCut(direction, true);
        }
        // Whoever cannot reach the root gives up in time.
        for (int w = -1; w < scenario_.regions(left.target.region).workers(); ++w) {
          run->supervisor().Abandon(ProcessName({left.target.region, w}));
        }
        break;
    }
    run->Say(absl::StrCat("faults have ended; ", TargetName(scenario_, left.target), " is left ", HowName(left.how)));
  }
}

bool ProcessFaults::IsOver(const RootOrder& order, absl::Duration elapsed) const {
  const Fault& fault = scenario_.timeline(static_cast<int>(order.act.number));
  // A disk goes on failing although the process that used it is another one.
  return IsOfDisk(fault.fault()) ? elapsed >= order.end : order.struck;
}

void ProcessFaults::OrderRoot(LocalRun* run, absl::Duration elapsed) {
  if (coordinator_starts_ != run->supervisor().coordinator_starts()) {
    coordinator_starts_ = run->supervisor().coordinator_starts();
    for (RootOrder& order : root_orders_) order.number = 0;
  }
  if (quiet_since_.has_value()) return;
  const auto next = std::find_if(root_orders_.begin(), root_orders_.end(),
                                 [&](const RootOrder& order) { return order.number == 0 && !IsOver(order, elapsed); });
  if (next == root_orders_.end()) return;
  const Fault& fault = scenario_.timeline(static_cast<int>(next->act.number));
  next->told = absl::Now() - kEventTime;
  // What waits for its place lasts from then on.
  const bool waits = fault.on() != FAULT_PLACE_UNSPECIFIED && !next->struck;
  const bool ends = next->end != absl::InfiniteDuration();
  next->number = Order(run, next->act, waits ? fault.on() : FAULT_PLACE_UNSPECIFIED,
                       ends ? next->end - elapsed : absl::Nanoseconds(fault.for_ns()), Left(elapsed), next->tells)
                     .value_or(0);
}

void ProcessFaults::ReadStruck() {
  std::ifstream file(run_dir_ + "/events.jsonl");
  if (!file.seekg(events_read_)) return;
  std::string line;
  while (std::getline(file, line) && !file.eof()) {  // One that does not end is not whole yet.
    events_read_ += static_cast<std::streamoff>(line.size()) + 1;
    const Json event = Json::parse(line, nullptr, /*allow_exceptions=*/false);
    const std::string kind = event.is_object() ? event.value("event", "") : "";
    if (kind != "fault_struck" && kind != "fault_due") continue;
    absl::Time time;
    std::string error;
    if (!absl::ParseTime(absl::RFC3339_full, event.value("time", ""), &time, &error)) continue;
    for (RootOrder& order : root_orders_) {
      // Another life of the coordinator had the number before.
      if (order.number != event.value("number", int64_t{0}) || time < order.told || order.struck) continue;
      order.struck = true;
      if (order.tells) {
        due_.push_back(order.act.number);
        continue;
      }
      const Fault& fault = scenario_.timeline(static_cast<int>(order.act.number));
      if (order.end == absl::InfiniteDuration() && fault.has_for_ns()) {
        order.end = time - began_ + absl::Nanoseconds(fault.for_ns());
      }
      observed_.push_back({time, time - began_, order.act});
    }
  }
}

void ProcessFaults::Carry(LocalRun* run, const FaultSchedule::Act& act, absl::Duration elapsed) {
  const Fault& fault = scenario_.timeline(static_cast<int>(act.number));
  bool done = true;
  switch (fault.fault()) {
    case FAULT_KIND_KILL:
      done = run->supervisor().Signal(ProcessName(act.target), SIGKILL);
      break;
    case FAULT_KIND_FREEZE: {
      const std::string name = ProcessName(act.target);
      const pid_t pid = run->supervisor().RunningPid(name);
      if (act.begins) {
        freezes_.Begin(name, act.number, pid);
        done = run->supervisor().Signal(name, SIGSTOP);
        break;
      }
      const Freezes::Ended ended = freezes_.End(name, act.number, pid);
      if (ended.goes_on) run->supervisor().Signal(name, SIGCONT);
      done = ended.began;
      break;
    }
    default: {
      LinkFaults& link = links_[static_cast<size_t>(act.target.region)];
      act.begins ? link.Begin(act.number, fault) : link.End(act.number);
      Reshape(run, act.target.region);
      break;
    }
  }
  if (done) observed_.push_back({absl::Now(), elapsed, act});  // Otherwise the process was not there.
}

absl::StatusOr<int64_t> ProcessFaults::Order(LocalRun* run, const FaultSchedule::Act& act, FaultPlace on,
                                             absl::Duration lasts, absl::Duration left, bool tells) {
  const Fault& fault = scenario_.timeline(static_cast<int>(act.number));
  InjectFaultRequest request;
  request.set_target(TargetName(scenario_, act.target));
  request.mutable_order()->set_fault(fault.fault());
  request.mutable_order()->set_factor(fault.factor());
  request.mutable_order()->set_for_ns(absl::ToInt64Nanoseconds(lasts));
  request.mutable_order()->set_on(on);
  request.mutable_order()->set_version(fault.version());
  request.mutable_order()->set_tells(tells);
  if (left != absl::InfiniteDuration()) request.mutable_order()->set_until_ns(absl::ToInt64Nanoseconds(left));
  grpc::ClientContext context;
  SetDeadline(&context, absl::Milliseconds(500));  // Other faults are due meanwhile.
  InjectFaultReply reply;
  const grpc::Status status = run->coordinator()->InjectFault(&context, request, &reply);
  if (status.ok()) return reply.number();
  const absl::Status refused = FromGrpc(status, "the coordinator takes no such order");
  if (absl::IsInvalidArgument(refused) || absl::IsFailedPrecondition(refused)) {
    run->Say(absl::StrCat("warning: timeline[", act.number, "] does not happen: ", refused.message()));
  }
  return refused;
}

void ProcessFaults::Reshape(LocalRun* run, int region) {
  const std::string& name = scenario_.regions(region).name();
  const LinkFaults& faults = links_[static_cast<size_t>(region)];
  EmulatedLink* link = run->link(name);
  for (const LinkDirection direction : {LinkDirection::kUp, LinkDirection::kDown}) {
    const LinkShape healthy =
        ShapeOfLink(job_.wan(), name, direction == LinkDirection::kUp ? DIRECTION_UP : DIRECTION_DOWN);
    link->SetShape(direction, faults.Shape(healthy, direction));
    link->SetCut(direction, faults.Cut(direction));
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
