#include "runtime/transport/striping.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_format.h"
#include "runtime/codec/codec.h"
#include "runtime/sync/outer_optimizer.h"
#include "runtime/sync/stream_tuner.h"

namespace wukong {
namespace {

constexpr int64_t kPieceMax = 256 << 10;
constexpr size_t kPiecesQueued = 2;
constexpr int64_t kFragmentBytesMax = 4 << 20;
// What may wait for a connection that is behind the others.
constexpr int64_t kEarlyBytesMax = 16 << 20;

std::vector<int64_t> SizesOf(CodecKind codec, absl::Span<const FragmentSpan> fragments) {
  std::vector<int64_t> sizes;
  sizes.reserve(fragments.size());
  for (size_t f = 0; f < fragments.size(); ++f) {
    sizes.push_back(static_cast<int64_t>(EncodedBytes(codec, fragments.subspan(f, 1))));
  }
  return sizes;
}

absl::Status Superseded() { return absl::CancelledError("another transfer goes on with the contribution"); }

}  // namespace

int64_t PieceBytes(int64_t bytes, int streams) {
  if (streams <= 1) return std::max<int64_t>(1, bytes);
  return std::clamp((bytes + streams - 1) / streams, kPieceBytesMin, kPieceMax);
}

ContributionAssembly::ContributionAssembly(CodecKind codec, absl::Span<const FragmentSpan> fragments, bool partial,
                                           int64_t bytes, int streams)
    : fragments_(fragments.begin(), fragments.end()),
      sizes_(SizesOf(codec, fragments)),
      partial_(partial),
      bytes_(bytes),
      streams_(streams),
      received_(sizes_.size()),
      squares_(sizes_.size()) {
  payload_->codec = codec;
  payload_->fragments.resize(sizes_.size());
}

absl::Status ContributionAssembly::Add(FragmentPayload piece) {
  const int index = piece.index();
  if (index < 0 || index >= static_cast<int>(sizes_.size())) {
    return absl::InvalidArgumentError(absl::StrFormat("fragment %d of %d", index, sizes_.size()));
  }
  const int64_t size = sizes_[index];
  const auto length = static_cast<int64_t>(piece.payload().size());
  if (length == 0 && partial_) return absl::OkStatus();
  if (length == 0 || piece.offset() < 0 || piece.offset() > size || length > size - piece.offset()) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%d bytes from %d of fragment %d, which has %d", length, piece.offset(), index, size));
  }
  {
    MutexLock lock(mutex_);
    if (state_ == State::kTaken) return Superseded();
    // The checksum tells pieces that overlap from those that do not.
    if (length > size - received_[index] || length > bytes_ - received_bytes_) {
      return absl::InvalidArgumentError(
          absl::StrFormat("fragment %d has more bytes than the contribution said", index));
    }
    received_[index] += length;
    received_bytes_ += length;
    std::string& fragment = payload_->fragments[index];
    if (length == size) {
      fragment = std::move(*piece.mutable_payload());
    } else {
      if (fragment.empty()) fragment.resize(size);
      std::memcpy(fragment.data() + piece.offset(), piece.payload().data(), length);
    }
    if (received_[index] < size) return absl::OkStatus();
  }
  // Whole: nobody writes to it any more.
  const absl::StatusOr<double> squares = CheckFragment(*payload_, index, fragments_[index]);
  MutexLock lock(mutex_);
  if (state_ == State::kTaken) return Superseded();
  whole_.insert(index);
  if (squares.ok()) {
    squares_[index] = *squares;
  } else {
    unsound_.Update(squares.status());
  }
  return absl::OkStatus();
}

absl::StatusOr<double> ContributionAssembly::norm() const {
  MutexLock lock(mutex_);
  if (!unsound_.ok()) return unsound_;
  return NormOfChecked(squares_);
}

std::optional<std::map<int, std::string>> ContributionAssembly::TakeWhole() {
  MutexLock lock(mutex_);
  if (state_ == State::kThere) return std::nullopt;
  std::map<int, std::string> fragments;
  state_ = State::kTaken;
  changed_.NotifyAll();
  for (const int f : whole_) fragments.emplace(f, std::move(payload_->fragments[f]));
  whole_.clear();
  return fragments;
}

bool ContributionAssembly::has_whole() const {
  MutexLock lock(mutex_);
  return state_ == State::kComing && !whole_.empty();
}

void ContributionAssembly::StreamEnded(const absl::Status& status) {
  MutexLock lock(mutex_);
  ++ended_;
  failure_.Update(status);
  changed_.NotifyAll();
}

absl::Status ContributionAssembly::Missing(const std::string& what) const {
  // Of several connections one may have broken off without a word.
  return streams_ > 1 ? absl::UnavailableError(what) : absl::InvalidArgumentError(what);
}

std::optional<absl::Status> ContributionAssembly::Wait(absl::Duration timeout) {
  MutexLock lock(mutex_);
  if (ended_ < streams_ && failure_.ok() && state_ == State::kComing) changed_.WaitFor(mutex_, timeout);
  if (state_ == State::kTaken) return Superseded();
  if (!failure_.ok()) return failure_;
  if (ended_ < streams_) return std::nullopt;
  for (size_t f = 0; f < sizes_.size(); ++f) {
    if (received_[f] == sizes_[f] || (partial_ && received_[f] == 0)) continue;
    return Missing(
        absl::StrFormat("the contribution ends with %d of %d bytes of fragment %d", received_[f], sizes_[f], f));
  }
  if (received_bytes_ == bytes_) {
    state_ = State::kThere;
    return absl::OkStatus();
  }
  return Missing(absl::StrFormat("the contribution has %d bytes, and said %d", received_bytes_, bytes_));
}

int FollowSpread::Attach() {
  MutexLock lock(mutex_);
  parts_.emplace_back();
  changed_.NotifyAll();
  return static_cast<int>(parts_.size()) - 1;
}

int FollowSpread::AwaitParts(int parts, absl::Duration timeout) {
  MutexLock lock(mutex_);
  if (static_cast<int>(parts_.size()) < parts && !broken_) changed_.WaitFor(mutex_, timeout);
  return static_cast<int>(parts_.size());
}

bool FollowSpread::Put(FollowMessage message) {
  const std::string payload = std::move(*message.mutable_fragment()->mutable_payload());
  const auto size = static_cast<int64_t>(payload.size());
  int64_t done = 0;
  do {
    FollowMessage piece = message;
    MutexLock lock(mutex_);
    const int64_t length = std::min(size - done, PieceBytes(size, static_cast<int>(parts_.size())));
    piece.mutable_fragment()->set_payload(payload.substr(done, length));
    done += length;
    piece.mutable_fragment()->set_bytes_to_come(size - done);
    Number(&piece);
    Part& part = parts_[turn_++ % parts_.size()];
    while (part.queue.size() >= kPiecesQueued && !broken_) changed_.Wait(mutex_);
    if (broken_) return false;
    part.queue.push_back(std::move(piece));
    part.filled.NotifyAll();
  } while (done < size);
  return true;
}

std::optional<FollowMessage> FollowSpread::Take(int part, absl::Duration timeout) {
  MutexLock lock(mutex_);
  Part& mine = parts_[part];
  if (mine.queue.empty() && !broken_) mine.filled.WaitFor(mutex_, timeout);
  if (broken_ || mine.queue.empty()) return std::nullopt;
  FollowMessage message = std::move(mine.queue.front());
  mine.queue.pop_front();
  changed_.NotifyAll();
  return message;
}

void FollowSpread::Break() {
  MutexLock lock(mutex_);
  broken_ = true;
  changed_.NotifyAll();
  for (Part& part : parts_) part.filled.NotifyAll();
}

bool FollowSpread::broken() const {
  MutexLock lock(mutex_);
  return broken_;
}

absl::Status FollowMerge::Put(FollowMessage message, absl::Time now) {
  MutexLock lock(mutex_);
  const int64_t number = message.number();
  const auto bytes = static_cast<int64_t>(message.fragment().payload().size());
  while (status_.ok() && number > next_ && early_bytes_ + bytes > kEarlyBytesMax) changed_.Wait(mutex_);
  if (!status_.ok()) return status_;
  if (number < next_ || early_.count(number) != 0) {
    return status_ = absl::DataLossError(absl::StrFormat("message %d comes twice", number));
  }
  early_.emplace(number, Early{std::move(message), now});
  early_bytes_ += bytes;
  for (auto next = early_.find(next_); next != early_.end() && status_.ok(); next = early_.find(next_)) {
    Early early = std::move(next->second);
    early_.erase(next);
    early_bytes_ -= static_cast<int64_t>(early.message.fragment().payload().size());
    ++next_;
    status_.Update(Deliver(std::move(early.message), early.arrived));
  }
  changed_.NotifyAll();
  return status_;
}

absl::Status FollowMerge::Deliver(FollowMessage message, absl::Time arrived) {
  if (begun_.has_value()) {
    FragmentUpdate* begun = begun_->message.mutable_fragment();
    const FragmentUpdate& piece = message.fragment();
    if (!message.has_fragment() || piece.index() != begun->index() || piece.version() != begun->version() ||
        static_cast<int64_t>(piece.payload().size()) + piece.bytes_to_come() != begun->bytes_to_come()) {
      return absl::DataLossError(absl::StrFormat("the next piece of fragment %d is missing", begun->index()));
    }
    begun->mutable_payload()->append(piece.payload());
    begun->set_bytes_to_come(piece.bytes_to_come());
  } else {
    const int64_t to_come = message.fragment().bytes_to_come();
    if (to_come < 0 || to_come > kFragmentBytesMax) {
      return absl::DataLossError(
          absl::StrFormat("%d bytes of fragment %d are to come", to_come, message.fragment().index()));
    }
    begun_ = Early{std::move(message), arrived};
  }
  if (begun_->message.fragment().bytes_to_come() > 0) return absl::OkStatus();
  Early whole = *std::move(begun_);
  begun_.reset();
  return take_(std::move(whole.message), whole.arrived);
}

void FollowMerge::Break() {
  MutexLock lock(mutex_);
  status_.Update(absl::CancelledError("the stream has ended"));
  changed_.NotifyAll();
}

int64_t FollowMerge::next() const {
  MutexLock lock(mutex_);
  return next_;
}

absl::Status FollowMerge::status() const {
  MutexLock lock(mutex_);
  return status_;
}

}  // namespace wukong
