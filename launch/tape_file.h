// The tape of a simulated run as a file: what was run, by which program, and all that happened.
//
//   {"tape":1,"seed":7,"binary_sha256":"...","scenario":{...}}      scenario: the message, as protobuf's JSON
//   {"seconds":0.0,"event":"started","who":"root",...}               one line per event (runtime/sim/tape.h)
//   {"events":123,"tape_hash":"..."}                                 not there when the run did not get to its end
#ifndef WUKONG_LAUNCH_TAPE_FILE_H_
#define WUKONG_LAUNCH_TAPE_FILE_H_

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/scenario.pb.h"
#include "runtime/sim/simulation.h"

namespace wukong {

// Loads a scenario file with overrides, for `backend`. INVALID_ARGUMENT names everything that is wrong with it, with
// file and line.
absl::StatusOr<Scenario> LoadCheckedScenario(const std::string& path, const std::vector<std::string>& overrides,
                                             Backend backend = BACKEND_SIM);

class TapeWriter {
 public:
  // INVALID_ARGUMENT when the file cannot be written.
  absl::Status Open(const std::string& path, const Scenario& scenario, uint64_t seed);
  void Add(const TapeEvent& event) { file_ << TapeEventToJson(event) << "\n"; }
  // RESOURCE_EXHAUSTED when not all of it could be written.
  absl::Status Finish(const SimulationResult& result);

 private:
  std::string path_;
  std::ofstream file_;
};

struct Replay {
  bool same = false;
  int64_t events = 0;      // Of the run, when it is the same; else the first that differs, counted from 1.
  uint64_t tape_hash = 0;  // Of the run now.
  // Where they differ: lines of the tape, empty where one side has ended.
  std::string on_tape;
  std::string now;
  bool complete = false;      // The tape has its last line.
  bool other_binary = false;  // The tape was written by another build of wukong.
};
// Runs again what is on the tape. INVALID_ARGUMENT: that is no tape.
absl::StatusOr<Replay> ReplayTape(const std::string& path);

}  // namespace wukong

#endif  // WUKONG_LAUNCH_TAPE_FILE_H_
