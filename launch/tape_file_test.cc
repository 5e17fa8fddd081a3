// Tapes as files: the same again, and the first event that is not.
#include "launch/tape_file.h"

#include <unistd.h>

#include <filesystem>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "gtest/gtest.h"

namespace wukong {
namespace {

class TapeFileTest : public testing::Test {
 protected:
  void SetUp() override {
    path_ = absl::StrCat(testing::TempDir(), "/tape_file_test.", getpid());
    const std::string scenario_path = path_ + ".yaml";
    std::ofstream(scenario_path) << "name: short\nworkload: {samples: 400}\nregions: [{name: a, workers: 2}]\n"
                                    "timeline: [{fault: kill, at: 2s, target: [a/worker-1]}]\n";
    const auto scenario = LoadCheckedScenario(scenario_path, {"workload.step=50ms"});
    ASSERT_TRUE(scenario.ok()) << scenario.status();
    TapeWriter writer;
    ASSERT_TRUE(writer.Open(path_, *scenario, 7).ok());
    const auto result = RunSimulation(*scenario, 7, [&](const TapeEvent& event) { writer.Add(event); });
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_TRUE(writer.Finish(*result).ok());
    events_ = result->tape_events;
    hash_ = result->tape_hash;
    std::stringstream text;
    text << std::ifstream(path_).rdbuf();
    lines_ = absl::StrSplit(text.str(), '\n', absl::SkipEmpty());
    ASSERT_EQ(lines_.size(), static_cast<size_t>(events_) + 2);
  }
  void TearDown() override {
    std::filesystem::remove(path_);
    std::filesystem::remove(path_ + ".yaml");
  }

  Replay Again() {
    std::ofstream(path_) << absl::StrJoin(lines_, "\n") << "\n";
    const auto replay = ReplayTape(path_);
    EXPECT_TRUE(replay.ok()) << replay.status();
    return replay.ok() ? *replay : Replay();
  }

  std::string path_;
  std::vector<std::string> lines_;
  int64_t events_ = 0;
  uint64_t hash_ = 0;
};

TEST_F(TapeFileTest, IsTheSameAgain) {
  const Replay replay = Again();
  EXPECT_TRUE(replay.same) << replay.on_tape << "\n" << replay.now;
  EXPECT_TRUE(replay.complete);
  EXPECT_FALSE(replay.other_binary);
  EXPECT_EQ(replay.events, events_);
  EXPECT_EQ(replay.tape_hash, hash_);
}

TEST_F(TapeFileTest, NamesTheFirstEventThatDiffersWithBothSides) {
  const std::string was = lines_[5];
  lines_[5] = R"({"seconds":0.0,"event":"started","who":"somebody else"})";
  lines_[6] = "and more";
  const Replay replay = Again();
  EXPECT_FALSE(replay.same);
  EXPECT_EQ(replay.events, 5);
  EXPECT_EQ(replay.on_tape, lines_[5]);
  EXPECT_EQ(replay.now, was);
}

TEST_F(TapeFileTest, NoticesAnEventTooManyOrTooFew) {
  const std::string last = lines_.back();
  lines_.insert(lines_.end() - 1, lines_[lines_.size() - 2]);
  Replay replay = Again();
  EXPECT_FALSE(replay.same);
  EXPECT_EQ(replay.events, events_ + 1);
  EXPECT_EQ(replay.now, last);

  lines_.erase(lines_.end() - 3, lines_.end() - 1);
  replay = Again();
  EXPECT_FALSE(replay.same);
  EXPECT_EQ(replay.events, events_);
  EXPECT_EQ(replay.on_tape, last);
}

TEST_F(TapeFileTest, AnInterruptedTapeIsTheSameAsFarAsItGoes) {
  lines_.pop_back();
  const Replay replay = Again();
  EXPECT_TRUE(replay.same);
  EXPECT_FALSE(replay.complete);
  lines_.pop_back();
  EXPECT_FALSE(Again().same) << "its events are not all there";
}

TEST_F(TapeFileTest, SaysWhenAnotherBuildWroteIt) {
  lines_[0].replace(lines_[0].find(R"("binary_sha256":")") + 17, 4, "beef");
  const Replay replay = Again();
  EXPECT_TRUE(replay.other_binary);
  EXPECT_TRUE(replay.same);
}

TEST_F(TapeFileTest, RefusesWhatIsNoTape) {
  for (const char* line : {"", "{}", "[1]", R"({"tape":2})", R"({"tape":1,"seed":"x","scenario":{}})",
                           R"({"tape":1,"seed":1,"scenario":{"nmae":"x"}})"}) {
    std::ofstream(path_) << line << "\n";
    const auto replay = ReplayTape(path_);
    EXPECT_EQ(replay.status().code(), absl::StatusCode::kInvalidArgument) << line;
    EXPECT_TRUE(absl::StrContains(replay.status().message(), path_)) << replay.status();
  }
  EXPECT_EQ(ReplayTape(path_ + ".none").status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace wukong
