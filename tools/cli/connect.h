// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "client/api/config.h"
#include "tools/cli/app.h"
#include "tools/daemon/client.h"
#include "tools/daemon/service.h"
#include "tools/daemon/target.h"

namespace nearbox::cli {

struct OpenedDaemon {
  daemon::Target target;
  std::unique_ptr<daemon::ControlConnection> connection;
};

// The settings of this call: flags, environment, files.
base::Result<api::Config> config_of(const App& app);

// From the words of the user to a running daemon for that sandbox.
base::Result<OpenedDaemon> open_daemon(const App& app, const std::string& target, daemon::Deadline deadline);

// What is left until `deadline`, as the daemon's requests carry it: at least 1 ms.
inline std::int64_t milliseconds_left(daemon::Deadline deadline) {
  const auto left =
      std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
  return std::max<std::int64_t>(left.count(), 1);
}

}  // namespace nearbox::cli
