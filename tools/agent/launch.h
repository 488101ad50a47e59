// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <string>

#include "client/base/result.h"
#include "client/base/unique_fd.h"
#include "tools/agent/state_file.h"

namespace nearbox::agent {

inline constexpr std::chrono::seconds kLaunchTimeout{15};
inline constexpr int kReadyFd = 3;  // where a started agent says "ok" or what went wrong

struct LaunchOptions {
  ListenKind kind = ListenKind::kTcp;
  std::string state_dir;  // "" the default
  std::string user;       // "" chosen by the agent
  std::uint16_t port = 0;
  std::chrono::seconds linger{300};
};

// A connection to a running agent.
base::Result<base::UniqueFd> connect_agent(const AgentState& state);

// The running agent of this very build, or one started now: detached, in a session of its own,
// holding none of our descriptors. Returns once it listens.
// Errors:  ETIMEDOUT: neither within kLaunchTimeout; else what the agent said.
base::Result<AgentState> find_or_start(const LaunchOptions& options);

}  // namespace nearbox::agent
