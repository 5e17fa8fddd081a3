// A root, a region and two leaves in one process, the link between region and root over an emulated WAN: whatever the
// codec and the order of messages, progress is neither lost nor counted twice.
#include <cmath>
#include <numeric>

#include "runtime/base/random.h"
#include "runtime/fault/wan_relay.h"
#include "runtime/transport/transport_test_util.h"

namespace wukong {
namespace {

constexpr int64_t kTreeValues = 600;
constexpr int64_t kRounds = 8;
constexpr int64_t kTokens = 10;  // Of one contribution.

class TreeTest : public ::testing::TestWithParam<CodecKind> {};

struct Leaf {
  Leaf(const std::string& address, int64_t member, const std::vector<FragmentSpan>& fragments, CodecKind codec)
      : child(address, member, fragments), theta(kTreeValues), random(static_cast<uint64_t>(member)) {
    Replica::Options options;
    options.codec = codec;
    replica = std::make_unique<Replica>(absl::MakeSpan(theta), fragments, options);
  }
  void Rebase() {
    const absl::Status status = child.link().parameters().With(
        [&](absl::Span<const float> values, const FollowedParameters::Snapshot& snapshot) {
          return replica->Rebase(values, snapshot.included).status();
        });
    ASSERT_TRUE(status.ok()) << status;
  }
  void TrainAndSend(int64_t sequence, std::vector<double>* progress) {
    for (int64_t i = 0; i < kTreeValues; ++i) {
      const auto step = static_cast<float>(0.01 * random.Normal());
      theta[i] += step;
      (*progress)[i] += static_cast<double>(step);
    }
    const auto payload = replica->Send(Sequence(sequence));
    ASSERT_TRUE(payload.ok()) << payload.status();
    const FollowedParameters::Snapshot snapshot = child.snapshot();
    Manifest manifest = TestManifest(sequence, snapshot.version.value(), kTokens);
    manifest.root_base = snapshot.root_version;
    child.link().Send(manifest, *payload);
  }

  TestChild child;
  std::vector<float> theta;
  std::unique_ptr<Replica> replica;
  Random random;
};

TEST_P(TreeTest, ProgressIsConserved) {
  const CodecKind codec = GetParam();
  // ---- the root
  const ParameterServer::Options root_options = TestNodeOptions(kTreeValues, kFragmentBytes, TestLevel(1, codec));
  Random random(17);
  std::vector<float> initial(kTreeValues);
  for (float& value : initial) value = static_cast<float>(random.Normal());
  TestNode root(root_options, initial);
  root.Serve();

  // ---- the region, 20 ms away
  WanRelay::Options wan;
  wan.target = root.address();
  wan.up.delay = wan.down.delay = absl::Milliseconds(10);
  wan.up.jitter = wan.down.jitter = absl::Milliseconds(2);
  wan.seed = 3;
  const auto relay = WanRelay::Start(wan);
  ASSERT_TRUE(relay.ok()) << relay.status();
  TestChild up((*relay)->address(), 100, root_options.fragments);
  ASSERT_TRUE(up.AwaitVersion(Version(1)));
  ParameterServer::Options region_options = root_options;
  region_options.node.is_root = false;
  region_options.node.in_flight_max = 2;
  region_options.replica.codec = codec;
  VersionNotes notes;
  notes.root_version = up.snapshot().root_version;
  TestNode region(region_options, up.Values(), &up.link(), notes);
  up.SetNode(&region.server());
  region.server().OnParentVersion();
  region.Serve();

  // ---- two leaves that train whatever is in flight
  std::vector<double> progress(kTreeValues, 0.0);
  std::vector<std::unique_ptr<Leaf>> leaves;
  for (const int64_t member : {1, 2}) {
    leaves.push_back(std::make_unique<Leaf>(region.address(), member, root_options.fragments, codec));
    Leaf& leaf = *leaves.back();
    ASSERT_TRUE(leaf.child.AwaitVersion(Version(1)));
    leaf.replica->Reset(leaf.child.Values());
  }
  for (int64_t round = 1; round <= kRounds; ++round) {
    for (auto& leaf : leaves) {
      leaf->TrainAndSend(round, &progress);
      // Now and then it waits for its own, so that rebasing meets contributions in flight and none.
      if (round % 3 == 0) {
        ASSERT_TRUE(leaf->child.AwaitIncluded(Sequence(round)));
      }
      leaf->Rebase();
    }
  }
  for (auto& leaf : leaves) {
    ASSERT_TRUE(leaf->child.AwaitIncluded(Sequence(kRounds)));
    leaf->Rebase();
    EXPECT_EQ(leaf->replica->pending(), 0);
    for (const auto& [sequence, verdict] : leaf->child.answers()) EXPECT_EQ(verdict, VERDICT_ACCEPTED) << sequence;
  }
  // Everything went up: the root's account of tokens is whole, and the region has heard of its last contribution.
  region.server().SetDraining(true);
  ASSERT_TRUE(root.AwaitMergedTokens(2 * kRounds * kTokens));
  ASSERT_TRUE(up.AwaitIncluded(root.merged().back().sequence));

  // A contribution of one of two children moves the region by half of it, and the region is the root's only child:
  //   root + what the region's codec left out = initial + (progress of all leaves - what their codecs left out) / 2.
  // The version that includes everything is here; now the region rebases onto it, if it has not yet.
  region.server().OnParentVersion();
  const std::vector<float> region_theta = region.Theta();
  const std::vector<float> public_root = up.Values();
  const std::vector<float> root_theta = root.Theta();
  for (int64_t i = 0; i < kTreeValues; ++i) {
    double left_out = 0;
    for (const auto& leaf : leaves) left_out += static_cast<double>(leaf->theta[i]) - leaf->replica->base()[i];
    const double kept_by_region = static_cast<double>(region_theta[i]) - public_root[i];
    ASSERT_NEAR(root_theta[i] - initial[i] + kept_by_region, (progress[i] - left_out) / 2, 2e-5) << i;
    if (codec == CODEC_KIND_FP32) {
      ASSERT_NEAR(root_theta[i] - initial[i], progress[i] / 2, 2e-5);
    }
  }
  EXPECT_TRUE(root.fatal().ok()) << root.fatal();
  EXPECT_TRUE(region.fatal().ok()) << region.fatal();
  EXPECT_GT((*relay)->stats(LinkDirection::kUp).bytes, 0);
  // The links go first: their threads call the nodes.
  leaves.clear();
  up.SetNode(nullptr);
  up.link().Shutdown();
}

INSTANTIATE_TEST_SUITE_P(Codecs, TreeTest,
                         ::testing::Values(CODEC_KIND_FP32, CODEC_KIND_BF16, CODEC_KIND_INT8, CODEC_KIND_INT4,
                                           CODEC_KIND_INT2, CODEC_KIND_TOPK, CODEC_KIND_MIXED),
                         [](const auto& codec) { return CodecKind_Name(codec.param); });

}  // namespace
}  // namespace wukong
