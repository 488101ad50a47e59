// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>

#include "client/api/config.h"
#include "tools/daemon/dialer.h"
#include "tools/daemon/target.h"

namespace nearbox::daemon {

// The agent of a sandbox of E2B or of the embedded server: asks the control plane for the sandbox, has
// the agent deployed through envd, connects to its port by WebSocket. What it learnt is kept; after a
// failure the next attempt begins with the control plane again.
std::unique_ptr<Dialer> make_sandbox_dialer(const Target& target, const api::Config& config,
                                            AgentBinary agent, base::Logger& log);

}  // namespace nearbox::daemon
