#include "runtime/sim/sim_coordinator.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "coordinator/root_recovery.h"
#include "glog/logging.h"
#include "runtime/sync/learning_rate.h"
#include "runtime/sync/node_options.h"

namespace wukong {
namespace {

constexpr char kRunDir[] = "/run";
constexpr absl::Duration kTick = absl::Milliseconds(50);
constexpr absl::Duration kDiskRetry = absl::Milliseconds(200);

}  // namespace

struct SimCoordinator::Life {
  std::unique_ptr<Trainer> trainer;
  std::unique_ptr<RootLog> log;
  std::unique_ptr<CoordinatorCore> core;
  std::unique_ptr<NodeEngine> engine;
  std::unique_ptr<SimNode> node;
  std::vector<Action> waiters;     // For everything to be on the disk.
  std::vector<Action> after_sync;  // For the next sync, failed or not.
  int64_t ceiling_index = 0;       // Of the last record of a ceiling of the leases.
  bool serves = false;             // Its term is on the disk.
  bool syncing = false;
  bool snapshot_due = false;
  int64_t merged_tokens = 0;
  Version published;
  absl::Time over = absl::InfiniteFuture();  // When the budget was committed.
};

SimCoordinator::SimCoordinator(SimWorld* world, const Workload& workload, absl::Duration sync_time)
    : SimProcess(&world->queue, "root", -1),
      world_(world),
      workload_(workload),
      sync_time_(sync_time),
      disk_(DeriveSeed(world->seed, "sim.disk")) {
  door_.process = this;
  door_.join = [this](const JoinRequest& request, SimCoordinatorDoor::JoinAnswer respond) {
    absl::StatusOr<JoinReply> reply = absl::UnavailableError("starting");
    if (life_state_ != nullptr && life_state_->serves) {
      With([&](CoordinatorCore& core) { reply = core.Join(request, Now()); });
    }
    if (!reply.ok()) {
      respond(std::move(reply));
      return;
    }
    // Nobody may be told an incarnation that another life of this coordinator could give away again.
    WhenDurable([respond = std::move(respond), reply = std::move(reply)]() mutable { respond(std::move(reply)); });
  };
  door_.memory_of = [this](MemberId member) {
    return life_state_ == nullptr ? absl::Span<const char>() : life_state_->core->MemoryOf(member);
  };
  door_.heartbeat = [this](const HeartbeatRequest& request, HeartbeatReply* reply,
                           SimCoordinatorDoor::HeartbeatAnswer respond) {
    if (life_state_ == nullptr || !life_state_->serves) {
      respond(absl::UnavailableError("starting"));
      return;
    }
    const int64_t ceiling = life_state_->ceiling_index;
    absl::Status status;
    const MemberKey of{MemberId(request.member()), Incarnation(request.incarnation())};
    auto rests = CoordinatorCore::Rests::kOnNothing;
    With([&](CoordinatorCore& core) {
      status = core.Heartbeat(request, Now(), reply);
      rests = core.RestsOnTheLog(of, *reply);
    });
    if (!status.ok()) {
      respond(status);
      return;
    }
    const int64_t written = life_state_->log->index();
    const bool known = rests == CoordinatorCore::Rests::kOnNothing || life_state_->log->durable_index() >= written;
    // As in production (coordinator_service.cc).
    auto tell = [this, of, respond = std::move(respond), reply, written, rests]() mutable {
      if (rests != CoordinatorCore::Rests::kOnNothing && life_state_->log->durable_index() < written) {
        if (rests == CoordinatorCore::Rests::kAltogether) {
          respond(absl::UnavailableError("the disk is at work"));
          return;
        }
        reply->clear_fence();
      }
      NoteLeases(*reply, of.member.value());
      if (rests == CoordinatorCore::Rests::kAltogether) life_state_->core->Told(of, *reply);
      respond(absl::OkStatus());
    };
    // What is beyond the ceiling on the disk waits for one sync, whether that succeeds or not.
    if (life_state_->ceiling_index == ceiling && known) {
      tell();
    } else {
      life_state_->after_sync.push_back(std::move(tell));
      SyncLater();
    }
  };
}

SimCoordinator::~SimCoordinator() = default;

SimNode* SimCoordinator::node() const { return life_state_ == nullptr ? nullptr : life_state_->node.get(); }

std::vector<float> SimCoordinator::parameters() const {
  if (life_state_ == nullptr) return {};
  const absl::Span<const float> values = life_state_->trainer->parameters();
  return {values.begin(), values.end()};
}

void SimCoordinator::Fail(const absl::Status& status) {
  if (failure_.empty()) failure_ = std::string(status.message());
  done_ = true;
}

void SimCoordinator::CannotBegin(const absl::Status& status) {
  if (!absl::IsResourceExhausted(status) && !absl::IsInternal(status)) {
    Fail(status);
    return;
  }
  // The disk's trouble may pass: as a process, it ends with an error and is started again.
  queue()->After(absl::ZeroDuration(), [this, of = life()] {
    if (of == life()) Kill();
  });
}

void SimCoordinator::AtPlace(Place place, Version version) {
  if (on_place_) on_place_(place, version);
}

std::unique_ptr<NodeEngine> SimCoordinator::MakeEngine(const NodeEngine::Restored& restored) {
  Life* life = life_state_.get();
  NodeEngine::Hooks hooks;
  hooks.admit = [this, life](const Manifest& manifest, const LogRecord& accepted, std::string* detail) {
    Verdict verdict = VERDICT_UNSPECIFIED;
    With([&](CoordinatorCore& core) { verdict = core.Admit(manifest, accepted, detail); });
    if (verdict == VERDICT_ACCEPTED) {
      int64_t samples = 0;
      for (const LeasedRange& range : manifest.ranges) samples += range.size();
      world_->Note(
          TapeEvent::kAccepted, name(),
          {manifest.sender.member.value(), manifest.sender.incarnation.value(), manifest.sequence.value(), samples});
      if (world_->counts) {
        float first = 0;  // Fidelity counter has no parts: each contribution has all fragments.
        const std::string& fragment = accepted.accepted().fragments(0);
        if (fragment.size() >= sizeof first)
          std::copy_n(fragment.data(), sizeof first, reinterpret_cast<char*>(&first));
        // A gradient points against what it adds.
        if (world_->job.strategy().progress() == PROGRESS_GRADIENT) first = -first;
        world_->Note(TapeEvent::kContent, name(),
                     {manifest.sender.member.value(), manifest.sequence.value(), samples,
                      static_cast<int64_t>(std::llround(first))});
      }
      AtPlace(Place::kAfterAppendBeforeAck, life->published);
    }
    return verdict;
  };
  hooks.record = [life](const LogRecord& record) { life->log->Append(record); };
  hooks.make_durable = [this] { return MakeDurable(); };
  hooks.on_merged = [this](const ParentNode::Apply& apply) {
    for (size_t i = 0; i < apply.manifests.size(); ++i) {
      world_->Note(TapeEvent::kMerged, name(),
                   {apply.manifests[i].sender.member.value(), apply.manifests[i].sequence.value(), apply.staleness[i],
                    apply.manifests[i].base.value()});
      for (const LeasedRange& range : apply.manifests[i].ranges) {
        world_->Note(TapeEvent::kCommitted, name(), {range.begin, range.end});
      }
    }
    With([&](CoordinatorCore& core) { core.Merged(apply.manifests, Now()); });
  };
  hooks.on_refused = [this](const Manifest& manifest, Verdict, const std::string&) {
    With([&](CoordinatorCore& core) { core.Refused(manifest); });
  };
  hooks.gradient_rate = [this, life](const ParentNode::Apply& apply) {
    for (const Manifest& manifest : apply.manifests) life->merged_tokens += manifest.tokens;
    return LearningRate(world_->job.optimizer(), world_->job.stop().tokens(), life->merged_tokens);
  };
  hooks.gradient_step = [life](absl::Span<float> gradient, double learning_rate) -> absl::Status {
    std::copy(gradient.begin(), gradient.end(), life->trainer->gradient().begin());
    return life->trainer->OptimizerStep(learning_rate).status();
  };
  hooks.on_fatal = [this](const absl::Status& status) {
    With([&](CoordinatorCore& core) { core.Fail(std::string(status.message()), Now()); });
    Fail(status);
  };
  return std::make_unique<NodeEngine>(RootOptions(world_->job, life->trainer->layout()), std::move(hooks),
                                      life->trainer->parameters(), NotesOf(life->log->state()), nullptr, this,
                                      &restored);
}

void SimCoordinator::Begin() {
  std::unique_ptr<Trainer> trainer = world_->model->NewTrainer();
  const bool holds_a_run = disk_.List(LogDirectory(kRunDir)).ok();
  absl::StatusOr<RecoveredRoot> begun = absl::NotFoundError("");
  if (holds_a_run) begun = RecoverRoot(&disk_, kRunDir, world_->job, trainer.get());
  // A coordinator that died before its first snapshot had told nobody anything.
  if (absl::IsNotFound(begun.status())) begun = BeginRun(&disk_, kRunDir, world_->job, *this, trainer.get());
  if (!begun.ok()) {
    CannotBegin(begun.status());
    return;
  }
  most_bytes_replayed_ = std::max(most_bytes_replayed_, begun->bytes_replayed);
  const NodeEngine::Restored restored = begun->replay->Restored();
  absl::StatusOr<std::unique_ptr<RootLog>> log =
      RootLog::Open(&disk_, kRunDir, begun->identity, restored.state, begun->log,
                    {/*fsync=*/true, world_->job.limits().snapshot_bytes(), begun->bytes_replayed});
  if (!log.ok()) {
    CannotBegin(log.status());
    return;
  }
  begun->replay.reset();
  life_state_ = std::make_unique<Life>();
  Life* life = life_state_.get();
  life->trainer = std::move(trainer);
  life->log = *std::move(log);
  LogRecord term;
  term.mutable_term_begun()->set_term(restored.state.term() + 1);
  life->log->Append(term);
  const RootState state = life->log->state();
  life->merged_tokens = state.tokens_merged();
  life->published = Version(std::max<int64_t>(1, state.version()));
  const ParameterLayout& layout = life->trainer->layout();
  life->core = std::make_unique<CoordinatorCore>(
      world_->job, "sim", layout.schema_digest(), layout.size(), Now(), state, [this, life](LogRecord record) {
        if (record.has_run_started()) {
          record.mutable_run_started()->set_unix_ns(std::max<int64_t>(1, absl::ToUnixNanos(Now())));
        }
        life->log->Append(record);
        if (record.has_lease_ceiling()) life->ceiling_index = life->log->index();
      });
  if (state.started_unix_ns() > 0) life->core->BackdateStart(absl::FromUnixNanos(state.started_unix_ns()));
  life->engine = MakeEngine(restored);
  life->node = std::make_unique<SimNode>(world_, this);
  // Nothing leaves before the term is on the disk.
  WhenDurable([this, life] {
    life->serves = true;
    life->node->SetEngine(life->engine.get());
    Tick();
  });
}

void SimCoordinator::End() { life_state_.reset(); }

void SimCoordinator::With(absl::FunctionRef<void(CoordinatorCore&)> use) {
  Life* life = life_state_.get();
  use(*life->core);
  for (CoordinatorCore::Effect& effect : life->core->TakeEffects()) {
    if (auto* fence = std::get_if<CoordinatorCore::FenceChild>(&effect)) {
      Deliver([life, child = fence->child] { life->engine->Fence(child); });
    } else if (auto* idle = std::get_if<CoordinatorCore::SetIdle>(&effect)) {
      Deliver([life, members = idle->idle] { life->engine->Handle(ParentNode::IdleChildren{members}); });
    } else if (auto* record = std::get_if<CoordinatorCore::Record>(&effect)) {
      world_->Note(TapeEvent::kCoordinator, name(), {}, record->event.dump());
    }
  }
}

absl::Status SimCoordinator::MakeDurable() {
  if (life_state_->log->durable_index() >= life_state_->log->index()) return absl::OkStatus();
  SyncLater();
  return absl::UnavailableError("the disk is at work");
}

void SimCoordinator::NoteLeases(const HeartbeatReply& reply, int64_t member) {
  const bool kept = life_state_->ceiling_index <= life_state_->log->durable_index();
  for (const SampleRange& range : reply.granted()) {
    world_->Note(TapeEvent::kLeased, name(), {range.begin(), range.end(), range.token(), member},
                 kept ? "" : "beyond the ceiling on the disk");
  }
}

void SimCoordinator::WhenDurable(Action work) {
  life_state_->waiters.push_back(std::move(work));
  SyncLater();
}

void SimCoordinator::SyncLater() {
  if (life_state_->syncing) return;
  life_state_->syncing = true;
  AfterWork(sync_time_, [this] {
    Life* life = life_state_.get();
    if (disk_error_) disk_.Fail(FaultFileSystem::kSync);
    const absl::Status status = life->log->MakeDurableOnce();
    life->syncing = false;
    std::vector<Action> after_sync;
    after_sync.swap(life->after_sync);
    for (Action& tell : after_sync) tell();
    if (!status.ok()) {
      After(kDiskRetry, [this] { SyncLater(); });
      return;
    }
    std::vector<Action> waiters;
    waiters.swap(life->waiters);
    for (Action& waiter : waiters) waiter();
    if (life->engine->blocked()) life->engine->Resume();
    AtPlace(Place::kAfterAck, life->published);
    if (life->engine->blocked() || !life->waiters.empty()) SyncLater();
    const PublicParameters& published = life->engine->public_parameters();
    if (published.version() > life->published) {
      life->published = published.version();
      world_->Note(TapeEvent::kPublished, name(),
                   {life->published.value(), static_cast<int64_t>(published.checksum()), life->core->term()});
      AtPlace(Place::kAfterPublish, life->published);
    }
    if (life->node->engine() != nullptr) life->node->Pump();
    TakeSnapshotIfDue();
  });
}

void SimCoordinator::TakeSnapshotIfDue() {
  Life* life = life_state_.get();
  // The state of the log and the vectors are of the same moment only when nothing waits for the disk.
  if (!life->snapshot_due || life->engine->blocked() || !life->engine->Flush()) return;
  life->snapshot_due = false;
  const absl::StatusOr<Checkpoint> snapshot =
      MakeSnapshot(life->log->identity(), life->log->state(), world_->job.model().context(), life->trainer.get(),
                   world_->job.strategy().progress(), life->engine->CopyVectors());
  // One that cannot be written leaves the log longer, and the next one is due later.
  if (snapshot.ok()) (void)life->log->WriteSnapshot(*snapshot);
}

void SimCoordinator::Tick() {
  Life* life = life_state_.get();
  CoordinatorCore::Phase phase = CoordinatorCore::Phase::kStarting;
  bool told = false;
  absl::Duration farewell;
  With([&](CoordinatorCore& core) {
    core.SetRootVersion(life->engine->public_parameters().version());
    core.Tick(Now());
    phase = core.phase();
    told = core.AllToldFinish();
    farewell = core.FarewellMax();
  });
  life->engine->Handle(ParentNode::Tick{});
  life->engine->Flush();
  life->node->Pump();
  if (phase == CoordinatorCore::Phase::kFailed) Fail(absl::AbortedError(life->core->failure()));
  if (phase == CoordinatorCore::Phase::kDone) {
    life->over = std::min(life->over, Now());
    budget_committed_ = true;
    if (told || Now() - life->over >= farewell) done_ = true;
  }
  if (life->log->ClaimSnapshot()) life->snapshot_due = true;
  TakeSnapshotIfDue();
  After(kTick, [this] { Tick(); });
}

}  // namespace wukong
