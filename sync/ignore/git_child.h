// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

#include "client/base/result.h"

namespace nearbox::ignore {

inline constexpr std::size_t kMaxGitOutput = 512ull * 1024 * 1024;  // index of some five million files

// Runs `git ARGS…` and returns what it wrote to stdout. It reads only: no locks, no prompts, no hooks, and
// none of the variables that would make it look at another repository. Errors: ENOENT there is no git;
// ETIMEDOUT; EFBIG; EIO git failed, with the first line of its own words.
base::Result<std::string> run_git(const std::vector<std::string>& args,
                                  std::chrono::steady_clock::time_point deadline,
                                  std::size_t limit = kMaxGitOutput);

}  // namespace nearbox::ignore
