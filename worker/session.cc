#include "worker/session.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "glog/logging.h"
#include "runtime/base/process_info.h"
#include "runtime/base/restart.h"
#include "runtime/sync/retry.h"
#include "runtime/transport/grpc_options.h"
#include "runtime/transport/tls.h"

namespace wukong {
namespace {

// Whoever starts a process by hand wants to know what it waits for.
constexpr absl::Duration kWaitsUnseen = absl::Seconds(2);

// While nobody waits for it, gRPC looks after its sockets every five seconds only: a connection that can be made by now
// would not be.
void PauseBeforeNextTry(grpc::Channel* channel, const StopSignal& stop) {
  if (channel->GetState(/*try_to_connect=*/true) == GRPC_CHANNEL_READY) {
    stop.WaitFor(kCoordinatorRetry);
  } else {
    channel->WaitForConnected(std::chrono::system_clock::now() + absl::ToChronoNanoseconds(kCoordinatorRetry));
  }
}

}  // namespace

absl::Status StatusOfFinish(const HeartbeatReply& reply) {
  if (reply.finish_reason().empty()) return absl::OkStatus();
  if (reply.finish_resumable()) return RestartSafe(absl::AbortedError(reply.finish_reason()));
  return absl::AbortedError(absl::StrCat("the job failed: ", reply.finish_reason()));
}

Session::Session(std::string coordinator_address, std::string region)
    : address_(std::move(coordinator_address)),
      region_(std::move(region)),
      channel_(MakeChannel(address_)),
      stub_(Coordinator::NewStub(channel_)) {}

Session::~Session() { StopHeartbeats(absl::ZeroDuration()); }

absl::StatusOr<GetJobReply> Session::FetchJob(bool new_region, absl::Duration timeout, const StopSignal& stop) {
  const absl::Time began = absl::Now(), deadline = began + timeout;
  bool told = false;
  for (int timeouts = 0;;) {
    grpc::ClientContext context;
    SetDeadline(&context, std::min(CoordinatorTimeout(absl::ZeroDuration(), timeouts),
                                   std::max(deadline - absl::Now(), kCoordinatorRetry)));
    GetJobRequest request;
    request.set_region(region_);
    request.set_new_region(new_region);
    GetJobReply reply;
    const absl::Status status =
        FromGrpc(stub_->GetJob(&context, request, &reply), absl::StrCat("coordinator at ", address_));
    if (status.ok()) return reply;
    if (stop.received() != 0) return absl::CancelledError("stopped by a signal");
    if (!IsTransient(status)) return status;
    if (absl::IsDeadlineExceeded(status)) ++timeouts;
    if (absl::Now() >= deadline) {
      return absl::UnavailableError(absl::StrFormat(
          "no coordinator answers at %s (tried for %s); is it running, is the address right, and %s? %s", address_,
          absl::FormatDuration(timeout), TlsQuestion(), status.message()));
    }
    if (!told && absl::Now() - began > kWaitsUnseen) {
      told = true;
      LOG(WARNING) << "no coordinator answers at " << address_ << " yet; going on to try for "
                   << absl::FormatDuration(timeout) << ": " << status.message();
    }
    PauseBeforeNextTry(channel_.get(), stop);
  }
}

absl::StatusOr<JoinReply> Session::Join(JoinRequest request, absl::Duration timeout, const StopSignal& stop) {
  const absl::Time began = absl::Now(), deadline = began + timeout;
  bool told = false;
  request.set_region(region_);
  request.set_pid(::getpid());
  request.set_host(HostName());
  for (int timeouts = 0;;) {
    grpc::ClientContext context;
    SetDeadline(&context, CoordinatorTimeout(absl::ZeroDuration(), timeouts));
    JoinReply reply;
    const absl::Time asked = absl::Now();
    const absl::Status status =
        FromGrpc(stub_->Join(&context, request, &reply), absl::StrCat("coordinator at ", address_, ", join"));
    if (status.ok()) {
      MutexLock lock(mutex_);
      round_trip_ = absl::Now() - asked;
      return reply;
    }
    if (stop.received() != 0) return absl::CancelledError("stopped by a signal");
    if (!IsTransient(status) || absl::Now() >= deadline) return status;
    if (!told && absl::Now() - began > kWaitsUnseen) {
      told = true;
      LOG(WARNING) << "cannot join yet; going on to try for " << absl::FormatDuration(timeout) << ": "
                   << status.message();
    }
    if (absl::IsDeadlineExceeded(status)) ++timeouts;
    PauseBeforeNextTry(channel_.get(), stop);
  }
}

void Session::StartHeartbeats(MemberKey self, absl::Duration period, absl::Duration patience, Callbacks callbacks) {
  CHECK(!thread_.joinable());
  self_ = self;
  period_ = period;
  patience_ = patience;
  callbacks_ = std::move(callbacks);
  thread_ = std::thread([this] { Loop(); });
}

void Session::Kick() {
  MutexLock lock(mutex_);
  kicked_ = true;
  changed_.NotifyAll();
}

void Session::StopHeartbeats(absl::Duration timeout) {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    stop_by_ = std::min(stop_by_, absl::Now() + timeout);
    changed_.NotifyAll();
    while (thread_.joinable() && !ended_ && absl::Now() < stop_by_) changed_.WaitFor(mutex_, stop_by_ - absl::Now());
    if (calling_ != nullptr) calling_->TryCancel();
  }
  if (thread_.joinable()) thread_.join();
}

absl::Duration Session::round_trip() const {
  MutexLock lock(mutex_);
  return round_trip_;
}

Damage Session::damage() const {
  MutexLock lock(mutex_);
  return faults_.At(absl::Now());
}

void Session::TakeFaults(const HeartbeatReply& reply) {
  for (const FaultOrder& order : reply.faults()) {
    bool at_once = false;
    {
      MutexLock lock(mutex_);
      at_once = faults_.Take(order, absl::Now());
    }
    if (at_once) CarryOutOnThisProcess(order);
  }
}

void Session::Loop() {
  LoopUntilStopped();
  MutexLock lock(mutex_);
  ended_ = true;
  changed_.NotifyAll();
}

void Session::LoopUntilStopped() {
  while (true) {
    bool last = false;
    {
      MutexLock lock(mutex_);
      last = stopping_;
      if (last && absl::Now() >= stop_by_) return;
    }
    if (!Beat() || last) return;
    MutexLock lock(mutex_);
    if (!kicked_ && !stopping_) changed_.WaitFor(mutex_, period_);
    kicked_ = false;
  }
}

bool Session::Beat() {
  HeartbeatRequest request;
  request.set_member(self_.member.value());
  request.set_incarnation(self_.incarnation.value());
  request.set_beat(++beat_);
  callbacks_.fill(&request);
  request.mutable_usage()->set_round_trip_seconds(absl::ToDoubleSeconds(round_trip()));
  {
    MutexLock lock(mutex_);
    request.set_fault_heard(faults_.heard());
  }
  const absl::Time first = absl::Now();
  absl::Time sent = first;
  for (int timeouts = 0;;) {
    grpc::ClientContext context;
    SetDeadline(&context, CoordinatorTimeout(round_trip(), timeouts));
    HeartbeatReply reply;
    {
      MutexLock lock(mutex_);
      if (stopping_ && absl::Now() >= stop_by_) return false;
      calling_ = &context;
    }
    const absl::Status status =
        FromGrpc(stub_->Heartbeat(&context, request, &reply), absl::StrCat("coordinator at ", address_, ", heartbeat"));
    {
      MutexLock lock(mutex_);
      calling_ = nullptr;
      if (status.ok()) round_trip_ = absl::Now() - sent;
    }
    if (status.ok()) {
      LOG_IF(INFO, sent != first) << "the coordinator at " << address_ << " answers again, after "
                                  << absl::FormatDuration(absl::Now() - first);
      TakeFaults(reply);
      callbacks_.on_reply(reply);
      return true;
    }
    if (!IsTransient(status)) {
      // Who is fenced has lost its place, and may take another.
      callbacks_.on_lost(absl::IsAborted(status) ? RestartSafe(status) : status);
      return false;
    }
    LOG_IF(WARNING, sent == first) << status;
    if (absl::IsDeadlineExceeded(status)) ++timeouts;
    if (absl::Now() - first > patience_) {
      callbacks_.on_lost(
          absl::UnavailableError(absl::StrFormat("the coordinator at %s has been away for %s: %s", address_,
                                                 absl::FormatDuration(patience_), status.message())));
      return false;
    }
    MutexLock lock(mutex_);
    if (stopping_ && absl::Now() >= stop_by_) return false;
    changed_.WaitFor(mutex_, kCoordinatorRetry);
    sent = absl::Now();
  }
}

}  // namespace wukong
