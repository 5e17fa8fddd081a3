#include "runtime/sync/public_copy.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_format.h"
#include "glog/logging.h"
#include "runtime/base/digest.h"

namespace wukong {
namespace {

int64_t LargestFragment(const std::vector<FragmentSpan>& fragments) {
  int64_t largest = 0;
  for (const FragmentSpan& fragment : fragments) largest = std::max(largest, fragment.size());
  return largest;
}

uint64_t ChecksumOf(absl::Span<const float> values) { return Checksum(values.data(), values.size() * sizeof(float)); }

}  // namespace

PublicParameters::PublicParameters(absl::Span<const float> theta, std::vector<FragmentSpan> fragments, CodecKind codec,
                                   VersionNotes notes)
    : fragments_(std::move(fragments)),
      codec_(MakeCodec(codec)),
      values_(theta.begin(), theta.end()),
      notes_(std::move(notes)) {
  CHECK(!fragments_.empty());
  checksum_ = ChecksumOf(values_);
}

absl::Status PublicParameters::Publish(absl::Span<const float> theta, VersionNotes notes) {
  // Only this function writes values_, and one thread at a time calls it, so the encoding below reads them unlocked
  // from the followers' point of view; the lock is held all the same, since followers copy fragments meanwhile.
  MutexLock lock(mutex_);
  CHECK_EQ(theta.size(), values_.size());
  auto delta = std::make_shared<Delta>();
  delta->version = Version(version_.value() + 1);
  if (codec_->kind() == CODEC_KIND_FP32) {
    const auto bad = std::find_if(theta.begin(), theta.end(), [](float value) { return !std::isfinite(value); });
    if (bad != theta.end()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("parameter %d of %d is %g", bad - theta.begin(), theta.size(), *bad));
    }
    std::copy(theta.begin(), theta.end(), values_.begin());
  } else {
    std::vector<float> difference(LargestFragment(fragments_));
    delta->fragments.resize(fragments_.size());
    int64_t bytes = 0;
    for (size_t f = 0; f < fragments_.size(); ++f) {
      const FragmentSpan& span = fragments_[f];
      for (int64_t i = 0; i < span.size(); ++i) difference[i] = theta[span.begin + i] - values_[span.begin + i];
      const absl::Status status =
          codec_->Encode(absl::MakeConstSpan(difference).subspan(0, span.size()), &delta->fragments[f]);
      if (!status.ok()) return status;
      bytes += static_cast<int64_t>(delta->fragments[f].size());
    }
    for (size_t f = 0; f < fragments_.size(); ++f) {
      const FragmentSpan& span = fragments_[f];
      const absl::Status status =
          codec_->Decode(delta->fragments[f], absl::MakeSpan(difference).subspan(0, span.size()));
      CHECK(status.ok()) << "a codec cannot read what it wrote: " << status;
      for (int64_t i = 0; i < span.size(); ++i) values_[span.begin + i] += difference[i];
    }
    deltas_.push_back(delta);
    const int64_t budget = static_cast<int64_t>(values_.size() * sizeof(float));
    while (static_cast<int64_t>(deltas_.size()) * bytes > std::max(budget, bytes)) deltas_.pop_front();
  }
  version_ = delta->version;
  notes_ = std::move(notes);
  checksum_ = ChecksumOf(values_);
  changed_.NotifyAll();
  return absl::OkStatus();
}

PublicParameters::Cursor PublicParameters::CursorAt(Version have) const {
  MutexLock lock(mutex_);
  if (have > version_) have = Version(0);
  Cursor cursor;
  cursor.fragments.assign(fragments_.size(), have);
  cursor.complete = have;
  return cursor;
}

std::optional<FollowMessage> PublicParameters::Next(Cursor* cursor, MemberId child, absl::Duration timeout) {
  std::optional<FollowMessage> message = NextLocked(cursor, child, timeout);
  if (message.has_value() && message->has_complete() && on_taken_) on_taken_();
  return message;
}

std::optional<FollowMessage> PublicParameters::NextLocked(Cursor* cursor, MemberId child, absl::Duration timeout) {
  MutexLock lock(mutex_);
  if (cursor->complete == version_ && !stopping_) changed_.WaitFor(mutex_, timeout);
  if (cursor->complete == version_ || stopping_) return std::nullopt;
  FollowMessage message;
  for (size_t f = 0; f < fragments_.size(); ++f) {
    const Version have = cursor->fragments[f];
    if (have == version_) continue;
    FragmentUpdate* update = message.mutable_fragment();
    update->set_index(static_cast<int>(f));
    if (have.value() > 0 && !deltas_.empty() && deltas_.front()->version <= Version(have.value() + 1)) {
      const auto& delta = deltas_[have.value() + 1 - deltas_.front()->version.value()];
      update->set_version(delta->version.value());
      update->set_codec(codec_->kind());
      update->set_payload(delta->fragments[f]);
      cursor->fragments[f] = delta->version;
    } else {
      const FragmentSpan& span = fragments_[f];
      update->set_version(version_.value());
      update->set_absolute(true);
      update->set_codec(CODEC_KIND_FP32);
      update->set_payload(reinterpret_cast<const char*>(values_.data() + span.begin), span.size() * sizeof(float));
      cursor->fragments[f] = version_;
    }
    return message;
  }
  VersionComplete* complete = message.mutable_complete();
  complete->set_version(version_.value());
  complete->set_checksum(checksum_);
  const auto included = notes_.included.find(child);
  complete->set_included_sequence(included == notes_.included.end() ? 0 : included->second.value());
  complete->set_root_version(notes_.root_version.value());
  complete->set_tokens_committed(notes_.tokens_committed);
  cursor->complete = version_;
  return message;
}

void PublicParameters::Shutdown() {
  MutexLock lock(mutex_);
  stopping_ = true;
  changed_.NotifyAll();
}

Version PublicParameters::version() const {
  MutexLock lock(mutex_);
  return version_;
}

void PublicParameters::AddFollower() {
  MutexLock lock(mutex_);
  ++followers_;
}

void PublicParameters::RemoveFollower() {
  {
    MutexLock lock(mutex_);
    --followers_;
  }
  // Whoever left may be the one that was waited for.
  if (on_taken_) on_taken_();
}

int PublicParameters::followers() const {
  MutexLock lock(mutex_);
  return followers_;
}

std::vector<float> PublicParameters::Copy(uint64_t* checksum) const {
  MutexLock lock(mutex_);
  if (checksum != nullptr) *checksum = checksum_;
  return values_;
}

FollowedParameters::FollowedParameters(std::vector<FragmentSpan> fragments)
    : fragments_(std::move(fragments)),
      values_(fragments_.empty() ? 0 : fragments_.back().end),
      scratch_(LargestFragment(fragments_)),
      fragment_versions_(fragments_.size()) {
  CHECK(!fragments_.empty());
}

absl::StatusOr<bool> FollowedParameters::Take(const FollowMessage& message) {
  MutexLock lock(mutex_);
  absl::StatusOr<bool> completed = TakeLocked(message);
  // The values may be between two versions now, and nobody may take them for one.
  if (!completed.ok()) ResetLocked();
  return completed;
}

absl::StatusOr<bool> FollowedParameters::TakeLocked(const FollowMessage& message) {
  if (message.has_fragment()) {
    const FragmentUpdate& update = message.fragment();
    if (update.index() < 0 || update.index() >= static_cast<int>(fragments_.size())) {
      return absl::DataLossError(
          absl::StrFormat("update of fragment %d, but there are %d; does the parent run another model?", update.index(),
                          fragments_.size()));
    }
    // A parent sends at most the retained differences and one whole copy before it completes a version.
    staged_bytes_ += static_cast<int64_t>(update.payload().size());
    if (staged_bytes_ > 4 * static_cast<int64_t>(values_.size() * sizeof(float)) + (int64_t{16} << 20)) {
      return absl::DataLossError("the parent sends updates without ever completing a version");
    }
    staged_.push_back(update);
    return false;
  }
  if (!message.has_complete()) return absl::DataLossError("a message of an unknown kind from the parent");
  for (const FragmentUpdate& update : staged_) {
    const absl::Status status = Apply(update);
    if (!status.ok()) return status;
  }
  staged_.clear();
  staged_bytes_ = 0;
  const VersionComplete& complete = message.complete();
  for (size_t f = 0; f < fragments_.size(); ++f) {
    if (fragment_versions_[f].value() != complete.version()) {
      return absl::DataLossError(absl::StrFormat("version %d is said to be complete, but fragment %d is at version %d",
                                                 complete.version(), f, fragment_versions_[f].value()));
    }
  }
  const uint64_t checksum = ChecksumOf(values_);
  if (checksum != complete.checksum()) {
    return absl::DataLossError(absl::StrFormat("version %d has checksum %016x, its parent says %016x",
                                               complete.version(), checksum, complete.checksum()));
  }
  snapshot_.version = Version(complete.version());
  snapshot_.included = Sequence(complete.included_sequence());
  snapshot_.root_version = Version(complete.root_version());
  snapshot_.tokens_committed = complete.tokens_committed();
  return true;
}

absl::Status FollowedParameters::Apply(const FragmentUpdate& update) {
  const FragmentSpan& span = fragments_[update.index()];
  Version& have = fragment_versions_[update.index()];
  const auto codec_kind = update.absolute() ? CODEC_KIND_FP32 : update.codec();
  if (codec_kind == CODEC_KIND_UNSPECIFIED || !CodecKind_IsValid(codec_kind)) {
    return absl::DataLossError(absl::StrFormat("fragment %d in unknown codec %d", update.index(), codec_kind));
  }
  if (!update.absolute() && update.version() != have.value() + 1) {
    return absl::DataLossError(absl::StrFormat("fragment %d: difference to version %d, but it is at version %d",
                                               update.index(), update.version() - 1, have.value()));
  }
  const absl::Status status =
      MakeCodec(codec_kind)->Decode(update.payload(), absl::MakeSpan(scratch_).subspan(0, span.size()));
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

void FollowedParameters::DropStaged() {
  MutexLock lock(mutex_);
  staged_.clear();
  staged_bytes_ = 0;
}

void FollowedParameters::Reset() {
  MutexLock lock(mutex_);
  ResetLocked();
}

void FollowedParameters::ResetLocked() {
  staged_.clear();
  staged_bytes_ = 0;
  std::fill(fragment_versions_.begin(), fragment_versions_.end(), Version(0));
  snapshot_ = Snapshot();
}

FollowedParameters::Snapshot FollowedParameters::snapshot() const {
  MutexLock lock(mutex_);
  return snapshot_;
}

}  // namespace wukong
