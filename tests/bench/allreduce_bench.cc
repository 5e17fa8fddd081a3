// The all-reduce of a region's workers beside Gloo's own between the same processes: tests/bench/allreduce runs it and
// prints the table.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "gloo/allreduce.h"
#include "gloo/barrier.h"
#include "gloo/math.h"
#include "gloo/rendezvous/context.h"
#include "gloo/rendezvous/file_store.h"
#include "gloo/transport/tcp/device.h"
#include "nlohmann/json.hpp"
#include "runtime/base/clock.h"
#include "runtime/transport/collective.h"

namespace wukong {
namespace {

constexpr absl::Duration kTimeout = absl::Seconds(60);

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "allreduce_bench: %s\n", what.c_str());
  std::_Exit(1);
}

// Gloo's files as the store in which Wukong's ranks find one another.
class FileStore final : public RendezvousStore {
 public:
  explicit FileStore(const std::string& directory) : store_(directory) {}
  absl::Status Set(const std::string& key, const std::string& value) override {
    store_.set(key, {value.begin(), value.end()});
    return absl::OkStatus();
  }
  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override {
    try {
      store_.wait({key}, absl::ToChronoMilliseconds(timeout));
      const std::vector<char> value = store_.get(key);
      return std::string(value.begin(), value.end());
    } catch (const std::exception& error) {
      return absl::DeadlineExceededError(error.what());
    }
  }

 private:
  gloo::rendezvous::FileStore store_;
};

// What is measured: sums `values` over the ranks.
class Group {
 public:
  virtual ~Group() = default;
  virtual void Sum(std::vector<float>* values) = 0;
  virtual void Barrier() = 0;
};

class WukongGroup final : public Group {
 public:
  WukongGroup(int rank, int ranks, const std::string& directory) : store_(directory) {
    CommunicatorOptions options;
    options.kind = COLLECTIVE_GLOO;
    options.group = "bench";
    options.rank = rank;
    options.size = ranks;
    options.generation = "1";
    auto communicator = MakeCommunicator(options, &store_);
    if (!communicator.ok()) Fail(std::string(communicator.status().message()));
    communicator_ = *std::move(communicator);
  }
  void Sum(std::vector<float>* values) override {
    const absl::Status status = communicator_->AllReduceSum(absl::MakeSpan(*values));
    if (!status.ok()) Fail(std::string(status.message()));
  }
  void Barrier() override {
    if (const absl::Status status = communicator_->Barrier(); !status.ok()) Fail(std::string(status.message()));
  }

 private:
  FileStore store_;
  std::unique_ptr<Communicator> communicator_;
};

class GlooGroup final : public Group {
 public:
  GlooGroup(int rank, int ranks, const std::string& directory)
      : context_(std::make_shared<gloo::rendezvous::Context>(rank, ranks)) {
    auto device = gloo::transport::tcp::CreateDevice(gloo::transport::tcp::attr("127.0.0.1"));
    context_->setTimeout(absl::ToChronoMilliseconds(kTimeout));
    gloo::rendezvous::FileStore store(directory);
    context_->connectFullMesh(store, device);
  }
  void Sum(std::vector<float>* values) override {
    gloo::AllreduceOptions options(context_);
    options.setOutput(values->data(), values->size());
    options.setReduceFunction(static_cast<void (*)(void*, const void*, const void*, size_t)>(&gloo::sum<float>));
    options.setTag(++tag_);
    gloo::allreduce(options);
  }
  void Barrier() override {
    gloo::BarrierOptions options(context_);
    options.setTag(++tag_);
    gloo::barrier(options);
  }

 private:
  std::shared_ptr<gloo::rendezvous::Context> context_;
  uint32_t tag_ = 0;
};

// Seconds per sum, from a barrier to the last sum's end.
double Measure(Group* group, std::vector<float>* values, int sums) {
  const RealClock clock;
  group->Barrier();
  const absl::Time begin = clock.Now();
  for (int i = 0; i < sums; ++i) group->Sum(values);
  return absl::ToDoubleSeconds(clock.Now() - begin) / sums;
}

void RunRank(int rank, int ranks, const std::string& directory, const std::vector<int64_t>& sizes, int rounds,
             double seconds) {
  const auto made = [&](const char* name) {
    const std::string path = absl::StrCat(directory, "/", name);
    std::filesystem::create_directories(path);
    return path;
  };
  WukongGroup wukong(rank, ranks, made("wukong"));
  GlooGroup gloo(rank, ranks, made("gloo"));
  nlohmann::ordered_json results = nlohmann::ordered_json::array();
  for (const int64_t bytes : sizes) {
    std::vector<float> values(static_cast<size_t>(bytes) / sizeof(float));
    // How many sums a round takes is rank 0's to say: it is summed, as all the others are silent.
    std::vector<float> sums(1);
    Measure(&gloo, &values, 2);
    const double one = Measure(&gloo, &values, 2);
    sums[0] = rank == 0 ? static_cast<float>(std::clamp(seconds / one, 1.0, 100'000.0)) : 0.0F;
    gloo.Sum(&sums);
    const auto count = static_cast<int>(sums[0]);
    nlohmann::ordered_json ours = nlohmann::ordered_json::array(), theirs = nlohmann::ordered_json::array();
    for (int round = 0; round < rounds; ++round) {
      // In turns, and each of them first as often.
      for (int turn = 0; turn < 2; ++turn) {
        const bool is_ours = (round + turn) % 2 == 0;
        Group* const group = is_ours ? static_cast<Group*>(&wukong) : &gloo;
        (is_ours ? ours : theirs).push_back(Measure(group, &values, count));
      }
    }
    results.push_back(
        {{"bytes", bytes}, {"sums_per_round", count}, {"wukong_seconds", ours}, {"gloo_seconds", theirs}});
  }
  wukong.Barrier();
  if (rank == 0) std::printf("%s\n", results.dump().c_str());
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  int ranks = 2, rounds = 8;
  double seconds = 0.3;
  std::vector<int64_t> sizes = {4 << 10, 256 << 10, 4 << 20, 64 << 20};
  CLI::App app("All-reduce between processes on this machine, by Wukong's group and by Gloo alone in turns, as JSON.");
  app.add_option("--ranks", ranks)->check(CLI::Range(2, 64));
  app.add_option("--rounds", rounds)->check(CLI::Range(1, 1000));
  app.add_option("--seconds", seconds, "of one round, about")->check(CLI::PositiveNumber);
  app.add_option("--bytes", sizes, "of fp32")->delimiter(',')->check(CLI::Range(4, 1 << 30));
  CLI11_PARSE(app, argc, argv);
  std::string directory = (std::filesystem::temp_directory_path() / "wukong_allreduce_XXXXXX").string();
  if (::mkdtemp(directory.data()) == nullptr) Fail("cannot make a directory for the ranks to find one another");
  std::vector<pid_t> children;
  for (int rank = 0; rank < ranks; ++rank) {
    const pid_t child = ::fork();
    if (child < 0) Fail("cannot fork");
    if (child == 0) {
      RunRank(rank, ranks, directory, sizes, rounds, seconds);
      std::_Exit(0);
    }
    children.push_back(child);
  }
  bool failed = false;
  for (const pid_t child : children) {
    int status = 0;
    failed = ::waitpid(child, &status, 0) < 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0 || failed;
  }
  std::filesystem::remove_all(directory);
  return failed ? 1 : 0;
}

}  // namespace
}  // namespace wukong

int main(int argc, char** argv) { return wukong::Main(argc, argv); }
