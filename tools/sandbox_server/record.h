// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "client/base/result.h"
#include "client/base/secret.h"
#include "tools/sandbox_server/rootfs.h"

namespace nearbox::sandbox_server {

using WallClock = std::chrono::system_clock;

// What a client asked for at creation.
struct SandboxSpec {
  std::string template_id;
  std::map<std::string, std::string> metadata;
  std::map<std::string, std::string> envs;
  std::vector<std::string> binds;
  std::chrono::seconds timeout{300};
  bool auto_pause = false;
  bool auto_pause_memory = true;  // false: what expires keeps its files alone
  bool auto_resume = false;
  bool secure = true;
  bool public_traffic = true;
  std::optional<bool> internet;
  std::string mask_host;        // the Host that services of the sandbox see; empty: the client's
  std::string idempotency_key;  // of the request that made it; empty: none
};

// What outlives the server of a sandbox: with this and its directory the next one brings it back.
struct SandboxRecord {
  std::string id;
  SandboxSpec spec;
  IsolationMode mode = IsolationMode::kPlain;
  base::Secret token;
  base::Secret traffic_token;
  WallClock::time_point started;
  WallClock::time_point ends;
};

// A record is a file of its own, readable by the server's user alone: it holds the tokens.
//
// write: complete and on disk, or not at all. read: EBADMSG for anything that is no record of ours.
base::Result<void> write_record(const std::string& path, const SandboxRecord& record);
base::Result<SandboxRecord> read_record(const std::string& path);

}  // namespace nearbox::sandbox_server
