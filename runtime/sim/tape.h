// What happened in a run, in order: what checkers read, what is compared between runs, and what a person looks at.
#ifndef WUKONG_RUNTIME_SIM_TAPE_H_
#define WUKONG_RUNTIME_SIM_TAPE_H_

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "runtime/base/random.h"

namespace wukong {

struct TapeEvent {
  enum Kind {
    kStarted,      // A process. values: life
    kDied,         // A process. values: life
    kFault,        // text: what. values: number in the timeline, 1 when it begins and 0 when it ends
    kCoordinator,  // text: the coordinator's own event, as JSON
    kTrained,      // A worker. values: begin, end of samples (one event per range)
    kOffered,      // To `who`. values: member, incarnation, sequence, samples
    kAccepted,     // By `who`, before it is durable or acknowledged. values: member, incarnation, sequence, samples
    kAnswered,     // By `who`: the sender may know from now on. values: member, incarnation, sequence, verdict
    kContent,    // Of an accepted contribution, where a sum can be told. values: member, sequence, samples, first value
    kMerged,     // By `who`. values: member, sequence, staleness, the base that its header names
    kPublished,  // By `who`. values: version, checksum, term (root) or 0, incarnation (aggregator) or 0
    kCommitted,  // At the root, durable. values: begin, end of samples
    kLeased,   // By the root; again when an answer is repeated. values: begin, end of samples, token, member. text: why
               // another life of the root may lease them again, if it may
    kHeld,     // By an aggregator, which has acknowledged it. values: begin, end of samples, its incarnation
    kTook,     // A version, by a child. values: version, checksum, incarnation of the parent (0: the root), included
    kDamaged,  // A contribution that is sent and is not finite, by a worker. values: member, incarnation, sequence
    kCounted,  // By a worker that took a version, where the model counts. values: samples that its parameters count
    kKinds
  };
  absl::Duration time;
  Kind kind = kStarted;
  absl::string_view who;  // What is kept must be copied.
  std::array<int64_t, 4> values = {};
  std::string text;
};

const char* TapeKindName(TapeEvent::Kind kind);
// One line of JSON.
std::string TapeEventToJson(const TapeEvent& event);

class Tape {
 public:
  using Watcher = std::function<void(const TapeEvent&)>;
  void Watch(Watcher watcher) { watchers_.push_back(std::move(watcher)); }
  void Add(TapeEvent event);
  // Of all events: two runs with the same hash went the same way.
  uint64_t hash() const { return hash_; }
  int64_t size() const { return size_; }

 private:
  std::vector<Watcher> watchers_;
  uint64_t hash_ = 0;
  int64_t size_ = 0;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_TAPE_H_
