// SPDX-License-Identifier: Apache-2.0
#include "client/channel/mux_server.h"

#include <atomic>
#include <random>
#include <thread>

#include <gtest/gtest.h>

#include "client/channel/frame.h"
#include "tests/unit/channel/memory_carrier.h"
#include "tests/unit/channel/test_agent.h"

namespace nearbox::test {
namespace {

using channel::append_frame;
using wire::FrameType;
using wire::Method;

// Streams and keeps calls as the test asks: kRead streams zeros for ever, kInfo echoes, kStatFs waits.
struct Handler : channel::CallHandler {
  void on_call(Method method, wire::ByteView payload, channel::ResponderPtr responder) override {
    if (method == Method::kInfo) {
      responder->end(0, payload);
      ++answered;
    } else if (method == Method::kRead) {
      workers.emplace_back([this, responder] {
        const wire::Bytes zeros(100'000);
        while (responder->send(zeros)) taken += zeros.size();
        responder->end(responder->cancelled() ? ECANCELED : EPIPE);
      });
    } else if (method == Method::kStatFs) {
      kept.push_back(responder);
    }  // else: dropped
  }
  void on_note(Method, wire::ByteView payload) override { notes.emplace_back(wire::as_text(payload)); }
  void on_cancel(std::uint32_t) override { ++cancels; }
  std::vector<channel::ResponderPtr> kept;
  std::vector<std::string> notes;  // read after the connection is over
  std::atomic<std::uint64_t> taken{0};
  std::atomic<int> cancels{0};
  std::atomic<int> answered{0};
  std::vector<std::jthread> workers;
};

// A server connection and a raw client that speaks in frames.
struct MuxServerTest : ::testing::Test {
  void serve(std::size_t capacity = 64 * 1024) {
    auto [a, b] = memory_pair(capacity);
    client = std::move(a);
    server_end = std::move(b);
    reader.emplace(*client);
    server = std::jthread([this] {
      base::Logger log(2, base::LogLevel::kOff);
      result = channel::serve_connection(*server_end, handler, serve_options, log);
      server_end->shutdown();
    });
  }
  void send(const wire::Bytes& bytes) { ASSERT_TRUE(client->write(bytes, soon())); }
  void send(FrameType type, std::uint16_t code, std::uint32_t id, wire::ByteView payload = {},
            std::uint8_t flags = 0) {
    wire::Bytes out;
    append_frame(out, type, flags, code, id, payload);
    send(out);
  }
  void call(Method method, std::uint32_t id, std::uint32_t credit, std::uint32_t deadline_ms = 0,
            std::string_view payload = {}) {
    auto bytes = wire::encode(wire::CallHead{credit, deadline_ms});
    const auto more = wire::as_view(payload);
    bytes.insert(bytes.end(), more.begin(), more.end());
    send(FrameType::kCall, static_cast<std::uint16_t>(method), id, bytes);
  }
  void credit(std::uint32_t id, std::uint32_t more) {
    send(FrameType::kCredit, 0, id, std::as_bytes(std::span(&more, 1)));
  }
  // The next frame that is no ping; payload copied.
  struct Got {
    wire::FrameHeader head;
    wire::Bytes payload;
  };
  std::optional<Got> next(std::chrono::milliseconds limit = std::chrono::seconds(20)) {
    const auto deadline = Clock::now() + limit;
    while (true) {
      auto frame = reader->next(deadline);
      if (!frame || !*frame) return std::nullopt;
      if ((*frame)->head.type == FrameType::kPing) continue;
      return Got{(*frame)->head, wire::Bytes((*frame)->payload.begin(), (*frame)->payload.end())};
    }
  }
  int over() {
    server.join();
    return result ? 0 : result.error().as_errno();
  }
  void TearDown() override {
    if (client) client->shutdown();
    if (server_end) server_end->shutdown();
    if (server.joinable()) server.join();
    handler.workers.clear();
  }

  channel::ServeOptions serve_options;
  Handler handler;
  std::unique_ptr<MemoryCarrier> client;
  std::unique_ptr<MemoryCarrier> server_end;
  std::optional<channel::FrameReader> reader;
  base::Result<void> result;
  std::jthread server;
};

TEST_F(MuxServerTest, NeverSendsMoreThanTheCredit) {
  serve();
  std::mt19937_64 rng(1);
  std::uint64_t granted = 70'000;
  std::uint64_t received = 0;
  call(Method::kRead, 1, static_cast<std::uint32_t>(granted));
  for (int step = 0; step < 50; ++step) {
    while (received < granted) {
      const auto frame = next();
      ASSERT_TRUE(frame);
      ASSERT_EQ(frame->head.type, FrameType::kChunk);
      received += frame->payload.size();
      ASSERT_LE(received, granted);
    }
    // Whatever the worker had sent beyond the credit would come before this answer.
    call(Method::kInfo, 2, 0, 0, "x");
    const auto end = next();
    ASSERT_TRUE(end);
    ASSERT_EQ(end->head.type, FrameType::kEnd);
    const auto more = static_cast<std::uint32_t>(1 + rng() % 200'000);
    granted += more;
    credit(1, more);
  }
}

TEST_F(MuxServerTest, SmallAnswersPassBulkThatTheReceiverDoesNotTake) {
  constexpr std::size_t kCapacity = 64 * 1024;
  serve(kCapacity);
  for (std::uint32_t id = 1; id <= 8; ++id) call(Method::kRead, id, wire::kMaxCredit);
  // The pipe is full, and every stream has as much queued as it may.
  ASSERT_TRUE(eventually([&] { return handler.taken.load() >= 8 * 200'000; }));
  call(Method::kInfo, 100, 0, 0, "small");
  ASSERT_TRUE(eventually([&] { return handler.answered == 1; }));
  std::size_t before = 0;
  while (true) {
    const auto frame = next();
    ASSERT_TRUE(frame);
    if (frame->head.type == FrameType::kEnd) {
      EXPECT_EQ(frame->head.call_id, 100u);
      break;
    }
    before += frame->payload.size();
  }
  // What was in the pipe, and the frame that the writer held.
  EXPECT_LE(before, kCapacity + wire::kMaxFramePayload);
}

TEST_F(MuxServerTest, StreamsTakeTurns) {
  serve();
  for (std::uint32_t id = 1; id <= 4; ++id) call(Method::kRead, id, wire::kMaxCredit);
  ASSERT_TRUE(eventually([&] { return handler.taken.load() >= 4 * 200'000; }));
  std::map<std::uint32_t, std::size_t> got;
  std::size_t total = 0;
  while (total < 6'000'000) {
    const auto frame = next();
    ASSERT_TRUE(frame);
    got[frame->head.call_id] += frame->payload.size();
    total += frame->payload.size();
  }
  ASSERT_EQ(got.size(), 4u);
  for (const auto& [id, size] : got) EXPECT_GT(size, 1'000'000u) << id;
}

TEST_F(MuxServerTest, PutsPiecesTogether) {
  serve(8 * 1024 * 1024);
  const std::string text(100'000, 'y');
  auto bytes = wire::encode(wire::CallHead{});
  const auto more = wire::as_view(text);
  bytes.insert(bytes.end(), more.begin(), more.end());
  const wire::ByteView view(bytes);
  for (std::size_t at = 0; at < view.size(); at += 30'000) {
    const auto piece = view.subspan(at, std::min<std::size_t>(30'000, view.size() - at));
    const auto flags = at + piece.size() < view.size() ? wire::kFlagMore : std::uint8_t{0};
    send(FrameType::kCall, static_cast<std::uint16_t>(Method::kInfo), 5, piece, flags);
    call(Method::kInfo, static_cast<std::uint32_t>(1000 + at), 0, 0, "between");
  }
  std::string answer;
  while (answer.size() < text.size()) {
    const auto frame = next();
    ASSERT_TRUE(frame);
    ASSERT_EQ(frame->head.type, FrameType::kEnd);
    if (frame->head.call_id == 5) answer += wire::as_text(frame->payload);
  }
  EXPECT_EQ(answer, text);
}

TEST_F(MuxServerTest, CancelAndDeadlineEndACall) {
  serve();
  call(Method::kRead, 1, 1000);
  ASSERT_TRUE(next());  // the 1000 bytes; its worker waits for credit
  send(FrameType::kCancel, 0, 1);
  auto end = next();
  ASSERT_TRUE(end);
  EXPECT_EQ(end->head.type, FrameType::kEnd);
  EXPECT_EQ(end->head.code, ECANCELED);
  EXPECT_TRUE(eventually([&] { return handler.cancels == 1; }));

  call(Method::kStatFs, 2, 0, 20);
  end = next();
  ASSERT_TRUE(end);
  EXPECT_EQ(end->head.call_id, 2u);
  EXPECT_EQ(end->head.code, ETIMEDOUT);
  EXPECT_TRUE(eventually([&] { return handler.cancels == 2; }));

  call(Method::kTree, 3, 0);  // its handler drops it
  end = next();
  ASSERT_TRUE(end);
  EXPECT_EQ(end->head.code, ECANCELED);
}

TEST_F(MuxServerTest, AnswersEagainAboveTheLimitOfCalls) {
  serve(64 * 1024 * 1024);
  for (std::uint32_t id = 1; id <= wire::kMaxCallsInFlight + 1; ++id) call(Method::kStatFs, id, 0);
  const auto end = next();
  ASSERT_TRUE(end);
  EXPECT_EQ(end->head.call_id, wire::kMaxCallsInFlight + 1);
  EXPECT_EQ(end->head.code, EAGAIN);
}

TEST_F(MuxServerTest, ASilentPeerIsDead) {
  serve_options.ping_after = milliseconds(5);
  serve_options.dead_after = milliseconds(50);
  serve();
  call(Method::kStatFs, 1, 0);
  EXPECT_EQ(over(), ETIMEDOUT);
  EXPECT_EQ(handler.cancels, 1);
  ASSERT_EQ(handler.kept.size(), 1u);
  EXPECT_TRUE(handler.kept[0]->cancelled());
  EXPECT_FALSE(handler.kept[0]->send(wire::as_view("late")));
}

TEST_F(MuxServerTest, EndsQuietlyWhenThePeerCloses) {
  serve();
  send(FrameType::kNote, static_cast<std::uint16_t>(Method::kConfirm), 0, wire::as_view("n"));
  client->finish();
  EXPECT_EQ(over(), 0);
  EXPECT_EQ(handler.notes, std::vector<std::string>{"n"});
}

TEST_F(MuxServerTest, BrokenFramesCloseTheConnection) {
  const auto frame = [](FrameType type, std::uint8_t flags, std::uint32_t id, const wire::Bytes& payload) {
    wire::Bytes out;
    append_frame(out, type, flags, static_cast<std::uint16_t>(Method::kStatFs), id, payload);
    return out;
  };
  const auto twice = [&](wire::Bytes one) {
    auto two = one;
    two.insert(two.end(), one.begin(), one.end());
    return two;
  };
  auto too_long = frame(FrameType::kCall, 0, 1, {});
  too_long[0] = too_long[1] = too_long[2] = std::byte{0xff};
  wire::Bytes many_partials;
  for (std::uint32_t id = 1; id <= wire::kMaxPartialMessages + 1; ++id) {
    const auto one = frame(FrameType::kCall, wire::kFlagMore, id, wire::Bytes(10));
    many_partials.insert(many_partials.end(), one.begin(), one.end());
  }
  wire::Bytes too_much;
  for (int i = 0; i < 70; ++i) {
    const auto one = frame(FrameType::kNote, wire::kFlagMore, 0, wire::Bytes(wire::kMaxFramePayload));
    too_much.insert(too_much.end(), one.begin(), one.end());
  }
  const auto head = wire::encode(wire::CallHead{});
  const auto greedy = wire::encode(wire::CallHead{wire::kMaxCredit + 1, 0});
  auto truncated = frame(FrameType::kCall, 0, 1, head);
  truncated.pop_back();
  const std::pair<const char*, wire::Bytes> cases[] = {
      {"length", too_long},
      {"type 0", frame(FrameType{0}, 0, 1, head)},
      {"type 99", frame(FrameType{99}, 0, 1, head)},
      {"flags", frame(FrameType::kCall, 2, 1, head)},
      {"more on a ping", frame(FrameType::kPing, wire::kFlagMore, 0, wire::Bytes(8))},
      {"empty piece", frame(FrameType::kCall, wire::kFlagMore, 1, {})},
      {"an agent's frame", frame(FrameType::kChunk, 0, 1, wire::Bytes(8))},
      {"hello again", frame(FrameType::kHello, 0, 0, wire::Bytes(8))},
      {"no call head", frame(FrameType::kCall, 0, 1, wire::Bytes(7))},
      {"credit", frame(FrameType::kCall, 0, 1, greedy)},
      {"credit frame", frame(FrameType::kCredit, 0, 1, wire::Bytes(5))},
      {"ping", frame(FrameType::kPing, 0, 0, wire::Bytes(7))},
      {"id in use", twice(frame(FrameType::kCall, 0, 1, head))},
      {"too many messages in pieces", many_partials},
      {"too long a message", too_much},
      {"truncated", truncated},
  };
  for (const auto& [name, bytes] : cases) {
    SCOPED_TRACE(name);
    serve(8 * 1024 * 1024);
    send(bytes);
    client->finish();
    EXPECT_EQ(over(), EPROTO);
    EXPECT_FALSE(result.error().context.empty());
  }
}

TEST_F(MuxServerTest, SurvivesGarbage) {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 rng(seed);
    wire::Bytes bytes(1 + rng() % 300);
    for (auto& b : bytes) b = static_cast<std::byte>(rng());
    // Half of them look like frames at first.
    if (seed % 2 == 0 && bytes.size() > 12) {
      bytes[1] = bytes[2] = bytes[3] = std::byte{0};
      bytes[4] = static_cast<std::byte>(4 + rng() % 8);
      bytes[5] = std::byte{0};
    }
    serve();
    send(bytes);
    client->finish();
    const int error = over();
    EXPECT_TRUE(error == 0 || error == EPROTO) << error;
    handler.workers.clear();
    handler.kept.clear();
  }
}

TEST(Handshake, RefusesGarbage) {
  const auto hello_error = [](const wire::Bytes& bytes) {
    auto [a, b] = memory_pair();
    EXPECT_TRUE(a->write(bytes, soon()));
    a->finish();
    auto hello = channel::read_hello(*b, soon());
    return hello ? 0 : hello.error().as_errno();
  };
  wire::Hello hello;
  hello.build = "b";
  const auto framed = [](FrameType type, const wire::Bytes& payload) {
    wire::Bytes out;
    append_frame(out, type, 0, 0, 0, payload);
    return out;
  };
  EXPECT_EQ(hello_error(framed(FrameType::kHello, wire::encode(hello))), 0);
  EXPECT_EQ(hello_error(bytes_of("GET / HTTP/1.1\r\nHost: x\r\n\r\n")), EPROTO);
  EXPECT_EQ(hello_error(framed(FrameType::kCall, wire::encode(hello))), EPROTO);
  EXPECT_EQ(hello_error(framed(FrameType::kHello, wire::Bytes(wire::kMaxHelloBytes + 1))), EPROTO);
  hello.magic = 1;
  EXPECT_EQ(hello_error(framed(FrameType::kHello, wire::encode(hello))), EPROTO);
  hello = {};
  hello.role = wire::Role{7};
  EXPECT_EQ(hello_error(framed(FrameType::kHello, wire::encode(hello))), EPROTO);
  EXPECT_EQ(hello_error(bytes_of("abc")), ECONNRESET);
  auto [a, b] = memory_pair();
  auto late = channel::read_hello(*b, Clock::now());
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().as_errno(), ETIMEDOUT);
}

}  // namespace
}  // namespace nearbox::test
