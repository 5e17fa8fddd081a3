// The root's log: numbered records in segment files, each length-framed and checked by CRC32C.
//
//   DIR/log-00000000000000000001.seg     named by the number of its first record
//   frame = u32 length | u32 crc | u64 index | u64 synced | payload      little-endian; `length` of the payload
//     crc: CRC32C over index, synced and payload. `synced`: bytes of this segment that were known to be on the disk
//     when the frame was made; damage below it cannot be a torn write.
//   Each segment begins with a frame of index 0 whose payload is a serialized LogIdentity (proto/log.proto).
//
// What is after the last whole record of the last segment and was not synced is a torn tail: it is cut, and reported.
// Everything else that does not check out is damage, and nothing is read beyond it. Damage to what the very last Sync
// wrote cannot be told from a torn tail: it is cut, and reported as one.
//
// A segment ends before the number that the next segment is named by: what follows in its file was never confirmed, and
// is ignored. So a file that cannot be trusted any more (a failed fsync, another process's tail) is never written to
// again: a new segment begins with the first record that is not known to be on the disk. It is written as log.tmp, and
// gets its name when it is on the disk with all the records that it takes over.
#ifndef WUKONG_RUNTIME_STORAGE_LOG_H_
#define WUKONG_RUNTIME_STORAGE_LOG_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/log.pb.h"
#include "runtime/base/mutex.h"
#include "runtime/storage/file_system.h"

namespace wukong {

// What reading found.
struct LogSummary {
  LogIdentity identity;            // Format 0 when no segment that was read has a whole head.
  int64_t first_index = 1;         // Of the oldest record that is there.
  int64_t next_index = 1;          // One past the last.
  int64_t proven_index = 0;        // The last that was on the disk for certain when what follows it was written.
  std::string last_segment;        // Its path; empty when there is no segment.
  int64_t last_segment_bytes = 0;  // Up to the end of its last whole record.
  int64_t torn_bytes = 0;          // After that; to be cut.
  int64_t bytes = 0;               // Of all segments, without what is torn.
  int segments = 0;
};

// Calls `use` with every record from `from` on (0: from the oldest there is), in order; an error of `use` ends the
// reading and is returned. Segments wholly below `from` are not looked into. Writes nothing. NOT_FOUND: no log in
// `directory`. DATA_LOSS: damage, or the log ends before `from` - 1; the message names the file and offset and says
// what to do. FAILED_PRECONDITION: a newer format, or segments of different runs. OUT_OF_RANGE: record `from` is older
// than the log.
absl::StatusOr<LogSummary> ReadLog(FileSystem* files, const std::string& directory, int64_t from,
                                   const std::function<absl::Status(int64_t index, absl::string_view record)>& use);

// A longer length in a file is damage; a longer record is a bug of the caller.
inline constexpr int64_t kLogRecordBytesMax = int64_t{1} << 30;
// Of the payload of one contribution: beside it are its header and ranges.
inline constexpr int64_t kContributionBytesMax = kLogRecordBytesMax - (int64_t{16} << 20);

struct LogOptions {
  int64_t segment_bytes = 64 << 20;  // A new segment begins beyond this.
  bool sync = true;                  // False: for measuring what it costs; nothing survives a loss of power.
};

// Thread-safe: any thread appends, any thread syncs; one sync serves all records appended before it.
class LogWriter {
 public:
  // Continues after `end`, which ReadLog returned: cuts the torn tail, and makes sure that every record which was read
  // is on the disk, by writing again those that are not proven to be. With no segment there, makes the directory and
  // begins the log with record `end.next_index`. The caller holds the directory's lock. ABORTED: the log is not as
  // `end` says.
  static absl::StatusOr<std::unique_ptr<LogWriter>> Open(FileSystem* files, const std::string& directory,
                                                         const LogIdentity& identity, const LogSummary& end,
                                                         const LogOptions& options);
  ~LogWriter();

  // Numbers the record and keeps it until it is on the disk. No I/O. At most kLogRecordBytesMax.
  int64_t Append(std::string record);

  // Everything appended before the call is on the disk. On an error nothing is lost and nothing is trusted: the same
  // records are written again by the next Sync. After a failed write the partial tail is cut away; after a failed fsync
  // the segment is left as it was last known good, and a new one is begun with every record that was not known durable.
  // RESOURCE_EXHAUSTED: no space. Never gives up by itself.
  absl::Status Sync();

  // Number of the last record that is on the disk.
  int64_t durable_index() const;
  int64_t next_index() const;
  int64_t bytes_written() const;  // By this writer, and on the disk; with the frames.

  // Ends the current segment: begins the next one, with the first record that is not on the disk. After an error the
  // next Sync that has records to write begins it.
  absl::Status StartSegment();
  // Removes the segments whose every record is below `index`, the oldest first, but never the last segment.
  absl::Status RemoveBefore(int64_t index);

 private:
  struct Pending {
    int64_t index;
    std::string record;
  };
  LogWriter(FileSystem* files, std::string directory, LogIdentity identity, const LogSummary& end,
            const LogOptions& options);
  absl::Status Begin(const LogSummary& end);
  // What Sync does, by whoever holds io_mutex_: all of unsynced_ into the current segment or a new one.
  absl::Status WriteUnsynced() ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mutex_);
  absl::Status ContinueSegment() ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mutex_);
  absl::Status BeginSegment() ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mutex_);
  // Appends the frames of unsynced_, the first of them at byte `*end`, and moves `*end` behind the last. Syncs nothing.
  absl::Status AppendUnsynced(WritableFile* file, int64_t* end) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mutex_);
  void ConfirmUnsynced(int64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(io_mutex_);

  FileSystem* const files_;
  const std::string directory_;
  const LogIdentity identity_;
  const LogOptions options_;

  // Held during I/O, so that one writes and the others wait; taken before mutex_.
  Mutex io_mutex_;
  std::unique_ptr<WritableFile> file_ ABSL_GUARDED_BY(io_mutex_);  // Null: the next write begins a segment.
  int64_t segment_bytes_ ABSL_GUARDED_BY(io_mutex_) = 0;           // Of file_, all on the disk.
  std::deque<int64_t> segments_ ABSL_GUARDED_BY(io_mutex_);        // Their first records, rising.
  std::deque<Pending> unsynced_ ABSL_GUARDED_BY(io_mutex_);        // From durable_index_ + 1 on; pending_ follows.

  // Never held during I/O: Append needs it.
  mutable Mutex mutex_;
  std::deque<Pending> pending_ ABSL_GUARDED_BY(mutex_);
  int64_t next_index_ ABSL_GUARDED_BY(mutex_);
  int64_t durable_index_ ABSL_GUARDED_BY(mutex_);
  int64_t bytes_written_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_STORAGE_LOG_H_
