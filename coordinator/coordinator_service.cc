#include "coordinator/coordinator_service.h"

#include <cmath>

#include "glog/logging.h"
#include "runtime/transport/grpc_options.h"

namespace wukong {
namespace {

constexpr absl::Duration kDiskRetry = absl::Milliseconds(200);

}  // namespace

CoordinatorService::CoordinatorService(const Job& job, const std::string& run, const std::string& schema_digest,
                                       int64_t parameters, const RootState& state, RootLog* log, const Clock* clock,
                                       JsonLinesWriter* events, JsonLinesWriter* metrics)
    : clock_(clock),
      started_(clock->Now()),
      log_(log),
      events_(events),
      metrics_(metrics),
      initial_loss_(state.validation_loss_initial()),
      // The core is only called under the lock, and so is its journal.
      core_(job, run, schema_digest, parameters, clock->Now(), state,
            [this](const LogRecord& record) ABSL_NO_THREAD_SAFETY_ANALYSIS { Journal(record); }) {}

void CoordinatorService::Journal(LogRecord record) {
  if (record.has_run_started()) {
    record.mutable_run_started()->set_unix_ns(absl::ToUnixNanos(clock_->WallNow()));
    record.mutable_run_started()->set_validation_loss(initial_loss_);
  }
  log_->Append(record);
  if (record.has_lease_ceiling()) ceiling_index_ = log_->index();  // Or one after it.
}

template <typename Reply, typename Use>
grpc::Status CoordinatorService::Call(Reply* reply, Use use) {
  absl::Status status;
  With([&](CoordinatorCore& core, absl::Time now) {
    absl::StatusOr<Reply> result = use(core, now);
    status = result.status();
    if (result.ok()) *reply = *std::move(result);
  });
  return ToGrpc(status);
}

grpc::Status CoordinatorService::GetJob(grpc::ServerContext*, const GetJobRequest* request, GetJobReply* reply) {
  const grpc::Status status = Call(reply, [&](CoordinatorCore& core, absl::Time) { return core.GetJob(*request); });
  MutexLock lock(mutex_);
  reply->set_train_fingerprint(train_fingerprint_);
  return status;
}

grpc::Status CoordinatorService::Join(grpc::ServerContext* context, const JoinRequest* request, JoinReply* reply) {
  if (context->IsCancelled()) return grpc::Status(grpc::StatusCode::CANCELLED, "who asked has given up");
  const grpc::Status status =
      Call(reply, [&](CoordinatorCore& core, absl::Time now) { return core.Join(*request, now); });
  if (!status.ok()) return status;
  // Nobody may be told an incarnation that another life of this coordinator could give away again.
  while (true) {
    const absl::Status durable = log_->MakeDurableOnce();
    if (durable.ok()) return status;
    if (context->IsCancelled()) return ToGrpc(absl::UnavailableError(durable.message()));
    absl::SleepFor(kDiskRetry);
  }
}

grpc::Status CoordinatorService::Heartbeat(grpc::ServerContext*, const HeartbeatRequest* request,
                                           HeartbeatReply* reply) {
  absl::Status status;
  const MemberKey of{MemberId(request->member()), Incarnation(request->incarnation())};
  auto rests = CoordinatorCore::Rests::kOnNothing;
  With([&](CoordinatorCore& core, absl::Time now) {
    status = core.Heartbeat(*request, now, reply);
    rests = core.RestsOnTheLog(of, *reply);
  });
  if (!status.ok()) return ToGrpc(status);
  int64_t ceiling = 0;
  {
    MutexLock lock(mutex_);
    ceiling = ceiling_index_;
  }
  // Without the ceiling another life of this coordinator would give away again what is leased beyond it: nothing would
  // count twice, but work would be lost. Not worth a member that hears nothing while the disk is full.
  if (log_->durable_index() < ceiling) {
    LOG_IF(WARNING, !log_->MakeDurableOnce().ok()) << "the ceiling of the leases is not on the disk";
  }
  if (rests == CoordinatorCore::Rests::kOnNothing) return grpc::Status::OK;
  const absl::Status durable = log_->MakeDurableOnce();
  if (rests == CoordinatorCore::Rests::kOnAFence) {
    if (!durable.ok()) reply->clear_fence();
    return grpc::Status::OK;
  }
  // It asks again, with the same heartbeat.
  if (!durable.ok()) return ToGrpc(absl::UnavailableError(durable.message()));
  With([&](CoordinatorCore& core, absl::Time) { core.Told(of, *reply); });
  return grpc::Status::OK;
}

StatusReply CoordinatorService::Status() {
  StatusReply status;
  With([&](CoordinatorCore& core, absl::Time now) { core.FillStatus(&status, now); });
  status.set_durable_index(log_->durable_index());
  status.set_storage_trouble(log_->trouble());
  const RootState root = log_->Summary();
  for (const auto& [sender, count] : root.refused_by_sender()) (*status.mutable_refused())[sender] += count;
  return status;
}

grpc::Status CoordinatorService::GetStatus(grpc::ServerContext*, const StatusRequest*, StatusReply* reply) {
  *reply = Status();
  return grpc::Status::OK;
}

grpc::Status CoordinatorService::InjectFault(grpc::ServerContext*, const InjectFaultRequest* request,
                                             InjectFaultReply* reply) {
  const grpc::Status status =
      Call(reply, [&](CoordinatorCore& core, absl::Time) { return core.InjectFault(*request); });
  if (status.ok() && request->target() == "root") {
    MutexLock lock(mutex_);
    CHECK(faults_ != nullptr) << "the core lets orders through only where the job allows them";
    FaultOrder order = request->order();
    order.set_number(reply->number());
    faults_->Order(order);
  }
  return status;
}

void CoordinatorService::Keep(const absl::Status& status) {
  if (status.ok()) return;
  LOG_IF(WARNING, lines_dropped_ == 0) << "events and metrics are dropped: " << status;
  ++lines_dropped_;
}

void CoordinatorService::TellRoot(const CoordinatorCore::Effect& effect) {
  if (root_ == nullptr) return;
  if (const auto* fence = std::get_if<CoordinatorCore::FenceChild>(&effect)) {
    root_->Fence(fence->child, [](const std::vector<LeasedRange>&) {});
  } else if (const auto* idle = std::get_if<CoordinatorCore::SetIdle>(&effect)) {
    root_->SetIdle(idle->idle);
  }
}

std::string CoordinatorService::WallTime() const {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", clock_->WallNow(), absl::UTCTimeZone());
}

void CoordinatorService::WriteDown(const CoordinatorCore::Effect& effect) {
  if (const auto* record = std::get_if<CoordinatorCore::Record>(&effect)) {
    nlohmann::ordered_json line = {{"time", WallTime()}, {"seconds", std::round(Seconds() * 1e3) / 1e3}};
    line.update(record->event);
    Keep(events_->Write(line));
  } else if (const auto* steps = std::get_if<CoordinatorCore::RecordSteps>(&effect)) {
    const std::string heard = WallTime();
    for (const StepRecord& step : steps->steps) {
      Keep(metrics_->Write({{"time", step.time_seconds()},
                            {"heard", heard},
                            {"region", steps->region},
                            {"worker", steps->worker},
                            {"incarnation", steps->incarnation.value()},
                            {"step", step.step()},
                            {"tokens", step.tokens()},
                            {"loss", step.loss()},
                            {"compute_seconds", step.compute_seconds()},
                            {"wait_seconds", step.wait_seconds()},
                            {"staleness", steps->root_version.value() - step.root_base_version()},
                            {"learning_rate", step.learning_rate()},
                            {"gradient_norm", step.gradient_norm()}}));
    }
  }
}

}  // namespace wukong
