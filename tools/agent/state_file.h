// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "client/base/result.h"
#include "client/base/unique_fd.h"
#include "client/wire/messages.h"

// Where running agents are found: a directory that only their user may enter, with files per build.
namespace nearbox::agent {

enum class ListenKind : std::uint8_t { kTcp, kUnix };

// What a running agent says about itself; mode 0600, for it holds the token.
struct AgentState {
  std::int32_t pid = 0;
  std::uint16_t port = 0;  // kTcp
  std::string socket;      // kUnix
  std::string build;
  wire::Token token{};
};

std::string to_hex(const wire::Token& token);
std::optional<wire::Token> token_from_hex(std::string_view text);

// One line of JSON, and back. Parsing takes exactly what formatting makes.
std::string format_state(const AgentState& state);
std::optional<AgentState> parse_state(std::string_view text);

// `wanted` (absolute) or, when empty: root /run/nearbox-agent, else /tmp/nearbox-agent-0; others
// $XDG_RUNTIME_DIR/nearbox-agent, else /tmp/nearbox-agent-UID. Made with mode 0700.
// Errors:  EPERM: it is not a directory of ours alone (a symlink, another owner, open to others).
base::Result<std::string> state_directory(const std::string& wanted);

// The names of one build's files in a state directory. `user` is that of --user, "" without:
// an agent for another sandbox user is another agent.
struct StatePaths {
  std::string state;  // AgentState
  std::string run;    // locked as long as the agent runs
  std::string start;  // locked while somebody looks for it or starts it
  std::string log;
  std::string socket;
};
StatePaths state_paths(const std::string& directory, const std::string& build, ListenKind kind,
                       const std::string& user);

// Temporary file, fsync, rename.
base::Result<void> write_state(const std::string& path, const AgentState& state);
// Nothing when there is none; EPERM when it is not a plain file of ours that only we can read,
// EPROTO when it does not parse.
base::Result<std::optional<AgentState>> read_state(const std::string& path);

// An exclusive lock on a file (made when missing), held as long as the descriptor is open.
// Errors:  EWOULDBLOCK: another holds it and still did at the deadline.
base::Result<base::UniqueFd> lock_file(const std::string& path,
                                       std::chrono::steady_clock::time_point deadline);

}  // namespace nearbox::agent
