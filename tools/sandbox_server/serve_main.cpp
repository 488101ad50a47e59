// SPDX-License-Identifier: Apache-2.0
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>

#include <nlohmann/json.hpp>

#include "tools/sandbox_server/server.h"

namespace nearbox::sandbox_server {
namespace {

sigset_t ending_signals() {
  sigset_t out;
  sigemptyset(&out);
  for (const int number : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&out, number);
  return out;
}

void announce(const SandboxServer& server, bool json) {
  if (json) {
    const nlohmann::ordered_json line = {
        {"api_url", server.api_url()}, {"sandbox_url", server.sandbox_url()}, {"api_key", server.api_key()}};
    (void)std::printf("%s\n", line.dump().c_str());
  } else {
    (void)std::printf("E2B_API_URL=%s E2B_SANDBOX_URL=%s E2B_API_KEY=%s\n", server.api_url().c_str(),
                      server.sandbox_url().c_str(), server.api_key().c_str());
  }
  (void)std::fflush(stdout);
  if (!json) (void)std::fprintf(stderr, "%s\n", server.isolation_note().c_str());
}

}  // namespace

int serve_main(const ServeOptions& options, bool json, base::Logger& log) {
  const auto ending = ending_signals();
  (void)::sigprocmask(SIG_BLOCK, &ending, nullptr);
  (void)std::signal(SIGPIPE, SIG_IGN);
  auto chosen = options;
  if (const char* key = std::getenv("NEARBOX_SERVE_KEY"); key != nullptr && *key != '\0' && !chosen.key) {
    chosen.key = key;
  }
  auto server = SandboxServer::start(chosen, log);
  if (!server) {
    (void)std::fprintf(stderr, "nearbox serve: %s\n", server.error().message().c_str());
    return 1;
  }
  announce(**server, json);
  log.info("sandbox isolation note=\"" + (*server)->isolation_note() + "\"");
  while (true) {
    const timespec round{60, 0};
    const int number = ::sigtimedwait(&ending, nullptr, &round);
    if (number > 0) break;
  }
  (*server)->stop();
  return 0;
}

}  // namespace nearbox::sandbox_server
