#include "runtime/sync/outgoing_payload.h"

#include <gtest/gtest.h>

#include <limits>
#include <thread>

#include "runtime/sync/replica.h"

namespace wukong {
namespace {

TEST(OutgoingPayloadTest, WhatIsWholeIsThereAtOnce) {
  auto payload = std::make_shared<EncodedVector>();
  payload->codec = CODEC_KIND_BF16;
  payload->fragments = {"abcd", "", "ef"};
  OutgoingPayload outgoing(payload);
  EXPECT_EQ(outgoing.codec(), CODEC_KIND_BF16);
  EXPECT_EQ(outgoing.sizes(), (std::vector<int64_t>{4, 0, 2}));
  EXPECT_EQ(outgoing.bytes(), 6);
  EXPECT_EQ(outgoing.Checksum(), payload->checksum());
  ASSERT_NE(outgoing.Fragment(2), nullptr);
  EXPECT_EQ(*outgoing.Fragment(2), "ef");
  outgoing.Abandon();
  EXPECT_FALSE(outgoing.abandoned()) << "there is nothing left to be abandoned";
}

TEST(OutgoingPayloadTest, SendersWaitForTheFragmentThatTheyNeed) {
  auto payload = std::make_shared<EncodedVector>();
  payload->fragments.resize(3);
  OutgoingPayload outgoing(payload, {4, 4, 4});
  std::vector<std::string> seen;
  std::optional<uint64_t> checksum;
  std::thread sender([&] {
    for (size_t f = 0; f < 3; ++f) {
      const std::string* fragment = outgoing.Fragment(f);
      ASSERT_NE(fragment, nullptr);
      seen.push_back(*fragment);
    }
    checksum = outgoing.Checksum();
  });
  for (size_t f = 0; f < 3; ++f) {
    payload->fragments[f] = std::string(4, static_cast<char>('a' + f));
    outgoing.Encoded();
  }
  sender.join();
  EXPECT_EQ(seen, (std::vector<std::string>{"aaaa", "bbbb", "cccc"}));
  EXPECT_EQ(checksum, payload->checksum());
}

TEST(OutgoingPayloadTest, SendersOfWhatIsAbandonedAreLetGo) {
  auto payload = std::make_shared<EncodedVector>();
  payload->fragments.resize(2);
  OutgoingPayload outgoing(payload, {1, 1});
  payload->fragments[0] = "a";
  outgoing.Encoded();
  const std::string* second = &payload->fragments[0];
  std::optional<uint64_t> checksum = 1;
  std::thread sender([&] { second = outgoing.Fragment(1); });
  std::thread other([&] { checksum = outgoing.Checksum(); });
  outgoing.Abandon();
  sender.join();
  other.join();
  EXPECT_EQ(second, nullptr);
  EXPECT_EQ(checksum, std::nullopt);
  EXPECT_NE(outgoing.Fragment(0), nullptr) << "what had come stays";
  EXPECT_TRUE(outgoing.abandoned());
}

class ReplicaBegunTest : public ::testing::TestWithParam<CodecKind> {};

TEST_P(ReplicaBegunTest, SaysItsSizesBeforeItEncodesAndFillsThem) {
  std::vector<float> theta(1000, 0.0f);
  Replica::Options options;
  options.codec = GetParam();
  options.parts = 2;
  Replica replica(absl::MakeSpan(theta), CutFragments(1000, 256 * sizeof(float)), options);
  for (size_t i = 0; i < theta.size(); ++i) theta[i] = 0.01f * static_cast<float>(i % 17);
  std::shared_ptr<const OutgoingPayload> outgoing;
  const auto payload = replica.Send(Sequence(1), {}, /*whole=*/false,
                                    [&](std::shared_ptr<const OutgoingPayload> begun) { outgoing = std::move(begun); });
  ASSERT_TRUE(payload.ok()) << payload.status();
  ASSERT_NE(outgoing, nullptr);
  EXPECT_EQ(outgoing->bytes(), (*payload)->bytes());
  EXPECT_EQ(outgoing->Checksum(), (*payload)->checksum());
  for (size_t f = 0; f < 4; ++f) EXPECT_EQ(outgoing->Fragment(f), &(*payload)->fragments[f]);
  EXPECT_EQ(outgoing->sizes()[0], 0) << "it is not its turn";
}

TEST_P(ReplicaBegunTest, WhatCannotBeEncodedIsAbandonedAndTheBaseStays) {
  std::vector<float> theta(1000, 0.0f);
  Replica::Options options;
  options.codec = GetParam();
  Replica replica(absl::MakeSpan(theta), CutFragments(1000, 256 * sizeof(float)), options);
  std::fill(theta.begin(), theta.end(), 1.0f);
  theta[700] = std::numeric_limits<float>::quiet_NaN();
  std::shared_ptr<const OutgoingPayload> outgoing;
  const auto payload = replica.Send(Sequence(1), {}, /*whole=*/false,
                                    [&](std::shared_ptr<const OutgoingPayload> begun) { outgoing = std::move(begun); });
  EXPECT_EQ(payload.status().code(), absl::StatusCode::kInvalidArgument);
  ASSERT_NE(outgoing, nullptr);
  EXPECT_TRUE(outgoing->abandoned());
  EXPECT_EQ(replica.pending(), 0);
  for (const float base : replica.base()) ASSERT_EQ(base, 0.0f);
}

INSTANTIATE_TEST_SUITE_P(Codecs, ReplicaBegunTest,
                         ::testing::Values(CODEC_KIND_FP32, CODEC_KIND_BF16, CODEC_KIND_INT8, CODEC_KIND_INT4,
                                           CODEC_KIND_INT2, CODEC_KIND_TOPK, CODEC_KIND_MIXED),
                         [](const auto& codec) { return CodecKind_Name(codec.param); });

}  // namespace
}  // namespace wukong
