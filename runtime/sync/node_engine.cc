#include "runtime/sync/node_engine.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"
#include "glog/logging.h"
#include "runtime/base/fault_point.h"
#include "runtime/base/mutation.h"

namespace wukong {
namespace {

// What moves the parameters, in the mean, by more is damage, whatever the model is: long before there is a usual norm,
// one such contribution would make parameters that are not finite, and the log would say that it was accepted.
constexpr double kMeanMoveMax = 1e6;

LogRecord MergedRecord(const ParentNode::Apply& apply, double inner_learning_rate) {
  LogRecord record;
  Merged* merged = record.mutable_merged();
  for (size_t i = 0; i < apply.manifests.size(); ++i) {
    const Manifest& manifest = apply.manifests[i];
    MergedPart* part = merged->add_parts();
    part->set_member(manifest.sender.member.value());
    part->set_incarnation(manifest.sender.incarnation.value());
    part->set_sequence(manifest.sequence.value());
    part->set_weight(apply.merge.parts[i].weight);
    part->set_raw_weight(apply.raw_weights[i]);
    part->set_staleness(apply.staleness[i]);
  }
  merged->set_learning_rate(apply.merge.learning_rate);
  merged->set_momentum(apply.merge.momentum);
  merged->set_momentum_step(apply.merge.momentum_step);
  merged->set_inner_learning_rate(inner_learning_rate);
  merged->set_staleness_max(apply.staleness_max);
  return record;
}

}  // namespace

NodeEngine::NodeEngine(const Options& options, Hooks hooks, absl::Span<float> theta, const VersionNotes& notes,
                       ParentPort* up, const Clock* clock, const Restored* restored)
    : options_(options),
      hooks_(std::move(hooks)),
      clock_(clock),
      up_(up),
      theta_(theta),
      node_(options.node),
      outer_(theta, options.fragments, options.progress, options.node.level.momentum() > 0,
             AverageRuleOf(options.node.level)),
      public_(restored == nullptr ? theta : absl::MakeConstSpan(restored->public_values), options.fragments,
              options.codec_down, notes, restored == nullptr ? Version(1) : Version(restored->state.version())) {
  CHECK_EQ(options.node.is_root, up == nullptr);
  CHECK_EQ(hooks_.record == nullptr, hooks_.make_durable == nullptr);
  if (up_ != nullptr) replica_ = std::make_unique<Replica>(theta, options.fragments, options.replica);
  if (restored == nullptr) return;
  CHECK_EQ(restored->momentum.size(), outer_.momentum().size());
  std::copy(restored->momentum.begin(), restored->momentum.end(), outer_.momentum().begin());
  std::copy(restored->buffer.begin(), restored->buffer.end(), outer_.buffer().begin());
  std::vector<wukong::Handle> unmerged;
  for (const ContributionAccepted& accepted : restored->state.unmerged()) {
    auto payload = std::make_shared<EncodedVector>();
    payload->codec = accepted.header().codec();
    payload->fragments.assign(accepted.fragments().begin(), accepted.fragments().end());
    auto offer = std::make_shared<Offer>();
    offer->manifest = ManifestFromProto(accepted.header());
    offer->contribution.header = accepted.header();
    offer->contribution.payload = std::move(payload);
    unmerged.emplace_back(next_handle_++);
    offers_[unmerged.back()] = std::move(offer);
  }
  node_.Restore(restored->state, unmerged);
}

void NodeEngine::WhenDurable(std::function<void()> effect) {
  if (hooks_.make_durable == nullptr || Mutated("engine.answers_before_durable")) {
    effect();
  } else {
    outbox_.push_back(std::move(effect));
  }
}

bool NodeEngine::Flush() {
  if (hooks_.make_durable == nullptr) return true;
  if (blocked_) return false;
  if (outbox_.empty() && !recorded_) return !failed_;
  if (!failed_) {
    const absl::Status durable = hooks_.make_durable();
    if (absl::IsUnavailable(durable)) {
      blocked_ = true;
      return false;
    }
    if (!durable.ok()) failed_ = true;
  }
  recorded_ = false;
  std::vector<std::function<void()>> effects;
  effects.swap(outbox_);
  if (failed_) return false;  // Nobody is answered: who was not will ask again, and another life answers.
  FaultPoint("root.before_ack");
  for (const std::function<void()>& effect : effects) effect();
  FaultPoint("root.after_ack");
  return true;
}

void NodeEngine::Resume() {
  blocked_ = false;
  if (!Flush()) return;
  std::function<void()> continuation;
  continuation.swap(continuation_);
  if (continuation) continuation();
  Pump();
}

std::vector<LeasedRange> NodeEngine::Fence(MemberKey child) {
  Handle(ParentNode::ChildFenced{child});
  return node_.CustodyOf(child);
}

NodeEngine::Vectors NodeEngine::CopyVectors() {
  Vectors vectors;
  vectors.theta = theta_;
  vectors.public_values = public_.Copy(&vectors.public_checksum);
  vectors.momentum = outer_.momentum();
  vectors.buffer = outer_.buffer();
  return vectors;
}

void NodeEngine::Take(Contribution contribution) {
  const wukong::Handle handle(next_handle_++);
  auto offer = std::make_shared<Offer>();
  offer->manifest = ManifestFromProto(contribution.header);
  offer->contribution = std::move(contribution);
  offers_[handle] = offer;
  Handle(ParentNode::Offered{handle, offer->manifest});
}

void NodeEngine::Handle(const ParentNode::Event& event) {
  events_.push_back(event);
  Pump();
}

void NodeEngine::Pump() {
  // An action may lead to an event (Check to Checked): it waits until the Step before it is carried out to its end.
  if (handling_) return;
  handling_ = true;
  while (!failed_ && !blocked_) {
    if (actions_.empty()) {
      if (events_.empty()) break;
      const ParentNode::Event next = std::move(events_.front());
      events_.pop_front();
      std::vector<ParentNode::Action> actions = node_.Step(next, clock_->Now());
      actions_.assign(std::make_move_iterator(actions.begin()), std::make_move_iterator(actions.end()));
    } else {
      const ParentNode::Action action = std::move(actions_.front());
      actions_.pop_front();
      std::visit([this](const auto& a) { Do(a); }, action);
    }
  }
  if (failed_) {
    events_.clear();
    actions_.clear();
  }
  handling_ = false;
}

void NodeEngine::Fatal(const absl::Status& status) {
  if (failed_) return;
  failed_ = true;
  LOG(ERROR) << "this node stops: " << status;
  hooks_.on_fatal(status);
}

LogRecord NodeEngine::AcceptedRecord(const Contribution& contribution, double norm) const {
  LogRecord record;
  ContributionAccepted* accepted = record.mutable_accepted();
  *accepted->mutable_header() = contribution.header;
  accepted->set_norm(norm);
  if (hooks_.record != nullptr) {
    for (const std::string& fragment : contribution.payload->fragments) accepted->add_fragments(fragment);
  }
  return record;
}

void NodeEngine::Do(const ParentNode::Check& check) {
  const std::shared_ptr<Offer> offer = offers_.at(check.handle);
  ParentNode::Checked checked;
  checked.handle = check.handle;
  const absl::StatusOr<double> norm = offer->contribution.norm.has_value()
                                          ? *offer->contribution.norm
                                          : CheckContribution(*offer->contribution.payload, options_.fragments);
  if (!norm.ok()) {
    checked.verdict = VERDICT_NON_FINITE;
    checked.detail = std::string(norm.status().message());
  } else if (check.norm_max > 0 && *norm > check.norm_max) {
    checked.verdict = VERDICT_NORM;
    checked.detail =
        absl::StrFormat("norm %.3g, and %.3g is the most that is believed by the last ones", *norm, check.norm_max);
  } else if (const double most = kMeanMoveMax * std::sqrt(static_cast<double>(theta_.size())); *norm > most) {
    checked.verdict = VERDICT_NORM;
    checked.detail = absl::StrFormat("norm %.3g, and %.3g is the most that is believed of anything", *norm, most);
  } else {
    checked.norm = *norm;
    checked.verdict = VERDICT_ACCEPTED;
    if (hooks_.admit) {
      FaultPoint("root.before_append");
      checked.verdict = hooks_.admit(offer->manifest, AcceptedRecord(offer->contribution, *norm), &checked.detail);
      recorded_ = true;
      if (checked.verdict == VERDICT_ACCEPTED) FaultPoint("root.after_append");
    }
  }
  events_.push_front(checked);  // The node has judged how stale it is: nothing may be merged in between.
}

void NodeEngine::Do(const ParentNode::Keep& keep) {
  // The one before it must find room. There are fewer of these than in_flight_max for each child.
  offers_.at(keep.handle)->Release();
}

void NodeEngine::Do(const ParentNode::Reply& reply) {
  const auto found = offers_.find(reply.handle);
  CHECK(found != offers_.end());
  const std::shared_ptr<Offer> offer = found->second;
  const bool refused = reply.verdict != VERDICT_ACCEPTED && reply.verdict != VERDICT_OUT_OF_ORDER;
  if (refused && reply.decided && hooks_.record && !Mutated("engine.refusals_are_no_records")) {
    LogRecord record;
    *record.mutable_refused()->mutable_header() = offer->contribution.header;
    record.mutable_refused()->set_verdict(reply.verdict);
    record.mutable_refused()->set_detail(reply.detail);
    hooks_.record(record);
    recorded_ = true;
  }
  if (!reply.keep_payload) offers_.erase(found);
  // What was accepted no longer counts although it may wait for its quorum: the merge needs the contributions that a
  // bound would keep out. There are at most in_flight_max of each child.
  offer->Release();
  WhenDurable([this, offer, refused, verdict = reply.verdict, detail = reply.detail] {
    if (refused) {
      LOG(WARNING) << "contribution " << offer->manifest.sequence << " of member " << offer->manifest.sender.member
                   << " refused (" << VerdictName(verdict) << "): " << detail;
      if (hooks_.on_refused) hooks_.on_refused(offer->manifest, verdict, detail);
    }
    if (offer->contribution.answer) offer->contribution.answer(verdict, detail);
  });
}

void NodeEngine::Do(const ParentNode::Apply& apply) {
  std::vector<std::shared_ptr<const EncodedVector>> payloads;
  for (const Merge::Part& part : apply.merge.parts) payloads.push_back(offers_.at(part.handle)->contribution.payload);
  const bool steps = options_.progress == PROGRESS_GRADIENT && up_ == nullptr;
  const double rate = steps ? hooks_.gradient_rate(apply) : 0;
  if (hooks_.record) {
    hooks_.record(MergedRecord(apply, rate));
    recorded_ = true;
  }
  absl::Status status = outer_.Apply(apply.merge, payloads);
  if (Mutated("engine.applies_twice")) status.Update(outer_.Apply(apply.merge, payloads));
  if (status.ok() && steps) {
    status = hooks_.gradient_step(outer_.gradient(), rate);
    std::fill(outer_.gradient().begin(), outer_.gradient().end(), 0.0f);
  }
  for (const Merge::Part& part : apply.merge.parts) offers_.erase(part.handle);
  if (!status.ok()) {
    Fatal(status);
    return;
  }
  if (hooks_.on_merged) WhenDurable([this, apply] { hooks_.on_merged(apply); });
}

void NodeEngine::Do(const ParentNode::Rebase&) {
  const absl::StatusOr<bool> moved = up_->parameters().With(
      [&](absl::Span<const float> values, const FollowedParameters::Snapshot& snapshot) -> absl::StatusOr<bool> {
        if (snapshot.version.value() == 0) return false;  // Being fetched anew; a newer version will come.
        return replica_->Rebase(values, snapshot.included);
      });
  if (!moved.ok()) Fatal(moved.status());
}

void NodeEngine::Do(const ParentNode::Drop& drop) {
  LOG(WARNING) << "the root refused contribution " << drop.sequence << ": " << VerdictName(drop.verdict);
  // Some of the region's momentum came from it, and would bring it back.
  std::fill(outer_.momentum().begin(), outer_.momentum().end(), 0.0f);
  std::fill(outer_.buffer().begin(), outer_.buffer().end(), 0.0f);
  // What was sent is finite here, whatever became of it on its way; what was merged since stays.
  if (const absl::Status status = replica_->Drop(drop.sequence); !status.ok()) Fatal(status);
}

void NodeEngine::Do(const ParentNode::Publish& publish) {
  if (hooks_.record) {
    LogRecord record;
    record.mutable_published()->set_version(publish.version.value());
    record.mutable_published()->set_previous_checksum(public_.checksum());
    hooks_.record(record);
    recorded_ = true;
    if (!Mutated("engine.publishes_before_durable") && !Flush()) {
      if (blocked_) continuation_ = [this, publish] { PublishNow(publish); };
      return;
    }
  }
  PublishNow(publish);
}

void NodeEngine::PublishNow(const ParentNode::Publish& publish) {
  if (hooks_.record) FaultPoint("root.before_publish");
  const absl::Status status = public_.Publish(theta_, publish.notes);
  if (!status.ok()) {
    Fatal(absl::OutOfRangeError(
        absl::StrFormat("the parameters diverged at version %d: %s", publish.version.value(), status.message())));
    return;
  }
  CHECK_EQ(public_.version(), publish.version);
  if (hooks_.record) FaultPoint("root.after_publish");
}

void NodeEngine::Do(const ParentNode::SendUp& send) {
  const bool gradient = options_.progress == PROGRESS_GRADIENT;
  const absl::Status sent = up_->Send(send.manifest, [&](const Replica::Begun& begun) {
    return replica_->Send(send.manifest.sequence, gradient ? outer_.gradient() : absl::Span<const float>(), send.whole,
                          begun);
  });
  if (!sent.ok()) {
    Fatal(absl::OutOfRangeError(absl::StrFormat("the region's progress is not finite: %s", sent.message())));
    return;
  }
  if (gradient) std::fill(outer_.gradient().begin(), outer_.gradient().end(), 0.0f);
}

}  // namespace wukong
