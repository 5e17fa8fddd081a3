#include "runtime/storage/log.h"

#include <isa-l/crc.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "glog/logging.h"
#include "runtime/base/mutation.h"

namespace wukong {
namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "frames are copied as the machine holds them");

constexpr int kLogFormat = 1;
constexpr size_t kHeadBytes = 24;  // Of a frame: length, crc, index, synced.
constexpr size_t kCrcFrom = 8;     // The CRC covers a frame from here to its end.
// One write takes about this much: few writes, and no copy of all that is pending.
constexpr size_t kWriteBytes = 8 << 20;

uint32_t Crc32c(absl::string_view data) {
  // At most kHeadBytes + kLogRecordBytesMax, which fits ISA-L's int; it does not change the data.
  auto* bytes = reinterpret_cast<unsigned char*>(const_cast<char*>(data.data()));
  return ~crc32_iscsi(bytes, static_cast<int>(data.size()), 0xFFFFFFFFu);
}

template <typename T>
T Load(absl::string_view file, int64_t offset) {
  T value;
  std::memcpy(&value, file.data() + offset, sizeof(value));
  return value;
}

void AppendFrame(int64_t index, int64_t synced, absl::string_view payload, std::string* out) {
  const size_t begin = out->size();
  const uint32_t length = static_cast<uint32_t>(payload.size());
  out->append(kHeadBytes, '\0');
  out->append(payload.data(), payload.size());
  char* head = out->data() + begin;
  std::memcpy(head, &length, sizeof(length));
  std::memcpy(head + 8, &index, sizeof(index));
  std::memcpy(head + 16, &synced, sizeof(synced));
  const uint32_t crc = Crc32c(absl::string_view(*out).substr(begin + kCrcFrom));
  std::memcpy(head + 4, &crc, sizeof(crc));
}

struct Frame {
  int64_t index = 0;
  int64_t synced = 0;
  absl::string_view payload;
  int64_t end = 0;  // Offset of what follows.
};

// Why there is no whole frame at `offset`; empty when there is one.
std::string ParseFrame(absl::string_view file, int64_t offset, Frame* frame) {
  const size_t left = file.size() - static_cast<size_t>(offset);
  if (left == 0) return "the file ends";
  if (left < kHeadBytes) return absl::StrCat(left, " bytes are left and a frame begins with ", kHeadBytes);
  const size_t length = Load<uint32_t>(file, offset);
  if (length > static_cast<size_t>(kLogRecordBytesMax) || length > left - kHeadBytes) {
    return absl::StrCat("its length is ", length, " bytes and the file has ", left - kHeadBytes, " left");
  }
  const uint32_t crc = Load<uint32_t>(file, offset + 4);
  const uint32_t computed = Crc32c(file.substr(static_cast<size_t>(offset) + kCrcFrom, kHeadBytes - kCrcFrom + length));
  if (crc != computed) return absl::StrFormat("its CRC is %08x and its bytes give %08x", crc, computed);
  frame->index = Load<int64_t>(file, offset + 8);
  frame->synced = Load<int64_t>(file, offset + 16);
  frame->payload = file.substr(static_cast<size_t>(offset) + kHeadBytes, length);
  frame->end = offset + static_cast<int64_t>(kHeadBytes + length);
  return "";
}

// A whole frame behind `offset`, where record `index` does not check out, that was made when the bytes at `offset` were
// on the disk. Index and synced are looked at first: hardly anything else passes, so no CRC of much is computed in
// vain.
std::optional<Frame> FindProofOfDamage(absl::string_view file, int64_t offset, int64_t index) {
  const int64_t size = static_cast<int64_t>(file.size());
  const int64_t head = static_cast<int64_t>(kHeadBytes);
  for (int64_t at = offset + 1; at + head <= size; ++at) {
    const int64_t there = Load<int64_t>(file, at + 8), synced = Load<int64_t>(file, at + 16);
    if (there < index || there - index > (size - offset) / head || synced <= offset || synced > at) continue;
    Frame frame;
    if (ParseFrame(file, at, &frame).empty()) return frame;
  }
  return std::nullopt;
}

std::string SegmentPath(const std::string& directory, int64_t first) {
  return absl::StrFormat("%s/log-%020d.seg", directory, first);
}

absl::StatusOr<std::deque<int64_t>> ListSegments(FileSystem* files, const std::string& directory) {
  const auto names = files->List(directory);
  if (!names.ok()) return names.status();
  std::deque<int64_t> segments;  // Sorted, as the names are: their numbers have leading zeros.
  for (const std::string& name : *names) {
    absl::string_view digits = name;
    int64_t first = 0;
    if (absl::ConsumePrefix(&digits, "log-") && absl::ConsumeSuffix(&digits, ".seg") && digits.size() == 20 &&
        std::all_of(digits.begin(), digits.end(), absl::ascii_isdigit) && absl::SimpleAtoi(digits, &first) &&
        first > 0) {
      segments.push_back(first);
    }
  }
  return segments;
}

absl::Status Damage(const std::string& path, int64_t offset, absl::string_view what) {
  return absl::DataLossError(absl::StrCat("the log is damaged at byte ", offset, " of ", path, " (", what,
                                          "); what follows cannot be trusted. Restore the run directory from a copy, "
                                          "or resume from an exported checkpoint"));
}

// Reads the head of a segment into the summary.
absl::Status CheckIdentity(const std::string& path, const Frame& frame, LogSummary* summary) {
  LogIdentity identity;
  if (frame.index != 0 || !identity.ParseFromArray(frame.payload.data(), static_cast<int>(frame.payload.size())) ||
      identity.format() < 1) {
    return Damage(
        path, 0,
        absl::StrCat("the segment's head was expected, and there is a frame numbered ", frame.index, " that is none"));
  }
  if (identity.format() > kLogFormat) {
    return absl::FailedPreconditionError(absl::StrCat(path, " was written by a newer wukong (format ",
                                                      identity.format(), ", this one reads ", kLogFormat,
                                                      "). Use that version, or another run directory"));
  }
  if (summary->identity.format() != 0 && summary->identity.run() != identity.run()) {
    return absl::FailedPreconditionError(absl::StrCat(
        path, " belongs to run ", identity.run(), ", and the segments before it to run ", summary->identity.run(),
        ": files of two runs are in one directory. Move those of one of them away"));
  }
  summary->identity = std::move(identity);
  return absl::OkStatus();
}

// `next`: the first record of the next segment; 0 when this is the last.
absl::Status ReadSegment(FileSystem* files, const std::string& path, int64_t first, int64_t next, int64_t from,
                         const std::function<absl::Status(int64_t, absl::string_view)>& use, LogSummary* summary) {
  const auto contents = files->Read(path);
  if (!contents.ok()) return contents.status();
  const absl::string_view file = *contents;
  const int64_t size = static_cast<int64_t>(file.size());
  int64_t offset = 0, index = first, proven = first - 1;
  Frame frame;
  std::string fault = ParseFrame(file, 0, &frame);
  const auto damage = [&path, &offset, &index](absl::string_view what) {
    return Damage(path, offset,
                  absl::StrCat(offset == 0 ? "the segment's head" : absl::StrCat("record ", index), ": ", what));
  };
  if (fault.empty()) {
    absl::Status status = CheckIdentity(path, frame, summary);
    if (!status.ok()) return status;
    for (offset = frame.end; next == 0 ? offset < size : index < next; ++index, offset = frame.end) {
      fault = ParseFrame(file, offset, &frame);
      if (!fault.empty()) break;
      if (frame.index != index || frame.synced > offset) {
        return damage(absl::StrCat("a frame numbered ", frame.index, " which says that ", frame.synced,
                                   " bytes before it are on the disk"));
      }
      if (frame.synced == offset) proven = index - 1;  // The first of what one Sync wrote.
      if (next == 0 && frame.end == size && Mutated("log.cuts_one_record_too_many")) break;
      if (index < from) continue;
      status = use(index, frame.payload);
      if (!status.ok()) return status;
    }
  }
  if (!fault.empty() && next != 0) {
    return damage(absl::StrCat(fault, "; the next segment begins only with record ", next));
  }
  if (!fault.empty()) {
    const std::optional<Frame> proof = FindProofOfDamage(file, offset, index);
    if (proof.has_value()) {
      return damage(absl::StrCat(fault, "; record ", proof->index, " was written when everything up to byte ",
                                 proof->synced, " was on the disk"));
    }
    summary->torn_bytes = size - offset;
  }
  summary->next_index = index;
  summary->proven_index = next == 0 ? proven : index - 1;
  summary->last_segment_bytes = offset;
  summary->bytes += offset;
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LogSummary> ReadLog(FileSystem* files, const std::string& directory, int64_t from,
                                   const std::function<absl::Status(int64_t index, absl::string_view record)>& use) {
  const auto listed = ListSegments(files, directory);
  if (!listed.ok()) return listed.status();
  const std::deque<int64_t>& segments = *listed;
  if (segments.empty()) return absl::NotFoundError("there is no log in " + directory);
  LogSummary summary;
  summary.first_index = segments.front();
  if (from > 0 && from < summary.first_index) {
    return absl::OutOfRangeError(absl::StrCat("the log in ", directory, " begins with record ", summary.first_index,
                                              ", and record ", from,
                                              " was asked for: older segments were removed. A snapshot of record ",
                                              summary.first_index - 1, " or a later one is needed"));
  }
  for (size_t i = 0; i < segments.size(); ++i) {
    const bool last = i + 1 == segments.size();
    const int64_t next = last ? 0 : segments[i + 1];
    summary.last_segment = SegmentPath(directory, segments[i]);
    ++summary.segments;
    if (!last && next <= from) {
      const auto size = files->Size(summary.last_segment);
      if (!size.ok()) return size.status();
      summary.bytes += *size;
      continue;
    }
    absl::Status status = ReadSegment(files, summary.last_segment, segments[i], next, from, use, &summary);
    if (!status.ok()) return status;
  }
  if (from > summary.next_index) {
    return Damage(
        summary.last_segment, summary.last_segment_bytes,
        absl::StrCat("it ends with record ", summary.next_index - 1, ", and a snapshot holds the records up to ",
                     from - 1, ": confirmed records are missing"));
  }
  return summary;
}

LogWriter::LogWriter(FileSystem* files, std::string directory, LogIdentity identity, const LogSummary& end,
                     const LogOptions& options)
    : files_(files),
      directory_(std::move(directory)),
      identity_(std::move(identity)),
      options_(options),
      next_index_(end.next_index),
      durable_index_(end.last_segment.empty() ? end.next_index - 1 : end.proven_index) {}

// What was not synced may be lost, as the callers of Append know.
LogWriter::~LogWriter() = default;

absl::StatusOr<std::unique_ptr<LogWriter>> LogWriter::Open(FileSystem* files, const std::string& directory,
                                                           const LogIdentity& identity, const LogSummary& end,
                                                           const LogOptions& options) {
  LogIdentity ours = identity;
  ours.set_format(kLogFormat);
  std::unique_ptr<LogWriter> writer(new LogWriter(files, directory, std::move(ours), end, options));
  absl::Status status = writer->Begin(end);
  if (!status.ok()) return status;
  return writer;
}

absl::Status LogWriter::Begin(const LogSummary& end) {
  MutexLock io(io_mutex_);
  if (end.last_segment.empty()) {
    absl::Status status = files_->MakeDirectories(directory_);
    if (!status.ok()) return status;
  }
  auto segments = ListSegments(files_, directory_);
  if (!segments.ok()) return segments.status();
  segments_ = *std::move(segments);
  if (end.last_segment.empty() != segments_.empty()) {
    return absl::AbortedError(
        absl::StrCat("the log in ", directory_, " was to be ",
                     segments_.empty() ? "continued, and it is gone" : "begun, and there is one"));
  }
  if (!segments_.empty()) {
    // The process that wrote these may have died before its sync, or after a failed one: then they are in the page
    // cache only, and a sync now would not tell. A new segment with a copy of them does not depend on it.
    std::deque<Pending> unproven;
    const auto again =
        ReadLog(files_, directory_, end.proven_index + 1, [&unproven](int64_t index, absl::string_view record) {
          unproven.push_back(Pending{index, std::string(record)});
          return absl::OkStatus();
        });
    if (!again.ok()) return again.status();
    unsynced_ = std::move(unproven);
    if (again->next_index != end.next_index) {
      return absl::AbortedError(absl::StrCat("the log in ", directory_, " ended before record ", end.next_index,
                                             " and ends before record ", again->next_index,
                                             " now: another process writes to it"));
    }
  }
  return WriteUnsynced();
}

int64_t LogWriter::Append(std::string record) {
  CHECK_LE(record.size(), static_cast<size_t>(kLogRecordBytesMax));
  MutexLock lock(mutex_);
  pending_.push_back(Pending{next_index_, std::move(record)});
  return next_index_++;
}

absl::Status LogWriter::Sync() {
  const int64_t wanted = next_index() - 1;
  MutexLock io(io_mutex_);
  {
    MutexLock lock(mutex_);
    if (durable_index_ >= wanted) return absl::OkStatus();  // Another caller's sync served this one while it waited.
    std::move(pending_.begin(), pending_.end(), std::back_inserter(unsynced_));
    pending_.clear();
  }
  return WriteUnsynced();
}

absl::Status LogWriter::WriteUnsynced() {
  if (file_ != nullptr && segment_bytes_ < options_.segment_bytes) return ContinueSegment();
  file_ = nullptr;
  absl::Status status = BeginSegment();
  // It must not keep space from others. An error here changes nothing: the next attempt removes it, or says why not.
  if (!status.ok()) files_->Remove(directory_ + "/log.tmp").IgnoreError();
  return status;
}

absl::Status LogWriter::ContinueSegment() {
  int64_t end = segment_bytes_;
  absl::Status status = AppendUnsynced(file_.get(), &end);
  if (!status.ok()) {
    if (Mutated("log.keeps_a_partial_write")) return status;
    if (!file_->Truncate(segment_bytes_).ok()) file_ = nullptr;
    return status;
  }
  if (options_.sync && !Mutated("log.skip_fsync")) status = file_->Sync();
  if (!status.ok()) {
    if (Mutated("log.trusts_a_failed_fsync")) return status;
    file_ = nullptr;  // What reached the disk is unknown, and a later sync would not say.
    return status;
  }
  ConfirmUnsynced(end - segment_bytes_);
  segment_bytes_ = end;
  return absl::OkStatus();
}

absl::Status LogWriter::BeginSegment() {
  const int64_t first = durable_index() + 1;
  const std::string temporary = directory_ + "/log.tmp";
  absl::Status status = files_->Remove(temporary);
  if (!status.ok() && !absl::IsNotFound(status)) return status;
  auto file = files_->Create(temporary);
  if (!file.ok()) return file.status();
  std::string head;
  AppendFrame(0, 0, identity_.SerializeAsString(), &head);
  status = (*file)->Append(head);
  // Before any record, which then says that the head is on the disk.
  if (status.ok() && options_.sync) status = (*file)->Sync();
  int64_t end = static_cast<int64_t>(head.size());
  if (status.ok()) status = AppendUnsynced(file->get(), &end);
  if (status.ok() && options_.sync && !unsynced_.empty()) status = (*file)->Sync();
  // A segment of the same name has no record that is not in this one as well.
  if (status.ok()) status = files_->Rename(temporary, SegmentPath(directory_, first));
  if (status.ok() && !Mutated("log.skip_directory_sync")) status = files_->SyncDirectory(directory_);
  if (!status.ok()) return status;
  if (segments_.empty() || segments_.back() != first) segments_.push_back(first);
  file_ = *std::move(file);
  segment_bytes_ = end;
  ConfirmUnsynced(end);
  return absl::OkStatus();
}

absl::Status LogWriter::AppendUnsynced(WritableFile* file, int64_t* end) const {
  const int64_t synced = options_.sync ? *end : 0;
  std::string frames;
  for (const Pending& pending : unsynced_) {
    AppendFrame(pending.index, synced, pending.record, &frames);
    if (frames.size() < kWriteBytes && &pending != &unsynced_.back()) continue;
    absl::Status status = file->Append(frames);
    if (!status.ok()) return status;
    *end += static_cast<int64_t>(frames.size());
    frames.clear();
  }
  return absl::OkStatus();
}

void LogWriter::ConfirmUnsynced(int64_t bytes) {
  MutexLock lock(mutex_);
  if (!unsynced_.empty()) durable_index_ = unsynced_.back().index;
  unsynced_.clear();
  bytes_written_ += bytes;
}

int64_t LogWriter::durable_index() const {
  MutexLock lock(mutex_);
  return durable_index_;
}

int64_t LogWriter::next_index() const {
  MutexLock lock(mutex_);
  return next_index_;
}

int64_t LogWriter::bytes_written() const {
  MutexLock lock(mutex_);
  return bytes_written_;
}

absl::Status LogWriter::StartSegment() {
  MutexLock io(io_mutex_);
  if (segments_.back() == durable_index() + 1) return absl::OkStatus();  // It has no record yet.
  file_ = nullptr;
  return WriteUnsynced();
}

absl::Status LogWriter::RemoveBefore(int64_t index) {
  MutexLock io(io_mutex_);
  if (Mutated("log.removes_what_is_needed")) index = next_index();
  while (segments_.size() >= 2 && segments_[1] <= index) {
    absl::Status status = files_->Remove(SegmentPath(directory_, segments_[0]));
    // It is gone when an earlier call failed after removing it. Synced one by one: no gap may ever be on the disk.
    if (status.ok() || absl::IsNotFound(status)) status = files_->SyncDirectory(directory_);
    if (!status.ok()) return status;
    segments_.pop_front();
  }
  return absl::OkStatus();
}

}  // namespace wukong
