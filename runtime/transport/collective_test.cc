#include "runtime/transport/collective.h"

#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/base/digest.h"
#include "runtime/base/executor.h"
#include "runtime/base/file.h"
#include "runtime/base/random.h"
#include "runtime/transport/test_server.h"

namespace wukong {
namespace {

using ::testing::AnyOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

CommunicatorOptions Options(int rank, int size) {
  CommunicatorOptions options;
  options.kind = COLLECTIVE_GLOO;
  options.group = "region guizhou";
  options.rank = rank;
  options.size = size;
  options.generation = "g1";
  options.form_timeout = absl::Seconds(20);
  options.timeout = absl::Seconds(20);
  return options;
}

// Runs every rank of a group as a thread.
void RunRanks(int size, absl::Duration timeout, const std::function<void(Communicator*)>& rank_main) {
  MemoryStore store;
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      CommunicatorOptions options = Options(rank, size);
      options.timeout = timeout;
      auto communicator = MakeCommunicator(options, &store);
      ASSERT_TRUE(communicator.ok()) << communicator.status();
      rank_main(communicator->get());
    });
  }
  for (std::thread& thread : threads) thread.join();
}

class CommunicatorTest : public ::testing::TestWithParam<int> {};

TEST_P(CommunicatorTest, KnowsItsPlace) {
  std::vector<int> seen(GetParam(), -1);
  RunRanks(GetParam(), absl::Seconds(20), [&](Communicator* group) {
    EXPECT_EQ(group->size(), GetParam());
    seen[group->rank()] = group->rank();
    EXPECT_TRUE(group->Barrier().ok());
  });
  for (int rank = 0; rank < GetParam(); ++rank) EXPECT_EQ(seen[rank], rank);
}

TEST_P(CommunicatorTest, SumsOverAllRanks) {
  const int size = GetParam();
  for (const size_t length : {size_t{1}, size_t{2}, size_t{5}, size_t{1000}}) {
    RunRanks(size, absl::Seconds(20), [&](Communicator* group) {
      for (int round = 0; round < 3; ++round) {
        std::vector<float> values(length);
        for (size_t i = 0; i < length; ++i)
          values[i] = static_cast<float>(i) + static_cast<float>(group->rank() * round);
        ASSERT_TRUE(group->AllReduceSum(absl::MakeSpan(values)).ok());
        for (size_t i = 0; i < length; ++i) {
          const float expected =
              static_cast<float>(size) * static_cast<float>(i) + static_cast<float>(round * size * (size - 1)) / 2.0f;
          ASSERT_EQ(values[i], expected) << "length " << length << ", index " << i;
        }
      }
    });
  }
}

TEST_P(CommunicatorTest, EveryRankGetsTheSameBits) {
  // Sums of floats depend on their order: ranks that added in orders of their own would differ here. Longer than one
  // segment of Gloo's ring.
  constexpr size_t kLength = 700001;
  constexpr uint64_t kSeed = 7;
  std::vector<std::string> digests(GetParam());
  RunRanks(GetParam(), absl::Seconds(20), [&](Communicator* group) {
    Random random(DeriveSeed(kSeed, "rank", static_cast<uint64_t>(group->rank())));
    std::vector<float> values(kLength);
    for (float& value : values) value = static_cast<float>(random.Normal()) * (random.Uniform() < 0.5 ? 1e-3f : 1e3f);
    ASSERT_TRUE(group->AllReduceSum(absl::MakeSpan(values)).ok());
    digests[group->rank()] = Sha256Hex(absl::Span<const float>(values));
  });
  EXPECT_THAT(digests, Each(digests[0])) << "seed " << kSeed;
}

TEST_P(CommunicatorTest, BroadcastsFromAnyRoot) {
  RunRanks(GetParam(), absl::Seconds(20), [&](Communicator* group) {
    for (int root = 0; root < group->size(); ++root) {
      std::vector<float> values(1000, static_cast<float>(group->rank()));
      ASSERT_TRUE(group->Broadcast(absl::MakeSpan(values), root).ok());
      EXPECT_THAT(values, Each(static_cast<float>(root)));
      std::string bytes(static_cast<size_t>(10 * group->rank()), static_cast<char>('a' + group->rank()));
      ASSERT_TRUE(group->BroadcastBytes(&bytes, root).ok());
      EXPECT_EQ(bytes, std::string(static_cast<size_t>(10 * root), static_cast<char>('a' + root)));
    }
  });
}

TEST_P(CommunicatorTest, RefusesARootThatIsNoRank) {
  RunRanks(GetParam(), absl::Seconds(20), [&](Communicator* group) {
    std::vector<float> values(3);
    EXPECT_EQ(group->Broadcast(absl::MakeSpan(values), group->size()).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(group->Broadcast(absl::MakeSpan(values), -1).code(), absl::StatusCode::kInvalidArgument);
    EXPECT_TRUE(group->Barrier().ok()) << "a wrong argument must not break the group";
  });
}

TEST_P(CommunicatorTest, NothingWorksAfterAbort) {
  RunRanks(GetParam(), absl::Seconds(20), [&](Communicator* group) {
    ASSERT_TRUE(group->Barrier().ok());
    group->Abort();
    group->Abort();
    std::vector<float> values(3);
    EXPECT_EQ(group->AllReduceSum(absl::MakeSpan(values)).code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(group->Barrier().code(), absl::StatusCode::kCancelled);
  });
}

INSTANTIATE_TEST_SUITE_P(Sizes, CommunicatorTest, ::testing::Values(1, 2, 3));

TEST(CommunicatorFailureTest, SaysWhoWasWaitedForWhenARankNeverComes) {
  MemoryStore store;
  CommunicatorOptions options = Options(1, 3);
  options.form_timeout = absl::Milliseconds(300);
  const auto group = MakeCommunicator(options, &store);
  ASSERT_EQ(group.status().code(), absl::StatusCode::kDeadlineExceeded) << group.status();
  EXPECT_THAT(std::string(group.status().message()), HasSubstr("region guizhou, rank 1 of 3, forming"));
  // Gloo names the keys: older ones so, newer ones by the number.
  EXPECT_THAT(std::string(group.status().message()), AnyOf(HasSubstr("g1/rank_0"), HasSubstr("g1/0")));
}

TEST(CommunicatorFailureTest, ARankThatDoesNotTakePartIsNoticedWithinTheTimeout) {
  MemoryStore store;
  absl::Status outcome, later;
  std::atomic<bool> done{false};
  RunRanks(3, absl::Milliseconds(500), [&](Communicator* group) {
    if (group->rank() == 2) {
      while (!done) std::this_thread::yield();  // Connected, and silent.
      return;
    }
    std::vector<float> values(100, 1.0f);
    const absl::Status status = group->AllReduceSum(absl::MakeSpan(values));
    EXPECT_FALSE(status.ok());
    if (group->rank() == 0) {
      outcome = status;
      later = group->Barrier();
      done = true;
    }
  });
  // Either rank runs out of time first; the other then loses its connection.
  EXPECT_TRUE(outcome.code() == absl::StatusCode::kDeadlineExceeded || outcome.code() == absl::StatusCode::kUnavailable)
      << outcome;
  EXPECT_THAT(std::string(outcome.message()), HasSubstr("region guizhou, rank 0 of 3, all-reduce"));
  EXPECT_EQ(later, outcome) << "the group must stay broken";
}

TEST(CommunicatorFailureTest, ARankThatLeavesIsNoticedAtOnce) {
  RunRanks(2, absl::Seconds(50), [&](Communicator* group) {
    ASSERT_TRUE(group->Barrier().ok());
    if (group->rank() == 1) return;  // Its end of the group is destroyed.
    // More than sockets hold, and written to a closed one: no signal may end the process.
    std::vector<float> values(4 << 20, 1.0f);
    for (int i = 0; i < 3; ++i) {
      const absl::Status status = group->AllReduceSum(absl::MakeSpan(values));
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    }
  });
}

TEST(CommunicatorFailureTest, AbortEndsTheCallUnderWayOnAllRanks) {
  std::atomic<int> waiting{0};
  RunRanks(3, absl::Seconds(50), [&](Communicator* group) {
    std::string order;
    if (group->rank() == 0) {
      while (waiting < 2) std::this_thread::yield();
      group->Abort();
      return;
    }
    std::thread watch;
    ++waiting;
    if (group->rank() == 1) {
      watch = std::thread([&] {
        while (waiting < 2) std::this_thread::yield();
        group->Abort();
      });
    }
    EXPECT_FALSE(group->BroadcastBytes(&order, 0).ok());
    if (watch.joinable()) watch.join();
  });
}

// A store that two processes share: a file for each key.
class DirectoryStore final : public RendezvousStore {
 public:
  explicit DirectoryStore(std::string directory) : directory_(std::move(directory)) {
    std::filesystem::create_directories(directory_);
  }
  absl::Status Set(const std::string& key, const std::string& value) override {
    return WriteFileAtomic(Path(key), value);
  }
  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override {
    const absl::Time deadline = absl::Now() + timeout;
    while (!std::filesystem::exists(Path(key))) {
      if (absl::Now() > deadline) return absl::DeadlineExceededError(key);
      absl::SleepFor(absl::Milliseconds(1));
    }
    return ReadFile(Path(key));
  }

 private:
  std::string Path(std::string key) const {
    std::replace(key.begin(), key.end(), '/', '_');
    return directory_ + "/" + key;
  }
  const std::string directory_;
};

// Rank 0 is this process and rank 1 a child of it, so that one of them can stand still.
class TwoProcessesTest : public ::testing::Test {
 protected:
  static constexpr size_t kValues = 48 << 20;
  TwoProcessesTest() {
    void* const mapped =
        ::mmap(nullptr, kValues * sizeof(float), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(mapped, MAP_FAILED);
    of_child_ = absl::MakeSpan(static_cast<float*>(mapped), kValues);
  }
  ~TwoProcessesTest() override {
    if (child_ > 0) {
      ::kill(child_, SIGKILL);
      ::waitpid(child_, nullptr, 0);
    }
    ::munmap(of_child_.data(), of_child_.size() * sizeof(float));
    std::filesystem::remove_all(directory_);
  }

  absl::StatusOr<std::unique_ptr<Communicator>> Form(int rank) {
    CommunicatorOptions options = Options(rank, 2);
    options.timeout = absl::Seconds(60);
    return MakeCommunicator(options, &store_);
  }

  // A rank whose machine stands still in the middle of a transfer: its connections stay, and Gloo itself would wait.
  void StandStillInABroadcast(int root) {
    child_ = ::fork();
    ASSERT_GE(child_, 0);
    if (child_ == 0) {
      if (root == 1) std::fill(of_child_.begin(), of_child_.end(), 1.0f);
      const auto group = Form(1);
      if (group.ok()) (void)(*group)->Broadcast(of_child_, root);
      ::_exit(0);
    }
    std::vector<float> of_parent(kValues, root == 0 ? 1.0f : 0.0f);
    const auto group = Form(0);
    ASSERT_TRUE(group.ok()) << group.status();
    Notification ended;
    absl::Status status;
    std::thread parent([&] {
      status = (*group)->Broadcast(absl::MakeSpan(of_parent), root);
      ended.Notify();
    });
    // Another process, or Gloo's thread, writes it.
    const volatile float* const first = root == 0 ? of_child_.data() : of_parent.data();
    const absl::Time deadline = absl::Now() + absl::Seconds(20);
    while (*first == 0 && absl::Now() < deadline) std::this_thread::yield();
    EXPECT_EQ(::kill(child_, SIGSTOP), 0);
    EXPECT_NE(*first, 0) << "the transfer has not begun";
    (*group)->Abort();
    EXPECT_TRUE(ended.WaitFor(absl::Seconds(20))) << "waits for a rank that stands still";
    ::kill(child_, SIGKILL);
    parent.join();
    EXPECT_EQ(status.code(), absl::StatusCode::kCancelled) << status;
  }

  const std::string directory_ = absl::StrCat(::testing::TempDir(), "/collective_test_", ::getpid());
  DirectoryStore store_{directory_};
  absl::Span<float> of_child_;
  pid_t child_ = 0;
};

TEST_F(TwoProcessesTest, AbortEndsATransferToARankThatStandsStill) { StandStillInABroadcast(0); }
TEST_F(TwoProcessesTest, AbortEndsATransferFromARankThatStandsStill) { StandStillInABroadcast(1); }

TEST(CommunicatorOptionsTest, RefusesAGroupThatCannotBe) {
  MemoryStore store;
  EXPECT_EQ(MakeCommunicator(Options(2, 2), &store).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MakeCommunicator(Options(-1, 2), &store).status().code(), absl::StatusCode::kInvalidArgument);
  CommunicatorOptions none = Options(0, 2);
  none.kind = COLLECTIVE_NONE;
  EXPECT_EQ(MakeCommunicator(none, &store).status().code(), absl::StatusCode::kInvalidArgument);
  none.size = 1;
  EXPECT_TRUE(MakeCommunicator(none, nullptr).ok());
}

TEST(LocalAddressTest, IsTheLoopbackTowardsTheLoopback) {
  const auto local = LocalAddressTowards("127.0.0.1:7000");
  ASSERT_TRUE(local.ok()) << local.status();
  EXPECT_EQ(*local, "127.0.0.1");
  EXPECT_EQ(LocalAddressTowards("no.such.host.invalid:1").status().code(), absl::StatusCode::kUnavailable);
}

TEST(MemoryStoreTest, GivesWhatWasSetAndWaitsForWhatWasNot) {
  MemoryStore store;
  EXPECT_EQ(store.Get("a", absl::ZeroDuration()).status().code(), absl::StatusCode::kDeadlineExceeded);
  std::thread later([&] { EXPECT_TRUE(store.Set("a", "1").ok()); });
  const auto value = store.Get("a", absl::Seconds(20));
  later.join();
  ASSERT_TRUE(value.ok());
  EXPECT_EQ(*value, "1");
  EXPECT_TRUE(store.Set("a", "2").ok());
  EXPECT_EQ(*store.Get("a", absl::ZeroDuration()), "2");
}

TEST(MemoryStoreTest, ForgetsAMemberUpToItsIncarnation) {
  MemoryStore store;
  ASSERT_TRUE(store.Set({MemberId(1), Incarnation(1)}, "old", "x").ok());
  ASSERT_TRUE(store.Set({MemberId(1), Incarnation(2)}, "new", "x").ok());
  ASSERT_TRUE(store.Set({MemberId(2), Incarnation(1)}, "other", "x").ok());
  store.Forget({MemberId(1), Incarnation(1)});
  EXPECT_FALSE(store.Get("old", absl::ZeroDuration()).ok());
  EXPECT_TRUE(store.Get("new", absl::ZeroDuration()).ok());
  EXPECT_TRUE(store.Get("other", absl::ZeroDuration()).ok());
}

TEST(MemoryStoreTest, IsBounded) {
  MemoryStore::Limits limits;
  limits.value_bytes = 10;
  limits.total_bytes = 25;
  MemoryStore store(limits);
  const MemberKey owner{MemberId(1), Incarnation(1)};
  EXPECT_EQ(store.Set(owner, "a", std::string(10, 'x')).code(), absl::StatusCode::kResourceExhausted);
  ASSERT_TRUE(store.Set(owner, "a", std::string(9, 'x')).ok());
  ASSERT_TRUE(store.Set(owner, "b", std::string(9, 'x')).ok());
  EXPECT_EQ(store.Set(owner, "c", std::string(9, 'x')).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(store.Set(owner, "a", std::string(9, 'y')).ok()) << "replacing takes no more room";
  store.Forget(owner);
  EXPECT_TRUE(store.Set(owner, "c", std::string(9, 'x')).ok());
}

MemberKey Life(int64_t member, int64_t incarnation) { return {MemberId(member), Incarnation(incarnation)}; }

// Each rank's name for the group that it formed, by rank.
std::vector<std::string> Agree(MemoryStore* store, const std::vector<MemberKey>& members) {
  const int size = static_cast<int>(members.size());
  std::vector<std::string> generations(members.size());
  std::vector<std::thread> ranks;
  for (int rank = size - 1; rank >= 0; --rank) {
    ranks.emplace_back([&, rank] {
      const auto generation = AgreeOnGeneration(store, rank, size, members[rank], absl::Seconds(20));
      ASSERT_TRUE(generation.ok()) << generation.status();
      EXPECT_EQ(generation->members, members);
      generations[rank] = generation->name;
    });
  }
  for (std::thread& rank : ranks) rank.join();
  return generations;
}

TEST(AgreementTest, AllRanksGetOneNameAndEveryFormingAnother) {
  MemoryStore store;
  const std::vector<std::string> first = Agree(&store, {Life(1, 1), Life(2, 1), Life(3, 1)});
  EXPECT_THAT(first, Each(first[0]));
  EXPECT_NE(first[0], "");
  // Nothing has been forgotten of the first lives.
  const std::vector<std::string> second = Agree(&store, {Life(1, 2), Life(2, 2), Life(3, 2)});
  EXPECT_THAT(second, Each(second[0]));
  EXPECT_NE(second[0], first[0]);
}

TEST(AgreementTest, ARankThatComesAgainTakesItsPlaceWhileTheOthersWait) {
  MemoryStore store;
  // The dead life of rank 1 stands in its place, and answers nothing.
  ASSERT_TRUE(store.Set("group/place/1", "2.1").ok());
  std::string name0;
  std::thread rank0([&] {
    const auto generation = AgreeOnGeneration(&store, 0, 2, Life(1, 1), absl::Seconds(20));
    ASSERT_TRUE(generation.ok()) << generation.status();
    name0 = generation->name;
  });
  ASSERT_TRUE(store.Get("group/plan", absl::Seconds(20)).ok());  // Rank 0 has planned with the dead.
  const auto generation = AgreeOnGeneration(&store, 1, 2, Life(2, 2), absl::Seconds(20));
  rank0.join();
  ASSERT_TRUE(generation.ok()) << generation.status();
  EXPECT_EQ(generation->name, name0);
}

TEST(AgreementTest, SaysWhichRanksDidNotCome) {
  MemoryStore store;
  ASSERT_TRUE(store.Set("group/place/2", "3.1").ok());
  const auto leader = AgreeOnGeneration(&store, 0, 4, Life(1, 1), absl::Milliseconds(50));
  EXPECT_EQ(leader.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(leader.status().message()), HasSubstr("rank 1, 3 of 4 did not come"));
  const auto other = AgreeOnGeneration(&store, 1, 4, Life(2, 1), absl::Milliseconds(50));
  EXPECT_EQ(other.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(other.status().message()), HasSubstr("rank 0 of 4 did not come"));
}

// The store as workers reach it.
class StoreService final : public ParameterNode::Service {
 public:
  grpc::Status StoreSet(grpc::ServerContext*, const StoreSetRequest* request, StoreSetReply*) override {
    return ServeStoreSet(&store, *request);
  }
  grpc::Status StoreGet(grpc::ServerContext*, const StoreGetRequest* request, StoreGetReply* reply) override {
    return ServeStoreGet(&store, *request, reply);
  }
  MemoryStore store;
};

TEST(RpcStoreTest, FormsAGroupThroughTheAggregator) {
  StoreService service;
  TestServer server(&service);
  server.Start();
  const auto never = [] { return false; };

  std::vector<std::thread> ranks;
  for (int rank = 0; rank < 2; ++rank) {
    ranks.emplace_back([&, rank] {
      RpcStore store(server.address(), {MemberId(rank + 1), Incarnation(1)}, absl::Seconds(5), never);
      auto group = MakeCommunicator(Options(rank, 2), &store);
      ASSERT_TRUE(group.ok()) << group.status();
      std::vector<float> values = {1.0f, static_cast<float>(rank)};
      ASSERT_TRUE((*group)->AllReduceSum(absl::MakeSpan(values)).ok());
      EXPECT_THAT(values, ElementsAre(2.0f, 1.0f));
    });
  }
  for (std::thread& rank : ranks) rank.join();

  RpcStore patient(server.address(), {MemberId(9), Incarnation(1)}, absl::Seconds(5), never);
  EXPECT_EQ(patient.Get("unset", absl::Milliseconds(10)).status().code(), absl::StatusCode::kDeadlineExceeded);
  RpcStore stopped(server.address(), {MemberId(9), Incarnation(1)}, absl::Seconds(5), [] { return true; });
  EXPECT_EQ(stopped.Get("unset", absl::Seconds(50)).status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(patient.Set("big", std::string(3 << 20, 'x')).code(), absl::StatusCode::kResourceExhausted);
  server.Stop();
}

}  // namespace
}  // namespace wukong
