// SPDX-License-Identifier: Apache-2.0
#include "client/http/envd.h"

#include <poll.h>

#include <gtest/gtest.h>

#include "client/api/error_code.h"
#include "client/http/connect_stream.h"
#include "tests/unit/http/fake_envd.h"

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

api::SandboxAccess access() {
  return {*api::SandboxId::parse("iabc"),
          "",
          base::Secret("tok"),
          base::Secret("traffic"),
          "base",
          "0.6.13",
          false};
}

HttpEnvd envd_at(HttpClient& client, const std::string& url) {
  api::Config config;
  config.sandbox_url = url;
  return HttpEnvd(client, access().id, route_to(config, access(), kEnvdPort));
}

TEST(Routes, AsTheSdksChooseThem) {
  api::Config config;
  Route route = route_to(config, access(), kEnvdPort);
  EXPECT_EQ(route.base_url, "https://sandbox.e2b.app");
  ASSERT_EQ(route.secrets.size(), 1u);
  EXPECT_EQ(route.secrets[0].first, "X-Access-Token");
  route = route_to(config, access(), 8080);
  EXPECT_EQ(route.headers[1].value, "8080");
  EXPECT_EQ(route.secrets.at(0).first, "E2b-Traffic-Access-Token");  // envd's token stays with envd
  config.domain = "own.example:9443";
  EXPECT_EQ(route_to(config, access(), 8080).base_url, "https://8080-iabc.own.example:9443");
  auto elsewhere = access();
  elsewhere.domain = "e2b.dev";
  EXPECT_EQ(route_to(config, elsewhere, 8080).base_url, "https://sandbox.e2b.dev");
  EXPECT_EQ(public_host(config, elsewhere, 80), "80-iabc.e2b.dev");
  config.debug = true;
  EXPECT_EQ(route_to(config, access(), 8080).base_url, "http://localhost:8080");
  config.sandbox_url = "http://127.0.0.1:9";
  EXPECT_EQ(route_to(config, access(), 8080).base_url, "http://127.0.0.1:9");
}

TEST(Envd, FilesAndEntries) {
  test::FakeEnvd fake;
  HttpClient client;
  HttpEnvd envd = envd_at(client, fake.url());
  EXPECT_TRUE(*envd.healthy(soon()));
  fake.put("/d/a b", {std::string(100'000, 'q')});
  auto entry = envd.stat("/d/a b", soon());
  ASSERT_TRUE(entry) << error_text(entry.error());
  EXPECT_EQ(entry->size, 100'000u);
  std::string got;
  ASSERT_TRUE(envd.download(
      "/d/a b",
      [&](std::string_view bytes) -> base::Result<void> {
        got += bytes;
        return {};
      },
      soon()));
  EXPECT_EQ(got.size(), 100'000u);
  ASSERT_TRUE(envd.move("/d/a b", "/d/c", soon()));
  EXPECT_EQ(envd.list_dir("/d", 1, soon())->size(), 1u);
  ASSERT_TRUE(envd.remove("/d/c", soon()));
  const auto missing = envd.stat("/d/c", soon()).error();
  EXPECT_EQ(code_string(missing), "remote.not_found");
  EXPECT_EQ(error_text(missing), "/d/c does not exist in the sandbox");
  EXPECT_EQ(envd.remove("/d/\xff", soon()).error().as_errno(), EILSEQ);  // never another file than meant
}

TEST(Envd, RunTellsOutputAndExit) {
  test::FakeEnvd fake;
  fake.set_run([](const std::string&, const std::vector<std::string>& args) {
    return test::FakeEnvd::RunReply{"out " + args.at(0), "err", 3};
  });
  HttpClient client;
  HttpEnvd envd = envd_at(client, fake.url());
  std::string out, err;
  std::uint32_t pid = 0;
  api::RunEvents events;
  events.on_start = [&](std::uint32_t p) { pid = p; };
  events.on_stdout = [&](std::string_view b) -> base::Result<void> {
    out += b;
    return {};
  };
  events.on_stderr = [&](std::string_view b) -> base::Result<void> {
    err += b;
    return {};
  };
  api::RunSpec spec;
  spec.cmd = "x";
  spec.args = {"arg"};
  spec.user = "root";
  auto result = envd.run(spec, events, soon());
  ASSERT_TRUE(result) << error_text(result.error());
  EXPECT_EQ(result->exit_code, 3);
  EXPECT_EQ(result->pid, 7u);
  EXPECT_EQ(pid, 7u);
  EXPECT_EQ(out, "out arg");
  EXPECT_EQ(err, "err");
  EXPECT_EQ(fake.requests().back().header("connect-timeout-ms"), "");
  EXPECT_GT(std::stoi(fake.requests().back().header("keepalive-ping-interval")), 0);
}

// What a stream may do wrong, and what is said then.
TEST(Envd, BrokenRuns) {
  const std::string start = make_envelope(R"({"event":{"start":{"pid":7}}})");
  const std::string end = make_envelope(R"({"event":{"end":{"exited":true}}})");
  const std::string ok("\2\0\0\0\2{}", 7);
  const std::string failed = R"({"error":{"code":"invalid_argument","message":"cwd '/x' does not exist"}})";
  const std::pair<std::string, const char*> rows[] = {
      {start, "net.unreachable"},                                 // no end
      {start + end, "net.unreachable"},                           // no end of the stream
      {start + ok, "net.unreachable"},                            // no end of the process
      {start + make_envelope("{}"), "net.unreachable"},           // no event
      {std::string("\0\xff\xff\xff\xff", 5), "net.unreachable"},  // too long
      {std::string("\1\0\0\0\1x", 6), "net.unreachable"},         // compressed
      {start + end + ok + "more", "net.unreachable"},             // more after the end
      {"\2" + make_envelope(failed).substr(1), "arg.invalid"},
  };
  for (const auto& [body, code] : rows) {
    SCOPED_TRACE(body);
    FaultServer server([&, text = body](FaultConnection& c, FaultRequest& r) {
      return c.read_body(r) && c.respond(200, text, "Content-Type: application/connect+json\r\n");
    });
    HttpClient client;
    auto result = envd_at(client, server.url()).run({}, {}, soon());
    ASSERT_FALSE(result);
    EXPECT_EQ(code_string(result.error()), code) << error_text(result.error());
  }
}

TEST(Envd, ACutStreamIsNoExit) {
  FaultServer server([](FaultConnection& c, FaultRequest& r) {
    c.read_body(r);
    c.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    return false;
  });
  HttpClient client;
  auto result = envd_at(client, server.url()).run({}, {}, soon());
  ASSERT_FALSE(result);
  EXPECT_EQ(code_string(result.error()), "net.unreachable");
}

TEST(Envd, StopEndsARun) {
  FaultServer server([](FaultConnection& c, FaultRequest& r) {
    c.read_body(r);
    c.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    std::string more;
    return c.read_raw(more, 1);
  });
  HttpClient client;
  std::stop_source stop;
  base::Result<api::RunResult> result = base::errno_error(EINVAL);
  std::jthread caller(
      [&] { result = envd_at(client, server.url()).run({}, {}, Deadline::max(), stop.get_token()); });
  while (server.requests() == 0) std::this_thread::yield();
  stop.request_stop();
  caller.join();
  ASSERT_FALSE(result);
  EXPECT_EQ(code_string(result.error()), "cancelled");
}

TEST(Envd, EveryRefusalHasItsError) {
  struct Row {
    int status;
    const char* body;
    const char* code;
  };
  const Row rows[] = {
      {401, R"({"message":"x","code":401})", "auth.rejected"},
      {403, R"({"message":"x","code":403})", "auth.rejected"},
      {404, R"({"message":"x","code":404})", "remote.not_found"},
      {409, R"({"message":"still pausing","code":409})", "sandbox.busy"},
      {429, R"({"message":"x","code":429})", "rate_limited"},
      {502, R"({"sandboxId":"iabc","message":"The sandbox was not found","code":502})", "sandbox.not_found"},
      {502, R"({"message":"The sandbox is running but port is not open","code":502})", "net.unreachable"},
      {507, R"({"message":"no space","code":507})", "remote.no_space"},
      {400, "plain text", "arg.invalid"},
      {500, R"({"message":"x","code":500})", "file.unreadable"},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.status);
    FaultServer server([&](FaultConnection& c, FaultRequest& r) {
      return c.read_body(r) && c.respond(row.status, row.body);
    });
    HttpClient client;
    const auto error = envd_at(client, server.url()).upload(0, 0, "/p", "root", soon()).error();
    EXPECT_EQ(code_string(error), row.code) << error_text(error);
  }
  FaultServer busy([&](FaultConnection& c, FaultRequest& r) {
    return c.read_body(r) && c.respond(500, R"({"message":"open /x: text file busy","code":500})");
  });
  HttpClient client;
  EXPECT_EQ(envd_at(client, busy.url()).upload(0, 0, "/p", "root", soon()).error().as_errno(), ETXTBSY);
}

TEST(Envd, DeadSandboxIsNotHealthy) {
  FaultServer server([](FaultConnection& c, FaultRequest&) { return c.respond(502, "{}"); });
  HttpClient client;
  EXPECT_FALSE(*envd_at(client, server.url()).healthy(soon()));
}

}  // namespace
}  // namespace nearbox::http
