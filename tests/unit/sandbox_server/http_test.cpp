// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/http.h"

#include <array>
#include <poll.h>
#include <sys/socket.h>
#include <thread>

#include <gtest/gtest.h>

namespace nearbox::sandbox_server {
namespace {

// Serves what is written to one end of a socket pair; returns everything that comes back.
std::string talk(std::string_view request, const Handler& handler) {
  std::array<int, 2> ends{};
  EXPECT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
  base::Logger log(2, base::LogLevel::kOff);
  std::jthread server([&, fd = ends[1]] {
    serve_connection(
        base::UniqueFd(fd), -1, handler, [](bool) {}, log);
  });
  SocketStream client(base::UniqueFd{ends[0]}, -1);
  client.set_timeout(std::chrono::seconds(10));
  EXPECT_TRUE(client.write_all(request));
  (void)::shutdown(client.fd(), SHUT_WR);
  std::string out;
  std::array<char, 4096> chunk{};
  while (true) {
    const auto got = client.read_some(chunk.data(), chunk.size());
    if (!got || *got == 0) return out;
    out.append(chunk.data(), *got);
  }
}

void echo(Exchange& exchange) {
  const auto body = exchange.read_all(1000);
  const auto& head = exchange.head();
  (void)exchange
      .reply(body ? 200 : 413, {},
             head.method + " " + head.path + " " + head.query + " " + (body ? *body : ""))
      .ok();
}

TEST(Http, KeepAliveWithLengthAndChunks) {
  const auto reply = talk(
      "POST /a%20b?x=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
      "POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nxy\r\n1\r\nz\r\n0\r\n\r\n"
      "GET /d HTTP/1.0\r\n\r\n",
      echo);
  EXPECT_NE(reply.find("POST /a b x=1 abc"), std::string::npos) << reply;
  EXPECT_NE(reply.find("POST /c  xyz"), std::string::npos) << reply;
  EXPECT_NE(reply.find("GET /d  "), std::string::npos) << reply;
  EXPECT_NE(reply.find("Connection: close"), std::string::npos) << reply;
}

TEST(Http, ChunkedReplyAndNoContent) {
  const auto reply =
      talk("GET /s HTTP/1.1\r\nHost: h\r\n\r\nGET /n HTTP/1.1\r\nHost: h\r\n\r\n", [](Exchange& exchange) {
        if (exchange.head().path == "/n") return (void)exchange.reply(204, {}, "").ok();
        (void)exchange.start(200, {}, std::nullopt).ok();
        (void)exchange.write("hello").ok();
        (void)exchange.write("").ok();
        (void)exchange.finish().ok();
      });
  EXPECT_NE(reply.find("Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\nHTTP/1.1 204"),
            std::string::npos)
      << reply;
  EXPECT_EQ(reply.find("Content-Length"), std::string::npos) << reply;
}

TEST(Http, ContinueIsSentWhenTheBodyIsWanted) {
  const auto reply =
      talk("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx", echo);
  EXPECT_EQ(reply.find("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK"), 0U) << reply;
}

TEST(Http, ContinueIsNotSentForARefusal) {
  const auto reply =
      talk("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n",
           [](Exchange& exchange) { (void)exchange.reply(401, {}, "no").ok(); });
  EXPECT_EQ(reply.find("HTTP/1.1 401 "), 0U) << reply;
  EXPECT_NE(reply.find("Connection: close"), std::string::npos) << reply;
}

TEST(Http, ABodyThatTricklesInEndsTheConnection) {
  std::array<int, 2> ends{};
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()), 0);
  base::Logger log(2, base::LogLevel::kOff);
  std::jthread server([&, fd = ends[1]] {
    serve_connection(
        base::UniqueFd(fd), -1, [](Exchange& exchange) { (void)exchange.reply(200, {}, "ok").ok(); },
        [](bool) {}, log);
  });
  SocketStream client(base::UniqueFd{ends[0]}, -1);
  ASSERT_TRUE(client.write_all("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n"));
  // A byte each 100 ms: no single wait of the server's gets long. Draining and lingering, it gives up.
  constexpr int kRounds = 100;
  int sent = 0;
  while (sent < kRounds && client.write_all("x")) {
    ++sent;
    (void)::poll(nullptr, 0, 100);
  }
  EXPECT_LT(sent, kRounds);
}

TEST(Http, ARefusedStrangerIsNotDrained) {
  const auto reply =
      talk("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\nHost: h\r\n\r\n",
           [](Exchange& exchange) { (void)exchange.reply(401, {}, exchange.head().path).ok(); });
  EXPECT_NE(reply.find("Connection: close"), std::string::npos) << reply;
  EXPECT_EQ(reply.find("/b"), std::string::npos) << reply;
}

TEST(Http, LimitsAndGarbage) {
  EXPECT_EQ(
      talk("GET / HTTP/1.1\r\nX: " + std::string(kMaxHeaderBytes, 'x') + "\r\n\r\n", echo).find("HTTP/1.1 4"),
      0U);
  EXPECT_EQ(talk("no http at all\r\n\r\n", echo).find("HTTP/1.1 400 "), 0U);
  EXPECT_EQ(talk("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2000\r\n\r\n", echo).find("HTTP/1.1 413 "),
            0U);
  EXPECT_EQ(talk("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", echo)
                .find("HTTP/1.1 413 "),
            0U);
  EXPECT_EQ(talk("", echo), "");
}

TEST(Http, AHandlerThatSaysNothing) {
  EXPECT_EQ(talk("GET / HTTP/1.1\r\nHost: h\r\n\r\n", [](Exchange&) {}).find("HTTP/1.1 500 "), 0U);
}

TEST(Headers, CaseAndRemoval) {
  Headers headers;
  headers.add("X-One", "1");
  headers.add("x-one", "2");
  EXPECT_EQ(headers.get("X-ONE"), "1");
  headers.set("X-oNe", "3");
  EXPECT_EQ(headers.all().size(), 1U);
  EXPECT_FALSE(headers.has("other"));
}

}  // namespace
}  // namespace nearbox::sandbox_server
