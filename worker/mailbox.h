// What a worker's threads tell one another: the heartbeat's and the link's, and the one that trains.
#ifndef WUKONG_WORKER_MAILBOX_H_
#define WUKONG_WORKER_MAILBOX_H_

#include <algorithm>
#include <cstddef>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "proto/wire.pb.h"
#include "runtime/base/clock.h"
#include "runtime/base/mutex.h"
#include "runtime/base/process_info.h"
#include "runtime/sync/types.h"
#include "worker/session.h"

namespace wukong {

struct Mailbox {
  static constexpr size_t kStepsPerBeat = 40000;  // Some 3 MB of the 4 that a message may have.
  struct Answer {
    int64_t link;  // Which link it came by (worker/attachment.h).
    Sequence sequence;
    Verdict verdict;
  };
  struct Reply {
    HeartbeatReply message;
    bool answers_holdings;  // To a heartbeat that said what this worker holds.
  };

  Mutex mutex;
  CondVar changed;

  // To the training thread.
  bool version ABSL_GUARDED_BY(mutex) = false;
  std::vector<Answer> answers ABSL_GUARDED_BY(mutex);
  std::vector<Reply> replies ABSL_GUARDED_BY(mutex);
  bool over ABSL_GUARDED_BY(mutex) = false;
  absl::Status outcome ABSL_GUARDED_BY(mutex);

  // To the heartbeat thread.
  int64_t want_samples ABSL_GUARDED_BY(mutex) = 0;
  int64_t samples_in_hand ABSL_GUARDED_BY(mutex) = 0;
  bool starving ABSL_GUARDED_BY(mutex) = false;  // No step can begin with what is in hand.
  bool idle ABSL_GUARDED_BY(mutex) = false;
  double samples_per_second ABSL_GUARDED_BY(mutex) = 0;
  MemberUsage usage ABSL_GUARDED_BY(mutex);
  std::vector<LeasedRange> released ABSL_GUARDED_BY(mutex);
  std::vector<StepRecord> steps ABSL_GUARDED_BY(mutex);
  bool leaving ABSL_GUARDED_BY(mutex) = false;
  std::optional<Holdings> holdings ABSL_GUARDED_BY(mutex);  // For the next heartbeat.
  std::optional<int64_t> asserted_term
      ABSL_GUARDED_BY(mutex);  // The heartbeat under way says what we hold, to this term.
  std::optional<MemberKey> last_parent ABSL_GUARDED_BY(mutex);  // As the last reply named it.
  // Of the group, as of the last heartbeat that left after AskWhoLives.
  bool asked_who_lives ABSL_GUARDED_BY(mutex) = false;
  std::optional<std::set<MemberKey>> lives ABSL_GUARDED_BY(mutex);

  // The run is over for this worker; the first outcome counts.
  void End(const absl::Status& status) {
    MutexLock lock(mutex);
    if (!over) outcome = status;
    over = true;
    changed.NotifyAll();
  }

  bool IsOver() {
    MutexLock lock(mutex);
    return over;
  }

  // Emulated slowness; the end of the run ends it.
  void WaitUntilOver(absl::Duration time) {
    const RealClock clock;
    const absl::Time until = clock.Now() + time;
    MutexLock lock(mutex);
    while (!over && clock.Now() < until) changed.WaitFor(mutex, until - clock.Now());
  }

  // Hands the heartbeat what there is to say, once.
  void Fill(HeartbeatRequest* request) {
    MutexLock lock(mutex);
    request->set_want_samples(want_samples);
    request->set_samples_in_hand(samples_in_hand);
    request->set_idle(idle);
    request->set_samples_per_second(samples_per_second);
    *request->mutable_usage() = usage;
    request->mutable_usage()->set_cpu_seconds(ProcessCpuSeconds());
    request->mutable_usage()->set_peak_memory_bytes(PeakMemoryBytes());
    request->set_leaving(leaving);
    for (const LeasedRange& range : released) *request->add_released() = RangeToProto(range);
    released.clear();
    // The rest with the next ones: a message has an upper bound, and a coordinator may have been away for long.
    const auto end = steps.begin() + static_cast<std::ptrdiff_t>(std::min(steps.size(), kStepsPerBeat));
    for (auto step = steps.begin(); step != end; ++step) *request->add_steps() = std::move(*step);
    steps.erase(steps.begin(), end);
    asked_who_lives = true;
    asserted_term.reset();
    if (holdings.has_value()) {
      asserted_term = holdings->term();
      *request->mutable_holdings() = *std::move(holdings);
      holdings.reset();
    }
  }

  void TakeReply(const HeartbeatReply& reply) {
    if (reply.finish()) {
      End(StatusOfFinish(reply));
      return;
    }
    MutexLock lock(mutex);
    if (reply.granted_size() > 0) want_samples = 0;
    last_parent = MemberKey{MemberId(reply.parent_member()), Incarnation(reply.parent_incarnation())};
    if (asked_who_lives && reply.group_size() > 0) {
      lives.emplace();
      for (const Life& life : reply.group()) lives->insert({MemberId(life.member()), Incarnation(life.incarnation())});
    }
    // A coordinator that asks (again) has not taken what was said, and one of another term has not understood it.
    const bool answers_holdings = asserted_term == reply.term() && !reply.assert_holdings();
    asserted_term.reset();
    replies.push_back({reply, answers_holdings});
    changed.NotifyAll();
  }

  // The coordinator names another aggregator than `parent` by now, or none.
  bool ParentIsGone(MemberKey parent) {
    MutexLock lock(mutex);
    return last_parent.has_value() && !(*last_parent == parent);
  }

  // What the coordinator said of the group so far may be older than the group is.
  void AskWhoLives() {
    MutexLock lock(mutex);
    asked_who_lives = false;
    lives.reset();
  }

  // The first of `ranks` that the coordinator takes for gone, or that has another life by now; none before it was
  // asked.
  std::optional<int> LostRank(const std::vector<MemberKey>& ranks) {
    MutexLock lock(mutex);
    if (!lives.has_value()) return std::nullopt;
    for (size_t rank = 0; rank < ranks.size(); ++rank) {
      if (lives->count(ranks[rank]) == 0) return static_cast<int>(rank);
    }
    return std::nullopt;
  }
};

}  // namespace wukong

#endif  // WUKONG_WORKER_MAILBOX_H_
