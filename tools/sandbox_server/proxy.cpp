// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/proxy.h"

#include <algorithm>
#include <array>
#include <fcntl.h>
#include <filesystem>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <optional>
#include <poll.h>
#include <sys/socket.h>

#include <nlohmann/json.hpp>

#include "tools/sandbox_server/envd.h"
#include "tools/sandbox_server/forward.h"

namespace nearbox::sandbox_server {
namespace {

using nlohmann::ordered_json;

// A port may open a moment after its process was started. Source: pool/client.go (5 dials).
constexpr std::array<int, 5> kDialWaitsMs{0, 100, 200, 300, 400};
constexpr std::chrono::seconds kAutoResumeTimeout{300};

// Whether a person looks at the answer.
bool browser(const RequestHead& head) {
  return head.headers.value_or("User-Agent", "").find("Mozilla/") != std::string_view::npos &&
         head.headers.value_or("Accept", "").find("text/html") != std::string_view::npos;
}

// The message alone comes from us; nothing of the request goes into the page.
std::string page_of(int status, const ordered_json& body) {
  const auto title = std::to_string(status) + " " + std::string(reason_of(status));
  const auto port = body.find("port");
  const auto where = port == body.end() ? std::string() : " (port " + port->dump() + ")";
  return "<!doctype html><html><head><meta charset=\"utf-8\"><title>" + title + "</title></head><body><h1>" +
         title + "</h1><p>" + body.value("message", std::string()) + where + ".</p></body></html>\n";
}

void refuse(Exchange& exchange, int status, const ordered_json& body) {
  Headers headers;
  if (browser(exchange.head())) {
    headers.add("Content-Type", "text/html; charset=utf-8");
    return (void)exchange.reply(status, std::move(headers), page_of(status, body));
  }
  headers.add("Content-Type", "application/json; charset=utf-8");
  (void)exchange.reply(status, std::move(headers),
                       body.dump(-1, ' ', false, ordered_json::error_handler_t::replace));
}

void refuse_sandbox(Exchange& exchange, int status, const std::string& id, std::string_view message) {
  refuse(exchange, status, {{"sandboxId", id}, {"message", message}, {"code", status}});
}

bool control_route(const std::string& path) {
  static constexpr std::array<std::string_view, 7> kHidden{"/init",     "/freeze", "/unfreeze", "/collapse",
                                                           "/fsfreeze", "/fsthaw", "/upgrade"};
  auto clean = std::filesystem::path("/" + path).lexically_normal().string();
  while (clean.size() > 1 && clean.back() == '/') clean.pop_back();
  if (clean.rfind("//", 0) == 0) clean.erase(0, 1);
  return std::find(kHidden.begin(), kHidden.end(), clean) != kHidden.end();
}

// A sandbox's maskRequestHost for one of its ports.
std::string masked_host(std::string text, std::uint16_t port) {
  constexpr std::string_view kPort = "${PORT}";
  const auto digits = std::to_string(port);
  for (auto at = text.find(kPort); at != std::string::npos; at = text.find(kPort, at + digits.size())) {
    text.replace(at, kPort.size(), digits);
  }
  return text;
}

base::Result<base::UniqueFd> dial_port(std::uint16_t port) {
  base::UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (!fd || ::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return base::last_errno("connect");
  }
  const int on = 1;
  (void)::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  return fd;
}

}  // namespace

std::optional<std::string> DataPlane::signed_for(const RequestHead& head) const {
  if (head.path != "/files" || (head.method != "GET" && head.method != "POST")) return std::nullopt;
  const auto query = parse_query(head.query);
  const auto value = [&](const char* key) {
    const auto found = query.find(key);
    return found == query.end() ? std::string() : found->second;
  };
  const auto signature = base::Secret(value("signature"));
  if (signature.empty()) return std::nullopt;
  std::optional<std::int64_t> expires;
  if (const auto number = parse_number(value("signature_expiration")))
    expires = static_cast<std::int64_t>(*number);
  for (const auto& sandbox : table_.all()) {
    if (sandbox->token().empty()) continue;
    const base::Secret right(file_signature(value("path"), head.method == "GET" ? "read" : "write",
                                            value("username"), sandbox->token().reveal(), expires));
    if (equal_constant_time(signature, right)) return sandbox->id();
  }
  return std::nullopt;
}

// The sandbox, resumed where it wants that; otherwise answers and returns nothing.
std::shared_ptr<Sandbox> DataPlane::running_sandbox(Exchange& exchange, const Route& route) {
  auto sandbox = table_.find(route.sandbox_id);
  const auto state = sandbox ? sandbox->snapshot().state : Sandbox::State::kEnded;
  if (state == Sandbox::State::kEnded || (state == Sandbox::State::kPaused && !sandbox->spec().auto_resume)) {
    refuse_sandbox(exchange, 502, route.sandbox_id, "The sandbox was not found");
    return nullptr;
  }
  const auto& head = exchange.head();
  const auto allowed = [&](const base::Secret& wanted, const char* name) {
    return wanted.empty() ||
           equal_constant_time(base::Secret(std::string(head.headers.value_or(name, ""))), wanted);
  };
  if (route.port != kEnvdPort && !allowed(sandbox->traffic_token(), "e2b-traffic-access-token")) {
    refuse_sandbox(exchange, 403, route.sandbox_id, "Missing or invalid traffic access token");
    return nullptr;
  }
  if (state == Sandbox::State::kPaused) {
    if (route.port == kEnvdPort && !allowed(sandbox->token(), "X-Access-Token")) {
      refuse_sandbox(exchange, 403, route.sandbox_id, "Missing or invalid access token");
      return nullptr;
    }
    const auto timeout = std::max(sandbox->spec().timeout, kAutoResumeTimeout);
    if (auto resumed = table_.resume(*sandbox, timeout, ResumeMode::kRestore); !resumed) {
      if (resumed.error().as_errno() == EAGAIN) {
        refuse_sandbox(exchange, 429, route.sandbox_id, resumed.error().context);
        return nullptr;
      }
      refuse_sandbox(exchange, 502, route.sandbox_id, "The sandbox was not found");
      return nullptr;
    }
    log_.info("sandbox resumed reason=traffic id=" + sandbox->id());
    table_.wake();
  }
  return sandbox;
}

base::Result<base::UniqueFd> DataPlane::dial(Exchange& exchange, Sandbox& sandbox, std::uint16_t port) const {
  if (port == kEnvdPort) return sandbox.connect_envd();
  if (port == own_port_) return base::errno_error(ECONNREFUSED, "the server's own port");
  base::Result<base::UniqueFd> last = base::errno_error(ECONNREFUSED, "connect");
  for (const int wait : kDialWaitsMs) {
    // Backing off; the end of the server cuts it short.
    pollfd stop{exchange.stream().stop_fd(), POLLIN, 0};
    if (wait > 0 && ::poll(&stop, 1, wait) != 0) break;
    // The machine's other ports, and those of other sandboxes, are not this sandbox's to reach.
    if (!sandbox.listens(port)) continue;
    last = dial_port(port);
    if (last || last.error().as_errno() != ECONNREFUSED) break;
  }
  return last;
}

void DataPlane::serve(Exchange& exchange, const Route& route) {
  if (route.port == kEnvdPort && control_route(exchange.head().path)) {
    return refuse(
        exchange, 404,
        {{"message", "The requested route is not available"}, {"path", exchange.head().path}, {"code", 404}});
  }
  const auto sandbox = running_sandbox(exchange, route);
  if (!sandbox) return;
  const auto closed = [&] {
    if (table_.find(route.sandbox_id) == nullptr || sandbox->snapshot().state != Sandbox::State::kRunning) {
      return refuse_sandbox(exchange, 502, route.sandbox_id, "The sandbox was not found");
    }
    refuse(exchange, 502,
           {{"sandboxId", route.sandbox_id},
            {"message", "The sandbox is running but port is not open"},
            {"port", route.port},
            {"code", 502}});
  };
  auto upstream = dial(exchange, *sandbox, route.port);
  if (!upstream) return closed();
  const Sandbox::Connection inner(*sandbox, upstream->get());
  if (!inner.accepted()) return closed();
  // Until the reply begins the end of `inner` is enough, and the client gets an answer, as from the real
  // edge.
  std::optional<Sandbox::Connection> outer;
  const auto begins = [&] { return outer.emplace(*sandbox, exchange.stream().fd()).accepted(); };
  // A duplicate, so that the number in `inner` stays this connection's until that has gone.
  base::UniqueFd copy(::fcntl(upstream->get(), F_DUPFD_CLOEXEC, 0));
  const auto host =
      route.port == kEnvdPort ? std::string() : masked_host(sandbox->spec().mask_host, route.port);
  if (auto done = forward(exchange, std::move(copy), host, begins); !done) {
    if (exchange.started()) return exchange.close_after();
    exchange.close_after();
    closed();
  }
}

}  // namespace nearbox::sandbox_server
