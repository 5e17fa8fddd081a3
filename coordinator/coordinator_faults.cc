// Faults that are ordered on members that live (docs/chaos.md).
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "coordinator/coordinator_core.h"
#include "runtime/fault/active_faults.h"
#include "runtime/fault/fault_schedule.h"

namespace wukong {
namespace {

absl::Status CheckOrder(const FaultOrder& order, bool on_workers, bool on_root) {
  if (order.tells()) {
    if (on_root && order.on() != FAULT_PLACE_UNSPECIFIED) return absl::OkStatus();
    return absl::InvalidArgumentError("only the root tells of an event, and of one that it is told");
  }
  const FaultKind kind = order.fault();
  const bool on_process = kind == FAULT_KIND_KILL || kind == FAULT_KIND_FREEZE;
  const bool on_work =
      kind == FAULT_KIND_SLOW || kind == FAULT_KIND_NAN || kind == FAULT_KIND_SIGN_FLIP || kind == FAULT_KIND_SCALE;
  const bool on_disk = kind == FAULT_KIND_POWER_LOSS || kind == FAULT_KIND_DISK_FULL || kind == FAULT_KIND_DISK_ERROR;
  const std::string name = FaultName(kind);
  if (!on_process && !on_work && !on_disk) {
    return absl::InvalidArgumentError(
        absl::StrCat(name,
                     " cannot be ordered (expected kill, freeze, slow, nan, sign_flip, scale, power_loss, "
                     "disk_full or disk_error)"));
  }
  if (on_work && !on_workers) {
    return absl::InvalidArgumentError(absl::StrCat(name, " happens to workers (expected REGION/NAME or REGION/*)"));
  }
  if (on_disk && !on_root) {
    return absl::InvalidArgumentError(absl::StrCat(name, " happens to the root's disk (expected root)"));
  }
  if (order.on() != FAULT_PLACE_UNSPECIFIED && !on_root) {
    return absl::InvalidArgumentError(
        absl::StrCat("at an event of the protocol, ", name, " happens to the root (expected root)"));
  }
  const bool needs_factor = kind == FAULT_KIND_SLOW || kind == FAULT_KIND_SCALE;
  if (needs_factor && !(order.factor() > 0)) {
    return absl::InvalidArgumentError(absl::StrCat(name, " needs a factor above 0"));
  }
  if (needs_factor && order.factor() > kFaultFactorMax) {
    return absl::InvalidArgumentError(absl::StrCat(name, " needs a factor of at most 1e9"));
  }
  if (kind == FAULT_KIND_SLOW && order.factor() < 1) {
    return absl::InvalidArgumentError("slow needs a factor of at least 1: times that a step takes longer");
  }
  const bool needs_end = kind == FAULT_KIND_FREEZE || kind == FAULT_KIND_DISK_FULL || kind == FAULT_KIND_DISK_ERROR;
  if (needs_end && order.for_ns() <= 0) {
    return absl::InvalidArgumentError(absl::StrCat(name, " needs a time: nobody else would end it"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<InjectFaultReply> CoordinatorCore::InjectFault(const InjectFaultRequest& request) {
  if (job_.fault_injection() != FAULT_INJECTION_ALLOWED) {
    return absl::FailedPreconditionError(
        "the job does not allow it (its file says nothing of fault_injection: allowed)");
  }
  InjectFaultReply reply;
  const std::string& target = request.target();
  const size_t slash = target.find('/');
  const std::string region = target.substr(0, slash);
  const std::string name = slash == std::string::npos ? "" : target.substr(slash + 1);
  const bool on_workers = !name.empty() && name != "**";
  if (absl::Status status = CheckOrder(request.order(), on_workers, target == "root"); !status.ok()) return status;
  FaultOrder order = request.order();
  order.set_number(fault_orders_ + 1);
  reply.set_number(order.number());
  std::set<std::string> live = {"root"};
  if (target == "root") {
    reply.add_members("root");
  } else {
    for (const auto& member : members_) {
      if (member->state != State::kLive) continue;
      const bool worker = member->role == ROLE_WORKER;
      live.insert(worker ? absl::StrCat(RegionOf(*member), "/", member->name) : RegionOf(*member));
      if (region != "*" && region != RegionOf(*member)) continue;
      const bool meant = name == "**" || (worker ? name == "*" || name == member->name : name.empty());
      if (!meant) continue;
      member->faults.push_back(order);
      reply.add_members(Describe(*member));
    }
  }
  if (reply.members().empty()) {
    return absl::NotFoundError(
        absl::StrCat("nobody called ", target, " lives (there are ", absl::StrJoin(live, ", "), ")"));
  }
  fault_orders_ = order.number();
  Log({{"event", "fault_ordered"},
       {"number", order.number()},
       {"fault", FaultName(order.fault())},
       {"target", target},
       {"members", std::vector<std::string>(reply.members().begin(), reply.members().end())}});
  return reply;
}

void CoordinatorCore::TellFaults(Member* member, int64_t heard, HeartbeatReply* reply) {
  std::vector<FaultOrder> left;
  for (const FaultOrder& order : member->faults) {
    if (order.number() > heard) {
      left.push_back(order);
      *reply->add_faults() = order;
    } else {
      Log({{"event", "fault_heard"},
           {"number", order.number()},
           {"fault", FaultName(order.fault())},
           {"name", Describe(*member)}});
    }
  }
  member->faults = std::move(left);
}

}  // namespace wukong
