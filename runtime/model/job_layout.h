// What the job alone says of the flat parameter vector: whoever needs no libtorch learns here what lies where in the
// built-in GPT, and how the vector is cut.
#ifndef WUKONG_RUNTIME_MODEL_JOB_LAYOUT_H_
#define WUKONG_RUNTIME_MODEL_JOB_LAYOUT_H_

#include <cstdint>
#include <vector>

#include "proto/job.pb.h"
#include "runtime/model/parameter_layout.h"

namespace wukong {

// Names, shapes and order are those of the trainer's layout (GPT-2, the head tied to the embedding; first what AdamW
// decays). Offsets and sizes are set by ParameterLayout.
std::vector<TensorSpec> GptTensors(const Model& model);

// The runs of one role, which cover [0, parameters) and alternate: kFeedForward is each layer's two matrices
// mlp.*.weight. Another model than the built-in GPT (a TorchScript file, whose names mean nothing here, a synthetic
// one, another number of parameters) is kOther as a whole.
std::vector<FragmentSpan> RolesOf(const Model& model, int64_t parameters);

// What no fragment crosses: the roles of the job's `parameters` values where some codec of the job is MIXED, else one
// span. `job` is resolved.
std::vector<FragmentSpan> UncutSpansOf(const Job& job, int64_t parameters);

// How the job cuts them: each of these spans in fragments of at most limits.fragment_bytes.
std::vector<FragmentSpan> FragmentsOf(const Job& job, int64_t parameters);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_MODEL_JOB_LAYOUT_H_
