// What a user gets wrong, or the machine: a message that says where and what, the documented exit code, no hang.
#include <arpa/inet.h>
#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/wire.grpc.pb.h"
#include "runtime/transport/test_server.h"
#include "tests/integration/wukong_process.h"

namespace wukong::integration {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// A port of this machine that is taken for as long as this lives; connections to it are refused unless it listens.
class TakenPort {
 public:
  explicit TakenPort(bool listens) : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    EXPECT_EQ(::bind(socket_, reinterpret_cast<sockaddr*>(&address), size), 0);
    EXPECT_EQ(listens ? ::listen(socket_, 1) : 0, 0);
    EXPECT_EQ(::getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    address_ = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
  }
  ~TakenPort() { ::close(socket_); }
  TakenPort(const TakenPort&) = delete;
  TakenPort& operator=(const TakenPort&) = delete;
  const std::string& address() const { return address_; }

 private:
  const int socket_;
  std::string address_;
};

// Ends by itself with this code; every message is one of ours and not a crash's.
void ExpectEnds(Process& process, int code, const std::vector<std::string>& says) {
  EXPECT_EQ(process.Wait(), code) << process.err();
  const std::string err = process.err();
  for (const std::string& text : says) EXPECT_THAT(err, HasSubstr(text));
  EXPECT_THAT(err, Not(HasSubstr("Check failed")));
  EXPECT_THAT(err, Not(HasSubstr("terminate called")));
}

int64_t LineOf(const std::string& text, const std::string& marker) {
  const size_t at = text.find(marker);
  EXPECT_NE(at, std::string::npos) << marker;
  return 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n');
}

// ---------------------------------------------------------------- the command line

TEST(UsageTest, HelpIsNoError) {
  const Workspace workspace(/*prepare_data=*/false);
  for (const std::vector<std::string>& arguments : std::vector<std::vector<std::string>>{
           {"--help"}, {"up", "--help"}, {"worker", "--help"}, {"--version"}, {"-v"}, {"help"}, {"help", "up"}}) {
    const auto process = workspace.Start(arguments);
    EXPECT_EQ(process->Wait(), 0) << process->err();
    EXPECT_THAT(process->out(), HasSubstr("wukong"));
  }
}

TEST(UsageTest, AWrongCommandLineIsAUsageError) {
  const Workspace workspace(/*prepare_data=*/false);
  const std::pair<std::vector<std::string>, std::string> cases[] = {
      {{}, "subcommand"},
      {{"trian"}, "no command is called trian (expected up, status,"},
      {{"up"}, "job"},
      {{"up", "job.yaml", "--frobnicate"}, "--frobnicate"},
      {{"up", "job.yaml", "--restarts", "-1"}, "--restarts"},
      {{"up", "job.yaml", "--resume", "runs/first"}, "a job file"},
      {{"up", "--resume", "runs/first", "--set", "seed=2"}, "runs/first"},
      {{"up", "--resume", "runs/first", "--run-dir", "runs/second"}, "--run-dir"},
#ifndef WUKONG_FAULT_POINTS
      {{"up", "job.yaml", "--crash-at", "root.before_append"}, "--crash-at"},
#endif
      {{"worker", "--region", "beijing"}, "--join"},
      {{"coordinator", "--job", "job.yaml"}, "--run-dir"},
      {{"coordinator", "--run-dir", "runs/first"}, "--job"},
      {{"coordinator", "--run-dir", "runs/first", "--resume", "--set", "seed=2"}, "--job"},
      {{"status"}, "RUN"},
      {{"help", "upp"}, "did you mean up?"},
      {{"status", "nonsense"}, "nonsense"},
      {{"up", "no-such-job.yaml"}, "no-such-job.yaml"},
  };
  for (const auto& [arguments, says] : cases) {
    SCOPED_TRACE(absl::StrCat(arguments.size(), " arguments, ", says));
    const auto process = workspace.Start(arguments);
    ExpectEnds(*process, 2, {"wukong: error:", says});
  }
}

// ---------------------------------------------------------------- the job file

TEST(BadJobTest, NamesTheLineAndWhatIsExpected) {
  const Workspace workspace;
  struct Case {
    const char* name;
    const char* from;  // In the good job file.
    const char* to;
    const char* marker;  // On the line that must be named.
    std::vector<std::string> says;
  };
  const Case cases[] = {
      {"unknown key", "micro_batch: 4", "micro_bath: 4", "micro_bath", {"micro_bath", "micro_batch"}},
      {"wrong unit", "rtt: 30ms", "rtt: 30Mbit", "30Mbit", {"wan.rtt", "30Mbit"}},
      {"wrong type", "layers: 1", "layers: many", "many", {"model.layers", "many"}},
      {"unknown value", "preset: async", "preset: asynk", "asynk", {"strategy.preset", "async"}},
      {"region named twice",
       "name: guizhou",
       "name: beijing",
       "name: beijing\n    workers: 2\n    speed: 1\nwan",
       {"beijing", "twice"}},
      {"zero workers",
       "name: guizhou\n    workers: 2",
       "name: guizhou\n    workers: 0",
       "workers: 0",
       {"workers", "0"}},
      {"heads that do not divide the width", "width: 32", "width: 33", "width: 33", {"model.width", "33"}},
      {"not YAML", "optimizer:\n", "optimizer: [\n", "", {}},
      {"missing data", "directory: data", "directory: elsewhere", "elsewhere", {"data.directory", "elsewhere"}},
      {"a vocabulary below the data's",
       "vocabulary: 256",
       "vocabulary: 100",
       "vocabulary: 100",
       {"model.vocabulary", "256", "100"}},
  };
  const std::string good = workspace.Yaml(TinyJob());
  for (const Case& bad : cases) {
    SCOPED_TRACE(bad.name);
    ASSERT_THAT(good, HasSubstr(bad.from));
    const std::string yaml = absl::StrReplaceAll(good, {{bad.from, bad.to}});
    const std::string path = workspace.Write("bad.yaml", yaml);
    std::vector<std::string> says = bad.says;
    says.push_back(*bad.marker == '\0' ? "bad.yaml:" : absl::StrCat("bad.yaml:", LineOf(yaml, bad.marker)));
    const auto up = workspace.Start({"up", path, "--run-dir", workspace.Path("run")});
    ExpectEnds(*up, 2, says);
    EXPECT_FALSE(std::filesystem::exists(workspace.Path("run"))) << "nothing was started";
  }
}

TEST(BadJobTest, NamesAWrongSetFlag) {
  const Workspace workspace;
  const std::string job = workspace.WriteJob(TinyJob());
  const std::pair<std::string, std::vector<std::string>> cases[] = {
      {"wan.rt=3ms", {"--set", "wan.rt", "did you mean rtt"}},
      {"wan.rtt=3", {"wan.rtt", "--set"}},
      {"stop.tokens", {"stop.tokens", "--set"}},
  };
  for (const auto& [set, says] : cases) {
    SCOPED_TRACE(set);
    const auto up = workspace.Start({"up", job, "--set", set, "--run-dir", workspace.Path("run")});
    ExpectEnds(*up, 2, says);
  }
}

// ---------------------------------------------------------------- the data

TEST(BadDataTest, NamesTheFileAndWhatIsWrongWithIt) {
  const Workspace workspace;
  const std::string validation = workspace.Path("data/validation.bin");
  const std::string tokens(2000, '\1');  // 1,000 times token 257.
  std::string small;
  for (int i = 0; i < 1000; ++i) small += std::string("\7\0", 2);
  // llm.c's header: 256 integers of 4 bytes; the magic number, the version, and the number of tokens.
  std::string header(1024, '\0');
  const int32_t fields[] = {20240520, 1, 5000};
  header.replace(0, sizeof(fields), reinterpret_cast<const char*>(fields), sizeof(fields));
  struct Case {
    const char* name;
    std::string contents;
    std::vector<std::string> says;
  };
  const Case cases[] = {
      {"missing.bin", "", {}},
      {"empty.bin", "", {}},
      {"odd.bin", small + "x", {"2001"}},
      {"beyond.bin", tokens, {"257", "256"}},
      {"short.bin", header + small, {"5000", "3024"}},
      {"tiny.bin", small.substr(0, 20), {}},
  };
  for (const Case& bad : cases) {
    SCOPED_TRACE(bad.name);
    if (std::string(bad.name) != "missing.bin") workspace.Write(bad.name, bad.contents);
    const std::string yaml = absl::StrReplaceAll(
        workspace.Yaml(TinyJob()),
        {{"  directory: data\n", absl::StrCat("  train: ", bad.name, "\n  validation: ", validation, "\n")}});
    std::vector<std::string> says = bad.says;
    says.push_back(bad.name);
    says.push_back(absl::StrCat("job.yaml:", LineOf(yaml, "train: ")));
    const auto up = workspace.Start({"up", workspace.Write("job.yaml", yaml), "--run-dir", workspace.Path("run")});
    ExpectEnds(*up, 2, says);
  }
}

TEST(BadDataTest, NoticesThatPreparedFilesWereCut) {
  const Workspace workspace;
  const std::string train = workspace.Path("data/train.bin");
  const std::string job = workspace.WriteJob(TinyJob());
  const auto size = std::filesystem::file_size(train);
  for (const size_t cut : {1000, 1, 0}) {  // The last: not there at all.
    SCOPED_TRACE(cut);
    if (cut > 0) {
      std::filesystem::resize_file(train, size - cut);
    } else {
      std::filesystem::remove(train);
    }
    const auto up = workspace.Start({"up", job, "--run-dir", workspace.Path("run")});
    ExpectEnds(*up, 2, {"train.bin", "job.yaml:"});
  }
}

// ---------------------------------------------------------------- the machine

TEST(MachineTest, AProgramWithoutItsTrainerSaysSo) {
  const Workspace workspace;
  const std::string alone = workspace.Path("wukong");
  std::filesystem::copy_file(WUKONG_BINARY, alone);
  const std::string job = workspace.WriteJob(OneRegion(1));
  Process validate(workspace.path(), {"validate", job}, {}, alone);
  EXPECT_EQ(validate.Wait(), 0) << "it trains nothing: " << validate.err();
  Process coordinator(workspace.path(),
                      {"coordinator", "--job", job, "--run-dir", workspace.Path("run"), "--listen", "127.0.0.1:0"}, {},
                      alone);
  ExpectEnds(coordinator, 3, {"cannot load libwukong_torch.so", "beside wukong"});
}

TEST(MachineTest, ARunDirectoryIsUsedOnce) {
  const Workspace workspace;
  const std::string job = workspace.WriteJob(OneRegion(1));
  const auto first = workspace.Start({"up", job, "--set", "stop.tokens=2k", "--run-dir", workspace.Path("run")});
  ASSERT_EQ(first->Wait(), 0) << first->err();
  const std::string report = RunRecord(workspace.Path("run")).Report().dump();
  const auto again = workspace.Start({"up", job, "--run-dir", workspace.Path("run")});
  ExpectEnds(*again, 2, {workspace.Path("run"), "another run", "--resume"});
  const auto coordinator =
      workspace.Start({"coordinator", "--job", job, "--run-dir", workspace.Path("run"), "--listen", "127.0.0.1:0"});
  ExpectEnds(*coordinator, 2, {workspace.Path("run"), "another run"});
  EXPECT_EQ(RunRecord(workspace.Path("run")).Report().dump(), report) << "the first run's record is untouched";
}

TEST(MachineTest, ATakenPortIsNamed) {
  const Workspace workspace;
  const TakenPort taken(/*listens=*/true);
  const auto coordinator = workspace.Start({"coordinator", "--job", workspace.WriteJob(OneRegion(1)), "--run-dir",
                                            workspace.Path("run-other"), "--listen", taken.address()});
  ExpectEnds(*coordinator, 2, {taken.address(), "in use"});
  EXPECT_FALSE(std::filesystem::exists(workspace.Path("run-other/log"))) << "the directory is as good as new";

  Cluster cluster(workspace, OneRegion(1));
  const auto aggregator = workspace.Start(
      {"aggregator", "--coordinator", cluster.address(), "--region", "beijing", "--listen", taken.address()});
  ExpectEnds(*aggregator, 2, {"aggregator of beijing", taken.address(), "in use"});
}

TEST(UsageTest, AnAddressWithoutAPortIsAMistake) {
  const Workspace workspace(/*prepare_data=*/false);
  const std::vector<std::vector<std::string>> commands = {
      {"coordinator", "--job", "job.yaml", "--run-dir", "run", "--listen", "0.0.0.0"},
      {"aggregator", "--region", "beijing", "--coordinator", "localhost"},
      {"aggregator", "--region", "beijing", "--coordinator", "localhost:7700", "--advertise", "localhost:99999"},
      {"worker", "--region", "beijing", "--join", "localhost:0"},
  };
  for (const auto& command : commands) {
    const auto process = workspace.Start(command);
    ExpectEnds(*process, 2, {"expected HOST:PORT"});
  }
}

TEST(MachineTest, OutputThatCannotBeWrittenIsNoSuccess) {
  const Workspace workspace(/*prepare_data=*/false);
  const auto keys =
      workspace.Start({"validate", "--keys"}, [] { ::dup2(::open("/dev/full", O_WRONLY), STDOUT_FILENO); });
  ExpectEnds(*keys, 3, {"standard output cannot be written"});
}

TEST(MachineTest, ACoordinatorThatCannotBeReachedIsNamed) {
  const Workspace workspace(/*prepare_data=*/false);
  const TakenPort refusing(/*listens=*/false);
  const TakenPort silent(/*listens=*/true);  // Accepts and says nothing.
  std::vector<std::pair<std::string, std::unique_ptr<Process>>> processes;
  const absl::Time begin = absl::Now();
  for (const std::string& address : {refusing.address(), silent.address()}) {
    processes.emplace_back(
        address, workspace.Start({"worker", "--join", address, "--region", "beijing", "--connect-timeout", "1"}));
    processes.emplace_back(address, workspace.Start({"aggregator", "--coordinator", address, "--region", "beijing",
                                                     "--connect-timeout", "1"}));
  }
  for (const auto& [address, process] : processes) ExpectEnds(*process, 4, {address});
  EXPECT_LT(absl::Now() - begin, absl::Seconds(30)) << "the timeout is one second, the rest is starting";
}

// gRPC looks after a connection that nobody waits for every five seconds only.
TEST(MachineTest, MembersFindACoordinatorThatComesAfterThem) {
  const Workspace workspace;
  std::string address;
  {
    const TakenPort free(/*listens=*/false);
    address = free.address();
  }
  const TinyJob job = OneRegion(1);
  const std::string file = workspace.WriteJob(job);
  const auto aggregator = workspace.Start({"aggregator", "--coordinator", address, "--region", "beijing"});
  // It says so once it has tried for two seconds.
  ASSERT_TRUE(Await([&] { return absl::StrContains(aggregator->err(), "no coordinator answers"); }));
  const auto coordinator =
      workspace.Start({"coordinator", "--job", file, "--run-dir", workspace.Path("run"), "--listen", address});
  const RunRecord record(workspace.Path("run"));
  const std::string listens = workspace.Path("run/coordinator.address");
  ASSERT_TRUE(Await([&] { return std::filesystem::exists(listens) || coordinator->ended(); })) << coordinator->err();
  const absl::Time begin = absl::Now();
  ASSERT_TRUE(Await([&] { return !record.Events("joined").empty() || aggregator->ended(); })) << aggregator->err();
  EXPECT_LT(absl::Now() - begin, absl::Seconds(3));
  // Whoever starts it by hand sees whom it waits for, and in the end how the run went.
  EXPECT_TRUE(Await([&] { return absl::StrContains(coordinator->err(), "starting: waiting for "); }));
  EXPECT_THAT(coordinator->err(), HasSubstr("1 of 1 workers of beijing"));
  const auto worker = workspace.Start({"worker", "--join", address, "--region", "beijing"});
  EXPECT_EQ(worker->Wait(), 0) << worker->err();
  EXPECT_EQ(aggregator->Wait(), 0) << aggregator->err();
  EXPECT_EQ(coordinator->Wait(), 0) << coordinator->err();
  EXPECT_THAT(coordinator->err(), HasSubstr("the token budget is committed"));
  EXPECT_THAT(coordinator->err(), HasSubstr("report: " + workspace.Path("run") + "/report.json"));
}

TEST(MachineTest, AnUnknownRegionIsAnsweredWithTheKnownOnes) {
  const Workspace workspace;
  Cluster cluster(workspace, OneRegion(1));
  Process& worker = cluster.StartWorker("peking");
  ExpectEnds(worker, 2, {"peking", "beijing", "--new-region"});
  Process& aggregator = cluster.StartAggregator("peking");
  ExpectEnds(aggregator, 2, {"peking", "beijing", "--new-region"});
  Process& misnamed = cluster.StartAggregator("pe king", {"--new-region"});
  ExpectEnds(misnamed, 2, {"pe king", "letters, digits and '-'"});
}

// ENOSPC without being root: what is written there is refused as on a full disk. The log is what counts.
TEST(MachineTest, AFullDiskUnderTheMetricsCostsTheMetrics) {
  const Workspace workspace;
  std::filesystem::create_directories(workspace.Path("run"));
  std::filesystem::create_symlink("/dev/full", workspace.Path("run/metrics.jsonl"));
  const auto up = workspace.Start({"up", workspace.WriteJob(OneRegion(1)), "--run-dir", workspace.Path("run")});
  EXPECT_EQ(up->Wait(), 0) << up->err();
  ExpectBudgetCommittedOnce(RunRecord(workspace.Path("run")).Report(), Budget(OneRegion(1)));
}

TEST(MachineTest, ALimitOnFileSizesEndsTheRun) {
  const Workspace workspace;
  const auto up = workspace.Start({"up", workspace.WriteJob(OneRegion(1)), "--run-dir", workspace.Path("run")}, [] {
    const rlimit limit = {16384, 16384};
    if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) ::_exit(99);
  });
  ExpectEnds(*up, 3, {workspace.Path("run"), "File too large"});
}

// A real file system that fills up, in a mount namespace of the process's own. Where that may not be made, /dev/full
// above is what there is.
TEST(MachineTest, AFullFileSystemEndsTheRun) {
  const Workspace workspace;
  const std::string run = workspace.Path("run");
  std::filesystem::create_directories(run);
  const auto up = workspace.Start({"up", workspace.WriteJob(OneRegion(1)), "--run-dir", run}, [path = run.c_str()] {
    const bool mounted = ::unshare(CLONE_NEWNS) == 0 &&
                         ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
                         ::mount("tmpfs", path, "tmpfs", 0, "size=64k") == 0;
    const rlimit limit = {16384, 16384};
    if (!mounted && ::setrlimit(RLIMIT_FSIZE, &limit) != 0) ::_exit(99);
  });
  ExpectEnds(*up, 3, {"run/"});
  EXPECT_THAT(up->err(),
              ::testing::AnyOf(HasSubstr("No space left"), HasSubstr("no space is left"), HasSubstr("File too large")));
}

// ---------------------------------------------------------------- processes that do not fit, or do not come

// Between a worker and its coordinator: the worker is told of a wider model than the coordinator's.
class WideningProxy final : public Coordinator::Service {
 public:
  explicit WideningProxy(const std::string& target)
      : stub_(Coordinator::NewStub(grpc::CreateChannel(target, grpc::InsecureChannelCredentials()))) {
    server_.Start();
  }
  std::string address() const { return server_.address(); }

  grpc::Status GetJob(grpc::ServerContext*, const GetJobRequest* request, GetJobReply* reply) override {
    grpc::ClientContext context;
    const grpc::Status status = stub_->GetJob(&context, *request, reply);
    reply->mutable_job()->mutable_model()->set_width(2 * reply->job().model().width());
    return status;
  }
  grpc::Status Join(grpc::ServerContext*, const JoinRequest* request, JoinReply* reply) override {
    grpc::ClientContext context;
    return stub_->Join(&context, *request, reply);
  }

 private:
  const std::unique_ptr<Coordinator::Stub> stub_;
  TestServer server_{this};
};

TEST(MemberTest, AWorkerBuiltForAnotherModelIsTurnedAway) {
  const Workspace workspace;
  Cluster cluster(workspace, OneRegion(1));
  const WideningProxy proxy(cluster.address());
  const auto worker =
      workspace.Start({"worker", "--join", proxy.address(), "--region", "beijing", "--name", "worker-7"});
  ExpectEnds(*worker, 2, {"worker-7 of beijing", "another model", "schema digest"});
  EXPECT_TRUE(cluster.record().Events("joined").empty());

  // The coordinator's own answer, without a process in between.
  const auto stub = Coordinator::NewStub(grpc::CreateChannel(cluster.address(), grpc::InsecureChannelCredentials()));
  JoinRequest request;
  request.set_role(ROLE_WORKER);
  request.set_region("beijing");
  request.set_schema_digest(std::string(64, 'f'));
  JoinReply reply;
  grpc::ClientContext context;
  EXPECT_EQ(stub->Join(&context, request, &reply).error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  // And the process goes on to serve those who fit.
  EXPECT_FALSE(cluster.coordinator().ended());
}

TEST(MemberTest, AWorkerWithOtherDataIsTurnedAway) {
  const Workspace workspace;
  const TinyJob job = OneRegion(2, kEndless);
  Cluster cluster(workspace, job);
  cluster.StartAggregator("beijing");
  cluster.StartWorker("beijing");
  const std::string text = workspace.Write("other.txt", std::string(40000, 'x') + "\n");
  const auto prepare =
      workspace.Start({"data", "prepare", "--tokenizer", "byte", "--input", text, "--output", workspace.Path("other")});
  ASSERT_EQ(prepare->Wait(), 0) << prepare->err();
  Process& stranger = cluster.StartWorker("beijing", {"--data", workspace.Path("other")});
  ExpectEnds(stranger, 2, {"other/train.bin", "not the tokens of this job", "--data"});
  for (const Json& joined : cluster.record().Events("joined")) EXPECT_NE(joined["pid"], stranger.pid());
}

TEST(MemberTest, AWorkerThatNeverStartsFailsTheRunByName) {
  const Workspace workspace;
  TinyJob job;
  job.regions = {{"beijing", 2}, {"shenzhen", 1}};
  job.start = "5s";
  job.lease = "4s";
  Cluster cluster(workspace, job);
  cluster.StartAggregator("beijing");
  cluster.StartWorker("beijing");
  ExpectEnds(cluster.coordinator(), 1,
             {"1 of 2 workers of beijing", "the aggregator of shenzhen", "1 of 1 workers of shenzhen", "limits.start"});
  EXPECT_EQ(cluster.record().Report()["completed"], false);
  EXPECT_EQ(cluster.record().Events("failed").size(), 1u);
  for (const auto& member : cluster.members()) ExpectEnds(*member, 1, {"the job failed", "workers of beijing"});
}

TEST(MemberTest, AWorkerThatDiesBeforeTrainingFailsUpByName) {
  const Workspace workspace;
  TinyJob job;
  job.regions = {{"beijing", 2}};
  const auto up =
      workspace.Start({"up", workspace.WriteJob(job), "--run-dir", workspace.Path("run"), "--restarts", "0"});
  pid_t victim = -1;
  ASSERT_TRUE(Await([&] {
    for (const pid_t child : ChildrenOf(up->pid())) {
      if (absl::StrContains(CommandLine(child), " --name worker-1 ")) victim = child;
    }
    return victim > 0;
  }));
  ASSERT_EQ(::kill(victim, SIGKILL), 0);
  ExpectEnds(*up, 1, {"worker-1 of beijing was killed by signal 9", "before training began", ".log"});
  EXPECT_TRUE(ChildrenOf(up->pid()).empty());
}

}  // namespace
}  // namespace wukong::integration
