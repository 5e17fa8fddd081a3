#include "runtime/sim/checkers.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <set>
#include <tuple>
#include <utility>

#include "absl/container/btree_map.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"
#include "proto/wire.pb.h"
#include "runtime/sync/types.h"

namespace wukong {
namespace {

// Intervals of samples.
class SampleSet {
 public:
  void Add(int64_t begin, int64_t end) {
    auto next = ends_.lower_bound(begin);
    if (next != ends_.begin() && std::prev(next)->second >= begin) --next;
    for (; next != ends_.end() && next->first <= end; next = ends_.erase(next)) {
      begin = std::min(begin, next->first);
      end = std::max(end, next->second);
    }
    ends_[begin] = end;
  }
  bool Overlaps(int64_t begin, int64_t end) const {
    const auto next = ends_.lower_bound(begin);
    return (next != ends_.end() && next->first < end) || (next != ends_.begin() && std::prev(next)->second > begin);
  }

 private:
  absl::btree_map<int64_t, int64_t> ends_;  // By begin.
};

// Each sample is committed exactly once: never twice here; that all of them are is the end's to say.
class CommittedOnce final : public Checker {
 public:
  const char* name() const override { return "I1"; }
  void See(const TapeEvent& event) override {
    if (event.kind != TapeEvent::kCommitted) return;
    const int64_t begin = event.values[0], end = event.values[1];
    if (committed_.Overlaps(begin, end)) {
      Violated(event, absl::StrFormat("samples %d to %d are committed a second time", begin, end));
      return;
    }
    committed_.Add(begin, end);
  }

 private:
  SampleSet committed_;
};

// What a region has acknowledged is lost with the region, or by a refusal of the root; the death of a worker, or of the
// root, gives none of it to others.
class AcknowledgedWorkIsKept final : public Checker {
 public:
  const char* name() const override { return "I2"; }
  void See(const TapeEvent& event) override {
    switch (event.kind) {
      case TapeEvent::kCoordinator:
        Told(event.text);
        break;
      case TapeEvent::kDied:
        if (const auto held = held_.find(event.who); held != held_.end()) held_.erase(held);
        break;
      case TapeEvent::kAnswered:
        // Which of the region's samples the refused contribution named is not told here.
        if (event.who == "root" && event.values[3] != VERDICT_ACCEPTED) {
          if (const auto held = held_.find(region_of_[event.values[0]]); held != held_.end())
            held->second.samples = SampleSet();
        }
        break;
      case TapeEvent::kHeld:
        // A region that is lost, or a life of its aggregator that is not the one that joined last, may not know it yet,
        // and what it still takes does not count.
        if (const auto held = held_.find(event.who);
            held != held_.end() && held->second.incarnation == event.values[2]) {
          held->second.samples.Add(event.values[0], event.values[1]);
          ever_held_.Add(event.values[0], event.values[1]);
        }
        break;
      case TapeEvent::kLeased:
        if (!tokens_.insert(event.values[2]).second) break;  // The answer to a repeated request.
        if (!event.text.empty()) not_kept_.Add(event.values[0], event.values[1]);
        if (not_kept_.Overlaps(event.values[0], event.values[1])) break;
        if (!ever_held_.Overlaps(event.values[0], event.values[1])) break;  // There may be many regions to look at.
        for (const auto& [region, held] : held_) {
          if (!held.samples.Overlaps(event.values[0], event.values[1])) continue;
          Violated(event, absl::StrFormat("samples %d to %d are leased again, although %s has acknowledged them",
                                          event.values[0], event.values[1], region));
        }
        break;
      default:
        break;
    }
  }

 private:
  void Told(const std::string& text) {
    const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object() || json.value("role", "") != "aggregator") return;
    const std::string region = json.value("region", "");
    if (json.value("event", "") == "joined") {
      held_[region] = {json.value("incarnation", int64_t{0}), SampleSet()};
      region_of_[json.value("member", int64_t{0})] = region;
    } else if (json.value("event", "") == "lost") {
      held_.erase(region);
    }
  }

  struct Held {
    int64_t incarnation = 0;
    SampleSet samples;
  };
  std::map<std::string, Held, std::less<>> held_;  // By region, while the root knows it.
  SampleSet ever_held_;
  std::map<int64_t, std::string> region_of_;
  absl::flat_hash_set<int64_t> tokens_;
  // Leased while the disk failed: a loss of power may take the lease, and with it the work. Rather that than a member
  // that hears nothing while the disk is full.
  SampleSet not_kept_;
};

// A version is one set of bits for ever, at its parent and at every child, and rises at each node; and no version holds
// less of a child's contributions than an earlier one said.
class VersionsOnlyRise final : public Checker {
 public:
  const char* name() const override { return "I4"; }
  void See(const TapeEvent& event) override {
    if (event.kind == TapeEvent::kStarted) included_.erase(event.who);
    if (event.kind == TapeEvent::kTook) {
      auto& [parent, included] = included_[event.who];
      if (parent == event.values[2] && event.values[3] < included) {
        Violated(event, absl::StrFormat("version %d includes contribution %d, and an earlier one %d", event.values[0],
                                        event.values[3], included));
      }
      parent = event.values[2];
      included = event.values[3];
      const size_t slash = event.who.find('/');
      SeeBits(event, slash == absl::string_view::npos ? "root" : event.who.substr(0, slash), event.values[2]);
    }
    if (event.kind != TapeEvent::kPublished) return;
    SeeBits(event, event.who, event.values[3]);
    int64_t& last = parents_[event.who].last[event.values[3]];
    if (event.values[0] < last) Violated(event, absl::StrFormat("version %d after %d", event.values[0], last));
    last = event.values[0];
  }

 private:
  struct Parent {
    absl::flat_hash_map<std::pair<int64_t, int64_t>, int64_t> checksums;  // By incarnation and version.
    std::map<int64_t, int64_t> last;                                      // Version, by incarnation.
  };

  void SeeBits(const TapeEvent& event, absl::string_view parent, int64_t incarnation) {
    const auto [known, is_new] =
        parents_[parent].checksums.emplace(std::make_pair(incarnation, event.values[0]), event.values[1]);
    if (is_new || known->second == event.values[1]) return;
    Violated(event,
             absl::StrFormat("version %d of %s is given to other parameters than before", event.values[0], parent));
  }

  absl::flat_hash_map<std::string, Parent> parents_;
  // By child in its present life: incarnation of the parent, sequence.
  absl::flat_hash_map<std::string, std::pair<int64_t, int64_t>> included_;
};

// Each life of the root speaks in one term, above all terms before it; so no lease is given twice.
class OneTermOneLife final : public Checker {
 public:
  const char* name() const override { return "I6"; }
  void See(const TapeEvent& event) override {
    if (event.who != "root") return;
    if (event.kind == TapeEvent::kStarted) {
      before_ = std::max(before_, now_);
      now_ = -1;
    } else if (event.kind == TapeEvent::kPublished) {
      Spoken(event, event.values[2]);
    } else if (event.kind == TapeEvent::kLeased) {
      const auto lease = std::make_tuple(event.values[0], event.values[1], event.values[3]);
      const auto [known, is_new] = leases_.emplace(event.values[2], lease);
      if (!is_new && known->second != lease) {
        Violated(event, absl::StrFormat("lease %d is given a second time, for samples %d to %d", event.values[2],
                                        event.values[0], event.values[1]));
      }
      Spoken(event, event.values[2] >> kTermShift);
    }
  }

 private:
  static constexpr int kTermShift = 40;  // As leases are numbered (coordinator/coordinator_core.cc).

  void Spoken(const TapeEvent& event, int64_t term) {
    if (term <= before_) {
      Violated(event, absl::StrFormat("term %d speaks, and an earlier life had term %d", term, before_));
    } else if (now_ >= 0 && term != now_) {
      Violated(event, absl::StrFormat("terms %d and %d in one life", now_, term));
    }
    now_ = term;
  }

  int64_t before_ = -1;  // The largest of the lives before this one.
  int64_t now_ = -1;     // -1 while this life has not spoken.
  absl::flat_hash_map<int64_t, std::tuple<int64_t, int64_t, int64_t>> leases_;  // By token: begin, end, member.
};

class StalenessIsBounded final : public Checker {
 public:
  explicit StalenessIsBounded(int64_t staleness_max) : staleness_max_(staleness_max) {}
  const char* name() const override { return "I5"; }
  void See(const TapeEvent& event) override {
    // At the root, where contributions reach the model. A region looks when it accepts: what then waits for its quorum
    // can grow older, and the root judges the whole by its oldest step.
    if (event.who != "root") return;
    if (event.kind == TapeEvent::kPublished) version_ = event.values[0];
    // By what left the node and what came in, not by what the node says.
    const int64_t staleness = version_ - event.values[3];
    if (event.kind != TapeEvent::kMerged || staleness <= staleness_max_) return;
    Violated(event, absl::StrFormat("contribution %d of member %d is merged %d versions late, the bound is %d",
                                    event.values[1], event.values[0], staleness, staleness_max_));
  }

 private:
  const int64_t staleness_max_;
  int64_t version_ = 1;  // The last that was published.
};

// The same contribution gets the same answer, however often it comes.
class RepeatsGetTheFirstAnswer final : public Checker {
 public:
  const char* name() const override { return "I7"; }
  void See(const TapeEvent& event) override {
    if (event.kind == TapeEvent::kCoordinator) Told(event.text);
    if (event.kind != TapeEvent::kAnswered) return;
    const auto verdict = static_cast<Verdict>(event.values[3]);
    // Who is fenced is told so whatever it asks.
    if (verdict == VERDICT_FENCED && event.values[1] < fenced_below_[event.values[0]]) return;
    const auto key = std::make_tuple(std::string(event.who), event.values[0], event.values[1], event.values[2]);
    const auto [known, is_new] = answers_.emplace(key, verdict);
    if (!is_new && known->second != verdict) {
      Violated(event, absl::StrFormat("contribution %d of member %d was %s and is %s now", event.values[2],
                                      event.values[0], VerdictName(known->second), VerdictName(verdict)));
    }
  }

 private:
  // Only the coordinator fences: for silence, or for another life.
  void Told(const std::string& text) {
    const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object()) return;
    const std::string what = json.value("event", "");
    const auto name = std::make_tuple(json.value("role", ""), json.value("region", ""), json.value("name", ""));
    const int64_t incarnation = json.value("incarnation", int64_t{0});
    if (what == "joined") {
      members_[name] = json.value("member", int64_t{0});
      int64_t& below = fenced_below_[members_[name]];
      below = std::max(below, incarnation);
    } else if (what == "lost" || what == "left") {
      int64_t& below = fenced_below_[members_[name]];
      below = std::max(below, incarnation + 1);
    }
  }

  std::map<std::tuple<std::string, std::string, std::string>, int64_t> members_;  // By role, region and name.
  absl::flat_hash_map<int64_t, int64_t> fenced_below_;                            // Incarnation, by member.
  absl::flat_hash_map<std::tuple<std::string, int64_t, int64_t, int64_t>, Verdict> answers_;
};

// What is not finite is accepted by nobody.
class NothingDamagedIsAccepted final : public Checker {
 public:
  const char* name() const override { return "I12"; }
  void See(const TapeEvent& event) override {
    const auto key = std::make_tuple(event.values[0], event.values[1], event.values[2]);
    if (event.kind == TapeEvent::kDamaged) damaged_.insert(key);
    if (event.kind != TapeEvent::kAnswered || event.values[3] != VERDICT_ACCEPTED || damaged_.count(key) == 0) return;
    Violated(event, absl::StrFormat("contribution %d of member %d is accepted, and is not finite", event.values[2],
                                    event.values[0]));
  }

 private:
  std::set<std::tuple<int64_t, int64_t, int64_t>> damaged_;
};

// What a contribution adds to the model is what its manifest says that it was made from, and nobody's parameters count
// far more samples than were ever given out. What a worker sent to a parent that is gone may count twice until the
// coordinator has said what became of it, so a little more is no error.
class ContentIsWhatTheManifestSays final : public Checker {
 public:
  const char* name() const override { return "I10"; }
  void See(const TapeEvent& event) override {
    if (event.kind == TapeEvent::kLeased) leased_ = std::max(leased_, event.values[1]);
    if (event.kind == TapeEvent::kCounted && event.values[0] > leased_ + leased_ / 4 + kUndecided) {
      Violated(event,
               absl::StrFormat("its parameters count %d samples, and %d were given out", event.values[0], leased_));
    }
    if (event.kind != TapeEvent::kContent || event.values[2] == event.values[3]) return;
    Violated(event, absl::StrFormat("contribution %d of member %d names %d samples and adds %d", event.values[1],
                                    event.values[0], event.values[2], event.values[3]));
  }

 private:
  static constexpr int64_t kUndecided = 2000;

  int64_t leased_ = 0;  // One past the last that was leased; they are leased from the first on.
};

}  // namespace

void Checker::Violated(const TapeEvent& event, const std::string& what) {
  if (!violation_.empty()) return;
  violation_ = absl::StrFormat("at %.6f s, %s: %s", absl::ToDoubleSeconds(event.time), event.who, what);
}

std::vector<std::unique_ptr<Checker>> MakeCheckers(int64_t staleness_max) {
  std::vector<std::unique_ptr<Checker>> checkers;
  checkers.push_back(std::make_unique<CommittedOnce>());
  checkers.push_back(std::make_unique<AcknowledgedWorkIsKept>());
  checkers.push_back(std::make_unique<VersionsOnlyRise>());
  checkers.push_back(std::make_unique<StalenessIsBounded>(staleness_max));
  checkers.push_back(std::make_unique<OneTermOneLife>());
  checkers.push_back(std::make_unique<RepeatsGetTheFirstAnswer>());
  checkers.push_back(std::make_unique<NothingDamagedIsAccepted>());
  checkers.push_back(std::make_unique<ContentIsWhatTheManifestSays>());
  return checkers;
}

}  // namespace wukong
