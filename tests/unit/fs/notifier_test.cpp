// SPDX-License-Identifier: Apache-2.0
#include "fs/fuse/notifier.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <set>

#include <gtest/gtest.h>

#include "fs/fuse/mount_point.h"

namespace nearbox::fs {
namespace {

using namespace std::chrono_literals;

class Kernel : public KernelNotify {
 public:
  bool inode(Ino ino, bool data) override {
    add("i" + std::to_string(ino) + (data ? "d" : "a"));
    return ino != unknown;
  }
  void entry(Ino parent, const std::string& name) override {
    if (stuck && stuck(parent)) wait();
    add("e" + std::to_string(parent) + name);
  }
  void let_go(const std::vector<Unneeded>& inodes) override {
    if (stuck && stuck(inodes.front().parent)) wait();
    for (const auto& one : inodes) add("g" + std::to_string(one.ino));
  }
  void wait() {
    std::unique_lock lock(mu);
    ++waiting;
    EXPECT_TRUE(freed.wait_for(lock, 20s, [&] { return free; }));
  }
  void unstick() {
    const std::lock_guard lock(mu);
    free = true;
    freed.notify_all();
  }
  void deleted(Ino parent, Ino child, const std::string& name) override {
    add("x" + std::to_string(parent) + name + std::to_string(child));
  }
  bool epoch() override {
    add("epoch");
    return has_epoch;
  }
  void add(std::string text) {
    const std::lock_guard lock(mu);
    sent.push_back(std::move(text));
  }
  std::multiset<std::string> all() {
    const std::lock_guard lock(mu);
    return {sent.begin(), sent.end()};
  }
  std::mutex mu;
  std::vector<std::string> sent;
  bool has_epoch = false;
  std::atomic<Ino> unknown{0};
  std::function<bool(Ino)> stuck;
  std::condition_variable freed;
  std::atomic<std::size_t> waiting{0};  // ever
  bool free = false;
};

struct NotifierTest : ::testing::Test {
  NotifierTest() {
    source.busy = [this](Ino ino) {
      const std::lock_guard lock(mu);
      return busy.contains(ino);
    };
    source.known = [] { return std::vector<Ino>{1, 2, 3}; };
    source.names = [] { return std::vector<Notifier::Name>{{1, "a"}, {1, "b"}, {7, "deep"}}; };
  }
  bool idle(Notifier& n) { return n.wait_idle(std::chrono::steady_clock::now() + 10s); }
  static bool eventually(const std::function<bool()>& done) {
    const auto end = std::chrono::steady_clock::now() + 10s;
    while (!done()) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::yield();
    }
    return true;
  }
  bool sends(const std::multiset<std::string>& what) {
    return eventually([&] { return kernel.all() == what; });
  }
  void set_busy(std::set<Ino> inos) {
    const std::lock_guard lock(mu);
    busy = std::move(inos);
  }
  std::mutex mu;
  std::set<Ino> busy;
  Notifier::Source source;
  Kernel kernel;
};

TEST_F(NotifierTest, SendsEachThing) {
  Notifier notifier(kernel, source);
  notifier.attr(5);
  notifier.data(6);
  notifier.entry(1, "n");
  notifier.deleted(1, 7, "m");
  notifier.deleted(1, 0, "o");
  ASSERT_TRUE(idle(notifier));
  EXPECT_EQ(kernel.all(), (std::multiset<std::string>{"i5a", "i6d", "e1n", "x1m7", "e1o"}));
}

TEST_F(NotifierTest, WhatAParkedRequestHoldsWaitsForItsAnswer) {
  Notifier notifier(kernel, source);
  set_busy({5, 1});
  notifier.data(5);
  notifier.entry(1, "n");
  notifier.data(6);
  EXPECT_TRUE(sends({"i5a", "i6d"}));
  // Not all has been told: whoever waits for that must hear so.
  EXPECT_FALSE(notifier.wait_idle(std::chrono::steady_clock::now() + 50ms));
  set_busy({1});
  notifier.idle(5);
  EXPECT_TRUE(sends({"i5a", "i6d", "i5d"}));
  EXPECT_FALSE(notifier.wait_idle(std::chrono::steady_clock::now()));
  set_busy({});
  notifier.idle(1);
  ASSERT_TRUE(idle(notifier));
  EXPECT_TRUE(kernel.all().contains("e1n"));
}

TEST_F(NotifierTest, AnInodeThatIsOnItsWayToTheKernelIsToldAgain) {
  std::atomic<bool> given{true};
  source.referenced = [&](Ino) { return given.load(); };
  Notifier notifier(kernel, source);
  kernel.unknown = 5;
  notifier.attr(5);
  notifier.attr(6);
  EXPECT_TRUE(eventually([&] { return kernel.all().count("i5a") > 2; }));
  EXPECT_FALSE(notifier.wait_idle(std::chrono::steady_clock::now()));
  notifier.data(5);  // both in one, sooner or later
  kernel.unknown = 0;
  ASSERT_TRUE(idle(notifier));
  EXPECT_TRUE(kernel.all().contains("i5d"));
  // One that was given back, or is about to be, is nobody's business.
  kernel.unknown = 7;
  notifier.attr(7);
  EXPECT_TRUE(eventually([&] { return kernel.all().contains("i7a"); }));
  given = false;
  ASSERT_TRUE(idle(notifier));
  EXPECT_EQ(kernel.all().count("i6a"), 1u);
}

TEST_F(NotifierTest, AnAnswerThatNobodyTakesHoldsUpNobody) {
  source.referenced = [](Ino) { return true; };
  Notifier notifier(kernel, source);
  kernel.unknown = 5;
  notifier.attr(5);
  ASSERT_TRUE(idle(notifier));
  kernel.unknown = 0;  // it is taken at last, and told of
  const auto told = kernel.all().count("i5a");
  EXPECT_TRUE(eventually([&] { return kernel.all().count("i5a") > told; }));
  EXPECT_TRUE(idle(notifier));
}

TEST_F(NotifierTest, ThoseStuckInTheKernelDoNotHoldUpOthers) {
  constexpr Ino kStuck = Notifier::kMaxThreads - 1;  // directories whose lock somebody has
  kernel.stuck = [](Ino parent) { return parent < 100; };
  Notifier notifier(kernel, source);
  for (Ino dir = 1; dir <= kStuck; ++dir) {
    for (int i = 0; i < 100; ++i) notifier.entry(dir, std::to_string(i));  // one thread for each directory
  }
  for (Ino dir = 101; dir <= 200; ++dir) notifier.entry(dir, "n");
  EXPECT_TRUE(eventually([&] { return kernel.all().size() == 100; }));
  EXPECT_FALSE(notifier.wait_idle(std::chrono::steady_clock::now()));
  kernel.unstick();
  ASSERT_TRUE(idle(notifier));
  EXPECT_EQ(kernel.all().size(), 100 * (kStuck + 1));
}

TEST_F(NotifierTest, BurstsCoalesceAndOverflowInvalidatesEverything) {
  std::atomic<bool> stall{true};
  source.busy = [&](Ino ino) {
    while (stall) std::this_thread::yield();
    return ino == 0;
  };
  Notifier notifier(kernel, source);
  notifier.entry(99, "n");                          // one thread is held
  for (int i = 0; i < 1000; ++i) notifier.data(6);  // and so is what follows
  for (std::size_t i = 0; i < Notifier::kMaxQueued + 10; ++i) notifier.attr(1000 + i);
  stall = false;
  ASSERT_TRUE(idle(notifier));
  const auto sent = kernel.all();
  EXPECT_LE(sent.count("i6d"), 2u);
  EXPECT_GE(sent.count("epoch"), 1u);
  for (const char* text : {"i1d", "i2d", "i3d", "e1a", "e1b", "e7deep"})
    EXPECT_TRUE(sent.contains(text)) << text;
}

TEST(MountTable, LinesAreParsed) {
  const auto entry = parse_mount_line(
      "36 35 98:12 / /mnt/a\\040b rw,noatime shared:1 master:2 - fuse.nearbox nearbox rw,user_id=0");
  ASSERT_TRUE(entry);
  EXPECT_EQ(entry->major, 98u);
  EXPECT_EQ(entry->minor, 12u);
  EXPECT_EQ(entry->mountpoint, "/mnt/a b");
  EXPECT_EQ(entry->type, "fuse.nearbox");
  EXPECT_FALSE(parse_mount_line(""));
  EXPECT_FALSE(parse_mount_line("36 35 98 / /mnt rw - ext4 x rw"));
  EXPECT_FALSE(parse_mount_line("36 35 98:12 / /mnt rw"));
}

TEST_F(NotifierTest, WhatIsNotNeededIsToldUnlessARequestHoldsIt) {
  busy.insert(5);
  Notifier n(kernel, source);
  for (const Ino ino : {4, 5, 6}) n.let_go({ino, 1, "n", false});
  n.let_go({7, 5, "below", false});
  n.let_go({8, 1, "last", false});
  EXPECT_TRUE(eventually([&] { return kernel.all().contains("g8"); }));
  EXPECT_EQ(kernel.all(), (std::multiset<std::string>{"g4", "g6", "g8"}));
}

TEST_F(NotifierTest, TheLastThreadDoesNotWaitForWhatIsNotNeeded) {
  kernel.stuck = [](Ino parent) { return parent < 10; };
  Notifier n(kernel, source);
  for (Ino parent = 1; parent < Notifier::kThreads; ++parent) {
    n.entry(parent, "n");
    ASSERT_TRUE(eventually([&] { return kernel.waiting == parent; }));
  }
  n.let_go({100, 9, "n", false});
  for (Ino ino = 20; ino < 60; ++ino) {
    n.attr(ino);
    ASSERT_TRUE(eventually([&] { return kernel.all().contains("i" + std::to_string(ino) + "a"); }))
        << "one keeps watch";
  }
  kernel.unstick();
  EXPECT_TRUE(eventually([&] { return kernel.all().contains("g100"); }));
}

}  // namespace
}  // namespace nearbox::fs
