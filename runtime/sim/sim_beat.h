// One try of a heartbeat. All that happens on its behalf holds it and little else: thousands are under way.
#ifndef WUKONG_RUNTIME_SIM_SIM_BEAT_H_
#define WUKONG_RUNTIME_SIM_SIM_BEAT_H_

#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/wire.pb.h"

namespace wukong {

class SimSession;
struct SimCoordinatorDoor;

struct SimBeat {
  SimSession* session = nullptr;  // May be gone when the coordinator serves it.
  const SimCoordinatorDoor* door = nullptr;
  HeartbeatRequest request;
  absl::Time sent;
  absl::Status status;
  HeartbeatReply reply;
};

// Spare ones, with the memory that their messages had: the one that was used last is the one taken first.
class SimBeats {
 public:
  SimBeats() = default;
  SimBeats(const SimBeats&) = delete;
  SimBeats& operator=(const SimBeats&) = delete;

  // Its request is empty; the rest is what it was. It comes back when its last holder lets go, which must be before
  // this ends.
  std::shared_ptr<SimBeat> Take() {
    if (spare_.empty()) spare_.push_back(std::make_unique<SimBeat>());
    SimBeat* const beat = spare_.back().release();
    spare_.pop_back();
    return {beat, [this](SimBeat* used) {
              // Clear() would free this one.
              std::unique_ptr<MemberUsage> usage(used->request.release_usage());
              used->request.Clear();
              if (usage != nullptr) usage->Clear();
              used->request.set_allocated_usage(usage.release());
              spare_.emplace_back(used);
            }};
  }

 private:
  std::vector<std::unique_ptr<SimBeat>> spare_;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_SIM_BEAT_H_
