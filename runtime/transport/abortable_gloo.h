// A context of Gloo whose waits can be ended from another thread.
//
// Gloo tells the waits that are under way when a connection fails, but not all: a transfer whose first bytes are on the
// way is on a list that is not looked through (gloo/transport/tcp/pair.cc, signalException: tx_ and rx_ of unbound
// buffers), and its wait goes on until it runs out of time. So every buffer that a collective makes is known here, and
// its waits are ended one by one.
#ifndef WUKONG_RUNTIME_TRANSPORT_ABORTABLE_GLOO_H_
#define WUKONG_RUNTIME_TRANSPORT_ABORTABLE_GLOO_H_

#include <chrono>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "gloo/common/error.h"
#include "gloo/rendezvous/context.h"
#include "gloo/transport/context.h"
#include "gloo/transport/unbound_buffer.h"
#include "runtime/base/mutex.h"

namespace wukong {

// Everything is the inner context's, but that waits throw gloo::IoException from Abort on.
class AbortableTransport final : public gloo::transport::Context {
 public:
  explicit AbortableTransport(std::shared_ptr<gloo::transport::Context> inner)
      : gloo::transport::Context(inner->rank, inner->size), inner_(std::move(inner)) {
    setTimeout(inner_->getTimeout());
  }

  std::unique_ptr<gloo::transport::Pair>& getPair(int peer) override { return inner_->getPair(peer); }
  std::unique_ptr<gloo::transport::Pair>& createPair(int peer) override { return inner_->createPair(peer); }
  std::unique_ptr<gloo::transport::UnboundBuffer> createUnboundBuffer(void* data, size_t bytes) override {
    return std::make_unique<Buffer>(this, inner_->createUnboundBuffer(data, bytes));
  }

  // Any thread. The connections have failed already, so that nothing writes to the buffers of who no longer waits.
  void Abort() {
    MutexLock lock(mutex_);
    aborted_ = true;
    for (gloo::transport::UnboundBuffer* buffer : buffers_) EndWaits(buffer);
  }

 private:
  class Buffer final : public gloo::transport::UnboundBuffer {
   public:
    Buffer(AbortableTransport* owner, std::unique_ptr<gloo::transport::UnboundBuffer> inner)
        : gloo::transport::UnboundBuffer(inner->ptr, inner->size), owner_(owner), inner_(std::move(inner)) {
      MutexLock lock(owner_->mutex_);
      owner_->buffers_.insert(inner_.get());
      if (owner_->aborted_) EndWaits(inner_.get());
    }
    ~Buffer() override {
      MutexLock lock(owner_->mutex_);
      owner_->buffers_.erase(inner_.get());
    }

    bool waitRecv(int* peer, std::chrono::milliseconds timeout) override {
      return OrThrow(inner_->waitRecv(peer, timeout));
    }
    bool waitSend(int* peer, std::chrono::milliseconds timeout) override {
      return OrThrow(inner_->waitSend(peer, timeout));
    }
    void abortWaitRecv() override { inner_->abortWaitRecv(); }
    void abortWaitSend() override { inner_->abortWaitSend(); }
    void send(int peer, uint64_t slot, size_t offset, size_t bytes) override {
      inner_->send(peer, slot, offset, bytes);
    }
    void recv(int peer, uint64_t slot, size_t offset, size_t bytes) override {
      inner_->recv(peer, slot, offset, bytes);
    }
    void recv(std::vector<int> peers, uint64_t slot, size_t offset, size_t bytes) override {
      inner_->recv(std::move(peers), slot, offset, bytes);
    }

   private:
    // Collectives take a wait that was ended for one that is done.
    static bool OrThrow(bool done) {
      if (!done) throw gloo::IoException("the wait was aborted");
      return true;
    }
    AbortableTransport* const owner_;
    const std::unique_ptr<gloo::transport::UnboundBuffer> inner_;
  };

  static void EndWaits(gloo::transport::UnboundBuffer* buffer) {
    buffer->abortWaitRecv();
    buffer->abortWaitSend();
  }

  const std::shared_ptr<gloo::transport::Context> inner_;
  Mutex mutex_;
  std::set<gloo::transport::UnboundBuffer*> buffers_ ABSL_GUARDED_BY(mutex_);
  bool aborted_ ABSL_GUARDED_BY(mutex_) = false;
};

class AbortableContext final : public gloo::rendezvous::Context {
 public:
  using gloo::rendezvous::Context::Context;

  // Once connected, by the thread that makes the calls: from here on Abort ends them. Without it they go on.
  void MakeAbortable() {
    transport_ = std::make_shared<AbortableTransport>(transportContext_);
    transportContext_ = transport_;
  }
  void Abort() { transport_->Abort(); }

 private:
  std::shared_ptr<AbortableTransport> transport_;
};

}  // namespace wukong

#endif  // WUKONG_RUNTIME_TRANSPORT_ABORTABLE_GLOO_H_
