// SPDX-License-Identifier: Apache-2.0
#include <atomic>
#include <csignal>
#include <random>

#include "tests/unit/procs/proc_test_util.h"
#include "tools/agent/proc_table_impl.h"

namespace nearbox::agent::test {
namespace {

std::string lines(int from, int to) {
  std::string text;
  for (int i = from; i <= to; ++i) text += std::to_string(i) + "\n";
  return text;
}

TEST_F(ProcTableTest, NothingIsLostAcrossReconnects) {
  constexpr int kLines = 160'000;  // a little over 1 MB, through a ring of 64 KiB
  for (unsigned seed = 1; seed <= 4; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 rng(seed);
    auto what = request(seed, {"sh", "-c", "seq 1 80000; seq 1 500 >&2; seq 80001 160000; exit 9"});
    what.ring_bytes = 64 * 1024;
    start(what);
    Seen seen;
    int attaches = 0;
    while (!seen.exited) {
      auto client = attach(seed, seen.position);
      ++attaches;
      const std::uint64_t leave_at = seen.position + rng() % 60'000;
      while (!seen.exited && seen.position < leave_at) {
        auto record = client->next();
        ASSERT_TRUE(record);
        // The connection may go in the middle of a record: the client has its first bytes only.
        if (!record->data.empty() && rng() % 4 == 0) {
          record->data.resize(1 + rng() % record->data.size());
          seen.add(*record);
          break;
        }
        seen.add(*record);
        if (rng() % 2 == 0) table->consumed({seed, seen.position});
      }
      client->cut();
      if (rng() % 3 == 0) {
        table->set_connected(false);
        table->set_connected(true);
      }
    }
    EXPECT_EQ(seen.lost, 0U);
    EXPECT_EQ(seen.code, 9);
    EXPECT_EQ(seen.out, lines(1, kLines));
    EXPECT_EQ(seen.err, lines(1, 500));
    EXPECT_GT(attaches, 10);
  }
}

TEST_F(ProcTableTest, FullRingStopsTheCommandWhileItsClientMayComeBack) {
  auto what = request(1, {"sh", "-c", "seq 1 100000; exit 4"});
  what.ring_bytes = 64 * 1024;
  start(what);
  ASSERT_TRUE(eventually([&] { return table->list().procs[0].output_end == 64 * 1024; }));
  table->set_connected(false);
  EXPECT_FALSE(eventually([&] { return table->list().procs[0].output_end > 64 * 1024; }, 300ms));
  EXPECT_FALSE(table->list().procs[0].exited);
  table->set_connected(true);
  const auto seen = read_all(1);
  EXPECT_EQ(seen.lost, 0U);
  EXPECT_EQ(seen.out, lines(1, 100'000));
  EXPECT_EQ(seen.code, 4);
}

TEST_F(ProcTableTest, StalledClientStopsTheCommandAndLosesNothing) {
  auto what = request(1, {"sh", "-c", "seq 1 100000"});
  what.ring_bytes = 64 * 1024;
  start(what);
  auto client = attach(1, 0, 1);  // one send, then no credit
  ASSERT_TRUE(eventually([&] { return table->list().procs[0].output_end >= 64 * 1024; }));
  Seen seen;
  read_until(*client, seen, [&] { return !seen.out.empty(); });
  client->add_credit(SIZE_MAX / 2);
  while (const auto record = client->next()) {
    seen.add(*record);
    table->consumed({1, seen.position});
  }
  EXPECT_EQ(seen.out, lines(1, 100'000));
  EXPECT_EQ(seen.lost, 0U);
}

TEST_F(ProcTableTest, AfterTheGraceTheOldestBytesGo) {
  Options options = default_options();
  options.attach_grace_ms = 0;
  open(options);
  auto what = request(1, {"sh", "-c", "seq 1 100000; exit 4"});
  what.ring_bytes = 64 * 1024;
  start(what);
  ASSERT_TRUE(wait_exit(1));
  const auto text = lines(1, 100'000);
  const auto seen = read_all(1);
  EXPECT_EQ(seen.lost, text.size() - 64 * 1024);
  EXPECT_EQ(seen.out, text.substr(text.size() - 64 * 1024));
  EXPECT_EQ(seen.code, 4);
}

TEST_F(ProcTableTest, GraceBeginsWhenTheClientGoes) {
  Options options = default_options();
  options.attach_grace_ms = 500;
  open(options);
  auto what = request(1, {"sh", "-c", "seq 1 100000; exit 4"});
  what.ring_bytes = 64 * 1024;
  start(what);
  auto client = attach(1, 0, 1);
  ASSERT_TRUE(eventually([&] { return table->list().procs[0].output_end >= 64 * 1024; }));
  EXPECT_FALSE(eventually([&] { return table->list().procs[0].exited; }, 800ms)) << "attached: it waits";
  table->set_connected(false);
  ASSERT_TRUE(wait_exit(1));
  client->cut();
  EXPECT_GT(read_all(1).lost, 0U);
}

TEST_F(ProcTableTest, BackgroundCommandsDoNotWait) {
  auto what = request(1, {"sh", "-c", "seq 1 100000; read x; echo end"},
                      wire::kProcNoLogin | wire::kProcBackground | wire::kProcStdin);
  what.ring_bytes = 64 * 1024;
  start(what);
  const auto text = lines(1, 100'000);
  ASSERT_TRUE(eventually([&] { return table->list().procs[0].output_end == text.size(); }));
  auto client = attach(1, 100);
  const auto gap = client->next();
  ASSERT_TRUE(gap);
  EXPECT_EQ(gap->stream, wire::ProcStream::kGap);
  EXPECT_EQ(gap->offset, 100U);
  EXPECT_EQ(gap->lost, text.size() - 64 * 1024 - 100);
  Seen seen;
  seen.position = 100;
  seen.add(*gap);
  input(1, 0, "\n");
  read_until(*client, seen, [&] { return seen.exited; });
  EXPECT_EQ(seen.out, text.substr(text.size() - 64 * 1024) + "end\n");
}

TEST_F(ProcTableTest, BackgroundGapsAreToldToTheAttachedToo) {
  auto what = request(1, {"sh", "-c", "seq 1 200000"}, wire::kProcNoLogin | wire::kProcBackground);
  what.ring_bytes = 64 * 1024;
  start(what);
  auto client = attach(1, 0, 1);
  ASSERT_TRUE(wait_exit(1));
  client->add_credit(SIZE_MAX / 2);
  Seen seen;
  while (const auto record = client->next()) seen.add(*record);
  EXPECT_GT(seen.lost, 0U);
  const auto text = lines(1, 200'000);
  EXPECT_EQ(seen.out.size() + seen.lost, text.size());
  EXPECT_TRUE(text.ends_with(seen.out.substr(seen.out.size() - 60 * 1024)));
}

TEST_F(ProcTableTest, ConfirmedOutputIsGone) {
  shell(1, "echo hello");
  EXPECT_EQ(read_all(1).out, "hello\n");
  auto client = attach(1, 2);
  Seen seen;
  seen.position = 2;
  while (const auto record = client->next()) seen.add(*record);
  EXPECT_EQ(seen.lost, 4U);
  EXPECT_EQ(seen.out, "");
  auto beyond = attach(1, 7);
  EXPECT_TRUE(beyond->wait_end());
  EXPECT_EQ(beyond->error(), EINVAL);
  auto unknown = attach(2);
  EXPECT_TRUE(unknown->wait_end());
  EXPECT_EQ(unknown->error(), ENOENT);
}

TEST_F(ProcTableTest, CancelledAttachEnds) {
  shell(1, "cat", wire::kProcNoLogin | wire::kProcStdin);
  auto client = attach(1);
  client->cut();
  EXPECT_TRUE(client->wait_end());
  EXPECT_EQ(client->error(), ECANCELED);
}

TEST_F(ProcTableTest, TooManyAttachesEndTheOldest) {
  shell(1, "cat", wire::kProcNoLogin | wire::kProcStdin);
  std::vector<std::shared_ptr<FakeResponder>> clients;
  for (std::size_t i = 0; i <= kMaxAttachesEach; ++i) clients.push_back(attach(1));
  EXPECT_TRUE(clients.front()->wait_end());
  EXPECT_FALSE(clients.back()->ended());
  input(1, 0, "all hear\n");
  for (std::size_t i = 1; i < clients.size(); ++i) {
    const auto record = clients[i]->next();
    ASSERT_TRUE(record);
    EXPECT_EQ(wire::as_text(record->data), "all hear\n");
  }
}

TEST_F(ProcTableTest, TenMegabytesThroughCatWithResends) {
  constexpr std::size_t kSize = 10 * 1024 * 1024;
  std::string text(kSize, '\0');
  std::mt19937 rng(7);
  for (auto& c : text) c = static_cast<char>(rng());
  start(request(1, {"cat"}, wire::kProcNoLogin | wire::kProcStdin));
  std::jthread reader([&] {
    const auto seen = read_all(1);
    EXPECT_TRUE(seen.out == text);
    EXPECT_EQ(seen.code, 0);
  });
  std::uint64_t accepted = 0;
  std::shared_ptr<FakeResponder> last;
  while (accepted < kSize) {
    const std::uint64_t from = accepted - std::min<std::uint64_t>(accepted, rng() % 50'000);
    const auto size = std::min<std::uint64_t>(kSize - from, 1 + rng() % 300'000);
    last = input(1, from, std::string_view(text).substr(from, size));
    if (rng() % 3 == 0) input(1, from, std::string_view(text).substr(from, size / 2));  // sent twice
    ASSERT_TRUE(last->wait_end());
    ASSERT_EQ(last->error(), 0);
    ASSERT_GE(last->accepted(), accepted);
    accepted = last->accepted();
  }
  auto end = input(1, kSize, "", true);
  EXPECT_TRUE(end->wait_end());
  EXPECT_EQ(end->accepted(), kSize);
}

TEST_F(ProcTableTest, InputToNobodyFails) {
  auto unknown = input(1, 0, "x");
  EXPECT_TRUE(unknown->wait_end());
  EXPECT_EQ(unknown->error(), ENOENT);
  shell(1, "exec <&-; echo closed; sleep 1000", wire::kProcNoLogin | wire::kProcStdin);
  Seen seen;
  auto client = attach(1);
  read_until(*client, seen, [&] { return !seen.out.empty(); });
  auto refused = input(1, 0, "x");
  EXPECT_TRUE(refused->wait_end());
  EXPECT_EQ(refused->error(), EPIPE);
  shell(2, "cat; echo none");
  EXPECT_EQ(read_all(2).out, "none\n") << "without a pipe it reads nothing";
  auto no_pipe = input(2, 0, "x");
  EXPECT_TRUE(no_pipe->wait_end());
  EXPECT_EQ(no_pipe->error(), EPIPE);
}

TEST_F(ProcTableTest, UnreadInputFailsWhenTheProcessEnds) {
  shell(1, "sleep 1000", wire::kProcNoLogin | wire::kProcStdin);
  auto much = input(1, 0, std::string(1000 * 1000, 'x'));
  auto more = input(1, 1000 * 1000, "y");
  EXPECT_FALSE(eventually([&] { return much->ended() || more->ended(); }, 100ms));
  EXPECT_TRUE(table->signal({1, SIGKILL, true}));
  EXPECT_TRUE(much->wait_end());
  EXPECT_EQ(much->error(), EPIPE);
  EXPECT_TRUE(more->wait_end());
  EXPECT_EQ(more->error(), EPIPE);
}

TEST_F(ProcTableTest, GrandchildWithThePipesDoesNotDelayTheExit) {
  TempDir dir;
  const auto begun = std::chrono::steady_clock::now();
  shell(1, "(trap '' HUP; while ! [ -e " + (dir / "go") +
               " ]; do sleep 0.05; done; echo late; echo alive > " + (dir / "alive") +
               ") & echo done; exit 6");
  const auto seen = read_all(1);
  const auto took = std::chrono::steady_clock::now() - begun;
  EXPECT_EQ(seen.out, "done\n");
  EXPECT_EQ(seen.code, 6);
  EXPECT_GE(took, kDrainTime - 50ms);
  EXPECT_TRUE(wait_exit(1));
  std::ofstream(dir / "go") << "";
  EXPECT_TRUE(eventually([&] { return file_text(dir / "alive") == "alive\n"; }))
      << "it writes on without dying of SIGPIPE";
  EXPECT_EQ(exits[1].size(), 1U);
}

TEST_F(ProcTableTest, GrandchildThatNeverStopsWritingDoesNotDelayTheExit) {
  TempDir dir;
  shell(1,
        "(while ! [ -e " + (dir / "stop") + " ]; do echo noise; done; echo > " + (dir / "stopped") +
            ") & exit 6",
        wire::kProcNoLogin | wire::kProcBackground);
  ASSERT_TRUE(wait_exit(1));
  EXPECT_EQ(exits[1].front().code, 6);
  std::ofstream(dir / "stop") << "";
  EXPECT_TRUE(eventually([&] { return ::access((dir / "stopped").c_str(), F_OK) == 0; }));
}

TEST_F(ProcTableTest, AnEarlyAttachWaitsForItsStart) {
  auto client = attach_early(1);
  EXPECT_EQ(attach(2)->error(), ENOENT);
  shell(1, "echo out; exit 3");
  Seen seen;
  read_until(*client, seen, [&] { return seen.exited; });
  EXPECT_EQ(seen.out, "out\n");
  EXPECT_EQ(seen.code, 3);
  EXPECT_TRUE(client->wait_end());
  EXPECT_EQ(client->error(), 0);
}

TEST_F(ProcTableTest, AnEarlyAttachEndsWithItsClientAStartThatFailsOrTheTable) {
  auto cut = attach_early(1);
  cut->cut();
  EXPECT_TRUE(cut->wait_end());
  EXPECT_EQ(cut->error(), ECANCELED);
  auto failed = attach_early(2);
  EXPECT_FALSE(table->start(request(2, {"/no/such/program"})));
  auto left = attach_early(3);
  std::vector<std::shared_ptr<FakeResponder>> many;
  for (std::uint64_t i = 0; i < 600; ++i) many.push_back(attach_early(100 + i));
  EXPECT_TRUE(many.back()->wait_end());
  EXPECT_EQ(many.back()->error(), EAGAIN);
  table.reset();
  EXPECT_TRUE(left->wait_end());
  EXPECT_EQ(left->error(), ECANCELED);
  EXPECT_TRUE(failed->wait_end());
}

TEST_F(ProcTableTest, AnExitComesWithTheBarrierThatWasAskedFor) {
  auto options = default_options();
  std::atomic<int> asked{0};
  options.settle = [&] {
    ++asked;
    return ProcTable::Settled{7, 42};
  };
  table.reset();
  open(options);
  shell(1, "exit 0");
  const auto plain = attach_early(1)->next();
  ASSERT_TRUE(plain);
  EXPECT_EQ(plain->seq, 0U);
  EXPECT_EQ(asked, 0);
  const auto settled = attach_early(1, true)->next();
  ASSERT_TRUE(settled);
  EXPECT_EQ(settled->stream, wire::ProcStream::kExit);
  EXPECT_EQ(settled->instance, 7U);
  EXPECT_EQ(settled->seq, 42U);
  EXPECT_EQ(asked, 1);
}

}  // namespace
}  // namespace nearbox::agent::test
