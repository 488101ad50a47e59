// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include <nlohmann/json.hpp>

#include "client/api/agent_link.h"
#include "client/base/log.h"
#include "client/base/result.h"
#include "fs/core/readers.h"
#include "tools/daemon/dialer.h"
#include "tools/daemon/layout.h"

namespace nearbox::daemon {

// Everything one daemon runs for its sandbox: link, events, tree, operation log, cache, mounts.
//
// Owns:    all of it; stops in the reverse order of start.
// Threads: methods run on the daemon's client threads and may wait up to their deadline.
class Engine {
 public:
  using Deadline = std::chrono::steady_clock::time_point;

  // `on_idle_change` is called (any thread) when a mount came or went.
  Engine(std::unique_ptr<Dialer> dialer, Layout layout, fs::ReadPolicy reads,
         std::function<void()> on_idle_change, base::Logger& log);
  ~Engine();

  // Waits until the agent answers. A first attempt that fails ends the wait with its error; a link
  // that was up once is waited for until the deadline.
  base::Result<void> wait_up(Deadline deadline);
  api::AgentLink& link();
  std::string name() const;  // of the sandbox, as users write it

  base::Result<nlohmann::json> mount(const nlohmann::json& request, Deadline deadline);
  // False: that mountpoint is not ours.
  base::Result<bool> unmount(const std::string& mountpoint, Deadline deadline);
  base::Result<void> unmount_all(Deadline deadline);
  std::size_t mounts() const;
  void reap();  // forgets mounts that were taken away from outside

  // Waits until every operation was acknowledged, and for the barrier of settle().
  base::Result<void> flush(Deadline deadline);
  // What changed in the sandbox before is visible in the mounts when it returns 0; nothing to do without
  // mounts. Else an errno: the mounts are told, or ask, later. `instance`, `seq`: as TreeStore::barrier.
  int settle(std::uint64_t instance, std::uint64_t seq, Deadline deadline);
  // What local programs did before is done in the sandbox when it returns 0.
  int drain(Deadline deadline);
  nlohmann::json status() const;
  // Ends the link: every wait of a client thread comes back with ESHUTDOWN. Unmount first.
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nearbox::daemon
