#include "runtime/sync/parent_node.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <set>
#include <utility>

#include "absl/strings/str_format.h"
#include "glog/logging.h"
#include "runtime/base/mutation.h"

namespace wukong {
namespace {

// Verdicts that are kept per child to answer repeats; more than a sender may have in flight.
constexpr size_t kVerdictsKept = 256;
// Norms that the median is taken of, and how many there must be before it means something.
constexpr size_t kNormsKept = 64;
constexpr size_t kNormsNeeded = 16;
// Of StalenessDecay exponential.
constexpr double kDecayPerVersion = 0.9;
// Senders and reasons whose refusals are counted apart.
constexpr size_t kRefusedKept = 4096;

}  // namespace

ParentNode::ParentNode(const Options& options) : options_(options) {
  CHECK(options.level.has_quorum() && options.level.has_learning_rate()) << "the strategy is not resolved";
}

std::vector<ParentNode::Action> ParentNode::Step(const Event& event, absl::Time now) {
  std::vector<Action> actions;
  std::optional<MemberId> settled;
  if (const auto* attached = std::get_if<ChildAttached>(&event)) {
    On(*attached, &actions);
  } else if (const auto* fenced = std::get_if<ChildFenced>(&event)) {
    On(*fenced, &actions);
  } else if (const auto* idle = std::get_if<IdleChildren>(&event)) {
    if (!Mutated("parent.waits_for_the_idle")) {
      if (options_.tells_lead && idle_ != idle->idle) publish_wanted_ = true;  // Nobody waits for these any more.
      // Who is back begins with the slowest, as who is new: the others would wait until it has caught up alone.
      const int64_t slowest = SlowestClock(now);
      for (const MemberId member : idle_) {
        const auto back = children_.find(member);
        if (idle->idle.count(member) > 0 || back == children_.end()) continue;
        back->second.clock = std::max(back->second.clock, slowest);
      }
      idle_ = idle->idle;
    }
  } else if (const auto* checked = std::get_if<Checked>(&event)) {
    settled = On(*checked, now, &actions);
  } else if (std::holds_alternative<FollowersReady>(event)) {
    followers_ready_ = true;
  } else if (const auto* moved = std::get_if<ParentMoved>(&event)) {
    On(*moved, &actions);
  } else if (const auto* written = std::get_if<Written>(&event)) {
    if (written->sequence == sent_) writing_ = false;
  } else if (const auto* answered = std::get_if<Answered>(&event)) {
    On(*answered, &actions);
  } else if (std::holds_alternative<ParentBack>(event)) {
    parent_was_away_ = !options_.waits;  // A round is of all who wait for it.
  } else if (const auto* drain = std::get_if<Drain>(&event)) {
    draining_ = drain->on;
  }
  MaybeMerge(now, &actions);
  if (!options_.is_root) MaybeSendUp(now, &actions);
  if (publish_wanted_ && followers_ready_) {
    publish_wanted_ = false;
    followers_ready_ = false;
    if (!Mutated("parent.version_is_not_raised")) version_ = Version(version_.value() + 1);
    VersionNotes notes;
    notes.included = included_;
    notes.root_version = options_.is_root ? version_ : root_version_;
    notes.tokens_committed = options_.is_root ? stats_.tokens_merged : tokens_committed_;
    if (options_.tells_lead) {
      const int64_t slowest = SlowestClock(now);
      for (const auto& [member, child] : children_) {
        notes.lead[{member, child.incarnation}] = std::max(child.clock - slowest, region_lead_);
      }
    }
    actions.push_back(Publish{version_, std::move(notes)});
  }
  // Last, so that what is taken up is judged by the version at which it will be merged.
  if (const auto* offered = std::get_if<Offered>(&event)) {
    On(*offered, now, &actions);
  } else if (settled.has_value()) {
    TakeUpEarly(*settled, now, &actions);
  }
  return actions;
}

void ParentNode::On(const ChildAttached& event, std::vector<Action>* actions) {
  const auto oldest = oldest_allowed_.find(event.child.member);
  if (oldest != oldest_allowed_.end() && event.child.incarnation < oldest->second &&
      !Mutated("parent.forgets_the_fence")) {
    return;
  }
  const auto found = children_.find(event.child.member);
  if (found != children_.end()) {
    if (found->second.incarnation >= event.child.incarnation) return;  // The same life follows again.
    FenceChild({event.child.member, found->second.incarnation}, actions);
  }
  Child child;
  child.incarnation = event.child.incarnation;
  child.clock = SlowestClock(absl::InfiniteFuture());
  // The root remembers every child; a region's new aggregator knows none of them.
  child.offered = options_.is_root ? Sequence(0) : Sequence(event.next.value() - 1);
  children_[event.child.member] = child;
  // Nobody asks for those of an earlier life any more.
  included_.erase(included_.lower_bound({event.child.member, Incarnation(0)}), included_.lower_bound(event.child));
}

void ParentNode::On(const ChildFenced& event, std::vector<Action>* actions) { FenceChild(event.child, actions); }

void ParentNode::FenceChild(MemberKey child, std::vector<Action>* actions) {
  Incarnation& oldest = oldest_allowed_[child.member];
  oldest = std::max(oldest, Incarnation(child.incarnation.value() + 1));
  std::vector<Handle> refused;
  for (const auto& [handle, staged] : staged_) {
    const MemberKey sender = staged.manifest.sender;
    if (sender.member == child.member && sender.incarnation <= child.incarnation) refused.push_back(handle);
  }
  for (const Handle handle : refused) {
    Refuse(handle, child.member, VERDICT_FENCED, "this incarnation was fenced while its contribution was being checked",
           actions);
  }
  const auto found = children_.find(child.member);
  if (found == children_.end() || found->second.incarnation > child.incarnation) return;
  for (const auto& [sequence, early] : found->second.early) {
    Refuse(early.handle, child.member, VERDICT_FENCED, "this incarnation was fenced before its contribution's turn",
           actions);
  }
  children_.erase(found);
  if (options_.tells_lead) publish_wanted_ = true;  // It may have been the slowest.
}

// Of those who take part; 0 without any.
int64_t ParentNode::SlowestClock(absl::Time now) const {
  std::optional<int64_t> slowest;
  for (const auto& [member, child] : children_) {
    if (TakesPart(member, child, now)) slowest = std::min(slowest.value_or(child.clock), child.clock);
  }
  return slowest.value_or(0);
}

void ParentNode::Refuse(Handle handle, MemberId sender, Verdict verdict, std::string detail,
                        std::vector<Action>* actions) {
  ++stats_.contributions[verdict];
  const bool keep = stats_.refused.size() < kRefusedKept || stats_.refused.count({sender, verdict}) > 0;
  ++stats_.refused[{keep ? sender : MemberId(0), verdict}];
  const auto staged = staged_.find(handle);
  const bool decided = staged != staged_.end();
  if (staged != staged_.end()) {
    const Manifest& manifest = staged->second.manifest;
    const auto child = children_.find(manifest.sender.member);
    if (child != children_.end() && child->second.incarnation == manifest.sender.incarnation) {
      child->second.verdicts[manifest.sequence] = verdict;
    }
    for (const Handle repeat : staged->second.repeats) actions->push_back(Reply{repeat, verdict, detail});
    staged_.erase(staged);
  }
  actions->push_back(Reply{handle, verdict, std::move(detail), /*keep_payload=*/false, decided});
}

double ParentNode::NormMax(double ratio, int64_t tokens) const {
  if (ratio <= 0 || recent_sizes_.size() < kNormsNeeded) return 0;
  const auto median = [](std::vector<double> values) {
    const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
  };
  std::map<int64_t, std::vector<double>> norms;
  std::vector<double> lengths;
  for (const Size& size : recent_sizes_) {
    norms[size.part].push_back(size.norm);
    lengths.push_back(size.tokens);
  }
  double usual = 0;
  for (auto& [part, values] : norms) usual = std::max(usual, median(std::move(values)));
  // After an outage a region brings what it made meanwhile in one contribution.
  return ratio * usual * std::max(1.0, static_cast<double>(tokens) / std::max(1.0, median(std::move(lengths))));
}

bool ParentNode::LargeIsUsual(MemberId sender) const {
  int others = 0, large = 0;
  for (const auto& [member, child] : children_) {
    if (member == sender || idle_.count(member) > 0) continue;
    ++others;
    large += child.large ? 1 : 0;
  }
  if (others > 0) return 2 * large >= others;
  const auto own = children_.find(sender);
  return own != children_.end() && own->second.large;
}

double ParentNode::RawWeight(const Manifest& manifest) const {
  const auto tokens = static_cast<double>(manifest.tokens);
  switch (options_.level.weight()) {
    case WEIGHT_TOKENS:
      return tokens;
    case WEIGHT_TOKENS_SQUARED_PER_STEP:
      return tokens * tokens / static_cast<double>(std::max<int64_t>(1, manifest.steps));
    default:
      return 1.0;
  }
}

int64_t ParentNode::Staleness(const Manifest& manifest) const {
  return std::max<int64_t>(0, version_.value() - manifest.base.value());
}

void ParentNode::On(const Offered& event, absl::Time now, std::vector<Action>* actions) {
  const Manifest& manifest = event.manifest;
  const auto found = children_.find(manifest.sender.member);
  if (found == children_.end() || found->second.incarnation != manifest.sender.incarnation) {
    Refuse(event.handle, manifest.sender.member, VERDICT_FENCED,
           absl::StrFormat("member %d incarnation %d is not a child of this node", manifest.sender.member.value(),
                           manifest.sender.incarnation.value()),
           actions);
    return;
  }
  Child& child = found->second;
  if (manifest.sequence <= child.offered && !Mutated("parent.takes_repeats")) {
    for (auto& [handle, staged] : staged_) {
      if (staged.manifest.sender == manifest.sender && staged.manifest.sequence == manifest.sequence) {
        staged.repeats.push_back(event.handle);
        return;
      }
    }
    const auto verdict = child.verdicts.find(manifest.sequence);
    actions->push_back(Reply{event.handle, verdict == child.verdicts.end() ? VERDICT_FENCED : verdict->second,
                             "first answered earlier"});
    return;
  }
  const int64_t next = child.offered.value() + 1;
  const auto out_of_order = [&](Handle handle) {
    return Reply{handle, VERDICT_OUT_OF_ORDER,
                 absl::StrFormat("sequence %d came before %d", manifest.sequence.value(), next)};
  };
  // What is decided is recorded in its order: also the next waits while the one before it is being checked.
  if ((manifest.sequence.value() > next || child.checking) && !Mutated("parent.takes_repeats")) {
    if (manifest.sequence.value() >= next + options_.in_flight_max) {
      actions->push_back(out_of_order(event.handle));
      return;
    }
    const auto [early, first] = child.early.try_emplace(manifest.sequence, event);
    if (!first) {
      // Whoever waited for the answer to the earlier one has sent this one since.
      actions->push_back(out_of_order(early->second.handle));
      early->second = event;
    }
    actions->push_back(Keep{event.handle});
    return;
  }
  TakeUp(event, &child, now, actions);
  TakeUpEarly(manifest.sender.member, now, actions);
}

void ParentNode::TakeUpEarly(MemberId sender, absl::Time now, std::vector<Action>* actions) {
  const auto found = children_.find(sender);
  if (found == children_.end()) return;
  Child& child = found->second;
  while (!child.checking && !child.early.empty() && child.early.begin()->first.value() == child.offered.value() + 1) {
    const Offered early = std::move(child.early.begin()->second);
    child.early.erase(child.early.begin());
    TakeUp(early, &child, now, actions);
  }
}

void ParentNode::TakeUp(const Offered& event, Child* child, absl::Time now, std::vector<Action>* actions) {
  const Manifest& manifest = event.manifest;
  child->offered = manifest.sequence;
  while (child->verdicts.size() >= kVerdictsKept) child->verdicts.erase(child->verdicts.begin());
  staged_[event.handle].manifest = manifest;
  if (now < child->quarantined_until) {
    Refuse(event.handle, manifest.sender.member, VERDICT_QUARANTINED,
           absl::StrFormat("%d damaged contributions in a row; left out for another %s", options_.quarantine_after,
                           absl::FormatDuration(child->quarantined_until - now)),
           actions);
    return;
  }
  // Where it waits for a quorum, what is merged and has no version yet will have one before it is merged itself.
  const bool waits = options_.level.quorum() != 1 || options_.level.grace_ns() > 0;
  const int64_t staleness = Staleness(manifest) + (waits && publish_wanted_ ? 1 : 0);
  if (staleness > options_.level.staleness_max() + (Mutated("parent.one_version_too_stale") ? 1 : 0) &&
      !Mutated("parent.no_bound_on_staleness")) {
    Refuse(event.handle, manifest.sender.member, VERDICT_STALE,
           absl::StrFormat("its base is %d versions behind, staleness_max is %d", staleness,
                           options_.level.staleness_max()),
           actions);
    return;
  }
  const double norm_max = LargeIsUsual(manifest.sender.member) ? 0 : NormMax(options_.norm_ratio_max, manifest.tokens);
  child->checking = true;
  actions->push_back(Check{event.handle, norm_max});
}

std::optional<MemberId> ParentNode::On(const Checked& event, absl::Time now, std::vector<Action>* actions) {
  const auto found = staged_.find(event.handle);
  if (found == staged_.end()) return std::nullopt;  // Refused meanwhile.
  const MemberId sender = found->second.manifest.sender.member;
  if (const auto child = children_.find(sender); child != children_.end()) child->second.checking = false;
  Settle(event, now, actions);
  return sender;
}

void ParentNode::Settle(const Checked& event, absl::Time now, std::vector<Action>* actions) {
  const auto found = staged_.find(event.handle);
  const auto child = children_.find(found->second.manifest.sender.member);
  if (child != children_.end() && event.verdict != VERDICT_NON_FINITE) {
    const double usual = NormMax(options_.norm_ratio_max, found->second.manifest.tokens);
    child->second.large = event.verdict == VERDICT_NORM || (usual > 0 && event.norm > usual);
  }
  if (event.verdict == VERDICT_NON_FINITE || event.verdict == VERDICT_NORM) {
    if (child != children_.end() && ++child->second.damaged_in_a_row >= options_.quarantine_after) {
      child->second.damaged_in_a_row = 0;
      child->second.quarantined_until = now + options_.quarantine;
      if (Mutated("parent.quarantine_without_end")) child->second.quarantined_until = absl::InfiniteFuture();
      if (options_.tells_lead) publish_wanted_ = true;
    }
  } else if (child != children_.end()) {
    child->second.damaged_in_a_row = 0;
  }
  if (event.verdict != VERDICT_ACCEPTED) {
    const MemberId sender = found->second.manifest.sender.member;
    Refuse(event.handle, sender, event.verdict, event.detail, actions);
    return;
  }
  Staged staged = std::move(found->second);
  recent_sizes_.push_back(
      {staged.manifest.sequence.value() % options_.parts, event.norm, static_cast<double>(staged.manifest.tokens)});
  while (recent_sizes_.size() > kNormsKept) recent_sizes_.pop_front();
  staged_.erase(found);
  ++stats_.contributions[VERDICT_ACCEPTED];
  if (!Mutated("parent.forgets_its_answers")) {
    children_[staged.manifest.sender.member].verdicts[staged.manifest.sequence] = VERDICT_ACCEPTED;
  }
  actions->push_back(Reply{event.handle, VERDICT_ACCEPTED, "", /*keep_payload=*/true, /*decided=*/true});
  for (const Handle repeat : staged.repeats) actions->push_back(Reply{repeat, VERDICT_ACCEPTED, ""});
  ready_.push_back({event.handle, std::move(staged.manifest), event.norm});
}

void ParentNode::On(const ParentMoved& event, std::vector<Action>* actions) {
  CHECK(!options_.is_root);
  root_version_ = event.root_version;
  tokens_committed_ = event.tokens_committed;
  region_lead_ = event.lead;
  actions->push_back(Rebase{});
  publish_wanted_ = true;
}

void ParentNode::On(const Answered& event, std::vector<Action>* actions) {
  CHECK(!options_.is_root);
  const auto found = unanswered_.find(event.sequence);
  if (found == unanswered_.end()) return;
  unanswered_.erase(found);
  if (event.sequence == sent_) writing_ = false;
  if (event.verdict != VERDICT_ACCEPTED) {
    actions->push_back(Drop{event.sequence, event.verdict});
    publish_wanted_ = true;  // Also where children wait: they would wait for ever for what was dropped.
  }
}

std::set<MemberId> ParentNode::Quarantined(absl::Time now) const {
  std::set<MemberId> members;
  for (const auto& [member, child] : children_) {
    if (now < child.quarantined_until) members.insert(member);
  }
  return members;
}

int ParentNode::ActiveChildren(absl::Time now) const {
  return static_cast<int>(std::count_if(children_.begin(), children_.end(),
                                        [&](const auto& child) { return TakesPart(child.first, child.second, now); }));
}

bool ParentNode::GraceIsOver(bool everybody, absl::Time now) {
  const auto grace = absl::Nanoseconds(options_.level.grace_ns());
  if (!everybody && grace > absl::ZeroDuration()) {
    quorum_since_ = quorum_since_.value_or(now);
    if (now < *quorum_since_ + grace) return false;
  }
  quorum_since_.reset();
  return true;
}

void ParentNode::MaybeMerge(absl::Time now, std::vector<Action>* actions) {
  const Level& level = options_.level;
  while (!ready_.empty()) {
    std::set<MemberId> senders;
    for (const Ready& ready : ready_) senders.insert(ready.manifest.sender.member);
    // Everybody who takes part: who is at work, and who has sent.
    int members = static_cast<int>(senders.size());
    for (const auto& [member, child] : children_) {
      if (TakesPart(member, child, now) && senders.count(member) == 0) ++members;
    }
    const int64_t quorum =
        level.quorum() == 0 ? members : std::min<int64_t>(level.quorum(), std::max(1, ActiveChildren(now)));
    if (static_cast<int64_t>(senders.size()) < quorum) {
      quorum_since_.reset();
      return;
    }
    if (!GraceIsOver(static_cast<int>(senders.size()) >= members, now)) return;

    // With a quorum of one, contributions are merged one at a time, in the order in which they came.
    const size_t count = level.quorum() == 1 && level.grace_ns() == 0 ? 1 : ready_.size();
    Apply apply;
    // Contributions carry different fragments where there are parts: each is set against those of its own part.
    struct Part {
      double sum = 0;  // Of weights.
      double count = 0;
      std::set<MemberId> senders;
    };
    std::map<int64_t, Part> parts;
    const auto part_of = [&](const Manifest& manifest) { return manifest.sequence.value() % options_.parts; };
    for (size_t i = 0; i < count; ++i) {
      const Manifest& manifest = ready_[i].manifest;
      const double raw = RawWeight(manifest);
      const int64_t staleness = Staleness(manifest);
      double weight = raw;
      if (level.staleness_decay() == STALENESS_DECAY_POLYNOMIAL) {
        weight /= std::sqrt(1.0 + static_cast<double>(staleness));  // FedBuff, Nguyen et al. 2022.
      } else if (level.staleness_decay() == STALENESS_DECAY_EXPONENTIAL) {
        weight *= std::pow(kDecayPerVersion, static_cast<double>(staleness));
      }
      if (level.robust() == ROBUST_NORM_CLIP) {
        const double largest = NormMax(level.norm_ratio(), manifest.tokens);
        if (largest > 0 && ready_[i].norm > largest) {
          weight *= largest / ready_[i].norm;
          ++stats_.clipped;
        }
      }
      apply.merge.parts.push_back({ready_[i].handle, weight, manifest.sender.member});
      apply.raw_weights.push_back(raw);
      apply.staleness.push_back(staleness);
      apply.staleness_max = std::max(apply.staleness_max, staleness);
      ++stats_.staleness[staleness];
      stats_.tokens_merged += manifest.tokens;
      Part& part = parts[part_of(manifest)];
      part.sum += raw;
      ++part.count;
      part.senders.insert(manifest.sender.member);
      recent_weights_.push_back(raw);
    }
    while (recent_weights_.size() > std::max<size_t>(16, 2 * children_.size())) recent_weights_.pop_front();
    const double usual = std::accumulate(recent_weights_.begin(), recent_weights_.end(), 0.0) /
                         static_cast<double>(recent_weights_.size());
    for (size_t i = 0; i < count; ++i) {
      const Part& part = parts[part_of(ready_[i].manifest)];
      // A merge of few: against what is usual, or a small contribution would count as much as a large one.
      const bool of_all = level.quorum() == 0 && static_cast<int>(part.senders.size()) >= members;
      const double normalizer = of_all ? part.sum : usual * part.count;
      // A round in which every member contributes once moves theta by learning_rate * mean, however it is cut into
      // merges.
      const double share = static_cast<double>(part.senders.size()) / std::max<double>(1, members);
      double scale = level.weight() == WEIGHT_SUM ? 1 : share / std::max(normalizer, 1e-300);
      if (Mutated("parent.wrong_weight")) scale *= share;
      apply.merge.parts[i].weight *= scale;
    }

    apply.merge.learning_rate = level.learning_rate();
    apply.merge.momentum = level.momentum();
    const int64_t delay = level.momentum_delay() == 0 ? members : level.momentum_delay();
    apply.merge.momentum_step = ++merges_since_momentum_ >= delay;
    if (apply.merge.momentum_step) merges_since_momentum_ = 0;

    for (size_t i = 0; i < count; ++i) {
      Manifest& manifest = ready_[i].manifest;
      // What a fenced life left behind is merged, and nobody is there to be told.
      const auto sender = children_.find(manifest.sender.member);
      if (sender != children_.end() && sender->second.incarnation == manifest.sender.incarnation) {
        included_[manifest.sender] = manifest.sequence;
        ++sender->second.clock;
      }
      if (!options_.is_root) {
        if (unsent_.contributions == 0) unsent_.since = now;
        ++unsent_.contributions;
        unsent_.steps += manifest.steps;
        unsent_.tokens += manifest.tokens;
        unsent_.last |= manifest.last;
        unsent_.root_base = std::min(unsent_.root_base.value_or(manifest.root_base), manifest.root_base);
        for (const LeasedRange& range : manifest.ranges) {
          if (Mutated("parent.names_one_range_of_each") && range.begin != manifest.ranges.front().begin) continue;
          unsent_.ranges.emplace_back(manifest.sender, range);
        }
      }
      apply.manifests.push_back(std::move(manifest));
    }
    ready_.erase(ready_.begin(), ready_.begin() + static_cast<std::ptrdiff_t>(count));
    actions->push_back(std::move(apply));
    if (options_.is_root || !options_.waits) publish_wanted_ = true;
  }
  // Who is left out does not fall behind: the others would wait until it has caught up alone.
  if (options_.tells_lead) {
    const int64_t slowest = SlowestClock(now);
    for (const MemberId member : Quarantined(now)) {
      int64_t& clock = children_.at(member).clock;
      clock = std::max(clock, slowest);
    }
  }
}

void ParentNode::MaybeSendUp(absl::Time now, std::vector<Action>* actions) {
  if (unsent_.contributions == 0 || static_cast<int>(unanswered_.size()) >= options_.in_flight_max) return;
  // It would only grow old behind the one that is being written; what comes meanwhile joins it.
  if (writing_ && !options_.waits) return;
  const Level& level = options_.level;
  const int64_t active = ActiveChildren(now);
  int64_t every = level.send_every() == 0 ? std::max<int64_t>(1, active) : level.send_every();
  const auto age = absl::Nanoseconds(level.flush_age_ns());
  if (options_.waits && age == absl::ZeroDuration()) {
    // Who takes part now waits for the root after so many: no more would come (strategy_check.cc, CheckRegionSends).
    const int64_t quorum = level.quorum() == 0 ? active : std::min<int64_t>(level.quorum(), active);
    every = active == 0 ? 1 : std::min(every, active / quorum * quorum * options_.in_flight_max);
  }
  const bool old = age > absl::ZeroDuration() && now - unsent_.since >= age;
  if (unsent_.contributions < every && !old && !draining_ && !unsent_.last && !parent_was_away_) return;
  parent_was_away_ = false;
  sent_ = Sequence(sent_.value() + 1);
  writing_ = true;
  SendUp send;
  send.whole = draining_ || unsent_.last;  // It may be the last one: nothing comes after it that would bring the rest.
  send.manifest.sequence = sent_;
  send.manifest.base = *unsent_.root_base;
  send.manifest.root_base = *unsent_.root_base;
  send.manifest.steps = unsent_.steps;
  send.manifest.tokens = unsent_.tokens;
  std::vector<LeasedRange> ranges;
  for (const auto& [sender, range] : unsent_.ranges) ranges.push_back(range);
  send.manifest.ranges = Coalesce(std::move(ranges));
  unanswered_[sent_] = Mutated("parent.names_ranges_twice") ? unsent_ : std::exchange(unsent_, Cargo());
  actions->push_back(std::move(send));
}

template <typename Use>
void ParentNode::ForEachInCustody(Use use) const {
  for (const Ready& ready : ready_) {
    for (const LeasedRange& range : ready.manifest.ranges) use(ready.manifest.sender, range);
  }
  for (const auto& [sender, range] : unsent_.ranges) use(sender, range);
  for (const auto& [sequence, cargo] : unanswered_) {
    for (const auto& [sender, range] : cargo.ranges) use(sender, range);
  }
}

std::vector<LeasedRange> ParentNode::CustodyOf(MemberKey sender) const {
  if (Mutated("parent.forgets_its_custody")) return {};
  std::vector<LeasedRange> ranges;
  ForEachInCustody([&](MemberKey from, const LeasedRange& range) {
    if (from == sender) ranges.push_back(range);
  });
  return Coalesce(std::move(ranges));
}

std::vector<LeasedRange> ParentNode::Custody() const {
  if (Mutated("parent.asserts_nothing")) return {};
  std::vector<LeasedRange> ranges;
  ForEachInCustody([&](MemberKey, const LeasedRange& range) { ranges.push_back(range); });
  return Coalesce(std::move(ranges));
}

void ParentNode::Restore(const RootState& state, const std::vector<Handle>& unmerged) {
  CHECK(options_.is_root);
  CHECK_EQ(state.unmerged_size(), static_cast<int>(unmerged.size()));
  version_ = Version(state.version());
  for (const RootMember& member : state.members()) {
    if (member.role() != ROLE_AGGREGATOR) continue;
    const MemberId id(member.member());
    if (member.fenced_below() > 0) oldest_allowed_[id] = Incarnation(member.fenced_below());
    if (member.included() > 0) included_[{id, Incarnation(member.incarnation())}] = Sequence(member.included());
    if (member.incarnation() < member.fenced_below()) continue;
    Child& child = children_[id];
    child.incarnation = Incarnation(member.incarnation());
    if (Mutated("recovery.forgets_what_was_offered")) continue;
    child.offered = Sequence(member.offered());
    for (const VerdictKept& kept : member.verdicts()) child.verdicts[Sequence(kept.sequence())] = kept.verdict();
  }
  for (int i = 0; i < state.unmerged_size(); ++i) {
    ready_.push_back({unmerged[i], ManifestFromProto(state.unmerged(i).header()), state.unmerged(i).norm()});
  }
  recent_weights_.assign(state.recent_weights().begin(), state.recent_weights().end());
  // Of which part they were is not kept: with parts the guard learns anew what is usual.
  const int sizes = options_.parts > 1 ? 0 : std::min(state.recent_norms_size(), state.recent_tokens_size());
  for (int i = 0; i < sizes; ++i) recent_sizes_.push_back({0, state.recent_norms(i), state.recent_tokens(i)});
  merges_since_momentum_ = state.merges_since_momentum();
  stats_.tokens_merged = state.tokens_merged();
  stats_.contributions[VERDICT_ACCEPTED] = state.contributions_accepted();
  for (int v = Verdict_MIN; v <= Verdict_MAX; ++v) {
    if (!Verdict_IsValid(v)) continue;
    const auto refused = state.refused().find(VerdictName(static_cast<Verdict>(v)));
    if (refused != state.refused().end()) stats_.contributions[static_cast<Verdict>(v)] = refused->second;
  }
  for (const auto& [versions, count] : state.staleness()) stats_.staleness[versions] = count;
  // What was merged last may not have been told yet. A version without anything new would only make older what waits
  // for its quorum.
  publish_wanted_ = !state.told() && !Mutated("recovery.tells_nobody");
}

}  // namespace wukong
