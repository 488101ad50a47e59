// SPDX-License-Identifier: Apache-2.0
// How mounts begin and end; the test program itself, which is some others as well.
#include <cstring>
#include <iostream>

#include "client/api/error_code.h"
#include "tests/integration/fuse_world.h"

namespace nearbox::fs::test {
namespace {

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

// A program that only has a file open is given its 3 s to let go, and not twice.
TEST_F(MountTest, ABusyMountGoesOnceItsTimeIsOver) {
  spill(src + "/f", "x");
  start();
  auto* const session = world->mount(mnt);
  ASSERT_NE(session, nullptr);
  const base::UniqueFd fd(::open((mnt + "/f").c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(fd);
  const auto began = Clock::now();
  EXPECT_TRUE(session->unmount(began + 20s).ok());
  EXPECT_LT(Clock::now() - began, 5s);
  char byte = 0;
  EXPECT_EQ(::pread(fd.get(), &byte, 1, 0), -1);
  EXPECT_EQ(errno, ENOTCONN);
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
