// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "tools/daemon/control.h"
#include "tools/daemon/layout.h"
#include "tools/daemon/target.h"

namespace nearbox::daemon {

struct StartOptions {
  Target target;
  std::string service;      // control plane URL, see layout_for()
  std::string config_file;  // --config, "" for none
};

// The running daemon of a sandbox; ECONNREFUSED when there is none. An older or newer daemon that
// speaks another control version is an error that says what to do.
base::Result<std::unique_ptr<ControlConnection>> connect_daemon(const Layout& layout, Deadline deadline);

// The same, and starts one when there is none: in a session of its own, with this environment, its
// log in its state directory. It reports here when it listens or why it cannot.
base::Result<std::unique_ptr<ControlConnection>> connect_or_start(const StartOptions& options,
                                                                  Deadline deadline);

// Sends one request and waits for its answer: the object under "ok", or the error.
base::Result<nlohmann::json> request(ControlConnection& connection, const nlohmann::json& message,
                                     Deadline deadline);

}  // namespace nearbox::daemon
