// SPDX-License-Identifier: Apache-2.0
#include "tools/sandbox_server/envd.h"

#include <csignal>
#include <cstdio>
#include <ctime>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include "client/base/secret.h"
#include "tools/sandbox_server/envd_stream.h"
#include "tools/sandbox_server/envelope.h"
#include "tools/sandbox_server/processes.h"
#include "tools/sandbox_server/text.h"
#include "tools/sandbox_server/watch_table.h"

namespace nearbox::sandbox_server {
namespace {

using nlohmann::json;

bool same_secret(std::string_view a, std::string_view b) {
  return equal_constant_time(base::Secret(std::string(a)), base::Secret(std::string(b)));
}

// Whether the token or the signature allows a request. Source: e2b-dev/infra 54693ff,
// packages/envd/internal/api/auth.go.
int check_token(const InitConfig& config, const RequestHead& head) {
  if (config.token.empty() || (head.method == "GET" && head.path == "/health")) return 0;
  if (const auto given = head.headers.get("X-Access-Token"))
    return same_secret(*given, config.token) ? 0 : 401;
  const bool files = head.path == "/files" && (head.method == "GET" || head.method == "POST");
  if (!files) return 401;
  const auto query = parse_query(head.query);
  const auto value = [&](const char* key) {
    const auto found = query.find(key);
    return found == query.end() ? std::string() : found->second;
  };
  const auto signature = value("signature");
  if (signature.empty()) return 401;
  std::optional<std::int64_t> expires;
  if (const auto text = value("signature_expiration"); !text.empty()) {
    const auto number = parse_number(text);
    if (!number) return 400;
    expires = static_cast<std::int64_t>(*number);
  }
  const auto right = file_signature(value("path"), head.method == "GET" ? "read" : "write", value("username"),
                                    config.token, expires);
  if (!same_secret(signature, right)) return 401;
  return expires && *expires < static_cast<std::int64_t>(::time(nullptr)) ? 401 : 0;
}

void reply_rpc(Exchange& exchange, const RpcReply& reply) {
  Headers headers;
  headers.add("Content-Type", "application/json");
  if (!reply.code.empty()) {
    const json body = {{"code", reply.code}, {"message", reply.message}};
    (void)exchange.reply(http_status_of(reply.code), std::move(headers),
                         body.dump(-1, ' ', false, json::error_handler_t::replace));
    return;
  }
  std::string text;
  try {
    text = reply.body.dump();
  } catch (const json::exception&) {
    return reply_rpc(exchange,
                     RpcReply::error("internal", "marshal message: string field contains invalid UTF-8"));
  }
  (void)exchange.reply(200, std::move(headers), text);
}

void reply_text(Exchange& exchange, int status, std::string_view text) {
  Headers headers;
  headers.add("Content-Type", "text/plain; charset=utf-8");
  (void)exchange.reply(status, std::move(headers), text);
}

json metrics() {
  struct sysinfo info {};
  (void)::sysinfo(&info);
  struct statvfs disk {};
  (void)::statvfs("/", &disk);
  const std::uint64_t unit = info.mem_unit;
  const std::uint64_t total = info.totalram * unit;
  const std::uint64_t free = info.freeram * unit;
  const std::uint64_t disk_total = disk.f_blocks * disk.f_frsize;
  return {{"ts", ::time(nullptr)},
          {"cpu_count", ::sysconf(_SC_NPROCESSORS_ONLN)},
          {"cpu_used_pct", 0.0},
          {"mem_total", total},
          {"mem_used", total - free},
          {"mem_cache", info.bufferram * unit},
          {"mem_total_mib", total >> 20U},
          {"mem_used_mib", (total - free) >> 20U},
          {"disk_used", disk_total - disk.f_bavail * disk.f_frsize},
          {"disk_total", disk_total}};
}

class EnvdServer {
 public:
  EnvdServer(const InitConfig& config, base::Logger& log)
      : context_{config, Users(config.mode, config.dir + "/home"), processes_, watchers_, log} {}

  void serve(Exchange& exchange) noexcept {
    try {
      route(exchange);
    } catch (const std::exception& e) {
      context_.log.error(std::string("envd request failed error=") + e.what());
      if (!exchange.started()) reply_error(exchange, 500, "internal error");
    }
  }

 private:
  void route(Exchange& exchange) {
    const auto& head = exchange.head();
    if (const int status = check_token(context_.config, head); status != 0) {
      if (status == 400)
        return reply_text(exchange, 400, "invalid format for parameter signature_expiration\n");
      return reply_error(
          exchange, 401,
          "unauthorized access, please provide a valid access token or method signing if supported");
    }
    std::string user_name(kUserName);
    if (const auto header = head.headers.get("Authorization")) {
      if (const auto basic = parse_basic_auth(*header)) user_name = basic->first;
    }
    const auto user = context_.users.find(user_name);
    const auto slash = head.path.find('/', 1);
    const auto service = head.path.substr(0, slash);
    if (service == "/filesystem.Filesystem" || service == "/process.Process") {
      const auto method = slash == std::string::npos ? std::string() : head.path.substr(slash + 1);
      return rpc(exchange, service, method, user, user_name);
    }
    if (!user) return reply_rpc(exchange, unknown_user(user_name));
    plain_route(exchange, *user);
  }

  static RpcReply unknown_user(const std::string& name) {
    return RpcReply::error("unauthenticated", "invalid username: '" + name + "'");
  }

  void plain_route(Exchange& exchange, const User& user) {
    const auto& head = exchange.head();
    const auto is = [&](std::string_view path) { return head.path == path; };
    const bool get = head.method == "GET";
    Headers headers;
    headers.add("Cache-Control", "no-store");
    if (is("/health") && get) return (void)exchange.reply(204, std::move(headers), "");
    if (is("/files") && get) return serve_file_download(context_, exchange, user);
    if (is("/files") && head.method == "POST") return serve_file_upload(context_, exchange, user);
    headers.add("Content-Type", "application/json");
    if (is("/metrics") && get) return (void)exchange.reply(200, std::move(headers), metrics().dump());
    if (is("/envs") && get)
      return (void)exchange.reply(200, std::move(headers), json(context_.config.envs).dump());
    if (is("/health") || is("/files") || is("/metrics") || is("/envs"))
      return (void)exchange.reply(405, {}, "");
    reply_text(exchange, 404, "404 page not found\n");
  }

  void rpc(Exchange& exchange, const std::string& service, const std::string& method,
           const std::optional<User>& user, const std::string& user_name) {
    const auto& head = exchange.head();
    if (head.method != "POST") return (void)exchange.reply(405, {}, "");
    const auto type = head.headers.value_or("Content-Type", "");
    const bool process = service == "/process.Process";
    const bool stream = process && (method == "Start" || method == "Connect" || method == "StreamInput");
    const bool watch = !process && method == "WatchDir";
    if (type.substr(0, type.find(';')) !=
        (stream || watch ? "application/connect+json" : "application/json")) {
      return (void)exchange.reply(415, {}, "");
    }
    if (stream || watch) {
      RpcReply refused;
      if (!user) refused = unknown_user(user_name);
      if (refused.code.empty() && watch) return watch_stream(context_, exchange, *user);
      if (refused.code.empty()) return process_stream(context_, exchange, method, *user);
      return end_stream(exchange, refused);
    }
    if (!user) return reply_rpc(exchange, unknown_user(user_name));
    unary(exchange, process, method, *user);
  }

  void unary(Exchange& exchange, bool process, const std::string& method, const User& user) {
    static constexpr std::string_view kMethods =
        " Stat MakeDir Move ListDir Remove CreateWatcher GetWatcherEvents RemoveWatcher"
        " List Update SendInput SendSignal CloseStdin ";
    if (method.empty() || method.find(' ') != std::string::npos ||
        kMethods.find(" " + method + " ") == std::string_view::npos) {
      return reply_text(exchange, 404, "404 page not found\n");
    }
    const auto encoding = exchange.head().headers.value_or("Content-Encoding", "identity");
    if (!encoding.empty() && !iequals(encoding, "identity")) {
      return reply_rpc(exchange, RpcReply::error("unimplemented", "unknown compression"));
    }
    const auto body = exchange.read_all(kMaxJsonBody);
    if (!body) return reply_rpc(exchange, RpcReply::error("resource_exhausted", "message too large"));
    const auto request = json::parse(*body, nullptr, false);
    if (!request.is_object())
      return reply_rpc(exchange, RpcReply::error("invalid_argument", "unmarshal message: no JSON object"));
    try {
      reply_rpc(exchange, process ? process_call(context_, exchange, method, request)
                                  : filesystem_call(context_, user, method, request));
    } catch (const json::exception&) {
      reply_rpc(exchange, RpcReply::error("invalid_argument", "unmarshal message: wrong type of a field"));
    }
  }

  ProcessTable processes_;
  WatchTable watchers_;
  EnvdContext context_;
};

}  // namespace

void reply_error(Exchange& exchange, int status, std::string_view message) {
  const json body = {{"code", status}, {"message", message}};
  Headers headers;
  headers.add("Content-Type", "application/json; charset=utf-8");
  (void)exchange.reply(status, std::move(headers), body.dump(-1, ' ', false, json::error_handler_t::replace));
}

int envd_main(int listen_fd, const InitConfig& config) {
  // Blocked here, before the threads begin, and in all of them: only the wait below takes it.
  sigset_t ending;
  sigemptyset(&ending);
  sigaddset(&ending, SIGTERM);
  (void)::sigprocmask(SIG_BLOCK, &ending, nullptr);
  (void)std::signal(SIGPIPE, SIG_IGN);
  base::Logger log;
  EnvdServer envd(config, log);
  HttpServer server(
      base::UniqueFd(listen_fd), kMaxEnvdConnections, [&](Exchange& exchange) { envd.serve(exchange); }, log);
  while (true) {
    const timespec round{60, 0};
    if (::sigtimedwait(&ending, nullptr, &round) == SIGTERM) break;
  }
  server.stop();
  return 0;
}

}  // namespace nearbox::sandbox_server
