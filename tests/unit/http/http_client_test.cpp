// SPDX-License-Identifier: Apache-2.0
#include "client/http/http_client.h"

#include <csignal>
#include <cstdlib>
#include <poll.h>
#include <thread>

#include <gtest/gtest.h>

#include "client/api/error_code.h"
#include "tests/unit/http/fault_server.h"

namespace nearbox::http {
namespace {

using api::code_string;
using api::error_text;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using test::FaultConnection;
using test::FaultRequest;
using test::FaultServer;

Deadline soon(milliseconds time = milliseconds(10'000)) { return steady_clock::now() + time; }

Request get(const std::string& url) {
  Request request;
  request.url = url;
  request.repeatable = true;
  return request;
}

// A file of `size` bytes that is gone when it is closed.
base::UniqueFd file_of(std::size_t size) {
  char name[] = "/tmp/nearbox-http.XXXXXX";
  base::UniqueFd fd(::mkstemp(name));
  ::unlink(name);
  EXPECT_EQ(::ftruncate(fd.get(), static_cast<off_t>(size)), 0);
  return fd;
}

Request upload(const std::string& url, const base::UniqueFd& fd, std::size_t size) {
  Request request;
  request.method = "POST";
  request.url = url;
  request.file = FileBody{fd.get(), size};
  return request;
}

TEST(HttpClient, KeepsConnectionsForWhatMayBeRepeated) {
  FaultServer server([](FaultConnection& c, FaultRequest& r) {
    EXPECT_TRUE(r.header("user-agent").starts_with("nearbox/"));
    return c.respond(200, "hello");
  });
  HttpClient client;
  for (int i = 0; i < 5; ++i) {
    auto response = client.perform(get(server.url() + "/a"), soon());
    ASSERT_TRUE(response) << error_text(response.error());
    EXPECT_EQ(response->status, 200);
    EXPECT_EQ(response->body, "hello");
  }
  EXPECT_EQ(server.connections(), 1u);
  auto once = get(server.url());
  once.repeatable = false;
  ASSERT_TRUE(client.perform(once, soon()));
  EXPECT_EQ(server.connections(), 2u);
}

TEST(HttpClient, SecretsAreSentAndBadHeadersRefused) {
  FaultServer server([](FaultConnection& c, FaultRequest& r) { return c.respond(200, r.header("x-token")); });
  HttpClient client;
  auto request = get(server.url());
  request.secrets.emplace_back("X-Token", base::Secret("abc"));
  EXPECT_EQ(client.perform(request, soon())->body, "abc");
  request.secrets[0].second = base::Secret("a\r\nX-Other: b");
  auto refused = client.perform(request, soon());
  ASSERT_FALSE(refused);
  EXPECT_EQ(code_string(refused.error()), "arg.invalid");
  EXPECT_EQ(error_text(refused.error()).find("X-Other"), std::string::npos);
}

TEST(HttpClient, RefusesOtherAddresses) {
  HttpClient client;
  for (const char* url :
       {"file:///etc/passwd", "ftp://x/", "http://user:pw@host/", "http:///", "http://a b/", ""}) {
    auto response = client.perform(get(url), soon());
    ASSERT_FALSE(response) << url;
    EXPECT_EQ(code_string(response.error()), "arg.invalid") << url;
  }
}

TEST(HttpClient, RedirectsComeBackAsTheyAre) {
  FaultServer server([](FaultConnection& c, FaultRequest&) {
    return c.respond(302, "", "Location: http://127.0.0.1:1/\r\n");
  });
  HttpClient client;
  auto response = client.perform(get(server.url()), soon());
  ASSERT_TRUE(response);
  EXPECT_EQ(response->status, 302);
  EXPECT_EQ(server.requests(), 1u);
}

TEST(HttpClient, CutAndWrongAnswersAreNetErrors) {
  const char* answers[] = {
      "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
      "HTTP/1.1 200 OK\r\nContent-Le",
      "SSH-2.0-OpenSSH\r\n",
      "\0\0\0\0",
      "",
  };
  HttpClient client;
  for (const char* answer : answers) {
    SCOPED_TRACE(answer);
    FaultServer server([&](FaultConnection& c, FaultRequest&) {
      c.send(answer);
      return false;
    });
    auto response = client.perform(get(server.url()), soon());
    ASSERT_FALSE(response);
    EXPECT_EQ(code_string(response.error()), "net.unreachable") << error_text(response.error());
    EXPECT_NE(error_text(response.error()).find(std::to_string(server.port())), std::string::npos);
  }
}

TEST(HttpClient, AnswersAreBounded) {
  FaultServer server([](FaultConnection& c, FaultRequest& r) {
    if (r.target == "/header") {
      c.send("HTTP/1.1 200 OK\r\n");
      const std::string line = "X-Filler: " + std::string(8000, 'x') + "\r\n";
      for (int i = 0; i < 100 && c.send(line); ++i) {
      }
      return false;
    }
    return c.respond(r.target == "/error" ? 500 : 200, std::string(200'000, 'y'));
  });
  HttpClient client;
  auto header = client.perform(get(server.url() + "/header"), soon());
  ASSERT_FALSE(header);
  EXPECT_NE(error_text(header.error()).find("too large a header"), std::string::npos);
  auto small = get(server.url() + "/body");
  small.max_body = 100'000;
  auto body = client.perform(small, soon());
  ASSERT_FALSE(body);
  EXPECT_NE(error_text(body.error()).find("too large"), std::string::npos);
  auto error = client.perform(get(server.url() + "/error"), soon());
  ASSERT_TRUE(error);
  EXPECT_EQ(error->body.size(), kMaxErrorBody);
}

// True while the client is there; waits up to 10 ms for it to go.
bool drip(FaultConnection& c) {
  pollfd gone{c.fd(), POLLIN, 0};
  return ::poll(&gone, 1, 10) == 0 && c.send("x");
}

TEST(HttpClient, DeadlineEndsSilenceAndSlowDrips) {
  FaultServer server([](FaultConnection& c, FaultRequest& r) {
    if (r.target == "/drip") {
      c.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
      while (drip(c)) {
      }
      return false;
    }
    std::string more;
    return c.read_raw(more, 1);  // waits for the client to go
  });
  HttpClient client;
  for (const char* path : {"/silent", "/drip"}) {
    SCOPED_TRACE(path);
    const auto started = steady_clock::now();
    auto response = client.perform(get(server.url() + path), soon(milliseconds(150)));
    ASSERT_FALSE(response);
    EXPECT_EQ(code_string(response.error()), "timeout.request") << error_text(response.error());
    EXPECT_GE(steady_clock::now() - started, milliseconds(150));
    EXPECT_LT(steady_clock::now() - started, milliseconds(5000));
  }
}

TEST(HttpClient, StopEndsACall) {
  FaultServer silent([](FaultConnection& c, FaultRequest&) {
    std::string more;
    return c.read_raw(more, 1);
  });
  HttpClient client;
  std::stop_source stop;
  base::Result<Response> result = base::errno_error(EINVAL);
  std::jthread caller([&] { result = client.perform(get(silent.url()), soon(), stop.get_token()); });
  while (silent.requests() == 0) std::this_thread::yield();
  stop.request_stop();
  caller.join();
  ASSERT_FALSE(result);
  EXPECT_EQ(code_string(result.error()), "cancelled");
}

TEST(HttpClient, SinkTakesPiecesAndMayEnd) {
  FaultServer server([](FaultConnection& c, FaultRequest& r) {
    return c.respond(r.target == "/no" ? 404 : 200, std::string(300'000, 'z'));
  });
  HttpClient client;
  std::size_t seen = 0;
  auto request = get(server.url());
  request.sink = [&](std::string_view bytes) -> base::Result<void> {
    seen += bytes.size();
    return {};
  };
  ASSERT_TRUE(client.perform(request, soon()));
  EXPECT_EQ(seen, 300'000u);
  request.url = server.url() + "/no";
  seen = 0;
  EXPECT_EQ(client.perform(request, soon())->status, 404);
  EXPECT_EQ(seen, 0u);
  request.url = server.url();
  request.sink = [](std::string_view) -> base::Result<void> { return base::errno_error(ENOSPC, "sink"); };
  auto result = client.perform(request, soon());
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().as_errno(), ENOSPC);
}

TEST(HttpClient, UploadsAFile) {
  constexpr std::size_t kSize = 3 * 1024 * 1024 + 17;
  FaultServer server([](FaultConnection& c, FaultRequest& r) {
    EXPECT_EQ(r.header("expect"), "100-continue");
    EXPECT_TRUE(c.read_body(r));
    return c.respond(200, std::to_string(r.body.size()));
  });
  HttpClient client;
  const auto fd = file_of(kSize);
  auto response = client.perform(upload(server.url(), fd, kSize), soon());
  ASSERT_TRUE(response) << error_text(response.error());
  EXPECT_EQ(response->body, std::to_string(kSize));
}

TEST(HttpClient, AFileThatShrankIsTold) {
  FaultServer server(
      [](FaultConnection& c, FaultRequest& r) { return c.read_body(r) && c.respond(200, ""); });
  HttpClient client;
  const auto fd = file_of(1000);
  auto response = client.perform(upload(server.url(), fd, 2000), soon());
  ASSERT_FALSE(response);
  EXPECT_EQ(response.error().as_errno(), ESTALE);
}

// The server answers before, or while, the body is sent and then hangs up on it.
TEST(HttpClient, EarlyRefusalsAreReadNotLost) {
  constexpr std::size_t kSize = 32 * 1024 * 1024;
  HttpClient client;
  const auto fd = file_of(kSize);
  const std::string refusal =
      "HTTP/1.1 507 Insufficient Storage\r\nContent-Length: 7\r\nConnection: close\r\n\r\nno room";
  for (int variant = 0; variant < 3; ++variant) {
    for (int round = 0; round < 20; ++round) {
      SCOPED_TRACE("variant " + std::to_string(variant) + " round " + std::to_string(round));
      FaultServer server([&](FaultConnection& c, FaultRequest& r) {
        std::string some;
        if (variant >= 1) {
          c.send("HTTP/1.1 100 Continue\r\n\r\n");
          c.read_raw(some, 300'000);
        }
        c.send(refusal);
        if (variant == 2) c.reset();
        (void)r;
        return false;  // closes with the rest unread: the client's next send fails
      });
      auto response = client.perform(upload(server.url(), fd, kSize), soon());
      ASSERT_TRUE(response) << error_text(response.error());
      EXPECT_EQ(response->status, 507);
    }
  }
}

TEST(HttpClient, ParallelUploads) {
  FaultServer server([](FaultConnection& c, FaultRequest& r) {
    return c.read_body(r) && c.respond(200, std::to_string(r.body.size()));
  });
  HttpClient client;
  std::vector<std::jthread> callers;
  std::atomic<int> good{0};
  for (std::size_t i = 0; i < 16; ++i) {
    callers.emplace_back([&, i] {
      const std::size_t size = 100'000 + i;
      const auto fd = file_of(size);
      auto response = client.perform(upload(server.url(), fd, size), soon(milliseconds(30'000)));
      if (response && response->body == std::to_string(size)) ++good;
    });
  }
  callers.clear();
  EXPECT_EQ(good.load(), 16);
}

TEST(HttpClient, MoreCallsThanSlotsWaitTheirTurn) {
  FaultServer server([](FaultConnection& c, FaultRequest&) { return c.respond(200, "x"); });
  HttpClient client;
  std::vector<std::jthread> callers;
  std::atomic<int> good{0};
  for (int i = 0; i < static_cast<int>(kMaxTransfers) + 20; ++i) {
    callers.emplace_back([&] {
      for (int n = 0; n < 5; ++n) {
        if (client.perform(get(server.url()), soon(milliseconds(30'000)))) ++good;
      }
    });
  }
  callers.clear();
  EXPECT_EQ(good.load(), (static_cast<int>(kMaxTransfers) + 20) * 5);
}

TEST(HttpClient, NobodyListens) {
  int port = 0;
  {
    FaultServer server([](FaultConnection&, FaultRequest&) { return false; });
    port = server.port();
  }
  HttpClient client;
  TransferInfo info;
  auto response = client.perform(get("http://127.0.0.1:" + std::to_string(port)), soon(), {}, &info);
  ASSERT_FALSE(response);
  EXPECT_EQ(code_string(response.error()), "net.unreachable");
  EXPECT_FALSE(info.sent);
}

TEST(HttpClient, TlsToAPlainServerIsNoCertificateProblem) {
  FaultServer server([](FaultConnection&, FaultRequest&) { return false; });
  HttpClient client;
  auto response =
      client.perform(get("https://127.0.0.1:" + std::to_string(server.port())), soon(milliseconds(300)));
  ASSERT_FALSE(response);
  EXPECT_NE(code_string(response.error()), "net.tls");
}

TEST(CurlErrors, Rows) {
  const std::pair<CURLcode, const char*> rows[] = {
      {CURLE_COULDNT_RESOLVE_HOST, "net.unreachable"},
      {CURLE_COULDNT_RESOLVE_PROXY, "net.unreachable"},
      {CURLE_COULDNT_CONNECT, "net.unreachable"},
      {CURLE_SEND_ERROR, "net.unreachable"},
      {CURLE_RECV_ERROR, "net.unreachable"},
      {CURLE_GOT_NOTHING, "net.unreachable"},
      {CURLE_PARTIAL_FILE, "net.unreachable"},
      {CURLE_SSL_CONNECT_ERROR, "net.unreachable"},
      {CURLE_PEER_FAILED_VERIFICATION, "net.tls"},
      {CURLE_SSL_CACERT_BADFILE, "net.tls"},
      {CURLE_SSL_CERTPROBLEM, "net.tls"},
      {CURLE_OPERATION_TIMEDOUT, "timeout.request"},
      {CURLE_ABORTED_BY_CALLBACK, "cancelled"},
      {CURLE_OUT_OF_MEMORY, "internal"},
      {CURLE_URL_MALFORMAT, "arg.invalid"},
  };
  for (const auto& [code, name] : rows) {
    const auto error = curl_error(code, "https://h.example:1/p?secret=1", "", milliseconds(5));
    EXPECT_EQ(code_string(error), name) << code;
    EXPECT_EQ(error_text(error).find("secret"), std::string::npos);
  }
}

}  // namespace
}  // namespace nearbox::http
