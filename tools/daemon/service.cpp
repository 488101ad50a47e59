// SPDX-License-Identifier: Apache-2.0
#include "tools/daemon/service.h"

#include "client/api/error_code.h"
#include "tools/daemon/local_server.h"
#include "tools/daemon/sandbox_dialer.h"

namespace nearbox::daemon {

base::Result<api::Config> service_config(Provider provider, api::Config config, StartServer start,
                                         std::chrono::steady_clock::time_point deadline) {
  switch (provider) {
    case Provider::kSsh:
    case Provider::kDocker:
      return config;
    case Provider::kE2b:
      if (auto enabled = api::require_enabled(config); !enabled) return std::move(enabled).error();
      if (auto key = api::require_api_key(config); !key) return std::move(key).error();
      return config;
    case Provider::kLocal:
      break;
  }
  LocalServer server;
  if (start == StartServer::kYes) {
    auto ensured = ensure_local_server(deadline);
    if (!ensured) return std::move(ensured).error();
    server = *std::move(ensured);
  } else {
    auto found = find_local_server();
    if (!found) return std::move(found).error();
    if (!*found) {
      return api::make_error(
          api::ErrorCode::kNetUnreachable,
          "Cannot reach the embedded server: it does not run; start it with nearbox serve");
    }
    server = **std::move(found);
  }
  config.provider = api::Provider::kLocal;
  config.api_url = server.api_url;
  config.sandbox_url = server.sandbox_url;
  config.api_key = server.api_key;
  config.enabled = true;
  return config;
}

std::string service_name(Provider provider, const api::Config& config) {
  switch (provider) {
    case Provider::kE2b:
      return api::control_plane_url(config);
    case Provider::kLocal:
      return "local";
    case Provider::kSsh:
    case Provider::kDocker:
      break;
  }
  return "-";
}

base::Result<std::unique_ptr<Dialer>> make_dialer(const Target& target, const api::Config& config,
                                                  base::Logger& log) {
  auto agent = find_agent_binary();
  if (!agent) return std::move(agent).error();
  switch (target.provider) {
    case Provider::kSsh:
      return make_stdio_dialer(ssh_config(target.name), *std::move(agent), log);
    case Provider::kDocker:
      return make_stdio_dialer(docker_config(target.name), *std::move(agent), log);
    case Provider::kE2b:
    case Provider::kLocal:
      break;
  }
  return make_sandbox_dialer(target, config, *std::move(agent), log);
}

}  // namespace nearbox::daemon
