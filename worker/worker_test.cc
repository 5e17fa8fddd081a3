// A whole worker between a coordinator and aggregators that come and go, in one process: whoever dies, every sample
// that was handed out is merged once or given back.
#include "worker/worker.h"

#include <unistd.h>

#include <algorithm>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "runtime/base/executor.h"
#include "runtime/base/random.h"
#include "runtime/base/restart.h"
#include "runtime/data/test_directory.h"
#include "runtime/data/token_dataset.h"
#include "runtime/model/trainer.h"
#include "runtime/sync/presets.h"
#include "runtime/transport/test_server.h"
#include "runtime/transport/transport_test_util.h"

namespace wukong {
namespace {

using Samples = std::set<int64_t>;

// The coordinator as one worker sees it, with a ledger of its own.
class TestCoordinator final : public Coordinator::Service {
 public:
  explicit TestCoordinator(GetJobReply job) : job_(std::move(job)) {}

  void Serve() { server_.Start(); }
  void StopServing() { server_.Stop(); }
  // Its last answer grants data and never arrives.
  [[nodiscard]] bool StopServingWithAGrantLost() {
    watched_.Update([&] { losing_ = true; });
    const bool lost = watched_.Await([&] { return lost_; });
    StopServing();
    watched_.Update([&] { losing_ = lost_ = false; });
    return lost;
  }
  std::string address() const { return server_.address(); }

  // What it says from now on.
  void SetParent(int64_t member, const std::string& address) {
    watched_.Update([&] {
      parent_ = member;
      parent_address_ = address;
    });
  }
  // Asks what the worker holds; `committed` is what the root has.
  void Ask(int64_t term, const Samples& committed) {
    watched_.Update([&] { Demand(term, committed); });
  }
  void StopGranting() {
    watched_.Update([&] { granting_ = false; });
  }
  void Finish() {
    watched_.Update([&] { finished_ = true; });
  }
  void FenceWorker() {
    watched_.Update([&] { fenced_ = true; });
  }

  // The aggregator is fenced, and `committed` is all that the root has.
  void LoseParent(int64_t term, const Samples& committed) {
    watched_.Update([&] {
      parent_lost_ = true;
      parent_ = 0;
      parent_address_.clear();
      Demand(term, committed);
    });
  }

  bool AwaitBeats(int64_t beats) {
    return watched_.Await([&] { return beat_ >= beats; });
  }
  bool AwaitAsserted() {
    return watched_.Await([&] { return !asking_; });
  }
  bool AwaitIdle() {
    return watched_.Await([&] { return idle_ && !granting_; });
  }
  bool AwaitSteps(int64_t steps) {
    return watched_.Await([&] { return steps_ >= steps; });
  }
  int64_t steps() {
    return watched_.Get([&] { return steps_; });
  }
  Samples granted() {
    return watched_.Get([&] { return granted_; });
  }
  // By the worker, and by not being among what it holds.
  Samples given_back() {
    return watched_.Get([&] { return given_back_; });
  }
  std::vector<Holdings> asserted() {
    return watched_.Get([&] { return asserted_; });
  }
  MemberUsage usage() {
    return watched_.Get([&] { return usage_; });
  }

  grpc::Status GetJob(grpc::ServerContext*, const GetJobRequest*, GetJobReply* reply) override {
    *reply = job_;
    return grpc::Status::OK;
  }
  grpc::Status Join(grpc::ServerContext*, const JoinRequest*, JoinReply* reply) override {
    watched_.Update([&] {
      reply->set_member(1);
      reply->set_incarnation(1);
      reply->set_name("worker-0");
      reply->set_term(term_);
      reply->set_parent_member(parent_);
      reply->set_parent_incarnation(parent_ == 0 ? 0 : 1);
      reply->set_parent_address(parent_address_);
    });
    return grpc::Status::OK;
  }
  grpc::Status Heartbeat(grpc::ServerContext*, const HeartbeatRequest* request, HeartbeatReply* reply) override {
    bool fenced = false, lost = false;
    watched_.Update([&] {
      fenced = fenced_;
      Take(*request, reply);
      lost = losing_ && reply->granted_size() > 0;
      lost_ = lost_ || lost;
    });
    if (lost) return {grpc::StatusCode::UNAVAILABLE, "this answer is lost"};
    return fenced ? grpc::Status(grpc::StatusCode::ABORTED, "fenced") : grpc::Status::OK;
  }

 private:
  static void Add(const SampleRange& range, Samples* to) {
    for (int64_t i = range.begin(); i < range.end(); ++i)
      EXPECT_TRUE(to->insert(i).second) << "sample " << i << " twice";
  }
  void Demand(int64_t term, const Samples& committed) {
    term_ = term;
    asking_ = true;
    committed_ = committed;
  }
  void Take(const HeartbeatRequest& request, HeartbeatReply* reply) {
    const bool repeated = request.beat() == beat_;
    if (repeated && last_reply_.term() == term_) {
      *reply = last_reply_;
      return;
    }
    beat_ = request.beat();
    if (repeated) {
      // What an earlier term granted last has not arrived: nobody holds it.
      for (const SampleRange& range : last_reply_.granted()) Add(range, &given_back_);
    } else {
      steps_ += request.steps_size();
      for (const SampleRange& range : request.released()) Add(range, &given_back_);
    }
    idle_ = request.idle();
    usage_ = request.usage();
    if (request.has_holdings()) TakeHoldings(request.holdings(), reply);
    reply->set_term(term_);
    reply->set_parent_member(parent_);
    reply->set_parent_incarnation(parent_ == 0 ? 0 : 1);
    reply->set_parent_address(parent_address_);
    reply->set_assert_holdings(asking_);
    if (granting_ && !asking_ && request.want_samples() > 0) {
      SampleRange* range = reply->add_granted();
      range->set_begin(next_sample_);
      range->set_end(next_sample_ += std::min<int64_t>(64, request.want_samples()));
      range->set_token(++last_token_);
      Add(*range, &granted_);
    }
    reply->set_exhausted(!granting_);
    reply->set_finish(finished_);
    last_reply_ = *reply;
  }
  void TakeHoldings(const Holdings& holdings, HeartbeatReply* reply) {
    for (const SampleRange& range : holdings.ranges()) {
      for (int64_t i = range.begin(); i < range.end(); ++i) {
        EXPECT_EQ(given_back_.count(i), 0u) << "sample " << i << " was given back";
      }
    }
    if (!asking_ || holdings.term() != term_) return;
    if (holdings.parent_member() != 0 && holdings.parent_member() != parent_) return;
    asserted_.push_back(holdings);
    asking_ = false;
    Samples lost = granted_;
    for (const SampleRange& range : holdings.ranges()) {
      for (int64_t i = range.begin(); i < range.end(); ++i) {
        lost.erase(i);
        if (committed_.count(i) == 0) continue;
        SampleRange* known = reply->add_committed();
        known->set_begin(i);
        known->set_end(i + 1);
        known->set_token(range.token());
      }
    }
    if (!parent_lost_) return;  // Its aggregator has the rest.
    parent_lost_ = false;
    for (const int64_t sample : lost) {
      if (committed_.count(sample) == 0) given_back_.insert(sample);
    }
  }

  const GetJobReply job_;
  Watched watched_;
  // All under watched_.
  int64_t term_ = 1;
  int64_t parent_ = 0;
  std::string parent_address_;
  bool parent_lost_ = false, asking_ = false, granting_ = true, finished_ = false, fenced_ = false, idle_ = false;
  bool losing_ = false, lost_ = false;
  HeartbeatReply last_reply_;
  int64_t beat_ = 0, steps_ = 0, next_sample_ = 0, last_token_ = 0;
  Samples granted_, given_back_, committed_;
  std::vector<Holdings> asserted_;
  MemberUsage usage_;

  TestServer server_{this};
};

class WorkerTest : public ::testing::TestWithParam<Preset> {
 protected:
  WorkerTest() {
    std::string tokens;
    Random random(5);
    for (int i = 0; i < 4000; ++i) {
      tokens.push_back(static_cast<char>(random.Below(32)));
      tokens.push_back('\0');
    }
    job_.set_name("test");
    job_.set_seed(5);
    Model* model = job_.mutable_model();
    model->set_layers(1);
    model->set_heads(2);
    model->set_width(16);
    model->set_context(8);
    model->set_vocabulary(32);
    Optimizer* optimizer = job_.mutable_optimizer();
    optimizer->set_learning_rate(1e-3);
    optimizer->set_decay(DECAY_CONSTANT);
    optimizer->set_beta1(0.9);
    optimizer->set_beta2(0.95);
    optimizer->set_epsilon(1e-8);
    optimizer->set_clip_norm(1);
    optimizer->set_micro_batch(2);
    optimizer->set_accumulation(1);
    optimizer->set_precision(PRECISION_FP32);
    job_.mutable_data()->set_train(directory_.Write("train.bin", tokens));
    job_.mutable_data()->set_validation(directory_.Write("validation.bin", tokens));
    job_.mutable_data()->set_range_steps(4);
    job_.mutable_stop()->set_tokens(1'000'000);
    Region* region = job_.add_regions();
    region->set_name("beijing");
    region->set_workers(1);
    region->set_threads(1);
    region->set_device("cpu");
    region->add_speed(0.2);
    Limits* limits = job_.mutable_limits();
    limits->set_heartbeat_ns(20'000'000);
    limits->set_start_ns(60'000'000'000);
    limits->set_rpc_ns(5'000'000'000);
    limits->set_fragment_bytes(4096);
  }

  void Begin(Preset preset) {
    Strategy* strategy = job_.mutable_strategy();
    strategy->set_preset(preset);
    if (preset != PRESET_DDP) strategy->set_inner_steps(3);
    if (preset == PRESET_ASYNC) strategy->set_in_flight_max(3);
    ASSERT_TRUE(ResolveStrategy(&job_).ok());
    auto trainer = MakeTrainer(job_, TrainerOptions());
    ASSERT_TRUE(trainer.ok()) << trainer.status();
    theta_.assign((*trainer)->parameters().begin(), (*trainer)->parameters().end());
    GetJobReply reply;
    *reply.mutable_job() = job_;
    reply.set_schema_digest((*trainer)->layout().schema_digest());
    reply.set_parameters((*trainer)->layout().size());
    const auto files = FindDataFiles(job_.data());
    ASSERT_TRUE(files.ok()) << files.status();
    const auto train = TokenFile::Open(files->train);
    ASSERT_TRUE(train.ok()) << train.status();
    reply.set_train_fingerprint((*train)->Fingerprint());
    schema_digest_ = reply.schema_digest();
    coordinator_ = std::make_unique<TestCoordinator>(reply);
    coordinator_->Serve();
  }
  // A node whose contributions are `codec`.
  ParameterServer::Options NodeOptions(CodecKind codec) const {
    Level level = TestLevel(1);
    // Nodes of this test add up what they get, also gradients: too little of them to matter.
    if (job_.strategy().progress() == PROGRESS_GRADIENT) level.set_learning_rate(1e-9);
    ParameterServer::Options options = TestNodeOptions(static_cast<int64_t>(theta_.size()), 4096, level);
    options.codec_up = codec;
    options.schema_digest = schema_digest_;
    return options;
  }
  // An aggregator's process as far as its worker and the root see it.
  struct Aggregator {
    Aggregator(WorkerTest* test, int64_t number)
        : member(number),
          link(test->root_->address(), number, test->NodeOptions(CODEC_KIND_FP32).fragments, test->schema_digest_) {
      ParameterServer::Options options = test->NodeOptions(test->job_.strategy().region().codec_up());
      options.node.is_root = false;
      options.self = {MemberId(member), Incarnation(1)};
      EXPECT_TRUE(link.AwaitVersion(Version(1)));
      node = std::make_unique<TestNode>(options, link.Values(), &link.link());
      link.SetNode(&node->server());
      node->Serve();
    }
    ~Aggregator() { link.SetNode(nullptr); }
    // Cuts all calls, wherever they are.
    void Die() {
      link.link().Shutdown();
      node->StopServing();
    }
    const int64_t member;
    TestChild link;
    std::unique_ptr<TestNode> node;
  };
  std::unique_ptr<Aggregator> NewAggregator() {
    if (root_ == nullptr) {
      root_ = std::make_unique<TestNode>(NodeOptions(CODEC_KIND_FP32), theta_);
      root_->Serve();
    }
    auto aggregator = std::make_unique<Aggregator>(this, next_aggregator_++);
    coordinator_->SetParent(aggregator->member, aggregator->node->address());
    return aggregator;
  }
  // Returns what the root has, once nothing comes from `aggregator` any more.
  Samples Fence(const Aggregator& aggregator) {
    Notification done;
    root_->server().Fence({MemberId(aggregator.member), Incarnation(1)},
                          [&](const std::vector<LeasedRange>&) { done.Notify(); });
    EXPECT_TRUE(done.WaitFor(kPatience));
    return Merged(root_.get());
  }
  void StartWorker() {
    worker_ = std::thread([this] {
      WorkerOptions options;
      options.coordinator = coordinator_->address();
      options.region = "beijing";
      outcome_ = RunWorker(options, stop_);
      if (!outcome_.ok()) LOG(WARNING) << "the worker ended: " << outcome_;
    });
  }
  void TearDown() override {
    if (!worker_.joinable()) return;
    coordinator_->Finish();  // After a failure.
    worker_.join();
  }
  absl::Status EndWorker() {
    worker_.join();
    return outcome_;
  }
  static Samples Merged(TestNode* node) {
    Samples samples;
    (void)node->Theta();  // When what was offered is decided.
    for (const Manifest& manifest : node->merged()) {
      for (const LeasedRange& range : manifest.ranges) {
        for (int64_t i = range.begin; i < range.end; ++i) EXPECT_TRUE(samples.insert(i).second) << "sample " << i;
      }
    }
    return samples;
  }

  const TestDirectory directory_;
  const StopSignal stop_;
  Job job_;
  std::vector<float> theta_;
  std::string schema_digest_;
  std::unique_ptr<TestCoordinator> coordinator_;
  std::unique_ptr<TestNode> root_;
  int64_t next_aggregator_ = 100;
  std::thread worker_;
  absl::Status outcome_;
};

TEST_P(WorkerTest, WhenItsAggregatorDiesItGoesOnWithTheNextAndNothingIsLostOrDoubled) {
  Begin(GetParam());
  std::vector<std::unique_ptr<Aggregator>> aggregators;
  aggregators.push_back(NewAggregator());
  StartWorker();
  for (int life = 1; life <= 3; ++life) {
    ASSERT_TRUE(aggregators.back()->node->AwaitMerged(5)) << "life " << life;
    aggregators.back()->Die();
    const Samples committed = Fence(*aggregators.back());
    coordinator_->LoseParent(/*term=*/1, committed);
    // It says what it holds while there is no aggregator, or only when there is the next.
    if (life != 2) {
      ASSERT_TRUE(coordinator_->AwaitAsserted());
    }
    aggregators.push_back(NewAggregator());
    ASSERT_TRUE(coordinator_->AwaitAsserted());
  }
  ASSERT_TRUE(aggregators.back()->node->AwaitMerged(5));
  coordinator_->StopGranting();
  ASSERT_TRUE(coordinator_->AwaitIdle());
  const Samples granted = coordinator_->granted();
  Samples accounted = coordinator_->given_back();
  // Its aggregator still owes the root what it accepted last.
  EXPECT_TRUE(
      root_->AwaitMergedTokens(static_cast<int64_t>(granted.size() - accounted.size()) * job_.model().context()));
  for (const int64_t sample : Merged(root_.get())) {
    EXPECT_TRUE(accounted.insert(sample).second) << "sample " << sample << " was committed and given back";
  }
  EXPECT_EQ(accounted, granted);
  size_t taken = 0;
  for (const auto& aggregator : aggregators) taken += aggregator->node->merged().size();
  // All that was answered; an answer may have been cut off with each of three aggregators.
  EXPECT_GE(coordinator_->usage().contributions_sent() + 3, static_cast<int64_t>(taken)) << "all links count";
  coordinator_->Finish();
  EXPECT_TRUE(EndWorker().ok()) << outcome_;
}

INSTANTIATE_TEST_SUITE_P(Presets, WorkerTest, ::testing::Values(PRESET_ASYNC, PRESET_DILOCO, PRESET_DDP),
                         [](const auto& preset) { return Preset_Name(preset.param); });

using WorkerAloneTest = WorkerTest;

TEST_F(WorkerAloneTest, WhileTheCoordinatorIsAwayItTrainsOnAndThenSaysWhatItHolds) {
  Begin(PRESET_ASYNC);
  const auto aggregator = NewAggregator();
  StartWorker();
  ASSERT_TRUE(coordinator_->AwaitSteps(200));  // Its speed is known, and it holds data.
  ASSERT_TRUE(coordinator_->StopServingWithAGrantLost());
  const size_t merged = aggregator->node->merged().size();
  ASSERT_TRUE(aggregator->node->AwaitMerged(merged + 20)) << "it trains on";
  coordinator_->Ask(/*term=*/2, {});
  const int64_t steps = coordinator_->steps();
  const absl::Time begin = absl::Now();
  coordinator_->Serve();
  ASSERT_TRUE(coordinator_->AwaitAsserted());
  EXPECT_LT(absl::Now() - begin, absl::Seconds(5)) << "a coordinator that is back is found soon";
  EXPECT_TRUE(coordinator_->AwaitSteps(steps + 50)) << "steps made meanwhile are reported";
  ASSERT_EQ(coordinator_->asserted().size(), 1u) << "it says so once";
  EXPECT_EQ(coordinator_->asserted()[0].parent_member(), 100);
  coordinator_->StopGranting();
  ASSERT_TRUE(coordinator_->AwaitIdle());
  Samples accounted = Merged(aggregator->node.get());
  EXPECT_FALSE(coordinator_->given_back().empty()) << "what was granted last";
  for (const int64_t sample : coordinator_->given_back()) {
    EXPECT_TRUE(accounted.insert(sample).second) << "sample " << sample << " did not arrive, and is merged";
  }
  EXPECT_EQ(accounted, coordinator_->granted());
  coordinator_->Finish();
  EXPECT_TRUE(EndWorker().ok()) << outcome_;
}

TEST_F(WorkerAloneTest, AFencedWorkerEndsAndMayBeStartedAgain) {
  Begin(PRESET_ASYNC);
  const auto aggregator = NewAggregator();
  StartWorker();
  ASSERT_TRUE(coordinator_->AwaitSteps(5));
  coordinator_->FenceWorker();
  EXPECT_FALSE(EndWorker().ok());
  EXPECT_EQ(outcome_.code(), absl::StatusCode::kAborted) << outcome_;
  EXPECT_TRUE(IsRestartSafe(outcome_));
}

TEST_F(WorkerAloneTest, WhoCannotReachAnAggregatorThatLivesGivesItsDataBack) {
  job_.mutable_limits()->set_start_ns(1'500'000'000);
  Begin(PRESET_ASYNC);
  const auto aggregator = NewAggregator();
  StartWorker();
  ASSERT_TRUE(coordinator_->AwaitSteps(5));
  aggregator->Die();  // And the coordinator does not say so.
  EXPECT_FALSE(EndWorker().ok());
  EXPECT_EQ(outcome_.code(), absl::StatusCode::kUnavailable) << outcome_;
  EXPECT_TRUE(IsRestartSafe(outcome_)) << outcome_;
  EXPECT_FALSE(coordinator_->given_back().empty());
}

TEST_F(WorkerAloneTest, AnAggregatorThatDiesBeforeItHadParametersIsReplaced) {
  Begin(PRESET_ASYNC);
  coordinator_->SetParent(99, "127.0.0.1:1");  // Nobody listens there.
  StartWorker();
  ASSERT_TRUE(coordinator_->AwaitBeats(3));
  coordinator_->LoseParent(1, {});
  ASSERT_TRUE(coordinator_->AwaitAsserted());
  EXPECT_EQ(coordinator_->asserted()[0].ranges_size(), 0);
  const auto aggregator = NewAggregator();
  EXPECT_TRUE(aggregator->node->AwaitMerged(3));
  coordinator_->Finish();
  EXPECT_TRUE(EndWorker().ok()) << outcome_;
}

}  // namespace
}  // namespace wukong
