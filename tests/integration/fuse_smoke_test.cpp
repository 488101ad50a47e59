// SPDX-License-Identifier: Apache-2.0
// What a mount shows, and what is done through it.
#include <cstring>
#include <dirent.h>
#include <sys/statvfs.h>
#include <sys/xattr.h>

#include "tests/integration/fuse_world.h"

namespace nearbox::fs::test {
namespace {

constexpr std::size_t kMiB = 1024 * 1024;

TEST_F(MountTest, ShowsWhatTheSandboxHas) {
  stdfs::create_directories(src + "/a/b/c");
  spill(src + "/a/one", "1");
  spill(src + "/a/b/two", std::string(300'000, 'x'));
  for (int i = 0; i < 3000; ++i) spill(src + "/a/b/c/file" + std::to_string(i), std::to_string(i));
  ASSERT_EQ(::symlink("b/two", (src + "/a/link").c_str()), 0);
  ASSERT_EQ(::link((src + "/a/one").c_str(), (src + "/hard").c_str()), 0);
  std::string big(9 * kMiB + 17, 'b');
  for (std::size_t i = 0; i < big.size(); i += 97) big[i] = static_cast<char>(i);
  spill(src + "/big", big);
  start();
  ASSERT_NE(world->mount(mnt), nullptr);
  // directories' sizes and times are the source's as well
  EXPECT_EQ(listing(mnt), listing(src));
  EXPECT_EQ(listing(mnt), listing(src));  // and once more, from the kernel's cache
  EXPECT_EQ(slurp(mnt + "/a/one"), "1");
  EXPECT_EQ(slurp(mnt + "/a/link"), std::string(300'000, 'x'));
  EXPECT_EQ(slurp(mnt + "/big"), big);
  EXPECT_EQ(output({"diff", "-r", src, mnt}), "");
  struct stat st {};
  EXPECT_NE(::stat((mnt + "/a/absent").c_str(), &st), 0);
  EXPECT_EQ(errno, ENOENT);
  struct statvfs vfs {};
  EXPECT_EQ(::statvfs(mnt.c_str(), &vfs), 0);
  EXPECT_GT(vfs.f_blocks, 0u);
  EXPECT_NE(vfs.f_flag & ST_NOSUID, 0u);
  EXPECT_NE(vfs.f_flag & ST_NODEV, 0u);
}

// Before anything is asked: a root without permission bits refuses its first users.
TEST_F(MountTest, TheKernelKnowsTheRootOfANewMount) {
  ASSERT_EQ(::chmod(src.c_str(), 0750), 0);
  start();
  ASSERT_NE(world->mount(mnt), nullptr);
  struct statx st {};
  ASSERT_EQ(::statx(AT_FDCWD, mnt.c_str(), AT_STATX_DONT_SYNC, STATX_MODE, &st), 0);
  EXPECT_EQ(st.stx_mode & 07777, 0750);
}

TEST_F(MountTest, ListsWhileTheTreeIsNotThereYet) {
  stdfs::create_directories(src + "/a/b");
  spill(src + "/a/b/f", "text");
  world = std::make_unique<World>(src);  // nothing loaded: names are asked for
  ASSERT_NE(world->mount(mnt), nullptr);
  EXPECT_EQ(slurp(mnt + "/a/b/f"), "text");
  EXPECT_EQ(listing(mnt), listing(src));
}

TEST_F(MountTest, ChangesArriveInTheSandbox) {
  start();
  ASSERT_NE(world->mount(mnt), nullptr);
  spill(mnt + "/f", "hello");
  EXPECT_EQ(slurp(src + "/f"), "hello");
  EXPECT_EQ(slurp(mnt + "/f"), "hello");
  spill(mnt + "/f", "hi");  // truncates
  EXPECT_EQ(slurp(src + "/f"), "hi");
  std::ofstream(mnt + "/f", std::ios::app) << " there";
  EXPECT_EQ(slurp(src + "/f"), "hi there");
  EXPECT_EQ(slurp(mnt + "/f"), "hi there");
  ASSERT_EQ(::mkdir((mnt + "/d").c_str(), 0750), 0);
  ASSERT_EQ(::rename((mnt + "/f").c_str(), (mnt + "/d/g").c_str()), 0);
  EXPECT_EQ(slurp(mnt + "/d/g"), "hi there");
  EXPECT_EQ(slurp(src + "/d/g"), "hi there");
  EXPECT_FALSE(stdfs::exists(mnt + "/f"));
  ASSERT_EQ(::symlink("g", (mnt + "/d/s").c_str()), 0);
  EXPECT_EQ(stdfs::read_symlink(mnt + "/d/s"), "g");
  ASSERT_EQ(::link((mnt + "/d/g").c_str(), (mnt + "/h").c_str()), 0);
  struct stat st {};
  ASSERT_EQ(::stat((mnt + "/d/g").c_str(), &st), 0);
  EXPECT_EQ(st.st_nlink, 2u);
  ASSERT_EQ(::chmod((mnt + "/h").c_str(), 0640), 0);
  ASSERT_EQ(::stat((mnt + "/d/g").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0640u);
  const timespec times[2] = {{1, 0}, {1'500'000'000, 123'456'789}};
  ASSERT_EQ(::utimensat(AT_FDCWD, (mnt + "/h").c_str(), times, 0), 0);
  ASSERT_EQ(::stat((mnt + "/h").c_str(), &st), 0);
  EXPECT_EQ(st.st_mtim.tv_sec, 1'500'000'000);
  EXPECT_EQ(st.st_mtim.tv_nsec, 123'456'789);
  ASSERT_EQ(::truncate((mnt + "/h").c_str(), 3), 0);
  EXPECT_EQ(slurp(mnt + "/d/g"), "hi ");
  ASSERT_EQ(::unlink((mnt + "/d/g").c_str()), 0);
  ASSERT_EQ(::unlink((mnt + "/d/s").c_str()), 0);
  ASSERT_EQ(::mkfifo((mnt + "/fifo").c_str(), 0600), 0);
  ASSERT_EQ(::rmdir((mnt + "/d").c_str()), 0);
  EXPECT_EQ(::chown((mnt + "/h").c_str(), 12345, 0), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(listing(mnt), listing(src));
  EXPECT_EQ(::getxattr((mnt + "/h").c_str(), "user.x", nullptr, 0), -1);
  EXPECT_EQ(errno, EOPNOTSUPP);
}

TEST_F(MountTest, BulkWritesAndMappedWritesAreRight) {
  start();
  ASSERT_NE(world->mount(mnt), nullptr);
  std::string data(20 * kMiB + 5, 'z');
  for (std::size_t i = 0; i < data.size(); i += 101) data[i] = static_cast<char>(i * 7);
  spill(dir.path() + "/local", data);
  output({"cp", dir.path() + "/local", mnt + "/copy"});
  EXPECT_TRUE(slurp(src + "/copy") == data);
  EXPECT_TRUE(slurp(mnt + "/copy") == data);
  const base::UniqueFd fd(::open((mnt + "/copy").c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_EQ(::pwrite(fd.get(), "abc", 3, 1'000'000), 3);
  ASSERT_EQ(::fsync(fd.get()), 0);
  data.replace(1'000'000, 3, "abc");
  EXPECT_TRUE(slurp(src + "/copy") == data);
  EXPECT_TRUE(slurp(mnt + "/copy") == data);
  output({"cp", "--reflink=never", mnt + "/copy", mnt + "/again"});
  EXPECT_TRUE(slurp(src + "/again") == data);
  // A copy inside of the sandbox.
  const base::UniqueFd to(::open((mnt + "/again").c_str(), O_WRONLY | O_CLOEXEC));
  off64_t from_at = 1'000'000;
  off64_t to_at = 0;
  EXPECT_EQ(::copy_file_range(fd.get(), &from_at, to.get(), &to_at, 3, 0), 3) << errno;
  data.replace(0, 3, "abc");
  EXPECT_TRUE(slurp(src + "/again") == data);
  EXPECT_TRUE(slurp(mnt + "/again") == data);
}

TEST_F(MountTest, UnlinkedFilesStayReadableAndWritable) {
  spill(src + "/f", "before");
  start();
  ASSERT_NE(world->mount(mnt), nullptr);
  const base::UniqueFd fd(::open((mnt + "/f").c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(fd);
  ASSERT_EQ(::unlink((mnt + "/f").c_str()), 0);
  char buffer[16] = {};
  EXPECT_EQ(::pread(fd.get(), buffer, sizeof(buffer), 0), 6) << errno;
  EXPECT_STREQ(buffer, "before");
  ASSERT_EQ(::pwrite(fd.get(), "after!!", 7, 0), 7) << errno;
  std::memset(buffer, 0, sizeof(buffer));
  EXPECT_EQ(::pread(fd.get(), buffer, sizeof(buffer), 0), 7);
  EXPECT_STREQ(buffer, "after!!");
  EXPECT_FALSE(stdfs::exists(mnt + "/f"));
  // A file that a rename replaces is the same.
  spill(mnt + "/a", "old");
  spill(mnt + "/b", "new");
  const base::UniqueFd old(::open((mnt + "/a").c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_EQ(::rename((mnt + "/b").c_str(), (mnt + "/a").c_str()), 0);
  std::memset(buffer, 0, sizeof(buffer));
  EXPECT_EQ(::pread(old.get(), buffer, sizeof(buffer), 0), 3);
  EXPECT_STREQ(buffer, "old");
  EXPECT_EQ(slurp(mnt + "/a"), "new");
}

TEST_F(MountTest, OpenFilesFollowTheirDirectory) {
  constexpr int kRounds = 200;
  stdfs::create_directories(src + "/a/deep");
  spill(src + "/a/deep/f", "");
  start();
  ASSERT_NE(world->mount(mnt), nullptr);
  const base::UniqueFd fd(::open((mnt + "/a/deep/f").c_str(), O_RDWR | O_CLOEXEC));
  std::jthread mover([&] {
    for (int i = 0; i < kRounds; ++i) {
      const std::string from = mnt + (i % 2 == 0 ? "/a" : "/b");
      const std::string to = mnt + (i % 2 == 0 ? "/b" : "/a");
      EXPECT_EQ(::rename(from.c_str(), to.c_str()), 0) << errno;
    }
  });
  std::string written;
  for (int i = 0; i < kRounds; ++i) {
    const std::string line = std::to_string(i) + "\n";
    ASSERT_EQ(::pwrite(fd.get(), line.data(), line.size(), static_cast<off_t>(written.size())),
              static_cast<ssize_t>(line.size()))
        << errno;
    written += line;
    struct stat st {};
    EXPECT_EQ(::fstat(fd.get(), &st), 0);
    EXPECT_EQ(static_cast<std::size_t>(st.st_size), written.size());
  }
  mover.join();
  EXPECT_EQ(slurp(src + "/a/deep/f"), written);
  EXPECT_EQ(slurp(mnt + "/a/deep/f"), written);
  EXPECT_EQ(listing(mnt), listing(src));
}

TEST_F(MountTest, RenamesOfDirectoriesWaitForWhatTheyOvertook) {
  stdfs::create_directories(src + "/a/deep");
  spill(src + "/a/deep/f", "");
  start();
  ASSERT_NE(world->mount(mnt), nullptr);
  const base::UniqueFd fd(::open((mnt + "/a/deep/f").c_str(), O_RDWR | O_CLOEXEC));
  DirRenames& renames = world->ops->dir_renames();
  renames.hold();
  std::jthread mover([&] { EXPECT_EQ(::rename((mnt + "/a").c_str(), (mnt + "/b").c_str()), 0) << errno; });
  EXPECT_TRUE(eventually([&] { return renames.waiting() == 1; }));
  EXPECT_EQ(::pwrite(fd.get(), "text", 4, 0), 4) << errno;
  EXPECT_EQ(slurp(src + "/a/deep/f"), "text");
  renames.release();
  mover.join();
  EXPECT_EQ(slurp(src + "/b/deep/f"), "text");
  // One that fails each time, as far as can be told because of a rename, holds back no longer than it lives.
  renames.begin([] {});
  stdfs::rename(src + "/b", src + "/c");
  EXPECT_EQ(::pwrite(fd.get(), "more", 4, 0), -1);
  EXPECT_EQ(errno, ENOENT);
  renames.end();
  stdfs::rename(src + "/c", src + "/b");
  EXPECT_EQ(::rename((mnt + "/b").c_str(), (mnt + "/a").c_str()), 0) << errno;
  EXPECT_EQ(::pwrite(fd.get(), "more", 4, 4), 4) << errno;
  EXPECT_EQ(slurp(src + "/a/deep/f"), "textmore");
}

TEST_F(MountTest, NumericOwnersAreTheSandboxs) {
  if (::geteuid() != 0) GTEST_SKIP() << "numbers of others need root";
  start();
  MountOptions options;
  options.mountpoint = mnt;
  options.ownership = Ownership::kNumeric;
  options.watchdog_program = "";
  ASSERT_NE(world->mount(options), nullptr);
  spill(mnt + "/f", "x");
  ASSERT_EQ(::chown((mnt + "/f").c_str(), 1234, 4321), 0);
  struct stat st {};
  ASSERT_EQ(::stat((mnt + "/f").c_str(), &st), 0);
  EXPECT_EQ(st.st_uid, 1234u);
  EXPECT_EQ(st.st_gid, 4321u);
  ASSERT_EQ(::stat((src + "/f").c_str(), &st), 0);
  EXPECT_EQ(st.st_uid, 1234u);
}

TEST_F(MountTest, SymlinksStayInside) {
  stdfs::create_directories(src + "/d/e");
  spill(src + "/f", "inside");
  ASSERT_EQ(::symlink((src + "/f").c_str(), (src + "/d/e/abs").c_str()), 0);
  ASSERT_EQ(::symlink("/etc/passwd", (src + "/out").c_str()), 0);
  ASSERT_EQ(::symlink("../../../../etc/passwd", (src + "/d/up").c_str()), 0);
  start();
  ASSERT_NE(world->mount(mnt), nullptr);
  EXPECT_EQ(slurp(mnt + "/d/e/abs"), "inside");
  EXPECT_EQ(stdfs::read_symlink(mnt + "/d/e/abs"), "../../f");
  struct stat st {};
  for (const char* name : {"/out", "/d/up"}) {
    EXPECT_EQ(::lstat((mnt + name).c_str(), &st), 0);
    EXPECT_EQ(::stat((mnt + name).c_str(), &st), -1);
    EXPECT_EQ(errno, EPERM);
  }
  // The directory moves: the text is made anew.
  ASSERT_EQ(::rename((mnt + "/d/e").c_str(), (mnt + "/e").c_str()), 0);
  ASSERT_TRUE(world->sessions[0]->wait_invalidated(Clock::now() + 10s));
  EXPECT_EQ(stdfs::read_symlink(mnt + "/e/abs"), "../f");
  EXPECT_EQ(slurp(mnt + "/e/abs"), "inside");
}

TEST_F(MountTest, ALinkThatClimbsIsAskedForAgainWhenItMoved) {
  stdfs::create_directories(src + "/d/e");
  spill(src + "/f", "inside");
  ASSERT_EQ(::symlink("../../f", (src + "/d/e/up").c_str()), 0);  // as stored: nothing is rewritten
  start();
  ASSERT_NE(world->mount(mnt), nullptr);
  EXPECT_EQ(slurp(mnt + "/d/e/up"), "inside");
  ASSERT_EQ(::rename((mnt + "/d/e").c_str(), (mnt + "/e").c_str()), 0);
  ASSERT_TRUE(world->sessions[0]->wait_invalidated(Clock::now() + 10s));
  struct stat st {};
  EXPECT_EQ(::stat((mnt + "/e/up").c_str(), &st), -1);  // it leads outside from there
  EXPECT_EQ(errno, EPERM);
}

}  // namespace
}  // namespace nearbox::fs::test
