// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "client/base/result.h"
#include "client/base/secret.h"
#include "client/base/unique_fd.h"

namespace nearbox::daemon {

// Where the embedded sandbox server of this user is reached.
struct LocalServer {
  std::string api_url;
  std::string sandbox_url;
  base::Secret api_key;
  int pid = 0;
};

// The running one, found by its state file (0600) and the lock it holds; nothing when none runs.
base::Result<std::optional<LocalServer>> find_local_server();
// The same, and starts one that stays until it is told to end (`nearbox serve --stop`).
base::Result<LocalServer> ensure_local_server(std::chrono::steady_clock::time_point deadline);

// Held by a server that others may find. Owns the lock and takes the state file away at its end.
class LocalServerRecord {
 public:
  // EBUSY when another server is on record.
  static base::Result<LocalServerRecord> take();
  base::Result<void> publish(const LocalServer& server);
  std::string data_dir() const { return dir_ + "/data"; }
  LocalServerRecord(LocalServerRecord&&) = default;
  LocalServerRecord& operator=(LocalServerRecord&&) = default;
  ~LocalServerRecord();

 private:
  LocalServerRecord(std::string dir, base::UniqueFd lock) : dir_(std::move(dir)), lock_(std::move(lock)) {}
  std::string dir_;
  base::UniqueFd lock_;
};

}  // namespace nearbox::daemon
