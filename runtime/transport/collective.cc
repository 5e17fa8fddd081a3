#include "runtime/transport/collective.h"

#include <netdb.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <functional>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "gloo/allreduce.h"
#include "gloo/barrier.h"
#include "gloo/broadcast.h"
#include "gloo/math.h"
#include "gloo/rendezvous/store.h"
#include "gloo/transport/tcp/device.h"
#include "gloo/transport/unbound_buffer.h"
#include "runtime/base/clock.h"
#include "runtime/transport/abortable_gloo.h"

namespace wukong {
namespace {

constexpr uint64_t kBroadcastBytesMax = 64 << 20;
// Gloo waits so many times the timeout of its context for a connection (gloo/transport/tcp/pair.cc, waitUntil).
constexpr int kConnectTimeouts = 5;

// Writing to a rank that is gone must be an error and not the end of the process: Gloo writes to its sockets without
// MSG_NOSIGNAL. Threads that are started meanwhile keep the signal blocked.
class SigpipeBlock {
 public:
  SigpipeBlock() {
    sigemptyset(&pipe_);
    sigaddset(&pipe_, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe_, &before_);
  }
  ~SigpipeBlock() {
    if (sigismember(&before_, SIGPIPE) == 0) {
      const struct timespec now = {};
      while (sigtimedwait(&pipe_, nullptr, &now) == SIGPIPE) {
      }
    }
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
  }
  SigpipeBlock(const SigpipeBlock&) = delete;
  SigpipeBlock& operator=(const SigpipeBlock&) = delete;

 private:
  sigset_t pipe_;
  sigset_t before_;
};

std::chrono::milliseconds ToMilliseconds(absl::Duration duration) {
  return std::chrono::milliseconds(std::max<int64_t>(1, absl::ToInt64Milliseconds(duration)));
}

// Gloo has one exception type for what the network does.
bool SaysTimeout(const char* what) {
  const std::string lower = absl::AsciiStrToLower(what);
  return absl::StrContains(lower, "timed out") || absl::StrContains(lower, "timeout");
}

absl::Status CheckRoot(int root, int size) {
  if (root >= 0 && root < size) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("no rank %d in a group of %d", root, size));
}

class SoloCommunicator final : public Communicator {
 public:
  int rank() const override { return 0; }
  int size() const override { return 1; }
  absl::Status AllReduceSum(absl::Span<float>) override { return Check(); }
  absl::Status Broadcast(absl::Span<float>, int root) override {
    const absl::Status status = CheckRoot(root, 1);
    return status.ok() ? Check() : status;
  }
  absl::Status BroadcastBytes(std::string*, int root) override { return Broadcast({}, root); }
  absl::Status Barrier() override { return Check(); }
  void Abort() override { aborted_ = true; }

 private:
  absl::Status Check() const { return aborted_ ? absl::CancelledError("the group was aborted") : absl::OkStatus(); }
  std::atomic<bool> aborted_{false};
};

// Carries a store's error through Gloo, which knows exceptions only.
struct StoreError : std::exception {
  explicit StoreError(absl::Status status_in) : status(std::move(status_in)) {}
  const char* what() const noexcept override { return "the rendezvous store failed"; }
  absl::Status status;
};

class GlooStore final : public gloo::rendezvous::Store {
 public:
  GlooStore(RendezvousStore* store, std::string prefix, absl::Time deadline)
      : store_(store), prefix_(std::move(prefix)), deadline_(deadline) {}

  void set(const std::string& key, const std::vector<char>& data) override {
    const absl::Status status = store_->Set(prefix_ + key, std::string(data.begin(), data.end()));
    if (!status.ok()) throw StoreError(status);
  }
  std::vector<char> get(const std::string& key) override {
    const absl::StatusOr<std::string> value =
        store_->Get(prefix_ + key, std::max(deadline_ - RealClock().Now(), absl::ZeroDuration()));
    if (!value.ok()) throw StoreError(value.status());
    return {value->begin(), value->end()};
  }
  void wait(const std::vector<std::string>& keys) override {
    for (const std::string& key : keys) get(key);
  }
  void wait(const std::vector<std::string>& keys, const std::chrono::milliseconds&) override { wait(keys); }

 private:
  RendezvousStore* const store_;
  const std::string prefix_;
  const absl::Time deadline_;
};

class GlooCommunicator final : public Communicator {
 public:
  explicit GlooCommunicator(const CommunicatorOptions& options) : options_(options) {}

  absl::Status Form(RendezvousStore* store) {
    return Call("forming", [&] {
      gloo::transport::tcp::attr attributes(options_.local_address.c_str());
      std::shared_ptr<gloo::transport::Device> device = gloo::transport::tcp::CreateDevice(attributes);
      auto context = std::make_shared<AbortableContext>(options_.rank, options_.size);
      context->setTimeout(ToMilliseconds(options_.form_timeout / kConnectTimeouts));
      GlooStore gloo_store(store, options_.generation + "/", RealClock().Now() + options_.form_timeout);
      context->connectFullMesh(gloo_store, device);
      context->setTimeout(ToMilliseconds(options_.timeout));
      context->MakeAbortable();
      context_ = std::move(context);
    });
  }

  int rank() const override { return options_.rank; }
  int size() const override { return options_.size; }

  absl::Status AllReduceSum(absl::Span<float> values) override {
    if (values.empty()) return failure_;
    return Call("all-reduce", [&] {
      gloo::AllreduceOptions options(context_);
      options.setOutput(values.data(), values.size());
      options.setReduceFunction(static_cast<void (*)(void*, const void*, const void*, size_t)>(&gloo::sum<float>));
      options.setTag(++tag_);
      gloo::allreduce(options);
    });
  }

  absl::Status Broadcast(absl::Span<float> values, int root) override {
    return BroadcastRaw(reinterpret_cast<char*>(values.data()), values.size() * sizeof(float), root);
  }

  absl::Status BroadcastBytes(std::string* bytes, int root) override {
    // All ranks run on machines of one kind: the length travels as it is in memory.
    uint64_t length = bytes->size();
    absl::Status status = BroadcastRaw(reinterpret_cast<char*>(&length), sizeof(length), root);
    if (!status.ok()) return status;
    if (length > kBroadcastBytesMax) {
      failure_ = absl::InvalidArgumentError(
          absl::StrFormat("%s: rank %d broadcasts %d bytes, more than %d", Who(), root, length, kBroadcastBytesMax));
      return failure_;
    }
    bytes->resize(length);
    return BroadcastRaw(bytes->data(), length, root);
  }

  absl::Status Barrier() override {
    return Call("barrier", [&] {
      gloo::BarrierOptions options(context_);
      options.setTag(++tag_);
      gloo::barrier(options);
    });
  }

  void Abort() override {
    if (aborted_.exchange(true)) return;
    const SigpipeBlock block;
    // Closing the connections would not wake a call that waits on this rank. A receive that nobody answers and that
    // runs out of time does: Gloo then fails what is under way in the context, and closes it.
    char nothing = 0;
    try {
      context_->createUnboundBuffer(&nothing, sizeof(nothing))->waitRecv(nullptr, std::chrono::milliseconds(1));
    } catch (const std::exception&) {
    }
    context_->Abort();
  }

 private:
  std::string Who() const { return absl::StrFormat("%s, rank %d of %d", options_.group, options_.rank, options_.size); }

  absl::Status BroadcastRaw(char* data, size_t bytes, int root) {
    if (absl::Status status = CheckRoot(root, options_.size); !status.ok()) return status;
    if (bytes == 0) return failure_;
    return Call("broadcast", [&] {
      gloo::BroadcastOptions options(context_);
      options.setOutput(data, bytes);
      options.setRoot(root);
      options.setTag(++tag_);
      gloo::broadcast(options);
    });
  }

  // Runs one operation and makes what it throws a status.
  absl::Status Call(const char* what, const std::function<void()>& operation) {
    if (!failure_.ok()) return failure_;
    const SigpipeBlock block;
    try {
      if (!aborted_) operation();
      if (!aborted_) return absl::OkStatus();
      failure_ = absl::CancelledError(absl::StrCat(Who(), ", ", what, ": aborted"));
    } catch (const StoreError& error) {
      failure_ = absl::Status(error.status.code(), absl::StrCat(Who(), ", ", what, ": ", error.status.message()));
    } catch (const std::exception& error) {
      if (aborted_) {
        failure_ = absl::CancelledError(absl::StrCat(Who(), ", ", what, ": aborted"));
      } else if (SaysTimeout(error.what())) {
        failure_ = absl::DeadlineExceededError(absl::StrFormat(
            "%s, %s: a rank did not take part within %s: %s", Who(), what,
            absl::FormatDuration(context_ == nullptr ? options_.form_timeout : options_.timeout), error.what()));
      } else {
        failure_ = absl::UnavailableError(
            absl::StrFormat("%s, %s: a rank or the network between them is gone: %s", Who(), what, error.what()));
      }
    }
    return failure_;
  }

  const CommunicatorOptions options_;
  std::shared_ptr<AbortableContext> context_;  // Constant once formed.
  std::atomic<bool> aborted_{false};
  uint32_t tag_ = 0;
  absl::Status failure_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Communicator>> MakeCommunicator(const CommunicatorOptions& options,
                                                               RendezvousStore* store) {
  if (options.rank < 0 || options.rank >= options.size) {
    return absl::InvalidArgumentError(
        absl::StrFormat("%s: rank %d is not one of a group of %d", options.group, options.rank, options.size));
  }
  switch (options.kind) {
    case COLLECTIVE_GLOO: {
      if (options.size == 1) return std::make_unique<SoloCommunicator>();
      auto communicator = std::make_unique<GlooCommunicator>(options);
      if (absl::Status status = communicator->Form(store); !status.ok()) return status;
      return communicator;
    }
    case COLLECTIVE_UNSPECIFIED:
    case COLLECTIVE_NONE:
      if (options.size == 1) return std::make_unique<SoloCommunicator>();
      return absl::InvalidArgumentError(
          absl::StrFormat("%s: a group of %d needs a collective", options.group, options.size));
    default:
      return absl::InvalidArgumentError(absl::StrFormat("%s: unknown collective %d", options.group, options.kind));
  }
}

absl::StatusOr<std::string> LocalAddressTowards(const std::string& address) {
  const size_t colon = address.rfind(':');
  std::string host = address.substr(0, colon);
  const std::string port = colon == std::string::npos ? "1" : address.substr(colon + 1);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  struct addrinfo hints = {};
  hints.ai_socktype = SOCK_DGRAM;
  struct addrinfo* found = nullptr;
  if (const int error = ::getaddrinfo(host.c_str(), port.c_str(), &hints, &found); error != 0) {
    return absl::UnavailableError(absl::StrFormat("cannot resolve %s: %s", address, ::gai_strerror(error)));
  }
  std::string local;
  for (const struct addrinfo* it = found; it != nullptr && local.empty(); it = it->ai_next) {
    const int fd = ::socket(it->ai_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) continue;
    struct sockaddr_storage name = {};
    socklen_t length = sizeof(name);
    char text[NI_MAXHOST] = {};
    // Connecting a datagram socket chooses the route, and sends nothing.
    if (::connect(fd, it->ai_addr, it->ai_addrlen) == 0 &&
        ::getsockname(fd, reinterpret_cast<struct sockaddr*>(&name), &length) == 0 &&
        ::getnameinfo(reinterpret_cast<struct sockaddr*>(&name), length, text, sizeof(text), nullptr, 0,
                      NI_NUMERICHOST) == 0) {
      local = text;
    }
    ::close(fd);
  }
  ::freeaddrinfo(found);
  if (local.empty()) return absl::UnavailableError(absl::StrCat("no route to ", address));
  return local;
}

}  // namespace wukong
