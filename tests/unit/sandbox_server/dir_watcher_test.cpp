// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/dir_watcher.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <poll.h>

#include <gtest/gtest.h>

#include "tools/sandbox_server/watch_table.h"

namespace nearbox::sandbox_server {
namespace {

namespace stdfs = std::filesystem;
using Depth = DirWatcher::Depth;

class DirWatcherTest : public ::testing::Test {
 protected:
  DirWatcherTest() {
    std::string name = (stdfs::temp_directory_path() / "nearbox-watch-XXXXXX").string();
    dir = ::mkdtemp(name.data());
  }
  ~DirWatcherTest() override {
    std::error_code ignored;
    stdfs::remove_all(dir, ignored);
  }
  void write(const std::string& name) const { std::ofstream(dir / name) << "x"; }

  // Everything up to an event of this kind and name, in order, as "KIND name".
  static std::vector<std::string> until(DirWatcher& watcher, WatchKind kind, const std::string& name) {
    std::vector<std::string> out;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (std::chrono::steady_clock::now() < deadline) {
      pollfd fd{watcher.fd(), POLLIN, 0};
      (void)::poll(&fd, 1, 1000);
      const auto events = watcher.read();
      if (!events) break;
      bool found = false;
      for (const auto& event : *events) {
        out.push_back(std::string(name_of(event.kind).substr(11)) + " " + event.name);
        found = found || (event.kind == kind && event.name == name);
      }
      if (found) return out;
    }
    ADD_FAILURE() << "no event for " << name;
    return out;
  }
  static bool has(const std::vector<std::string>& events, const std::string& event) {
    return std::find(events.begin(), events.end(), event) != events.end();
  }
  stdfs::path dir;
};

TEST_F(DirWatcherTest, OneDirectoryAlone) {
  stdfs::create_directory(dir / "sub");
  auto watcher = DirWatcher::open(dir.string() + "/", Depth::kFlat);
  ASSERT_TRUE(watcher);
  EXPECT_EQ(watcher->root(), dir.string());
  write("a");
  stdfs::rename(dir / "a", dir / "b");
  stdfs::permissions(dir / "b", stdfs::perms::owner_read);
  stdfs::remove(dir / "b");
  write("sub/unseen");
  write("last");
  const auto seen = until(*watcher, WatchKind::kWrite, "last");
  const std::vector<std::string> want{"CREATE a", "WRITE a",  "RENAME a",    "CREATE b",
                                      "CHMOD b",  "REMOVE b", "CREATE last", "WRITE last"};
  EXPECT_EQ(seen, want);
}

TEST_F(DirWatcherTest, ATreeGrowsAndMoves) {
  stdfs::create_directories(dir / "a" / "b");
  auto watcher = DirWatcher::open(dir.string(), Depth::kRecursive);
  ASSERT_TRUE(watcher);
  stdfs::create_directories(dir / "n" / "e");
  write("n/e/early");
  EXPECT_TRUE(has(until(*watcher, WatchKind::kCreate, "n/e/early"), "CREATE n"));
  write("n/e/late");
  (void)until(*watcher, WatchKind::kWrite, "n/e/late");
  stdfs::rename(dir / "n", dir / "a" / "b" / "m");
  const auto moved = until(*watcher, WatchKind::kCreate, "a/b/m");
  EXPECT_TRUE(has(moved, "RENAME n"));
  EXPECT_FALSE(has(moved, "CREATE a/b/m/e/late")) << "nothing in it is new";
  write("a/b/m/e/after");
  (void)until(*watcher, WatchKind::kWrite, "a/b/m/e/after");
}

TEST_F(DirWatcherTest, LinksBelowAreNotFollowed) {
  stdfs::create_directories(dir / "outside");
  stdfs::create_directories(dir / "root");
  stdfs::create_directory_symlink(dir / "outside", dir / "root" / "link");
  auto watcher = DirWatcher::open((dir / "root").string(), Depth::kRecursive);
  ASSERT_TRUE(watcher);
  write("outside/unseen");
  write("root/last");
  for (const auto& event : until(*watcher, WatchKind::kCreate, "last"))
    EXPECT_EQ(event.find("unseen"), event.npos);
}

TEST_F(DirWatcherTest, TheRootItselfEnds) {
  stdfs::create_directory(dir / "root");
  auto watcher = DirWatcher::open((dir / "root").string(), Depth::kFlat);
  ASSERT_TRUE(watcher);
  stdfs::remove(dir / "root");
  (void)until(*watcher, WatchKind::kRemove, ".");
  const auto after = watcher->read();
  EXPECT_TRUE(after && after->empty());
}

TEST_F(DirWatcherTest, WhatIsNoDirectory) {
  write("file");
  EXPECT_EQ(DirWatcher::open((dir / "file").string(), Depth::kFlat).error().as_errno(), ENOTDIR);
  EXPECT_EQ(DirWatcher::open((dir / "none").string(), Depth::kFlat).error().as_errno(), ENOENT);
}

TEST_F(DirWatcherTest, ATableOfPolledOnesIsBounded) {
  constexpr std::size_t kLimit = 2;
  WatchTable table(kLimit);
  std::vector<std::string> ids;
  const auto to_json = [](const WatchEvent& event) { return nlohmann::json(event.name); };
  for (std::size_t i = 0; i <= kLimit; ++i) {
    auto watcher = DirWatcher::open(dir.string(), Depth::kFlat);
    ASSERT_TRUE(watcher) << watcher.error().message();
    auto id = table.add(std::move(*watcher), to_json);
    EXPECT_EQ(id.ok(), i < kLimit);
    if (id) ids.push_back(*id);
  }
  ASSERT_FALSE(ids.empty());
  write("seen");
  const auto watcher = table.find(ids.front());
  std::vector<nlohmann::json> events;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (events.empty() && std::chrono::steady_clock::now() < deadline) {
    auto some = watcher->drain();
    ASSERT_TRUE(some);
    events = std::move(*some);
  }
  ASSERT_FALSE(events.empty());
  EXPECT_EQ(events.front(), "seen");
  EXPECT_TRUE(table.remove(ids.front()));
  EXPECT_FALSE(table.remove(ids.front()));
  EXPECT_EQ(table.find(ids.front()), nullptr);
}

}  // namespace
}  // namespace nearbox::sandbox_server
