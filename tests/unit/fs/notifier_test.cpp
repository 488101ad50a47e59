// SPDX-License-Identifier: Apache-2.0
#include "fs/fuse/notifier.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <set>

#include <gtest/gtest.h>

#include "fs/fuse/mount_point.h"

namespace nearbox::fs {
namespace {

using namespace std::chrono_literals;

class Kernel : public KernelNotify {
 public:
  void inode(Ino ino, bool data) override { add("i" + std::to_string(ino) + (data ? "d" : "a")); }
  void entry(Ino parent, const std::string& name) override { add("e" + std::to_string(parent) + name); }
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
};

struct NotifierTest : ::testing::Test {
  NotifierTest() {
    source.busy = [this](Ino ino) {
      const std::lock_guard lock(mu);
      return busy.contains(ino);
    };
    source.known = [] { return std::vector<Ino>{1, 2, 3}; };
    source.root_names = [] { return std::vector<std::string>{"a", "b"}; };
  }
  bool idle(Notifier& n) { return n.wait_idle(std::chrono::steady_clock::now() + 10s); }
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
  ASSERT_TRUE(idle(notifier));
  EXPECT_EQ(kernel.all(), (std::multiset<std::string>{"i5a", "i6d"}));
  set_busy({1});
  notifier.idle(5);
  ASSERT_TRUE(idle(notifier));
  EXPECT_EQ(kernel.all(), (std::multiset<std::string>{"i5a", "i6d", "i5d"}));
  set_busy({});
  notifier.idle(1);
  ASSERT_TRUE(idle(notifier));
  EXPECT_TRUE(kernel.all().contains("e1n"));
}

TEST_F(NotifierTest, BurstsCoalesceAndOverflowInvalidatesEverything) {
  std::atomic<bool> stall{true};
  source.busy = [&](Ino ino) {
    while (ino == 99 && stall) std::this_thread::yield();
    return false;
  };
  Notifier notifier(kernel, source);
  for (int i = 0; i < Notifier::kThreads; ++i)
    notifier.entry(99, std::to_string(i));  // both threads are held
  for (int i = 0; i < 1000; ++i) notifier.data(6);
  for (std::size_t i = 0; i < Notifier::kMaxQueued + 10; ++i) notifier.attr(1000 + i);
  stall = false;
  ASSERT_TRUE(idle(notifier));
  const auto sent = kernel.all();
  EXPECT_LE(sent.count("i6d"), 2u);
  EXPECT_GE(sent.count("epoch"), 1u);
  for (const char* text : {"i1d", "i2d", "i3d", "e1a", "e1b"}) EXPECT_TRUE(sent.contains(text)) << text;
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

}  // namespace
}  // namespace nearbox::fs
