#include "runtime/sim/tape.h"

#include "nlohmann/json.hpp"
#include "runtime/base/digest.h"

namespace wukong {

const char* TapeKindName(TapeEvent::Kind kind) {
  static constexpr const char* kNames[TapeEvent::kKinds] = {
      "started", "died",      "fault",     "coordinator", "trained", "offered", "accepted", "answered", "content",
      "merged",  "published", "committed", "leased",      "held",    "took",    "damaged",  "counted"};
  return kNames[kind];
}

std::string TapeEventToJson(const TapeEvent& event) {
  nlohmann::ordered_json json = {{"seconds", absl::ToDoubleSeconds(event.time)},
                                 {"event", TapeKindName(event.kind)},
                                 {"who", event.who},
                                 {"values", event.values}};
  if (!event.text.empty()) json["text"] = event.text;
  return json.dump();
}

void Tape::Add(TapeEvent event) {
  const auto mix = [this](uint64_t value) { hash_ = Mix64(hash_ ^ value) + 0x9e3779b97f4a7c15; };
  mix(static_cast<uint64_t>(absl::ToInt64Nanoseconds(event.time)));
  mix(event.kind);
  mix(Checksum(event.who.data(), event.who.size()));
  for (const int64_t value : event.values) mix(static_cast<uint64_t>(value));
  mix(Checksum(event.text.data(), event.text.size()));
  ++size_;
  for (const Watcher& watcher : watchers_) watcher(event);
}

}  // namespace wukong
