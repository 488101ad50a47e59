// SPDX-License-Identifier: Apache-2.0
#include "client/http/data_plane.h"

#include <algorithm>
#include <array>

namespace nearbox::http {
namespace {

constexpr std::array<std::string_view, 4> kSharedHostDomains{"e2b.app", "e2b.dev", "e2b.pro",
                                                             "e2b-staging.dev"};

const std::string& domain_of(const api::Config& config, const api::SandboxAccess& access) {
  return access.domain.empty() ? config.domain : access.domain;
}

std::string base_url(const api::Config& config, const api::SandboxAccess& access, std::uint16_t port) {
  if (!config.sandbox_url.empty()) return config.sandbox_url;
  if (config.debug) return "http://localhost:" + std::to_string(port);
  const std::string& domain = domain_of(config, access);
  if (std::find(kSharedHostDomains.begin(), kSharedHostDomains.end(), domain) != kSharedHostDomains.end()) {
    return "https://sandbox." + domain;
  }
  return "https://" + public_host(config, access, port);
}

}  // namespace

std::string public_host(const api::Config& config, const api::SandboxAccess& access, std::uint16_t port) {
  if (config.debug) return "localhost:" + std::to_string(port);
  return std::to_string(port) + "-" + access.id.str() + "." + domain_of(config, access);
}

Route route_to(const api::Config& config, const api::SandboxAccess& access, std::uint16_t port) {
  Route route;
  route.base_url = base_url(config, access, port);
  route.headers = {{"E2b-Sandbox-Id", access.id.str()}, {"E2b-Sandbox-Port", std::to_string(port)}};
  if (port == kEnvdPort) {
    if (!access.envd_token.empty()) route.secrets.emplace_back("X-Access-Token", access.envd_token);
  } else if (!access.traffic_token.empty()) {
    route.secrets.emplace_back("E2b-Traffic-Access-Token", access.traffic_token);
  }
  return route;
}

}  // namespace nearbox::http
