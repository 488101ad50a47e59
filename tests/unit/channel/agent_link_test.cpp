// SPDX-License-Identifier: Apache-2.0
#include <csignal>
#include <random>
#include <unistd.h>

#include <gtest/gtest.h>

#include "tests/unit/channel/test_agent.h"

namespace nearbox::test {
namespace {

using wire::Method;

struct AgentLinkTest : ::testing::Test {
  base::Logger log{2, base::LogLevel::kOff};
  base::Timers timers;
  TestAgent agent;
};

TEST_F(AgentLinkTest, AnswersAUnaryCall) {
  auto link = channel::make_agent_link(agent.config(), timers, log);
  auto out = start(*link, Method::kInfo, bytes_of("hello"));
  ASSERT_TRUE(out->wait());
  EXPECT_EQ(out->error, 0);
  EXPECT_EQ(out->payload, "hello");
}

TEST_F(AgentLinkTest, StreamsManyTimesItsCredit) {
  auto link = channel::make_agent_link(agent.config(), timers, log);
  auto o = options();
  o.credit = 100'000;
  o.lane = api::Lane::kBulk;
  auto out = start(*link, Method::kRead, range(7, 5'000'000), o);
  ASSERT_TRUE(out->wait());
  EXPECT_EQ(out->error, 0);
  EXPECT_EQ(out->payload, "end");
  ASSERT_EQ(out->bytes.size(), 5'000'000u);
  for (std::size_t i = 0; i < out->bytes.size(); ++i) ASSERT_EQ(out->bytes[i], pattern(7 + i)) << i;
}

TEST_F(AgentLinkTest, CarriesMessagesUpToTheLimit) {
  auto link = channel::make_agent_link(agent.config(), timers, log);
  auto out = start(*link, Method::kInfo, wire::Bytes(wire::kMaxMessage, std::byte{'z'}));
  auto above = start(*link, Method::kInfo, wire::Bytes(wire::kMaxMessage + 1));
  std::vector<OutcomePtr> many;
  for (int i = 0; i < 40; ++i)
    many.push_back(start(*link, Method::kInfo, wire::Bytes(200'000, std::byte{'q'})));
  ASSERT_TRUE(out->wait());
  EXPECT_EQ(out->error, 0);
  EXPECT_EQ(out->payload, std::string(wire::kMaxMessage, 'z'));
  ASSERT_TRUE(above->wait());
  EXPECT_EQ(above->error, EMSGSIZE);
  for (const auto& one : many) {
    ASSERT_TRUE(one->wait());
    EXPECT_EQ(one->payload, std::string(200'000, 'q'));
  }
}

TEST_F(AgentLinkTest, ManualCreditHoldsTheAgentBack) {
  auto link = channel::make_agent_link(agent.config(), timers, log);
  auto o = options();
  o.credit = 100'000;
  o.manual_credit = true;
  api::CallToken token = 0;
  auto out = start(*link, Method::kRead, range(0, 300'000), o, {}, &token);
  ASSERT_TRUE(eventually([&] { return out->size() == 100'000; }));
  // The answer to another call comes after all that the agent would have sent too much.
  ASSERT_TRUE(start(*link, Method::kInfo, {})->wait());
  EXPECT_EQ(out->size(), 100'000u);
  link->grant(token, 150'000);
  ASSERT_TRUE(eventually([&] { return out->size() == 250'000; }));
  link->grant(token, 50'000);
  ASSERT_TRUE(out->wait());
  EXPECT_EQ(out->bytes.size(), 300'000u);
}

TEST_F(AgentLinkTest, CancelEndsACallOnceAndTellsTheAgent) {
  auto link = channel::make_agent_link(agent.config(), timers, log);
  api::CallToken token = 0;
  auto out = start(*link, Method::kStatFs, {}, options(), {}, &token);
  ASSERT_TRUE(eventually([&] { return agent.live_calls == 1; }));
  EXPECT_NE(link->wire_id(token), 0u);
  link->cancel(token);
  link->cancel(token);
  ASSERT_TRUE(out->wait());
  EXPECT_EQ(out->error, ECANCELED);
  EXPECT_EQ(link->wire_id(token), 0u);
  EXPECT_TRUE(eventually([&] { return agent.cancelled == 1; }));
}

TEST_F(AgentLinkTest, CancelInTheMiddleOfAStream) {
  auto link = channel::make_agent_link(agent.config(), timers, log);
  for (int i = 0; i < 20; ++i) {
    api::CallToken token = 0;
    auto out = start(*link, Method::kRead, range(0, 1ull << 40), options(), {}, &token);
    ASSERT_TRUE(eventually([&] { return out->size() > 100'000; }));
    link->cancel(token);
    ASSERT_TRUE(out->wait());
    EXPECT_EQ(out->error, ECANCELED);
  }
  auto out = start(*link, Method::kInfo, bytes_of("still up"));
  ASSERT_TRUE(out->wait());
  EXPECT_EQ(out->payload, "still up");
  EXPECT_EQ(link->status().reconnects, 0u);
}

TEST_F(AgentLinkTest, DeadlinesHoldWithAndWithoutALink) {
  agent.set_down(true);
  auto link = channel::make_agent_link(agent.config(), timers, log);
  auto down = start(*link, Method::kInfo, {}, options(milliseconds(30)));
  auto past = start(*link, Method::kInfo, {}, options(milliseconds(0)));
  ASSERT_TRUE(down->wait());
  EXPECT_EQ(down->error, ETIMEDOUT);
  ASSERT_TRUE(past->wait());
  EXPECT_EQ(past->error, ETIMEDOUT);
  EXPECT_FALSE(link->status().up);
  EXPECT_NE(link->status().last_error, "");
  auto waits = start(*link, Method::kInfo, bytes_of("later"));
  agent.set_down(false);
  ASSERT_TRUE(waits->wait());
  EXPECT_EQ(waits->payload, "later");
  auto silent = start(*link, Method::kStatFs, {}, options(milliseconds(30)));
  ASSERT_TRUE(silent->wait());
  EXPECT_EQ(silent->error, ETIMEDOUT);
}

TEST_F(AgentLinkTest, TheDestructorEndsEveryCall) {
  auto link = channel::make_agent_link(agent.config(), timers, log);
  auto o = options();
  o.no_deadline = true;
  auto a = start(*link, Method::kStatFs, {}, o);
  auto b = start(*link, Method::kRead, range(0, 1ull << 40), options());
  ASSERT_TRUE(eventually([&] { return b->size() > 0; }));
  link.reset();
  ASSERT_TRUE(a->error && b->error);
  EXPECT_EQ(*a->error, ESHUTDOWN);
  EXPECT_EQ(*b->error, ESHUTDOWN);
}

TEST_F(AgentLinkTest, TheDestructorEndsTheSession) {
  auto link = channel::make_agent_link(agent.config(), timers, log);
  ASSERT_TRUE(start(*link, Method::kInfo, {})->wait());
  link.reset();
  const auto notes = agent.notes();
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_EQ(notes[0].first, Method::kSessionEnd);
}

// A carrier that tells whether the thread that dialled it is still there when it goes.
class LinkedCarrier final : public channel::Carrier {
 public:
  LinkedCarrier(std::unique_ptr<channel::Carrier> inner, std::function<void()> gone)
      : inner_(std::move(inner)), gone_(std::move(gone)) {}
  ~LinkedCarrier() override { gone_(); }
  LinkedCarrier(const LinkedCarrier&) = delete;
  LinkedCarrier& operator=(const LinkedCarrier&) = delete;
  base::Result<std::size_t> read(std::span<std::byte> into, channel::Deadline deadline) override {
    return inner_->read(into, deadline);
  }
  base::Result<void> write(wire::ByteView bytes, channel::Deadline deadline) override {
    return deaf ? base::Result<void>() : inner_->write(bytes, deadline);
  }
  void shutdown() noexcept override { inner_->shutdown(); }
  static inline std::atomic<bool> deaf{false};  // what is written gets lost

 private:
  const std::unique_ptr<channel::Carrier> inner_;
  const std::function<void()> gone_;
};

TEST_F(AgentLinkTest, AnAgentThatOwesAnEndIsDialledAgain) {
  auto config = agent.config();
  config.end_after_cancel = milliseconds(50);
  agent.wrap = [](wire::Role, std::unique_ptr<channel::Carrier> inner) -> std::unique_ptr<channel::Carrier> {
    return std::make_unique<LinkedCarrier>(std::move(inner), [] {});
  };
  auto link = channel::make_agent_link(config, timers, log);
  auto o = options();
  o.no_deadline = true;
  api::CallToken token = 0;
  auto out = start(*link, Method::kStatFs, {}, o, {}, &token);
  ASSERT_TRUE(eventually([&] { return agent.live_calls == 1; }));
  LinkedCarrier::deaf = true;
  link->cancel(token);
  ASSERT_TRUE(out->wait());
  EXPECT_TRUE(eventually([&] { return link->status().last_error.find("did not end") != std::string::npos; },
                         milliseconds(5000)));
  LinkedCarrier::deaf = false;
  EXPECT_TRUE(eventually([&] { return link->status().reconnects > 0; }));
}

TEST_F(AgentLinkTest, CarriersGoBeforeTheThreadThatMadeThem) {
  std::atomic<pid_t> dialler{0};
  std::atomic<int> gone{0};
  std::atomic<int> orphaned{0};
  agent.wrap = [&](wire::Role, std::unique_ptr<channel::Carrier> inner) -> std::unique_ptr<channel::Carrier> {
    dialler = ::gettid();
    return std::make_unique<LinkedCarrier>(std::move(inner), [&] {
      ++gone;
      if (::tgkill(::getpid(), dialler, 0) != 0) ++orphaned;
    });
  };
  auto link = channel::make_agent_link(agent.config(), timers, log);
  ASSERT_TRUE(start(*link, Method::kInfo, {})->wait());
  link.reset();
  EXPECT_GE(gone, 1);
  EXPECT_EQ(orphaned, 0);
}

TEST_F(AgentLinkTest, TheDestructorEndsADialThatHangs) {
  auto config = agent.config();
  base::Mutex mu;
  base::CondVar cv;
  bool aborted = false;
  config.dial = [&](wire::Role, channel::Deadline deadline) -> base::Result<channel::Dialled> {
    base::MutexLock lock(mu);
    while (!aborted && cv.wait_until(mu, deadline)) {
    }
    return base::errno_error(ECANCELED);
  };
  config.abort_dial = [&] {
    base::MutexLock lock(mu);
    aborted = true;
    cv.notify_all();
  };
  const auto began = Clock::now();
  auto link = channel::make_agent_link(config, timers, log);
  auto out = start(*link, Method::kInfo, {});
  link.reset();
  EXPECT_LT(Clock::now() - began, std::chrono::seconds(5));
  EXPECT_EQ(out->error, ESHUTDOWN);
}

TEST_F(AgentLinkTest, RefusesCallsAboveTheLimit) {
  agent.set_down(true);
  auto link = channel::make_agent_link(agent.config(), timers, log);
  std::vector<OutcomePtr> outs;
  for (std::uint32_t i = 0; i < wire::kMaxCallsInFlight; ++i) outs.push_back(start(*link, Method::kInfo, {}));
  auto above = start(*link, Method::kInfo, {});
  ASSERT_TRUE(above->wait());
  EXPECT_EQ(above->error, EAGAIN);
  agent.set_down(false);
  for (const auto& out : outs) {
    ASSERT_TRUE(out->wait());
    EXPECT_EQ(out->error, 0);
  }
}

TEST_F(AgentLinkTest, DialsAgainWithANewTokenWhenOneIsRefused) {
  agent.token.fill(std::byte{1});
  auto link = channel::make_agent_link(agent.config(), timers, log);
  ASSERT_TRUE(eventually([&] { return agent.dials(wire::Role::kControl) >= 3; }));
  EXPECT_NE(link->status().last_error.find("wrong token"), std::string::npos) << link->status().last_error;
  EXPECT_FALSE(link->status().up);
  link.reset();
  agent.token = agent.accepted_token;
  link = channel::make_agent_link(agent.config(), timers, log);
  EXPECT_TRUE(start(*link, Method::kInfo, {})->wait());
}

TEST_F(AgentLinkTest, AFinalErrorEndsAllCallsUntilRedial) {
  agent.set_down(true);
  auto config = agent.config();
  config.is_final = [](const base::Error& error) { return error.as_errno() == ECONNREFUSED; };
  auto link = channel::make_agent_link(config, timers, log);
  auto waits = start(*link, Method::kInfo, {});
  ASSERT_TRUE(waits->wait());
  EXPECT_EQ(waits->error, ECONNREFUSED);
  auto later = start(*link, Method::kInfo, {});
  ASSERT_TRUE(later->wait());
  EXPECT_EQ(later->error, ECONNREFUSED);
  EXPECT_EQ(agent.dials(wire::Role::kControl), 1);
  agent.set_down(false);
  link->redial();
  auto out = start(*link, Method::kInfo, bytes_of("back"));
  ASSERT_TRUE(out->wait());
  EXPECT_EQ(out->payload, "back");
}

TEST_F(AgentLinkTest, WorksOverOneConnection) {
  agent.set_bulk_down(true);
  auto link = channel::make_agent_link(agent.config(), timers, log);
  auto o = options();
  o.lane = api::Lane::kBulk;
  auto out = start(*link, Method::kRead, range(0, 1'000'000), o);
  ASSERT_TRUE(out->wait());
  EXPECT_EQ(out->bytes.size(), 1'000'000u);
  EXPECT_TRUE(eventually([&] { return agent.dials(wire::Role::kBulk) > 2; }));
  EXPECT_TRUE(link->status().up);
}

TEST_F(AgentLinkTest, MeasuresRoundTripsAndRates) {
  auto config = agent.config();
  config.ping_after = milliseconds(5);
  auto link = channel::make_agent_link(config, timers, log);
  auto out = start(*link, Method::kRead, range(0, 30'000'000));
  ASSERT_TRUE(out->wait());
  EXPECT_TRUE(eventually([&] { return link->status().rtt.count() > 0; }));
  EXPECT_GE(link->status().bytes_in, 30'000'000u);
  EXPECT_GT(link->status().bytes_out, 0u);
}

TEST_F(AgentLinkTest, NotesOfOneLaneKeepTheirOrder) {
  auto link = channel::make_agent_link(agent.config(), timers, log);
  ASSERT_TRUE(start(*link, Method::kInfo, {})->wait());
  std::mt19937_64 rng(3);
  std::vector<std::string> want;
  for (int i = 0; i < 300; ++i) {
    std::string text = std::to_string(i) + ":" + std::string(rng() % 5 == 0 ? rng() % 100'000 : 10, 'n');
    want.push_back(text);
    link->note(Method::kOpForget, bytes_of(text), api::Lane::kSmall);
  }
  ASSERT_TRUE(eventually([&] { return agent.notes().size() == want.size(); }));
  const auto notes = agent.notes();
  for (std::size_t i = 0; i < want.size(); ++i) ASSERT_EQ(notes[i].second, want[i]) << i;
}

}  // namespace
}  // namespace nearbox::test
