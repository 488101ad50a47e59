// SPDX-License-Identifier: Apache-2.0
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>
#include <unistd.h>

#include "client/channel/fd_carrier.h"
#include "client/channel/ws_server.h"
#include "tools/agent/build_id.h"
#include "tools/agent/launch.h"
#include "tools/agent/relay.h"
#include "tools/agent/serve.h"

namespace nearbox::agent {
namespace {

constexpr int kUsage = 2;

struct Arguments {
  std::string command;
  ServeCommand serve;
  LaunchOptions launch;
};

int usage() {
  std::fputs(
      "usage: nearbox-agent serve --listen tcp|unix [--port N] [--state-dir D] [--linger S] [--grace S] "
      "[--user NAME]\n"
      "       nearbox-agent launch [--port N] [--state-dir D] [--linger S] [--user NAME]\n"
      "       nearbox-agent connect [--state-dir D] [--linger S] [--user NAME]\n"
      "       nearbox-agent --version\n",
      stderr);
  return kUsage;
}

int fail(const base::Error& error) {
  std::fprintf(stderr, "nearbox-agent: %s\n", error.message().c_str());
  return 1;
}

template <class T>
bool number(std::string_view text, T max, T& out) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc{} && end == text.data() + text.size() && out >= 0 && out <= max;
}

// Names become parts of file names.
bool user_name(std::string_view text) {
  if (text.empty() || text.size() > 32 || text[0] == '-' || text[0] == '.') return false;
  for (const char c : text) {
    const bool fine = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                      c == '.' || c == '_' || c == '-';
    if (!fine) return false;
  }
  return true;
}

bool set_option(Arguments& out, std::string_view name, std::string_view value) {
  constexpr long kMaxSeconds = 30L * 24 * 3600;
  long seconds = 0;
  if (name == "--listen" && out.command == "serve") {
    out.serve.kind = value == "unix" ? ListenKind::kUnix : ListenKind::kTcp;
    return value == "tcp" || value == "unix";
  }
  if (name == "--port") {
    long port = 0;
    if (!number(value, 65535L, port)) return false;
    out.serve.port = out.launch.port = static_cast<std::uint16_t>(port);
    return true;
  }
  if (name == "--state-dir") {
    out.serve.state_dir = out.launch.state_dir = value;
    return !value.empty() && value[0] == '/';
  }
  if (name == "--linger") {
    if (!number(value, kMaxSeconds, seconds)) return false;
    out.serve.linger = out.launch.linger = std::chrono::seconds(seconds);
    return true;
  }
  if (name == "--grace") {
    if (!number(value, kMaxSeconds, seconds)) return false;
    out.serve.grace = std::chrono::seconds(seconds);
    return true;
  }
  if (name == "--user") {
    out.serve.user = out.launch.user = value;
    return user_name(value);
  }
  return name == "--ready-fd" && number(value, 1023, out.serve.ready_fd);
}

bool parse(int argc, char** argv, Arguments& out) {
  if (argc < 2) return false;
  out.command = argv[1];
  for (int i = 2; i < argc; i += 2) {
    if (i + 1 >= argc || !set_option(out, argv[i], argv[i + 1])) return false;
  }
  return true;
}

bool write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return false;
    text.remove_prefix(static_cast<std::size_t>(n));
  }
  return true;
}

int launch(LaunchOptions options) {
  options.kind = ListenKind::kTcp;
  const auto state = find_or_start(options);
  if (!state) return fail(state.error());
  const auto line = "{\"port\":" + std::to_string(state->port) + ",\"token\":\"" + to_hex(state->token) +
                    "\",\"pid\":" + std::to_string(state->pid) + ",\"build\":\"" + state->build + "\"}\n";
  return write_all(1, line) ? 0 : 1;
}

int connect(LaunchOptions options) {
  options.kind = ListenKind::kUnix;
  std::signal(SIGPIPE, SIG_IGN);
  const auto state = find_or_start(options);
  if (!state) return fail(state.error());
  const auto socket = connect_agent(*state);
  if (!socket) return fail(socket.error());
  if (!write_all(1, "nearbox-agent " + state->build + " " + to_hex(state->token) + "\n")) return 1;
  const auto done = relay(0, 1, socket->get());
  return done ? 0 : fail(done.error());
}

int serve(const ServeCommand& command) {
  const CarrierMaker local = [](base::UniqueFd socket,
                                channel::Deadline) -> base::Result<std::unique_ptr<channel::Carrier>> {
    auto carrier = channel::FdCarrier::from_socket(std::move(socket));
    if (!carrier) return std::move(carrier).error();
    return std::unique_ptr<channel::Carrier>(std::move(*carrier));
  };
  const CarrierMaker tcp = [](base::UniqueFd socket, channel::Deadline deadline) {
    return channel::accept_websocket(std::move(socket), deadline);
  };
  return serve_command(command, tcp, local);
}

}  // namespace
}  // namespace nearbox::agent

int main(int argc, char** argv) {
  using namespace nearbox::agent;  // NOLINT: the whole program is that namespace's
  if (argc == 2 && std::strcmp(argv[1], "--version") == 0) {
    std::printf("%s\n", build_id().c_str());
    return 0;
  }
  Arguments arguments;
  if (!parse(argc, argv, arguments)) return usage();
  if (arguments.command == "serve") return serve(arguments.serve);
  if (arguments.command == "launch") return launch(arguments.launch);
  if (arguments.command == "connect") return connect(arguments.launch);
  return usage();
}
