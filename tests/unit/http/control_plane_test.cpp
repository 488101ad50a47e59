// SPDX-License-Identifier: Apache-2.0
#include "client/http/control_plane.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "client/api/error_code.h"
#include "client/http/sandbox_json.h"
#include "tests/unit/http/fault_server.h"

namespace nearbox::http {
namespace {

using api::code_string;
using api::error_text;
using api::SandboxId;
using std::chrono::milliseconds;
using std::chrono::steady_clock;
using test::FaultConnection;
using test::FaultRequest;
using test::FaultServer;

constexpr const char* kAccess =
    R"({"sandboxID":"iabc","templateID":"base","clientID":"6532622b","envdVersion":"0.6.13",)"
    R"("envdAccessToken":"tok","trafficAccessToken":null,"domain":null,"alias":"base"})";
constexpr const char* kInfo =
    R"({"sandboxID":"iabc","templateID":"base","clientID":"6532622b","envdVersion":"0.6.13",)"
    R"("startedAt":"2026-01-02T03:04:05Z","endAt":"2026-01-02T03:09:05Z","cpuCount":2,"memoryMB":1024,)"
    R"("diskSizeMB":5120,"state":"paused","metadata":{"a":"b"},"unknown":[1]})";

Deadline soon(milliseconds time = milliseconds(10'000)) { return steady_clock::now() + time; }
SandboxId id(const char* text = "iabc") { return *SandboxId::parse(text); }

// A server, a client and a control plane between them.
struct Rig {
  explicit Rig(std::function<void(FaultConnection&, FaultRequest&)> answer)
      : server([this, answer = std::move(answer)](FaultConnection& c, FaultRequest& r) {
          if (!c.read_body(r)) return false;
          {
            base::MutexLock lock(mu);
            seen.push_back(r);
          }
          answer(c, r);
          return true;
        }),
        plane(client, server.url(), base::Secret("e2b_00")) {}
  std::vector<FaultRequest> requests() {
    base::MutexLock lock(mu);
    return seen;
  }

  base::Mutex mu;
  std::vector<FaultRequest> seen GUARDED_BY(mu);
  FaultServer server;
  HttpClient client;
  HttpControlPlane plane;
};

TEST(SandboxIds, OnlySafeOnes) {
  EXPECT_EQ(id("iabc09").str(), "iabc09");
  EXPECT_EQ(id("iabc-6532622b").str(), "iabc");
  for (const char* bad : {"", "-x", "A", "a/b", "..", "a b", "a\n"})
    EXPECT_FALSE(SandboxId::parse(bad)) << bad;
  EXPECT_FALSE(SandboxId::parse(std::string(65, 'a')));
}

TEST(ControlPlane, CreatesByTheSecondForm) {
  Rig rig([](FaultConnection& c, FaultRequest&) { c.respond(201, kAccess); });
  api::CreateOptions options;
  options.timeout = milliseconds(1500);
  options.metadata["k"] = "v";
  auto access = rig.plane.create(options, soon());
  ASSERT_TRUE(access) << error_text(access.error());
  EXPECT_EQ(access->id.str(), "iabc");
  EXPECT_EQ(access->envd_token.reveal(), "tok");
  EXPECT_TRUE(access->traffic_token.empty());
  const auto request = rig.requests().at(0);
  EXPECT_EQ(request.method + " " + request.target, "POST /v2/sandboxes");
  EXPECT_EQ(request.header("x-api-key"), "e2b_00");
  EXPECT_FALSE(request.header("idempotency-key").empty());
  const auto body = nlohmann::json::parse(request.body);
  EXPECT_EQ(body["timeout"], 2);
  EXPECT_EQ(body["autoPause"], true);
  EXPECT_EQ(body["metadata"]["k"], "v");
  EXPECT_FALSE(body.contains("secure"));
}

TEST(ControlPlane, FallsBackToTheFirstFormAndRemembers) {
  for (const int status : {404, 405}) {
    Rig rig([&](FaultConnection& c, FaultRequest& r) {
      if (r.target.starts_with("/v2")) {
        c.respond(status, "404 page not found");
      } else {
        c.respond(201, kAccess);
      }
    });
    ASSERT_TRUE(rig.plane.create({}, soon()));
    ASSERT_TRUE(rig.plane.create({}, soon()));
    ASSERT_TRUE(rig.plane.connect(id(), milliseconds(1000), soon()));
    ASSERT_TRUE(rig.plane.connect(id(), milliseconds(1000), soon()));
    std::vector<std::string> targets;
    for (const auto& r : rig.requests()) targets.push_back(r.target);
    EXPECT_EQ(targets, (std::vector<std::string>{"/v2/sandboxes", "/sandboxes", "/sandboxes",
                                                 "/v2/sandboxes/iabc/connect", "/sandboxes/iabc/connect",
                                                 "/sandboxes/iabc/connect"}));
    EXPECT_EQ(nlohmann::json::parse(rig.requests()[1].body)["secure"], true);
  }
}

TEST(ControlPlane, AnUnknownTemplateIsNoUnknownRoute) {
  Rig rig([](FaultConnection& c, FaultRequest& r) {
    const bool good = nlohmann::json::parse(r.body)["templateID"] == "base";
    good ? c.respond(201, kAccess) : c.respond(404, R"({"code":404,"message":"no template"})");
  });
  api::CreateOptions wrong;
  wrong.template_id = "nope";
  EXPECT_EQ(error_text(rig.plane.create(wrong, soon()).error()), "Template nope not found");
  EXPECT_EQ(rig.requests().size(), 2u);  // it might have been the route
  ASSERT_TRUE(rig.plane.create({}, soon()));
  EXPECT_FALSE(rig.plane.create(wrong, soon()));
  EXPECT_EQ(rig.requests().size(), 4u);  // now it cannot
}

TEST(ControlPlane, CreateIsNeverSentTwiceBlindly) {
  FaultServer server([&](FaultConnection& c, FaultRequest& r) {
    c.read_body(r);
    c.send("HTTP/1.1 201 Created\r\nContent-Length: 9\r\n\r\n{");
    return false;
  });
  HttpClient client;
  HttpControlPlane plane(client, server.url(), base::Secret("e2b_00"));
  EXPECT_EQ(code_string(plane.create({}, soon()).error()), "net.unreachable");
  EXPECT_EQ(server.requests(), 1u);
  for (const int status : {500, 502, 503, 504}) {
    Rig rig([&](FaultConnection& c, FaultRequest&) { c.respond(status, R"({"message":"no node"})"); });
    const auto error = rig.plane.create({}, soon()).error();
    EXPECT_EQ(error_text(error), "E2B sandbox creation failed: no node");
    EXPECT_TRUE(api::is_retryable(error));
    EXPECT_EQ(rig.requests().size(), 1u) << status;
  }
}

TEST(ControlPlane, RetryAfterRepeatsCreateWithTheSameKey) {
  std::atomic<int> count{0};
  Rig rig([&](FaultConnection& c, FaultRequest&) {
    ++count == 1 ? c.respond(429, R"({"code":429,"message":"Rate limit exceeded"})", "Retry-After: 0\r\n")
                 : c.respond(201, kAccess);
  });
  ASSERT_TRUE(rig.plane.create({}, soon()));
  const auto requests = rig.requests();
  ASSERT_EQ(requests.size(), 2u);
  EXPECT_EQ(requests[0].header("idempotency-key"), requests[1].header("idempotency-key"));
}

TEST(ControlPlane, ARetryPastTheDeadlineIsNotWaitedFor) {
  Rig rig([](FaultConnection& c, FaultRequest&) { c.respond(429, "{}", "Retry-After: 3600\r\n"); });
  const auto started = steady_clock::now();
  const auto error = rig.plane.get(id(), soon()).error();
  EXPECT_EQ(code_string(error), "rate_limited");
  EXPECT_EQ(error_text(error), "Rate limit exceeded; retry after 3600 s");
  EXPECT_LT(steady_clock::now() - started, milliseconds(5000));
}

TEST(ControlPlane, RepeatsWhatMayBeRepeated) {
  std::atomic<int> count{0};
  Rig rig(
      [&](FaultConnection& c, FaultRequest&) { ++count < 3 ? c.respond(502, "{}") : c.respond(200, kInfo); });
  auto info = rig.plane.get(id(), soon());
  ASSERT_TRUE(info) << error_text(info.error());
  EXPECT_EQ(count.load(), 3);
  EXPECT_EQ(info->state, api::SandboxState::kPaused);
  EXPECT_EQ(info->memory_mb, 1024u);
  EXPECT_EQ(info->metadata.at("a"), "b");
  EXPECT_EQ(info->end_at, "2026-01-02T03:09:05Z");
}

TEST(ControlPlane, EveryStatusHasItsError) {
  struct Row {
    int status;
    const char* code;
    const char* text;
  };
  const Row rows[] = {
      {302, "net.unreachable", "it answered HTTP 302"},
      {400, "arg.invalid", "sandbox is not valid: why"},
      {401, "auth.rejected", "E2B refused the API key (HTTP 401)"},
      {403, "auth.rejected", "HTTP 403): why"},
      {404, "sandbox.not_found", "Sandbox iabc not found"},
      {409, "sandbox.busy", "Sandbox iabc is changing its state: why"},
      {429, "rate_limited", "Rate limit exceeded: why"},
      {418, "net.unreachable", "HTTP 418: why"},
  };
  for (const Row& row : rows) {
    Rig rig([&](FaultConnection& c, FaultRequest&) { c.respond(row.status, R"({"message":"why"})"); });
    const auto error = rig.plane.set_timeout(id(), milliseconds(1000), soon()).error();
    EXPECT_EQ(code_string(error), row.code) << row.status;
    EXPECT_NE(error_text(error).find(row.status == 302 ? "HTTP 302" : row.text), std::string::npos)
        << error_text(error);
  }
}

TEST(ControlPlane, CreateLimits) {
  Rig rig([](FaultConnection& c, FaultRequest&) { c.respond(429, R"({"message":"20 sandboxes"})"); });
  const auto error = rig.plane.create({}, soon()).error();
  EXPECT_EQ(code_string(error), "sandbox.limit");
  EXPECT_EQ(error_text(error), "Maximum sandbox limit reached: 20 sandboxes");
}

TEST(ControlPlane, KillAndPause) {
  std::atomic<int> count{0};
  Rig rig([&](FaultConnection& c, FaultRequest& r) {
    if (r.method == "DELETE" && r.target == "/sandboxes/iabc") {
      c.respond(204, "");
    } else if (r.method == "DELETE" && r.target == "/sandboxes/itwice") {
      ++count == 1 ? c.respond(502, "{}") : c.respond(404, "{}");
    } else if (r.method == "DELETE") {
      c.respond(404, "{}");
    } else if (r.method == "GET") {
      c.respond(200, kInfo);
    } else {
      c.respond(409, R"({"message":"already paused"})");
    }
  });
  EXPECT_TRUE(*rig.plane.kill(id(), soon()));
  EXPECT_FALSE(*rig.plane.kill(id("iother"), soon()));
  EXPECT_TRUE(*rig.plane.kill(id("itwice"), soon()));  // the first attempt did it
  EXPECT_FALSE(*rig.plane.pause(id(), soon()));
}

TEST(ControlPlane, ListFollowsPagesAndFilters) {
  std::atomic<int> page{0};
  Rig rig([&](FaultConnection& c, FaultRequest&) {
    const std::string item = kInfo;
    ++page == 1 ? c.respond(200, "[" + item + "," + item + "]", "X-Next-Token: a/b\r\n")
                : c.respond(200, "[" + item + "]");
  });
  api::ListFilter filter;
  filter.paused = false;
  filter.metadata["k y"] = "v&1";
  auto list = rig.plane.list(filter, soon());
  ASSERT_TRUE(list);
  EXPECT_EQ(list->sandboxes.size(), 3u);
  EXPECT_TRUE(list->complete);
  const auto requests = rig.requests();
  EXPECT_EQ(requests[0].target, "/v2/sandboxes?limit=100&state=running&metadata=k%252520y%3Dv%2525261");
  EXPECT_EQ(requests[1].target, requests[0].target + "&nextToken=a%2Fb");
}

TEST(ControlPlane, AListWithoutEndEnds) {
  Rig rig([](FaultConnection& c, FaultRequest&) { c.respond(200, "[]", "X-Next-Token: same\r\n"); });
  EXPECT_FALSE(rig.plane.list({}, soon()));
  EXPECT_EQ(rig.requests().size(), 2u);
}

TEST(ControlPlane, WrongBodiesAreRefused) {
  const char* bodies[] = {"",
                          "null",
                          "[]",
                          "{",
                          R"({"sandboxID":"../x","templateID":"base"})",
                          R"({"sandboxID":"iabc","domain":"evil.example/path"})",
                          R"({"sandboxID":"iabc","domain":"a@b"})",
                          R"({"sandboxID":"iabc","envdAccessToken":"a\r\nX: y"})",
                          R"({"sandboxID":7})",
                          "\xff\xfe"};
  for (const char* body : bodies) {
    SCOPED_TRACE(body);
    Rig rig([&](FaultConnection& c, FaultRequest&) { c.respond(200, body); });
    EXPECT_EQ(code_string(rig.plane.create({}, soon()).error()), "net.unreachable");
  }
  Rig other([](FaultConnection& c, FaultRequest&) { c.respond(200, kAccess); });
  EXPECT_FALSE(other.plane.connect(id("ianother"), milliseconds(1000), soon()));  // not the one asked for
}

TEST(ControlPlane, StopEndsTheWaitForARetry) {
  std::stop_source stop;
  Rig rig([&](FaultConnection& c, FaultRequest&) {
    c.respond(503, "{}", "Retry-After: 5\r\n");
    stop.request_stop();
  });
  const auto started = steady_clock::now();
  EXPECT_FALSE(rig.plane.get(id(), soon(), stop.get_token()));
  EXPECT_LT(steady_clock::now() - started, milliseconds(4000));
}

}  // namespace
}  // namespace nearbox::http
