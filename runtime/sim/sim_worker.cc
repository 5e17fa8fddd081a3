#include "runtime/sim/sim_worker.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>
#include <variant>

#include "absl/container/inlined_vector.h"
#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "runtime/model/job_layout.h"
#include "runtime/sync/damaged_payload.h"
#include "runtime/sync/learning_rate.h"
#include "runtime/sync/node_options.h"
#include "runtime/sync/presets.h"

namespace wukong {
namespace {

constexpr absl::Duration kPrefetch = absl::Seconds(4);

}  // namespace

struct SimWorker::Life {
  Life(const Job& job, int64_t siblings, std::unique_ptr<Trainer> own, std::vector<FragmentSpan> cut)
      : fragments(std::move(cut)),
        trainer(std::move(own)),
        schedule(LeafOptionsOf(job, /*group_size=*/1, kPrefetch)),
        replica(trainer->parameters(), fragments, ReplicaOptionsOf(job, /*parent_is_root=*/false, siblings)) {}
  const std::vector<FragmentSpan> fragments;
  std::unique_ptr<SimSession> session;
  std::unique_ptr<Trainer> trainer;
  LeafSchedule schedule;
  Replica replica;
  MemberKey self;
  MemberKey parent;
  std::unique_ptr<SimUplink> uplink;  // Null while detached.
  bool ready = false;                 // It has had parameters.
  std::optional<absl::Duration> first_step;
  bool training = false;
  bool turn_planned = false;
  bool waits_for_data = false;
  // What came while a step was under way, in the order in which the training thread would find it.
  bool version = false;
  std::vector<std::pair<Sequence, Verdict>> answers;
  struct Reply {  // To a heartbeat.
    int64_t term = 0;
    MemberKey parent;
    std::vector<LeasedRange> granted;
    bool exhausted = false;
    double speed_reference = 0;
    bool asks_holdings = false;
    bool answers_holdings = false;
    std::vector<LeasedRange> committed, disowned;
  };
  absl::InlinedVector<Reply, 1> replies;
  // To the next heartbeat.
  int64_t want = 0;
  int64_t in_hand = 0;
  bool starving = false;
  bool idle = false;
  std::vector<LeasedRange> released;
  std::optional<Holdings> holdings;
  std::optional<int64_t> asserted_term;
  int64_t term = 0;
  int64_t heard_tokens = 0, own_tokens = 0;
};

SimWorker::SimWorker(SimWorld* world, const Workload& workload, SimCoordinator* root, SimAggregator* aggregator,
                     const ParameterLayout& layout, std::string name, double speed)
    : SimProcess(&world->queue, std::move(name), aggregator->site()),
      world_(world),
      workload_(workload),
      root_(root),
      aggregator_(aggregator),
      layout_(layout),
      speed_(speed),
      step_random_(DeriveSeed(world->seed, absl::StrCat("sim.step.", this->name()))) {}

SimWorker::~SimWorker() = default;

void SimWorker::Begin() {
  int64_t siblings = 1;
  for (const Region& region : world_->job.regions()) {
    if (region.name() == aggregator_->name()) siblings = RegionLeaves(region);
  }
  life_state_ = std::make_unique<Life>(world_->job, siblings, world_->model->NewTrainer(),
                                       FragmentsOf(world_->job, layout_.size()));
  finished_ = false;
  SimSession::Callbacks callbacks;
  callbacks.fill = [this](HeartbeatRequest* request) { Fill(request); };
  callbacks.on_reply = [this](const HeartbeatReply& reply) { TakeReply(reply); };
  callbacks.on_lost = [this](const absl::Status& status) { Die(status); };
  life_state_->session = std::make_unique<SimSession>(world_, this, &root_->door(), std::move(callbacks));
  JoinRequest join;
  join.set_role(ROLE_WORKER);
  join.set_region(aggregator_->name());
  join.set_name(name().substr(name().rfind('/') + 1));
  join.set_schema_digest(layout_.schema_digest());
  life_state_->session->Join(join, [this](const JoinReply& reply) { Joined(reply); });
}

void SimWorker::Soon(int64_t) const {
  EventQueue::Prefetch(&life_state_);
  EventQueue::Prefetch(&to_root());
}

void SimWorker::VerySoon(int64_t) const {
  EventQueue::Prefetch(memory());
  EventQueue::Prefetch(world_->network.MemoryOfCalls(*this));
}

absl::Span<const char> SimWorker::memory() const {
  return {reinterpret_cast<const char*>(life_state_.get()), life_state_ == nullptr ? 0 : sizeof(Life)};
}

void SimWorker::End() {
  wall_of_earlier_lives_ = wall_seconds();
  waits_.Works(world_->queue.Now());
  life_state_.reset();
}

double SimWorker::wall_seconds() const {
  if (life_state_ == nullptr || !life_state_->first_step.has_value()) return wall_of_earlier_lives_;
  return wall_of_earlier_lives_ + absl::ToDoubleSeconds(world_->queue.elapsed() - *life_state_->first_step);
}

void SimWorker::Die(const absl::Status&) {
  world_->queue.After(absl::ZeroDuration(), [this, of = life()] {
    if (of == life()) Kill();
  });
}

void SimWorker::Joined(const JoinReply& reply) {
  life_state_->self = {MemberId(reply.member()), Incarnation(reply.incarnation())};
  life_state_->schedule.ExpectSpeed(reply.samples_per_second());
  FollowParent({MemberId(reply.parent_member()), Incarnation(reply.parent_incarnation())});
}

void SimWorker::FollowParent(MemberKey parent) {
  Life* life = life_state_.get();
  if (parent == life->parent) return;
  if (life->uplink != nullptr) {
    life->uplink.reset();
    life->answers.clear();
    life->version = false;
    life->replica.ParentReplaced(life->schedule.ParentLost());
    if (world_->job.strategy().progress() == PROGRESS_GRADIENT) life->trainer->ZeroGradient();
  }
  life->parent = MemberKey();
  if (parent.member.value() == 0) return;
  life->parent = parent;
  SimUplink::Options options;
  options.self = life->self;
  options.fragments = life->fragments;
  options.schema_digest = layout_.schema_digest();
  options.first_sequence = life->schedule.next_sequence();
  options.versions_ahead = VersionsAhead(/*parent_is_root=*/false, life->fragments);
  SimUplink::Callbacks callbacks;
  callbacks.on_version = [this, life] {
    life->version = true;
    TurnSoon();
  };
  callbacks.on_answer = [this, life](Sequence sequence, Verdict verdict) {
    life->answers.emplace_back(sequence, verdict);
    TurnSoon();
  };
  life->uplink = std::make_unique<SimUplink>(
      world_, this, aggregator_, [aggregator = aggregator_, parent] { return aggregator->NodeOf(parent); },
      std::move(options), std::move(callbacks));
}

void SimWorker::Fill(HeartbeatRequest* request) {
  Life* life = life_state_.get();
  request->set_want_samples(life->want);
  request->set_samples_in_hand(life->in_hand);
  request->set_idle(life->idle);
  request->set_samples_per_second(life->schedule.samples_per_second());
  request->mutable_usage()->set_compute_seconds(compute_seconds_);
  request->mutable_usage()->set_tokens_computed(samples_trained_);
  for (const LeasedRange& range : life->released) *request->add_released() = RangeToProto(range);
  life->released.clear();
  life->asserted_term.reset();
  if (life->holdings.has_value()) {
    life->asserted_term = life->holdings->term();
    *request->mutable_holdings() = *std::move(life->holdings);
    life->holdings.reset();
  }
}

void SimWorker::TakeReply(const HeartbeatReply& message) {
  Life* life = life_state_.get();
  if (message.finish()) {
    finished_ = true;
    return;
  }
  if (message.granted_size() > 0) life->want = 0;
  Life::Reply& reply = life->replies.emplace_back();
  reply.term = message.term();
  reply.parent = {MemberId(message.parent_member()), Incarnation(message.parent_incarnation())};
  for (const SampleRange& range : message.granted()) reply.granted.push_back(RangeFromProto(range));
  reply.exhausted = message.exhausted();
  reply.speed_reference = message.samples_per_second_reference();
  reply.asks_holdings = message.assert_holdings();
  reply.answers_holdings = life->asserted_term == message.term() && !message.assert_holdings();
  for (const SampleRange& range : message.committed()) reply.committed.push_back(RangeFromProto(range));
  for (const SampleRange& range : message.disowned()) reply.disowned.push_back(RangeFromProto(range));
  life->asserted_term.reset();
  TurnSoon();
}

void SimWorker::TurnSoon() {
  Life* life = life_state_.get();
  if (life->training || life->turn_planned) return;
  life->turn_planned = true;
  Deliver([this, life] {
    life->turn_planned = false;
    Turn();
  });
}

void SimWorker::Release(const std::vector<LeasedRange>& ranges) {
  Life* life = life_state_.get();
  if (ranges.empty()) return;
  if (life->holdings.has_value()) {
    // No heartbeat names a range as held and as released.
    life->holdings->clear_ranges();
    for (const LeasedRange& range : life->schedule.Holdings()) *life->holdings->add_ranges() = RangeToProto(range);
  }
  life->released.insert(life->released.end(), ranges.begin(), ranges.end());
}

void SimWorker::ThrowProgressAway() {
  Life* life = life_state_.get();
  const bool have = life->uplink != nullptr && life->uplink->parameters().snapshot().version.value() > 0;
  if (have) {
    life->uplink->parameters().With(
        [&](absl::Span<const float> values, const FollowedParameters::Snapshot&) { life->replica.Reset(values); });
    life->schedule.SentForgotten();
  } else {
    life->replica.Revert();
  }
  life->trainer->ZeroGradient();
  Release(life->schedule.ProgressLost());
}

void SimWorker::Decide(const LeafSchedule::Decision& decision) {
  Life* life = life_state_.get();
  if (decision.progress_lost) {
    life->replica.Revert();
    life->trainer->ZeroGradient();
  }
  absl::Status status;
  for (const Sequence sequence : decision.included) life->replica.Included(sequence);
  for (const Sequence sequence : decision.dropped) status.Update(life->replica.Drop(sequence));
  for (const Sequence sequence : decision.taken_back) status.Update(life->replica.TakeBack(sequence));
  if (!status.ok()) Die(status);
  Release(decision.released);
}

void SimWorker::TakeAnswers() {
  Life* life = life_state_.get();
  if (life->version && life->uplink != nullptr) {
    const FollowedParameters::Snapshot snapshot = life->uplink->parameters().snapshot();
    if (snapshot.version.value() > 0) {
      life->schedule.VersionArrived({snapshot.version, snapshot.included, snapshot.root_version});
    }
  }
  life->version = false;
  if (life->uplink != nullptr && (!life->waits_for_data || !life->replies.empty())) life->uplink->VersionSeen();
  std::vector<std::pair<Sequence, Verdict>> answers;
  answers.swap(life->answers);
  for (const auto& [sequence, verdict] : answers) {
    const std::vector<LeasedRange> refused = life->schedule.Answered(sequence, verdict);
    if (verdict == VERDICT_NON_FINITE) {
      ThrowProgressAway();
    } else if (verdict != VERDICT_ACCEPTED) {
      if (const absl::Status status = life->replica.Drop(sequence); !status.ok()) Die(status);
    }
    Release(refused);
  }
  const absl::InlinedVector<Life::Reply, 1> replies = std::exchange(life->replies, {});
  for (const Life::Reply& reply : replies) {
    life->term = reply.term;
    FollowParent(reply.parent);
    if (reply.answers_holdings) Decide(life->schedule.HoldingsAnswered(reply.committed, reply.disowned));
    life->schedule.Leased(reply.granted, reply.exhausted);
    life->schedule.SpeedReference(reply.speed_reference);
  }
  bool asks = !replies.empty() && replies.back().asks_holdings;
  if (life->asserted_term == life->term) asks = false;
  if (!asks && !life->holdings.has_value()) return;
  Holdings holdings;
  holdings.set_term(life->term);
  for (const LeasedRange& range : life->schedule.Holdings()) *holdings.add_ranges() = RangeToProto(range);
  holdings.set_parent_member(life->parent.member.value());
  holdings.set_parent_incarnation(life->parent.incarnation.value());
  life->holdings = std::move(holdings);
  if (asks) life->session->Kick();
}

void SimWorker::Turn() {
  Life* life = life_state_.get();
  while (!life->training && !finished_) {
    if (!life->ready && life->version && life->uplink != nullptr) {
      // The first parameters replace what the model was initialised with.
      NoteTaken(world_, this, life->uplink->parameters(), life->parent.incarnation);
      life->uplink->parameters().With(
          [&](absl::Span<const float> values, const FollowedParameters::Snapshot& snapshot) {
            if (snapshot.version.value() == 0) return;
            life->replica.Reset(values);
            const LeafSchedule::ParentState state = ParentStateOf(snapshot);
            life->schedule.VersionArrived(state);
            life->schedule.Rebased(state);
            life->ready = true;
          });
    }
    TakeAnswers();
    if (!life->ready) return;
    const LeafSchedule::Action action = life->schedule.Next();
    const auto* wait = std::get_if<LeafSchedule::Wait>(&action);
    const bool rebases = std::holds_alternative<LeafSchedule::Rebase>(action);
    if (!rebases) life->waits_for_data = wait != nullptr && wait->for_data();
    if (wait == nullptr) {
      waits_.Works(world_->queue.Now());
    } else if (life->first_step.has_value()) {
      waits_.Waits(wait->reason, world_->queue.Now());
    }
    if (const auto* train = std::get_if<LeafSchedule::Train>(&action)) {
      Train(*train);
    } else if (const auto* contribute = std::get_if<LeafSchedule::Contribute>(&action)) {
      Contribute(*contribute);
    } else if (rebases) {
      Rebase();
    }
    TellHeartbeat(wait != nullptr && wait->idle && life->schedule.untrained_samples() == 0);
    if (wait != nullptr) return;
  }
}

void SimWorker::Train(const LeafSchedule::Train& train) {
  Life* life = life_state_.get();
  life->training = true;
  if (!life->first_step.has_value()) life->first_step = world_->queue.elapsed();
  const double seconds = absl::ToDoubleSeconds(absl::Nanoseconds(workload_.step_ns())) / speed_ * damage_.slow *
                         std::max(0.1, 1 + workload_.step_jitter() * step_random_.Normal());
  const absl::Duration time = absl::Seconds(seconds);
  AfterWork(time, [this, train, time] { StepDone(train, time); });
}

void SimWorker::StepDone(const LeafSchedule::Train& train, absl::Duration time) {
  Life* life = life_state_.get();
  life->training = false;
  const bool gradient = world_->job.strategy().progress() == PROGRESS_GRADIENT;
  const absl::StatusOr<double> loss = world_->model->Accumulate(life->trainer.get(), train.samples);
  if (!loss.ok()) {
    Die(loss.status());
    return;
  }
  if (!std::isfinite(*loss)) {
    ThrowProgressAway();
    if (life->schedule.StepLost()) {
      Die(absl::OutOfRangeError("diverged: the loss is not finite"));
    } else {
      Turn();
    }
    return;
  }
  int64_t samples = 0;
  for (const LeasedRange& range : train.samples) {
    samples += range.size();
    world_->Note(TapeEvent::kTrained, name(), {range.begin, range.end});
  }
  const FollowedParameters::Snapshot snapshot =
      life->uplink == nullptr ? FollowedParameters::Snapshot() : life->uplink->parameters().snapshot();
  if (snapshot.tokens_committed > life->heard_tokens) {
    life->heard_tokens = snapshot.tokens_committed;
    life->own_tokens = 0;
  }
  life->own_tokens += samples * world_->job.model().context();
  if (!gradient) {
    (void)life->trainer->OptimizerStep(
        LearningRate(world_->job.optimizer(), world_->job.stop().tokens(), life->heard_tokens + life->own_tokens));
  }
  samples_trained_ += samples;
  compute_seconds_ += absl::ToDoubleSeconds(time);
  life->schedule.StepDone(absl::ToDoubleSeconds(time));
  Turn();
}

void SimWorker::Contribute(const LeafSchedule::Contribute& contribute) {
  Life* life = life_state_.get();
  const bool gradient = world_->job.strategy().progress() == PROGRESS_GRADIENT;
  auto sent = gradient ? life->replica.Send(contribute.manifest.sequence, life->trainer->gradient())
                       : life->replica.Send(contribute.manifest.sequence, {}, contribute.whole);
  if (!sent.ok()) {
    Die(sent.status());
    return;
  }
  if (gradient) life->trainer->ZeroGradient();
  std::shared_ptr<const EncodedVector> payload = *std::move(sent);
  const bool empty = payload->bytes() == 0;  // None of its fragments has its turn: there is nothing to damage.
  if (damage_.nan && !empty) {
    ++damaged_.nan;
    world_->Note(TapeEvent::kDamaged, name(),
                 {life->self.member.value(), life->self.incarnation.value(), contribute.manifest.sequence.value()});
    payload = WithNan(*payload);
  } else if (damage_.scale != 1 && !empty) {
    ++damaged_.scaled;
    payload = Scaled(*payload, life->fragments, damage_.scale);
  }
  life->uplink->Send(contribute.manifest, payload);
}

void SimWorker::Rebase() {
  Life* life = life_state_.get();
  if (life->uplink == nullptr) return;
  NoteTaken(world_, this, life->uplink->parameters(), life->parent.incarnation);
  LeafSchedule::ParentState state;
  absl::Status status;
  life->uplink->parameters().With([&](absl::Span<const float> values, const FollowedParameters::Snapshot& snapshot) {
    state = ParentStateOf(snapshot);
    if (snapshot.version.value() > 0) status = life->replica.Rebase(values, snapshot.included).status();
  });
  if (!status.ok()) {
    Die(status);
    return;
  }
  life->schedule.VersionArrived(state);
  if (state.version.value() > 0) life->schedule.Rebased(state);
  if (world_->counts) {
    world_->Note(TapeEvent::kCounted, name(), {static_cast<int64_t>(std::llround(life->trainer->parameters()[0]))});
  }
}

void SimWorker::TellHeartbeat(bool idle) {
  Life* life = life_state_.get();
  const absl::Duration latency =
      2 * absl::Seconds(life->session->round_trip_seconds()) + absl::Nanoseconds(world_->job.limits().heartbeat_ns());
  const int64_t step_samples = workload_.micro_batch();
  const int64_t want = life->schedule.WantSamples(latency, step_samples * workload_.range_steps());
  const bool granted = std::any_of(life->replies.begin(), life->replies.end(),
                                   [](const Life::Reply& reply) { return !reply.granted.empty(); });
  const bool starving = life->schedule.untrained_samples() < step_samples;
  const bool news = life->want == 0 || (starving && !life->starving);
  const bool kick = (want > 0 && news && !granted && !idle) || idle != life->idle;
  life->want = granted ? 0 : want;
  life->in_hand = life->schedule.untrained_samples();
  life->starving = starving;
  life->idle = idle;
  if (kick) life->session->Kick();
}

}  // namespace wukong
