// SPDX-License-Identifier: Apache-2.0
// The server alone, for tests: nearbox-serve-dev [--listen HOST:PORT] [--data DIR] [--plain] [--json]
// [--debug]
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "tools/sandbox_server/server.h"

int main(int argc, char** argv) {
  using nearbox::sandbox_server::ServeOptions;
  if (argc > 1 && std::string_view(argv[1]) == "sandbox-init") {
    return nearbox::sandbox_server::sandbox_init_main(argc, argv);
  }
  ServeOptions options;
  bool json = false;
  nearbox::base::Logger log(2, nearbox::base::LogLevel::kWarn);
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    const bool has_value = i + 1 < argc;
    if (word == "--json") {
      json = true;
    } else if (word == "--plain") {
      options.isolate = false;
    } else if (word == "--debug") {
      log.set_level(nearbox::base::LogLevel::kDebug);
    } else if (word == "--data" && has_value) {
      options.data_dir = argv[++i];
    } else if (word == "--listen" && has_value) {
      const std::string where = argv[++i];
      const auto colon = where.rfind(':');
      options.host = where.substr(0, colon);
      options.port = static_cast<std::uint16_t>(std::atoi(where.c_str() + colon + 1));
    } else {
      (void)std::fprintf(stderr, "unknown argument: %s\n", argv[i]);
      return 2;
    }
  }
  return nearbox::sandbox_server::serve_main(options, json, log);
}
