// SPDX-License-Identifier: Apache-2.0
#include <sys/sysmacros.h>

#include <gtest/gtest.h>

#include "tests/unit/agent/agent_test_util.h"
#include "tools/agent/build_id.h"
#include "tools/agent/event_log.h"
#include "tools/agent/mount_lanes.h"
#include "tools/agent/mounts.h"
#include "tools/agent/orphans.h"
#include "tools/agent/passwd.h"
#include "tools/agent/state_file.h"
#include "tools/agent/worker_pool.h"

namespace nearbox::agent {
namespace {

using test::TempDir;
using Clock = std::chrono::steady_clock;

TEST(Passwd, TakesGoodLinesAndLeavesOthers) {
  const auto all = parse_passwd(
      "root:x:0:0:root:/root:/bin/bash\n"
      "# comment:x:1:1::/:/\n"
      "+nis::1:1:::\n"
      "short:x:1\n"
      "neg:x:-1:5::/:\n"
      "big:x:4294967295:5::/:\n"
      "text:x:12a:5::/:\n"
      "user:x:1000:1001:A, B:/home/user:/bin/zsh:extra\n"
      "nohome:x:7:7:::\n"
      "last:x:8:8::rel:sh");
  ASSERT_EQ(all.size(), 4U);
  EXPECT_EQ(all[1].name, "user");
  EXPECT_EQ(all[1].uid, 1000U);
  EXPECT_EQ(all[1].gid, 1001U);
  EXPECT_EQ(all[1].home, "/home/user");
  EXPECT_EQ(all[2].home, "/");
  EXPECT_EQ(all[2].shell, "/bin/sh");
  EXPECT_EQ(all[3].home, "/");
}

TEST(Passwd, GroupsOfAMember) {
  const std::string text = "a:x:1:user\nb:x:2:xuser,user2\nc:x:3:root,user\nd:x:bad:user\ne:x:5:";
  EXPECT_EQ(parse_groups_of(text, "user"), (std::vector<std::uint32_t>{1, 3}));
}

TEST(Passwd, PicksTheSandboxUser) {
  TempDir dir;
  const auto none = pick_identity(dir.path, "", 0, 0);
  ASSERT_TRUE(none);
  EXPECT_EQ(none->user, "root");
  EXPECT_EQ(none->home, "/");
  EXPECT_FALSE(pick_identity(dir.path, "user", 0, 0));
  EXPECT_TRUE(pick_identity(dir.path, "root", 0, 0));

  test::write_file(dir / "passwd", "root:x:0:0::/root:/bin/sh\nother:x:1001:1001::/home/o:/bin/sh\n");
  EXPECT_EQ(pick_identity(dir.path, "", 0, 0)->home, "/root");
  EXPECT_EQ(pick_identity(dir.path, "", 1001, 1001)->user, "other");
  EXPECT_EQ(pick_identity(dir.path, "", 4242, 4243)->uid, 4242U);
  test::write_file(dir / "passwd",
                   "root:x:0:0::/root:\nother:x:1001:1001::/home/o:\nuser:x:1000:1000::/home/user:\n");
  EXPECT_EQ(pick_identity(dir.path, "", 0, 0)->user, "user");
  EXPECT_EQ(pick_identity(dir.path, "other", 0, 0)->uid, 1001U);
  EXPECT_FALSE(pick_identity(dir.path, "user", 1001, 1001)) << "not ours to act for";
  EXPECT_EQ(pick_identity(dir.path, "", 1001, 1001)->user, "other");
}

TEST(StateFile, RoundTripsAndRefusesTheRest) {
  AgentState state;
  state.pid = 42;
  state.port = 40001;
  state.build = "0123456789abcdef";
  state.token.fill(std::byte{0xa5});
  const auto text = format_state(state);
  const auto back = parse_state(text);
  ASSERT_TRUE(back);
  EXPECT_EQ(back->port, 40001);
  EXPECT_EQ(back->token, state.token);
  for (std::size_t i = 0; i < text.size(); ++i) EXPECT_FALSE(parse_state(text.substr(0, i))) << i;
  EXPECT_FALSE(parse_state(text + " "));
  auto big = text;
  big.replace(big.find("40001"), 5, "70000");
  EXPECT_FALSE(parse_state(big));
}

TEST(StateFile, MustBeOursAlone) {
  TempDir dir;
  const auto path = dir / "x.json";
  ASSERT_TRUE(read_state(path).ok());
  EXPECT_FALSE(read_state(path)->has_value());
  AgentState state;
  state.pid = 1;
  state.build = "b";
  ASSERT_TRUE(write_state(path, state).ok());
  struct stat st {};
  ASSERT_EQ(::stat(path.c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0600U);
  EXPECT_TRUE(read_state(path)->has_value());
  ASSERT_EQ(::chmod(path.c_str(), 0644), 0);
  EXPECT_EQ(read_state(path).error().as_errno(), EPERM);
  ASSERT_EQ(::symlink("x.json", (dir / "link").c_str()), 0);
  EXPECT_EQ(read_state(dir / "link").error().as_errno(), ELOOP);
  ASSERT_EQ(::mkfifo((dir / "fifo").c_str(), 0600), 0);
  EXPECT_EQ(read_state(dir / "fifo").error().as_errno(), EPERM);
  test::write_file(path, "{}");
  ASSERT_EQ(::chmod(path.c_str(), 0600), 0);
  EXPECT_EQ(read_state(path).error().as_errno(), EPROTO);
}

TEST(StateFile, DirectoryMustBeOursAlone) {
  TempDir dir;
  EXPECT_EQ(*state_directory(dir / "new"), dir / "new");
  EXPECT_TRUE(state_directory(dir / "new").ok());
  ASSERT_EQ(::chmod((dir / "new").c_str(), 0755), 0);
  EXPECT_EQ(state_directory(dir / "new").error().as_errno(), EPERM);
  ASSERT_EQ(::chmod((dir / "new").c_str(), 0700), 0);
  ASSERT_EQ(::symlink("new", (dir / "link").c_str()), 0);
  EXPECT_EQ(state_directory(dir / "link").error().as_errno(), EPERM);
  test::write_file(dir / "file", "");
  EXPECT_EQ(state_directory(dir / "file").error().as_errno(), EPERM);
  EXPECT_EQ(state_directory("relative").error().as_errno(), EINVAL);
  if (::geteuid() == 0) {
    ASSERT_EQ(::chown((dir / "new").c_str(), 12345, 12345), 0);
    EXPECT_EQ(state_directory(dir / "new").error().as_errno(), EPERM);
  }
}

TEST(StateFile, LockHasOneHolder) {
  TempDir dir;
  auto first = lock_file(dir / "l", Clock::now());
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(lock_file(dir / "l", Clock::now()).error().as_errno(), EWOULDBLOCK);
  first->reset();
  EXPECT_TRUE(lock_file(dir / "l", Clock::now()).ok());
}

TEST(BuildId, IsTheHashOfTheProgram) {
  TempDir dir;
  test::write_file(dir / "f", "abc");
  EXPECT_EQ(content_hash((dir / "f").c_str()), "ba7816bf8f01cfea");  // FIPS 180-2, appendix B.1
  EXPECT_EQ(content_hash((dir / "none").c_str()), "");
  EXPECT_EQ(build_id().size(), 16U);
}

wire::Bytes body(std::size_t n) { return wire::Bytes(n, std::byte{7}); }

TEST(EventLog, NumbersKeepsAndForgets) {
  EventLog log;
  EXPECT_EQ(log.last_seq(), 0U);
  for (std::uint64_t i = 1; i <= 5; ++i) EXPECT_EQ(log.append(wire::EventKind::kOpDone, body(10)), i);
  std::uint64_t after = 2;
  wire::Bytes out;
  ASSERT_TRUE(log.take(after, 1 << 20, out, Clock::now()).ok());
  EXPECT_EQ(after, 5U);
  wire::Reader reader(out);
  for (std::uint64_t seq = 3; seq <= 5; ++seq) {
    const auto event = wire::decode<wire::Event>(reader.view(wire::kMaxEventBytes));
    ASSERT_TRUE(event);
    EXPECT_EQ(event->seq, seq);
  }
  EXPECT_TRUE(reader.done());
  log.confirm(4);
  after = 3;
  EXPECT_EQ(log.take(after, 1, out, Clock::now()).error().as_errno(), ESTALE);
  after = 6;
  EXPECT_EQ(log.take(after, 1, out, Clock::now()).error().as_errno(), ESTALE);
  after = 5;
  out.clear();
  EXPECT_TRUE(log.take(after, 1, out, Clock::now()).ok());
  EXPECT_TRUE(out.empty());
  log.confirm(99);
  EXPECT_EQ(log.append(wire::EventKind::kOpDone, body(1)), 6U);
}

std::uint32_t next_tag = 0;

std::uint32_t counted_tag() { return ++next_tag; }

// An agent that is frozen and copied after 600 events; both go on, as if nothing had been, by 1,000 more.
TEST(EventLog, ACopyThatWentItsOwnWayIsFoundOut) {
  EventLog original(kMaxEventLogBytes, counted_tag);
  EventLog copy(kMaxEventLogBytes, counted_tag);
  const auto go_on = [](EventLog& log, std::size_t events, std::uint32_t from) {
    next_tag = from;
    for (std::size_t i = 0; i < events; ++i) (void)log.append(wire::EventKind::kChanged, body(20));
    return next_tag;
  };
  for (auto* log : {&original, &copy}) {
    (void)go_on(*log, 600, 0);
    log->confirm(500);
  }
  EXPECT_TRUE(copy.check(500, 500).ok()) << "the last that was confirmed";
  EXPECT_TRUE(copy.check(600, 600).ok()) << "up to here both are one";
  EXPECT_FALSE(copy.check(601, 601).ok()) << "nothing of it is known there";
  const auto seen = go_on(original, 1000, 1'000'000);
  (void)go_on(copy, 1000, 2'000'000);
  EXPECT_TRUE(original.check(1600, seen).ok());
  const auto refused = copy.check(1600, seen);
  ASSERT_FALSE(refused.ok()) << "the same number, another event";
  EXPECT_EQ(refused.error().as_errno(), ESTALE);
  (void)go_on(copy, 1, 3'000'000);
  EXPECT_FALSE(copy.check(1600, seen).ok()) << "beyond it just as well";
  copy.confirm(1600);
  EXPECT_FALSE(copy.check(1600, seen).ok());
  EventLog fresh(1000);
  EXPECT_TRUE(fresh.check(0, 77).ok()) << "before the first event there is nothing to differ in";
  const auto one = EventLog::fresh_tag();
  EXPECT_NE(one, EventLog::fresh_tag());
}

TEST(EventLog, PoisonedPastItsBound) {
  EventLog log(1000);
  EXPECT_EQ(log.append(wire::EventKind::kOpDone, body(900)), 1U);
  EXPECT_EQ(log.append(wire::EventKind::kOpDone, body(900)), 0U);
  EXPECT_TRUE(log.poisoned());
  EXPECT_EQ(log.append(wire::EventKind::kOpDone, body(1)), 0U);
  std::uint64_t after = 0;
  wire::Bytes out;
  EXPECT_EQ(log.take(after, 1, out, Clock::now()).error().as_errno(), EOVERFLOW);
}

TEST(Orphans, KeepsAndForgetsWithinItsBound) {
  OrphanTable table(2);
  EXPECT_TRUE(table.keep(1, base::UniqueFd(::open("/", O_RDONLY))).ok());
  EXPECT_TRUE(table.keep(2, base::UniqueFd(::open("/", O_RDONLY))).ok());
  EXPECT_EQ(table.keep(3, base::UniqueFd(::open("/", O_RDONLY))).error().as_errno(), EMFILE);
  auto held = *table.get(1, {});
  table.forget(1);
  EXPECT_GE(::fcntl(held->get(), F_GETFD), 0) << "closed under its user";
  EXPECT_EQ(table.get(1, {}).error().as_errno(), ESTALE);
  EXPECT_TRUE(table.keep(3, base::UniqueFd(::open("/", O_RDONLY))).ok());
}

TEST(Mounts, KnowsPseudoFileSystemsAndOurOwn) {
  const auto table = MountTable::parse(
      "22 28 0:21 / /proc rw,nosuid - proc proc rw\n"
      "23 28 0:5 / /dev rw shared:1 - tmpfs tmpfs rw\n"
      "24 28 8:1 / / rw - ext4 /dev/sda1 rw\n"
      "25 24 0:60 / /work\\040dir/x rw - fuse.nearbox nearbox rw\n"
      "26 24 0:61 / /other rw - fuse.sshfs h: rw\n"
      "garbage\n\n27 24 0:62 / /no-dash rw\n");
  EXPECT_TRUE(table.pseudo_device(makedev(0, 21)));
  EXPECT_TRUE(table.pseudo_device(makedev(0, 5)));
  EXPECT_FALSE(table.pseudo_device(makedev(8, 1)));
  EXPECT_TRUE(table.own_mount("/work dir/x"));
  EXPECT_FALSE(table.own_mount("/other"));
  EXPECT_TRUE(pseudo_magic(0x9fa0));
  EXPECT_FALSE(pseudo_magic(0xef53));
}

TEST(WorkerPool, RunsEverythingAndGrowsToItsBound) {
  WorkerPool pool("test", 3);
  std::atomic<int> running{0};
  std::atomic<int> most{0};
  std::atomic<int> done{0};
  for (int i = 0; i < 200; ++i) {
    ASSERT_TRUE(pool.submit([&] {
      const int now = ++running;
      int seen = most.load();
      while (now > seen && !most.compare_exchange_weak(seen, now)) {
      }
      std::this_thread::yield();
      --running;
      ++done;
    }));
  }
  EXPECT_TRUE(test::eventually([&] { return done == 200; }));
  EXPECT_LE(most, 3);
  pool.stop();
  EXPECT_FALSE(pool.submit([] {}));
}

TEST(WorkerPool, AFullLaneLeavesThreadsToOthers) {
  WorkerPool pool("test", 4, 2);
  std::mutex mu;
  std::condition_variable changed;
  bool open = false;
  int hung = 0;
  std::atomic<int> others{0};
  for (int i = 0; i < 10; ++i) {
    ASSERT_TRUE(pool.submit(
        [&] {
          std::unique_lock lock(mu);
          ++hung;
          changed.notify_all();
          changed.wait_for(lock, std::chrono::seconds(20), [&] { return open; });
        },
        7));
  }
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(pool.submit([&] { ++others; }, 8));
  EXPECT_TRUE(test::eventually([&] { return others == 10; }));
  std::unique_lock lock(mu);
  EXPECT_TRUE(changed.wait_for(lock, std::chrono::seconds(20), [&] { return hung >= 2; }));
  EXPECT_EQ(hung, 2);
  open = true;
  changed.notify_all();
  EXPECT_TRUE(changed.wait_for(lock, std::chrono::seconds(20), [&] { return hung == 10; }));
  open = false;
  lock.unlock();
  // What waits in a lane is dropped with the rest.
  auto held = std::make_shared<int>(0);
  for (int i = 0; i < 10; ++i) ASSERT_TRUE(pool.submit([held, &mu] { const std::lock_guard wait(mu); }, 9));
  pool.stop();
  EXPECT_EQ(held.use_count(), 1);
}

TEST(MountLanes, NamesTheDeviceOfThePathsMount) {
  test::TempDir dir;
  test::write_file(dir / "mountinfo",
                   "24 28 8:1 / / rw - ext4 /dev/sda1 rw\n"
                   "25 24 0:60 / /mnt/a\\040b rw - fuse.hung hung rw\n"
                   "26 24 0:61 / /mnt/c rw - nfs h: rw\n"
                   "27 24 0:60 / /elsewhere rw - fuse.hung hung rw\n"
                   "28 24 0:62 / /elsewhere rw - tmpfs t rw\n");
  MountLanes lanes(dir / "mountinfo");
  const auto root = lanes.of("/");
  EXPECT_NE(root, 0U);
  EXPECT_EQ(lanes.of("/mnt"), root);
  EXPECT_EQ(lanes.of("/mnt/a"), root);
  EXPECT_EQ(lanes.of("/mnt/a bc"), root);
  const auto hung = lanes.of("/mnt/a b");
  EXPECT_NE(hung, root);
  EXPECT_EQ(lanes.of("/mnt/a b/x/y/"), hung);
  EXPECT_NE(lanes.of("/mnt/c/x"), hung);
  EXPECT_NE(lanes.of("/elsewhere/x"), hung) << "another one lies on top";
  EXPECT_EQ(lanes.of("relative"), 0U);
  EXPECT_EQ(MountLanes(dir / "none").of("/"), 0U);
}

}  // namespace
}  // namespace nearbox::agent
