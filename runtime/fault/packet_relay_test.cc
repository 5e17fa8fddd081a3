// TCP between two network namespaces through a relay of packets. Where the machine has no namespaces there is nothing
// to test.
#include "runtime/fault/packet_relay.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/fault/netem.h"

namespace wukong {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr absl::Duration kDelay = absl::Milliseconds(30);  // One way.

// Accepts one connection of `listener`, reads to its end and sends back what it got.
void EchoOnce(int listener) {
  const OwnedDescriptor connection(::accept(listener, nullptr, nullptr));
  std::string all;
  char buffer[4096];
  ssize_t bytes = 0;
  while ((bytes = ::read(connection.get(), buffer, sizeof(buffer))) > 0) all.append(buffer, static_cast<size_t>(bytes));
  for (size_t sent = 0; sent < all.size();) {
    const ssize_t written = ::write(connection.get(), all.data() + sent, all.size() - sent);
    if (written <= 0) return;
    sent += static_cast<size_t>(written);
  }
}

// What comes back for `text`, and how long it took to connect.
std::string Echoed(const std::string& host, int port, const std::string& text, absl::Duration* to_connect) {
  const OwnedDescriptor socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  ::inet_pton(AF_INET, host.c_str(), &address.sin_addr);
  const absl::Time begin = absl::Now();
  if (::connect(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) return "not connected";
  *to_connect = absl::Now() - begin;
  for (size_t sent = 0; sent < text.size();) {
    const ssize_t written = ::write(socket.get(), text.data() + sent, text.size() - sent);
    if (written <= 0) return "not written";
    sent += static_cast<size_t>(written);
  }
  ::shutdown(socket.get(), SHUT_WR);
  std::string all;
  char buffer[4096];
  ssize_t bytes = 0;
  while ((bytes = ::read(socket.get(), buffer, sizeof(buffer))) > 0) all.append(buffer, static_cast<size_t>(bytes));
  return all;
}

// In a thread, which has a network of its own from then on: the other tests keep theirs.
absl::Status InOwnNetwork(const std::function<void()>& work) {
  absl::Status status;
  std::thread([&] {
    status = EnterOwnNetwork();
    if (status.ok()) work();
  }).join();
  return status;
}

using StartLink = absl::StatusOr<std::unique_ptr<EmulatedLink>> (*)(JoinedNetwork*, const PacketRelayOptions&);

// FAILED_PRECONDITION: this machine cannot.
absl::Status TcpGoesThroughWithItsDelayAndRepairsWhatIsLost(StartLink start) {
  absl::Status started;
  const absl::Status status = InOwnNetwork([&] {
    auto joined = JoinNetwork(7);
    ASSERT_TRUE(joined.ok()) << joined.status();
    const OwnedDescriptor listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    socklen_t size = sizeof(address);
    ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
    ASSERT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);
    ASSERT_EQ(::listen(listener.get(), 4), 0);
    PacketRelayOptions options;
    options.port = ntohs(address.sin_port);
    options.up.delay = options.down.delay = kDelay;
    const auto relay = start(&*joined, options);
    started = relay.status();
    if (!started.ok()) return;
    EXPECT_EQ((*relay)->address(), absl::StrCat("10.87.7.1:", options.port));

    std::string text;
    for (int i = 0; text.size() < 200'000; ++i) absl::StrAppend(&text, i, " ");
    const auto echo = [&] {
      std::string back;
      absl::Duration to_connect;
      std::thread server([&] { EchoOnce(listener.get()); });
      std::thread([&] {
        ASSERT_EQ(::setns(joined->network.get(), CLONE_NEWNET), 0);
        back = Echoed("10.87.7.1", options.port, text, &to_connect);
      }).join();
      server.join();
      EXPECT_EQ(back, text);
      EXPECT_GE(to_connect, 2 * kDelay) << "the handshake makes a round trip";
    };
    echo();
    EXPECT_EQ((*relay)->stats(LinkDirection::kUp).losses, 0);
    EXPECT_GT((*relay)->stats(LinkDirection::kUp).bytes, 200'000);
    options.up.loss = options.down.loss = 0.08;  // Of 140 packets: that none is lost has a probability of 1e-5.
    (*relay)->SetShape(LinkDirection::kUp, options.up);
    (*relay)->SetShape(LinkDirection::kDown, options.down);
    echo();
    EXPECT_GT((*relay)->stats(LinkDirection::kUp).losses, 0);
    EXPECT_GT((*relay)->stats(LinkDirection::kDown).losses, 0);
  });
  return status.ok() ? started : status;
}

TEST(PacketRelayTest, TcpGoesThroughWithItsDelayAndRepairsWhatIsLost) {
  const absl::Status status = TcpGoesThroughWithItsDelayAndRepairsWhatIsLost(StartPacketRelay);
  if (absl::IsFailedPrecondition(status)) GTEST_SKIP() << status;
  ASSERT_TRUE(status.ok()) << status;
}

TEST(NetemLinkTest, TcpGoesThroughOrTheMachineSaysWhatItLacks) {
  const absl::Status status = TcpGoesThroughWithItsDelayAndRepairsWhatIsLost(StartNetemLink);
  if (status.ok()) return;
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  // No netem, no iproute2, or no namespaces: nothing else may be wrong.
  EXPECT_THAT(std::string(status.message()),
              AnyOf(HasSubstr("qdisc kind is unknown"), HasSubstr("not found"), HasSubstr("network namespaces need")));
}

// What tc does not know it refuses with other words, before it asks the kernel.
TEST(NetemLinkTest, TcTakesWhatItIsTold) {
  LinkShape shape;
  shape.delay = absl::Milliseconds(75);
  shape.jitter = absl::Milliseconds(10);
  shape.bandwidth_bits_per_s = 100e6;
  shape.loss = 0.001;
  std::string said;
  (void)InOwnNetwork([&] {
    const std::string arguments = NetemArguments(shape, /*cut=*/false, absl::Milliseconds(150));
    const std::string command = absl::StrCat("PATH=$PATH:/usr/sbin:/sbin tc qdisc replace dev lo root ", arguments);
    FILE* const pipe = ::popen(absl::StrCat(command, " 2>&1").c_str(), "re");
    ASSERT_NE(pipe, nullptr);
    char buffer[4096];
    size_t bytes = 0;
    while ((bytes = std::fread(buffer, 1, sizeof(buffer), pipe)) > 0) said.append(buffer, bytes);
    ::pclose(pipe);
  });
  EXPECT_THAT(said, AnyOf(IsEmpty(), HasSubstr("qdisc kind is unknown"), HasSubstr("not found")));
}

}  // namespace
}  // namespace wukong
