// SPDX-License-Identifier: Apache-2.0
#include <csignal>

#include "tests/unit/procs/proc_test_util.h"
#include "tools/agent/proc_groups.h"
#include "tools/agent/proc_table_impl.h"

namespace nearbox::agent::test {
namespace {

bool group_alive(pid_t group) { return any_group_alive({group}); }

TEST_F(ProcTableTest, EndHangsUpForegroundGroups) {
  TempDir dir;
  const auto polite = shell(
      1, "trap 'echo hup > " + (dir / "hup") + "; exit 0' HUP; echo ready; while :; do sleep 0.05; done");
  const auto stubborn =
      shell(2, "trap '' HUP; echo ready; (trap '' HUP; sleep 1000) & sleep 1000; sleep 1000");
  for (const std::uint64_t proc : {1U, 2U}) {
    Seen seen;
    auto client = attach(proc);
    read_until(*client, seen, [&] { return !seen.out.empty(); });
    client->cut();
    EXPECT_TRUE(client->wait_end());
  }
  auto waiting = attach(2, 0, 0);  // blocked for credit
  auto unanswered = attach(1);
  const auto begun = std::chrono::steady_clock::now();
  table.reset();
  const auto took = std::chrono::steady_clock::now() - begun;
  EXPECT_EQ(file_text(dir / "hup"), "hup\n");
  EXPECT_FALSE(group_alive(polite.pid));
  EXPECT_TRUE(eventually([&] { return !group_alive(stubborn.pid); }, 2s)) << "killed, the grandchild too";
  EXPECT_GE(took, kHangupTime);
  EXPECT_LT(took, kHangupTime + kKillTime + 10s);
  EXPECT_TRUE(waiting->ended());
  EXPECT_EQ(waiting->error(), ECANCELED);
  EXPECT_TRUE(unanswered->ended());
  EXPECT_TRUE(exits.empty()) << "nobody is told once the end has begun";
}

TEST_F(ProcTableTest, EndIsQuickWhenAllGoAtOnce) {
  for (std::uint64_t i = 1; i <= 20; ++i) shell(i, "sleep 1000");
  const auto begun = std::chrono::steady_clock::now();
  table.reset();
  EXPECT_LT(std::chrono::steady_clock::now() - begun, kHangupTime);
}

TEST_F(ProcTableTest, BackgroundGroupsOutliveTheTable) {
  TempDir dir;
  const auto reply =
      shell(1,
            "while ! [ -e " + (dir / "go") +
                " ]; do echo noise; sleep 0.01; done; seq 1 100000; echo alive > " + (dir / "alive"),
            wire::kProcNoLogin | wire::kProcBackground);
  const auto terminal = shell(2,
                              "while ! [ -e " + (dir / "go") +
                                  " ]; do echo noise; sleep 0.01; done; seq 1 100000; tty > " + (dir / "tty"),
                              wire::kProcNoLogin | wire::kProcBackground | wire::kProcPty);
  ASSERT_TRUE(eventually([&] { return table->list().procs[1].output_end > 0; }));
  table.reset();
  EXPECT_TRUE(group_alive(reply.pid));
  EXPECT_TRUE(group_alive(terminal.pid));
  std::ofstream(dir / "go") << "";
  EXPECT_TRUE(eventually([&] { return file_text(dir / "alive") == "alive\n"; }))
      << "its output goes nowhere, it lives";
  EXPECT_TRUE(eventually([&] { return file_text(dir / "tty").starts_with("/dev/pts/"); }));
  open();  // a later table reaps what ended
  EXPECT_TRUE(eventually([&] {
    shell(1, "exit 0");
    read_all(1);
    table->forget({1});
    return ::kill(reply.pid, 0) != 0 && ::kill(terminal.pid, 0) != 0;
  }));
}

TEST_F(ProcTableTest, UnansweredInputIsAnsweredAtTheEnd) {
  shell(1, "sleep 1000", wire::kProcNoLogin | wire::kProcStdin);
  auto much = input(1, 0, std::string(1000 * 1000, 'x'));
  table.reset();
  EXPECT_TRUE(much->ended());
  EXPECT_EQ(much->error(), ECANCELED);
}

}  // namespace
}  // namespace nearbox::agent::test
