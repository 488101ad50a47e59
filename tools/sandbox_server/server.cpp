// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/server.h"

#include <arpa/inet.h>
#include <cstdlib>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include "tools/sandbox_server/control.h"
#include "tools/sandbox_server/envd.h"
#include "tools/sandbox_server/proxy.h"
#include "tools/sandbox_server/text.h"

namespace nearbox::sandbox_server {
namespace {

constexpr std::size_t kMaxConnections = 1024;
constexpr int kBacklog = 512;

struct Listener {
  base::UniqueFd fd;
  std::uint16_t port = 0;
  std::string host;  // as it stands in a URL
};

base::Result<Listener> listen_tcp(const std::string& host, std::uint16_t port) {
  const std::string where = host + ":" + std::to_string(port);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV | AI_NUMERICHOST;
  addrinfo* found = nullptr;
  const auto name = host == "localhost" ? std::string("127.0.0.1") : host;
  if (::getaddrinfo(name.c_str(), std::to_string(port).c_str(), &hints, &found) != 0 || found == nullptr) {
    return base::errno_error(EINVAL, "listen on " + where + ": give an IP address");
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> guard(found, ::freeaddrinfo);
  Listener out;
  out.fd.reset(::socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  const int on = 1;
  if (out.fd) (void)::setsockopt(out.fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (!out.fd || ::bind(out.fd.get(), found->ai_addr, found->ai_addrlen) != 0 ||
      ::listen(out.fd.get(), kBacklog) != 0) {
    const int err = errno;
    if (err == EADDRINUSE) {
      return base::errno_error(err, "port " + std::to_string(port) + " on " + host +
                                        " is taken by another program; choose another one, or 0 for any");
    }
    return base::errno_error(err, "listen on " + where);
  }
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  if (::getsockname(out.fd.get(), reinterpret_cast<sockaddr*>(&bound), &size) != 0)
    return base::last_errno("getsockname");
  out.port = ntohs(found->ai_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&bound)->sin6_port
                                                : reinterpret_cast<sockaddr_in*>(&bound)->sin_port);
  out.host = found->ai_family == AF_INET6 ? "[" + name + "]" : name;
  return out;
}

std::string default_data_dir() {
  if (const char* state = std::getenv("XDG_STATE_HOME"); state != nullptr && *state == '/') {
    return std::string(state) + "/nearbox/serve";
  }
  if (const char* home = std::getenv("HOME"); home != nullptr && *home == '/') {
    return std::string(home) + "/.local/state/nearbox/serve";
  }
  return {};
}

}  // namespace

struct SandboxServer::Impl {
  Impl(std::unique_ptr<SandboxTable> t, std::string key, base::Logger& logger)
      : table(std::move(t)),
        api_key(key),
        control(*table, base::Secret(key), logger),
        data(*table, logger),
        log(logger) {}

  void serve(Exchange& exchange) noexcept {
    try {
      route(exchange);
    } catch (const std::exception& e) {
      log.error(std::string("request failed error=") + e.what());
      if (!exchange.started()) reply_error(exchange, 500, "internal error");
    }
  }

  void route(Exchange& exchange) {
    const auto& head = exchange.head();
    if (log.enabled(base::LogLevel::kDebug))
      log.debug("request method=" + head.method + " path=" + head.path);
    auto found = route_of(head.headers.value_or("Host", ""), head.headers.get("E2b-Sandbox-Id"),
                          head.headers.get("E2b-Sandbox-Port"));
    if (!found.error.empty()) {
      Headers headers;
      headers.add("Content-Type", "text/plain; charset=utf-8");
      return (void)exchange.reply(400, std::move(headers), found.error + "\n");
    }
    if (!found.route) {
      if (auto id = data.signed_for(head)) found.route = Route{std::move(*id), kEnvdPort};
    }
    if (found.route) return data.serve(exchange, *found.route);
    control.serve(exchange);
  }

  std::unique_ptr<SandboxTable> table;
  std::string api_key;
  ControlPlane control;
  DataPlane data;
  base::Logger& log;
  std::string url;
  std::unique_ptr<HttpServer> http;
};

SandboxServer::SandboxServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SandboxServer::~SandboxServer() { stop(); }

base::Result<std::unique_ptr<SandboxServer>> SandboxServer::start(const ServeOptions& options,
                                                                  base::Logger& log) {
  const auto dir = options.data_dir.empty() ? default_data_dir() : options.data_dir;
  if (dir.empty()) return base::errno_error(EINVAL, "no directory for the sandboxes: set HOME or name one");
  auto listener = listen_tcp(options.host, options.port);
  if (!listener) return std::move(listener).error();
  auto table = SandboxTable::open(dir, options.init_program, options.isolate, log);
  if (!table) return std::move(table).error();
  constexpr std::size_t kKeyBytes = 20;
  const auto key =
      options.key && !options.key->empty() ? *options.key : "e2b_" + hex(random_bytes(kKeyBytes));
  auto impl = std::make_unique<Impl>(std::move(*table), key, log);
  impl->url = "http://" + listener->host + ":" + std::to_string(listener->port);
  impl->data.set_own_port(listener->port);
  impl->http = std::make_unique<HttpServer>(
      std::move(listener->fd), kMaxConnections,
      [raw = impl.get()](Exchange& exchange) { raw->serve(exchange); }, log);
  log.info("sandbox server listens url=" + impl->url);
  return std::unique_ptr<SandboxServer>(new SandboxServer(std::move(impl)));
}

std::string SandboxServer::api_url() const { return impl_->url; }
std::string SandboxServer::sandbox_url() const { return impl_->url; }
std::string SandboxServer::api_key() const { return impl_->api_key; }
bool SandboxServer::isolated() const { return impl_->table->mode() != IsolationMode::kPlain; }

std::string SandboxServer::isolation_note() const {
  static constexpr std::string_view kNoBoundary =
      " This is no security boundary: run nothing here that you would not run yourself.";
  switch (impl_->table->mode()) {
    case IsolationMode::kRoot:
      return "Sandboxes have their own files, /home, /tmp and processes; the network is shared." +
             std::string(kNoBoundary);
    case IsolationMode::kUserns:
      return "Sandboxes have their own files, /home, /tmp and processes; the network is shared, and with "
             "only one user "
             "mapped their root cannot change the system's own directories." +
             std::string(kNoBoundary);
    case IsolationMode::kPlain:
      break;
  }
  return "Sandboxes are ordinary processes of yours in a directory of their own, without namespaces (" +
         impl_->table->plain_reason() + ")." + std::string(kNoBoundary);
}

void SandboxServer::stop() {
  // Sandboxes first: their end breaks the connections that would keep the server's threads busy.
  impl_->table->stop();
  if (impl_->http) impl_->http->stop();
}

}  // namespace nearbox::sandbox_server
