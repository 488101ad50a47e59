// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <sys/types.h>
#include <vector>

#include "client/base/result.h"
#include "client/base/unique_fd.h"
#include "client/wire/messages.h"
#include "tools/agent/login_env.h"

namespace nearbox::agent {

enum class SpawnInput { kNull, kPipe, kPty };

// One process to start, everything decided: the child makes system calls only.
struct SpawnSpec {
  std::vector<std::string> programs;  // executed in turn until one exists
  std::vector<std::string> argv;
  std::vector<std::string> env;
  std::string cwd;
  bool cwd_optional = false;  // "/" when it does not exist
  Account account;
  bool switch_user = false;
  SpawnInput input = SpawnInput::kNull;
  std::uint16_t rows = 0;
  std::uint16_t cols = 0;
  std::uint64_t nofile_soft = 0;  // RLIMIT_NOFILE of the child; 0: as ours
  std::string cgroup_procs;       // file to enter before anything else; "": none
};

// A running process, leader of its own session and group. Its descriptors are non-blocking here.
struct Spawned {
  pid_t pid = -1;
  base::UniqueFd pidfd;  // invalid where the kernel has none (before Linux 5.3)
  base::UniqueFd in;     // kPipe only
  base::UniqueFd out;    // with a pty: its master, for both directions
  base::UniqueFd err;    // not with a pty
};

// What to run for a request: login shell or directly, who, where, with which environment.
// `sandbox_user`: whom an empty request.user means; "" = find out.
// Errors: ENOENT no such user; EPERM not root; EINVAL a malformed argv, env or cwd.
base::Result<SpawnSpec> make_spec(const wire::ProcStart& request, const std::string& sandbox_user);

// Starts it. Errors: ENOENT, EACCES, ENOTDIR … of the directory or the program, with text; EAGAIN
// when the kernel has no room; ETIMEDOUT when the program cannot be executed within kExecTimeoutMs.
// Threads: any, also several at once. The child of fork() makes async-signal-safe calls only.
base::Result<Spawned> spawn(const SpawnSpec& spec);
inline constexpr int kExecTimeoutMs = 10'000;

}  // namespace nearbox::agent
