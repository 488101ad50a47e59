// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "tools/cli/app.h"

namespace nearbox::cli {

struct EnvdExec {
  std::string target;
  std::string cwd;
  std::vector<std::string> env;
  std::string user;
  std::vector<std::string> command;
  bool input = true;
};

// Runs a command through E2B's own service in the sandbox instead of the agent: for sandboxes where
// the agent cannot run. Output that comes while nobody listens is lost there, and only the one
// process gets signals. Returns the exit code.
int exec_via_envd(App& app, const EnvdExec& exec, std::chrono::steady_clock::time_point deadline);

}  // namespace nearbox::cli
