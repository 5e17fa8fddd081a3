// Bytes in order, in blocks of 64 KiB: filled by recv() and emptied by sendmsg() without a copy in between.
#ifndef WUKONG_RUNTIME_FAULT_BYTE_QUEUE_H_
#define WUKONG_RUNTIME_FAULT_BYTE_QUEUE_H_

#include <sys/uio.h>

#include <algorithm>
#include <cstddef>
#include <deque>
#include <memory>
#include <vector>

#include "absl/types/span.h"

namespace wukong {

// Blocks to use again; keeps at most a few, since a burst must not hold memory for ever.
class BlockPool {
 public:
  static constexpr size_t kBlockBytes = 64 << 10;
  using Block = std::unique_ptr<char[]>;

  Block Take() {
    // Not value-initialised: recv() writes before anything reads.
    if (free_.empty()) return Block(new char[kBlockBytes]);
    Block block = std::move(free_.back());
    free_.pop_back();
    return block;
  }
  void Give(Block block) {
    if (free_.size() < kKept) free_.push_back(std::move(block));
  }

 private:
  static constexpr size_t kKept = 32;
  std::vector<Block> free_;
};

// Not thread-safe. `pool` outlives the queue's use; Clear() gives the blocks back.
class ByteQueue {
 public:
  // Room at the end for at most `most` bytes (> 0), never empty; Commit says how many were filled.
  absl::Span<char> Room(BlockPool& pool, size_t most) {
    // A nearly full block would make a short, dear read.
    if (pieces_.empty() || BlockPool::kBlockBytes - pieces_.back().end < kRoomMin) {
      pieces_.push_back({pool.Take(), 0, 0});
    }
    Piece& piece = pieces_.back();
    return absl::MakeSpan(piece.block.get() + piece.end, std::min(most, BlockPool::kBlockBytes - piece.end));
  }
  void Commit(size_t bytes) { pieces_.back().end += bytes; }

  // Up to `most` bytes from the front, in at most `count` pieces; the number of pieces.
  size_t Gather(size_t most, iovec* out, size_t count) {
    size_t used = 0;
    for (auto piece = pieces_.begin(); piece != pieces_.end() && used < count && most > 0; ++piece) {
      const size_t bytes = std::min(most, piece->end - piece->begin);
      if (bytes == 0) continue;
      out[used++] = {piece->block.get() + piece->begin, bytes};
      most -= bytes;
    }
    return used;
  }
  void Pop(BlockPool& pool, size_t bytes) {
    while (!pieces_.empty()) {
      Piece& piece = pieces_.front();
      const size_t here = std::min(bytes, piece.end - piece.begin);
      piece.begin += here;
      bytes -= here;
      if (piece.begin < piece.end) return;
      pool.Give(std::move(piece.block));
      pieces_.pop_front();
    }
  }
  void Clear(BlockPool& pool) {
    for (Piece& piece : pieces_) pool.Give(std::move(piece.block));
    pieces_.clear();
  }

 private:
  static constexpr size_t kRoomMin = 8 << 10;
  struct Piece {
    BlockPool::Block block;
    size_t begin;
    size_t end;
  };
  std::deque<Piece> pieces_;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_FAULT_BYTE_QUEUE_H_
