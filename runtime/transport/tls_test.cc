#include "runtime/transport/tls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"

namespace wukong {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Two jobs' certificates, as people make them.
class TlsIdentityTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = absl::StrCat(::testing::TempDir(), "/tls_test_", ::getpid());
    std::filesystem::create_directories(folder_);
    ASSERT_EQ(Shell(absl::StrCat("'", WUKONG_SOURCE_DIR, "/deploy/make_certificates' '", folder_,
                                 "/ours' a b >/dev/null && '", WUKONG_SOURCE_DIR, "/deploy/make_certificates' '",
                                 folder_, "/theirs' a >/dev/null")),
              0)
        << "openssl must be installed";
  }
  static void TearDownTestSuite() {
    std::error_code error;
    std::filesystem::remove_all(folder_, error);
  }
  static int Shell(const std::string& command) { return std::system(command.c_str()); }  // NOLINT(cert-env33-c)

  // A copy of ours, for `spoil` to change.
  static absl::Status Spoilt(const std::string& spoil) {
    const std::string copy = folder_ + "/copy";
    EXPECT_EQ(Shell(absl::StrCat("cd '", folder_, "' && rm -rf copy && cp -r ours/a copy && cd copy && ", spoil)), 0);
    const absl::StatusOr<TlsIdentity> identity = LoadTlsIdentity(copy);
    EXPECT_FALSE(identity.ok());
    return identity.status();
  }

  static std::string folder_;
};
std::string TlsIdentityTest::folder_;

TEST_F(TlsIdentityTest, IsWhatTheScriptMakes) {
  const absl::StatusOr<TlsIdentity> a = LoadTlsIdentity(folder_ + "/ours/a"), b = LoadTlsIdentity(folder_ + "/ours/b"),
                                    other = LoadTlsIdentity(folder_ + "/theirs/a");
  ASSERT_TRUE(a.ok() && b.ok() && other.ok()) << a.status() << b.status() << other.status();
  EXPECT_EQ(a->authority, b->authority);
  EXPECT_NE(a->key, b->key);
  EXPECT_NE(a->certificate, b->certificate);
  EXPECT_NE(a->authority, other->authority);
  EXPECT_THAT(a->key, HasSubstr("PRIVATE KEY"));
}

TEST_F(TlsIdentityTest, SaysWhatIsWrongWithWhichFile) {
  absl::Status status = Spoilt("rm node.key");
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("copy/node.key"), HasSubstr("deploy/make_certificates")));

  const struct {
    const char* spoil;
    const char* file;
    const char* what;
  } cases[] = {
      {"echo no certificate > ca.crt", "copy/ca.crt", "has no certificate"},
      {"echo no certificate > node.crt", "copy/node.crt", "has no certificate"},
      {"sed s/MI/x/ ca.crt > damaged && cat damaged >> ca.crt", "copy/ca.crt", "is damaged: number 2"},
      {"head -n 3 node.crt > part && cat part >> node.crt", "copy/node.crt", "is damaged: number 2"},
      {"sed s/MI/x/ node.crt > damaged && mv damaged node.crt", "copy/node.crt", "is damaged: number 1"},
      {"echo no key > node.key", "copy/node.key", "has no private key"},
      {"openssl ec -in node.key -aes128 -passout pass:x -out k 2>/dev/null && mv k node.key", "copy/node.key",
       "without a passphrase"},
      {"cp ../ours/b/node.key .", "copy/node.key", "not the key of the node.crt"},
      {"cp ../theirs/a/ca.crt .", "copy/node.crt", "is not believed with the ca.crt beside it: "},
      {"openssl req -new -key node.key -subj /CN=x -out request && openssl x509 -req -in request -CA "
       "../ours/authority/ca.crt -CAkey ../ours/authority/ca.key -CAcreateserial -out node.crt 2>/dev/null",
       "copy/node.crt", "is not for the name wukong"},
  };
  for (const auto& wrong : cases) {
    status = Spoilt(wrong.spoil);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << wrong.spoil;
    EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr(wrong.file), HasSubstr(wrong.what))) << wrong.spoil;
  }
}

}  // namespace
}  // namespace wukong
