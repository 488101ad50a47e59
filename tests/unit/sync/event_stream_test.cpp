// SPDX-License-Identifier: Apache-2.0
#include "sync/engine/event_stream.h"

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include <gtest/gtest.h>

#include "tests/unit/sync/fake_link.h"

namespace nearbox::sync {
namespace {

using test::eventually;
using wire::Method;

std::uint64_t seed() {
  const char* text = std::getenv("NEARBOX_TEST_SEED");
  return text == nullptr ? 20240611 : std::strtoull(text, nullptr, 10);
}

wire::Bytes record(const wire::Event& event) {
  const auto body = wire::encode(event);
  const auto size = static_cast<std::uint32_t>(body.size());
  wire::Bytes out(sizeof size);
  std::memcpy(out.data(), &size, sizeof size);
  out.insert(out.end(), body.begin(), body.end());
  return out;
}

wire::Event op_done(std::uint64_t seq, std::uint64_t op) {
  wire::OpDone done;
  done.op_id = op;
  return {seq, wire::EventKind::kOpDone, wire::encode(done), static_cast<std::uint32_t>(1000 + seq)};
}

// The agent's side: keeps events until they are confirmed, sends them from where it is asked.
class Agent {
 public:
  explicit Agent(test::FakeLink& link) : link_(link) {
    link_.serve(Method::kSubscribe, [this](api::CallToken token, const wire::Bytes& payload) {
      const auto from = wire::decode<wire::Subscribe>(payload);
      ASSERT_TRUE(from);
      asked_.push_back(*from);
      token_ = token;
      next_ = from->instance == instance ? from->after_seq : confirmed_;
      flush();
    });
    link_.serve_note(Method::kConfirm, [this](const wire::Bytes& payload) {
      const auto confirm = wire::decode<wire::Confirm>(payload);
      ASSERT_TRUE(confirm);
      EXPECT_GE(confirm->seq, confirmed_);
      EXPECT_NE(confirm->nonce, last_nonce_);
      last_nonce_ = confirm->nonce;
      confirmed_ = confirm->seq;
      confirmed = confirm->seq;
      ++confirms;
    });
  }
  void emit(std::uint64_t op) {  // (link)
    events_.push_back(op_done(events_.size() + 1, op));
    flush();
  }
  bool refuse = false;  // does not know where we are (link)
  void flush() {        // (link)
    if (refuse && link_.on_wire(token_)) return link_.end(token_, ESTALE);
    while (next_ < events_.size() && link_.on_wire(token_)) {
      if (next_ < confirmed_) {
        link_.end(token_, ESTALE);
        return;
      }
      const auto& event = events_[next_++];
      if (!link_.chunk(token_, record(event))) return;
    }
  }
  void restart(std::uint64_t with) {  // (link)
    instance = with;
    events_.clear();
    confirmed_ = next_ = 0;
    confirmed = 0;
  }
  api::CallToken token() const { return token_; }
  std::vector<wire::Subscribe> asked_;
  std::uint64_t instance = 1;
  std::atomic<std::uint64_t> confirmed{0};
  std::atomic<int> confirms{0};

 private:
  test::FakeLink& link_;
  std::vector<wire::Event> events_;
  api::CallToken token_ = 0;
  std::uint64_t next_ = 0;
  std::uint64_t confirmed_ = 0;
  std::uint64_t last_nonce_ = 0;
};

class EventStreamTest : public ::testing::Test {
 protected:
  EventStreamTest() {
    stream.on_new_instance([this](std::uint64_t instance) { note(-static_cast<std::int64_t>(instance)); });
    stream.on_op_done([this](const wire::OpDone& done) { note(static_cast<std::int64_t>(done.op_id)); });
    stream.on_proc_exit(
        [this](const wire::ProcExit& exit) { note(1000000 + static_cast<std::int64_t>(exit.proc)); });
  }
  ~EventStreamTest() override {
    stream.stop();
    link.stop();
  }
  void note(std::int64_t what) {
    const std::lock_guard lock(mu);
    EXPECT_FALSE(running.exchange(true)) << "one listener at a time";
    heard.push_back(what);
    running = false;
  }
  std::vector<std::int64_t> all() {
    const std::lock_guard lock(mu);
    return heard;
  }
  bool hears(std::size_t count) {
    return eventually([&] { return all().size() >= count; });
  }

  base::Logger log{2, base::LogLevel::kOff};
  test::FakeLink link{seed()};
  Agent agent{link};
  std::mutex mu;
  std::atomic<bool> running{false};
  std::vector<std::int64_t> heard;
  EventStream stream{link, log};
};

TEST_F(EventStreamTest, DeliversOnceInOrderOverManyLosses) {
  SCOPED_TRACE("seed " + std::to_string(seed()));
  stream.start();
  link.connect(1, false);
  link.lose_at_random(40);
  constexpr int kEvents = 2000;
  for (int i = 1; i <= kEvents; ++i) link.post([this, i] { agent.emit(static_cast<std::uint64_t>(i)); });
  ASSERT_TRUE(hears(kEvents + 1));
  const auto got = all();
  ASSERT_EQ(got.size(), kEvents + 1u);
  EXPECT_EQ(got[0], -1);
  for (int i = 1; i <= kEvents; ++i) ASSERT_EQ(got[static_cast<std::size_t>(i)], i);
  EXPECT_TRUE(eventually([&] { return agent.confirmed == kEvents; }));
  EXPECT_LT(agent.confirms.load(), 1000);
  EXPECT_EQ(link.calls_made(Method::kSubscribe), 1u);
}

TEST_F(EventStreamTest, ANewInstanceStartsFromItsFirstEvent) {
  stream.start();
  link.connect(1, false);
  link.post([this] { agent.emit(10), agent.emit(11); });
  ASSERT_TRUE(hears(3));
  link.lose();
  link.post([this] { agent.restart(2), agent.emit(20); });
  link.connect(2, false);
  ASSERT_TRUE(hears(5));
  EXPECT_EQ(all(), (std::vector<std::int64_t>{-1, 10, 11, -2, 20}));
  link.do_now([this] {
    EXPECT_EQ(agent.asked_.back().instance, 2u);
    EXPECT_EQ(agent.asked_.back().after_seq, 0u);
  });
}

// The agent forgot our session but is the same process: its sequence starts again all the same.
TEST_F(EventStreamTest, ANewSessionOfTheSameAgentStartsAgain) {
  stream.start();
  link.connect(1, false);
  link.post([this] { agent.emit(10), agent.emit(11); });
  ASSERT_TRUE(hears(3));
  link.lose();
  link.post([this] { agent.restart(1), agent.emit(20); });
  link.connect(1, false);
  ASSERT_TRUE(hears(5));
  EXPECT_EQ(all(), (std::vector<std::int64_t>{-1, 10, 11, -1, 20}));
}

// What we know of it it does not know itself: a copy, whose events are others.
TEST_F(EventStreamTest, AnAgentThatDoesNotKnowOurPositionMeansANewSession) {
  stream.start();
  link.connect(1, false);
  link.post([this] { agent.emit(10), agent.emit(11); });
  ASSERT_TRUE(hears(3));
  link.lose();
  link.post([this] { agent.refuse = true; });
  link.connect(1, true);
  ASSERT_TRUE(eventually([&] { return link.renewals >= 1; }));
  link.lose();
  link.post([this] { agent.refuse = false, agent.restart(1), agent.emit(20); });
  link.connect(1, false);
  ASSERT_TRUE(hears(5));
  EXPECT_EQ(all(), (std::vector<std::int64_t>{-1, 10, 11, -1, 20}));
  link.do_now([this] {
    EXPECT_EQ(agent.asked_.at(1).after_seq, 2u);
    EXPECT_EQ(agent.asked_.at(1).tag, 1002u) << "of the event that is named";
  });
}

TEST_F(EventStreamTest, ResumesAfterTheLastWholeEvent) {
  stream.start();
  link.connect(1, false);
  link.post([this] {
    agent.emit(10);
    const auto half = record(op_done(2, 11));
    (void)link.chunk(agent.token(), wire::ByteView(half).first(half.size() / 2));
  });
  ASSERT_TRUE(hears(2));
  link.lose();
  link.connect(1, true);
  link.post([this] { agent.emit(11); });
  ASSERT_TRUE(hears(3));
  EXPECT_EQ(all(), (std::vector<std::int64_t>{-1, 10, 11}));
  link.do_now([this] { EXPECT_EQ(agent.asked_.back().after_seq, 1u); });
  EXPECT_EQ(link.calls_made(Method::kSubscribe), 1u) << "the call went on: it was not mended by another";
}

TEST_F(EventStreamTest, AGapIsNeverSteppedOver) {
  stream.start();
  link.connect(1, false);
  link.post([this] {
    agent.emit(10);
    (void)link.chunk(agent.token(), record(op_done(3, 99)));
  });
  ASSERT_TRUE(eventually([&] { return link.calls_made(Method::kSubscribe) >= 2; }));
  link.post([this] { agent.emit(11), agent.emit(12); });
  ASSERT_TRUE(hears(4));
  EXPECT_EQ(all(), (std::vector<std::int64_t>{-1, 10, 11, 12}));
}

TEST_F(EventStreamTest, GarbageEndsTheSubscriptionNotTheStream) {
  stream.start();
  link.connect(1, false);
  link.post([this] {
    agent.emit(10);
    (void)link.chunk(agent.token(), wire::Bytes(100, std::byte{0xff}));
  });
  ASSERT_TRUE(eventually([&] { return link.calls_made(Method::kSubscribe) >= 2; }));
  link.post([this] { agent.emit(11); });
  ASSERT_TRUE(hears(3));
  EXPECT_EQ(all(), (std::vector<std::int64_t>{-1, 10, 11}));
}

TEST_F(EventStreamTest, ABodyThatDoesNotDecodeIsNotConfirmed) {
  stream.start();
  link.connect(1, false);
  link.post([this] {
    (void)link.chunk(agent.token(), record({1, wire::EventKind::kOpDone, wire::Bytes(3)}));
  });
  ASSERT_TRUE(eventually([&] { return link.calls_made(Method::kSubscribe) >= 2; }));
  link.post([this] { agent.emit(10); });
  ASSERT_TRUE(hears(2));
  EXPECT_EQ(all(), (std::vector<std::int64_t>{-1, 10}));
}

TEST_F(EventStreamTest, ConfirmsSoonAndAgainAfterALoss) {
  stream.start();
  link.connect(1, false);
  link.post([this] { agent.emit(10); });
  EXPECT_TRUE(eventually([&] { return agent.confirmed == 1; }));
  const int before = agent.confirms;
  link.lose();
  link.connect(1, true);
  EXPECT_TRUE(eventually([&] { return agent.confirms > before; }));
}

TEST_F(EventStreamTest, EventsOfKindsFromTheFutureAreSkipped) {
  stream.start();
  link.connect(1, false);
  link.post([this] { (void)link.chunk(agent.token(), record({1, static_cast<wire::EventKind>(77), {}})); });
  wire::ProcExit exit;
  exit.proc = 5;
  link.post([&] {
    (void)link.chunk(agent.token(), record({2, wire::EventKind::kProcExit, wire::encode(exit)}));
  });
  ASSERT_TRUE(hears(2));
  EXPECT_EQ(all().back(), 1000005);
}

wire::Event changed(std::uint64_t seq, const std::string& name) {
  wire::Changed body;
  body.states.push_back({{1, 2}, name, 0, {}, {}});
  return {seq, wire::EventKind::kChanged, wire::encode(body)};
}

TEST_F(EventStreamTest, HandsOverWhatTheAgentWatched) {
  stream.on_changed([this](const wire::Changed& body) {
    note(static_cast<std::int64_t>(body.states.size()) * 100 +
         static_cast<std::int64_t>(body.states.at(0).name.size()));
  });
  stream.on_lost([this](const wire::Lost& body) { note(static_cast<std::int64_t>(body.path.size())); });
  stream.start();
  link.connect(1, false);
  link.post([this] {
    (void)link.chunk(agent.token(), record(changed(1, "abc")));
    wire::Lost lost;
    lost.path = "some/where";
    (void)link.chunk(agent.token(), record({2, wire::EventKind::kLost, wire::encode(lost)}));
  });
  ASSERT_TRUE(hears(3));
  EXPECT_EQ(all(), (std::vector<std::int64_t>{-1, 103, 10}));
}

TEST_F(EventStreamTest, ANameThatCannotBeIsNotHandedOver) {
  std::atomic<int> count{0};
  stream.on_changed([&](const wire::Changed&) { ++count; });
  stream.on_lost([&](const wire::Lost&) { ++count; });
  stream.start();
  link.connect(1, false);
  link.post([this] { (void)link.chunk(agent.token(), record(changed(1, "../x"))); });
  ASSERT_TRUE(eventually([&] { return link.calls_made(Method::kSubscribe) >= 2; }));
  link.post([this] {
    wire::Lost lost;
    lost.path = "/absolute";
    (void)link.chunk(agent.token(), record({1, wire::EventKind::kLost, wire::encode(lost)}));
  });
  ASSERT_TRUE(eventually([&] { return link.calls_made(Method::kSubscribe) >= 3; }));
  EXPECT_EQ(count, 0);
}

TEST_F(EventStreamTest, TellsWhenAnEventWasHandled) {
  stream.start();
  link.connect(1, false);
  std::atomic<int> first{-1}, second{-1}, other{-1}, late{-1};
  stream.when_handled(1, 2, [&](int error) {
    EXPECT_GE(all().size(), 3u) << "the listeners come first";
    first = error;
  });
  stream.when_handled(1, 3, [&](int error) { second = error; });
  stream.when_handled(7, 1, [&](int error) { other = error; });
  EXPECT_EQ(other, ECONNRESET);
  link.post([this] { agent.emit(10), agent.emit(11); });
  ASSERT_TRUE(eventually([&] { return first == 0; }));
  EXPECT_EQ(second, -1);
  EXPECT_EQ(stream.position().handled, 2u);
  EXPECT_EQ(stream.position().newest, 3u);
  stream.when_handled(1, 2, [&](int error) { late = error; });
  EXPECT_EQ(late, 0);
  link.post([this] { agent.restart(2); });
  link.connect(2, false);
  EXPECT_TRUE(eventually([&] { return second == ECONNRESET; }));
  std::atomic<int> never{-1};
  stream.when_handled(2, 100, [&](int error) { never = error; });
  stream.stop();
  EXPECT_EQ(never, ESHUTDOWN);
}

TEST_F(EventStreamTest, NoListenerRunsAfterStop) {
  stream.start();
  link.connect(1, false);
  std::atomic<bool> ended{false};
  for (int i = 0; i < 300; ++i) {
    link.post([this, i] { agent.emit(static_cast<std::uint64_t>(i) + 1); });
  }
  link.post([&] { ended = true; });
  ASSERT_TRUE(hears(2));
  stream.stop();
  const auto count = all().size();
  ASSERT_TRUE(eventually([&] { return ended.load(); }));
  EXPECT_EQ(all().size(), count);
  stream.stop();
}

}  // namespace
}  // namespace nearbox::sync
