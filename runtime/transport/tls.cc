#include "runtime/transport/tls.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509_vfy.h>
#include <openssl/x509v3.h>

#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "glog/logging.h"
#include "runtime/base/file.h"

namespace wukong {
namespace {

struct Free {
  void operator()(BIO* bio) const { BIO_free(bio); }
  void operator()(X509* certificate) const { X509_free(certificate); }
  void operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
  void operator()(X509_STORE* store) const { X509_STORE_free(store); }
  void operator()(X509_STORE_CTX* context) const { X509_STORE_CTX_free(context); }
  // The certificates in it are owned by others.
  void operator()(STACK_OF(X509) * stack) const { sk_X509_free(stack); }
};
template <typename T>
using Owned = std::unique_ptr<T, Free>;

Owned<BIO> OverText(const std::string& text) {
  return Owned<BIO>(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

// Of a key that has one: nobody is there to type it.
int NoPassphrase(char*, int, int, void*) { return -1; }

absl::StatusOr<std::string> ReadPart(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path);
  if (text.ok()) return text;
  return absl::Status(text.status().code(), absl::StrCat("TLS: ", text.status().message(),
                                                         "; deploy/make_certificates makes what is needed"));
}

absl::Status Wrong(const std::string& path, const std::string& what) {
  return BadFile(path, absl::StrCat("for TLS, it ", what));
}

// At least one.
absl::StatusOr<std::vector<Owned<X509>>> Certificates(const std::string& path, const std::string& text) {
  std::vector<Owned<X509>> certificates;
  const Owned<BIO> bio = OverText(text);
  ERR_clear_error();
  while (X509* certificate = PEM_read_bio_X509(bio.get(), nullptr, NoPassphrase, nullptr)) {
    certificates.emplace_back(certificate);
  }
  const unsigned long end = ERR_peek_last_error();
  ERR_clear_error();
  if (ERR_GET_LIB(end) != ERR_LIB_PEM || ERR_GET_REASON(end) != PEM_R_NO_START_LINE) {
    return Wrong(path, absl::StrCat("has a certificate that is damaged: number ", certificates.size() + 1));
  }
  if (certificates.empty()) return Wrong(path, "has no certificate (expected PEM)");
  return certificates;
}

// OK: a member that has only `authorities` believes the first of `chain`.
absl::Status CheckSigned(const std::vector<Owned<X509>>& authorities, const std::vector<Owned<X509>>& chain,
                         const std::string& authority_path, const std::string& path) {
  const Owned<X509_STORE> store(X509_STORE_new());
  for (const Owned<X509>& authority : authorities) X509_STORE_add_cert(store.get(), authority.get());
  const Owned<STACK_OF(X509)> between(sk_X509_new_null());
  for (size_t i = 1; i < chain.size(); ++i) sk_X509_push(between.get(), chain[i].get());
  const Owned<X509_STORE_CTX> context(X509_STORE_CTX_new());
  CHECK_EQ(X509_STORE_CTX_init(context.get(), store.get(), chain[0].get(), between.get()), 1);
  if (X509_verify_cert(context.get()) == 1) return absl::OkStatus();
  const std::string why = X509_verify_cert_error_string(X509_STORE_CTX_get_error(context.get()));
  if (X509_STORE_CTX_get_error_depth(context.get()) > 0) {
    return Wrong(authority_path, absl::StrCat("cannot vouch for the node.crt beside it: ", why));
  }
  return Wrong(path, absl::StrCat("is not believed with the ca.crt beside it: ", why));
}

std::optional<TlsIdentity>& InUse() {
  static auto* const identity = new std::optional<TlsIdentity>;
  return *identity;
}

}  // namespace

absl::StatusOr<TlsIdentity> LoadTlsIdentity(const std::string& directory) {
  const std::string authority_path = directory + "/ca.crt", certificate_path = directory + "/node.crt",
                    key_path = directory + "/node.key";
  TlsIdentity identity;
  for (const auto& [path, part] :
       {std::make_pair(&authority_path, &identity.authority), std::make_pair(&certificate_path, &identity.certificate),
        std::make_pair(&key_path, &identity.key)}) {
    absl::StatusOr<std::string> text = ReadPart(*path);
    if (!text.ok()) return text.status();
    *part = *std::move(text);
  }
  const absl::StatusOr<std::vector<Owned<X509>>> authorities = Certificates(authority_path, identity.authority);
  if (!authorities.ok()) return authorities.status();
  const absl::StatusOr<std::vector<Owned<X509>>> chain = Certificates(certificate_path, identity.certificate);
  if (!chain.ok()) return chain.status();
  const Owned<BIO> key_text = OverText(identity.key);
  const Owned<EVP_PKEY> key(PEM_read_bio_PrivateKey(key_text.get(), nullptr, NoPassphrase, nullptr));
  if (key == nullptr) return Wrong(key_path, "has no private key (expected PEM without a passphrase)");
  if (X509_check_private_key((*chain)[0].get(), key.get()) != 1) {
    return Wrong(key_path, "is not the key of the node.crt beside it");
  }
  if (absl::Status status = CheckSigned(*authorities, *chain, authority_path, certificate_path); !status.ok())
    return status;
  if (X509_check_host((*chain)[0].get(), kTlsName, 0, 0, nullptr) != 1) {
    return Wrong(certificate_path, absl::StrCat("is not for the name ", kTlsName,
                                                " (expected it as a DNS name among its subjectAltName)"));
  }
  return identity;
}

void UseTls(TlsIdentity identity) { InUse() = std::move(identity); }
bool TlsInUse() { return InUse().has_value(); }

std::string TlsQuestion() {
  return TlsInUse() ? "does it use TLS as well, with certificates of the same authority"
                    : "does it use TLS, so that this process needs --tls";
}

std::shared_ptr<grpc::ChannelCredentials> ChannelCredentialsInUse() {
  if (!TlsInUse()) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = InUse()->authority;
  options.pem_cert_chain = InUse()->certificate;
  options.pem_private_key = InUse()->key;
  return grpc::SslCredentials(options);
}

std::shared_ptr<grpc::ServerCredentials> ServerCredentialsInUse() {
  if (!TlsInUse()) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions options(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = InUse()->authority;
  options.pem_key_cert_pairs.push_back({InUse()->key, InUse()->certificate});
  return grpc::SslServerCredentials(options);
}

}  // namespace wukong
