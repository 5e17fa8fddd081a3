// Over how many TCP connections a link's bulk is spread. Pure.
//
// One connection carries at most its window per round trip, and where segments are lost with probability p at most
// about MSS / RTT * 1.22 / sqrt(p) (Mathis, Semke, Mahdavi and Ott 1997); n connections carry n times that, as long as
// the link has room. The round trip gives the first guess. Whether more would help, or fewer do as well, only trying
// says: now and then a transfer goes over twice or half as many, and what was faster stays.
#ifndef WUKONG_RUNTIME_SYNC_STREAM_TUNER_H_
#define WUKONG_RUNTIME_SYNC_STREAM_TUNER_H_

#include <cstdint>
#include <map>

#include "absl/time/time.h"

namespace wukong {

// What a call that carries so many bytes may take: `base`, and as long as 64 kbit/s need for them.
inline absl::Duration TransferTimeout(absl::Duration base, int64_t bytes) {
  return base + absl::Seconds(static_cast<double>(bytes) / (8 << 10));
}

// What goes over several connections is cut into pieces no smaller than this.
inline constexpr int64_t kPieceBytesMin = 2 << 10;

class StreamTuner {
 public:
  // `max` in 1..64. The first guess is one connection for each 10 ms of `round_trip`, rounded up to a power of two.
  StreamTuner(int max, absl::Duration round_trip);

  // What the next transfer is to use; a power of two, or `max`.
  int streams() const { return trial_ != 0 ? trial_ : streams_; }

  // A transfer of `bytes` over `streams` connections took `took` from its first byte to its end. Those too short to
  // tell anything are left out.
  void Observe(int streams, int64_t bytes, absl::Duration took);
  // A transfer over `streams` connections broke off: of many, each may have too little of the link to stay alive.
  void Broke(int streams);

 private:
  int More() const;
  int Fewer() const;

  const int max_;
  int streams_;
  int trial_ = 0;               // Tried in place of streams_; 0: nothing is being tried.
  bool upwards_ = true;         // Direction of the next trial.
  int until_trial_ = 1;         // Transfers.
  int patience_ = 1;            // What until_trial_ begins with; doubles when a trial changes nothing.
  std::map<int, double> rate_;  // Bytes per second, per number of streams: a moving average.
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_SYNC_STREAM_TUNER_H_
