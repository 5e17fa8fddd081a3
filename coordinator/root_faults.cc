#include "coordinator/root_faults.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/strip.h"
#include "glog/logging.h"
#include "runtime/base/fault_point.h"
#include "runtime/base/random.h"
#include "runtime/fault/fault_schedule.h"

namespace wukong {
namespace {

using Json = nlohmann::ordered_json;

constexpr absl::Duration kAnswer = absl::Milliseconds(100);  // For the answer to an order to go out.
constexpr absl::Duration kForASync = absl::Seconds(1);
// What the root let go at a place goes out before it dies there. The node does nothing else meanwhile.
constexpr absl::Duration kLeave = absl::Milliseconds(20);

FaultPlace PlaceOf(absl::string_view point) {
  if (point == "root.after_append") return FAULT_PLACE_AFTER_APPEND_BEFORE_ACK;
  if (point == "root.after_ack") return FAULT_PLACE_AFTER_ACK;
  if (point == "root.after_publish") return FAULT_PLACE_AFTER_PUBLISH;
  return FAULT_PLACE_UNSPECIFIED;
}

bool IsOfDisk(const FaultOrder& order) {
  return order.fault() == FAULT_KIND_DISK_FULL || order.fault() == FAULT_KIND_DISK_ERROR;
}

}  // namespace

RootFaults::RootFaults(FaultyDisk* disk, const Clock* clock, uint64_t seed, Hooks hooks)
    : disk_(disk), clock_(clock), seed_(seed), hooks_(std::move(hooks)) {
  WatchFaultPoints([this](absl::string_view point) { PassPoint(point); });
  disk_->OnSync([this] { BeginSync(); });
}

RootFaults::~RootFaults() {
  disk_->OnSync(nullptr);
  WatchFaultPoints(nullptr);
}

void RootFaults::Order(const FaultOrder& order) {
  const absl::Time deadline =
      order.until_ns() > 0 ? clock_->Now() + absl::Nanoseconds(order.until_ns()) : absl::InfiniteFuture();
  MutexLock lock(mutex_);
  if (order.on() == FAULT_PLACE_UNSPECIFIED) {
    Begin(order, deadline);
  } else {
    armed_.push_back({order, deadline});
  }
}

void RootFaults::Begin(const FaultOrder& order, absl::Time deadline) {
  const absl::Time now = clock_->Now();
  if (!IsOfDisk(order)) {
    due_.push_back({order, now + kAnswer});
    return;
  }
  const absl::Time end = std::min(deadline, now + absl::Nanoseconds(order.for_ns()));
  on_disk_.push_back({order, Failed(order), end});
  order.fault() == FAULT_KIND_DISK_FULL ? disk_->FillUntil(end) : disk_->FailSyncsUntil(end);
}

int64_t RootFaults::Failed(const FaultOrder& order) const {
  return order.fault() == FAULT_KIND_DISK_FULL ? disk_->failed_writes() : disk_->failed_syncs();
}

void RootFaults::Tick() {
  std::vector<FaultOrder> came_to_pass, to_strike;
  {
    MutexLock lock(mutex_);
    const absl::Time now = clock_->Now();
    for (auto fault = on_disk_.begin(); fault != on_disk_.end();) {
      const bool failed = Failed(fault->order) > fault->failed_before;
      if (failed) came_to_pass.push_back(fault->order);
      fault = failed || now >= fault->end ? on_disk_.erase(fault) : std::next(fault);
    }
    for (auto due = due_.begin(); due != due_.end();) {
      const bool waits = due->order.fault() == FAULT_KIND_POWER_LOSS;
      const bool strikes = now >= due->time + (waits ? kForASync : absl::ZeroDuration());
      if (strikes) to_strike.push_back(due->order);
      due = strikes ? due_.erase(due) : std::next(due);
    }
  }
  for (const FaultOrder& order : came_to_pass) Record("fault_struck", order, Json::object());
  for (const FaultOrder& order : to_strike) Strike(order);
}

void RootFaults::PassPoint(absl::string_view point) {
  const FaultPlace place = PlaceOf(point);
  if (place == FAULT_PLACE_UNSPECIFIED) return;
  std::vector<FaultOrder> to_strike;
  {
    MutexLock lock(mutex_);
    if (armed_.empty()) return;
    const int64_t version = hooks_.version().value();
    const absl::Time now = clock_->Now();
    for (auto armed = armed_.begin(); armed != armed_.end();) {
      FaultOrder order = armed->order;
      const bool late = now >= armed->deadline;
      const bool here = !late && order.on() == place && version >= order.version();
      if (here && IsOfDisk(order) && !order.tells()) {
        Begin(order, armed->deadline);
      } else if (here) {
        const int64_t left = absl::ToInt64Nanoseconds(armed->deadline - now);
        order.set_for_ns(std::min(order.for_ns(), left));
        to_strike.push_back(order);
      }
      armed = here || late ? armed_.erase(armed) : std::next(armed);
    }
  }
  for (const FaultOrder& order : to_strike) {
    if (order.tells()) {
      Record("fault_due", order, Json::object());
      continue;
    }
    if (place != FAULT_PLACE_AFTER_APPEND_BEFORE_ACK) hooks_.wait(kLeave);
    Strike(order);
  }
}

void RootFaults::BeginSync() {
  std::vector<FaultOrder> to_strike;
  {
    MutexLock lock(mutex_);
    const auto due = std::find_if(due_.begin(), due_.end(), [now = clock_->Now()](const Due& one) {
      return one.order.fault() == FAULT_KIND_POWER_LOSS && now >= one.time;
    });
    if (due == due_.end()) return;
    to_strike.push_back(due->order);
    due_.erase(due);
  }
  Strike(to_strike.front());
}

void RootFaults::Record(const char* event_name, const FaultOrder& order, const Json& more) const {
  Json event = {{"event", event_name}, {"number", order.number()}, {"fault", FaultName(order.fault())}};
  if (!order.tells()) event["target"] = "root";
  event["version"] = hooks_.version().value();
  if (order.on() != FAULT_PLACE_UNSPECIFIED) {
    event["on"] = absl::AsciiStrToLower(absl::StripPrefix(FaultPlace_Name(order.on()), "FAULT_PLACE_"));
  }
  event.update(more);
  hooks_.record(event);
}

void RootFaults::Strike(const FaultOrder& order) {
  FaultOrder on_process = order;
  Json more = Json::object();
  if (order.fault() == FAULT_KIND_POWER_LOSS) {
    const FaultyDisk::Loss loss =
        disk_->LosePower(DeriveSeed(seed_, "power_loss", static_cast<uint64_t>(order.number())));
    LOG(WARNING) << "fault injection: power loss, order " << order.number() << "; of " << loss.bytes_unsynced
                 << " bytes that were not synced " << loss.bytes_lost << " are lost, and " << loss.names_undone
                 << " changes of names";
    more = {
        {"bytes_unsynced", loss.bytes_unsynced}, {"bytes_lost", loss.bytes_lost}, {"names_undone", loss.names_undone}};
    on_process.set_fault(FAULT_KIND_KILL);
  }
  Record("fault_struck", order, more);
  hooks_.carry_out(on_process);
}

}  // namespace wukong
