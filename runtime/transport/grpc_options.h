// How every process of a job sets up gRPC.
#ifndef WUKONG_RUNTIME_TRANSPORT_GRPC_OPTIONS_H_
#define WUKONG_RUNTIME_TRANSPORT_GRPC_OPTIONS_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "runtime/sync/types.h"
#include "runtime/transport/tls.h"

namespace wukong {

inline constexpr int kMessageBytesMax = 4 << 20;
// In the initial metadata of a Follow: the parent lets the child follow, whether or not there is anything new to send.
inline constexpr char kFollowing[] = "wukong-following";

// In the metadata of Follow and Contribute: the life of the parent that is meant, by LifeText. Another one at the same
// address must not answer in its place: what the child knows of the one before would be taken for its word on this one.
inline constexpr char kMeantFor[] = "wukong-meant-for";

// In the metadata of a Contribute: it is not the first with this contribution. The initial metadata of the answer then
// says which fragments the parent has, that need not be sent again: bit f % 8 of byte f / 8 is set for fragment f.
inline constexpr char kAgain[] = "wukong-again";
inline constexpr char kWholeFragments[] = "wukong-whole-fragments-bin";

inline std::string LifeText(MemberKey life) { return absl::StrCat(life.member.value(), ".", life.incarnation.value()); }

// How long a connection that is pinged may say nothing before it is given up (TCP_USER_TIMEOUT is the same). The answer
// to a ping takes a round trip, and waits behind the data that is under way.
inline constexpr absl::Duration kSilence = absl::Seconds(10);
// For parameters and contributions over a wide area. Sixteen connections of one slow link have minutes of data under
// way: at 2 Mbit/s a contribution of 40 MB over connections that were given up after ten seconds never came to its end.
// Who is dead is noticed all the same: its machine says so, or the coordinator, which does not hear from it.
inline constexpr absl::Duration kBulkSilence = absl::Seconds(120);

// A connection of its own for each caller: bulk transfers must not queue before heartbeats.
inline std::shared_ptr<grpc::Channel> MakeChannel(const std::string& address, absl::Duration silence = kSilence) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMessageBytesMax);
  arguments.SetMaxSendMessageSize(kMessageBytesMax);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // A server that comes back is found within a quarter of a second. MIN is what one attempt may take: two round trips,
  // for TCP's handshake and for HTTP/2's first frames, of the longest link with bulk on it.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 20000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 250);
  // A silent peer is noticed without waiting for TCP. Without the last line a client pings only twice before it must
  // send data, which a follower never does.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 5000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, static_cast<int>(absl::ToInt64Milliseconds(silence)));
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  if (TlsInUse()) arguments.SetSslTargetNameOverride(kTlsName);
  return grpc::CreateCustomChannel(address, ChannelCredentialsInUse(), arguments);
}

inline void ConfigureServer(grpc::ServerBuilder* builder) {
  builder->SetMaxReceiveMessageSize(kMessageBytesMax);
  builder->SetMaxSendMessageSize(kMessageBytesMax);
  builder->AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);  // Two servers on one port is a mistake, not a feature.
  // Pings that queued up on a slow link arrive together, and are no attack.
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 1000);
  builder->AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  // A child that stands still in the middle of a contribution must not hold its room for good. It is fenced sooner.
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 20000);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, static_cast<int>(absl::ToInt64Milliseconds(kBulkSilence)));
}

// Serves `services` at `address`, where port 0 takes a free one; `port` is the one it took. Null: the port is in use,
// or the address is not of this machine.
inline std::unique_ptr<grpc::Server> Listen(const std::string& address, const std::vector<grpc::Service*>& services,
                                            int* port) {
  grpc::ServerBuilder builder;
  ConfigureServer(&builder);
  builder.AddListeningPort(address, ServerCredentialsInUse(), port);
  for (grpc::Service* service : services) builder.RegisterService(service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  return *port == 0 ? nullptr : std::move(server);
}

inline void SetDeadline(grpc::ClientContext* context, absl::Duration timeout) {
  context->set_deadline(std::chrono::system_clock::now() + absl::ToChronoNanoseconds(timeout));
}

// `what` says who was asked for what, as in "coordinator 10.0.0.1:7000, heartbeat".
inline absl::Status FromGrpc(const grpc::Status& status, const std::string& what) {
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      absl::StrCat(what, ": ", status.error_message()));
}

inline grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

}  // namespace wukong

#endif  // WUKONG_RUNTIME_TRANSPORT_GRPC_OPTIONS_H_
