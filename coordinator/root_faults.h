// What goes wrong at the root because somebody who studies faults ordered it (docs/chaos.md): its process dies or
// stands still, its disk is full, cannot sync or loses power; at once, or when the root gets to a place of the
// protocol.
#ifndef WUKONG_COORDINATOR_ROOT_FAULTS_H_
#define WUKONG_COORDINATOR_ROOT_FAULTS_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "nlohmann/json.hpp"
#include "proto/scenario.pb.h"
#include "runtime/base/clock.h"
#include "runtime/base/ids.h"
#include "runtime/base/mutex.h"
#include "runtime/storage/faulty_disk.h"

namespace wukong {

// Thread-safe. Watches the fault points of this process while it lives.
class RootFaults {
 public:
  struct Hooks {
    // Writes an event; `fault_struck` when an order came to pass, with its number. A fault of the disk has come to pass
    // when a write or a sync has failed. Of a death it is written before. `fault_due` for an order that only tells.
    std::function<void(nlohmann::ordered_json)> record;
    std::function<Version()> version;                  // The newest that is published.
    std::function<void(const FaultOrder&)> carry_out;  // kill and freeze, on this process.
    std::function<void(absl::Duration)> wait;          // Keeps the calling thread.
  };
  // `disk` and `clock` outlive it. What power loss leaves behind comes from the seed and the number of the order.
  RootFaults(FaultyDisk* disk, const Clock* clock, uint64_t seed, Hooks hooks);
  ~RootFaults();
  RootFaults(const RootFaults&) = delete;
  RootFaults& operator=(const RootFaults&) = delete;

  // As CoordinatorCore::InjectFault let it through, with its number. What is to happen at once happens from the next
  // Tick on, so that the answer to whoever ordered it goes out. Power is lost at the next sync that has something to
  // lose, or a second later.
  void Order(const FaultOrder& order);
  // Does what is due. Call every 50 ms or so.
  void Tick();

 private:
  struct Armed {
    FaultOrder order;
    absl::Time deadline;
  };
  struct Due {
    FaultOrder order;
    absl::Time time;
  };
  struct OnDisk {
    FaultOrder order;
    int64_t failed_before;
    absl::Time end;
  };
  void Begin(const FaultOrder& order, absl::Time deadline) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PassPoint(absl::string_view point);
  void BeginSync();
  int64_t Failed(const FaultOrder& order) const;
  void Record(const char* event_name, const FaultOrder& order, const nlohmann::ordered_json& more) const;
  void Strike(const FaultOrder& order);

  FaultyDisk* const disk_;
  const Clock* const clock_;
  const uint64_t seed_;
  const Hooks hooks_;

  Mutex mutex_;
  std::vector<Armed> armed_ ABSL_GUARDED_BY(mutex_);     // Wait for their places.
  std::vector<Due> due_ ABSL_GUARDED_BY(mutex_);         // Of the process; power_loss too.
  std::vector<OnDisk> on_disk_ ABSL_GUARDED_BY(mutex_);  // Nothing has failed by them yet.
};

}  // namespace wukong

#endif  // WUKONG_COORDINATOR_ROOT_FAULTS_H_
