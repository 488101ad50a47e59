// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/watch/coalescer.h"

#include <gtest/gtest.h>

namespace nearbox::agent {
namespace {

using std::chrono::milliseconds;
constexpr wire::NodeId kDir{1, 2};

class CoalescerTest : public ::testing::Test {
 protected:
  bool add(std::string_view name, std::uint32_t flags = kHintLook, std::string_view target = {}) {
    return names.add({kDir, name, flags, target, {}}, now);
  }
  std::vector<Coalescer::Item> take() { return names.take(now, 1000); }
  Coalescer names;
  Coalescer::TimePoint now = Coalescer::TimePoint{} + std::chrono::hours(1);
};

TEST_F(CoalescerTest, AQuietNameIsDueAtOnce) {
  EXPECT_FALSE(names.next_due());
  ASSERT_TRUE(add("a", kHintContent, "t1"));
  ASSERT_TRUE(add("a", kHintLook));
  EXPECT_EQ(names.next_due(), now);
  const auto items = take();
  ASSERT_EQ(items.size(), 1U);
  EXPECT_EQ(items[0].name, "a");
  EXPECT_EQ(items[0].dir, kDir);
  EXPECT_EQ(items[0].flags, kHintLook | kHintContent);
  EXPECT_EQ(items[0].targets, std::vector<std::string>{"t1"});
  EXPECT_FALSE(names.pending());
}

TEST_F(CoalescerTest, ABusyNameIsLookedAtTwentyTimesASecond) {
  int looks = 0;
  const auto end = now + milliseconds(2000);
  for (; now < end; now += std::chrono::microseconds(500)) {
    ASSERT_TRUE(add("log", kHintContent));
    looks += static_cast<int>(take().size());
  }
  EXPECT_LE(looks, 20 * 2 + 5);
  EXPECT_GE(looks, 20 * 2 - 2);
  ASSERT_TRUE(names.next_due());  // the last state is still to be seen
  EXPECT_LE(*names.next_due(), now + kLongestInterval);
  now = *names.next_due();
  EXPECT_EQ(take().size(), 1U);
}

TEST_F(CoalescerTest, ABusyNameHoldsNoOtherBack) {
  for (int i = 0; i < 100; ++i, now += milliseconds(1)) {
    add("log");
    take();
  }
  ASSERT_TRUE(add("log"));
  ASSERT_TRUE(add("new"));
  const auto items = take();
  ASSERT_EQ(items.size(), 1U);
  EXPECT_EQ(items[0].name, "new");
}

TEST_F(CoalescerTest, QuietAgainIsDueAtOnceAgain) {
  for (int i = 0; i < 100; ++i, now += milliseconds(1)) {
    add("a");
    take();
  }
  now += kCooling;
  take();
  now += kCooling;
  take();
  EXPECT_LE(names.size(), 1U);
  add("a");
  EXPECT_LE(*names.next_due(), now);
}

TEST_F(CoalescerTest, RenamesAndBarriersDoNotWait) {
  add("a"), take();
  add("a");
  EXPECT_GT(*names.next_due(), now);
  EXPECT_TRUE(take().empty());
  add("a", kHintAtOnce);
  EXPECT_EQ(take().size(), 1U);
  add("a");
  EXPECT_EQ(names.take(now, 10, true).size(), 1U);
  EXPECT_FALSE(names.next_due());
}

TEST_F(CoalescerTest, AListingTakesWhatWaits) {
  add("a", kHintBorn, "t");
  add("b");
  const auto item = names.take_name(kDir, "a", now);
  ASSERT_TRUE(item);
  EXPECT_EQ(item->flags, kHintLook | kHintBorn);
  EXPECT_FALSE(names.take_name(kDir, "a", now));
  EXPECT_FALSE(names.take_name(kDir, "c", now));
  EXPECT_EQ(take().size(), 1U);
}

TEST_F(CoalescerTest, TargetsOfOneNameAreAllKept) {
  add("tmp", kHintContent, "t1");
  add("tmp", kHintContent, "t2");
  add("tmp", kHintContent, "t1");
  EXPECT_EQ(take()[0].targets.size(), 2U);
}

TEST_F(CoalescerTest, IsBounded) {
  std::size_t added = 0;
  while (added <= kMaxNames && add(std::to_string(added))) ++added;
  EXPECT_LE(added, kMaxNames);
  EXPECT_GT(added, kMaxNames / 2);
  while (!names.take(now, 10'000).empty()) {
  }
  now += 2 * kCooling;
  EXPECT_TRUE(add("again"));  // what is quiet makes room
  EXPECT_LT(names.size(), 10U);
}

}  // namespace
}  // namespace nearbox::agent
