#include "runtime/sim/sim_aggregator.h"

#include <set>
#include <utility>
#include <vector>

#include "runtime/model/job_layout.h"
#include "runtime/sync/node_options.h"

namespace wukong {
struct SimAggregator::Life {
  std::unique_ptr<SimSession> session;
  MemberKey self;
  std::vector<float> theta;
  std::unique_ptr<SimUplink> uplink;
  std::unique_ptr<NodeEngine> engine;
  std::unique_ptr<SimNode> node;
  int64_t asking_term = 0;
  std::vector<FenceDone> fence_done;
  std::set<MemberKey> fencing;
};

SimAggregator::SimAggregator(SimWorld* world, SimCoordinator* root, const ParameterLayout& layout, std::string region,
                             int site)
    : SimProcess(&world->queue, region, site),
      world_(world),
      root_(root),
      layout_(layout),
      region_(std::move(region)) {}

SimAggregator::~SimAggregator() = default;

SimNode* SimAggregator::NodeOf(MemberKey member) {
  return life_state_ != nullptr && life_state_->self == member ? life_state_->node.get() : nullptr;
}

void SimAggregator::Begin() {
  life_state_ = std::make_unique<Life>();
  SimSession::Callbacks callbacks;
  callbacks.fill = [this](HeartbeatRequest* request) { Fill(request); };
  callbacks.on_reply = [this](const HeartbeatReply& reply) { TakeReply(reply); };
  callbacks.on_lost = [this](const absl::Status&) {
    world_->queue.After(absl::ZeroDuration(), [this, of = life()] {
      if (of == life()) Kill();
    });
  };
  life_state_->session = std::make_unique<SimSession>(world_, this, &root_->door(), std::move(callbacks));
  JoinRequest join;
  join.set_role(ROLE_AGGREGATOR);
  join.set_region(region_);
  join.set_name("aggregator");
  join.set_address(region_);
  join.set_schema_digest(layout_.schema_digest());
  life_state_->session->Join(join, [this](const JoinReply& reply) { Joined(reply); });
}

void SimAggregator::End() { life_state_.reset(); }

void SimAggregator::Joined(const JoinReply& reply) {
  Life* life = life_state_.get();
  life->self = {MemberId(reply.member()), Incarnation(reply.incarnation())};
  life->node = std::make_unique<SimNode>(world_, this, life->self);
  SimUplink::Options options;
  options.self = life->self;
  options.fragments = FragmentsOf(world_->job, layout_.size());
  options.schema_digest = layout_.schema_digest();
  options.in_flight_max = world_->job.strategy().in_flight_max();
  options.versions_ahead = VersionsAhead(/*parent_is_root=*/true, options.fragments);
  SimUplink::Callbacks callbacks;
  callbacks.on_version = [this] { OnVersion(); };
  callbacks.on_back = [life] {
    if (life->engine == nullptr) return;
    life->engine->Handle(ParentNode::ParentBack{});
    life->node->Pump();
  };
  callbacks.on_written = [life](Sequence sequence) {
    life->engine->Handle(ParentNode::Written{sequence});
    life->node->Pump();
  };
  callbacks.on_answer = [life](Sequence sequence, Verdict verdict) {
    life->engine->Handle(ParentNode::Answered{sequence, verdict});
    life->node->Pump();
  };
  life->uplink = std::make_unique<SimUplink>(
      world_, this, root_, [root = root_] { return root->node(); }, std::move(options), std::move(callbacks));
}

void SimAggregator::OnVersion() {
  Life* life = life_state_.get();
  const FollowedParameters::Snapshot snapshot = life->uplink->parameters().snapshot();
  if (snapshot.version.value() == 0) return;
  NoteTaken(world_, this, life->uplink->parameters(), Incarnation(0));
  if (life->engine == nullptr) {
    VersionNotes notes;
    life->uplink->parameters().With([&](absl::Span<const float> values, const FollowedParameters::Snapshot& whole) {
      life->theta.assign(values.begin(), values.end());
      notes.root_version = whole.root_version;
      notes.tokens_committed = whole.tokens_committed;
    });
    NodeEngine::Hooks hooks;
    hooks.on_merged = [this](const ParentNode::Apply& apply) {
      for (size_t i = 0; i < apply.manifests.size(); ++i) {
        world_->Note(TapeEvent::kMerged, name(),
                     {apply.manifests[i].sender.member.value(), apply.manifests[i].sequence.value(), apply.staleness[i],
                      apply.manifests[i].base.value()});
      }
    };
    hooks.on_fatal = [this](const absl::Status& status) {
      world_->Note(TapeEvent::kDied, name(), {}, std::string(status.message()));
      world_->queue.After(absl::ZeroDuration(), [this, of = this->life()] {
        if (of == this->life()) Kill();
      });
    };
    life->engine = std::make_unique<NodeEngine>(
        NodeOptionsOf(world_->job, /*is_root=*/false, FragmentsOf(world_->job, layout_.size())), std::move(hooks),
        absl::MakeSpan(life->theta), notes, life->uplink.get(), this);
    life->node->SetEngine(life->engine.get());
  }
  life->engine->Handle(ParentNode::ParentMoved{snapshot.root_version, snapshot.tokens_committed, snapshot.lead});
  life->uplink->VersionSeen();
  life->node->Pump();
}

void SimAggregator::Fill(HeartbeatRequest* request) {
  Life* life = life_state_.get();
  if (life->engine != nullptr) {
    const ParentNode& parent = life->engine->node();
    for (const auto& [who, count] : parent.stats().refused) {
      RefusedCount* refused = request->mutable_usage()->add_refused();
      refused->set_member(who.first.value());
      refused->set_verdict(who.second);
      refused->set_count(count);
    }
    for (const MemberId member : parent.Quarantined(Now())) request->add_quarantined(member.value());
    if (life->asking_term != 0) {
      for (const LeasedRange& range : parent.Custody()) {
        *request->mutable_holdings()->add_ranges() = RangeToProto(range);
      }
    }
  }
  if (life->asking_term != 0) request->mutable_holdings()->set_term(life->asking_term);
  life->asking_term = 0;
  for (FenceDone& done : life->fence_done) {
    life->fencing.erase({MemberId(done.member()), Incarnation(done.incarnation())});
    *request->add_fence_done() = std::move(done);
  }
  life->fence_done.clear();
}

void SimAggregator::TakeReply(const HeartbeatReply& reply) {
  Life* life = life_state_.get();
  if (reply.finish()) return;
  if (reply.assert_holdings()) {
    life->asking_term = reply.term();
    life->session->Kick();
  }
  for (const wukong::Life& fence : reply.fence()) {
    const MemberKey child{MemberId(fence.member()), Incarnation(fence.incarnation())};
    if (!life->fencing.insert(child).second) continue;
    FenceDone done;
    done.set_member(child.member.value());
    done.set_incarnation(child.incarnation.value());
    if (life->engine != nullptr) {
      for (const LeasedRange& range : life->engine->Fence(child)) *done.add_custody() = RangeToProto(range);
    }
    life->fence_done.push_back(std::move(done));
  }
  if (life->engine == nullptr) return;
  std::set<MemberId> idle;
  for (const int64_t member : reply.idle_members()) idle.insert(MemberId(member));
  life->engine->Handle(ParentNode::IdleChildren{idle});
  life->engine->Handle(ParentNode::Drain{reply.drain()});
  life->engine->Handle(ParentNode::Tick{});
  life->node->Pump();
}

}  // namespace wukong
