// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/watch/dir_table.h"

#include <gtest/gtest.h>

namespace nearbox::agent {
namespace {

wire::NodeId node(std::uint64_t ino) { return {1, ino}; }

TEST(DirTable, TheOneUsedLongestAgoGoesFirst) {
  DirTable table(kMinDirs);
  for (std::uint64_t i = 0; i < kMinDirs; ++i) table.put(node(i + 1), std::to_string(i + 1));
  ASSERT_NE(table.find(node(1)), nullptr);
  ASSERT_NE(table.find("2"), nullptr);
  const auto held = table.find(node(3))->key;
  ASSERT_NE(table.find(node(1)), nullptr);
  for (std::uint64_t i = 100; i < 100 + kMinDirs - 1; ++i) table.put(node(i), std::to_string(i));
  EXPECT_EQ(table.size(), kMinDirs);
  EXPECT_NE(table.find(node(1)), nullptr);
  EXPECT_EQ(table.find(node(3)), nullptr);
  EXPECT_EQ(*held, "3");
}

TEST(DirTable, ANumberUsedAgainHasAnotherHandle) {
  DirTable table(kMinDirs);
  table.put(node(1), "old");
  table.put(node(1), "new");
  EXPECT_EQ(table.find("old"), nullptr);
  EXPECT_EQ(*table.find(node(1))->key, "new");
  table.put(node(2), "new");  // the same directory by another number: a file system that was mounted again
  EXPECT_EQ(table.find(node(1)), nullptr);
  EXPECT_EQ(table.size(), 1U);
  table.erase("new");
  table.erase("new");
  EXPECT_EQ(table.size(), 0U);
  EXPECT_EQ(table.find(node(2)), nullptr);
}

}  // namespace
}  // namespace nearbox::agent
