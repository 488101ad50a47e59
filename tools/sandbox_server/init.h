// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "tools/sandbox_server/rootfs.h"

// What server and init say to each other over the control socket (SOCK_SEQPACKET, one message a packet).
namespace nearbox::sandbox_server {

inline constexpr int kControlFd = 3;
inline constexpr int kListenFd = 4;
inline constexpr std::size_t kMaxControlMessage = 128 * 1024;

inline constexpr std::string_view kReady = "ready";     // init: the sandbox is up
inline constexpr std::string_view kFailed = "failed ";  // init: followed by the reason
inline constexpr std::string_view kFreeze = "freeze";   // server: stop every process
inline constexpr std::string_view kThaw = "thaw";       // server: let them run again
inline constexpr std::string_view kDone = "done";       // init: carried out

// The first message: what the sandbox is. Holds the access token, hence no argument or environment.
struct InitConfig {
  std::string id;
  std::string dir;  // the sandbox's directory, absolute
  std::string template_id;
  IsolationMode mode = IsolationMode::kPlain;
  bool probe = false;  // build the view, report, end
  std::string token;
  std::map<std::string, std::string> envs;
  std::vector<std::string> binds;
};

std::string encode_init_config(const InitConfig& config);
std::optional<InitConfig> decode_init_config(std::string_view text);

}  // namespace nearbox::sandbox_server
