// Collective operations among the workers of one region, which act as one leaf of the tree. Collectives never cross
// regions.
#ifndef WUKONG_RUNTIME_TRANSPORT_COLLECTIVE_H_
#define WUKONG_RUNTIME_TRANSPORT_COLLECTIVE_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "proto/job.pb.h"
#include "runtime/transport/rendezvous.h"

namespace wukong {

// One rank's end of a group of `size` processes. All ranks must make the same calls in the same order, with arguments
// of the same size; each call blocks until this rank's part is done. One thread at a time, but for Abort.
//
// Errors: DEADLINE_EXCEEDED (a rank did not take part within the timeout), UNAVAILABLE (a rank or the network is gone),
// CANCELLED (Abort), INVALID_ARGUMENT (no such root). After the first of them nothing works any more: the group cannot
// know how far the others came, and every call returns that error.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // values[i] := the sum of values[i] over the ranks; the same bits on every rank.
  virtual absl::Status AllReduceSum(absl::Span<float> values) = 0;
  // `values` and `bytes` := those of rank `root`.
  virtual absl::Status Broadcast(absl::Span<float> values, int root) = 0;
  virtual absl::Status BroadcastBytes(std::string* bytes, int root) = 0;
  // Until every rank has come here.
  virtual absl::Status Barrier() = 0;

  // From any thread: ends the call under way, on this rank and soon on the others, and every later one.
  virtual void Abort() = 0;
};

struct CommunicatorOptions {
  Collective kind = COLLECTIVE_NONE;
  std::string group;  // For messages, as in "region guizhou".
  int rank = 0;
  int size = 1;
  // Unique to this forming of the group: keys in the store begin with it.
  std::string generation;
  // The numeric address of this machine at which the other ranks reach it (LocalAddressTowards).
  std::string local_address = "127.0.0.1";
  absl::Duration form_timeout = absl::Seconds(60);  // For all ranks to come.
  absl::Duration timeout = absl::Seconds(60);       // Of each operation.
};

// Blocks until all ranks are connected. A group of one needs no store; `kind` none is a group of one. Errors: as above,
// the store's, and INVALID_ARGUMENT for ranks that cannot be.
absl::StatusOr<std::unique_ptr<Communicator>> MakeCommunicator(const CommunicatorOptions& options,
                                                               RendezvousStore* store);

// The numeric address from which this machine sends to `address` (host:port), found without sending anything. Others
// that reach that host reach this address as well. UNAVAILABLE: the name is unknown, or there is no route.
absl::StatusOr<std::string> LocalAddressTowards(const std::string& address);

}  // namespace wukong

#endif  // WUKONG_RUNTIME_TRANSPORT_COLLECTIVE_H_
