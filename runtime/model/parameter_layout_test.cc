#include "runtime/model/parameter_layout.h"

#include <limits>

#include "gtest/gtest.h"

namespace wukong {
namespace {

TEST(ParameterLayoutTest, TensorsFollowOneAnother) {
  const ParameterLayout layout({{"a", {2, 3}}, {"scalar", {}}, {"b", {4}}});
  ASSERT_EQ(layout.tensors().size(), 3u);
  EXPECT_EQ(layout.tensors()[0].offset, 0);
  EXPECT_EQ(layout.tensors()[0].size, 6);
  EXPECT_EQ(layout.tensors()[1].offset, 6);
  EXPECT_EQ(layout.tensors()[1].size, 1);
  EXPECT_EQ(layout.tensors()[2].offset, 7);
  EXPECT_EQ(layout.size(), 11);
}

TEST(ParameterLayoutTest, DigestTellsNamesShapesAndOrderApart) {
  const std::string digest = ParameterLayout({{"a", {2, 3}}, {"b", {4}}}).schema_digest();
  EXPECT_EQ(digest.size(), 64u);
  EXPECT_EQ(digest, ParameterLayout({{"a", {2, 3}}, {"b", {4}}}).schema_digest());
  // Offsets that the caller left in the specs do not matter.
  EXPECT_EQ(digest, ParameterLayout({{"a", {2, 3}, 77, 5}, {"b", {4}, 1, 1}}).schema_digest());
  EXPECT_NE(digest, ParameterLayout({{"a", {3, 2}}, {"b", {4}}}).schema_digest());
  EXPECT_NE(digest, ParameterLayout({{"a", {6}}, {"b", {4}}}).schema_digest());
  EXPECT_NE(digest, ParameterLayout({{"b", {4}}, {"a", {2, 3}}}).schema_digest());
  EXPECT_NE(digest, ParameterLayout({{"a", {2, 3}}, {"c", {4}}}).schema_digest());
  EXPECT_NE(digest, ParameterLayout(std::vector<TensorSpec>{{"a[2,3];1:b[4];", {}}}).schema_digest());
}

TEST(CutFragmentsTest, CoversEveryValueOnceInOrder) {
  for (const int64_t size : {0, 1, 255, 256, 257, 1000}) {
    for (const int64_t bytes : {1, 4, 7, 8, 1024, 1 << 20}) {
      int64_t next = 0;
      for (const FragmentSpan& fragment : CutFragments(size, bytes)) {
        EXPECT_EQ(fragment.begin, next);
        EXPECT_GT(fragment.size(), 0);
        EXPECT_TRUE(fragment.size() * 4 <= bytes || fragment.size() == 1) << size << " " << bytes;
        next = fragment.end;
      }
      EXPECT_EQ(next, size);
    }
  }
}

TEST(CutFragmentsTest, OnlyTheLastFragmentIsShort) {
  const std::vector<FragmentSpan> fragments = CutFragments(10, 16);
  ASSERT_EQ(fragments.size(), 3u);
  EXPECT_EQ(fragments[0].size(), 4);
  EXPECT_EQ(fragments[1].size(), 4);
  EXPECT_EQ(fragments[2].size(), 2);
}

TEST(CutFragmentsTest, ALimitBeyondTheVectorMakesOneFragment) {
  EXPECT_EQ(CutFragments(5, std::numeric_limits<int64_t>::max()).size(), 1u);
}

}  // namespace
}  // namespace wukong
