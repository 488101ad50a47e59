// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "tools/sandbox_server/http.h"
#include "tools/sandbox_server/sandbox_table.h"
#include "tools/sandbox_server/text.h"

namespace nearbox::sandbox_server {

inline constexpr std::uint16_t kEnvdPort = 49983;

// Carries requests into sandboxes: to envd, or to any port a process of the sandbox listens on.
//
// One upstream connection a request; replies leave as they come; an upgraded connection becomes a
// two-way copy of bytes.
// Threads: any. Errors: JSON with "sandboxId", "message", "code", as E2B's proxies answer.
// Source:  e2b-dev/infra 54693ff, packages/shared/pkg/proxy (handler.go, template/*.go, pool/client.go),
//          packages/orchestrator/pkg/sandbox/envd/internal_routes.go.
class DataPlane {
 public:
  DataPlane(SandboxTable& table, base::Logger& log) : table_(table), log_(log) {}
  // The server's own port, which is no sandbox's.
  void set_own_port(std::uint16_t port) { own_port_ = port; }
  void serve(Exchange& exchange, const Route& route);
  // The sandbox whose token a file URL without routing is signed with, if any.
  std::optional<std::string> signed_for(const RequestHead& head) const;

 private:
  std::shared_ptr<Sandbox> running_sandbox(Exchange& exchange, const Route& route);
  base::Result<base::UniqueFd> dial(Exchange& exchange, Sandbox& sandbox, std::uint16_t port) const;

  SandboxTable& table_;
  base::Logger& log_;
  std::uint16_t own_port_ = 0;
};

}  // namespace nearbox::sandbox_server
