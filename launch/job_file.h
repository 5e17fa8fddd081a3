// The job file: YAML on one side, one message with everything filled in on the other.
#ifndef WUKONG_LAUNCH_JOB_FILE_H_
#define WUKONG_LAUNCH_JOB_FILE_H_

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/job.pb.h"
#include "proto/scenario.pb.h"

namespace wukong {

// Where each value was written. Key paths look like "wan.rtt" and "regions[0].speed[1]".
struct YamlSource {
  std::map<std::string, int> lines;              // Key path -> line in the file, for what the file says.
  std::map<std::string, std::string> overrides;  // Key path -> "key.path=value", for what --set says.
  std::string path;

  // "FILE:LINE: key: " or, for a value from the command line, "--set key.path=value: key: ". A key that is not written
  // anywhere has the line of what it would stand in.
  std::string Where(absl::string_view key) const;
};

struct JobSource : YamlSource {
  Job job;
};

struct ScenarioSource : YamlSource {
  Scenario scenario;
};

// Everything that is wrong with a job, one per line, up to a limit; the rest is counted.
class JobErrors {
 public:
  // Errors are shown in the order of their lines, and in the order of their coming where those are equal.
  void Add(absl::string_view where, absl::string_view what, int line = 0);
  bool empty() const { return errors_.empty(); }
  // OK or INVALID_ARGUMENT.
  absl::Status ToStatus() const;

 private:
  std::vector<std::pair<int, std::string>> errors_;
};

// Reads the file, then applies the overrides in their order, each "key.path=value" with a value in YAML:
//     wan.rtt=150ms   regions.0.speed=0.5   regions[1].workers=2   regions.beijing.device=cuda regions.0.speed=[1,0.5]
// An override of a map or a list replaces all of it. Then fills in every default and resolves strategy and optimizer.
// Relative paths of data and models start at the folder of the file, those of overrides at the current directory, and
// are made absolute. What needs more than one key is for CheckJob (launch/job_check.h). INVALID_ARGUMENT holds all
// errors, one a line, as "FILE:LINE: key.path: what is wrong (expected ..., got ...)".
absl::StatusOr<JobSource> LoadJobFile(const std::string& path, const std::vector<std::string>& overrides);

// The same for a scenario (docs/simulation.md); its strategy and optimizer are not resolved.
absl::StatusOr<ScenarioSource> LoadScenarioFile(const std::string& path, const std::vector<std::string>& overrides);

// The file is one of a scenario and not of a job: it has a workload. False also where it cannot be read.
bool IsScenarioFile(const std::string& path);

// INVALID_ARGUMENT: it is not there, or is no run directory. PERMISSION_DENIED: nobody here may know.
absl::Status CheckRunDirectory(const std::string& run_dir);

// The job of a run that was begun, from its config.resolved.yaml. INVALID_ARGUMENT: that is no run directory.
absl::StatusOr<JobSource> LoadRunJob(const std::string& run_dir);

// The whole job as a job file, with units for people: LoadJobFile makes the same job of it.
std::string ResolvedYaml(const Job& job);

// Where two jobs differ, in the order of the job file: the key, and its values as ResolvedYaml has them ("not set"
// where it does not have them). Of lists of unlike length, their lengths.
struct JobDifference {
  std::string key;
  std::string before, after;
};
std::vector<JobDifference> JobDifferences(const Job& before, const Job& after);

// A scenario as a scenario file: LoadScenarioFile makes the same scenario of it.
std::string ScenarioYaml(const Scenario& scenario);

// A Markdown table of every key with its type, default, bounds and meaning.
std::string KeyReference();

}  // namespace wukong

#endif  // WUKONG_LAUNCH_JOB_FILE_H_
