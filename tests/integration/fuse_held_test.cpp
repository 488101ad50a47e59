// SPDX-License-Identifier: Apache-2.0
// Requests that nobody answers, and links that are gone.
#include "tests/integration/fuse_world.h"

namespace nearbox::fs::test {
namespace {

constexpr std::size_t kMiB = 1024 * 1024;

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
  // The write, not a lookup before it, which a signal may interrupt.
  ASSERT_TRUE(eventually([&] { return world->ops->unacknowledged() >= 1; }));
  ASSERT_TRUE(eventually([&] { return session->stats().parked >= 1; }));
  stubborn.signal(SIGUSR1);
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

}  // namespace
}  // namespace nearbox::fs::test
