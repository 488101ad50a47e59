// SPDX-License-Identifier: Apache-2.0
#include "client/http/ws_dial.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "client/channel/ws_server.h"
#include "tests/unit/http/fault_server.h"

namespace nearbox::http {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using test::FaultConnection;
using test::FaultRequest;
using test::FaultServer;

channel::Deadline soon() { return steady_clock::now() + milliseconds(20'000); }

Route route_at(const std::string& url) {
  api::Config config;
  config.sandbox_url = url;
  const api::SandboxAccess access{*api::SandboxId::parse("iabc"),
                                  "",
                                  base::Secret("envd-tok"),
                                  base::Secret("traffic-tok"),
                                  "base",
                                  "0.6.13",
                                  false};
  return route_to(config, access, 40001);
}

TEST(WsDial, AsksAsTheEdgeWantsIt) {
  FaultRequest seen;
  FaultServer server([&](FaultConnection& c, FaultRequest& r) {
    seen = r;
    c.respond(502, R"({"message":"The sandbox is running but port is not open","code":502})");
    return false;
  });
  auto carrier = dial_agent(route_at(server.url() + "/prefix"), soon());
  ASSERT_FALSE(carrier);
  EXPECT_NE(carrier.error().message().find("502"), std::string::npos);
  EXPECT_EQ(carrier.error().message().find("tok"), std::string::npos);
  EXPECT_EQ(seen.method + " " + seen.target, "GET /prefix/nearbox");
  EXPECT_EQ(seen.header("host"), "127.0.0.1:" + std::to_string(server.port()));
  EXPECT_EQ(seen.header("e2b-sandbox-id"), "iabc");
  EXPECT_EQ(seen.header("e2b-sandbox-port"), "40001");
  EXPECT_EQ(seen.header("e2b-traffic-access-token"), "traffic-tok");
  EXPECT_EQ(seen.header("x-access-token"), "");
}

TEST(WsDial, CarriesBytesBothWays) {
  base::UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  auto* plain = static_cast<sockaddr*>(static_cast<void*>(&address));
  ASSERT_EQ(::bind(listener.get(), plain, size), 0);
  ASSERT_EQ(::listen(listener.get(), 1), 0);
  ASSERT_EQ(::getsockname(listener.get(), plain, &size), 0);
  std::jthread server([&] {
    base::UniqueFd fd(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    auto peer = channel::accept_websocket(std::move(fd), soon());
    if (!peer) return;
    std::vector<std::byte> buffer(64 * 1024);
    for (;;) {
      auto n = (*peer)->read(buffer, soon());
      if (!n || *n == 0) return;
      if (!(*peer)->write(wire::ByteView(buffer.data(), *n), soon())) return;
    }
  });
  auto carrier = dial_agent(route_at("http://127.0.0.1:" + std::to_string(ntohs(address.sin_port))), soon());
  ASSERT_TRUE(carrier) << carrier.error().message();
  std::vector<std::byte> sent(4 * 1024 * 1024), got;
  for (std::size_t i = 0; i < sent.size(); ++i) sent[i] = static_cast<std::byte>(i * 31 + i / 251);
  {
    std::jthread reader([&] {
      std::vector<std::byte> buffer(64 * 1024);
      while (got.size() < sent.size()) {
        auto n = (*carrier)->read(buffer, soon());
        if (!n || *n == 0) return;
        got.insert(got.end(), buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(*n));
      }
    });
    EXPECT_TRUE((*carrier)->write(sent, soon()));
  }
  EXPECT_TRUE(got == sent);
  (*carrier)->shutdown();
  carrier->reset();
}

}  // namespace
}  // namespace nearbox::http
