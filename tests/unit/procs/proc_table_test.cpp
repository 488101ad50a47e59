// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <csignal>
#include <set>
#include <sys/resource.h>
#include <sys/stat.h>
#include <thread>

#include "client/base/fault.h"
#include "tests/unit/procs/proc_test_util.h"
#include "tools/agent/proc_table_impl.h"

namespace nearbox::agent::test {
namespace {

TEST_F(ProcTableTest, GivesBytesAndExitCode) {
  const auto reply = shell(1, "printf 'a\\000b'; printf oops >&2; exit 7");
  EXPECT_GT(reply.pid, 1);
  EXPECT_EQ(reply.ring_bytes, 1024U * 1024);
  const auto seen = read_all(1);
  EXPECT_EQ(seen.out, std::string("a\0b", 3));
  EXPECT_EQ(seen.err, "oops");
  EXPECT_TRUE(seen.exited);
  EXPECT_EQ(seen.code, 7);
  EXPECT_EQ(seen.signal, 0);
  ASSERT_TRUE(wait_exit(1));
  EXPECT_EQ(exits[1].front().code, 7);
}

TEST_F(ProcTableTest, SameNumberIsTheSameProcess) {
  const auto first = shell(1, "cat", wire::kProcNoLogin | wire::kProcStdin);
  const auto again = shell(1, "echo other");
  EXPECT_EQ(first.pid, again.pid);
  EXPECT_EQ(table->list().procs.size(), 1U);
  EXPECT_TRUE(input(1, 0, "", true)->wait_end());
  EXPECT_EQ(read_all(1).out, "");
  EXPECT_EQ(shell(1, "echo other").pid, first.pid) << "also after its exit, until it is forgotten";
  table->forget({1});
  EXPECT_NE(shell(1, "echo other").pid, first.pid);
  EXPECT_EQ(read_all(1).out, "other\n");
}

TEST_F(ProcTableTest, RacingStartsAreOneProcess) {
  std::array<std::int32_t, 8> pids{};
  {
    std::vector<std::jthread> threads;
    for (auto& pid : pids) threads.emplace_back([&] { pid = shell(5, "exit 0").pid; });
  }
  EXPECT_EQ(std::set<std::int32_t>(pids.begin(), pids.end()).size(), 1U);
  EXPECT_TRUE(read_all(5).exited);
}

TEST_F(ProcTableTest, SaysWhyItDidNotStart) {
  const auto error_of = [&](wire::ProcStart what) {
    const auto reply = table->start(what);
    EXPECT_FALSE(reply);
    return reply ? base::Error{} : reply.error();
  };
  auto missing = error_of(request(1, {"nearbox-no-such-program"}));
  EXPECT_EQ(missing.as_errno(), ENOENT);
  EXPECT_NE(missing.message().find("nearbox-no-such-program"), std::string::npos);
  auto no_dir = request(1, {"true"});
  no_dir.cwd = "/nearbox/missing";
  EXPECT_EQ(error_of(no_dir).as_errno(), ENOENT);
  EXPECT_NE(error_of(no_dir).message().find("/nearbox/missing"), std::string::npos);
  no_dir.cwd = "/etc/passwd";
  EXPECT_EQ(error_of(no_dir).as_errno(), ENOTDIR);
  auto no_user = request(1, {"true"});
  no_user.user = "nearbox-nobody";
  EXPECT_EQ(error_of(no_user).as_errno(), ENOENT);
  EXPECT_EQ(error_of(request(1, {"/etc/passwd"})).as_errno(), EACCES);
  EXPECT_EQ(error_of(request(1, {})).as_errno(), EINVAL);
  auto bad_env = request(1, {"true"});
  bad_env.env = {"=x"};
  EXPECT_EQ(error_of(bad_env).as_errno(), EINVAL);
  EXPECT_TRUE(table->list().procs.empty());
  EXPECT_EQ(shell(1, "exit 0").proc, 1U) << "a failed start leaves the number free";
}

TEST_F(ProcTableTest, LoginShellReportsAMissingProgram) {
  start(request(1, {"nearbox-no-such-program"}, 0));
  const auto seen = read_all(1);
  EXPECT_EQ(seen.code, 127);
  EXPECT_NE(seen.err.find("nearbox-no-such-program"), std::string::npos);
}

TEST_F(ProcTableTest, LoginEnvironmentAndOverrides) {
  setenv("E2B_TEST_VARIABLE", "from the agent", 1);
  setenv("NEARBOX_TEST_VARIABLE", "not for commands", 1);
  auto login = request(1, {"sh", "-c", "echo $1; env", "-", "a 'b\" $c"}, 0);
  login.env = {"PATH=/usr/bin:/bin:/x", "EXTRA=1 2", "ODD-NAME=3"};
  start(login);
  const auto out = "\n" + read_all(1).out;
  EXPECT_TRUE(out.starts_with("\na 'b\" $c\n"));
  EXPECT_NE(out.find("\nPATH=/usr/bin:/bin:/x\n"), std::string::npos) << "the request wins over the profile";
  EXPECT_NE(out.find("\nEXTRA=1 2\n"), std::string::npos);
  EXPECT_NE(out.find("\nE2B_TEST_VARIABLE=from the agent\n"), std::string::npos);
  EXPECT_EQ(out.find("NEARBOX_TEST_VARIABLE"), std::string::npos);
  const auto account = *find_account(default_options().sandbox_user);
  EXPECT_NE(out.find("\nHOME=" + account.home + "\n"), std::string::npos);
  EXPECT_NE(out.find("\nUSER=" + account.name + "\n"), std::string::npos);
  EXPECT_NE(out.find("\nLOGNAME=" + account.name + "\n"), std::string::npos);
}

TEST_F(ProcTableTest, WorksInTheDirectoryAskedFor) {
  TempDir dir;
  auto there = request(1, {"pwd"});
  there.cwd = dir.path();
  start(there);
  EXPECT_EQ(read_all(1).out, dir.path() + "\n");
  auto home = request(2, {"pwd"});
  home.cwd = "";
  start(home);
  const auto wanted = find_account(default_options().sandbox_user)->home;
  EXPECT_EQ(read_all(2).out, (::access(wanted.c_str(), X_OK) == 0 ? wanted : "/") + "\n");
}

TEST_F(ProcTableTest, RunsAsAnotherUser) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  auto nobody = request(1, {"sh", "-c", "id -u; id -G; umask; echo $USER"});
  nobody.user = "nobody";
  start(nobody);
  const auto account = *find_account("nobody");
  EXPECT_EQ(read_all(1).out,
            std::to_string(account.uid) + "\n" + std::to_string(account.gid) + "\n0022\nnobody\n");
}

TEST_F(ProcTableTest, ScriptsWithoutInterpreterLineRun) {
  TempDir dir;
  std::ofstream(dir / "script") << "echo \"ran $1\"\n";
  ASSERT_EQ(::chmod((dir / "script").c_str(), 0755), 0);
  start(request(1, {dir / "script", "it"}));
  EXPECT_EQ(read_all(1).out, "ran it\n");
}

TEST_F(ProcTableTest, OwnSessionCleanSignalsAndDescriptors) {
  const int leak = ::open("/dev/null", O_RDONLY);  // without O_CLOEXEC, as a careless library opens
  ASSERT_GE(leak, 0);
  ::signal(SIGUSR1, SIG_IGN);
  Options options = default_options();
  options.child_nofile_soft = 512;
  open(options);
  const auto reply =
      shell(1,
            "cut -d' ' -f1,5,6 /proc/$$/stat; grep -E 'SigBlk|SigIgn' /proc/self/status; ls /proc/$$/fd; "
            "ulimit -Sn; cat /proc/$$/oom_score_adj; readlink /proc/$$/fd/0");
  ::signal(SIGUSR1, SIG_DFL);
  ::close(leak);
  const auto pid = std::to_string(reply.pid);
  const auto out = read_all(1).out;
  EXPECT_TRUE(out.starts_with(pid + " " + pid + " " + pid +
                              "\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n0\n1\n2\n"))
      << out;
  EXPECT_NE(out.find("\n512\n"), std::string::npos) << out;
  EXPECT_TRUE(out.ends_with("\n100\n/dev/null\n")) << out;
}

TEST_F(ProcTableTest, SignalsReachTheWholeGroup) {
  TempDir dir;
  shell(1, "trap 'wait; exit 3' TERM; (trap 'echo grandchild; exit' TERM; touch " + (dir / "ready") +
               "; while :; do sleep 0.05; done) & wait; exit 3");
  ASSERT_TRUE(eventually([&] { return ::access((dir / "ready").c_str(), F_OK) == 0; }));
  EXPECT_TRUE(table->signal({1, SIGTERM, true}));
  const auto seen = read_all(1);
  EXPECT_EQ(seen.out, "grandchild\n");  // stderr is the shell's own, which may tell that sleep died
  EXPECT_EQ(seen.code, 3);
  EXPECT_EQ(table->signal({1, SIGTERM, true}).error().as_errno(), ESRCH);
  EXPECT_EQ(table->signal({9, SIGTERM, true}).error().as_errno(), ENOENT);
  EXPECT_EQ(table->signal({1, 4711, true}).error().as_errno(), EINVAL);
}

TEST_F(ProcTableTest, DeathBySignalIsTold) {
  shell(1, "exec sleep 1000");
  EXPECT_TRUE(table->signal({1, SIGKILL, false}));
  const auto seen = read_all(1);
  EXPECT_EQ(seen.code, -1);
  EXPECT_EQ(seen.signal, SIGKILL);
}

TEST_F(ProcTableTest, ListShowsWhatRuns) {
  shell(3, "cat", wire::kProcNoLogin | wire::kProcStdin);
  shell(4, "echo hello; exit 2");
  read_all(4);
  const auto procs = table->list().procs;
  ASSERT_EQ(procs.size(), 2U);
  EXPECT_EQ(procs[0].command, "sh -c cat");
  EXPECT_FALSE(procs[0].exited);
  EXPECT_TRUE(procs[1].exited);
  EXPECT_EQ(procs[1].code, 2);
  EXPECT_EQ(procs[1].output_end, 6U);
  EXPECT_EQ(table->running(), 1U);
  table->forget({3});
  EXPECT_EQ(table->running(), 1U) << "still running, dropped when it ends";
  EXPECT_TRUE(table->signal({3, SIGKILL, true}));
  EXPECT_TRUE(eventually([&] { return table->list().procs.size() == 1; }));
}

TEST_F(ProcTableTest, TerminalHasSizeEchoAndEndOfInput) {
  auto pty =
      request(1, {"sh", "-c", "stty size; tty; read line; stty size; echo \"got $line\"; cat; echo $TERM"},
              wire::kProcNoLogin | wire::kProcPty);
  pty.rows = 33;
  pty.cols = 111;
  start(pty);
  Seen seen;
  auto client = attach(1);
  read_until(*client, seen, [&] { return seen.pty.find("/dev/pts/") != std::string::npos; });
  EXPECT_TRUE(seen.pty.starts_with("33 111\r\n")) << seen.pty;
  EXPECT_TRUE(table->resize({1, 50, 20}));
  EXPECT_TRUE(input(1, 0, "typed\n")->wait_end());
  read_until(*client, seen, [&] { return seen.pty.find("got typed") != std::string::npos; });
  EXPECT_NE(seen.pty.find("\r\ntyped\r\n50 20\r\ngot typed"), std::string::npos) << seen.pty;
  auto end = input(1, 6, "half a line", true);
  EXPECT_TRUE(end->wait_end());
  EXPECT_EQ(end->error(), 0);
  read_until(*client, seen, [&] { return seen.exited; });
  EXPECT_NE(seen.pty.find("half a line"), std::string::npos);
  EXPECT_TRUE(seen.pty.ends_with("xterm-256color\r\n")) << seen.pty;
  EXPECT_EQ(seen.code, 0);
  EXPECT_TRUE(client->wait_end());
  shell(2, "exit 0");
  EXPECT_EQ(table->resize({2, 1, 1}).error().as_errno(), ENOTTY);
}

TEST_F(ProcTableTest, TerminalControlCharactersSignal) {
  shell(1, "trap 'echo interrupted; exit 4' INT; echo ready; while :; do sleep 0.05; done",
        wire::kProcNoLogin | wire::kProcPty);
  Seen seen;
  auto client = attach(1);
  read_until(*client, seen, [&] { return seen.pty.find("ready") != std::string::npos; });
  input(1, 0, "\x03");
  read_until(*client, seen, [&] { return seen.exited; });
  EXPECT_NE(seen.pty.find("interrupted"), std::string::npos);
  EXPECT_EQ(seen.code, 4);
}

TEST_F(ProcTableTest, TwoHundredAtOnce) {
  constexpr std::uint64_t kCount = 200;
  std::vector<std::shared_ptr<FakeResponder>> clients;
  for (std::uint64_t i = 1; i <= kCount; ++i) {
    shell(i, "echo out $0 $$; read go; exit " + std::to_string(i % 200),
          wire::kProcNoLogin | wire::kProcStdin);
    clients.push_back(attach(i));
  }
  EXPECT_EQ(table->running(), kCount);
  for (std::uint64_t i = 1; i <= kCount; ++i) input(i, 0, "go\n");
  for (std::uint64_t i = 1; i <= kCount; ++i) {
    Seen seen;
    auto& client = *clients[i - 1];
    while (const auto record = client.next()) seen.add(*record);
    EXPECT_TRUE(seen.out.starts_with("out sh ")) << i;
    EXPECT_EQ(seen.code, static_cast<int>(i % 200));
  }
  for (std::uint64_t i = 1; i <= kCount; ++i) ASSERT_TRUE(wait_exit(i));
  std::unique_lock lock(mu);
  EXPECT_EQ(exits.size(), kCount);
  for (const auto& [proc, all] : exits) EXPECT_EQ(all.size(), 1U) << "told once";
}

TEST_F(ProcTableTest, FullTableDropsOnlyWhatWasDelivered) {
  auto small = request(0, {"true"});
  small.ring_bytes = 1;
  small.flags |= wire::kProcNoLogin;
  std::uint64_t number = 1;
  for (; number <= 16; ++number) {
    small.proc = number;
    small.ring_bytes = kMaxRingBytes;  // sixteen of them are all the output a table keeps
    start(small);
  }
  small.proc = number;
  EXPECT_EQ(table->start(small).error().as_errno(), EAGAIN);
  read_all(7);
  ASSERT_TRUE(eventually([&] { return table->start(small).ok(); })) << "7 was delivered, it goes";
  const auto procs = table->list().procs;
  EXPECT_TRUE(std::none_of(procs.begin(), procs.end(), [](const auto& p) { return p.proc == 7; }));
}

TEST_F(ProcTableTest, WorksWithoutNewKernelFeatures) {
  TempDir dir;
  std::ofstream(dir / "faults") << "procs.no_pidfd\nprocs.no_close_range\nprocs.no_gptpeer\n";
  base::fault::set_file(dir / "faults");
  ASSERT_TRUE(eventually([] { return base::fault::active("procs.no_pidfd"); }));
  shell(1, "echo out; ls /proc/$$/fd; exit 5");
  auto seen = read_all(1);
  EXPECT_EQ(seen.out, "out\n0\n1\n2\n");
  EXPECT_EQ(seen.code, 5);
  shell(2, "tty; exit 6", wire::kProcNoLogin | wire::kProcPty);
  seen = read_all(2);
  EXPECT_TRUE(seen.pty.starts_with("/dev/pts/")) << seen.pty;
  EXPECT_EQ(seen.code, 6);
  base::fault::set_file("");
}

}  // namespace
}  // namespace nearbox::agent::test
