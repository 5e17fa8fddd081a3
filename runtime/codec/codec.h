// How numbers are written on the wire. A codec is a pure function of its input: no state, any thread.
#ifndef WUKONG_RUNTIME_CODEC_CODEC_H_
#define WUKONG_RUNTIME_CODEC_CODEC_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "proto/job.pb.h"
#include "runtime/model/parameter_layout.h"

namespace wukong {

class Codec {
 public:
  virtual ~Codec() = default;
  virtual CodecKind kind() const = 0;

  // Bytes of the payload of `count` values; exact, since every codec has a fixed rate.
  virtual size_t EncodedBytes(size_t count) const = 0;

  // Replaces `payload`. INVALID_ARGUMENT when a value is NaN or infinite (or rounds to infinity), naming its index; the
  // payload is then empty.
  virtual absl::Status Encode(absl::Span<const float> values, std::string* payload) const = 0;

  // Fills all of `values`. INVALID_ARGUMENT when the payload is not exactly EncodedBytes(values.size()) long, holds a
  // NaN or an infinity, or is not as any encoder writes it (codes without a level, bits of no value, positions that do
  // not rise); the contents of `values` are then unspecified. Never reads outside the payload.
  virtual absl::Status Decode(absl::string_view payload, absl::Span<float> values) const = 0;

  // Largest |decode(encode(x)) - x| for values whose largest magnitude is `magnitude`. For topk that is `magnitude`: a
  // value that is not kept is left out as a whole. The Euclidean norm of what is left out is never above that of the
  // values, whatever the codec, so that error feedback delivers everything in the end.
  virtual double ErrorBound(double magnitude) const = 0;
};

// The codec of a fragment where a job says `kind`, which must be specified; anything else is a bug of the caller. MIXED
// is int3 for feed-forward matrices and int4 for the rest, any other kind is itself.
std::unique_ptr<Codec> MakeCodec(CodecKind kind, const FragmentSpan& span);
// The same for any fragment; `kind` is not MIXED.
std::unique_ptr<Codec> MakeCodec(CodecKind kind);

// Bytes of the payloads of `fragments`.
size_t EncodedBytes(CodecKind kind, absl::Span<const FragmentSpan> fragments);

// Adds what earlier encodings of the same vector left out before encoding it again (error feedback, Seide et al. 2014).
// Not needed for parameters, whose progress theta - base keeps the remainder by itself (runtime/sync/replica.h); it is
// for vectors made anew at every step, such as gradients. Not thread-safe.
class ErrorFeedback {
 public:
  // For vectors of `size` values, of which Encode gets any slice.
  explicit ErrorFeedback(size_t size);

  // Encodes values + residual[offset, offset + values.size()) and keeps the new residual. On an error the residual is
  // as before.
  absl::Status Encode(const Codec& codec, size_t offset, absl::Span<const float> values, std::string* payload);

  void Clear();
  absl::Span<const float> residual() const { return residual_; }

 private:
  std::vector<float> residual_;
  std::vector<float> scratch_;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_CODEC_CODEC_H_
