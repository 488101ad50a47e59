// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <functional>
#include <string>
#include <vector>

#include "client/base/result.h"

namespace nearbox::fs {

// A program that is run to its end: found in PATH, with our environment and `env` on top.
struct HelperRun {
  std::vector<std::string> argv;
  std::vector<std::string> env;  // K=V
  int fd3 = -1;                  // becomes descriptor 3; all others but 0–2 are closed by exec
};
struct HelperOutcome {
  int status = 0;    // exit code; 128 + signal
  std::string text;  // what it said on stderr, at most kMaxHelperText bytes
};
inline constexpr std::size_t kMaxHelperText = 4096;

// Waits for a child of ours to end, and reaps it: its exit code, or 128 + signal. False: it runs on.
bool wait_child(pid_t pid, std::chrono::steady_clock::time_point deadline, int& status);

// Errors: ENOENT no such program; ETIMEDOUT: it was killed at the deadline.
base::Result<HelperOutcome> run_helper(const HelperRun& run, std::chrono::steady_clock::time_point deadline);

// Runs fn, which may only make system calls, in a forked child without our descriptors; what it
// returned, or -1 when it did not end in time (it is killed, and reaped when that takes effect).
int run_child(const std::function<int()>& fn, std::chrono::steady_clock::time_point deadline);

}  // namespace nearbox::fs
