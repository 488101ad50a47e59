// SPDX-License-Identifier: Apache-2.0
#include "tools/agent/watch/watcher.h"

#include <cstdlib>
#include <random>
#include <sys/mman.h>
#include <sys/mount.h>

#include "tests/unit/agent/watcher_fixture.h"
#include "tools/agent/watch/inotify_source.h"

namespace nearbox::agent {
namespace {

namespace fs = std::filesystem;
using test::other;
using test::put;
using test::WatcherTest;
using test::write_file;

TEST_P(WatcherTest, FilesAreToldAsTheyAre) {
  act([&] { put(*this / "a", "one"); });
  act([&] { put(*this / "a", "two"); });
  act([&] { put(*this / "a", "more", O_APPEND); });
  act([&] { (void)!::truncate((*this / "a").c_str(), 2); });
  act([&] { ::chmod((*this / "a").c_str(), 0600); });
  act([&] { fs::last_write_time(*this / "a", fs::file_time_type::clock::now() - std::chrono::hours(9)); });
  act([&] { fs::create_symlink("a", *this / "s"); });
  act([&] { fs::create_hard_link(*this / "a", *this / "b"); });
  act([&] { put(*this / "b", "through the other name"); });
  act([&] { fs::rename(*this / "a", *this / "c"); });
  act([&] { fs::remove(*this / "b"); });
  act([&] { ::mkfifo((*this / "fifo").c_str(), 0600); });
  act([&] { fs::remove(*this / "c"); });
  EXPECT_EQ(client->model->losts, 0U);
}

TEST_P(WatcherTest, DirectoriesAreToldWithWhatIsInThem) {
  act([&] { fs::create_directories(*this / "x/y/z"); });
  act([&] { put(*this / "x/y/z/f", "deep"); });
  act([&] {
    fs::create_directories(*this / "m/n");
    put(*this / "m/n/1", "1");
    put(*this / "m/2", "2");
    fs::rename(*this / "m", *this / "x/m");
    put(*this / "x/m/n/3", "3");
  });
  act([&] { fs::rename(*this / "x/m/n", *this / "n"); });
  act([&] { fs::rename(*this / "x", dir / "outside"); });
  act([&] { put(dir / "outside/y/z/g", "unseen"); });
  act([&] { fs::rename(dir / "outside", *this / "back"); });
  act([&] { put(*this / "back/y/z/h", "seen"); });
  act([&] { fs::remove_all(*this / "back"); });
  act([&] {
    for (int i = 0; i < 40; ++i) fs::create_directories(*this / ("d" + std::to_string(i) + "/e/f"));
    for (int i = 0; i < 40; ++i) put(*this / ("d" + std::to_string(i) + "/e/f/g"), "g");
  });
  act([&] {
    for (int i = 0; i < 40; ++i) fs::remove_all(*this / ("d" + std::to_string(i)));
  });
  EXPECT_EQ(client->model->losts, 0U);
}

TEST_P(WatcherTest, ExchangedAndReplaced) {
  act([&] {
    put(*this / "a", "a");
    put(*this / "b", "b");
    fs::create_directories(*this / "d/in");
  });
  act([&] {
    (void)::renameat2(AT_FDCWD, (*this / "a").c_str(), AT_FDCWD, (*this / "b").c_str(), RENAME_EXCHANGE);
  });
  act([&] {
    (void)::renameat2(AT_FDCWD, (*this / "a").c_str(), AT_FDCWD, (*this / "d").c_str(), RENAME_EXCHANGE);
  });
  act([&] { put(*this / "a/in/f", "in the moved directory"); });
  act([&] {
    put(*this / "t", "replacement");
    fs::rename(*this / "t", *this / "b");
  });
  act([&] {
    fs::remove(*this / "b");
    fs::create_directory(*this / "b");
  });
}

// The size and the times stay what they were, as on a file system with coarse times: the version alone tells.
TEST_P(WatcherTest, EqualAttributesHideNothing) {
  for (const std::int64_t tick : {4'000'000LL, 1'000'000'000LL}) {
    const std::int64_t when = 1'700'000'000'000'000'000LL / tick * tick;
    const struct timespec times[2] = {{when / 1'000'000'000, when % 1'000'000'000},
                                      {when / 1'000'000'000, when % 1'000'000'000}};
    for (int i = 0; i < 20; ++i) {
      act([&] {
        const int fd = ::open((*this / "f").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
        (void)!::pwrite(fd, std::to_string(100 + i).data(), 3, 0);
        ::futimens(fd, times);
        ::close(fd);
      });
    }
  }
}

TEST_P(WatcherTest, MappedStoresCountWhenTheMapIsClosed) {
  act([&] { put(*this / "m", std::string(8192, 'x')); });
  for (int i = 0; i < 10; ++i) {
    act([&] {
      const int fd = ::open((*this / "m").c_str(), O_RDWR | O_CLOEXEC);
      auto* const map = static_cast<char*>(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
      ::close(fd);
      map[4096 + i] = static_cast<char>('a' + i);
      ::munmap(map, 8192);
    });
  }
}

TEST_P(WatcherTest, OneRenameOfManyFilesIsFewStates) {
  constexpr int kFiles = 30'000;
  ASSERT_TRUE(other([&] {
    fs::create_directory(*this / "big");
    for (int i = 0; i < kFiles; ++i)
      (void)::mknod((*this / ("big/" + std::to_string(i))).c_str(), S_IFREG | 0644, 0);
  }));
  client->settle();
  ASSERT_EQ(client->model->differences(), "");
  const auto before = client->model->states;
  act([&] { fs::rename(*this / "big", *this / "moved"); });
  EXPECT_LE(client->model->states - before, 6U);
  act([&] { put(*this / "moved/17", "seventeen"); });
}

TEST_P(WatcherTest, TooMuchAtOnceIsReadByTheClient) {
  ASSERT_TRUE(other([&] {
    fs::create_directories(dir / "out/deep");
    for (std::size_t i = 0; i < kMaxFreshNames + 10; ++i) {
      (void)::mknod((dir / ("out/deep/" + std::to_string(i))).c_str(), S_IFREG | 0644, 0);
    }
  }));
  act([&] { fs::rename(dir / "out", *this / "in"); });
  EXPECT_EQ(client->model->losts, 1U);
  act([&] { put(*this / "in/deep/5", "five"); });
}

TEST_P(WatcherTest, AQuietNameIsToldWithoutABarrier) {
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(other([&] { put(*this / ("f" + std::to_string(i)), "text"); }));
    EXPECT_TRUE(client->catches_up());
  }
}

TEST_P(WatcherTest, AStormOnOneFileIsSampled) {
  act([&] { put(*this / "log", ""); });
  const auto before = client->model->states;
  const auto begun = Watcher::Clock::now();
  ASSERT_TRUE(other([&] {
    const int fd = ::open((*this / "log").c_str(), O_WRONLY | O_APPEND | O_CLOEXEC);
    for (int i = 0; i < 20'000; ++i) (void)!::write(fd, "line\n", 5);
    ::close(fd);
  }));
  EXPECT_TRUE(client->catches_up());
  const auto seconds = std::chrono::duration<double>(Watcher::Clock::now() - begun).count();
  EXPECT_LE(static_cast<double>(client->model->states - before), 20 * seconds + 12);
}

TEST_P(WatcherTest, TheRootItselfGone) {
  act([&] { put(*this / "f", "f"); });
  struct stat st {};
  ASSERT_EQ(::stat(top.c_str(), &st), 0);
  ASSERT_TRUE(other([&] { fs::remove_all(top); }));
  EXPECT_TRUE(test::eventually([&] {
    client->take();
    return client->model->gone_nodes.count(node_of(st)) == 1;
  }));
  ASSERT_EQ(::mkdir(top.c_str(), 0755), 0);
}

TEST_P(WatcherTest, TwoClientsAndRootsWithinRoots) {
  act([&] { fs::create_directories(*this / "in/ner"); });
  test::Client inner(watcher, *this / "in");
  act([&] { put(*this / "in/ner/f", "f"); });
  inner.settle();
  EXPECT_EQ(inner.model->differences(), "");
  act([&] {
    fs::create_directories(*this / "there/x");
    put(*this / "there/x/f", "f");
  });
  act([&] { fs::rename(*this / "there", *this / "in/there"); });
  inner.settle();
  EXPECT_EQ(inner.model->differences(), "");
  act([&] { fs::rename(*this / "in/there/x", *this / "x"); });
  inner.settle();
  EXPECT_EQ(inner.model->differences(), "");
}

// Written through a name outside of the root, which is gone before anybody looks.
TEST_P(WatcherTest, AFileThatLostItsOtherName) {
  if (GetParam().kind != wire::WatchKind::kFanotify) GTEST_SKIP() << "needs file handles";
  fs::create_directory(dir / "elsewhere");
  act([&] { put(*this / "x", "1"); });
  for (int round = 0; round < 50; ++round) {
    act([&] {
      fs::create_hard_link(*this / "x", dir / "elsewhere/y");
      put(dir / "elsewhere/y", std::to_string(round), O_APPEND);
      fs::remove(dir / "elsewhere/y");
    });
  }
}

// 10,000 random operations, a barrier now and then: the model is the tree.
TEST_P(WatcherTest, RandomOperations) {
  const char* const given = std::getenv("NEARBOX_TEST_SEED");
  const auto seed = given != nullptr ? std::strtoull(given, nullptr, 10) : 4711ULL;
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 rng(seed);
  fs::create_directory(dir / "elsewhere");
  const bool links = GetParam().kind == wire::WatchKind::kFanotify;
  for (int round = 0; round < 40; ++round) {
    const auto round_seed = rng();
    ASSERT_TRUE(other([&] {
      std::mt19937_64 r(round_seed);
      const auto place = [&] {
        std::string path = r() % 12 == 0 ? dir / "elsewhere" : top;
        for (auto depth = r() % 3; depth > 0; --depth) path += "/d" + std::to_string(r() % 4);
        return path;
      };
      const auto name = [&] { return place() + "/f" + std::to_string(r() % 8); };
      const auto sub = [&] { return place() + "/d" + std::to_string(r() % 4); };
      std::error_code ignored;
      for (int i = 0; i < 250; ++i) {
        switch (r() % 14) {
          case 0:
          case 1:
            put(name(), std::string(r() % 300, static_cast<char>('a' + r() % 26)));
            break;
          case 2:
            put(name(), std::to_string(r()), O_APPEND);
            break;
          case 3:
            put(name(), std::string(5, static_cast<char>('a' + r() % 26)), 0);
            break;
          case 4:
            ::unlink(name().c_str());
            break;
          case 5:
            fs::rename(name(), name(), ignored);
            break;
          case 6:
            // Without file handles a write is not told for a file's other names (InotifySource).
            if (links) fs::create_hard_link(name(), name(), ignored);
            break;
          case 7:
          case 8:
            fs::create_directories(sub(), ignored);
            break;
          case 9:
            fs::rename(sub(), sub(), ignored);
            break;
          case 10:
            ::chmod(name().c_str(), 0700 | (r() % 64));  // it may be a directory by now
            break;
          case 11:
            fs::create_symlink("to" + std::to_string(r() % 9), name(), ignored);
            break;
          case 12:
            if (r() % 4 == 0) fs::remove_all(sub(), ignored);
            (void)!::truncate(name().c_str(), static_cast<off_t>(r() % 100));
            break;
          default:
            (void)::renameat2(AT_FDCWD, name().c_str(), AT_FDCWD,
                              r() % 2 == 0 ? name().c_str() : sub().c_str(), RENAME_EXCHANGE);
        }
      }
    }));
    client->settle();
    const auto differences = client->model->differences();
    ASSERT_EQ(differences, "") << "round " << round;
  }
}

TEST_P(WatcherTest, LostEventsAreReadAgain) {
  act([&] {
    put(*this / "same", "old");
    fs::create_directory(*this / "d");
  });
  faults.set(GetParam().faults + std::string("agent.watch_overflow\n"));
  ASSERT_TRUE(faults.reaches("agent.watch_overflow", "", true));
  ASSERT_TRUE(other([&] {
    put(*this / "same", "new");
    fs::create_directories(*this / "d/e/f");
  }));
  EXPECT_TRUE(test::eventually([&] { return client->take() > 0 && client->model->losts > 0; }));
  faults.set(GetParam().faults);
  ASSERT_TRUE(faults.reaches("agent.watch_overflow", "", false));
  client->settle();
  EXPECT_EQ(client->model->differences(), "");
  act([&] { put(*this / "d/e/f/g", "seen again"); });
}

// A client that takes nothing costs no more than its log: it is told once that it missed something.
TEST_P(WatcherTest, AClientThatTakesNothing) {
  test::Client slow(watcher, top, 1024 * 1024);
  for (int round = 0; round < 20; ++round) {
    ASSERT_TRUE(other([&] {
      for (int i = 0; i < 1000; ++i) put(*this / ("f" + std::to_string(i)), std::to_string(round));
    }));
    client->settle();
    ASSERT_EQ(client->model->differences(), "");
  }
  EXPECT_FALSE(slow.log.poisoned());
  slow.take();
  slow.settle();
  EXPECT_GE(slow.model->losts, 1U);
  EXPECT_EQ(slow.model->differences(), "");
  act([&] { put(*this / "after", "after"); });
  const auto before = slow.model->losts;
  slow.settle();
  EXPECT_EQ(slow.model->losts, before);
  EXPECT_EQ(slow.model->differences(), "");
}

TEST_P(WatcherTest, TheLimitOfWatches) {
  if (GetParam().kind != wire::WatchKind::kInotify) return;
  faults.set(GetParam().faults + std::string("agent.watch_limit *limit*\n"));
  ASSERT_TRUE(faults.reaches("agent.watch_limit", "limit", true));
  act([&] { fs::create_directories(*this / "a/limit/b"); });
  act([&] { put(*this / "a/limit/b/f", "not watched, yet told at the barrier"); });
  act([&] { put(*this / "elsewhere", "watched"); });
  const auto elsewhere = client->model->at("elsewhere")->attr.version;
  const auto unwatched = client->model->at("a/limit/b/f")->attr.version;
  act([&] { put(*this / "a/limit/b/f", "once more, just as true"); });
  EXPECT_GT(client->model->at("a/limit/b/f")->attr.version, unwatched);
  EXPECT_EQ(client->model->at("elsewhere")->attr.version, elsewhere);  // nothing else is forgotten
  EXPECT_EQ(client->model->losts, 0U);
  test::Client again(watcher, top);
  EXPECT_EQ(again.reply.error, ENOSPC);
  // A tree whose own watch cannot be set is not watched at all.
  fs::create_directory(dir / "limit");
  RootTable roots(self_);
  auto opened = roots.open({dir / "limit", false});
  ASSERT_TRUE(opened);
  EventLog events;
  faults.set(GetParam().faults + std::string("agent.watch_limit *\n"));
  ASSERT_TRUE(faults.reaches("agent.watch_limit", "any", true));
  auto reply = watcher.watch(&events, events, 1, *roots.get(opened->root), test::Client::soon());
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->kind, wire::WatchKind::kNone);
  EXPECT_EQ(reply->error, ENOSPC);
  EXPECT_EQ(watcher.barrier(&events, 1, test::Client::soon()).error().as_errno(), EOPNOTSUPP);
  EXPECT_EQ(watcher.barrier(&events, 0, test::Client::soon()).error().as_errno(), EOPNOTSUPP);
  // Watches are free again.
  faults.set(GetParam().faults);
  ASSERT_TRUE(faults.reaches("agent.watch_limit", "limit", false));
  client->settle();
  act([&] { put(*this / "a/limit/b/f", "seen as it happens"); });
  EXPECT_EQ(test::Client(watcher, top).reply.error, 0);
  ASSERT_TRUE(other([&] { put(*this / "a/limit/b/g", "without a barrier"); }));
  EXPECT_TRUE(client->catches_up());
}

// More directories past the limit than are kept apart: all is read again, until they can be watched.
TEST_P(WatcherTest, FarPastTheLimitOfWatches) {
  if (GetParam().kind != wire::WatchKind::kInotify) return;
  faults.set(GetParam().faults + std::string("agent.watch_limit *limit*\n"));
  ASSERT_TRUE(faults.reaches("agent.watch_limit", "limit", true));
  act([&] {
    for (std::size_t i = 0; i <= kMaxUnwatched; ++i)
      fs::create_directory(*this / ("limit" + std::to_string(i)));
  });
  act([&] { put(*this / "limit7/f", "not watched, yet told at the barrier"); });
  EXPECT_GE(client->model->losts, 1U);
  faults.set(GetParam().faults);
  ASSERT_TRUE(faults.reaches("agent.watch_limit", "limit", false));
  client->settle();
  EXPECT_EQ(client->model->differences(), "");
  const auto before = client->model->losts;
  act([&] { put(*this / "limit9/f", "watched"); });
  EXPECT_EQ(client->model->losts, before);
  EXPECT_EQ(test::Client(watcher, top).reply.error, 0);
}

TEST_P(WatcherTest, NobodyWatchesAnyMore) {
  EXPECT_TRUE(watcher.watching());
  client.reset();
  EXPECT_TRUE(test::eventually([&] { return !watcher.watching(); }));
  put(*this / "f", "while nobody watched");
  client = std::make_unique<test::Client>(watcher, top);
  act([&] { put(*this / "f", "watched again"); });
}

// Directories that were pushed out of the table of places are found again by what waits in them.
TEST_P(WatcherTest, MoreDirectoriesThanAreRemembered) {
  ASSERT_TRUE(make_room());
  Watcher small(log, Versions::process(), {64, kMaxQueuedBytes});
  constexpr int kDirectories = 1500;
  const auto at = [&](int i) { return *this / ("d" + std::to_string(i % 10) + "/e" + std::to_string(i)); };
  for (int i = 0; i < kDirectories; ++i) {
    fs::create_directories(at(i));
    put(at(i) + "/f", "f");
  }
  test::Client one(small, top);
  ASSERT_EQ(one.reply.kind, GetParam().kind);
  for (const mode_t mode : {0600U, 0640U}) {
    ASSERT_TRUE(other([&] {
      for (int i = 0; i < kDirectories; ++i) ::chmod((at(i) + "/f").c_str(), mode);
      for (int i = 0; i < kDirectories; ++i) put(at(i) + "/g", std::to_string(mode));
    }));
    one.settle();
    ASSERT_EQ(one.model->differences(), "");
  }
  ASSERT_TRUE(other([&] {
    for (int i = 0; i < kDirectories; i += 2) fs::remove_all(at(i));
    for (int i = 0; i < kDirectories; i += 4) fs::create_directories(at(i) + "/again/deep");
  }));
  one.settle();
  EXPECT_EQ(one.model->differences(), "");
  EXPECT_EQ(one.model->losts, 0U);
}

// A session that ends waits for nothing that the watcher does for it, and is not touched afterwards.
TEST_P(WatcherTest, AnEndWaitsForNoCall) {
  faults.set(GetParam().faults + std::string("agent.hold_watch\n"));
  ASSERT_TRUE(faults.reaches("agent.hold_watch", "", true));
  auto served = std::make_unique<EventLog>();
  auto queued = std::make_unique<EventLog>();
  const auto call = [&](EventLog* events) {
    return watcher.watch(events, *events, 1, client->root, test::Client::soon()).error().as_errno();
  };
  std::atomic<int> first{0};
  std::atomic<int> second{0};
  {
    const std::jthread one([&] { first = call(served.get()); });
    const std::jthread two([&] { second = call(queued.get()); });
    // Both are on their way or wait: forget() ends them whenever they come to wait.
    EXPECT_TRUE(test::eventually([&] {
      watcher.forget(served.get());
      watcher.forget(queued.get());
      return first != 0 && second != 0;
    }));
  }
  EXPECT_EQ(first.load(), ESHUTDOWN);
  EXPECT_EQ(second.load(), ESHUTDOWN);
  served.reset();
  queued.reset();
  faults.set(GetParam().faults);
  ASSERT_TRUE(faults.reaches("agent.hold_watch", "", false));
  act([&] { put(*this / "after", "after"); });
}

// What this agent does itself is no event; the others are told by op_applied(), the maker only when a look
// ran beside it.
TEST_P(WatcherTest, OwnOperations) {
  test::Client other_client(watcher, top);
  const auto op = [&](const std::string& path, const std::function<void()>& action, bool made = false) {
    const auto begun = watcher.op_begins();
    action();
    OwnChange change{client->root, {path}, {}, made, {}};
    if (const auto st = stat_at(AT_FDCWD, (*this / path).c_str())) {
      (void)Versions::process().bump(node_of(*st));
      change.attr = make_attr(*st);
    }
    watcher.op_applied(client.get(), change);
    watcher.op_told(begun, change);
  };
  op("f", [&] { put(*this / "f", "own"); });
  other_client.settle();
  EXPECT_EQ(other_client.model->differences(), "");
  op("f", [&] { put(*this / "f", "wn2"); });
  op(
      "d", [&] { fs::create_directory(*this / "d"); }, true);
  op("d/g", [&] { put(*this / "d/g", "g"); });
  other_client.settle();
  EXPECT_EQ(other_client.model->differences(), "");
  op("f", [&] { fs::remove(*this / "f"); });
  other_client.settle();
  EXPECT_EQ(other_client.model->differences(), "");
  if (GetParam().kind != wire::WatchKind::kFanotify) return;
  const auto before = client->model->states;
  for (int i = 0; i < 20; ++i) op("d/g", [&] { put(*this / "d/g", std::to_string(i)); });
  other_client.settle();
  client->settle();
  EXPECT_EQ(other_client.model->differences(), "");
  EXPECT_LE(client->model->states - before, 20U * 2);  // never more than one echo each
}

// Two file systems below one root whose inode numbers are the same.
TEST_P(WatcherTest, TwoFileSystemsWithEqualInodeNumbers) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to mount";
  client.reset();
  fs::create_directories(*this / "one");
  fs::create_directories(*this / "two");
  for (const char* name : {"one", "two"}) {
    if (::mount("nearbox-test", (*this / name).c_str(), "tmpfs", MS_NOSUID | MS_NODEV, "size=1m") != 0) {
      GTEST_SKIP() << "may not mount";
    }
    mounted.push_back(*this / name);
  }
  client = std::make_unique<test::Client>(watcher, top);
  act([&] {
    put(*this / "one/f", "first");
    put(*this / "two/f", "second");
  });
  ASSERT_NE(client->model->at("one/f"), nullptr);
  ASSERT_EQ(client->model->at("one/f")->attr.ino, client->model->at("two/f")->attr.ino);
  act([&] { put(*this / "two/f", "other!", 0); });
  act([&] { fs::create_directories(*this / "one/d/e"); });
  act([&] { put(*this / "two/d", "a file"); });
  // One that comes and goes while the tree is watched.
  act([&] { fs::create_directories(*this / "late"); });
  ASSERT_EQ(::mount("nearbox-test", (*this / "late").c_str(), "tmpfs", MS_NOSUID | MS_NODEV, "size=1m"), 0);
  mounted.push_back(*this / "late");
  act([&] { put(*this / "late/f", "on the new one"); });
  act([&] { put(*this / "late/f", "once more"); });
  ASSERT_EQ(::umount2(mounted.back().c_str(), MNT_DETACH), 0);
  mounted.pop_back();
  act([&] { put(*this / "late/g", "beneath"); });
}

INSTANTIATE_TEST_SUITE_P(Kinds, WatcherTest, test::kinds(), test::kind_name);

}  // namespace
}  // namespace nearbox::agent
