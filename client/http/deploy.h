// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "client/api/envd.h"
#include "client/base/result.h"
#include "client/base/secret.h"

namespace nearbox::http {

inline constexpr std::size_t kMaxLaunchOutput = 64 * 1024;
inline constexpr std::size_t kBuildDigits = 16;
inline constexpr std::size_t kAgentTokenDigits = 64;           // 256 bits
inline constexpr std::uint64_t kMaxAgentBytes = 256ull << 20;  // a file larger than that is not an agent
inline constexpr std::chrono::hours kStaleUpload{1};  // an unfinished upload as old as that is removed

// Where an agent listens, and what lets us in.
struct AgentAddress {
  std::uint16_t port = 0;
  base::Secret token;
  std::string build;
};

struct DeployOptions {
  std::string agent_path;  // the local binary
  // Where it may go, best first; each is tried when the one before cannot be written.
  std::vector<std::string> directories{"/usr/local/bin", "/root", "/tmp"};
};

// Build id of an agent binary: the first 16 hexadecimal digits of its SHA-256.
base::Result<std::string> agent_build(const std::string& path);

// Makes the agent of this build run in the sandbox and answers where it listens.
//
// It is uploaded once per sandbox and build, under a name nobody else uses, then made executable and
// renamed: parallel uploads, aborted ones and running agents do not meet. The launcher runs as root
// without a deadline, tells port and token on its output (which envd does not log) and ends.
// Threads: any, several for one sandbox too. Errors: as Envd's; local.not_found; remote.* texts of
// the launcher as errno EIO.
// Source: infra 54693ff, packages/envd/internal/api/upload.go (uploads are in place, ETXTBSY),
//         .../services/process (SIGKILL at Connect-Timeout-Ms), .../logs/interceptor.go.
base::Result<AgentAddress> deploy_agent(api::Envd& envd, const DeployOptions& options, api::Deadline deadline,
                                        std::stop_token stop = {});

// The launcher's line {"port":N,"token":"hex","pid":P,"build":"…"}; nullopt for anything else.
std::optional<AgentAddress> parse_launch_line(std::string_view output);

}  // namespace nearbox::http
