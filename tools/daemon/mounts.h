// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <string>

#include "client/base/result.h"
#include "tools/daemon/layout.h"

namespace nearbox::daemon {

// Unmounts `mountpoint` (absolute) through the daemon that serves it, or by hand when that daemon is
// gone and left a dead mount. Errors: arg.invalid when nearbox mounted nothing there.
base::Result<void> unmount_anywhere(const std::string& mountpoint,
                                    std::chrono::steady_clock::time_point deadline);

// Takes away the mounts a daemon that is gone left behind; the caller holds that daemon's lock.
void clear_dead_mounts(const Layout& layout);

}  // namespace nearbox::daemon
