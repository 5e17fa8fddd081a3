// TLS between the processes of a job. Each shows a certificate that the job's authority has signed, to whom it calls
// and to whom calls it: who has none is no member. All certificates are for one name, so that it does not matter under
// which address a machine is reached.
#ifndef WUKONG_RUNTIME_TRANSPORT_TLS_H_
#define WUKONG_RUNTIME_TRANSPORT_TLS_H_

#include <grpcpp/grpcpp.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace wukong {

inline constexpr char kTlsName[] = "wukong";

// PEM, as deploy/make_certificates writes them.
struct TlsIdentity {
  std::string authority;    // ca.crt
  std::string certificate;  // node.crt; those between it and the authority may follow
  std::string key;          // node.key, without a passphrase
};

// Reads the three files. Errors name the file: NOT_FOUND, PERMISSION_DENIED; INVALID_ARGUMENT: it is no PEM, the key is
// another certificate's, the authority has not signed it, it has expired, it is not for kTlsName.
absl::StatusOr<TlsIdentity> LoadTlsIdentity(const std::string& directory);

// All connections that this process makes and takes from now on. Before the first one, once.
void UseTls(TlsIdentity identity);
bool TlsInUse();
// What a person whose connection comes to nothing may ask about the other side, without its question mark.
std::string TlsQuestion();

std::shared_ptr<grpc::ChannelCredentials> ChannelCredentialsInUse();
std::shared_ptr<grpc::ServerCredentials> ServerCredentialsInUse();

}  // namespace wukong

#endif  // WUKONG_RUNTIME_TRANSPORT_TLS_H_
