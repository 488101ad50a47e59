// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include <nlohmann/json.hpp>

#include "client/api/agent_link.h"
#include "client/base/log.h"
#include "tools/daemon/control.h"

namespace nearbox::daemon {

// Runs one sync for one client of the daemon (docs/control.md, sync).
//
// Threads: run() occupies the client's thread; a second one watches whether the client goes, which ends the
//          sync between two files.
// Bounds:  one sync of a pairing at a time: a lock file beside its index.
class SyncSession {
 public:
  // `name`: of the sandbox, for errors and for the pairing.
  SyncSession(api::AgentLink& link, ControlConnection& client, std::string name, base::Logger& log)
      : link_(link), client_(client), name_(std::move(name)), log_(log) {}
  // Answers the request: progress while it runs, then {"ok": result} or {"error": …}.
  void run(const nlohmann::json& request);

 private:
  // `held`: what is to be released after the answer.
  base::Result<nlohmann::json> sync(const nlohmann::json& message, std::shared_ptr<void>& held);

  api::AgentLink& link_;
  ControlConnection& client_;
  const std::string name_;
  base::Logger& log_;
};

}  // namespace nearbox::daemon
