// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "client/base/result.h"
#include "client/base/unique_fd.h"

namespace nearbox::daemon {

// Starts this program again with `words` (words[0] is its name) in a session of its own: stdin from
// /dev/null, stdout a pipe whose reading end is returned, stderr appended to `log` (cut when it has
// grown above 4 MiB), working directory /. Signals are as at birth.
base::Result<base::UniqueFd> spawn_self(const std::vector<std::string>& words, const std::string& log);

// Reads the started program's first line, or all it says before it closes its stdout.
base::Result<std::string> read_report(int fd, std::chrono::steady_clock::time_point deadline);

}  // namespace nearbox::daemon
