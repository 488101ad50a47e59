// SPDX-License-Identifier: Apache-2.0
// Single properties of the mirror; what holds for any change is in mirror_model_test.cpp.
#include <algorithm>
#include <cerrno>
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
using wire::NodeId;

std::uint64_t seed() {
  const char* text = std::getenv("NEARBOX_TEST_SEED");
  return text == nullptr ? 20240611 : std::strtoull(text, nullptr, 10);
}

Attr file(std::uint64_t ino, std::uint32_t mode = S_IFREG | 0644) {
  Attr a;
  a.dev = 1, a.ino = ino, a.mode = mode, a.nlink = 1;
  return a;
}

// Property: whoever reads a directory in pieces sees each name that stays all the while exactly once.
TEST(MirrorModel, ListingWhileNamesComeAndGo) {
  std::mt19937_64 rng(seed());
  for (int round = 0; round < 10; ++round) {
    Mirror mirror;
    Changes changes;
    mirror.set_root(file(2, S_IFDIR | 0755), changes);
    std::set<std::string> stay, all;
    std::uint64_t ino = 100;
    for (int i = 0; i < 4000; ++i) {
      const auto name = "n" + std::to_string(i);
      (void)mirror.link(Mirror::kRoot, name, file(ino++), {}, changes);
      all.insert(name);
      if (rng() % 4 == 0) stay.insert(name);
    }
    std::map<std::string, int> seen;
    std::uint64_t cookie = 0;
    for (bool more = true; more;) {
      auto left = 1 + rng() % 60;
      more = false;
      mirror.list(Mirror::kRoot, cookie, [&](std::uint64_t at, std::string_view name, NodeIndex) {
        if (left-- == 0) return !(more = true);
        EXPECT_GT(at, cookie);
        cookie = at;
        ++seen[std::string(name)];
        return true;
      });
      for (int i = 0; i < 80 && all.size() > stay.size(); ++i) {
        auto victim = all.lower_bound("n" + std::to_string(rng() % 4000));
        if (victim == all.end() || stay.contains(*victim)) continue;
        mirror.unlink(Mirror::kRoot, *victim, changes);
        all.erase(victim);
      }
      if (rng() % 2 == 0)
        (void)mirror.link(Mirror::kRoot, "new" + std::to_string(ino), file(ino), {}, changes), ++ino;
    }
    for (const auto& name : stay) EXPECT_EQ(seen[name], 1) << name;
    for (const auto& [name, times] : seen) EXPECT_EQ(times, 1) << name;
  }
}

TEST(MirrorModel, SkippedDirectoriesKeepTheirEntries) {
  Mirror mirror;
  Changes changes;
  mirror.set_root(file(2, S_IFDIR | 0755), changes);
  wire::TreeBlock block;
  block.attr = file(2, S_IFDIR | 0755);
  block.entries = {{"a", file(10), {}}, {"b", file(11), {}}};
  mirror.apply_block(Mirror::kRoot, block, changes);
  auto own = file(12);
  own.size = 5, own.ctime_ns = 50;
  (void)mirror.link(Mirror::kRoot, "own", own, {}, changes);  // created here after the agent walked
  mirror.unlink(Mirror::kRoot, "b", changes);                 // removed here after the agent walked
  changes.clear();
  block.entries.push_back({"own", file(12), {}});
  block.entries[2].attr.ctime_ns = 40;  // as it was before our last write
  block.entries.erase(block.entries.begin());
  mirror.apply_block(Mirror::kRoot, block, changes, [](NodeIndex) { return true; });
  EXPECT_TRUE(changes.empty());
  EXPECT_NE(mirror.lookup(Mirror::kRoot, "a"), kNoNode);
  EXPECT_EQ(mirror.lookup(Mirror::kRoot, "b"), kNoNode);
  EXPECT_EQ(mirror.attr(mirror.lookup(Mirror::kRoot, "own")).size, 5u);
  mirror.apply_block(Mirror::kRoot, block, changes);
  EXPECT_EQ(mirror.lookup(Mirror::kRoot, "a"), kNoNode);
  EXPECT_NE(mirror.lookup(Mirror::kRoot, "b"), kNoNode);
}

TEST(MirrorModel, PinnedNodesOutliveTheirNames) {
  Mirror mirror;
  Changes changes;
  mirror.set_root(file(2, S_IFDIR | 0755), changes);
  const auto node = mirror.link(Mirror::kRoot, "f", file(10), {}, changes);
  mirror.pin(node, 3);
  mirror.unlink(Mirror::kRoot, "f", changes);
  EXPECT_FALSE(mirror.alive(node));
  EXPECT_EQ(mirror.attr(node).ino, 10u);
  mirror.unpin(node, 2);
  EXPECT_EQ(mirror.link(Mirror::kRoot, "again", file(10), {}, changes), node);
  mirror.unlink(Mirror::kRoot, "again", changes);
  mirror.unpin(node);
  EXPECT_EQ(mirror.node_count(), 1u);
}

TEST(MirrorModel, DirectoriesWithoutIdentityAreKnownByTheirNames) {
  Mirror mirror;
  Changes changes;
  mirror.set_root(file(2, S_IFDIR | 0755), changes);
  wire::TreeBlock block;
  block.attr = file(2, S_IFDIR | 0755);
  Attr none;
  none.mode = S_IFDIR | 0755;
  block.entries = {{"m1", none, {}}, {"m2", none, {}}};
  mirror.apply_block(Mirror::kRoot, block, changes);
  const auto one = mirror.lookup(Mirror::kRoot, "m1"), two = mirror.lookup(Mirror::kRoot, "m2");
  EXPECT_NE(one, kNoNode);
  EXPECT_NE(two, kNoNode);
  EXPECT_NE(one, two);
  changes.clear();
  mirror.apply_block(Mirror::kRoot, block, changes);
  EXPECT_TRUE(changes.empty());
  wire::TreeBlock inside;
  inside.path = "m1", inside.flags = wire::kTreePseudo, inside.attr = none;
  mirror.apply_block(Mirror::kRoot, inside, changes);
  EXPECT_EQ(mirror.listing(one), Listing::kComplete);
  mirror.unlink(Mirror::kRoot, "m1", changes);
  mirror.unlink(Mirror::kRoot, "m2", changes);
  EXPECT_EQ(mirror.node_count(), 1u);
}

TEST(MirrorModel, ADirectoryThatReappearsIsNotTakenForEmpty) {
  Mirror mirror;
  Changes changes;
  mirror.set_root(file(2, S_IFDIR | 0755), changes);
  const auto dir = mirror.link(Mirror::kRoot, "d", file(10, S_IFDIR | 0755), {}, changes);
  mirror.pin(dir);
  (void)mirror.link(dir, "f", file(11), {}, changes);
  mirror.set_listing(dir, Listing::kComplete);
  mirror.unlink(Mirror::kRoot, "d", changes);
  EXPECT_EQ(mirror.listing(dir), Listing::kComplete);
  EXPECT_EQ(mirror.link(Mirror::kRoot, "e", file(10, S_IFDIR | 0755), {}, changes), dir);
  EXPECT_EQ(mirror.listing(dir), Listing::kUnknown);
}

Attr born(std::uint64_t ino, std::uint32_t birth, std::uint32_t mode = S_IFREG | 0644) {
  auto a = file(ino, mode);
  a.birth = birth;
  return a;
}

bool tells(const Changes& changes, Change::Kind kind, NodeIndex node, std::string_view name) {
  return std::any_of(changes.begin(), changes.end(), [&](const Change& change) {
    return change.kind == kind && change.node == node && change.name == name;
  });
}

TEST(MirrorModel, AReusedNumberIsAnotherNode) {
  Mirror mirror;
  Changes changes;
  mirror.set_root(born(2, 1, S_IFDIR | 0755), changes);
  const auto dir = mirror.link(Mirror::kRoot, "d", born(3, 1, S_IFDIR | 0755), {}, changes);
  mirror.set_listing(dir, Listing::kComplete);
  mirror.set_listing(Mirror::kRoot, Listing::kComplete);
  const auto old = mirror.link(dir, "f", born(10, 5), {}, changes);
  mirror.pin(old);
  changes.clear();
  const auto fresh = mirror.link(Mirror::kRoot, "g", born(10, 6), {}, changes);
  EXPECT_NE(fresh, old);
  EXPECT_TRUE(tells(changes, Change::Kind::kGone, old, "f"));
  EXPECT_TRUE(tells(changes, Change::Kind::kEntry, fresh, "g"));
  EXPECT_EQ(mirror.lookup(dir, "f"), kNoNode);
  EXPECT_EQ(mirror.listing(dir), Listing::kStale) << "what the old one's name leads to is not known";
  EXPECT_EQ(mirror.listing(Mirror::kRoot), Listing::kComplete);
  EXPECT_FALSE(mirror.alive(old));
  EXPECT_EQ(mirror.attr(old).birth, 5u) << "who has it open still finds what it was";
  EXPECT_EQ(mirror.find({1, 10, 6}), fresh);
  EXPECT_EQ(mirror.find({1, 10}), fresh);
  EXPECT_EQ(mirror.find({1, 10, 5}), kNoNode);
  // What comes late of the old one leaves the new one alone, and the other way round.
  auto late = born(10, 5);
  late.size = 77;
  mirror.set_attr(fresh, late, changes);
  EXPECT_EQ(mirror.attr(fresh).size, 0u);
  late.birth = 6;
  mirror.set_attr(old, late, changes);
  EXPECT_EQ(mirror.attr(old).size, 0u);
  mirror.unpin(old);
  EXPECT_EQ(mirror.node_count(), 3u);
}

// A walk lists a file that is gone by now; the answer to an operation told of the younger one with its
// number.
TEST(MirrorModel, AnOldListingLeavesAYoungerFileAlone) {
  Mirror mirror;
  Changes changes;
  mirror.set_root(born(2, 1, S_IFDIR | 0755), changes);
  const auto dir = mirror.link(Mirror::kRoot, "d", born(3, 1, S_IFDIR | 0755), {}, changes);
  auto young = born(10, 6);
  young.ctime_ns = 200;
  const auto own = mirror.link(Mirror::kRoot, "own", young, {}, changes);
  auto gone = born(10, 5);
  gone.ctime_ns = 100;
  wire::TreeBlock block;
  block.path = "d", block.attr = born(3, 1, S_IFDIR | 0755);
  block.entries = {{"gone", gone, {}}, {"other", born(11, 5), {}}};
  std::set<NodeIndex> unsure;
  Newer newer;
  newer.unsure = [&](NodeIndex in) { unsure.insert(in); };
  for (const auto* with : {static_cast<const Newer*>(nullptr), static_cast<const Newer*>(&newer)}) {
    mirror.apply_block(Mirror::kRoot, block, changes, {}, 1, with);
    EXPECT_TRUE(mirror.alive(own));
    EXPECT_EQ(mirror.lookup(Mirror::kRoot, "own"), own);
    EXPECT_EQ(mirror.lookup(dir, "gone"), kNoNode);
    EXPECT_NE(mirror.lookup(dir, "other"), kNoNode);
  }
  EXPECT_TRUE(unsure.contains(dir));
}

TEST(MirrorModel, AReusedNumberByTheSameName) {
  Mirror mirror;
  Changes changes;
  mirror.set_root(born(2, 1, S_IFDIR | 0755), changes);
  wire::TreeBlock block;
  block.attr = born(2, 1, S_IFDIR | 0755);
  block.entries = {{"f", born(10, 5), {}}, {"sub", born(11, 5, S_IFDIR | 0755), {}}};
  mirror.apply_block(Mirror::kRoot, block, changes);
  const auto old = mirror.lookup(Mirror::kRoot, "f"), old_sub = mirror.lookup(Mirror::kRoot, "sub");
  const auto below = mirror.link(old_sub, "x", born(12, 5), {}, changes);
  mirror.pin(old), mirror.pin(old_sub), mirror.pin(below);
  changes.clear();
  block.entries = {{"f", born(10, 6), {}}, {"sub", born(11, 6, S_IFDIR | 0755), {}}};
  mirror.apply_block(Mirror::kRoot, block, changes);
  EXPECT_NE(mirror.lookup(Mirror::kRoot, "f"), old);
  const auto sub = mirror.lookup(Mirror::kRoot, "sub");
  EXPECT_NE(sub, old_sub);
  EXPECT_EQ(mirror.listing(sub), Listing::kUnknown);
  EXPECT_EQ(mirror.lookup(sub, "x"), kNoNode);
  EXPECT_FALSE(mirror.alive(below));
  EXPECT_TRUE(tells(changes, Change::Kind::kGone, old, "f"));
  EXPECT_EQ(mirror.listing(Mirror::kRoot), Listing::kComplete) << "this block showed all of it";
  // A block of the old directory says nothing of the new one.
  wire::TreeBlock inside;
  inside.path = "sub", inside.attr = born(11, 5, S_IFDIR | 0755);
  inside.entries = {{"x", born(12, 5), {}}};
  mirror.apply_block(Mirror::kRoot, inside, changes);
  EXPECT_EQ(mirror.lookup(sub, "x"), kNoNode);
}

TEST(MirrorModel, AnUnknownBirthSaysNothing) {
  Mirror mirror;
  Changes changes;
  mirror.set_root(file(2, S_IFDIR | 0755), changes);
  const auto node = mirror.link(Mirror::kRoot, "f", file(10), {}, changes);
  EXPECT_EQ(mirror.link(Mirror::kRoot, "f", born(10, 5), {}, changes), node);
  EXPECT_EQ(mirror.attr(node).birth, 5u);
  EXPECT_EQ(mirror.link(Mirror::kRoot, "g", file(10), {}, changes), node) << "as before births were known";
  EXPECT_EQ(mirror.attr(node).birth, 5u);
  changes.clear();
  mirror.set_attr(node, file(10), changes);
  EXPECT_TRUE(changes.empty());
  // The root is whatever directory was opened.
  mirror.set_root(born(2, 3, S_IFDIR | 0755), changes);
  mirror.set_root(born(2, 4, S_IFDIR | 0755), changes);
  EXPECT_EQ(mirror.find({1, 2, 4}), Mirror::kRoot);
}

}  // namespace
}  // namespace nearbox::sync
