// ParentLink and ParameterServer against each other: what a child sees is what its parent published.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/functional/function_ref.h"
#include "runtime/base/random.h"
#include "runtime/fault/wan_relay.h"
#include "runtime/transport/transport_test_util.h"

namespace wukong {
namespace {

std::vector<float> RandomValues(uint64_t seed, double scale = 1.0) {
  Random random(seed);
  std::vector<float> values(kValues);
  for (float& value : values) value = static_cast<float>(scale * random.Normal());
  return values;
}

class FollowTest : public ::testing::TestWithParam<CodecKind> {};

// How many connections a child spreads its transfers over.
class StreamsTest : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Connections, StreamsTest, ::testing::Values(1, 2, 7));

TEST_P(FollowTest, EveryChildHoldsTheSameBytesAtEveryVersion) {
  const ParameterServer::Options options = TestNodeOptions(kValues, kFragmentBytes, TestLevel(1, GetParam()));
  TestNode node(options, RandomValues(1));
  node.Serve();
  TestChild sender(node.address(), 1, options.fragments);
  TestChild watcher(node.address(), 2, options.fragments);
  ASSERT_TRUE(sender.AwaitVersion(Version(1)));
  ASSERT_TRUE(watcher.AwaitVersion(Version(1)));
  EXPECT_EQ(sender.Values(), RandomValues(1)) << "the first version is sent as it is, whatever the codec";

  for (int64_t round = 1; round <= 5; ++round) {
    const std::vector<float> progress = RandomValues(100 + static_cast<uint64_t>(round), 0.1);
    sender.link().Send(TestManifest(round, sender.snapshot().version.value()),
                       Encode(GetParam(), options.fragments, progress));
    ASSERT_TRUE(sender.AwaitIncluded(Sequence(round))) << "round " << round;
    const Version version = sender.snapshot().version;
    ASSERT_TRUE(watcher.AwaitVersion(version));
    EXPECT_EQ(watcher.snapshot().version, version);
    EXPECT_EQ(watcher.snapshot().included, Sequence(0)) << "the other child's contribution is not its own";
    const std::vector<float> values = sender.Values();
    EXPECT_EQ(watcher.Values(), values);

    const std::vector<float> theta = node.Theta();
    const double bound = MakeCodec(GetParam(), FragmentSpan())->ErrorBound(1.0);  // No change is larger than 1.
    for (int64_t i = 0; i < kValues; ++i) ASSERT_NEAR(values[i], theta[i], bound + 1e-6) << i;
    if (GetParam() == CODEC_KIND_FP32) {
      EXPECT_EQ(values, theta);
    }
  }
  EXPECT_GT(node.version(), Version(5));
  EXPECT_TRUE(node.fatal().ok()) << node.fatal();
}

INSTANTIATE_TEST_SUITE_P(Codecs, FollowTest,
                         ::testing::Values(CODEC_KIND_FP32, CODEC_KIND_BF16, CODEC_KIND_INT8, CODEC_KIND_INT4,
                                           CODEC_KIND_INT2, CODEC_KIND_TOPK, CODEC_KIND_MIXED),
                         [](const auto& codec) { return CodecKind_Name(codec.param); });

// A contribution whose fragments a test lets come one by one.
class SlowContribution {
 public:
  SlowContribution(const std::vector<FragmentSpan>& fragments, float value)
      : whole_(Encode(CODEC_KIND_FP32, fragments, std::vector<float>(kValues, value))),
        sent_(std::make_shared<EncodedVector>()) {
    sent_->codec = CODEC_KIND_FP32;
    sent_->fragments.resize(whole_->fragments.size());
    std::vector<int64_t> sizes;
    for (const std::string& fragment : whole_->fragments) sizes.push_back(static_cast<int64_t>(fragment.size()));
    outgoing_ = std::make_shared<OutgoingPayload>(sent_, std::move(sizes));
  }
  ~SlowContribution() { outgoing_->Abandon(); }  // Where a test has failed, nobody is to wait for it.
  size_t fragments() const { return whole_->fragments.size(); }
  int64_t bytes() const { return outgoing_->bytes(); }
  const std::shared_ptr<OutgoingPayload>& outgoing() const { return outgoing_; }
  // Encodes the next fragment; how many bytes that makes in all.
  int64_t EncodeNext() {
    sent_->fragments[next_] = whole_->fragments[next_];
    outgoing_->Encoded();
    return encoded_ += outgoing_->sizes()[next_++];
  }
  int64_t encoded() const { return encoded_; }
  std::shared_ptr<const EncodedVector> sent() const { return sent_; }

 private:
  const std::shared_ptr<const EncodedVector> whole_;
  const std::shared_ptr<EncodedVector> sent_;
  std::shared_ptr<OutgoingPayload> outgoing_;
  size_t next_ = 0;
  int64_t encoded_ = 0;
};

// A node whose parameters are zeros, and a child of it that holds its first version.
class OneChildTest : public StreamsTest {
 protected:
  OneChildTest() { node_.Serve(); }
  // Whom the child calls: the node, or a relay before it.
  void Connect(const std::string& address, int member = 7, int in_flight_max = 1) {
    child_ = std::make_unique<TestChild>(address, member, fragments(), kSchema, GetParam(), in_flight_max);
    ASSERT_TRUE(child_->AwaitVersion(Version(1)));
  }
  // Sends `contribution_` while `encode` encodes it.
  absl::Status Send(absl::FunctionRef<absl::Status()> encode) {
    return child_->link().Send(
        TestManifest(1), [&](const Replica::Begun& begun) -> absl::StatusOr<std::shared_ptr<const EncodedVector>> {
          begun(contribution_.outgoing());
          if (absl::Status encoded = encode(); !encoded.ok()) return encoded;
          return contribution_.sent();
        });
  }
  void EncodeTheRest() {
    while (contribution_.encoded() < contribution_.bytes()) contribution_.EncodeNext();
  }
  // The child's one contribution, all of whose values are `value`, counts.
  void ExpectAccepted(float value) {
    ASSERT_TRUE(child_->AwaitAnswers(1));
    EXPECT_EQ(child_->answers()[0], std::make_pair(Sequence(1), VERDICT_ACCEPTED));
    EXPECT_EQ(node_.Theta(), std::vector<float>(kValues, value));
    EXPECT_EQ(node_.merged().size(), 1u);
  }
  const std::vector<FragmentSpan>& fragments() const { return options_.fragments; }

  const ParameterServer::Options options_ = TestNodeOptions(kValues, kFragmentBytes, TestLevel(1));
  TestNode node_{options_, std::vector<float>(kValues, 0.0f)};
  SlowContribution contribution_{fragments(), 2.0f};
  std::unique_ptr<TestChild> child_;
};
INSTANTIATE_TEST_SUITE_P(Connections, OneChildTest, ::testing::Values(1, 2, 7));

TEST_P(OneChildTest, WhatIsEncodedLeavesWhileTheRestIsBeingEncoded) {
  ASSERT_NO_FATAL_FAILURE(Connect(node_.address()));
  ASSERT_GT(contribution_.fragments(), 2u);
  const absl::Status sent = Send([&] {
    for (size_t f = 0; f < contribution_.fragments(); ++f) {
      const int64_t encoded = contribution_.EncodeNext();
      if (!child_->AwaitBytesUp(encoded)) return absl::DeadlineExceededError("nothing left before all was there");
    }
    return absl::OkStatus();
  });
  ASSERT_TRUE(sent.ok()) << sent;
  ExpectAccepted(2.0f);
  EXPECT_EQ(child_->link().payload_bytes_up(), contribution_.bytes());
}

TEST_P(OneChildTest, AConnectionThatBreaksWhileItIsEncodedCostsOnlyTheRepeat) {
  WanRelay::Options network;
  network.target = node_.address();
  const auto relay = WanRelay::Start(network);
  ASSERT_TRUE(relay.ok()) << relay.status();
  ASSERT_NO_FATAL_FAILURE(Connect((*relay)->address()));
  const absl::Status sent = Send([&] {
    EXPECT_TRUE(child_->AwaitBytesUp(contribution_.EncodeNext()));
    (*relay)->Reset();
    EncodeTheRest();
    return absl::OkStatus();
  });
  ASSERT_TRUE(sent.ok()) << sent;
  ExpectAccepted(2.0f);
}

TEST_P(OneChildTest, TheEndDoesNotWaitForMoreThanTheEncoder) {
  ASSERT_NO_FATAL_FAILURE(Connect(node_.address()));
  std::thread ending;
  const absl::Status sent = Send([&] {
    EXPECT_TRUE(child_->AwaitBytesUp(contribution_.EncodeNext()));
    ending = std::thread([&] { child_->link().Shutdown(); });
    EncodeTheRest();
    return absl::OkStatus();
  });
  ending.join();
  EXPECT_TRUE(sent.ok()) << sent;
}

TEST_P(OneChildTest, WhatIsNotEncodedToItsEndNeverWas) {
  ASSERT_NO_FATAL_FAILURE(Connect(node_.address()));
  const absl::Status sent = Send([&] {
    EXPECT_TRUE(child_->AwaitBytesUp(contribution_.EncodeNext()));
    contribution_.outgoing()->Abandon();
    return absl::InvalidArgumentError("value 5 is nan");
  });
  EXPECT_EQ(sent, absl::InvalidArgumentError("value 5 is nan"));
  // The same number is free for another one.
  child_->link().Send(TestManifest(1), Encode(CODEC_KIND_FP32, fragments(), std::vector<float>(kValues, 3.0f)));
  ExpectAccepted(3.0f);
  EXPECT_TRUE(child_->fatal().ok()) << child_->fatal();
  EXPECT_EQ(child_->written(), std::vector<Sequence>{Sequence(1)});
}

TEST_P(OneChildTest, ContributionsAreMergedOnceAndInOrder) {
  constexpr int64_t kCount = 20;
  ASSERT_NO_FATAL_FAILURE(Connect(node_.address()));
  for (int64_t s = 1; s <= kCount; ++s) {
    child_->link().Send(TestManifest(s),
                        Encode(CODEC_KIND_FP32, fragments(), std::vector<float>(kValues, static_cast<float>(s))));
  }
  ASSERT_TRUE(child_->AwaitAnswers(kCount));
  ASSERT_TRUE(child_->AwaitIncluded(Sequence(kCount)));
  const std::vector<Manifest> merged = node_.merged();
  ASSERT_EQ(merged.size(), static_cast<size_t>(kCount));
  const auto answers = child_->answers();
  for (int64_t s = 1; s <= kCount; ++s) {
    EXPECT_EQ(merged[s - 1].sequence, Sequence(s));
    EXPECT_EQ(merged[s - 1].sender.member, MemberId(7));
    EXPECT_EQ(answers[s - 1], std::make_pair(Sequence(s), VERDICT_ACCEPTED));
  }
  float sum = 0;
  for (const Manifest& manifest : merged) sum += static_cast<float>(manifest.sequence.value());
  EXPECT_EQ(node_.Theta(), std::vector<float>(kValues, sum));
  EXPECT_EQ(child_->Values(), std::vector<float>(kValues, sum));
  EXPECT_EQ(child_->link().contributions_sent(), kCount);
  EXPECT_EQ(child_->link().payload_bytes_up(), kCount * kValues * 4);
}

TEST_P(OneChildTest, GoesOnWhenItsConnectionsBreak) {
  constexpr int64_t kCount = 30;
  WanRelay::Options network;
  network.target = node_.address();
  network.up.delay = network.down.delay = absl::Milliseconds(2);
  const auto relay = WanRelay::Start(network);
  ASSERT_TRUE(relay.ok()) << relay.status();
  ASSERT_NO_FATAL_FAILURE(Connect((*relay)->address(), /*member=*/1, /*in_flight_max=*/3));
  for (int64_t s = 1; s <= kCount; ++s) {
    child_->link().Send(TestManifest(s), Encode(CODEC_KIND_FP32, fragments(), std::vector<float>(kValues, 1.0f)));
    if (s % 10 != 0) continue;
    ASSERT_TRUE(node_.AwaitMerged(static_cast<size_t>(s - 8))) << child_->fatal();
    (*relay)->Reset();  // The others of this round are on their way, and answers to some that were merged.
  }
  ASSERT_TRUE(child_->AwaitIncluded(Sequence(kCount))) << child_->fatal();
  ASSERT_TRUE(child_->AwaitAnswers(kCount)) << child_->fatal();
  EXPECT_EQ(node_.Theta(), std::vector<float>(kValues, static_cast<float>(kCount))) << "each was merged once";
  EXPECT_EQ(child_->Values(), node_.Theta());
  EXPECT_EQ(node_.Verdicts(), (std::map<Verdict, int64_t>{{VERDICT_ACCEPTED, kCount}}));
  EXPECT_TRUE(child_->fatal().ok()) << child_->fatal();
  EXPECT_GT((*relay)->stats(LinkDirection::kUp).connections, 2) << "it connected again";
}

// Loss bounds what one connection carries; several carry so many times as much, in both directions.
TEST(ParentLinkTest, SeveralConnectionsCarryMoreThanOneOverALossyLink) {
  constexpr int64_t kModelValues = int64_t{256} * 1024;
  const ParameterServer::Options options = TestNodeOptions(kModelValues, 256 << 10, TestLevel(1));
  std::map<int, std::pair<absl::Duration, absl::Duration>> took;  // Down and up, by streams.
  for (const int streams : {1, 8}) {
    TestNode node(options, std::vector<float>(kModelValues, 0.5f));
    node.Serve();
    WanRelay::Options network;
    network.target = node.address();
    network.up.delay = network.down.delay = absl::Milliseconds(10);
    network.up.loss = network.down.loss = 0.01;  // One connection carries 0.88 MB/s, and the model is 1 MB.
    const auto relay = WanRelay::Start(network);
    ASSERT_TRUE(relay.ok()) << relay.status();
    const absl::Time began = absl::Now();
    TestChild child((*relay)->address(), 1, options.fragments, kSchema, streams);
    ASSERT_TRUE(child.AwaitVersion(Version(1))) << child.fatal();
    took[streams].first = absl::Now() - began;
    EXPECT_EQ(child.Values(), node.Theta());
    const absl::Time sent = absl::Now();
    child.link().Send(TestManifest(1),
                      Encode(CODEC_KIND_FP32, options.fragments, std::vector<float>(kModelValues, 1.0f)));
    ASSERT_TRUE(child.AwaitAnswers(1)) << child.fatal();
    took[streams].second = absl::Now() - sent;
    EXPECT_EQ(child.answers().front().second, VERDICT_ACCEPTED);
    EXPECT_EQ(node.Theta(), std::vector<float>(kModelValues, 1.5f));
    if (streams > 1) {
      EXPECT_GE((*relay)->stats(LinkDirection::kUp).connections, 2 * streams);
    }
  }
  // Eight times is what the link does; less than twice would be one connection with luck.
  EXPECT_LT(took[8].first, took[1].first / 2) << took[1].first;
  EXPECT_LT(took[8].second, took[1].second / 2) << took[1].second;
}

TEST(ParentLinkTest, AFetchThatBreaksGoesOnWithTheNextFragment) {
  constexpr int64_t kModelValues = int64_t{128} * 1024;
  constexpr int64_t kModelBytes = kModelValues * 4;
  const ParameterServer::Options options = TestNodeOptions(kModelValues, 8192, TestLevel(1));
  std::vector<float> theta(kModelValues);
  std::iota(theta.begin(), theta.end(), 1.0f);
  TestNode node(options, theta);
  node.Serve();
  WanRelay::Options network;
  network.target = node.address();
  network.down.bandwidth_bits_per_s = 8e6;  // Half a second for the model.
  const auto relay = WanRelay::Start(network);
  ASSERT_TRUE(relay.ok()) << relay.status();
  TestChild child((*relay)->address(), 1, options.fragments);
  for (const int64_t share : {8, 4, 2}) {
    ASSERT_TRUE(child.AwaitBytesDown(kModelBytes / share)) << child.fatal();
    ASSERT_EQ(child.snapshot().version, Version(0)) << "it is over before it could break";
    (*relay)->Reset();
  }
  ASSERT_TRUE(child.AwaitVersion(Version(1))) << child.fatal();
  EXPECT_EQ(child.Values(), theta);
  EXPECT_EQ(child.link().payload_bytes_down(), kModelBytes) << "each fragment was received once";
  EXPECT_GE((*relay)->stats(LinkDirection::kUp).connections, 4);
}

// Begun anew each time it would pass over the link at least 1.75 times.
TEST_P(StreamsTest, AContributionThatBreaksOffGoesOnWithWhatIsMissing) {
  constexpr int64_t kModelValues = int64_t{512} * 1024;
  constexpr int64_t kModelBytes = kModelValues * 4;
  const ParameterServer::Options options = TestNodeOptions(kModelValues, 16384, TestLevel(1));
  TestNode node(options, std::vector<float>(kModelValues, 1.0f));
  node.Serve();
  WanRelay::Options network;
  network.target = node.address();
  network.up.bandwidth_bits_per_s = 16e6;  // A second for the model.
  const auto relay = WanRelay::Start(network);
  ASSERT_TRUE(relay.ok()) << relay.status();
  TestChild child((*relay)->address(), 1, options.fragments, kSchema, GetParam());
  ASSERT_TRUE(child.AwaitVersion(Version(1))) << child.fatal();
  const auto carried = [&] { return (*relay)->stats(LinkDirection::kUp).bytes; };
  const int64_t before = carried();
  child.link().Send(TestManifest(1),
                    Encode(CODEC_KIND_FP32, options.fragments, std::vector<float>(kModelValues, 2.0f)));
  for (int64_t quarter = 1; quarter <= 3; ++quarter) {
    while (carried() < before + quarter * kModelBytes / 4) std::this_thread::yield();
    ASSERT_TRUE(child.answers().empty()) << "it is over before it could break";
    (*relay)->Reset();
  }
  ASSERT_TRUE(child.AwaitAnswers(1)) << child.fatal();
  EXPECT_EQ(child.answers()[0], std::make_pair(Sequence(1), VERDICT_ACCEPTED));
  EXPECT_EQ(node.Theta(), std::vector<float>(kModelValues, 3.0f));
  EXPECT_EQ(node.merged().size(), 1u);
  EXPECT_LT(carried() - before, kModelBytes * 5 / 4) << "of " << kModelBytes;
}

TEST_P(StreamsTest, WhoDoesNotLookIsSentNoMore) {
  const ParameterServer::Options options = TestNodeOptions(kValues, kFragmentBytes, TestLevel(1, CODEC_KIND_BF16));
  TestNode node(options, RandomValues(1));
  node.Serve();
  TestChild child(node.address(), 1, options.fragments, kSchema, GetParam(), 1, /*versions_ahead=*/2);
  TestChild sender(node.address(), 2, options.fragments);
  ASSERT_TRUE(child.AwaitVersion(Version(1)));
  ASSERT_TRUE(sender.AwaitVersion(Version(1)));
  int64_t sequence = 0;
  const auto send = [&] {
    sender.link().Send(TestManifest(++sequence, sender.snapshot().version.value()),
                       Encode(CODEC_KIND_BF16, options.fragments, RandomValues(100, 0.1)));
    ASSERT_TRUE(sender.AwaitIncluded(Sequence(sequence)));
  };
  for (int round = 0; round < 3; ++round) {
    SCOPED_TRACE(round);
    const Version looked = child.snapshot().version;
    send();
    ASSERT_TRUE(child.AwaitVersion(Version(looked.value() + 1))) << "one that it looked at, and one to come";
    const Version held = child.snapshot().version;
    for (int i = 0; i < 4; ++i) send();
    EXPECT_EQ(child.snapshot().version, held);
    EXPECT_LT(held, sender.snapshot().version);
    child.link().VersionSeen();
    ASSERT_TRUE(child.AwaitVersion(sender.snapshot().version));
    EXPECT_EQ(child.Values(), sender.Values());
  }
  EXPECT_TRUE(node.fatal().ok()) << node.fatal();
}

// Of a Follow that is over, or that another life of the parent knew.
TEST(ParentLinkTest, NobodyAsksForMoreOfWhatIsNotThere) {
  const ParameterServer::Options options = TestNodeOptions(kValues, kFragmentBytes, TestLevel(1, CODEC_KIND_BF16));
  TestNode node(options, RandomValues(1));
  node.Serve();
  const auto stub = ParameterNode::NewStub(MakeChannel(node.address()));
  grpc::ClientContext context;
  SetDeadline(&context, kPatience);
  FollowMoreRequest request;
  request.mutable_part_of()->set_transfer(1);
  FollowMoreReply reply;
  EXPECT_EQ(stub->FollowMore(&context, request, &reply).error_code(), grpc::StatusCode::NOT_FOUND);
}

TEST(ParentLinkTest, FollowsANewServerThatTookThePlaceOfAnother) {
  const ParameterServer::Options options = TestNodeOptions(kValues, kFragmentBytes, TestLevel(1, CODEC_KIND_INT8));
  auto node = std::make_unique<TestNode>(options, RandomValues(1));
  node->Serve();
  const int port = node->port();
  TestChild child(node->address(), 1, options.fragments);
  ASSERT_TRUE(child.AwaitVersion(Version(1)));
  for (int64_t s = 1; s <= 3; ++s) {
    child.link().Send(TestManifest(s), Encode(CODEC_KIND_INT8, options.fragments, RandomValues(50, 0.1)));
  }
  ASSERT_TRUE(child.AwaitIncluded(Sequence(3)));
  ASSERT_TRUE(child.AwaitAnswers(3));  // Otherwise it would go on to ask the newcomer, who knows of none.
  EXPECT_EQ(child.backs(), 0);
  node.reset();

  // Another life, with other parameters and versions that begin again.
  node = std::make_unique<TestNode>(options, RandomValues(2));
  node->Serve(port);
  ASSERT_TRUE(child.AwaitValues(RandomValues(2)));
  EXPECT_EQ(child.snapshot().version, Version(1));
  child.link().Send(TestManifest(1), Encode(CODEC_KIND_INT8, options.fragments, RandomValues(51, 0.1)));
  ASSERT_TRUE(child.AwaitVersion(Version(2)));
  EXPECT_EQ(child.snapshot().included, Sequence(1));
  EXPECT_EQ(child.backs(), 1);
}

TEST_P(StreamsTest, AParentThatIsBackIsNoticedThoughItHasNothingNew) {
  const ParameterServer::Options options = TestNodeOptions(kValues, kFragmentBytes, TestLevel(1));
  TestNode node(options, RandomValues(1));
  node.Serve();
  TestChild child(node.address(), 1, options.fragments, kSchema, GetParam());
  ASSERT_TRUE(child.AwaitVersion(Version(1)));
  const int64_t bytes = child.link().payload_bytes_down();
  for (int times = 1; times <= 2; ++times) {
    const int port = node.port();
    node.StopServing();
    node.Serve(port);
    ASSERT_TRUE(child.AwaitBack(times));
  }
  EXPECT_EQ(child.link().payload_bytes_down(), bytes);
}

// A parent that says no until it is told to do otherwise, and remembers what it was asked.
class Doorkeeper final : public ParameterNode::Service {
 public:
  Doorkeeper() { server_.Start(); }
  std::string address() const { return server_.address(); }
  void Say(grpc::StatusCode code) { code_ = code; }

  grpc::Status Contribute(grpc::ServerContext* context, grpc::ServerReader<ContributeMessage>* reader,
                          ContributeReply* reply) override {
    if (context->client_metadata().count(kAgain) > 0) reader->SendInitialMetadata();  // It has nothing of it.
    ContributeMessage message;
    while (reader->Read(&message)) {
    }
    ++contributions;
    reply->set_verdict(VERDICT_ACCEPTED);
    return grpc::Status(code_, "so it was told");
  }
  grpc::Status Follow(grpc::ServerContext*, const FollowRequest* request, grpc::ServerWriter<FollowMessage>*) override {
    watched.Update([&] { next_sequences.push_back(request->next_sequence()); });
    return grpc::Status(code_ == grpc::StatusCode::OK ? grpc::StatusCode::UNAVAILABLE : code_.load(), "so it was told");
  }
  bool AwaitNextSequence(int64_t sequence) {
    return watched.Await([&] { return !next_sequences.empty() && next_sequences.back() == sequence; });
  }

  Watched watched;
  std::vector<int64_t> next_sequences;  // Under watched.
  std::atomic<int> contributions{0};

 private:
  std::atomic<grpc::StatusCode> code_{grpc::StatusCode::OK};
  TestServer server_{this};
};

// A parent that has read contributions and keeps its answers back.
class Ponderer final : public ParameterNode::Service {
 public:
  Ponderer() { server_.Start(); }
  ~Ponderer() override { Answer(1000); }
  std::string address() const { return server_.address(); }
  // The first `sequence` of them.
  void Answer(int64_t sequence) {
    watched.Update([&] { answered_ = sequence; });
  }
  bool AwaitRead(size_t count) {
    return watched.Await([&] { return read.size() >= count; });
  }

  grpc::Status Contribute(grpc::ServerContext* context, grpc::ServerReader<ContributeMessage>* reader,
                          ContributeReply* reply) override {
    if (context->client_metadata().count(kAgain) > 0) reader->SendInitialMetadata();  // It has nothing of it.
    ContributeMessage message;
    if (!reader->Read(&message)) return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "nothing");
    const int64_t sequence = message.header().sequence();
    watched.Update([&] { most = std::max(most, ++under_way_); });
    while (reader->Read(&message)) {
    }
    watched.Update([&] { read.push_back(sequence); });
    watched.Await([&] { return answered_ >= sequence; });
    watched.Update([&] { --under_way_; });
    reply->set_verdict(VERDICT_ACCEPTED);
    return grpc::Status::OK;
  }

  Watched watched;
  std::vector<int64_t> read;  // Under watched, as are the next.
  int most = 0;

 private:
  int64_t answered_ = 0;
  int under_way_ = 0;
  TestServer server_{this};
};

TEST_P(StreamsTest, AsManyAsMayAreUnderWayAndEachBeginsAfterTheOneBeforeIt) {
  Ponderer parent;
  const std::vector<FragmentSpan> fragments = CutFragments(kValues, kFragmentBytes);
  TestChild child(parent.address(), 1, fragments, kSchema, /*streams=*/1, /*in_flight_max=*/GetParam());
  constexpr int64_t kCount = 20;
  const auto in_flight = static_cast<size_t>(GetParam());
  for (int64_t s = 1; s <= kCount; ++s) {
    child.link().Send(TestManifest(s), Encode(CODEC_KIND_FP32, fragments, RandomValues(1)));
  }
  ASSERT_TRUE(parent.AwaitRead(in_flight));
  ASSERT_TRUE(child.AwaitWritten(in_flight));
  EXPECT_EQ(child.answers().size(), 0u);
  parent.Answer(kCount);
  ASSERT_TRUE(child.AwaitAnswers(kCount)) << child.fatal();
  EXPECT_EQ(parent.watched.Get([&] { return parent.most; }), GetParam());
  std::vector<Sequence> in_order;
  for (int64_t s = 1; s <= kCount; ++s) in_order.emplace_back(s);
  EXPECT_EQ(child.written(), in_order);
  EXPECT_EQ(child.link().contributions_sent(), kCount);
}

TEST(ParentLinkTest, AParentThatDoesNotWantTheChildIsAskedAgain) {
  for (const grpc::StatusCode code : {grpc::StatusCode::ABORTED, grpc::StatusCode::UNAVAILABLE,
                                      grpc::StatusCode::INTERNAL, grpc::StatusCode::NOT_FOUND}) {
    Doorkeeper parent;
    parent.Say(code);
    const std::vector<FragmentSpan> fragments = CutFragments(kValues, kFragmentBytes);
    TestChild child(parent.address(), 1, fragments);
    child.link().Send(TestManifest(1), Encode(CODEC_KIND_FP32, fragments, RandomValues(1)));
    ASSERT_TRUE(parent.watched.Await([&] { return parent.next_sequences.size() >= 3 && parent.contributions >= 3; }));
    EXPECT_TRUE(child.fatal().ok()) << child.fatal();
    EXPECT_TRUE(parent.watched.Get([&] { return parent.next_sequences.back() == 1; })) << "nothing was answered";
    parent.Say(grpc::StatusCode::OK);
    ASSERT_TRUE(child.AwaitAnswers(1)) << child.fatal();
    EXPECT_TRUE(parent.AwaitNextSequence(2));
  }
}

TEST(ParentLinkTest, ANewParentLearnsWhereTheSequencesBegin) {
  Doorkeeper parent;
  ParentLink::Options options;
  options.address = parent.address();
  options.self = {MemberId(1), Incarnation(1)};
  options.fragments = CutFragments(kValues, kFragmentBytes);
  options.first_sequence = Sequence(17);
  ParentLink::Callbacks callbacks;
  callbacks.on_version = [] {};
  callbacks.on_answer = [](Sequence, Verdict, const std::string&) {};
  callbacks.on_fatal = [](const absl::Status&) {};
  ParentLink link(options, std::move(callbacks));
  EXPECT_TRUE(parent.AwaitNextSequence(17));
  link.Send(TestManifest(17), Encode(CODEC_KIND_FP32, options.fragments, RandomValues(1)));
  EXPECT_TRUE(parent.AwaitNextSequence(18));
}

TEST(ParentLinkTest, AChildWithAnotherModelIsTurnedAway) {
  const ParameterServer::Options options = TestNodeOptions(kValues, kFragmentBytes, TestLevel(1));
  TestNode node(options, RandomValues(1));
  node.Serve();
  TestChild child(node.address(), 3, options.fragments, "another-schema");
  ASSERT_TRUE(child.AwaitFatal());
  EXPECT_EQ(child.fatal().code(), absl::StatusCode::kFailedPrecondition) << child.fatal();
  EXPECT_NE(child.fatal().message().find("member 3"), absl::string_view::npos) << child.fatal();
  EXPECT_EQ(child.snapshot().version, Version(0));
}

TEST(ParentLinkTest, ShutdownIsPromptWhoeverIsAway) {
  const std::vector<FragmentSpan> fragments = CutFragments(kValues, kFragmentBytes);
  auto node = std::make_unique<TestNode>(TestNodeOptions(kValues, kFragmentBytes, TestLevel(1)), RandomValues(1));
  node->Serve();
  auto followed = std::make_unique<TestChild>(node->address(), 1, fragments);
  ASSERT_TRUE(followed->AwaitVersion(Version(1)));
  const std::string address = node->address();
  node.reset();  // A follower is connected.
  // Its parent is away, and something waits to be sent.
  followed->link().Send(TestManifest(1), Encode(CODEC_KIND_FP32, fragments, RandomValues(2)));
  auto never_connected = std::make_unique<TestChild>(address, 2, fragments);
  never_connected->link().Send(TestManifest(1), Encode(CODEC_KIND_FP32, fragments, RandomValues(2)));
  const absl::Time begin = absl::Now();
  followed.reset();
  never_connected.reset();
  EXPECT_LT(absl::Now() - begin, absl::Seconds(5));
}

}  // namespace
}  // namespace wukong
