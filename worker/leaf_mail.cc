// What the other threads bring to the training thread, and what it tells them: answers, grants, another aggregator, and
// what becomes of contributions that one left undecided.
#include <algorithm>
#include <utility>

#include "glog/logging.h"
#include "worker/leaf.h"

namespace wukong {

Session::Callbacks Leaf::HeartbeatCallbacks() {
  Session::Callbacks callbacks;
  callbacks.fill = [this](HeartbeatRequest* request) { mail_.Fill(request); };
  callbacks.on_reply = [this](const HeartbeatReply& reply) { mail_.TakeReply(reply); };
  callbacks.on_lost = [this](const absl::Status& status) { mail_.End(status); };
  return callbacks;
}

bool Leaf::TakeMail(absl::Duration wait) {
  std::vector<Mailbox::Answer> answers;
  std::vector<Mailbox::Reply> replies;
  bool version = false;
  {
    MutexLock lock(mail_.mutex);
    if (!mail_.version && mail_.answers.empty() && mail_.replies.empty() && !mail_.over &&
        wait > absl::ZeroDuration()) {
      mail_.changed.WaitFor(mail_.mutex, wait);
    }
    if (mail_.over) return false;
    answers.swap(mail_.answers);
    replies.swap(mail_.replies);
    std::swap(version, mail_.version);
  }
  if (version) {
    const FollowedParameters::Snapshot snapshot = parent_.snapshot();
    if (snapshot.version.value() > 0) {
      schedule_.VersionArrived({snapshot.version, snapshot.included, snapshot.root_version});
    }
  }
  // Who waits for data has no use for each of the versions that the others make meanwhile.
  if (!waits_for_data_ || !replies.empty()) parent_.VersionSeen();
  for (const Mailbox::Answer& answer : answers) {
    // What an aggregator that is gone had answered, and was not read in time, counts as not answered.
    if (answer.link == parent_.link_number()) TakeAnswer(answer.sequence, answer.verdict);
  }
  for (const Mailbox::Reply& reply : replies) TakeReply(reply);
  SayHoldings(!replies.empty() && replies.back().message.assert_holdings());
  return true;
}

void Leaf::TakeAnswer(Sequence sequence, Verdict verdict) {
  const std::vector<LeasedRange> refused = schedule_.Answered(sequence, verdict);
  if (verdict == VERDICT_NON_FINITE) {
    ThrowProgressAway();
  } else if (verdict != VERDICT_ACCEPTED) {
    ChangeTheta([&] { return replica_.Drop(sequence); });
  }
  ReleaseRanges(refused);
}

void Leaf::TakeReply(const Mailbox::Reply& reply) {
  const HeartbeatReply& message = reply.message;
  term_ = message.term();
  FollowParent({MemberId(message.parent_member()), Incarnation(message.parent_incarnation())},
               message.parent_address());
  if (reply.answers_holdings) {
    std::vector<LeasedRange> committed, disowned;
    for (const SampleRange& range : message.committed()) committed.push_back(RangeFromProto(range));
    for (const SampleRange& range : message.disowned()) disowned.push_back(RangeFromProto(range));
    Decide(schedule_.HoldingsAnswered(committed, disowned));
  }
  std::vector<LeasedRange> granted;
  for (const SampleRange& range : message.granted()) granted.push_back(RangeFromProto(range));
  if (leaving_) {
    ReleaseRanges(granted);
    return;
  }
  if (!granted.empty() && first_data_ == absl::InfiniteFuture()) first_data_ = last_step_end_ = clock_.Now();
  schedule_.Leased(granted, message.exhausted());
  // Steps are what is compared, and a step of a group has more samples.
  schedule_.SpeedReference(message.samples_per_second_reference() * group_size_);
}

void Leaf::SayHoldings(bool asks) {
  {
    MutexLock lock(mail_.mutex);
    // A heartbeat under way may be the answer; if it is not, its reply asks again.
    if (mail_.asserted_term == term_) asks = false;
    if (!asks && !mail_.holdings.has_value()) return;
    Holdings holdings;
    holdings.set_term(term_);
    for (const LeasedRange& range : schedule_.Holdings()) *holdings.add_ranges() = RangeToProto(range);
    holdings.set_parent_member(parent_.parent().member.value());
    holdings.set_parent_incarnation(parent_.parent().incarnation.value());
    mail_.holdings = std::move(holdings);
  }
  if (asks) session_->Kick();
}

void Leaf::ReleaseRanges(const std::vector<LeasedRange>& ranges) {
  if (ranges.empty()) return;
  SayHoldings(/*asks=*/false);  // First, so that no heartbeat names a range as held and as released.
  MutexLock lock(mail_.mutex);
  mail_.released.insert(mail_.released.end(), ranges.begin(), ranges.end());
}

void Leaf::FollowParent(MemberKey parent, const std::string& address) {
  if (parent == parent_.parent()) return;
  if (parent_.attached()) {
    LOG(WARNING) << "aggregator " << parent_.parent().member << "." << parent_.parent().incarnation
                 << " is gone; training goes on until there is another";
    parent_.Detach();
    replica_.ParentReplaced(schedule_.ParentLost());
    if (gradient_progress_) trainer_->ZeroGradient();
  }
  if (parent.member.value() == 0) return;
  LOG(INFO) << "the aggregator is " << parent.member << "." << parent.incarnation << " at " << address;
  parent_.Attach(parent, address, schedule_.next_sequence());
}

void Leaf::Decide(const LeafSchedule::Decision& decision) {
  if (decision.progress_lost) {
    LOG(WARNING) << "what was trained and not contributed is thrown away: its data is another's by now";
    ChangeTheta([&] {
      replica_.Revert();
      trainer_->ZeroGradient();
      return absl::OkStatus();
    });
  }
  for (const Sequence sequence : decision.included) {
    LOG(INFO) << "contribution " << sequence << " is in the root";
    replica_.Included(sequence);
  }
  for (const Sequence sequence : decision.dropped) {
    LOG(WARNING) << "contribution " << sequence << " is thrown away: its data is another's by now";
    ChangeTheta([&] { return replica_.Drop(sequence); });
  }
  for (const Sequence sequence : decision.taken_back) {
    LOG(INFO) << "contribution " << sequence << " was lost on its way, and is made again";
    if (const absl::Status status = replica_.TakeBack(sequence); !status.ok()) mail_.End(status);
  }
  ReleaseRanges(decision.released);
}

void Leaf::ChangeTheta(const std::function<absl::Status()>& change) {
  absl::Status status = trainer_->PullParameters();
  if (status.ok()) status = change();
  if (status.ok()) status = trainer_->PushParameters();
  if (!status.ok()) mail_.End(status);
  group_has_parameters_ = false;
}

void Leaf::ThrowProgressAway() {
  ChangeTheta([&] {
    const bool reset = parent_.With(
        [&](absl::Span<const float> values, const FollowedParameters::Snapshot&) { replica_.Reset(values); });
    if (reset) {
      schedule_.SentForgotten();
    } else {
      replica_.Revert();  // There are no public parameters now.
    }
    return absl::OkStatus();
  });
  trainer_->ZeroGradient();
  ReleaseRanges(schedule_.ProgressLost());
}

void Leaf::TellHeartbeat(bool idle) {
  // Until the next heartbeat is answered, which leaves when this one has been.
  const absl::Duration latency = 2 * session_->round_trip() + absl::Nanoseconds(job_.limits().heartbeat_ns());
  const int64_t step_samples = int64_t{job_.optimizer().micro_batch()} * job_.optimizer().accumulation() * group_size_;
  const int64_t range_samples = step_samples * job_.data().range_steps();
  const int64_t want = leaving_ ? 0 : schedule_.WantSamples(latency, range_samples);
  bool kick = false;
  {
    MutexLock lock(mail_.mutex);
    // A grant that is not in the schedule yet covers what it was asked for.
    const bool granted = std::any_of(mail_.replies.begin(), mail_.replies.end(),
                                     [](const Mailbox::Reply& reply) { return reply.message.granted_size() > 0; });
    // Near the end of the run the coordinator gives only to who has nothing left: that is not to wait for the period.
    const bool starving = schedule_.untrained_samples() < step_samples;
    const bool news = mail_.want_samples == 0 || (starving && !mail_.starving);
    kick = (want > 0 && news && !granted && !idle) || idle != mail_.idle;
    mail_.want_samples = granted ? 0 : want;
    mail_.samples_in_hand = schedule_.untrained_samples();
    mail_.starving = starving;
    mail_.idle = idle;
    mail_.samples_per_second = schedule_.samples_per_second() / group_size_;
    if (first_data_ != absl::InfiniteFuture()) {
      mail_.usage.set_wall_seconds(absl::ToDoubleSeconds(clock_.Now() - first_data_));
    }
    mail_.usage.set_compute_seconds(compute_seconds_);
    mail_.usage.clear_waiting_seconds();
    for (const auto& [reason, seconds] : waits_.Seconds(clock_.Now())) {
      (*mail_.usage.mutable_waiting_seconds())[reason] = seconds;
    }
    mail_.usage.set_tokens_computed(tokens_);
    parent_.FillUsage(&mail_.usage);
  }
  if (kick) session_->Kick();
}

}  // namespace wukong
