// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "client/api/agent_link.h"
#include "client/base/log.h"
#include "tools/daemon/control.h"

namespace nearbox::daemon {

// Runs one command in the sandbox for one client of the daemon: output, input and signals between
// its control connection and the agent, across reconnects of the link.
//
// Threads: run() occupies the client's thread until the command ended or the client went; it owns a
//          second thread that writes output to the client. A slow client slows the command (credit).
// Bounds:  kWindow bytes of output under way, kInputWindow of input.
// When the client goes before the command ended, a foreground command gets HUP, and KILL 5 s later.
class ExecSession {
 public:
  // Before the exit status is told: what the command changed shall be visible. The agent has told it by
  // this event of its instance; 0: it does not say.
  using SettleFn = std::function<void(std::uint64_t instance, std::uint64_t seq)>;

  // `name`: of the sandbox, for errors.
  ExecSession(api::AgentLink& link, ControlConnection& client, std::string name, base::Logger& log);
  ~ExecSession();
  // Deadline: for the start; a command that was not started by then is not started later.
  void run(const nlohmann::json& request, Deadline deadline, const SettleFn& settle);

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace nearbox::daemon
