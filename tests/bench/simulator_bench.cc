// One scenario on the simulator: events per second, virtual time per wall time and memory, beside what the bare event
// queue of the same process can do. tests/bench/simulator runs it and prints the table.
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_format.h"
#include "glog/logging.h"
#include "launch/tape_file.h"
#include "nlohmann/json.hpp"
#include "runtime/base/clock.h"
#include "runtime/base/process_info.h"
#include "runtime/base/random.h"
#include "runtime/model/compute_process.h"
#include "runtime/sim/event_queue.h"
#include "runtime/sim/simulation.h"

namespace wukong {
namespace {

// Events that do nothing but ask for the next one, `pending` of them at any time: the limit of whatever runs on the
// queue.
double QueueEventsPerCpuSecond(int64_t pending, int64_t events) {
  struct Chain {
    EventQueue queue;
    Random random{1};
    void Next() {
      queue.After(absl::Nanoseconds(1 + random.Below(1'000'000'000)), [this] { Next(); });
    }
  } chain;
  for (int64_t i = 0; i < pending; ++i) chain.Next();
  const double begin = ProcessCpuSeconds();
  while (chain.queue.executed() < events) chain.queue.RunOne(absl::InfiniteFuture());
  return static_cast<double>(events) / (ProcessCpuSeconds() - begin);
}

int Main(int argc, char** argv) {
  std::string path;
  std::vector<std::string> overrides;
  CLI::App app("Speed and memory of the simulator on one scenario, as JSON.");
  app.add_option("SCENARIO", path)->required();
  app.add_option("--set", overrides)->expected(1)->take_all()->allow_extra_args(false);
  CLI11_PARSE(app, argc, argv);
  FLAGS_minloglevel = google::GLOG_FATAL;
  KeepMemoryInHugePages();  // As `wukong sim`.
  const absl::StatusOr<Scenario> scenario = LoadCheckedScenario(path, overrides);
  if (!scenario.ok()) {
    std::fprintf(stderr, "%s\n", std::string(scenario.status().message()).c_str());
    return 2;
  }
  int64_t workers = 0;
  for (const Region& region : scenario->regions()) workers += region.workers();
  const RealClock clock;
  const int64_t memory_before = PeakMemoryBytes();
  const double cpu_begin = ProcessCpuSeconds();
  const absl::Time begin = clock.Now();
  const absl::StatusOr<SimulationResult> result = RunSimulation(*scenario, scenario->seed(), nullptr);
  const double wall_seconds = absl::ToDoubleSeconds(clock.Now() - begin);
  const double cpu_seconds = ProcessCpuSeconds() - cpu_begin;
  const int64_t memory = PeakMemoryBytes() - memory_before;
  if (!result.ok()) {
    std::fprintf(stderr, "%s\n", std::string(result.status().message()).c_str());
    return 1;
  }
  // About what waits in the queue of a run: a step, a heartbeat and a timeout or two of each worker.
  const double limit = QueueEventsPerCpuSecond(4 * workers, 4'000'000);
  std::printf("%s\n", nlohmann::ordered_json({{"workers", workers},
                                              {"passed", result->passed()},
                                              {"events", result->events},
                                              {"virtual_seconds", absl::ToDoubleSeconds(result->virtual_time)},
                                              {"wall_seconds", wall_seconds},
                                              {"cpu_seconds", cpu_seconds},
                                              {"peak_memory_bytes", memory},
                                              {"samples_committed", result->samples_committed},
                                              {"versions", result->versions},
                                              {"queue_events_per_cpu_second", limit},
                                              {"tape_hash", absl::StrFormat("%016x", result->tape_hash)}})
                          .dump()
                          .c_str());
  return result->passed() ? 0 : 1;
}

}  // namespace
}  // namespace wukong

int main(int argc, char** argv) { return wukong::Main(argc, argv); }
