#include "runtime/fault/netem.h"

#include <sched.h>
#include <sys/wait.h>

#include <array>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "glog/logging.h"
#include "nlohmann/json.hpp"
#include "runtime/base/mutex.h"
#include "runtime/fault/link_model.h"
#include "runtime/fault/packet_model.h"

namespace wukong {
namespace {

// Of a link without a limit.
constexpr double kBitsPerSecondMax = 10e9;
constexpr double kQueueBytesMax = 64 << 20;

// What `command` prints, run in network `network` (-1: in that of the calling thread).
absl::StatusOr<std::string> RunIn(int network, const std::string& command) {
  std::string output;
  absl::Status status;
  std::thread([&] {
    if (network >= 0 && ::setns(network, CLONE_NEWNET) != 0) {
      status = absl::FailedPreconditionError(absl::StrCat("cannot enter a network: ", std::strerror(errno)));
      return;
    }
    // Not everybody's PATH has where tc is.
    FILE* const pipe = ::popen(absl::StrCat("PATH=\"$PATH:/usr/sbin:/sbin\" ", command, " 2>&1").c_str(), "re");
    if (pipe == nullptr) {
      status = absl::FailedPreconditionError(absl::StrCat("cannot run tc or ip: ", std::strerror(errno)));
      return;
    }
    std::array<char, 4096> buffer;
    size_t bytes = 0;
    while ((bytes = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0) output.append(buffer.data(), bytes);
    const int code = ::pclose(pipe);
    if (WIFEXITED(code) && WEXITSTATUS(code) == 0) return;
    status = absl::FailedPreconditionError(absl::StrCat(
        "`", command, "` failed: ", absl::StripTrailingAsciiWhitespace(output),
        " (--network netem needs iproute2's tc and ip, and a kernel with sch_netem; --network namespaces does "
        "the same to packets without them)"));
  }).join();
  if (!status.ok()) return status;
  return output;
}

class NetemLink final : public EmulatedLink {
 public:
  NetemLink(const JoinedNetwork& network, const PacketRelayOptions& options)
      : up_{network.network.get(), network.far_device, options.up}, down_{-1, network.near_device, options.down} {}

  // The packets' way between the devices, which changes nothing.
  void SetWire(std::unique_ptr<EmulatedLink> wire) { wire_ = std::move(wire); }
  absl::Status Begin(LinkDirection direction) {
    MutexLock lock(mutex_);
    const Direction& one = Of(direction);
    // Else what TCP hands down in one piece, up to 64 KiB, is one packet to netem.
    const absl::Status status =
        RunIn(one.network, absl::StrCat("ip link set dev ", one.device, " gso_max_segs 1 txqueuelen 10000")).status();
    return status.ok() ? ApplyLocked(one) : status;
  }

  std::string address() const override { return wire_->address(); }
  void SetShape(LinkDirection direction, const LinkShape& shape) override {
    MutexLock lock(mutex_);
    Of(direction).shape = shape;
    // The queue of each depends on the delays of both.
    Complain(ApplyLocked(up_));
    Complain(ApplyLocked(down_));
  }
  void SetCut(LinkDirection direction, bool cut) override {
    MutexLock lock(mutex_);
    if (std::exchange(Of(direction).cut, cut) != cut) Complain(ApplyLocked(Of(direction)));
  }
  LinkStats stats(LinkDirection direction) const override {
    LinkStats stats = wire_->stats(direction);
    MutexLock lock(mutex_);
    const Direction& one = direction == LinkDirection::kUp ? up_ : down_;
    const auto shown = RunIn(one.network, absl::StrCat("tc -s -j qdisc show dev ", one.device));
    if (!shown.ok()) {
      Complain(shown.status());
      return stats;
    }
    const auto qdiscs = nlohmann::json::parse(*shown, nullptr, /*allow_exceptions=*/false);
    for (const auto& qdisc : qdiscs) {
      if (qdisc.is_object() && qdisc.value("kind", "") == "netem") stats.losses += qdisc.value("drops", int64_t{0});
    }
    return stats;
  }

 private:
  struct Direction {
    int network = -1;  // Whose device it is; -1: that of the thread that calls.
    std::string device;
    LinkShape shape;
    bool cut = false;
  };

  Direction& Of(LinkDirection direction) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return direction == LinkDirection::kUp ? up_ : down_;
  }
  absl::Status ApplyLocked(const Direction& one) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const absl::Duration rtt = Sanitized(up_.shape).delay + Sanitized(down_.shape).delay;
    return RunIn(one.network,
                 absl::StrCat("tc qdisc replace dev ", one.device, " root ", NetemArguments(one.shape, one.cut, rtt)))
        .status();
  }
  static void Complain(const absl::Status& status) {
    if (!status.ok()) LOG(ERROR) << "a link stays as it was: " << status.message();
  }

  std::unique_ptr<EmulatedLink> wire_;
  mutable Mutex mutex_;
  Direction up_ ABSL_GUARDED_BY(mutex_);
  Direction down_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::string NetemArguments(const LinkShape& wanted, bool cut, absl::Duration rtt) {
  const LinkShape shape = Sanitized(wanted);
  const double rate = shape.bandwidth_bits_per_s > 0 ? shape.bandwidth_bits_per_s : kBitsPerSecondMax;
  // It counts what is under way as well as what waits for the wire.
  const double under_way = rate / 8 * absl::ToDoubleSeconds(shape.delay + 4 * shape.jitter);
  const double queue =
      shape.bandwidth_bits_per_s > 0 ? static_cast<double>(PacketQueueBytes(shape, rtt)) : kQueueBytesMax;
  const double limit = std::ceil((under_way + queue) / static_cast<double>(kFullPacketBytes));
  const int64_t delay_us = absl::ToInt64Microseconds(shape.delay), jitter_us = absl::ToInt64Microseconds(shape.jitter);
  std::string arguments = absl::StrFormat("netem limit %.0f delay %dus", limit, delay_us);
  // It takes no jitter without a delay.
  if (delay_us > 0 && jitter_us > 0) absl::StrAppendFormat(&arguments, " %dus distribution normal", jitter_us);
  if (cut || shape.loss > 0) absl::StrAppendFormat(&arguments, " loss %.6g%%", cut ? 100 : 100 * shape.loss);
  absl::StrAppendFormat(&arguments, " rate %.0fbit", rate);
  return arguments;
}

absl::Status TryNetem() {
  const std::string nothing = NetemArguments(LinkShape(), /*cut=*/false, absl::ZeroDuration());
  absl::Status status = RunIn(-1, absl::StrCat("tc qdisc replace dev lo root ", nothing)).status();
  if (status.ok()) status = RunIn(-1, "tc qdisc del dev lo root").status();
  return status;
}

absl::StatusOr<std::unique_ptr<EmulatedLink>> StartNetemLink(JoinedNetwork* network,
                                                             const PacketRelayOptions& options) {
  auto link = std::make_unique<NetemLink>(*network, options);
  for (const LinkDirection direction : {LinkDirection::kUp, LinkDirection::kDown}) {
    if (absl::Status status = link->Begin(direction); !status.ok()) return status;
  }
  PacketRelayOptions unchanged;
  unchanged.port = options.port;
  unchanged.seed = options.seed;
  absl::StatusOr<std::unique_ptr<EmulatedLink>> wire = StartPacketRelay(network, unchanged);
  if (!wire.ok()) return wire.status();
  link->SetWire(*std::move(wire));
  return link;
}

}  // namespace wukong
