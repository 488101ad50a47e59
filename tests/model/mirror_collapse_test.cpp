// SPDX-License-Identifier: Apache-2.0
// Directories that collapse, and come again.
#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <sys/stat.h>

#include <gtest/gtest.h>

#include "sync/core/mirror.h"

namespace nearbox::sync {
namespace {

using wire::Attr;

std::uint64_t seed() {
  const char* text = std::getenv("NEARBOX_TEST_SEED");
  return text == nullptr ? 20240611 : std::strtoull(text, nullptr, 10);
}

Attr attr_of(std::uint64_t ino, std::uint32_t mode = S_IFREG | 0644) {
  Attr a;
  a.dev = 1, a.ino = ino, a.mode = mode, a.nlink = 1;
  return a;
}

class MirrorCollapse : public testing::Test {
 protected:
  MirrorCollapse() {
    mirror.set_root(attr_of(2, S_IFDIR | 0755), changes);
    // r/ with d0 … d9, each with f0 … f9
    for (std::uint64_t i = 0; i < 10; ++i) {
      const auto name = "d" + std::to_string(i);
      dirs.push_back(mirror.link(Mirror::kRoot, name, attr_of(100 + i, S_IFDIR | 0755), {}, changes));
    }
    mirror.set_listing(Mirror::kRoot, Listing::kComplete);
    for (std::uint64_t i = 0; i < 10; ++i) fill(i);
    changes.clear();
  }
  void fill(std::uint64_t i) {
    wire::TreeBlock block;
    block.path = "d" + std::to_string(i);
    block.attr = mirror.attr(dirs[i]);
    for (std::uint64_t f = 0; f < 10; ++f) {
      block.entries.push_back({"f" + std::to_string(f), attr_of(1000 + 10 * i + f), {}});
    }
    mirror.apply_block(Mirror::kRoot, block, changes);
  }
  std::set<std::string> names(NodeIndex dir) const {
    std::set<std::string> all;
    mirror.list(dir, 0, [&](std::uint64_t, std::string_view name, NodeIndex) {
      all.emplace(name);
      return true;
    });
    return all;
  }
  bool told(Change::Kind kind, NodeIndex dir, const std::string& name = {}) const {
    for (const auto& change : changes) {
      if (change.kind == kind && change.dir == dir && change.name == name) return true;
    }
    return false;
  }
  static bool none(NodeIndex) { return false; }

  Mirror mirror;
  Changes changes;
  std::vector<NodeIndex> dirs;
};

TEST_F(MirrorCollapse, KeepsWhatIsPinnedAndTellsWhoHoldsIt) {
  const auto dir = dirs[3];
  const auto file = mirror.lookup(dir, "f4");
  mirror.pin(dir);
  mirror.pin(file);
  ASSERT_TRUE(mirror.collapse(dir, changes));
  EXPECT_EQ(mirror.listing(dir), Listing::kUnknown);
  EXPECT_TRUE(mirror.collapsed(dir));
  EXPECT_EQ(names(dir), (std::set<std::string>{"f4"}));
  EXPECT_TRUE(told(Change::Kind::kListing, dir));
  EXPECT_TRUE(told(Change::Kind::kUnneeded, dir, "f4"));
  EXPECT_EQ(changes.size(), 2u);
  EXPECT_EQ(mirror.pinned_count(), 2u);

  changes.clear();
  auto attr = mirror.attr(file);
  attr.size = 5;
  mirror.set_attr(mirror.find(wire::identity(attr)), attr, changes);
  ASSERT_EQ(changes.size(), 1u);
  EXPECT_EQ(changes[0].kind, Change::Kind::kData);

  // A name that the kernel may believe absent.
  changes.clear();
  ASSERT_NE(mirror.link(dir, "new", attr_of(5000), {}, changes), kNoNode);
  EXPECT_TRUE(told(Change::Kind::kEntry, dir, "new"));
  EXPECT_TRUE(told(Change::Kind::kListing, dir));

  mirror.unpin(file);
  EXPECT_EQ(names(dir), (std::set<std::string>{"new"}));
  EXPECT_EQ(mirror.find({1, 1034}), kNoNode);

  fill(3);
  EXPECT_EQ(mirror.listing(dir), Listing::kComplete);
  EXPECT_FALSE(mirror.collapsed(dir));
  EXPECT_EQ(names(dir).size(), 10u);
}

TEST_F(MirrorCollapse, WhatNobodyHoldsGoesWithTheDirectoriesAboveIt) {
  const auto before = mirror.name_count();
  ASSERT_TRUE(mirror.collapse(Mirror::kRoot, changes));
  EXPECT_EQ(mirror.name_count(), before) << "directories with names stay";
  for (std::size_t i = 1; i < 10; ++i) ASSERT_TRUE(mirror.collapse(dirs[i], changes));
  EXPECT_EQ(names(Mirror::kRoot), (std::set<std::string>{"d0"}));
  const auto file = mirror.lookup(dirs[0], "f0");
  mirror.pin(dirs[0]);
  mirror.pin(file);
  ASSERT_TRUE(mirror.collapse(dirs[0], changes));
  EXPECT_EQ(mirror.name_count(), 2u);
  changes.clear();
  mirror.unpin(file);
  mirror.take_late(changes);
  EXPECT_TRUE(told(Change::Kind::kUnneeded, Mirror::kRoot, "d0")) << "nothing is below it any more";
  mirror.unpin(dirs[0]);
  EXPECT_EQ(mirror.name_count(), 0u);
  EXPECT_EQ(mirror.node_count(), 1u);
}

TEST_F(MirrorCollapse, TheLeastRecentlyExpandedFirst) {
  EXPECT_EQ(mirror.expanded_names(), 110u);
  EXPECT_EQ(mirror.expanded_dirs(), 11u);
  (void)names(dirs[1]);  // looked into: spared once
  const auto did = mirror.collapse_oldest(80, {100, 1000}, none, changes);
  EXPECT_EQ(did.names, 30u);
  EXPECT_EQ(did.spared, 2u) << "the root too, by the names of the blocks";
  EXPECT_EQ(mirror.listing(dirs[0]), Listing::kUnknown);
  EXPECT_EQ(mirror.listing(dirs[1]), Listing::kComplete);
  EXPECT_EQ(mirror.listing(dirs[2]), Listing::kUnknown);
  EXPECT_EQ(mirror.listing(dirs[3]), Listing::kUnknown);
  EXPECT_EQ(mirror.listing(dirs[4]), Listing::kComplete);
  EXPECT_EQ(mirror.expanded_names(), 80u);
  const auto kept = mirror.collapse_oldest(
      0, {100, 1000}, [&](NodeIndex dir) { return dir == dirs[7]; }, changes);
  EXPECT_EQ(kept.examined, 100u) << "one is kept, and asked for again and again";
  EXPECT_EQ(mirror.listing(dirs[7]), Listing::kComplete);
  EXPECT_EQ(mirror.expanded_names(), 10u);
}

TEST_F(MirrorCollapse, NotWhileItIsListedInBlocks) {
  wire::TreeBlock block;
  block.path = "d5";
  block.attr = mirror.attr(dirs[5]);
  block.flags = wire::kTreeMore;
  block.entries.push_back({"f0", attr_of(1050), {}});
  mirror.apply_block(Mirror::kRoot, block, changes, {}, 7);
  EXPECT_FALSE(mirror.collapse(dirs[5], changes));
  mirror.end_scan(7);
  EXPECT_TRUE(mirror.collapse(dirs[5], changes));
}

TEST_F(MirrorCollapse, LostChangesAreToldOfCollapsedDirectoriesToo) {
  mirror.pin(dirs[2]);
  ASSERT_TRUE(mirror.collapse(dirs[2], changes));
  changes.clear();
  mirror.distrust(Mirror::kRoot, true, false, changes);
  EXPECT_TRUE(told(Change::Kind::kEntry, Mirror::kRoot, "d2"));
  EXPECT_TRUE(told(Change::Kind::kNegatives, dirs[2]));
  EXPECT_TRUE(told(Change::Kind::kListing, dirs[2]));
}

TEST_F(MirrorCollapse, TellsAgainOfWhatIsNotNeededInSlices) {
  std::set<std::string> pinned;
  for (const int f : {1, 4, 7}) {
    mirror.pin(mirror.lookup(dirs[3], "f" + std::to_string(f)));
    pinned.insert("f" + std::to_string(f));
  }
  mirror.pin(mirror.lookup(dirs[4], "f5"));
  mirror.pin(dirs[3]);
  ASSERT_TRUE(mirror.collapse(dirs[3], changes));
  std::multiset<std::string> again;
  std::size_t calls = 0;
  for (NodeIndex node = kNoNode; calls == 0 || node != kNoNode; ++calls) {
    changes.clear();
    node = mirror.tell_unneeded(node, 10, 2, changes);
    EXPECT_LE(changes.size(), 2u);
    for (const auto& change : changes) {
      EXPECT_EQ(change.kind, Change::Kind::kUnneeded);
      EXPECT_EQ(change.dir, dirs[3]);
      EXPECT_EQ(change.node, mirror.lookup(dirs[3], change.name));
      again.insert(change.name);
    }
  }
  EXPECT_EQ(again, (std::multiset<std::string>(pinned.begin(), pinned.end())));
  EXPECT_GE(calls, 11u);
}

TEST_F(MirrorCollapse, WhatIsInDoubtStaysSoUntilItIsListed) {
  const auto dir = dirs[2];
  const auto file = mirror.lookup(dir, "f4");
  mirror.pin(dir);
  mirror.pin(file);
  mirror.distrust(Mirror::kRoot, true, false, changes);
  ASSERT_EQ(mirror.prover(file), dir);
  ASSERT_TRUE(mirror.collapse(dir, changes));
  EXPECT_EQ(mirror.listing(dir), Listing::kUnknown) << "what it holds is not all";
  EXPECT_EQ(mirror.prover(file), dir);
  ASSERT_TRUE(mirror.collapse(dir, changes));
  EXPECT_EQ(mirror.prover(file), dir) << "and again";

  wire::TreeBlock block;
  block.path = "d2";
  block.attr = mirror.attr(dir);
  block.flags = wire::kTreeMore;
  block.entries.push_back({"f0", attr_of(1020), {}});
  mirror.apply_block(Mirror::kRoot, block, changes, {}, 7);
  EXPECT_EQ(mirror.prover(file), dir) << "it did not come yet";
  block.flags = 0;
  block.entries = {{"f4", attr_of(1024), {}}};
  mirror.apply_block(Mirror::kRoot, block, changes, {}, 7);
  EXPECT_TRUE(mirror.proven(file));
  ASSERT_TRUE(mirror.collapse(dir, changes));
  EXPECT_TRUE(mirror.proven(file));
}

TEST_F(MirrorCollapse, WhatACollapsedDirectoryKeptIsDoubtedByALoss) {
  const auto file = mirror.lookup(dirs[2], "f4");
  mirror.pin(file);
  ASSERT_TRUE(mirror.collapse(dirs[2], changes));
  EXPECT_TRUE(mirror.proven(file));
  mirror.distrust(dirs[2], false, false, changes);
  EXPECT_EQ(mirror.prover(file), dirs[2]);
  EXPECT_EQ(mirror.listing(dirs[2]), Listing::kUnknown) << "a listing of what it kept would lack the rest";
}

TEST_F(MirrorCollapse, PlacesDoNotGrowWithTheNumberOfCollapses) {
  mirror.pin(dirs[0]);
  mirror.pin(dirs[1]);
  ASSERT_TRUE(mirror.collapse(dirs[1], changes));
  std::size_t bytes = 0;
  for (int round = 0; round < 1000; ++round) {
    fill(0);
    ASSERT_TRUE(mirror.collapse(dirs[0], changes));
    changes.clear();
    if (round == 10) bytes = mirror.memory_bytes();
  }
  EXPECT_EQ(mirror.memory_bytes(), bytes);
}

// More than is remembered: those of the directories that collapsed first go.
TEST_F(MirrorCollapse, PlacesAreBounded) {
  const auto add = [&](const std::string& name, std::uint64_t ino, std::uint64_t count) {
    const auto dir = mirror.link(Mirror::kRoot, name, attr_of(ino, S_IFDIR | 0755), {}, changes);
    mirror.pin(dir);
    for (std::uint64_t f = 0; f < count; ++f)
      (void)mirror.link(dir, "f" + std::to_string(f), attr_of(ino + 1 + f), {}, changes);
    changes.clear();
    return dir;
  };
  const auto cookie = [&](NodeIndex dir) { return mirror.cookie(dir, mirror.lookup(dir, "f7")); };
  const auto one = add("one", 1'000'000, 300'000), two = add("two", 2'000'000, 100'000),
             three = add("three", 3'000'000, 200'000);
  const auto one_was = cookie(one), two_was = cookie(two), three_was = cookie(three);
  for (const auto dir : {one, two, three}) ASSERT_TRUE(mirror.collapse(dir, changes));
  for (const auto& [dir, ino] :
       {std::pair(one, 1'000'000), std::pair(two, 2'000'000), std::pair(three, 3'000'000)})
    ASSERT_NE(mirror.link(dir, "f7", attr_of(static_cast<std::uint64_t>(ino) + 8), {}, changes), kNoNode);
  EXPECT_GT(cookie(one), three_was) << "a new place";
  EXPECT_EQ(cookie(two), two_was);
  EXPECT_EQ(cookie(three), three_was);
  EXPECT_LT(one_was, two_was);
}

// A directory of 1,000 names that goes in slices of 100, and what may happen to it meanwhile.
class MirrorCollapseSlices : public MirrorCollapse {
 protected:
  MirrorCollapseSlices() {
    big = mirror.link(Mirror::kRoot, "big", attr_of(50, S_IFDIR | 0755), {}, changes);
    mirror.pin(big);
    list();
    (void)slice();  // those before it, and the first hundred of it
    EXPECT_EQ(mirror.listing(big), Listing::kUnknown);
    EXPECT_TRUE(mirror.collapsed(big));
    changes.clear();
  }
  ~MirrorCollapseSlices() override {
    for (int i = 0; i < 20; ++i) (void)slice();
    EXPECT_FALSE(slice().unfinished);
  }
  void list() {
    wire::TreeBlock block;
    block.path = "big", block.attr = attr_of(50, S_IFDIR | 0755);
    for (std::uint64_t f = 0; f < 1000; ++f)
      block.entries.push_back({"b" + std::to_string(f), attr_of(2000 + f), {}});
    mirror.apply_block(Mirror::kRoot, block, changes);
  }
  Mirror::Collapsed slice() {
    return mirror.collapse_oldest(
        11, {100, 200}, [&](NodeIndex dir) { return dir == kept; }, changes);
  }
  NodeIndex big = kNoNode, kept = kNoNode;
};

TEST_F(MirrorCollapseSlices, AreBoundedAndEnd) {
  const auto held = mirror.lookup(big, "b999");
  ASSERT_NE(held, kNoNode);
  mirror.pin(held);
  EXPECT_LE(mirror.expanded_names(), 11u) << "what is going does not count";
  std::size_t slices = 0;
  for (auto did = slice(); did.unfinished; did = slice(), ++slices) {
    EXPECT_LE(did.names, 200u);
    EXPECT_TRUE(did.names == 200 || slices >= 3);
  }
  EXPECT_GE(slices, 4u);
  EXPECT_EQ(names(big), (std::set<std::string>{"b999"}));
  EXPECT_TRUE(told(Change::Kind::kUnneeded, big, "b999"));
  EXPECT_FALSE(told(Change::Kind::kListing, big)) << "that was told when it began";
}

TEST_F(MirrorCollapseSlices, AListingEndsThem) {
  list();
  EXPECT_EQ(mirror.listing(big), Listing::kComplete);
  EXPECT_EQ(names(big).size(), 1000u);
  EXPECT_EQ(mirror.expanded_names(), 1011u);
}

TEST_F(MirrorCollapseSlices, WhoNeedsItEndsThem) {
  kept = big;
  (void)slice();
  EXPECT_GT(names(big).size(), 500u);
  EXPECT_GT(mirror.expanded_names(), 500u) << "it goes once nobody needs it";
  kept = kNoNode;
  for (int i = 0; i < 10; ++i) (void)slice();
  EXPECT_TRUE(names(big).empty());
}

TEST_F(MirrorCollapseSlices, ItMayBeRemoved) {
  mirror.unpin(big);
  mirror.unlink(Mirror::kRoot, "big", changes);
  EXPECT_FALSE(mirror.alive(big));
  const auto next = mirror.link(Mirror::kRoot, "next", attr_of(51, S_IFDIR | 0755), {}, changes);
  ASSERT_NE(mirror.link(next, "x", attr_of(52), {}, changes), kNoNode);
  mirror.set_listing(next, Listing::kComplete);
  (void)slice();
  EXPECT_EQ(names(next).size(), 1u);
}

TEST_F(MirrorCollapseSlices, NewNamesStay) {
  ASSERT_NE(mirror.link(big, "new", attr_of(51), {}, changes), kNoNode);
  mirror.pin(mirror.lookup(big, "new"));
  while (slice().unfinished) continue;
  EXPECT_EQ(names(big), (std::set<std::string>{"new"}));
}

// Property: whoever reads a directory in pieces sees each name that stays exactly once, though it collapses
// and is listed again meanwhile, in any order.
TEST(MirrorCollapseModel, ReadersGoOnWhereTheyWere) {
  std::mt19937_64 rng(seed());
  for (int round = 0; round < 10; ++round) {
    Mirror mirror;
    Changes changes;
    mirror.set_root(attr_of(2, S_IFDIR | 0755), changes);
    const auto dir = mirror.link(Mirror::kRoot, "d", attr_of(3, S_IFDIR | 0755), {}, changes);
    mirror.pin(dir);
    std::map<std::string, std::uint64_t> there;
    std::uint64_t ino = 100;
    for (int i = 0; i < 3000; ++i) there["n" + std::to_string(i)] = ino++;
    auto stay = there;
    const auto list = [&] {
      wire::TreeBlock block;
      block.path = "d", block.attr = attr_of(3, S_IFDIR | 0755);
      for (const auto& [name, number] : there) block.entries.push_back({name, attr_of(number), {}});
      std::shuffle(block.entries.begin(), block.entries.end(), rng);
      mirror.apply_block(Mirror::kRoot, block, changes);
    };
    list();
    std::map<std::string, int> seen;
    std::uint64_t cookie = 0;
    for (bool more = true; more;) {
      auto left = 1 + rng() % 100;
      more = false;
      mirror.list(dir, cookie, [&](std::uint64_t at, std::string_view name, NodeIndex) {
        if (left-- == 0) return !(more = true);
        EXPECT_GT(at, cookie);
        cookie = at;
        ++seen[std::string(name)];
        return true;
      });
      if (rng() % 3 == 0) {
        const auto held = mirror.lookup(dir, "n" + std::to_string(rng() % 3000));
        if (held != kNoNode) mirror.pin(held);
        if (rng() % 2 == 0) {
          ASSERT_TRUE(mirror.collapse(dir, changes));
        } else {
          for (auto slices = rng() % 4; slices > 0; --slices) {
            (void)mirror.collapse_oldest(
                0, {2, 1 + rng() % 1000}, [](NodeIndex) { return false; }, changes);
          }
        }
        if (held != kNoNode) mirror.unpin(held);
        for (int i = 0; i < 20; ++i) {
          const auto gone = "n" + std::to_string(rng() % 3000);
          there.erase(gone), stay.erase(gone);
          there["new" + std::to_string(ino)] = ino;
          ++ino;
        }
        list();
      }
      changes.clear();
    }
    for (const auto& [name, number] : stay) EXPECT_EQ(seen[name], 1) << name;
    for (const auto& [name, times] : seen) EXPECT_EQ(times, 1) << name;
  }
}

}  // namespace
}  // namespace nearbox::sync
