#include "worker/region_group.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/base/digest.h"
#include "runtime/base/file.h"
#include "runtime/base/random.h"
#include "runtime/base/restart.h"
#include "runtime/data/token_dataset.h"
#include "worker/training_step.h"

namespace wukong {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;

constexpr uint64_t kSeed = 11;
constexpr int64_t kStepSamples = 5;  // Not divisible by 2 or 3.

TEST(ShareTest, CoversEverySampleOnceAndEvenly) {
  for (const int size : {1, 2, 3, 7}) {
    for (const int64_t samples : {int64_t{0}, int64_t{1}, int64_t{5}, int64_t{6}, int64_t{64}}) {
      int64_t next = 0;
      for (int rank = 0; rank < size; ++rank) {
        const SampleShare share = ShareOf(samples, rank, size);
        EXPECT_EQ(share.first, next);
        EXPECT_GE(share.last - share.first, samples / size);
        EXPECT_LE(share.last - share.first, (samples + size - 1) / size);
        next = share.last;
      }
      EXPECT_EQ(next, samples);
    }
  }
}

TEST(EmulatedSpeedTest, OneNumberIsForAllWorkers) {
  Region region;
  EXPECT_EQ(EmulatedSpeed(region, 3), 1.0);
  region.add_speed(0.5);
  EXPECT_EQ(EmulatedSpeed(region, 3), 0.5);
  region.add_speed(0.25);
  EXPECT_EQ(EmulatedSpeed(region, 1), 0.25);
}

class RegionGroupTest : public ::testing::Test {
 protected:
  RegionGroupTest() {
    job_.set_seed(kSeed);
    Model* model = job_.mutable_model();
    model->set_layers(1);
    model->set_heads(2);
    model->set_width(16);
    model->set_context(8);
    model->set_vocabulary(32);
    job_.mutable_optimizer()->set_beta1(0.9);
    job_.mutable_optimizer()->set_beta2(0.95);
    job_.mutable_optimizer()->set_epsilon(1e-8);
    job_.mutable_optimizer()->set_weight_decay(0.1);
    job_.mutable_optimizer()->set_clip_norm(1);
    job_.mutable_optimizer()->set_micro_batch(2);
    std::string tokens;
    Random random(kSeed);
    for (int i = 0; i < 4000; ++i) {
      tokens.push_back(static_cast<char>(random.Below(32)));
      tokens.push_back('\0');
    }
    path_ = ::testing::TempDir() + "/region_group_test_" + std::to_string(::getpid()) + ".bin";
    EXPECT_TRUE(WriteFileAtomic(path_, tokens).ok());
  }
  ~RegionGroupTest() override { std::filesystem::remove(path_); }

  std::unique_ptr<Trainer> NewTrainer() const {
    auto trainer = MakeTrainer(job_, TrainerOptions());
    EXPECT_TRUE(trainer.ok()) << trainer.status();
    return *std::move(trainer);
  }
  SampleReader NewReader() const {
    auto file = TokenFile::Open(path_);
    EXPECT_TRUE(file.ok()) << file.status();
    auto reader = SampleReader::Make(std::shared_ptr<const TokenFile>(*std::move(file)), job_.model().context(), kSeed);
    EXPECT_TRUE(reader.ok()) << reader.status();
    return *std::move(reader);
  }
  TrainingStep::Options StepOptions(bool gradient_progress = false) const {
    TrainingStep::Options options;
    options.micro_batch = job_.optimizer().micro_batch();
    options.gradient_progress = gradient_progress;
    return options;
  }

  // Runs every rank as a thread.
  static void RunRanks(
      int size, const std::function<void(RegionGroup*)>& rank_main,
      const std::function<bool(int)>& leaving = [](int) { return false; }) {
    MemoryStore store;
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size; ++rank) {
      threads.emplace_back([&, rank] {
        CommunicatorOptions options;
        options.kind = COLLECTIVE_GLOO;
        options.group = "region guizhou";
        options.rank = rank;
        options.size = size;
        options.generation = "g";
        options.form_timeout = options.timeout = absl::Seconds(30);
        auto communicator = MakeCommunicator(options, &store);
        ASSERT_TRUE(communicator.ok()) << communicator.status();
        RegionGroup::Callbacks callbacks;
        callbacks.leaving = [&, rank] { return leaving(rank); };
        callbacks.give_up = [](bool) { return ""; };
        RegionGroup group("guizhou", *std::move(communicator), std::move(callbacks));
        rank_main(&group);
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  static std::vector<LeasedRange> StepRanges(int64_t step) {
    return {{step * kStepSamples, step * kStepSamples + 2, 1}, {step * kStepSamples + 2, (step + 1) * kStepSamples, 2}};
  }

  Job job_;
  std::string path_;
};

void NoWait(absl::Duration) {}

TEST_F(RegionGroupTest, ParametersStayTheSameBitsOnAllRanksAndTheLossIsThatOfOneWorkerAlone) {
  constexpr int kSteps = 8;
  // One worker alone, on the same samples.
  std::vector<double> alone;
  std::vector<float> alone_parameters;
  {
    const auto trainer = NewTrainer();
    const SampleReader reader = NewReader();
    TrainingStep step(StepOptions(), trainer.get(), &reader, NoWait);
    for (int i = 0; i < kSteps; ++i) {
      const auto result = step.Run(StepRanges(i), 1e-2);
      ASSERT_TRUE(result.ok()) << result.status();
      EXPECT_EQ(result->samples, kStepSamples);
      alone.push_back(result->loss);
    }
    alone_parameters.assign(trainer->parameters().begin(), trainer->parameters().end());
  }
  EXPECT_LT(alone.back(), alone.front() + 0.5) << "the case is not a divergent one";

  for (const int size : {2, 3}) {
    std::vector<std::string> digests(size);
    std::vector<std::vector<double>> losses(size);
    std::vector<int64_t> samples(size);
    std::vector<float> parameters;
    RunRanks(size, [&](RegionGroup* group) {
      const auto trainer = NewTrainer();
      const SampleReader reader = NewReader();
      // What rank 0 holds is what counts.
      if (group->rank() != 0) trainer->parameters()[0] += 1;
      ASSERT_TRUE(group->ShareParameters(trainer.get()).ok());
      TrainingStep step(StepOptions(), trainer.get(), &reader, NoWait);
      step.set_group(group);
      for (int i = 0; i < kSteps; ++i) {
        const auto result = step.Run(StepRanges(i), 1e-2);
        ASSERT_TRUE(result.ok()) << result.status();
        losses[group->rank()].push_back(result->loss);
        samples[group->rank()] += result->samples;
      }
      digests[group->rank()] = Sha256Hex(absl::Span<const float>(trainer->parameters()));
      if (group->rank() == 0) parameters.assign(trainer->parameters().begin(), trainer->parameters().end());
    });
    EXPECT_THAT(digests, Each(digests[0])) << "seed " << kSeed;
    EXPECT_THAT(losses, Each(losses[0]));
    int64_t sum = 0;
    for (const int64_t share : samples) sum += share;
    EXPECT_EQ(sum, kSteps * kStepSamples);
    for (int i = 0; i < kSteps; ++i) EXPECT_NEAR(losses[0][i], alone[i], 1e-4) << size << " ranks, step " << i;
    double difference = 0;
    for (size_t i = 0; i < parameters.size(); ++i) {
      difference = std::max(difference, std::abs(static_cast<double>(parameters[i]) - alone_parameters[i]));
    }
    EXPECT_LT(difference, 1e-2) << "only the order of additions may differ from one worker alone";
  }
}

TEST_F(RegionGroupTest, AGradientToContributeIsTheMeanOverAllRanksSamplesAndIsCountedOnce) {
  std::vector<float> alone;
  {
    const auto trainer = NewTrainer();
    const SampleReader reader = NewReader();
    TrainingStep step(StepOptions(/*gradient_progress=*/true), trainer.get(), &reader, NoWait);
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(step.Run(StepRanges(i), 0).ok());
    alone.assign(trainer->gradient().begin(), trainer->gradient().end());
  }
  RunRanks(2, [&](RegionGroup* group) {
    const auto trainer = NewTrainer();
    const SampleReader reader = NewReader();
    TrainingStep step(StepOptions(/*gradient_progress=*/true), trainer.get(), &reader, NoWait);
    step.set_group(group);
    for (int i = 0; i < 2; ++i) ASSERT_TRUE(step.Run(StepRanges(i), 0).ok());
    double largest = 0;
    for (size_t i = 0; i < alone.size(); ++i) {
      largest = std::max(largest, std::abs(static_cast<double>(alone[i])));
      ASSERT_NEAR(trainer->gradient()[i], group->rank() == 0 ? alone[i] : 0.0f, 1e-5) << "parameter " << i;
    }
    EXPECT_GT(largest, 1e-3);
  });
}

TEST_F(RegionGroupTest, AGradientToContributeThatIsNotFiniteIsNoProgressThoughTheLossIs) {
  const auto trainer = NewTrainer();
  const SampleReader reader = NewReader();
  TrainingStep step(StepOptions(/*gradient_progress=*/true), trainer.get(), &reader, NoWait);
  trainer->gradient()[3] = std::numeric_limits<float>::infinity();
  ASSERT_TRUE(trainer->PushGradient().ok());
  const auto result = step.Run(StepRanges(0), 0);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_TRUE(std::isfinite(result->loss));
  EXPECT_FALSE(result->finite);
  trainer->ZeroGradient();
  EXPECT_TRUE(step.Run(StepRanges(0), 0)->finite);
}

TEST_F(RegionGroupTest, AStepWithFewerSamplesThanRanksIsMadeByAll) {
  std::vector<std::string> digests(3);
  RunRanks(3, [&](RegionGroup* group) {
    const auto trainer = NewTrainer();
    const SampleReader reader = NewReader();
    TrainingStep step(StepOptions(), trainer.get(), &reader, NoWait);
    step.set_group(group);
    const auto result = step.Run({{7, 8, 1}}, 1e-2);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->samples, group->rank() == 2 ? 1 : 0);
    EXPECT_GT(result->loss, 1.0);
    digests[group->rank()] = Sha256Hex(absl::Span<const float>(trainer->parameters()));
  });
  EXPECT_THAT(digests, Each(digests[0]));
}

TEST_F(RegionGroupTest, ALossThatIsNotFiniteOnOneRankEndsTheStepOnAll) {
  RunRanks(2, [&](RegionGroup* group) {
    const auto trainer = NewTrainer();
    const SampleReader reader = NewReader();
    const std::string before = Sha256Hex(absl::Span<const float>(trainer->parameters()));
    if (group->rank() == 1) {
      for (float& value : trainer->parameters()) value = std::numeric_limits<float>::quiet_NaN();
    }
    TrainingStep step(StepOptions(), trainer.get(), &reader, NoWait);
    step.set_group(group);
    const auto result = step.Run(StepRanges(0), 1e-2);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_FALSE(result->finite);
    if (group->rank() == 0) {
      EXPECT_EQ(Sha256Hex(absl::Span<const float>(trainer->parameters())), before);
    }
    // And the group can go on, once the others hold what rank 0 holds.
    trainer->ZeroGradient();
    ASSERT_TRUE(group->ShareParameters(trainer.get()).ok());
    const auto next = step.Run(StepRanges(0), 1e-2);
    ASSERT_TRUE(next.ok());
    EXPECT_TRUE(next->finite);
  });
}

TEST_F(RegionGroupTest, OrdersArriveAndWhoWantsToLeaveIsKnownToAll) {
  std::atomic<bool> one_leaves{false};
  RunRanks(
      3,
      [&](RegionGroup* group) {
        GroupOrder sent;
        sent.set_kind(GroupOrder::KIND_TRAIN);
        sent.set_learning_rate(0.5);
        sent.set_root_base_version(7);
        for (int i = 0; i < 100; ++i) sent.add_samples()->set_begin(i);
        if (group->rank() == 0) {
          ASSERT_TRUE(group->Announce(sent).ok());
        } else {
          const auto order = group->NextOrder();
          ASSERT_TRUE(order.ok()) << order.status();
          EXPECT_EQ(order->SerializeAsString(), sent.SerializeAsString());
        }
        ASSERT_TRUE(group->AskWhoLeaves().ok());
        EXPECT_FALSE(group->somebody_leaves());
        if (group->rank() == 1) one_leaves = true;
        ASSERT_TRUE(group->AskWhoLeaves().ok());
        EXPECT_TRUE(group->somebody_leaves()) << "rank " << group->rank();
        group->Part();
        EXPECT_FALSE(group->broken());
      },
      [&](int rank) { return rank == 1 && one_leaves; });
}

TEST_F(RegionGroupTest, ALostRankEndsTheGroupWithAMessageThatNamesRegionAndRank) {
  RunRanks(2, [&](RegionGroup* group) {
    ASSERT_TRUE(group->AskWhoLeaves().ok());
    if (group->rank() == 1) return;
    const absl::Status status = group->AskWhoLeaves();
    EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("the group of region guizhou ends, and all its workers leave: it has lost a rank"));
    EXPECT_THAT(std::string(status.message()), HasSubstr("rank 0 of 2"));
    EXPECT_TRUE(group->broken());
  });
}

TEST(ReasonToLeaveTest, WhoHasLostItsPlaceDoesNotWaitForRankZero) {
  const StopSignal stop;
  Mailbox fenced, done;
  ReasonToLeave of_fenced({}, &fenced, &stop), of_done({}, &done, &stop);
  const absl::Time now = absl::UnixEpoch();
  EXPECT_EQ(of_fenced.Find(now, false), "");
  fenced.End(RestartSafe(absl::AbortedError("fenced")));
  done.End(absl::OkStatus());
  EXPECT_EQ(of_fenced.Find(now, false), "this worker has lost its place");
  EXPECT_EQ(of_done.Find(now, false), "") << "rank 0 ends the group in order";
  EXPECT_EQ(of_done.Find(now + absl::Seconds(2), false), "");
  EXPECT_EQ(of_done.Find(now + absl::Seconds(3), false), "the run is over") << "rank 0 does not";
}

TEST(ReasonToLeaveTest, WhoIsToldToLeaveWaitsForTheStepUnderWayHoweverLongThatTakes) {
  const StopSignal stop;
  Mailbox mail;
  ReasonToLeave reason({}, &mail, &stop);
  absl::Time now = absl::UnixEpoch();
  EXPECT_EQ(reason.Find(now, true), "") << "somebody else leaves";
  EXPECT_EQ(reason.Find(now + absl::Minutes(1), true), "");
  ASSERT_EQ(::raise(SIGTERM), 0);
  now += absl::Minutes(2);
  EXPECT_EQ(reason.Find(now, false), "");
  now += absl::Minutes(2);
  EXPECT_EQ(reason.Find(now, false), "") << "the step is not done, after which all hear of it";
  EXPECT_EQ(reason.Find(now, true), "");
  EXPECT_EQ(reason.Find(now + absl::Seconds(11), true), "") << "rank 0 contributes what was trained";
  EXPECT_EQ(reason.Find(now + absl::Seconds(12), true), "this worker was told to leave") << "it does not answer";
}

TEST_F(RegionGroupTest, ARankThatGivesUpIsNotHeldByTheOthers) {
  MemoryStore store;
  std::atomic<bool> give_up{false};
  constexpr char kWhy[] = "the coordinator has another life of rank 0";
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 2; ++rank) {
    threads.emplace_back([&, rank] {
      CommunicatorOptions options;
      options.kind = COLLECTIVE_GLOO;
      options.rank = rank;
      options.size = 2;
      options.form_timeout = options.timeout = absl::Seconds(50);
      auto communicator = MakeCommunicator(options, &store);
      ASSERT_TRUE(communicator.ok()) << communicator.status();
      RegionGroup::Callbacks callbacks;
      callbacks.leaving = [] { return false; };
      callbacks.give_up = [&, rank](bool) { return rank == 1 && give_up ? kWhy : ""; };
      RegionGroup group("guizhou", *std::move(communicator), std::move(callbacks));
      if (rank == 0) {
        ASSERT_TRUE(group.AskWhoLeaves().ok());
        give_up = true;
        EXPECT_EQ(group.AskWhoLeaves().ok(), false);  // Rank 1 never comes.
      } else {
        ASSERT_TRUE(group.AskWhoLeaves().ok());
        const absl::Status status = group.NextOrder().status();  // Rank 0 never orders.
        EXPECT_TRUE(IsRestartSafe(status)) << status;
        EXPECT_THAT(std::string(status.message()), HasSubstr(kWhy));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace wukong
