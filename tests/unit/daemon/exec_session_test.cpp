// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/exec_session.h"

#include <csignal>
#include <cstring>
#include <functional>
#include <sys/socket.h>
#include <thread>

#include <gtest/gtest.h>

#include "tests/unit/sync/fake_link.h"

namespace nearbox::daemon {
namespace {

using namespace std::chrono_literals;
using sync::test::eventually;
using sync::test::FakeLink;
using wire::Method;

Deadline soon() { return std::chrono::steady_clock::now() + 20s; }

wire::Bytes framed(const wire::Bytes& record) {
  const auto length = static_cast<std::uint32_t>(record.size());
  wire::Bytes out(4);
  std::memcpy(out.data(), &length, 4);
  out.insert(out.end(), record.begin(), record.end());
  return out;
}

wire::ProcOutput text(std::uint64_t offset, std::string_view bytes) {
  wire::ProcOutput record;
  record.stream = wire::ProcStream::kStdout;
  record.offset = offset;
  const auto view = wire::as_view(bytes);
  record.data.assign(view.begin(), view.end());
  return record;
}

// A session whose agent is the test, and the client's end of its connection.
class ExecSessionTest : public ::testing::Test {
 protected:
  ExecSessionTest() {
    int fds[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) std::abort();
    served = std::make_unique<ControlConnection>(base::UniqueFd(fds[0]));
    client = std::make_unique<ControlConnection>(base::UniqueFd(fds[1]));
    link.serve(Method::kProcStart, [this](api::CallToken token, const wire::Bytes&) {
      attached_first = attach != 0;
      if (hold_start) {
        held_start = token;
        return;
      }
      link.end(token, start_error, wire::encode(wire::ProcReply{}));
    });
    link.serve(Method::kProcAttach, [this](api::CallToken token, const wire::Bytes& bytes) {
      const auto asked = wire::decode<wire::ProcAttach>(bytes);
      EXPECT_TRUE(asked && asked->settle);
      early = asked && asked->early;
      attach = token;
    });
    link.serve(Method::kProcSignal, [this](api::CallToken token, const wire::Bytes& bytes) {
      signals.push_back(wire::decode<wire::ProcSignal>(bytes)->signal);
      ++signalled;
      link.end(token, 0);
    });
    link.connect(1, false);
  }
  ~ExecSessionTest() override {
    client->shutdown();
    if (runner.joinable()) runner.join();
    link.stop();
  }
  void start() {
    runner = std::jthread([this] {
      ExecSession session(link, *served, "docker:box", log);
      session.run({{"argv", {"cat"}}, {"stdin", true}}, soon(),
                  [this](std::uint64_t instance, std::uint64_t seq) {
                    settled = {instance, seq};
                  });
    });
    const auto started = client->read_json(soon());
    ASSERT_TRUE(started && started->contains("started"));
    ASSERT_TRUE(eventually([this] { return attach != 0; }));
  }
  void send(const wire::Bytes& bytes) {
    link.do_now([&] { link.chunk(attach, bytes); });
  }
  void exits() {
    wire::ProcOutput record;
    record.stream = wire::ProcStream::kExit;
    record.instance = 7;
    record.seq = 42;
    send(framed(wire::encode(record)));
    link.do_now([&] { link.end(attach, 0); });
  }
  // The next message that has `key`.
  nlohmann::json next(const char* key) {
    while (true) {
      auto frame = client->read(soon());
      if (!frame) return nullptr;
      if (frame->type != ControlType::kJson) continue;
      auto message = parse_json(frame->payload);
      if (message && message->contains(key)) return (*message)[key];
    }
  }

  FakeLink link{3};
  base::Logger log{2, base::LogLevel::kOff};
  std::unique_ptr<ControlConnection> served, client;
  std::atomic<api::CallToken> attach{0};
  std::atomic<bool> attached_first{false};
  std::atomic<int> start_error{0};
  std::atomic<bool> hold_start{false}, early{false};
  std::atomic<api::CallToken> held_start{0};
  std::pair<std::uint64_t, std::uint64_t> settled;  // of the session's thread
  std::vector<int> signals;                         // of the link thread
  std::atomic<int> signalled{0};
  std::jthread runner;
};

TEST_F(ExecSessionTest, GrantsBackWhatTheRecordsCost) {
  start();
  std::size_t cost = 0;
  for (std::uint64_t i = 0; i < 100; ++i) {
    const auto record = framed(wire::encode(text(i, "x")));
    cost += record.size();
    send(record);
  }
  EXPECT_TRUE(eventually([&] { return link.granted(attach) == cost; })) << link.granted(attach);
  exits();
  EXPECT_EQ(next("exit")["code"], 0);
}

// One round trip: the output is asked for before the start is answered, and the exit brings its barrier.
TEST_F(ExecSessionTest, NothingIsAskedForAfterTheStart) {
  start();
  EXPECT_TRUE(attached_first);
  exits();
  EXPECT_EQ(next("exit")["code"], 0);
  EXPECT_EQ(settled, (std::pair<std::uint64_t, std::uint64_t>(7, 42)));
}

// The agent dies before it starts the command: the next one is asked for both.
TEST_F(ExecSessionTest, AnotherAgentStartsTheCommand) {
  hold_start = true;
  runner = std::jthread([this] {
    ExecSession session(link, *served, "docker:box", log);
    session.run({{"argv", {"cat"}}}, soon(), [](std::uint64_t, std::uint64_t) {});
  });
  ASSERT_TRUE(eventually([this] { return attach != 0 && held_start != 0; }));
  EXPECT_TRUE(early);
  const auto first = attach.load();
  link.do_now([&] {
    link.end(first, ECONNRESET);  // as the link does: it stays with the agent that had it
    link.end(held_start, 0, wire::encode(wire::ProcReply{}));
  });
  ASSERT_TRUE(next("started").is_object());
  ASSERT_TRUE(eventually([&] { return attach != first; }));
  EXPECT_FALSE(early);
  exits();
  EXPECT_EQ(next("exit")["code"], 0);
}

TEST_F(ExecSessionTest, AStartThatFailsTakesItsAttachAlong) {
  start_error = ENOENT;
  runner = std::jthread([this] {
    ExecSession session(link, *served, "docker:box", log);
    session.run({{"argv", {"none"}}}, soon(), [](std::uint64_t, std::uint64_t) { FAIL(); });
  });
  EXPECT_TRUE(next("error").is_object());
  EXPECT_TRUE(eventually([this] { return attach != 0 && !link.on_wire(attach); }));
}

TEST_F(ExecSessionTest, AHalfRecordThatIsLostIsGrantedBack) {
  start();
  const auto record = framed(wire::encode(text(0, "hello")));
  send(wire::Bytes(record.begin(), record.begin() + 9));
  link.lose();
  EXPECT_TRUE(eventually([&] { return link.granted(attach) == 9; }));
  link.connect(1, true);
  send(record);
  EXPECT_TRUE(eventually([&] { return link.granted(attach) == 9 + record.size(); }));
  exits();
  EXPECT_EQ(next("exit")["code"], 0);
}

TEST_F(ExecSessionTest, ABrokenStreamEndsTheCommand) {
  start();
  send(wire::Bytes(8, std::byte{0xff}));
  EXPECT_TRUE(next("error").is_object());
  EXPECT_TRUE(eventually([&] { return signalled >= 1; }));  // nobody could read what it writes
}

TEST_F(ExecSessionTest, AnUndecodableRecordEndsTheCommand) {
  start();
  send(framed(wire::Bytes(3, std::byte{1})));
  EXPECT_TRUE(next("error").is_object());
}

TEST_F(ExecSessionTest, AnotherAgentLostTheCommand) {
  start();
  link.lose();
  link.connect(2, false);
  EXPECT_NE(next("error").dump().find("restarted"), std::string::npos);
}

TEST_F(ExecSessionTest, InputTheCommandDidNotTakeIsSentAgain) {
  std::string got;
  std::atomic<bool> ended{false};
  link.serve(Method::kProcInput, [&](api::CallToken token, const wire::Bytes& bytes) {
    const auto input = wire::decode<wire::ProcInput>(bytes);
    EXPECT_EQ(input->offset, got.size());
    const auto some = wire::ByteView(input->data).first((input->data.size() + 1) / 2);
    got += wire::as_text(some);
    if (input->eof) ended = true;
    link.end(token, 0, wire::encode(wire::ProcInputReply{got.size()}));
  });
  start();
  std::string all;
  for (int i = 0; i < 20000; ++i) all += std::to_string(i);
  ASSERT_TRUE(client->write(ControlType::kStdin, all, soon()));
  ASSERT_TRUE(client->write(ControlType::kStdinEof, {}, soon()));
  ASSERT_TRUE(eventually([&] { return ended.load(); }));
  link.do_now([&] { EXPECT_EQ(got, all); });
  exits();
  EXPECT_EQ(next("exit")["code"], 0);
}

TEST_F(ExecSessionTest, AFailureOfTheInputIsToldAndEndsIt) {
  std::atomic<bool> ended{false};
  link.serve(Method::kProcInput, [&](api::CallToken token, const wire::Bytes& bytes) {
    const auto input = wire::decode<wire::ProcInput>(bytes);
    if (input->eof) ended = true;
    link.end(token, input->eof ? 0 : EAGAIN, wire::encode(wire::ProcInputReply{0}));
  });
  start();
  ASSERT_TRUE(client->write(ControlType::kStdin, "abc", soon()));
  EXPECT_EQ(next("input_taken"), 3);
  ASSERT_TRUE(eventually([&] { return ended.load(); }));
  EXPECT_TRUE(next("input_error").is_string());
  exits();
  EXPECT_EQ(next("exit")["code"], 0);
}

TEST_F(ExecSessionTest, SignalsWaitForTheLinkInOrderAndHoldNothingUp) {
  start();
  link.lose();
  for (const int signal : {2, 10, 12}) ASSERT_TRUE(client->write_json({{"signal", signal}}, soon()));
  ASSERT_TRUE(eventually([&] { return link.calls_made(Method::kProcSignal) == 3; }, 5s));
  link.connect(1, true);
  ASSERT_TRUE(eventually([&] { return signalled == 3; }));
  link.do_now([&] { EXPECT_EQ(signals, (std::vector<int>{2, 10, 12})); });
  exits();
  EXPECT_EQ(next("exit")["code"], 0);
}

TEST_F(ExecSessionTest, WhenTheClientWentNobodyWaitsForTheAgent) {
  link.serve(Method::kProcSignal, [this](api::CallToken, const wire::Bytes& bytes) {
    signals.push_back(wire::decode<wire::ProcSignal>(bytes)->signal);
    ++signalled;  // and no answer
  });
  start();
  const auto begin = std::chrono::steady_clock::now();
  client->shutdown();
  runner.join();  // 5 s for the command to end by itself
  EXPECT_LT(std::chrono::steady_clock::now() - begin, 9s);
  ASSERT_TRUE(eventually([&] { return signalled == 2; }));
  link.do_now([&] { EXPECT_EQ(signals, (std::vector<int>{SIGHUP, SIGKILL})); });
}

}  // namespace
}  // namespace nearbox::daemon
