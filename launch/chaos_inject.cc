// `wukong chaos inject`: one fault at members of a running job.
#include <cstdio>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "launch/chaos_command.h"
#include "launch/exit_code.h"
#include "launch/flag_checks.h"
#include "launch/job_file.h"
#include "launch/job_units.h"
#include "launch/tls_flag.h"
#include "nlohmann/json.hpp"
#include "proto/wire.grpc.pb.h"
#include "runtime/base/file.h"
#include "runtime/base/shell_word.h"
#include "runtime/transport/grpc_options.h"
#include "runtime/transport/tls.h"

namespace wukong {
namespace {

constexpr char kFaults[] =
    "kill, freeze, slow, nan, sign_flip or scale; of the root also power_loss, disk_full or disk_error";

struct InjectFlags {
  std::string fault;
  std::string target;
  std::string coordinator;
  std::string run_dir;
  std::string time;
  std::optional<double> factor;
  std::string on;
  std::optional<int64_t> version;
  bool json = false;
};

absl::StatusOr<FaultOrder> OrderOf(const InjectFlags& flags) {
  FaultOrder order;
  FaultKind kind = FAULT_KIND_UNSPECIFIED;
  if (!FaultKind_Parse(absl::StrCat("FAULT_KIND_", absl::AsciiStrToUpper(flags.fault)), &kind) ||
      kind == FAULT_KIND_UNSPECIFIED) {
    return absl::InvalidArgumentError(
        absl::StrCat("chaos inject: no fault is called ", flags.fault, " (expected ", kFaults, ")"));
  }
  order.set_fault(kind);
  const bool has_factor = kind == FAULT_KIND_SLOW || kind == FAULT_KIND_SCALE;
  const bool has_time = kind != FAULT_KIND_KILL && kind != FAULT_KIND_POWER_LOSS;
  const char* const nothing = !has_factor && flags.factor.has_value()         ? "--factor"
                              : !has_time && !flags.time.empty()              ? "--for"
                              : flags.on.empty() && flags.version.has_value() ? "--version without --on"
                                                                              : nullptr;
  if (nothing != nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("chaos inject: ", nothing, " means nothing to ", flags.fault));
  }
  order.set_factor(flags.factor.value_or(0));
  FaultPlace place = FAULT_PLACE_UNSPECIFIED;
  if (!flags.on.empty() && (!FaultPlace_Parse(absl::StrCat("FAULT_PLACE_", absl::AsciiStrToUpper(flags.on)), &place) ||
                            place == FAULT_PLACE_UNSPECIFIED)) {
    return absl::InvalidArgumentError(absl::StrCat("chaos inject: --on ", flags.on,
                                                   " is no event (expected after_append_before_ack, after_ack or "
                                                   "after_publish)"));
  }
  order.set_on(place);
  order.set_version(flags.version.value_or(1));
  if (!flags.time.empty()) {
    Fault fault;  // As a scenario has it.
    if (absl::Status status = SetScalar(*Fault::descriptor()->FindFieldByName("for_ns"), WithUnit(flags.time), &fault);
        !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("chaos inject: --for: ", status.message()));
    }
    order.set_for_ns(fault.for_ns());
  }
  return order;
}

// Of the run's coordinator. UNAVAILABLE: there is none any more, or not yet.
absl::StatusOr<std::string> AddressOf(const InjectFlags& flags) {
  const bool has_address = !flags.coordinator.empty();
  if (has_address == !flags.run_dir.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("chaos inject: ", has_address ? "the run is named twice" : "say which run is meant",
                     " (expected either --run-dir DIR or --coordinator HOST:PORT)"));
  }
  if (has_address) return flags.coordinator;
  if (absl::Status status = CheckRunDirectory(flags.run_dir); !status.ok()) return status;
  // Whoever goes on with the run removes it. Another run's coordinator may listen where this one's was.
  std::error_code error;
  if (std::filesystem::exists(flags.run_dir + "/report.json", error)) {
    return absl::UnavailableError(absl::StrCat("chaos inject: the run in ", flags.run_dir, " is over: wukong status ",
                                               ShellWord(flags.run_dir), " shows how it ended"));
  }
  absl::StatusOr<std::string> address = ReadFile(flags.run_dir + "/coordinator.address");
  if (address.ok()) return address;
  return absl::UnavailableError(
      absl::StrCat("chaos inject: ", flags.run_dir, ": no coordinator has listened there yet"));
}

int Inject(const InjectFlags& flags) {
  const absl::StatusOr<FaultOrder> order = OrderOf(flags);
  if (!order.ok()) return ReportStatus(order.status());
  const absl::StatusOr<std::string> address = AddressOf(flags);
  if (!address.ok()) return ReportStatus(address.status());
  InjectFaultRequest request;
  *request.mutable_order() = *order;
  request.set_target(flags.target);
  grpc::ClientContext context;
  SetDeadline(&context, absl::Seconds(5));
  InjectFaultReply reply;
  absl::Status status = FromGrpc(Coordinator::NewStub(MakeChannel(*address))->InjectFault(&context, request, &reply),
                                 absl::StrCat("coordinator at ", *address));
  if (absl::IsUnavailable(status)) {
    status = absl::UnavailableError(absl::StrCat(status.message(), "; ", TlsQuestion(), "?"));
  }
  // What is wrong is the command, and not this machine.
  if (status.code() == absl::StatusCode::kFailedPrecondition) status = absl::InvalidArgumentError(status.message());
  if (status.code() == absl::StatusCode::kDeadlineExceeded) status = absl::UnavailableError(status.message());
  if (!status.ok()) return ReportStatus(status);
  const std::vector<std::string> members(reply.members().begin(), reply.members().end());
  if (flags.json) {
    std::printf("%s\n", nlohmann::ordered_json({{"number", reply.number()}, {"members", members}}).dump(2).c_str());
  } else {
    std::printf("%s ordered (number %lld) for %s; events.jsonl says %s when it is carried out\n", flags.fault.c_str(),
                static_cast<long long>(reply.number()), absl::StrJoin(members, ", ").c_str(),
                flags.target == "root"  ? "fault_struck"
                : flags.fault == "kill" ? "lost"
                                        : "fault_heard");
  }
  return kExitOk;
}

}  // namespace

void AddChaosInjectCommand(CLI::App& chaos, std::function<int()>* action) {
  auto flags = std::make_shared<InjectFlags>();
  CLI::App* verb = chaos.add_subcommand(
      "inject", "Make something go wrong in a running job whose file says fault_injection: allowed");
  verb->add_option("FAULT", flags->fault, kFaults)->required();
  verb->add_option("TARGET", flags->target,
                   "root, REGION (its aggregator), REGION/WORKER (by its name, as worker-0), REGION/* (its workers), "
                   "REGION/** (all of it); REGION may be * (each)")
      ->required();
  verb->add_option("--run-dir", flags->run_dir, "The directory of the run, where it is on this machine");
  verb->add_option("--coordinator", flags->coordinator, "HOST:PORT of the run's coordinator")->check(HostPort());
  verb->add_option("--for", flags->time,
                   "How long, as 15s or 5min; without it for good (freeze and faults of the disk need it)");
  verb->add_option("--factor", flags->factor, "slow: times slower; scale: times larger");
  verb->add_option("--on", flags->on,
                   "Of the root, once, when it gets there: after_append_before_ack, after_ack or after_publish");
  verb->add_option("--version", flags->version,
                   "With --on: of the root's parameters, from which version on (default: 1)")
      ->check(WholeNumber(1, std::numeric_limits<int64_t>::max()));
  verb->add_flag("--json", flags->json, "Print the answer as JSON");
  SetConnectingAction(verb, action, [flags] { return Inject(*flags); });
}

}  // namespace wukong
