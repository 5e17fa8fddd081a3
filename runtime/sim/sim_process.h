// A simulated process: it can die, be started again, freeze, and have a clock that runs at its own pace.
#ifndef WUKONG_RUNTIME_SIM_SIM_PROCESS_H_
#define WUKONG_RUNTIME_SIM_SIM_PROCESS_H_

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/inlined_vector.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "runtime/base/clock.h"
#include "runtime/sim/event_queue.h"

namespace wukong {

// What a process holds in memory dies with it: callbacks are for the life in which they were made, and messages that a
// frozen process gets wait until it thaws.
class SimProcess : public Clock, public EventQueue::Place {
 public:
  SimProcess(EventQueue* queue, std::string name, int site) : queue_(queue), name_(std::move(name)), site_(site) {}
  ~SimProcess() override = default;
  SimProcess(const SimProcess&) = delete;
  SimProcess& operator=(const SimProcess&) = delete;

  const std::string& name() const { return name_; }
  // The region that it is in; -1 where the root is.
  int site() const { return site_; }
  bool alive() const { return alive_; }
  bool frozen() const { return frozen_; }
  int64_t life() const { return life_; }
  EventQueue* queue() const { return queue_; }
  // Of a process in a region: its connections for calls to and from the root (runtime/sim/sim_network.h).
  using Connections = absl::InlinedVector<int64_t, 2>;
  Connections& to_root() { return to_root_; }
  Connections& from_root() { return from_root_; }
  const Connections& to_root() const { return to_root_; }
  // Where this is, and what it uses in this life: hints of which memory to ask for ahead.
  absl::Span<const char> object() const { return {reinterpret_cast<const char*>(this), sizeof(*this)}; }
  virtual absl::Span<const char> memory() const { return {}; }
  // What the root has of it, or had: a hint of which memory a call from here will need there.
  absl::Span<const char> memory_at_root() const { return memory_at_root_; }
  void SetMemoryAtRoot(absl::Span<const char> memory) { memory_at_root_ = memory; }

  // The process's own clock.
  absl::Time Now() const override {
    const absl::Duration passed = queue_->Now() - since_;
    return own_ + (rate_ == 1 ? passed : passed * rate_);
  }
  absl::Time WallNow() const override { return Now(); }
  // From now on its clock makes `rate` seconds a second.
  void SetClockRate(double rate) {
    own_ = Now();
    since_ = queue_->Now();
    rate_ = rate;
  }

  // In this life, or not at all.
  void Deliver(Action&& work) { After(absl::ZeroDuration(), std::move(work)); }
  // By its own clock.
  EventQueue::EventId After(absl::Duration delay, Action&& work) {
    return AfterWork(rate_ == 1 ? delay : delay / rate_, std::move(work));
  }
  // What takes time whatever the clock says.
  EventQueue::EventId AfterWork(absl::Duration time, Action&& work) {
    return queue_->After(time, std::move(work), this, TagOf(life_, /*on_arrival=*/false));
  }
  // With this tag an event of the queue happens to this process, in life `life` or not at all. What arrives from
  // elsewhere is delivered, after whatever else happens to it at that time.
  static int64_t TagOf(int64_t life, bool on_arrival) { return 2 * life + (on_arrival ? 1 : 0); }
  void Happen(int64_t tag, Action&& work) override {
    if (!alive_ || tag / 2 != life_) return;
    if (tag % 2 != 0) {
      Deliver(std::move(work));
    } else if (frozen_) {
      backlog_.push_back(std::move(work));
    } else {
      work();
    }
  }
  // Called when this life ends; returns a number for Forget.
  int64_t OnDeath(Action hook) {
    on_death_.emplace(++next_hook_, std::move(hook));
    return next_hook_;
  }
  void Forget(int64_t hook) { on_death_.erase(hook); }

  // Begins a life.
  void Start() {
    alive_ = true;
    frozen_ = false;
    Begin();
  }
  // Ends it, whatever it does.
  void Kill() {
    if (!alive_) return;
    alive_ = false;
    ++life_;
    backlog_.clear();
    std::vector<std::pair<int64_t, Action>> hooks;
    for (auto& [number, hook] : on_death_) hooks.emplace_back(number, std::move(hook));
    on_death_.clear();
    std::sort(hooks.begin(), hooks.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    for (auto& [number, hook] : hooks) hook();
    End();
  }
  void SetFrozen(bool frozen) {
    if (!alive_ || frozen_ == frozen) return;
    frozen_ = frozen;
    if (frozen) return;
    std::vector<Action> backlog = std::move(backlog_);
    backlog_.clear();
    for (Action& work : backlog) Deliver(std::move(work));
  }

 protected:
  virtual void Begin() = 0;
  virtual void End() = 0;

 private:
  EventQueue* const queue_;
  const std::string name_;
  const int site_;
  bool alive_ = false;
  bool frozen_ = false;
  int64_t life_ = 0;
  double rate_ = 1;
  absl::Time own_ = absl::UnixEpoch();
  absl::Time since_ = absl::UnixEpoch();
  std::vector<Action> backlog_;
  absl::flat_hash_map<int64_t, Action> on_death_;  // Of each call that it has not answered, among others.
  int64_t next_hook_ = 0;
  Connections to_root_, from_root_;
  absl::Span<const char> memory_at_root_;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SIM_SIM_PROCESS_H_
