// What a job file says of a link between a region and the root.
#ifndef WUKONG_RUNTIME_FAULT_LINK_SHAPE_H_
#define WUKONG_RUNTIME_FAULT_LINK_SHAPE_H_

#include <string>

#include "proto/job.pb.h"
#include "runtime/fault/wan_relay.h"

namespace wukong {

// Of one direction, up (to the root) or down.
LinkShape ShapeOfLink(const Wan& wan, const std::string& region, Direction direction);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_FAULT_LINK_SHAPE_H_
