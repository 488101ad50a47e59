// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>

#include "client/api/config.h"
#include "client/base/log.h"
#include "tools/daemon/dialer.h"
#include "tools/daemon/target.h"

namespace nearbox::daemon {

enum class StartServer { kNo, kYes };

// The configuration with which a target's control plane is reached: the user's own for E2B, the
// embedded server's for local targets (started when it is not running and may be), untouched for ssh
// and docker. Errors: auth.*, disabled, net.unreachable.
base::Result<api::Config> service_config(Provider provider, api::Config config, StartServer start,
                                         std::chrono::steady_clock::time_point deadline);
// Names the service in layout_for(): stays the same when the embedded server gets another port.
std::string service_name(Provider provider, const api::Config& config);

// The way to a target's agent. No network is touched yet.
base::Result<std::unique_ptr<Dialer>> make_dialer(const Target& target, const api::Config& config,
                                                  base::Logger& log);

}  // namespace nearbox::daemon
