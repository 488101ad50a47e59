// SPDX-License-Identifier: Apache-2.0
#include <charconv>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <unistd.h>

#include "client/api/error_code.h"
#include "tools/cli/app.h"
#include "tools/daemon/local_server.h"
#include "tools/sandbox_server/server.h"

namespace nearbox::cli {
namespace {

struct ServeArgs {
  std::string listen = "127.0.0.1:0";
  std::string data;
  bool plain = false;
  bool stop = false;
};

base::Result<std::pair<std::string, std::uint16_t>> parse_listen(const std::string& text) {
  const auto colon = text.rfind(':');
  const auto bad = [&] {
    return api::make_error(api::ErrorCode::kArgInvalid,
                           "--listen is not valid: '" + text + "' is not HOST:PORT");
  };
  if (colon == std::string::npos || colon == 0) return bad();
  unsigned port = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data() + colon + 1, end, port);
  if (parsed.ec != std::errc() || parsed.ptr != end || port > 65'535) return bad();
  auto host = text.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  return std::pair(host, static_cast<std::uint16_t>(port));
}

int stop_server(App& app) {
  auto found = daemon::find_local_server();
  if (!found) return fail(app, found.error());
  if (!*found) {
    if (app.json) print_json({{"status", "not running"}});
    return 0;
  }
  if ((*found)->pid <= 1 || ::kill((*found)->pid, SIGTERM) != 0)
    return fail(app, base::last_errno("end the server"));
  if (app.json) print_json({{"status", "stopping"}});
  return 0;
}

int run_serve(App& app, const ServeArgs& args) {
  if (args.stop) return stop_server(app);
  auto listen = parse_listen(args.listen);
  if (!listen) return fail(app, listen.error());
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&set, signal);
  (void)::pthread_sigmask(SIG_BLOCK, &set, nullptr);

  // The first server of a user is the one that --local finds; a further one needs its own --data.
  auto record = daemon::LocalServerRecord::take();
  sandbox_server::ServeOptions options;
  options.host = listen->first;
  options.port = listen->second;
  options.isolate = !args.plain;
  if (const char* key = std::getenv("NEARBOX_SERVE_KEY"); key != nullptr && *key != '\0') options.key = key;
  if (!args.data.empty()) {
    options.data_dir = args.data;
  } else if (record) {
    options.data_dir = record->data_dir();
  } else {
    return fail(app, api::make_error(
                         api::ErrorCode::kArgInvalid,
                         "--data is not valid: another server of yours uses the default directory; "
                         "give this one its own with --data DIR, or end that one (nearbox serve --stop)"));
  }
  auto server = sandbox_server::SandboxServer::start(options, app.log);
  if (!server) return fail(app, server.error());
  if (record) {
    auto published = record->publish(
        {(*server)->api_url(), (*server)->sandbox_url(), base::Secret((*server)->api_key()), ::getpid()});
    if (!published) return fail(app, published.error());
  }
  if (app.json) {
    print_json({{"api_url", (*server)->api_url()},
                {"sandbox_url", (*server)->sandbox_url()},
                {"api_key", (*server)->api_key()}});
  } else {
    std::printf("E2B_API_URL=%s E2B_SANDBOX_URL=%s E2B_API_KEY=%s\n", (*server)->api_url().c_str(),
                (*server)->sandbox_url().c_str(), (*server)->api_key().c_str());
    (void)std::fflush(stdout);
  }
  std::fprintf(stderr, "nearbox: %s\n", (*server)->isolation_note().c_str());
  int signal = 0;
  (void)::sigwait(&set, &signal);
  (*server)->stop();
  return 0;
}

}  // namespace

void add_serve(CLI::App& parser, App& app) {
  auto args = std::make_shared<ServeArgs>();
  auto* serve = parser.add_subcommand("serve", "Run the embedded sandbox server (E2B's API on this machine)");
  serve->add_option("--listen", args->listen, "HOST:PORT; port 0 picks a free one");
  serve->add_option("--data", args->data, "Where sandboxes are kept");
  serve->add_flag("--no-isolation", args->plain, "Sandboxes are plain directories and processes");
  serve->add_flag("--stop", args->stop, "End the running server of this user");
  serve->callback([&app, args] { app.run = [&app, args] { return run_serve(app, *args); }; });
}

}  // namespace nearbox::cli
