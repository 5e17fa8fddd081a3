#include "runtime/sync/public_copy.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"
#include "glog/logging.h"
#include "runtime/base/digest.h"
#include "runtime/base/mutation.h"

namespace wukong {
namespace {

// Versions that may be kept as a whole. The newest counts from when some child wants it kept.
constexpr size_t kFrozenMax = 2;

// Differences that are kept, whatever their size: those of versions in which hardly anything changed are small.
constexpr size_t kDeltasMax = 1024;

uint64_t ChecksumOf(absl::Span<const float> values) { return Checksum(values.data(), values.size() * sizeof(float)); }

}  // namespace

PublicParameters::PublicParameters(absl::Span<const float> values, std::vector<FragmentSpan> fragments, CodecKind codec,
                                   VersionNotes notes, Version version)
    : fragments_(std::move(fragments)),
      codec_(codec),
      values_(values.begin(), values.end()),
      newest_(std::make_shared<Edition>(Edition{version, ChecksumOf(values_), std::move(notes)})),
      last_change_(fragments_.size(), version) {
  CHECK(!fragments_.empty());
}

absl::Status PublicParameters::Publish(absl::Span<const float> theta, VersionNotes notes) {
  // Only this function writes values_, and one thread at a time calls it, so the encoding below reads them unlocked
  // from the followers' point of view; the lock is held all the same, since followers copy fragments meanwhile.
  MutexLock lock(mutex_);
  CHECK_EQ(theta.size(), values_.size());
  auto delta = std::make_shared<Delta>();
  delta->version = Version(newest_->version.value() + 1);
  std::shared_ptr<Frozen> wanted;  // By a child that would lose its target.
  if (!frozen_.empty()) wanted = frozen_.back().lock();
  if (wanted != nullptr && wanted->edition != newest_) wanted.reset();
  if (codec_ == CODEC_KIND_FP32) {
    const auto bad = std::find_if(theta.begin(), theta.end(), [](float value) { return !std::isfinite(value); });
    if (bad != theta.end()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("parameter %d of %d is %g", bad - theta.begin(), theta.size(), *bad));
    }
    for (size_t f = 0; f < fragments_.size(); ++f) {
      const FragmentSpan& span = fragments_[f];
      // As bits, which is what the checksum is of.
      if (std::memcmp(theta.data() + span.begin, values_.data() + span.begin, span.size() * sizeof(float)) != 0) {
        last_change_[f] = delta->version;
      }
    }
    if (wanted != nullptr) wanted->values = std::exchange(values_, std::vector<float>(values_.size()));
    std::copy(theta.begin(), theta.end(), values_.begin());
  } else {
    std::vector<float> difference(LargestFragment(fragments_));
    delta->fragments.resize(fragments_.size());
    int64_t bytes = 0;
    for (size_t f = 0; f < fragments_.size(); ++f) {
      const FragmentSpan& span = fragments_[f];
      bool zero = true;
      for (int64_t i = 0; i < span.size(); ++i) {
        difference[i] = theta[span.begin + i] - values_[span.begin + i];
        zero = zero && difference[i] == 0;
      }
      if (zero) continue;
      const absl::Status status =
          MakeCodec(codec_, span)
              ->Encode(absl::MakeConstSpan(difference).subspan(0, span.size()), &delta->fragments[f]);
      if (!status.ok()) return status;
      bytes += static_cast<int64_t>(delta->fragments[f].size());
    }
    if (wanted != nullptr) wanted->values = values_;
    for (size_t f = 0; f < fragments_.size(); ++f) {
      if (delta->fragments[f].empty()) continue;
      last_change_[f] = delta->version;
      const FragmentSpan& span = fragments_[f];
      const absl::Status status =
          MakeCodec(codec_, span)->Decode(delta->fragments[f], absl::MakeSpan(difference).subspan(0, span.size()));
      CHECK(status.ok()) << "a codec cannot read what it wrote: " << status;
      for (int64_t i = 0; i < span.size(); ++i) values_[span.begin + i] += difference[i];
    }
    deltas_.push_back(delta);
    delta_bytes_ += bytes;
    delta->bytes = bytes;
    const int64_t budget = static_cast<int64_t>(values_.size() * sizeof(float));
    while (delta_bytes_ > std::max(budget, bytes) || deltas_.size() > kDeltasMax) {
      delta_bytes_ -= deltas_.front()->bytes;
      deltas_.pop_front();
    }
  }
  newest_ = std::make_shared<Edition>(Edition{delta->version, ChecksumOf(values_), std::move(notes)});
  for (const auto& [cursor, woken] : waiting_) {
    if (!Rests(*cursor)) woken->NotifyAll();
  }
  return absl::OkStatus();
}

PublicParameters::Cursor PublicParameters::CursorAt(Position have, const Cursor* broken) const {
  MutexLock lock(mutex_);
  const Version newest = newest_->version;
  if (have.fragments.empty()) have.fragments.assign(fragments_.size(), have.complete);
  if (have.fragments.size() != fragments_.size()) have.fragments.assign(fragments_.size(), Version(0));
  for (Version& fragment : have.fragments) {
    if (fragment > newest || fragment < Version(0)) fragment = Version(0);
    if (Mutated("public.resumes_one_version_late") && fragment.value() > 0 && fragment < newest) {
      fragment = Version(fragment.value() + 1);
    }
    // A child that lacks a part of it does not have the whole.
    if (fragment < have.complete) have.complete = Version(0);
  }
  if (have.complete < Version(0)) have.complete = Version(0);
  Cursor cursor;
  cursor.at_ = std::move(have);
  cursor.oldest_ = newest;
  if (broken == nullptr || broken->target_ == nullptr) return cursor;
  const Version target = broken->target_->version;
  const bool ahead = std::any_of(cursor.at_.fragments.begin(), cursor.at_.fragments.end(),
                                 [&](Version fragment) { return fragment > target; });
  if (ahead || target <= cursor.at_.complete) return cursor;
  // Nothing newer was ever whole for it: the broken cursor was not brought past its target.
  cursor.oldest_ = target;
  cursor.target_ = broken->target_;
  cursor.frozen_ = broken->frozen_;
  return cursor;
}

void PublicParameters::Allow(Cursor* cursor, int64_t versions) {
  MutexLock lock(mutex_);
  const bool limited = cursor->allowed_ != std::numeric_limits<int64_t>::max();
  if (limited && (versions <= cursor->allowed_ || Mutated("public.forgets_who_has_room"))) return;
  cursor->allowed_ = versions;
  const auto waiting = waiting_.find(cursor);
  if (waiting != waiting_.end()) waiting->second->NotifyAll();
}

bool PublicParameters::HasRoom(const Cursor& cursor) const {
  MutexLock lock(mutex_);
  return cursor.completed_ < cursor.allowed_;
}

std::optional<FollowMessage> PublicParameters::Next(Cursor* cursor, MemberKey child, absl::Duration timeout) {
  bool taken = false;
  std::optional<FollowMessage> message = NextLocked(cursor, child, timeout, &taken);
  if (taken && on_taken_) on_taken_();
  return message;
}

std::optional<FollowMessage> PublicParameters::NextLocked(Cursor* cursor, MemberKey child, absl::Duration timeout,
                                                          bool* taken) {
  MutexLock lock(mutex_);
  *taken = IsFirstReady(*cursor);
  if (*taken) return std::nullopt;
  if (Rests(*cursor) && !stopping_ && timeout > absl::ZeroDuration()) {
    CondVar woken;
    waiting_[cursor] = &woken;
    woken.WaitFor(mutex_, timeout);
    waiting_.erase(cursor);
    *taken = IsFirstReady(*cursor);
  }
  if (Rests(*cursor) || stopping_) return std::nullopt;
  FollowMessage message;
  while (true) {
    if (cursor->target_ == nullptr) Aim(cursor);
    const Version target = cursor->target_->version;
    std::vector<Version>& have = cursor->at_.fragments;
    const auto next = std::find_if(have.begin(), have.end(), [&](Version version) { return version != target; });
    if (next == have.end()) {
      *message.mutable_complete() = Complete(cursor, child);
      *taken = IsFirstReady(*cursor);
      return message;
    }
    std::optional<FragmentUpdate> update = Update(*cursor, next - have.begin());
    if (update.has_value()) {
      *next = Version(update->version());
      *message.mutable_fragment() = *std::move(update);
      return message;
    }
    cursor->target_.reset();
  }
}

bool PublicParameters::Rests(const Cursor& cursor) const {
  return cursor.target_ == nullptr && (cursor.at_.complete == newest_->version || cursor.completed_ >= cursor.allowed_);
}

bool PublicParameters::IsFirstReady(const Cursor& cursor) {
  const bool ready = cursor.target_ == nullptr && cursor.at_.complete == newest_->version &&
                     cursor.completed_ < cursor.allowed_ && taken_ < newest_->version;
  if (ready) taken_ = newest_->version;
  return ready;
}

bool PublicParameters::Unchanged(size_t f, Version have) const { return have.value() > 0 && have >= last_change_[f]; }

bool PublicParameters::Reaches(Version have) const {
  return have == newest_->version ||
         (have.value() > 0 && !deltas_.empty() && deltas_.front()->version <= Version(have.value() + 1));
}

void PublicParameters::Aim(Cursor* cursor) {
  cursor->target_ = newest_;
  cursor->frozen_.reset();
  bool reached = true;
  for (size_t f = 0; f < fragments_.size(); ++f) {
    const Version have = cursor->at_.fragments[f];
    reached = reached && (Reaches(have) || Unchanged(f, have));
  }
  if (!reached) {
    frozen_.erase(std::remove_if(frozen_.begin(), frozen_.end(), [](const auto& frozen) { return frozen.expired(); }),
                  frozen_.end());
    std::shared_ptr<Frozen> last;
    if (!frozen_.empty()) last = frozen_.back().lock();
    if (last != nullptr && last->edition == newest_) {
      cursor->frozen_ = last;
    } else if (frozen_.size() < kFrozenMax) {
      last = std::make_shared<Frozen>(Frozen{newest_, {}});
      frozen_.push_back(last);
      cursor->frozen_ = last;
    } else if (last != nullptr && last->edition->version >= cursor->oldest_ &&
               last->edition->version > cursor->at_.complete) {
      cursor->frozen_ = last;
      cursor->target_ = last->edition;
    }
  }
  cursor->oldest_ = cursor->target_->version;
}

std::optional<FragmentUpdate> PublicParameters::Update(const Cursor& cursor, size_t f) const {
  FragmentUpdate update;
  update.set_index(static_cast<int>(f));
  const Version have = cursor.at_.fragments[f];
  if (cursor.target_ == newest_ && Unchanged(f, have)) {
    update.set_version(newest_->version.value());
    update.set_unchanged(true);
    return update;
  }
  if (Reaches(have)) {
    const auto& delta = deltas_[have.value() + 1 - deltas_.front()->version.value()];
    update.set_version(delta->version.value());
    update.set_codec(codec_);
    update.set_payload(delta->fragments[f]);
    return update;
  }
  const bool newest = cursor.target_ == newest_;
  if (!newest && cursor.frozen_ == nullptr) return std::nullopt;
  const FragmentSpan& span = fragments_[f];
  const std::vector<float>& values = newest ? values_ : cursor.frozen_->values;
  update.set_version(cursor.target_->version.value());
  update.set_absolute(true);
  update.set_codec(CODEC_KIND_FP32);
  update.set_payload(reinterpret_cast<const char*>(values.data() + span.begin), span.size() * sizeof(float));
  return update;
}

VersionComplete PublicParameters::Complete(Cursor* cursor, MemberKey child) {
  const std::shared_ptr<const Edition> edition = std::exchange(cursor->target_, nullptr);
  cursor->at_.complete = edition->version;
  cursor->frozen_.reset();
  ++cursor->completed_;
  VersionComplete complete;
  complete.set_version(edition->version.value());
  complete.set_checksum(edition->checksum);
  const auto included = edition->notes.included.find(child);
  complete.set_included_sequence(included == edition->notes.included.end() ? 0 : included->second.value());
  complete.set_root_version(edition->notes.root_version.value());
  complete.set_tokens_committed(edition->notes.tokens_committed);
  const auto lead = edition->notes.lead.find(child);
  complete.set_lead(lead == edition->notes.lead.end() ? 0 : lead->second);
  return complete;
}

void PublicParameters::Shutdown() {
  MutexLock lock(mutex_);
  stopping_ = true;
  for (const auto& [cursor, woken] : waiting_) woken->NotifyAll();
}

Version PublicParameters::version() const {
  MutexLock lock(mutex_);
  return newest_->version;
}

void PublicParameters::AddFollower() {
  MutexLock lock(mutex_);
  ++followers_;
}

void PublicParameters::RemoveFollower() {
  bool last = false;
  {
    MutexLock lock(mutex_);
    last = --followers_ == 0;
  }
  if (last && on_taken_) on_taken_();
}

int PublicParameters::followers() const {
  MutexLock lock(mutex_);
  return followers_;
}

uint64_t PublicParameters::checksum() const {
  MutexLock lock(mutex_);
  return newest_->checksum;
}

int PublicParameters::frozen() const {
  MutexLock lock(mutex_);
  return static_cast<int>(std::count_if(frozen_.begin(), frozen_.end(), [](const auto& frozen) {
    const std::shared_ptr<const Frozen> held = frozen.lock();
    return held != nullptr && !held->values.empty();
  }));
}

std::vector<float> PublicParameters::Copy(uint64_t* checksum) const {
  MutexLock lock(mutex_);
  if (checksum != nullptr) *checksum = newest_->checksum;
  return values_;
}

FollowedParameters::FollowedParameters(std::vector<FragmentSpan> fragments)
    : fragments_(std::move(fragments)),
      values_(fragments_.empty() ? 0 : fragments_.back().end),
      scratch_(LargestFragment(fragments_)),
      fragment_versions_(fragments_.size()),
      staged_(fragments_.size()) {
  CHECK(!fragments_.empty());
}

absl::StatusOr<bool> FollowedParameters::Take(FollowMessage message) {
  MutexLock lock(mutex_);
  absl::StatusOr<bool> completed = TakeLocked(&message);
  // The values may be between two versions now, and nobody may take them for one.
  if (!completed.ok()) ResetLocked();
  return completed;
}

absl::StatusOr<bool> FollowedParameters::TakeLocked(FollowMessage* message) {
  if (message->has_fragment()) {
    const absl::Status status = Stage(std::move(*message->mutable_fragment()));
    if (!status.ok()) return status;
    return false;
  }
  if (!message->has_complete()) return absl::DataLossError("a message of an unknown kind from the parent");
  for (std::vector<FragmentUpdate>& updates : staged_) {
    for (const FragmentUpdate& update : updates) {
      const absl::Status status = Apply(update);
      if (!status.ok()) return status;
    }
    updates.clear();
  }
  staged_bytes_ = 0;
  const VersionComplete& complete = message->complete();
  for (size_t f = 0; f < fragments_.size(); ++f) {
    if (fragment_versions_[f].value() != complete.version()) {
      return absl::DataLossError(absl::StrFormat("version %d is said to be complete, but fragment %d is at version %d",
                                                 complete.version(), f, fragment_versions_[f].value()));
    }
  }
  const uint64_t checksum = ChecksumOf(values_);
  if (checksum != complete.checksum() && !Mutated("public.skips_the_digest")) {
    return absl::DataLossError(absl::StrFormat("version %d has checksum %016x, its parent says %016x",
                                               complete.version(), checksum, complete.checksum()));
  }
  snapshot_.version = Version(complete.version());
  snapshot_.included = Sequence(complete.included_sequence());
  snapshot_.root_version = Version(complete.root_version());
  snapshot_.tokens_committed = complete.tokens_committed();
  snapshot_.lead = complete.lead();
  return true;
}

absl::Status FollowedParameters::Stage(FragmentUpdate update) {
  if (update.index() < 0 || update.index() >= static_cast<int>(fragments_.size())) {
    return absl::DataLossError(
        absl::StrFormat("update of fragment %d, but there are %d; does the parent run another model?", update.index(),
                        fragments_.size()));
  }
  // A parent sends at most the retained differences and a whole copy before it completes a version; more only to one of
  // many slow children, which begins again.
  staged_bytes_ += static_cast<int64_t>(update.payload().size());
  if (staged_bytes_ > 4 * static_cast<int64_t>(values_.size() * sizeof(float)) + (int64_t{16} << 20)) {
    return absl::DataLossError("the parent sends updates without ever completing a version");
  }
  std::vector<FragmentUpdate>& updates = staged_[update.index()];
  if (update.absolute()) updates.clear();  // It stands for all before it.
  updates.push_back(std::move(update));
  return absl::OkStatus();
}

absl::Status FollowedParameters::Apply(const FragmentUpdate& update) {
  const FragmentSpan& span = fragments_[update.index()];
  Version& have = fragment_versions_[update.index()];
  if (update.unchanged()) {
    if (have.value() <= 0 || update.version() < have.value()) {
      return absl::DataLossError(
          absl::StrFormat("fragment %d is said to be the same in version %d, but it is at "
                          "version %d",
                          update.index(), update.version(), have.value()));
    }
    have = Version(update.version());
    return absl::OkStatus();
  }
  const auto codec_kind = update.absolute() ? CODEC_KIND_FP32 : update.codec();
  if (codec_kind == CODEC_KIND_UNSPECIFIED || !CodecKind_IsValid(codec_kind)) {
    return absl::DataLossError(absl::StrFormat("fragment %d in unknown codec %d", update.index(), codec_kind));
  }
  if (!update.absolute() && update.version() != have.value() + 1) {
    return absl::DataLossError(absl::StrFormat("fragment %d: difference to version %d, but it is at version %d",
                                               update.index(), update.version() - 1, have.value()));
  }
  if (!update.absolute() && update.payload().empty()) {
    have = Version(update.version());
    return absl::OkStatus();
  }
  const absl::Status status =
      MakeCodec(codec_kind, span)->Decode(update.payload(), absl::MakeSpan(scratch_).subspan(0, span.size()));
  if (!status.ok()) return absl::DataLossError(absl::StrFormat("fragment %d: %s", update.index(), status.message()));
  float* values = values_.data() + span.begin;
  if (update.absolute()) {
    std::copy_n(scratch_.begin(), span.size(), values);
  } else {
    for (int64_t i = 0; i < span.size(); ++i) values[i] += scratch_[i];
  }
  have = Version(update.version());
  return absl::OkStatus();
}

PublicParameters::Position FollowedParameters::Resume() {
  MutexLock lock(mutex_);
  PublicParameters::Position have;
  have.complete = snapshot_.version;
  have.fragments = fragment_versions_;
  staged_bytes_ = 0;
  for (size_t f = 0; f < fragments_.size(); ++f) {
    for (const FragmentUpdate& update : staged_[f]) {
      have.fragments[f] = Version(update.version());
      staged_bytes_ += static_cast<int64_t>(update.payload().size());
    }
  }
  return have;
}

void FollowedParameters::Reset() {
  MutexLock lock(mutex_);
  ResetLocked();
}

void FollowedParameters::ResetLocked() {
  for (std::vector<FragmentUpdate>& updates : staged_) updates.clear();
  staged_bytes_ = 0;
  std::fill(fragment_versions_.begin(), fragment_versions_.end(), Version(0));
  snapshot_ = Snapshot();
}

FollowedParameters::Snapshot FollowedParameters::snapshot() const {
  MutexLock lock(mutex_);
  return snapshot_;
}

}  // namespace wukong
