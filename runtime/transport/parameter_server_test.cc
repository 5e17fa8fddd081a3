// What a node does with contributions that are repeated, malformed, refused, or too many: messages sent by hand.
#include <cstring>
#include <functional>
#include <future>
#include <limits>
#include <thread>

#include "runtime/base/manual_clock.h"
#include "runtime/transport/transport_test_util.h"

namespace wukong {
namespace {

constexpr int64_t kContributionBytes = kValues * 4;

using ContributeMessages = std::vector<ContributeMessage>;

// Sets one value, past what an encoder would let through, and makes the checksum fit.
void Poison(float value, ContributeMessages* messages) {
  std::string* payload = messages->at(2).mutable_fragment()->mutable_payload();
  std::memcpy(payload->data() + 17 * sizeof(value), &value, sizeof(value));
  EncodedVector whole;
  for (size_t i = 1; i + 1 < messages->size(); ++i) whole.fragments.push_back(messages->at(i).fragment().payload());
  messages->back().mutable_end()->set_payload_checksum(whole.checksum());
}

class ParameterServerTest : public ::testing::Test {
 protected:
  void Start(const Level& level, int64_t in_flight_bytes, int children = 1) {
    options_ = TestNodeOptions(kValues, kFragmentBytes, level);
    options_.in_flight_bytes = in_flight_bytes;
    StartAsOptionsSay(children);
  }
  void StartAsOptionsSay(int children = 1) {
    node_ = std::make_unique<TestNode>(options_, std::vector<float>(kValues, 1.0f));
    node_->Serve();
    stub_ = ParameterNode::NewStub(MakeChannel(node_->address()));
    for (int c = 1; c <= children; ++c) {
      children_.push_back(std::make_unique<TestChild>(node_->address(), c, options_.fragments));
      ASSERT_TRUE(children_.back()->AwaitVersion(Version(1)));
    }
  }

  std::shared_ptr<EncodedVector> Payload(float value) const {
    return Encode(CODEC_KIND_FP32, options_.fragments, std::vector<float>(kValues, value));
  }
  ContributeMessages Good(int64_t sequence, float value = 1.0f,
                          MemberKey sender = {MemberId(1), Incarnation(1)}) const {
    return Messages(sender, TestManifest(sequence), *Payload(value));
  }
  Verdict Send(const ContributeMessages& messages) {
    ContributeReply reply;
    const grpc::Status status = SendByHand(stub_.get(), messages, &reply);
    EXPECT_TRUE(status.ok()) << status.error_code() << " " << status.error_message();
    return status.ok() ? reply.verdict() : VERDICT_UNSPECIFIED;
  }

  // A call that has brought the first fragment, and no more yet.
  struct Begun {
    grpc::ClientContext context;
    ContributeReply reply;
    std::unique_ptr<grpc::ClientWriter<ContributeMessage>> writer;
  };
  std::unique_ptr<Begun> Begin(const ContributeMessages& messages) {
    auto begun = std::make_unique<Begun>();
    SetDeadline(&begun->context, kPatience);
    begun->writer = stub_->Contribute(&begun->context, &begun->reply);
    begun->writer->Write(messages[0]);
    begun->writer->Write(messages[1]);
    return begun;
  }
  // A call for a contribution of which an earlier one broke off.
  std::unique_ptr<Begun> BeginAgain(const ContributeMessage& header) {
    auto begun = std::make_unique<Begun>();
    SetDeadline(&begun->context, kPatience);
    begun->context.AddMetadata(kAgain, "1");
    begun->writer = stub_->Contribute(&begun->context, &begun->reply);
    begun->writer->Write(header);
    begun->writer->WaitForInitialMetadata();
    return begun;
  }
  // What the node says that it has.
  static std::string Whole(const Begun& begun) {
    const auto& metadata = begun.context.GetServerInitialMetadata();
    const auto found = metadata.find(kWholeFragments);
    return found == metadata.end() ? "nothing is said" : std::string(found->second.data(), found->second.size());
  }
  // Messages [from, end), and their end.
  static grpc::Status SendRest(Begun* begun, const ContributeMessages& messages, size_t from) {
    for (size_t i = from; i < messages.size(); ++i) begun->writer->Write(messages[i]);
    begun->writer->WritesDone();
    return begun->writer->Finish();
  }
  // The first call of a test has brought the first fragment, and breaks off.
  void BreakOff(const ContributeMessages& messages) {
    const auto begun = Begin(messages);
    while (node_->server().staged_bytes_max() == 0) std::this_thread::yield();
    begun->context.TryCancel();
    begun->writer->Finish();
    while (node_->server().broken_off() == 0) std::this_thread::yield();
  }

  ParameterServer::Options options_;
  std::unique_ptr<TestNode> node_;
  std::unique_ptr<ParameterNode::Stub> stub_;
  std::vector<std::unique_ptr<TestChild>> children_;
};

TEST_F(ParameterServerTest, ARepeatGetsTheFirstVerdictAndChangesNothing) {
  Start(TestLevel(1), 64 << 20);
  EXPECT_EQ(Send(Good(1)), VERDICT_ACCEPTED);
  const std::vector<float> theta = node_->Theta();
  EXPECT_EQ(theta, std::vector<float>(kValues, 2.0f));
  EXPECT_EQ(Send(Good(1)), VERDICT_ACCEPTED);
  EXPECT_EQ(Send(Good(1, 100.0f)), VERDICT_ACCEPTED) << "also with another payload";

  ContributeMessages poisoned = Good(2);
  Poison(std::numeric_limits<float>::quiet_NaN(), &poisoned);
  EXPECT_EQ(Send(poisoned), VERDICT_NON_FINITE);
  EXPECT_EQ(Send(Good(2)), VERDICT_NON_FINITE) << "the first verdict, although this one is good";
  EXPECT_EQ(node_->Theta(), theta);
  EXPECT_EQ(Send(Good(3)), VERDICT_ACCEPTED) << "a refusal is a decision too: the next sequence follows it";
  ASSERT_TRUE(node_->AwaitMerged(2));
  EXPECT_EQ(node_->Theta(), std::vector<float>(kValues, 3.0f));
  EXPECT_EQ(node_->merged().size(), 2u);
  EXPECT_EQ(node_->Verdicts(), (std::map<Verdict, int64_t>{{VERDICT_ACCEPTED, 2}, {VERDICT_NON_FINITE, 1}}));
}

// With a large model a lost answer would cost as much as the contribution did.
TEST_F(ParameterServerTest, WhoWasNotAnsweredNeedNotSendTheBytesAgain) {
  Start(TestLevel(1), 64 << 20);
  ASSERT_EQ(Send(Good(1)), VERDICT_ACCEPTED);
  const ContributeMessages header = {Good(1).front()};
  EXPECT_EQ(Send(header), VERDICT_ACCEPTED);
  const ContributeMessages next = {Good(2).front()};
  ContributeReply reply;
  EXPECT_EQ(SendByHand(stub_.get(), next, &reply).error_code(), grpc::StatusCode::INVALID_ARGUMENT)
      << "this one was never there";
  EXPECT_EQ(node_->Theta(), std::vector<float>(kValues, 2.0f));
}

TEST_F(ParameterServerTest, AFenceEndsWhatItsChildIsSending) {
  Start(TestLevel(1), kFragmentBytes / 2, /*children=*/2);  // Room for one.
  const auto still = Begin(Good(1));
  while (node_->server().staged_bytes_max() == 0) std::this_thread::yield();
  node_->server().Fence({MemberId(1), Incarnation(1)}, [](const std::vector<LeasedRange>&) {});
  EXPECT_EQ(Send(Good(1, 1.0f, {MemberId(2), Incarnation(1)})), VERDICT_ACCEPTED) << "there is room for it";
  EXPECT_EQ(still->writer->Finish().error_code(), grpc::StatusCode::CANCELLED);
}

TEST_F(ParameterServerTest, WhatCameBeforeItBrokeOffNeedNotComeAgain) {
  Start(TestLevel(1), 64 << 20);
  const ContributeMessages messages = Good(1);
  BreakOff(messages);
  const auto again = BeginAgain(messages[0]);
  EXPECT_EQ(Whole(*again), "\1");
  const grpc::Status status = SendRest(again.get(), messages, 2);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(again->reply.verdict(), VERDICT_ACCEPTED);
  EXPECT_EQ(node_->Theta(), std::vector<float>(kValues, 2.0f));
  EXPECT_EQ(Whole(*BeginAgain(Good(2)[0])), "") << "nothing came of this one";
}

TEST_F(ParameterServerTest, AConnectionWhoseShareWasThereHasNothingToBring) {
  Start(TestLevel(1), 64 << 20);
  ContributeMessages messages = Good(1);
  BreakOff(messages);
  messages[0].mutable_header()->set_streams(2);
  messages[0].mutable_header()->set_transfer(17);
  const auto again = BeginAgain(messages[0]);
  EXPECT_EQ(Whole(*again), "\1");
  grpc::ClientContext context;
  SetDeadline(&context, kPatience);
  ContributePartReply reply;
  const auto writer = stub_->ContributePart(&context, &reply);
  ContributePartMessage part;
  part.mutable_part_of()->set_member(1);
  part.mutable_part_of()->set_incarnation(1);
  part.mutable_part_of()->set_transfer(17);
  writer->Write(part);
  writer->WritesDone();
  EXPECT_TRUE(writer->Finish().ok());
  EXPECT_TRUE(SendRest(again.get(), messages, 2).ok());
  EXPECT_EQ(again->reply.verdict(), VERDICT_ACCEPTED);
  EXPECT_EQ(node_->Theta(), std::vector<float>(kValues, 2.0f));
}

// Where no packet comes through any more, the sender notices before the node does, and perhaps more than once.
TEST_F(ParameterServerTest, WhatCameIsTakenFromCallsThatStillSeemToGoOn) {
  Start(TestLevel(1), 64 << 20);
  const ContributeMessages messages = Good(1);
  BreakOff(messages);
  ContributeMessage header = messages[0];
  std::vector<std::unique_ptr<Begun>> calls;
  for (int call = 1; call <= 3; ++call) {
    header.mutable_header()->set_transfer(16 + call);
    calls.push_back(BeginAgain(header));
    EXPECT_EQ(Whole(*calls.back()), "\1") << "call " << call;
  }
  EXPECT_TRUE(SendRest(calls.back().get(), messages, 2).ok());
  EXPECT_EQ(calls.back()->reply.verdict(), VERDICT_ACCEPTED);
  EXPECT_EQ(node_->Theta(), std::vector<float>(kValues, 2.0f));
  for (size_t call = 0; call < 2; ++call) {
    EXPECT_EQ(SendRest(calls[call].get(), messages, 1).error_code(), grpc::StatusCode::CANCELLED);
  }
  EXPECT_EQ(node_->server().broken_off(), 0);
}

TEST_F(ParameterServerTest, WhatCameDamagedBeforeItBrokeOffIsNotKeptForLong) {
  Start(TestLevel(1), 64 << 20);
  const ContributeMessages messages = Good(1);
  ContributeMessages damaged = messages;
  damaged[1].mutable_fragment()->mutable_payload()->at(3) ^= 1;
  BreakOff(damaged);
  auto again = BeginAgain(messages[0]);
  EXPECT_EQ(Whole(*again), "\1");
  EXPECT_EQ(SendRest(again.get(), messages, 2).error_code(), grpc::StatusCode::UNAVAILABLE) << "its checksum is wrong";
  again = BeginAgain(messages[0]);
  EXPECT_EQ(Whole(*again), "");
  EXPECT_TRUE(SendRest(again.get(), messages, 1).ok());
  EXPECT_EQ(node_->Theta(), std::vector<float>(kValues, 2.0f));
}

TEST_F(ParameterServerTest, WhatBrokeOffMakesRoomForOthers) {
  Start(TestLevel(1), kContributionBytes, /*children=*/2);  // Room for one.
  BreakOff(Good(1));
  EXPECT_EQ(Send(Good(1, 1.0f, {MemberId(2), Incarnation(1)})), VERDICT_ACCEPTED);
  EXPECT_EQ(node_->server().broken_off(), 0);
  EXPECT_LE(node_->server().staged_bytes_max(), kContributionBytes);
  const auto again = BeginAgain(Good(1)[0]);
  EXPECT_EQ(Whole(*again), "");
  EXPECT_TRUE(SendRest(again.get(), Good(1), 1).ok());
  EXPECT_EQ(again->reply.verdict(), VERDICT_ACCEPTED);
}

// An encoder that fails leaves its number to another one.
TEST_F(ParameterServerTest, WhatBrokeOffIsNotMixedWithAnotherOfItsNumber) {
  Start(TestLevel(1), 64 << 20);
  BreakOff(Good(1));
  EXPECT_EQ(Send(Good(1, 3.0f)), VERDICT_ACCEPTED);
  EXPECT_EQ(node_->Theta(), std::vector<float>(kValues, 4.0f));
  EXPECT_EQ(node_->server().broken_off(), 0);
}

TEST_F(ParameterServerTest, NothingIsKeptOfAFencedChild) {
  Start(TestLevel(1), 64 << 20);
  BreakOff(Good(1));
  const auto still = BeginAgain(Good(1)[0]);
  EXPECT_EQ(Whole(*still), "\1");
  node_->server().Fence({MemberId(1), Incarnation(1)}, [](const std::vector<LeasedRange>&) {});
  EXPECT_EQ(still->writer->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(Whole(*BeginAgain(Good(1)[0])), "");
}

TEST_F(ParameterServerTest, OneThatOvertookAnotherWaitsForItAndNotInItsWay) {
  Start(TestLevel(1), kContributionBytes);  // Room for one.
  const ContributeMessages first = Good(1), second = Good(2);
  std::thread early([&] { EXPECT_EQ(Send(second), VERDICT_ACCEPTED); });
  while (node_->server().staged_bytes_max() == 0) std::this_thread::yield();
  EXPECT_EQ(Send(first), VERDICT_ACCEPTED);
  early.join();
  ASSERT_TRUE(node_->AwaitMerged(2));
  EXPECT_EQ(node_->merged()[0].sequence, Sequence(1));
  EXPECT_EQ(node_->Theta(), std::vector<float>(kValues, 3.0f));
}

TEST_F(ParameterServerTest, ASequenceThatIsFarAheadMayComeAgain) {
  Start(TestLevel(1), 64 << 20);
  EXPECT_EQ(Send(Good(5)), VERDICT_OUT_OF_ORDER) << "four may be in flight";
  EXPECT_EQ(Send(Good(1)), VERDICT_ACCEPTED);
}

TEST_F(ParameterServerTest, ACallForAnotherLifeOfTheNodeIsNotAnswered) {
  options_ = TestNodeOptions(kValues, kFragmentBytes, TestLevel(1));
  options_.self = {MemberId(3), Incarnation(2)};
  node_ = std::make_unique<TestNode>(options_, std::vector<float>(kValues, 1.0f));
  node_->Serve();
  stub_ = ParameterNode::NewStub(MakeChannel(node_->address()));
  const auto follow = [&](const std::string& meant_for) {
    grpc::ClientContext context;
    SetDeadline(&context, kPatience);
    context.AddMetadata(kMeantFor, meant_for);
    FollowRequest request;
    request.set_member(1);
    request.set_incarnation(1);
    request.set_schema_digest(kSchema);
    request.set_next_sequence(5);
    auto reader = stub_->Follow(&context, request);
    FollowMessage message;
    if (!reader->Read(&message)) return reader->Finish();
    context.TryCancel();
    reader->Finish();
    return grpc::Status::OK;
  };
  ContributeReply reply;
  EXPECT_EQ(follow("3.1").error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(SendByHand(stub_.get(), Good(5), &reply, "3.1").error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(node_->Verdicts().empty());
  // Had the first one counted, the next contribution to be taken would be 5.
  EXPECT_TRUE(follow("3.2").ok());
  EXPECT_TRUE(SendByHand(stub_.get(), Good(1), &reply, "3.2").ok());
  EXPECT_EQ(reply.verdict(), VERDICT_ACCEPTED);
}

struct Malformed {
  const char* name;
  grpc::StatusCode expected;
  std::function<void(ContributeMessages*)> spoil;
};

TEST_F(ParameterServerTest, AMalformedContributionChangesNothing) {
  // Room for one: if a refused one kept its place, no other would ever get in.
  Start(TestLevel(1), kContributionBytes);
  using M = ContributeMessages;
  const auto header = [](M* m) { return m->front().mutable_header(); };
  const auto payload = [](M* m, size_t i) { return m->at(i).mutable_fragment()->mutable_payload(); };
  const std::vector<Malformed> cases = {
      {"nothing at all", grpc::INVALID_ARGUMENT, [](M* m) { m->clear(); }},
      {"no header", grpc::INVALID_ARGUMENT, [](M* m) { m->erase(m->begin()); }},
      {"a message of no kind", grpc::INVALID_ARGUMENT, [](M* m) { m->front().Clear(); }},
      {"another model", grpc::FAILED_PRECONDITION, [&](M* m) { header(m)->set_schema_digest("other"); }},
      {"another codec", grpc::INVALID_ARGUMENT, [&](M* m) { header(m)->set_codec(CODEC_KIND_BF16); }},
      {"an unknown codec", grpc::INVALID_ARGUMENT, [&](M* m) { header(m)->set_codec(static_cast<CodecKind>(77)); }},
      {"too few fragments said", grpc::INVALID_ARGUMENT, [&](M* m) { header(m)->set_fragments(3); }},
      {"too many fragments said", grpc::INVALID_ARGUMENT, [&](M* m) { header(m)->set_fragments(2'000'000'000); }},
      {"sequence 0", grpc::INVALID_ARGUMENT, [&](M* m) { header(m)->set_sequence(0); }},
      {"negative tokens", grpc::INVALID_ARGUMENT, [&](M* m) { header(m)->set_tokens(-1); }},
      {"negative steps", grpc::INVALID_ARGUMENT, [&](M* m) { header(m)->set_steps(-5); }},
      {"more ranges than any worker has", grpc::INVALID_ARGUMENT,
       [&](M* m) {
         for (int i = 0; i <= 100000; ++i) header(m)->add_ranges()->set_end(1);
       }},
      {"a range of nothing", grpc::INVALID_ARGUMENT, [&](M* m) { header(m)->add_ranges(); }},
      {"a short fragment", grpc::INVALID_ARGUMENT, [&](M* m) { payload(m, 1)->pop_back(); }},
      {"a long fragment", grpc::INVALID_ARGUMENT, [&](M* m) { payload(m, 4)->push_back('x'); }},
      {"an empty fragment", grpc::INVALID_ARGUMENT, [&](M* m) { payload(m, 2)->clear(); }},
      {"bytes beyond a fragment", grpc::INVALID_ARGUMENT, [](M* m) { m->at(1).mutable_fragment()->set_offset(1); }},
      {"bytes before a fragment", grpc::INVALID_ARGUMENT, [](M* m) { m->at(1).mutable_fragment()->set_offset(-1); }},
      {"fewer bytes said", grpc::INVALID_ARGUMENT, [&](M* m) { header(m)->set_payload_bytes(10); }},
      {"more bytes said", grpc::INVALID_ARGUMENT, [&](M* m) { header(m)->set_payload_bytes(int64_t{1} << 60); }},
      {"negative bytes", grpc::INVALID_ARGUMENT, [&](M* m) { header(m)->set_payload_bytes(-1); }},
      {"no connection", grpc::INVALID_ARGUMENT, [&](M* m) { header(m)->set_streams(0); }},
      {"too many connections", grpc::INVALID_ARGUMENT, [&](M* m) { header(m)->set_streams(1000); }},
      {"a fragment twice", grpc::INVALID_ARGUMENT, [](M* m) { m->at(3) = m->at(2); }},
      {"a negative index", grpc::INVALID_ARGUMENT, [](M* m) { m->at(1).mutable_fragment()->set_index(-1); }},
      {"a second header", grpc::INVALID_ARGUMENT, [](M* m) { m->at(2) = m->at(0); }},
      {"a missing fragment", grpc::INVALID_ARGUMENT, [](M* m) { m->erase(m->end() - 2); }},
      {"a header and no more", grpc::INVALID_ARGUMENT, [](M* m) { m->resize(1); }},
      {"a fragment too many", grpc::INVALID_ARGUMENT, [](M* m) { m->insert(m->end() - 1, *(m->end() - 2)); }},
      {"no end", grpc::INVALID_ARGUMENT, [](M* m) { m->pop_back(); }},
      {"an end before a fragment", grpc::INVALID_ARGUMENT, [](M* m) { std::swap(m->back(), *(m->end() - 2)); }},
      {"two ends", grpc::INVALID_ARGUMENT, [](M* m) { m->push_back(m->back()); }},
      // Damage on the way is worth another try.
      {"a flipped bit", grpc::UNAVAILABLE, [&](M* m) { payload(m, 3)->at(5) ^= 4; }},
      {"another checksum", grpc::UNAVAILABLE, [](M* m) { m->back().mutable_end()->set_payload_checksum(1); }},
  };
  const std::vector<float> theta = node_->Theta();
  for (const Malformed& malformed : cases) {
    SCOPED_TRACE(malformed.name);
    ContributeMessages messages = Good(1);
    malformed.spoil(&messages);
    ContributeReply reply;
    const grpc::Status status = SendByHand(stub_.get(), messages, &reply);
    EXPECT_EQ(status.error_code(), malformed.expected) << status.error_message();
    EXPECT_FALSE(status.error_message().empty());
    EXPECT_EQ(reply.verdict(), VERDICT_UNSPECIFIED);
    EXPECT_TRUE(node_->Verdicts().empty());
    EXPECT_EQ(node_->version(), Version(1));
    EXPECT_EQ(node_->Theta(), theta);
  }
  EXPECT_EQ(Send(Good(1)), VERDICT_ACCEPTED) << "the same sequence, well-formed";
}

// Of a connection that died without a word the child knows before the node does.
TEST_F(ParameterServerTest, WhoFollowsAnewIsBroughtToTheVersionThatItWasBroughtTo) {
  constexpr int64_t kMany = int64_t{8} << 20;  // More than connections have room for.
  options_ = TestNodeOptions(kMany, 1 << 20, TestLevel(1));
  node_ = std::make_unique<TestNode>(options_, std::vector<float>(kMany, 1.0f));
  node_->Serve();
  FollowRequest request;
  request.set_member(1);
  request.set_incarnation(1);
  request.set_schema_digest(kSchema);
  request.set_next_sequence(1);
  request.set_transfer(1);
  for (size_t f = 0; f < options_.fragments.size(); ++f) request.add_fragment_versions(0);
  const auto first = ParameterNode::NewStub(MakeChannel(node_->address()));
  grpc::ClientContext dead;
  SetDeadline(&dead, kPatience);
  const auto silent = first->Follow(&dead, request);
  FollowMessage message;
  ASSERT_TRUE(silent->Read(&message));
  ASSERT_EQ(message.fragment().version(), 1);
  request.set_fragment_versions(message.fragment().index(), 1);

  // The next version comes meanwhile.
  TestChild other(node_->address(), 2, options_.fragments);
  ASSERT_TRUE(other.AwaitVersion(Version(1)));
  other.link().Send(TestManifest(1), Encode(CODEC_KIND_FP32, options_.fragments, std::vector<float>(kMany, 1.0f)));
  ASSERT_TRUE(other.AwaitVersion(Version(2)));
  const auto second = ParameterNode::NewStub(MakeChannel(node_->address()));
  grpc::ClientContext context;
  SetDeadline(&context, kPatience);
  request.set_transfer(2);
  const auto anew = second->Follow(&context, request);
  size_t fragments = 0;
  while (anew->Read(&message) && !message.has_complete()) {
    EXPECT_EQ(message.fragment().version(), 1);
    ++fragments;
  }
  EXPECT_EQ(message.complete().version(), 1);
  EXPECT_EQ(fragments, options_.fragments.size() - 1) << "one was there";
  context.TryCancel();
  anew->Finish();
  dead.TryCancel();
  silent->Finish();
}

TEST_F(ParameterServerTest, TokensAreThoseOfTheSamples) {
  options_ = TestNodeOptions(kValues, kFragmentBytes, TestLevel(1));
  options_.tokens_per_sample = 5;
  StartAsOptionsSay();
  ContributeMessages messages = Good(1);
  SampleRange* range = messages.front().mutable_header()->add_ranges();
  range->set_begin(7);
  range->set_end(9);
  for (const int64_t tokens : {int64_t{0}, int64_t{5}, int64_t{11}, int64_t{1} << 60}) {
    messages.front().mutable_header()->set_tokens(tokens);
    ContributeReply reply;
    EXPECT_EQ(SendByHand(stub_.get(), messages, &reply).error_code(), grpc::StatusCode::INVALID_ARGUMENT) << tokens;
  }
  messages.front().mutable_header()->set_tokens(10);
  EXPECT_EQ(Send(messages), VERDICT_ACCEPTED);
}

TEST_F(ParameterServerTest, SamplesAreNamedOnceAndAreMadeInAsManyStepsAsTheyTake) {
  options_ = TestNodeOptions(kValues, kFragmentBytes, TestLevel(1));
  options_.samples_per_step = 2;
  StartAsOptionsSay();
  ContributeMessages messages = Good(1);
  ContributionHeader* header = messages.front().mutable_header();
  const auto send = [&](const std::vector<std::pair<int64_t, int64_t>>& ranges, int64_t steps) {
    header->clear_ranges();
    for (const auto& [begin, end] : ranges) {
      SampleRange* range = header->add_ranges();
      range->set_begin(begin);
      range->set_end(end);
    }
    header->set_steps(steps);
    ContributeReply reply;
    const grpc::Status status = SendByHand(stub_.get(), messages, &reply);
    return status.ok() ? VerdictName(reply.verdict()) : status.error_message();
  };
  EXPECT_THAT(send({{7, 9}, {20, 22}, {8, 10}}, 3), testing::HasSubstr("sample 8 is named twice"));
  EXPECT_THAT(send({{7, 9}, {7, 9}}, 2), testing::HasSubstr("sample 7 is named twice"));
  EXPECT_THAT(send({{7, 9}, {9, 12}}, 2), testing::HasSubstr("5 samples in 2 steps, expected at most 2 in one"));
  EXPECT_THAT(send({{7, 9}}, 0), testing::HasSubstr("2 samples in 0 steps"));
  EXPECT_EQ(send({{9, 12}, {7, 9}}, 3), VerdictName(VERDICT_ACCEPTED));
}

TEST_F(ParameterServerTest, WhatIsNotFiniteIsRefusedAndTheNodeKeepsItsParameters) {
  Start(TestLevel(1), kContributionBytes);
  const float bad[] = {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
                       -std::numeric_limits<float>::infinity()};
  int64_t sequence = 0;
  for (const float value : bad) {
    ContributeMessages messages = Good(++sequence);
    Poison(value, &messages);
    EXPECT_EQ(Send(messages), VERDICT_NON_FINITE) << value;
    EXPECT_EQ(node_->Theta(), std::vector<float>(kValues, 1.0f));
  }
  EXPECT_EQ(node_->version(), Version(1));
  EXPECT_EQ(Send(Good(++sequence)), VERDICT_QUARANTINED) << "three in a row";
}

// A merge of it would make parameters that are not finite, after the log has said that it was accepted.
TEST_F(ParameterServerTest, WhatNoModelCanTakeIsRefusedBeforeThereIsAUsualNorm) {
  Level level = TestLevel(1);
  level.set_momentum(0.9);
  Start(level, kContributionBytes);
  ContributeMessages messages = Good(1);
  Poison(2e38f, &messages);
  EXPECT_EQ(Send(messages), VERDICT_NORM);
  EXPECT_EQ(node_->Theta(), std::vector<float>(kValues, 1.0f));
  EXPECT_EQ(Send(Good(2)), VERDICT_ACCEPTED);
  EXPECT_TRUE(node_->fatal().ok()) << node_->fatal();
}

TEST_F(ParameterServerTest, AMessageOver4MiBIsRefused) {
  Start(TestLevel(1), 64 << 20);
  // A client that does not bound what it sends.
  grpc::ChannelArguments arguments;
  arguments.SetMaxSendMessageSize(-1);
  auto stub = ParameterNode::NewStub(
      grpc::CreateCustomChannel(node_->address(), grpc::InsecureChannelCredentials(), arguments));
  ContributeMessages messages = Good(1);
  messages[1].mutable_fragment()->set_payload(std::string(kMessageBytesMax + 1, 'x'));
  ContributeReply reply;
  const grpc::Status status = SendByHand(stub.get(), messages, &reply);
  EXPECT_EQ(status.error_code(), grpc::RESOURCE_EXHAUSTED) << status.error_message();
  EXPECT_TRUE(node_->Verdicts().empty());
  EXPECT_EQ(Send(Good(1)), VERDICT_ACCEPTED);
}

TEST_F(ParameterServerTest, WhoDoesNotFollowIsNoChild) {
  Start(TestLevel(1), 64 << 20, /*children=*/1);
  EXPECT_EQ(Send(Good(1, 1.0f, {MemberId(9), Incarnation(1)})), VERDICT_FENCED);
  EXPECT_EQ(Send(Good(1, 1.0f, {MemberId(1), Incarnation(2)})), VERDICT_FENCED) << "another life of the child";
  EXPECT_EQ(node_->Theta(), std::vector<float>(kValues, 1.0f));
}

TEST_F(ParameterServerTest, AFencedChildIsRefusedAndWhatItDeliveredIsAccountedFor) {
  Start(TestLevel(2), 64 << 20, /*children=*/3);
  ContributeMessages delivered = Good(1);
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{8, 16}, {0, 8}}) {
    SampleRange* range = delivered[0].mutable_header()->add_ranges();
    range->set_begin(begin);
    range->set_end(end);
    range->set_token(5);
  }
  EXPECT_EQ(Send(delivered), VERDICT_ACCEPTED) << "accepted, and waiting for another child";

  std::promise<std::vector<LeasedRange>> custody;
  node_->server().Fence({MemberId(1), Incarnation(1)},
                        [&](const std::vector<LeasedRange>& ranges) { custody.set_value(ranges); });
  EXPECT_EQ(custody.get_future().get(), (std::vector<LeasedRange>{{0, 16, 5}}));
  EXPECT_EQ(Send(Good(2)), VERDICT_FENCED);
  EXPECT_EQ(Send(delivered), VERDICT_FENCED) << "a fenced life is told nothing else";

  // The next life begins at sequence 1; what the one before it delivered is still merged, once.
  grpc::ClientContext context;
  SetDeadline(&context, kPatience);
  FollowRequest request;
  request.set_member(1);
  request.set_incarnation(2);
  request.set_schema_digest(kSchema);
  auto reader = stub_->Follow(&context, request);
  FollowMessage message;
  ASSERT_TRUE(reader->Read(&message));
  EXPECT_EQ(Send(Good(1, 1.0f, {MemberId(1), Incarnation(2)})), VERDICT_ACCEPTED);
  EXPECT_EQ(Send(Good(1, 1.0f, {MemberId(2), Incarnation(1)})), VERDICT_ACCEPTED);
  ASSERT_TRUE(node_->AwaitMerged(3));
  context.TryCancel();
  reader->Finish();
}

TEST_F(ParameterServerTest, ManyContributionsPassThroughASmallBound) {
  constexpr int kChildren = 6;
  constexpr int64_t kEach = 4;
  Start(TestLevel(1), 2 * kContributionBytes, kChildren);
  for (int64_t s = 1; s <= kEach; ++s) {
    for (auto& child : children_) child->link().Send(TestManifest(s), Payload(6.0f));
  }
  for (auto& child : children_) {
    ASSERT_TRUE(child->AwaitAnswers(kEach));
    for (const auto& [sequence, verdict] : child->answers()) EXPECT_EQ(verdict, VERDICT_ACCEPTED);
  }
  // Each moves the node by a sixth of its progress.
  EXPECT_EQ(node_->Theta(), std::vector<float>(kValues, 1.0f + kChildren * kEach));
  EXPECT_LE(node_->server().staged_bytes_max(), 3 * kContributionBytes) << "one may go on beyond the bound";
  EXPECT_GE(node_->server().staged_bytes_max(), kContributionBytes);
}

TEST_F(ParameterServerTest, ABoundBelowOneContributionStillLetsThemInOneByOne) {
  Start(TestLevel(1), kContributionBytes / 2, /*children=*/2);
  for (auto& child : children_) child->link().Send(TestManifest(1), Payload(2.0f));
  for (auto& child : children_) ASSERT_TRUE(child->AwaitAnswers(1));
  EXPECT_EQ(node_->Theta(), std::vector<float>(kValues, 3.0f));
  EXPECT_LE(node_->server().staged_bytes_max(), kContributionBytes + kContributionBytes / 2);
}

// What one over a slow link has not sent yet takes no room.
TEST_F(ParameterServerTest, OneThatComesSlowlyDoesNotKeepOthersOut) {
  Start(TestLevel(1), kContributionBytes, /*children=*/2);
  const ContributeMessages messages = Good(1);
  const auto slow = Begin(messages);
  while (node_->server().staged_bytes_max() == 0) std::this_thread::yield();
  for (int64_t s = 1; s <= 3; ++s) {
    EXPECT_EQ(Send(Good(s, 1.0f, {MemberId(2), Incarnation(1)})), VERDICT_ACCEPTED);
  }
  for (size_t i = 2; i < messages.size(); ++i) slow->writer->Write(messages[i]);
  slow->writer->WritesDone();
  EXPECT_TRUE(slow->writer->Finish().ok());
  EXPECT_EQ(slow->reply.verdict(), VERDICT_ACCEPTED);
}

// Accepted contributions that wait for their quorum must not keep out the one that they wait for.
TEST_F(ParameterServerTest, AQuorumLargerThanTheBoundIsReached) {
  Start(TestLevel(/*quorum=*/0), kContributionBytes, /*children=*/3);
  for (auto& child : children_) child->link().Send(TestManifest(1), Payload(3.0f));
  ASSERT_TRUE(node_->AwaitMerged(3));
  EXPECT_EQ(node_->Theta(), std::vector<float>(kValues, 4.0f)) << "the mean of all three";
}

// A region below a root, with one worker that has its first version.
struct RegionBelow {
  RegionBelow(const std::string& root, const Level& level, const Clock* clock = nullptr)
      : options(TestNodeOptions(kValues, kFragmentBytes, level)),
        up(root, 100, options.fragments),
        node(NodeOptions(), FirstValues(), &up.link(), TestNode::FirstNotes(), clock) {
    up.SetNode(&node.server());
    node.server().OnParentVersion();
    node.Serve();
    child = std::make_unique<TestChild>(node.address(), 1, options.fragments);
    EXPECT_TRUE(child->AwaitVersion(Version(1)));
  }
  ~RegionBelow() {
    up.SetNode(nullptr);
    up.link().Shutdown();
  }
  const ParameterServer::Options& NodeOptions() {
    options.node.is_root = false;
    return options;
  }
  std::vector<float> FirstValues() {
    EXPECT_TRUE(up.AwaitVersion(Version(1)));
    return up.Values();
  }
  ParameterServer::Options options;
  TestChild up;
  TestNode node;
  std::unique_ptr<TestChild> child;
};

// A contribution comes in at the moment at which older progress is due to go up: what goes up must not hold the
// newcomer, whose ranges are not in its manifest.
TEST_F(ParameterServerTest, WhatGoesUpHoldsWhatItsManifestSaysAndNoMore) {
  Start(TestLevel(1), 64 << 20, /*children=*/0);  // The root.
  Level level = TestLevel(1);
  level.set_send_every(2);
  level.set_flush_age_ns(1'000'000'000);
  ManualClock clock;
  RegionBelow region(node_->address(), level, &clock);

  region.child->link().Send(TestManifest(1, 1, /*tokens=*/3), Payload(1.0f));
  ASSERT_TRUE(region.child->AwaitAnswers(1));
  clock.Advance(absl::Seconds(10));  // Nothing happens by itself: the next event finds it due.
  region.child->link().Send(TestManifest(2, 1, /*tokens=*/5), Payload(10.0f));
  ASSERT_TRUE(node_->AwaitMerged(1));
  EXPECT_EQ(node_->merged()[0].tokens, 3);
  EXPECT_EQ(node_->Theta(), std::vector<float>(kValues, 2.0f));
  region.node.server().SetDraining(true);
  ASSERT_TRUE(node_->AwaitMerged(2));
  EXPECT_EQ(node_->merged()[1].tokens, 5);
  EXPECT_EQ(node_->Theta(), std::vector<float>(kValues, 12.0f));
}

// What a region acknowledged is safe only when the root has it.
TEST_F(ParameterServerTest, ARegionSendsWhatItHoldsWhenTheRootIsBack) {
  Start(TestLevel(1), 64 << 20, /*children=*/0);  // The root.
  Level level = TestLevel(1);
  level.set_send_every(100);
  RegionBelow region(node_->address(), level);
  region.child->link().Send(TestManifest(1, 1, /*tokens=*/3), Payload(1.0f));
  ASSERT_TRUE(region.child->AwaitAnswers(1));
  EXPECT_TRUE(node_->merged().empty());
  const int port = node_->port();
  node_->StopServing();
  node_->Serve(port);
  ASSERT_TRUE(node_->AwaitMerged(1));
  EXPECT_EQ(node_->merged()[0].tokens, 3);
}

TEST_F(ParameterServerTest, WhatTheRootRefusedDoesNotComeBackThroughTheMomentumOfARegion) {
  Start(TestLevel(1), 64 << 20, /*children=*/0);  // The root.
  Level level = TestLevel(1);
  level.set_momentum(0.9);
  RegionBelow region(node_->address(), level);
  // The region takes it; with its momentum it is more than the root believes.
  region.child->link().Send(TestManifest(1), Payload(0.9e6f));
  ASSERT_TRUE(region.up.AwaitAnswers(1));
  EXPECT_EQ(region.up.answers()[0].second, VERDICT_NORM);
  EXPECT_EQ(region.node.Theta(), std::vector<float>(kValues, 1.0f));
  region.child->link().Send(TestManifest(2), Payload(1.0f));
  ASSERT_TRUE(node_->AwaitMerged(1));
  for (const float value : node_->Theta()) ASSERT_NEAR(value, 1 + 1 + 0.9, 1e-4);
}

TEST_F(ParameterServerTest, ShutdownEndsCallsInFlight) {
  Start(TestLevel(1), kFragmentBytes / 2, /*children=*/1);
  // One contribution has come half way and holds the only place; another waits for it.
  const auto half = Begin(Good(1));
  auto waiting = std::async(std::launch::async, [&] {
    ContributeReply reply;
    return SendByHand(stub_.get(), Good(1), &reply).error_code();
  });
  const absl::Time begin = absl::Now();
  node_->server().Shutdown();
  node_->StopServing();
  const grpc::StatusCode code = waiting.get();
  EXPECT_LT(absl::Now() - begin, absl::Seconds(10));
  // Whichever came first had the place.
  EXPECT_TRUE(code == grpc::UNAVAILABLE || code == grpc::CANCELLED || code == grpc::OK) << code;
  EXPECT_FALSE(half->writer->Finish().ok());
}

}  // namespace
}  // namespace wukong
