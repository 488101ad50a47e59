// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "client/api/config.h"
#include "client/api/control_plane.h"
#include "client/http/http_client.h"

namespace nearbox::http {

inline constexpr std::uint16_t kEnvdPort = 49983;

// How a port of one sandbox is reached: an address and the headers that go with each request.
struct Route {
  std::string base_url;  // no slash at the end
  std::vector<Header> headers;
  std::vector<std::pair<std::string, base::Secret>> secrets;
};

// E2B_SANDBOX_URL as it is; localhost under E2B_DEBUG; the host that E2B's own domains share;
// else the sandbox's own host. The envd token goes to envd alone, the traffic token to other ports.
// Source: E2B b802997, packages/python-sdk/e2b/sandbox_domains.py, packages/js-sdk/src/connectionConfig.ts;
// infra 54693ff, packages/shared/pkg/proxy/host.go.
Route route_to(const api::Config& config, const api::SandboxAccess& access, std::uint16_t port);

// "PORT-ID.DOMAIN": what a browser is told to open.
std::string public_host(const api::Config& config, const api::SandboxAccess& access, std::uint16_t port);

}  // namespace nearbox::http
