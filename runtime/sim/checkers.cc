#include "runtime/sim/checkers.h"

#include <algorithm>
#include <tuple>

#include "absl/strings/str_format.h"
#include "proto/wire.pb.h"
#include "runtime/sync/types.h"

namespace wukong {
namespace {

// Each sample is committed exactly once: never twice here; that all of them are is the end's to say.
class CommittedOnce final : public Checker {
 public:
  const char* name() const override { return "I1"; }
  void See(const TapeEvent& event) override {
    if (event.kind != TapeEvent::kCommitted) return;
    const int64_t begin = event.values[0], end = event.values[1];
    auto next = committed_.upper_bound(begin);
    const bool before = next != committed_.begin() && std::prev(next)->second > begin;
    if (before || (next != committed_.end() && next->first < end)) {
      Violated(event, absl::StrFormat("samples %d to %d are committed a second time", begin, end));
      return;
    }
    committed_[begin] = end;
  }

 private:
  std::map<int64_t, int64_t> committed_;  // By begin.
};

// A version is one set of bits for ever, and rises at each node.
class VersionsOnlyRise final : public Checker {
 public:
  const char* name() const override { return "I4"; }
  void See(const TapeEvent& event) override {
    if (event.kind != TapeEvent::kPublished) return;
    const auto [known, is_new] = checksums_.emplace(std::make_pair(event.who, event.values[0]), event.values[1]);
    if (!is_new && known->second != event.values[1]) {
      Violated(event, absl::StrFormat("version %d is given to other parameters than before", event.values[0]));
    }
    int64_t& last = last_[event.who];
    if (event.values[0] < last) Violated(event, absl::StrFormat("version %d after %d", event.values[0], last));
    last = event.values[0];
  }

 private:
  std::map<std::pair<std::string, int64_t>, int64_t> checksums_;
  std::map<std::string, int64_t> last_;
};

class StalenessIsBounded final : public Checker {
 public:
  const char* name() const override { return "I5"; }
  void See(const TapeEvent& event) override {
    // At the root, where contributions reach the model. A region looks when it accepts: what then waits for its quorum
    // can grow older, and the root judges the whole by its oldest step.
    if (event.who != "root" || event.kind != TapeEvent::kMerged || event.values[2] <= event.values[3]) return;
    Violated(event, absl::StrFormat("contribution %d of member %d is merged %d versions late, the bound is %d",
                                    event.values[1], event.values[0], event.values[2], event.values[3]));
  }
};

// The same contribution gets the same answer, however often it comes.
class RepeatsGetTheFirstAnswer final : public Checker {
 public:
  const char* name() const override { return "I7"; }
  void See(const TapeEvent& event) override {
    if (event.kind != TapeEvent::kAnswered) return;
    const auto verdict = static_cast<Verdict>(event.values[3]);
    if (verdict == VERDICT_FENCED) return;  // Who is fenced is told so whatever it asks.
    const auto key = std::make_tuple(event.who, event.values[0], event.values[1], event.values[2]);
    const auto [known, is_new] = answers_.emplace(key, verdict);
    if (!is_new && known->second != verdict) {
      Violated(event, absl::StrFormat("contribution %d of member %d was %s and is %s now", event.values[2],
                                      event.values[0], VerdictName(known->second), VerdictName(verdict)));
    }
  }

 private:
  std::map<std::tuple<std::string, int64_t, int64_t, int64_t>, Verdict> answers_;
};

// What a contribution adds to the model is what its manifest says that it was made from.
class ContentIsWhatTheManifestSays final : public Checker {
 public:
  const char* name() const override { return "I10"; }
  void See(const TapeEvent& event) override {
    if (event.kind != TapeEvent::kContent || event.values[2] == event.values[3]) return;
    Violated(event, absl::StrFormat("contribution %d of member %d names %d samples and adds %d", event.values[1],
                                    event.values[0], event.values[2], event.values[3]));
  }
};

}  // namespace

void Checker::Violated(const TapeEvent& event, const std::string& what) {
  if (!violation_.empty()) return;
  violation_ = absl::StrFormat("at %.6f s, %s: %s", absl::ToDoubleSeconds(event.time), event.who, what);
}

std::vector<std::unique_ptr<Checker>> MakeCheckers() {
  std::vector<std::unique_ptr<Checker>> checkers;
  checkers.push_back(std::make_unique<CommittedOnce>());
  checkers.push_back(std::make_unique<VersionsOnlyRise>());
  checkers.push_back(std::make_unique<StalenessIsBounded>());
  checkers.push_back(std::make_unique<RepeatsGetTheFirstAnswer>());
  checkers.push_back(std::make_unique<ContentIsWhatTheManifestSays>());
  return checkers;
}

}  // namespace wukong
