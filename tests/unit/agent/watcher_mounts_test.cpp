// SPDX-License-Identifier: Apache-2.0
#include <cerrno>
#include <sys/mount.h>

#include "tests/unit/agent/hung_fs.h"
#include "tests/unit/agent/watcher_fixture.h"
#include "tools/agent/watch/mount_probe.h"

// What is mounted below a root while it is watched.
namespace nearbox::agent {
namespace {

namespace fs = std::filesystem;
using test::other;
using test::put;

class MountsTest : public test::WatcherTest {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root to mount";
    WatcherTest::SetUp();
    ASSERT_TRUE(other([&] {
      fs::create_directory(*this / "t");
      fs::create_directory(*this / "hung");
    }));
    if (!mount("tmpfs", "t")) GTEST_SKIP() << "may not mount";
    client->settle();  // while it is looked at, it is in use
    unmount("t");
  }
  bool mount(const char* type, const std::string& at, const std::string& from = "nearbox-test",
             unsigned long flags = MS_NOSUID | MS_NODEV) {
    const bool done = ::mount(from.c_str(), (*this / at).c_str(), type, flags,
                              (flags & MS_BIND) != 0 ? nullptr : "size=1m") == 0;
    if (done) mounted.push_back(*this / at);
    return done;
  }
  void one_after_another();
  // As a person does it: what is in use cannot be unmounted.
  void unmount(const std::string& at) {
    const auto path = *this / at;
    EXPECT_EQ(::umount2(path.c_str(), 0), 0) << std::strerror(errno);
    mounted.erase(std::find(mounted.begin(), mounted.end(), path));
  }
};

TEST_P(MountsTest, NothingOfOursKeepsAMountBusy) {
  for (int i = 0; i < 3; ++i) {
    act([&] {});
    ASSERT_TRUE(mount("tmpfs", "t"));
    act([&] { fs::create_directories(*this / "t/d/e"); });
    act([&] { put(*this / "t/d/e/f", "on it"); });
    unmount("t");
    act([&] {});
    EXPECT_EQ(client->model->at("t/d"), nullptr);
  }
  // Also one that was there when the watch began.
  ASSERT_TRUE(mount("tmpfs", "t"));
  test::Client again(watcher, top);
  act([&] { put(*this / "t/f", "f"); });
  client.reset();
  again.settle();
  unmount("t");
  again.settle();
  EXPECT_EQ(again.model->differences(), "");
}

TEST_P(MountsTest, OneMountAfterOrUponAnother) { one_after_another(); }

TEST_P(MountsTest, WithoutNumbersThatAreUsedOnce) {
  faults.set(std::string(GetParam().faults) + "agent.no_unique_mounts\n");
  ASSERT_TRUE(faults.reaches("agent.no_unique_mounts", "", true));
  one_after_another();
}

void MountsTest::one_after_another() {
  ASSERT_TRUE(mount("tmpfs", "t"));
  act([&] { put(*this / "t/first", "1"); });
  ASSERT_TRUE(mount("tmpfs", "t"));
  act([&] { put(*this / "t/second", "2"); });
  EXPECT_EQ(client->model->at("t/first"), nullptr);
  act([&] { put(*this / "t/second", "3"); });
  unmount("t");
  act([&] { put(*this / "t/first", "4"); });
  // Between two looks, with the numbers that the first one had.
  unmount("t");
  ASSERT_TRUE(mount("tmpfs", "t"));
  act([&] { put(*this / "t/third", "5"); });
  EXPECT_EQ(client->model->at("t/first"), nullptr);
  act([&] { put(*this / "t/third", "6"); });
}

TEST_P(MountsTest, ADirectoryOfTheSameFileSystem) {
  fs::create_directories(dir / "elsewhere/d");
  put(dir / "elsewhere/d/f", "before");
  ASSERT_TRUE(mount("", "t", dir / "elsewhere", MS_BIND));
  act([&] { put(*this / "t/d/f", "by the mount"); });
  act([&] { put(*this / "t/new", "by the mount"); });
  act([&] { fs::create_directories(*this / "t/d/e/g"); });
  act([&] { put(*this / "t/d/e/g/h", "deep"); });
  act([&] { fs::rename(*this / "t/d/e", *this / "t/e"); });
  act([&] { put(dir / "elsewhere/e/g/h", "by its other place"); });
  unmount("t");
  act([&] { put(dir / "elsewhere/unseen", "no longer below"); });
  // One that was there when the watch began.
  ASSERT_TRUE(mount("", "t", dir / "elsewhere", MS_BIND));
  test::Client again(watcher, top);
  ASSERT_TRUE(other([&] { put(*this / "t/d/f", "watched from the start"); }));
  again.settle();
  EXPECT_EQ(again.model->differences(), "");
  client->settle();
}

// The whole of it mounted below itself: a way up that leads down again.
TEST_P(MountsTest, ALoopOfMounts) {
  fs::create_directories(*this / "a/b");
  ASSERT_TRUE(mount("", "a/b", dir / "", MS_BIND));
  ASSERT_TRUE(other([&] { put(*this / "f", "f"); }));
  client->settle();
  ASSERT_NE(client->model->at("f"), nullptr);
  unmount("a/b");
  act([&] { put(*this / "f", "g"); });
}

TEST_P(MountsTest, AFileSystemThatDoesNotAnswer) {
  test::HungFs hung(*this / "hung");
  if (!hung.mounted()) GTEST_SKIP() << "may not mount";
  ASSERT_TRUE(other([&] { put(*this / "f", "elsewhere"); }));
  const auto seen = [&](const std::string& name) {
    return test::eventually([&] {
      client->take();
      return client->model->at(name) != nullptr;
    });
  };
  EXPECT_TRUE(seen("f"));
  ASSERT_TRUE(other([&] { fs::create_directories(*this / "d/e"); }));
  client->settle();
  EXPECT_NE(client->model->at("d/e"), nullptr);
  EXPECT_EQ(client->model->losts, 0U);  // nobody is sent there
  test::Client inner(watcher, *this / "d");
  EXPECT_EQ(inner.reply.kind, GetParam().kind);
  // Itself it is not watched.
  const Identity who = test::self();
  auto root = std::make_shared<Root>();
  root->path = *this / "hung";
  root->node = {1, 2};
  EventLog events;
  const auto reply = watcher.watch(&events, events, 1, root, test::Client::soon());
  ASSERT_TRUE(reply);
  EXPECT_EQ(reply->kind, wire::WatchKind::kNone);
  EXPECT_TRUE(watcher.stuck());
  hung.release();
  EXPECT_TRUE(test::eventually([&] { return !watcher.stuck(); }));
  act([&] { put(*this / "g", "afterwards"); });
}

// Others change it without a word: the clients are told to read it at every barrier, and go by sizes and
// times.
TEST_P(MountsTest, AFileSystemThatOthersChange) {
  faults.set(std::string(GetParam().faults) + "agent.foreign_mount */t\n");
  ASSERT_TRUE(faults.reaches("agent.foreign_mount", "a/t", true));
  act([&] { put(*this / "f", "watched"); });
  const auto version = client->model->at("f")->attr.version;
  EXPECT_GT(version, 0U);
  ASSERT_TRUE(mount("tmpfs", "t"));
  act([&] { put(*this / "t/g", "one"); });
  EXPECT_GE(client->model->losts, 1U);
  EXPECT_EQ(client->model->at("t/g")->attr.version, 0U);
  act([&] { put(*this / "t/g", "another"); });
  EXPECT_EQ(client->model->at("f")->attr.version, version);  // nothing else is forgotten
  test::Client again(watcher, top);
  ASSERT_TRUE(other([&] { fs::create_directories(*this / "t/d/e"); }));
  again.settle();
  EXPECT_EQ(again.model->differences(), "");
  EXPECT_EQ(test::Client(watcher, *this / "t").reply.kind, wire::WatchKind::kNone);
  client->settle();
  unmount("t");
  act([&] { put(*this / "t/h", "beneath"); });
}

TEST(MountProbe, WhoDoesNotAnswerIsAskedNothingMore) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root to mount";
  test::TempDir dir{test::fast_directory()};
  MountProbe probe;
  test::HungFs hung(dir / "hung");
  if (!hung.mounted()) GTEST_SKIP() << "may not mount";
  const auto soon = [] { return MountProbe::Clock::now() + std::chrono::milliseconds(50); };
  EXPECT_TRUE(probe.answering({dir / "hung"}, soon()).empty());
  EXPECT_TRUE(probe.stuck());
  EXPECT_EQ(probe.answering({dir / "", dir / "hung"}, test::Client::soon()),
            std::vector<std::string>{dir / ""});
  hung.release();
  EXPECT_TRUE(test::eventually([&] { return !probe.stuck(); }));
  EXPECT_EQ(probe.answering({dir / "hung"}, test::Client::soon()).size(), 1U);
}

TEST(MountTable, ForeignFileSystems) {
  const auto table = MountTable::parse(
      "20 1 0:9 / / rw - 9p none rw\n"
      "21 20 8:1 / /data rw - ext4 /dev/sda1 rw\n"
      "22 21 0:30 /export /data/net rw - nfs4 server:/x rw\n"
      "23 22 0:31 / /data/net/tmp rw - tmpfs none rw\n"
      "24 21 0:32 / /data/host rw - virtiofs tag rw\n"
      "25 21 0:33 / /data/ssh rw - fuse.sshfs user@host: rw\n"
      "26 21 8:2 / /data/ntfs rw - fuseblk /dev/sdb1 rw\n"
      "27 21 8:1 /some/dir /data/bind rw - ext4 /dev/sda1 rw\n");
  EXPECT_FALSE(table.foreign("/"));
  EXPECT_FALSE(table.foreign("/home"));
  EXPECT_FALSE(table.foreign("/data/x/y"));
  EXPECT_FALSE(table.foreign("/data/network"));
  EXPECT_TRUE(table.foreign("/data/net"));
  EXPECT_TRUE(table.foreign("/data/net/tmp/x"));
  EXPECT_TRUE(table.foreign("/data/host"));
  EXPECT_TRUE(table.foreign("/data/ssh/x"));
  EXPECT_FALSE(table.foreign("/data/ntfs"));
  EXPECT_EQ(table.foreign_devices().size(), 4U);
  const auto below = table.below("/data");
  ASSERT_EQ(below.size(), 6U);
  EXPECT_EQ(below[0].path, "/data/bind");
  EXPECT_EQ(below[0].root, "/some/dir");
  EXPECT_EQ(below[0].id, 27U);
}

INSTANTIATE_TEST_SUITE_P(Kinds, MountsTest, test::kinds(), test::kind_name);

}  // namespace
}  // namespace nearbox::agent
