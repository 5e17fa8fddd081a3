// A whole job on this machine: its processes, the emulated links between them, and how it goes.
#ifndef WUKONG_LAUNCH_LOCAL_RUN_H_
#define WUKONG_LAUNCH_LOCAL_RUN_H_

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "launch/job_file.h"
#include "launch/port_reservation.h"
#include "launch/supervisor.h"
#include "nlohmann/json.hpp"
#include "proto/wire.grpc.pb.h"
#include "runtime/base/clock.h"
#include "runtime/base/stop_signal.h"
#include "runtime/fault/network_namespace.h"
#include "runtime/fault/wan_relay.h"

namespace wukong {

class LocalRun {
 public:
  // What the links between regions are (docs/wan.md). But for kRelay each region is in a network of its own, and they
  // carry IP packets; the caller has entered a network that is not the machine's (EnterOwnNetwork).
  enum class Network { kRelay, kNamespaces, kNetem };
  struct Options {
    std::string job;  // The file, and what is set beside it.
    std::vector<std::string> set;
    std::string run_dir;
    bool resume = false;
    int restarts = 100;                                // In the whole run, over all processes.
    absl::Duration restart_after;                      // A process that died is away at least this long.
    absl::Duration within = absl::InfiniteDuration();  // Of training; then the run is ended.
    // Where lines of progress stay, and are not written over, they come no more often than this.
    absl::Duration lines_every;
    bool no_fsync = false;
    std::string crash_at;
    Network network = Network::kRelay;
    bool standby = false;  // Of the coordinator, once training is under way. Not with `restart_after`.
    // Called between two looks at the processes, some twenty times a second, once training has begun.
    std::function<void(LocalRun*, absl::Duration since_begin)> on_poll;
    // Called with each answer of the coordinator.
    std::function<void(const StatusReply&)> on_status;
  };
  struct Result {
    int exit_code = 0;
    nlohmann::ordered_json report;  // As report.json; null when the run wrote none.
  };

  LocalRun(Options options, JobSource source, PortReservation port, const StopSignal* stop);
  // Until the run is over; shows its progress on standard error. All processes that it started are gone then.
  Result Run();

  // For on_poll.
  Supervisor& supervisor() { return supervisor_; }
  EmulatedLink* link(const std::string& region) { return links_.at(region).get(); }
  Coordinator::Stub* coordinator();
  // The coordinator stands still, as the caller knows: it is not asked meanwhile.
  void ExpectNoAnswer(bool none) { expects_no_answer_ = none; }
  bool expects_no_answer() const { return expects_no_answer_; }
  // A line for people, beside the progress.
  void Say(const std::string& line);
  // The names by which the supervisor knows processes.
  static std::string AggregatorName(const std::string& region);
  static std::string WorkerName(const std::string& region, int worker);

 private:
  using Json = nlohmann::ordered_json;
  std::vector<std::string> CoordinatorCommand(int starts) const;
  std::optional<std::vector<std::string>> StandbyCommand() const;
  absl::Status StartAll();
  // `network`: as Subprocess::Start.
  absl::Status StartMember(const std::string& name, ProcessKind kind, const std::vector<std::string>& arguments,
                           int network);
  // The link of the region, and the network in which the region's processes are to be; -1: that of this one.
  absl::StatusOr<std::unique_ptr<EmulatedLink>> StartLink(const Region& region, int* network);
  absl::Status WaitForCoordinator();
  absl::Status WatchUntilOver();
  // Asks the coordinator how things stand; nothing when it does not answer.
  std::optional<StatusReply> AskStatus();
  std::optional<RunStage> Stage(ProcessKind ended);
  // The coordinator has not answered since it was started, or is to be started.
  bool CoordinatorIsAway() const;
  void ShowProgress();
  // A signal came after the one that ends the run.
  bool AskedToHurry();
  void SayStopping();
  void EndProgressLine();
  // Of this run, and not one that an earlier part of it left behind. NOT_FOUND: there is none.
  absl::StatusOr<Json> ReadReport() const;
  absl::Status CompleteReport(const absl::Status& status, Json* report) const;
  // The exit code of a run that the coordinator has ended.
  int EndOfCoordinator(const Supervisor::Ending& ending, const absl::StatusOr<Json>& report);

  const Options options_;
  const std::string run_dir_;
  const JobSource source_;
  const Job& job_;
  const std::string program_;   // As it was started: its name may be another file's by now.
  const PortReservation port_;  // The coordinator's, through all of its lives.
  const StopSignal* const stop_;
  std::vector<JoinedNetwork> networks_;
  Supervisor supervisor_;
  std::map<std::string, std::unique_ptr<EmulatedLink>> links_;
  std::unique_ptr<Coordinator::Stub> coordinator_;
  std::string earlier_report_;   // As it was found.
  std::string earlier_address_;  // The identity of the file, likewise.

  // As the coordinator last said.
  std::string phase_ = "starting";
  bool has_trained_ = false;
  bool others_work_ = false;  // Workers that somebody else started, when the coordinator last answered.
  const RealClock clock_;     // Monotonic, as are all times here.
  absl::Time began_ = absl::InfiniteFuture();  // As seen from here.
  int answered_start_ = 0;                     // The start of the coordinator, counted from 1, that answered last.
  absl::Time answered_at_ = absl::InfinitePast();
  bool expects_no_answer_ = false;
  bool progress_line_open_ = false;
  absl::Time next_line_ = absl::InfinitePast();
  absl::Time ending_since_ = absl::InfinitePast();
  int signals_heeded_ = 0;
  bool shown_over_ = false;
};

}  // namespace wukong

#endif  // WUKONG_LAUNCH_LOCAL_RUN_H_
