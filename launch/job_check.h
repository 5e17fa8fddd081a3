// What a job needs beyond each key by itself: keys that must agree, data that is there, devices that exist.
#ifndef WUKONG_LAUNCH_JOB_CHECK_H_
#define WUKONG_LAUNCH_JOB_CHECK_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "launch/job_file.h"

namespace wukong {

struct CheckOptions {
  bool check_data = true;       // Opens and reads the token files and looks for the TorchScript file.
  bool check_beginning = true;  // What nothing needs once the run has begun: model.parameters, data not trained on.
  bool check_model = true;      // model, and what must hold one contribution of it.
  bool check_device = false;    // Asks this machine for the CUDA devices that the regions name.
};

// INVALID_ARGUMENT with all errors, each as "FILE:LINE: key: what is wrong (expected ..., got ...)" or with the --set
// that the value came from. FAILED_PRECONDITION, in the same form, when only a device is missing on this machine.
absl::Status CheckJob(const JobSource& source, const CheckOptions& options);

// What is allowed and hardly meant, in the words of CheckJob without the place.
std::vector<std::string> JobWarnings(const Job& job);
// Prints them to standard error.
void PrintWarnings(const Job& job);

// Parameters of the built-in GPT (GPT-2's shape, the token embedding tied to the output); 0 for a TorchScript model,
// whose number is in its file.
int64_t GptParameters(const Model& model);

// Bytes of a vector of `parameters` values in the fragments that `job` (resolved) cuts it into, each encoded by itself.
int64_t VectorBytes(const Job& job, int64_t parameters, CodecKind codec);

// Bytes of one contribution's payload, codec scales included; 0 where the number of parameters is not known.
int64_t ContributionBytes(const Job& job, CodecKind codec);

}  // namespace wukong

#endif  // WUKONG_LAUNCH_JOB_CHECK_H_
