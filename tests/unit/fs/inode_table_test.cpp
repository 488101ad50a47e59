// SPDX-License-Identifier: Apache-2.0
#include "fs/core/inode_table.h"

#include <cstdlib>
#include <map>
#include <random>
#include <set>

#include <gtest/gtest.h>

namespace nearbox::fs {
namespace {

std::uint64_t seed() {
  const char* text = std::getenv("NEARBOX_TEST_SEED");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : 4711;
}

// Property: the table holds exactly the inodes whose lookup count is above zero, and no number comes twice.
TEST(InodeTable, LiveInodesMatchLookupCounts) {
  SCOPED_TRACE("seed " + std::to_string(seed()));
  std::mt19937_64 rng(seed());
  InodeTable table(1);
  struct Known {
    Ino ino;
    std::uint64_t count;
  };
  std::map<sync::NodeIndex, Known> model;
  std::set<Ino> used;
  for (int step = 0; step < 20000; ++step) {
    const auto node = static_cast<sync::NodeIndex>(97 * (2 + rng() % 50));
    if (rng() % 3 != 0) {
      const auto ref = table.add(node);
      ASSERT_EQ(ref.fresh, !model.contains(node));
      if (ref.fresh) {
        ASSERT_TRUE(used.insert(ref.ino).second) << "number given twice";
        model[node] = {ref.ino, 1};
      } else {
        ASSERT_EQ(ref.ino, model[node].ino);
        ++model[node].count;
      }
    } else if (model.contains(node)) {
      auto& known = model[node];
      const auto n = 1 + rng() % known.count;  // the kernel may batch forgets
      const auto gone = table.forget(known.ino, n);
      known.count -= n;
      ASSERT_EQ(gone.has_value(), known.count == 0);
      if (known.count == 0) {
        ASSERT_EQ(*gone, node);
        ASSERT_EQ(table.node(known.ino), sync::kNoNode);
        model.erase(node);
      }
    }
    ASSERT_EQ(table.size(), model.size() + 1);
  }
  for (const auto& [node, known] : model) {
    EXPECT_EQ(table.ino(node), known.ino);
    EXPECT_EQ(table.node(known.ino), node);
  }
  EXPECT_EQ(table.clear().size(), model.size());
  EXPECT_EQ(table.size(), 1u);
  EXPECT_EQ(table.bad_forgets(), 0u);
}

TEST(InodeTable, RootStaysAndBadForgetsAreCounted) {
  InodeTable table(7);
  EXPECT_EQ(table.node(kRootIno), 7u);
  EXPECT_FALSE(table.forget(kRootIno, 100));
  EXPECT_EQ(table.node(kRootIno), 7u);
  EXPECT_FALSE(table.forget(99, 1));
  EXPECT_EQ(table.bad_forgets(), 1u);
  EXPECT_EQ(table.add(7).ino, kRootIno);
}

TEST(Orphans, NumberIsGivenBackWithTheLastSession) {
  Orphans orphans;
  EXPECT_FALSE(orphans.keep(5, 77));  // nobody holds it
  orphans.hold(5);
  orphans.hold(5);
  EXPECT_TRUE(orphans.keep(5, 77));
  EXPECT_EQ(orphans.number(5), 77u);
  EXPECT_EQ(orphans.release(5), 0u);
  EXPECT_EQ(orphans.number(5), 77u);
  EXPECT_EQ(orphans.release(5), 77u);
  EXPECT_EQ(orphans.number(5), 0u);
  orphans.hold(6);
  EXPECT_TRUE(orphans.keep(6, 78));
  orphans.clear_numbers();
  EXPECT_EQ(orphans.release(6), 0u);
}

TEST(InodeTable, NamesAreRememberedWhenAskedForAndBounded) {
  InodeTable forgetful(1);
  EXPECT_FALSE(forgetful.named(forgetful.add(5).ino, kRootIno, "n"));
  EXPECT_TRUE(forgetful.names().empty());
  InodeTable table(1);
  table.remember_names();
  const Ino ino = table.add(5).ino;
  for (std::size_t i = 0; i < InodeTable::kMaxNames; ++i) {
    EXPECT_FALSE(table.named(ino, kRootIno, std::to_string(i)));
    EXPECT_FALSE(table.named(ino, kRootIno, std::to_string(i)));  // known
  }
  EXPECT_EQ(table.names().size(), InodeTable::kMaxNames);
  EXPECT_EQ(table.named(ino, kRootIno, "more"), (InodeTable::Name{kRootIno, "0"}));
  EXPECT_EQ(table.names().size(), InodeTable::kMaxNames);
  EXPECT_FALSE(table.named(99, kRootIno, "unknown"));
  table.forget(ino, 1);
  EXPECT_TRUE(table.names().empty());
}

}  // namespace
}  // namespace nearbox::fs
