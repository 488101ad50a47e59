// SPDX-License-Identifier: Apache-2.0
#include <filesystem>
#include <fstream>
#include <random>
#include <set>
#include <unistd.h>

#include <gtest/gtest.h>

#include "client/base/fault.h"
#include "client/channel/frame.h"
#include "client/channel/handshake.h"
#include "tests/unit/channel/memory_carrier.h"
#include "tests/unit/channel/test_agent.h"

// What survives the loss of connections, agents and good manners.
namespace nearbox::test {
namespace {

using wire::Method;

class Watcher : public api::LinkObserver {
 public:
  void on_up(const wire::Welcome&, bool same_instance) noexcept override {
    add(same_instance ? "same" : "new");
  }
  void on_down(const base::Error& why) noexcept override {
    add("down");
    base::MutexLock lock(mu_);
    why_ = why.as_errno();
  }
  std::vector<std::string> seen() {
    base::MutexLock lock(mu_);
    return seen_;
  }
  std::size_t count(const std::string& what) {
    const auto all = seen();
    return static_cast<std::size_t>(std::count(all.begin(), all.end(), what));
  }
  int why() {
    base::MutexLock lock(mu_);
    return why_;
  }

 private:
  void add(const char* what) {
    base::MutexLock lock(mu_);
    seen_.emplace_back(what);
  }
  base::Mutex mu_;
  std::vector<std::string> seen_ GUARDED_BY(mu_);
  int why_ GUARDED_BY(mu_) = 0;
};

struct LinkResumeTest : ::testing::Test {
  base::Logger log{2, base::LogLevel::kOff};
  base::Timers timers;
  TestAgent agent;
};

std::optional<wire::Bytes> go_on(Outcome& out, std::uint64_t length) {
  return range(out.bytes.size(), length - out.bytes.size());
}

// Property: however often and wherever the connections are cut, a stream that goes on by position
// loses and repeats nothing.
TEST_F(LinkResumeTest, StreamsGoOnByPositionAfterCutsAtRandomPoints) {
  for (std::uint64_t seed = 1; seed <= 6; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 rng(seed);
    auto link = channel::make_agent_link(agent.config(), timers, log);
    constexpr std::uint64_t kLength = 4'000'000;
    std::vector<OutcomePtr> outs;
    for (int i = 0; i < 4; ++i) {
      auto o = options();
      o.credit = static_cast<std::uint32_t>(20'000 + rng() % 300'000);
      o.lane = i % 2 == 0 ? api::Lane::kSmall : api::Lane::kBulk;
      outs.push_back(start(*link, Method::kRead, range(0, kLength), o,
                           [](Outcome& out) { return go_on(out, kLength); }));
    }
    for (int cut = 0; cut < 12; ++cut) {
      const auto& out = outs[rng() % outs.size()];
      const auto until = std::min<std::uint64_t>(kLength, out->size() + rng() % 300'000);
      ASSERT_TRUE(eventually([&] { return out->size() >= until; }));
      if (cut % 3 == 0) {
        agent.cut(wire::Role::kBulk);
      } else {
        agent.cut();
      }
    }
    for (const auto& out : outs) {
      ASSERT_TRUE(out->wait());
      EXPECT_EQ(out->error, 0);
      ASSERT_EQ(out->bytes.size(), kLength);
      for (std::size_t i = 0; i < kLength; ++i) ASSERT_EQ(out->bytes[i], pattern(i)) << i;
    }
  }
}

TEST_F(LinkResumeTest, ACallThatGivesUpEndsWithEconnreset) {
  auto link = channel::make_agent_link(agent.config(), timers, log);
  auto out = start(*link, Method::kStatFs, {});
  ASSERT_TRUE(eventually([&] { return agent.live_calls == 1; }));
  agent.cut();
  ASSERT_TRUE(out->wait());
  EXPECT_EQ(out->error, ECONNRESET);
  EXPECT_EQ(out->lost, 1);
}

TEST_F(LinkResumeTest, TellsObserversWhetherTheAgentIsTheSame) {
  auto link = channel::make_agent_link(agent.config(), timers, log);
  Watcher watcher;
  link->add_observer(&watcher);
  ASSERT_TRUE(eventually([&] { return watcher.count("new") == 1; }));
  ASSERT_TRUE(eventually([&] { return agent.dials(wire::Role::kBulk) == 1; }));
  ASSERT_TRUE(start(*link, Method::kInfo, {})->wait());
  // One connection may be back before the loss of the other is seen: then the link was up all the time. And
  // the loss of one alone is told too, as down and up again.
  const auto cut_both = [&] {
    agent.set_down(true);
    agent.cut();
    ASSERT_TRUE(eventually([&] { return !link->status().up; }));
  };
  cut_both();
  const auto back_as = [&](std::uint64_t reconnects, const char* what) {
    agent.set_down(false);
    return eventually(
        [&] { return link->status().reconnects == reconnects && watcher.seen().back() == what; });
  };
  ASSERT_TRUE(back_as(1, "same"));
  EXPECT_EQ(watcher.count("new"), 1);
  cut_both();
  agent.restart();
  ASSERT_TRUE(back_as(2, "new"));
  EXPECT_EQ(watcher.count("new"), 2);
  link->remove_observer(&watcher);
  const auto seen = watcher.seen().size();
  agent.cut();
  ASSERT_TRUE(eventually([&] { return link->status().reconnects >= 3; }));
  EXPECT_EQ(watcher.seen().size(), seen);
}

TEST_F(LinkResumeTest, CallsForAnotherInstanceAreNotSentToANewOne) {
  auto config = agent.config();
  config.second_connection = false;
  auto link = channel::make_agent_link(config, timers, log);
  const auto again = [](Outcome&) { return std::optional<wire::Bytes>(wire::Bytes{}); };
  auto bound = start(*link, Method::kStatFs, {}, options(), again);
  auto subscribed = start(*link, Method::kSubscribe, {}, options(), again);
  ASSERT_TRUE(subscribed->wait());  // the test agent knows no such call
  EXPECT_EQ(subscribed->error, ENOSYS);
  ASSERT_TRUE(eventually([&] { return agent.live_calls == 1; }));
  agent.set_down(true);
  agent.cut();
  ASSERT_TRUE(eventually([&] { return !link->status().up; }));
  auto waits = start(*link, Method::kStatMany, {});
  auto info = start(*link, Method::kInfo, bytes_of("any"));
  agent.restart();
  agent.set_down(false);
  ASSERT_TRUE(bound->wait());
  EXPECT_EQ(bound->error, ECONNRESET);
  ASSERT_TRUE(waits->wait());
  EXPECT_EQ(waits->error, ECONNRESET);
  ASSERT_TRUE(info->wait());
  EXPECT_EQ(info->error, 0);
}

TEST_F(LinkResumeTest, ARestoredSnapshotIsANewInstance) {
  auto link = channel::make_agent_link(agent.config(), timers, log);
  Watcher watcher;
  link->add_observer(&watcher);
  ASSERT_TRUE(eventually([&] { return watcher.count("new") == 1; }));
  const auto confirm = [&](std::uint64_t seq) {
    const auto before = agent.notes().size();
    EXPECT_TRUE(eventually([&] {
      link->note(Method::kConfirm, wire::encode(wire::Confirm{seq, 0}));
      return agent.notes().size() > before;
    }));
    return agent.nonce();
  };
  const auto first = confirm(1);
  EXPECT_NE(first, 0u);
  agent.cut();
  ASSERT_TRUE(eventually([&] { return watcher.count("same") >= 1; }));
  auto newest = first;
  for (std::uint64_t seq = 2; seq < 2 + 70; ++seq) {
    const auto next = confirm(seq);
    EXPECT_GT(next, newest) << "the agent keeps the greatest";
    newest = next;
  }
  // Nothing but the connection is lost: still the same.
  const auto same = watcher.count("same");
  agent.cut();
  ASSERT_TRUE(eventually([&] { return watcher.count("same") > same; }));
  EXPECT_EQ(watcher.count("new"), 1u);
  // The agent of an earlier day.
  agent.set_down(true);
  agent.cut();
  ASSERT_TRUE(eventually([&] { return !link->status().up; }));
  agent.set_nonce(first);
  agent.set_down(false);
  ASSERT_TRUE(eventually([&] { return watcher.count("new") == 2; }));
  link->remove_observer(&watcher);
}

TEST_F(LinkResumeTest, ASessionThatIsGivenUpIsNotGoneOnWith) {
  auto link = channel::make_agent_link(agent.config(), timers, log);
  Watcher watcher;
  link->add_observer(&watcher);
  ASSERT_TRUE(eventually([&] { return watcher.count("new") == 1; }));
  for (std::size_t times = 2; times < 5; ++times) {
    link->renew_session();
    ASSERT_TRUE(eventually([&] { return watcher.count("new") == times; }));
    ASSERT_TRUE(eventually([&] { return link->status().up; }));
  }
  // Beside a loss, whichever comes first.
  agent.cut();
  link->renew_session();
  ASSERT_TRUE(eventually([&] { return watcher.count("new") >= 5 || watcher.count("same") >= 1; }));
  ASSERT_TRUE(eventually([&] { return link->status().up; }));
  link->remove_observer(&watcher);
}

// The check of the nonce switched off: the snapshot would be taken for the agent it was made of.
TEST_F(LinkResumeTest, WithoutTheNonceASnapshotPassesForTheSame) {
  const auto dir = std::filesystem::path(::testing::TempDir()) / ("nonce-" + std::to_string(::getpid()));
  std::filesystem::create_directory(dir);
  std::ofstream(dir / "faults") << "link.no_nonce_check\n";
  base::fault::set_file((dir / "faults").string());
  auto link = channel::make_agent_link(agent.config(), timers, log);
  Watcher watcher;
  link->add_observer(&watcher);
  ASSERT_TRUE(eventually([&] { return watcher.count("new") == 1; }));
  agent.set_down(true);
  agent.cut();
  ASSERT_TRUE(eventually([&] { return !link->status().up; }));
  agent.set_nonce(0x1234567);  // never given out
  agent.set_down(false);
  EXPECT_TRUE(eventually([&] { return watcher.count("same") >= 1; }));
  EXPECT_EQ(watcher.count("new"), 1u);
  link->remove_observer(&watcher);
  base::fault::set_file("");
  std::filesystem::remove_all(dir);
}

TEST_F(LinkResumeTest, SendersOfNotesHearOfTheLossOfTheBulkConnection) {
  auto link = channel::make_agent_link(agent.config(), timers, log);
  Watcher watcher;
  link->add_observer(&watcher);
  // The first ones may go by the other connection, before this one is up.
  ASSERT_TRUE(eventually([&] {
    link->note(Method::kApply, bytes_of("ops"), api::Lane::kBulk);
    return agent.notes_on(wire::Role::kBulk) > 0;
  }));
  const auto downs = watcher.count("down");
  agent.cut(wire::Role::kBulk);
  ASSERT_TRUE(eventually([&] { return watcher.count("down") > downs && watcher.seen().back() == "same"; }));
  link->remove_observer(&watcher);
}

TEST_F(LinkResumeTest, ASilentAgentIsFoundDead) {
  auto config = agent.config();
  config.ping_after = milliseconds(10);
  config.dead_after = milliseconds(100);
  config.second_connection = false;
  std::vector<std::unique_ptr<MemoryCarrier>> ends;
  config.dial = [&](wire::Role, channel::Deadline) -> base::Result<channel::Dialled> {
    auto [ours, theirs] = memory_pair();
    EXPECT_TRUE(channel::send_welcome(*theirs, wire::Welcome{}, soon()));
    ends.push_back(std::move(theirs));
    return channel::Dialled{std::move(ours), {}};
  };
  auto link = channel::make_agent_link(config, timers, log);
  Watcher watcher;
  link->add_observer(&watcher);
  auto out = start(*link, Method::kInfo, {});
  ASSERT_TRUE(out->wait(std::chrono::seconds(5)));
  EXPECT_EQ(out->error, ECONNRESET);
  ASSERT_TRUE(eventually([&] { return watcher.why() == ETIMEDOUT; }));
  link->remove_observer(&watcher);
  link.reset();
}

// Dials an agent that welcomes and then sends `bytes`; what the link says of it.
std::string said_of(const wire::Bytes& bytes, base::Timers& timers, base::Logger& log, bool welcome = true) {
  channel::LinkConfig config;
  config.second_connection = false;
  config.backoff_min = std::chrono::minutes(1);
  config.backoff_max = std::chrono::minutes(1);
  std::vector<std::unique_ptr<MemoryCarrier>> ends;
  config.dial = [&](wire::Role, channel::Deadline) -> base::Result<channel::Dialled> {
    auto [ours, theirs] = memory_pair(8 * 1024 * 1024);
    if (welcome) {
      EXPECT_TRUE(channel::send_welcome(*theirs, wire::Welcome{}, soon()));
    }
    EXPECT_TRUE(theirs->write(bytes, soon()));
    theirs->finish();
    ends.push_back(std::move(theirs));
    return channel::Dialled{std::move(ours), {}};
  };
  auto link = channel::make_agent_link(config, timers, log);
  EXPECT_TRUE(eventually([&] { return !link->status().last_error.empty(); }));
  return link->status().last_error;
}

TEST_F(LinkResumeTest, BrokenAgentsAreRefusedWithAClearError) {
  using wire::FrameType;
  const auto frame = [](FrameType type, std::uint8_t flags, std::uint32_t id, std::size_t size) {
    wire::Bytes out;
    channel::append_frame(out, type, flags, 0, id, wire::Bytes(size));
    return out;
  };
  const auto said = [&](const wire::Bytes& bytes, bool welcome = true) {
    return said_of(bytes, timers, log, welcome);
  };
  const auto has = [](const std::string& text, const char* part) {
    return text.find(part) != std::string::npos ? std::string(part) : text;
  };
  EXPECT_EQ(has(said(frame(FrameType::kChunk, 0, 9, 10)), "chunk of an unknown call"),
            "chunk of an unknown call");
  EXPECT_EQ(has(said(frame(FrameType::kEnd, 0, 9, 10)), "end of an unknown call"), "end of an unknown call");
  EXPECT_EQ(has(said(frame(FrameType::kCall, 0, 9, 10)), "does not send"), "does not send");
  EXPECT_EQ(has(said(frame(FrameType{44}, 0, 9, 10)), "unknown frame type"), "unknown frame type");
  EXPECT_EQ(has(said(frame(FrameType::kPong, 0, 0, 8)), "pong without a ping"), "pong without a ping");
  auto cut = frame(FrameType::kPing, 0, 0, 8);
  cut.pop_back();
  EXPECT_EQ(has(said(cut), "inside a frame"), "inside a frame");
  EXPECT_EQ(has(said({}), "closed the connection"), "closed the connection");
  EXPECT_EQ(has(said(bytes_of("bash: nearbox-agent: command not found\n"), false), "does not speak"),
            "does not speak");
  EXPECT_EQ(has(said({}, false), "closed before the handshake"), "closed before the handshake");
}

TEST_F(LinkResumeTest, AnAgentThatIgnoresCreditIsCutOff) {
  auto config = agent.config();
  config.second_connection = false;
  std::vector<std::jthread> agents;
  config.dial = [&](wire::Role, channel::Deadline) -> base::Result<channel::Dialled> {
    auto [ours, theirs] = memory_pair(8 * 1024 * 1024);
    agents.emplace_back([carrier = std::shared_ptr<MemoryCarrier>(std::move(theirs))] {
      if (!channel::read_hello(*carrier, soon())) return;
      if (!channel::send_welcome(*carrier, wire::Welcome{}, soon())) return;
      channel::FrameReader reader(*carrier);
      while (true) {
        auto frame = reader.next(soon());
        if (!frame || !*frame) return;
        if ((*frame)->head.type != wire::FrameType::kCall) continue;
        wire::Bytes out;
        channel::append_frame(out, wire::FrameType::kChunk, 0, 0, (*frame)->head.call_id, wire::Bytes(2000));
        if (!carrier->write(out, soon())) return;
      }
    });
    return channel::Dialled{std::move(ours), {}};
  };
  auto link = channel::make_agent_link(config, timers, log);
  auto o = options();
  o.credit = 1999;
  auto out = start(*link, Method::kRead, {}, o);
  ASSERT_TRUE(out->wait());
  EXPECT_EQ(out->error, ECONNRESET);
  EXPECT_NE(link->status().last_error.find("credit"), std::string::npos);
  EXPECT_EQ(out->bytes.size(), 0u);
  link.reset();
}

}  // namespace
}  // namespace nearbox::test
