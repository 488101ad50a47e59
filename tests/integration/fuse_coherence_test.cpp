// SPDX-License-Identifier: Apache-2.0
// Who sees what of changes that others made, in the sandbox or through another mount.
#include <fcntl.h>

#include "tests/integration/fuse_world.h"

namespace nearbox::fs::test {
namespace {

TEST_F(MountTest, CreatingWhatTheSandboxMadeMeanwhileEmptiesIt) {
  start();
  ASSERT_NE(world->mount(mnt), nullptr);
  EXPECT_FALSE(stdfs::exists(mnt + "/f"));
  spill(src + "/f", "text that is not ours");
  spill(src + "/g", "kept");
  spill(mnt + "/f", "new");  // O_CREAT | O_TRUNC: absent, as far as is known here
  EXPECT_EQ(slurp(src + "/f"), "new");
  EXPECT_EQ(slurp(mnt + "/f"), "new");
  std::ofstream(mnt + "/g", std::ios::app) << " and more";
  EXPECT_EQ(slurp(src + "/g"), "kept and more");
}

TEST_F(MountTest, AWriteThroughOneMountIsSeenAtOnceInTheOthers) {
  stdfs::create_directories(src + "/sub/deep");
  spill(src + "/sub/f", "one");
  ASSERT_EQ(::link((src + "/sub/f").c_str(), (src + "/hard").c_str()), 0);
  start();
  auto* const whole = world->mount(mnt);
  auto* const part = world->mount(mnt2, "sub");
  ASSERT_TRUE(whole != nullptr && part != nullptr);
  const auto settle = [&] {
    ASSERT_TRUE(whole->wait_invalidated(Clock::now() + 10s));
    ASSERT_TRUE(part->wait_invalidated(Clock::now() + 10s));
  };
  EXPECT_EQ(slurp(mnt + "/hard"), "one");
  EXPECT_EQ(slurp(mnt2 + "/f"), "one");
  EXPECT_FALSE(stdfs::exists(mnt2 + "/new"));
  EXPECT_EQ(listing(mnt2), listing(src + "/sub"));
  spill(mnt + "/hard", "second");  // the hard link, through the other mount
  settle();
  EXPECT_EQ(slurp(mnt2 + "/f"), "second");
  EXPECT_EQ(slurp(mnt + "/sub/f"), "second");
  spill(mnt + "/sub/new", "x");
  settle();
  EXPECT_EQ(slurp(mnt2 + "/new"), "x");
  EXPECT_EQ(listing(mnt2), listing(src + "/sub"));
  ASSERT_EQ(::rename((mnt2 + "/new").c_str(), (mnt2 + "/deep/newer").c_str()), 0);
  settle();
  EXPECT_FALSE(stdfs::exists(mnt + "/sub/new"));
  EXPECT_EQ(slurp(mnt + "/sub/deep/newer"), "x");
  ASSERT_EQ(::unlink((mnt + "/sub/deep/newer").c_str()), 0);
  settle();
  EXPECT_FALSE(stdfs::exists(mnt2 + "/deep/newer"));
  // A file that is open in one and removed in the other.
  const base::UniqueFd fd(::open((mnt2 + "/f").c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_EQ(::unlink((mnt + "/hard").c_str()), 0);
  ASSERT_EQ(::unlink((mnt + "/sub/f").c_str()), 0);
  settle();
  char buffer[16] = {};
  EXPECT_EQ(::pread(fd.get(), buffer, sizeof(buffer), 0), 6);
}

TEST_F(MountTest, ChangesInTheSandboxShowAfterARescan) {
  stdfs::create_directories(src + "/d");
  spill(src + "/d/f", "one");
  spill(src + "/gone", "x");
  start();
  auto* const session = world->mount(mnt);
  ASSERT_NE(session, nullptr);
  EXPECT_EQ(slurp(mnt + "/d/f"), "one");
  EXPECT_FALSE(stdfs::exists(mnt + "/d/new"));
  EXPECT_EQ(listing(mnt), listing(src));
  spill(src + "/d/f", "longer than before");
  spill(src + "/d/new", "new");
  stdfs::remove(src + "/gone");
  stdfs::rename(src + "/d", src + "/e");
  world->rescan();
  ASSERT_TRUE(session->wait_invalidated(Clock::now() + 10s));
  EXPECT_EQ(slurp(mnt + "/e/f"), "longer than before");
  EXPECT_EQ(slurp(mnt + "/e/new"), "new");
  EXPECT_FALSE(stdfs::exists(mnt + "/gone"));
  EXPECT_FALSE(stdfs::exists(mnt + "/d"));
  EXPECT_EQ(listing(mnt), listing(src));
}

TEST_F(MountTest, AChangeThatWasGivenUpShowsWhenItIsMadeAfterAll) {
  start();
  MountOptions options;
  options.mountpoint = mnt;
  options.watchdog_program = "";
  options.deadline = 300ms;
  auto* const session = world->mount(options);
  ASSERT_NE(session, nullptr);
  EXPECT_FALSE(stdfs::exists(mnt + "/late"));
  {
    const Faults faults("agent.hold_op late\n");
    EXPECT_EQ(::mkdir((mnt + "/late").c_str(), 0755), -1);
    EXPECT_EQ(errno, ETIMEDOUT);
    EXPECT_FALSE(stdfs::exists(mnt + "/late"));  // and the kernel remembers that
  }
  world->agent.restart();  // the held operation is sent again
  ASSERT_TRUE(eventually([&] { return stdfs::exists(src + "/late"); }));
  EXPECT_TRUE(eventually([&] { return stdfs::exists(mnt + "/late"); }, 5s));
  EXPECT_EQ(listing(mnt), listing(src));
}

// Somebody in the sandbox replaced what this kernel knows, and no rescan has come: calls by path go to what
// is there now, and what an error tells of is visible afterwards.
TEST_F(MountTest, CallsByPathFindWhatOthersPutThere) {
  const std::vector<std::string> names{"mode", "gone", "cut", "moved", "time"};
  for (const auto& name : names) spill(src + "/" + name, "one");
  stdfs::create_directory(src + "/d");
  start();
  ASSERT_NE(world->mount(mnt), nullptr);
  for (const auto& name : names) {
    EXPECT_EQ(slurp(mnt + "/" + name), "one");
    spill(src + "/new", "second");
    stdfs::rename(src + "/new", src + "/" + name);
  }
  EXPECT_TRUE(stdfs::is_empty(mnt + "/d"));
  EXPECT_EQ(::chmod((mnt + "/mode").c_str(), 0640), 0) << errno;
  EXPECT_EQ(slurp(mnt + "/mode"), "second");
  EXPECT_EQ(::unlink((mnt + "/gone").c_str()), 0) << errno;
  EXPECT_FALSE(stdfs::exists(src + "/gone"));
  spill(mnt + "/cut", "3");
  EXPECT_EQ(slurp(src + "/cut"), "3");
  EXPECT_EQ(::rename((mnt + "/moved").c_str(), (mnt + "/there").c_str()), 0) << errno;
  EXPECT_EQ(slurp(src + "/there"), "second");
  EXPECT_EQ(::utimensat(AT_FDCWD, (mnt + "/time").c_str(), nullptr, 0), 0) << errno;

  // The directory of a new file is another one.
  stdfs::rename(src + "/d", src + "/e");
  stdfs::create_directory(src + "/d");
  spill(mnt + "/d/f", "in the new one");
  EXPECT_EQ(slurp(src + "/d/f"), "in the new one");

  // What is there is seen once the agent said so.
  stdfs::create_directory(src + "/made");
  EXPECT_EQ(::mkdir((mnt + "/made").c_str(), 0755), -1);
  EXPECT_EQ(errno, EEXIST);
  EXPECT_TRUE(eventually([&] { return stdfs::is_directory(mnt + "/made"); }));
  stdfs::remove(src + "/there");
  EXPECT_EQ(::unlink((mnt + "/there").c_str()), -1);
  EXPECT_EQ(errno, ENOENT);
  EXPECT_TRUE(eventually([&] { return !stdfs::exists(mnt + "/there"); }));
  world->rescan();
  EXPECT_EQ(listing(mnt), listing(src));
}

TEST_F(MountTest, OwnChangesShowWhatOthersWroteMeanwhile) {
  spill(src + "/f", "one");
  spill(src + "/g", "one");
  spill(src + "/h", "one");
  start();
  auto* const session = world->mount(mnt);
  ASSERT_NE(session, nullptr);
  for (const char* name : {"/f", "/g", "/h"}) {
    EXPECT_EQ(slurp(mnt + name), "one");
    spill(src + name, "two");  // the same size: nothing but the times tells
  }
  ASSERT_EQ(::chmod((mnt + "/f").c_str(), 0600), 0);
  ASSERT_EQ(::link((mnt + "/g").c_str(), (mnt + "/g2").c_str()), 0);
  ASSERT_EQ(::rename((mnt + "/h").c_str(), (mnt + "/h2").c_str()), 0);
  ASSERT_TRUE(session->wait_invalidated(Clock::now() + 10s));
  for (const char* name : {"/f", "/g", "/g2", "/h2"}) {
    EXPECT_TRUE(eventually([&] { return slurp(mnt + name) == "two"; }, 5s)) << name;
  }
}

// A change of somebody else that leaves the size alone, right before an own one: the file looks the same
// afterwards as if only we had written.
TEST_F(MountTest, OwnWritesDoNotHideWhatOthersWroteBefore) {
  constexpr std::size_t kPage = 4096;
  const std::vector<std::string> names{"/write", "/append", "/hole", "/copy", "/cut"};
  for (const auto& name : names) spill(src + name, std::string(2 * kPage, 'a'));
  spill(src + "/source", "source");
  start();
  auto* const session = world->mount(mnt);
  ASSERT_NE(session, nullptr);
  const base::UniqueFd source(::open((mnt + "/source").c_str(), O_RDONLY | O_CLOEXEC));
  const auto change = [&](const std::string& name, int fd) {
    if (name == "/write") return ::pwrite(fd, "b", 1, kPage) == 1;
    if (name == "/append") return ::write(fd, "b", 1) == 1;
    if (name == "/hole") return ::fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, kPage, 10) == 0;
    if (name == "/cut") return ::ftruncate(fd, 2 * kPage) == 0;
    off64_t from = 0;
    off64_t to = kPage;
    return ::copy_file_range(source.get(), &from, fd, &to, 6, 0) == 6;
  };
  for (const auto& name : names) {
    EXPECT_EQ(slurp(mnt + name), std::string(2 * kPage, 'a'));  // the kernel has the pages now
    const base::UniqueFd other(::open((src + name).c_str(), O_WRONLY | O_CLOEXEC));
    ASSERT_EQ(::pwrite(other.get(), "foreign", 7, 0), 7);
    const int append = name == "/append" ? O_APPEND : 0;
    const base::UniqueFd own(::open((mnt + name).c_str(), O_WRONLY | O_CLOEXEC | append));
    ASSERT_TRUE(change(name, own.get())) << name << " " << errno;
    ASSERT_TRUE(session->wait_invalidated(Clock::now() + 10s));
    EXPECT_EQ(slurp(mnt + name).substr(0, 7), "foreign") << name;
    EXPECT_TRUE(slurp(mnt + name) == slurp(src + name)) << name;
  }
}

}  // namespace
}  // namespace nearbox::fs::test
