// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <dirent.h>
#include <iostream>
#include <sys/statvfs.h>
#include <sys/xattr.h>

#include "client/api/error_code.h"
#include "tests/integration/fuse_world.h"

namespace nearbox::fs::test {
namespace {

constexpr std::size_t kMiB = 1024 * 1024;

std::string listing(const std::string& where) {
  return output(
      {"sh", "-c", "cd '" + where + "' && find . -printf '%p %y %s %m %n %T@ %i\\n' | LC_ALL=C sort"});
}

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

// ---- requests that are not answered

TEST_F(MountTest, AKilledReaderEndsAndUnmountWorksWithHeldReads) {
  spill(src + "/held", std::string(8 * kMiB, 'h'));
  spill(src + "/other", "fine");
  start();
  auto* const session = world->mount(mnt);
  ASSERT_NE(session, nullptr);
  const Faults faults("agent.hold_read held\n");
  Child first({"cat", mnt + "/held"});
  Child second({"cat", mnt + "/held"});
  ASSERT_TRUE(eventually([&] { return session->stats().parked >= 1; }));
  EXPECT_EQ(slurp(mnt + "/other"), "fine");
  first.kill();
  EXPECT_EQ(first.wait(5s), 128 + SIGKILL);
  EXPECT_FALSE(second.wait(0ms));
  const auto begin = Clock::now();
  const auto done = session->unmount(Clock::now() + 10s);
  EXPECT_TRUE(done.ok()) << done.error().message();
  EXPECT_LT(Clock::now() - begin, 10s);
  EXPECT_NE(second.wait(5s).value_or(0), 0);
  EXPECT_FALSE(stdfs::exists(mnt + "/held"));
}

TEST_F(MountTest, AWriterThatIsAnsweredFinishesBeforeTheMountEnds) {
  start();
  auto* const session = world->mount(mnt);
  ASSERT_NE(session, nullptr);
  Child writer({"sh", "-c", "exec >" + mnt + "/f; echo 1; for i in 2 3 4 5; do sleep 0.1; echo $i; done"});
  ASSERT_TRUE(eventually([&] { return slurp(src + "/f") == "1\n"; }));
  EXPECT_TRUE(session->unmount(Clock::now() + 20s).ok());
  EXPECT_EQ(writer.wait(5s), 0);
  EXPECT_EQ(slurp(src + "/f"), "1\n2\n3\n4\n5\n");
}

// A write that a handled signal interrupts is answered once, when it is done.
TEST_F(MountTest, AnInterruptedChangeIsNotToldAsFailed) {
  spill(src + "/held", "");
  start();
  auto* const session = world->mount(mnt);
  ASSERT_NE(session, nullptr);
  std::atomic<ssize_t> wrote{-2};
  std::atomic<int> error{0};
  struct sigaction action {};
  action.sa_handler = [](int) {};  // without SA_RESTART
  struct sigaction before {};
  ASSERT_EQ(::sigaction(SIGUSR1, &action, &before), 0);
  std::jthread writer;
  {
    const Faults faults("agent.hold_op held\n");
    writer = std::jthread([&] {
      const base::UniqueFd fd(::open((mnt + "/held").c_str(), O_WRONLY | O_APPEND | O_CLOEXEC));
      const ssize_t n = ::write(fd.get(), "x", 1);
      error = errno;
      wrote = n;
    });
    ASSERT_TRUE(eventually([&] { return session->stats().parked >= 1; }));
    for (int i = 0; i < 3; ++i) {
      ::pthread_kill(writer.native_handle(), SIGUSR1);
      EXPECT_FALSE(eventually([&] { return wrote != -2; }, 300ms)) << error;
    }
  }
  world->agent.restart();  // the held operation is sent again
  EXPECT_TRUE(eventually([&] { return wrote != -2; }));
  EXPECT_EQ(wrote, 1) << error;
  writer.join();
  EXPECT_EQ(slurp(src + "/held"), "x");
  // Killed after an interrupt: the kernel tells of the first signal only.
  const Faults faults("agent.hold_op held\n");
  Child stubborn({"sh", "-c", "trap : USR1; echo y >> " + mnt + "/held"});
  ASSERT_TRUE(eventually([&] { return session->stats().parked >= 1; }));
  ::kill(stubborn.pid(), SIGUSR1);
  EXPECT_FALSE(stubborn.wait(300ms));
  stubborn.kill();
  EXPECT_EQ(stubborn.wait(5s), 128 + SIGKILL);
  ::sigaction(SIGUSR1, &before, nullptr);
}

TEST_F(MountTest, HeldReadsAndWritesDoNotStopOthers) {
  constexpr int kReaders = 500;
  constexpr int kWriters = 50;
  stdfs::create_directories(src + "/held");
  for (int i = 0; i < kReaders; ++i) {
    spill(src + "/held/r" + std::to_string(i), "");
    stdfs::resize_file(src + "/held/r" + std::to_string(i), 8 * kMiB);
  }
  for (int i = 0; i < kWriters; ++i) spill(src + "/held/w" + std::to_string(i), "");
  stdfs::create_directories(src + "/free");
  spill(src + "/free/small", "small");
  spill(src + "/free/large", std::string(8 * kMiB, 'l'));
  start(2);
  auto* const session = world->mount(mnt);
  ASSERT_NE(session, nullptr);
  const Faults faults("agent.hold_read held/*\nagent.hold_op held/*\n");
  Child clients(
      {"/proc/self/exe", "--clients", mnt + "/held", std::to_string(kReaders), std::to_string(kWriters)});
  ASSERT_EQ(clients.line(), "started");
  ASSERT_TRUE(eventually([&] { return session->stats().parked >= kReaders + kWriters; }, 30s))
      << session->stats().parked;
  const auto begin = Clock::now();
  struct stat st {};
  for (int i = 0; i < kReaders; ++i) {
    EXPECT_EQ(::stat((mnt + "/held/r" + std::to_string(i)).c_str(), &st), 0);
  }
  EXPECT_EQ(slurp(mnt + "/free/small"), "small");
  EXPECT_EQ(slurp(mnt + "/free/large"), std::string(8 * kMiB, 'l'));
  spill(mnt + "/free/new", "written");
  EXPECT_EQ(slurp(src + "/free/new"), "written");
  EXPECT_LT(Clock::now() - begin, 5s);
  Child one({"cat", mnt + "/held/r0"});
  ASSERT_FALSE(one.wait(100ms));
  one.kill();
  EXPECT_EQ(one.wait(5s), 128 + SIGKILL);
  const auto leave = Clock::now();
  const auto done = session->unmount(Clock::now() + 15s);
  EXPECT_TRUE(done.ok()) << done.error().message();
  EXPECT_LT(Clock::now() - leave, 15s);
  clients.kill();
  EXPECT_TRUE(clients.wait(10s));
}

TEST_F(MountTest, HeldRequestsAreAnsweredAtTheirDeadline) {
  spill(src + "/held", std::string(100, 'h'));
  start();
  MountOptions options;
  options.mountpoint = mnt;
  options.watchdog_program = "";
  options.deadline = 300ms;
  ASSERT_NE(world->mount(options), nullptr);
  const Faults faults("agent.hold_read held\nagent.hold_op held\n");
  const base::UniqueFd fd(::open((mnt + "/held").c_str(), O_RDWR | O_CLOEXEC));
  char byte = 0;
  EXPECT_EQ(::pread(fd.get(), &byte, 1, 0), -1);
  EXPECT_EQ(errno, ETIMEDOUT);
  EXPECT_EQ(::pwrite(fd.get(), "x", 1, 0), -1);
  EXPECT_EQ(errno, ETIMEDOUT);
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

TEST_F(MountTest, ALostLinkServesWhatIsKnownAndGoesOnAfterwards) {
  spill(src + "/f", "cached");
  for (int i = 0; i < 20; ++i) spill(src + "/n" + std::to_string(i), "new");
  start();
  ASSERT_NE(world->mount(mnt), nullptr);
  EXPECT_EQ(slurp(mnt + "/f"), "cached");
  world->agent.restart();  // another agent: new numbers for roots and operations
  for (int i = 0; i < 20; ++i) EXPECT_EQ(slurp(mnt + "/n" + std::to_string(i)), "new");
  EXPECT_EQ(slurp(mnt + "/f"), "cached");
  spill(mnt + "/g", "after");
  EXPECT_EQ(slurp(src + "/g"), "after");
  EXPECT_EQ(slurp(mnt + "/g"), "after");
}

TEST_F(MountTest, WithoutALinkCachedThingsAreServedAndNothingHangs) {
  spill(src + "/known", "cached");
  spill(src + "/new", "not read yet");
  start();
  auto* const session = world->mount(mnt);
  ASSERT_NE(session, nullptr);
  EXPECT_EQ(slurp(mnt + "/known"), "cached");
  world->agent.stop();
  EXPECT_EQ(slurp(mnt + "/known"), "cached");
  struct stat st {};
  EXPECT_EQ(::stat((mnt + "/new").c_str(), &st), 0);
  EXPECT_EQ(st.st_size, 12);
  EXPECT_NE(::stat((mnt + "/absent").c_str(), &st), 0);
  EXPECT_EQ(errno, ENOENT);
  Child reader({"cat", mnt + "/new"});
  Child writer({"sh", "-c", "echo x > " + mnt + "/known"});
  ASSERT_TRUE(eventually([&] { return session->stats().parked >= 2; }));
  reader.kill();
  writer.kill();
  EXPECT_EQ(reader.wait(5s), 128 + SIGKILL);
  EXPECT_EQ(writer.wait(5s), 128 + SIGKILL);
  Child last({"cat", mnt + "/new"});
  ASSERT_TRUE(eventually([&] { return session->stats().parked >= 1; }));
  EXPECT_TRUE(session->unmount(Clock::now() + 10s).ok());
  EXPECT_NE(last.wait(5s).value_or(0), 0);
}

// ---- mountpoints

TEST_F(MountTest, BadMountpointsAreToldApart) {
  start();
  const auto fails = [&](const std::string& where, api::ErrorCode error) {
    MountOptions options;
    options.mountpoint = where;
    options.watchdog_program = "";
    const auto session = world->loop->mount(options, world->services());
    ASSERT_FALSE(session.ok()) << where;
    EXPECT_EQ(session.error().code, make_error_code(error)) << session.error().message();
  };
  fails(dir.path() + "/absent", api::ErrorCode::kLocalNotFound);
  spill(dir.path() + "/file", "");
  fails(dir.path() + "/file", api::ErrorCode::kLocalNotDirectory);
  spill(mnt + "/hidden", "");
  fails(mnt, api::ErrorCode::kMountBusy);
  MountOptions options;
  options.mountpoint = mnt;
  options.nonempty = true;
  options.watchdog_program = "";
  auto* const session = world->mount(options);
  ASSERT_NE(session, nullptr);
  EXPECT_FALSE(stdfs::exists(mnt + "/hidden"));
  fails(mnt, api::ErrorCode::kMountBusy);
  fails(mnt + "/", api::ErrorCode::kMountBusy);
  ASSERT_TRUE(session->unmount(Clock::now() + 10s).ok());
  EXPECT_TRUE(stdfs::exists(mnt + "/hidden"));
}

TEST_F(MountTest, UnmountedFromOutsideIsTold) {
  start();
  auto* const session = world->mount(mnt);
  ASSERT_NE(session, nullptr);
  std::atomic<int> told{0};
  session->on_gone([&] { ++told; });
  EXPECT_FALSE(session->gone());
  output({"umount", mnt});
  ASSERT_TRUE(eventually([&] { return told == 1; }));
  EXPECT_TRUE(session->gone());
  EXPECT_TRUE(session->unmount(Clock::now() + 5s).ok());
}

TEST_F(MountTest, TheWatchdogClearsTheMountOfAKilledDaemon) {
  spill(src + "/f", "x");
  Child daemon({"/proc/self/exe", "--daemon", src, mnt});
  ASSERT_EQ(daemon.line(), "mounted");
  EXPECT_EQ(slurp(mnt + "/f"), "x");
  daemon.kill();
  EXPECT_EQ(daemon.wait(), 128 + SIGKILL);
  const auto mounted = [&] {
    return slurp("/proc/self/mountinfo").find(" " + mnt + " ") != std::string::npos;
  };
  EXPECT_TRUE(eventually([&] { return !mounted(); }));
}

TEST_F(MountTest, ADeadMountIsClearedFirst) {
  spill(src + "/f", "x");
  Child daemon({"/proc/self/exe", "--daemon", src, mnt, "no-watchdog"});
  ASSERT_EQ(daemon.line(), "mounted");
  daemon.kill();
  EXPECT_EQ(daemon.wait(), 128 + SIGKILL);
  struct stat st {};
  EXPECT_TRUE(eventually([&] { return ::stat((mnt + "/f").c_str(), &st) != 0 && errno == ENOTCONN; }));
  start();
  ASSERT_NE(world->mount(mnt), nullptr);
  EXPECT_EQ(slurp(mnt + "/f"), "x");
}

// ---- other programs that this one is

// Threads that read and write files nobody answers for.
int clients_main(const std::string& where, int readers, int writers) {
  std::vector<std::jthread> threads;
  std::atomic<int> started{0};
  const auto run = [&](const std::string& path, bool write) {
    const base::UniqueFd fd(::open(path.c_str(), (write ? O_WRONLY : O_RDONLY) | O_CLOEXEC));
    ++started;
    char byte = 'x';
    (void)!(write ? ::write(fd.get(), &byte, 1) : ::read(fd.get(), &byte, 1));
  };
  for (int i = 0; i < readers; ++i) threads.emplace_back(run, where + "/r" + std::to_string(i), false);
  for (int i = 0; i < writers; ++i) threads.emplace_back(run, where + "/w" + std::to_string(i), true);
  eventually([&] { return started == readers + writers; });
  std::cout << "started" << std::endl;
  threads.clear();
  return 0;
}

int daemon_main(const std::string& src, const std::string& mnt, bool watchdog) {
  World world(src);
  world.load();
  MountOptions options;
  options.mountpoint = mnt;
  if (!watchdog) options.watchdog_program = "";
  if (world.mount(options) == nullptr) return 1;
  std::cout << "mounted" << std::endl;
  ::poll(nullptr, 0, 60'000);  // until it is killed
  return 0;
}

}  // namespace
}  // namespace nearbox::fs::test

int main(int argc, char** argv) {
  using namespace nearbox::fs;
  ::signal(SIGPIPE, SIG_IGN);
  const std::string command = argc > 1 ? argv[1] : "";
  if (command == kWatchdogCommand) return watchdog_main(argc, argv);
  if (command == "--clients") return test::clients_main(argv[2], std::atoi(argv[3]), std::atoi(argv[4]));
  if (command == "--daemon") return test::daemon_main(argv[2], argv[3], argc < 5);
  const test::TempDir dir;
  ::setenv("NEARBOX_FAULT_FILE", (dir.path() + "/faults").c_str(), 1);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
