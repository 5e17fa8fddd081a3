// What is in a data directory or a token file, for people.
#ifndef WUKONG_RUNTIME_DATA_INSPECT_H_
#define WUKONG_RUNTIME_DATA_INSPECT_H_

#include <string>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace wukong {

struct Inspection {
  std::string text;             // Lines, as `wukong data inspect` prints them.
  nlohmann::ordered_json json;  // The same for programs.
  absl::Status verdict;         // The first thing that is wrong; `text` and `json` have all of them.
};

// `path` is a directory made by `wukong data prepare`, or a token file in nanoGPT's or llm.c's layout. Everything is
// read: digests, the largest token, the unigram loss. An error when there is nothing to describe.
absl::StatusOr<Inspection> InspectData(const std::string& path);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_DATA_INSPECT_H_
