#include "runtime/model/job_layout.h"

#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/model/trainer.h"

namespace wukong {
namespace {

constexpr int64_t kWidth = 8;
constexpr int64_t kMatrices = 4 * kWidth * kWidth;  // Attention of one layer; its feed-forward ones are twice as large.
constexpr int64_t kEmbeddings = int64_t{11 + 5} * kWidth;
constexpr int64_t kVectors = int64_t{3 * 13 + 2} * kWidth;
constexpr int64_t kParameters = kEmbeddings + 9 * kMatrices + kVectors;

Job SmallJob() {
  Job job;
  job.mutable_model()->set_layers(3);
  job.mutable_model()->set_heads(2);
  job.mutable_model()->set_width(static_cast<int>(kWidth));
  job.mutable_model()->set_context(5);
  job.mutable_model()->set_vocabulary(11);
  job.mutable_optimizer()->set_learning_rate(1e-3);
  job.mutable_optimizer()->set_beta1(0.9);
  job.mutable_optimizer()->set_beta2(0.95);
  job.mutable_optimizer()->set_epsilon(1e-8);
  job.mutable_limits()->set_fragment_bytes(1024);
  return job;
}

TEST(JobLayoutTest, TheTensorsOfTheGptAreTheTrainers) {
  const Job job = SmallJob();
  const absl::StatusOr<std::unique_ptr<Trainer>> trainer = MakeTrainer(job, TrainerOptions());
  ASSERT_TRUE(trainer.ok()) << trainer.status();
  EXPECT_EQ(ParameterLayout(GptTensors(job.model())).schema_digest(), (*trainer)->layout().schema_digest());
  EXPECT_EQ((*trainer)->layout().size(), kParameters);
}

TEST(JobLayoutTest, RolesCoverTheVectorAndAlternate) {
  const Job job = SmallJob();
  const std::vector<FragmentSpan> roles = RolesOf(job.model(), kParameters);
  ASSERT_EQ(roles.size(), 7u);
  std::vector<int64_t> sizes;
  for (size_t i = 0; i < roles.size(); ++i) {
    EXPECT_EQ(roles[i].begin, i == 0 ? 0 : roles[i - 1].end);
    EXPECT_EQ(roles[i].role, i % 2 == 0 ? ParameterRole::kOther : ParameterRole::kFeedForward);
    sizes.push_back(roles[i].size());
  }
  EXPECT_THAT(sizes, testing::ElementsAre(kEmbeddings + kMatrices, 2 * kMatrices, kMatrices, 2 * kMatrices, kMatrices,
                                          2 * kMatrices, kVectors));
}

TEST(JobLayoutTest, OfAnotherModelNobodyKnowsTheRoles) {
  Model script = SmallJob().model();
  script.set_torchscript("model.pt");
  Model synthetic = SmallJob().model();
  synthetic.set_synthetic(SYNTHETIC_KIND_TOY);
  for (const auto& [model, parameters] : std::vector<std::pair<Model, int64_t>>{
           {script, kParameters}, {synthetic, kParameters}, {SmallJob().model(), kParameters + 1}}) {
    const std::vector<FragmentSpan> roles = RolesOf(model, parameters);
    ASSERT_EQ(roles.size(), 1u);
    EXPECT_EQ(roles[0].size(), parameters);
    EXPECT_EQ(roles[0].role, ParameterRole::kOther);
  }
}

TEST(JobLayoutTest, FragmentsEndAtRolesOnlyWhereACodecAsks) {
  Job job = SmallJob();
  EXPECT_EQ(FragmentsOf(job, kParameters).size(), static_cast<size_t>((kParameters + 255) / 256));
  job.mutable_strategy()->mutable_region()->set_codec_down(CODEC_KIND_MIXED);
  const std::vector<FragmentSpan> roles = RolesOf(job.model(), kParameters);
  size_t at = 0;
  int64_t next = 0;
  for (const FragmentSpan& fragment : FragmentsOf(job, kParameters)) {
    EXPECT_EQ(fragment.begin, next);
    EXPECT_LE(fragment.size(), 256);
    while (fragment.begin >= roles[at].end) ++at;
    EXPECT_LE(fragment.end, roles[at].end);
    EXPECT_EQ(fragment.role, roles[at].role);
    next = fragment.end;
  }
  EXPECT_EQ(next, kParameters);
}

}  // namespace
}  // namespace wukong
