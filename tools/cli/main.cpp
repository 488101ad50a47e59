// SPDX-License-Identifier: Apache-2.0
#include <cerrno>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fcntl.h>
#include <string_view>

#include "client/api/error_code.h"
#include "client/http/curl_util.h"
#include "fs/fuse/watchdog.h"
#include "tools/cli/app.h"
#include "tools/daemon/daemon.h"
#include "tools/sandbox_server/server.h"

namespace nearbox::cli {
namespace {

// Wrong words on the command line: as every other error of arguments.
int usage_error(const App& app, const CLI::App& parser, const CLI::ParseError& error) {
  if (error.get_exit_code() == 0) return parser.exit(error);  // --help, --version
  return fail(
      app, api::make_error(api::ErrorCode::kArgInvalid, std::string(error.what()) + "; see nearbox --help"));
}

bool known_command(const CLI::App& parser, const std::string& name) {
  for (const auto* command : parser.get_subcommands([](const CLI::App*) { return true; })) {
    if (command->check_name(name)) return true;
  }
  return false;
}

int run(int argc, char** argv) {
  App app;
  const char* provider = std::getenv("NEARBOX_PROVIDER");
  app.local = provider != nullptr && std::string_view(provider) == "local";
  for (int i = 1; i < argc; ++i) {
    if (std::string_view(argv[i]) == "--") {
      app.rest.assign(argv + i + 1, argv + argc);
      argc = i;
      break;
    }
    if (std::string_view(argv[i]) == "--json") app.json = true;  // also for errors of the words after it
  }
  CLI::App parser{"nearbox: a remote sandbox as a local folder", "nearbox"};
  parser.set_version_flag("--version", "nearbox " NEARBOX_VERSION);
  parser.require_subcommand(1);
  parser.fallthrough();
  parser.add_flag("--json", app.json, "Machine-readable output");
  parser.add_flag("--local", app.local, "Use the embedded sandbox server, started when needed");
  parser.add_option("--config", app.config_file, "Configuration file (TOML, or JSON when it ends in .json)");
  parser.add_flag("-v,--verbose", app.verbose, "Say on stderr what is done");
  add_mount(parser, app);
  add_exec(parser, app);
  add_status(parser, app);
  add_top(parser, app);
  add_sandbox(parser, app);
  add_serve(parser, app);
  add_doctor(parser, app);
  add_sync(parser, app);
  add_why(parser, app);
  if (argc > 1 && argv[1][0] != '-' && !known_command(parser, argv[1])) {
    return fail(app, api::make_error(api::ErrorCode::kArgUnknown,
                                     "unknown argument " + std::string(argv[1]) + "; see nearbox --help"));
  }
  try {
    parser.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return usage_error(app, parser, error);
  }
  if (app.verbose) app.log.set_level(base::LogLevel::kInfo);
  return app.run ? app.run() : 2;
}

// Whoever starts us may have closed these (`<&-`): what we open ourselves must not take their places.
void open_standard_streams() {
  for (int fd = 0; fd <= 2; ++fd) {
    if (::fcntl(fd, F_GETFD) < 0 && errno == EBADF) (void)::open("/dev/null", O_RDWR);  // the lowest number
  }
}

}  // namespace
}  // namespace nearbox::cli

int main(int argc, char** argv) {
  nearbox::cli::open_standard_streams();
  std::signal(SIGPIPE, SIG_IGN);
  try {
    // Programs of ours that are started by ours, not by people.
    if (argc > 1 && std::strcmp(argv[1], "daemon") == 0) {
      nearbox::http::global_init();
      return nearbox::daemon::daemon_main(argc, argv);
    }
    if (argc > 1 && std::strcmp(argv[1], "fuse-watchdog") == 0) return nearbox::fs::watchdog_main(argc, argv);
    if (argc > 1 && std::strcmp(argv[1], "sandbox-init") == 0) {
      return nearbox::sandbox_server::sandbox_init_main(argc, argv);
    }
    nearbox::http::global_init();
    return nearbox::cli::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "nearbox: Internal error: %s\n", error.what());
    return 70;
  }
}
