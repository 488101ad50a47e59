// SPDX-License-Identifier: Apache-2.0
// A tree of more names than the store may hold.
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <random>

#include <gtest/gtest.h>

#include "sync/engine/tree_store.h"
#include "tests/unit/sync/fake_tree.h"

namespace nearbox::sync {
namespace {

using test::eventually;
using wire::Method;
using namespace std::chrono_literals;

// More than the top and the seven newest directories hold, which stay whatever the bound is.
constexpr std::size_t kBudget = 140;
constexpr int kDirs = 60, kFiles = 9;

std::uint64_t seed() {
  const char* text = std::getenv("NEARBOX_TEST_SEED");
  return text == nullptr ? 20240611 : std::strtoull(text, nullptr, 10);
}

std::string dir_at(int i) { return "d" + std::to_string(i); }

class TreeBudgetTest : public ::testing::Test, private ChangeListener {
 protected:
  TreeBudgetTest() {
    link.do_now([this] {
      for (int d = 0; d < kDirs; ++d) {
        tree.put(dir_at(d), S_IFDIR | 0755);
        for (int f = 0; f < kFiles; ++f) tree.put(dir_at(d) + "/f" + std::to_string(f), S_IFREG | 0644);
      }
      tree.on_tree = [this](api::CallToken, const wire::Tree& ask) {
        if (ask.depth == 0) ++streams;
        if (ask.depth == 1) ++listings;
        return false;
      };
    });
    store->set_budget(kBudget);
    store->add_listener(this);
  }
  ~TreeBudgetTest() override {
    store.reset();
    link.stop();
  }
  TreeStore::Deadline soon() { return std::chrono::steady_clock::now() + 20s; }
  template <class Fn>
  int wait(Fn&& start) {  // -1: never
    auto error = std::make_shared<std::atomic<int>>(-1);
    start([error](int e) { *error = e; });
    EXPECT_TRUE(eventually([&] { return *error >= 0; }));
    return *error;
  }
  void open_and_load() {
    link.connect(1, false);
    ASSERT_EQ(wait([&](auto done) { store->open_root("/work", soon(), done); }), 0);
    ASSERT_EQ(load(""), 0);
  }
  int load(const std::string& path) {
    return wait([&](auto done) { store->load(path, soon(), {}, done); });
  }
  int want(NodeIndex dir) {
    return wait([&](auto done) { store->want(dir, soon(), done); });
  }
  NodeIndex at(const std::string& path) {
    return store->read([&](const Mirror& m) { return m.walk(Mirror::kRoot, path); });
  }
  Listing listing(const std::string& path) {
    return store->read([&](const Mirror& m) { return m.listing(m.walk(Mirror::kRoot, path)); });
  }
  std::size_t expanded() {
    return store->read([](const Mirror& m) { return m.expanded_names(); });
  }
  // As a kernel does: what it asks about it holds.
  NodeIndex hold(const std::string& path) {
    for (int attempt = 0; attempt < 100; ++attempt) {
      const auto node = store->write([&](Mirror& m, Changes&) {
        const auto found = m.walk(Mirror::kRoot, path);
        if (found != kNoNode) m.pin(found);
        return found;
      });
      if (node != kNoNode) return node;
      EXPECT_EQ(want(Mirror::kRoot), 0);
    }
    return kNoNode;
  }
  void let_go(NodeIndex node) {
    store->write([&](Mirror& m, Changes&) { m.unpin(node); });
  }
  // Lists every directory, as a walk of somebody would.
  void walk_all() {
    for (int d = 0; d < kDirs; ++d) {
      const auto dir = hold(dir_at(d));
      ASSERT_NE(dir, kNoNode);
      std::size_t names = 0;
      // What was listed a moment ago may have collapsed since, as readers find too: they ask again.
      for (int attempt = 0; attempt < 100 && names == 0; ++attempt) {
        ASSERT_EQ(want(dir), 0);
        store->read([&](const Mirror& m) {
          if (m.listing(dir) != Listing::kComplete) return;
          m.list(dir, 0, [&](std::uint64_t, std::string_view, NodeIndex) { return ++names > 0; });
        });
      }
      EXPECT_EQ(names, kFiles) << d;
      let_go(dir);
    }
  }
  bool told(Change::Kind kind, NodeIndex dir, const std::string& name = {}) {
    const std::lock_guard lock(mu);
    return std::any_of(all.begin(), all.end(), [&](const Change& change) {
      return change.kind == kind && change.dir == dir && change.name == name;
    });
  }
  void forget_told() {
    const std::lock_guard lock(mu);
    all.clear();
  }

  base::Logger log{2, base::LogLevel::kOff};
  base::Timers timers;
  test::FakeLink link{seed()};
  test::FakeTree tree{link};
  std::atomic<int> streams{0}, listings{0};
  std::unique_ptr<TreeStore> store = std::make_unique<TreeStore>(link, timers, log);

 private:
  void on_changes(const Changes& changes) noexcept override {
    const std::lock_guard lock(mu);
    all.insert(all.end(), changes.begin(), changes.end());
  }
  std::mutex mu;
  Changes all;
};

TEST_F(TreeBudgetTest, ALoadEndsAtTheBudget) {
  open_and_load();
  EXPECT_TRUE(store->tree_status().by_directory);
  EXPECT_EQ(store->tree_status().budget, kBudget);
  EXPECT_LE(expanded(), kBudget + kFiles);
  EXPECT_EQ(streams, 1);
  EXPECT_EQ(listing(dir_at(59)), Listing::kUnknown) << "it did not come";
  EXPECT_EQ(load(dir_at(59)), 0) << "counts as loaded";
  ASSERT_EQ(want(hold(dir_at(59))), 0);
  EXPECT_GE(listings, 1);
  EXPECT_EQ(listing(dir_at(59)), Listing::kComplete);
}

TEST_F(TreeBudgetTest, ATreeThatFitsStaysWhole) {
  store->set_budget(10000);
  open_and_load();
  EXPECT_FALSE(store->tree_status().by_directory);
  walk_all();
  EXPECT_EQ(listings, 0);
}

TEST_F(TreeBudgetTest, AWalkOverEverythingKeepsTheBound) {
  open_and_load();
  for (int round = 0; round < 3; ++round) {
    walk_all();
    // But for the directories just listed, which somebody may wait for.
    EXPECT_TRUE(eventually([&] { return expanded() <= kBudget; }));
  }
  EXPECT_GT(store->tree_status().collapsed, 3u * kDirs / 2);
  EXPECT_EQ(streams, 1);
}

// The newest eight alone are over the bound.
TEST_F(TreeBudgetTest, WhatIsExpandedNextIsNotWaitedFor) {
  store->set_budget(20);
  open_and_load();
  const auto end = std::chrono::steady_clock::now() + 20s;
  for (int d = 0; d < kDirs; ++d) {
    const auto dir = hold(dir_at(d));
    ASSERT_EQ(want(dir), 0);
    let_go(dir);
    ASSERT_TRUE(eventually([&] {
      return store->read([](const Mirror& m) { return m.expanded_dirs(); }) <= 8;
    })) << d;
    ASSERT_LT(std::chrono::steady_clock::now(), end) << d;
  }
}

TEST_F(TreeBudgetTest, WhatKernelsHoldStaysUntilTheyLetGo) {
  open_and_load();
  const auto dir = hold(dir_at(0));
  ASSERT_EQ(want(dir), 0);
  const auto held = hold(dir_at(0) + "/f3");
  forget_told();
  walk_all();
  walk_all();
  EXPECT_TRUE(eventually([&] { return told(Change::Kind::kUnneeded, dir, "f3"); }));
  EXPECT_TRUE(told(Change::Kind::kListing, dir));
  EXPECT_EQ(at(dir_at(0) + "/f3"), held);
  EXPECT_GE(store->tree_status().pinned, 2u);
  let_go(held);
  let_go(dir);
  walk_all();
}

TEST_F(TreeBudgetTest, WhatKernelsHoldIsAskedForUntilTheBoundHolds) {
  open_and_load();
  std::vector<NodeIndex> held;
  for (int d = 0; d < 20; ++d) {
    const auto dir = hold(dir_at(d));
    ASSERT_EQ(want(dir), 0);
    for (int f = 0; f < kFiles; ++f) held.push_back(hold(dir_at(d) + "/f" + std::to_string(f)));
    held.push_back(dir);
  }
  walk_all();
  const auto dir = at(dir_at(0));
  for (int round = 0; round < 2; ++round) {
    EXPECT_TRUE(eventually([&] { return told(Change::Kind::kUnneeded, dir, "f3"); })) << round;
    EXPECT_GT(store->tree_status().names, kBudget);
    forget_told();
  }
  for (const auto node : held) let_go(node);
  EXPECT_TRUE(eventually([&] { return store->tree_status().names <= kBudget; }));
}

TEST_F(TreeBudgetTest, ALoadByPathFindsWhatIsNotKnown) {
  open_and_load();
  link.do_now([this] {
    tree.put("z7", S_IFDIR | 0755), tree.put("z7/deep", S_IFDIR | 0755),
        tree.put("z7/deep/x", S_IFREG | 0644);
  });
  walk_all();
  EXPECT_EQ(load("z7/deep"), 0);
  EXPECT_NE(at("z7/deep"), kNoNode);
  EXPECT_EQ(load("z7/none"), ENOENT);
}

TEST_F(TreeBudgetTest, AScanDistrustsAndListsAgainOnDemand) {
  open_and_load();
  walk_all();
  ASSERT_TRUE(eventually([&] { return expanded() <= kBudget; }));
  const auto known = dir_at(kDirs - 1);
  const auto dir = hold(known);
  link.do_now([&] { tree.remove(known + "/f1"), tree.put(known + "/new", S_IFREG | 0644); });
  const int before = listings;
  ASSERT_EQ(wait([&](auto done) { store->rescan(soon(), done); }), 0);
  EXPECT_LE(listings - before, 1 + 8) << "the top, and what was under way";
  EXPECT_EQ(streams, 1);
  EXPECT_EQ(listing(known), Listing::kStale);
  ASSERT_EQ(want(dir), 0);
  EXPECT_EQ(at(known + "/f1"), kNoNode);
  EXPECT_NE(at(known + "/new"), kNoNode);
}

TEST_F(TreeBudgetTest, AnotherAgentIsListedAgainOnDemand) {
  open_and_load();
  walk_all();
  const auto dir = hold(dir_at(0));
  ASSERT_EQ(want(dir), 0);
  const auto changed = hold(dir_at(0) + "/f3"), gone = hold(dir_at(0) + "/f4");
  std::uint64_t ino = 0;
  link.do_now([&] {
    auto& attr = tree.nodes.at(dir_at(0) + "/f3");
    attr.size = 77, ++attr.ctime_ns, ino = attr.ino;
    tree.remove(dir_at(0) + "/f4");
    tree.put(dir_at(0) + "/new", S_IFREG | 0644);
    tree.remove(dir_at(1)), tree.put("other", S_IFDIR | 0755), tree.put("other/x", S_IFREG | 0644);
  });
  link.connect(2, false);
  // The budget needs its place before anybody looks into it.
  EXPECT_TRUE(eventually([&] { return at("other") != kNoNode && at(dir_at(1)) == kNoNode; }));
  ASSERT_EQ(listing(dir_at(0)), Listing::kStale);
  store->write([&](Mirror& m, Changes& changes) { ASSERT_TRUE(m.collapse(dir, changes)); });
  for (const auto node : {changed, gone}) {
    EXPECT_EQ(store->read([&](const Mirror& m) { return m.prover(node); }), dir);
  }
  ASSERT_EQ(want(dir), 0);
  store->read([&](const Mirror& m) {
    EXPECT_TRUE(m.proven(changed));
    EXPECT_EQ(m.attr(changed).ino, ino);
    EXPECT_EQ(m.attr(changed).size, 77u);
    EXPECT_FALSE(m.alive(gone));
    std::vector<std::string> names;
    m.list(dir, 0, [&](std::uint64_t, std::string_view name, NodeIndex) {
      names.emplace_back(name);
      return true;
    });
    std::sort(names.begin(), names.end());
    EXPECT_EQ(names, (std::vector<std::string>{"f0", "f1", "f2", "f3", "f5", "f6", "f7", "f8", "new"}));
  });
  EXPECT_EQ(want(hold("other")), 0);
  EXPECT_NE(at("other/x"), kNoNode);
  EXPECT_EQ(streams, 1);
}

}  // namespace
}  // namespace nearbox::sync
