// How the workers of a region find one another before they can talk directly: a small store of keys and values, kept by
// the region's aggregator.
#ifndef WUKONG_RUNTIME_TRANSPORT_RENDEZVOUS_H_
#define WUKONG_RUNTIME_TRANSPORT_RENDEZVOUS_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/wire.grpc.pb.h"
#include "runtime/base/mutex.h"
#include "runtime/sync/types.h"

namespace wukong {

// Thread-safe.
class RendezvousStore {
 public:
  virtual ~RendezvousStore() = default;
  // Sets the key anew where it was set before. RESOURCE_EXHAUSTED: the store or the value is too large.
  virtual absl::Status Set(const std::string& key, const std::string& value) = 0;
  // Waits until the key is set. DEADLINE_EXCEEDED: it was not within `timeout`. CANCELLED: the owner does not want to
  // wait any more.
  virtual absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) = 0;
};

// The store itself. Entries belong to the member that set them, and go with it.
class MemoryStore final : public RendezvousStore {
 public:
  struct Limits {
    // The addresses that one rank of Gloo sets take 136 bytes per rank of its group.
    size_t value_bytes = 1 << 20;
    size_t total_bytes = 64 << 20;
  };
  MemoryStore() : MemoryStore(Limits()) {}
  explicit MemoryStore(const Limits& limits) : limits_(limits) {}

  absl::Status Set(const std::string& key, const std::string& value) override { return Set(MemberKey(), key, value); }
  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override;

  absl::Status Set(MemberKey owner, const std::string& key, const std::string& value);
  // Removes what this incarnation, or an earlier one, of the member has set.
  void Forget(MemberKey owner);

 private:
  struct Entry {
    MemberKey owner;
    std::string value;
  };
  const Limits limits_;
  Mutex mutex_;
  CondVar changed_;
  std::map<std::string, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  size_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

// One forming of a group.
struct Generation {
  std::string name;                // That no other forming has.
  std::vector<MemberKey> members;  // By rank.
};

// What the ranks of a group do before they connect: they agree on a generation, also where the store still holds what
// dead processes have set. Rank 0 plans with whoever stands in each place, and is satisfied when all of them have
// answered to the plan; who takes a place anew makes it plan anew. DEADLINE_EXCEEDED: some rank did not come; the
// message says which.
absl::StatusOr<Generation> AgreeOnGeneration(RendezvousStore* store, int rank, int size, MemberKey self,
                                             absl::Duration timeout);

// The calls StoreSet and StoreGet of an aggregator, by its store.
grpc::Status ServeStoreSet(MemoryStore* store, const StoreSetRequest& request);
grpc::Status ServeStoreGet(MemoryStore* store, const StoreGetRequest& request, StoreGetReply* reply);

// The store of the aggregator at `address`, for a worker. Calls are tried again while the aggregator is away.
class RpcStore final : public RendezvousStore {
 public:
  // `cancelled` is asked between two calls, from whatever thread waits.
  RpcStore(const std::string& address, MemberKey self, absl::Duration set_timeout, std::function<bool()> cancelled);

  absl::Status Set(const std::string& key, const std::string& value) override;
  absl::StatusOr<std::string> Get(const std::string& key, absl::Duration timeout) override;

 private:
  const std::string address_;
  const MemberKey self_;
  const absl::Duration set_timeout_;
  const std::function<bool()> cancelled_;
  const std::unique_ptr<ParameterNode::Stub> stub_;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_TRANSPORT_RENDEZVOUS_H_
